"""What IPVS operations are sound, and what a refusal means, in words.

The kernel accepts some nonsense without a word: fwmark 0 creates TCP 0.0.0.0:0, any number passes
as protocol or tunnel type, a long timeout overflows (measured on 6.1). So whatever can be judged
from an operation alone is judged here, before anything is sent; the fake uses the same rules.
What depends on the state of the kernel is left to the kernel, and to the fake.
"""

import errno
import os
import socket
from typing import Final

from kube_router_py.errors import KernelError
from kube_router_py.proxy.model import (
    Flag,
    Forward,
    IpvsOperation,
    RealServer,
    RealServerKey,
    TunnelType,
    Verb,
    VirtualServer,
    VirtualServerKey,
)

ADDRESS_BYTES: Final = {socket.AF_INET.value: 4, socket.AF_INET6.value: 16}
VIRTUAL_SERVER_VERBS: Final = frozenset(
    (Verb.ADD_VIRTUAL_SERVER, Verb.SET_VIRTUAL_SERVER, Verb.DELETE_VIRTUAL_SERVER)
)
CHOOSABLE_FLAGS: Final = int(Flag.ONEPACKET | Flag.SCHED1 | Flag.SCHED2 | Flag.SCHED3)

_PROTOCOLS = frozenset((socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP))
# The kernel keeps timeouts in jiffies (up to 1000 a second): as u32 for persistence, and it
# refuses more than INT_MAX of them for the table's timeouts.
_MAX_PERSISTENCE_S = (2**32 - 1) // 1000
_MAX_TIMEOUT_S = (2**31 - 1) // 1000
_MAX_WEIGHT = 2**31 - 1
_MAX_SCHEDULER_BYTES = 15  # IP_VS_SCHEDNAME_MAXLEN less the final zero
_TUNNEL_FLAGS = 0x3  # IP_VS_TUNNEL_ENCAP_FLAG_CSUM, _REMCSUM


