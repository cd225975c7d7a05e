"""The watch over daemons: processes that only sleep, sockets that answer as they are told."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kube_router_py.kernel.frr_log import DaemonLog
from kube_router_py.kernel.frr_process import DaemonProcess, Layout, end
from kube_router_py.kernel.frr_watch import Rhythm, Watch

_DEADLINE_S = 60.0
_FAST = Rhythm(probe_s=0.05, hung_s=2.0, log_s=0.05)


class Sleeper:
    """A process that stands for a daemon, and the socket at which it is asked."""

    def __init__(self, daemon: str, layout: Layout) -> None:
        self.child = subprocess.Popen(["sleep", "1000"])
        self.process = DaemonProcess(
            daemon, self.child.pid, os.pidfd_open(self.child.pid), (), self.child
        )
        self.asked = threading.Semaphore(0)
        self.answer: bytes | None = b"alive\n\0\0\0\0"
        self.question = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(layout.path(daemon, "vty"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    while data := connection.recv(4096):
                        self.question = data
                        self.asked.release()
                        answer = self.answer
                        if answer is not None:
                            # In two pieces, as a long one may come.
                            connection.sendall(answer[:-2])
                            connection.sendall(answer[-2:])
        except OSError:
            return  # closed

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_DEADLINE_S)
        self._listener.close()
        end([self.process], signal.SIGKILL, _DEADLINE_S)
        self.process.close()


class Watched:
    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._stack = stack
        self._layout = Layout(run_dir=str(path))
        self.sleepers: dict[str, Sleeper] = {}
        self.ended: list[tuple[str, str]] = []
        self.is_ended = threading.Event()
        self.is_down = threading.Event()
        self.wait_s = 0.0

    def start(self, *daemons: str, rhythm: Rhythm = _FAST) -> Watch:
        for daemon in daemons:
            self.sleepers[daemon] = Sleeper(daemon, self._layout)
            self._stack.callback(self.sleepers[daemon].close)
        return Watch(
            [each.process for each in self.sleepers.values()],
            [DaemonLog(daemon, self._layout) for daemon in daemons],
            self._layout,
            rhythm,
            self._ended,
            self.is_down.set,
        )

    def _ended(self, process: DaemonProcess, why: str) -> float:
        self.ended.append((process.daemon, why))
        self.is_ended.set()
        return self.wait_s


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(stack, tmp_path)


def until(condition: Callable[[], object]) -> None:
    """Ask again until it is so; what is asked about happens in another thread."""
    step = threading.Event()
    for _ in range(int(_DEADLINE_S / 0.01)):
        if condition():
            return
        step.wait(0.01)
    raise AssertionError("never")


def test_the_end_of_a_process_is_told_at_once_and_once(watched: Watched) -> None:
    # Nothing else wakes the watch before the test's deadline.
    watch = watched.start("zebra", "bgpd", rhythm=Rhythm(1000.0, 1000.0, 1000.0))
    watched.sleepers["bgpd"].child.send_signal(signal.SIGKILL)
    assert watched.is_down.wait(_DEADLINE_S)
    watched.sleepers["zebra"].child.send_signal(signal.SIGKILL)
    watch.stop()
    assert watched.ended == [("bgpd", "was ended by SIGKILL")]


def test_daemons_that_answer_are_left_in_peace(watched: Watched) -> None:
    watch = watched.start("zebra", "bgpd", rhythm=Rhythm(0.05, _DEADLINE_S, 0.05))
    for sleeper in watched.sleepers.values():
        for _ in range(30):  # nobody is asked again before the answer
            assert sleeper.asked.acquire(timeout=_DEADLINE_S)
    watch.stop()
    assert watched.ended == []
    assert not watched.is_down.is_set()


def test_a_daemon_that_stops_answering_is_told(watched: Watched) -> None:
    watch = watched.start("bgpd")
    assert watched.sleepers["bgpd"].asked.acquire(timeout=_DEADLINE_S)
    watched.sleepers["bgpd"].answer = None
    assert watched.is_down.wait(_DEADLINE_S)
    watch.stop()
    assert watched.ended == [("bgpd", "has not answered for 2 s")]


def test_half_an_answer_is_none_in_the_end(watched: Watched) -> None:
    watch = watched.start("bgpd")
    watched.sleepers["bgpd"].answer = b"alive\n\0\0"
    assert watched.is_down.wait(_DEADLINE_S)
    watch.stop()
    assert watched.ended == [("bgpd", "has not answered for 2 s")]


def test_what_bfdd_says_of_its_peers_is_kept(watched: Watched) -> None:
    watch = watched.start("bfdd", "bgpd", rhythm=Rhythm(0.05, _DEADLINE_S, 0.05))
    watched.sleepers["bfdd"].answer = b'[{"peer":"a"}]\n\0\0\0\0'
    until(lambda: watch.bfd_peers == '[{"peer":"a"}]\n')
    assert watched.sleepers["bgpd"].asked.acquire(timeout=_DEADLINE_S)
    watch.stop()
    assert watched.sleepers["bfdd"].question == b"show bfd peers json\0"
    assert watched.sleepers["bgpd"].question == b"echo alive\0"
    assert watch.bfd_peers == '[{"peer":"a"}]\n'


def test_a_restart_that_is_to_wait_is_told_later_or_not_at_all(watched: Watched) -> None:
    watched.wait_s = 1000.0
    watch = watched.start("bgpd")
    watched.sleepers["bgpd"].child.send_signal(signal.SIGKILL)
    assert watched.is_ended.wait(_DEADLINE_S)
    watch.stop()  # does not wait for it
    assert not watched.is_down.is_set()
