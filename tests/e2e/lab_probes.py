"""Many connections at once, from many networks, by one thread: who can open one to whom.

A probe is a new connection from a port that was not used before (conntrack remembers a pair of
addresses and ports for a while, and what it remembers is let through). Open means: TCP and SCTP
have connected, UDP has an answer; refused, that somebody has said so; silent, nothing at all.
"""

import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

IPPROTO_SCTP = 132
IP_RECVERR, IPV6_RECVERR = 11, 25
CLONE_NEWNET = 0x40000000

OPEN, REFUSED, SILENT = "open", "refused", "silent"
# Another error than a refusal (a neighbour that has not answered): this says nothing of policies.
UNREACHABLE = "unreachable"

# Nothing has come for so long: the rest is silent. A refusal comes at once.
SILENCE_S = 3.0
SECOND_SILENCE_S = 6.0
WATCH_SILENCE_S = 15.0
# A hammer goes on meanwhile.
HAMMER_SILENCE_S = 4.0
PACE_S = 0.1
_PENDING = 50
# More at once would only queue.
_AT_ONCE = 400
# Below the NodePorts and the kernel's own choice; probers at once need ranges of their own.
PORTS = range(10000, 20000)
WATCH_PORTS = range(20000, 30000)
HAMMER_PORTS = range(1024, 10000)

_KINDS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, IPPROTO_SCTP),
}
_ABORT = struct.pack("ii", 1, 0)
_libc = ctypes.CDLL(None, use_errno=True)


class Probe(NamedTuple):
    """``source`` names a network: ``x/a``, ``node1``, ``client``."""

    source: str
    protocol: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.source} -> {self.address} {self.protocol} {self.port}"


class Answer(NamedTuple):
    """What came of a probe; times are of time.monotonic(). ``attempts``: how many it took."""

    outcome: str
    began: float
    ended: float
    attempts: int = 1


