"""Reads the kernel's log of refused packets while somebody wants it, and hands on what it says.

The kernel gives the log to one program at a time, and tcpdump is one of them: the agent has it only
as long as somebody follows, or --policy-drop-log asks for it. One thread reads and names; it starts
with the first follower and ends with the last. A follower that is slow loses records, not the
others' time, and is told how many.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from kube_router_py.drops.naming import Names
from kube_router_py.drops.record import DropRecord
from kube_router_py.errors import KernelError, KubeRouterError
from kube_router_py.kernel.nflog_packets import Packet
from kube_router_py.kernel.nflog_ports import OpenPacketLog, PacketLog

_log = logging.getLogger(__name__)

REMEMBERED = 1000
_WAITING_MOST = 1000
_READ_S = 0.5
_OPEN_S = 15.0
_AGAIN_S = 30.0
# The firewall's own rules log far less. Others may log into this group without a limit, and a
# thread that tried to keep up would take the interpreter away from the rest of the agent.
_READ_PER_S = 1000.0


class Lost(Struct, frozen=True):
    """So many records are missing here: the kernel had no room for them, or the follower none."""

    lost: int


class Teller(Protocol):
    """Whoever hears of every record, in the hub's thread."""

    def tell(self, record: DropRecord, now: float) -> None: ...
    def tick(self, now: float) -> None: ...


class Follower:
    """What one listener has still to read. ``take`` is for the listener's thread."""

    def __init__(self, recent: Sequence[DropRecord]) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[DropRecord] = deque(recent)
        self._lost = 0
        self._error: KubeRouterError | None = None
        self._is_open = False

    def wait_open(self, timeout_s: float) -> None:
        """Returns once records can come. Raises what keeps them from coming."""
        with self._changed:
            is_told = self._changed.wait_for(lambda: self._is_open or self._error, timeout_s)
            if self._error is not None:
                raise self._error
            if not is_told:
                raise KernelError("the log of refused packets could not be opened in time")

    def take(self, timeout_s: float) -> list[DropRecord | Lost]:
        """What came; empty where nothing did in time. Raises KubeRouterError once it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._lost or self._error, timeout_s)
            found: list[DropRecord | Lost] = [*self._waiting]
            self._waiting.clear()
            if self._lost:
                found.append(Lost(self._lost))
                self._lost = 0
            if not found and self._error is not None:
                raise self._error
            return found

    # --- for the hub ---------------------------------------------------------------------------

    def put(self, record: DropRecord) -> None:
        with self._changed:
            if len(self._waiting) >= _WAITING_MOST:
                self._lost += 1
            else:
                self._waiting.append(record)
            self._changed.notify_all()

    def lose(self, number: int) -> None:
        with self._changed:
            self._lost += number
            self._changed.notify_all()

    def opened(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def end(self, error: KubeRouterError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


class Following:
    """An open listener's end: ``take`` until ``close``. For one thread."""

    def __init__(self, follower: Follower, leave: Callable[[Follower], None]) -> None:
        self._follower, self._leave = follower, leave

    def take(self, timeout_s: float) -> list[DropRecord | Lost]:
        """As ``Follower.take``."""
        return self._follower.take(timeout_s)

    def close(self) -> None:
        self._leave(self._follower)


