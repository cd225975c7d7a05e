"""Services' addresses in the firewall's sets follow the pools of addresses."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kube_router_py.address_pools import AddressPools, AddressRange, Pool
from kube_router_py.firewall import controller
from kube_router_py.firewall.controller import POOLS
from kube_router_py.firewall.frame import services as services_set
from kube_router_py.firewall.settings import FirewallOptions

OPTIONS = FirewallOptions(
    families=("inet", "inet6"), load_balancer_ranges=(ip_network("203.0.113.0/28"),)
)
BY_FLAG, POOLED, IPV6 = "203.0.113.1", "198.51.100.7", "2001:db8::7"


def pools(*ranges: str) -> AddressPools:
    """One for each range: ``FIRST-LAST``."""
    found = (tuple(map(ip_address, each.split("-"))) for each in ranges)
    return AddressPools(
        tuple(
            Pool(f"pool{number}", (AddressRange(first, last),))
            for number, (first, last) in enumerate(found)
        )
    )


FIRST = pools("198.51.100.1-198.51.100.9")
BOTH = pools("198.51.100.1-198.51.100.9", "2001:db8::-2001:db8::ff")


def service(name: str, *lb_ips: str, cluster_ip: str = "10.96.0.1") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "a"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": cluster_ip,
            "ports": [{"port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": each} for each in lb_ips]}},
    }


def balanced(node: Any) -> set[str]:
    """The addresses in the sets of Services, but ClusterIPs."""
    sets = node.own_sets()
    entries = {each for family in ("inet", "inet6") for each in sets[services_set(family).name]}
    return {each.split(",")[0] for each in entries} - {"10.96.0.1"}


@pytest.fixture
def node(firewall_node: Any) -> Any:
    found = firewall_node(OPTIONS)
    found.change(service("web", BY_FLAG, POOLED, IPV6))
    return found


def turn(node: Any, *, full: bool = False) -> None:
    outcome = node.turn(full=full)
    assert not outcome.failed, outcome.problems
    assert not node.differences()


def test_addresses_follow_the_pools(node: Any) -> None:
    turn(node)
    assert balanced(node) == {BY_FLAG}
    node.change_pools(BOTH)
    turn(node)
    assert balanced(node) == {BY_FLAG, POOLED, IPV6}
    node.change_pools(FIRST)
    turn(node)
    assert balanced(node) == {BY_FLAG, POOLED}
    node.pools = AddressPools()
    turn(node, full=True)  # without an event
    assert balanced(node) == {BY_FLAG}


def test_what_was_taken_out_of_pools_changes_nothing(node: Any) -> None:
    node.change_pools(BOTH)
    turn(node)
    writes = node.writes
    node.change_pools(AddressPools(retired=BOTH.pools))
    turn(node)
    assert (balanced(node), node.writes) == ({BY_FLAG, POOLED, IPV6}, writes)
    turn(node, full=True)
    assert (balanced(node), node.writes) == ({BY_FLAG, POOLED, IPV6}, writes)


def test_another_agent_begins_with_the_pools_and_writes_nothing(node: Any) -> None:
    node.change_pools(BOTH)
    turn(node)
    node.restart()
    turn(node)
    assert node.writes == 0
    assert balanced(node) == {BY_FLAG, POOLED, IPV6}


def test_only_services_with_such_addresses_are_looked_at(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.change(service("without"))
    turn(node)
    looked: list[str] = []
    real = controller.service_ports

    def note(found: Any, options: FirewallOptions) -> Any:
        looked.append(found.metadata.name)
        return real(found, options)

    monkeypatch.setattr(controller, "service_ports", note)
    node.dirty.add(POOLS)
    node.turn()  # pools as they are: nothing depends on it
    assert looked == []
    node.change_pools(FIRST)
    node.turn()
    assert looked == ["web"]


def machine(firewall_node: Any) -> type[RuleBasedStateMachine]:
    addresses = st.lists(st.sampled_from([BY_FLAG, POOLED, IPV6]), max_size=3, unique=True)
    states = st.sampled_from([AddressPools(), FIRST, BOTH, pools("2001:db8::7-2001:db8::7")])

    class Machine(RuleBasedStateMachine):
        @initialize(found=states)
        def start(self, found: AddressPools) -> None:
            self.node = firewall_node(OPTIONS)
            self.node.pools = found
            turn(self.node)

        @rule(name=st.sampled_from("xy"), lb_ips=addresses, waits=st.booleans())
        def put_service(self, name: str, lb_ips: list[str], waits: bool) -> None:
            self.node.change(service(name, *lb_ips))
            self.take_turn(waits)

        @rule(name=st.sampled_from("xy"), waits=st.booleans())
        def delete_service(self, name: str, waits: bool) -> None:
            if ("Service", "a", name) in self.node.objects:
                self.node.remove(("Service", "a", name))
            self.take_turn(waits)

        @rule(found=states, waits=st.booleans())
        def change_pools(self, found: AddressPools, waits: bool) -> None:
            self.node.change_pools(found)
            self.take_turn(waits)

        def take_turn(self, waits: bool) -> None:
            """Unless it waits for more to come."""
            if not waits:
                turn(self.node)

        def teardown(self) -> None:
            turn(self.node)

    return Machine


def test_step_by_step_is_as_from_scratch(firewall_node: Any) -> None:
    run_state_machine_as_test(
        machine(firewall_node),
        settings=settings(max_examples=40, stateful_step_count=20, deadline=None),
    )