class Prober:
    """``find`` gives the path of a network's namespace. Networks stay open until ``close``."""

    def __init__(self, find: Callable[[str], str], ports: range = PORTS) -> None:
        self._find = find
        self._ports = ports
        self._networks: dict[str, int] = {}
        self._next_port: dict[str, int] = {}
        self._first_port = 0

    def close(self) -> None:
        for name in [*self._networks]:
            self.forget(name)

    def forget(self, name: str) -> None:
        """A pod of this name has gone; the next one has another network."""
        if name in self._networks:
            os.close(self._networks.pop(name))
            # The next one may have its address, and no port is used twice.
            self._first_port = max(self._first_port, self._next_port.pop(name, 0))

    def ask(
        self, probes: Iterable[Probe], *, silence_s: float = SILENCE_S, again: bool = True
    ) -> dict[Probe, Answer]:
        """All of them; ``again``: what has got no answer is tried a second time."""
        answers: dict[Probe, Answer] = {}
        failure: list[BaseException] = []

        def work() -> None:
            try:
                wanted = sorted(set(probes))
                answers.update(self._try(wanted, silence_s))
                silent = [
                    probe for probe in wanted if answers[probe].outcome in (SILENT, UNREACHABLE)
                ]
                if again and silent:
                    for probe, second in self._try(silent, SECOND_SILENCE_S).items():
                        first = answers[probe]
                        answers[probe] = second._replace(began=first.began, attempts=2)
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                failure.append(error)

        # A thread that has been elsewhere must not come back to do other work.
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answers

    def _try(self, probes: Sequence[Probe], silence_s: float) -> dict[Probe, Answer]:
        answers: dict[Probe, Answer] = {}
        for start in range(0, len(probes), _AT_ONCE):
            answers.update(self._batch(probes[start : start + _AT_ONCE], silence_s))
        return answers

    def _batch(self, probes: Sequence[Probe], silence_s: float) -> dict[Probe, Answer]:
        """``probes`` are sorted by source."""
        answers: dict[Probe, Answer] = {}
        waiting: dict[int, tuple[Probe, socket.socket, float]] = {}
        inside = ""
        with closing(select.epoll()) as poll:
            try:
                for probe in probes:
                    if probe.source != inside:
                        self._enter(probe.source)
                        inside = probe.source
                    sock, answer = self._start(probe)
                    if answer.outcome != SILENT:
                        answers[probe] = answer
                        sock.close()
                        continue
                    waiting[sock.fileno()] = (probe, sock, answer.began)
                    poll.register(sock.fileno(), _wanted(probe))
                while waiting and (events := poll.poll(silence_s)):
                    for number, happened in events:
                        probe, sock, began = waiting.pop(number)
                        outcome = _outcome(_happened(sock, happened))
                        answers[probe] = Answer(outcome, began, time.monotonic())
                        sock.close()
            finally:
                for probe, sock, began in waiting.values():
                    answers[probe] = Answer(SILENT, began, time.monotonic())
                    sock.close()
        return answers

    def _start(self, probe: Probe) -> tuple[socket.socket, Answer]:
        """Silent: nothing has come yet. The thread is in the network of its source."""
        sock = self._socket(probe)
        began = time.monotonic()
        error = 0
        try:
            sock.connect((probe.address, probe.port))
            if probe.protocol == "UDP":
                sock.send(b"?")
        except BlockingIOError:
            # What came while connect had the socket for itself wakes nobody up.
            if probe.protocol == "SCTP":
                error = _error(sock)
        except OSError as failure:
            error = failure.errno or errno.EIO
        return sock, Answer(_outcome(error) if error else SILENT, began, time.monotonic())

    def hammer(
        self, wanted: Callable[[], Sequence[Probe]], stop: threading.Event
    ) -> Iterator[tuple[Probe, Answer]]:
        """Each of ``wanted`` (sorted by source) every PACE_S, or half of the time where they take
        longer to begin, whatever became of the last tries.

        To be used in a thread of its own: it goes from network to network.
        """
        waiting: dict[int, tuple[Probe, socket.socket, float]] = {}
        with closing(select.epoll()) as poll:
            try:
                while not stop.is_set():
                    tick = time.monotonic()
                    pending = Counter(probe for probe, _, _ in waiting.values())
                    inside = ""
                    for probe in wanted():
                        if pending[probe] >= _PENDING:
                            continue
                        if probe.source != inside:
                            self._enter(probe.source)
                            inside = probe.source
                        sock, answer = self._start(probe)
                        if answer.outcome != SILENT:
                            sock.close()
                            yield probe, answer
                            continue
                        waiting[sock.fileno()] = (probe, sock, answer.began)
                        poll.register(sock.fileno(), _wanted(probe))
                    # Half of the time is for those who are to change something.
                    until = max(tick + PACE_S, 2 * time.monotonic() - tick)
                    left_s = until - time.monotonic()
                    while left_s > 0:
                        for number, happened in poll.poll(left_s):
                            probe, sock, began = waiting.pop(number)
                            outcome = _outcome(_happened(sock, happened))
                            sock.close()
                            yield probe, Answer(outcome, began, time.monotonic())
                        left_s = until - time.monotonic()
                    for number, (probe, sock, began) in [*waiting.items()]:
                        if tick - began > HAMMER_SILENCE_S:
                            del waiting[number]
                            sock.close()
                            yield probe, Answer(SILENT, began, tick)
            finally:
                for _, sock, _ in waiting.values():
                    sock.close()

    def _enter(self, name: str) -> None:
        if name not in self._networks:
            self._networks[name] = os.open(self._find(name), os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(self._networks[name], CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network of {name}")

    def _socket(self, probe: Probe) -> socket.socket:
        family = socket.AF_INET6 if ":" in probe.address else socket.AF_INET
        sock = socket.socket(family, *_KINDS[probe.protocol])
        sock.setblocking(False)
        if probe.protocol != "UDP":
            # A reset at the end leaves nothing behind, here and there.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # SCTP goes on trying in spite of an ICMP error unless it is asked to tell of it.
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        for port in self._unused(probe.source):
            try:
                sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
                break
            except OSError:
                continue  # somebody is there
        return sock

    def _unused(self, source: str) -> Iterator[int]:
        while True:
            number = self._next_port.get(source, self._first_port)
            self._next_port[source] = (number + 1) % len(self._ports)
            yield self._ports[number]


class Watch:
    """``with Watch(prober, probes) as watch:`` asks all the while; ``answers`` are for afterwards.

    ``rounds`` says how often all of them have been asked.
    """

    def __init__(self, prober: Prober, probes: Iterable[Probe]) -> None:
        self.answers: list[tuple[Probe, Answer]] = []
        self.rounds = 0
        self._prober = prober
        self._probes = sorted(set(probes))
        self._stop = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                self.answers += self._prober.ask(
                    self._probes, silence_s=WATCH_SILENCE_S, again=False
                ).items()
                self.rounds += 1
                # Half of the time is for those who are to change something.
                self._stop.wait(max(0.05, time.monotonic() - began))
        except BaseException as error:  # noqa: BLE001 - handed over at the end
            self._failure.append(error)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure[0]


class Hammer:
    """``with Hammer(prober) as hammer:`` tries what ``hammer.probes`` has at the moment.

    ``answers`` grows meanwhile; ``first_open`` has the end of the first try that was let through.
    """

    def __init__(self, prober: Prober) -> None:
        self.probes: tuple[Probe, ...] = ()
        self.answers: list[tuple[Probe, Answer]] = []
        self.first_open: dict[Probe, float] = {}
        self._prober = prober
        self._stop = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._work)

    def aim(self, probes: Iterable[Probe]) -> None:
        self.probes = tuple(sorted(set(probes)))

    def asked_since(self, moment: float) -> Counter[Probe]:
        """How many tries, by probe, that began after ``moment`` have ended."""
        found = Counter[Probe]()
        for probe, answer in reversed(self.answers):
            if answer.ended < moment:
                break
            found[probe] += answer.began > moment
        return found

    def take(self) -> list[tuple[Probe, Answer]]:
        """What has come up to now, once."""
        taken, self.answers = self.answers, []
        return taken

    def _work(self) -> None:
        try:
            for probe, answer in self._prober.hammer(lambda: self.probes, self._stop):
                self.answers.append((probe, answer))
                if answer.outcome == OPEN:
                    self.first_open.setdefault(probe, answer.ended)
        except BaseException as error:  # noqa: BLE001 - handed over at the end
            self._failure.append(error)

    def __enter__(self) -> "Hammer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure[0]


def _wanted(probe: Probe) -> int:
    return select.EPOLLIN if probe.protocol == "UDP" else select.EPOLLOUT


def _happened(sock: socket.socket, events: int) -> int:
    """The error that a socket has to tell of, or 0."""
    error = _error(sock)
    return error or (errno.EIO if events & (select.EPOLLERR | select.EPOLLHUP) else 0)


def _error(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _outcome(error: int) -> str:
    if not error:
        return OPEN
    return REFUSED if error == errno.ECONNREFUSED else UNREACHABLE