class Refused(Exception):
    """One operation is refused: ``errno`` as the kernel would say, ``reason`` for people."""

    def __init__(self, errno_: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno_
        self.reason = reason


def check_operation(operation: IpvsOperation) -> None:
    """Raise Refused if the operation can be sound in no state of the kernel."""
    check_virtual_server_key(operation.key)
    verb = operation.verb
    if verb in VIRTUAL_SERVER_VERBS:
        if verb != Verb.DELETE_VIRTUAL_SERVER:
            if operation.config is None:
                raise Refused(errno.EINVAL, "incomplete operation: no virtual server parameters")
            check_protocol(operation.key)
            check_virtual_server(operation.key.family, operation.config)
        return
    if operation.real_server is None:
        raise Refused(errno.EINVAL, "incomplete operation: no real server")
    check_real_server_key(operation.real_server)
    if verb != Verb.DELETE_REAL_SERVER:
        if operation.real is None:
            raise Refused(errno.EINVAL, "incomplete operation: no real server parameters")
        check_real_server(operation.real)


def check_virtual_server_key(key: VirtualServerKey) -> None:
    """Raise Refused unless the key can name a virtual server."""
    if key.family not in ADDRESS_BYTES:
        raise Refused(errno.EINVAL, f"unknown address family {key.family}")
    if key.fwmark:
        if not 0 < key.fwmark < 1 << 32:
            raise Refused(errno.EINVAL, f"fwmark {key.fwmark} is not within 1..4294967295")
        if key.protocol or key.address or key.port:
            raise Refused(errno.EINVAL, "a fwmark excludes protocol, address and port")
        return
    if not 0 <= key.protocol <= 0xFF:
        raise Refused(errno.EINVAL, f"protocol {key.protocol} is not within 0..255")
    _check_endpoint(key.family, key.address, key.port)


def check_protocol(key: VirtualServerKey) -> None:
    """Raise Refused if the key's protocol is none of IPVS's, which may be deleted but not made."""
    if not key.fwmark and key.protocol not in _PROTOCOLS:
        raise Refused(errno.EINVAL, f"protocol {key.protocol} is not TCP, UDP or SCTP")


def check_virtual_server(family: int, config: VirtualServer) -> None:
    """Raise Refused unless the parameters fit a virtual server of this family."""
    scheduler = config.scheduler
    if not (scheduler.isascii() and scheduler.isprintable() and 0 < len(scheduler) < 16):
        raise Refused(
            errno.EINVAL,
            f"scheduler {scheduler!r} is no name of 1 to {_MAX_SCHEDULER_BYTES} ASCII characters",
        )
    if config.flags & ~CHOOSABLE_FLAGS:
        raise Refused(
            errno.EINVAL, f"flags {config.flags:#x} contain some that are not ours to set"
        )
    if not 0 <= config.persistence_s <= _MAX_PERSISTENCE_S:
        raise Refused(
            errno.EINVAL,
            f"persistence of {config.persistence_s} s is not within 0..{_MAX_PERSISTENCE_S} s",
        )
    if not 0 <= config.prefix_length <= 8 * ADDRESS_BYTES[family]:
        raise Refused(
            errno.EINVAL,
            f"prefix length {config.prefix_length} is not within 0..{8 * ADDRESS_BYTES[family]}",
        )


def check_real_server_key(key: RealServerKey) -> None:
    """Raise Refused unless the key is an address and a port."""
    if key.family not in ADDRESS_BYTES:
        raise Refused(errno.EINVAL, f"unknown address family {key.family}")
    _check_endpoint(key.family, key.address, key.port)


def check_real_server(real: RealServer) -> None:
    """Raise Refused unless the parameters fit a real server."""
    for name, value in (
        ("weight", real.weight),
        ("upper threshold", real.upper_threshold),
        ("lower threshold", real.lower_threshold),
    ):
        if not 0 <= value <= _MAX_WEIGHT:
            raise Refused(errno.ERANGE, f"{name} {value} is not within 0..{_MAX_WEIGHT}")
    if real.lower_threshold > real.upper_threshold:
        raise Refused(
            errno.ERANGE,
            f"lower threshold {real.lower_threshold} exceeds the upper, {real.upper_threshold}",
        )
    if not Forward.MASQUERADE <= real.forward <= Forward.ROUTE:
        raise Refused(errno.EINVAL, f"unknown forwarding method {real.forward}")
    if not TunnelType.IPIP <= real.tunnel_type <= TunnelType.GRE:
        raise Refused(errno.EINVAL, f"unknown tunnel type {real.tunnel_type}")
    if not 0 <= real.tunnel_port <= 0xFFFF:
        raise Refused(errno.EINVAL, f"tunnel port {real.tunnel_port} is not within 0..65535")
    if real.tunnel_type == TunnelType.GUE and real.tunnel_port == 0:
        raise Refused(errno.EINVAL, "a GUE tunnel needs a port: set the tunnel port to 1..65535")
    if real.tunnel_flags & ~_TUNNEL_FLAGS:
        raise Refused(errno.EINVAL, f"unknown tunnel flags {real.tunnel_flags:#x}")


def check_timeouts(tcp_s: int, tcp_fin_s: int, udp_s: int) -> None:
    """Raise KernelError(EINVAL) unless the table's timeouts (seconds) can be set."""
    for name, value in (("TCP", tcp_s), ("TCP FIN", tcp_fin_s), ("UDP", udp_s)):
        if not 0 <= value <= _MAX_TIMEOUT_S:
            raise KernelError(
                f"{name} timeout of {value} s is not within 0..{_MAX_TIMEOUT_S} s", errno.EINVAL
            )


def explain(operation: IpvsOperation, code: int) -> str:
    """What the kernel's refusal of an operation means, and what to do about it."""
    on_virtual_server = operation.verb in VIRTUAL_SERVER_VERBS
    real = operation.real_server
    reason = os.strerror(code)
    if code == errno.EEXIST:
        reason = "it is there already"
    elif code == errno.ESRCH:
        reason = "there is no such virtual server"
    elif code == errno.ENOENT and on_virtual_server and operation.config is not None:
        name = operation.config.scheduler
        reason = (
            f"unknown scheduler {name!r}: load module ip_vs_{name} "
            f"(modprobe ip_vs_{name}) or choose another"
        )
    elif code == errno.ENOENT:
        reason = "there is no such real server"
    elif code == errno.EPERM:
        reason = "not permitted: the agent needs CAP_NET_ADMIN"
    elif code == errno.EAFNOSUPPORT:
        reason = "this kernel does not do IPVS for the address family (is IPv6 disabled?)"
    elif code == errno.EINVAL and real is not None:
        if real.family != operation.key.family and (
            operation.real is None or operation.real.forward != Forward.TUNNEL
        ):
            reason = "a real server of the other address family needs tunnel forwarding"
        else:
            # Without any address there is no local routing table, and the kernel takes all
            # IPv4 addresses for broadcast ones.
            reason = (
                "no usable unicast address for a real server "
                "(or this network namespace has no address yet)"
            )
    return f"{operation}: {reason}"


def _check_endpoint(family: int, address: bytes, port: int) -> None:
    if len(address) != ADDRESS_BYTES[family]:
        raise Refused(
            errno.EINVAL, f"an address of {len(address)} bytes does not fit family {family}"
        )
    if not 0 <= port <= 0xFFFF:
        raise Refused(errno.EINVAL, f"port {port} is not within 0..65535")
