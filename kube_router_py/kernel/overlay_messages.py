"""rtnetlink messages about tunnels, their neighbours, routes and rules, as bytes. Pure.

Layouts: linux/if_link.h, linux/if_tunnel.h, linux/neighbour.h, linux/rtnetlink.h,
linux/fib_rules.h.
"""

import ipaddress
import socket
from collections.abc import Mapping
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from kube_router_py.kernel.netlink import attribute, attributes, nested
from kube_router_py.kernel.overlay_ports import (
    MAIN,
    PRIORITY,
    TABLE,
    VNI,
    Address,
    Encap,
    Network,
    Route,
    Tunnel,
    mac_of,
)
from kube_router_py.kernel.vip_messages import OWN_PROTOCOL

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

KUBE_ROUTER_PROTOCOL: Final = 17
FAMILY: Final = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
METRIC: Final = {4: 0, 6: 1}
"""By IP version, below the 20 of FRR's routes. (IPv6 takes 0 for 1024.)"""

OWNER: Final = "kube-router-py"
"""The alias of the links that the agent made or took over."""

_VERSION = {family: version for version, family in FAMILY.items()}
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_EXT_MASK = 1, 3, 4, 18, 29
_IFLA_IFALIAS = 20
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_RTEXT_FILTER_SKIP_STATS = 8
_TUN_LOCAL, _TUN_REMOTE, _TUN_TTL, _TUN_FLAGS = 2, 3, 4, 8
_TUN_PROTO, _TUN_PMTUDISC = 9, 10
_TUN_ENCAP_TYPE, _TUN_ENCAP_FLAGS, _TUN_ENCAP_SPORT, _TUN_ENCAP_DPORT = 15, 16, 17, 18
_ENCAP_GUE, _ENCAP_FLAG_CSUM6 = 2, 2
_IP6_IGNORE_ENCAP_LIMIT = 1
_TTL = 64
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_NUD_PERMANENT, _NUD_NOARP, _NTF_SELF = 0x80, 0x40, 0x02
_AF_BRIDGE = 7
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 6, 7, 15
_RTNH_F_ONLINK = 4
_TYPE_UNICAST, _SCOPE_UNIVERSE, _SCOPE_LINK = 1, 0, 253
_TO_TABLE = 1
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE, _FRA_PROTOCOL = 2, 6, 15, 21

_IFINFOMSG = Layout("=BxHiII")  # family; type, index, flags, change
_NDMSG = Layout("=B3xiHBB")  # family; index, state, flags, type
_RTMSG = Layout("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_U32, _U16 = Layout("=I"), Layout("=H")


class Device(Struct, frozen=True):
    """A link: ``tunnel`` is None where it is none as we make them. ``mtu`` in bytes.
    ``is_marked``: its alias says that it is ours."""

    index: int
    name: str
    kind: str
    is_up: bool
    mtu: int
    is_marked: bool
    tunnel: Tunnel | None


def kind_of(tunnel: Tunnel) -> str:
    """The kernel's name for such devices."""
    if tunnel.encap is Encap.VXLAN:
        return "vxlan"
    return "ipip" if tunnel.version == 4 else "ip6tnl"


LINK_DUMP: Final = _IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(
    _IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS)
)


def link(index: int) -> bytes:
    """Payload that names one link, for RTM_GETLINK and RTM_DELLINK."""
    return _IFINFOMSG.pack(0, 0, index, 0, 0)


def link_mtu(index: int, mtu: int) -> bytes:
    """Payload of RTM_NEWLINK that changes an MTU."""
    return link(index) + attribute(_IFLA_MTU, _U32.pack(mtu))


def link_up(index: int) -> bytes:
    """Payload of RTM_NEWLINK that sets a link up."""
    return _IFINFOMSG.pack(0, 0, index, _IFF_UP, _IFF_UP)


def link_marked_up(index: int) -> bytes:
    """Payload of RTM_NEWLINK that sets a link up and marks it as ours."""
    return link_up(index) + attribute(_IFLA_IFALIAS, OWNER.encode())


