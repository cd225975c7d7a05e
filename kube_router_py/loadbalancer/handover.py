"""Giving addresses to the next node without a gap: for how long the old one still answers. Pure.

What another node has got is answered for until that node is heard to claim it, or for a while: both
answer for a moment, and both serve it. A claim that was heard before counts for nothing: whoever
made it may have been corrected since.
"""

from collections.abc import Hashable, Set
from typing import Generic, TypeVar

LIMIT_S = 2.0

A = TypeVar("A", bound=Hashable)


class Handover(Generic[A]):
    """Which addresses are answered for. Times are seconds of a clock that never goes back."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._answered: frozenset[A] = frozenset()
        self._passed_at: dict[A, float] = {}
        self._claimed: set[A] = set()

    def claim(self, address: A) -> None:
        """Another node was heard to claim an address."""
        if address in self._passed_at:
            self._claimed.add(address)

    def settle(self, own: Set[A], passed: Set[A], now: float) -> tuple[frozenset[A], float | None]:
        """All that is answered for now, and in how many seconds that ends for some of it.

        ``own`` are this node's. ``passed`` are another living node's that this one still serves;
        what is neither is not answered for any more.
        """
        left = (self._answered - own) & passed
        self._passed_at = {each: self._passed_at.get(each, now) for each in left}
        self._claimed &= left
        kept = {
            each
            for each, since in self._passed_at.items()
            if each not in self._claimed and now - since < self._limit_s
        }
        self._answered = frozenset(own | kept)
        self._passed_at = {each: self._passed_at[each] for each in kept}
        self._claimed.clear()
        if not kept:
            return self._answered, None
        return self._answered, min(self._passed_at.values()) + self._limit_s - now

    @property
    def passing(self) -> frozenset[A]:
        """What is still answered for although it is another node's."""
        return frozenset(self._passed_at)
