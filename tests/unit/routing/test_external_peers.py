"""Routers outside the cluster: which there are, what sessions with them are made with."""

import base64
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.cluster.node import node_view
from kube_router_py.routing.annotations import Member, parse_member
from kube_router_py.routing.model import Bfd, ListenRange, Neighbor, Role, Session
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.peer_spec import PeerSpec
from kube_router_py.routing.peers import (
    Externals,
    external_neighbors,
    external_peers,
    password_list_mistake,
    secret_refs,
)
from kube_router_py.routing.settings import RoutingSettings

DUAL = RoutingSettings(ipv6=True)
LEFT_OUT = "; this router is left out"
ASN = 64512


def addresses(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_address(text) for text in texts)


def flags(*texts: str, **fields: Any) -> RoutingSettings:
    found = addresses(*texts)
    return structs.replace(
        DUAL, **{"peer_addresses": found, "peer_asns": (65000,) * len(found), **fields}
    )


def own(make: Any, *texts: str) -> Member:
    node = make.node(addresses=texts) if texts else make.node()
    return parse_member(node_view(node)[0])[0]


def flagged(
    make: Any, settings: RoutingSettings, password_list: str = ""
) -> tuple[tuple[PeerSpec, ...], list[str]]:
    view = node_view(make.node())[0]
    specs, problems = external_peers(view, settings, password_list)
    return specs, [str(problem) for problem in problems]


def spec(address: str = "192.0.2.1", **fields: Any) -> PeerSpec:
    named: dict[str, Any] = {"address": ip_address(address)} if address else {}
    return PeerSpec(
        **{
            "object": "Node node1",
            "field": "peers[0]",
            "description": f"annotation {address}",
            "remote_as": 65000,
            **named,
            **fields,
        }
    )


def built(
    make: Any, specs: Sequence[PeerSpec], settings: RoutingSettings = DUAL, **rest: Any
) -> tuple[Externals, list[str]]:
    member = rest.pop("member", None) or own(make)
    externals, problems = external_neighbors(member, ASN, specs, settings, **rest)
    return externals, [str(problem) for problem in problems]


def session(make: Any, each: PeerSpec, settings: RoutingSettings = DUAL, **rest: Any) -> Session:
    externals, problems = built(make, [each], settings, **rest)
    assert problems == []
    return every_session(externals)[0]


def every_session(externals: Externals) -> list[Session]:
    return [
        *(each.session for each in externals.neighbors),
        *(each.session for each in externals.listen_ranges),
    ]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- flags --------------------------------------------------------------------------------------


def test_routers_of_flags(make: Any) -> None:
    settings = flags(
        "192.0.2.1",
        "2001:db8::1",
        peer_asns=(65000, 65001),
        peer_ports=(1790, 179),
        peer_passwords=("secret", ""),
        peer_bfd=True,
        bfd=Bfd(5, 300, 200),
    )
    plain = PeerSpec(
        object="Flag --peer-router-ips",
        field="[0]",
        description="flag --peer-router-ips[0]",
        remote_as=65000,
        address=ip_address("192.0.2.1"),
        port=1790,
        password="secret",
        bfd=Bfd(5, 300, 200),
    )
    other = structs.replace(
        plain,
        field="[1]",
        description="flag --peer-router-ips[1]",
        remote_as=65001,
        address=ip_address("2001:db8::1"),
        port=179,
        password="",
    )
    assert flagged(make, settings) == ((plain, other), [])


def test_routers_of_flags_suppress_those_of_annotations(make: Any) -> None:
    annotations = {"kube-router.io/peers": "[{remoteip: 10.0.0.1, remoteasn: 65000}, nonsense]"}
    view = node_view(make.node(annotations=annotations))[0]
    specs, problems = external_peers(view, flags("192.0.2.1"))
    assert [each.description for each in specs] == ["flag --peer-router-ips[0]"]
    assert problems == []
    specs, problems = external_peers(view, DUAL)
    assert [each.description for each in specs] == ["annotation kube-router.io/peers[0]"]
    assert len(problems) == 1


def test_bfd_of_flags_is_not_for_annotated_routers(make: Any) -> None:
    annotations = {"kube-router.io/peers": "[{remoteip: 10.0.0.1, remoteasn: 65000}]"}
    view = node_view(make.node(annotations=annotations))[0]
    specs, _ = external_peers(view, structs.replace(DUAL, peer_bfd=True, bfd_port=4784))
    assert [each.bfd for each in specs] == [None]


