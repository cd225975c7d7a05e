"""zebra, bgpd and bfdd as one set of child processes of the agent.

They live and die together. A zebra that comes back alone never hears bgpd's routes again and
sweeps them; a bgpd that comes back alone makes zebra delete and add them; a bfdd that dies makes
peers drop what they keep for a restarted bgpd, unless bgpd goes down before they miss bfdd's
packets. So when one dies or hangs the others are killed at once, and all are started in order.
Being killed, none can say good-bye: zebra leaves its routes in the kernel, and with graceful
restart (RFC 4724) peers keep theirs. A new zebra keeps the routes it finds (``-r -K``) until bgpd
has announced them again.

``open`` and ``restart`` are called by the route controller, which knows what the files have to say
by now. A death is told by calling ``down``, at once or, when it happens again and again, after a
while. A start that fails is told by its exception, and by nothing else.

The agent's own end does not matter to the daemons. The next agent finds them by their run directory
and adopts them as they are, if they are whole and as it would have started them; never is there a
second set. Where the service manager ends all processes of a service (systemd's
KillMode=control-group, any container) they are killed with the agent, which is a restart as above;
with KillMode=process they run on.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from msgspec import Struct

from kube_router_py.errors import KernelError
from kube_router_py.kernel.frr_detection import detection_s
from kube_router_py.kernel.frr_farewell import clear_up, take_routes_back
from kube_router_py.kernel.frr_log import DaemonLog
from kube_router_py.kernel.frr_preflight import check_listening, prepare
from kube_router_py.kernel.frr_process import (
    DaemonProcess,
    Layout,
    cut_log,
    end,
    is_as_started,
    start,
    survivors,
    write_file,
    written_pid,
)
from kube_router_py.kernel.frr_vty import VtyClient, VtyLostError, VtyUnavailableError
from kube_router_py.kernel.frr_watch import Rhythm, Watch
from kube_router_py.kernel.ports_frr import DAEMONS, Boot, DaemonsDownError, Opened

_log = logging.getLogger(__name__)

# Without zebra, nothing that happens to bgpd reaches the kernel; without bgpd, peers keep routes.
_END_ORDER = ("zebra", "bgpd", "bfdd")
# With zebra still there, bgpd takes its routes back.
_STOP_ORDER = ("bgpd", "bfdd", "zebra")
_POLL_S = 0.02
_TOLD_LINES = 3


class Patience(Struct, frozen=True):
    """Seconds: for a daemon to read its file, to end, to answer when it is to be adopted; after how
    long a set is sound, and the shortest and longest wait for the next start of one that is not."""

    start_s: float = 60.0
    end_s: float = 10.0
    adopt_s: float = 10.0
    sound_s: float = 60.0
    first_wait_s: float = 1.0
    last_wait_s: float = 30.0


class FrrDaemons:
    """One set; ``down`` is called in a thread of its own when it is to be restarted."""

    def __init__(
        self,
        layout: Layout,
        down: Callable[[], None],
        patience: Patience | None = None,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._layout = layout
        self._down = down
        self._patience = patience or Patience()
        self._rhythm = rhythm or Rhythm()
        self._processes: dict[str, DaemonProcess] = {}
        self._logs: dict[str, DaemonLog] = {}
        self._watch: Watch | None = None
        self._started_at = 0.0
        self._failures = 0
        self._refusal: tuple[str, float] | None = None
        self._bfd_peers = ""
        # Until then, some peer may not have noticed that bfdd was gone.
        self._silent_until = 0.0
        if os.path.exists(layout.path("bfdd", "conf")):  # it ran, and may just have ended
            self._note_silence()

    @property
    def daemons(self) -> tuple[str, ...]:
        """Those that run. Raises DaemonsDownError if the set does not."""
        if self._refusal is not None:
            why, due = self._refusal
            raise DaemonsDownError(why, max(due - time.monotonic(), 0.0))
        if not self._processes:
            raise DaemonsDownError("FRR has not been started")
        return tuple(daemon for daemon in DAEMONS if daemon in self._processes)

    def open(self, boot: Boot) -> Opened:
        """See ``ports_frr.Frr.open``."""
        found = Opened.KEPT
        if not self._processes and self._refusal is None:
            if not self._adopt(boot):
                self.restart(boot)
                return Opened.STARTED
            found = Opened.ADOPTED
        wanted = _wanted(boot)
        if self._refusal is not None or any(
            process.command != self._layout.command(daemon, boot)
            for daemon, process in self._processes.items()
            if daemon in wanted
        ):
            self.restart(boot)
            return Opened.STARTED
        if found is Opened.ADOPTED:  # bgpd may have neighbors that use bfdd
            wanted = tuple(each for each in DAEMONS if each in (*wanted, *self._processes))
        if set(wanted) != set(self._processes):
            self._change(wanted, boot)
        return found

    def restart(self, boot: Boot) -> None:
        """See ``ports_frr.Frr.restart``."""
        if self._refusal is not None and self._refusal[1] > time.monotonic():
            raise DaemonsDownError(self._refusal[0], self._refusal[1] - time.monotonic())
        owner = prepare(self._layout, _wanted(boot))
        check_listening(boot, self._port())
        self._stop_watch()
        self._end(signal.SIGKILL)
        for daemon in set(DAEMONS) - set(boot.files):
            self._forget(daemon)
        self._started_at = time.monotonic()
        try:
            for daemon in _wanted(boot):
                if daemon == "bgpd":
                    self._await_silence()
                self._start(daemon, boot, owner)
        except KernelError as error:
            with suppress(KernelError):
                self._end(signal.SIGKILL)
            self._refuse(str(error))
            raise
        self._refusal = None
        self._begin_watch()
        _log.info("FRR started daemons=%s", ",".join(self._processes))

    def stop(self) -> None:
        """End the daemons for good. Raises KernelError, after that, where routes are left."""
        self._stop_watch()
        self._adopt_all()
        is_whole = all(daemon in self._processes for daemon in _CORE)
        are_gone = is_whole and self._take_routes_back()
        self._end(signal.SIGTERM, _STOP_ORDER)
        for daemon in DAEMONS:
            self._forget(daemon)
        clear_up(self._layout, are_gone=are_gone)

    def close(self) -> None:
        """Let go of the daemons; they run on."""
        self._stop_watch()
        for process in self._processes.values():
            process.close()
        self._processes = {}

    def _adopt(self, boot: Boot) -> bool:
        """Take over what an agent before us has left; whether that is a whole set."""
        self._adopt_all()
        if not self._processes:
            return False
        why = self._flaw(boot)
        if why:
            _log.warning("FRR's daemons of an earlier agent are restarted reason=%r", why)
            return False
        self._started_at = time.monotonic()
        self._begin_watch()
        _log.info("FRR adopted daemons=%s", ",".join(self._processes))
        return True

    def _adopt_all(self) -> None:
        """Hold every daemon of our run directory; of several with one name the others are ended."""
        held = {process.pid for process in self._processes.values()}
        for process in survivors(self._layout, DAEMONS):
            if process.pid in held:
                process.close()
            elif process.daemon in self._processes:
                _log.warning("a second one is ended daemon=%s pid=%d", process.daemon, process.pid)
                end([process], signal.SIGKILL, self._patience.end_s)
                process.close()
            else:
                self._processes[process.daemon] = process
                self._logs[process.daemon] = DaemonLog(process.daemon, self._layout)

    def _flaw(self, boot: Boot) -> str:
        """Why the daemons that were found cannot go on as a set; empty if they can."""
        for daemon in DAEMONS:
            process = self._processes.get(daemon)
            if process is None:
                if daemon != "bfdd" or written_pid(self._layout, daemon) is not None:
                    return f"{daemon} has ended"
            elif not is_as_started(process, self._layout, boot):
                return f"{daemon} was started otherwise"
            elif not self._answers(daemon):
                return f"{daemon} does not answer"
        return ""

    def _answers(self, daemon: str) -> bool:
        client = VtyClient(self._layout.path(daemon, "vty"), self._patience.adopt_s)
        try:
            return not client.show("show running-config").is_failed
        except KernelError:
            return False
        finally:
            client.close()

    def _change(self, wanted: tuple[str, ...], boot: Boot) -> None:
        """Start or end bfdd beside the others, which need not know."""
        self._stop_watch()
        try:
            for daemon in sorted(set(self._processes) - set(wanted)):
                process = self._processes.pop(daemon)
                end([process], signal.SIGTERM, self._patience.end_s)
                process.close()
                self._forget(daemon)
            if any(process.has_ended() for process in self._processes.values()):
                self.restart(boot)
                return
            owner = prepare(self._layout, wanted)
            for daemon in wanted:
                if daemon not in self._processes:
                    self._start(daemon, boot, owner)
        finally:
            if self._watch is None and self._refusal is None:
                self._begin_watch()

    def _start(self, daemon: str, boot: Boot, owner: tuple[int, int]) -> None:
        """Start a daemon and wait until it has read its file: only then does it answer."""
        write_file(self._layout, daemon, boot.files.get(daemon, ""), owner)
        cut_log(self._layout, daemon)
        self._logs[daemon] = DaemonLog(daemon, self._layout)
        process = start(daemon, self._layout, boot)
        self._processes[daemon] = process
        client = VtyClient(self._layout.path(daemon, "vty"), self._patience.start_s)
        try:
            self._await_ready(process, client, boot.files.get(daemon, ""))
        except KernelError:
            if daemon not in _CORE:
                end([self._processes.pop(daemon)], signal.SIGKILL, self._patience.end_s)
                process.close()
                self._forget(daemon)
            raise
        finally:
            client.close()

    def _await_ready(self, process: DaemonProcess, client: VtyClient, text: str) -> None:
        deadline = time.monotonic() + self._patience.start_s
        routers = [line for line in text.splitlines() if line.startswith("router ")]
        said: list[str] = []
        while not process.has_ended(_POLL_S):
            said += self._logs[process.daemon].forward()
            left = deadline - time.monotonic()
            if left <= 0:
                raise KernelError(_told(f"{process.daemon} has not read its file in time", said))
            try:
                reply = client.show("show running-config", left)
            except (VtyUnavailableError, VtyLostError):
                continue
            shown = reply.text.splitlines()
            if not reply.is_failed and all(line in shown for line in routers):
                self._logs[process.daemon].forward()
                return
        said += self._logs[process.daemon].forward()
        raise KernelError(_told(f"{process.daemon} {process.how_it_ended()} at its start", said))

    def _end(self, number: signal.Signals, order: tuple[str, ...] = _END_ORDER) -> None:
        """End all daemons, one after the other where they are to do something at their end."""
        self._adopt_all()
        processes = [self._processes[each] for each in order if each in self._processes]
        if number == signal.SIGKILL:
            bfdd = self._processes.get("bfdd")
            if bfdd is not None and not bfdd.has_ended():
                self._note_silence()
            end(processes, number, self._patience.end_s)
        else:
            for process in processes:
                end([process], number, self._patience.end_s)
        for log in self._logs.values():
            log.forward()
        for process in processes:
            process.close()
        self._processes = {}
        self._logs = {}

    def _take_routes_back(self) -> bool:
        """Whether none is left, here and at peers."""
        zebra, bgpd = (
            VtyClient(self._layout.path(daemon, "vty"), self._patience.end_s) for daemon in _CORE
        )
        try:
            left = take_routes_back(zebra, bgpd, self._patience.end_s)
        except KernelError as error:
            left = str(error)
        finally:
            zebra.close()
            bgpd.close()
        if left:
            _log.warning("FRR is ended and leaves routes reason=%r", left)
        return not left

    def _begin_watch(self) -> None:
        self._watch = Watch(
            list(self._processes.values()),
            list(self._logs.values()),
            self._layout,
            self._rhythm,
            self._has_ended,
            self._down,
        )

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._bfd_peers = self._watch.bfd_peers
            self._watch = None

    def _has_ended(self, process: DaemonProcess, why: str) -> float:
        """In the thread of the watch: kill the others at once; in how many seconds to tell."""
        others = [self._processes[each] for each in _END_ORDER if each in self._processes]
        for other in others:
            other.send(signal.SIGKILL)
        if "bfdd" in self._processes:
            if self._watch is not None:
                self._bfd_peers = self._watch.bfd_peers
            self._note_silence()
        wait_s = self._refuse(f"{process.daemon} {why}")
        _log.error(
            "FRR is restarted, its routes stay daemon=%s pid=%d reason=%r wait_s=%g",
            *(process.daemon, process.pid, why, wait_s),
        )
        return wait_s

    def _refuse(self, why: str) -> float:
        """Note that the set is down; for how many seconds it stays so."""
        now = time.monotonic()
        sound = now - self._started_at >= self._patience.sound_s
        self._failures = 1 if sound else self._failures + 1
        wait_s = 0.0
        if self._failures > 1:
            wait_s = self._patience.first_wait_s * 2.0 ** min(self._failures - 2, 16)
        wait_s = min(wait_s, self._patience.last_wait_s)
        self._refusal = (f"FRR does not run: {why}", now + wait_s)
        return wait_s

    def _port(self) -> int | None:
        """The port of the bgpd that runs."""
        bgpd = self._processes.get("bgpd")
        if bgpd is None or bgpd.has_ended() or "-p" not in bgpd.command:
            return None
        return int(bgpd.command[bgpd.command.index("-p") + 1])

    def _note_silence(self) -> None:
        """bfdd ends just now."""
        try:
            with open(
                self._layout.path("bfdd", "conf"), encoding="utf-8", errors="replace"
            ) as file:
                text = file.read()
        except OSError:
            text = ""
        until = time.monotonic() + detection_s(text, self._bfd_peers)
        self._silent_until = max(self._silent_until, until)

    def _await_silence(self) -> None:
        """A session that comes up before its peer has missed bfdd is reset when it does."""
        time.sleep(max(self._silent_until - time.monotonic(), 0.0))

    def _forget(self, daemon: str) -> None:
        """A pid file without its process tells of a death; there was none."""
        with suppress(FileNotFoundError):
            os.unlink(self._layout.path(daemon, "pid"))


_CORE = ("zebra", "bgpd")


def _wanted(boot: Boot) -> tuple[str, ...]:
    return tuple(each for each in DAEMONS if each in _CORE or each in boot.files)


def _told(what: str, said: list[str]) -> str:
    return f"{what}: {'; '.join(said[-_TOLD_LINES:])}" if said else what
