"""Which tunnels and routes a node has: subnets, names, encapsulations, and bad Nodes."""

import socket
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.kernel.fake_overlay import FakeOverlayLinks, FakeOverlayRoutes
from kube_router_py.kernel.overlay_ports import (
    MAIN,
    TABLE,
    Encap,
    Neighbour,
    Overlay,
    OverlayPorts,
    Route,
    is_own_name,
    mac_of,
)
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.problem import Problem
from kube_router_py.routing.overlay import NodeLinks, compile_overlay, node_links, tunnel_names
from kube_router_py.routing.overlay_apply import apply_overlay, remove_overlay
from kube_router_py.routing.settings import RoutingSettings

BOTH = RoutingSettings(ipv6=True)


def link_address(text: str, link: str = "eth0") -> NodeAddress:
    address, _, length = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return NodeAddress(family, socket.inet_pton(family, address), int(length), link)


@pytest.fixture
def view(make: Any) -> Any:
    """A Node as the route controller sees it; by default in another subnet than node1."""

    def build(
        name: str = "node2",
        addresses: Sequence[str] = ("192.168.2.2", "fd00:2::2"),
        cidrs: Sequence[str] = ("10.244.2.0/24", "fd00:10:244:2::/64"),
        annotations: dict[str, str] | None = None,
    ) -> NodeView:
        return node_view(make.node(name, addresses, cidrs, annotations=annotations))[0]

    return build


@pytest.fixture
def own(view: Any) -> NodeView:
    found: NodeView = view(
        "node1", ("192.168.1.1", "fd00:1::1"), ("10.244.1.0/24", "fd00:10:244:1::/64")
    )
    return found


LINKS = (link_address("192.168.1.1/24"), link_address("fd00:1::1/64"))


def compiled(
    own: NodeView,
    *others: NodeView,
    settings: RoutingSettings = BOTH,
    links: Sequence[NodeAddress] = LINKS,
    mtu: int = 1500,
) -> tuple[Overlay, tuple[Problem, ...]]:
    found = node_links(own, links, {"eth0": mtu, "eth1": mtu})
    return compile_overlay(own, others, settings, found)


def destinations(overlay: Overlay, table: int = MAIN) -> set[str]:
    return {str(each.destination) for each in overlay.routes if each.table == table}


def test_a_node_of_another_subnet_is_tunnelled_to(own: NodeView, view: Any) -> None:
    overlay, problems = compiled(own, view())
    assert problems == ()
    assert {(str(it.local), str(it.remote)) for it in overlay.tunnels.values()} == {
        ("192.168.1.1", "192.168.2.2"),
        ("fd00:1::1", "fd00:2::2"),
    }
    by_remote = {str(each.remote): each for each in overlay.tunnels.values()}
    tunnel = by_remote["192.168.2.2"]
    assert (tunnel.encap, tunnel.port, tunnel.mtu) == (Encap.IPIP, 0, 1480)
    assert by_remote["fd00:2::2"].mtu == 1460
    main = Route(
        destination=ip_network("10.244.2.0/24"), link=tunnel.name, source=ip_address("192.168.1.1")
    )
    host = Route(destination=ip_network("192.168.2.2/32"), link=tunnel.name, table=TABLE)
    assert {each for each in overlay.routes if each.link == tunnel.name} == {main, host}
    assert overlay.rules == set(own.pod_cidrs)


def test_a_node_of_the_same_subnet_is_not(own: NodeView, view: Any) -> None:
    near = view(addresses=("192.168.1.2", "fd00:1::2"))
    overlay, problems = compiled(own, near)
    assert (overlay.tunnels, overlay.routes, problems) == ({}, frozenset(), ())
    overlay, _ = compiled(own, near, settings=RoutingSettings(ipv6=True, overlay_type="full"))
    assert len(overlay.tunnels) == 2
    assert destinations(overlay) == {"10.244.2.0/24", "fd00:10:244:2::/64"}


def test_without_overlay_there_is_nothing(own: NodeView, view: Any) -> None:
    off = RoutingSettings(ipv6=True, enable_overlay=False)
    assert compiled(own, view(), settings=off) == (Overlay(), ())