def test_what_bfd_of_frr_cannot_do_is_told(make: Any) -> None:
    specs, problems = flagged(make, flags("192.0.2.1", peer_bfd=True, bfd_port=4784))
    assert [each.bfd for each in specs] == [Bfd()]
    assert problems == [
        "Flag --bfd-port: 4784 is not possible with FRR, 3784 is used; leave the port out"
    ]
    assert flagged(make, flags("192.0.2.1", bfd_port=4784))[1] == []


def test_an_address_that_no_session_can_be_held_with(make: Any) -> None:
    specs, problems = flagged(make, flags("192.0.2.1", "127.0.0.1", "2001:db8::1%a\nb"))
    assert [each.field for each in specs] == ["[0]"]
    assert problems == [
        f"Flag --peer-router-ips [1]: '127.0.0.1' is a loopback address{LEFT_OUT}",
        f"Flag --peer-router-ips [2]: '2001:db8::1%a\\nb' is an address with a zone{LEFT_OUT}",
    ]


def test_passwords_that_frr_cannot_take_leave_out_that_router(make: Any) -> None:
    settings = flags(
        "192.0.2.1", "192.0.2.2", "192.0.2.3", peer_passwords=("good", "hid den", "x" * 81)
    )
    specs, problems = flagged(make, settings)
    assert [each.password for each in specs] == ["good"]
    assert [problem.split(":")[0] for problem in problems] == [
        "Flag --peer-router-passwords [1]",
        "Flag --peer-router-passwords [2]",
    ]
    assert not any("hid" in problem or "xxx" in problem for problem in problems)


def test_passwords_from_a_file(make: Any) -> None:
    settings = flags("192.0.2.1", "192.0.2.2", peer_passwords_file="/run/passwords")
    specs, problems = flagged(make, settings, f"{encoded('one')}, {encoded('two')}\n")
    assert [each.password for each in specs] == ["one", "two"]
    assert problems == []
    specs, problems = flagged(make, settings, f",{encoded('two')}")
    assert [each.password for each in specs] == ["", "two"]
    specs, problems = flagged(make, settings, "hidden!,")
    assert [each.field for each in specs] == ["[1]"]
    assert problems == [
        "Flag --peer-router-passwords-file [0]: the password is not base64; encode the password: "
        f"printf %s PASSWORD | base64{LEFT_OUT}"
    ]


def test_inline_passwords_beat_the_file(make: Any) -> None:
    settings = flags("192.0.2.1", peer_passwords=("one",), peer_passwords_file="/run/passwords")
    specs, problems = flagged(make, settings, "nonsense,and,more")
    assert ([each.password for each in specs], problems) == (["one"], [])


@pytest.mark.parametrize("text", ["", "YQ==", "YQ==,YQ==,YQ==", "," * 70000])
def test_a_file_of_another_length_is_no_reason_for_sessions_without_password(
    make: Any, text: str
) -> None:
    settings = flags("192.0.2.1", "192.0.2.2", peer_passwords_file="/run/passwords")
    specs, problems = flagged(make, settings, text)
    assert specs == ()
    assert len(problems) == 1
    assert problems[0].startswith("Flag --peer-router-passwords-file: the file ")
    assert password_list_mistake(text, settings) in problems[0]


def test_a_file_is_judged_before_it_is_used() -> None:
    settings = flags("192.0.2.1", "192.0.2.2")
    assert password_list_mistake("YQ==,", settings) == ""
    assert password_list_mistake("YQ==", settings) == (
        "the file has 1 items, but --peer-router-ips has 2; give one for each router"
    )


# --- sessions -----------------------------------------------------------------------------------


def test_a_session_with_all_defaults(make: Any) -> None:
    externals, problems = built(make, [spec()])
    assert problems == []
    assert externals.neighbors == (
        Neighbor(
            address=ip_address("192.0.2.1"),
            session=Session(
                role=Role.EXTERNAL,
                remote_as=65000,
                versions=(4, 6),
                local_address=ip_address("192.168.1.1"),
                hold_s=90,
                description="annotation 192.0.2.1",
            ),
        ),
    )
    assert externals.listen_ranges == ()