def new_bridge(name: str) -> bytes:
    """Payload of RTM_NEWLINK for a bridge."""
    return _new(name, "bridge", b"")


def new_tunnel(tunnel: Tunnel) -> bytes:
    """Payload of RTM_NEWLINK for a tunnel; it is down at first."""
    extra = attribute(_IFLA_MTU, _U32.pack(tunnel.mtu))
    if tunnel.encap is Encap.VXLAN:
        extra += attribute(_IFLA_ADDRESS, mac_of(tunnel.local))
        data = [
            attribute(_VXLAN_ID, _U32.pack(VNI)),
            attribute(_VXLAN_LOCAL if tunnel.version == 4 else _VXLAN_LOCAL6, tunnel.local.packed),
            attribute(_VXLAN_LEARNING, b"\0"),
            attribute(_VXLAN_PORT, tunnel.port.to_bytes(2, "big")),
        ]
    else:
        assert tunnel.remote is not None
        data = [
            attribute(_TUN_LOCAL, tunnel.local.packed),
            attribute(_TUN_REMOTE, tunnel.remote.packed),
            attribute(_TUN_TTL, bytes((_TTL,))),
        ]
        if tunnel.version == 4:
            data.append(attribute(_TUN_PROTO, bytes((socket.IPPROTO_IPIP,))))
            data.append(attribute(_TUN_PMTUDISC, b"\1"))
        else:
            # The option that limits nesting (RFC 2473, 4.1.1) would cost 8 bytes of each packet.
            data.append(attribute(_TUN_FLAGS, _U32.pack(_IP6_IGNORE_ENCAP_LIMIT)))
            data.append(attribute(_TUN_PROTO, bytes((socket.IPPROTO_IPV6,))))
        if tunnel.encap is Encap.FOU:
            data += _gue(tunnel)
    return _new(tunnel.name, kind_of(tunnel), extra, nested(_IFLA_INFO_DATA, *data))


def _gue(tunnel: Tunnel) -> list[bytes]:
    # Without a checksum, UDP over IPv6 is what many drop (RFC 8200, 8.1).
    flags = _ENCAP_FLAG_CSUM6 if tunnel.version == 6 else 0
    return [
        attribute(_TUN_ENCAP_TYPE, _U16.pack(_ENCAP_GUE)),
        attribute(_TUN_ENCAP_FLAGS, _U16.pack(flags)),
        attribute(_TUN_ENCAP_SPORT, b"\0\0"),
        attribute(_TUN_ENCAP_DPORT, tunnel.port.to_bytes(2, "big")),
    ]


def _new(name: str, kind: str, extra: bytes, data: bytes = b"") -> bytes:
    return (
        link(0)
        + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + extra
        + nested(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode() + b"\0"), data)
    )


def decode_device(payload: bytes) -> Device:
    """The answer to RTM_GETLINK, or one of a dump."""
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    found = dict(attributes(payload, _IFINFOMSG.size))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    name = _text(found.get(_IFLA_IFNAME, b""))
    kind = _text(info.get(_IFLA_INFO_KIND, b""))
    mtu = _number(found, _IFLA_MTU)
    data = dict(attributes(info.get(_IFLA_INFO_DATA, b"")))
    tunnel = None
    if kind == "vxlan":
        tunnel = _decode_vxlan(name, mtu, found.get(_IFLA_ADDRESS, b""), data)
    elif kind in ("ipip", "ip6tnl"):
        tunnel = _decode_tunnel(name, kind, mtu, data)
    is_marked = _text(found.get(_IFLA_IFALIAS, b"")) == OWNER
    return Device(index, name, kind, bool(flags & _IFF_UP), mtu, is_marked, tunnel)


