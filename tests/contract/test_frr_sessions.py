"""What neighbors hear, and when they are dropped: real FRR on five machines.

                    node 10.9.N.1, AS 64512
       +---------------+-----+---------+---------------+
    node2 (2)       node3 (3)       router (4)      inner (5)
    AS 64512        AS 64512        AS 65001        AS 64512, outside the cluster

All of them run what we render; the neighbor on link N is 10.9.N.2.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, ip_address, ip_network
from types import ModuleType
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.ports_frr import BfdState, Boot, SessionState
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_delta import needs_restart, plan
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig
from kube_router_py.routing.model import (
    Aggregate,
    Announcement,
    Bfd,
    GracefulRestart,
    Neighbor,
    PrefixRange,
    Prepend,
    RouterConfig,
)

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

LINK = {"node2": 2, "node3": 3, "router": 4, "inner": 5}
SHUTDOWN = "graceful-shutdown"
# FRR's own 9 s end sessions of a machine that is merely busy.
HOLD_S = 30


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture(scope="module")
def cases(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_cases")


class Machine:
    """A namespace with a set of daemons, and what they were told last."""

    def __init__(self, lab: Any, stack: ExitStack, name: str) -> None:
        self.box = stack.enter_context(closing(lab.Box(name)))
        self._layout = stack.enter_context(lab.run_directory())
        self._frr = ManagedFrr(self._layout, lambda: None)
        stack.callback(self.box.run, self._frr.close)
        self._vty = VtyClient(self._layout.path("bgpd", "vty"), 60.0)
        stack.callback(self._vty.close)
        self._applied: FrrConfig | None = None

    def apply(self, config: RouterConfig, *, restart: bool = False) -> None:
        wanted = render_frr(config)
        if restart or self._applied is None or needs_restart(self._applied, wanted):
            files = {daemon: wanted.text(daemon) for daemon in DAEMONS}
            self.box.run(self._frr.restart, Boot(files, wanted.listen, wanted.port))
        else:
            for batch in plan(self._applied, wanted):
                results = self.box.run(self._frr.apply, {batch.daemon: batch.commands})
                for result in results[batch.daemon]:
                    assert not result.is_failed, result
        self._applied = wanted

    def sessions(self) -> dict[str, SessionState]:
        found = self.box.run(self._frr.summary).sessions
        return {each.neighbor: each for each in found if each.version == 4}

    def bfd(self) -> tuple[BfdState, ...]:
        found: tuple[BfdState, ...] = self.box.run(self._frr.summary).bfd
        return found

    def running(self) -> str:
        return self._vty.show("show running-config").text

    def show(self, command: str) -> Any:
        return json.loads(self._vty.show(f"{command} json").text or "{}")

    def heard(self) -> dict[str, dict[str, Any]]:
        """Prefixes that were learned, with the attributes of the one path to each."""
        found: dict[str, dict[str, Any]] = {}
        for prefix in self.show("show bgp ipv4 unicast").get("routes", {}):
            for path in self.show(f"show bgp ipv4 unicast {prefix}").get("paths", ()):
                if path["peer"]["peerId"] != "0.0.0.0":
                    found[prefix] = {
                        "path": path.get("aspath", {}).get("string", ""),
                        "communities": path.get("community", {}).get("string", ""),
                        "large": path.get("largeCommunity", {}).get("string", ""),
                        "preference": path.get("locPrf"),
                        "next_hop": path["nexthops"][0]["ip"],
                    }
        return found


class Star:
    """The machines of the picture."""

    def __init__(self, lab: Any, cases: Any, stack: ExitStack) -> None:
        self.lab, self._cases = lab, cases
        self.node = Machine(lab, stack, "node")
        self.others = {name: Machine(lab, stack, name) for name in LINK}
        for name, number in LINK.items():
            other = self.others[name]
            self.node.box.run(
                lab.sh,
                f"ip link add eth{number} type veth peer name up0",
                f"ip link set up0 netns {other.box.path}",
                f"ip link set eth{number} up",
                f"ip addr add 10.9.{number}.1/24 dev eth{number}",
            )
            other.box.run(
                lab.sh,
                "ip link set up0 up",
                f"ip addr add 10.9.{number}.2/24 dev up0",
                f"ip route add default via 10.9.{number}.1",
            )

    def start(self, config: RouterConfig, **others: RouterConfig) -> None:
        for name, machine in self.others.items():
            machine.apply(others.get(name, self.other(name)))
        self.node.apply(config)
        self.await_sessions(len(config.neighbors))
        # Only then have they counted them.
        for name, machine in self.others.items():
            self.lab.until(
                lambda machine=machine: all(
                    each.is_established for each in machine.sessions().values()
                ),
                f"{name} calls its session established, too",
            )

    def await_sessions(self, count: int) -> None:
        def are_up() -> bool:
            found = self.node.sessions().values()
            return len(found) == count and all(each.is_established for each in found)

        self.lab.until(are_up, f"{count} sessions are up")

    def other(self, name: str, **more: Any) -> RouterConfig:
        """What a neighbor runs by itself: it announces one prefix and accepts everything."""
        number = LINK[name]
        own = self._cases.pods(f"10.244.{number}.0/24")
        asn = 65001 if name == "router" else 64512
        session = {
            "remote_as": 64512,
            "versions": (4,),
            "graceful_restart": True,
            "hold_s": HOLD_S,
        }
        make = self._cases.node if name.startswith("node") else self._cases.outside
        to_node = make(f"10.9.{number}.1", **session)
        to_node = structs.replace(to_node, session=structs.replace(to_node.session, accept=None))
        return RouterConfig(
            **{
                "asn": asn,
                "router_id": IPv4Address(f"10.9.{number}.2"),
                "neighbors": (to_node,),
                "announcements": (own,),
                **more,
            }
        )

    def until_heard(self, name: str, expected: set[str]) -> dict[str, dict[str, Any]]:
        """What a neighbor hears, once it is exactly these prefixes."""
        found: dict[str, dict[str, Any]] = {}

        def is_heard() -> bool:
            found.clear()
            found.update((self.node if name == "node" else self.others[name]).heard())
            return set(found) == expected

        try:
            self.lab.until(is_heard, "")
        except AssertionError:
            raise AssertionError(f"{name} hears {sorted(found)}, not {sorted(expected)}") from None
        return found


@pytest.fixture
def star(lab: Any, cases: Any) -> Iterator[Star]:
    lab.require()
    with ExitStack() as stack:
        yield Star(lab, cases, stack)


@pytest.fixture
def config(cases: Any) -> RouterConfig:
    """The node's own: two nodes, two routers."""
    prefix = {name: f"10.244.{number}.0/24" for name, number in LINK.items()}
    known: tuple[Neighbor, ...] = (
        cases.node("10.9.2.2", prefix["node2"], hold_s=HOLD_S),
        cases.node("10.9.3.2", prefix["node3"], hold_s=HOLD_S),
        cases.outside("10.9.4.2", 65001, versions=(4,), graceful_restart=True, hold_s=HOLD_S),
        cases.outside("10.9.5.2", "internal", versions=(4,), graceful_restart=True, hold_s=HOLD_S),
    )
    announcements: tuple[Announcement, ...] = (
        cases.pods("10.244.1.0/24"),
        cases.vip("192.0.2.1/32"),
        cases.vip("192.0.2.2/32", peers=("10.9.4.2",)),
        cases.vip(
            "192.0.2.3/32",
            communities=(cases.community(65535, 65281), cases.community(65000, 7)),
            local_preference=250,
        ),
        cases.vip("192.0.2.4/32", peers=("10.9.5.2",), communities=(cases.community(1, 2, 3),)),
    )
    result: RouterConfig = cases.router(
        router_id=IPv4Address("10.9.2.1"),
        neighbors=known,
        announcements=announcements,
        communities=(cases.community(64512, 100),),
        prepend=Prepend(asn=64999, times=2),
        graceful_restart=GracefulRestart(),
    )
    return result


