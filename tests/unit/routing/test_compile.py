"""compile_router: Nodes, flags and Services joined to what FRR is told."""

import base64
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.routing.annotations import parse_member
from kube_router_py.routing.announcements import Announcements
from kube_router_py.routing.compile import Neighborhood, compile_neighborhood, compile_router
from kube_router_py.routing.drain import Stage
from kube_router_py.routing.model import (
    Aggregate,
    Announcement,
    Community,
    Kind,
    Prepend,
    Role,
    RouterConfig,
)
from kube_router_py.routing.settings import RoutingSettings

K = "kube-router.io/"
VIP = Announcement(prefix=ip_network("192.0.2.7/32"), kind=Kind.SERVICE)
PODS = Announcement(prefix=ip_network("10.244.1.0/24"), kind=Kind.PODS)


def neighborhood(settings: RoutingSettings, *nodes: Any, **given: Any) -> Neighborhood:
    """Of the first of the nodes."""
    views = [node_view(node)[0] for node in nodes]
    members = [parse_member(view)[0] for view in views]
    return compile_neighborhood(views[0], members, settings, **given)


def router(settings: RoutingSettings, *nodes: Any, **given: Any) -> RouterConfig:
    config, _ = compile_router(settings, neighborhood(settings, *nodes), **given)
    assert config is not None
    return config


def two_nodes(make: Any, **annotations: str) -> list[Any]:
    notes = {K + name.replace("__", "-").replace("_", "."): v for name, v in annotations.items()}
    return [
        make.node("node1", ("192.168.1.1",), ("10.244.1.0/24",), annotations=notes),
        make.node("node2", ("192.168.1.2",), ("10.244.2.0/24",)),
    ]


