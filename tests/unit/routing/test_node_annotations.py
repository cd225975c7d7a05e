"""What a Node's annotations say about it as a router; an item that is wrong is left out alone."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.routing.annotations import (
    Member,
    NodeAnnotations,
    Reflector,
    parse_annotations,
    parse_member,
)
from kube_router_py.routing.model import PREPEND_MAX, Community, Prepend

PREFIX = "kube-router.io/"


def view(make: Any, annotations: dict[str, str] | None = None, **node: Any) -> NodeView:
    named = {f"{PREFIX}{name}": text for name, text in (annotations or {}).items()}
    return node_view(make.node(annotations=named, **node))[0]


def member(make: Any, **annotations: str) -> tuple[Member, list[str]]:
    return told(parse_member(view(make, rename(annotations))))


def own(make: Any, **annotations: str) -> tuple[NodeAnnotations, list[str]]:
    return told(parse_annotations(view(make, rename(annotations))))


def told(result: tuple[Any, list[Any]]) -> tuple[Any, list[str]]:
    return result[0], [str(problem) for problem in result[1]]


def rename(annotations: dict[str, str]) -> dict[str, str]:
    """``path_prepend__as`` for ``path-prepend.as``."""
    return {name.replace("__", ".").replace("_", "-"): text for name, text in annotations.items()}


def field(name: str) -> str:
    return f"Node node1 metadata.annotations[{PREFIX}{name}]: "


def test_a_node_without_annotations(make: Any) -> None:
    found, problems = member(make)
    assert found == Member(
        name="node1",
        address=ip_address("192.168.1.1"),
        ipv4=IPv4Address("192.168.1.1"),
        ipv6=IPv6Address("fd00:1::1"),
        addresses=(ip_address("192.168.1.1"), ip_address("fd00:1::1")),
        pod_networks=(ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")),
    )
    assert problems == []
    assert own(make) == (NodeAnnotations(), [])


def test_addresses_that_no_session_can_be_held_with_are_passed_over(make: Any) -> None:
    addresses = ("127.0.0.1", "fe80::1", "2001:db8::7%eth0", "10.0.0.1", "10.0.0.2", "fd00::1")
    found, _ = parse_member(view(make, addresses=addresses))
    assert (found.ipv4, found.ipv6) == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert found.address == ip_address("127.0.0.1")
    assert len(found.addresses) == 6


@pytest.mark.parametrize(
    ("text", "asn"),
    [("64512", 64512), ("0xfc00", 64512), (" 4200000000 ", 4200000000), ("1", 1)],
)
def test_as_numbers(make: Any, text: str, asn: int) -> None:
    found, problems = member(make, node__asn=text)
    assert (found.asn, problems) == (asn, [])


@pytest.mark.parametrize("text", ["0", "4294967296", "-1", "AS64512", "64512\n!", "64512 1"])
def test_what_is_no_as_number(make: Any, text: str) -> None:
    found, problems = member(make, node__asn=text)
    assert found.asn is None
    assert problems == [
        f"{field('node.asn')}{text!r} is not an AS number; write a number from 1 to 4294967295; "
        "it is ignored"
    ]


@pytest.mark.parametrize(
    ("text", "cluster_id"),
    [
        ("42", "0.0.0.42"),
        ("0x2a", "0.0.0.42"),
        ("4294967295", "255.255.255.255"),
        ("10.0.0.42", "10.0.0.42"),
    ],
)
@pytest.mark.parametrize("role", ["server", "client"])
def test_cluster_ids_are_numbers_or_addresses(
    make: Any, role: str, text: str, cluster_id: str
) -> None:
    found, problems = member(make, **{f"rr__{role}": text})
    assert found.reflector == Reflector(role == "server", IPv4Address(cluster_id))
    assert problems == []


@pytest.mark.parametrize(
    "text", ["0", "0.0.0.0", "4294967296", "fd00::1", "a", "1.2.3", "1.2.3.4\n!"]
)
def test_a_reflector_with_an_unusable_cluster_id_remains_one(make: Any, text: str) -> None:
    found, problems = member(make, rr__server=text)
    assert found.reflector == Reflector(True, None)
    assert problems == [
        f"{field('rr.server')}{text!r} is not a cluster id; write a number from 1 to 4294967295, "
        "or an IPv4 address; it is ignored"
    ]


def test_an_empty_annotation_makes_a_reflector_too(make: Any) -> None:
    """Other nodes of kube-router look only at whether the annotation is there."""
    assert member(make, rr__client="")[0].reflector == Reflector(False, None)


def test_the_server_wins(make: Any) -> None:
    found, problems = member(make, rr__client="nonsense", rr__server="42")
    assert found.reflector == Reflector(True, IPv4Address("0.0.0.42"))
    assert problems == []


def test_pod_cidrs_come_from_annotations_and_are_never_everything(make: Any) -> None:
    found, problems = member(make, pod_cidrs="10.9.0.0/24,bad,fd00:9::/64,0.0.0.0/0")
    assert found.pod_networks == (ip_network("10.9.0.0/24"), ip_network("fd00:9::/64"))
    assert len(problems) == 1
    assert "'bad' is no CIDR" in problems[0]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("10.0.0.1, fd00::1,,10.0.0.1", ["10.0.0.1", "fd00::1"]),
        ("0.0.0.0,::", ["0.0.0.0", "::"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("", []),
    ],
)
def test_addresses_to_listen_on(make: Any, text: str, addresses: list[str]) -> None:
    found, problems = own(make, bgp_local_addresses=text)
    assert [str(each) for each in found.listen] == addresses
    assert problems == []


def test_an_address_that_is_none_leaves_the_others(make: Any) -> None:
    text = "10.0.0.1,10.0.0.x,fe80::1,224.0.0.1,fd00::1%lo\n,10.0.0.2"
    found, problems = own(make, bgp_local_addresses=text)
    assert [str(each) for each in found.listen] == ["10.0.0.1", "10.0.0.2"]
    assert [problem.removeprefix(field("bgp-local-addresses")) for problem in problems] == [
        "'10.0.0.x' is not an IP address; write it like 192.0.2.1 or 2001:db8::1; it is left out",
        "'fe80::1' is nothing to listen on; write an address of the node; it is left out",
        "'224.0.0.1' is nothing to listen on; write an address of the node; it is left out",
        "'fd00::1%lo' has a zone; leave out what is behind the percent sign; it is left out",
    ]


@pytest.mark.parametrize(
    ("asn", "times", "prepend"),
    [
        ("65000", "3", Prepend(asn=65000, times=3)),
        ("0xfde8", "0x3", Prepend(asn=65000, times=3)),
        ("4294967295", "250", Prepend(asn=4294967295, times=250)),
        ("65000", "0", None),
    ],
)
def test_the_path_is_prepended(make: Any, asn: str, times: str, prepend: Prepend | None) -> None:
    found, problems = own(make, path_prepend__as=asn, path_prepend__repeat_n=times)
    assert (found.prepend, problems) == (prepend, [])


def test_frr_prepends_less_often_than_kube_router(make: Any) -> None:
    found, problems = own(make, path_prepend__as="65000", path_prepend__repeat_n="255")
    assert found.prepend == Prepend(asn=65000, times=PREPEND_MAX)
    assert problems == [
        f"{field('path-prepend.repeat-n')}255 is more than FRR can do; it is prepended 250 times"
    ]


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        (
            {"path_prepend__as": "65000"},
            "nothing is prepended without kube-router.io/path-prepend.repeat-n; "
            "annotate both or neither",
        ),
        (
            {"path_prepend__repeat_n": "3"},
            "nothing is prepended without kube-router.io/path-prepend.as; annotate both or neither",
        ),
        ({"path_prepend__as": "x", "path_prepend__repeat_n": "3"}, "'x' is not an AS number"),
        ({"path_prepend__as": "65000", "path_prepend__repeat_n": "256"}, "'256' is not a number"),
        ({"path_prepend__as": "65000", "path_prepend__repeat_n": "-1"}, "'-1' is not a number"),
    ],
)
def test_without_both_nothing_is_prepended(
    make: Any, annotations: dict[str, str], reason: str
) -> None:
    found, problems = own(make, **annotations)
    assert found.prepend is None
    assert len(problems) == 1
    assert reason in problems[0]


def test_communities_of_the_node(make: Any) -> None:
    text = "65000:1, 4259840002,no-export,65000:1:2,bad,65536:1"
    found, problems = own(make, node__bgp__communities=text)
    assert set(found.communities) == {
        Community((65000, 1)),
        Community((65000, 2)),
        Community((65535, 65281)),
        Community((65000, 1, 2)),
    }
    assert len(problems) == 2
    assert all(problem.startswith(field("node.bgp.communities")) for problem in problems)
    assert all(problem.endswith("; the others are attached") for problem in problems)


def test_over_long_annotations_are_told_and_ignored(make: Any) -> None:
    found, problems = own(make, bgp_local_addresses="10.0.0.1," * 10000)
    assert found.listen == ()
    assert problems == [
        f"{field('bgp-local-addresses')}it is longer than 16384 characters and ignored; shorten it"
    ]
    found, problems = own(make, bgp_local_addresses=",".join(f"10.0.{n}.1" for n in range(65)))
    assert len(found.listen) == 64
    assert problems == [f"{field('bgp-local-addresses')}it has 65 items; the first 64 count"]


NAMES = [
    "node.asn",
    "rr.server",
    "rr.client",
    "pod-cidr",
    "pod-cidrs",
    "bgp-local-addresses",
    "path-prepend.as",
    "path-prepend.repeat-n",
    "node.bgp.communities",
]
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from("0123456789.,:/x%\n\0 -abcdef"), max_size=30),
    st.sampled_from(["64512", "42", "10.0.0.1,fd00::1", "65000:1,no-export", "10.0.0.0/24"]),
)


@given(annotations=st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_whatever_is_annotated_is_typed_or_told(make: Any, annotations: dict[str, str]) -> None:
    node = view(make, annotations)
    found, problems = parse_member(node)
    more, others = parse_annotations(node)
    for problem in [*problems, *others]:
        assert problem.object == "Node node1"
        name = problem.field.removeprefix(f"metadata.annotations[{PREFIX}").removesuffix("]")
        assert name in annotations
        assert problem.reason.isprintable()
    assert found.asn is None or 0 < found.asn < 2**32
    assert all("%" not in str(address) for address in more.listen)
    assert more.prepend is None or 0 < more.prepend.times <= PREPEND_MAX
    assert all(network.prefixlen for network in found.pod_networks)
    # One annotation does not depend on what is wrong with another one.
    for name in annotations:
        rest = {key: text for key, text in annotations.items() if key != name}
        if name in ("bgp-local-addresses", "node.bgp.communities"):
            alone = parse_annotations(view(make, rest))[0]
            assert alone.prepend == more.prepend