def test_everything_that_a_router_is_described_with_is_used(make: Any) -> None:
    described = spec(
        local_address=ip_address("10.9.9.9"),
        port=1790,
        password="secret",
        hold_s=9,
        multihop=4,
        bfd=Bfd(),
        graceful_restart=True,
    )
    found = session(make, described)
    assert found.local_address == ip_address("10.9.9.9")
    assert (found.port, found.password, found.hold_s, found.multihop) == (1790, "secret", 9, 4)
    assert (found.bfd, found.graceful_restart) == (Bfd(), True)


def test_flags_hold_where_the_router_says_nothing(make: Any) -> None:
    settings = structs.replace(
        DUAL, hold_s=30, peer_multihop=3, graceful_restart_outside=True, override_nexthop=True
    )
    found = session(make, spec(), settings)
    assert (found.hold_s, found.multihop) == (30, 3)
    assert found.graceful_restart
    assert found.next_hop_self
    found = session(make, spec(hold_s=3, multihop=0, graceful_restart=False), settings)
    assert (found.hold_s, found.multihop, found.graceful_restart) == (3, 0, False)


@pytest.mark.parametrize("hops", [0, 1])
def test_multihop_begins_with_two_hops(make: Any, hops: int) -> None:
    assert session(make, spec(multihop=hops)).multihop == 0
    assert session(make, spec(), structs.replace(DUAL, peer_multihop=hops)).multihop == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"remote_as": "internal"},
        {"remote_as": ASN},
        {"ttl_security": 2},
        {"address": None, "interface": "eth1"},
    ],
)
def test_multihop_is_for_routers_of_another_as_that_are_not_near(
    make: Any, fields: dict[str, Any]
) -> None:
    found = session(make, spec(**fields), structs.replace(DUAL, peer_multihop=3))
    assert found.multihop == 0
    assert found.ttl_security == fields.get("ttl_security", 0)


def test_unnumbered_routers(make: Any) -> None:
    externals, _ = built(make, [spec("", interface="eth1", remote_as="external")])
    (neighbor,) = externals.neighbors
    assert (neighbor.key, neighbor.address) == ("eth1", None)
    assert neighbor.session.versions == (4, 6)
    assert neighbor.session.local_address is None


def test_routers_that_may_come_by_themselves(make: Any) -> None:
    ranges = [
        spec("", network=ip_network("fd00:9::/64"), remote_as=65009),
        spec("", network=ip_network("10.9.0.0/16"), remote_as="external", password="x"),
    ]
    externals, problems = built(make, ranges)
    assert problems == []
    assert [(each.network, each.session.versions) for each in externals.listen_ranges] == [
        (ip_network("10.9.0.0/16"), (4, 6)),
        (ip_network("fd00:9::/64"), (4, 6)),
    ]
    first = externals.listen_ranges[0]
    assert isinstance(first, ListenRange)
    assert first.session.local_address == ip_address("192.168.1.1")
    assert first.session.password == "x"


def test_neighbors_are_sorted_by_key(make: Any) -> None:
    specs = [spec("192.0.2.9"), spec("", interface="eth0"), spec("192.0.2.10")]
    externals, _ = built(make, specs)
    assert [each.key for each in externals.neighbors] == ["192.0.2.10", "192.0.2.9", "eth0"]


# --- families -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peers", "carried"),
    [
        (["192.0.2.1 1"], [(4, 6)]),
        (["2001:db8::1 1"], [(4, 6)]),
        # The same router in both families: each session carries its own.
        (["192.0.2.1 1", "2001:db8::1 1"], [(4,), (6,)]),
        (["2001:db8::1 1", "192.0.2.1 1"], [(6,), (4,)]),
        # Another AS is another router.
        (["192.0.2.1 1", "2001:db8::1 2"], [(4, 6), (4, 6)]),
        # The n-th of one family is the n-th of the other.
        (["192.0.2.1 1", "192.0.2.2 1", "2001:db8::1 1"], [(4,), (4, 6), (6,)]),
        (
            ["192.0.2.1 1", "2001:db8::1 1", "192.0.2.2 1", "2001:db8::2 1"],
            [(4,), (6,), (4,), (6,)],
        ),
        (["192.0.2.1 1", "192.0.2.2 2", "2001:db8::2 2"], [(4, 6), (4,), (6,)]),
    ],
)
def test_a_session_carries_what_no_other_session_with_that_router_does(
    make: Any, peers: list[str], carried: list[tuple[int, ...]]
) -> None:
    specs = [spec(address, remote_as=int(asn)) for address, asn in (peer.split() for peer in peers)]
    externals, _ = built(make, specs)
    found = {each.key: each.session.versions for each in externals.neighbors}
    assert [found[str(each.address)] for each in specs] == carried