def test_a_disabled_family_has_no_tunnels(own: NodeView, view: Any) -> None:
    overlay, problems = compiled(own, view(), settings=RoutingSettings())
    assert problems == ()
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert overlay.rules == {ip_network("10.244.1.0/24")}


def test_this_node_among_the_others_is_left_out(own: NodeView, view: Any) -> None:
    assert compiled(own, own, view()) == compiled(own, view())


def test_all_prefixes_of_a_node_share_its_tunnel(own: NodeView, view: Any) -> None:
    overlay, _ = compiled(own, view(cidrs=("10.244.2.0/24", "10.244.20.0/24", "10.245.0.0/28")))
    assert len(overlay.tunnels) == 1
    assert destinations(overlay) == {"10.244.2.0/24", "10.244.20.0/24", "10.245.0.0/28"}
    fewer, _ = compiled(own, view(cidrs=("10.244.20.0/24",)))
    assert fewer.tunnels == overlay.tunnels


def test_a_second_address_makes_a_node_near_which_still_sends_by_a_tunnel(view: Any) -> None:
    """The other node knows this one by its first address only, which it cannot see."""
    own = view("node1", ("192.168.1.1", "10.7.0.1"), ("10.244.1.0/24",))
    links = (link_address("192.168.1.1/24"), link_address("10.7.0.1/24", "eth1"))
    other = view("node2", ("10.7.0.2",), ("10.244.2.0/24",))
    overlay, problems = compiled(own, other, settings=RoutingSettings(), links=links)
    assert problems == ()
    (tunnel,) = overlay.tunnels.values()
    assert str(tunnel.local) == "192.168.1.1"
    assert overlay.routes == frozenset()
    there, _ = compiled(
        other, own, settings=RoutingSettings(), links=(link_address("10.7.0.2/24"),)
    )
    assert destinations(there) == {"10.244.1.0/24"}


def test_a_node_that_has_its_address_alone_tunnels_to_all(own: NodeView, view: Any) -> None:
    near = view(addresses=("192.168.1.2",), cidrs=("10.244.2.0/24",))
    overlay, _ = compiled(
        own, near, settings=RoutingSettings(), links=(link_address("192.168.1.1/32"),)
    )
    assert destinations(overlay) == {"10.244.2.0/24"}


@pytest.mark.parametrize(
    ("encap", "port", "mtus"),
    [("ipip", 0, {1480, 1460}), ("fou", 7777, {1468, 1448}), ("vxlan", 7777, {1450, 1430})],
)
def test_encapsulations(own: NodeView, view: Any, encap: str, port: int, mtus: set[int]) -> None:
    settings = RoutingSettings(ipv6=True, overlay_encap=encap, overlay_encap_port=7777)
    overlay, _ = compiled(own, view(), settings=settings)
    assert {each.port for each in overlay.tunnels.values()} == {port}
    assert {each.mtu for each in overlay.tunnels.values()} == mtus
    assert {each.encap for each in overlay.tunnels.values()} == {Encap(encap)}
    assert all(is_own_name(name) for name in overlay.tunnels)


def test_vxlan_has_one_device_for_all_nodes(own: NodeView, view: Any) -> None:
    third = view("node3", ("192.168.3.3", "fd00:3::3"), ("10.244.3.0/24", "fd00:10:244:3::/64"))
    settings = RoutingSettings(ipv6=True, overlay_encap="vxlan")
    overlay, problems = compiled(own, view(), third, settings=settings)
    assert problems == ()
    assert overlay.tunnels.keys() == {"tun-vxlan", "tun-vxlan6"}
    assert {each.remote for each in overlay.tunnels.values()} == {None}
    assert overlay.neighbours == {
        Neighbour("tun-vxlan", ip_address("192.168.2.2")),
        Neighbour("tun-vxlan", ip_address("192.168.3.3")),
        Neighbour("tun-vxlan6", ip_address("fd00:2::2")),
        Neighbour("tun-vxlan6", ip_address("fd00:3::3")),
    }
    gateways = {str(it.destination): str(it.gateway) for it in overlay.routes if it.table == MAIN}
    assert gateways == {
        "10.244.2.0/24": "192.168.2.2",
        "10.244.3.0/24": "192.168.3.3",
        "fd00:10:244:2::/64": "fd00:2::2",
        "fd00:10:244:3::/64": "fd00:3::3",
    }


