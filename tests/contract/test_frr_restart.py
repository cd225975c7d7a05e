"""What a crash of FRR, or of the agent, does to routes and sessions: nothing that forwards ends.

Every test has a real peer with graceful restart behind a veth, and rtnetlink's own word for it that
no route was deleted.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.ports_frr import DaemonsDownError, Opened

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture
def pair(lab: Any) -> Iterator[Any]:
    lab.require()
    with ExitStack() as stack:
        yield lab.Pair(stack)


class Agent:
    """An agent on the node: an adapter whose ``down`` sets an event."""

    def __init__(self, pair: Any, **options: Any) -> None:
        self._pair = pair
        self.down = threading.Event()
        self.frr = ManagedFrr(pair.layout, self.down.set, **options)

    def run(self, name: str, *arguments: Any) -> Any:
        return self._pair.node.run(getattr(self.frr, name), *arguments)

    def close(self) -> None:
        self.run("close")


@pytest.mark.parametrize("daemon", ["bgpd", "zebra", "bfdd"])
def test_a_killed_daemon_costs_no_route(lab: Any, pair: Any, daemon: str) -> None:
    pair.open_router(bfd=True)
    with closing(Agent(pair)) as agent:
        boot = lab.boot("node", bfd=True)
        assert agent.run("open", boot) is Opened.STARTED
        pair.await_routes()
        lab.until(lambda: [each.state for each in agent.run("summary").bfd] == ["up"], "BFD is up")
        before = lab.alive(pair.layout)
        with (
            closing(lab.RouteMonitor(pair.node)) as here,
            closing(lab.RouteMonitor(pair.router)) as there,
        ):
            os.kill(lab.pid_of(pair.layout, daemon), signal.SIGKILL)
            assert agent.down.wait(lab.DEADLINE_S)
            # All have gone with the one, before the peer's BFD can have noticed.
            lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
            with pytest.raises(DaemonsDownError, match=daemon):
                agent.run("running")
            agent.run("restart", boot)
            after = lab.alive(pair.layout)
            assert set(after) == set(before)
            assert all(len(pids) == 1 for pids in after.values())
            assert all(after[name] != before[name] for name in after)
            lab.until(
                lambda: [each.is_established for each in agent.run("summary").sessions] == [True],
                "the session is established anew",
            )
            pair.await_routes()
            lab.until(
                lambda: [each.received for each in agent.run("summary").sessions] == [1],
                "the router's prefix is heard again",
            )
            assert here.deleted() == []
            assert there.deleted() == []
