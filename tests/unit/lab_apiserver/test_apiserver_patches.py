"""Patches, selectors and server-side apply, as values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.lab.apiserver.columns import short_duration
from kube_router_py.lab.apiserver.patches import json_patch, merge_patch, patch, strategic_merge
from kube_router_py.lab.apiserver.protobuf import MAGIC, UnknownField, decode
from kube_router_py.lab.apiserver.resources import BY_NAME
from kube_router_py.lab.apiserver.selectors import field_selector, label_selector
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import Store, own


@pytest.mark.parametrize(
    ("old", "operations", "new"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": {"b/c": 1}}, [{"op": "remove", "path": "/a/b~1c"}], {"a": {}}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": 2}], {"a": 2}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1}),
    ],
)
def test_json_patch(old: Any, operations: Any, new: Any) -> None:
    before = own(old)
    assert json_patch(old, operations, "X") == new
    assert old == before


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "test", "path": "/a", "value": 2}, 422),
        ({"op": "remove", "path": "/b"}, 422),
        ({"op": "replace", "path": "/b", "value": 1}, 422),
        ({"op": "add", "path": "/a/b/c", "value": 1}, 422),
        ({"op": "jump", "path": "/a"}, 400),
        ({"op": "add", "path": "a", "value": 1}, 400),
        ({"path": "/a"}, 400),
    ],
)
def test_json_patch_refuses(operation: Any, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({"a": 1}, [operation], "X")
    assert caught.value.code == code


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return value


@given(old=json_values, change=json_values)
def test_merge_patch_is_idempotent_and_changes_nothing_in_place(old: Any, change: Any) -> None:
    before = own(old)
    once = merge_patch(old, change)
    assert merge_patch(once, change) == once
    assert old == before
    if isinstance(change, dict):
        for key, value in change.items():
            if not isinstance(value, dict):
                assert once.get(key) == value


CONTAINERS = [{"name": "a", "image": "1"}, {"name": "b", "image": "1", "ports": []}]


def test_strategic_merge_merges_lists_by_key() -> None:
    old = {"spec": {"containers": CONTAINERS, "tolerations": [{"key": "x"}]}}
    change = {
        "spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "a", "image": "2"}],
            "tolerations": [{"key": "y"}],
        }
    }
    new = strategic_merge(old, change, ("Pod",))
    assert [c["name"] for c in new["spec"]["containers"]] == ["b", "a"]
    assert new["spec"]["containers"][1]["image"] == "2"
    assert new["spec"]["tolerations"] == [{"key": "y"}], "an atomic list is replaced"


def test_strategic_merge_directives() -> None:
    old = {"spec": {"containers": CONTAINERS}, "metadata": {"finalizers": ["a", "b"]}}
    change: dict[str, Any] = {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}
    assert [c["name"] for c in strategic_merge(old, change, ("Pod",))["spec"]["containers"]] == [
        "b"
    ]
    change = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert strategic_merge(old, change, ("Pod",))["metadata"]["finalizers"] == ["b"]
    change = {"metadata": {"finalizers": ["c"]}}
    assert strategic_merge(old, change, ("Pod",))["metadata"]["finalizers"] == ["a", "b", "c"]
    change = {"spec": {"$patch": "replace", "nodeName": "n"}}
    assert strategic_merge(old, change, ("Pod",))["spec"] == {"nodeName": "n"}
    change = {"spec": {"$retainKeys": ["nodeName"], "nodeName": "n"}}
    assert strategic_merge(old, change, ("Pod",))["spec"] == {"nodeName": "n"}
    with pytest.raises(StatusError, match="does not contain declared merge key: name"):
        strategic_merge(old, {"spec": {"containers": [{"image": "x"}]}}, ("Pod",))


def test_service_ports_merge_by_port_and_slice_ports_do_not() -> None:
    old = {"spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}}
    change = {"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}
    assert strategic_merge(old, change, ("Service",))["spec"]["ports"] == [
        {"port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "http"}
    ]
    assert patch("strategic", {"ports": [{"port": 1}]}, {"ports": []}, "EndpointSlice") == {
        "ports": []
    }


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("app=web", True),
        ("app==web,tier!=db", True),
        ("app!=web", False),
        ("app in (web,db), tier notin (x)", True),
        ("app notin (web)", False),
        ("missing notin (x)", True),
        ("app", True),
        ("!app", False),
        ("!missing", True),
        ("missing", False),
        ("a.b/c=", False),
        ("empty=", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    obj = {"metadata": {"labels": {"app": "web", "empty": ""}}}
    assert label_selector(selector)(obj) is matches


def test_bad_selectors_are_400() -> None:
    for text in ("a b", "a in x", "=x"):
        with pytest.raises(StatusError):
            label_selector(text)
    with pytest.raises(StatusError, match=r"field label not supported: spec\.color"):
        field_selector("spec.color=red", BY_NAME["pods"])


def test_field_selectors() -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    for text, matches in (
        ("spec.nodeName=n1", True),
        ("spec.nodeName!=n1", False),
        ("metadata.name=p,status.phase=Running", True),
        ("status.podIP=", True),
    ):
        assert field_selector(text, BY_NAME["pods"])(pod) is matches
    node: dict[str, Any] = {"metadata": {"name": "n"}, "spec": {}}
    assert field_selector("spec.unschedulable=false", BY_NAME["nodes"])(node)


def apply(store: Store, manager: str, data: dict[str, str], force: bool = False) -> Any:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}
    return store.server_side_apply(
        "configmaps", "c", config, namespace="default", manager=manager, force=force
    )[0]


def test_server_side_apply_removes_what_its_manager_no_longer_wants(store: Store) -> None:
    apply(store, "one", {"a": "1", "b": "1"})
    apply(store, "two", {"b": "1", "c": "1"})
    assert apply(store, "one", {})["data"] == {"b": "1", "c": "1"}
    revision = store.revision
    apply(store, "two", {"b": "1", "c": "1"})
    assert store.revision == revision, "applying the same again writes nothing"


def test_server_side_apply_conflicts_unless_forced(store: Store) -> None:
    apply(store, "one", {"a": "1"})
    with pytest.raises(StatusError, match=r'conflict with "one" using v1: \.data\.a') as caught:
        apply(store, "two", {"a": "2"})
    assert caught.value.details["causes"][0]["reason"] == "FieldManagerConflict"
    assert apply(store, "two", {"a": "2"}, force=True)["data"] == {"a": "2"}
    assert apply(store, "one", {})["data"] == {"a": "2"}, "one owns it no more"


def test_a_plain_write_takes_ownership(store: Store) -> None:
    apply(store, "one", {"a": "1"})
    store.patch("configmaps", "c", {"data": {"a": "2"}}, namespace="default", manager="editor")
    with pytest.raises(StatusError, match='conflict with "editor"'):
        apply(store, "one", {"a": "1"})


def test_what_existed_before_the_first_apply_conflicts(store: Store) -> None:
    store.create("configmaps", {"metadata": {"name": "c"}, "data": {"a": "1"}})
    with pytest.raises(StatusError, match="before-first-apply"):
        apply(store, "one", {"a": "2"})


def test_server_side_apply_merges_lists_by_key(store: Store) -> None:
    def ports(manager: str, *given: dict[str, Any]) -> Any:
        spec = {"ports": list(given), "selector": {"app": manager}}
        config = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "s"},
            "spec": spec if manager == "one" else {"ports": list(given)},
        }
        made, _ = store.server_side_apply(
            "services", "s", config, namespace="default", manager=manager
        )
        return [(p["port"], p["protocol"], p.get("name")) for p in made["spec"]["ports"]]

    dns = ({"port": 53, "name": "t"}, {"port": 53, "name": "u", "protocol": "UDP"})
    assert ports("one", *dns) == [(53, "TCP", "t"), (53, "UDP", "u")]
    assert (54, "TCP", "x") in ports("two", {"port": 54, "name": "x"})
    assert ports("one", dns[1]) == [(53, "UDP", "u"), (54, "TCP", "x")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (5, "5s"), (119, "119s"), (125, "2m5s"), (600, "10m"), (3 * 3600, "3h"),
     (3700 * 4, "4h6m"), (50 * 3600, "2d2h"), (30 * 86400, "30d")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def envelope(kind: bytes, raw: bytes) -> bytes:
    return MAGIC + field(1, field(1, b"v1") + field(2, kind)) + field(2, raw)


def test_protobuf_is_decoded_completely_or_not_at_all() -> None:
    metadata = field(1, b"a") + field(8, b"") + field(11, field(1, b"k") + field(2, b"v"))
    body = envelope(b"ConfigMap", field(1, metadata) + field(2, field(1, b"x") + field(2, b"y")))
    assert decode(body) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "labels": {"k": "v"}},
        "data": {"x": "y"},
    }
    with pytest.raises(UnknownField, match="ObjectMeta field 14"):
        decode(envelope(b"ConfigMap", field(1, metadata + field(14, b"finalizer"))))
    with pytest.raises(UnknownField, match="Job"):
        decode(envelope(b"Job", b""))


@given(raw=st.binary(max_size=40), kind=st.sampled_from([b"Deployment", b"Service", b"ConfigMap"]))
def test_broken_protobuf_is_never_more_than_refused(raw: bytes, kind: bytes) -> None:
    for body in (envelope(kind, raw), MAGIC + raw, raw):
        try:
            assert isinstance(decode(body), dict)
        except UnknownField:
            pass
