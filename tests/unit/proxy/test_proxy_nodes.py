"""ServiceProxy follows Nodes: weights of all, zone and addresses of its own."""

import ipaddress
from collections.abc import Hashable, Iterable
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.loop import Outcome
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import CLUSTER_NODES, OWN_NODE
from kube_router_py.proxy.settings import ProxyOptions

WEIGHT = "kube-router.io/backend-weight"
ZONE = "topology.kubernetes.io/zone"


class Rig:
    """A cache with two Nodes, a fake host and a proxy whose turns the test takes by hand."""

    def __init__(self, make: Any, host: Any, options: ProxyOptions) -> None:
        self.make, self.host = make, host
        self.dirty: set[Hashable] = set()
        self.cache = Cache((Service, EndpointSlice, Node))
        self.cache.replace(Service, [], "1")
        self.cache.replace(EndpointSlice, [], "1")
        self.cache.replace(Node, [make.node(), make.node("node2", ("192.168.1.2",))], "1")
        self.proxy = ServiceProxy(self.cache, options, "node1", host.open)
        self.proxy.open()
        self.proxy.subscribe(self.cache, self)

    def mark(self, keys: Iterable[Hashable]) -> None:
        self.dirty.update(keys)

    def turn(self, *, full: bool = False) -> Outcome:
        dirty, self.dirty = frozenset(self.dirty), set()
        return self.proxy.reconcile(dirty, full)

    def put(self, *objects: Any) -> None:
        for each in objects:
            self.cache.put(type(each), each)

    def change(self, name: str, **metadata: Any) -> None:
        node = self.cache.get(Node, name)
        assert node is not None
        self.put(structs.replace(node, metadata=structs.replace(node.metadata, **metadata)))

    def table(self) -> dict[str, dict[str, int]]:
        return {str(k): self.make.weights(state) for k, state in self.host.ipvs.read().items()}

    def schedulers(self) -> set[str]:
        return {state.config.scheduler for state in self.host.ipvs.read().values()}


def rig(make: Any, host: Any, **options: Any) -> Rig:
    return Rig(make, host, ProxyOptions(strict_external_ips=False, **options))


@pytest.mark.parametrize("name", ["node1", "node2"])
def test_a_weight_of_any_node_is_followed(make: Any, host: Any, name: str) -> None:
    proxy = rig(make, host)
    addresses = {"node1": "10.244.1.2", "node2": "10.244.2.2"}
    endpoints = (make.endpoint(address, node=node) for node, address in addresses.items())
    proxy.put(make.service(), make.slice(*endpoints))
    proxy.turn(full=True)
    equal = {"10.244.1.2": 1, "10.244.2.2": 1}
    assert proxy.table() == {"TCP 10.96.0.10:80": equal}
    assert proxy.schedulers() == {"rr"}
    proxy.change(name, annotations={WEIGHT: "4", "other": "1"})
    assert proxy.dirty == {OWN_NODE}
    proxy.turn()
    assert proxy.table() == {"TCP 10.96.0.10:80": equal | {addresses[name]: 4}}
    assert proxy.schedulers() == {"wrr"}
    proxy.change(name, annotations={WEIGHT: "4", "other": "2"})
    assert proxy.dirty == set()
    proxy.change(name, annotations={WEIGHT: "much"})
    outcome = proxy.turn()
    assert [problem.object for problem in outcome.problems] == [f"Node {name}"]
    assert proxy.table() == {"TCP 10.96.0.10:80": equal}
    assert proxy.schedulers() == {"rr"}


def test_nodes_that_come_and_go_are_work_only_for_their_weight(make: Any, host: Any) -> None:
    proxy = rig(make, host)
    proxy.turn(full=True)
    proxy.put(make.node("node3", ("192.168.1.3",)))
    assert proxy.dirty == {CLUSTER_NODES}
    writes = host.writes
    assert proxy.turn().problems == ()
    assert host.writes == writes + 1  # one entry of one set
    assert "192.168.1.3" in (host.ports.ipsets.read("kube-router-cluster") or ())
    proxy.cache.delete(Node, "node3")
    proxy.turn()
    assert "192.168.1.3" not in (host.ports.ipsets.read("kube-router-cluster") or ())
    proxy.change("node2", annotations={WEIGHT: "2"})
    assert proxy.dirty == {OWN_NODE}
    proxy.turn()
    proxy.cache.delete(Node, "node2")
    assert proxy.dirty == {OWN_NODE, CLUSTER_NODES}


def test_the_nodes_zone_is_followed(make: Any, host: Any) -> None:
    proxy = rig(make, host)
    endpoints = (
        make.endpoint("10.244.1.2", zones=["a"]),
        make.endpoint("10.244.2.2", node="node2", zones=["b"]),
    )
    proxy.put(make.service(), make.slice(*endpoints))
    proxy.turn(full=True)
    assert set(proxy.table()["TCP 10.96.0.10:80"]) == {"10.244.1.2", "10.244.2.2"}
    proxy.change("node1", labels={ZONE: "b"})
    assert proxy.dirty == {OWN_NODE}
    proxy.turn()
    # What was used so far drains, and has no connections.
    weights = proxy.table()["TCP 10.96.0.10:80"]
    assert weights.get("10.244.1.2", 0) == 0
    assert weights["10.244.2.2"] == 1


def test_node_ports_on_every_address_follow_the_links(make: Any, host: Any) -> None:
    proxy = rig(make, host, node_ports_everywhere=True)
    second = NodeAddress(2, bytes([10, 7, 0, 5]), 24, "eth1")
    host.links.addresses.append(second)
    host.links.addresses.append(NodeAddress(2, bytes([172, 17, 0, 1]), 16, "docker0"))
    proxy.put(make.service(node_port=30080), make.slice("10.244.1.2"))
    proxy.turn(full=True)
    everywhere = {"TCP 10.96.0.10:80", "TCP 192.168.1.1:30080", "TCP 10.7.0.5:30080"}
    assert set(proxy.table()) == everywhere
    host.links.addresses.remove(second)
    proxy.mark((OWN_NODE,))
    proxy.turn()
    assert set(proxy.table()) == everywhere - {"TCP 10.7.0.5:30080"}


def test_networks_that_no_address_lies_in_are_told(make: Any, host: Any) -> None:
    proxy = rig(make, host, node_port_ranges=(ipaddress.ip_network("198.51.100.0/24"),))
    proxy.put(make.service(node_port=30080), make.slice("10.244.1.2"))
    outcome = proxy.turn(full=True)
    assert set(proxy.table()) == {"TCP 10.96.0.10:80"}
    (problem,) = outcome.problems
    assert (problem.object, problem.field) == ("Node node1", "status.addresses")
    assert outcome.failed == frozenset()
