"""Who this node is to its neighbors."""

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.routing.annotations import (
    Member,
    NodeAnnotations,
    Reflector,
    parse_annotations,
    parse_member,
)
from kube_router_py.routing.identity import (
    Identity,
    asn_of,
    compile_identity,
    generated_router_id,
    usable_versions,
)
from kube_router_py.routing.settings import RoutingSettings

DUAL = RoutingSettings(ipv6=True)


def compiled(
    make: Any, settings: RoutingSettings, annotations: dict[str, str] | None = None, **node: Any
) -> tuple[Identity | None, list[str]]:
    named = {f"kube-router.io/{name}": text for name, text in (annotations or {}).items()}
    view, _ = node_view(make.node(annotations=named, **node))
    own, _ = parse_member(view)
    identity, problems = compile_identity(own, parse_annotations(view)[0], settings)
    return identity, [str(problem) for problem in problems]


def test_by_default_a_node_is_in_the_cluster_as_with_its_own_addresses(make: Any) -> None:
    assert compiled(make, DUAL) == (
        Identity(
            asn=64512,
            router_id=IPv4Address("192.168.1.1"),
            listen=(ip_address("192.168.1.1"), ip_address("fd00:1::1")),
        ),
        [],
    )


def test_in_a_full_mesh_annotated_as_numbers_do_not_count(make: Any) -> None:
    """As in kube-router: nodes that are annotated for another mode keep their sessions."""
    identity, problems = compiled(make, DUAL, {"node.asn": "65001"})
    assert identity is not None
    assert identity.asn == 64512
    assert problems == [
        "Node node1 metadata.annotations[kube-router.io/node.asn]: 65001 does not count: with "
        "--nodes-full-mesh all nodes are in AS 64512"
    ]
    assert compiled(make, DUAL, {"node.asn": "64512"})[1] == []


def test_without_full_mesh_the_annotation_counts(make: Any) -> None:
    settings = RoutingSettings(full_mesh=False, cluster_asn=64999)
    identity, problems = compiled(make, settings, {"node.asn": "65001"})
    assert identity is not None
    assert identity.asn == 65001
    assert problems == []


@pytest.mark.parametrize("annotations", [{}, {"node.asn": "nonsense"}, {"node.asn": "0"}])
def test_without_full_mesh_and_without_as_number_there_is_no_bgp(
    make: Any, annotations: dict[str, str]
) -> None:
    identity, problems = compiled(make, RoutingSettings(full_mesh=False), annotations)
    assert identity is None
    assert problems == [
        "Node node1 metadata.annotations[kube-router.io/node.asn]: the node has no AS number; "
        "annotate it, or set --nodes-full-mesh: there are no BGP sessions until then"
    ]


@pytest.mark.parametrize(
    ("address", "router_id"),
    [
        # Of Go's hash/fnv and net.ParseIP.
        ("fd00::1", "148.2.92.203"),
        ("2001:db8:85a3::8a2e:370:7334", "144.214.150.71"),
        ("192.168.1.1", "58.29.221.93"),
    ],
)
def test_router_ids_are_generated_as_kube_router_does(address: str, router_id: str) -> None:
    assert generated_router_id(ip_address(address)) == IPv4Address(router_id)


def test_router_ids(make: Any) -> None:
    def router_id(settings: RoutingSettings, *addresses: str) -> str | None:
        identity, _ = compiled(make, settings, addresses=addresses)
        return str(identity.router_id) if identity else None

    generated = RoutingSettings(ipv6=True, generate_router_id=True)
    given = RoutingSettings(ipv6=True, router_id=IPv4Address("10.9.9.9"))
    assert router_id(given, "192.168.1.1") == "10.9.9.9"
    assert router_id(generated, "fd00::1", "192.168.1.1") == "148.2.92.203"
    assert router_id(generated, "192.168.1.1", "fd00::1") == "58.29.221.93"
    # kube-router has the flag given here, too, though the node has an IPv4 address.
    assert router_id(DUAL, "fd00::1", "192.168.1.1") == "192.168.1.1"


def test_a_node_of_ipv6_needs_a_router_id(make: Any) -> None:
    settings = RoutingSettings(ipv4=False, ipv6=True)
    identity, problems = compiled(make, settings, addresses=("fd00::1",))
    assert identity is None
    assert problems == [
        "Node node1 status.addresses: a node without IPv4 address needs --router-id: "
        "there are no BGP sessions"
    ]


def test_zeros_are_no_router_id(make: Any) -> None:
    identity, problems = compiled(make, RoutingSettings(router_id=IPv4Address(0)))
    assert identity is None
    assert problems == ["Flag --router-id: 0.0.0.0 is no router id; give an address, or generate"]


def test_an_enabled_family_without_address_is_told_and_the_other_works(make: Any) -> None:
    identity, problems = compiled(make, DUAL, addresses=("192.168.1.1",))
    assert identity is not None
    assert identity.listen == (ip_address("192.168.1.1"),)
    assert problems == [
        "Node node1 status.addresses: the node has no usable IPv6 address: there are no BGP "
        "sessions over IPv6; give it one, or set --enable-ipv6=false"
    ]


def test_a_node_without_addresses_has_no_bgp(make: Any) -> None:
    settings = RoutingSettings(ipv6=True, router_id=IPv4Address("10.9.9.9"))
    identity, problems = compiled(make, settings, addresses=("127.0.0.1", "fe80::1"))
    assert identity is None
    assert len(problems) == 2
    generated = RoutingSettings(generate_router_id=True)
    assert compile_identity(Member(name="node1"), NodeAnnotations(), generated)[0] is None


def test_addresses_to_listen_on_are_those_of_the_annotation(make: Any) -> None:
    identity, problems = compiled(
        make, RoutingSettings(), {"bgp-local-addresses": "10.0.0.2,10.0.0.1,fd00::1"}
    )
    assert identity is not None
    assert [str(each) for each in identity.listen] == ["10.0.0.1", "10.0.0.2"]
    assert problems == [
        "Node node1 metadata.annotations[kube-router.io/bgp-local-addresses]: fd00::1 is left out: "
        "--enable-ipv6=false; leave it out here, or enable that family"
    ]


@pytest.mark.parametrize("text", ["fd00::1", "nonsense", ""])
def test_without_a_usable_one_bgp_listens_on_the_nodes_own(make: Any, text: str) -> None:
    identity, _ = compiled(make, RoutingSettings(), {"bgp-local-addresses": text})
    assert identity is not None
    assert identity.listen == (ip_address("192.168.1.1"),)


def test_only_a_server_has_a_cluster_id(make: Any) -> None:
    server, _ = compiled(make, DUAL, {"rr.server": "42"})
    client, _ = compiled(make, DUAL, {"rr.client": "42"})
    assert server is not None
    assert client is not None
    assert (server.cluster_id, client.cluster_id) == (IPv4Address("0.0.0.42"), None)


def test_the_as_of_a_node_and_the_versions_that_it_can_use() -> None:
    node = Member(name="a", ipv4=IPv4Address("10.0.0.1"), asn=65001, reflector=Reflector(True))
    assert asn_of(node, RoutingSettings(cluster_asn=64513)) == 64513
    assert asn_of(node, RoutingSettings(cluster_asn=64513, full_mesh=False)) == 65001
    assert asn_of(Member(name="b"), RoutingSettings(full_mesh=False)) is None
    assert usable_versions(node, DUAL) == (4,)
    assert usable_versions(node, RoutingSettings(ipv4=False, ipv6=True)) == ()
