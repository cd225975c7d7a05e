"""Links at which neighbours can be answered, as rtnetlink(7) tells of them, and the choice of some.

Only links of Ethernet that resolve addresses, are up and have a carrier are fit. A port of a bridge
or of a bond is not: whoever asks there reaches the bridge, and is answered there. Links between
this node and its own pods, and those of addresses and tunnels, are left out by name.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from kube_router_py.kernel import overlay_messages as om
from kube_router_py.kernel.monitor import NetlinkMonitor
from kube_router_py.kernel.neighbor_ports import Address
from kube_router_py.kernel.netlink import NetlinkSocket, attributes

NEVER: Final = ("lo", "kube-bridge", "kube-dummy-if", "kube-ipvs0", "tun-*")
"""Patterns of names of links that are never chosen."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR = 1, 5, 9
_IFINFOMSG: Final = Layout("=BxHiII")
_IFADDRMSG: Final = Layout("=BBBBI")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_SLAVE_KIND = 1, 3, 18, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ARPHRD_ETHER: Final = 1
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_NOARP = 0x1, 0x8, 0x40, 0x80
_PORTS: Final = (b"bridge", b"bond", b"team")


class SegmentLink(Struct, frozen=True):
    """A link with its hardware address; ``is_fit``: it could be chosen now."""

    index: int
    name: str
    mac: bytes
    is_fit: bool
    addresses: frozenset[Address] = frozenset()


NO_LINKS: Final[tuple[SegmentLink, ...]] = ()


def read_links(sock: NetlinkSocket) -> tuple[SegmentLink, ...]:
    """All links with their addresses. Raises KernelError."""
    return decode_links(
        sock.dump(_RTM_GETLINK, om.LINK_DUMP), sock.dump(_RTM_GETADDR, bytes(_IFADDRMSG.size))
    )


def decode_links(links: Iterable[bytes], addresses: Iterable[bytes]) -> tuple[SegmentLink, ...]:
    """The same from the replies to both dumps. Pure."""
    found: dict[int, set[Address]] = {}
    for payload in addresses:
        *_, index = _IFADDRMSG.unpack_from(payload)
        values = dict(attributes(payload, _IFADDRMSG.size))
        # Between two ends of a link, the address of the other one is IFA_ADDRESS.
        packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if packed:
            found.setdefault(index, set()).add(ipaddress.ip_address(packed))
    return tuple(_decode_link(each, found) for each in links)


def _decode_link(payload: bytes, addresses: dict[int, set[Address]]) -> SegmentLink:
    _, kind, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    values = dict(attributes(payload, _IFINFOMSG.size))
    name = values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    mac = values.get(_IFLA_ADDRESS, b"")
    port = dict(attributes(values.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_SLAVE_KIND, b"")
    is_fit = (
        kind == _ARPHRD_ETHER
        and len(mac) == 6
        and flags & (_IFF_UP | _IFF_RUNNING) == _IFF_UP | _IFF_RUNNING
        and not flags & (_IFF_LOOPBACK | _IFF_NOARP)
        and port.rstrip(b"\0") not in _PORTS
        and not _matches(name, NEVER)
    )
    return SegmentLink(index, name, mac, is_fit, frozenset(addresses.get(index, ())))


def choose(
    links: Iterable[SegmentLink],
    patterns: Sequence[str],
    node_addresses: Collection[Address],
) -> tuple[SegmentLink, ...]:
    """The fit links whose name is like one of the patterns; without patterns, those that carry an
    address of the Node. Pure."""
    return tuple(
        each
        for each in links
        if each.is_fit
        and (
            _matches(each.name, patterns)
            if patterns
            else not each.addresses.isdisjoint(node_addresses)
        )
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, each) for each in patterns)


class SegmentMonitor(NetlinkMonitor):
    """Calls ``changed`` in its own thread when a link or an address may have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        groups = (_RTNLGRP_LINK, _RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR)
        super().__init__("neighbor-links", groups, changed)

    def forget(self) -> None:
        """Nothing is remembered."""

    def note(self, kind: int, data: bytes, start: int, end: int) -> bool:
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            return True
        # A bridge tells of its ports in its own family, too: nothing that matters here.
        return kind in (_RTM_NEWLINK, _RTM_DELLINK) and start < end and data[start] == 0
