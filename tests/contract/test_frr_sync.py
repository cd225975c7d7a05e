"""Whatever the route controller wants of FRR, in whatever order: the daemons then run it.

On the fake this says that the fake understands all that is ever sent; on real FRR, that FRR does.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.ports_frr import Frr
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running
from kube_router_py.routing.frr_sync import FrrSync

pytestmark = pytest.mark.timeout(600)
STEPS = 40


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.frr)])
def frr(request: pytest.FixtureRequest, beside: Callable[[str], ModuleType]) -> Iterator[Frr]:
    with ExitStack() as stack:
        if request.param == "fake":
            yield stack.enter_context(closing(FakeFrr(FakeDaemons())))
            return
        lab = beside("frr_lab")
        lab.require()
        stack.enter_context(request.getfixturevalue("new_namespace")())
        layout = stack.enter_context(lab.run_directory())
        yield stack.enter_context(closing(ManagedFrr(layout, lambda: None)))


def lines(config: FrrConfig) -> dict[tuple[str, ...], frozenset[str]]:
    """Without the order of lines, which the fake keeps as they came."""
    return {
        (daemon, *each.path): frozenset(each.lines)
        for daemon in DAEMONS
        for each in config.sections(daemon)
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_walk(frr: Frr, seed: int, beside: Callable[[str], Any]) -> None:
    walk = beside("frr_cases").Walk(seed)
    sync = FrrSync(frr, "n1")
    config = walk.config
    for step in range(STEPS):
        wanted = render_frr(config)
        assert sync.sync(wanted, full=False).problems == (), step
        running = parse_running(frr.running(), wanted.listen, wanted.port)
        assert lines(running) == lines(wanted), step
        config = walk.step()
    assert sync.drift == 0


def test_what_somebody_else_changes_is_put_right_and_no_more(
    frr: Frr, beside: Callable[[str], Any]
) -> None:
    walk = beside("frr_cases").Walk(7)
    wanted = render_frr(walk.config)
    while not _networks(wanted):
        wanted = render_frr(walk.step())
    sync = FrrSync(frr, "n1")
    assert sync.sync(wanted, full=True).problems == ()
    router = f"router bgp {wanted.asn}"
    v4 = [router, "address-family ipv4 unicast"]
    for change in (
        [*v4, "network 198.51.100.77/32"],
        [*v4, f"no {_networks(wanted)[0]}"],
        [router, "no bgp default ipv4-unicast", "neighbor 10.9.0.99 remote-as 64999"],
        ["bgp route-map delay-timer 9"],
        ["route-map krp-theirs permit 10", "set local-preference 7"],
    ):
        assert not any(each.is_failed for each in frr.apply({"bgpd": change})["bgpd"])
        before = frr.writes
        assert sync.sync(wanted, full=False).problems == ()
        assert frr.writes == before  # nothing was read
        assert sync.sync(wanted, full=True).problems == ()
        running = parse_running(frr.running(), wanted.listen, wanted.port)
        assert lines(running) == lines(wanted), change
        assert before < frr.writes < before + 10
    assert sync.drift > 0


def _networks(config: FrrConfig) -> list[str]:
    return [
        " ".join(line.split()[:2])
        for each in config.bgpd
        if each.path[1:] == ("address-family ipv4 unicast",)
        for line in each.lines
        if line.startswith("network ")
    ]
