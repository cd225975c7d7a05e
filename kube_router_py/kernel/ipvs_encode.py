"""IPVS operations as generic netlink messages.

Encoding costs about as much as the kernel's own work, so it is done by precompiled layouts: the
part that names the virtual server is encoded once per run of operations on it, and parameters
once per distinct value.
"""

import errno
import socket
from collections.abc import Iterable, Iterator
from functools import lru_cache
from struct import Struct
from struct import error as StructError

from kube_router_py.kernel import ipvs_uapi as uapi
from kube_router_py.kernel.ipvs_rules import (
    ADDRESS_BYTES,
    CHOOSABLE_FLAGS,
    Refused,
    check_operation,
    check_protocol,
    check_real_server,
    check_virtual_server,
    check_virtual_server_key,
)
from kube_router_py.kernel.netlink import NLA_F_NESTED, NLM_F_REQUEST, attribute
from kube_router_py.proxy.model import (
    IpvsOperation,
    RealServer,
    Verb,
    VirtualServer,
    VirtualServerKey,
)

_COMMANDS = {
    Verb.ADD_VIRTUAL_SERVER: uapi.CMD_NEW_SERVICE,
    Verb.SET_VIRTUAL_SERVER: uapi.CMD_SET_SERVICE,
    Verb.DELETE_VIRTUAL_SERVER: uapi.CMD_DEL_SERVICE,
    Verb.ADD_REAL_SERVER: uapi.CMD_NEW_DEST,
    Verb.SET_REAL_SERVER: uapi.CMD_SET_DEST,
    Verb.DELETE_REAL_SERVER: uapi.CMD_DEL_DEST,
}
_OUR_FLAGS = CHOOSABLE_FLAGS | uapi.PERSISTENT

_U16 = Struct("=H")
_U32 = Struct("=I")
_TWO_U32 = Struct("=II")
# struct nlmsghdr, then struct genlmsghdr: command, version, reserved
_HEAD = Struct("=IHHIIBBH")
_codes, (_AF_HEADER, _PROTOCOL_HEADER, _ADDR_HEADER, _PORT_HEADER) = uapi.layout(
    (uapi.S_AF, "H"), (uapi.S_PROTOCOL, "H"), (uapi.S_ADDR, "16s"), (uapi.S_PORT, "H")
)
_ADDRESS_KEY = Struct("=HH" + _codes)  # with the header of the nest
_SERVICE_NEST = uapi.SERVICE | NLA_F_NESTED
_NEST = Struct("=HH")
_codes, (_, _FWMARK_HEADER) = uapi.layout((uapi.S_AF, "H"), (uapi.S_FWMARK, "I"))
_FWMARK_KEY = Struct("=" + _codes)
_codes, (_D_ADDR_HEADER, _D_PORT_HEADER, _D_FAMILY_HEADER) = uapi.layout(
    (uapi.D_ADDR, "16s"), (uapi.D_PORT, "H"), (uapi.D_FAMILY, "H")
)
_DEST_KEY = Struct("=HH" + _codes)  # with the header of the nest
_DEST_NEST = uapi.DEST | NLA_F_NESTED
_VERSION = uapi.GENL_VERSION


def encode(
    family: int, operations: Iterable[IpvsOperation], seq: int, refused: dict[int, Refused]
) -> Iterator[bytes]:
    """The messages of operations in order, to the netlink family numbered ``family``.

    Operation n carries sequence number ``seq + n``. An unsound operation has no message; the
    reason is put into ``refused`` under its sequence number.
    """
    key: VirtualServerKey | None = None
    real: RealServer | None = None
    nest = parameters = b""
    head_bytes, dest_bytes = _HEAD.size, _DEST_KEY.size
    pack_head, pack_dest, htons = _HEAD.pack, _DEST_KEY.pack, socket.htons
    commands, address_bytes = _COMMANDS, ADDRESS_BYTES
    delete_service, delete_dest = uapi.CMD_DEL_SERVICE, uapi.CMD_DEL_DEST
    for number, operation in enumerate(operations, seq):
        command = commands[operation.verb]
        try:
            if operation.key is not key:
                key = None
                nest = _virtual_server_nest(operation.key)
                key = operation.key
            if command > delete_service:
                # Nearly all operations come here, and nearly all parameters are one shared value:
                # no call of ours for them.
                if command == delete_dest:
                    real, parameters = None, b""
                elif operation.real is not real or real is None:
                    real, parameters = None, _real_server_parameters(operation.real)
                    real = operation.real
                name = operation.real_server
                if name is None or len(name.address) != address_bytes.get(name.family):
                    raise Refused(errno.EINVAL, "no real server, or address and family differ")
                body = (
                    nest
                    + pack_dest(
                        dest_bytes + len(parameters),
                        _DEST_NEST,
                        _D_ADDR_HEADER,
                        name.address,
                        _D_PORT_HEADER,
                        htons(name.port),
                        _D_FAMILY_HEADER,
                        name.family,
                    )
                    + parameters
                )
            elif command == delete_service:
                body = nest
            else:
                body = _virtual_server(operation, nest)
        except (Refused, StructError, OverflowError) as error:
            refused[number] = _reason(operation, error)
            continue
        size = head_bytes + len(body)
        yield pack_head(size, family, NLM_F_REQUEST, number, 0, command, _VERSION, 0) + body


