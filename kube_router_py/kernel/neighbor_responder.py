"""``neighbor_ports.Responder`` with packet sockets, in a thread of its own.

The thread waits for frames, for links that change and for what it is told to do, and does one after
the other: between two frames it knows exactly what to answer for. A flood on a link (frames that
pass the kernel's filter) is taken in up to a limit for each second; the rest of it waits, and is
dropped where the kernel has no more room.

A process that was frozen wakes up with questions that wait, and may have lost its addresses to
others meanwhile. It answers none of those, and nothing for a second: whoever puts addresses gets
the time to find out.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from kube_router_py.errors import KernelError
from kube_router_py.kernel.neighbor_answering import Answering, Meter
from kube_router_py.kernel.neighbor_links import SegmentLink, SegmentMonitor, read_links
from kube_router_py.kernel.neighbor_ports import Address, OnClaim
from kube_router_py.kernel.neighbor_sockets import LinkSockets, check_allowed
from kube_router_py.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

_log = logging.getLogger(__name__)

FRAMES_PER_S: Final = 5000
"""That are looked at from one socket."""
_FRAMES_AT_ONCE: Final = 64
_TAKE_OVER_S: Final = 10.0
_CLOSE_S: Final = 10.0
# Pods come and go with their links: what happened meanwhile is looked at once.
_LOOK_S: Final = 0.2
_LOOK_AGAIN_S: Final = 1.0
_IDLE_S: Final = 1.0
ASLEEP_S: Final = 3.0
"""Who takes longer for a turn, of which waiting is no more than a second, was asleep."""
REST_S: Final = 1.0


def awake() -> float:
    """Seconds of a clock that never goes back and counts a suspended host's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Order:
    """Something to do in the thread; ``done`` once it has been, or will never be."""

    def __init__(self, call: Callable[[float], None]) -> None:
        self.call = call
        self.done = threading.Event()
        self.is_taken_over = False


class _Open:
    """A link's sockets, registered for the thread to wait for."""

    def __init__(self, sockets: LinkSockets, link: SegmentLink, owner: "NeighborResponder") -> None:
        self.index, self.sockets, self._owner = link.index, sockets, owner
        self.meters = {fileno: Meter(FRAMES_PER_S) for fileno in sockets.filenos()}
        self.send, self.join = sockets.send, sockets.join
        owner.register(self)

    def close(self) -> None:
        self._owner.unregister(self)
        self.sockets.close()


