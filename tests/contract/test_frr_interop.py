"""What other BGP programs make of our sessions and routes, and FRR of theirs: GoBGP and BIRD.

    node 10.99.0.1, fd00:99::1, AS 64512 ---+--- outer  (10)  AS 65000
                                            +--- inner  (11)  AS 64512, outside the cluster
                                            +--- node2  (12)  AS 64512, another node

A peer has 10.99.0.N and fd00:99::N. The node runs what the agent gives to FRR for its Nodes,
Services and flags; what a peer heard is what its own command line says.
"""

import base64
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.ports_frr import Boot, SessionState
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.speaker import Speaker, Spoken

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

NODE = ("10.99.0.1", "fd00:99::1")
OUTER, INNER, NODE2 = ((f"10.99.0.{n}", f"fd00:99::{n}") for n in (10, 11, 12))
OUTER_AS, OWN_AS = 65000, 64512
PASSWORD = "k8s!md5#1"
PODS = {"10.244.1.0/24", "fd00:244:1::/64"}
PODS2 = {"10.244.2.0/24", "fd00:244:2::/64"}
WEB = {"10.96.0.10/32", "fd00:96::10/128"}
PLAIN = {"10.96.0.11/32", "fd00:96::11/128"}
# Of no router may the node learn a way to all, or to Services; nor from another node to anything.
DEFAULTS = {"0.0.0.0/0", "::/0"}
REFUSED = {*DEFAULTS, *PLAIN, "10.96.7.0/24", "fd00:96::7:0/112"}
FROM_OUTER = {"198.18.0.0/16", "2001:db8:10::/48"}
FROM_INNER = {"198.19.0.0/16", "2001:db8:11::/48"}

OWN_COMMUNITIES = {"64512:100", "65000:100", "64512:1:2"}
NODE_SAYS = {
    # A pair, 65000:100 as one number, a large one.
    "node.bgp.communities": "64512:100,4259840100,64512:1:2",
    "path-prepend.as": "64999",
    "path-prepend.repeat-n": "2",
}
WEB_SAYS = {
    "service.bgp.communities": "no-export,65000:7,65000:8:9",
    "service.bgp.local-preference": "250",
}
WEB_COMMUNITIES = {*OWN_COMMUNITIES, "65535:65281", "65000:7", "65000:8:9"}

SETTINGS = RoutingSettings(
    ipv6=True,
    has_proxy=False,
    advertise_cluster_ip=True,
    cluster_ranges=(ip_network("10.96.0.0/12"), ip_network("fd00:96::/108")),
)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture(scope="module")
def peers(beside: Callable[[str], ModuleType]) -> Any:
    return beside("interop_peers")


def _named(annotations: dict[str, str]) -> dict[str, str]:
    return {f"kube-router.io/{key}": text for key, text in annotations.items()}


def node(number: int, annotations: dict[str, str] | None = None) -> Node:
    own = NODE if number == 1 else NODE2
    return msgspec.convert(
        {
            "metadata": {"name": f"node{number}", "annotations": _named(annotations or {})},
            "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:244:{number}::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": each} for each in own]},
        },
        Node,
    )


def service(name: str, last: int, annotations: dict[str, str] | None = None) -> Service:
    return msgspec.convert(
        {
            "metadata": {
                "name": name,
                "namespace": "default",
                "annotations": _named(annotations or {}),
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIPs": [f"10.96.0.{last}", f"fd00:96::{last}"],
                "ports": [{"port": 80}],
            },
        },
        Service,
    )


def router(address: str, asn: int | str, password: str = PASSWORD, more: str = "") -> str:
    """An item of the annotation ``peers``."""
    encoded = base64.b64encode(password.encode()).decode()
    where = "listenrange" if "/" in address else "remoteip"
    return f"{{{where}: '{address}', remoteasn: {asn}, password: {encoded}{more}}}"


RESTARTS = ", gracefulrestart: true"
# Not so fast that a machine busy with other things loses a session.
BFD_TIMES = "detection_multiplier: 5, desired_min_tx_interval: 500, required_min_rx_interval: 500"


