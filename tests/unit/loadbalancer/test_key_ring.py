"""A new key reaches all nodes before anybody needs it."""

from itertools import product

import pytest

from kube_router_py.loadbalancer.key_ring import READ_S, SPREAD_S, KeyRing, key_mistake

OLD, NEW = b"o" * 32, b"n" * 32


def test_nodes_that_read_at_different_moments_always_understand_each_other() -> None:
    rings = [KeyRing() for _ in range(4)]
    offsets = [0.0, 20.0, 40.0, READ_S - 0.1]
    for ring in rings:
        ring.put(OLD, 0.0)
    changed_at = 1000.0
    now = changed_at - 100.0
    while now < changed_at + 400.0:
        now += 1.0
        for ring, offset in zip(rings, offsets, strict=True):
            ring.put(NEW if now >= changed_at + offset else OLD, now)
        for sender, receiver in product(rings, rings):
            assert sender.signing(now) in receiver.accepted(now)
    assert {ring.signing(now) for ring in rings} == {NEW}
    assert {ring.accepted(now) for ring in rings} == {(NEW,)}


def test_the_first_key_counts_at_once() -> None:
    ring = KeyRing()
    assert (ring.signing(0.0), ring.accepted(0.0)) == (b"", ())
    ring.put(NEW, 1.0)
    assert (ring.signing(1.0), ring.accepted(1.0)) == (NEW, (NEW,))


def test_where_the_key_goes_nothing_is_believed_once_all_know() -> None:
    ring = KeyRing()
    ring.put(OLD, 0.0)
    ring.put(b"", 100.0)
    assert (ring.signing(100.0), ring.accepted(100.0)) == (OLD, (OLD,))
    assert (ring.signing(100.0 + SPREAD_S), ring.accepted(100.0 + SPREAD_S)) == (b"", (OLD,))
    ring.put(b"", 101.0 + SPREAD_S)
    assert ring.accepted(100.0 + 2 * SPREAD_S) == ()


@pytest.mark.parametrize(("length", "is_wrong"), [(0, True), (15, True), (16, False), (64, False)])
def test_short_keys_are_refused(length: int, is_wrong: bool) -> None:
    assert bool(key_mistake(bytes(length))) == is_wrong
