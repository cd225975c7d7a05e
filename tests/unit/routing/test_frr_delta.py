"""From one configuration of FRR to another: where it ends, and what never is in between."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.kernel.fake_frr_config import FakeConfig
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_delta import Batch, needs_restart, plan
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running
from kube_router_py.routing.model import Bfd, RouterConfig


@pytest.fixture(scope="module")
def cases(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_cases")


def ordered(config: FrrConfig) -> FrrConfig:
    """Without the order of lines, which is FRR's own."""
    changed = {
        daemon: tuple(
            structs.replace(each, lines=tuple(sorted(each.lines)))
            for each in config.sections(daemon)
        )
        for daemon in DAEMONS
    }
    return structs.replace(config, listen=(), port=179, **changed)


class Daemons:
    """Daemons that were started with a configuration, and have been sent batches since."""

    def __init__(self, config: FrrConfig) -> None:
        self.fakes = {each: FakeConfig(config.text(each)) for each in DAEMONS}

    def read(self) -> FrrConfig:
        return parse_running({daemon: fake.text() for daemon, fake in self.fakes.items()})

    def send(self, batches: tuple[Batch, ...], after: Callable[[], None] = lambda: None) -> None:
        for batch in batches:
            fake = self.fakes[batch.daemon]
            fake.configure(())
            for command in batch.commands:
                result = fake.run(command)
                assert not result.is_failed, result
                after()


@given(st.integers(0, 2**32))
def test_a_walk_arrives_everywhere(cases: Any, seed: int) -> None:
    walk = cases.Walk(seed)
    old = render_frr(walk.config)
    daemons = Daemons(old)
    for _ in range(5):
        new = render_frr(walk.step())
        daemons.send(plan(old, new))
        assert ordered(daemons.read()) == ordered(new)
        assert plan(daemons.read(), new) == ()
        old = new


@given(st.integers(0, 2**32))
def test_there_is_a_way_between_any_two(cases: Any, seed: int) -> None:
    one, other = (render_frr(cases.Walk(seed + n).config) for n in range(2))
    assert not needs_restart(one, other)
    daemons = Daemons(one)
    daemons.send(plan(one, other))
    assert ordered(daemons.read()) == ordered(other)
    assert plan(one, one) == ()


def test_daemons_without_any_configuration_are_told_everything(cases: Any) -> None:
    wanted = render_frr(cases.CASES["reflector"])
    empty = parse_running({})
    daemons = Daemons(empty)
    daemons.send(plan(empty, wanted))
    assert ordered(daemons.read()) == ordered(wanted)


# --- in between -----------------------------------------------------------------------------

_REFERENCE = re.compile(r"neighbor (\S+) (route-map|prefix-list) (\S+) (in|out)")


def dangling(config: FrrConfig) -> set[str]:
    """What would deny, or tell, a neighbor everything, or give BFD other times."""
    maps = {each.path[0].split()[1] for each in config.bgpd if each.path[0:1]} - {"bgp"}
    profiles = {each.path[1].split()[1] for each in config.bfdd if len(each.path) == 2}
    lists: dict[str, set[str]] = {"ip": set(), "ipv6": set()}
    found: set[str] = set()
    for section in config.bgpd:
        if not section.path:
            for line in section.lines:
                if " prefix-list " in line:
                    lists[line.split()[0]].add(line.split()[2])
    for section in config.bgpd:
        filters: set[tuple[str, ...]] = set()
        for line in section.lines:
            match = _REFERENCE.fullmatch(line)
            words = line.split()
            if match is not None:
                filters.add((match[1], match[2], match[4]))
                family = "ip" if "ipv4" in section.path[-1] else "ipv6"
                if match[3] not in (maps if match[2] == "route-map" else lists[family]):
                    found.add(line)
            elif words[0] == "network":
                found |= {line} if words[3] not in maps else set()
            elif words[2:4] == ["bfd", "profile"] and words[4] not in profiles:
                found.add(line)
        for line in section.lines:
            if line.endswith(" activate"):
                name = line.split()[1]
                for direction in ("in", "out"):
                    if (name, "route-map", direction) not in filters:
                        found.add(f"{line} without route-map {direction}")
    return found


@given(st.integers(0, 2**32))
def test_nothing_dangles_in_between(cases: Any, seed: int) -> None:
    walk = cases.Walk(seed)
    old = render_frr(walk.config)
    daemons = Daemons(old)
    assert dangling(daemons.read()) == set()
    for _ in range(2):
        new = render_frr(walk.step())
        daemons.send(plan(old, new), lambda: assert_nothing_dangles(daemons.read()))
        old = new


def assert_nothing_dangles(config: FrrConfig) -> None:
    assert dangling(config) == set()


# --- what is sent ---------------------------------------------------------------------------


def sent(one: RouterConfig, other: RouterConfig, daemon: str = "bgpd") -> list[str]:
    """The commands, without those that only lead somewhere."""
    leading = re.compile(r"router bgp .*|address-family .*|exit.*|bfd|profile .*")
    return [
        command
        for batch in plan(render_frr(one), render_frr(other))
        if batch.daemon == daemon
        for command in batch.commands
        if not leading.fullmatch(command)
    ]