class World:
    """A node with its FRR, and peers on the same network."""

    def __init__(self, lab: Any, stack: ExitStack, directory: Path) -> None:
        self._lab, self._stack, self._directory = lab, stack, directory
        self.box = self._box("node")
        self.box.run(
            lab.sh,
            "ip link add net type bridge",
            "ip link set net up",
            f"ip addr add {NODE[0]}/24 dev net",
            f"ip addr add {NODE[1]}/64 dev net nodad",
        )
        self.layout = stack.enter_context(lab.run_directory())
        self.down = threading.Event()
        self.frr = ManagedFrr(self.layout, self.down.set)
        stack.callback(self.box.run, self.frr.close)
        self._vty = VtyClient(self.layout.path("bgpd", "vty"), 60.0)
        stack.callback(self._vty.close)
        # The ways to a peer; FRR prefers its link-local address.
        self.gateways: dict[tuple[str, str], set[str]] = {}
        self.cache = Cache((Node, Service, EndpointSlice))
        passwords = PasswordSources(SETTINGS, "node1")
        self._speaker = Speaker(self.cache, SETTINGS, "node1", self.frr, passwords)

    def _box(self, name: str) -> Any:
        box = self._stack.enter_context(closing(self._lab.Box(name)))
        # Link-local addresses can be used at once, as FRR wants it.
        setting = Path("/proc/sys/net/ipv6/conf/default/accept_dad")
        box.run(setting.write_text, "0")
        return box

    def plug(self, name: str, own: tuple[str, str]) -> Any:
        """A box on the same network."""
        box = self._box(name)
        self.box.run(
            self._lab.sh,
            f"ip link add to-{name} type veth peer name eth0 netns {box.path}",
            f"ip link set to-{name} master net up",
        )
        box.run(
            self._lab.sh,
            "ip link set eth0 up",
            f"ip addr add {own[0]}/24 dev eth0",
            f"ip addr add {own[1]}/64 dev eth0 nodad",
        )
        for each, link in ((box, "eth0"), (self.box, "net")):
            self._lab.until(
                lambda each=each, link=link: self._link_local(each, link), "an own address"
            )
        self.gateways[own] = {*own, *self._link_local(box, "eth0")}
        return box

    def peer(
        self,
        kind: Any,
        name: str,
        asn: int,
        own: tuple[str, str],
        *links: Any,
        text: str = "",
    ) -> Any:
        """A peer that is not started yet."""
        box = self.plug(name, own)
        made = kind(box, self._directory / name, asn, own, links, text)
        return self._stack.enter_context(closing(made))

    def _link_local(self, box: Any, link: str) -> list[str]:
        shown = box.run(self._lab.sh, f"ip -6 -o addr show dev {link} scope link -tentative")
        return re.findall(r" inet6 ([^/]+)/", shown)

    def put(self, *objects: Node | Service) -> Spoken:
        """Objects come or change, and FRR is told."""
        for each in objects:
            self.cache.put(type(each), each)
            if isinstance(each, Node):
                self._speaker.follow_node(each.metadata.name)
            else:
                self._speaker.follow_service(each.metadata.key)
        return self.settle()

    def delete(self, key: str) -> Spoken:
        """A Service goes."""
        self.cache.delete(Service, key)
        self._speaker.follow_service(key)
        return self.settle()

    def settle(self) -> Spoken:
        local = tuple(map(ip_address, NODE))
        found: Spoken = self.box.run(
            lambda: self._speaker.settle(full=False, local=local, now_s=0.0)
        )
        assert found.problems == ()
        assert found.is_settled
        return found

    def sessions(self) -> tuple[SessionState, ...]:
        found: tuple[SessionState, ...] = self.box.run(self.frr.summary).sessions
        return found

    def bfd(self) -> dict[str, str]:
        """States of BFD by neighbor, as FRR sees them."""
        found = self.box.run(self.frr.summary).bfd
        return {each.neighbor: each.state for each in found}

    def await_sessions(self, *peers: Any) -> None:
        """Until all are up, as either side sees it."""
        self._lab.until(
            lambda: all(each.is_established() for each in peers), "the peers call it established"
        )
        self._lab.until(lambda: all(each.is_established for each in self.sessions()), "so does FRR")

    def await_heard(self, peer: Any, expected: set[str]) -> dict[str, Any]:
        """What a peer heard, once it is exactly these prefixes."""
        found: dict[str, Any] = {}

        def is_heard() -> bool:
            found.clear()
            found.update(peer.heard())
            return set(found) == expected

        try:
            self._lab.until(is_heard, "it is heard")
        except AssertionError as error:
            wrong = f"heard {sorted(found)}, not {sorted(expected)}"
            raise AssertionError(f"{wrong}: {error}") from error
        return found

    def learned(self) -> set[str]:
        """What FRR has taken from peers."""
        found: set[str] = set()
        for version in (4, 6):
            text = self._vty.show(f"show bgp ipv{version} unicast json").text
            for prefix, paths in msgspec.json.decode(text or "{}").get("routes", {}).items():
                if any(each["peerId"] not in ("(unspec)", "0.0.0.0", "::") for each in paths):
                    found.add(prefix)
        return found

    def routes(self) -> dict[str, str]:
        """What FRR has put into the kernel, with the gateways."""
        lines = self.box.run(
            self._lab.sh, "ip -4 route show proto bgp", "ip -6 route show proto bgp"
        ).splitlines()
        words = [line.split() for line in lines]
        return {each[0]: each[each.index("via") + 1] for each in words}


