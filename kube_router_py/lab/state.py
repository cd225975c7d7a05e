"""Finding a running lab, entering its namespaces and asking its server: for other processes.

A lab is a directory below ``/run/kube-router-lab`` with ``lab.json`` (who and where), a control
socket, a kubeconfig and logs. ``KUBE_ROUTER_LAB`` names the directory; without it the only running
lab is meant.
"""

import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kube_router_py.lab.errors import LabError

BASE = Path("/run/kube-router-lab")
# Where `ip` looks for named namespaces; in the lab's mount namespace it is the lab's own.
NETNS_DIRECTORY = Path("/run/netns")
VARIABLE = "KUBE_ROUTER_LAB"
CONTROL_TIMEOUT_S = 600.0
SPECIAL_NAMES = ("router", "client", "apiserver")


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
        """The namespace of ``node1``, ``client``, ``router``, ``apiserver`` or ``NS/POD``."""
        if target in self.nodes or target in SPECIAL_NAMES:
            return target
        if "/" in target:
            return str(self.ask({"op": "resolve", "pod": target})["netns"])
        known = ", ".join([*self.nodes, *SPECIAL_NAMES])
        raise LabError(f"{target!r} is none of {known} and no NAMESPACE/POD")

    def enter(self, target: str, argv: Sequence[str]) -> list[str]:
        """``argv`` prefixed so that it runs in the network of ``target``."""
        return ["nsenter", f"--net={self.netns_path(self.resolve(target))}", "--", *argv]


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
