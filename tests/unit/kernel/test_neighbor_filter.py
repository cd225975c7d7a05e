"""What the filters let through, by an interpreter of the few instructions they are made of."""

import ipaddress
from collections.abc import Callable
from types import ModuleType

import pytest

from kube_router_py.kernel import neighbor_filter as nf

MAC = "02:00:00:00:00:0b"
V4, V4_OF_B = ipaddress.ip_address("10.0.0.100"), ipaddress.ip_address("10.0.0.11")
V6, V6_OF_B = ipaddress.ip_address("fd00::12:3456"), ipaddress.ip_address("fd00::b")
TO_US, BROADCAST, MULTICAST, OTHER_HOST, OUTGOING = range(5)
PROGRAMS = (nf.arp_program(), nf.ndp_program())


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("neighbor_lab")


def passes(
    program: tuple[nf.Instruction, ...],
    frame: bytes,
    kind: int = BROADCAST,
    vlan: int | None = None,
    old_tag: int = 0,
) -> bool:
    """Run a program on a frame, as the kernel would: what is read beyond the end rejects."""
    beside = {
        nf.PACKET_TYPE: kind,
        nf.HAS_VLAN_TAG: int(vlan is not None),
        nf.VLAN_TAG: old_tag if vlan is None else vlan,
    }
    sizes = {nf.LOAD_WORD: 4, nf.LOAD_HALF: 2, nf.LOAD_BYTE: 1}
    loaded, at = 0, 0
    while True:
        code, if_equal, otherwise, value = program[at]
        at += 1
        if code == nf.RETURN:
            return value > 0
        if code == nf.AND:
            loaded &= value
        elif code == nf.JUMP_EQUAL:
            at += if_equal if loaded == value else otherwise
        elif value in beside:
            loaded = beside[value]
        elif value + sizes[code] > len(frame):
            return False
        else:
            loaded = int.from_bytes(frame[value : value + sizes[code]], "big")


def test_no_jump_leads_out_of_a_program() -> None:
    for program in PROGRAMS:
        for place, each in enumerate(program):
            assert place + 1 + max(each.if_equal, each.otherwise) < len(program) or (
                each.code == nf.RETURN
            )
        assert [each.value > 0 for each in program if each.code == nf.RETURN] == [True, False]
        assert len(nf.encode(program)) == 8 * len(program)


def test_questions_and_claims_pass(lab: ModuleType) -> None:
    arp, ndp = PROGRAMS
    assert passes(arp, lab.question(V4, MAC, V4_OF_B))
    assert passes(arp, lab.announcement(V4, MAC))
    assert passes(ndp, lab.question(V6, MAC, V6_OF_B))
    assert passes(ndp, lab.announcement(V6, MAC))


def test_other_traffic_does_not(lab: ModuleType) -> None:
    arp, ndp = PROGRAMS
    reverse = lab.arp(MAC, MAC, operation=3, source=V4, target=V4)
    assert not passes(arp, reverse)
    for kind in (128, 129, 133, 134, 137):
        frame = lab.ndp(MAC, MAC, kind, V6_OF_B, V6, bytes(20))
        assert not passes(ndp, frame)
    frame = lab.question(V6, MAC, V6_OF_B)
    assert not passes(ndp, frame[:20] + b"\x11" + frame[21:])  # UDP
    assert not passes(ndp, frame[:21] + b"\xfe" + frame[22:])  # forwarded
    for program in PROGRAMS:
        assert not passes(program, frame[:14])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(TO_US, True), (BROADCAST, True), (MULTICAST, True), (OTHER_HOST, False), (OUTGOING, False)],
)
def test_frames_from_here_or_for_others_do_not_pass(
    lab: ModuleType, kind: int, wanted: bool
) -> None:
    arp, ndp = PROGRAMS
    assert passes(arp, lab.question(V4, MAC, V4_OF_B), kind) is wanted
    assert passes(ndp, lab.question(V6, MAC, V6_OF_B), kind) is wanted


def test_frames_of_other_vlans_do_not_pass(lab: ModuleType) -> None:
    arp, ndp = PROGRAMS
    for program, frame in (
        (arp, lab.question(V4, MAC, V4_OF_B)),
        (ndp, lab.question(V6, MAC, V6_OF_B)),
    ):
        assert not passes(program, frame, vlan=5)
        assert not passes(program, frame, vlan=0x6005)  # with a priority
        assert passes(program, frame, vlan=0)
        assert passes(program, frame, vlan=0xE000)  # a priority alone
        assert passes(program, frame, old_tag=5)  # the tag of the link's own VLAN is off
