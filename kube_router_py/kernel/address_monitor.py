"""Telling when addresses come to this node's links, or leave them (rtnetlink(7), RTM_NEWADDR).

A thread of its own listens. An address that is confirmed again and again, as router advertisements
do, is told of once. Link-local addresses of IPv6 are of no interest: every pod's veth has one. When
the kernel had more to say than we could take in, that counts as a change.
"""

import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Container

from kube_router_py.errors import KernelError
from kube_router_py.kernel.netlink import HEADER, NETLINK_ROUTE, attributes

_log = logging.getLogger(__name__)

_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RECEIVE_BYTES = 1 << 16


class AddressMonitor:
    """Calls ``changed`` in its own thread for the namespace of the thread that creates it.

    ``ignored`` are links whose addresses are of no interest: those that we put there ourselves.
    Raises KernelError where the kernel cannot be listened to.
    """

    def __init__(self, changed: Callable[[], None], ignored: Container[str]) -> None:
        self._changed = changed
        self._ignored = ignored
        self._known: set[tuple[int, bytes]] = set()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            self._socket.setblocking(False)
            self._socket.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError as error:
            raise KernelError(
                f"cannot watch addresses: {error.strerror}", error.errno or 0
            ) from error
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="address-monitor", daemon=True)

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
                _log.info("addresses may have changed unseen reason=%r", error.strerror)
                self._known.clear()
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
            start, end = offset + HEADER.size, offset + length
            if kind in (_RTM_NEWADDR, _RTM_DELADDR) and start + _IFADDRMSG.size <= end:
                has_changed |= self._note(data, kind, start, end)
            offset += (length + 3) & ~3
        return has_changed

    def _note(self, data: bytes, kind: int, start: int, end: int) -> bool:
        family, _, _, _, index = _IFADDRMSG.unpack_from(data, start)
        found = dict(attributes(data, start + _IFADDRMSG.size, end))
        # Between two ends of a link, the address of the other one is IFA_ADDRESS.
        place = index, found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
        if family == socket.AF_INET6 and _is_link_local(place[1]):
            return False
        is_news = kind == _RTM_DELADDR or place not in self._known
        if kind == _RTM_NEWADDR:
            self._known.add(place)
        else:
            self._known.discard(place)
        return is_news and _name_of(index) not in self._ignored


def _is_link_local(address: bytes) -> bool:
    """Whether an IPv6 address is in fe80::/10 (RFC 4291)."""
    return address[:1] == b"\xfe" and address[1] & 0xC0 == 0x80


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it has gone, with its addresses
        return ""