def test_parts_are_joined(make: Any) -> None:
    peers = (
        "- {remoteip: 203.0.113.1, remoteasn: 65000}\n"
        "- {listenrange: 10.9.0.0/16, remoteasn: 65001}"
    )
    nodes = two_nodes(
        make,
        peers=peers,
        node_bgp_communities="65000:7",
        path__prepend_as="64512",
        path__prepend_repeat__n="2",
        node_bgp_customimportreject="172.16.0.0/12",
    )
    settings = RoutingSettings(
        port=1790,
        maximum_paths=8,
        advertise_pod_cidr=False,
        cluster_ranges=(ip_network("10.96.0.0/12"),),
        advertise_aggregate=(ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")),
        advertise_specifics_to=("10.9.0.0/16",),
    )
    around = neighborhood(settings, *nodes)
    assert around.problems == ()
    assert around.peers == {"203.0.113.1", "10.9.0.0/16"}
    config, problems = compile_router(
        settings,
        around,
        (VIP,),
        (ip_address("9.9.9.9"),),
        local={ip_address("192.168.1.1"), ip_address("192.168.7.7")},
    )
    assert problems == ()
    assert config is not None
    assert (config.asn, config.router_id) == (64512, IPv4Address("192.168.1.1"))
    assert config.listen == (IPv4Address("192.168.1.1"),)
    assert (config.port, config.maximum_paths) == (1790, 8)
    assert [each.key for each in config.neighbors] == ["192.168.1.2", "203.0.113.1"]
    assert [str(each.network) for each in config.listen_ranges] == ["10.9.0.0/16"]
    assert config.announcements == (PODS, VIP)
    assert config.aggregates == (
        Aggregate(prefix=ip_network("192.0.2.0/24"), specific_to=("10.9.0.0/16",)),
    )
    assert config.announce_pods_outside is False
    assert config.communities == (Community((65000, 7)),)
    assert config.prepend == Prepend(asn=64512, times=2)
    assert config.graceful_restart is not None
    assert config.source == (IPv4Address("192.168.1.1"),)
    assert config.drain is False
    assert [(str(r.network), r.shortest, r.longest) for r in config.refuse] == [
        ("0.0.0.0/0", 0, 0),
        ("9.9.9.9/32", 32, 32),
        ("10.96.0.0/12", 12, 32),
        ("172.16.0.0/12", 12, 32),
        ("192.0.2.0/24", 24, 24),
        ("198.51.100.0/24", 24, 24),
    ]


def test_prefixes_of_pods_and_services_stand_in_one_order(make: Any) -> None:
    node = make.node(cidrs=("10.244.1.0/24", "fd00:10:244:1::/64"))
    services = tuple(
        Announcement(prefix=ip_network(text), kind=Kind.SERVICE)
        for text in ("10.96.0.1/32", "192.0.2.1/32", "fd00:5::1/128", "fd00:96::1/128")
    )
    config = router(RoutingSettings(ipv6=True), node, services=services)
    assert [str(each.prefix) for each in config.announcements] == [
        "10.96.0.1/32",
        "10.244.1.0/24",
        "192.0.2.1/32",
        "fd00:5::1/128",
        "fd00:10:244:1::/64",
        "fd00:96::1/128",
    ]


def test_a_source_is_an_address_that_is_there(make: Any) -> None:
    node = make.node()
    both = {ip_address("192.168.1.1"), ip_address("fd00:1::1")}
    assert router(RoutingSettings(), node).source == ()
    assert router(RoutingSettings(), node, local={ip_address("10.0.0.1")}).source == ()
    assert router(RoutingSettings(), node, local=both).source == (ip_address("192.168.1.1"),)
    dual = RoutingSettings(ipv6=True)
    assert set(router(dual, node, local=both).source) == both


def test_drain_marks_everything_and_then_takes_services_only(make: Any) -> None:
    settings = RoutingSettings(advertise_aggregate=(ip_network("192.0.2.0/24"),))
    nodes = two_nodes(make, peers="- {remoteip: 203.0.113.1, remoteasn: 65000}")
    serving, marked, withdrawn = (
        router(settings, *nodes, services=(VIP,), stage=stage) for stage in Stage
    )
    assert marked == msgspec.structs.replace(serving, drain=True)
    assert len(serving.aggregates) == 1
    expected = msgspec.structs.replace(serving, drain=True, announcements=(PODS,), aggregates=())
    assert withdrawn == expected


def test_a_router_outside_is_no_node_and_a_loopback_no_network_of_pods(make: Any) -> None:
    nodes = two_nodes(
        make,
        peers="- {remoteip: 192.168.1.2, remoteasn: 65000}",
        pod__cidrs="127.0.0.0/8,10.1.0.0/24",
    )
    around = neighborhood(RoutingSettings(), *nodes)
    assert [each.session.role for each in around.neighbors] == [Role.NODE]
    assert [str(each.prefix) for each in around.pods] == ["10.1.0.0/24"]
    reasons = " ".join(each.reason for each in around.problems)
    assert len(around.problems) == 2
    assert "192.168.1.2 is the address of a node" in reasons
    assert "127.0.0.0/8 is a loopback address" in reasons


def test_without_identity_there_is_no_router_and_the_reason_is_told(make: Any) -> None:
    settings = RoutingSettings(ipv4=False, ipv6=True)
    around = neighborhood(settings, make.node(addresses=("fd00:1::1",)))
    assert around.identity is None
    config, problems = compile_router(settings, around, (VIP,))
    assert config is None
    assert any("--router-id" in each.reason for each in problems)


def test_problems_of_all_parts_are_told_once_and_sorted(make: Any) -> None:
    nodes = two_nodes(
        make,
        peers="- {remoteip: nonsense, remoteasn: 1}",
        node_bgp_communities="x",
        node_bgp_customimportreject="y",
        path__prepend_as="64512",
    )
    settings = RoutingSettings(
        advertise_aggregate=(ip_network("192.0.2.0/24"),), advertise_specifics_to=("eth9",)
    )
    config, problems = compile_router(settings, neighborhood(settings, *nodes))
    assert config is not None
    assert list(problems) == sorted(set(problems))
    fields = "\n".join(f"{each.object} {each.field}" for each in problems)
    for fragment in (
        "Flag --advertise-specifics-to",
        "customimportreject",
        "node.bgp.communities",
        "path-prepend.as",
        "kube-router.io/peers",
    ):
        assert fragment in fields
    assert len(problems) == 5


def test_passwords_come_from_the_file_and_the_secret(make: Any) -> None:
    flags = RoutingSettings(
        peer_addresses=(ip_address("203.0.113.1"),),
        peer_asns=(65000,),
        peer_passwords_file="/somewhere",
    )
    text = base64.b64encode(b"word").decode()
    around = neighborhood(flags, make.node(), password_list=text)
    assert [each.session.password for each in around.neighbors] == ["word"]
    around = neighborhood(flags, make.node())
    assert around.neighbors == ()
    assert len(around.problems) == 1


def test_what_services_choose_is_what_there_is(make: Any) -> None:
    """The way from the neighborhood through the index into the router."""
    nodes = two_nodes(
        make,
        peers="- {remoteip: 203.0.113.1, remoteasn: 65000}\n- {interface: eth1}",
    )
    settings = RoutingSettings(advertise_cluster_ip=True, has_proxy=False)
    around = neighborhood(settings, *nodes)
    index = Announcements("node1", settings, around.peers)
    chosen = "eth1, 203.0.113.9, 192.168.1.2"
    service = make.service(annotations={f"{K}service.bgp.peers": chosen})
    index.update("default/web", service)
    config, _ = compile_router(settings, around, index.current(), index.outside_ranges())
    assert config is not None
    assert [each.peers for each in config.announcements] == [("eth1",), None]
    # Neither a router that nobody configured nor another node of the cluster.
    assert len(index.problems()) == 2


@pytest.mark.parametrize("version", [4, 6])
def test_one_family_is_all_that_there_is_of_it(make: Any, version: int) -> None:
    settings = RoutingSettings(
        ipv4=version == 4,
        ipv6=version == 6,
        generate_router_id=True,
        cluster_ranges=(ip_network("10.96.0.0/12" if version == 4 else "fd00:96::/112"),),
    )
    config = router(settings, make.node(), make.node("node2", ("192.168.1.2", "fd00:1::2")))
    assert {each.version for each in config.listen} == {version}
    assert {each.prefix.version for each in config.announcements} == {version}
    assert {each.network.version for each in config.refuse} == {version}
    assert {each.address.version for each in config.neighbors if each.address} == {version}
    assert {v for each in config.neighbors for v in each.session.versions} == {version}
