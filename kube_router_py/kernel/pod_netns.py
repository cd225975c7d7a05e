"""The network namespace of a pod, found by the pod's UID.

The kubelet names a pod's cgroup after its UID (``pod1234-...``; ``pod1234_...`` where systemd
manages cgroups), whatever the runtime. So a look at /proc/PID/cgroup of every process finds the
pod's processes; the oldest one that is not in our own network namespace is its sandbox. This needs
the host's PID namespace. Where that is not wanted, the runtime is asked through crictl(8).

A namespace is handed out as an open file: unlike a path or a PID it cannot come to mean another.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import DecodeError, Struct, json

from kube_router_py.errors import KernelError
from kube_router_py.kernel.program import run

_CRICTL_TIMEOUT_S = 5.0
_STARTED = 22 - 3  # field starttime of /proc/PID/stat, counted from behind the name


class Finder(Protocol):
    """One way to find a pod's network namespace."""

    def open(self, pod_uid: str) -> int | None:
        """A descriptor of the namespace (the caller closes it), or None if it is not found.

        Raises KernelError where it is found and may not be opened, or nothing can be asked.
        """


class PodNamespaces:
    """Asks its finders one after the other."""

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = tuple(finders)

    def open(self, pod_uid: str) -> int:
        """A descriptor of the pod's network namespace. Raises KernelError with the remedy."""
        said: list[str] = []
        for finder in self._finders:
            try:
                found = finder.open(pod_uid)
            except KernelError as error:
                said.append(str(error))
                continue
            if found is not None:
                return found
        why = f" ({'; '.join(said)})" if said else ""
        raise KernelError(
            f"the network namespace of pod {pod_uid} is not found{why}; give the agent the host's "
            "processes (hostPID: true) or the runtime's socket (--runtime-endpoint, crictl in PATH)"
        )


class _Process(Struct, frozen=True):
    pid: int
    started: int


class ProcFinder:
    """Looks through /proc for processes in the pod's cgroup."""

    def __init__(self, proc: str | os.PathLike[str] = "/proc") -> None:
        self._proc = Path(proc)
        self._known: dict[str, _Process] = {}

    def open(self, pod_uid: str) -> int | None:
        known = self._known.get(pod_uid)
        if known is not None:
            found = self._open(known, pod_uid)
            if found is not None:
                return found
            del self._known[pod_uid]
        for process in sorted(self._processes(pod_uid), key=lambda each: each.started):
            found = self._open(process, pod_uid)
            if found is not None:
                self._known[pod_uid] = process
                return found
        return None

    def forget(self, pod_uids: set[str]) -> None:
        """Drop what is remembered of pods other than these."""
        self._known = {uid: each for uid, each in self._known.items() if uid in pod_uids}

    def _processes(self, pod_uid: str) -> list[_Process]:
        found: list[_Process] = []
        for entry in os.scandir(self._proc):
            if entry.name.isdigit() and self._is_of(int(entry.name), pod_uid):
                started = self._started(int(entry.name))
                if started is not None:
                    found.append(_Process(int(entry.name), started))
        return found

    def _is_of(self, pid: int, pod_uid: str) -> bool:
        try:
            text = (self._proc / str(pid) / "cgroup").read_text()
        except OSError:  # it has ended
            return False
        return names_pod(text, pod_uid)

    def _started(self, pid: int) -> int | None:
        try:
            text = (self._proc / str(pid) / "stat").read_text()
            return int(text.rpartition(")")[2].split()[_STARTED])
        except (OSError, ValueError, IndexError):
            return None

    def _open(self, process: _Process, pod_uid: str) -> int | None:
        """The namespace of a process, if that still is the one that was meant."""
        path = self._proc / str(process.pid) / "ns" / "net"
        try:
            found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise KernelError(
                f"{path} may not be opened: the agent lacks the capability CAP_SYS_PTRACE",
                error.errno or 0,
            ) from error
        except OSError:
            return None
        # A process number may have passed to another before the file was opened, not after.
        if (
            self._started(process.pid) == process.started
            and self._is_of(process.pid, pod_uid)
            and not _is_own(found)
        ):
            return found
        os.close(found)
        return None


def names_pod(cgroups: str, pod_uid: str) -> bool:
    """Whether the text of a /proc/PID/cgroup lies below the cgroup of the pod.

    ``/kubepods/burstable/podUID/ID`` (cgroupfs), ``.../kubepods-burstable-podU_I_D.slice/...``
    (systemd), in either version of cgroups and of the kubelet's layout; and what a runtime makes of
    systemd's names while it manages cgroups itself: ``...podU_I_D.slice:cri-containerd:ID``.
    """
    wanted = {f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}"}
    for line in cgroups.splitlines():
        for part in line.split(":", 2)[-1].split("/"):
            name = part.partition(":")[0].removesuffix(".slice")
            # systemd's slices repeat the names of those above: kubepods-burstable-podU_I_D.slice
            if any(name == each or name.endswith(f"-{each}") for each in wanted):
                return True
    return False


class CrictlFinder:
    """Asks the container runtime, by crictl(8), for the pod's sandbox."""

    def __init__(self, endpoint: str, program: str = "crictl", proc: str = "/proc") -> None:
        self._command = [program, "--runtime-endpoint", _as_url(endpoint)]
        self._proc = proc

    def open(self, pod_uid: str) -> int | None:
        label = f"io.kubernetes.pod.uid={pod_uid}"
        listed = self._ask("pods", "--state", "ready", "--label", label, "-o", "json")
        for item in listed.get("items") or ():
            sandbox = self._ask("inspectp", "-o", "json", str(item.get("id", "")))
            refusal: OSError | None = None
            for path in self._paths(sandbox):
                try:
                    found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    refusal = error
                    continue
                if not _is_own(found):
                    return found
                os.close(found)
            if refusal is not None:
                raise KernelError(
                    f"the runtime's {refusal.filename} cannot be opened: {refusal.strerror}; mount "
                    "the directory of the runtime's network namespaces (/var/run/netns) with "
                    "mountPropagation: HostToContainer",
                    refusal.errno or 0,
                )
        return None

    def _ask(self, *arguments: str) -> dict[str, Any]:
        done = run([*self._command, *arguments], timeout_s=_CRICTL_TIMEOUT_S)
        if done.code != 0:
            raise KernelError(f"crictl {arguments[0]}: {done.complaint}")
        try:
            return json.decode(done.stdout, type=dict[str, Any])
        except DecodeError as error:
            raise KernelError(f"crictl {arguments[0]}: {error}") from error

    def _paths(self, sandbox: dict[str, Any]) -> list[str]:
        """Where containerd and CRI-O say a sandbox's namespace is: a path, or a process."""
        info = sandbox.get("info") or {}
        linux = (info.get("runtimeSpec") or {}).get("linux") or {}
        found = [
            str(each["path"])
            for each in linux.get("namespaces") or ()
            if each.get("type") == "network" and each.get("path")
        ]
        if info.get("pid"):
            found.append(f"{self._proc}/{info['pid']}/ns/net")
        return found


def _as_url(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"unix://{endpoint}"


def _is_own(descriptor: int) -> bool:
    """Whether a namespace is the one the agent itself runs in: that of no pod of its own."""
    ours, theirs = os.stat("/proc/thread-self/ns/net"), os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