def _decode_vxlan(name: str, mtu: int, mac: bytes, data: Mapping[int, bytes]) -> Tunnel | None:
    local = _address(data.get(_VXLAN_LOCAL) or data.get(_VXLAN_LOCAL6, b""))
    is_ours = _number(data, _VXLAN_ID) == VNI and data.get(_VXLAN_LEARNING) == b"\0"
    if local is None or not is_ours or mac != mac_of(local):
        return None
    port = int.from_bytes(data.get(_VXLAN_PORT, b""), "big")
    return Tunnel(name=name, encap=Encap.VXLAN, local=local, port=port, mtu=mtu)


def _decode_tunnel(name: str, kind: str, mtu: int, data: Mapping[int, bytes]) -> Tunnel | None:
    local, remote = _address(data.get(_TUN_LOCAL, b"")), _address(data.get(_TUN_REMOTE, b""))
    if local is None or remote is None:
        return None
    if kind == "ip6tnl" and not _number(data, _TUN_FLAGS) & _IP6_IGNORE_ENCAP_LIMIT:
        return None
    encap, port = Encap.IPIP, 0
    kind_of_encap = data.get(_TUN_ENCAP_TYPE, _U16.pack(0))
    if kind_of_encap != _U16.pack(0):
        encap, port = Encap.FOU, int.from_bytes(data.get(_TUN_ENCAP_DPORT, b""), "big")
        if kind_of_encap != _U16.pack(_ENCAP_GUE):
            return None
    return Tunnel(name=name, encap=encap, local=local, remote=remote, port=port, mtu=mtu)


def forwarding_entry(address: Address, mac: bytes, index: int) -> bytes:
    """Payload of RTM_NEWNEIGH and RTM_DELNEIGH: behind which node a hardware address is."""
    return (
        _NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
        + attribute(_NDA_LLADDR, mac)
        + attribute(_NDA_DST, address.packed)
    )


def neighbour_entry(address: Address, mac: bytes, index: int) -> bytes:
    """Payload of RTM_NEWNEIGH and RTM_DELNEIGH: the hardware address of a node."""
    return (
        _NDMSG.pack(FAMILY[address.version], index, _NUD_PERMANENT, 0, 0)
        + attribute(_NDA_DST, address.packed)
        + attribute(_NDA_LLADDR, mac)
    )


def forwarding_dump(index: int) -> bytes:
    """Payload of an RTM_GETNEIGH dump of one device's forwarding entries (strict socket)."""
    return _NDMSG.pack(_AF_BRIDGE, index, 0, 0, 0)


def neighbour_dump(version: int, index: int) -> bytes:
    """Payload of an RTM_GETNEIGH dump of one device's neighbours (strict socket)."""
    return _NDMSG.pack(FAMILY[version], 0, 0, 0, 0) + attribute(_NDA_IFINDEX, _U32.pack(index))


class Entry(Struct, frozen=True):
    """An entry of a device's neighbours, or of what it forwards to."""

    index: int
    is_permanent: bool
    address: Address
    mac: bytes


def decode_entry(payload: bytes) -> Entry | None:
    """One of a dump, or a notification; None for one that names no address."""
    _, index, state, _, _ = _NDMSG.unpack_from(payload)
    found = dict(attributes(payload, _NDMSG.size))
    address = _address(found.get(_NDA_DST, b""))
    if address is None:
        return None
    is_permanent = bool(state & _NUD_PERMANENT)
    return Entry(index, is_permanent, address, found.get(_NDA_LLADDR, b""))


def route(wanted: Route, index: int) -> bytes:
    """Payload of RTM_NEWROUTE and RTM_DELROUTE for a route of ours on a link."""
    destination = wanted.destination
    gateway, source = wanted.gateway, wanted.source
    is_link = destination.version == 4 and gateway is None
    header = _RTMSG.pack(
        FAMILY[destination.version],
        destination.prefixlen,
        0,
        0,
        wanted.table,
        OWN_PROTOCOL,
        _SCOPE_LINK if is_link else _SCOPE_UNIVERSE,
        _TYPE_UNICAST,
        _RTNH_F_ONLINK if gateway is not None else 0,
    )
    return (
        header
        + attribute(_RTA_DST, destination.network_address.packed)
        + attribute(_RTA_TABLE, _U32.pack(wanted.table))
        + attribute(_RTA_OIF, _U32.pack(index))
        + attribute(_RTA_PRIORITY, _U32.pack(METRIC[destination.version]))
        + (attribute(_RTA_GATEWAY, gateway.packed) if gateway is not None else b"")
        + (attribute(_RTA_PREFSRC, source.packed) if source is not None else b"")
    )


