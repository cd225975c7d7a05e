"""Which node has an address: stable, even, and only those that may."""

import socket
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Node,
    NodeCondition,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from kube_router_py.cluster.selectors import EVERYTHING, Requirement, Selector
from kube_router_py.loadbalancer.choice import (
    NOBODY,
    NodeFacts,
    Standby,
    eligible,
    node_facts,
    nodes_with_endpoints,
    pick,
    standby,
)

ADDRESSES = [ip_address(0xC0000200 + number).packed for number in range(1000)]
FIVE = frozenset(f"node{number}" for number in range(5))


def test_addresses_are_spread_evenly() -> None:
    count = Counter(pick(address, FIVE).owner for address in ADDRESSES)
    assert set(count) == FIVE
    # Five standard deviations around 200.
    assert all(137 <= found <= 263 for found in count.values()), count


def test_even_in_a_large_ipv6_pool_too() -> None:
    base = int(ip_address("2001:db8::"))
    count = Counter(pick(ip_address(base + n).packed, FIVE).owner for n in range(1000))
    assert all(137 <= found <= 263 for found in count.values()), count


def test_where_a_node_goes_only_its_addresses_move_and_to_all_others() -> None:
    before = {address: pick(address, FIVE).owner for address in ADDRESSES}
    after = {address: pick(address, FIVE - {"node3"}).owner for address in ADDRESSES}
    moved = [address for address in ADDRESSES if before[address] != after[address]]
    assert {before[address] for address in moved} == {"node3"}
    assert {after[address] for address in moved} == FIVE - {"node3"}
    assert len(moved) == Counter(before.values())["node3"]


@given(
    address=st.binary(min_size=4, max_size=4),
    steps=st.lists(st.frozensets(st.sampled_from(sorted(FIVE))), max_size=6),
)
def test_what_was_chosen_before_changes_nothing(
    address: bytes, steps: list[frozenset[str]]
) -> None:
    found = NOBODY
    for nodes in steps:
        found = pick(address, nodes, found)
        assert found == pick(address, nodes)
        assert (found.owner in nodes) if nodes else found.owner is None


def node(
    name: str = "a",
    *,
    ready: str = "True",
    message: str = "",
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    unschedulable: bool = False,
) -> Node:
    return Node(
        metadata=ObjectMeta(name=name, annotations=annotations, labels=labels),
        spec=NodeSpec(unschedulable=unschedulable),
        status=NodeStatus(conditions=(NodeCondition("Ready", ready, message),)),
    )


@pytest.mark.parametrize(
    ("found", "is_drained", "is_unwell"),
    [
        (node(), False, False),
        (node(ready="Unknown"), False, False),
        (node(ready="False"), False, True),
        (node(ready="False", message="node is shutting down"), True, True),
        (node(annotations={"kube-router.io/drain": "true"}), True, False),
        (node(annotations={"kube-router.io/drain": "false"}), False, False),
        (node(unschedulable=True), True, False),
        (Node(), False, False),
    ],
)
def test_what_a_node_says(found: Node, is_drained: bool, is_unwell: bool) -> None:
    facts = node_facts(found, drain_on_cordon=True)
    assert (bool(facts.drain_cause), facts.is_unwell) == (is_drained, is_unwell)


def test_a_cordon_alone_drains_nothing() -> None:
    assert not node_facts(node(unschedulable=True), drain_on_cordon=False).drain_cause


RACK = Selector((Requirement("rack", "In", ("1",)),))


def test_who_may_answer_for_a_pool() -> None:
    nodes = {
        "selected": NodeFacts((("rack", "1"),)),
        "unwell": NodeFacts((("rack", "1"),), is_unwell=True),
        "drained": NodeFacts((("rack", "1"),), drain_cause="annotation"),
        "elsewhere": NodeFacts((("rack", "2"),)),
        "dead": NodeFacts((("rack", "1"),)),
    }
    candidates = frozenset(nodes) - {"dead"} | {"deleted"}
    found = standby(candidates, nodes, RACK)
    assert found.usable == {"selected", "unwell"}
    assert eligible(found) == {"selected"}
    everywhere = standby(candidates, nodes, EVERYTHING)
    assert everywhere.usable == {"selected", "unwell", "elsewhere"}


def test_where_no_node_is_ready_they_count_all_the_same() -> None:
    nodes = {name: NodeFacts(is_unwell=True) for name in FIVE}
    assert eligible(standby(FIVE, nodes, EVERYTHING)) == FIVE


ALL = Standby(FIVE, FIVE)


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ((), FIVE),
        ((frozenset({"node1", "node2"}),), {"node1", "node2"}),
        ((frozenset({"node1", "node2"}), frozenset({"node2", "node3"})), {"node2"}),
        # No node serves both: one that serves any.
        ((frozenset({"node1"}), frozenset({"node3"})), {"node1", "node3"}),
        ((frozenset(),), frozenset()),
        ((frozenset({"gone"}),), frozenset()),
        # The common node is gone: back to any.
        ((frozenset({"gone", "node1"}), frozenset({"gone"})), {"node1"}),
    ],
)
def test_local_endpoints(local: tuple[frozenset[str], ...], expected: frozenset[str]) -> None:
    assert eligible(ALL, local) == expected


def test_endpoints_on_an_unwell_node_are_better_than_none() -> None:
    nodes = Standby(FIVE, FIVE - {"node1"})
    assert eligible(nodes, (frozenset({"node1"}),)) == {"node1"}
    assert eligible(nodes, (frozenset({"node1", "node2"}),)) == {"node2"}


def service(**spec: Any) -> Service:
    ports = (ServicePort(name="http", port=80), ServicePort(name="dns", protocol="UDP", port=53))
    return Service(
        metadata=ObjectMeta(name="web", namespace="default"),
        spec=ServiceSpec(type="LoadBalancer", ports=ports, **spec),
    )


def slice_of(
    port: EndpointPort, *endpoints: tuple[str, str, EndpointConditions], family: str = "IPv4"
) -> EndpointSlice:
    return EndpointSlice(
        address_type=family,
        endpoints=tuple(
            Endpoint(addresses=(address,), node_name=where, conditions=conditions)
            for address, where, conditions in endpoints
        ),
        ports=(port,),
    )


READY = EndpointConditions(ready=True)
PAUSED = EndpointConditions(ready=False)
LEAVING = EndpointConditions(ready=False, serving=True, terminating=True)
HTTP = EndpointPort(name="http", port=8080)
DNS = EndpointPort(name="dns", port=5353, protocol="UDP")


def test_nodes_with_endpoints_of_any_port_in_the_family() -> None:
    slices = (
        slice_of(HTTP, ("10.0.0.1", "node1", READY), ("10.0.0.2", "node2", PAUSED)),
        slice_of(DNS, ("10.0.0.3", "node3", LEAVING), ("10.0.0.9", "", READY)),
        slice_of(HTTP, ("fd00::1", "node4", READY), family="IPv6"),
    )
    local = service(external_traffic_policy="Local")
    for family, expected in ((socket.AF_INET, {"node1", "node3"}), (socket.AF_INET6, {"node4"})):
        assert nodes_with_endpoints(local, slices, family) == frozenset(expected)
    assert nodes_with_endpoints(local, (), socket.AF_INET) == frozenset()
    assert nodes_with_endpoints(service(), slices, socket.AF_INET) is None
