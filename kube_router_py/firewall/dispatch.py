"""From an address to the chains of its pods, in buckets by the address's last digit. Pure."""

from collections.abc import Iterable, Iterator

from kube_router_py.firewall.chains import (
    DIRECTION_CHAINS,
    address_digit,
    dispatch_bucket,
    dispatch_top,
)
from kube_router_py.firewall.frame import direction_rules
from kube_router_py.firewall.model import Direction

_Place = tuple[Direction, str, int]
_Chain = tuple[str, str, tuple[str, ...] | None]
"""Family, name and rules of a chain; None: it goes."""


class Dispatch:
    """``take`` gives the chains of the buckets that changed since it was last called."""

    def __init__(self, families: Iterable[str]) -> None:
        # By address: targets, each with the pod it is for (two may have the target DROP).
        self._buckets: dict[_Place, dict[str, set[tuple[str, str]]]] = {}
        self._chains: dict[_Place, set[str]] = {}
        self._dirty: set[_Place] = set()
        self._families = tuple(families)

    def start(self) -> Iterator[_Chain]:
        """The chains that are there before any pod is."""
        for family in self._families:
            for direction in Direction:
                yield self._top(direction, family)

    def note(
        self,
        direction: Direction,
        family: str,
        address: str,
        pod: str,
        target: str,
        *,
        is_new: bool,
    ) -> None:
        """A pod's address leads to a target (a chain), or no longer does."""
        place = (direction, family, address_digit(address, 0))
        bucket = self._buckets.setdefault(place, {})
        targets = bucket.setdefault(address, set())
        (targets.add if is_new else targets.discard)((target, pod))
        if not targets:
            del bucket[address]
        self._dirty.add(place)

    def take(self) -> Iterator[_Chain]:
        for place in sorted(self._dirty):
            yield from self._bucket(place)
        self._dirty.clear()

    def _bucket(self, place: _Place) -> Iterator[_Chain]:
        direction, family, digit = place
        bucket = {
            address: sorted({target for target, _ in targets})
            for address, targets in self._buckets[place].items()
        }
        new = dispatch_bucket(direction, family, digit, bucket) if bucket else {}
        for name in self._chains.pop(place, set()) - new.keys():
            yield family, name, None
        for name, rules in new.items():
            yield family, name, rules
        if bucket:
            self._chains[place] = set(new)
        else:
            del self._buckets[place]
        yield self._top(direction, family)

    def _top(self, direction: Direction, family: str) -> _Chain:
        digits = [d for towards, of, d in self._buckets if (towards, of) == (direction, family)]
        rules = direction_rules(direction, family, dispatch_top(direction, family, digits))
        return family, DIRECTION_CHAINS[direction], rules