def any_route(destination: Network, table: int, protocol: int) -> bytes:
    """Payload of RTM_DELROUTE for whatever route of a protocol leads there."""
    return (
        _RTMSG.pack(
            FAMILY[destination.version], destination.prefixlen, 0, 0, table, protocol, 255, 0, 0
        )
        + attribute(_RTA_DST, destination.network_address.packed)
        + attribute(_RTA_TABLE, _U32.pack(table))
    )


def route_dump(version: int, table: int, protocol: int) -> bytes:
    """Payload of an RTM_GETROUTE dump of one table and protocol (strict socket)."""
    header = _RTMSG.pack(FAMILY[version], 0, 0, 0, table, protocol, 0, 0, 0)
    return header + attribute(_RTA_TABLE, _U32.pack(table))


class Standing(Struct, frozen=True):
    """A route as the kernel has it; ``index`` is 0 where it leads to no single link."""

    destination: Network
    table: int
    protocol: int
    metric: int
    index: int
    gateway: Address | None
    source: Address | None


def decode_route(payload: bytes) -> Standing | None:
    """One of a dump, or a notification; None for families that are none of ours."""
    family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(payload)
    if family not in _VERSION:
        return None
    found = dict(attributes(payload, _RTMSG.size))
    destination = found.get(_RTA_DST, bytes(4 if _VERSION[family] == 4 else 16))
    return Standing(
        ipaddress.ip_network((destination, length), strict=False),
        _number(found, _RTA_TABLE) or table,
        protocol,
        _number(found, _RTA_PRIORITY),
        _number(found, _RTA_OIF),
        _address(found.get(_RTA_GATEWAY, b"")),
        _address(found.get(_RTA_PREFSRC, b"")),
    )


def rule(source: Network) -> bytes:
    """Payload of RTM_NEWRULE and RTM_DELRULE: what comes from there looks up our table."""
    return (
        _RTMSG.pack(FAMILY[source.version], 0, source.prefixlen, 0, TABLE, 0, 0, _TO_TABLE, 0)
        + attribute(_FRA_SRC, source.network_address.packed)
        + attribute(_FRA_PRIORITY, _U32.pack(PRIORITY))
        + attribute(_FRA_TABLE, _U32.pack(TABLE))
        + attribute(_FRA_PROTOCOL, bytes((OWN_PROTOCOL,)))
    )


def rule_dump(version: int) -> bytes:
    """Payload of an RTM_GETRULE dump."""
    return _RTMSG.pack(FAMILY[version], *([0] * 8))


def decode_rule(payload: bytes) -> Network | None:
    """The source of a rule of ours; None for any other rule."""
    family, _, length, _, table, _, _, action, _ = _RTMSG.unpack_from(payload)
    found = dict(attributes(payload, _RTMSG.size))
    is_ours = (
        family in _VERSION
        and action == _TO_TABLE
        and (_number(found, _FRA_TABLE) or table) == TABLE
        and _number(found, _FRA_PRIORITY) == PRIORITY
        and found.get(_FRA_PROTOCOL) == bytes((OWN_PROTOCOL,))
        and _FRA_SRC in found
    )
    return ipaddress.ip_network((found[_FRA_SRC], length), strict=False) if is_ours else None


TABLES: Final = (MAIN, TABLE)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _address(value: bytes) -> Address | None:
    """An address; None where there is none, or it is the unspecified one."""
    if len(value) not in (4, 16) or not any(value):
        return None
    return ipaddress.ip_address(value)


def _number(found: Mapping[int, bytes], number: int) -> int:
    value = found.get(number, b"")
    return int(_U32.unpack(value)[0]) if len(value) == 4 else 0
