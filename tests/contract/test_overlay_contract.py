"""Tunnels, routes and rules: the same on the fakes, with vxlan here, with the others in the VM."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.overlay_links import NetlinkOverlayLinks
from kube_router_py.kernel.overlay_ports import (
    TABLE,
    VXLAN_LINKS,
    Encap,
    Neighbour,
    Overlay,
    OverlayPorts,
    Route,
    Tunnel,
)
from kube_router_py.kernel.overlay_routes import NetlinkOverlayRoutes
from kube_router_py.routing.overlay_apply import apply_overlay, remove_overlay

NODE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
OTHER = {4: ip_address("198.51.100.2"), 6: ip_address("2001:db8:1::2")}
THIRD = {4: ip_address("198.51.100.3"), 6: ip_address("2001:db8:1::3")}
PODS = {4: ip_network("10.244.2.0/24"), 6: ip_network("fd00:10:2::/64")}
MORE = {4: ip_network("10.244.102.0/24"), 6: ip_network("fd00:10:102::/64")}
OWN = {4: ip_network("10.244.1.0/24"), 6: ip_network("fd00:10:1::/64")}
NAMES = {
    OTHER[4]: "tun-00000000042",
    OTHER[6]: "tun-00000000062",
    THIRD[4]: "tun-00000000043",
    THIRD[6]: "tun-00000000063",
}


def overlay(encap: Encap, *, port: int = 5555, mtu: int = 1400, third: bool = False) -> Overlay:
    """As a node of two subnets has it: two prefixes of one node, and perhaps another node."""
    tunnels: dict[str, Tunnel] = {}
    neighbours: set[Neighbour] = set()
    routes: set[Route] = set()
    for version, local in NODE.items():
        for remote in (OTHER[version], THIRD[version])[: 1 + third]:
            is_vxlan = encap is Encap.VXLAN
            name = VXLAN_LINKS[version] if is_vxlan else NAMES[remote]
            tunnels[name] = Tunnel(
                name=name,
                encap=encap,
                local=local,
                remote=None if is_vxlan else remote,
                port=0 if encap is Encap.IPIP else port,
                mtu=mtu,
            )
            neighbours |= {Neighbour(name, remote)} if is_vxlan else set()
            gateway = remote if is_vxlan else None
            routes.add(Route(destination=ip_network(remote), link=name, table=TABLE))
            for cidr in (PODS[version], MORE[version]) if remote == OTHER[version] else ():
                routes.add(Route(destination=cidr, link=name, gateway=gateway, source=local))
    return Overlay(
        tunnels=tunnels,
        neighbours=frozenset(neighbours),
        routes=frozenset(routes),
        rules=frozenset(OWN.values()),
    )


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


@pytest.fixture(
    params=[
        *(f"fake {encap}" for encap in Encap),
        pytest.param("real vxlan", marks=pytest.mark.netfilter),
        pytest.param("real ipip", marks=pytest.mark.kernel),
        pytest.param("real fou", marks=pytest.mark.kernel),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[OverlayPorts, Encap]]:
    """The adapters of a node with an address of each family, and an encapsulation."""
    world, _, name = request.param.partition(" ")
    if world == "fake":
        yield fake_overlay(), Encap(name)
        return
    with request.getfixturevalue("new_namespace")():
        sh(
            "ip link add eth0 type veth peer name beyond",
            "ip link set eth0 up",
            "ip link set beyond up",
            f"ip addr add {NODE[4]}/24 dev eth0",
            f"ip addr add {NODE[6]}/64 dev eth0 nodad",
            "ip route add default via 192.0.2.254",
            "ip -6 route add default via 2001:db8::fe",
        )
        with closing(OverlayPorts(NetlinkOverlayLinks(), NetlinkOverlayRoutes())) as ports:
            yield ports, Encap(name)


def standing(ports: OverlayPorts) -> tuple[Any, Any]:
    return ports.links.read(), ports.routes.read()


def expected(desired: Overlay) -> tuple[Any, Any]:
    return desired.tunnels, (desired.routes, desired.rules)


def test_what_is_desired_stands_and_stays_as_it_is(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap, third=True)
    assert apply_overlay(ports, desired, "a") == ()
    assert standing(ports) == expected(desired)
    before = ports.writes
    assert apply_overlay(ports, desired, "a") == ()
    assert ports.writes == before
    assert (ports.routes.added, ports.routes.removed) == (len(desired.routes), 0)


def test_a_tunnel_serves_all_prefixes_of_a_node(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap)
    apply_overlay(ports, desired, "a")
    fewer = Overlay(
        tunnels=desired.tunnels,
        neighbours=desired.neighbours,
        routes=frozenset(it for it in desired.routes if it.destination not in MORE.values()),
        rules=desired.rules,
    )
    assert apply_overlay(ports, fewer, "a") == ()
    assert standing(ports) == expected(fewer)
    assert len(fewer.routes) == len(desired.routes) - 2
    assert (ports.routes.added, ports.routes.removed) == (len(desired.routes), 2)


@pytest.mark.parametrize("change", [{"port": 5556}, {"mtu": 1380}, {"third": True}])
def test_parameters_change(place: tuple[OverlayPorts, Encap], change: dict[str, Any]) -> None:
    ports, encap = place
    apply_overlay(ports, overlay(encap), "a")
    desired = overlay(encap, **change)
    assert apply_overlay(ports, desired, "a") == ()
    assert standing(ports) == expected(desired)
    assert apply_overlay(ports, overlay(encap), "a") == ()
    assert standing(ports) == expected(overlay(encap))


def test_everything_of_ours_is_removed(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    apply_overlay(ports, overlay(encap, third=True), "a")
    assert remove_overlay(ports, "a") == ()
    assert standing(ports) == ({}, (frozenset(), frozenset()))


def test_another_address_of_this_node(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap)
    apply_overlay(ports, desired, "a")
    other = {4: ip_address("192.0.2.9"), 6: ip_address("2001:db8::9")}
    if isinstance(ports.links, NetlinkOverlayLinks):
        sh(f"ip addr add {other[4]}/24 dev eth0", f"ip addr add {other[6]}/64 dev eth0 nodad")
    moved = Overlay(
        tunnels={
            name: Tunnel(
                name=name,
                encap=each.encap,
                local=other[each.version],
                remote=each.remote,
                port=each.port,
                mtu=each.mtu,
            )
            for name, each in desired.tunnels.items()
        },
        neighbours=desired.neighbours,
        routes=frozenset(
            Route(
                destination=each.destination,
                link=each.link,
                table=each.table,
                gateway=each.gateway,
                source=other[each.destination.version] if each.source is not None else None,
            )
            for each in desired.routes
        ),
        rules=desired.rules,
    )
    assert apply_overlay(ports, moved, "a") == ()
    assert standing(ports) == expected(moved)


def test_a_route_that_cannot_be_moved_stays(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap)
    apply_overlay(ports, desired, "a")
    moved = frozenset(
        Route(
            destination=each.destination,
            link="tun-0000000dead",
            table=each.table,
            gateway=each.gateway,
            source=each.source,
        )
        if each.destination in MORE.values()
        else each
        for each in desired.routes
    )
    problems = apply_overlay(
        ports,
        Overlay(neighbours=desired.neighbours, routes=moved, rules=desired.rules),
        "a",
    )
    assert {each.field for each in problems} == {f"route {each}" for each in MORE.values()}
    assert standing(ports) == expected(desired)


def test_the_bridge_of_pods(place: tuple[OverlayPorts, Encap]) -> None:
    ports, _ = place
    ports.links.ensure_bridge("kube-bridge", 1450)
    assert ports.links.mtus()["kube-bridge"] == 1450
    before = ports.writes
    ports.links.ensure_bridge("kube-bridge", 1450)
    ports.links.ensure_bridge("kube-bridge", None)
    assert ports.writes == before
    ports.links.ensure_bridge("kube-bridge", 1400)
    assert ports.links.mtus()["kube-bridge"] == 1400


def links_json(name: str) -> Any:
    (found,) = json.loads(sh(f"ip -d -j link show {name}"))
    return found


_VXLAN = pytest.param("real vxlan", marks=pytest.mark.netfilter)
_IPIP = pytest.param("real ipip", marks=pytest.mark.kernel)
_FOU = pytest.param("real fou", marks=pytest.mark.kernel)
# FoU are ipip's devices: what does not look at the encapsulation runs on two kinds.
REAL = pytest.mark.parametrize("place", [_VXLAN, _IPIP], indirect=True)
REAL_ENCAPS = pytest.mark.parametrize("place", [_VXLAN, _IPIP, _FOU], indirect=True)


@REAL_ENCAPS
def test_as_iproute2_sees_it(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    apply_overlay(ports, overlay(encap), "a")
    for version in (4, 6):
        name = VXLAN_LINKS[version] if encap is Encap.VXLAN else NAMES[OTHER[version]]
        link = links_json(name)
        assert link["mtu"] == 1400
        assert link["ifalias"] == "kube-router-py"
        assert "UP" in link["flags"]
        info = link["linkinfo"]
        if encap is Encap.VXLAN:
            assert info["info_kind"] == "vxlan"
            assert info["info_data"]["id"] == 77
            assert info["info_data"]["port"] == 5555
        else:
            assert info["info_kind"] == ("ipip" if version == 4 else "ip6tnl")
        option = "" if version == 4 else "-6"
        (route,) = json.loads(sh(f"ip {option} -j route show {PODS[version]}"))
        assert route["dev"] == name
        assert route["protocol"] == "75"
        assert route.get("metric", 0) == (0 if version == 4 else 1)
        assert route["prefsrc"] == str(NODE[version])
        found = sh(f"ip {option} route show table 77")
        assert f"{OTHER[version]} dev {name} proto 75" in found
        assert f"32763:\tfrom {OWN[version]} lookup 77 proto 75" in sh(f"ip -N {option} rule")
        # What has an address of a pod goes to the other node's address through the tunnel.
        source = str(OWN[version][5])
        sh(f"ip addr add {source} dev lo")
        assert f"dev {name}" in sh(f"ip {option} route get {OTHER[version]} from {source}")
        assert "dev eth0" in sh(f"ip {option} route get {OTHER[version]}")


@REAL
def test_what_is_foreign_stays(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    sh(
        "ip link add tun-foreign type vxlan id 99 dstport 4789 dev eth0",
        "ip link add tun-0123456789a type veth peer name other",
        "ip link set tun-0123456789a up",
        f"ip route add {PODS[4]} via 192.0.2.7 proto static",
        f"ip -6 route add {PODS[6]} via 2001:db8::7 proto static metric 1",
        "ip route add 10.99.0.0/16 via 192.0.2.7 proto 17",
        "ip route add 10.98.0.0/16 via 192.0.2.7 table 77",
        "ip rule add from 10.98.0.0/16 lookup 77 priority 32763",
        "ip rule add fwmark 0x9 lookup 77 priority 32763 protocol 75",
    )
    desired = overlay(encap)
    problems = apply_overlay(ports, desired, "a")
    assert {each.field for each in problems} == {f"route {PODS[4]}", f"route {PODS[6]}"}
    assert all("somebody else" in each.reason for each in problems)
    own, _ = ports.routes.read()
    assert {each.destination for each in own} >= {MORE[4], MORE[6]}
    assert remove_overlay(ports, "a") == ()
    links = sh("ip link")
    assert "tun-foreign" in links
    assert "tun-0123456789a" in links
    routes = sh("ip route", "ip -6 route", "ip route show table 77", "ip -N rule")
    for kept in (
        f"{PODS[4]} via 192.0.2.7 dev eth0 proto static",
        f"{PODS[6]} via 2001:db8::7 dev eth0 proto static",
        "10.99.0.0/16 via 192.0.2.7 dev eth0 proto 17",
        "10.98.0.0/16 via 192.0.2.7 dev eth0",
        "from 10.98.0.0/16 lookup 77",
        "fwmark 0x9 lookup 77",
    ):
        assert kept in routes
    assert "proto 75" not in sh("ip route", "ip -6 route", "ip -6 rule")


@REAL
def test_a_link_of_others_with_a_name_of_ours(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap)
    name = min(desired.tunnels)
    sh(f"ip link add {name} type veth peer name other")
    problems = apply_overlay(ports, desired, "a")
    assert f"link {name}" in {each.field for each in problems}
    assert any("veth" in each.reason for each in problems)
    assert links_json(name)["linkinfo"]["info_kind"] == "veth"
    (other,) = desired.tunnels.keys() - {name}
    assert ports.links.read()[other] == desired.tunnels[other]


@REAL
def test_what_kube_router_left(place: tuple[OverlayPorts, Encap]) -> None:
    """Its routes make room for ours; those to other pods go when asked for, and only those."""
    ports, encap = place
    other = ip_network("10.244.3.0/24")
    sh(
        f"ip route add {PODS[4]} via 192.0.2.7 proto 17",
        f"ip -6 route add {PODS[6]} via 2001:db8::7 proto 17",
        f"ip route add {other} via 192.0.2.7 proto 17",
        "ip route add 10.99.0.0/16 via 192.0.2.7 proto 17",
    )
    assert apply_overlay(ports, overlay(encap), "a") == ()
    (route,) = json.loads(sh(f"ip -j route show {PODS[4]}"))
    assert route["protocol"] == "75"
    assert ports.routes.remove_left_by_kube_router([other, *PODS.values()]) == 2
    left = sh("ip route", "ip -6 route")
    assert str(other) not in left
    assert "10.99.0.0/16" in left
    assert standing(ports) == expected(overlay(encap))


@REAL_ENCAPS
def test_a_foreign_flush_is_repaired(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    desired = overlay(encap, third=True)
    apply_overlay(ports, desired, "a")
    name = max(desired.tunnels)
    sh(
        "ip route flush proto 75",
        "ip route flush table 77",
        f"ip link set {name} down",
        f"ip link set {min(desired.tunnels)} mtu 1300",
        "ip rule del priority 32763",
    )
    assert standing(ports) != expected(desired)
    assert apply_overlay(ports, desired, "a") == ()
    assert standing(ports) == expected(desired)
    assert "UP" in links_json(name)["flags"]


@REAL
def test_strict_reverse_path_filtering_ends_at_tunnels(place: tuple[OverlayPorts, Encap]) -> None:
    """What another node itself sends comes by the tunnel from an address that is not behind it."""
    ports, encap = place
    with open("/proc/sys/net/ipv4/conf/all/rp_filter", "w") as file:
        file.write("1")
    desired = overlay(encap)
    apply_overlay(ports, desired, "a")
    name = next(it.name for it in desired.tunnels.values() if it.version == 4)
    with open(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") as file:
        assert file.read().strip() == "2"


@pytest.mark.netfilter
@pytest.mark.parametrize("place", ["real vxlan"], indirect=True)
def test_neighbours_behind_vxlan_follow(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    apply_overlay(ports, overlay(encap, third=True), "a")
    for version, name in VXLAN_LINKS.items():
        found = sh(f"bridge fdb show dev {name}", f"ip neigh show dev {name} nud permanent")
        for each in (OTHER[version], THIRD[version]):
            assert found.count(f"{each} ") == 2
        sh(f"ip neigh flush dev {name} nud permanent")
        mac = ":".join(f"{byte:02x}" for byte in Neighbour(name, OTHER[version]).mac)
        sh(f"bridge fdb del {mac} dev {name} dst {OTHER[version]}")
        sh(f"bridge fdb append {mac} dev {name} dst {THIRD[version]}")
    assert apply_overlay(ports, overlay(encap), "a") == ()
    for version, name in VXLAN_LINKS.items():
        found = sh(f"bridge fdb show dev {name}", f"ip neigh show dev {name} nud permanent")
        assert found.count(f"{OTHER[version]} ") == 2
        assert f"{THIRD[version]} " not in found


@REAL
def test_a_family_that_is_off_by_default_is_switched_on(
    place: tuple[OverlayPorts, Encap],
) -> None:
    ports, encap = place
    with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as file:
        file.write("1")
    desired = overlay(encap)
    assert apply_overlay(ports, desired, "a") == ()
    assert standing(ports) == expected(desired)


@pytest.mark.kernel
@pytest.mark.parametrize("place", ["real fou"], indirect=True)
def test_ports_are_closed_when_the_last_tunnel_goes(place: tuple[OverlayPorts, Encap]) -> None:
    """After a restart of the agent, too; those of others stay open."""
    ports, encap = place
    sh("ip fou add port 7777 gue")
    apply_overlay(ports, overlay(encap), "a")
    assert open_ports() == {"7777", "5555", "5555 -6"}
    with closing(OverlayPorts(NetlinkOverlayLinks(), NetlinkOverlayRoutes())) as restarted:
        assert apply_overlay(restarted, overlay(encap, port=5556), "a") == ()
        assert open_ports() == {"7777", "5556", "5556 -6"}
        assert apply_overlay(restarted, overlay(Encap.IPIP), "a") == ()
        assert standing(restarted) == expected(overlay(Encap.IPIP))
        assert open_ports() == {"7777"}


def open_ports() -> set[str]:
    """Where GUE is received, of both families, as "5555" and "5555 -6"."""
    words = (line.split() for line in sh("ip fou show").splitlines())
    return {" ".join(each[1:2] + each[3:]) for each in words if each}


@pytest.mark.kernel
@pytest.mark.parametrize("place", ["real ipip"], indirect=True)
def test_tunnels_of_kube_router_are_adopted(place: tuple[OverlayPorts, Encap]) -> None:
    """One that is the same stays the same device; one of no node any more goes."""
    ports, encap = place
    desired = overlay(encap)
    name = NAMES[OTHER[4]]
    sh(
        f"ip link add {name} type ipip local {NODE[4]} remote {OTHER[4]}",
        f"ip link set {name} up mtu 1480",
        f"ip route add {PODS[4]} dev {name} src {NODE[4]} proto 17",
        f"ip link add tun-00000000099 type ipip local {NODE[4]} remote 198.51.100.99",
        f"ip link add tunnel9 type ipip local {NODE[4]} remote 198.51.100.9",
    )
    index = links_json(name)["ifindex"]
    assert apply_overlay(ports, desired, "a") == ()
    assert standing(ports) == expected(desired)
    assert links_json(name)["ifindex"] == index
    assert "tunnel9" in sh("ip link")


@pytest.mark.kernel
@pytest.mark.parametrize("place", ["real ipip"], indirect=True)
def test_a_tunnel_gets_another_name(place: tuple[OverlayPorts, Encap]) -> None:
    """As when an address comes up whose name would be the same: the kernel has no two alike."""
    ports, encap = place
    desired = overlay(encap)
    apply_overlay(ports, desired, "a")
    new = "tun-0000000abcd"
    old = NAMES[OTHER[4]]
    renamed = Overlay(
        tunnels={
            new if name == old else name: Tunnel(
                name=new if name == old else name,
                encap=each.encap,
                local=each.local,
                remote=each.remote,
                mtu=each.mtu,
            )
            for name, each in desired.tunnels.items()
        },
        routes=frozenset(
            Route(
                destination=each.destination,
                link=new if each.link == old else each.link,
                table=each.table,
                source=each.source,
            )
            for each in desired.routes
        ),
        rules=desired.rules,
    )
    assert apply_overlay(ports, renamed, "a") == ()
    assert standing(ports) == expected(renamed)
    sh(f"ip link add tunnel9 type ipip local {NODE[4]} remote {THIRD[4]}")
    problems = apply_overlay(ports, overlay(encap, third=True), "a")
    assert any("same endpoints" in each.reason for each in problems)
    assert "tunnel9" in sh("ip link")


@pytest.mark.kernel
@pytest.mark.parametrize("place", ["real ipip"], indirect=True)
def test_cleanup_leaves_the_tunnels_of_a_kube_router(place: tuple[OverlayPorts, Encap]) -> None:
    ports, encap = place
    name = NAMES[OTHER[4]]
    sh(
        f"ip link add {name} type ipip local {NODE[4]} remote {OTHER[4]}",
        f"ip link set {name} up mtu 1480",
        f"ip route add {PODS[4]} dev {name} src {NODE[4]} proto 17",
    )
    assert remove_overlay(ports, "a") == ()
    assert "UP" in links_json(name)["flags"]
    assert str(PODS[4]) in sh("ip route")
    # Taken over, it is ours.
    apply_overlay(ports, overlay(encap), "a")
    assert remove_overlay(ports, "a") == ()
    assert ports.links.read() == {}
