"""A socket that reads one group of iptables' target NFLOG (linux/netfilter/nfnetlink_log.h).

The kernel gives a group to one socket at a time, in each network namespace; whoever comes second is
refused (EPERM). The rules go on working, whoever reads or nobody. A closed socket gives its group
back. pyroute2 has no such socket; nothing else of netlink is needed here than four requests.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kube_router_py.errors import KernelError
from kube_router_py.kernel.nflog_packets import (
    ATTRIBUTE,
    MSG_CONFIG,
    NFGENMSG,
    NFNL_SUBSYS_ULOG,
    NLMSG,
    Packet,
    decode,
    messages,
)
from kube_router_py.kernel.nflog_ports import GroupTakenError

GROUP: Final = 100
"""The one of the firewall's rules, as in kube-router."""

_NETLINK_NETFILTER: Final = 12
_SO_RCVBUFFORCE: Final = 33
_REQUEST_TYPE: Final = NFNL_SUBSYS_ULOG << 8 | MSG_CONFIG
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR: Final = 2
# NFULA_CFG_*
_CMD, _MODE, _TIMEOUT, _QTHRESH, _FLAGS = 1, 2, 4, 5, 6
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_F_SEQ, _F_CONNTRACK = 1, 4
# IPv6, a few extension headers and the ports; nothing of what people say to each other.
_COPY_BYTES: Final = 256
_BUFFER_BYTES: Final = 1 << 20
_RECEIVE_BYTES: Final = 1 << 16
_ANSWER_S: Final = 10.0
_AT_ONCE: Final = 256


class NflogSocket:
    """A ``PacketLog``. Made in the namespace of the thread that makes it.

    Packets come at once, cut to what their headers need. ``lost`` counts the gaps in the kernel's
    numbering; a receive that says ENOBUFS counts as one until the gap that it tells of is seen.
    """

    def __init__(self, group: int = GROUP) -> None:
        self._group = group
        self._sequence = 0
        self._expected: int | None = None
        self._unexplained = 0
        self._early: list[Packet] = []
        self.lost = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as error:
            raise self._error("no socket", error.errno or 0) from error
        try:
            self._begin()
        except OSError as error:
            self._socket.close()
            raise self._error("the socket failed", error.errno or 0) from error
        except BaseException:
            self._socket.close()
            raise

    def read(self, timeout_s: float) -> list[Packet]:
        found, self._early = self._early, []
        if found or self._wait(timeout_s):
            for _ in range(_AT_ONCE):
                datagram = self._receive()
                if datagram is None:
                    break
                found += self._taken(datagram)
        return found

    def close(self) -> None:
        self._socket.close()

    # --- how it begins -------------------------------------------------------------------------

    def _begin(self) -> None:
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except OSError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._ask("has no logging to programs (module nfnetlink_log)", (_CMD, bytes((_CMD_BIND,))))
        self._ask(
            "does not copy packets",
            (_MODE, struct.pack("!IBx", _COPY_BYTES, _COPY_PACKET)),
            (_QTHRESH, struct.pack("!I", 1)),
            (_TIMEOUT, struct.pack("!I", 1)),
        )
        try:
            self._ask("", (_FLAGS, struct.pack("!H", _F_SEQ | _F_CONNTRACK)))
        except KernelError:
            # Without module nf_conntrack_netlink the address of the Service is not told.
            self._ask("does not number packets", (_FLAGS, struct.pack("!H", _F_SEQ)))

    def _ask(self, what: str, *attributes: tuple[int, bytes]) -> None:
        self._sequence += 1
        body = NFGENMSG.pack(socket.AF_UNSPEC, 0, self._group)
        for kind, value in attributes:
            size = ATTRIBUTE.size + len(value)
            body += ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)
        header = NLMSG.pack(
            *(NLMSG.size + len(body), _REQUEST_TYPE, _NLM_F_REQUEST | _NLM_F_ACK),
            *(self._sequence, 0),
        )
        self._socket.send(header + body)
        code = self._answer()
        if code:
            raise self._error(what, code)

    def _answer(self) -> int:
        """The error number that answers the last request; packets that come before it are kept."""
        deadline = time.monotonic() + _ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0 and self._wait(left_s):
            datagram = self._receive()
            if datagram is None:
                continue
            for kind, body in messages(datagram):
                if kind == _NLMSG_ERROR and len(body) >= 4 + NLMSG.size:
                    code, _, _, _, number, _ = struct.unpack_from("=iIHHII", body)
                    if number == self._sequence:
                        return int(-code)
            self._early += self._taken(datagram)
        return errno.ETIMEDOUT

    def _error(self, what: str, code: int) -> KernelError:
        reason = os.strerror(code)
        if code in (errno.EPERM, errno.EBUSY):
            if holder := who_reads(self._group):
                return GroupTakenError(
                    f"{holder} reads NFLOG group {self._group}, which the kernel gives to one "
                    "program at a time; end it",
                    code,
                )
            what = "wants CAP_NET_ADMIN"
        return KernelError(f"NFLOG group {self._group}: the kernel {what} ({reason})", code)

    # --- how it goes on ------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise self._error("does not hand over packets", error.errno or 0) from error
            self.lost += 1
            self._unexplained += 1
            return b""

    def _taken(self, datagram: bytes) -> Iterator[Packet]:
        for packet in decode(datagram):
            if packet.sequence is not None:
                if self._expected is not None:
                    gap = (packet.sequence - self._expected) & 0xFFFFFFFF
                    explained = min(gap, self._unexplained)
                    self._unexplained -= explained
                    self.lost += gap - explained
                self._expected = (packet.sequence + 1) & 0xFFFFFFFF
            yield packet


def who_reads(group: int) -> str:
    """The program that has a group in this network namespace, in words: ``tcpdump (process 12)``;
    empty where nobody has it."""
    net = Path("/proc/thread-self/net")
    try:
        groups = _rows(net / "netfilter/nfnetlink_log")
        port = next(row[1] for row in groups if len(row) > 1 and row[0] == str(group))
    except (OSError, StopIteration):
        return ""
    unseen = f"a program that this one cannot see (netlink port {port})"
    try:
        rows = _rows(net / "netlink")
    except OSError:
        return unseen
    inodes = {
        f"socket:[{row[9]}]"
        for row in rows
        if len(row) > 9 and row[1] == str(_NETLINK_NETFILTER) and row[2] == port
    }
    return next(_processes_with(inodes), unseen) if inodes else unseen


def _rows(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text().splitlines()]


def _processes_with(sockets: set[str]) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                # It may be closed by the time that it is looked at.
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor) in sockets:
                        name = (process / "comm").read_text().strip()
                        yield f"{name} (process {process.name})"
