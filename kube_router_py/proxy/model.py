"""What the service proxy wants from IPVS: virtual servers and their real servers, as values.

The words are IPVS's own (ipvsadm(8)): a *virtual server* is what clients connect to, a *real
server* is a destination behind it. Addresses are packed (4 or 16 bytes, network order) so that the
values hash quickly and go to netlink as they are.
"""

import socket
from enum import IntEnum, IntFlag

from msgspec import Struct

from kube_router_py.marks import DSR_MARK, DSR_MARK_MASK, DSR_MARK_TCP

PROTOCOL_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}
"""Names of IP protocols by number, as iptables and ipset have them."""


KUBE_PROXY_LINK = "kube-ipvs0"
"""The link on which kube-proxy (mode ipvs) has service addresses."""


class Forward(IntEnum):
    """How packets reach a real server (IP_VS_CONN_F_*, include/uapi/linux/ip_vs.h)."""

    MASQUERADE = 0
    LOCAL = 1
    TUNNEL = 2
    ROUTE = 3


class TunnelType(IntEnum):
    """Encapsulation of ``Forward.TUNNEL`` (IP_VS_CONN_F_TUNNEL_TYPE_*)."""

    IPIP = 0
    GUE = 1
    GRE = 2


class Flag(IntFlag):
    """Virtual server flags a caller may choose (IP_VS_SVC_F_*).

    Persistence is not here: it is ``VirtualServer.persistence_s > 0``. The kernel's own HASHED
    flag never leaves the adapter.
    """

    NONE = 0
    ONEPACKET = 0x04
    SCHED1 = 0x08
    SCHED2 = 0x10
    SCHED3 = 0x20


class VirtualServerKey(Struct, frozen=True, order=True, gc=False):
    """What identifies a virtual server: family with (protocol, address, port) or with a fwmark.

    ``family`` is socket.AF_INET or AF_INET6, ``protocol`` an IP protocol number (6, 17, 132).
    For fwmark servers ``fwmark > 0`` and protocol, address, port are 0, b"", 0.
    """

    family: int
    protocol: int
    address: bytes
    port: int
    fwmark: int = 0

    @property
    def is_tcp(self) -> bool:
        """Whether its connections are TCP ones: of a direct server the mark tells."""
        if self.fwmark & DSR_MARK_MASK == DSR_MARK:
            return bool(self.fwmark & DSR_MARK_TCP)
        return self.protocol == socket.IPPROTO_TCP

    def __str__(self) -> str:
        if self.fwmark:
            return f"fwmark {self.fwmark} ({'IPv6' if self.family == socket.AF_INET6 else 'IPv4'})"
        name = PROTOCOL_NAMES.get(self.protocol, str(self.protocol)).upper()
        return f"{name} {endpoint_text(self.family, self.address, self.port)}"


class VirtualServer(Struct, frozen=True, gc=False):
    """The parameters of a virtual server. ``prefix_length`` 0 stands for the full 32 or 128."""

    scheduler: str = "rr"
    flags: int = 0
    persistence_s: int = 0
    prefix_length: int = 0


class RealServerKey(Struct, frozen=True, order=True, gc=False):
    """What identifies a real server within its virtual server."""

    family: int
    address: bytes
    port: int

    def __str__(self) -> str:
        return endpoint_text(self.family, self.address, self.port)


class RealServer(Struct, frozen=True, gc=False):
    """The parameters of a real server; ``weight`` 0 takes no new connections."""

    weight: int = 1
    forward: int = Forward.MASQUERADE
    upper_threshold: int = 0
    lower_threshold: int = 0
    tunnel_type: int = TunnelType.IPIP
    tunnel_port: int = 0
    tunnel_flags: int = 0


class VirtualServerState(Struct, frozen=True):
    """One virtual server with all its real servers. Treat ``real_servers`` as immutable."""

    config: VirtualServer
    real_servers: dict[RealServerKey, RealServer]


IpvsTable = dict[VirtualServerKey, VirtualServerState]


class Connections(Struct, frozen=True, gc=False):
    """Counters of one real server as the kernel dumps them."""

    active: int
    inactive: int
    persistent: int = 0


class Verb(IntEnum):
    """What an IPVS operation does; the order is that of safe execution within one plan."""

    ADD_VIRTUAL_SERVER = 1
    ADD_REAL_SERVER = 2
    SET_VIRTUAL_SERVER = 3
    SET_REAL_SERVER = 4
    DELETE_REAL_SERVER = 5
    DELETE_VIRTUAL_SERVER = 6


class IpvsOperation(Struct, frozen=True, gc=False):
    """One write: with ``config`` for virtual servers, else ``real_server`` (and ``real``)."""

    verb: Verb
    key: VirtualServerKey
    config: VirtualServer | None = None
    real_server: RealServerKey | None = None
    real: RealServer | None = None

    def __str__(self) -> str:
        what = self.verb.name.lower().replace("_", " ")
        behind = f" -> {self.real_server}" if self.real_server else ""
        return f"{what} {self.key}{behind}"


class Vip(Struct, frozen=True, order=True, gc=False):
    """An address that must be local to the node although no one else owns it."""

    family: int
    address: bytes

    def __str__(self) -> str:
        return socket.inet_ntop(self.family, self.address)


class Guard(Struct, frozen=True, gc=False):
    """Which clients' packets never get as far as a virtual server: dropped before IPVS sees them.

    ``everyone``: internalTrafficPolicy Local and no local endpoint. ``outsiders``:
    externalTrafficPolicy Local and no local endpoint, so that nobody but pods and nodes of the
    cluster may use the endpoints of other nodes. ``source_ranges``: the CIDRs (canonical text, of
    the server's family) that may connect; empty for nobody, None for no restriction.
    """

    everyone: bool = False
    outsiders: bool = False
    source_ranges: tuple[str, ...] | None = None


class Hairpin(Struct, frozen=True, order=True, gc=False):
    """An endpoint on this node that may reach itself through its own Service."""

    protocol: int
    real_server: RealServerKey


class HealthCheck(Struct, frozen=True, gc=False):
    """What a Service's healthCheckNodePort answers: ``port``, and ready endpoints on this node."""

    port: int
    local_endpoints: int


def endpoint_text(family: int, address: bytes, port: int) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``; an impossible address in hexadecimal."""
    try:
        text = socket.inet_ntop(family, address)
    except ValueError:  # a message about a broken value must not break, too
        text = f"0x{address.hex()}"
    return f"[{text}]:{port}" if family == socket.AF_INET6 else f"{text}:{port}"