def test_hardware_addresses_are_local_and_follow_from_the_node() -> None:
    assert mac_of(ip_address("192.168.2.2")) == bytes.fromhex("024bc0a80202")
    six = mac_of(ip_address("fd00:2::2"))
    assert (len(six), six[0] & 0b11) == (6, 0b10)
    assert six == mac_of(ip_address("fd00:0002::2"))
    assert six != mac_of(ip_address("fd00:2::3"))


def test_two_nodes_with_one_hardware_address(
    own: NodeView, view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Neighbour, "mac", property(lambda self: b"\x06same\x00"))
    third = view("node3", ("192.168.3.3",), ("10.244.3.0/24",))
    settings = RoutingSettings(overlay_encap="vxlan")
    overlay, problems = compiled(own, view(), third, settings=settings)
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert [(each.object, each.field) for each in problems] == [("Node node3", "status.addresses")]


# Names.


def test_names_are_those_of_kube_router() -> None:
    """Its recipe: the digits alone, SHA-256, eleven hexadecimal ones."""
    for text, digits in (("10.255.0.1", "1025501"), ("2001:db8::1", "2001db81")):
        address = ip_address(text)
        expected = f"tun-{sha256(digits.encode()).hexdigest()[:11]}"
        assert tunnel_names([address]) == {address: expected}
        assert len(expected) == 15


def test_addresses_of_the_same_digits_have_different_names() -> None:
    alike = [ip_address("21.3.0.4"), ip_address("2.13.0.4"), ip_address("213.0.0.4")]
    others = [ip_address("192.168.2.2"), ip_address("fd00:2::2")]
    names = tunnel_names([*alike, *others])
    assert len(set(names.values())) == 5
    assert all(is_own_name(name) for name in names.values())
    assert tunnel_names([*others, *reversed(alike)]) == names
    assert {each: names[each] for each in others} == tunnel_names(others)
    # Neither keeps the name that the other one would have alone.
    (alone,) = tunnel_names(alike[:1]).values()
    assert alone in tunnel_names([alike[0], alike[2]]).values()
    assert alone not in tunnel_names(alike[:2]).values()


