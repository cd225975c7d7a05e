"""What ``render --show-secrets`` prints, written to files as it stands, is what real FRR runs."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kube_router_py import render
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.options import parse
from kube_router_py.render_bgp import Given
from kube_router_py.routing.frr_sections import parse_running

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

GOLDEN = Path(__file__).parents[1] / "golden" / "render"
CASES = ("announced-services", "bgp-peers", "routing-dual-stack", "tunnels-ipip")


@pytest.fixture
def daemons(beside: Callable[[str], ModuleType]) -> Iterator[tuple[Any, ManagedFrr]]:
    """FRR that is not started yet, in a namespace with the addresses of the cases' node1."""
    lab = beside("frr_lab")
    lab.require()
    with ExitStack() as stack:
        box = stack.enter_context(closing(lab.Box("node")))
        box.run(
            lab.sh,
            "ip link add eth0 type veth peer name other",
            "ip link set eth0 up",
            "ip addr add 10.0.1.11/24 dev eth0",
            "ip addr add fd00:1::11/64 dev eth0 nodad",
        )
        layout = stack.enter_context(lab.run_directory())
        frr = ManagedFrr(layout, lambda: None)
        stack.callback(box.run, frr.close)
        yield box, frr


@pytest.mark.parametrize("case", CASES)
def test_frr_runs_what_is_shown(case: str, daemons: tuple[Any, ManagedFrr]) -> None:
    path = GOLDEN / f"{case}.yaml"
    (line,) = (each for each in path.read_text().splitlines() if each.startswith("# flags:"))
    options, given = parse(line.removeprefix("# flags:").split(), {}), Given(show_secrets=True)
    printed = io.StringIO()
    code = render.main([str(path)], "node1", options, "json", given, io.StringIO(), printed)
    assert code == 0
    shown = json.loads(printed.getvalue())["frr"]
    box, frr = daemons
    box.run(frr.restart, Boot({name: text for name, text in shown.items() if text}))
    running = box.run(frr.running)
    assert parse_running(running) == parse_running(shown)
