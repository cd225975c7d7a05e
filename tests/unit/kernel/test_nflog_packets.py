"""Reading what the kernel logs of packets: headers of every kind, and junk."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.kernel.nflog_packets import PACKET_TYPE, Packet, Tuple, decode

PREFIX = "KUBE-POD-FW-ABCDEFGHIJKLMNOP ingress policy "
V4 = (socket.inet_aton("10.244.1.5"), socket.inet_aton("10.244.2.7"))
V6 = tuple(socket.inet_pton(socket.AF_INET6, each) for each in ("fd10:244:1::5", "fd10:244:2::7"))
PORTS = struct.pack("!HH", 40000, 5432)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, kind: int = PACKET_TYPE) -> bytes:
    body = struct.pack("!BBH", socket.AF_INET, 0, 100) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def one(*attributes: bytes) -> Packet:
    (found,) = decode(message(*attributes))
    return found


def ipv4(protocol: int, rest: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    length = (20 + len(options)) // 4
    head = struct.pack(
        "!BBHHHBBH", 0x40 | length, 0, 20 + len(options) + len(rest), 1, fragment, 64, protocol, 0
    )
    return head + V4[0] + V4[1] + options + rest


def ipv6(following: int, rest: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(rest), following, 64) + V6[0] + V6[1] + rest


def payload(data: bytes) -> Packet:
    return one(attribute(9, data))


@pytest.mark.parametrize(
    ("number", "name"), [(6, "tcp"), (17, "udp"), (132, "sctp"), (136, "udplite")]
)
def test_ports(number: int, name: str) -> None:
    for found, family in ((payload(ipv4(number, PORTS)), 4), (payload(ipv6(number, PORTS)), 6)):
        assert (found.family, found.protocol) == (family, name)
        assert (found.source_port, found.destination_port) == (40000, 5432)
        assert not found.is_fragment
    assert (found.source, found.destination) == ("fd10:244:1::5", "fd10:244:2::7")


def test_what_has_no_ports() -> None:
    found = payload(ipv4(1, b"\x08\x00" + PORTS))
    assert (found.protocol, found.icmp, found.source_port) == ("icmp", (8, 0), None)
    assert payload(ipv6(58, b"\x80\x00")).icmp == (128, 0)
    found = payload(ipv4(47, PORTS))
    assert (found.protocol, found.destination_port, found.icmp) == ("47", None, None)


def test_options_of_ipv4_are_skipped() -> None:
    assert payload(ipv4(6, PORTS, options=b"\x01" * 8)).destination_port == 5432


def test_fragments() -> None:
    first = payload(ipv4(17, PORTS, fragment=0x2000))  # more of it follow
    assert (first.is_fragment, first.destination_port) == (False, 5432)
    later = payload(ipv4(17, PORTS, fragment=3))
    assert (later.is_fragment, later.destination_port, later.protocol) == (True, None, "udp")


def extension(following: int, length: int = 0) -> bytes:
    return struct.pack("!BB", following, length) + bytes(6 + 8 * length)


def fragment(following: int, offset: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset << 3 | 1, 7)


@pytest.mark.parametrize(
    ("first", "headers"),
    [
        (0, extension(6)),
        (0, extension(60) + extension(43, 2) + extension(6, 1)),
        (44, fragment(6, 0)),
        (51, struct.pack("!BB", 6, 4) + bytes(22)),
        (135, extension(6)),
    ],
    ids=["hop by hop", "three", "first fragment", "authentication", "mobility"],
)
def test_extension_headers(first: int, headers: bytes) -> None:
    found = payload(ipv6(first, headers + PORTS))
    assert (found.protocol, found.destination_port, found.is_fragment) == ("tcp", 5432, False)


def test_a_later_fragment_of_ipv6() -> None:
    found = payload(ipv6(0, extension(44) + fragment(17, 100) + PORTS))
    assert (found.protocol, found.destination_port, found.is_fragment) == ("udp", None, True)


def test_a_copy_that_ends_early_has_no_ports() -> None:
    whole = ipv6(0, extension(6) + PORTS)
    for length in range(len(whole)):
        found = payload(whole[:length])
        assert found.destination_port is None
        assert found.destination == ("fd10:244:2::7" if length >= 40 else "")


def test_what_the_kernel_tells_beside_the_packet() -> None:
    found = one(
        attribute(1, struct.pack("!HBB", 0x0800, 2, 0)),
        attribute(2, struct.pack("!I", 0x40000)),
        attribute(3, struct.pack("!QQ", 1_700_000_000, 250_000)),
        attribute(4, struct.pack("!I", 7)),
        attribute(5, struct.pack("!I", 8)),
        attribute(10, PREFIX.encode() + b"\0"),
        attribute(12, struct.pack("!I", 41)),
    )
    assert found == Packet(
        prefix=PREFIX,
        timestamp=1_700_000_000.25,
        sequence=41,
    )


def connection(destination: str, port: int, protocol: int = 6) -> bytes:
    is_v4 = "." in destination
    family = socket.AF_INET if is_v4 else socket.AF_INET6
    source = "10.244.1.5" if is_v4 else "fd10:244:1::5"
    addresses = attribute(1 if is_v4 else 3, socket.inet_pton(family, source)) + attribute(
        2 if is_v4 else 4, socket.inet_pton(family, destination)
    )
    flow = attribute(1, bytes((protocol,)))
    flow += attribute(2, struct.pack("!H", 40000)) + attribute(3, struct.pack("!H", port))
    both = attribute(1 | 0x8000, addresses) + attribute(2 | 0x8000, flow)
    return attribute(18 | 0x8000, attribute(1 | 0x8000, both))


@pytest.mark.parametrize("address", ["10.96.0.10", "fd10:96::a"])
def test_the_address_that_the_client_meant(address: str) -> None:
    source = "10.244.1.5" if "." in address else "fd10:244:1::5"
    for state in (0, 1, 2):  # established, related, new
        found = one(connection(address, 53), attribute(19, struct.pack("!I", state)))
        assert found.original == Tuple(source, address, "tcp", 40000, 53)
    reply = one(connection(address, 53), attribute(19, struct.pack("!I", 3)))
    assert reply.original is None


def test_a_connection_without_ports() -> None:
    found = one(connection("10.96.0.10", 53, protocol=1), attribute(19, struct.pack("!I", 2)))
    assert found.original == Tuple("10.244.1.5", "10.96.0.10", "icmp")


def test_several_messages_and_others_between_them() -> None:
    first, second = (message(attribute(10, name)) for name in (b"a\0", b"bc\0"))
    other = message(attribute(10, b"no\0"), kind=2)
    assert [each.prefix for each in decode(first + other + second)] == ["a", "bc"]


def test_a_message_that_is_cut_ends_it() -> None:
    first, second = (message(attribute(10, name)) for name in (b"a\0", b"bc\0"))
    assert [each.prefix for each in decode(first + second[:-1])] == ["a"]


@pytest.mark.parametrize("length", [0, 3])
def test_lengths_that_lead_nowhere(length: int) -> None:
    assert list(decode(struct.pack("=IHHII", length, PACKET_TYPE, 0, 0, 0) * 3)) == []
    found = one(struct.pack("=HH", length, 10) + b"abcd")
    assert found.prefix == ""


def test_a_time_that_is_none() -> None:
    for seconds, micros in ((1 << 40, 0), (1, 1_000_000)):
        assert one(attribute(3, struct.pack("!QQ", seconds, micros))).timestamp is None
    assert one(attribute(3, b"12")).timestamp is None


REAL: Any = message(
    attribute(1, struct.pack("!HBB", 0x86DD, 3, 0)),
    attribute(10, PREFIX.encode() + b"\0"),
    attribute(12, struct.pack("!I", 1)),
    connection("10.96.0.10", 53),
    attribute(19, struct.pack("!I", 2)),
    attribute(9, ipv6(0, extension(44) + fragment(6, 0) + PORTS)),
)


@given(st.binary(max_size=400))
def test_junk_never_raises(data: bytes) -> None:
    list(decode(data))
    list(decode(message(data)))
    payload(ipv6(0, data))
    payload(bytes((0x40 | len(data) % 16,)) + data)


@given(st.data())
def test_what_was_damaged_never_raises(data: Any) -> None:
    damaged = bytearray(REAL)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(16, len(REAL) - 1))] = data.draw(st.integers(0, 255))
    for packet in decode(bytes(damaged)):
        assert packet.family in (0, 4, 6)
    list(decode(bytes(damaged[: data.draw(st.integers(0, len(REAL)))])))
