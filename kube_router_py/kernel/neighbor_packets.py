"""ARP and NDP as frames of Ethernet: reading what others ask and claim, writing what we say. Pure.

Sources: RFC 826 (ARP), RFC 5227 (conflicts of IPv4 addresses), RFC 4861 (NDP), RFC 4862 (duplicate
addresses of IPv6). Frames begin with the destination's hardware address and bear no VLAN tag.
Addresses are packed: 4 or 16 bytes; hardware addresses have 6. Nothing here raises on what others
sent.
"""

from collections.abc import Iterator
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

ETH_P_ARP: Final = 0x0806
ETH_P_IPV6: Final = 0x86DD
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2
NEIGHBOR_SOLICITATION: Final = 135
NEIGHBOR_ADVERTISEMENT: Final = 136
ICMPV6: Final = 58
HOP_LIMIT: Final = 255
"""Of whatever NDP says (RFC 4861, 6.1 and 7.1): no router can have forwarded it."""

BROADCAST: Final = b"\xff" * 6
ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")

_ETHERNET: Final = Layout("!6s6sH")
_ARP: Final = Layout("!HHBBH6s4s6s4s")
_ARP_ETHERNET_IPV4: Final = (1, 0x0800, 6, 4)
_IPV6: Final = Layout("!IHBB16s16s")
_VERSION: Final = 6 << 28
_ICMP: Final = Layout("!BBHI16s")
_SOURCE_MAC, _TARGET_MAC = 1, 2
_SOLICITED: Final = 1 << 30
_OVERRIDE: Final = 1 << 29
_UNSPECIFIED: Final = bytes(16)
_SOLICITED_NODE: Final = bytes.fromhex("ff0200000000000000000001ff")
_NO_MAC: Final = bytes(6)


class Question(Struct, frozen=True):
    """Who has ``target``? Asked by ``source`` (None: nobody yet, who tries whether the target is
    free), who hears answers at ``mac``."""

    target: bytes
    source: bytes | None
    mac: bytes


class Claim(Struct, frozen=True):
    """Somebody at ``mac`` says, or lets on by using it, that ``address`` is his."""

    address: bytes
    mac: bytes


class Heard(Struct, frozen=True):
    """What a frame says; ``sender`` is the hardware address that it came from."""

    sender: bytes
    question: Question | None = None
    claim: Claim | None = None


def read(frame: bytes) -> Heard | None:
    """What a frame says; None where it is neither ARP nor NDP about neighbours, or is invalid."""
    if len(frame) < _ETHERNET.size:
        return None
    _, sender, kind = _ETHERNET.unpack_from(frame)
    if not _is_of_one(sender):
        return None
    if kind == ETH_P_ARP:
        return _read_arp(frame, sender)
    if kind == ETH_P_IPV6:
        return _read_ndp(frame, sender)
    return None


def _read_arp(frame: bytes, sender: bytes) -> Heard | None:
    if len(frame) < _ETHERNET.size + _ARP.size:
        return None
    *kind, operation, mac, source, _, target = _ARP.unpack_from(frame, _ETHERNET.size)
    is_known = operation in (ARP_REQUEST, ARP_REPLY)
    if tuple(kind) != _ARP_ETHERNET_IPV4 or not is_known or not _is_of_one(mac):
        return None
    is_probe = not any(source)
    # Who asks for his own address announces it (RFC 5227, 2.3), and waits for no answer.
    is_question = operation == ARP_REQUEST and source != target
    question = Question(target, None if is_probe else source, mac) if is_question else None
    return Heard(sender, question, None if is_probe else Claim(source, mac))


def _read_ndp(frame: bytes, sender: bytes) -> Heard | None:
    start = _ETHERNET.size + _IPV6.size
    if len(frame) < start + _ICMP.size:
        return None
    word, length, next_header, hop_limit, source, destination = _IPV6.unpack_from(
        frame, _ETHERNET.size
    )
    if word >> 28 != _VERSION >> 28 or (next_header, hop_limit) != (ICMPV6, HOP_LIMIT):
        return None
    body = frame[start : start + length]
    if length < _ICMP.size or len(body) < length or checksum(source, destination, body):
        return None
    kind, code, _, flags, target = _ICMP.unpack_from(body)
    options = _read_options(body[_ICMP.size :])
    if code or options is None or _is_multicast(target) or _is_multicast(source):
        return None
    if kind == NEIGHBOR_SOLICITATION:
        return _read_solicitation(sender, source, destination, target, options.get(_SOURCE_MAC))
    if kind == NEIGHBOR_ADVERTISEMENT:
        if _is_multicast(destination) and flags & _SOLICITED:
            return None
        return Heard(sender, claim=Claim(target, options.get(_TARGET_MAC, sender)))
    return None