def test_ranges_and_interfaces_are_no_pair_of_a_router(make: Any) -> None:
    specs = [
        spec("192.0.2.1"),
        spec("", network=ip_network("fd00:9::/64")),
        spec("", interface="eth1"),
    ]
    externals, _ = built(make, specs)
    assert {each.versions for each in every_session(externals)} == {(4, 6)}


def test_a_router_that_is_left_out_is_no_pair_either(make: Any) -> None:
    specs = [spec("192.0.2.1"), spec("2001:db8::1", local_address=ip_address("10.0.0.1"))]
    externals, problems = built(make, specs)
    assert [each.session.versions for each in externals.neighbors] == [(4, 6)]
    assert len(problems) == 1


def test_only_enabled_families_that_the_node_has_are_carried(make: Any) -> None:
    assert session(make, spec(), RoutingSettings()).versions == (4,)
    assert session(make, spec(), member=own(make, "192.168.1.1")).versions == (4,)


# --- what is wrong with one router --------------------------------------------------------------


def refused(make: Any, bad: PeerSpec, **rest: Any) -> str:
    """What is told of one router, while another one has its session."""
    good = spec("198.51.100.1", remote_as=65001)
    bad = structs.replace(bad, field="peers[1]")
    externals, problems = built(make, [good, bad], **rest)
    assert [each.key for each in externals.neighbors] == ["198.51.100.1"]
    assert len(problems) == 1
    assert problems[0].endswith(LEFT_OUT)
    return problems[0].removesuffix(LEFT_OUT).removeprefix("Node node1 peers[1]")


def test_a_family_that_is_off(make: Any) -> None:
    reason = refused(make, spec("2001:db8::1"), settings=RoutingSettings())
    assert reason == ": it is an IPv6 address, and --enable-ipv6=false"


def test_a_family_that_the_node_lacks(make: Any) -> None:
    reason = refused(make, spec("2001:db8::1"), member=own(make, "192.168.1.1"))
    assert reason == ": the node has no usable IPv6 address to reach it from"


def test_a_local_address_of_the_other_family(make: Any) -> None:
    reason = refused(make, spec(local_address=ip_address("fd00::1")))
    assert reason == (
        ".localip: fd00::1 is of another address family than the router; give one of IPv4"
    )


@pytest.mark.parametrize(
    ("address", "fields"),
    [("192.168.1.1", {}), ("fd00:1::1", {}), ("10.9.9.9", {"local_address": "10.9.9.9"})],
)
def test_the_nodes_own_address(make: Any, address: str, fields: dict[str, str]) -> None:
    local = {name: ip_address(text) for name, text in fields.items()}
    assert refused(make, spec(address, **local)) == f": {address} is this node's own address"


def test_the_address_of_a_node(make: Any) -> None:
    reason = refused(make, spec("192.168.1.2"), nodes={"192.168.1.2"})
    assert reason == ": 192.168.1.2 is the address of a node of this cluster"


def test_a_router_that_is_named_twice(make: Any) -> None:
    reason = refused(make, spec("198.51.100.1", remote_as=65002))
    assert reason == ": 198.51.100.1 is named before, by annotation 198.51.100.1"
    externals, problems = built(make, [spec("", interface="eth0"), spec("", interface="eth0")])
    assert len(externals.neighbors) == len(problems) == 1


def test_ranges_that_overlap(make: Any) -> None:
    ranges = [
        spec("", network=ip_network(text)) for text in ("10.0.0.0/8", "fd00::/8", "10.9.0.0/16")
    ]
    externals, problems = built(make, ranges)
    assert [str(each.network) for each in externals.listen_ranges] == ["10.0.0.0/8", "fd00::/8"]
    assert problems == [
        f"Node node1 peers[0].listenrange: 10.9.0.0/16 overlaps with 10.0.0.0/8{LEFT_OUT}"
    ]


def test_a_node_without_addresses_has_no_sessions(make: Any) -> None:
    externals, problems = built(make, [spec(), spec("", interface="eth0")], member=Member(name="a"))
    assert externals == Externals()
    assert len(problems) == 2