def test_a_new_vip_is_one_command(cases: Any) -> None:
    one = cases.CASES["full-mesh"]
    other = structs.replace(one, announcements=(*one.announcements, cases.vip("192.0.2.9/32")))
    (command,) = sent(one, other)
    assert re.fullmatch(r"network 192\.0\.2\.9/32 route-map krp-class-[0-9a-f]{16}", command)
    assert sent(other, one) == [f"no {command}"]


def test_a_neighbor_knows_a_class_before_there_is_a_prefix_of_it(cases: Any) -> None:
    neighbors = (cases.outside("10.9.0.253"),)
    one = cases.router(neighbors=neighbors, announcements=(cases.vip("192.0.2.7/32"),))
    moved = cases.vip("192.0.2.7/32", peers=("10.9.0.253",))
    commands = sent(one, structs.replace(one, announcements=(moved,)))
    place = [
        next(n for n, command in enumerate(commands) if re.match(start, command))
        for start in (
            "route-map krp-class-",
            "neighbor 10.9.0.253 route-map krp-out-",
            "network 192.0.2.7/32",
            "no route-map krp-out-",
        )
    ]
    assert place == sorted(place)
    assert not any(command.startswith("no network") for command in commands)


def test_a_neighbor_is_complete_before_it_is_activated(cases: Any) -> None:
    one = cases.CASES["alone"]
    commands = sent(one, cases.CASES["external"])
    for name, families in (("10.9.0.253", 2), ("fd00:9::fe", 1)):
        own = [each for each in commands if each.startswith(f"neighbor {name} ")]
        assert " remote-as " in own[0]
        # In each family, and first in no family, everything else comes before.
        pieces = " ".join(each.split()[2] for each in own).split(" activate")
        assert pieces.pop() == ""
        assert len(pieces) == families
        assert all(piece.endswith("route-map route-map") for piece in pieces)


def test_another_kind_of_neighbor_is_another_neighbor(cases: Any) -> None:
    one = cases.router(neighbors=(cases.outside("10.9.0.9", 65000), cases.outside("10.9.0.10")))
    other = structs.replace(one, neighbors=(cases.outside("10.9.0.9", 65001), one.neighbors[1]))
    commands = sent(one, other)
    assert commands[0] == "no neighbor 10.9.0.9"
    assert commands[1] == "neighbor 10.9.0.9 remote-as 65001"
    assert not any(" 10.9.0.10" in command for command in commands)


@pytest.mark.parametrize(
    "change",
    [
        {"hold_s": 30},
        {"description": "another"},
        {"bfd": Bfd()},
        {"graceful_restart": True},
        {"next_hop_self": True},
        {"accept": ()},
        {"password": "x"},
        {"port": 1790},
        {"ttl_security": 1},
        {"multihop": 3},
        {"local_address": ip_address("10.9.0.1")},
        {"versions": (4,)},
    ],
)
def test_a_parameter_is_changed_where_it_stands(cases: Any, change: dict[str, Any]) -> None:
    one = cases.router(neighbors=(cases.outside("10.9.0.9"), cases.outside("10.9.0.10")))
    first = one.neighbors[0]
    changed = structs.replace(first, session=structs.replace(first.session, **change))
    other = structs.replace(one, neighbors=(changed, one.neighbors[1]))
    for commands in (sent(one, other), sent(other, one)):
        assert any(" 10.9.0.9 " in command for command in commands)
        for command in commands:
            assert " 10.9.0.10" not in command
            assert "remote-as" not in command
            assert command != "no neighbor 10.9.0.9"


def test_a_group_that_changes_takes_its_range_with_it(cases: Any) -> None:
    one = cases.CASES["listen-ranges"]
    first = one.listen_ranges[0]
    session = structs.replace(first.session, remote_as=65009)
    other = structs.replace(
        one, listen_ranges=(structs.replace(first, session=session), *one.listen_ranges[1:])
    )
    commands = sent(one, other)
    name = "krp-10.9.0.0-24"
    assert commands[:3] == [
        f"no bgp listen range 10.9.0.0/24 peer-group {name}",
        f"no neighbor {name}",
        f"neighbor {name} peer-group",
    ]
    assert commands[-1] == f"bgp listen range 10.9.0.0/24 peer-group {name}"
    assert not any("10.10.0.0" in each or "fd00" in each for each in commands)


def test_one_more_refused_prefix_is_one_entry(cases: Any) -> None:
    one = cases.CASES["imports"]
    other = structs.replace(one, refuse=(*one.refuse, cases.exact("10.1.2.0/24")))
    (command,) = sent(one, other)
    assert re.fullmatch(r"ip prefix-list krp-refuse seq \d+ permit 10\.1\.2\.0/24", command)
    assert sent(other, one) == [f"no {command}"]


