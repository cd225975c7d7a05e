"""Netlink: requests to the kernel, many per system call, each refusal traced to its request.

Only what every family shares is here: framing, sequence numbers, dumps, batches, attributes.
Facts used (kernel sources net/netlink/af_netlink.c, and measured on 6.1):

* the kernel works a request off inside ``send()``; the answers wait in our receive buffer;
* a refusal is always answered with an error that carries the request's sequence number, so
  success needs no acknowledgement: a batch ends with one acknowledged no-op (the *barrier*), and
  whatever was not refused before the barrier's answer has succeeded;
* an overrun receive buffer loses answers and says so once (ENOBUFS): then nobody knows which
  requests succeeded, and the state has to be read back.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final

from kube_router_py.errors import KernelError, StateUnknownError

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NETLINK_GENERIC: Final = 16

NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

HEADER: Final = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_ATTRIBUTE = Struct("=HH")
_ERRNO = Struct("=i")

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_BUFFER_BYTES = 4 << 20
_RECEIVE_BYTES = 1 << 16
# One unread answer occupied up to 710 bytes of the receive buffer; leave room for longer ones.
_ANSWER_BYTES = 2048
# Beyond 256 requests (or 64 KiB) a send gains nothing measurable, but keeps the interpreter
# and the kernel's per-family mutex for longer.
_BATCH_MESSAGES = 256
_BATCH_BYTES = 1 << 16
_DUMP_ATTEMPTS = 5

_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2


def message(kind: int, flags: int, seq: int, payload: bytes) -> bytes:
    """One request: header (NLM_F_REQUEST is added) and payload, padded to four bytes."""
    padding = -len(payload) % 4
    length = HEADER.size + len(payload)
    return HEADER.pack(length, kind, flags | NLM_F_REQUEST, seq, 0) + payload + bytes(padding)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes. ``kind`` includes NLA_F_NESTED where wanted."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def attributes(
    payload: bytes, offset: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """The (type, value) pairs in ``payload[offset:end]``; flags are stripped from the type.

    Stops at the first attribute that does not fit, as the kernel does.
    """
    if end is None:
        end = len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & NLA_TYPE_MASK, payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class NetlinkSocket:
    """A netlink conversation with the kernel of the network namespace it was created in.

    To be used by one thread. ``protocol`` is NETLINK_ROUTE, NETLINK_GENERIC, ...; ``strict`` asks
    the kernel to check and honour the filters of dump requests (NETLINK_GET_STRICT_CHK, needed
    for filtered rtnetlink dumps). No call blocks for longer than ``timeout_s`` without an answer.

    Every method raises StateUnknownError where answers were lost: what the requests did has to
    be read back. The socket remains usable.
    """

    def __init__(self, protocol: int, *, strict: bool = False, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            self._configure(strict, timeout_s)
        except OSError as error:
            self._socket.close()
            raise KernelError(f"netlink socket: {error.strerror}", error.errno or 0) from error
        self._next_seq = 1

    def _configure(self, strict: bool, timeout_s: float) -> None:
        sock = self._socket
        seconds = int(timeout_s)
        timeval = Struct("@ll").pack(seconds, int((timeout_s - seconds) * 1e6))
        # Timeouts in the kernel spare the poll() that settimeout() would add to every call.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        for forced, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
            except PermissionError:  # no CAP_NET_ADMIN in the first user namespace
                sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        if strict:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        sock.bind((0, 0))
        receive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        send = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._batch_messages = max(1, min(_BATCH_MESSAGES, receive // _ANSWER_BYTES))
        self._batch_bytes = min(_BATCH_BYTES, send // 2)

    def close(self) -> None:
        """Close the socket; closing twice is harmless."""
        self._socket.close()

    def reserve(self, count: int) -> int:
        """The first of ``count`` consecutive sequence numbers that are now the caller's."""
        if self._next_seq + count >= 1 << 32:
            self._next_seq = 1
        first = self._next_seq
        self._next_seq += count
        return first

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[bytes]:
        """Send one request and return the payloads of its replies (none for most writes).

        Raises KernelError with the kernel's errno when it refuses.
        """
        seq = self.reserve(1)
        self._send(message(kind, flags | NLM_F_ACK, seq, payload))
        replies: list[bytes] = []
        for _, data, reply_kind, start, end in self._receive(lambda found: found == seq):
            if reply_kind != _NLMSG_ERROR:
                replies.append(data[start:end])
                continue
            _check(_error_of(data, start))
            break
        return replies

    def dump(
        self,
        kind: int,
        payload: bytes = b"",
        flags: int = 0,
        keep: Callable[[bytes], bool] | None = None,
    ) -> list[bytes]:
        """Ask for all objects of a kind and return the payloads of the replies, or of those to
        ``keep``: what is not kept occupies no memory.

        A dump during which the kernel's table changed inconsistently is repeated; if it never
        comes out whole, StateUnknownError is raised. KernelError: the kernel refused.
        """
        for _ in range(_DUMP_ATTEMPTS):
            replies = self._dump_once(kind, payload, flags, keep)
            if replies is not None:
                return replies
        raise StateUnknownError(
            f"the kernel's table kept changing during {_DUMP_ATTEMPTS} dumps", errno.EINTR
        )

    def _dump_once(
        self, kind: int, payload: bytes, flags: int, keep: Callable[[bytes], bool] | None
    ) -> list[bytes] | None:
        seq = self.reserve(1)
        self._send(message(kind, flags | NLM_F_DUMP, seq, payload))
        replies: list[bytes] = []
        interrupted = 0
        for reply_flags, data, reply_kind, start, end in self._receive(lambda found: found == seq):
            interrupted |= reply_flags & NLM_F_DUMP_INTR
            if reply_kind not in (_NLMSG_DONE, _NLMSG_ERROR):
                reply = data[start:end]
                if keep is None or keep(reply):
                    replies.append(reply)
                continue
            if end - start >= _ERRNO.size:
                _check(_error_of(data, start))
            break
        return None if interrupted else replies

    def batch(self, messages: Iterable[bytes]) -> dict[int, int]:
        """Send requests, many at a time, and return {sequence number: errno} of those refused.

        The messages are complete (see ``message``), carry sequence numbers from ``reserve`` and
        no NLM_F_ACK. They are taken from the iterable as they are sent. The kernel works them
        off in order, and a refusal does not stop those behind it.
        """
        refused: dict[int, int] = {}
        chunk: list[bytes] = []
        size = 0
        for item in messages:
            if chunk and (
                len(chunk) >= self._batch_messages or size + len(item) > self._batch_bytes
            ):
                self._send_chunk(chunk, refused)
                chunk, size = [], 0
            chunk.append(item)
            size += len(item)
        if chunk:
            self._send_chunk(chunk, refused)
        return refused

    def _send_chunk(self, chunk: list[bytes], refused: dict[int, int]) -> None:
        barrier = self.reserve(1)
        sent = {HEADER.unpack_from(item)[3] for item in (chunk[0], chunk[-1])}
        first, last = min(sent), max(sent)
        chunk.append(message(_NLMSG_NOOP, NLM_F_ACK, barrier, b""))
        self._send(b"".join(chunk))

        def ours(seq: int) -> bool:
            return seq == barrier or first <= seq <= last

        for _, data, kind, start, _ in self._receive(ours):
            if kind != _NLMSG_ERROR:
                continue  # a reply to a request that had better been sent by request()
            seq = HEADER.unpack_from(data, start - HEADER.size)[3]
            if seq == barrier:
                return
            code = _error_of(data, start)
            if code:
                refused[seq] = code

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise self._lost("sending to", error) from error

    def _receive(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, bytes, int, int, int]]:
        """Replies as (flags, buffer, type, start and end of the payload), without end.

        Those of other sequence numbers are leftovers of a call that failed, and are dropped.
        """
        while True:
            try:
                data, _, receive_flags, sender = self._socket.recvmsg(_RECEIVE_BYTES)
            except OSError as error:
                raise self._lost("waiting for", error) from error
            if sender[0] != 0:
                continue  # another process, not the kernel
            if receive_flags & socket.MSG_TRUNC:
                raise self._lost("a reply too long from", OSError(errno.EMSGSIZE, "truncated"))
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, flags, seq, _ = HEADER.unpack_from(data, offset)
                if length < HEADER.size or offset + length > len(data):
                    raise self._lost("a broken reply from", OSError(errno.EBADMSG, "bad length"))
                if wanted(seq):
                    yield flags, data, kind, offset + HEADER.size, offset + length
                offset += (length + 3) & ~3

    def _lost(self, doing: str, error: OSError) -> StateUnknownError:
        """Empty the receive buffer (full, it would swallow the next answers too)."""
        try:
            while self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT):
                pass
        except OSError:  # BlockingIOError: empty
            pass
        code = error.errno or 0
        reason = "no answer in time" if code == errno.EAGAIN else error.strerror or str(error)
        return StateUnknownError(f"{doing} the kernel by netlink: {reason}", code)


def family_id(sock: NetlinkSocket, name: str) -> int:
    """The message type of a generic netlink family; KernelError(ENOENT) if there is none.

    Asking makes the kernel load the module that provides the family, where it can.
    """
    payload = bytes((_CTRL_CMD_GETFAMILY, 1, 0, 0)) + attribute(
        _CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"
    )
    for reply in sock.request(_GENL_ID_CTRL, payload):
        for kind, value in attributes(reply, 4):
            if kind == _CTRL_ATTR_FAMILY_ID:
                return int.from_bytes(value, sys.byteorder)
    raise KernelError(f"no generic netlink family {name}", errno.ENOENT)


def _error_of(data: bytes, start: int) -> int:
    """The errno (positive, 0 for success) that opens an error or done payload."""
    return -int(_ERRNO.unpack_from(data, start)[0])


def _check(code: int) -> None:
    if code:
        raise KernelError(os.strerror(code), code)
