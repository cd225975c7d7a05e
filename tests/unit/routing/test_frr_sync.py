"""FRR brought to what is wanted, on the fake that passes the real daemons' contract."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from kube_router_py.errors import PreflightError
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.ports_frr import Boot, CommandResult, Opened
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running
from kube_router_py.routing.frr_sync import FrrSync
from kube_router_py.routing.model import (
    Announcement,
    Bfd,
    Kind,
    Neighbor,
    Role,
    RouterConfig,
    Session,
)


def wanted(*vips: str, password: str = "", bfd: bool = False, router_id: int = 1) -> FrrConfig:
    session = Session(
        role=Role.EXTERNAL,
        remote_as=65000,
        versions=(4,),
        password=password,
        bfd=Bfd() if bfd else None,
    )
    return render_frr(
        RouterConfig(
            asn=64512,
            router_id=IPv4Address(router_id),
            neighbors=(Neighbor(address=IPv4Address("10.0.0.9"), session=session),),
            announcements=tuple(
                Announcement(prefix=IPv4Network(vip), kind=Kind.SERVICE) for vip in sorted(vips)
            ),
        )
    )


def lines(config: FrrConfig) -> dict[tuple[str, ...], frozenset[str]]:
    """The fake keeps lines in the order in which they came."""
    return {
        (daemon, *each.path): frozenset(each.lines)
        for daemon in DAEMONS
        for each in config.sections(daemon)
    }


class World:
    def __init__(self) -> None:
        self.daemons = FakeDaemons()
        self.frr = FakeFrr(self.daemons)
        self.sync = FrrSync(self.frr, "n1")

    def runs(self, config: FrrConfig) -> bool:
        texts = {name: each.text() for name, each in self.daemons.configs.items()}
        return lines(parse_running(texts)) == lines(config)


@pytest.fixture
def world() -> World:
    return World()


def test_daemons_are_started_with_the_whole_file(world: World) -> None:
    assert world.sync.sync(wanted("192.0.2.1/32"), full=True).problems == ()
    assert world.runs(wanted("192.0.2.1/32"))
    assert (len(world.daemons.boots), world.frr.writes) == (1, 0)


def test_a_change_costs_its_own_commands(world: World) -> None:
    many = [f"192.0.2.{i}/32" for i in range(100)]
    world.sync.sync(wanted(*many), full=True)
    world.sync.sync(wanted(*many, "198.51.100.1/32"), full=False)
    assert world.runs(wanted(*many, "198.51.100.1/32"))
    assert world.frr.writes == 5  # into the section, the line, and out
    before = world.frr.writes
    world.sync.sync(wanted(*many, "198.51.100.1/32"), full=True)
    assert world.frr.writes == before
    assert len(world.daemons.boots) == 1
    assert world.sync.drift == 0


def test_what_somebody_else_changed_is_repaired_and_counted(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    world.daemons.out_of_band(
        "bgpd",
        "router bgp 64512",
        "address-family ipv4 unicast",
        "no network 192.0.2.1/32",
        "exit-address-family",
        "exit",
    )
    assert not world.runs(wanted("192.0.2.1/32"))
    assert world.sync.sync(wanted("192.0.2.1/32"), full=False).problems == ()
    assert not world.runs(wanted("192.0.2.1/32"))  # nothing was read
    assert world.sync.sync(wanted("192.0.2.1/32"), full=True).problems == ()
    assert world.runs(wanted("192.0.2.1/32"))
    assert world.sync.drift > 0


def test_a_restarted_agent_adopts_and_changes_what_differs(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    world.frr.close()
    frr = FakeFrr(world.daemons)
    sync = FrrSync(frr, "n1")
    assert sync.sync(wanted("192.0.2.2/32"), full=True).problems == ()
    assert world.runs(wanted("192.0.2.2/32"))
    assert len(world.daemons.boots) == 1
    assert sync.drift == 0


def test_another_identity_takes_one_restart(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    assert world.sync.sync(wanted("192.0.2.1/32", router_id=2), full=False).problems == ()
    assert world.runs(wanted("192.0.2.1/32", router_id=2))
    assert len(world.daemons.boots) == 2


def test_daemons_that_ended_are_started_with_what_is_wanted_now(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    world.frr.kill("bgpd")
    world.daemons.resting_s = 7.0
    result = world.sync.sync(wanted("192.0.2.2/32"), full=False)
    assert (result.wake_after_s, len(result.problems)) == (7.0, 1)
    world.daemons.resting_s = 0.0
    assert world.sync.sync(wanted("192.0.2.2/32"), full=False).problems == ()
    assert world.runs(wanted("192.0.2.2/32"))


def test_what_the_node_lacks_is_told_and_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(boot: Boot) -> Opened:
        raise PreflightError("install the package frr")

    with monkeypatch.context() as patched:
        patched.setattr(world.frr, "open", lacking)
        result = world.sync.sync(wanted(), full=True)
    assert [each.reason for each in result.problems] == ["BGP: install the package frr"]
    assert world.sync.sync(wanted(), full=False).problems == ()


def test_a_refused_line_is_told_without_its_password_and_tried_again(world: World) -> None:
    world.sync.sync(wanted(), full=True)
    new = wanted(password="s3cret")
    command = "neighbor 10.0.0.9 password s3cret"
    world.daemons.refused[command] = CommandResult(command, 13, "% Invalid value")
    result = world.sync.sync(new, full=False)
    assert [each.object for each in result.problems] == ["Node n1"]
    assert "Invalid value" in result.problems[0].reason
    assert "s3cret" not in str(result.problems)
    world.daemons.refused.clear()
    assert world.sync.sync(new, full=False).problems == ()
    assert world.runs(new)


def test_a_refusal_of_no_consequence_is_no_problem(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    world.daemons.out_of_band(
        "bgpd", "router bgp 64512", "address-family ipv4 unicast", "no network 192.0.2.1/32"
    )
    command = "no network 192.0.2.1/32"
    answer = CommandResult(command, 13, "% Can't find static route specified")
    world.daemons.refused.update({command: answer, f"{command} route-map": answer})
    assert world.sync.sync(wanted(), full=False).problems == ()
    assert world.runs(wanted())


def test_a_connection_lost_in_between_leaves_nothing_undone(world: World) -> None:
    world.sync.sync(wanted("192.0.2.1/32"), full=True)
    world.daemons.lost = 1
    assert world.sync.sync(wanted("192.0.2.2/32", "192.0.2.3/32"), full=False).problems
    assert world.sync.sync(wanted("192.0.2.2/32", "192.0.2.3/32"), full=False).problems == ()
    assert world.runs(wanted("192.0.2.2/32", "192.0.2.3/32"))


@pytest.mark.parametrize("full", [False, True])
def test_bfdd_comes_and_goes_with_its_use(
    world: World, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sync.sync(wanted(), full=True)
    assert "bfdd" not in world.daemons.configs
    assert world.sync.sync(wanted(bfd=True), full=full).problems == ()
    assert world.runs(wanted(bfd=True))
    order: list[str] = []
    apply, open_ = world.frr.apply, world.frr.open

    def applied(commands: Mapping[str, Sequence[str]]) -> dict[str, tuple[CommandResult, ...]]:
        order.extend(commands)
        return apply(commands)

    def opened(boot: Boot) -> Opened:
        order.append(f"open {sorted(boot.files)}")
        return open_(boot)

    monkeypatch.setattr(world.frr, "apply", applied)
    monkeypatch.setattr(world.frr, "open", opened)
    assert world.sync.sync(wanted(), full=full).problems == ()
    assert order[0] == "open ['bfdd', 'bgpd', 'zebra']"
    assert "bgpd" in order[1:-1]
    assert order[-1] == "open ['bgpd', 'zebra']"
    assert world.runs(wanted())
    assert len(world.daemons.boots) == 1