PODS = "10.244.1.0/24"
VIP = {n: f"192.0.2.{n}/32" for n in range(1, 10)}


def test_each_neighbor_hears_what_is_for_it(star: Star, config: RouterConfig) -> None:
    star.start(config)
    for name in ("node2", "node3"):
        heard = star.until_heard(name, {PODS})
        assert heard[PODS]["communities"] == ""
        assert heard[PODS]["path"] in ("", "Local")
        assert heard[PODS]["preference"] == 100
    router = star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    inner = star.until_heard("inner", {PODS, VIP[1], VIP[3], VIP[4]})
    assert {each["path"] for each in router.values()} == {"64512 64999 64999"}
    assert {each["path"] for each in inner.values()} == {"Local"}
    for heard in (router, inner):
        # The well-known one keeps others from passing it on, not us from announcing it.
        assert heard[VIP[1]]["communities"] == "64512:100"
        assert heard[VIP[3]]["communities"] == "64512:100 65000:7 no-export"
    assert inner[VIP[3]]["preference"] == 250
    assert inner[VIP[1]]["preference"] == 100
    assert router[VIP[3]]["preference"] is None
    assert inner[VIP[4]]["large"] == "1:2:3"
    # The node itself hears them all; what it is told goes no further.
    star.until_heard("node", {f"10.244.{n}.0/24" for n in LINK.values()})


def test_pods_stay_inside_where_that_is_wanted(star: Star, config: RouterConfig) -> None:
    star.start(structs.replace(config, announce_pods_outside=False, communities=(), prepend=None))
    star.until_heard("node2", {PODS})
    router = star.until_heard("router", {VIP[1], VIP[2], VIP[3]})
    assert router[VIP[1]] == {
        "path": "64512",
        "communities": "",
        "large": "",
        "preference": None,
        "next_hop": "10.9.4.1",
    }


def test_a_reflector_passes_on_what_nodes_say_and_nothing_else(
    star: Star, config: RouterConfig, cases: Any
) -> None:
    near = tuple(
        structs.replace(each, session=structs.replace(each.session, reflector_client=True))
        for each in config.neighbors[:2]
    )
    reflector = structs.replace(
        config, neighbors=(*near, *config.neighbors[2:]), cluster_id=IPv4Address("0.0.0.42")
    )
    star.start(reflector)
    node2 = star.until_heard("node2", {PODS, "10.244.3.0/24"})
    assert node2["10.244.3.0/24"]["next_hop"] == "10.9.3.2"  # unchanged
    star.until_heard("node3", {PODS, "10.244.2.0/24"})
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    star.until_heard("inner", {PODS, VIP[1], VIP[3], VIP[4]})
    # A neighbor that is no client hears of the clients, too.
    first = structs.replace(
        near[0], session=structs.replace(near[0].session, reflector_client=False)
    )
    star.node.apply(
        structs.replace(reflector, cluster_id=None, neighbors=(first, *reflector.neighbors[1:]))
    )
    star.await_sessions(4)
    star.until_heard("node2", {PODS, "10.244.3.0/24"})


def test_what_must_not_be_learned_is_not(star: Star, config: RouterConfig, cases: Any) -> None:
    wild = (
        cases.vip("0.0.0.0/0"),
        cases.vip("10.96.0.1/32"),
        cases.vip("10.96.4.0/24"),
        cases.vip("198.18.0.0/24"),
        cases.vip("198.19.0.0/25"),
        cases.vip("198.19.0.0/24"),
        cases.vip("203.0.113.0/24"),
    )
    wild_node = (*(cases.pods(str(each.prefix)) for each in wild), cases.pods("10.244.3.0/24"))
    near = list(config.neighbors)
    accept = (cases.exact("198.18.0.0/24"), PrefixRange(ip_network("198.19.0.0/16"), 24, 24))
    near[3] = structs.replace(near[3], session=structs.replace(near[3].session, accept=accept))
    refuse = (
        PrefixRange(ip_network("10.96.0.0/12"), 12, 32),
        cases.exact("203.0.113.0/24"),
    )
    guarded = structs.replace(config, neighbors=tuple(near), refuse=refuse)
    star.start(
        guarded,
        router=star.other("router", announcements=wild),
        inner=star.other("inner", announcements=wild),
        node2=star.other("node2", announcements=(*wild_node, cases.pods("10.244.2.0/24"))),
    )
    from_node2, from_node3 = {"10.244.2.0/24"}, {"10.244.3.0/24"}
    from_router = {"198.18.0.0/24", "198.19.0.0/24", "198.19.0.0/25"}
    learned: set[str] = set()

    def told_by(prefix: str) -> set[str]:
        paths = star.node.show(f"show bgp ipv4 unicast {prefix}").get("paths", ())
        return {each["peer"]["peerId"] for each in paths}

    def is_learned() -> bool:
        both = told_by("198.19.0.0/24")
        learned.clear()
        learned.update(star.node.heard())
        wanted = from_node2 | from_node3 | from_router
        return both == {"10.9.4.2", "10.9.5.2"} and learned >= wanted

    star.lab.until(is_learned, "the node learns what it may")
    assert learned == from_node2 | from_node3 | from_router
    assert told_by("198.19.0.0/25") == {"10.9.4.2"}
    assert told_by("10.244.3.0/24") == {"10.9.3.2"}
    # Later on, too: what is refused is edited in place.
    star.node.apply(structs.replace(guarded, refuse=(*refuse, cases.exact("198.18.0.0/24"))))
    star.lab.until(
        lambda: "198.18.0.0/24" not in star.node.heard(), "what is refused now is forgotten"
    )
    star.node.apply(guarded)
    star.lab.until(lambda: "198.18.0.0/24" in star.node.heard(), "it is asked for again")


