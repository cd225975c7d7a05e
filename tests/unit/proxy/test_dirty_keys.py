"""Which events make what dirty, and what the proxy makes of pods that are on their way out."""

from collections.abc import Iterable
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import ObjectMeta, Pod, PodSpec, PodStatus
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import (
    CLUSTER_NODES,
    KINDS,
    LEAVING_PODS,
    LOCAL_PODS,
    OWN_NODE,
    dirty_keys,
)
from kube_router_py.proxy.model import Connections
from kube_router_py.proxy.settings import ProxyOptions


def pod(address: str = "10.244.1.3", node: str = "node1", **meta: Any) -> Pod:
    metadata = ObjectMeta("a", "default", **meta)
    return Pod(metadata, PodSpec(node_name=node), PodStatus("Running", pod_ip=address))


LEAVING = {"deletion_timestamp": "2026-03-01T12:00:00Z", "deletion_grace_period_seconds": 600}


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        (None, pod(), {LOCAL_PODS}),
        (None, pod(node="node2"), set()),
        (pod(), pod(labels={"a": "b"}), set()),
        (pod(), pod("10.244.1.4"), {LOCAL_PODS}),
        (pod(), None, {LOCAL_PODS}),
        (pod(), pod(**LEAVING), {LEAVING_PODS}),
        (None, pod(node="node2", **LEAVING), {LEAVING_PODS}),
        (pod(**LEAVING), pod(**LEAVING, labels={"a": "b"}), set()),
        # kubectl delete --force behind an ordinary one.
        (pod(**LEAVING), pod(**{**LEAVING, "deletion_grace_period_seconds": 0}), {LEAVING_PODS}),
        (pod(node="node2", **LEAVING), None, set()),
    ],
)
def test_events_of_pods(old: Pod | None, new: Pod | None, keys: set[str]) -> None:
    assert dirty_keys(Event(Pod, "default/a", old, new), "node1") == keys


def test_events_of_nodes(make: Any) -> None:
    def keys(old: Any, new: Any) -> set[Any]:
        kind = type(old or new)
        return set(dirty_keys(Event(kind, (old or new).metadata.name, old, new), "node1"))

    other = make.node("node2", ("192.168.1.2",), ("10.244.2.0/24",))
    assert keys(None, other) == {CLUSTER_NODES}
    assert keys(other, other) == set()
    assert keys(other, make.node("node2", ("192.168.1.2",), ("10.244.9.0/24",))) == {CLUSTER_NODES}
    weight = {"kube-router.io/backend-weight": "2"}
    heavy = make.node("node2", ("192.168.1.2",), ("10.244.2.0/24",), annotations=weight)
    assert keys(other, heavy) == {OWN_NODE}
    zone = {"topology.kubernetes.io/zone": "a"}
    assert keys(make.node(), make.node(labels=zone)) == {OWN_NODE}
    assert keys(make.node(), make.node("node1", ("192.168.1.9",))) == {OWN_NODE, CLUSTER_NODES}


def test_a_slice_that_changes_its_service_concerns_both(make: Any) -> None:
    old, new = make.slice("10.244.1.2"), make.slice("10.244.1.2", service="b", name="web-1")
    found = dirty_keys(Event(type(old), "default/web-1", old, new), "node1")
    assert found == {"default/web", "default/b"}


class Marked(set[Any]):
    def mark(self, keys: Iterable[Any]) -> None:
        self.update(keys)


def test_draining_lasts_until_the_pod_is_killed(make: Any, host: Any) -> None:
    cache, dirty, now = Cache((*KINDS, Pod)), Marked(), [0.0]
    noon_s = 1772366400.0
    proxy = ServiceProxy(
        cache,
        ProxyOptions(),
        "node1",
        host.open,
        clock=lambda: now[0],
        wall_clock=lambda: noon_s - 500 + now[0],
    )
    proxy.open()
    proxy.subscribe(cache, dirty)
    for each in (make.node(), make.service(), make.slice("10.244.1.2", "10.244.1.3"), pod()):
        cache.put(type(each), each)
    proxy.reconcile(frozenset(), True)

    def turn() -> dict[str, int] | None:
        proxy.reconcile(frozenset(dirty), False)
        dirty.clear()
        found: dict[str, int] | None = make.weights(host.ipvs.read()[make.key("10.96.0.10")])
        return found

    busy = Connections(active=1, inactive=0)
    host.ipvs.set_connections(make.key("10.96.0.10"), make.real("10.244.1.3"), busy)
    draining = {"10.244.1.2": 1, "10.244.1.3": 0}
    gone = make.slice("10.244.1.2")
    cache.put(type(gone), gone)
    assert turn() == draining
    # The kubelet's word comes a moment later; without it the 30 s of the flag would count.
    cache.put(Pod, pod(**LEAVING))
    assert dirty == {LEAVING_PODS}
    assert turn() == draining
    now[0] = 499.0
    assert turn() == draining
    now[0] = 501.0
    assert turn() == {"10.244.1.2": 1}
    proxy.close()
