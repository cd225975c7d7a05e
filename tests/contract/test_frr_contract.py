"""What every adapter of FRR does, the fake one and the one that runs real daemons."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_vty import UnsafeCommandError, VtyClient
from kube_router_py.kernel.ports_frr import Boot, DaemonsDownError, Frr, Opened

pytestmark = pytest.mark.timeout(600)
_DEADLINE_S = 120.0

ZEBRA = "frr defaults datacenter\nno zebra nexthop kernel enable\n"
BGPD = """\
frr defaults datacenter
bgp route-map delay-timer 1
route-map VIP permit 10
 set community 64512:1
exit
router bgp 64512
 bgp router-id 10.99.0.1
 no bgp default ipv4-unicast
 no bgp network import-check
 neighbor 10.99.0.2 remote-as internal
 neighbor 10.99.0.2 timers connect 1
 neighbor fd00:99::3 remote-as 65000
 address-family ipv4 unicast
  network 10.244.1.0/24
  network 192.0.2.7/32 route-map VIP
  neighbor 10.99.0.2 activate
 exit-address-family
 address-family ipv6 unicast
  network fd00:244:1::/64
  neighbor fd00:99::3 activate
 exit-address-family
exit
"""
BFDD = (
    "bfd\n profile fast\n  detect-multiplier 5\n  transmit-interval 200\n"
    "  receive-interval 200\n exit\nexit\n"
)
BOOT = Boot(files={"zebra": ZEBRA, "bgpd": BGPD})
BFD_BOOT = Boot(files={"zebra": ZEBRA, "bgpd": BGPD, "bfdd": BFDD})
ROUTER = "router bgp 64512"
V4 = "address-family ipv4 unicast"


class World:
    """Makes adapters of one node, one after the other, and what else may happen to its daemons."""

    def __init__(self, lab: Any, layout: Any) -> None:
        self._lab = lab
        self._layout = layout
        self._fake = FakeDaemons()
        self._agents: list[Frr] = []
        self.down = threading.Event()

    def agent(self) -> Frr:
        self.close()
        agent: Frr = (
            FakeFrr(self._fake, self.down.set)
            if self._layout is None
            else ManagedFrr(self._layout, self.down.set)
        )
        self._agents.append(agent)
        return agent

    def kill(self, agent: Frr, daemon: str) -> None:
        if isinstance(agent, FakeFrr):
            agent.kill(daemon)
        else:
            os.kill(self._lab.pid_of(self._layout, daemon), signal.SIGKILL)
        assert self.down.wait(_DEADLINE_S)

    def out_of_band(self, daemon: str, *commands: str) -> None:
        if self._layout is None:
            self._fake.out_of_band(daemon, *commands)
            return
        client = VtyClient(self._layout.path(daemon, "vty"))
        assert not any(each.is_failed for each in client.configure(commands))
        client.close()

    def close(self) -> None:
        for agent in self._agents:
            agent.close()
        self._agents = []


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.frr)])
def frr_world(
    request: pytest.FixtureRequest, beside: Callable[[str], ModuleType]
) -> Iterator[World]:
    if request.param == "fake":
        yield World(None, None)
        return
    lab = beside("frr_lab")
    lab.require()
    with ExitStack() as stack:
        stack.enter_context(request.getfixturevalue("new_namespace")())
        world = World(lab, stack.enter_context(lab.run_directory()))
        stack.callback(world.close)
        yield world


def shown(text: str) -> list[str]:
    """What a daemon shows, without what it shows of itself."""
    own = ("!", "frr version", "frr defaults", "hostname", "exit", "no ip", "log ")
    return sorted(
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith(own)
    )


def lines_of(file: str, *, without: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> list[str]:
    return sorted([*(each for each in shown(file) if each not in without), *more])


def test_open_starts_keeps_and_adopts(frr_world: World) -> None:
    first = frr_world.agent()
    assert first.open(BOOT) is Opened.STARTED
    assert first.open(BOOT) is Opened.KEPT
    texts = first.running()
    assert list(texts) == ["zebra", "bgpd"]
    assert shown(texts["bgpd"]) == lines_of(BGPD)
    assert shown(texts["zebra"]) == lines_of(ZEBRA)
    second = frr_world.agent()
    # What runs is kept as it is, whatever its file would say by now.
    other = Boot(files={"zebra": ZEBRA, "bgpd": BGPD.replace("10.244.1.0", "10.244.9.0")})
    assert second.open(other) is Opened.ADOPTED
    assert shown(second.running()["bgpd"]) == lines_of(BGPD)
    assert (first.writes, second.writes) == (0, 0)


def test_nothing_can_be_done_before_open(frr_world: World) -> None:
    agent = frr_world.agent()
    for call in (agent.running, agent.summary, lambda: agent.apply({"bgpd": ["router bgp 1"]})):
        with pytest.raises(DaemonsDownError):
            call()


# Commands, the numbers of those that fail, what is shown no more, what is shown besides.
EDITS: dict[str, tuple[list[str], list[int], tuple[str, ...], tuple[str, ...]]] = {
    "a network is added": ([ROUTER, V4, "network 192.0.2.8/32"], [], (), ("network 192.0.2.8/32",)),
    "a network gets another route-map": (
        [ROUTER, V4, "network 10.244.1.0/24 route-map VIP"],
        [],
        ("network 10.244.1.0/24",),
        ("network 10.244.1.0/24 route-map VIP",),
    ),
    "a network goes": (
        [ROUTER, V4, "no network 192.0.2.7/32"],
        [],
        ("network 192.0.2.7/32 route-map VIP",),
        (),
    ),
    "what is not there cannot go, the next does": (
        [ROUTER, V4, "no network 192.0.2.99/32", "network 192.0.2.8/32"],
        [2],
        (),
        ("network 192.0.2.8/32",),
    ),
    "an unknown command is told, the next is done": (
        [ROUTER, V4, "netwrk 192.0.2.99/32", "network 192.0.2.8/32"],
        [2],
        (),
        ("network 192.0.2.8/32",),
    ),
    "a neighbor is added": (
        [
            "route-map OUT permit 10",
            "match community 1",
            "exit",
            ROUTER,
            "neighbor 10.99.0.9 remote-as 65000",
            "neighbor 10.99.0.9 port 1790",
            "neighbor 10.99.0.9 password k8s!md5#1",
            V4,
            "neighbor 10.99.0.9 route-map OUT out",
            "neighbor 10.99.0.9 activate",
        ],
        [],
        (),
        (
            "route-map OUT permit 10",
            "match community 1",
            "neighbor 10.99.0.9 remote-as 65000",
            "neighbor 10.99.0.9 port 1790",
            "neighbor 10.99.0.9 password k8s!md5#1",
            "neighbor 10.99.0.9 route-map OUT out",
            "neighbor 10.99.0.9 activate",
        ),
    ),
    "a neighbor goes with all its lines": (
        [ROUTER, "no neighbor 10.99.0.2"],
        [],
        (
            "neighbor 10.99.0.2 remote-as internal",
            "neighbor 10.99.0.2 timers connect 1",
            "neighbor 10.99.0.2 activate",
        ),
        (),
    ),
    "nothing can be said of a neighbor that is not known": (
        [ROUTER, "neighbor 10.99.0.77 password secret"],
        [1],
        (),
        (),
    ),
    "a value replaces the one before": (
        [ROUTER, "neighbor 10.99.0.2 timers connect 7", "neighbor 10.99.0.2 timers 5 15"],
        [],
        ("neighbor 10.99.0.2 timers connect 1",),
        ("neighbor 10.99.0.2 timers connect 7", "neighbor 10.99.0.2 timers 5 15"),
    ),
    "a route-map goes": (
        ["no route-map VIP permit 10"],
        [],
        ("route-map VIP permit 10", "set community 64512:1"),
        (),
    ),
    "what is on by default is shown when it is off": (
        [ROUTER, "bgp network import-check"],
        [],
        ("no bgp network import-check",),
        (),
    ),
    "prefix-lists have entries": (
        [
            "ip prefix-list REJ seq 5 permit 10.0.0.0/8 le 32",
            "ip prefix-list REJ seq 6 permit 172.16.0.0/12 le 32",
            "no ip prefix-list REJ seq 5",
        ],
        [],
        (),
        ("ip prefix-list REJ seq 6 permit 172.16.0.0/12 le 32",),
    ),
    "the router goes": (
        ["no router bgp 64512"],
        [],
        tuple(lines_of(BGPD.partition("router bgp")[2], more=(ROUTER,))),
        (),
    ),
    "a second router does not come": (["router bgp 64999"], [0], (), ()),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits(frr_world: World, name: str) -> None:
    commands, failing, gone, new = EDITS[name]
    agent = frr_world.agent()
    agent.open(BOOT)
    results = agent.apply({"bgpd": commands})["bgpd"]
    assert [each.command for each in results] == commands
    assert [at for at, each in enumerate(results) if each.is_failed] == failing, results
    assert shown(agent.running()["bgpd"]) == lines_of(BGPD, without=gone, more=new)
    assert agent.writes == len(commands)


def test_the_codes_are_frr_s_own(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    results = agent.apply({"bgpd": [ROUTER, "bogus", V4, "no network 192.0.2.99/32"]})["bgpd"]
    assert [each.code for each in results] == [0, 2, 0, 13]
    assert results[3].complaint == "Can't find static route specified"
    assert "bogus" in results[1].complaint


@pytest.mark.parametrize(
    "end", ["\0no neighbor 10.99.0.2", "\nno neighbor 10.99.0.2", "\x7f", "\t"]
)
def test_what_is_more_than_one_command_is_not_sent(frr_world: World, end: str) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    commands = [
        ROUTER,
        "neighbor 10.99.0.2 description a",
        "neighbor 10.99.0.2 password hush" + end,
    ]
    with pytest.raises(UnsafeCommandError) as caught:
        agent.apply({"zebra": ["ip nht resolve-via-default"], "bgpd": commands})
    assert "hush" not in str(caught.value)
    assert agent.writes == 0
    texts = agent.running()
    assert shown(texts["bgpd"]) == lines_of(BGPD)
    assert shown(texts["zebra"]) == lines_of(ZEBRA)


def test_what_somebody_else_changes_is_shown(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    frr_world.out_of_band(
        "bgpd", ROUTER, "neighbor 10.99.0.2 description theirs", V4, "no network 10.244.1.0/24"
    )
    assert shown(agent.running()["bgpd"]) == lines_of(
        BGPD,
        without=("network 10.244.1.0/24",),
        more=("neighbor 10.99.0.2 description theirs",),
    )


def test_a_restart_leaves_what_the_files_say(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    agent.apply({"bgpd": [ROUTER, V4, "network 192.0.2.8/32"]})
    agent.restart(BOOT)
    assert shown(agent.running()["bgpd"]) == lines_of(BGPD)
    agent.restart(Boot(files={"zebra": ZEBRA, "bgpd": ""}))
    assert shown(agent.running()["bgpd"]) == []
    # Another command line is another start as well.
    assert agent.open(Boot(files=BOOT.files, port=1790)) is Opened.STARTED
    assert shown(agent.running()["bgpd"]) == lines_of(BGPD)
    assert agent.open(Boot(files=BOOT.files, port=1790)) is Opened.KEPT


def test_bfdd_comes_and_goes_beside_the_others(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    with pytest.raises(DaemonsDownError, match="bfdd"):
        agent.apply({"bfdd": ["bfd"]})
    agent.apply({"bgpd": [ROUTER, V4, "network 192.0.2.8/32"]})
    assert agent.open(BFD_BOOT) is Opened.KEPT
    texts = agent.running()
    assert list(texts) == ["zebra", "bfdd", "bgpd"]
    assert shown(texts["bfdd"]) == lines_of(BFDD)
    results = agent.apply({"bfdd": ["bfd", "profile fast", "transmit-interval 100"]})
    assert not any(each.is_failed for each in results["bfdd"])
    assert shown(agent.running()["bfdd"]) == lines_of(
        BFDD, without=("transmit-interval 200",), more=("transmit-interval 100",)
    )
    assert agent.open(BOOT) is Opened.KEPT
    texts = agent.running()
    assert list(texts) == ["zebra", "bgpd"]
    # bgpd has not been restarted: it has what no file of it says.
    assert "network 192.0.2.8/32" in shown(texts["bgpd"])


def test_the_end_of_one_is_told_and_ends_all(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BFD_BOOT)
    frr_world.kill(agent, "bfdd")
    for call in (agent.running, agent.summary, lambda: agent.apply({"bgpd": [ROUTER]})):
        with pytest.raises(DaemonsDownError, match="bfdd was ended by SIGKILL"):
            call()
    agent.restart(BFD_BOOT)
    assert list(agent.running()) == ["zebra", "bfdd", "bgpd"]


def test_sessions_are_told_for_each_family(frr_world: World) -> None:
    agent = frr_world.agent()
    agent.open(BOOT)
    found = agent.summary()
    assert [(each.neighbor, each.version) for each in found.sessions] == [
        ("10.99.0.2", 4),
        ("fd00:99::3", 6),
    ]
    assert not any(each.is_established for each in found.sessions)
    assert [each.uptime_s for each in found.sessions] == [0.0, 0.0]
    assert set(found.routes) == {4, 6}
    agent.apply({"bgpd": [ROUTER, "no neighbor fd00:99::3"]})
    assert [each.neighbor for each in agent.summary().sessions] == ["10.99.0.2"]
    agent.restart(Boot(files={"zebra": ZEBRA, "bgpd": ""}))
    assert agent.summary().sessions == ()


def test_stop_is_the_end_and_close_is_not(frr_world: World) -> None:
    first = frr_world.agent()
    first.open(BFD_BOOT)
    second = frr_world.agent()  # closes the first
    assert second.open(BFD_BOOT) is Opened.ADOPTED
    # bgpd may use what is wanted no more: it is known only after what runs has been read.
    third = frr_world.agent()
    assert third.open(BOOT) is Opened.ADOPTED
    assert list(third.running()) == ["zebra", "bfdd", "bgpd"]
    assert third.open(BOOT) is Opened.KEPT
    assert list(third.running()) == ["zebra", "bgpd"]
    third.stop()
    with pytest.raises(DaemonsDownError):
        third.running()
    fourth = frr_world.agent()
    assert fourth.open(BOOT) is Opened.STARTED
    assert not frr_world.down.is_set()
