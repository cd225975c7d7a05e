"""IPVS of one network namespace, through generic netlink.

Writes go out many to a send and without acknowledgements (see ``netlink``); the kernel works them
off in order, so one failure stops nothing behind it. Nothing is idempotent on the quiet: adding
what is there fails with EEXIST, changing what is not there with ESRCH or ENOENT.

The table is never flushed: deleted real servers stay for minutes on a list of the kernel's that
every added one searches, which makes rebuilding a table quadratic.
"""

import errno
from collections.abc import Sequence

from msgspec import Struct

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel import ipvs_decode as decode
from kube_router_py.kernel import ipvs_encode as encode
from kube_router_py.kernel import ipvs_uapi as uapi
from kube_router_py.kernel.ipvs_rules import Refused, check_timeouts, explain
from kube_router_py.kernel.netlink import NETLINK_GENERIC, NetlinkSocket, family_id
from kube_router_py.kernel.ports import OperationFailure
from kube_router_py.proxy.model import (
    Connections,
    IpvsOperation,
    IpvsTable,
    RealServerKey,
    VirtualServerKey,
    VirtualServerState,
)


class IpvsVersion(Struct, frozen=True):
    """The kernel's IPVS: its version (``1.2.1``) and its connection table's size in buckets."""

    version: str
    table_size: int


class NetlinkIpvs:
    """The real ``ports.Ipvs``: of the network namespace of the thread that creates it.

    Creating it raises PreflightError, with the remedy, where the kernel has no IPVS or the
    process lacks CAP_NET_ADMIN.
    """

    def __init__(self, *, timeout_s: float = 10.0) -> None:
        self.writes = 0
        self._netlink = NetlinkSocket(NETLINK_GENERIC, timeout_s=timeout_s)
        try:
            self._family = family_id(self._netlink, "IPVS")
            self._version = self._read_version()
        except KernelError as error:
            self._netlink.close()
            if error.errno == errno.ENOENT:
                raise PreflightError(
                    "this kernel offers no IPVS: load it with `modprobe ip_vs`, or install a "
                    "kernel that has the module"
                ) from error
            if error.errno == errno.EPERM:
                raise PreflightError(
                    "no permission to use IPVS: run as root or with CAP_NET_ADMIN"
                ) from error
            raise

    def close(self) -> None:
        """Close the netlink socket; the kernel's table stays as it is."""
        self._netlink.close()

    @property
    def version(self) -> IpvsVersion:
        """The version and table size, as they were when this adapter was created."""
        return self._version

    def read(self) -> IpvsTable:
        """All virtual and real servers. One dump for the former, then one for each of them."""
        table: IpvsTable = {}
        for payload in self._netlink.dump(self._family, uapi.command(uapi.CMD_GET_SERVICE)):
            key, config = decode.decode_virtual_server(payload)
            real_servers = dict(map(decode.decode_real_server, self._dump_real_servers(key)))
            table[key] = VirtualServerState(config, real_servers)
        return table

    def read_one(self, key: VirtualServerKey) -> VirtualServerState | None:
        """One virtual server with its real servers; None where there is none."""
        try:
            (reply,) = self._netlink.request(self._family, encode.virtual_server_request(key))
        except KernelError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                return None
            raise
        found, config = decode.decode_virtual_server(reply)
        real_servers = dict(map(decode.decode_real_server, self._dump_real_servers(found)))
        return VirtualServerState(config, real_servers)

    def read_connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Connection counters of one virtual server's real servers; empty if there is none."""
        return {
            decode.decode_real_server(payload)[0]: decode.decode_connections(payload)
            for payload in self._dump_real_servers(key)
        }

    def read_traffic(self) -> dict[VirtualServerKey, decode.Traffic]:
        """Traffic counters of every virtual server, by one dump."""
        replies = self._netlink.dump(self._family, uapi.command(uapi.CMD_GET_SERVICE))
        return dict(map(decode.decode_traffic, replies))

    def apply(self, operations: Sequence[IpvsOperation]) -> list[OperationFailure]:
        """Carry out operations in order; returns the refused ones, in that order.

        Unsound operations (see ``ipvs_rules``) are refused here and never sent. When
        StateUnknownError is raised, some of the operations may have been carried out.
        """
        first = self._netlink.reserve(len(operations))
        unsound: dict[int, Refused] = {}
        # Counted before the attempt: what was sent and lost is a write, too.
        self.writes += len(operations)
        refused = self._netlink.batch(encode.encode(self._family, operations, first, unsound))
        self.writes -= len(unsound)
        failures: list[OperationFailure] = []
        for seq in sorted({*unsound, *refused}):
            operation = operations[seq - first]
            if seq in unsound:
                code, message = unsound[seq].errno, f"{operation}: {unsound[seq].reason}"
            else:
                code, message = refused[seq], explain(operation, refused[seq])
            failures.append(OperationFailure(operation, code, message))
        return failures

    def read_timeouts(self) -> tuple[int, int, int]:
        """Connection timeouts in seconds: TCP, TCP FIN, UDP."""
        (reply,) = self._netlink.request(self._family, uapi.command(uapi.CMD_GET_CONFIG))
        return decode.decode_timeouts(reply)

    def set_timeouts(self, tcp_s: int, tcp_fin_s: int, udp_s: int) -> None:
        """Connection timeouts in seconds; 0 leaves one as it is. Nothing is sent if all agree.

        Raises KernelError(EINVAL) for a negative or an overflowing one.
        """
        check_timeouts(tcp_s, tcp_fin_s, udp_s)
        wanted = (tcp_s, tcp_fin_s, udp_s)
        actual = self.read_timeouts()
        if all(new in (0, old) for new, old in zip(wanted, actual, strict=True)):
            return
        self.writes += 1
        self._netlink.request(self._family, encode.timeouts_request(wanted))

    def _dump_real_servers(self, key: VirtualServerKey) -> list[bytes]:
        return self._netlink.dump(self._family, encode.real_servers_request(key))

    def _read_version(self) -> IpvsVersion:
        (reply,) = self._netlink.request(self._family, uapi.command(uapi.CMD_GET_INFO))
        return IpvsVersion(*decode.decode_version(reply))
