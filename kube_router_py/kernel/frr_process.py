"""One FRR daemon as a process: its command line, its files, its start and its end.

A daemon stays in the foreground as a child of the agent, but in a session of its own: neither an
interrupt at the agent's terminal nor a signal to the agent's process group reaches it, and it lives
on when the agent ends. It writes its log to a file, where a pipe would break with the agent.

A running daemon is known by its command line in /proc, which names the run directory; its pid file
alone would say no more than that some process had this number once. It is held by a pidfd
(pidfd_open(2)), which cannot come to mean another process.
"""

import logging
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports_frr import Boot

_log = logging.getLogger(__name__)

USER = "frr"
_PROC = Path("/proc")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: process, user, group
# FRR allocates tables for as many files as it may open; container runtimes allow a billion.
_OPEN_FILES = 65536
# The directory is FRR's: a link there must not make us write to where FRR may not.
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Layout(Struct, frozen=True):
    """Where things are: FRR's programs, and the run directory of one set of daemons.

    ``retain_s``: for how long a new zebra keeps routes of the one before it that bgpd has not
    announced again.
    """

    run_dir: str
    programs: str = "/usr/lib/frr"
    retain_s: int = 60

    def path(self, daemon: str, kind: str) -> str:
        """The file of a kind (``conf``, ``pid``, ``log``, ``vty``) of a daemon."""
        return f"{self.run_dir}/{daemon}.{kind}"

    def command(self, daemon: str, boot: Boot) -> tuple[str, ...]:
        """The command line of a daemon (zebra(8), bgpd(8), bfdd(8))."""
        found = [
            f"{self.programs}/{daemon}",
            *("-f", self.path(daemon, "conf"), "-i", self.path(daemon, "pid")),
            *("--vty_socket", self.run_dir, "-z", f"{self.run_dir}/zserv.api"),
            *("-A", "127.0.0.1", "-P", "0", "--log", "stdout", "--log-level", "info"),
            *("--limit-fds", str(_OPEN_FILES)),
        ]
        if daemon == "zebra":
            found += ["-r", "-K", str(self.retain_s)]
        elif daemon == "bfdd":
            found += ["--bfdctl", f"{self.run_dir}/bfdd.sock"]
        elif daemon == "bgpd":
            found += ["-p", str(boot.port)]
            for address in boot.listen:
                found += ["-l", str(address)]
        return tuple(found)


class DaemonProcess:
    """A daemon that runs, or has run."""

    def __init__(
        self,
        daemon: str,
        pid: int,
        pidfd: int,
        command: tuple[str, ...],
        child: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        self.daemon = daemon
        self.pid = pid
        self.command = command
        self._pidfd = pidfd
        self._child = child

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._pidfd

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            return False
        if self._child is not None:
            self._child.wait()  # it is a zombie, or was
        else:
            with suppress(ChildProcessError):  # of ours, from before the loop was opened again
                os.waitpid(self.pid, os.WNOHANG)
        return True

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def how_it_ended(self) -> str:
        """For people; only of children of ours it is known."""
        code = self._child.returncode if self._child is not None else None
        if code is None:
            return "ended"
        if code >= 0:
            return f"exited with {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:  # most of those of real time have no name
            return f"was ended by signal {-code}"

    def close(self) -> None:
        """Forget the process, which may run on."""
        os.close(self._pidfd)
        if self._child is not None and self._child.returncode is None:
            # Popen would complain that a child of ours still runs: it is meant to.
            self._child.returncode = 0


def start(daemon: str, layout: Layout, boot: Boot) -> DaemonProcess:
    """Start a daemon in the network namespace of the calling thread. Raises KernelError."""
    command = layout.command(daemon, boot)
    try:
        descriptor = os.open(layout.path(daemon, "log"), _LOG_FLAGS | os.O_CREAT, 0o640)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                cwd="/",
                # What the agent's environment holds is no business of FRR's.
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            )
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be started: {error}", error.errno or 0) from error
    # Nobody but us waits for a child, so that the number is its own until then.
    return DaemonProcess(daemon, child.pid, os.pidfd_open(child.pid), command, child)


def cut_log(layout: Layout, daemon: str) -> None:
    """Empty a daemon's log, to which it may go on writing; nothing where there is none."""
    with suppress(OSError):
        descriptor = os.open(layout.path(daemon, "log"), _LOG_FLAGS)
        try:
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def end(processes: Sequence[DaemonProcess], number: signal.Signals, timeout_s: float) -> None:
    """Signal processes, in the order given, and wait for the end of all.

    What has not ended by then is killed. Raises KernelError if even that is of no use.
    """
    for process in processes:
        process.send(number)
    deadline = time.monotonic() + timeout_s
    for process in processes:
        if process.has_ended(max(deadline - time.monotonic(), 0.0)):
            continue
        process.send(signal.SIGKILL)
        if not process.has_ended(timeout_s):
            raise KernelError(f"{process.daemon} (process {process.pid}) cannot be ended")