@pytest.fixture
def world(lab: Any, tmp_path: Path) -> Iterator[World]:
    lab.require()
    with ExitStack() as stack:
        yield World(lab, stack, tmp_path)


@pytest.fixture(params=["gobgp", "bird"])
def kind(request: pytest.FixtureRequest, peers: Any) -> Any:
    """A program to be the peers."""
    return peers.KINDS[request.param]


def test_both_sides_hear_what_they_may_of_both_families(
    world: World, lab: Any, peers: Any, kind: Any
) -> None:
    def link(own: str, **more: Any) -> Any:
        side = NODE[":" in own]
        return peers.Link(side, own, OWN_AS, **more)

    outer = world.peer(kind, "outer", OUTER_AS, OUTER, link(OUTER[0], password=PASSWORD))
    inner = world.peer(kind, "inner", OWN_AS, INNER, link(INNER[0], password=PASSWORD))
    # Nodes have a session for each family.
    node2 = world.peer(
        kind,
        "node2",
        OWN_AS,
        NODE2,
        link(NODE2[0], versions=(4,)),
        link(NODE2[1], versions=(6,)),
    )
    own = {outer: FROM_OUTER, inner: FROM_INNER, node2: PODS2}
    for each, prefixes in own.items():
        each.start(lab.until)
        for prefix in sorted(prefixes | REFUSED):
            each.announce(prefix)
    named = ", ".join((router(OUTER[0], OUTER_AS), router(INNER[0], "internal")))
    world.put(
        node(1, {"peers": f"[{named}]", **NODE_SAYS}),
        node(2),
        service("web", 10, WEB_SAYS),
        service("plain", 11),
    )
    world.await_sessions(*own)
    assert {(each.neighbor, each.version) for each in world.sessions()} == {
        *((address, version) for address in (OUTER[0], INNER[0]) for version in (4, 6)),
        (NODE2[0], 4),
        (NODE2[1], 6),
    }

    # What they hear.
    for peer, path in ((outer, (64512, 64999, 64999)), (inner, ())):
        heard = world.await_heard(peer, PODS | WEB | PLAIN)
        for prefix, route in heard.items():
            assert route.path == path
            assert route.next_hop == NODE[":" in prefix]
            expected = WEB_COMMUNITIES if prefix in WEB else OWN_COMMUNITIES
            assert route.communities == expected
            # Between ASes there is no such thing; BIRD notes its own.
            preferred = 250 if prefix in WEB and peer is inner else 100
            assert route.preference == preferred or (peer is outer and route.preference is None)
    for prefix, route in world.await_heard(node2, PODS).items():
        assert route == ((), frozenset(), 100, NODE[":" in prefix])

    # What we take of theirs.
    wanted = FROM_OUTER | FROM_INNER | PODS2
    lab.until(lambda: world.learned() >= wanted, "what may be learned is")
    lab.until(lambda: set(world.routes()) >= wanted, "the kernel has routes")
    for each, prefixes in own.items():
        assert each.sent() >= prefixes | REFUSED
    # What comes behind all that was refused has arrived.
    for each, number in ((outer, 20), (inner, 21)):
        for prefix in (f"198.51.{number}.0/24", f"2001:db8:{number}::/48"):
            each.announce(prefix)
            wanted.add(prefix)
    lab.until(lambda: world.learned() >= wanted, "what comes later is learned, too")
    lab.until(lambda: set(world.routes()) >= wanted, "the kernel has routes to it")
    assert world.learned() == wanted
    routes = world.routes()
    assert set(routes) == wanted
    for peer_addresses, prefixes in ((OUTER, FROM_OUTER), (INNER, FROM_INNER), (NODE2, PODS2)):
        assert {routes[each] for each in prefixes} <= world.gateways[peer_addresses]

    # A Service goes, another one turns ordinary; nothing else changes.
    before = world.sessions()
    world.delete("default/plain")
    world.put(service("web", 10))
    for peer in (outer, inner):
        world.await_heard(peer, PODS | WEB)
        lab.until(
            lambda peer=peer: (
                {each.communities for each in peer.heard().values()} == {frozenset(OWN_COMMUNITIES)}
            ),
            "it is marked as all the others are",
        )
    lab.until(
        lambda: {each.preference for each in inner.heard().values()} == {100}, "and preferred"
    )
    assert [each.dropped for each in world.sessions()] == [0 for _ in before]


