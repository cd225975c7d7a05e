"""Packets that iptables' target NFLOG hands over, as values. Pure; never raises, whatever comes.

Sources: linux/netfilter/nfnetlink_log.h (messages and attributes), netlink(7), RFC 791 and 8200
(headers), RFC 9293, 768, 9260, 792 and 4443 (what follows them), and nfnetlink_conntrack.h (the
connection, whose first direction has the address that the client meant).
"""

import socket
import struct
from collections.abc import Iterator

from msgspec import Struct

NFNL_SUBSYS_ULOG = 4
MSG_PACKET, MSG_CONFIG = 0, 1
PACKET_TYPE = NFNL_SUBSYS_ULOG << 8 | MSG_PACKET

NLMSG = struct.Struct("=IHHII")
"""Length, type, flags, sequence number, port."""
NFGENMSG = struct.Struct("!BBH")
"""Address family, version, group."""
ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

# NFULA_*
_TIMESTAMP, _PAYLOAD, _PREFIX, _SEQUENCE = 3, 9, 10, 12
_CONNECTION, _CONNECTION_STATE = 18, 19
# CTA_*
_TUPLE_ORIGINAL, _TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 1, 2
_ADDRESSES = {1: 4, 2: 4, 3: 16, 4: 16}  # source and destination of IPv4, then of IPv6: bytes
_REPLIES = 3  # IP_CT_IS_REPLY; above are all that go the other way

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_WITH_PORTS = ("tcp", "udp", "sctp", "udplite")
# IPv6 headers that say which one follows, and how long they are in units of 8 bytes.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_MOBILITY, _HIP, _SHIM6 = 135, 139, 140
_EXTENSIONS = {_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION} | {
    *(_MOBILITY, _HIP, _SHIM6)
}
_EXTENSIONS_MOST = 16


class Tuple(Struct, frozen=True):
    """One direction of a connection; ports None where the protocol has none."""

    source: str = ""
    destination: str = ""
    protocol: str = ""
    source_port: int | None = None
    destination_port: int | None = None


class Packet(Struct, frozen=True):
    """A packet as it was when a rule logged it.

    ``family`` is 4, 6, or 0 where there is no IP packet; ``protocol`` a name in small letters, or
    the number of another one. Ports are None where the protocol has none, or where they are not
    in what was handed over: a fragment that is not the first (``is_fragment``), a short copy.
    ``icmp`` is type and code. ``timestamp`` in seconds since 1970 by the kernel, which does not
    always know. ``original`` is the first direction of the connection, if conntrack has one and the
    packet goes that way.
    """

    prefix: str = ""
    timestamp: float | None = None
    sequence: int | None = None
    family: int = 0
    source: str = ""
    destination: str = ""
    protocol: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    icmp: tuple[int, int] | None = None
    is_fragment: bool = False
    original: Tuple | None = None


