"""ARP and NDP, read and written: against frames made by other code, and against garbage."""

import ipaddress
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.kernel import neighbor_packets as packets
from kube_router_py.kernel.neighbor_packets import Claim, Heard, Question, read

A, B = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
A_TEXT, B_TEXT = A.hex(":"), B.hex(":")
V4, V4_OF_B = ipaddress.ip_address("10.0.0.100"), ipaddress.ip_address("10.0.0.11")
V6, V6_OF_B = ipaddress.ip_address("fd00::12:3456"), ipaddress.ip_address("fd00::b")
NOBODY = {4: ipaddress.ip_address("0.0.0.0"), 6: ipaddress.ip_address("::")}
ALL_NODES = ipaddress.ip_address("ff02::1")
GROUP = ipaddress.ip_address("ff02::1:ff12:3456")
GROUP_MAC = "33:33:ff:12:34:56"

# Field by field as RFC 826 has it: 10.0.0.1 tells 10.0.0.250.
REPLY = bytes.fromhex(
    "0200000000fe020000000001080600010800060400020200000000010a0000010200000000fe0a0000fa"
)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("neighbor_lab")


def test_a_question_is_heard_with_the_claim_in_it(lab: ModuleType) -> None:
    for target, source in ((V4, V4_OF_B), (V6, V6_OF_B)):
        assert read(lab.question(target, B_TEXT, source)) == Heard(
            B, Question(target.packed, source.packed, B), Claim(source.packed, B)
        )


def test_who_tries_whether_an_address_is_free_claims_nothing(lab: ModuleType) -> None:
    for target in (V4, V6):
        frame = lab.question(target, B_TEXT, NOBODY[target.version])
        assert read(frame) == Heard(B, Question(target.packed, None, B))


def test_what_is_said_unasked_is_a_claim_and_no_question(lab: ModuleType) -> None:
    for address in (V4, V6):
        frame = lab.announcement(address, B_TEXT)
        assert read(frame) == Heard(B, claim=Claim(address.packed, B))


def test_a_reply_byte_by_byte() -> None:
    node = bytes.fromhex("020000000001")
    address = ipaddress.ip_address("10.0.0.1").packed
    assert read(REPLY) == Heard(node, claim=Claim(address, node))
    question = Question(
        address, ipaddress.ip_address("10.0.0.250").packed, bytes.fromhex("0200000000fe")
    )
    assert packets.arp_reply(node, question) == REPLY


def test_a_solicitation_without_a_hardware_address_is_answered_to_its_sender(
    lab: ModuleType,
) -> None:
    frame = lab.ndp(A_TEXT, B_TEXT, 135, V6_OF_B, V6, bytes(4) + V6.packed)
    heard = read(frame)
    assert heard is not None
    assert heard.question == Question(V6.packed, V6_OF_B.packed, B)


def test_an_advertisement_of_a_third_one_tells_of_that_one(lab: ModuleType) -> None:
    body = b"\x20\0\0\0" + V6.packed + b"\x02\x01" + A
    frame = lab.ndp(A_TEXT, B_TEXT, 136, V6_OF_B, ALL_NODES, body)
    assert read(frame) == Heard(B, claim=Claim(V6.packed, A))


def test_other_options_are_passed_over(lab: ModuleType) -> None:
    nonce = b"\x0e\x01" + bytes(6)  # of enhanced detection of duplicates, RFC 7527
    frame = lab.ndp(GROUP_MAC, B_TEXT, 135, NOBODY[6], GROUP, bytes(4) + V6.packed + nonce)
    assert read(frame) == Heard(B, Question(V6.packed, None, B))


def test_an_answer_is_what_its_hearer_takes_it_for() -> None:
    for target, source, reply in (
        (V4, V4_OF_B, packets.arp_reply),
        (V6, V6_OF_B, packets.ndp_reply),
    ):
        frame = reply(A, Question(target.packed, source.packed, B))
        assert frame[:12] == B + A
        assert read(frame) == Heard(A, claim=Claim(target.packed, A))


def test_flags_of_an_answer_by_ndp() -> None:
    frame = packets.ndp_reply(A, Question(V6.packed, V6_OF_B.packed, B))
    assert frame[38:54] == V6_OF_B.packed
    assert frame[58] == 0x60  # solicited, override; no router


def test_who_tries_for_a_taken_address_is_told_so() -> None:
    """By ARP at his hardware address; by NDP with all nodes, since he has no address yet."""
    reply = packets.arp_reply(A, Question(V4.packed, None, B))
    assert (reply[:6], reply[28:32], reply[38:42]) == (B, V4.packed, bytes(4))
    frame = packets.ndp_reply(A, Question(V6.packed, None, B))
    assert frame == packets.ndp_announcement(A, V6.packed)
    assert frame[:6] == bytes.fromhex("333300000001")
    assert frame[38:54] == ALL_NODES.packed
    assert frame[58] == 0x20


def test_announcements_by_arp_have_both_forms(lab: ModuleType) -> None:
    request, reply = packets.arp_announcements(A, V4.packed)
    assert request == lab.announcement(V4, A_TEXT)
    assert (request[21], reply[21]) == (1, 2)
    assert reply[32:38] == A  # as Linux wants it (arp_is_garp)
    for frame in (request, reply):
        assert frame[:6] == packets.BROADCAST
        assert read(frame) == Heard(A, claim=Claim(V4.packed, A))


