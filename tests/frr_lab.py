"""Real FRR in network namespaces: a node and a router outside, joined by a veth pair.

    node 10.99.0.1, fd00:99::1 --- eth0 (veth) --- router 10.99.0.9, fd00:99::9

Boxes are namespaces with one thread each; what is run in it, and what that starts, is inside.
"""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_process import Layout, survivors, written_pid
from kube_router_py.kernel.ports_frr import DAEMONS, Boot

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PREFIX = "krp-frr-"
# Nothing takes this long unless it is broken; the machine may be that slow.
DEADLINE_S = 120.0

NODE, ROUTER = "10.99.0.1", "10.99.0.9"
NODE_AS, ROUTER_AS = 64512, 65000
PODS, OUTSIDE = "10.244.1.0/24", "198.18.0.0/16"


def require() -> None:
    """Skip where FRR cannot be run."""
    if os.geteuid() != 0:
        pytest.skip("missing capability: root, to create network namespaces and to run FRR")
    for program in ("/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "/usr/lib/frr/bfdd"):
        if not os.access(program, os.X_OK):
            pytest.skip(f"missing capability: {program} (Debian package frr)")


def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Ask until it is true, and return what was said then."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


class Box:
    """A network namespace; jobs run one after the other in its one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_new_namespace)
        self.path = f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net"
        self.run(sh, "ip link set lo up")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(call, *arguments).result(DEADLINE_S * 2)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _new_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


@contextmanager
def run_directory() -> Iterator[Layout]:
    """A run directory that the user frr may enter; whatever runs of it is ended afterwards."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        # Daemons outlive whoever started them, also a test run that was killed.
        if not Path("/proc", left.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            _remove(Layout(run_dir=str(left)))
    layout = Layout(run_dir=tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        yield layout
    finally:
        _remove(layout)


def _remove(layout: Layout) -> None:
    for process in survivors(layout, DAEMONS):
        process.send(signal.SIGKILL)
        process.has_ended(DEADLINE_S)
        process.close()
    shutil.rmtree(layout.run_dir, ignore_errors=True)


def bgpd_file(
    own: str, own_as: int, other: str, other_as: int, network: str, *, bfd: bool = False
) -> str:
    """A router with graceful restart and one external neighbor, in FRR's own words."""
    return "\n".join(
        [
            "frr defaults datacenter",
            "bgp route-map delay-timer 1",
            f"router bgp {own_as}",
            f" bgp router-id {own}",
            " no bgp ebgp-requires-policy",
            " no bgp default ipv4-unicast",
            " no bgp network import-check",
            " bgp graceful-restart",
            " bgp graceful-restart preserve-fw-state",
            " bgp graceful-restart restart-time 300",
            f" neighbor {other} remote-as {other_as}",
            f" neighbor {other} timers 10 60",
            f" neighbor {other} timers connect 1",
            f" neighbor {other} password k8s!md5#1",
            *([f" neighbor {other} bfd profile fast"] if bfd else []),
            " address-family ipv4 unicast",
            f"  network {network}",
            f"  neighbor {other} activate",
            " exit-address-family",
            "exit",
            "",
        ]
    )


ZEBRA_FILE = "no zebra nexthop kernel enable\n"
# Not so fast that a machine busy with other things loses a session.
_BFD_MULTIPLIER, _BFD_MS = 10, 500
BFD_S = _BFD_MULTIPLIER * _BFD_MS / 1000
BFDD_FILE = (
    f"bfd\n profile fast\n  detect-multiplier {_BFD_MULTIPLIER}\n"
    f"  transmit-interval {_BFD_MS}\n  receive-interval {_BFD_MS}\n exit\nexit\n"
)


def boot(side: str, *, bfd: bool = False) -> Boot:
    """What ``node`` or ``router`` starts with."""
    places = (NODE, NODE_AS, ROUTER, ROUTER_AS, PODS)
    if side == "router":
        places = (ROUTER, ROUTER_AS, NODE, NODE_AS, OUTSIDE)
    files = {"zebra": ZEBRA_FILE, "bgpd": bgpd_file(*places, bfd=bfd)}
    return Boot(files={**files, "bfdd": BFDD_FILE} if bfd else files)


class Pair:
    """The two boxes of the picture, and an adapter for the router's FRR."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.node, self.router = (
            stack.enter_context(closing(Box(name))) for name in ("node", "router")
        )
        self.node.run(
            sh,
            "ip link add eth0 type veth peer name peer0",
            f"ip link set peer0 netns {self.router.path}",
            "ip link set eth0 up",
            f"ip addr add {NODE}/24 dev eth0",
            "ip addr add fd00:99::1/64 dev eth0 nodad",
        )
        self.router.run(
            sh,
            "ip link set peer0 name eth0",
            "ip link set eth0 up",
            f"ip addr add {ROUTER}/24 dev eth0",
            "ip addr add fd00:99::9/64 dev eth0 nodad",
        )
        self.layout = stack.enter_context(run_directory())
        self.far = ManagedFrr(stack.enter_context(run_directory()), lambda: None)
        stack.callback(self.router.run, self.far.close)

    def open_router(self, *, bfd: bool = False) -> None:
        self.router.run(self.far.open, boot("router", bfd=bfd))

    def learned(self, box: Box) -> set[str]:
        """Prefixes that FRR has put into the kernel's main table there."""
        return {
            line.split()[0] for line in box.run(sh, "ip route show proto bgp").splitlines() if line
        }

    def await_routes(self) -> None:
        """Until both sides route to what the other one announces."""
        until(lambda: OUTSIDE in self.learned(self.node), "the node learns the router's route")
        until(lambda: PODS in self.learned(self.router), "the router learns the node's route")


class RouteMonitor:
    """What rtnetlink tells about IPv4 routes of a box from now on (``ip monitor``)."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._lines: list[str] = []
        self._marks = 0
        self._process = box.run(
            lambda: subprocess.Popen(
                ["ip", "-4", "-o", "monitor", "route"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.told()  # it listens

    def _read(self) -> None:
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def told(self) -> list[str]:
        """All that was told up to now, by the time that a change made now is told as well."""
        self._marks += 1
        mark = f"192.0.2.{self._marks}"

        def is_seen() -> bool:
            self._box.run(sh, f"ip route replace blackhole {mark}", f"ip route del {mark}")
            return any(mark in line for line in list(self._lines))

        until(is_seen, "the monitor listens")
        return [line for line in list(self._lines) if "192.0.2." not in line]

    def deleted(self) -> list[str]:
        return [line for line in self.told() if line.startswith("Deleted")]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()


def pid_of(layout: Layout, daemon: str) -> int:
    found = written_pid(layout, daemon)
    assert found is not None
    return found


def alive(layout: Layout) -> dict[str, list[int]]:
    """All daemons of a run directory that live, by name."""
    found: dict[str, list[int]] = {}
    for process in survivors(layout, DAEMONS):
        found.setdefault(process.daemon, []).append(process.pid)
        process.close()
    return found


def started(layout: Layout, daemon: str) -> int:
    """When a daemon was started, in clock ticks since the machine was (field 22 of proc(5))."""
    text = Path(f"/proc/{pid_of(layout, daemon)}/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])


def address(text: str) -> IPv4Address:
    return IPv4Address(text)


def frr_user() -> int:
    return pwd.getpwnam("frr").pw_uid


def write_text(path: str, text: str) -> None:
    Path(path).write_text(text)