def test_a_name_that_is_taken_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all whole addresses had the same hash."""

    class Digest:
        def __init__(self, text: bytes) -> None:
            self._text = text

        def hexdigest(self) -> str:
            return f"{len(self._text.rstrip(b'/')):x}{self._text.count(b'/'):x}".ljust(64, "0")

    monkeypatch.setattr("kube_router_py.routing.overlay.sha256", Digest)
    names = tunnel_names([IPv4Address("21.3.0.4"), IPv4Address("2.13.0.4")])
    assert len(set(names.values())) == 2


# Bad Nodes.


def test_nodes_without_an_address_or_cidrs(own: NodeView, view: Any) -> None:
    overlay, problems = compiled(
        own, view("node2", ("192.168.2.2",)), view("node3", ("192.168.3.3",), ())
    )
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert len(overlay.tunnels) == 1
    assert [(each.object, each.field) for each in problems] == [("Node node2", "status.addresses")]
    assert "IPv6" in problems[0].reason


@pytest.mark.parametrize(
    ("links", "text"),
    [((), "no link of the node has 192.168.1.1"), (LINKS[1:], "no link of the node has")],
)
def test_this_nodes_address_is_on_no_link(
    own: NodeView, view: Any, links: Sequence[NodeAddress], text: str
) -> None:
    overlay, problems = compiled(own, view(), links=links)
    assert "10.244.2.0/24" not in destinations(overlay)
    assert any(text in each.reason and each.object == "Node node1" for each in problems)


def test_this_node_has_no_address_of_a_family(view: Any) -> None:
    alone = view("node1", ("192.168.1.1",), ("10.244.1.0/24",))
    overlay, problems = compiled(alone, view())
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert [each.object for each in problems] == ["Node node1"]


@pytest.mark.parametrize(
    ("cidr", "text"),
    [
        ("10.244.1.128/25", "overlaps"),
        ("10.0.0.0/8", "overlaps"),
        ("192.168.0.0/16", "addresses of nodes"),
        ("192.168.2.2/32", "addresses of nodes"),
        ("0.0.0.0/0", "overlaps"),
    ],
)
def test_a_cidr_that_would_cut_something_off(
    own: NodeView, view: Any, cidr: str, text: str
) -> None:
    overlay, problems = compiled(own, view(cidrs=(cidr, "10.244.2.0/24")))
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert [(each.object, each.field) for each in problems] == [("Node node2", "spec.podCIDRs")]
    assert text in problems[0].reason


def test_a_cidr_of_two_nodes_goes_to_the_first(own: NodeView, view: Any) -> None:
    third = view("node3", ("192.168.3.3",), ("10.244.2.0/24", "10.244.3.0/24"))
    for order in ((view(), third), (third, view())):
        overlay, problems = compiled(own, *order, settings=RoutingSettings())
        (route,) = (it for it in overlay.routes if str(it.destination) == "10.244.2.0/24")
        assert str(overlay.tunnels[route.link].remote) == "192.168.2.2"
        assert "10.244.3.0/24" in destinations(overlay)
        assert [each.object for each in problems] == ["Node node3"]


def test_an_address_of_two_nodes(own: NodeView, view: Any) -> None:
    twin = view("node3", ("192.168.2.2",), ("10.244.3.0/24",))
    overlay, problems = compiled(own, view(), twin, settings=RoutingSettings())
    assert len(overlay.tunnels) == 1
    assert destinations(overlay) == {"10.244.2.0/24", "10.244.3.0/24"}
    assert [each.object for each in problems] == ["Node node3"]


@pytest.mark.parametrize("address", ["192.168.1.1", "224.0.0.5", "127.0.0.1", "0.0.0.0"])
def test_an_address_that_leads_nowhere(own: NodeView, view: Any, address: str) -> None:
    bad = view("node3", (address,), ("10.244.3.0/24",))
    overlay, problems = compiled(own, view(), bad, settings=RoutingSettings())
    assert destinations(overlay) == {"10.244.2.0/24"}
    assert [each.object for each in problems] == ["Node node3"]


# Links.


def test_the_links_of_a_node(own: NodeView) -> None:
    found = node_links(own, (*LINKS, link_address("10.9.9.9/8", "docker0")), {"eth0": 9000})
    assert found.subnets == {
        ip_address("192.168.1.1"): ip_network("192.168.1.0/24"),
        ip_address("fd00:1::1"): ip_network("fd00:1::/64"),
    }
    assert found.mtu_by_version(own) == {4: 9000, 6: 9000}
    assert NodeLinks().mtu_by_version(own) == {}


# The order of changes, on the fakes.


def test_what_cannot_be_moved_stays_reachable(own: NodeView, view: Any) -> None:
    links = FakeOverlayLinks()
    ports = OverlayPorts(links, FakeOverlayRoutes(links))
    before, _ = compiled(own, view(), settings=RoutingSettings())
    assert apply_overlay(ports, before, "node1") == ()
    (old,) = before.tunnels
    # The node gets another address, to which no tunnel can be made.
    after, _ = compiled(own, view(addresses=("192.168.2.9",)), settings=RoutingSettings())
    (new,) = after.tunnels
    links.refuse.add(new)
    problems = apply_overlay(ports, after, "node1")
    assert {each.object for each in problems} == {"Node node1"}
    assert f"link {new}" in {each.field for each in problems}
    (route,) = (it for it in ports.routes.read()[0] if it.table == MAIN)
    assert route.link == old
    links.refuse.clear()
    assert apply_overlay(ports, after, "node1") == ()
    assert links.read().keys() == {new}
    assert old not in links.read()
    assert remove_overlay(ports, "node1") == ()
    assert links.read() == {}
    assert ports.routes.read() == (frozenset(), frozenset())
