"""Network namespaces of one lab: make them, work inside them, drop them.

Namespaces are bind mounts in the lab's own mount namespace, so the kernel frees every one of them
when the lab's processes end, however they end. Work inside a namespace is done by threads: entering
costs one system call per thread, where a process per step would cost a fork and an exec.
"""

import asyncio
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from kube_router_py.lab import sandbox
from kube_router_py.lab.errors import LabError

T = TypeVar("T")

WORKERS = 6
COMMAND_TIMEOUT_S = 120.0
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


class Namespaces:
    """The namespaces of a lab by name, kept as files below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._home = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        self._home_descriptor = os.open(self._home, os.O_RDONLY | os.O_CLOEXEC)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="netns")

    def path(self, name: str) -> Path:
        return self._directory / name

    def close(self) -> None:
        """Stop the threads and drop what is left; mounts go with the mount namespace, too."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for file in self._directory.iterdir():
            _drop(file)
        os.close(self._home_descriptor)

    # --- blocking work, each in the calling thread ------------------------------------------

    def create(self, name: str) -> None:
        """A new namespace with ``lo`` up and without duplicate address detection.

        Addresses here are unique by construction; waiting for DAD would cost seconds a pod.
        """
        file = self.path(name)
        file.touch()

        def make() -> None:
            sandbox.unshare(sandbox.CLONE_NEWNET)
            sandbox.mount("/proc/thread-self/ns/net", str(file), flags=sandbox.MS_BIND)
            set_link_up("lo")
            for scope in ("all", "default"):
                write_sysctl(f"net.ipv6.conf.{scope}.accept_dad", "0")

        self._from_home(make)

    def delete(self, name: str) -> None:
        _drop(self.path(name))

    def inside(self, name: str, work: Callable[[], T]) -> T:
        """Run ``work`` in namespace ``name`` and return its result; the thread comes back."""

        def enter() -> T:
            sandbox.setns(str(self.path(name)))
            return work()

        return self._from_home(enter)

    def socket(self, name: str, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket that lives in ``name`` whichever process or thread uses it."""
        return self.inside(name, lambda: socket.socket(family, kind))

    def popen(self, name: str, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process inside; it leads its own session, so a terminal's ^C misses it."""
        return self.inside(name, lambda: subprocess.Popen(argv, start_new_session=True, **options))

    def run(
        self,
        name: str,
        argv: Sequence[str],
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
    ) -> str:
        """Run a command inside and return its standard output. Raises LabError if it fails."""
        try:
            done = self.inside(
                name,
                lambda: subprocess.run(
                    argv,
                    input=stdin.encode(),
                    capture_output=True,
                    timeout=COMMAND_TIMEOUT_S,
                    env=None if env is None else dict(env),
                ),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{argv[0]} in {name}: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise LabError(f"{' '.join(argv)} in {name} failed ({done.returncode}): {said}")
        return done.stdout.decode()

    # --- the same from the event loop, at most WORKERS at once -------------------------------

    async def call(self, work: Callable[[], T]) -> T:
        """Run blocking ``work`` (usually one of the methods above) in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _from_home(self, work: Callable[[], T]) -> T:
        """Run and return to the lab's own namespace: a thread left behind would keep it alive."""
        if threading.current_thread() is threading.main_thread():
            raise LabError("namespaces are entered by threads of the pool only")
        try:
            return work()
        finally:
            sandbox.setns(f"/proc/self/fd/{self._home_descriptor}")


def _drop(file: Path) -> None:
    try:
        sandbox.unmount(str(file))
    except OSError:
        pass  # never mounted: creation failed half-way
    file.unlink(missing_ok=True)


def write_sysctl(name: str, value: str) -> None:
    """Write a sysctl of the calling thread's namespace; ``name`` in dotted form."""
    Path("/proc/sys", *name.split(".")).write_text(value)


def set_link_up(link: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", link.encode(), 0)
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", link.encode(), flags | IFF_UP))
