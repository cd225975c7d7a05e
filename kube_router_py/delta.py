"""The difference between two states, as data."""

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

K = TypeVar("K")
V = TypeVar("V")


class Delta(Struct, Generic[K, V], frozen=True):
    """What turns ``applied`` into ``desired``: keys to add, to change (to the value), to remove."""

    added: dict[K, V]
    changed: dict[K, V]
    removed: tuple[K, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def diff(
    desired: Mapping[K, V], applied: Mapping[K, V], keys: Iterable[K] | None = None
) -> Delta[K, V]:
    """Compare two states, over ``keys`` only when given (the cost is then that of the keys)."""
    if keys is None:
        keys = {**desired, **applied}
    added: dict[K, V] = {}
    changed: dict[K, V] = {}
    removed: list[K] = []
    for key in keys:
        if key not in desired:
            if key in applied:
                removed.append(key)
        elif key not in applied:
            added[key] = desired[key]
        elif desired[key] != applied[key]:
            changed[key] = desired[key]
    return Delta(added, changed, tuple(removed))