class DropHub:
    """``follow`` and the numbers are for any thread. With ``tellers`` the log is read always, from
    ``start`` on; where another program has it, it is tried again every half minute."""

    def __init__(
        self,
        open_log: OpenPacketLog,
        names: Names,
        tellers: Sequence[Teller] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_log, self._names, self._tellers = open_log, names, tuple(tellers)
        self._clock = clock
        self._lock = threading.Condition()
        self._followers: list[Follower] = []
        self._recent: deque[DropRecord] = deque(maxlen=REMEMBERED)
        self._thread: threading.Thread | None = None
        self._is_open = self._is_stopping = False
        self._records = self._lost = 0
        self._told = ""

    def start(self) -> None:
        if self._tellers:
            with self._lock:
                self._run_thread()

    def stop(self, timeout_s: float) -> None:
        """End the thread; followers are told."""
        with self._lock:
            self._is_stopping = True
            thread = self._thread
            self._end_followers(KubeRouterError("the agent stops"))
            self._lock.notify_all()
        if thread is not None:
            thread.join(timeout_s)

    def numbers(self) -> dict[str, float]:
        """For the metrics, by name without the prefix."""
        return {"drop_records_total": self._records, "drop_records_lost_total": self._lost}

    def follow(
        self, recent: int = 0, wanted: Callable[[DropRecord], bool] = lambda record: True
    ) -> "Following":
        """What is refused from now on, after the last ``recent`` records that are ``wanted``, where
        others had them read before. Raises KubeRouterError where the log cannot be opened."""
        with self._lock:
            if self._is_stopping:
                raise KubeRouterError("the agent stops")
            self._run_thread()
            follower = Follower([*filter(wanted, self._recent)][-recent:] if recent else ())
            self._followers.append(follower)
            if self._is_open:
                follower.opened()
            self._lock.notify_all()
        try:
            follower.wait_open(_OPEN_S)
        except BaseException:
            self._leave(follower)
            raise
        return Following(follower, self._leave)

    def _leave(self, follower: Follower) -> None:
        with self._lock:
            if follower in self._followers:
                self._followers.remove(follower)
            self._lock.notify_all()

    def _end_followers(self, error: KubeRouterError) -> None:
        for follower in self._followers:
            follower.end(error)
        self._followers.clear()

    def _run_thread(self) -> None:
        """Under the lock."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="drops", daemon=True)
            thread.start()  # may fail, for want of threads; then the next one tries again
            self._thread = thread

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._goes_on():
            try:
                log = self._open_log()
            except Exception as error:  # noqa: BLE001 - it must be told, whatever it is
                self._fail(error)
                continue
            try:
                self._read(log)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(error)
            finally:
                log.close()

    def _goes_on(self) -> bool:
        """Whether anybody still wants records; if not, the thread is over with this."""
        with self._lock:
            if not self._has_listeners():
                self._is_open, self._thread = False, None
                self._recent.clear()
                self._names.forget()
                return False
            return True

    def _read(self, log: PacketLog) -> None:
        with self._lock:
            self._is_open, self._told = True, ""
            for follower in self._followers:
                follower.opened()
        lost = 0
        while self._is_wanted():
            packets = log.read(_READ_S)
            if log.lost > lost:
                self._lose(log.lost - lost)
                lost = log.lost
            for packet in packets:
                record = self._named(packet)
                if record is not None:
                    self._hand_on(record)
            for teller in self._tellers:
                self._guarded(teller.tick, self._clock())
            self._pause(len(packets) / _READ_PER_S)

    def _pause(self, seconds: float) -> None:
        """What comes meanwhile waits in the kernel, which numbers what it has no room for."""
        with self._lock:
            self._lock.wait_for(lambda: not self._has_listeners(), seconds)

    def _has_listeners(self) -> bool:
        """Under the lock."""
        return not self._is_stopping and bool(self._followers or self._tellers)

    def _is_wanted(self) -> bool:
        with self._lock:
            if not self._has_listeners():
                self._is_open = False  # whoever comes now waits until it is opened again
                self._recent.clear()
            return self._is_open

    def _named(self, packet: Packet) -> DropRecord | None:
        found: DropRecord | None = self._guarded(self._names.record, packet)
        return found

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """One packet must not be the last."""
        try:
            return call(*arguments)
        except Exception as error:  # noqa: BLE001 - see above
            if repr(error) != self._told:
                self._told = repr(error)
                _log.exception("a refused packet could not be told")
            return None

    def _hand_on(self, record: DropRecord) -> None:
        with self._lock:
            self._records += 1
            self._recent.append(record)
            for follower in self._followers:
                follower.put(record)
        for teller in self._tellers:
            self._guarded(teller.tell, record, self._clock())

    def _lose(self, number: int) -> None:
        with self._lock:
            self._lost += number
            for follower in self._followers:
                follower.lose(number)

    def _fail(self, error: Exception) -> None:
        """Tell followers, which are over with it; those that are always there wait."""
        if not isinstance(error, KubeRouterError):
            _log.error("refused packets are not read any more", exc_info=error)
            error = KernelError("reading refused packets failed; the agent's log says why")
        with self._lock:
            self._is_open = False
            self._recent.clear()
            self._end_followers(error)
            if self._tellers and not self._is_stopping:
                if str(error) != self._told:
                    self._told = str(error)
                    _log.warning("refused packets are not logged for now reason=%r", str(error))
                # Whoever follows wants to know at once.
                self._lock.wait_for(lambda: self._is_stopping or self._followers, _AGAIN_S)