def survivors(layout: Layout, daemons: Sequence[str]) -> list[DaemonProcess]:
    """All daemons of this run directory that run, whoever started them.

    Another container may have one of the same name: what counts is whether a process answers at the
    sockets in ours, or sees our directory there.
    """
    found: list[DaemonProcess] = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        daemon = _daemon_of(pid, layout, daemons)
        if daemon is None:
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        # The number may have passed to another process before it was opened, not after.
        command = _command_of(pid)
        is_ours = _serving(layout, daemon) == pid or _sees_our_directory(pid, layout)
        if is_ours and _daemon_of(pid, layout, daemons) == daemon and command:
            found.append(DaemonProcess(daemon, pid, pidfd, command))
        else:
            os.close(pidfd)
    return found


def runs_elsewhere(layout: Layout, daemon: str) -> bool:
    """Whether a daemon that is none of this run directory's runs in our network namespace, as far
    as its processes can be seen from here."""
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and (command := _command_of(int(entry.name))):
            is_ours = _daemon_of(int(entry.name), layout, (daemon,)) is not None
            is_one = os.path.basename(command[0]) == daemon and not is_ours
            if is_one and _is_in_our_network(int(entry.name)):
                return True
    return False


def is_as_started(process: DaemonProcess, layout: Layout, boot: Boot) -> bool:
    """Whether a process is what we would start here now: same command, network namespace, pid file.

    Of a daemon whose pid file names another process there were two once.
    """
    return (
        process.command == layout.command(process.daemon, boot)
        and written_pid(layout, process.daemon) == process.pid
        and _is_in_our_network(process.pid)
    )


def written_pid(layout: Layout, daemon: str) -> int | None:
    """What a daemon's pid file says; None where there is none."""
    try:
        return int(Path(layout.path(daemon, "pid")).read_text())
    except (OSError, ValueError):
        return None


def write_file(layout: Layout, daemon: str, text: str, owner: tuple[int, int]) -> None:
    """Write a daemon's configuration for it and no other user to read. Raises KernelError."""
    path = layout.path(daemon, "conf")
    passing = f"{path}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(passing)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(passing, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            # The mode first: of another user's file it takes CAP_FOWNER.
            os.fchmod(file.fileno(), 0o640)
            os.fchown(file.fileno(), *owner)
        os.replace(passing, path)
    except OSError as error:
        raise KernelError(f"{path} cannot be written: {error}", error.errno or 0) from error


def _daemon_of(pid: int, layout: Layout, daemons: Sequence[str]) -> str | None:
    """Which daemon of this run directory a process is."""
    command = _command_of(pid)
    if not command:
        return None
    daemon = os.path.basename(command[0])
    if daemon not in daemons or not _follows(command, "--vty_socket", layout.run_dir):
        return None
    return daemon if _follows(command, "-i", layout.path(daemon, "pid")) else None


def _follows(command: Sequence[str], flag: str, value: str) -> bool:
    return any(pair == (flag, value) for pair in pairwise(command))


def _command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; empty for a zombie, and for one that is no more."""
    try:
        text = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(each) for each in text.rstrip(b"\0").split(b"\0")) if text else ()


def _serving(layout: Layout, daemon: str) -> int:
    """The process that listens at a daemon's socket (SO_PEERCRED, unix(7)); 0 if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(layout.path(daemon, "vty"))
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return 0
    pid: int = _CREDENTIALS.unpack(found)[0]
    return pid


def _sees_our_directory(pid: int, layout: Layout) -> bool:
    """Whether the run directory of a process is ours, also in another mount namespace.

    Without the capability CAP_SYS_PTRACE this is not known: then it is not.
    """
    try:
        theirs, ours = os.stat(f"{_PROC}/{pid}/root{layout.run_dir}"), os.stat(layout.run_dir)
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _is_in_our_network(pid: int) -> bool:
    """Whether a process of our run directory is in our network namespace; where that may not be
    looked at (CAP_SYS_PTRACE), it is taken to be."""
    try:
        theirs, ours = os.stat(_PROC / str(pid) / "ns/net"), os.stat("/proc/thread-self/ns/net")
    except PermissionError:
        return True
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
