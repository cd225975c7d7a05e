"""this_node and backend_weights: what the compiler knows about Nodes."""

import ipaddress
import socket
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node
from kube_router_py.proxy.compile import compile_service
from kube_router_py.proxy.settings import (
    ProxyOptions,
    ThisNode,
    backend_weights,
    node_port_problems,
    this_node,
)

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
LIVE = (
    ("lo", "127.0.0.1"),
    ("lo", "::1"),
    ("eth0", "192.168.1.1"),
    ("eth0", "fd00:1::1"),
    ("eth0", "fe80::1"),
    ("eth1", "10.7.0.5"),
    ("lo", "10.9.9.9"),
    ("kube-bridge", "10.244.1.1"),
    ("docker0", "172.17.0.1"),
    ("dummy0", "10.8.8.8"),
    ("kube-ipvs0", "10.7.0.99"),
    ("nodelocaldns", "10.7.0.98"),
    ("eth1", "10.96.0.10"),
)
CLUSTER = (ipaddress.ip_network("10.96.0.0/12"),)


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def place(make: Any, live: Any = LIVE, node: Node | None = None, **options: Any) -> ThisNode:
    view, _ = node_view(node or make.node())
    given = ProxyOptions(ipv6=True, cluster_ranges=CLUSTER, **options)
    return this_node(view, given, [(link, packed(text)) for link, text in live])


def shown(node: ThisNode) -> dict[int, list[str]]:
    return {
        family: [str(ipaddress.ip_address(each)) for each in addresses]
        for family, addresses in node.node_port_addresses.items()
    }


def networks(*texts: str) -> tuple[Any, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


PRIMARY = {V4: ["192.168.1.1"], V6: ["fd00:1::1"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PRIMARY),
        (
            {"node_ports_everywhere": True},
            {V4: ["10.7.0.5", "10.9.9.9", "192.168.1.1"], V6: ["fd00:1::1"]},
        ),
        # Networks: whatever the link is called, but for those of Services' addresses.
        ({"node_port_ranges": networks("10.7.0.0/16")}, {**PRIMARY, V4: ["10.7.0.5"]}),
        ({"node_port_ranges": networks("172.17.0.0/16")}, {**PRIMARY, V4: ["172.17.0.1"]}),
        (
            {"node_port_ranges": networks("0.0.0.0/0", "::/0")},
            {
                V4: [
                    "10.7.0.5",
                    "10.8.8.8",
                    "10.9.9.9",
                    "10.244.1.1",
                    "172.17.0.1",
                    "192.168.1.1",
                ],
                V6: ["fd00:1::1"],
            },
        ),
        # A family without networks is served as if there were none.
        ({"node_port_ranges": networks("fd00::/8")}, PRIMARY),
        ({"node_port_ranges": networks("192.168.0.0/16")}, PRIMARY),
        ({"node_port_ranges": networks("198.51.100.0/24")}, {**PRIMARY, V4: []}),
    ],
)
def test_node_port_addresses(
    make: Any, options: dict[str, Any], expected: dict[int, list[str]]
) -> None:
    assert shown(place(make, **options)) == expected


def test_the_order_of_links_does_not_matter(make: Any) -> None:
    forth = place(make, node_ports_everywhere=True)
    assert place(make, reversed(LIVE), node_ports_everywhere=True) == forth


def test_the_primary_address_is_among_all_even_if_no_link_has_it(make: Any) -> None:
    """A cloud may translate it to one that the link has."""
    live = (("eth0", "10.0.0.4"),)
    found = place(make, live, node_ports_everywhere=True)
    assert shown(found)[V4] == ["10.0.0.4", "192.168.1.1"]


def test_without_the_kernels_answer_the_nodes_own_list_counts(make: Any) -> None:
    node = make.node(addresses=("192.168.1.1", "10.7.0.5", "fd00:1::1"))
    everywhere = place(make, (), node, node_ports_everywhere=True)
    assert shown(everywhere) == {V4: ["10.7.0.5", "192.168.1.1"], V6: ["fd00:1::1"]}
    some = place(make, (), node, node_port_ranges=networks("10.0.0.0/8"))
    assert shown(some)[V4] == ["10.7.0.5"]


def test_a_view_alone_is_enough(make: Any) -> None:
    view, _ = node_view(make.node())
    found = this_node(view)
    assert found.addresses == {V4: packed("192.168.1.1"), V6: packed("fd00:1::1")}
    assert shown(found) == PRIMARY
    assert (found.zone, found.weights) == ("", {})


def test_zone_and_weights(make: Any) -> None:
    node = make.node()
    labels = {"topology.kubernetes.io/zone": "z1"}
    labelled = structs.replace(node, metadata=structs.replace(node.metadata, labels=labels))
    found = this_node(node_view(labelled)[0], weights={"node2": 3})
    assert (found.zone, found.weights) == ("z1", {"node2": 3})


def test_node_ports_stand_at_each_of_the_addresses(make: Any) -> None:
    options = ProxyOptions(strict_external_ips=False)
    node = place(make, node_ports_everywhere=True)
    found = compile_service(make.service(node_port=30080), (), node, options)
    assert set(found.virtual_servers) == {
        make.key("10.96.0.10"),
        *(make.key(text, 30080) for text in ("10.7.0.5", "10.9.9.9", "192.168.1.1")),
    }
    assert {str(vip) for vip in found.vips} == {"10.96.0.10"}


def test_networks_without_an_address_are_told(make: Any) -> None:
    options = ProxyOptions(node_port_ranges=networks("198.51.100.0/24"))
    (problem,) = node_port_problems(place(make, node_port_ranges=options.node_port_ranges), options)
    assert (problem.object, problem.field) == ("Node node1", "status.addresses")
    assert "IPv4" in problem.reason
    assert node_port_problems(place(make), ProxyOptions(ipv6=True)) == []


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("5", 5),
        ("0", 0),
        ("65535", 65535),
        ("1", 1),
        ("65536", None),
        ("-1", None),
        ("", None),
        ("1.5", None),
        ("٣", None),
        ("heavy", None),
        ("9" * 10_000, None),
    ],
)
def test_backend_weights(make: Any, text: str, weight: int | None) -> None:
    def annotated(name: str, value: str) -> Node:
        node = make.node(name)
        annotations = {"kube-router.io/backend-weight": value}
        metadata = structs.replace(node.metadata, annotations=annotations)
        return Node(metadata, node.spec, node.status)

    nodes = [make.node("plain"), annotated("good", "7"), annotated("other", text)]
    weights, problems = backend_weights(nodes)
    expected = {"good": 7} | ({} if weight in (None, 1) else {"other": weight})
    assert weights == expected
    assert [each.object for each in problems] == ([] if weight is not None else ["Node other"])
    assert all(len(each.reason) < 200 for each in problems)
    assert backend_weights(reversed(nodes)) == (weights, problems)