def decode(datagram: bytes) -> Iterator[Packet]:
    """The packets of what one receive from the socket gave; what is none of them is left out."""
    for kind, body in messages(datagram):
        if kind == PACKET_TYPE and len(body) >= NFGENMSG.size:
            yield _packet(dict(_attributes(body[NFGENMSG.size :])))


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message, as far as they are whole."""
    at = 0
    while at + NLMSG.size <= len(datagram):
        length, kind, _, _, _ = NLMSG.unpack_from(datagram, at)
        if length < NLMSG.size or at + length > len(datagram):
            return
        yield kind, datagram[at + NLMSG.size : at + length]
        at += _aligned(length)


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, at)
        if length < ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & _TYPE_MASK, body[at + ATTRIBUTE.size : at + length]
        at += _aligned(length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _packet(found: dict[int, bytes]) -> Packet:
    reading = _ip(found.get(_PAYLOAD, b""))
    return Packet(
        prefix=found.get(_PREFIX, b"").split(b"\0")[0].decode(errors="replace"),
        timestamp=_timestamp(found.get(_TIMESTAMP, b"")),
        sequence=_number(found[_SEQUENCE]) if len(found.get(_SEQUENCE, b"")) == 4 else None,
        family=reading.family,
        source=reading.source,
        destination=reading.destination,
        protocol=reading.protocol,
        source_port=reading.source_port,
        destination_port=reading.destination_port,
        icmp=reading.icmp,
        is_fragment=reading.is_fragment,
        original=_original(found),
    )


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, "big") if raw is not None and len(raw) in (1, 2, 4) else 0


def _timestamp(raw: bytes) -> float | None:
    if len(raw) != 16:
        return None
    seconds, micros = struct.unpack("!QQ", raw)
    # Far from any time of day: packets of this node's own may carry the time since it started.
    return float(seconds + micros / 1e6) if seconds >> 32 == 0 and micros < 1_000_000 else None


# --- the connection ------------------------------------------------------------------------------


def _original(found: dict[int, bytes]) -> Tuple | None:
    if _CONNECTION not in found or _number(found.get(_CONNECTION_STATE)) >= _REPLIES:
        return None
    parts = dict(_attributes(dict(_attributes(found[_CONNECTION])).get(_TUPLE_ORIGINAL, b"")))
    ends = dict(_attributes(parts.get(_TUPLE_ADDRESSES, b"")))
    spelt = {k: _address(v) for k, v in ends.items() if _ADDRESSES.get(k) == len(v)}
    source, destination = spelt.get(1) or spelt.get(3), spelt.get(2) or spelt.get(4)
    if not source or not destination:
        return None
    flow = dict(_attributes(parts.get(_TUPLE_PROTOCOL, b"")))
    protocol = _protocol(_number(flow.get(1)))
    has_ports = protocol in _WITH_PORTS and 2 in flow and 3 in flow
    ports = (_number(flow[2]), _number(flow[3])) if has_ports else (None, None)
    return Tuple(source, destination, protocol, *ports)


# --- the packet ----------------------------------------------------------------------------------


class _Reading(Struct):
    family: int = 0
    source: str = ""
    destination: str = ""
    protocol: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    icmp: tuple[int, int] | None = None
    is_fragment: bool = False


def _ip(data: bytes) -> _Reading:
    if len(data) >= 20 and data[0] >> 4 == 4:
        return _ipv4(data)
    if len(data) >= 40 and data[0] >> 4 == 6:
        return _ipv6(data)
    return _Reading()


def _ipv4(data: bytes) -> _Reading:
    reading = _Reading(4, _address(data[12:16]), _address(data[16:20]), _protocol(data[9]))
    reading.is_fragment = bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
    _transport(reading, data[max(20, (data[0] & 0xF) * 4) :])
    return reading


def _ipv6(data: bytes) -> _Reading:
    reading = _Reading(6, _address(data[8:24]), _address(data[24:40]))
    following, at = data[6], 40
    for _ in range(_EXTENSIONS_MOST):
        if following not in _EXTENSIONS or at + 8 > len(data):
            break
        kind, length = following, data[at + 1]
        following = data[at]
        if kind == _FRAGMENT:
            if int.from_bytes(data[at + 2 : at + 4], "big") >> 3:
                reading.is_fragment = True
            at += 8
        else:
            at += (length + 2) * 4 if kind == _AUTHENTICATION else (length + 1) * 8
        if reading.is_fragment:
            break  # what comes next is the middle of something
    reading.protocol = _protocol(following)
    _transport(reading, data[at:])
    return reading


def _transport(reading: _Reading, data: bytes) -> None:
    if reading.is_fragment:
        return
    if reading.protocol in _WITH_PORTS and len(data) >= 4:
        reading.source_port, reading.destination_port = struct.unpack_from("!HH", data)
    elif reading.protocol in ("icmp", "icmpv6") and len(data) >= 2:
        reading.icmp = (data[0], data[1])


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