def test_a_router_of_both_families_has_two_sessions(
    world: World, lab: Any, peers: Any, kind: Any
) -> None:
    links = [
        peers.Link(NODE[n], OUTER[n], OWN_AS, versions=(4 + 2 * n,), password=PASSWORD + str(n))
        for n in (0, 1)
    ]
    outer = world.peer(kind, "outer", OUTER_AS, OUTER, *links)
    outer.start(lab.until)
    for prefix in sorted(FROM_OUTER):
        outer.announce(prefix)
    # The one over IPv6 has another password at first.
    named = [router(OUTER[n], OUTER_AS, PASSWORD + str(n)) for n in (0, 1)]
    wrong = [named[0], router(OUTER[1], OUTER_AS, PASSWORD)]
    world.put(node(1, {"peers": f"[{', '.join(wrong)}]"}), service("web", 10))

    def established() -> dict[str, bool]:
        return {each.neighbor: each.is_established for each in world.sessions()}

    lab.until(lambda: established().get(OUTER[0]), "the one over IPv4 is up")
    world.await_heard(outer, {each for each in PODS | WEB if ":" not in each})

    def refused() -> int:
        own: int = world.box.run(peers.tcp_counter, "TCPMD5Failure")
        return own + int(outer.counted("TCPMD5Failure"))

    before = refused()
    lab.until(lambda: refused() > before, "the kernel refuses segments")
    assert established() == {OUTER[0]: True, OUTER[1]: False}
    assert not outer.is_established()
    lab.until(
        lambda: world.learned() == {each for each in FROM_OUTER if ":" not in each},
        "what is announced over IPv4 is learned",
    )

    world.put(node(1, {"peers": f"[{', '.join(named)}]"}))
    world.await_sessions(outer)
    assert {(each.neighbor, each.version) for each in world.sessions()} == {
        (OUTER[0], 4),
        (OUTER[1], 6),
    }
    heard = world.await_heard(outer, PODS | WEB)
    assert all(route.next_hop == NODE[":" in prefix] for prefix, route in heard.items())
    lab.until(lambda: set(world.routes()) == FROM_OUTER, "the kernel has routes")
    assert set(world.routes().values()) <= world.gateways[OUTER]


def test_it_keeps_the_routes_of_a_bgpd_that_is_killed(
    world: World, lab: Any, peers: Any, kind: Any
) -> None:
    link = peers.Link(NODE[0], OUTER[0], OWN_AS, password=PASSWORD)
    outer = world.peer(kind, "outer", OUTER_AS, OUTER, link)
    outer.start(lab.until)
    named = router(OUTER[0], OUTER_AS, more=RESTARTS)
    world.put(node(1, {"peers": f"[{named}]"}), service("web", 10))
    world.await_sessions(outer)
    world.await_heard(outer, PODS | WEB)
    assert outer.restarts() == [peers.Restart(90, frozenset((4, 6)))]
    assert outer.stale() == set()

    os.kill(lab.pid_of(world.layout, "bgpd"), signal.SIGKILL)
    assert world.down.wait(lab.DEADLINE_S)
    lab.until(lambda: not lab.alive(world.layout), "all daemons are ended")
    lab.until(lambda: not outer.is_established(), "the peer knows")
    lab.until(lambda: outer.stale() == PODS | WEB, "the peer bears with what it heard")
    # FRR tries only every 10 s.
    lab.until(outer.is_open, "the peer takes connections again")

    world.settle()
    world.await_sessions(outer)
    lab.until(lambda: outer.stale() == set(), "it is heard again")
    assert set(outer.heard()) == PODS | WEB