class NeighborResponder:
    """Answers in the network namespace of the thread that creates it, from then on until closed.

    ``node_addresses`` is asked for the Node's addresses in the responder's thread; the links that
    carry one are those of no pattern, unless ``default_patterns`` name others. Raises
    PreflightError without CAP_NET_RAW, KernelError where links cannot be read.
    """

    def __init__(
        self,
        on_claim: OnClaim,
        node_addresses: Callable[[], Collection[Address]],
        default_patterns: tuple[str, ...] = (),
        clock: Callable[[], float] = awake,
    ) -> None:
        check_allowed()
        self._answering = Answering(self._open, node_addresses, on_claim, default_patterns)
        self._clock, self._turned_at = clock, clock()
        self._orders: deque[_Order] = deque()
        self._lock = threading.Lock()
        self._by_fileno: dict[int, _Open] = {}
        self._paused: dict[int, float] = {}
        self._look_at: float | None = 0.0
        self._is_closing = False
        self._has_ended = False
        self._netlink = NetlinkSocket(NETLINK_ROUTE, strict=True)
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        try:
            # Looked at by the thread first of all; here, so that who makes it hears of errors.
            self._answering.see(read_links(self._netlink), self._clock())
            self._monitor = SegmentMonitor(self._links_changed)
        except KernelError:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="neighbors", daemon=True)
        self._monitor.start()
        self._thread.start()

    def put(self, wanted: Mapping[Address, tuple[str, ...]]) -> None:
        copy = dict(wanted)
        self._order(lambda now: self._answering.put(copy, now))

    def watch(self, watched: Mapping[Address, tuple[str, ...]]) -> None:
        copy = dict(watched)
        self._order(lambda now: self._answering.watch(copy, now))

    def announce(self) -> None:
        self._order(lambda _: self._answering.announce(), wait_s=0.0)

    def links(self) -> dict[Address, tuple[str, ...]]:
        return dict(self._answering.links)

    def numbers(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._answering.count.items()}

    def close(self) -> None:
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            if not self._has_ended:
                os.eventfd_write(self._wake, 1)
        self._monitor.stop(_CLOSE_S)
        self._thread.join(_CLOSE_S)

    def register(self, opened: _Open) -> None:
        """Wait for a link's frames. In the responder's thread."""
        for fileno in opened.meters:
            self._by_fileno[fileno] = opened
            self._epoll.register(fileno, select.EPOLLIN)

    def unregister(self, opened: _Open) -> None:
        """The opposite, before its sockets are closed."""
        for fileno in opened.meters:
            del self._by_fileno[fileno]
            self._paused.pop(fileno, None)
            self._epoll.unregister(fileno)

    def _open(self, link: SegmentLink) -> _Open:
        return _Open(LinkSockets(link.index, link.name), link, self)

    def _order(self, call: Callable[[float], None], wait_s: float = _TAKE_OVER_S) -> None:
        order = _Order(call)
        with self._lock:
            if self._has_ended:
                raise KernelError("the responder for ARP and NDP has ended")
            self._orders.append(order)
            os.eventfd_write(self._wake, 1)
        if wait_s and not order.done.wait(wait_s):
            raise KernelError(f"the responder for ARP and NDP is busy for more than {wait_s:g} s")
        if wait_s and not order.is_taken_over:
            raise KernelError("the responder for ARP and NDP could not take it over")

    def _links_changed(self) -> None:
        with self._lock:
            if self._look_at is None and not self._has_ended:
                self._look_at = self._clock() + _LOOK_S
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            while not self._is_closing:
                try:
                    self._turn()
                except Exception:  # noqa: BLE001 - who is dead answers nothing, and tells nobody
                    self._begin_anew()
        finally:
            self._answering.close()
            with self._lock:
                self._has_ended = True
                left = list(self._orders)
                self._release()
            for order in left:
                order.done.set()

    def _begin_anew(self) -> None:
        _log.exception("answering ARP and NDP failed, it begins anew")
        self._answering.count["failures"] += 1
        self._answering.close()
        with self._lock:
            self._look_at = self._clock()
        time.sleep(_LOOK_AGAIN_S)  # whatever is wrong may last

    def _release(self) -> None:
        self._epoll.close()
        self._netlink.close()
        os.close(self._wake)

    def _turn(self) -> None:
        waits = [self._answering.work(self._clock()), self._look(), self._resume()]
        timeout = min((each for each in waits if each is not None), default=_IDLE_S)
        ready = self._epoll.poll(min(timeout, _IDLE_S))
        now = self._clock()
        if now - self._turned_at > ASLEEP_S:
            _log.warning(
                "was asleep, nothing is answered at once after_s=%d", now - self._turned_at
            )
            self._answering.rest(now + REST_S)
        self._turned_at = now
        if any(fileno == self._wake for fileno, _ in ready):
            os.eventfd_read(self._wake)
        self._carry_out()
        for fileno, _ in ready:
            opened = self._by_fileno.get(fileno)
            if opened is not None:
                self._receive(opened, fileno)

    def _carry_out(self) -> None:
        while self._orders:
            order = self._orders.popleft()
            try:
                order.call(self._clock())
                order.is_taken_over = True
            finally:
                order.done.set()

    def _look(self) -> float | None:
        """Look at the links if it is time to; in how many seconds it will be."""
        now = self._clock()
        with self._lock:
            if self._look_at is None or self._look_at > now:
                return None if self._look_at is None else self._look_at - now
            self._look_at = None  # what changes from now on is another reason
        try:
            self._answering.see(read_links(self._netlink), now)
        except KernelError as error:
            _log.warning("links cannot be read reason=%r", str(error))
            with self._lock:
                self._look_at = now + _LOOK_AGAIN_S
            return _LOOK_AGAIN_S
        return 0.0

    def _receive(self, opened: _Open, fileno: int) -> None:
        meter = opened.meters[fileno]
        for _ in range(_FRAMES_AT_ONCE):
            now = self._clock()
            try:
                received = opened.sockets.receive(fileno)
            except OSError as error:
                self._answering.fail(opened.index, error, now)
                return
            if received is None:
                return
            self._answering.hear(opened.index, received[0], now, received[1])
            if not meter.take(now):
                self._paused[fileno] = now + 1.0
                self._epoll.modify(fileno, 0)
                return

    def _resume(self) -> float | None:
        """Listen again where a flood was; in how many seconds the next such place is due."""
        now = self._clock()
        for fileno in [each for each, until in self._paused.items() if until <= now]:
            del self._paused[fileno]
            self._answering.count["dropped"] += self._by_fileno[fileno].sockets.lost()
            self._epoll.modify(fileno, select.EPOLLIN)
        return min(self._paused.values()) - now if self._paused else None
