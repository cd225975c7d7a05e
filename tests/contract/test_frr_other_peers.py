"""A crash of our FRR as GoBGP and BIRD see it: with graceful restart they keep its routes."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.kernel.frr import ManagedFrr

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

GOBGPD = """
[global.config]
  as = 65000
  router-id = "10.99.0.9"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "10.99.0.1"
    peer-as = 64512
    auth-password = "k8s!md5#1"
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 300
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"""
BIRD = """
log stderr all;
router id 10.99.0.9;
protocol device {}
protocol kernel { ipv4 { export all; }; }
protocol static { ipv4; route 198.18.0.0/16 via "lo"; }
protocol bgp node {
  local 10.99.0.9 as 65000; neighbor 10.99.0.1 as 64512; direct;
  password "k8s!md5#1"; graceful restart on; graceful restart time 300; connect retry time 1;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; };
}
"""


class Gobgpd:
    """GoBGP keeps its routes to itself: it is asked for them."""

    def __init__(self, pair: Any, sh: Callable[..., str], path: Path) -> None:
        self._pair = pair
        self._sh = sh
        (path / "conf").write_text(GOBGPD)
        self.command = ["gobgpd", "-f", f"{path}/conf", "-t", "toml", "--pprof-disable"]
        self.command += ["--api-hosts", "127.0.0.1:50051"]

    def routes(self) -> str:
        try:
            return str(self._pair.router.run(self._sh, "gobgp global rib"))
        except AssertionError:  # it does not listen yet
            return ""


class Bird:
    """BIRD puts its routes into the kernel."""

    def __init__(self, pair: Any, sh: Callable[..., str], path: Path) -> None:
        self._pair = pair
        self._sh = sh
        (path / "conf").write_text(BIRD)
        self.command = ["bird", "-f", "-c", f"{path}/conf", "-s", f"{path}/ctl"]

    def routes(self) -> str:
        return str(self._pair.router.run(self._sh, "ip route show proto bird"))


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.mark.parametrize("kind", [Gobgpd, Bird])
@pytest.mark.parametrize("daemon", ["bgpd", "zebra"])
def test_it_keeps_the_routes(
    lab: Any, stack: ExitStack, kind: Any, daemon: str, tmp_path: Path
) -> None:
    lab.require()
    pair = lab.Pair(stack)
    peer = kind(pair, lab.sh, tmp_path)
    if shutil.which(peer.command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip(f"missing capability: {peer.command[0]} (.ci/setup installs it)")

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            peer.command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"},
        )

    process = pair.router.run(start)
    stack.callback(process.wait)
    stack.callback(process.kill)
    down = threading.Event()
    frr = ManagedFrr(pair.layout, down.set)
    stack.callback(pair.node.run, frr.close)
    boot = lab.boot("node")
    pair.node.run(frr.open, boot)
    lab.until(lambda: lab.PODS in peer.routes(), "the peer learns the route")
    monitor = stack.enter_context(closing(lab.RouteMonitor(pair.router)))

    os.kill(lab.pid_of(pair.layout, daemon), signal.SIGKILL)
    assert down.wait(lab.DEADLINE_S)
    lab.until(lambda: not lab.alive(pair.layout), "all daemons are ended")
    assert lab.PODS in peer.routes()
    pair.node.run(frr.restart, boot)
    lab.until(
        lambda: [each.is_established for each in pair.node.run(frr.summary).sessions] == [True],
        "the session is established anew",
    )
    assert lab.PODS in peer.routes()
    assert monitor.deleted() == []
    # Not as something old that is borne with for a while, but heard again.
    lab.until(
        lambda: [each.sent > 0 for each in pair.node.run(frr.summary).sessions] == [True],
        "the route is announced again",
    )
    assert lab.PODS in peer.routes()
