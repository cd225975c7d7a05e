"""What we write for FRR is what real FRR echoes: started with it, and led to it by commands."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_process import Layout
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_delta import plan
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden" / "frr").glob("*.txt"))
LINKS = ("eth0", "eth9")


class Set:
    """A set of daemons in a namespace of their own that has the addresses of the cases."""

    def __init__(self, lab: Any, box: Any, layout: Layout) -> None:
        self._lab, self.box, self._layout = lab, box, layout
        self._frr = ManagedFrr(layout, lambda: None)

    def start(self, config: FrrConfig) -> None:
        files = {daemon: config.text(daemon) for daemon in DAEMONS}
        self.start_with(files, config.listen, config.port)

    def start_with(
        self, files: dict[str, str], listen: tuple[Any, ...] = (), port: int = 179
    ) -> None:
        self.box.run(self._frr.restart, Boot(files, listen, port))

    def send(self, old: FrrConfig, new: FrrConfig) -> None:
        for batch in plan(old, new):
            results = self.box.run(self._frr.apply, {batch.daemon: batch.commands})
            for result in results[batch.daemon]:
                assert not result.is_failed, result

    def configure(self, daemon: str, *commands: str) -> None:
        for result in self.box.run(self._frr.apply, {daemon: commands})[daemon]:
            assert not result.is_failed, result

    def read(self, listen: tuple[Any, ...] = (), port: int = 179) -> FrrConfig:
        return parse_running(self.box.run(self._frr.running), listen, port)

    def refused(self) -> list[str]:
        """Lines of its files that a daemon has not taken."""
        found: list[str] = []
        for daemon in DAEMONS:
            log = Path(self._layout.path(daemon, "log"))
            told = log.read_text().splitlines() if log.exists() else []
            found += (line for line in told if "on config line" in line)
        return found

    def close(self) -> None:
        self.box.run(self._frr.close)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture(scope="module")
def cases(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_cases")


@pytest.fixture
def daemons(lab: Any) -> Iterator[Set]:
    lab.require()
    with ExitStack() as stack:
        box = stack.enter_context(closing(lab.Box("node")))
        box.run(
            lab.sh,
            *(f"ip link add {each} type veth peer name p{each}" for each in LINKS),
            *(f"ip link set {each} up" for each in LINKS),
            "ip addr add 10.9.0.1/16 dev eth0",
            "ip addr add 10.9.1.1/16 dev eth0",
            "ip addr add fd00:9::1/64 dev eth0 nodad",
        )
        yield stack.enter_context(closing(Set(lab, box, stack.enter_context(lab.run_directory()))))


def difference(wanted: FrrConfig, found: FrrConfig) -> list[str]:
    return [
        line
        for daemon in DAEMONS
        for line in difflib.unified_diff(
            wanted.text(daemon).splitlines(),
            found.text(daemon).splitlines(),
            f"our {daemon}",
            f"{daemon} of FRR",
            lineterm="",
        )
    ]


@pytest.mark.parametrize("name", NAMES)
def test_frr_echoes_what_it_was_started_with(name: str, cases: Any, daemons: Set) -> None:
    wanted = render_frr(cases.CASES[name])
    daemons.start(wanted)
    found = daemons.read(wanted.listen, wanted.port)
    assert daemons.refused() == []
    assert difference(wanted, found) == []
    assert found == wanted


def test_a_line_that_frr_does_not_take_is_noticed(lab: Any, cases: Any, daemons: Set) -> None:
    """What the test before relies on."""
    wanted = render_frr(cases.CASES["full-mesh"])
    text = wanted.text("bgpd").replace("neighbor 10.9.0.3 remote-as", "neighbor 10.9.0.3 no-such")
    files = {each: wanted.text(each) if each != "bgpd" else text for each in DAEMONS}
    daemons.start_with(files)
    assert lab.until(daemons.refused, "the log tells")
    assert daemons.read() != wanted


@pytest.mark.parametrize("seed", range(100, 104))
def test_commands_lead_where_a_start_would(seed: int, cases: Any, daemons: Set) -> None:
    walk = cases.Walk(seed)
    old = render_frr(walk.config)
    daemons.start(old)
    for step in range(60):
        new = render_frr(walk.step())
        daemons.send(old, new)
        found = daemons.read()
        assert difference(new, found) == [], step
        assert found == new
        assert plan(found, new) == ()
        old = new
    assert daemons.refused() == []


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["there", "back"])
def test_there_is_a_way_from_each_case_to_the_next(
    names: list[str], cases: Any, daemons: Set
) -> None:
    names = [name for name in names if name != "listener"]  # takes a restart
    old = render_frr(cases.CASES[names[0]])
    daemons.start(old)
    for name in names:
        new = render_frr(cases.CASES[name])
        daemons.send(old, new)
        assert difference(new, daemons.read()) == [], name
        old = new


def test_what_somebody_else_changed_is_put_right(cases: Any, daemons: Set) -> None:
    wanted = render_frr(cases.CASES["bfd"])
    daemons.start(wanted)
    daemons.configure(
        "bgpd",
        "no bgp route-map delay-timer 1",
        "route-map krp-from-nodes permit 40",
        "exit",
        "route-map krp-from-nodes permit 30",
        "set local-preference 7",
        "exit",
        "no route-map krp-from-outside",
        "ip prefix-list krp-refuse seq 7 permit 10.0.0.0/8 le 32",
        "route-map THEIRS permit 10",
        "exit",
        "router bgp 64512",
        "no neighbor 10.9.0.2",
        "no bgp bestpath as-path multipath-relax",
        "neighbor 10.9.0.99 remote-as 65000",
        "neighbor 10.9.0.254 description mine",
        "address-family ipv4 unicast",
        "network 198.18.0.0/15",
        "maximum-paths 2",
        "no neighbor 10.9.0.3 activate",
    )
    daemons.configure("zebra", "zebra nexthop kernel enable", "zebra route-map delay-timer 9")
    daemons.configure("bfdd", "bfd", "profile krp-3-300-300-1", "transmit-interval 77")
    daemons.send(daemons.read(), wanted)
    found = daemons.read()
    (theirs,) = set(found.bgpd) - set(wanted.bgpd)
    assert theirs.path == ("route-map THEIRS permit 10",)
    assert set(wanted.bgpd) < set(found.bgpd)
    assert (found.zebra, found.bfdd) == (wanted.zebra, wanted.bfdd)
    assert plan(found, wanted) == ()


def test_forwarding_is_not_touched(cases: Any, daemons: Set) -> None:
    names = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    for value in ("1", "0"):
        for name in names:
            daemons.box.run(Path("/proc/sys", name).write_text, value)
        wanted = render_frr(cases.CASES["dual-stack"])
        daemons.start(wanted)
        assert daemons.read() == wanted
        paths = [Path("/proc/sys", name) for name in names]
        assert [daemons.box.run(path.read_text).strip() for path in paths] == [value, value]
