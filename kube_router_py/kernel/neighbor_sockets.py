"""The sockets by which one link's ARP and NDP are heard and said (packet(7), ipv6(7)).

One socket for each of both protocols, and not one for all traffic: the kernel then runs our filter
on these alone. To be asked by NDP, a node has to listen to the group of each address: the link lets
its frames in (packet membership, which lasts whatever becomes of IPv6 there), and switches forward
them (the kernel reports the group by MLD once somebody has joined it). Where either is refused, all
groups are let in: what a switch holds back is then missing still, and a line in the log says so.

CAP_NET_RAW is all that is needed.
"""

import ctypes
import errno
import logging
import os
import socket
import time
from collections.abc import Collection
from struct import Struct as Layout
from typing import Final

from kube_router_py.errors import PreflightError
from kube_router_py.kernel import neighbor_filter
from kube_router_py.kernel.neighbor_packets import ETH_P_ARP, ETH_P_IPV6, multicast_mac

_log = logging.getLogger(__name__)

_SO_ATTACH_FILTER: Final = 26
_SO_TIMESTAMPNS: Final = 35
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP, _PACKET_STATISTICS = 1, 2, 6
_MULTICAST, _ALL_MULTICAST = 0, 2
_PROGRAM: Final = Layout("@HP")
_ADDRESS: Final = Layout("@HHiHBB8s")
_MEMBERSHIP: Final = Layout("@iHH8s")
_GROUP: Final = Layout("@16sI")
_STATISTICS: Final = Layout("@II")
_TIME: Final = Layout("@ll")
_FRAME_BYTES: Final = 2048
_BUFFER_BYTES: Final = 1 << 18
# The memory for what a socket has joined is bounded (net.core.optmem_max, at least 20 KiB).
_GROUPS_PER_SOCKET: Final = 100

_libc = ctypes.CDLL(None, use_errno=True)


def check_allowed() -> None:
    """Raise PreflightError where this process may not open packet sockets."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as error:
        raise PreflightError(
            f"cannot answer ARP and NDP for addresses of Services: {error.strerror}; the "
            "capability CAP_NET_RAW is needed: give it in the manifest's securityContext or in "
            "the systemd unit, or turn announcing by layer 2 off"
        ) from error


class LinkSockets:
    """What is open on one link, by its index. Everything that fails raises OSError, but ``join``
    does what it can."""

    def __init__(self, index: int, name: str) -> None:
        self._index, self._name = index, name
        self._groups: set[bytes] = set()
        self._joined: list[tuple[socket.socket, set[bytes]]] = []
        self._takes_all = False
        self._arp = _open(index, ETH_P_ARP, neighbor_filter.arp_program())
        try:
            self._ndp = _open(index, ETH_P_IPV6, neighbor_filter.ndp_program())
        except OSError:
            self._arp.close()
            raise

    def filenos(self) -> tuple[int, int]:
        return self._arp.fileno(), self._ndp.fileno()

    def receive(self, fileno: int) -> tuple[bytes, float] | None:
        """The next frame that waits at one of both, and for how many seconds it has; None if none
        does."""
        sock = self._arp if fileno == self._arp.fileno() else self._ndp
        try:
            frame, beside, _, _ = sock.recvmsg(_FRAME_BYTES, socket.CMSG_SPACE(_TIME.size))
        except BlockingIOError:
            return None
        for level, kind, value in beside:
            if (level, kind, len(value)) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS, _TIME.size):
                seconds, nanoseconds = _TIME.unpack(value)
                return frame, time.time() - seconds - nanoseconds * 1e-9
        return frame, 0.0

    def send(self, frame: bytes) -> None:
        """Send a frame as it is, without waiting."""
        self._arp.send(frame)

    def lost(self) -> int:
        """Frames that the kernel had no room for since the last call."""
        return sum(
            _STATISTICS.unpack(sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
            for sock in (self._arp, self._ndp)
        )

    def join(self, groups: Collection[bytes]) -> None:
        """Be a member of exactly these groups of IPv6."""
        wanted = set(groups)
        for group in self._groups - wanted:
            self._leave(group)
        refused: OSError | None = None
        for group in wanted - self._groups:
            for step in (self._let_in, self._report):
                try:
                    step(group)
                except OSError as error:
                    refused = error
        self._groups = wanted
        if refused is not None and not self._takes_all:
            self._let_all_in(refused)

    def close(self) -> None:
        for sock in (self._arp, self._ndp, *(each for each, _ in self._joined)):
            sock.close()

    def _membership(self, option: int, kind: int, mac: bytes) -> None:
        value = _MEMBERSHIP.pack(self._index, kind, len(mac), mac)
        self._ndp.setsockopt(_SOL_PACKET, option, value)

    def _let_in(self, group: bytes) -> None:
        self._membership(_PACKET_ADD_MEMBERSHIP, _MULTICAST, multicast_mac(group))

    def _report(self, group: bytes) -> None:
        if not self._joined or len(self._joined[-1][1]) >= _GROUPS_PER_SOCKET:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._joined.append((sock, set()))
        sock, members = self._joined[-1]
        value = _GROUP.pack(group, self._index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, value)
        members.add(group)

    def _leave(self, group: bytes) -> None:
        try:
            self._membership(_PACKET_DROP_MEMBERSHIP, _MULTICAST, multicast_mac(group))
        except OSError:  # it was refused, or went with the link
            pass
        for sock, members in self._joined:
            if group in members:
                members.discard(group)
                value = _GROUP.pack(group, self._index)
                try:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, value)
                except OSError:
                    pass
        for sock, members in [each for each in self._joined if not each[1]]:
            sock.close()
            self._joined.remove((sock, members))

    def _let_all_in(self, error: OSError) -> None:
        _log.warning(
            "not every group of IPv6 can be joined, all are let in instead link=%s reason=%r; "
            "switches that look at MLD may hold back questions for addresses of Services",
            self._name,
            error.strerror,
        )
        self._takes_all = True
        try:
            self._membership(_PACKET_ADD_MEMBERSHIP, _ALL_MULTICAST, b"")
        except OSError as again:
            _log.warning("cannot let them in link=%s reason=%r", self._name, again.strerror)


def _open(
    index: int, protocol: int, program: tuple[neighbor_filter.Instruction, ...]
) -> socket.socket:
    # Of no protocol: nothing is received before the filter stands and the link is chosen.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        code = ctypes.create_string_buffer(neighbor_filter.encode(program))
        value = _PROGRAM.pack(len(program), ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, value)
        _bind(sock, index, protocol)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, index: int, protocol: int) -> None:
    """Bind by index: the socket module does by name, which may have gone to another link."""
    place = _ADDRESS.pack(socket.AF_PACKET, socket.htons(protocol), index, 0, 0, 0, b"")
    if _libc.bind(sock.fileno(), place, _ADDRESS.size) != 0:
        code = ctypes.get_errno() or errno.EIO
        raise OSError(code, os.strerror(code))