def _reason(operation: IpvsOperation, error: Exception) -> Refused:
    """Why an operation cannot be encoded, by the same rules that the fake obeys."""
    try:
        check_operation(operation)
    except Refused as refused:
        return refused
    return Refused(errno.EINVAL, f"cannot be encoded: {error}")


def _virtual_server_nest(key: VirtualServerKey) -> bytes:
    """The service nest with the attributes that name a virtual server, after checking them."""
    if key.fwmark:
        check_virtual_server_key(key)
        named = _FWMARK_KEY.pack(_AF_HEADER, key.family, _FWMARK_HEADER, key.fwmark)
        return attribute(_SERVICE_NEST, named)
    if len(key.address) != ADDRESS_BYTES.get(key.family) or not 0 <= key.protocol <= 0xFF:
        check_virtual_server_key(key)
    return _ADDRESS_KEY.pack(
        _ADDRESS_KEY.size,
        _SERVICE_NEST,
        _AF_HEADER,
        key.family,
        _PROTOCOL_HEADER,
        key.protocol,
        _ADDR_HEADER,
        key.address,
        _PORT_HEADER,
        socket.htons(key.port),
    )


def _virtual_server(operation: IpvsOperation, nest: bytes) -> bytes:
    """The service nest of an operation that carries parameters."""
    if operation.config is None:
        raise Refused(errno.EINVAL, "incomplete operation")
    check_protocol(operation.key)
    parameters = _virtual_server_parameters(operation.key.family, operation.config)
    size = len(nest) + len(parameters)
    return _NEST.pack(size, _SERVICE_NEST) + nest[_NEST.size :] + parameters


@lru_cache(maxsize=4096)
def _virtual_server_parameters(family: int, config: VirtualServer) -> bytes:
    check_virtual_server(family, config)
    flags = config.flags | (uapi.PERSISTENT if config.persistence_s else 0)
    full = 8 * ADDRESS_BYTES[family]
    prefix = config.prefix_length or full
    # IPv4: a mask as stored in the address; IPv6: the prefix length as a number.
    netmask = _U32.pack(prefix)
    if family == socket.AF_INET:
        netmask = ((0xFFFFFFFF << (full - prefix)) & 0xFFFFFFFF).to_bytes(4, "big")
    return (
        attribute(uapi.S_SCHED, config.scheduler.encode() + b"\0")
        + attribute(uapi.S_FLAGS, _TWO_U32.pack(flags, _OUR_FLAGS))
        + attribute(uapi.S_TIMEOUT, _U32.pack(config.persistence_s))
        + attribute(uapi.S_NETMASK, netmask)
    )


@lru_cache(maxsize=4096)
def _real_server_parameters(real: RealServer | None) -> bytes:
    if real is None:
        raise Refused(errno.EINVAL, "incomplete operation")
    check_real_server(real)
    # The thresholds are mandatory; without tunnel attributes the kernel takes them as 0.
    encoded = (
        attribute(uapi.D_FWD, _U32.pack(real.forward))
        + attribute(uapi.D_WEIGHT, _U32.pack(real.weight))
        + attribute(uapi.D_UPPER, _U32.pack(real.upper_threshold))
        + attribute(uapi.D_LOWER, _U32.pack(real.lower_threshold))
    )
    if real.tunnel_type or real.tunnel_port or real.tunnel_flags:
        encoded += (
            attribute(uapi.D_TUN_TYPE, bytes((real.tunnel_type,)))
            + attribute(uapi.D_TUN_PORT, real.tunnel_port.to_bytes(2, "big"))
            + attribute(uapi.D_TUN_FLAGS, _U16.pack(real.tunnel_flags))
        )
    return encoded


def real_servers_request(key: VirtualServerKey) -> bytes:
    """The payload that asks for the real servers of one virtual server, unsound keys included."""
    return uapi.command(uapi.CMD_GET_DEST) + _virtual_server_nest(key)


def virtual_server_request(key: VirtualServerKey) -> bytes:
    """The payload that asks for one virtual server."""
    return uapi.command(uapi.CMD_GET_SERVICE) + _virtual_server_nest(key)


def timeouts_request(timeouts: tuple[int, int, int]) -> bytes:
    """The payload that sets the table's TCP, TCP FIN and UDP timeouts (s); 0 keeps one."""
    return uapi.command(uapi.CMD_SET_CONFIG) + b"".join(
        attribute(kind, _U32.pack(seconds))
        for kind, seconds in zip(uapi.TIMEOUTS, timeouts, strict=True)
    )
