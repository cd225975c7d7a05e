"""Whatever happens to the objects, turn by turn, the kernel ends as if programmed from scratch."""

from collections.abc import Hashable, Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointPort, EndpointSlice, Node, Service, ServicePort
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.settings import ProxyOptions

# Without draining what the kernel holds depends on the objects alone, not on their history.
OPTIONS = ProxyOptions(ipv6=True, strict_external_ips=False, graceful_termination=False)

WEIGHTS = st.sampled_from(["0", "1", "3", "much"])
NAMES = st.sampled_from(["a", "b", "c"])
HINTS = st.lists(st.sampled_from(["node1", "node2"]), max_size=1)
NUMBERS = {"a": 1, "b": 2, "c": 3}


def machine(make: Any, host_type: Any) -> type[RuleBasedStateMachine]:
    """The state machine, over the builders of the fixtures."""
    services = st.builds(
        make.service,
        name=NAMES,
        ips=st.sampled_from([("10.96.0.1",), ("10.96.0.2", "fd00:96::2"), ("10.96.0.3",)]),
        ports=st.lists(
            st.builds(
                ServicePort,
                name=st.sampled_from(["x", "y"]),
                port=st.sampled_from([80, 81, 0]),
                protocol=st.sampled_from(["TCP", "UDP", None]),
                node_port=st.sampled_from([None, 30080, 30081]),
            ),
            max_size=2,
        ),
        type=st.sampled_from(["ClusterIP", "NodePort"]),
        external_ips=st.lists(
            st.sampled_from(["203.0.113.1", "192.168.1.1", "bad"]), max_size=2, unique=True
        ).map(tuple),
        external_traffic_policy=st.sampled_from(["Cluster", "Local"]),
        internal_traffic_policy=st.sampled_from(["Cluster", "Local"]),
        session_affinity=st.sampled_from(["None", "ClientIP"]),
        created=st.sampled_from([None, "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"]),
    )
    endpoints = st.builds(
        make.endpoint,
        st.sampled_from([f"10.244.1.{n}" for n in range(1, 4)]),
        st.sampled_from([make.READY, make.NOT_READY, make.SERVING_TERMINATING]),
        st.sampled_from(["node1", "node2"]),
        zones=HINTS,
        nodes=HINTS,
    )
    ports = st.lists(
        st.builds(EndpointPort, st.sampled_from(["x", "y"]), st.just("TCP"), st.just(8080)),
        max_size=2,
    )

    class Machine(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.cache = Cache((Service, EndpointSlice, Node))
            for kind in (Service, EndpointSlice):
                self.cache.replace(kind, [], "1")
            self.cache.replace(Node, [make.node()], "1")
            self.dirty: set[Hashable] = set()
            self.host = host_type()
            self.proxy = ServiceProxy(self.cache, OPTIONS, "node1", self.host.open)
            self.proxy.open()
            self.proxy.subscribe(self.cache, self)
            self.proxy.reconcile(frozenset(), True)

        def mark(self, keys: Iterable[Hashable]) -> None:
            self.dirty.update(keys)

        @rule(service=services)
        def put_service(self, service: Service) -> None:
            self.cache.put(Service, service)

        @rule(name=NAMES)
        def delete_service(self, name: str) -> None:
            self.cache.delete(Service, f"default/{name}")

        @rule(
            name=NAMES,
            service=NAMES,
            members=st.lists(endpoints, max_size=3),
            ports=ports,
        )
        def put_slice(self, name: str, service: str, members: Any, ports: Any) -> None:
            value = make.slice(*members, service=service, name=f"slice-{name}", ports=ports)
            self.cache.put(EndpointSlice, value)

        @rule(name=NAMES)
        def delete_slice(self, name: str) -> None:
            self.cache.delete(EndpointSlice, f"default/slice-{name}")

        @rule(
            address=st.sampled_from(["192.168.1.1", "192.168.1.9"]),
            zone=st.sampled_from(["", "node1", "node2"]),
            weight=WEIGHTS,
        )
        def change_node(self, address: str, zone: str, weight: str) -> None:
            node = make.node(
                addresses=(address, "fd00:1::1"),
                labels={"topology.kubernetes.io/zone": zone},
                annotations={"kube-router.io/backend-weight": weight},
            )
            self.cache.put(Node, node)

        @rule(weight=WEIGHTS)
        def change_other_node(self, weight: str) -> None:
            annotations = {"kube-router.io/backend-weight": weight}
            self.cache.put(Node, make.node("node2", annotations=annotations))

        @rule()
        def resync(self) -> None:
            self.dirty.clear()
            assert self.proxy.reconcile(frozenset(), True).failed == frozenset()

        @rule()
        def restart(self) -> None:
            self.take_turn()
            self.proxy.close()
            self.proxy.open()
            assert self.proxy.reconcile(frozenset(), True).failed == frozenset()
            assert self.host.writes == 0

        @rule()
        def take_turn(self) -> None:
            dirty, self.dirty = frozenset(self.dirty), set()
            outcome = self.proxy.reconcile(dirty, False)
            assert outcome.failed == frozenset()
            fresh = host_type()
            other = ServiceProxy(self.cache, OPTIONS, "node1", fresh.open)
            other.open()
            scratch = other.reconcile(frozenset(), True)
            assert self.host.ipvs.read() == fresh.ipvs.read()
            assert self.host.ports.links.read_vips() == fresh.ports.links.read_vips()
            assert self.host.ipsets == fresh.ipsets
            assert self.host.iptables == fresh.iptables
            assert outcome.problems == scratch.problems

    return Machine


def test_incremental_equals_from_scratch(make: Any) -> None:
    run_state_machine_as_test(
        machine(make, make.Host),
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
    )
