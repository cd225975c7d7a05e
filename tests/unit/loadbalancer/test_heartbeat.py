"""The heartbeat's packet: what goes in comes out, and nothing else gets in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.loadbalancer.heartbeat import (
    HEARD_MAX,
    HOLDING_MAX,
    MOST_BYTES,
    Heartbeat,
    HeartbeatError,
    Standing,
    decode,
    encode,
    node_id,
    node_mark,
)

KEY, OLD_KEY, OTHER_KEY = b"k" * 32, b"o" * 32, b"x" * 32

ids = st.binary(min_size=16, max_size=16)
numbers = st.integers(min_value=0, max_value=2**64 - 1)
shorts = st.integers(min_value=0, max_value=2**16 - 1)
heartbeats = st.builds(
    Heartbeat,
    sender=ids,
    incarnation=ids,
    sequence=numbers,
    echo_incarnation=ids,
    echo_sequence=numbers,
    standing=st.sampled_from(Standing),
    grace_s=shorts,
    members=shorts,
    counts_you=st.booleans(),
    is_fenced=st.booleans(),
    heard=st.frozensets(st.binary(min_size=4, max_size=4), max_size=HEARD_MAX),
    holding=st.frozensets(st.binary(min_size=4, max_size=4), max_size=HOLDING_MAX),
)


@given(heartbeats)
def test_what_goes_in_comes_out(heartbeat: Heartbeat) -> None:
    packet = encode(heartbeat, KEY)
    assert len(packet) <= MOST_BYTES
    assert decode(packet, (KEY,)) == heartbeat
    assert decode(packet, (OLD_KEY, KEY)) == heartbeat


@given(heartbeats, st.data())
def test_every_bit_is_signed(heartbeat: Heartbeat, data: st.DataObject) -> None:
    packet = bytearray(encode(heartbeat, KEY))
    bit = data.draw(st.integers(min_value=0, max_value=8 * len(packet) - 1))
    packet[bit // 8] ^= 1 << bit % 8
    with pytest.raises(HeartbeatError):
        decode(bytes(packet), (KEY,))


@given(st.binary(max_size=300))
def test_what_is_none_is_refused(packet: bytes) -> None:
    with pytest.raises(HeartbeatError):
        decode(packet, (KEY, OLD_KEY))


@given(st.binary(max_size=300))
def test_what_is_signed_but_makes_no_sense_is_refused(said: bytes) -> None:
    """A holder of the key may be of another version."""
    from kube_router_py.loadbalancer import heartbeat

    packet = said + heartbeat._signature(said, KEY)
    with pytest.raises(HeartbeatError):
        decode(packet, (KEY,))


def test_a_count_that_does_not_fit_is_refused() -> None:
    from kube_router_py.loadbalancer import heartbeat

    said = encode(Heartbeat(node_id("a"), node_id("b"), 1), KEY)[:-16] + b"abc"
    with pytest.raises(HeartbeatError, match="length"):
        decode(said + heartbeat._signature(said, KEY), (KEY,))


def test_other_keys_and_none_are_refused() -> None:
    packet = encode(Heartbeat(node_id("a"), node_id("b"), 1), KEY)
    for keys in ((), (OTHER_KEY,), (OTHER_KEY, OLD_KEY)):
        with pytest.raises(HeartbeatError, match="key"):
            decode(packet, keys)


def test_too_many_that_are_heard_are_not_listed() -> None:
    heard = frozenset(node_mark(node_id(f"node{number}")) for number in range(HEARD_MAX + 1))
    assert len(heard) == HEARD_MAX + 1
    packet = encode(Heartbeat(node_id("a"), node_id("b"), 1, heard=heard, grace_s=10**6), KEY)
    found = decode(packet, (KEY,))
    assert (found.heard, found.grace_s) == (frozenset(), 65535)


def test_names_of_any_length_and_content_have_an_identity() -> None:
    names = ["", "a", "b", "a" * 253, "a" * 252 + "b", "\ud800"]
    assert len({node_id(name) for name in names}) == len(names)