def test_an_announcement_by_ndp_as_other_code_makes_it(lab: ModuleType) -> None:
    assert packets.ndp_announcement(A, V6.packed) == lab.announcement(V6, A_TEXT)


def test_groups() -> None:
    assert packets.solicited_node(V6.packed) == GROUP.packed
    assert packets.multicast_mac(GROUP.packed).hex(":") == GROUP_MAC


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=64))
def test_a_checksum_completes_a_message_to_zero(source: bytes, rest: bytes) -> None:
    body = bytes((136, 0, 0, 0)) + rest
    total = packets.checksum(source, V6.packed, body)
    whole = body[:2] + total.to_bytes(2, "big") + body[4:]
    assert packets.checksum(source, V6.packed, whole) == 0


def _with(frame: bytes, place: int, value: bytes) -> bytes:
    return frame[:place] + value + frame[place + len(value) :]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (6, b"\x01"),  # the sender is a group
        (12, b"\x81\x00"),  # tagged
        (14, b"\x00\x06"),  # no Ethernet
        (16, b"\x86\xdd"),  # no IPv4
        (18, b"\x08"),
        (19, b"\x10"),
        (20, b"\x00\x03"),  # RARP
        (22, b"\xff" * 6),  # the hardware address told of is everybody's
        (22, bytes(6)),
    ],
)
def test_arp_that_is_invalid(lab: ModuleType, place: int, value: bytes) -> None:
    frame = lab.question(V4, B_TEXT, V4_OF_B)
    assert read(frame) is not None
    assert read(_with(frame, place, value)) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (14, b"\x40"),  # version 4
        (18, b"\x00\x17"),  # shorter than a solicitation
        (18, b"\x00\x21"),  # longer than the frame
        (20, b"\x00"),  # an extension header
        (21, b"\xfe"),  # a router has forwarded it
        (55, b"\x01"),  # code
        (56, b"\x00\x00"),  # checksum
    ],
)
def test_ndp_that_is_invalid(lab: ModuleType, place: int, value: bytes) -> None:
    frame = lab.question(V6, B_TEXT, V6_OF_B)
    assert read(frame) is not None
    assert read(_with(frame, place, value)) is None


def test_ndp_that_no_node_may_send(lab: ModuleType) -> None:
    mac, target = b"\x01\x01" + B, bytes(4) + V6.packed
    for kind, source, destination, body in (
        (135, V6_OF_B, GROUP, bytes(4) + GROUP.packed + mac),  # asks for a group
        (135, GROUP, GROUP, target + mac),  # comes from one
        (135, NOBODY[6], GROUP, target + mac),  # nobody with a hardware address
        (135, NOBODY[6], ALL_NODES, target),  # nobody asks the wrong group
        (135, V6_OF_B, GROUP, target + b"\x01\x00" + B),  # an option without length
        (135, V6_OF_B, GROUP, target + b"\x01\x02" + B),  # beyond the end
        (135, V6_OF_B, GROUP, target + b"\x01"),
        (135, V6_OF_B, GROUP, target + b"\x01\x01\x01" + B[1:]),  # the hardware address of a group
        (136, V6_OF_B, ALL_NODES, b"\x60\0\0\0" + V6.packed + b"\x02\x01" + B),  # solicited by all
        (137, V6_OF_B, GROUP, target + mac),  # a redirect
    ):
        frame = lab.ndp(GROUP_MAC, B_TEXT, kind, source, destination, body)
        assert packets.checksum(frame[22:38], frame[38:54], frame[54:]) == 0
        assert read(frame) is None, body.hex()


def test_what_pads_a_frame_is_not_read(lab: ModuleType) -> None:
    for frame in (lab.question(V4, B_TEXT, V4_OF_B), lab.question(V6, B_TEXT, V6_OF_B)):
        assert read(frame + b"\xa5" * 18) == read(frame)


FRAMES = (
    packets.arp_announcements(A, V4.packed)[0],
    packets.arp_reply(A, Question(V4.packed, V4_OF_B.packed, B)),
    packets.ndp_announcement(A, V6.packed),
    packets.ndp_reply(A, Question(V6.packed, V6_OF_B.packed, B)),
)


@given(st.binary(max_size=200))
def test_garbage_says_nothing(garbage: bytes) -> None:
    heard = read(garbage)
    assert heard is None or garbage[12:14] in (b"\x08\x06", b"\x86\xdd")


@given(
    st.sampled_from(FRAMES),
    st.integers(0, 90),
    st.lists(st.tuples(st.integers(0, 85), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
)
def test_frames_cut_bent_and_lengthened_are_read_without_an_error(
    frame: bytes, cut: int, bends: list[tuple[int, int]], tail: bytes
) -> None:
    bent = bytearray(frame)
    for place, value in bends:
        bent[place % len(bent)] = value
    heard = read(bytes(bent[:cut]) + tail)
    # Whatever is believed has the form of an address and of a hardware address.
    if heard is not None and heard.claim is not None:
        assert (len(heard.claim.address), len(heard.claim.mac)) in ((4, 6), (16, 6))
    if heard is not None and heard.question is not None:
        question = heard.question
        assert question.source is None or len(question.source) == len(question.target)
        assert len(question.mac) == 6


@given(st.sampled_from(FRAMES), st.integers(0, 85))
def test_a_frame_that_is_cut_says_nothing(frame: bytes, cut: int) -> None:
    if cut < len(frame):
        assert read(frame[:cut]) is None
