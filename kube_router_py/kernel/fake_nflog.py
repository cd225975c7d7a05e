"""NFLOG groups as the kernel has them, without it: for tests of what reads them."""

import errno
import queue
import time
from collections import deque

from kube_router_py.errors import KernelError
from kube_router_py.kernel.nflog_packets import Packet
from kube_router_py.kernel.nflog_ports import GroupTakenError


class FakeNflog:
    """One group. ``log`` is what a rule does; ``open`` gives the group to one reader at a time.

    ``holder`` is another program that has it, ``error`` what opening raises, and ``room`` how many
    packets may wait. For any thread.
    """

    def __init__(self, group: int = 100, room: int = 1000) -> None:
        self._group, self._room = group, room
        self._reader: FakePacketLog | None = None
        self.holder = ""
        self.error: KernelError | None = None
        self.opened = 0

    @property
    def is_read(self) -> bool:
        return self._reader is not None

    def log(self, packet: Packet) -> None:
        """Lost where nobody reads, as in the kernel."""
        reader = self._reader
        if reader is not None:
            reader.put(packet, self._room)

    def lose(self, number: int) -> None:
        """So many packets come at a time when there is no room."""
        if self._reader is not None:
            self._reader.lost += number

    def fail(self, error: Exception) -> None:
        """The next read raises this."""
        if self._reader is not None:
            self._reader.failures.append(error)

    def open(self) -> "FakePacketLog":
        if self.error is not None:
            raise self.error
        if self._reader is not None or self.holder:
            raise GroupTakenError(
                f"{self.holder or 'another program'} reads NFLOG group {self._group}", errno.EPERM
            )
        self.opened += 1
        self._reader = FakePacketLog(self)
        return self._reader

    def closed(self, reader: "FakePacketLog") -> None:
        if self._reader is reader:
            self._reader = None


class FakePacketLog:
    """A ``PacketLog`` of a ``FakeNflog``."""

    def __init__(self, nflog: FakeNflog) -> None:
        self._nflog = nflog
        self._waiting: queue.SimpleQueue[Packet] = queue.SimpleQueue()
        self.failures: deque[Exception] = deque()
        self.lost = 0

    def put(self, packet: Packet, room: int) -> None:
        if self._waiting.qsize() >= room:
            self.lost += 1
        else:
            self._waiting.put(packet)

    def read(self, timeout_s: float) -> list[Packet]:
        deadline = time.monotonic() + timeout_s
        while True:
            if self.failures:
                raise self.failures.popleft()
            try:
                # Short waits: a failure that comes meanwhile is raised.
                found = [self._waiting.get(timeout=0.01)]
            except queue.Empty:
                if time.monotonic() >= deadline:
                    return []
                continue
            while not self._waiting.empty():
                found.append(self._waiting.get())
            return found

    def close(self) -> None:
        self._nflog.closed(self)