def _read_solicitation(
    sender: bytes, source: bytes, destination: bytes, target: bytes, mac: bytes | None
) -> Heard | None:
    if source != _UNSPECIFIED:
        # To a known hardware address it may be asked without telling one's own (RFC 4861, 4.3).
        mac = mac or sender
        return Heard(sender, Question(target, source, mac), Claim(source, mac))
    if mac is not None or not destination.startswith(_SOLICITED_NODE):
        return None
    return Heard(sender, Question(target, None, sender))


def _read_options(data: bytes) -> dict[int, bytes] | None:
    """The hardware addresses among the options; None where the options are invalid."""
    found: dict[int, bytes] = {}
    for kind, value in _options(data):
        if not value:
            return None
        if kind in (_SOURCE_MAC, _TARGET_MAC):
            if len(value) != 6 or not _is_of_one(value):
                return None
            found.setdefault(kind, value)
    return found


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each; the value of one that does not fit is empty, and it is the last."""
    while data:
        length = data[1] * 8 if len(data) > 1 else 0
        if not length or length > len(data):
            yield data[0], b""
            return
        yield data[0], data[2:length]
        data = data[length:]


def arp_reply(mac: bytes, question: Question) -> bytes:
    """The answer to a question of ARP, for whoever asked; also to one who only tries (he sees that
    the address is taken, RFC 5227, 2.1.1)."""
    return _arp(
        *(question.mac, ARP_REPLY, mac, question.target),
        *(question.mac, question.source or bytes(4)),
    )


def arp_announcements(mac: bytes, address: bytes) -> tuple[bytes, bytes]:
    """Both ways to say unasked who has an address, to all.

    As a request it is what RFC 5227 (section 3) prescribes; there are hosts, though, that learn
    from replies alone. Linux believes such a reply at once only if its target is the sender.
    """
    return (
        _arp(BROADCAST, ARP_REQUEST, mac, address, _NO_MAC, address),
        _arp(BROADCAST, ARP_REPLY, mac, address, mac, address),
    )


def _arp(
    to: bytes, operation: int, mac: bytes, source: bytes, target_mac: bytes, target: bytes
) -> bytes:
    return _ETHERNET.pack(to, mac, ETH_P_ARP) + _ARP.pack(
        *_ARP_ETHERNET_IPV4, operation, mac, source, target_mac, target
    )


def ndp_reply(mac: bytes, question: Question) -> bytes:
    """The answer to a question of NDP: for whoever asked, or for all nodes where somebody tries
    whether the address is free (RFC 4861, 7.2.4): he has none yet at which he could hear it."""
    if question.source is None:
        return ndp_announcement(mac, question.target)
    flags = _SOLICITED | _OVERRIDE
    return _advertisement(question.mac, mac, question.source, question.target, flags)


def ndp_announcement(mac: bytes, address: bytes) -> bytes:
    """Saying to all nodes, unasked, who has an address (RFC 4861, 7.2.6)."""
    return _advertisement(multicast_mac(ALL_NODES), mac, ALL_NODES, address, _OVERRIDE)


def _advertisement(to: bytes, mac: bytes, destination: bytes, target: bytes, flags: int) -> bytes:
    option = bytes((_TARGET_MAC, 1)) + mac
    empty = _ICMP.pack(NEIGHBOR_ADVERTISEMENT, 0, 0, flags, target) + option
    total = checksum(target, destination, empty)
    return (
        _ETHERNET.pack(to, mac, ETH_P_IPV6)
        + _IPV6.pack(_VERSION, len(empty), ICMPV6, HOP_LIMIT, target, destination)
        + empty[:2]
        + total.to_bytes(2, "big")
        + empty[4:]
    )


def checksum(source: bytes, destination: bytes, body: bytes) -> int:
    """The checksum of ICMPv6 (RFC 4443, 2.3): to be filled in where the body has 0 in its place,
    and 0 where the body has the right one."""
    data = source + destination + len(body).to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6)) + body
    # A sum of 16-bit words with end-around carry is the remainder of the whole number.
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return 0xFFFF - (number % 0xFFFF or 0xFFFF)


def solicited_node(address: bytes) -> bytes:
    """The group at which an address of IPv6 is asked for (RFC 4291, 2.7.1)."""
    return _SOLICITED_NODE + address[-3:]


def multicast_mac(group: bytes) -> bytes:
    """The hardware address of a group of IPv6 (RFC 2464, 7)."""
    return b"\x33\x33" + group[-4:]


def _is_of_one(mac: bytes) -> bool:
    """Whether it may be somebody's hardware address: no group's, and not none."""
    return not mac[0] & 1 and mac != _NO_MAC


def _is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF
