"""The store: what the API does, without HTTP."""

from typing import Any

import pytest

from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import Store, load, own


def pod(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "x:1"}], **spec},
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], **spec}}


def refused(code: int) -> Any:
    return pytest.raises(StatusError, check=lambda error: error.code == code)


def test_every_write_gets_the_next_revision_of_one_counter(store: Store) -> None:
    before = store.revision
    first = store.create("configmaps", {"metadata": {"name": "a"}})
    second = store.create("pods", pod())
    assert first["metadata"]["resourceVersion"] == str(before + 1)
    assert second["metadata"]["resourceVersion"] == str(before + 2)
    assert store.revision == before + 2


def test_create_completes_metadata(store: Store) -> None:
    made = store.create("configmaps", {"metadata": {"generateName": "a-"}})
    meta = made["metadata"]
    assert meta["name"].startswith("a-")
    assert len(meta["name"]) == 7
    assert meta["namespace"] == "default"
    assert meta["uid"]
    assert meta["creationTimestamp"] == "2023-11-14T22:13:20Z"
    assert (made["apiVersion"], made["kind"]) == ("v1", "ConfigMap")


def test_create_does_not_change_what_it_was_given(store: Store) -> None:
    given = service()
    copy = own(given)
    store.create("services", given)
    assert given == copy


def test_name_taken_namespace_missing_object_missing(store: Store) -> None:
    store.create("configmaps", {"metadata": {"name": "a"}})
    with refused(409):
        store.create("configmaps", {"metadata": {"name": "a"}})
    with refused(404):
        store.create("configmaps", {"metadata": {"name": "a"}}, namespace="nowhere")
    with refused(404):
        store.get("configmaps", "b", "default")


def test_update_with_an_old_revision_conflicts(store: Store) -> None:
    old = store.create("configmaps", {"metadata": {"name": "a"}})
    store.patch("configmaps", "a", {"data": {"k": "1"}}, namespace="default")
    with refused(409):
        store.update("configmaps", {**old, "data": {"k": "2"}})
    free = own(old)
    del free["metadata"]["resourceVersion"]
    assert store.update("configmaps", {**free, "data": {"k": "3"}})["data"] == {"k": "3"}


def test_an_update_that_changes_nothing_writes_nothing(store: Store) -> None:
    old = store.create("configmaps", {"metadata": {"name": "a"}, "data": {"k": "1"}})
    revision = store.revision
    assert store.update("configmaps", old) is old
    assert store.patch("configmaps", "a", {"data": {"k": "1"}}, namespace="default") is old
    assert store.revision == revision


def test_a_lease_needs_a_revision_to_be_updated(store: Store) -> None:
    store.create("leases", {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})
    with refused(422):
        store.update("leases", {"metadata": {"name": "l"}, "spec": {"holderIdentity": "b"}})


def test_status_and_spec_are_written_apart(store: Store) -> None:
    made = store.create("pods", {**pod(), "status": {"phase": "Running"}})
    assert made["status"]["phase"] == "Pending"
    changed = own(made)
    changed["status"] = {"phase": "Running"}
    changed["metadata"]["labels"] = {"a": "b"}
    after = store.update("pods", changed)
    assert after["status"]["phase"] == "Pending"
    assert after["metadata"]["labels"] == {"a": "b"}
    changed = own(after)
    changed["status"] = {"phase": "Running"}
    changed["metadata"]["labels"] = {}
    after = store.update("pods", changed, subresource="status")
    assert after["status"] == {"phase": "Running"}
    assert after["metadata"]["labels"] == {"a": "b"}


def test_generation_counts_changes_of_the_spec_only(store: Store) -> None:
    made = store.create("networkpolicies", {"metadata": {"name": "n"}, "spec": {"podSelector": {}}})
    assert made["metadata"]["generation"] == 1
    change: dict[str, Any] = {"metadata": {"labels": {"a": "b"}}}
    made = store.patch("networkpolicies", "n", change, namespace="default")
    assert made["metadata"]["generation"] == 1
    change = {"spec": {"policyTypes": ["Egress"]}}
    made = store.patch("networkpolicies", "n", change, namespace="default")
    assert made["metadata"]["generation"] == 2


def test_dry_run_stores_and_allocates_nothing(store: Store) -> None:
    revision = store.revision
    shown = store.create("services", service(type="NodePort"), dry_run=True)
    assert shown["spec"]["ports"][0]["nodePort"]
    assert store.revision == revision
    made = store.create("services", service(type="NodePort"))
    assert made["spec"]["clusterIP"] == shown["spec"]["clusterIP"]


