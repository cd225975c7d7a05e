"""The entries of sets, each with the number of those who want it, and what changed. Pure.

Two pods can claim one address for a moment, and two Services one port: an entry goes with the last
of them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Set

from msgspec import Struct

from kube_router_py.kernel.ports import IpsetSpec


class SetDelta(Struct):
    """What a set lacks, and has too much of, compared with what was taken last."""

    add: set[str]
    remove: set[str]


class Contents:
    """All sets. ``take`` gives what changed since it was last called."""

    def __init__(self) -> None:
        self._counts: dict[IpsetSpec, dict[str, int]] = {}
        # Whether an entry stood when changes were last taken, for those that changed since.
        self._before: dict[IpsetSpec, dict[str, bool]] = {}
        self._created: set[IpsetSpec] = set()
        self._dropped: set[IpsetSpec] = set()

    def __getitem__(self, spec: IpsetSpec) -> Mapping[str, int]:
        """The entries of a set (the keys)."""
        return self._counts[spec]

    def specs(self) -> Iterable[IpsetSpec]:
        return self._counts.keys()

    def create(self, spec: IpsetSpec) -> None:
        self._counts[spec] = {}
        self._created.add(spec)

    def drop(self, spec: IpsetSpec) -> None:
        del self._counts[spec]
        self._before.pop(spec, None)
        self._created.discard(spec)
        self._dropped.add(spec)

    def add(self, spec: IpsetSpec, entries: Iterable[str]) -> None:
        counts, before = self._counts[spec], self._before.setdefault(spec, {})
        for entry in entries:
            count = counts.get(entry, 0)
            counts[entry] = count + 1
            if not count:
                before.setdefault(entry, False)

    def discard(self, spec: IpsetSpec, entries: Iterable[str]) -> None:
        counts, before = self._counts[spec], self._before.setdefault(spec, {})
        for entry in entries:
            counts[entry] -= 1
            if not counts[entry]:
                del counts[entry]
                before.setdefault(entry, True)

    def take(self) -> tuple[set[IpsetSpec], dict[IpsetSpec, SetDelta], set[IpsetSpec]]:
        """Sets created, sets changed (those created are not among them), sets dropped."""
        created, self._created = self._created, set()
        dropped, self._dropped = self._dropped - self._counts.keys(), set()
        touched, self._before = self._before, {}
        changed: dict[IpsetSpec, SetDelta] = {}
        for spec, before in touched.items():
            if spec in created:
                continue
            counts, delta = self._counts[spec], SetDelta(set(), set())
            for entry, stood in before.items():
                if stood and entry not in counts:
                    delta.remove.add(entry)
                elif not stood and entry in counts:
                    delta.add.add(entry)
            if delta.add or delta.remove:
                changed[spec] = delta
        return created, changed, dropped


class InBetween(Collection[str]):
    """What a set holds between two steps: its entries, with ``more``, without ``less``; a view."""

    def __init__(
        self, entries: Mapping[str, int], more: Set[str] = frozenset(), less: Set[str] = frozenset()
    ) -> None:
        # ``more`` is not among the entries, ``less`` is: they are what the other step changes.
        self._entries, self._more, self._less = entries, more, less

    def __len__(self) -> int:
        return len(self._entries) + len(self._more) - len(self._less)

    def __iter__(self) -> Iterator[str]:
        yield from (entry for entry in self._entries if entry not in self._less)
        yield from self._more

    def __contains__(self, entry: object) -> bool:
        return entry in self._more or (entry in self._entries and entry not in self._less)
