"""Metrics of BGP and BFD sessions, scraped beside a real FRR that somebody else is busy with."""

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.frr import ManagedFrr, read_summary
from kube_router_py.observe.bgp import BgpPage
from kube_router_py.routing.annotations import Member
from kube_router_py.routing.compile import Neighborhood
from kube_router_py.routing.model import Neighbor, Role, Session

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

_SCRAPE_S = 60.0
RECEIVED = "controller_bgp_advertisements_received"
NO_FRR = {"frr_up": 0, RECEIVED: 0}


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    found = beside("frr_lab")
    found.require()
    return found


@pytest.fixture
def pair(lab: Any) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lab.Pair(stack)


class Scrapes:
    """Pages as Prometheus gets them; none is an old one."""

    def __init__(self, lab: Any, directory: str, timeout_s: float = _SCRAPE_S) -> None:
        session = Session(role=Role.EXTERNAL, remote_as=lab.ROUTER_AS, versions=(4,))
        around = Neighborhood(
            own=Member(name="node1"),
            neighbors=(Neighbor(address=lab.address(lab.ROUTER), session=session),),
        )
        clock = itertools.count(0, 10)
        self._page = BgpPage(
            partial(read_summary, directory, timeout_s), lambda: around, lambda: float(next(clock))
        )

    def values(self) -> dict[str, float]:
        text = self._page.text().decode()
        assert "md5" not in text  # the password of the session
        return {
            name: float(value)
            for name, value in re.findall(r"^kube_router_(\S.*) (\S+)$", text, re.MULTILINE)
        }


def test_a_session_is_followed_from_its_start_to_the_end_of_frr(
    lab: Any, pair: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scrapes = Scrapes(lab, pair.layout.run_dir)
    labels = f'{{address="{lab.ROUTER}",type="external",family="ipv4"}}'
    info = f'bgp_peer_info{{address="{lab.ROUTER}",type="external",asn="65000",state="%s"}}'
    bfd = f'bfd_session_up{{address="{lab.ROUTER}"}}'
    assert scrapes.values() == NO_FRR
    caplog.set_level("INFO")
    near = ManagedFrr(pair.layout, lambda: None)
    pair.node.run(near.open, lab.boot("node", bfd=True))
    try:
        pair.open_router(bfd=True)
        values = lab.until(
            lambda: (
                (found := scrapes.values()).get(f"bgp_peer_prefixes_received{labels}") == 1
                and found.get(bfd) == 1
                and found
            ),
            "the session stands, and BFD's",
        )
        assert values["frr_up"] == 1
        # At least the router's prefix, and the End-of-RIB marker (RFC 4724) of its family.
        assert values[RECEIVED] >= 2
        assert values[info % "Established"] == 1
        assert values[f"bgp_peer_established{labels}"] == 1
        came = values[f"bgp_peer_connections_established_total{labels}"]
        assert came >= 1
        assert values[f"bgp_peer_connections_dropped_total{labels}"] == came - 1
        lab.until(
            lambda: scrapes.values()[f"bgp_peer_prefixes_sent{labels}"] >= 1, "ours is announced"
        )
        lab.until(
            lambda: scrapes.values()[f"bgp_peer_uptime_seconds{labels}"] >= 1, "the time goes by"
        )
        # The agent's own connections are not disturbed, nor is ours.
        for number in range(20):
            changes = {"bgpd": [f"ip prefix-list L seq 5 permit 192.0.2.{number}/32"]}
            done = pair.node.run(near.apply, changes)
            assert not any(each.is_failed for each in done["bgpd"])
            assert scrapes.values()["frr_up"] == 1
        # A bgpd that hangs costs a scrape no more than its patience.
        hung = lab.pid_of(pair.layout, "bgpd")
        os.kill(hung, signal.SIGSTOP)
        try:
            assert Scrapes(lab, pair.layout.run_dir, 0.5).values() == NO_FRR
        finally:
            os.kill(hung, signal.SIGCONT)
        assert scrapes.values()["frr_up"] == 1
        pair.router.run(pair.far.stop)
        values = lab.until(
            lambda: (
                (found := scrapes.values())[f"bgp_peer_established{labels}"] == 0
                and found.get(bfd) == 0
                and found
            ),
            "the session has gone, and BFD's",
        )
        assert values[f"bgp_peer_uptime_seconds{labels}"] == 0
        received = values[RECEIVED]
        assert values[f"bgp_peer_connections_dropped_total{labels}"] >= came
        assert info % "Established" not in values
        # FRR's own words about it are in our log.
        for word in ("Up", "Down"):
            lab.until(
                lambda word=word: any(
                    record.levelname == "INFO"
                    and re.search(rf"%ADJCHANGE: neighbor {lab.ROUTER}\S* .*{word}", record.message)
                    for record in caplog.records
                ),
                f"the log says {word}",
            )
    finally:
        pair.node.run(near.stop)
    assert scrapes.values() == {**NO_FRR, RECEIVED: received}
    assert "no metrics of BGP sessions for now" in caplog.text
