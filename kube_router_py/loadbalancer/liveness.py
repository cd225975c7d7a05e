"""Heartbeats as they are sent and heard: the state machine of ``peers``, its thread and its keys.

Without a key nothing is sent and nothing that comes is believed: then others' Leases tell that they
live (``leases``). Nodes find a key, or that it is gone, at different moments: until all have, both
count.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import structs

from kube_router_py.address_pools import Address
from kube_router_py.kernel.heartbeat_socket import HeartbeatSocket
from kube_router_py.loadbalancer.heartbeat import HeartbeatError, Standing, decode, encode
from kube_router_py.loadbalancer.key_ring import SPREAD_S, KeyRing
from kube_router_py.loadbalancer.peer_values import LEASE_TIMING, View, heartbeat_timing
from kube_router_py.loadbalancer.peers import Peers

_log = logging.getLogger(__name__)

_TELL_REFUSED_S = 60.0
_WORDS_S = 5.0
_POLL_S = 0.02


class Sockets(Protocol):
    """What a ``HeartbeatSocket`` does; tests bring their own."""

    failures: int

    @property
    def problem(self) -> str: ...
    @property
    def is_open(self) -> bool: ...
    def listen(self, addresses: tuple[Address, ...]) -> None: ...
    def send(self, address: Address, packet: bytes) -> bool: ...
    def wake(self) -> None: ...
    def start(self) -> None: ...
    def stop(self, timeout_s: float) -> None: ...


OpenSockets = Callable[[int, Callable[[bytes], None], Callable[[], float]], Sockets]


def boot_clock() -> float:
    """Seconds that never go back and count the time for which the host was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Liveness:
    """For any thread. ``on_change`` is called in the heartbeats' thread when ``view``
    or ``problem`` is another, and in that of ``say_restart``.

    ``port`` is every node's. ``is_in_contact`` is asked where Leases count: whether this node's own
    could be renewed lately.
    """

    def __init__(
        self,
        node: str,
        port: int,
        grace_s: float,
        open_sockets: OpenSockets = HeartbeatSocket,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.is_in_contact: Callable[[], bool] = lambda: True
        self.grace_s = grace_s
        self._clock = clock
        self._lock = threading.Lock()  # guards the state machine, keys and addresses
        self._peers = Peers(node, os.urandom(16), grace_s, clock())
        self._keys = KeyRing()
        self._by_lease: bool | None = None
        self._has_key = self._is_signing = False
        self._lease_until = float("-inf")
        self._is_draining = self._is_ready = False
        self._addresses: Mapping[str, Address] = {}
        self._view = View()
        self._count = {"sent": 0, "received": 0, "refused": 0}
        self._told_refused_at = float("-inf")
        self._told_problem = ""
        self._sockets = open_sockets(port, self._hear, self._tick)

    @property
    def view(self) -> View:
        return self._view

    @property
    def problem(self) -> str:
        """Why others' heartbeats cannot be heard, or ``""``."""
        return self._sockets.problem

    @property
    def is_by_lease(self) -> bool | None:
        """Whether Leases count instead of heartbeats; None: that is not known yet."""
        return self._by_lease

    def numbers(self) -> dict[str, float]:
        return {
            **{f"heartbeats_{name}_total": value for name, value in self._count.items()},
            "heartbeats_unsent_total": self._sockets.failures,
        }

    # --- what it is told ------------------------------------------------------------------------

    def follow_members(self, others: Mapping[str, Address], own: tuple[Address, ...]) -> None:
        """Replace the other nodes, with their addresses, and the addresses of this one."""
        self._sockets.listen(own)
        with self._lock:
            if others == self._addresses:
                return
            self._addresses = dict(others)
            self._follow_members()
        self._sockets.wake()

    def put_key(self, key: bytes | None) -> None:
        """The key, or None: there is none, and Leases count."""
        with self._lock:
            now = self._clock()
            if key is not None and not self._has_key and self._by_lease:
                self._lease_until = now + SPREAD_S
            self._keys.put(key or b"", now)
            self._has_key = key is not None
            self._by_lease = key is None or now < self._lease_until
            self._is_signing = bool(self._keys.signing(now))
            self._follow_members()
        self._sockets.wake()

    def _follow_members(self) -> None:
        timing = None
        if self._by_lease:
            pace = heartbeat_timing(len(self._addresses) + 1) if self._is_signing else LEASE_TIMING
            timing = structs.replace(LEASE_TIMING, interval_s=pace.interval_s)
        self._peers.follow_members(self._addresses, timing)

    def _follow_key(self, key: bytes, now: float) -> None:
        """Both ways are over when all nodes use the other one."""
        before = self._by_lease, self._is_signing
        self._is_signing = bool(key)
        if self._has_key and now >= self._lease_until:
            self._by_lease = False
        if before != (self._by_lease, self._is_signing):
            self._follow_members()

    def follow_ready(self, *, is_ready: bool) -> None:
        """Whether this node serves addresses, and knows which."""
        with self._lock:
            self._is_ready = is_ready

    def follow_drain(self, *, is_draining: bool) -> None:
        """Whether this node is to hand over what it has."""
        with self._lock:
            if is_draining == self._is_draining:
                return
            self._is_draining = is_draining
            self._peers.follow_drain(is_draining=is_draining)
        self._sockets.wake()

    def hear_lease(self, name: str, standing: Standing, grace_s: float) -> None:
        """Another node's Lease was renewed."""
        with self._lock:
            self._peers.hear_lease(name, standing, grace_s, self._clock())
        self._sockets.wake()

    def start(self) -> None:
        self._sockets.start()

    @property
    def has_said_all(self) -> bool:
        """Whether the others were told often enough that this process ends."""
        return self._peers.has_said_all

    def say_restart(self) -> None:
        """Tell all that another process is to come; returns when that is told, or soon after."""
        with self._lock:
            self._peers.restart(self._clock())
            has_changed = self._look()
        # The Lease is to say it even if the heartbeats' thread has no turn before the end.
        if has_changed:
            self.on_change()
        self._sockets.wake()
        deadline = time.monotonic() + _WORDS_S
        while not self.has_said_all and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def stop(self, timeout_s: float) -> None:
        self._sockets.stop(timeout_s)

    # --- the thread -----------------------------------------------------------------------------

    def _hear(self, packet: bytes) -> None:
        with self._lock:
            now = self._clock()
            try:
                heartbeat = decode(packet, self._keys.accepted(now))
            except HeartbeatError as error:
                self._refuse(str(error), now)
                return
            is_news = self._peers.hear(heartbeat, now)
            self._count["received" if is_news else "refused"] += 1
            has_changed = self._look()
        if has_changed:
            self.on_change()

    def _refuse(self, why: str, now: float) -> None:
        self._count["refused"] += 1
        if now - self._told_refused_at >= _TELL_REFUSED_S:
            self._told_refused_at = now
            _log.warning(
                "heartbeats are refused reason=%r count=%d (have all nodes the same Secret?)",
                why,
                self._count["refused"],
            )

    def _tick(self) -> float:
        with self._lock:
            now = self._clock()
            key = self._keys.signing(now)
            self._follow_key(key, now)
            if self._by_lease and not self.is_in_contact():
                self._peers.excuse(now)
            # Unheard are those, too, of whom it is not known how to hear of them.
            self._peers.follow_ready(
                is_ready=self._is_ready and self._by_lease is not None,
                is_deaf=not self._by_lease and not self._sockets.is_open,
            )
            found = self._peers.tick(now)
            addresses = self._addresses
            has_changed = self._look() or self._sockets.problem != self._told_problem
            self._told_problem = self._sockets.problem
        if has_changed:
            self.on_change()
        if key:
            for name, heartbeat in found.heartbeats:
                address = addresses.get(name)
                if address is not None and self._sockets.send(address, encode(heartbeat, key)):
                    self._count["sent"] += 1
        return found.again_in_s

    def _look(self) -> bool:
        before, self._view = self._view, self._peers.view
        return before != self._view