def test_another_source_is_defined_referred_to_and_then_the_old_one_deleted(cases: Any) -> None:
    one, other = (cases.router(source=(ip_address(f"10.9.0.{n}"),)) for n in (1, 2))
    assert sent(one, other, "zebra") == [
        "route-map krp-source-10.9.0.2 permit 10",
        "set src 10.9.0.2",
        "ip protocol bgp route-map krp-source-10.9.0.2",
        "no route-map krp-source-10.9.0.1",
    ]
    assert sent(one, cases.router(), "zebra") == [
        "no ip protocol bgp route-map krp-source-10.9.0.1",
        "no route-map krp-source-10.9.0.1",
    ]


def test_profiles_come_first_and_go_last(cases: Any) -> None:
    one = cases.router(neighbors=(cases.outside("10.9.0.9", bfd=Bfd(3, 100, 100)),))
    other = cases.router(neighbors=(cases.outside("10.9.0.9", bfd=Bfd(3, 200, 200)),))
    batches = plan(render_frr(one), render_frr(other))
    assert [each.daemon for each in batches] == ["bfdd", "bgpd", "bfdd"]
    assert "profile krp-3-200-200-254" in batches[0].commands
    assert batches[2].commands == ("bfd", "no profile krp-3-100-100-254", "exit")


# --- drift ----------------------------------------------------------------------------------


def test_what_somebody_else_changed_is_put_right(cases: Any) -> None:
    wanted = render_frr(cases.CASES["bfd"])
    daemons = Daemons(wanted)
    (name,) = {
        each.path[0].split()[1]
        for each in wanted.bgpd
        if each.path and each.path[0].startswith("route-map krp-out-") and len(each.lines) == 1
    } - {
        each.path[0].split()[1]
        for each in wanted.bgpd
        if each.path and each.path[0].endswith("permit 20")
    }
    for daemon, commands in {
        "bgpd": (
            "no bgp route-map delay-timer 1",
            f"route-map {name} permit 10",
            "set local-preference 7",
            "exit",
            "route-map krp-from-nodes permit 40",
            "exit",
            "no route-map krp-from-outside",
            "ip prefix-list krp-refuse seq 7 permit 10.0.0.0/8 le 32",
            "router bgp 64512",
            "no neighbor 10.9.0.2",
            "neighbor 10.9.0.99 remote-as 65000",
            "neighbor 10.9.0.254 description mine",
            "address-family ipv4 unicast",
            "network 198.18.0.0/15",
            "maximum-paths 2",
        ),
        "zebra": ("no zebra nexthop kernel enable", "zebra route-map delay-timer 9"),
        "bfdd": ("bfd", "profile krp-3-300-300-1", "transmit-interval 77", "passive-mode"),
    }.items():
        for result in daemons.fakes[daemon].configure(commands):
            assert not result.is_failed, result
    assert plan(daemons.read(), wanted)
    daemons.send(plan(daemons.read(), wanted))
    assert ordered(daemons.read()) == ordered(wanted)


def test_what_is_not_ours_is_left_alone(cases: Any) -> None:
    wanted = render_frr(cases.CASES["full-mesh"])
    daemons = Daemons(wanted)
    commands = (
        "ip prefix-list THEIRS seq 5 permit 10.0.0.0/8",
        "bgp community-list standard THEIRS permit 65000:1",
        "route-map THEIRS permit 10",
        "match ip address prefix-list THEIRS",
    )
    for result in daemons.fakes["bgpd"].configure(commands):
        assert not result.is_failed, result
    for result in daemons.fakes["bfdd"].configure(("bfd", "profile theirs")):
        assert not result.is_failed, result
    assert plan(daemons.read(), wanted) == ()
    daemons.send(plan(daemons.read(), render_frr(cases.CASES["external"])))
    assert "route-map THEIRS permit 10" in daemons.fakes["bgpd"].text()


# --- restarts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"asn": 64513},
        {"router_id": IPv4Address("10.9.0.7")},
        {"listen": (ip_address("10.9.0.1"),)},
        {"port": 1790},
    ],
)
def test_who_we_are_and_where_we_listen_take_a_restart(cases: Any, change: dict[str, Any]) -> None:
    one = cases.CASES["full-mesh"]
    applied, wanted = render_frr(one), render_frr(structs.replace(one, **change))
    assert needs_restart(applied, wanted)
    assert needs_restart(wanted, applied)
    with pytest.raises(ValueError, match="takes a restart"):
        plan(applied, wanted)


def test_nothing_else_takes_a_restart(cases: Any) -> None:
    listener = {"listen": (), "port": 179}
    rendered = [render_frr(structs.replace(each, **listener)) for each in cases.CASES.values()]
    assert not any(needs_restart(one, other) for one in rendered for other in rendered)
    assert not needs_restart(parse_running({}), rendered[0])
    without_id = parse_running({"bgpd": "router bgp 64512\n no bgp default ipv4-unicast\nexit\n"})
    assert needs_restart(without_id, rendered[0])
