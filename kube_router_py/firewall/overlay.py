"""Many sets and chains, changed in one step, though sets change entry by entry. Pure.

Where policies and members of sets change at the same time, what is neither the old nor the new
could let pass in between what both refuse: a pod that is given other policies for what it sends,
while others begin to admit what it sends; two pods of a namespace that gets other labels. Then the
rules that look into sets which are to change are first replaced by rules that see what these will
hold: what is in the set and not among the entries that go, or is among those that come. While the
set itself is changed, this stays the same; afterwards the rules are put back as they were. The sets
with what comes and goes are as small as the change.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import product

from kube_router_py.firewall.contents import SetDelta
from kube_router_py.firewall.names import beside_set
from kube_router_py.kernel.ports import IpsetSpec

_MATCH = re.compile(r"-m set --match-set (\S+) (\S+)")


class Overlay:
    """What stands beside sets while they change: ``sets`` with their entries."""

    def __init__(self, deltas: Mapping[IpsetSpec, SetDelta]) -> None:
        self.deltas = dict(deltas)
        self.sets: dict[IpsetSpec, Collection[str]] = {}
        # By the name of a set: those of what comes, and of what goes; empty where nothing does.
        self._beside: dict[str, tuple[str, str]] = {}
        for spec, delta in deltas.items():
            names = []
            for what, entries in (("comes", delta.add), ("goes", delta.remove)):
                names.append("")
                if entries:
                    beside = beside_set(spec, what)
                    self.sets[beside] = frozenset(entries)
                    names[-1] = beside.name
            self._beside[spec.name] = (names[0], names[1])

    def specs(self, family: str) -> list[IpsetSpec]:
        """The sets that change."""
        return [spec for spec in self.deltas if spec.family == family]

    def names(self) -> set[str]:
        return {spec.name for spec in self.sets}

    def over(self, rules: Iterable[str]) -> tuple[str, ...]:
        """Rules that admit, as they will when the sets have changed."""
        return (
            tuple(each for rule in rules for each in self._over(rule)) if self.sets else (*rules,)
        )

    def _over(self, rule: str) -> Iterable[str]:
        if not any(name in rule for name in self._beside):
            return (rule,)
        # Text, name and side in turn, and the text at the end.
        text, *rest = _MATCH.split(rule)
        parts: list[tuple[str, ...]] = [(text,)]
        for name, side, then in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            comes, goes = self._beside.get(name, ("", ""))
            stays = f"-m set --match-set {name} {side}"
            if goes:
                stays += f" -m set ! --match-set {goes} {side}"
            parts.append((stays, f"-m set --match-set {comes} {side}") if comes else (stays,))
            parts.append((then,))
        return map("".join, product(*parts))
