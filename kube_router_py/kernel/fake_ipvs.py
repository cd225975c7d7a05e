"""IPVS in memory: refuses what the kernel refuses, with the same errno and in the same order."""

import errno
import socket
from collections.abc import Callable, Sequence

import msgspec

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipvs_rules import (
    ADDRESS_BYTES,
    VIRTUAL_SERVER_VERBS,
    Refused,
    check_operation,
    check_timeouts,
    explain,
)
from kube_router_py.kernel.ports import OperationFailure
from kube_router_py.proxy.model import (
    Connections,
    Forward,
    IpvsOperation,
    IpvsTable,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)

SCHEDULERS = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "none")
)
"""What a kernel with all IPVS modules knows; ``none`` is the kernel's word for no scheduler."""


class FakeIpvs:
    """A stateful ``ports.Ipvs``.

    For tests: ``operations`` logs what was sent (as ``writes`` counts it), ``inject`` makes chosen
    operations fail, ``break_next`` makes a whole call fail, ``put`` and ``drop`` edit the table
    behind the caller's back, ``set_connections`` sets the counters.
    """

    def __init__(self, table: IpvsTable | None = None) -> None:
        self.writes = 0
        self.operations: list[IpvsOperation] = []
        self.closed = False
        self._servers: dict[VirtualServerKey, VirtualServer] = {}
        self._real: dict[VirtualServerKey, dict[RealServerKey, RealServer]] = {}
        self._connections: dict[tuple[VirtualServerKey, RealServerKey], Connections] = {}
        self._timeouts = (900, 120, 300)
        self._injected: list[tuple[Callable[[IpvsOperation], bool], int]] = []
        self._broken: KernelError | None = None
        for key, state in (table or {}).items():
            self.put(key, state)

    # the port

    def read(self) -> IpvsTable:
        """All virtual and real servers."""
        self._enter()
        return {
            key: VirtualServerState(config, dict(self._real[key]))
            for key, config in self._servers.items()
        }

    def read_connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Connection counters of one virtual server's real servers; empty if there is none."""
        self._enter()
        idle = Connections(0, 0)
        return {real: self._connections.get((key, real), idle) for real in self._real.get(key, ())}

    def apply(self, operations: Sequence[IpvsOperation]) -> list[OperationFailure]:
        """Carry out operations in order; returns the refused ones, in that order."""
        self._enter()
        failures: list[OperationFailure] = []
        for operation in operations:
            try:
                check_operation(operation)
            except Refused as refused:
                message = f"{operation}: {refused.reason}"
                failures.append(OperationFailure(operation, refused.errno, message))
                continue
            self.writes += 1
            self.operations.append(operation)
            code = self._injected_errno(operation) or self._carry_out(operation)
            if code:
                failures.append(OperationFailure(operation, code, explain(operation, code)))
        return failures

    def read_timeouts(self) -> tuple[int, int, int]:
        """Connection timeouts in seconds: TCP, TCP FIN, UDP."""
        self._enter()
        return self._timeouts

    def set_timeouts(self, tcp_s: int, tcp_fin_s: int, udp_s: int) -> None:
        """Connection timeouts in seconds; 0 leaves one as it is. Nothing is sent if all agree."""
        self._enter()
        check_timeouts(tcp_s, tcp_fin_s, udp_s)
        tcp, tcp_fin, udp = self._timeouts
        wanted = (tcp_s or tcp, tcp_fin_s or tcp_fin, udp_s or udp)
        if wanted != self._timeouts:
            self.writes += 1
            self._timeouts = wanted

    def close(self) -> None:
        """Every later call fails, as on a closed socket."""
        self.closed = True

    # for tests

    def inject(self, errno_: int, matches: Callable[[IpvsOperation], bool]) -> None:
        """From now on refuse matching operations with this errno, until ``heal``."""
        self._injected.append((matches, errno_))

    def heal(self) -> None:
        """Forget what ``inject`` and ``break_next`` asked for."""
        self._injected.clear()
        self._broken = None

    def break_next(self, error: KernelError) -> None:
        """Let the next call raise ``error`` before it does anything."""
        self._broken = error

    def put(self, key: VirtualServerKey, state: VirtualServerState) -> None:
        """Create or overwrite a virtual server as another program would; no write is counted."""
        self._servers[key] = _normal(key, state.config)
        self._real[key] = dict(state.real_servers)

    def drop(self, key: VirtualServerKey, real_server: RealServerKey | None = None) -> None:
        """Delete as another program would: one real server, or all of the virtual server."""
        if real_server is None:
            del self._servers[key], self._real[key]
        else:
            del self._real[key][real_server]

    def set_connections(
        self, key: VirtualServerKey, real_server: RealServerKey, connections: Connections
    ) -> None:
        """Set the counters that ``read_connections`` shows while the real server exists."""
        self._connections[key, real_server] = connections

    # the kernel's part

    def _enter(self) -> None:
        if self.closed:
            raise KernelError("netlink socket: Bad file descriptor", errno.EBADF)
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise error

    def _injected_errno(self, operation: IpvsOperation) -> int:
        for matches, code in self._injected:
            if matches(operation):
                return code
        return 0

    def _carry_out(self, operation: IpvsOperation) -> int:
        """Do one sound operation; returns the errno, 0 for success."""
        key = operation.key
        verb = operation.verb
        if verb == Verb.ADD_VIRTUAL_SERVER:
            if key in self._servers:
                return errno.EEXIST
        elif key not in self._servers:
            return errno.ESRCH
        if verb not in VIRTUAL_SERVER_VERBS:
            return self._carry_out_real(operation)
        if verb == Verb.DELETE_VIRTUAL_SERVER:
            for real_server in self._real[key]:
                self._connections.pop((key, real_server), None)
            self.drop(key)
            return 0
        config = operation.config
        assert config is not None  # by check_operation
        if config.scheduler not in SCHEDULERS:
            return errno.ENOENT
        self._servers[key] = _normal(key, config)
        self._real.setdefault(key, {})
        return 0

    def _carry_out_real(self, operation: IpvsOperation) -> int:
        key = operation.key
        name = operation.real_server
        assert name is not None  # by check_operation
        present = name in self._real[key]
        if operation.verb == Verb.DELETE_REAL_SERVER:
            if not present:
                return errno.ENOENT
            self.drop(key, name)
            self._connections.pop((key, name), None)
            return 0
        real = operation.real
        assert real is not None  # by check_operation
        if name.family != key.family and real.forward != Forward.TUNNEL:
            return errno.EINVAL
        if operation.verb == Verb.SET_REAL_SERVER:
            if not present:
                return errno.ENOENT
        elif present:
            return errno.EEXIST
        elif not _is_usable(name):
            return errno.EINVAL
        self._real[key][name] = real
        return 0


def _normal(key: VirtualServerKey, config: VirtualServer) -> VirtualServer:
    """As it will be dumped: the full prefix length is 0."""
    if config.prefix_length == 8 * ADDRESS_BYTES[key.family]:
        return msgspec.structs.replace(config, prefix_length=0)
    return config


def _is_usable(key: RealServerKey) -> bool:
    """Whether the kernel takes the address for a unicast one (addresses of links left aside)."""
    address = key.address
    if key.family == socket.AF_INET:
        # 0.0.0.0/8 and the limited broadcast count as broadcast, 224.0.0.0/4 is multicast
        return address[0] != 0 and address != b"\xff" * 4 and not 224 <= address[0] < 240
    if address[:12] == bytes(10) + b"\xff\xff" or address == bytes(16):
        return False  # IPv4-mapped, unspecified
    link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return address[0] != 0xFF and not link_local
