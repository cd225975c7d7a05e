"""What the kernel is to hand to the responder, as programs of classic BPF. Pure.

A node's link carries much traffic, and next to nothing of it is ARP or NDP about neighbours: the
rest must not even wake us. Source: kernel Documentation/networking/filter.rst.

Frames of another VLAN are none of ours: where the node has no link for a VLAN, the kernel shows
them at the link below, with the tag beside them. Nor are frames for the hardware address of
another host, which a promiscuous link hears: whoever asks him does not ask us.
"""

from struct import Struct as Layout
from typing import Final, NamedTuple

from kube_router_py.kernel.neighbor_packets import (
    ARP_REPLY,
    ARP_REQUEST,
    HOP_LIMIT,
    ICMPV6,
    NEIGHBOR_ADVERTISEMENT,
    NEIGHBOR_SOLICITATION,
)

_INSTRUCTION: Final = Layout("@HBBI")
LOAD_WORD: Final = 0x20
LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
AND: Final = 0x54
JUMP_EQUAL: Final = 0x15
RETURN: Final = 0x06

_ANCILLARY: Final = 0x1_0000_0000 - 0x1000
PACKET_TYPE: Final = _ANCILLARY + 4
VLAN_TAG: Final = _ANCILLARY + 44
HAS_VLAN_TAG: Final = _ANCILLARY + 48
_OTHER_HOST, _OUTGOING = 3, 4
_VLAN_ID: Final = 0x0FFF

# Offsets from the beginning of the frame.
_ARP_OPERATION, _NEXT_HEADER, _HOP_LIMIT, _ICMP_TYPE = 20, 20, 21, 54
_WHOLE: Final = 0xFFFF


class Instruction(NamedTuple):
    """``if_equal`` and ``otherwise`` are how many instructions are jumped over."""

    code: int
    if_equal: int
    otherwise: int
    value: int


class Check(NamedTuple):
    """Pass on only if what is loaded is among ``values``, or, if ``is_excluded``, is not."""

    load: int
    place: int
    values: tuple[int, ...]
    is_excluded: bool = False


_COMMON: Final = (Check(LOAD_WORD, PACKET_TYPE, (_OTHER_HOST, _OUTGOING), is_excluded=True),)
_ARP: Final = (*_COMMON, Check(LOAD_HALF, _ARP_OPERATION, (ARP_REQUEST, ARP_REPLY)))
_NDP: Final = (
    *_COMMON,
    Check(LOAD_BYTE, _NEXT_HEADER, (ICMPV6,)),
    Check(LOAD_BYTE, _HOP_LIMIT, (HOP_LIMIT,)),
    Check(LOAD_BYTE, _ICMP_TYPE, (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT)),
)


def arp_program() -> tuple[Instruction, ...]:
    """For a socket that gets ARP: requests and replies."""
    return _program(_ARP)


def ndp_program() -> tuple[Instruction, ...]:
    """For a socket that gets IPv6: solicitations and advertisements of neighbours."""
    return _program(_NDP)


def encode(program: tuple[Instruction, ...]) -> bytes:
    """An array of struct sock_filter, in the byte order of this machine."""
    return b"".join(_INSTRUCTION.pack(*each) for each in program)


def _program(checks: tuple[Check, ...]) -> tuple[Instruction, ...]:
    # Written from the end, so that it is known how far away the last instruction is, which rejects.
    program = [Instruction(RETURN, 0, 0, _WHOLE), Instruction(RETURN, 0, 0, 0)]
    for check in reversed(checks):
        program = [*_tests(check, len(program) - 1), *program]
    return (*_vlan_tests(len(program) - 1), *program)


def _tests(check: Check, to_reject: int) -> list[Instruction]:
    tests = [Instruction(check.load, 0, 0, check.place)]
    for left, value in zip(range(len(check.values) - 1, -1, -1), check.values, strict=True):
        if check.is_excluded:
            tests.append(Instruction(JUMP_EQUAL, left + to_reject, 0, value))
        else:
            tests.append(Instruction(JUMP_EQUAL, left, 0 if left else to_reject, value))
    return tests


def _vlan_tests(to_reject: int) -> tuple[Instruction, ...]:
    """No tag, or one of priority alone. The place of a tag may hold an old one."""
    return (
        Instruction(LOAD_WORD, 0, 0, HAS_VLAN_TAG),
        Instruction(JUMP_EQUAL, 3, 0, 0),
        Instruction(LOAD_WORD, 0, 0, VLAN_TAG),
        Instruction(AND, 0, 0, _VLAN_ID),
        Instruction(JUMP_EQUAL, 0, to_reject, 0),
    )
