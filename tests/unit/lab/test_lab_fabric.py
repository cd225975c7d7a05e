"""The topology: who is where, and that no two share an address."""

from ipaddress import ip_interface

import pytest

from kube_router_py.lab.fabric import (
    CLUSTER_ASN,
    MAX_NODES,
    ROUTER_ASN,
    Topology,
    compile_topology,
    render_host,
    render_wiring,
)
from kube_router_py.options import parse


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_addresses_are_distinct_and_the_same_each_time(family: str) -> None:
    topology = compile_topology(MAX_NODES, family)
    assert topology == compile_topology(MAX_NODES, family)
    addresses = [a for host in topology.hosts for _, found in host.links for a in found]
    cidrs = [cidr for node in topology.nodes for cidr in node.pod_cidrs]
    assert len(set(addresses)) == len(addresses)
    assert len(set(cidrs)) == len(cidrs) == MAX_NODES * len(topology.families)


def test_what_command_gets_to_know() -> None:
    assert compile_topology(1, "dual").environment() == {
        "LAB_ROUTER_IP4": "10.10.0.1",
        "LAB_ROUTER_IP6": "fd10:10::1",
        "LAB_CLIENT_IP4": "10.20.0.2",
        "LAB_CLIENT_IP6": "fd10:20::2",
        "LAB_APISERVER_IP4": "10.10.0.2",
        "LAB_APISERVER_IP6": "fd10:10::2",
        "LAB_DESK_IP4": "10.10.0.3",
        "LAB_DESK_IP6": "fd10:10::3",
        "LAB_NODE1_IP4": "10.10.0.11",
        "LAB_NODE1_IP6": "fd10:10::b",
    }
    assert "LAB_NODE1_IP6" not in compile_topology(1, "ipv4").environment()


def args_of(topology: Topology, number: int = 1) -> tuple[str, ...]:
    return topology.agent_args(topology.nodes[number - 1])


def test_what_the_agents_are_told() -> None:
    assert args_of(compile_topology(1, "ipv4")) == ()
    assert args_of(compile_topology(1, "ipv6")) == (
        "--enable-ipv4=false",
        "--enable-ipv6=true",
        "--service-cluster-ip-range=fd10:96::/112",
    )


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_agents_that_route_are_told_of_the_router_in_their_own_subnet(family: str) -> None:
    topology = compile_topology(3, family, subnets=2, has_bgp=True)
    assert [node.subnet for node in topology.nodes] == [0, 0, 1]
    found = parse(args_of(topology, 3), {})
    assert len(found.peer_router_ips) == len(found.peer_router_asns) == len(topology.families)
    links = [host.links[0][1] for host in topology.hosts if host.name == "node3"]
    for peer, own in zip(found.peer_router_ips, links[0], strict=True):
        assert peer in ip_interface(own).network
    assert found.cluster_asn == CLUSTER_ASN
    assert set(found.peer_router_asns) == {ROUTER_ASN}
    assert (found.router_id == "generate") == (family == "ipv6")


def test_where_agents_route_nobody_is_told_of_pods() -> None:
    topology = compile_topology(3, "dual", subnets=2, has_bgp=True)
    for host in topology.hosts:
        assert "10.244" not in render_host(host)
        assert "fd10:244" not in render_host(host)
    assert "route add default via 10.11.0.1\n" in render_host(topology.host("node3"))


def test_two_subnets_meet_at_the_router() -> None:
    topology = compile_topology(2, "ipv4", subnets=2, has_bgp=True)
    lines = render_wiring(topology).splitlines()
    assert "link set node1 master br0 up" in lines
    assert "link set node2 master br1 up" in lines
    assert "link add router-far type veth peer name eth2 netns router" in lines
    assert topology.environment()["LAB_NODE2_IP4"] == "10.11.0.12"
    router = dict(topology.host("router").links)
    assert router == {
        "eth0": ("10.10.0.1/24",),
        "eth1": ("10.20.0.1/24",),
        "eth2": ("10.11.0.1/24",),
    }


def test_nodes_reach_each_others_pods_and_the_router_does_not_know_them() -> None:
    topology = compile_topology(3, "dual")
    text = render_host(topology.host("node2"))
    assert "route add 10.244.1.0/24 via 10.10.0.11\n" in text
    assert "route add fd10:244:0:3::/64 via fd10:10::d\n" in text
    assert "10.244.2.0/24" not in text
    assert "route add default via fd10:10::1\n" in text
    assert "10.244" not in render_host(topology.host("router"))


def test_the_client_hangs_on_the_router() -> None:
    lines = render_wiring(compile_topology(1, "ipv4")).splitlines()
    assert "link set client netns router name eth1" in lines
    assert "link set client master br0 up" not in lines
    assert "link set node1 master br0 up" in lines


@pytest.mark.parametrize("has_bgp", [False, True])
def test_the_desk_is_on_the_wire_of_the_nodes_and_knows_no_way_to_pods(has_bgp: bool) -> None:
    topology = compile_topology(2, "dual", has_bgp=has_bgp)
    assert "link set desk master br0 up" in render_wiring(topology).splitlines()
    desk, node = topology.host("desk"), topology.host("node1")
    for mine, theirs in zip(desk.links[0][1], node.links[0][1], strict=True):
        assert ip_interface(mine).network == ip_interface(theirs).network
    assert desk.routes == ("default via 10.10.0.1", "default via fd10:10::1")
