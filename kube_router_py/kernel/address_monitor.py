"""Telling when addresses come to this node's links, or leave them (rtnetlink(7), RTM_NEWADDR).

A thread of its own listens. An address that is confirmed again and again, as router advertisements
do, is told of once. Link-local addresses of IPv6 are of no interest: every pod's veth has one.
"""

import socket
import struct
from collections.abc import Callable, Container

from kube_router_py.kernel.monitor import NetlinkMonitor
from kube_router_py.kernel.netlink import attributes

_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR = 5, 9
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


class AddressMonitor(NetlinkMonitor):
    """Calls ``changed`` in its own thread for the namespace of the thread that creates it.

    ``ignored`` are links whose addresses are of no interest: those that we put there ourselves.
    Raises KernelError where the kernel cannot be listened to.
    """

    def __init__(self, changed: Callable[[], None], ignored: Container[str]) -> None:
        super().__init__("address-monitor", (_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR), changed)
        self._ignored = ignored
        self._known: set[tuple[int, bytes]] = set()

    def forget(self) -> None:
        self._known.clear()

    def note(self, kind: int, data: bytes, start: int, end: int) -> bool:
        if kind not in (_RTM_NEWADDR, _RTM_DELADDR) or start + _IFADDRMSG.size > end:
            return False
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