def test_neighbors_may_come_by_themselves(world: World, lab: Any, peers: Any, kind: Any) -> None:
    """Two of them, of which one has the wrong password."""
    named = router("10.99.0.0/24", OUTER_AS)
    world.put(node(1, {"peers": f"[{named}]"}), service("web", 10))
    good, bad = (
        world.peer(
            kind, name, OUTER_AS, own, peers.Link(NODE[0], own[0], OWN_AS, password=password)
        )
        for name, own, password in (("good", OUTER, PASSWORD), ("bad", INNER, "other"))
    )
    for each in (bad, good):
        each.start(lab.until)
    for prefix in sorted(FROM_OUTER | DEFAULTS):
        good.announce(prefix)
    world.await_sessions(good)
    world.await_heard(good, PODS | WEB)
    lab.until(lambda: set(world.routes()) == FROM_OUTER, "the kernel has routes")
    lab.until(
        lambda: world.box.run(peers.tcp_counter, "TCPMD5Failure") > 0, "the other one is refused"
    )
    assert not bad.is_established()
    assert {each.neighbor for each in world.sessions() if each.is_established} == {OUTER[0]}


# What our side says, and how far away BIRD takes us to be (0: direct). With GTSM, FRR does BFD as
# over several hops (RFC 5883, port 4784), also on its own link. Over several hops it drops BFD that
# may have come further than ``multihop``, and BIRD's has a TTL of 64.
@pytest.mark.parametrize(
    ("more", "hops"),
    [("", 0), (", gtsm: true", 1), (", multihop: 255", 2)],
    ids=["direct", "gtsm", "multihop"],
)
def test_bfd_with_bird(world: World, lab: Any, peers: Any, more: str, hops: int) -> None:
    link = peers.Link(
        NODE[0],
        OUTER[0],
        OWN_AS,
        password=PASSWORD,
        hops=hops,
        has_gtsm="gtsm" in more,
        bfd="on",
        has_restart=False,
    )
    outer = world.peer(peers.KINDS["bird"], "outer", OUTER_AS, OUTER, link)
    outer.start(lab.until)
    named = router(OUTER[0], OUTER_AS, more=f"{more}, bfd: {{enabled: true, {BFD_TIMES}}}")
    world.put(node(1, {"peers": f"[{named}]"}), service("web", 10))
    world.await_sessions(outer)
    world.await_heard(outer, PODS | WEB)
    lab.until(lambda: " Up " in outer.ask("show", "bfd", "sessions"), "BIRD sees BFD up")
    lab.until(lambda: world.bfd() == {OUTER[0]: "up"}, "FRR sees BFD up")
    if hops:
        return

    # Nothing comes through any more, while the link stays up. By the hold time, 90 s, neither
    # side would know yet.
    outer.box.run(lab.sh, "iptables -A INPUT -i eth0 -j DROP", "iptables -A OUTPUT -o eth0 -j DROP")
    lab.until(lambda: not outer.is_established(), "BIRD knows", 30.0)
    lab.until(lambda: not any(each.is_established for each in world.sessions()), "FRR knows", 30.0)
    assert "BFD session down" in outer.protocol(link)


def test_ttl_security_with_bird(world: World, lab: Any, peers: Any) -> None:
    near, far = (
        peers.Link(NODE[0], own[0], OWN_AS, password=PASSWORD, has_gtsm=has_gtsm)
        # What the other one sends may have come from afar.
        for own, has_gtsm in ((OUTER, True), (INNER, False))
    )
    outer = world.peer(peers.KINDS["bird"], "outer", OUTER_AS, OUTER, near)
    inner = world.peer(peers.KINDS["bird"], "inner", OUTER_AS, INNER, far)
    for each in (outer, inner):
        each.start(lab.until)
    named = [router(own[0], OUTER_AS, more=", gtsm: true") for own in (OUTER, INNER)]
    world.put(node(1, {"peers": f"[{', '.join(named)}]"}), service("web", 10))
    lab.until(outer.is_established, "the session is up")
    world.await_heard(outer, PODS | WEB)
    lab.until(
        lambda: world.box.run(peers.tcp_counter, "TCPMinTTLDrop") > 1, "what is far is refused"
    )
    # Of a session that it has accepted, FRR has heard the first word before it looks at the TTL.
    assert {each.neighbor for each in world.sessions() if each.is_established} == {OUTER[0]}
    assert inner.heard() == {}


