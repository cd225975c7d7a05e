"""Sessions between nodes: who holds one with whom, over which addresses, and what is learned."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.routing.annotations import Member, Reflector
from kube_router_py.routing.model import Bfd, Neighbor, PrefixRange, Role, Session
from kube_router_py.routing.sessions import accepted, node_neighbors
from kube_router_py.routing.settings import RoutingSettings

DUAL = RoutingSettings(ipv6=True)
SERVER, CLIENT = Reflector(True, IPv4Address("0.0.0.42")), Reflector(False)


def node(number: int, **fields: Any) -> Member:
    ipv4, ipv6 = IPv4Address(f"192.168.1.{number}"), IPv6Address(f"fd00:1::{number:x}")
    plain = Member(
        name=f"node{number}",
        address=ipv4,
        ipv4=ipv4,
        ipv6=ipv6,
        addresses=(ipv4, ipv6),
        pod_networks=(
            ip_network(f"10.244.{number}.0/24"),
            ip_network(f"fd00:10:244:{number:x}::/64"),
        ),
    )
    return structs.replace(plain, **fields)


def keys(neighbors: tuple[Neighbor, ...]) -> list[str]:
    return [neighbor.key for neighbor in neighbors]


def held(own: Member, others: list[Member], settings: RoutingSettings = DUAL) -> list[str]:
    """Names of the nodes that there are IPv4 sessions with."""
    neighbors, problems = node_neighbors(own, others, settings)
    assert problems == []
    return [
        each.session.description.removeprefix("node ")
        for each in neighbors
        if each.session.versions == (4,)
    ]


def prefixes(*texts: str) -> tuple[PrefixRange, ...]:
    """``network`` or ``network=length``."""
    found = []
    for text in texts:
        network, _, length = text.partition("=")
        bits = int(length) if length else ip_network(network).prefixlen
        found.append(PrefixRange(ip_network(network), bits, bits))
    return tuple(found)


def test_there_is_one_session_for_each_family() -> None:
    neighbors, problems = node_neighbors(node(1), [node(1), node(2)], DUAL)
    assert problems == []
    assert neighbors == (
        Neighbor(
            address=ip_address("192.168.1.2"),
            session=Session(
                role=Role.NODE,
                remote_as="internal",
                versions=(4,),
                local_address=ip_address("192.168.1.1"),
                hold_s=30,
                graceful_restart=True,
                accept=prefixes("10.244.2.0/24"),
                description="node node2",
            ),
        ),
        Neighbor(
            address=ip_address("fd00:1::2"),
            session=Session(
                role=Role.NODE,
                remote_as="internal",
                versions=(6,),
                local_address=ip_address("fd00:1::1"),
                hold_s=30,
                graceful_restart=True,
                accept=prefixes("fd00:10:244:2::/64"),
                description="node node2",
            ),
        ),
    )


def test_neighbors_are_sorted_by_key_whatever_the_order_of_nodes() -> None:
    others = [node(number) for number in (10, 2, 3)]
    neighbors, _ = node_neighbors(node(1), others, RoutingSettings())
    assert keys(neighbors) == ["192.168.1.10", "192.168.1.2", "192.168.1.3"]
    assert node_neighbors(node(1), others[::-1], RoutingSettings())[0] == neighbors


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (RoutingSettings(), ["192.168.1.2"]),
        (RoutingSettings(ipv4=False, ipv6=True), ["fd00:1::2"]),
        (RoutingSettings(enable_ibgp=False), []),
    ],
)
def test_flags_say_which_sessions_there_are(settings: RoutingSettings, found: list[str]) -> None:
    neighbors, problems = node_neighbors(node(1), [node(2)], settings)
    assert (keys(neighbors), problems) == (found, [])


def test_the_port_is_that_of_all_nodes_and_bfd_has_a_flag() -> None:
    bfd = Bfd(detection_multiplier=5, receive_interval_ms=300, transmit_interval_ms=200)
    settings = RoutingSettings(port=1790, bfd=bfd)
    (neighbor,), _ = node_neighbors(node(1), [node(2)], settings)
    assert (neighbor.session.port, neighbor.session.bfd) == (1790, None)
    (neighbor,), problems = node_neighbors(
        node(1), [node(2)], structs.replace(settings, node_bfd=True)
    )
    assert (neighbor.session.bfd, problems) == (bfd, [])


def test_flags_for_routers_outside_do_not_change_sessions_between_nodes() -> None:
    usual = node_neighbors(node(1), [node(2)], DUAL)
    settings = structs.replace(
        DUAL,
        hold_s=30,
        peer_bfd=True,
        graceful_restart_outside=True,
        override_nexthop=True,
        peer_multihop=3,
    )
    assert node_neighbors(node(1), [node(2)], settings) == usual


def test_what_bfd_of_frr_cannot_do_is_told() -> None:
    settings = RoutingSettings(node_bfd=True, bfd=Bfd(1, 5, 100000), bfd_port=4784)
    (neighbor,), problems = node_neighbors(node(1), [node(2)], settings)
    assert neighbor.session.bfd == Bfd(2, 10, 60000)
    assert [str(problem) for problem in problems] == [
        "Flag --bfd-detection-multiplier: 1 is not possible with FRR, 2 is used; "
        "choose from 2 to 255",
        "Flag --bfd-required-min-rx-interval: 5 is not possible with FRR, 10 is used; "
        "choose from 10 to 60000",
        "Flag --bfd-desired-min-tx-interval: 100000 is not possible with FRR, 60000 is used; "
        "choose from 10 to 60000",
        "Flag --bfd-port: 4784 is not possible with FRR, 3784 is used; leave the port out",
    ]


# --- which nodes --------------------------------------------------------------------------------


def test_in_a_full_mesh_every_node_counts_whatever_its_as_number() -> None:
    assert held(node(1, asn=1), [node(2, asn=2), node(3)]) == ["node2", "node3"]


def test_without_full_mesh_only_nodes_of_the_same_as_count() -> None:
    settings = RoutingSettings(full_mesh=False)
    others = [node(2, asn=65001), node(3, asn=65002), node(4)]
    assert held(node(1, asn=65001), others, settings) == ["node2"]
    assert held(node(1), others, settings) == []


@pytest.mark.parametrize("settings", [DUAL, RoutingSettings(full_mesh=False)])
def test_reflectors_and_their_clients(settings: RoutingSettings) -> None:
    servers = [node(1, reflector=SERVER, asn=1), node(2, reflector=SERVER, asn=1)]
    clients = [node(3, reflector=CLIENT, asn=1), node(4, reflector=CLIENT, asn=1)]
    plain = [node(5, asn=1), node(6, asn=1)]
    every = [*servers, *clients, *plain]
    # A server holds sessions with everyone, a client with servers only.
    assert held(servers[0], every, settings) == ["node2", "node3", "node4", "node5", "node6"]
    assert held(clients[0], every, settings) == ["node1", "node2"]
    # A client would not answer to the others.
    assert held(plain[0], every, settings) == ["node1", "node2", "node6"]
    # It is always both that hold a session, or neither.
    for one in every:
        for other in every:
            assert (other.name in held(one, every, settings)) == (
                one.name in held(other, every, settings)
            )


def test_servers_reflect_for_clients_only() -> None:
    others = [node(2, reflector=SERVER), node(3, reflector=CLIENT), node(4)]
    reflected = {
        own_reflector: [
            each.key
            for each in node_neighbors(node(1, reflector=own_reflector), others, RoutingSettings())[
                0
            ]
            if each.session.reflector_client
        ]
        for own_reflector in (SERVER, CLIENT, None)
    }
    assert reflected == {SERVER: ["192.168.1.3"], CLIENT: [], None: []}


# --- what is learned ----------------------------------------------------------------------------


def test_of_a_reflector_the_pod_cidrs_of_all_nodes_are_learned() -> None:
    others = [
        node(2, reflector=SERVER),
        *(node(number, reflector=CLIENT) for number in range(3, 8)),
    ]
    neighbors, _ = node_neighbors(node(1, reflector=CLIENT), others, RoutingSettings())
    (server,) = neighbors
    # 10.244.1.0/24, and the six from 10.244.2.0 on.
    assert server.session.accept == prefixes(
        "10.244.1.0/24", "10.244.2.0/23=24", "10.244.4.0/22=24"
    )


def test_of_a_client_its_own_pod_cidrs_are_learned() -> None:
    others = [node(2, reflector=SERVER), node(3, reflector=CLIENT)]
    neighbors, _ = node_neighbors(node(1, reflector=SERVER), others, RoutingSettings())
    assert [each.session.accept for each in neighbors] == [
        prefixes("10.244.1.0/24", "10.244.2.0/23=24"),
        prefixes("10.244.3.0/24"),
    ]


def test_from_a_node_without_pod_cidrs_nothing_is_learned() -> None:
    neighbors, _ = node_neighbors(node(1), [node(2, pod_networks=())], DUAL)
    assert [each.session.accept for each in neighbors] == [(), ()]


def test_what_is_a_part_of_our_pod_cidr_is_not_learned() -> None:
    claimed = ip_network("10.244.1.128/25"), ip_network("10.244.9.0/24")
    greedy = node(2, pod_networks=claimed, reflector=SERVER)
    ((v4, _), _) = node_neighbors(node(1), [greedy], DUAL)
    assert v4.session.accept == prefixes("10.244.1.0/24", "10.244.9.0/24")
    plain = node(2, pod_networks=claimed)
    ((v4, _), _) = node_neighbors(node(1), [plain], DUAL)
    assert v4.session.accept == prefixes("10.244.9.0/24")


def test_neighboring_pod_cidrs_are_one_range() -> None:
    nodes = [
        Member(name=f"n{n}", pod_networks=(ip_network((0x0AF40000 + n * 256, 24)),))
        for n in range(256)
    ]
    assert accepted(nodes, 4) == prefixes("10.244.0.0/16=24")
    assert accepted(nodes, 6) == ()


networks = st.lists(
    st.tuples(st.integers(0, 255), st.integers(20, 26)).map(
        lambda pair: ip_network(((10 << 24) + (pair[0] << 8), pair[1]), strict=False)
    ),
    max_size=12,
)


@given(networks, networks)
def test_what_is_learned_is_exactly_the_pod_cidrs(first: list[Any], second: list[Any]) -> None:
    nodes = [
        Member(name="a", pod_networks=tuple(first)),
        Member(name="b", pod_networks=(*second, ip_network("fd00::/64"))),
    ]
    ranges = accepted(nodes, 4)
    expanded = {
        subnet for each in ranges for subnet in each.network.subnets(new_prefix=each.longest)
    }
    assert expanded == {*first, *second}
    assert all(each.shortest == each.longest for each in ranges)
    assert len(ranges) <= len(expanded)
    assert list(ranges) == sorted(
        ranges, key=lambda r: (r.network.network_address, r.network.prefixlen, r.shortest)
    )
    assert accepted(nodes[::-1], 4) == ranges


# --- what is wrong with one node ----------------------------------------------------------------


def test_a_node_without_address_is_told_and_the_others_have_sessions() -> None:
    lost = node(2, ipv4=None, ipv6=None, addresses=())
    neighbors, problems = node_neighbors(node(1), [lost, node(3)], DUAL)
    assert keys(neighbors) == ["192.168.1.3", "fd00:1::3"]
    assert [str(problem) for problem in problems] == [
        "Node node2 status.addresses: the node has no usable IPv4 or IPv6 address, which this node "
        "could reach it by: there is no BGP session with it; give it one"
    ]


def test_one_family_in_common_is_enough() -> None:
    neighbors, problems = node_neighbors(node(1), [node(2, ipv6=None)], DUAL)
    assert (keys(neighbors), problems) == (["192.168.1.2"], [])
    neighbors, problems = node_neighbors(node(1, ipv4=None), [node(2)], DUAL)
    assert (keys(neighbors), problems) == (["fd00:1::2"], [])


def test_no_family_in_common() -> None:
    neighbors, problems = node_neighbors(node(1, ipv6=None), [node(2, ipv4=None)], DUAL)
    assert neighbors == ()
    assert "no usable IPv4 address" in problems[0].reason
    # Without any address of its own the node has itself to blame.
    assert node_neighbors(node(1, ipv4=None, ipv6=None), [node(2)], DUAL) == ((), [])


def test_an_address_belongs_to_one_node() -> None:
    ipv4 = IPv4Address("192.168.1.1")
    neighbors, problems = node_neighbors(
        node(1),
        [node(2, ipv4=ipv4), node(4, ipv4=IPv4Address("192.168.1.3")), node(3)],
        RoutingSettings(),
    )
    assert [each.session.description for each in neighbors] == ["node node3"]
    assert [str(problem) for problem in problems] == [
        "Node node2 status.addresses: 192.168.1.1 is also the address of node node1: there is no "
        "BGP session with node2 over it; correct the address of one of them",
        "Node node4 status.addresses: 192.168.1.3 is also the address of node node3: there is no "
        "BGP session with node4 over it; correct the address of one of them",
    ]


def test_descriptions_are_words_whatever_nodes_are_called() -> None:
    long = "a" * 60 + ".example.com"
    names = [long, "bad name\n!", ""]
    for name in names:
        (neighbor,), _ = node_neighbors(node(1), [node(2, name=name)], RoutingSettings())
        assert neighbor.session.description in (f"node {long[:63]}", "node")
        assert neighbor.session.description.isprintable()
