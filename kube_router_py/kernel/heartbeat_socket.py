"""UDP sockets for heartbeats, and the thread that waits for packets and for the time to send.

One socket for each address of the node's, bound to it: packets leave from the address that others
know, and none come in by others. They are marked as network control (DSCP CS6, RFC 4594), so that a
link full of other traffic is no death.
"""

import errno
import ipaddress
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

_log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_RECEIVE_BYTES: Final = 512  # longer than any packet of ours: a longer one is seen to be none
_PACKETS_AT_ONCE: Final = 256
_CS6: Final = 0xC0
_PRIORITY: Final = 6  # TC_PRIO_INTERACTIVE; the highest without CAP_NET_ADMIN (socket(7))
_BUFFER_BYTES: Final = 1 << 20
_BIND_AGAIN_S: Final = 1.0
# What came in is answered to after this at the latest.
_SOON_S: Final = 0.02
_AFTER_FAILURE_S: Final = 0.5


class HeartbeatSocket:
    """Calls ``on_packet`` with what came in, and ``on_tick``, which says in how many seconds it
    wants to be called again; both in its own thread, in the network namespace of the thread that
    starts it. What they raise is logged and forgotten.
    """

    def __init__(
        self, port: int, on_packet: Callable[[bytes], None], on_tick: Callable[[], float]
    ) -> None:
        self._port, self._on_packet, self._on_tick = port, on_packet, on_tick
        self._wanted: frozenset[Address] = frozenset()
        self._sockets: dict[Address, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._bind_at = 0.0
        self._is_stopping = False
        self._told = ""
        self._problems: dict[Address, str] = {}
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    # --- for any thread -------------------------------------------------------------------------

    def listen(self, addresses: Collection[Address]) -> None:
        """Replace the addresses of this node at which packets are taken."""
        wanted = frozenset(addresses)
        if wanted != self._wanted:
            self._wanted, self._bind_at = wanted, 0.0
            self.wake()

    @property
    def problem(self) -> str:
        """Why packets cannot be taken at some address, or ``""``."""
        return "; ".join(text for _, text in sorted(self._problems.copy().items(), key=str))

    @property
    def is_open(self) -> bool:
        """Whether packets are taken at any address."""
        return bool(self._sockets)

    def wake(self) -> None:
        """Have ``on_tick`` called soon."""
        if not self._is_stopping:
            os.eventfd_write(self._wake, 1)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread and close everything."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            for address in list(self._sockets):
                self._close(address)
            self._selector.close()
            os.close(self._wake)

    # --- in the thread --------------------------------------------------------------------------

    def send(self, address: Address, packet: bytes) -> bool:
        """Send one packet, from the node's address of the same family; False where that fails."""
        for own, found in self._sockets.items():
            if own.version == address.version:
                try:
                    found.sendto(packet, (str(address), self._port))
                    return True
                except OSError:  # no route, no buffer: as good as lost on the way
                    break
        self.failures += 1
        return False

    def _run(self) -> None:
        due = 0.0
        while not self._is_stopping:
            self._guarded(self._bind)
            now = time.monotonic()
            if now >= due:
                due = now + (self._guarded(self._on_tick) or _AFTER_FAILURE_S)
            waits_s = [due - now]
            if self._problems:
                waits_s.append(self._bind_at - now)
            ready = self._selector.select(max(0.0, min(waits_s)))
            for key, _ in ready:
                if key.fileobj is self._wake or key.fd == self._wake:
                    os.eventfd_read(self._wake)
                    due = 0.0
                else:
                    self._receive(key.fileobj)  # type: ignore[arg-type]
                    due = min(due, time.monotonic() + _SOON_S)

    def _guarded(self, call: Callable[[], float | None]) -> float | None:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - a bug must not end all heartbeats
            if repr(error) != self._told:
                self._told = repr(error)
                _log.exception("heartbeats: something failed, and is tried again")
            return None

    def _receive(self, ready: socket.socket) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = ready.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an error of an earlier packet's: nobody listens there
                continue
            self._guarded(lambda packet=packet: self._on_packet(packet))  # type: ignore[misc]

    def _bind(self) -> None:
        now = time.monotonic()
        wanted = self._wanted
        for gone in self._sockets.keys() - wanted:
            self._close(gone)
        for gone in self._problems.keys() - wanted:
            del self._problems[gone]
        if now < self._bind_at:
            return
        self._bind_at = now + _BIND_AGAIN_S
        for address in wanted - self._sockets.keys():
            try:
                self._sockets[address] = self._open(address)
                self._problems.pop(address, None)
            except OSError as error:
                self._problems[address] = self._told_of(address, error)

    def _open(self, address: Address) -> socket.socket:
        is_v4 = address.version == 4
        opened = socket.socket(
            socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        try:
            if is_v4:
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CS6)
            else:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CS6)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            opened.bind((str(address), self._port))
        except OSError:
            opened.close()
            raise
        self._selector.register(opened, selectors.EVENT_READ)
        return opened

    def _told_of(self, address: Address, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return (
                f"another program has UDP port {self._port} of {address}, so that no heartbeats "
                "come in; end it, or set --loadbalancer-heartbeat-port on all nodes"
            )
        return f"no heartbeats come in at {address} port {self._port} ({error.strerror})"

    def _close(self, address: Address) -> None:
        closed = self._sockets.pop(address)
        self._selector.unregister(closed)
        closed.close()