def test_a_crowd_learns_of_a_node_without_a_reset(
    star: Star, config: RouterConfig, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond so many nodes one list is for all, and a node more is an entry of it."""
    monkeypatch.setattr("kube_router_py.routing.frr_policy.DISTINCT_LISTS", 1)
    star.start(_with(config, 1, accept=(cases.exact("10.244.99.0/24"),)))
    rest = {f"10.244.{n}.0/24" for n in LINK.values()} - {"10.244.3.0/24"}
    star.until_heard("node", rest)
    text = star.node.running()
    assert "neighbor 10.9.2.2 route-map krp-from-crowd in" in text
    counted = {name: _counts(machine) for name, machine in star.others.items()}
    star.node.apply(config)
    star.until_heard("node", {*rest, "10.244.3.0/24"})
    star.node.apply(_with(config, 1, accept=(cases.exact("10.244.99.0/24"),)))
    star.until_heard("node", rest)
    assert {name: _counts(machine) for name, machine in star.others.items()} == counted


def test_an_aggregate_hides_and_shows_and_is_no_route(star: Star, config: RouterConfig) -> None:
    whole = Aggregate(prefix=ip_network("192.0.2.0/24"), specific_to=("10.9.5.2",))
    star.start(structs.replace(config, aggregates=(whole,)))
    star.until_heard("router", {PODS, "192.0.2.0/24"})
    star.until_heard("inner", {PODS, "192.0.2.0/24", VIP[1], VIP[3], VIP[4]})
    star.until_heard("node2", {PODS})
    star.lab.until(lambda: "10.244.2.0/24" in _routes(star), "the node has routes to other nodes")
    routes = _routes(star)
    assert "192.0.2." not in routes
    assert "blackhole" not in routes


def _routes(star: Star) -> str:
    return str(star.node.box.run(star.lab.sh, "ip route show table all"))


def test_a_drained_node_says_so_before_it_goes(star: Star, config: RouterConfig) -> None:
    star.start(config)
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    star.node.apply(structs.replace(config, drain=True))

    def is_marked(name: str) -> bool:
        heard = star.others[name].heard().values()
        return all(SHUTDOWN in each["communities"] for each in heard)

    star.lab.until(lambda: is_marked("router"), "the router is told")
    star.lab.until(lambda: is_marked("inner"), "the inner router is told")
    assert star.others["inner"].heard()[VIP[3]]["preference"] == 0
    drained = structs.replace(config, drain=True, announcements=config.announcements[:1])
    star.node.apply(drained)
    star.until_heard("router", {PODS})
    star.until_heard("node2", {PODS})
    star.node.apply(config)
    heard = star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    star.lab.until(lambda: not is_marked("router"), "the router is told that it is over")
    assert set(heard) == {PODS, VIP[1], VIP[2], VIP[3]}


def test_nothing_stays_announced_that_went_right_after_a_start(
    star: Star, config: RouterConfig, cases: Any
) -> None:
    star.start(config)
    for _ in range(3):
        star.node.apply(config, restart=True)
        star.await_sessions(4)
        for number in range(20):
            vip = cases.vip(f"192.0.2.{100 + number}/32")
            communities = (cases.community(64512, number),)
            announcements = (*config.announcements, vip)
            star.node.apply(
                structs.replace(config, announcements=announcements, communities=communities)
            )
        star.node.apply(config)
        star.until_heard("inner", {PODS, VIP[1], VIP[3], VIP[4]})
        star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})


def test_a_range_takes_neighbors_that_come_by_themselves(
    star: Star, config: RouterConfig, cases: Any
) -> None:
    session = cases.outside("10.9.4.2", 65001, versions=(4,), password="k8s!md5").session
    network = ip_network("10.9.4.0/24")
    listening = structs.replace(
        config,
        neighbors=tuple(each for each in config.neighbors if each.key != "10.9.4.2"),
        listen_ranges=(cases.ListenRange(network=network, session=session),),
        announcements=(*config.announcements, cases.vip(VIP[9], peers=("10.9.4.0/24",))),
    )
    to_node = cases.outside("10.9.4.1", 64512, versions=(4,), password="k8s!md5")
    for name, machine in star.others.items():
        own = {"neighbors": (to_node,)} if name == "router" else {}
        machine.apply(star.other(name, **own))
    star.node.apply(listening)
    star.until_heard("router", {PODS, VIP[1], VIP[3], VIP[9]})
    star.until_heard("node", {f"10.244.{n}.0/24" for n in LINK.values()})


def test_a_neighbor_behind_an_interface_needs_no_address(
    star: Star, config: RouterConfig, cases: Any
) -> None:
    def behind(interface: str) -> Neighbor:
        session = cases.outside("10.9.4.2", "external").session
        return Neighbor(interface=interface, session=session)

    near = sorted((*config.neighbors[:2], *config.neighbors[3:], behind("eth4")), key=_key)
    vip = cases.vip(VIP[9], peers=("eth4",))
    unnumbered = structs.replace(
        config, neighbors=tuple(near), announcements=(*config.announcements, vip)
    )
    star.start(unnumbered, router=star.other("router", neighbors=(behind("up0"),)))
    star.until_heard("router", {PODS, VIP[1], VIP[3], VIP[9]})
    # Without next hop objects an IPv4 route has an IPv4 address of FRR's own that stands for the
    # neighbor's link-local one.
    star.lab.until(
        lambda: "10.244.4.0/24 via 169.254.0.1 dev eth4 " in _routes(star), "a route to behind it"
    )
    star.lab.until(
        lambda: "169.254.0.1 lladdr" in star.node.box.run(star.lab.sh, "ip neigh show dev eth4"),
        "the address leads to the neighbor",
    )


def test_bfd_sees_what_a_session_would_see_much_later(star: Star, config: RouterConfig) -> None:
    watched = config
    for index in range(4):
        watched = _with(watched, index, bfd=Bfd(10, 500, 500), hold_s=300)
    star.start(
        watched,
        **{name: _with(star.other(name), 0, bfd=Bfd(10, 500, 500), hold_s=300) for name in LINK},
    )

    def states() -> dict[str, str]:
        return {each.neighbor: each.state for each in star.node.bfd()}

    star.lab.until(lambda: list(states().values()) == ["up"] * 4, "BFD is up with all")
    star.others["router"].box.run(star.lab.sh, "ip addr del 10.9.4.2/24 dev up0")
    star.lab.until(lambda: not star.node.sessions()["10.9.4.2"].is_established, "it is down")
    (told,) = star.node.show("show bgp neighbors 10.9.4.2").values()
    assert told["lastNotificationReason"] == "Cease/BFD Down"
    star.lab.until(
        lambda: (
            {key for key, state in states().items() if state == "up"} >= {"10.9.2.2", "10.9.3.2"}
        ),
        "BFD is up with the others",
    )


def test_neighbors_keep_their_routes_over_a_restart(star: Star, config: RouterConfig) -> None:
    star.start(config)
    watched = ("node2", "router")
    for name in watched:
        box = star.others[name].box
        star.lab.until(lambda box=box: PODS in box.run(star.lab.sh, "ip route"), f"{name} routes")
    with ExitStack() as stack:
        monitors = [
            stack.enter_context(closing(star.lab.RouteMonitor(star.others[name].box)))
            for name in watched
        ]
        before = {name: _counts(star.others[name]) for name in watched}
        star.node.apply(config, restart=True)
        star.await_sessions(4)
        star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
        assert {name: _counts(star.others[name]) for name in watched} != before
        # Not a word of 192.0.2.0/24, in which the monitor has its own marks.
        assert [monitor.deleted() for monitor in monitors] == [[], []]


def changes(config: RouterConfig, cases: Any) -> Iterator[RouterConfig]:
    """Configurations none of which needs a session to be reset, whichever was there before."""
    neighbors = config.neighbors
    for number in range(10, 20):  # VIPs
        vip = cases.vip(f"192.0.2.{number}/32")
        config = structs.replace(config, announcements=(*config.announcements, vip))
        yield config
    for number in range(2, 7):  # peers of the same address family that come, and go
        more = cases.outside(f"10.9.4.{100 + number}", 65001, versions=(4,))
        yield structs.replace(config, neighbors=tuple(sorted((*neighbors, more), key=_key)))
    for peers in (("10.9.4.2",), None, (), ("10.9.5.2",), ("10.9.4.2", "10.9.5.2")):  # policies
        moved = structs.replace(config.announcements[1], peers=peers)
        yield structs.replace(
            config, announcements=(config.announcements[0], moved, *config.announcements[2:])
        )
    for number in range(5):  # communities, preference, prepending
        config = structs.replace(
            config,
            communities=(cases.community(64512, number), cases.community(1, 2, number)),
            prepend=Prepend(asn=64999, times=number),
        )
        yield config
    for bfd in (Bfd(), Bfd(3, 300, 300), None, Bfd(5, 500, 500), None):  # BFD
        yield _with(config, 2, bfd=bfd)
    for number in range(5):  # what annotations say besides
        config = structs.replace(
            config,
            refuse=tuple(cases.exact(f"203.0.113.{n}/32") for n in range(number)),
            maximum_paths=number + 1,
            aggregates=(Aggregate(prefix=ip_network("192.0.2.0/24")),) if number % 2 else (),
            announce_pods_outside=bool(number % 2),
            drain=number == 3,
            source=(ip_address("10.9.2.1"),) if number % 2 else (),
            graceful_restart=GracefulRestart(restart_s=60 + number),
        )
        yield config
        yield _with(config, 3, hold_s=60 + number, description=f"router {number}")
        yield _with(config, 2, next_hop_self=True, accept=(cases.exact("10.244.4.0/24"),))
    for number in range(2, 7):  # ranges of dynamic neighbors
        session = cases.outside("10.9.0.9", 65002).session
        network = ip_network(f"10.9.{number}.128/25")
        found = cases.ListenRange(network=network, session=session, limit=100 + number)
        yield structs.replace(config, listen_ranges=(found,))


def _key(neighbor: Neighbor) -> str:
    return neighbor.key


def _with(config: RouterConfig, index: int, **more: Any) -> RouterConfig:
    neighbors = list(config.neighbors)
    session = structs.replace(neighbors[index].session, **more)
    neighbors[index] = structs.replace(neighbors[index], session=session)
    return structs.replace(config, neighbors=tuple(neighbors))


@pytest.mark.parametrize("seed", [None, 1])
def test_no_change_resets_a_session_that_it_does_not_concern(
    star: Star, config: RouterConfig, cases: Any, seed: int | None
) -> None:
    walk = list(changes(config, cases))
    if seed is not None:
        random.Random(seed).shuffle(walk)
    assert len(walk) >= 50
    star.start(config)
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    counted = {name: _counts(machine) for name, machine in star.others.items()}
    for wanted in walk:
        star.node.apply(wanted)
    # The last of them has arrived: had a session been reset, its neighbor would know.
    last = cases.vip("192.0.2.9/32")
    star.node.apply(structs.replace(config, announcements=(*config.announcements, last)))
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3], VIP[9]})
    star.until_heard("inner", {PODS, VIP[1], VIP[3], VIP[4], VIP[9]})
    star.until_heard("node2", {PODS})
    assert {name: _counts(machine) for name, machine in star.others.items()} == counted


@pytest.mark.parametrize(
    "more",
    [
        {"password": "secret"},
        {"local_address": ip_address("10.9.4.1")},
        {"ttl_security": 1},
        {"versions": (4, 6)},
        {"remote_as": "external"},
        {"port": 1790},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_concerns_one_session_resets_that_one_only(
    star: Star, config: RouterConfig, cases: Any, more: dict[str, Any]
) -> None:
    star.start(config)
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    counted = {name: _counts(machine) for name, machine in star.others.items()}
    star.node.apply(_with(config, 2, **more))
    dropped = counted.pop("router")[1]
    star.lab.until(
        lambda: _counts(star.others["router"])[1] > dropped, "the session in question is reset"
    )
    star.node.apply(config)
    star.await_sessions(4)
    star.until_heard("router", {PODS, VIP[1], VIP[2], VIP[3]})
    assert {name: _counts(star.others[name]) for name in counted} == counted


def _counts(machine: Machine) -> tuple[int, int]:
    """How often the session with the node has come up, and gone down, as its neighbor counts."""
    (found,) = machine.sessions().values()
    return found.established, found.dropped
