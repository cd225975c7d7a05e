"""The free addresses of one family of a pool: the lowest one at once, of however many. Pure.

Addresses are numbered through all ranges, in their order. Below a mark every number is in use or in
a heap; above it nothing is kept but what is in use. The mark only rises, over numbers in use, so
that each is passed once: neither the size of a pool nor its holes are ever walked through.
"""

from bisect import bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate

from kube_router_py.address_pools import AddressRange

_BUGGY = (0, 255)


class FreeAddresses:
    """Addresses as integers; all ranges are of one family. ``steps`` counts how often a number was
    looked at, for whoever doubts that it is few times."""

    def __init__(self, ranges: Sequence[AddressRange], avoid_buggy: bool = False) -> None:
        self._ranges = ranges
        # Where in the numbering a range ends, and where it begins.
        ends = list(accumulate(each.size for each in ranges))
        self._begins = [0, *ends[:-1]]
        by_first = sorted((int(each.first), index) for index, each in enumerate(ranges))
        self._firsts = [first for first, _ in by_first]
        self._indexes = [index for _, index in by_first]
        self._avoid_buggy = avoid_buggy and ranges[0].version == 4
        self.size = ends[-1]
        self.usable = self.size
        if self._avoid_buggy:
            self.usable -= sum(map(_buggy_ones, ranges))
        self._used: set[int] = set()
        self._used_usable = 0
        self._released: list[int] = []
        self._in_heap: set[int] = set()
        self._mark = 0
        self.steps = 0

    @property
    def used(self) -> int:
        return len(self._used)

    @property
    def free(self) -> int:
        """How many there still are to give."""
        return self.usable - self._used_usable

    def may_give(self, value: int) -> bool:
        """Whether an address that is asked for is one to give."""
        return not self._is_buggy(value)

    def take(self, value: int) -> None:
        """It is in use from now on; it may have been."""
        number = self._number(value)
        if number not in self._used:
            self._used.add(number)
            self._used_usable += not self._is_buggy(value)

    def release(self, value: int) -> None:
        """It is not in use any more; it has to have been."""
        number = self._number(value)
        self._used.remove(number)
        if self._is_buggy(value):
            return
        self._used_usable -= 1
        if number < self._mark and number not in self._in_heap:
            self._in_heap.add(number)
            heappush(self._released, number)

    def lowest(self) -> int | None:
        """The first address that is not in use; None: there is none to give."""
        if not self.free:
            return None
        while self._released:
            self.steps += 1
            if self._released[0] not in self._used:
                return self._value(self._released[0])
            self._in_heap.remove(heappop(self._released))
        while True:
            self.steps += 1
            if self._mark not in self._used:
                value = self._value(self._mark)
                if not self._is_buggy(value):
                    return value
            self._mark += 1

    def _is_buggy(self, value: int) -> bool:
        return self._avoid_buggy and value & 0xFF in _BUGGY

    def _number(self, value: int) -> int:
        index = self._indexes[bisect_right(self._firsts, value) - 1]
        return self._begins[index] + value - int(self._ranges[index].first)

    def _value(self, number: int) -> int:
        index = bisect_right(self._begins, number) - 1
        return int(self._ranges[index].first) + number - self._begins[index]


def _buggy_ones(each: AddressRange) -> int:
    """How many addresses of a range end in .0 or .255."""

    def up_to(last: int) -> int:
        return (last + 256) // 256 + (last + 1) // 256

    return up_to(int(each.last)) - up_to(int(each.first) - 1)