def test_bird_may_be_told_to_keep_routes_in_spite_of_bfd(
    world: World, lab: Any, peers: Any
) -> None:
    """With bgpd our bfdd goes, and comes back after BIRD has noticed."""
    link = peers.Link(NODE[0], OUTER[0], OWN_AS, password=PASSWORD, bfd="graceful")
    outer = world.peer(peers.KINDS["bird"], "outer", OUTER_AS, OUTER, link)
    outer.start(lab.until)
    more = f"{RESTARTS}, bfd: {{enabled: true, {BFD_TIMES}}}"
    named = router(OUTER[0], OUTER_AS, more=more)
    world.put(node(1, {"peers": f"[{named}]"}), service("web", 10))
    lab.until(lambda: world.bfd() == {OUTER[0]: "up"}, "FRR sees BFD up")
    lab.until(lambda: " Up " in outer.ask("show", "bfd", "sessions"), "BIRD sees BFD up")
    world.await_sessions(outer)
    world.await_heard(outer, PODS | WEB)
    with closing(lab.RouteMonitor(outer.box)) as monitor:
        os.kill(lab.pid_of(world.layout, "bgpd"), signal.SIGKILL)
        assert world.down.wait(lab.DEADLINE_S)
        lab.until(lambda: not lab.alive(world.layout), "all daemons are ended")
        lab.until(lambda: "Down" in outer.ask("show", "bfd", "sessions"), "BIRD has noticed by BFD")
        lab.until(lambda: outer.stale() == PODS | WEB, "BIRD bears with what it heard")
        world.settle()
        lab.until(
            lambda: set(outer.heard()) == PODS | WEB and outer.stale() == set(), "it is heard again"
        )
        assert monitor.deleted() == []


# --- the documentation ----------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs/bgp-interoperability.md"
ADDRESSES = {
    "192.0.2.254": OUTER[0],
    "192.0.2.1": NODE[0],
    "2001:db8::fe": OUTER[1],
    "2001:db8::1": NODE[1],
}


def examples(section: str) -> list[str]:
    """The blocks of a section, with our addresses."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [_here(each) for each in found]


def _here(text: str) -> str:
    for there, here in ADDRESSES.items():
        text = text.replace(there, here)
    return text


@pytest.mark.parametrize(("section", "name"), [("GoBGP", "gobgp"), ("BIRD", "bird")])
def test_the_documented_example_works(
    world: World, lab: Any, peers: Any, section: str, name: str
) -> None:
    ours, theirs = examples(section)
    links = [peers.Link(NODE[n], OUTER[n], OWN_AS, versions=(4 + 2 * n,)) for n in (0, 1)]
    outer = world.peer(peers.KINDS[name], "outer", OUTER_AS, OUTER, *links, text=theirs)
    outer.start(lab.until)
    world.put(node(1, {"peers": ours}), service("web", 10))
    if "bfd" in ours:
        # FRR starts BFD anew when a session comes up, and BIRD may end the session once for that.
        _await_bfd(world, lab)
    world.await_sessions(outer)
    world.await_heard(outer, PODS | WEB)
    lab.until(
        lambda: [each.kept for each in outer.restarts()] == [{4}, {6}], "routes are to be kept"
    )


def test_the_documented_example_of_frr_works(world: World, lab: Any) -> None:
    (ours, _), (theirs,) = examples("BIRD"), examples("FRR")
    box = world.plug("outer", OUTER)
    with lab.run_directory() as layout, closing(ManagedFrr(layout, lambda: None)) as far:
        box.run(far.open, Boot({"zebra": "", "bfdd": "", "bgpd": theirs}))
        world.put(node(1, {"peers": ours}), service("web", 10))
        world.await_sessions()
        _await_bfd(world, lab)

        def routes() -> set[str]:
            said = box.run(lab.sh, "ip -4 route show proto bgp", "ip -6 route show proto bgp")
            return {line.split()[0] for line in said.splitlines()}

        single = {each.removesuffix("/32").removesuffix("/128") for each in WEB}
        lab.until(lambda: routes() == PODS | single, "its kernel has routes")


def _await_bfd(world: World, lab: Any) -> None:
    lab.until(lambda: world.bfd() == dict.fromkeys(OUTER, "up"), "BFD is up")
