"""Doctor looks at sessions of real FRR: up, with another password, and without a neighbor."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.doctor import bgp, facts_frr, facts_host
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.options import Options

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

ROUTER = Options(run_router=True)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    found = beside("frr_lab")
    found.require()
    return found


@pytest.fixture
def pair(lab: Any) -> Iterator[Any]:
    """Node and router that route to each other."""
    with ExitStack() as stack:
        both = lab.Pair(stack)
        near = ManagedFrr(both.layout, lambda: None)
        stack.callback(both.node.run, near.close)
        both.node.run(near.open, lab.boot("node"))
        both.open_router()
        both.await_routes()
        yield both


def codes(pair: Any) -> list[str]:
    looked = pair.node.run(facts_frr.look, pair.layout.run_dir, 1.0, 30.0)
    return [each.code for each in bgp.sessions(looked)]


def test_sessions_that_are_up_and_the_agents_own_daemons_yield_nothing(pair: Any) -> None:
    looked = pair.node.run(facts_frr.look, pair.layout.run_dir)
    assert [each.state for each in looked.sessions] == ["Established"]
    assert looked.with_password == {"10.99.0.9"}
    assert list(bgp.sessions(looked)) == []
    assert pair.node.run(facts_frr.is_up, pair.layout.run_dir)
    own = pair.node.run(facts_host.frr_processes, pair.layout.run_dir)
    seen = pair.node.run(facts_host.bgp_processes, 179)
    assert any(each.port for each in seen)
    assert list(bgp.daemons(seen, own, ROUTER, frr_is_up=True)) == []
    assert [each.code for each in bgp.daemons(seen, (), ROUTER, frr_is_up=True)] == [
        "bgp-second-daemon"
    ]


def test_another_password_is_told_apart_from_a_neighbor_that_is_gone(lab: Any, pair: Any) -> None:
    client = VtyClient(pair.layout.path("bgpd", "vty"))
    wrong = ["router bgp 64512", " neighbor 10.99.0.9 password another"]
    assert not any(each.is_failed for each in client.configure(wrong))
    client.close()
    lab.until(lambda: codes(pair) == ["bgp-password-wrong"], "the wrong password is found")


def test_a_neighbor_that_is_gone(lab: Any, pair: Any) -> None:
    pair.router.run(lab.sh, "ip link set eth0 down")
    lab.until(lambda: codes(pair) == ["bgp-session-down"], "the session is found to be down")
