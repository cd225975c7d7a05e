"""The packet by which nodes that announce by ARP and NDP tell each other that they live. Pure.

    magic and version  4    "KRH", 1
    flags              1    standing (2 bits), counts_you (4), is_fenced (8)
    grace              2    seconds
    members            2
    sender            16    SHA-256 of the node's name, truncated
    incarnation       16    random, of the sender's process
    sequence           8
    echo              24    incarnation and sequence that the sender heard last from the receiver
    heard              1 + 4 each    nodes that the sender hears itself
    holding            1 + 4 each    nodes that restart, and whose place it holds
    signature         16    HMAC-SHA256 of all before, truncated (RFC 2104 section 5)

No clock is in it: a packet proves that its sender lived after the receiver had sent what is echoed,
so that one recorded earlier proves nothing. At most 251 bytes, in network byte order.
"""

import hmac
from collections.abc import Sequence
from enum import IntEnum
from hashlib import sha256
from struct import Struct as Layout

from msgspec import Struct

ID_BYTES = 16
MOST_BYTES = 256
HEARD_MAX = 32
"""More nodes than these are not listed at all."""
HOLDING_MAX = 8
"""Of more only these are listed."""
KEY_MIN_BYTES = 16

_MAGIC = b"KRH\x01"
_HEAD = Layout("!4sBHH16s16sQ16sQB")
_MARK_BYTES = 4
_SIGNATURE_BYTES = 16
_COUNTS_YOU, _IS_FENCED = 4, 8
_LARGEST = 0xFFFF
NOTHING_HEARD = bytes(ID_BYTES)


class HeartbeatError(ValueError):
    """A packet that says nothing: not one of ours, cut off, or not signed with a known key."""


class Standing(IntEnum):
    """What a node says of itself: it is not to be counted before it says so; it counts; it is
    about to come back within a grace; it hands over what it has."""

    JOINING = 0
    RUNNING = 1
    RESTARTING = 2
    DRAINING = 3


class Heartbeat(Struct, frozen=True):
    """See the module docstring. ``grace_s``: for how long a restarting node is to be counted.
    ``members``: how many nodes the sender has known to live, itself among them. ``heard`` are their
    marks, none where there are too many; ``holding`` those of nodes that restart. ``counts_you``:
    the receiver counts for the sender."""

    sender: bytes
    incarnation: bytes
    sequence: int
    echo_incarnation: bytes = NOTHING_HEARD
    echo_sequence: int = 0
    standing: Standing = Standing.RUNNING
    grace_s: int = 0
    members: int = 1
    counts_you: bool = False
    is_fenced: bool = False
    heard: frozenset[bytes] = frozenset()
    holding: frozenset[bytes] = frozenset()


def node_id(name: str) -> bytes:
    """What stands for a node's name, which may be longer than a packet."""
    return sha256(name.encode(errors="surrogatepass")).digest()[:ID_BYTES]


def node_mark(identity: bytes) -> bytes:
    """What stands for a node in a list of those heard."""
    return identity[:_MARK_BYTES]


def encode(heartbeat: Heartbeat, key: bytes) -> bytes:
    """The packet."""
    flags = (
        heartbeat.standing
        | (_COUNTS_YOU if heartbeat.counts_you else 0)
        | (_IS_FENCED if heartbeat.is_fenced else 0)
    )
    heard = sorted(heartbeat.heard) if len(heartbeat.heard) <= HEARD_MAX else []
    head = _HEAD.pack(
        _MAGIC,
        flags,
        min(heartbeat.grace_s, _LARGEST),
        min(heartbeat.members, _LARGEST),
        heartbeat.sender,
        heartbeat.incarnation,
        heartbeat.sequence,
        heartbeat.echo_incarnation,
        heartbeat.echo_sequence,
        len(heard),
    )
    holding = sorted(heartbeat.holding)[:HOLDING_MAX]
    said = head + b"".join((*heard, bytes((len(holding),)), *holding))
    return said + _signature(said, key)


def decode(packet: bytes, keys: Sequence[bytes]) -> Heartbeat:
    """Read a packet that is signed with one of the keys. Raises HeartbeatError."""
    if not _HEAD.size + _SIGNATURE_BYTES <= len(packet) <= MOST_BYTES:
        raise HeartbeatError(f"{len(packet)} bytes")
    said, signature = packet[:-_SIGNATURE_BYTES], packet[-_SIGNATURE_BYTES:]
    if not any(hmac.compare_digest(signature, _signature(said, key)) for key in keys):
        raise HeartbeatError("not signed with a known key")
    magic, flags, grace_s, members, sender, incarnation, sequence, echo, echoed, count = (
        _HEAD.unpack_from(said)
    )
    if magic != _MAGIC:
        raise HeartbeatError("of another version")
    start = _HEAD.size + count * _MARK_BYTES
    if count > HEARD_MAX or len(said) <= start:
        raise HeartbeatError("of a wrong length")
    if said[start] > HOLDING_MAX or len(said) != start + 1 + said[start] * _MARK_BYTES:
        raise HeartbeatError("of a wrong length")
    return Heartbeat(
        sender=sender,
        incarnation=incarnation,
        sequence=sequence,
        echo_incarnation=echo,
        echo_sequence=echoed,
        standing=Standing(flags & 3),
        grace_s=grace_s,
        members=members,
        counts_you=bool(flags & _COUNTS_YOU),
        is_fenced=bool(flags & _IS_FENCED),
        heard=_marks(said[_HEAD.size : start]),
        holding=_marks(said[start + 1 :]),
    )


def _marks(data: bytes) -> frozenset[bytes]:
    return frozenset(data[at : at + _MARK_BYTES] for at in range(0, len(data), _MARK_BYTES))


def _signature(said: bytes, key: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")[:_SIGNATURE_BYTES]