def test_a_scheduled_pod_is_deleted_gracefully(store: Store) -> None:
    store.create("pods", pod(nodeName="node1", terminationGracePeriodSeconds=5))
    marked, gone = store.delete("pods", "web", "default")
    assert not gone
    assert marked["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:25Z"
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 5
    revision = store.revision
    store.delete("pods", "web", "default")
    assert store.revision == revision, "deleting again changes nothing"
    assert store.delete("pods", "web", "default", grace_period_s=0)[1]
    assert store.find("pods", "web", "default") is None


def test_an_unscheduled_pod_goes_at_once(store: Store) -> None:
    store.create("pods", pod())
    assert store.delete("pods", "web", "default")[1]


def test_finalizers_keep_an_object(store: Store) -> None:
    store.create("configmaps", {"metadata": {"name": "a", "finalizers": ["x/y"]}})
    assert not store.delete("configmaps", "a", "default")[1]
    store.patch("configmaps", "a", {"metadata": {"finalizers": None}}, namespace="default")
    assert store.find("configmaps", "a", "default") is None


def test_delete_preconditions(store: Store) -> None:
    store.create("configmaps", {"metadata": {"name": "a"}})
    with refused(409):
        store.delete("configmaps", "a", "default", uid="other")
    with refused(409):
        store.delete("configmaps", "a", "default", revision="1")


def test_orphan_deletion_cuts_owner_references(store: Store) -> None:
    owner = store.create("configmaps", {"metadata": {"name": "owner"}})
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    meta = {"name": "child", "ownerReferences": [reference]}
    child = store.create("configmaps", {"metadata": meta})
    assert child["metadata"]["ownerReferences"] == [reference]
    store.delete("configmaps", "owner", "default", propagation="Orphan")
    assert store.get("configmaps", "child", "default")["metadata"]["ownerReferences"] == []


def test_a_namespace_goes_when_its_last_object_has_gone(store: Store) -> None:
    store.create("namespaces", {"metadata": {"name": "shop"}})
    assert store.get("serviceaccounts", "default", "shop")
    store.create("pods", pod(nodeName="node1"), namespace="shop")
    store.create("configmaps", {"metadata": {"name": "a"}}, namespace="shop")
    assert not store.delete("namespaces", "shop")[1]
    assert store.get("namespaces", "shop")["status"]["phase"] == "Terminating"
    assert store.list("configmaps", "shop") == []
    with refused(403):
        store.create("configmaps", {"metadata": {"name": "b"}}, namespace="shop")
    store.delete("pods", "web", "shop", grace_period_s=0)
    assert store.find("namespaces", "shop") is None
    with refused(403):
        store.delete("namespaces", "default")


def test_subscribers_hear_writes_in_order_even_when_they_write(store: Store) -> None:
    heard: list[str] = []

    def copy_labels(event: Any) -> None:
        heard.append(f"1 {event.type} {event.object['metadata']['name']}")
        if event.type == "ADDED" and event.object["metadata"]["name"] == "a":
            store.create("configmaps", {"metadata": {"name": "b"}})

    stop = store.subscribe(copy_labels, "configmaps")
    store.subscribe(lambda event: heard.append(f"2 {event.object['metadata']['name']}"))
    store.create("configmaps", {"metadata": {"name": "a"}})
    assert heard == ["1 ADDED a", "2 a", "1 ADDED b", "2 b"]
    stop()
    store.create("configmaps", {"metadata": {"name": "c"}})
    assert heard[-1] == "2 c"


def test_a_failing_subscriber_fails_alone(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def fail(_event: Any) -> None:
        raise RuntimeError("boom")

    store.subscribe(fail)
    store.subscribe(lambda event: heard.append(event.type))
    store.create("configmaps", {"metadata": {"name": "a"}})
    assert heard == ["ADDED"]
    assert "boom" in caplog.text


def test_a_watch_queue_gets_what_it_asked_for(store: Store) -> None:
    watch = store.watch("pods")
    store.create("configmaps", {"metadata": {"name": "a"}})
    store.create("pods", pod())
    store.delete("pods", "web", "default")
    events = watch.take()
    assert [event.type for event in events] == ["ADDED", "DELETED"]
    assert events[1].object["metadata"]["resourceVersion"] == str(store.revision)
    watch.close()
    store.create("pods", pod())
    assert watch.take() == []


def test_a_list_can_be_read_as_it_was(store: Store) -> None:
    for name in "abc":
        store.create("configmaps", {"metadata": {"name": name}, "data": {"v": "1"}})
    revision = store.revision
    store.delete("configmaps", "a", "default")
    store.patch("configmaps", "b", {"data": {"v": "2"}}, namespace="default")
    store.create("configmaps", {"metadata": {"name": "d"}})
    then = store.storage.list_at("configmaps", None, revision)
    assert [(o["metadata"]["name"], o["data"]["v"]) for o in then] == [
        ("a", "1"),
        ("b", "1"),
        ("c", "1"),
    ]
    store.compact()
    with refused(410):
        store.storage.list_at("configmaps", None, revision)


def test_apply_creates_then_merges(store: Store) -> None:
    wanted = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "x:1"}]},
            },
        },
    }
    made = store.apply(wanted)
    assert made["spec"]["replicas"] == 1
    assert made["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": "25%",
        "maxUnavailable": "25%",
    }
    wanted["spec"]["template"]["spec"]["containers"][0]["image"] = "x:2"  # type: ignore[index]
    again = store.apply(wanted)
    (container,) = again["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "x:2"
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert again["metadata"]["uid"] == made["metadata"]["uid"]


def test_load_makes_namespaces_first(store: Store) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "shop"},
    }
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    load(store, [config, space])
    assert store.get("configmaps", "a", "shop")
    with refused(400):
        store.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}})


def test_lenient_writes_keep_anything(store: Store) -> None:
    bad = {"metadata": {"name": "bad"}, "spec": {"ports": "none"}, "status": {"x": 1}}
    with refused(422):
        store.create("services", bad)
    made = store.create("services", bad, lenient=True)
    assert made["spec"] == {"ports": "none"}
    assert made["status"] == {"x": 1}
    store.delete("services", "bad", "default")
    store.create("services", {"metadata": {"name": "worse"}, "spec": 7}, lenient=True)
    store.delete("services", "worse", "default")
    odd = {"metadata": {"name": "odd", "labels": "none"}, "spec": 7, "status": []}
    store.create("pods", odd, lenient=True)
    assert store.list("pods", selector="a=b") == []
    assert store.delete("pods", "odd", "default")[1]


def test_secret_text_is_encoded(store: Store) -> None:
    made = store.create("secrets", {"metadata": {"name": "s"}, "stringData": {"k": "v"}})
    assert made["data"] == {"k": "dg=="}
    assert made["type"] == "Opaque"
