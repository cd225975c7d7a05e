"""Policy routing of direct server return: marked packets are local, whatever their destination.

One rule per family, ``fwmark 0x7d000000/0xff000000 lookup 78`` at priority 32764, and in table 78
one route, ``local default dev lo``. Both carry the agent's protocol number (75). A route that
kube-router left in table 78 is taken over in place; rules of others are never touched.

Layouts: linux/fib_rules.h, linux/rtnetlink.h; ip-rule(8).
"""

import errno
import socket
from collections.abc import Iterable
from struct import Struct as Layout

from kube_router_py.errors import KernelError
from kube_router_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    attribute,
    attributes,
)
from kube_router_py.kernel.vip_messages import (
    OWN_PROTOCOL,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
)

TABLE = 78
PRIORITY = 32764
MARK, MASK = 0x7D000000, 0xFF000000

_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_TO_TABLE = 1  # FR_ACT_TO_TBL
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_TYPE_LOCAL, _SCOPE_HOST = 2, 254
# struct fib_rule_hdr and struct rtmsg: family, two prefix lengths, tos, table, then
# two reserved and the action, or protocol, scope and type; flags.
_HEADER = Layout("=8BI")
_U32 = Layout("=I")
_GONE = (errno.ENOENT, errno.ESRCH)


class NetlinkPolicyRouting:
    """``ports.PolicyRouting`` of the network namespace in which it was created."""

    def __init__(self) -> None:
        self.writes = 0
        self._socket = NetlinkSocket(NETLINK_ROUTE, strict=True)

    def stands(self, family: int) -> bool:
        """Whether our rule or our route is there."""
        return self._has_rule(family) or self._has_route(family)

    def ensure(self, families: Iterable[int]) -> None:
        """Make rule and route stand for each family, the route first. Raises KernelError."""
        for family in families:
            if not self._has_route(family):
                payload = _route(family)
                self._write(RTM_NEWROUTE, payload, NLM_F_CREATE | NLM_F_REPLACE)
            if not self._has_rule(family):
                self._write(_RTM_NEWRULE, _rule(family), NLM_F_CREATE | NLM_F_EXCL)

    def remove(self, families: Iterable[int]) -> None:
        """Remove what ``ensure`` made; what is not there is no error."""
        for family in families:
            try:
                if self._has_rule(family):
                    self._write(_RTM_DELRULE, _rule(family), 0)
                if self._has_route(family):
                    self._write(RTM_DELROUTE, _route(family), 0)
            except KernelError as error:
                if error.errno not in (*_GONE, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise

    def link_towards(self, family: int, address: bytes) -> str:
        """The link by which packets to an address leave; empty if there is no way."""
        header = _HEADER.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
        try:
            replies = self._socket.request(RTM_GETROUTE, header + attribute(_RTA_DST, address))
        except KernelError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, *_GONE):
                return ""
            raise
        for reply in replies:
            index = _u32(dict(attributes(reply, _HEADER.size)), _RTA_OIF)
            try:
                return socket.if_indextoname(index)
            except OSError:
                return ""
        return ""

    def close(self) -> None:
        self._socket.close()

    def _write(self, kind: int, payload: bytes, flags: int) -> None:
        self.writes += 1
        self._socket.request(kind, payload, flags)

    def _has_rule(self, family: int) -> bool:
        wanted = {
            _FRA_PRIORITY: PRIORITY,
            _FRA_FWMARK: MARK,
            _FRA_FWMASK: MASK,
            _FRA_TABLE: TABLE,
        }
        for reply in self._dump(_RTM_GETRULE, _HEADER.pack(family, *([0] * 8))):
            found = dict(attributes(reply, _HEADER.size))
            if _HEADER.unpack_from(reply)[0] == family and all(
                _u32(found, number) == value for number, value in wanted.items()
            ):
                return True
        return False

    def _has_route(self, family: int) -> bool:
        loopback = socket.if_nametoindex("lo")
        header = _HEADER.pack(family, 0, 0, 0, TABLE, 0, 0, 0, 0)
        payload = header + attribute(_RTA_TABLE, _U32.pack(TABLE))
        for reply in self._dump(RTM_GETROUTE, payload):
            got, length, _, _, _, by, _, kind, _ = _HEADER.unpack_from(reply)
            found = dict(attributes(reply, _HEADER.size))
            if (got, length, by, kind) == (family, 0, OWN_PROTOCOL, _TYPE_LOCAL) and (
                _u32(found, _RTA_TABLE) == TABLE and _u32(found, _RTA_OIF) == loopback
            ):
                return True
        return False

    def _dump(self, kind: int, payload: bytes) -> list[bytes]:
        try:
            return self._socket.dump(kind, payload)
        except KernelError as error:
            if error.errno == errno.ENOENT:  # there is no such table yet
                return []
            raise


def _rule(family: int) -> bytes:
    return (
        _HEADER.pack(family, 0, 0, 0, TABLE, 0, 0, _TO_TABLE, 0)
        + attribute(_FRA_PRIORITY, _U32.pack(PRIORITY))
        + attribute(_FRA_FWMARK, _U32.pack(MARK))
        + attribute(_FRA_FWMASK, _U32.pack(MASK))
        + attribute(_FRA_TABLE, _U32.pack(TABLE))
        + attribute(_FRA_PROTOCOL, bytes((OWN_PROTOCOL,)))
    )


def _route(family: int) -> bytes:
    scope = _SCOPE_HOST if family == socket.AF_INET else 0
    return (
        _HEADER.pack(family, 0, 0, 0, TABLE, OWN_PROTOCOL, scope, _TYPE_LOCAL, 0)
        + attribute(_RTA_TABLE, _U32.pack(TABLE))
        + attribute(_RTA_OIF, _U32.pack(socket.if_nametoindex("lo")))
    )


def _u32(found: dict[int, bytes], number: int) -> int:
    value = found.get(number, b"")
    return int(_U32.unpack(value)[0]) if len(value) == 4 else 0
