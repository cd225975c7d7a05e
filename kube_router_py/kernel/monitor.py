"""Listening to what the kernel tells everybody by netlink: a thread, and who has to know.

When the kernel had more to say than we could take in, that counts as a change.
"""

import logging
import os
import selectors
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from struct import Struct as Layout

from kube_router_py.errors import KernelError
from kube_router_py.kernel.netlink import HEADER, NETLINK_ROUTE

_log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_INT = Layout("@i")


class NetlinkMonitor(ABC):
    """Calls ``changed`` in its own thread for the namespace of the thread that creates it.

    ``groups`` are numbers of rtnetlink's multicast groups (RTNLGRP_*). What is a change, ``note``
    of a subclass says; ``forget`` is called when something was lost. Raises KernelError where the
    kernel cannot be listened to.
    """

    def __init__(self, name: str, groups: tuple[int, ...], changed: Callable[[], None]) -> None:
        self._name = name
        self._changed = changed
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _INT.pack(group))
        except OSError as error:
            raise KernelError(f"cannot start {name}: {error.strerror}", error.errno or 0) from error
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def note(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Whether a message (its payload is ``data[start:end]``) tells of a change."""

    @abstractmethod
    def forget(self) -> None:
        """What is remembered may be wrong."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread and close what it listens to."""
        os.write(self._stop_write, b"x")
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._socket.close()
            os.close(self._stop_read)
            os.close(self._stop_write)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._stop_read, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._stop_read in ready:
                    return
                if self._receive():
                    self._changed()

    def _receive(self) -> bool:
        """Take in what there is; whether it tells of a change."""
        has_changed = False
        while True:
            try:
                data, sender = self._socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                return has_changed
            except OSError as error:  # ENOBUFS: something was lost
                _log.info(
                    "a monitor lost messages monitor=%s reason=%r", self._name, error.strerror
                )
                self.forget()
                has_changed = True
                continue
            if sender[0] == 0:  # from the kernel
                has_changed |= self._take(data)

    def _take(self, data: bytes) -> bool:
        has_changed = False
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, _, _, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size:
                break
            has_changed |= self.note(kind, data, offset + HEADER.size, offset + length)
            offset += (length + 3) & ~3
        return has_changed
