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


LEAVING: dict[str, Any] = {
    "deletion_timestamp": "2026-03-01T12:00:00Z",
    "deletion_grace_period_seconds": 600,
}


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


NOON_S = 1772366400.0


class DrainingProxy:
    """A proxy 500 s before noon; 10.244.1.3 has connections, and its endpoint has gone."""

    def __init__(self, make: Any, host: Any) -> None:
        self.make, self.host = make, host
        self.cache, self.dirty, self.now_s = Cache((*KINDS, Pod)), Marked(), 0.0
        self.proxy = ServiceProxy(
            self.cache,
            ProxyOptions(),
            "node1",
            host.open,
            clock=lambda: self.now_s,
            wall_clock=lambda: NOON_S - 500 + self.now_s,
        )
        self.proxy.open()
        self.proxy.subscribe(self.cache, self.dirty)
        both = make.slice("10.244.1.2", "10.244.1.3")
        for each in (make.node(), make.service(), both, pod()):
            self.cache.put(type(each), each)
        self.proxy.reconcile(frozenset(), True)
        busy = Connections(active=1, inactive=0)
        host.ipvs.set_connections(make.key("10.96.0.10"), make.real("10.244.1.3"), busy)
        gone = make.slice("10.244.1.2")
        self.cache.put(type(gone), gone)

    def turn(self) -> dict[str, int]:
        """The weights after a turn over what is dirty."""
        self.proxy.reconcile(frozenset(self.dirty), False)
        self.dirty.clear()
        state = self.host.ipvs.read()[self.make.key("10.96.0.10")]
        found: dict[str, int] = self.make.weights(state)
        return found


DRAINING, DRAINED = {"10.244.1.2": 1, "10.244.1.3": 0}, {"10.244.1.2": 1}


def test_draining_lasts_until_the_pod_is_killed(make: Any, host: Any) -> None:
    rig = DrainingProxy(make, host)
    assert rig.turn() == DRAINING
    # The kubelet's word comes a moment later; without it the 30 s of the flag would count.
    rig.cache.put(Pod, pod(**LEAVING))
    assert rig.dirty == {LEAVING_PODS}
    assert rig.turn() == DRAINING
    rig.now_s = 499.0
    assert rig.turn() == DRAINING
    rig.now_s = 501.0
    assert rig.turn() == DRAINED
    rig.proxy.close()


def test_a_pod_that_is_killed_sooner_is_not_waited_for(make: Any, host: Any) -> None:
    rig = DrainingProxy(make, host)
    rig.cache.put(Pod, pod(**LEAVING))
    assert rig.turn() == DRAINING
    rig.cache.put(Pod, pod(**{**LEAVING, "deletion_grace_period_seconds": 0}))
    assert rig.turn() == DRAINED
    rig.proxy.close()


def test_a_pod_that_has_gone_is_given_its_time(make: Any, host: Any) -> None:
    rig = DrainingProxy(make, host)
    rig.cache.put(Pod, pod(**LEAVING))
    assert rig.turn() == DRAINING
    rig.cache.delete(Pod, "default/a")
    rig.now_s = 499.0
    assert rig.turn() == DRAINING
    rig.now_s = 501.0
    assert rig.turn() == DRAINED
    rig.proxy.close()
