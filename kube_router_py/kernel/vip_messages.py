"""rtnetlink messages about host routes in table ``local`` and host addresses, as bytes.

Layouts: linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h. Pure.
"""

import socket
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from kube_router_py.kernel.netlink import attribute, attributes
from kube_router_py.proxy.model import Vip

RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26

KERNEL_PROTOCOL: Final = 2
OWN_PROTOCOL: Final = 75
"""The agent's route protocol number (rtm_protocol), by which it knows its routes."""
OWN_METRIC: Final = 75

KEEPER: Final = Vip(socket.AF_INET, bytes((127, 0, 0, 75)))
"""An address that the VIP link always has, of scope host, and that is no VIP.

When a link loses its last IPv4 address, Linux flushes all IPv4 routes that lead to it (kernel
sources net/ipv4/fib_frontend.c, fib_inetaddr_event), and so the VIPs of mode ``route``.
"""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

_TABLE_LOCAL = 255
_TYPE_LOCAL = 2
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
_IFF_UP = 1

_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 6, 7, 15
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_IFLA_LINKINFO, _IFLA_INFO_KIND = 18, 1
_AF_BRIDGE = 7
_IFLA_MASTER, _IFLA_PROTINFO, _IFLA_BRPORT_MODE = 10, 12, 4

_RTMSG = Layout("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_IFADDRMSG = Layout("=4BI")  # family, prefix length, flags, scope; link index
_IFINFOMSG = Layout("=BxHiII")  # family; type, index, flags, change
_U32 = Layout("=I")


class LocalRoute(Struct, frozen=True):
    """A host route in table ``local``; ``source`` is b"" where it prefers none."""

    vip: Vip
    protocol: int
    source: bytes


class AddressEntry(Struct, frozen=True):
    """An address on a link."""

    family: int
    address: bytes
    prefix_length: int
    index: int


class LinkState(Struct, frozen=True):
    """What matters of a link: whether it is up, and its kind (``dummy``; empty for hardware)."""

    is_up: bool
    kind: str


def put_route(vip: Vip, index: int, source: bytes) -> bytes:
    """Payload of RTM_NEWROUTE for our route of a VIP (flags CREATE and REPLACE)."""
    payload = _route(vip, index, OWN_PROTOCOL) + attribute(_RTA_PRIORITY, _U32.pack(OWN_METRIC))
    return payload + attribute(_RTA_PREFSRC, source) if source else payload


def delete_route(vip: Vip, index: int, protocol: int) -> bytes:
    """Payload of RTM_DELROUTE for a VIP's route of one protocol on one link."""
    return _route(vip, index, protocol)


def _route(vip: Vip, index: int, protocol: int) -> bytes:
    scope = _SCOPE_HOST if vip.family == socket.AF_INET else _SCOPE_UNIVERSE
    length = len(vip.address) * 8
    header = (vip.family, length, 0, 0, _TABLE_LOCAL, protocol, scope, _TYPE_LOCAL, 0)
    return (
        _RTMSG.pack(*header)
        + attribute(_RTA_DST, vip.address)
        + attribute(_RTA_OIF, _U32.pack(index))
    )


def route_dump(family: int, index: int) -> bytes:
    """Payload of an RTM_GETROUTE dump of local routes on one link (needs a strict socket)."""
    header = (family, 0, 0, 0, _TABLE_LOCAL, 0, 0, _TYPE_LOCAL, 0)
    return (
        _RTMSG.pack(*header)
        + attribute(_RTA_TABLE, _U32.pack(_TABLE_LOCAL))
        + attribute(_RTA_OIF, _U32.pack(index))
    )


def decode_route(payload: bytes, index: int) -> LocalRoute | None:
    """A dumped route, or None if it is no local host route on the link ``index``."""
    family, length, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(payload)
    if kind != _TYPE_LOCAL or family not in FAMILIES:
        return None
    found = dict(attributes(payload, _RTMSG.size))
    destination = found.get(_RTA_DST, b"")
    if length != len(destination) * 8 or not destination:
        return None
    if _u32(found, _RTA_OIF) != index or _u32(found, _RTA_TABLE) != _TABLE_LOCAL:
        return None
    return LocalRoute(Vip(family, destination), protocol, found.get(_RTA_PREFSRC, b""))


def put_address(vip: Vip, index: int) -> bytes:
    """Payload of RTM_NEWADDR for a VIP as a host address (flags CREATE and REPLACE).

    Duplicate address detection is off: every node of the cluster has the same VIPs.
    """
    flags = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE if vip.family == socket.AF_INET6 else 0
    scope = _SCOPE_LINK if vip.family == socket.AF_INET else _SCOPE_UNIVERSE
    payload = _address(vip, index, _SCOPE_HOST if vip == KEEPER else scope)
    return payload + attribute(_IFA_FLAGS, _U32.pack(flags)) if flags else payload


def delete_address(vip: Vip, index: int) -> bytes:
    """Payload of RTM_DELADDR for a VIP that is a host address."""
    return _address(vip, index, _SCOPE_UNIVERSE)


def _address(vip: Vip, index: int, scope: int) -> bytes:
    return (
        _IFADDRMSG.pack(vip.family, len(vip.address) * 8, 0, scope, index)
        + attribute(_IFA_LOCAL, vip.address)
        + attribute(_IFA_ADDRESS, vip.address)
    )


def address_dump(family: int, index: int = 0) -> bytes:
    """Payload of an RTM_GETADDR dump, of one link where ``index`` is given (strict socket)."""
    return _IFADDRMSG.pack(family, 0, 0, 0, index)


def decode_address(payload: bytes) -> AddressEntry | None:
    """A dumped address (the local end where there is a peer), or None for other families."""
    family, length, _, _, index = _IFADDRMSG.unpack_from(payload)
    if family not in FAMILIES:
        return None
    found = dict(attributes(payload, _IFADDRMSG.size))
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return AddressEntry(family, address, length, index) if address else None


def link_request(index: int) -> bytes:
    """Payload of RTM_GETLINK for one link."""
    return _IFINFOMSG.pack(0, 0, index, 0, 0)


def decode_link(payload: bytes) -> LinkState:
    """The answer to RTM_GETLINK."""
    flags = _IFINFOMSG.unpack_from(payload)[3]
    kind = ""
    for number, value in attributes(payload, _IFINFOMSG.size):
        if number == _IFLA_LINKINFO:
            kind = dict(attributes(value)).get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    return LinkState(bool(flags & _IFF_UP), kind)


BRIDGE_LINKS: Final = _IFINFOMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)
"""Payload of an RTM_GETLINK dump of bridges and their ports."""


def decode_bridge_port(payload: bytes) -> tuple[int, int, bool] | None:
    """Indexes of bridge and port, and whether the port is in hairpin mode; None for a bridge."""
    index = _IFINFOMSG.unpack_from(payload)[2]
    found = dict(attributes(payload, _IFINFOMSG.size))
    bridge = _u32(found, _IFLA_MASTER)
    port = dict(attributes(found.get(_IFLA_PROTINFO, b"")))
    if not bridge or _IFLA_BRPORT_MODE not in port:
        return None
    return bridge, index, port[_IFLA_BRPORT_MODE] != b"\0"


def _u32(found: dict[int, bytes], number: int) -> int:
    value = found.get(number, b"")
    return int(_U32.unpack(value)[0]) if len(value) == 4 else 0