# --- passwords in Secrets -----------------------------------------------------------------------

REF = SecretRef("bgp", "tor-1")


def test_passwords_in_secrets(make: Any) -> None:
    specs = [spec("192.0.2.1", secret=REF), spec("192.0.2.2", secret=SecretRef("bgp", "tor-2"))]
    assert secret_refs([*specs, spec("192.0.2.3")]) == {REF, SecretRef("bgp", "tor-2")}
    secrets = {REF: b"one\n", SecretRef("bgp", "tor-2"): b"two", SecretRef("x", "y"): b"other"}
    externals, problems = built(make, specs, secrets=secrets)
    assert [each.session.password for each in externals.neighbors] == ["one", "two"]
    assert problems == []


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ({}, "Secret bgp with key tor-1 cannot be read"),
        ({SecretRef("bgp", "other"): b"x"}, "Secret bgp with key tor-1 cannot be read"),
        ({REF: b""}, "what Secret bgp has as tor-1 is empty"),
        ({REF: b"hid den"}, "what Secret bgp has as tor-1 has a space"),
        ({REF: b"hidden\0no router bgp"}, "what Secret bgp has as tor-1 has a space"),
        ({REF: b"\xff"}, "what Secret bgp has as tor-1 is not UTF-8"),
        ({REF: b"x" * 81}, "what Secret bgp has as tor-1 is longer than 80 bytes"),
    ],
)
def test_without_its_password_a_router_is_left_out(
    make: Any, secrets: dict[SecretRef, bytes], reason: str
) -> None:
    told = refused(make, spec(secret=REF), secrets=secrets)
    assert told.startswith(f".passwordsecretref: {reason}")
    assert "hid" not in told


# --- whatever comes -----------------------------------------------------------------------------

ADDRESSES = st.sampled_from(
    ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.168.1.1", "192.168.1.2", "fd00:1::1"]
)
SPECS = st.builds(
    lambda place, **fields: spec(
        place if place[0] in "12f" and "/" not in place else "",
        **({"network": ip_network(place)} if "/" in place else {}),
        **({"interface": place} if place.startswith("eth") else {}),
        **fields,
    ),
    place=ADDRESSES | st.sampled_from(["eth0", "eth1", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]),
    remote_as=st.sampled_from([65000, 65001, ASN, "internal", "external"]),
    local_address=st.none() | st.sampled_from(addresses("10.9.9.9", "fd00:9::9")),
    multihop=st.none() | st.integers(0, 255),
    ttl_security=st.integers(0, 1),
    secret=st.none() | st.just(REF),
)


@given(st.lists(SPECS, max_size=8), st.booleans(), st.booleans(), st.integers(0, 255))
def test_whatever_routers_there_are(
    make: Any, specs: list[PeerSpec], ipv6: bool, has_secret: bool, hops: int
) -> None:
    settings = RoutingSettings(ipv6=ipv6, peer_multihop=hops)
    secrets = {REF: b"secret"} if has_secret else {}
    externals, problems = built(
        make, specs, settings, secrets=secrets, nodes=frozenset({"192.168.1.2"})
    )
    # Each router has a session, or it is told why not.
    assert len(every_session(externals)) + len(problems) == len(specs)
    keys = [each.key for each in externals.neighbors]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    assert not set(keys) & {"192.168.1.1", "192.168.1.2", "fd00:1::1"}
    networks = [each.network for each in externals.listen_ranges]
    assert not any(one.overlaps(other) for i, one in enumerate(networks) for other in networks[:i])
    for found in every_session(externals):
        assert found.role is Role.EXTERNAL
        assert found.versions
        assert set(found.versions) <= set(settings.versions)
        assert not (found.multihop and found.ttl_security)
        assert found.multihop == 0 or found.multihop > 1
    for neighbor in externals.neighbors:
        local = neighbor.session.local_address
        assert (local.version if local else None) == (
            neighbor.address.version if neighbor.address else None
        )
    # The same again from any other order, as far as no two want the same place.
    if len({(each.address, each.interface, each.network) for each in specs}) == len(specs) and (
        not any(each.network for each in specs)
    ):
        turned, _ = built(
            make, specs[::-1], settings, secrets=secrets, nodes=frozenset({"192.168.1.2"})
        )
        assert [each.key for each in turned.neighbors] == keys
