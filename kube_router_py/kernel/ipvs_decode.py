"""Dumped IPVS objects as values.

Real servers, of which there are many, are decoded at fixed offsets after checking that every
attribute header is where it was expected; otherwise attribute by attribute.
"""

import errno
import socket
from functools import lru_cache
from struct import Struct
from typing import Any

from msgspec import Struct as Value

from kube_router_py.errors import KernelError
from kube_router_py.kernel import ipvs_uapi as uapi
from kube_router_py.kernel.ipvs_rules import ADDRESS_BYTES, CHOOSABLE_FLAGS
from kube_router_py.kernel.netlink import attribute, attributes
from kube_router_py.proxy.model import (
    Connections,
    RealServer,
    RealServerKey,
    VirtualServer,
    VirtualServerKey,
)

# What ip_vs_genl_fill_dest() writes in front of the statistics.
_DUMPED_DEST_LAYOUT = (
    (uapi.D_ADDR, "16s"),
    (uapi.D_PORT, "H"),
    (uapi.D_FWD, "I"),
    (uapi.D_WEIGHT, "i"),
    (uapi.D_TUN_TYPE, "B"),
    (uapi.D_TUN_PORT, "H"),
    (uapi.D_TUN_FLAGS, "H"),
    (uapi.D_UPPER, "I"),
    (uapi.D_LOWER, "I"),
    (uapi.D_ACTIVE, "I"),
    (uapi.D_INACTIVE, "I"),
    (uapi.D_PERSISTENT, "I"),
    (uapi.D_FAMILY, "H"),
)
_codes, _DUMPED_DEST_HEADERS = uapi.layout(*_DUMPED_DEST_LAYOUT)
_DUMPED_DEST = Struct("=" + _codes)
_DUMPED_DEST_MEMBERS = tuple((kind, Struct("=" + code).size) for kind, code in _DUMPED_DEST_LAYOUT)
_GENL_AND_NEST_BYTES = 8


class Traffic(Value, frozen=True, gc=False):
    """What went through one virtual server since it was created, and what goes in a second.

    The kernel sums these up every 2 seconds, so they lag by as much.
    """

    connections: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    connections_a_second: int = 0
    packets_in_a_second: int = 0
    packets_out_a_second: int = 0
    bytes_in_a_second: int = 0
    bytes_out_a_second: int = 0


def decode_timeouts(payload: bytes) -> tuple[int, int, int]:
    """TCP, TCP FIN and UDP timeouts in seconds."""
    found = dict(attributes(payload, 4))
    tcp, tcp_fin, udp = (uapi.u32(found[kind]) for kind in uapi.TIMEOUTS)
    return tcp, tcp_fin, udp


def decode_version(payload: bytes) -> tuple[str, int]:
    """IPVS's version (``1.2.1``) and the size of its connection table (buckets)."""
    found = dict(attributes(payload, 4))
    version = uapi.u32(found[uapi.I_VERSION])
    text = f"{version >> 16 & 0xFF}.{version >> 8 & 0xFF}.{version & 0xFF}"
    return text, uapi.u32(found[uapi.I_TABLE_SIZE])


def decode_virtual_server(payload: bytes) -> tuple[VirtualServerKey, VirtualServer]:
    """One reply to uapi.CMD_GET_SERVICE.

    The kernel's own flag HASHED is left out. A server that is persistent for 0 s (no one can ask
    for it here) keeps the persistence bit in ``flags``, so that it equals no desired state.
    """
    found = dict(attributes(_nest(payload, uapi.SERVICE)))
    key = _virtual_server_key(found)
    flags = uapi.u32(found[uapi.S_FLAGS]) & (CHOOSABLE_FLAGS | uapi.PERSISTENT)
    persistence_s = uapi.u32(found[uapi.S_TIMEOUT]) if flags & uapi.PERSISTENT else 0
    if persistence_s:
        flags &= ~uapi.PERSISTENT
    if key.family == socket.AF_INET:
        prefix = int.from_bytes(found[uapi.S_NETMASK], "big").bit_count()
    else:
        prefix = uapi.u32(found[uapi.S_NETMASK])
    if prefix == 8 * ADDRESS_BYTES[key.family]:
        prefix = 0
    scheduler = found[uapi.S_SCHED].rstrip(b"\0").decode("ascii", "replace")
    return key, VirtualServer(scheduler, flags, persistence_s, prefix)


def decode_traffic(payload: bytes) -> tuple[VirtualServerKey, Traffic]:
    """One reply to CMD_GET_SERVICE: the traffic counters."""
    found = dict(attributes(_nest(payload, uapi.SERVICE)))
    counters = dict(attributes(found.get(uapi.S_STATS64, b"")))
    values = (uapi.u64(counters.get(kind, b"")) for kind in uapi.TRAFFIC)
    return _virtual_server_key(found), Traffic(*values)


def _virtual_server_key(found: dict[int, bytes]) -> VirtualServerKey:
    family = uapi.u16(found[uapi.S_AF])
    if uapi.S_FWMARK in found:
        return VirtualServerKey(family, 0, b"", 0, uapi.u32(found[uapi.S_FWMARK]))
    return VirtualServerKey(
        family,
        uapi.u16(found[uapi.S_PROTOCOL]),
        found[uapi.S_ADDR][: ADDRESS_BYTES[family]],
        int.from_bytes(found[uapi.S_PORT], "big"),
    )


def decode_real_server(payload: bytes) -> tuple[RealServerKey, RealServer]:
    """One reply to uapi.CMD_GET_DEST: the real server's identity and parameters."""
    fields = _dumped_dest(payload)
    family = fields[25]
    key = RealServerKey(
        family,
        fields[1][:4] if family == socket.AF_INET else fields[1],
        socket.ntohs(fields[3]),
    )
    return key, _shared_real_server(
        fields[7],
        fields[5] & uapi.FORWARD_MASK,
        fields[15],
        fields[17],
        fields[9],
        socket.ntohs(fields[11]),
        fields[13],
    )


def decode_connections(payload: bytes) -> Connections:
    """One reply to uapi.CMD_GET_DEST: the real server's connection counters."""
    fields = _dumped_dest(payload)
    return Connections(fields[19], fields[21], fields[23])


_shared_real_server = lru_cache(maxsize=4096)(RealServer)


def _dumped_dest(payload: bytes) -> tuple[Any, ...]:
    """The members of _DUMPED_DEST: attribute header, value, attribute header, value, ..."""
    if len(payload) >= _GENL_AND_NEST_BYTES + _DUMPED_DEST.size:
        fields = _DUMPED_DEST.unpack_from(payload, _GENL_AND_NEST_BYTES)
        if fields[::2] == _DUMPED_DEST_HEADERS:
            return fields
    # Another order, or attributes we do not know in between: rebuild the expected bytes.
    found = dict(attributes(_nest(payload, uapi.DEST)))
    rebuilt = b"".join(
        attribute(kind, found.get(kind, b"").ljust(size, b"\0")[:size])
        for kind, size in _DUMPED_DEST_MEMBERS
    )
    return _DUMPED_DEST.unpack(rebuilt)


def _nest(payload: bytes, kind: int) -> bytes:
    """The content of the top-level attribute ``kind`` of a generic netlink payload."""
    for found, value in attributes(payload, 4):
        if found == kind:
            return value
    raise KernelError(f"IPVS sent a reply without attribute {kind}", errno.EBADMSG)
