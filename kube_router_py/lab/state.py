"""Finding a running lab, entering its namespaces and asking its server: for other processes.

A lab is a directory below ``/run/kube-router-lab`` with ``lab.json`` (who and where), a control
socket, a kubeconfig and logs. ``KUBE_ROUTER_LAB`` names the directory; without it the only running
lab is meant.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kube_router_py.lab.container import host_path
from kube_router_py.lab.errors import LabError
from kube_router_py.options import Options

BASE = Path("/run/kube-router-lab")
# Where `ip` looks for named namespaces; in the lab's mount namespace it is the lab's own.
NETNS_DIRECTORY = Path("/run/netns")
MADE_NETNS = "made-netns"
VARIABLE = "KUBE_ROUTER_LAB"
CONTROL_TIMEOUT_S = 600.0
VISITOR_GRACE_S = 3.0
SPECIAL_NAMES = ("router", "client", "desk", "apiserver", "fabric")


@dataclass(frozen=True)
class LabState:
    """``lab.json``: ``pid`` is a process inside, ``started`` its start time in clock ticks."""

    directory: Path
    pid: int
    started: int
    nodes: tuple[str, ...]

    @property
    def control(self) -> Path:
        return self.directory / "control.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started

    def write(self) -> None:
        document = {**asdict(self), "directory": str(self.directory)}
        (self.directory / "lab.json").write_text(json.dumps(document))

    def netns_path(self, namespace: str) -> str:
        """A path to a namespace of the lab that works from outside its mount namespace."""
        return f"/proc/{self.pid}/root{NETNS_DIRECTORY}/{namespace}"

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request to the lab's server; raises LabError with what it answers."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(CONTROL_TIMEOUT_S)
                sock.connect(str(self.control))
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as file:
                    answer = json.loads(file.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise LabError(f"the lab in {self.directory} does not answer: {error}") from error
        if "error" in answer or not isinstance(answer, dict):
            raise LabError(str(answer.get("error") or "the lab ended while it was asked"))
        return answer

    def resolve(self, target: str) -> str:
        """The namespace of ``node1``, ``NS/POD`` or one of SPECIAL_NAMES."""
        if target in self.nodes or target in SPECIAL_NAMES:
            return target
        if "/" in target:
            return str(self.ask({"op": "resolve", "pod": target})["netns"])
        known = ", ".join([*self.nodes, *SPECIAL_NAMES])
        raise LabError(f"{target!r} is none of {known} and no NAMESPACE/POD")

    def end_visitors(self) -> None:
        """End what still runs in the lab's networks from outside: a forgotten ``lab exec ... &``.

        It would keep its namespace alive. SIGTERM first, so that a packet capture is written out.
        """
        root = Path(f"/proc/{self.pid}/root{NETNS_DIRECTORY}")
        try:
            own = os.stat(f"/proc/{self.pid}/ns/pid_for_children").st_ino
            networks = {file.stat().st_ino for file in root.iterdir()}
        except OSError:
            return  # the lab has ended already
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "ns" / "pid").stat().st_ino == own:
                    continue  # the lab's own go with it
                if (entry / "ns" / "net").stat().st_ino in networks:
                    found.append(os.pidfd_open(int(entry.name)))
            except OSError:
                continue  # ended meanwhile
        end = time.monotonic() + VISITOR_GRACE_S
        for descriptor in found:
            _signal(descriptor, signal.SIGTERM)
        for descriptor in found:
            select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            _signal(descriptor, signal.SIGKILL)
            os.close(descriptor)

    def enter(self, target: str, argv: Sequence[str]) -> list[str]:
        """``argv`` prefixed so that it runs in the network of ``target``; of a node it finds the
        agent."""
        inside = ["nsenter", f"--net={self.netns_path(self.resolve(target))}", "--"]
        if target in self.nodes:
            inside += ["env", f"KUBE_ROUTER_AGENT_SOCKET={self.agent_socket(target)}"]
        return [*inside, *argv]

    def agent_socket(self, node: str) -> Path:
        """Where a node's agent listens, as seen from outside."""
        return host_path(Options().agent_socket, self.directory / "nodes" / node)


def start_time(pid: int) -> int | None:
    """When a process started (clock ticks since boot): tells a reused pid from the old process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def read(directory: Path) -> LabState:
    """Raises LabError where no lab is."""
    try:
        document = json.loads((directory / "lab.json").read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"no lab in {directory}: {error}") from error
    return LabState(
        directory=directory,
        pid=document["pid"],
        started=document["started"],
        nodes=tuple(document["nodes"]),
    )


def running() -> list[LabState]:
    """All labs that run, this machine over."""
    found = []
    for file in sorted(BASE.glob("*/lab.json")):
        try:
            state = read(file.parent)
        except LabError:
            continue  # being written or removed
        if state.is_alive:
            found.append(state)
    return found


def attach(environ: Mapping[str, str]) -> LabState:
    """The lab meant by ``KUBE_ROUTER_LAB``, or the only one. Raises LabError."""
    if named := environ.get(VARIABLE):
        return read(Path(named))
    labs = running()
    if not labs:
        raise LabError("no lab is running: start one with `kube-router-py lab`")
    if len(labs) > 1:
        names = ", ".join(str(lab.directory) for lab in labs)
        raise LabError(f"several labs are running: set {VARIABLE} to one of {names}")
    return labs[0]


def _signal(descriptor: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass  # ended


@contextmanager
def _alone() -> Iterator[None]:
    """No other lab makes or removes directories meanwhile."""
    descriptor = os.open(BASE.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """A lab's directory below BASE, and the mount point of its namespaces."""
    with _alone():
        directory.mkdir(parents=True, mode=0o755)
        if not NETNS_DIRECTORY.exists():
            NETNS_DIRECTORY.mkdir()
            (BASE / MADE_NETNS).touch()


def remove_directory(directory: Path) -> None:
    """Undo ``make_directory``; what labs share goes with the last of them.

    Removing the mount point earlier would detach the mounts that other labs have there.
    """
    shutil.rmtree(directory, ignore_errors=True)
    with _alone():
        sweep()
        if not BASE.is_dir() or any(entry.is_dir() for entry in BASE.iterdir()):
            return
        made_netns = (BASE / MADE_NETNS).exists()
        shutil.rmtree(BASE, ignore_errors=True)
        if made_netns:
            try:
                NETNS_DIRECTORY.rmdir()
            except OSError:
                pass  # others have put namespaces there


def sweep() -> None:
    """Remove directories of labs that were killed; the kernel has freed everything else."""
    for file in BASE.glob("*/lab.json"):
        try:
            alive = read(file.parent).is_alive
        except LabError:
            continue
        if not alive:
            shutil.rmtree(file.parent, ignore_errors=True)


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("only root can enter the lab's namespaces: try again with sudo")
