import json
from typing import Any

import pytest

from kube_router_py.cluster import decode
from kube_router_py.cluster.decode import ObjectDecoder, UndecodableError
from kube_router_py.cluster.objects import ConfigMap, EndpointSlice, Node, Pod, Service


def listed(kind: str, *items: Any, **meta: Any) -> bytes:
    meta = {"resourceVersion": "7", **meta}
    return json.dumps({"kind": f"{kind}List", "metadata": meta, "items": items}).encode()


def named(name: str, **fields: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ns", "resourceVersion": "5", **fields.pop("metadata", {})}
    return {"metadata": meta, **fields}


def test_one_bad_object_is_a_problem_and_the_others_are_objects() -> None:
    page = ObjectDecoder(Service).page(
        listed(
            "Service",
            named("good", spec={"ports": [{"port": 80}]}),
            named("bad", spec={"ports": [{"port": 80}, {"port": "http"}]}),
            named("also-good"),
        )
    )
    good, bad, also_good = page.items
    assert good.object is not None
    assert also_good.object is not None
    assert bad.object is None
    assert (bad.key, bad.revision) == ("ns/bad", "5")
    assert bad.problem is not None
    assert bad.problem.object == "Service ns/bad"
    assert bad.problem.field == "spec.ports[1].port"
    assert "`int`" in bad.problem.reason


def test_null_means_absent_everywhere() -> None:
    items = [
        named("a", spec=None, status=None),
        named("b", spec={"ports": None, "clusterIPs": None, "type": None}),
        named("c", spec={"ports": [{"port": 80, "protocol": None, "nodePort": None}]}),
        named("d", metadata={"labels": None, "annotations": None, "uid": None}),
    ]
    page = ObjectDecoder(Service).page(listed("Service", *items))
    assert [item.problem for item in page.items] == [None] * 4
    slice_ = ObjectDecoder(EndpointSlice).item(
        json.dumps(named("s", ports=None, endpoints=None, addressType="IPv4")).encode()
    )
    assert slice_.object is not None
    assert slice_.object.ports is None
    empty = ObjectDecoder(Service).page(
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"1"}}'
    )
    assert empty.items == ()


@pytest.mark.parametrize(
    "item", [{}, {"metadata": {}}, {"metadata": None}, {"metadata": {"name": 3}}, [], "x", None, 5]
)
def test_an_object_without_a_name_is_a_problem_without_a_key(item: Any) -> None:
    (found,) = ObjectDecoder(Service).page(listed("Service", item)).items
    assert found.object is None
    assert found.key == ""
    assert found.problem is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>proxy login</html>",
        b"{}",
        b"[]",
        b"null",
        b'{"kind":"Status","metadata":{"resourceVersion":"1"}}',
        b'{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}',
        b'{"kind":"ServiceList","metadata":{},"items":[]}',
        b'{"kind":"ServiceList","metadata":{"resourceVersion":""},"items":[]}',
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":[{"meta',
        b'{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":' + b"[" * 100_000,
    ],
)
def test_what_is_no_list_never_passes_for_an_empty_one(body: bytes) -> None:
    with pytest.raises(UndecodableError):
        ObjectDecoder(Service).page(body)


def test_an_object_nested_without_end_is_a_problem() -> None:
    raw = (
        b'{"metadata":{"name":"deep","namespace":"ns"},"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    )
    item = ObjectDecoder(Service).item(raw)
    assert item.object is None
    assert item.problem is not None


def test_a_page_carries_revision_and_continuation() -> None:
    page = ObjectDecoder(Node).page(listed("Node", **{"continue": "abc"}))
    assert (page.revision, page.next) == ("7", "abc")
    assert ObjectDecoder(Node).page(listed("Node", **{"continue": None})).next == ""


def test_what_nobody_needs_is_not_kept() -> None:
    secret = "kept-in-memory"
    item = ObjectDecoder(Pod).item(
        json.dumps(
            named(
                "p",
                metadata={
                    "managedFields": [{"manager": secret}],
                    "annotations": {
                        "kubectl.kubernetes.io/last-applied-configuration": secret,
                        "kube-router.io/service.scheduler": "sh",
                        "service.kubernetes.io/topology-mode": "Auto",
                        "metallb.io/loadBalancerIPs": "192.0.2.1",
                        "metallb.universe.tf/address-pool": "outside",
                        "example.com/story": secret,
                        "mine": secret,
                        # Nobody's subdomains of what is read.
                        "xmetallb.io/story": secret,
                        "metallb.io.example.com/story": secret,
                        "not-kube-router.io/story": secret,
                        "universe.tf/story": secret,
                    },
                },
                spec={"containers": [{"name": "c", "env": [{"value": secret}], "image": secret}]},
                status={"conditions": [{"message": secret}]},
            )
        ).encode()
    )
    assert item.object is not None
    assert secret not in repr(item.object)
    assert item.object.metadata.annotations == {
        "kube-router.io/service.scheduler": "sh",
        "service.kubernetes.io/topology-mode": "Auto",
        "metallb.io/loadBalancerIPs": "192.0.2.1",
        "metallb.universe.tf/address-pool": "outside",
    }


def test_a_config_map_keeps_its_texts() -> None:
    data = {"pools": "- name: a\n", "ä": ""}
    item = ObjectDecoder(ConfigMap).item(json.dumps(named("c", data=data)).encode())
    assert item.object is not None
    assert item.object.data == data
    for empty in (named("c"), named("c", data=None), named("c", binaryData={"pools": "AA=="})):
        item = ObjectDecoder(ConfigMap).item(json.dumps(empty).encode())
        assert item.object is not None
        assert item.object.data is None


def test_watch_envelope_and_bookmark() -> None:
    line = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"},"spec":null}}'
    event = decode.watch_event(line)
    assert event.type == "BOOKMARK"
    assert decode.identify(event.object).resource_version == "9"
    for bad in (
        b"x",
        b"{}",
        b'{"type":3,"object":{}}',
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","ob',
    ):
        with pytest.raises(UndecodableError):
            decode.watch_event(bad)


def test_every_kind_decodes_at_its_path() -> None:
    for kind, resource in decode.RESOURCES.items():
        raw = json.dumps({"metadata": {"name": "x", "resourceVersion": "3"}}).encode()
        item = ObjectDecoder(kind).item(raw)
        assert item.key == "x"
        assert resource.path.endswith("/" + resource.plural)
