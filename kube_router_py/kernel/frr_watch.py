"""Watching a set of FRR's daemons: that they live, that they answer, and what they log.

One thread for one set. It waits for the processes themselves (pidfds), so that the end of one is
known at once: peers that watch us by BFD find out within three of its packets.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from kube_router_py.kernel import frr_summary
from kube_router_py.kernel.frr_log import DaemonLog
from kube_router_py.kernel.frr_process import DaemonProcess, Layout

_log = logging.getLogger(__name__)

# bfdd tells besides which peers it has.
_QUESTIONS = {"bfdd": frr_summary.BFD}
_QUESTION = "echo alive"
_TAKE_BYTES = 1 << 16
_TRAILER = 4


class Rhythm(Struct, frozen=True):
    """Seconds: how often daemons are asked whether they live, for how long an answer is waited for,
    and how often their logs are looked at."""

    probe_s: float = 5.0
    hung_s: float = 20.0
    log_s: float = 1.0


class Watch:
    """Calls ``ended(daemon, why)`` in its own thread when a daemon has ended, or does not answer.

    That is the end of the watch, but for this: ``ended`` returns after how many seconds ``down`` is
    to be called.
    """

    def __init__(
        self,
        processes: Sequence[DaemonProcess],
        logs: Sequence[DaemonLog],
        layout: Layout,
        rhythm: Rhythm,
        ended: Callable[[DaemonProcess, str], float],
        down: Callable[[], None],
    ) -> None:
        self._processes = {process.fileno(): process for process in processes}
        self._logs = tuple(logs)
        self._rhythm = rhythm
        self._ended = ended
        self._down = down
        self._probes = [_Probe(each, layout.path(each.daemon, "vty")) for each in processes]
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="frr-watch", daemon=True)
        self._thread.start()

    @property
    def bfd_peers(self) -> str:
        """What bfdd last said of its peers, in JSON; nothing at first."""
        return next((each.answer for each in self._probes if each.process.daemon == "bfdd"), "")

    def stop(self) -> None:
        """End the thread; afterwards ``ended`` is not called any more."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        for probe in self._probes:
            probe.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _run(self) -> None:
        found = self._wait()
        if found is None:
            return
        wait_s = self._ended(*found)
        for log in self._logs:
            log.forward()
        if not _is_readable(self._stop_read, wait_s):
            self._down()

    def _wait(self) -> tuple[DaemonProcess, str] | None:
        """Until a daemon ends, or does not answer, or nobody wants to know any more (None)."""
        next_log = next_probe = now = time.monotonic()
        while True:
            before, now = now, time.monotonic()
            # If we were held up ourselves, so were the daemons: that time does not count.
            waited_s = min(now - before, self._rhythm.log_s * 2)
            if now >= next_log:
                for log in self._logs:
                    log.forward()
                next_log = now + self._rhythm.log_s
            if now >= next_probe:
                for probe in self._probes:
                    probe.send()
                next_probe = now + self._rhythm.probe_s
            ready = self._select(min(next_log, next_probe) - time.monotonic())
            if self._stop_read in ready:
                return None
            for descriptor, process in self._processes.items():
                if descriptor in ready and process.has_ended():
                    return process, process.how_it_ended()
            for probe in self._probes:
                if probe.fileno() in ready:
                    probe.receive()
                elif probe.has_waited(waited_s) > self._rhythm.hung_s:
                    return probe.process, f"has not answered for {self._rhythm.hung_s:g} s"

    def _select(self, timeout_s: float) -> set[int]:
        waiting = select.poll()
        waiting.register(self._stop_read, select.POLLIN)
        for descriptor in self._processes:
            waiting.register(descriptor, select.POLLIN)
        for probe in self._probes:
            if probe.fileno() >= 0:
                waiting.register(probe.fileno(), select.POLLIN)
        return {descriptor for descriptor, _ in waiting.poll(max(timeout_s, 0.0) * 1000)}


class _Probe:
    """A connection to a daemon's control socket on which it is asked to answer, again and again."""

    def __init__(self, process: DaemonProcess, path: str) -> None:
        self.process = process
        self._path = path
        self._question = _QUESTIONS.get(process.daemon, _QUESTION).encode() + b"\0"
        self._part = b""
        self.answer = ""
        self._socket: socket.socket | None = None
        self._is_asked = False
        self._waited_s = 0.0

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def has_waited(self, seconds: float) -> float:
        """Count these seconds, if an answer is awaited; for how many it has been by now."""
        if self._is_asked:
            self._waited_s += seconds
        return self._waited_s

    def send(self) -> None:
        """Ask, unless an answer is awaited."""
        if self._is_asked and self._socket is not None:
            return
        self._is_asked = True
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    socket.AF_UNIX,
                    socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                )
                self._socket.connect(self._path)
            self._socket.send(self._question)
        except OSError as error:
            # A daemon that takes no more connections (EAGAIN) hangs; one that ends is seen to.
            if error.errno not in (errno.EAGAIN, errno.ECONNREFUSED, errno.ENOENT, errno.EPIPE):
                _log.debug("FRR does not answer path=%s reason=%r", self._path, error.strerror)
            self._drop()

    def receive(self) -> None:
        """Take what was answered."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_TAKE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        self._waited_s = 0.0
        self._part += data
        if self._part[-_TRAILER:-1] == bytes(_TRAILER - 1):  # text, three NULs, a code
            self.answer = self._part[:-_TRAILER].decode(errors="replace")
            self._is_asked, self._part = False, b""

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._part = b""

    close = _drop


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))
