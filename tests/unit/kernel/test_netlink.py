"""The netlink transport, against the running kernel; needs neither root nor any module."""

import errno
import socket
from collections.abc import Iterator

import pytest

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.kernel.netlink import (
    HEADER,
    NETLINK_GENERIC,
    NETLINK_ROUTE,
    NLM_F_DUMP_INTR,
    NetlinkSocket,
    attribute,
    attributes,
    family_id,
    message,
    nested,
)

GENL_ID_CTRL = 0x10
RTM_NEWLINK, RTM_GETLINK = 16, 18
GETFAMILY = b"\3\1\0\0"


@pytest.fixture
def generic() -> Iterator[NetlinkSocket]:
    sock = NetlinkSocket(NETLINK_GENERIC)
    yield sock
    sock.close()


def refused_message(seq: int) -> bytes:
    """Asks for a family of no name: EINVAL."""
    return message(GENL_ID_CTRL, 0, seq, GETFAMILY)


def accepted_message(seq: int) -> bytes:
    """Asks for the controller itself: answered by a reply that a batch passes over."""
    return message(GENL_ID_CTRL, 0, seq, GETFAMILY + attribute(2, b"nlctrl\0"))


class Wire:
    """Stands in for the socket: plays recorded datagrams."""

    def __init__(self, *datagrams: bytes | OSError, sender: int = 0) -> None:
        self.datagrams = list(datagrams)
        self.sent: list[bytes] = []
        self.sender = sender

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recvmsg(self, _: int) -> tuple[bytes, list[object], int, tuple[int, int]]:
        head = self.datagrams.pop(0)
        if isinstance(head, OSError):
            raise head
        return head, [], 0, (self.sender, 0)

    def recv(self, *_: int) -> bytes:
        raise BlockingIOError(errno.EAGAIN, "empty")

    def close(self) -> None:
        pass


def test_messages_and_attributes_are_padded() -> None:
    assert attribute(3, b"abcde") == b"\x09\0\x03\0abcde\0\0\0"
    packed = message(0x1D, 4, 7, b"abc")
    assert HEADER.unpack_from(packed) == (19, 0x1D, 5, 7, 0)
    assert len(packed) == 20


def test_attributes_are_found_again_and_broken_ones_end_the_list() -> None:
    payload = nested(1, attribute(2, b"x")) + attribute(3, b"") + b"\xff\0\1\0"
    assert list(attributes(payload)) == [(1, attribute(2, b"x")), (3, b"")]
    assert list(attributes(b"\x03\0\1\0")) == []
    assert list(attributes(b"1234" + attribute(4, b"y"), 4)) == [(4, b"y")]


def test_a_family_is_found_by_name(generic: NetlinkSocket) -> None:
    assert family_id(generic, "nlctrl") == GENL_ID_CTRL


def test_an_unknown_family_is_no_such_entry(generic: NetlinkSocket) -> None:
    with pytest.raises(KernelError) as caught:
        family_id(generic, "KRPY_NONE")
    assert caught.value.errno == errno.ENOENT
    assert not isinstance(caught.value, StateUnknownError)


def test_a_dump_lists_the_links() -> None:
    sock = NetlinkSocket(NETLINK_ROUTE, strict=True)
    names = [
        value
        for payload in sock.dump(RTM_GETLINK, bytes(16))
        for kind, value in attributes(payload, 16)
        if kind == 3
    ]
    sock.close()
    assert b"lo\0" in names


def test_a_refused_dump_is_an_error(generic: NetlinkSocket) -> None:
    with pytest.raises(KernelError):
        generic.dump(0x3FF, b"\1\1\0\0")


def test_a_batch_tells_each_refusal_by_its_number(generic: NetlinkSocket) -> None:
    count = 1500
    first = generic.reserve(count)
    bad = {first + n for n in range(count) if n % 7 == 0}
    messages = (
        refused_message(seq) if seq in bad else accepted_message(seq)
        for seq in range(first, first + count)
    )
    assert generic.batch(messages) == dict.fromkeys(sorted(bad), errno.EINVAL)
    assert generic.batch([]) == {}


def test_lost_answers_leave_the_state_unknown_and_the_socket_usable(
    generic: NetlinkSocket,
) -> None:
    generic._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's minimum
    first = generic.reserve(200)
    with pytest.raises(StateUnknownError) as caught:
        generic.batch(refused_message(first + n) for n in range(200))
    assert caught.value.errno == errno.ENOBUFS
    assert family_id(generic, "nlctrl") == GENL_ID_CTRL
    seq = generic.reserve(1)
    assert generic.batch([refused_message(seq)]) == {seq: errno.EINVAL}


def test_silence_ends_in_a_timeout() -> None:
    sock = NetlinkSocket(NETLINK_GENERIC, timeout_s=0.05)
    with pytest.raises(StateUnknownError, match="no answer in time"):
        list(sock._receive(lambda _: True))
    sock.close()


def replies(sock: NetlinkSocket, *datagrams: bytes | OSError, sender: int = 0) -> Wire:
    """Put recorded datagrams in place of the kernel."""
    sock.close()
    wire = Wire(*datagrams, sender=sender)
    sock._socket = wire  # type: ignore[assignment]
    return wire


def test_an_interrupted_dump_is_repeated(generic: NetlinkSocket) -> None:
    done = HEADER.pack(20, 3, 0, 2, 0) + bytes(4)
    torn = HEADER.pack(20, 99, NLM_F_DUMP_INTR, 1, 0) + b"torn" + HEADER.pack(16, 3, 0, 1, 0)
    whole = HEADER.pack(20, 99, 0, 2, 0) + b"good"
    wire = replies(generic, torn, whole + done)
    assert generic.dump(99) == [b"good"]
    assert len(wire.sent) == 2


def test_a_dump_that_is_always_interrupted_leaves_the_state_unknown(
    generic: NetlinkSocket,
) -> None:
    replies(generic, *(HEADER.pack(20, 3, NLM_F_DUMP_INTR, n, 0) + bytes(4) for n in range(1, 9)))
    with pytest.raises(StateUnknownError, match="kept changing"):
        generic.dump(99)


def test_leftovers_of_earlier_calls_are_passed_over(generic: NetlinkSocket) -> None:
    generic.reserve(50)
    stale = HEADER.pack(36, 2, 0, 7, 0) + (-17).to_bytes(4, "little", signed=True) + bytes(16)
    reply = HEADER.pack(20, 99, 0, 51, 0) + b"good"
    ack = HEADER.pack(36, 2, 0, 51, 0) + bytes(20)
    replies(generic, stale, reply + ack)
    assert generic.request(99, b"") == [b"good"]


def test_a_broken_reply_leaves_the_state_unknown(generic: NetlinkSocket) -> None:
    replies(generic, HEADER.pack(400, 2, 0, 1, 0))
    with pytest.raises(StateUnknownError, match="broken reply"):
        generic.request(99, b"")


def test_other_processes_are_not_listened_to(generic: NetlinkSocket) -> None:
    ack = HEADER.pack(36, 2, 0, 1, 0) + bytes(20)
    replies(generic, ack, OSError(errno.EAGAIN, "again"), sender=4711)
    with pytest.raises(StateUnknownError):
        generic.request(99, b"")


def test_sequence_numbers_start_again_before_they_overflow(generic: NetlinkSocket) -> None:
    generic._next_seq = (1 << 32) - 5
    assert generic.reserve(10) == 1
    assert generic.reserve(1) == 11
