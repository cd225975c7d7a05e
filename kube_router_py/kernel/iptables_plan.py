"""What to send to iptables-restore so that own chains and jumps stand as wanted. Pure.

Input is what iptables-save printed for one table; output are the lines between ``*table`` and
``COMMIT``. All of them take effect in one step, so that packets see the old or the new rules.

Jumps are deleted by their text, never by number: a number may mean another rule by the time the
kernel reads it, a text that is gone makes the whole commit fail and be planned again.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.kernel.ports import Jump, TableRules
from kube_router_py.kernel.rule_text import canonical, target

OWN_PREFIX = "KUBE-ROUTER-"
"""Chains of the whole agent: its loops may each want to be first in a parent chain."""

OWN_PREFIXES = (OWN_PREFIX, "KUBE-POD-", "KUBE-NWPLCY-")
"""With those of single pods and policies."""

_MAYBE_GOAL = re.compile(r"-[jg] (\S+)")
_DISPLACED = re.compile(r"jump in (\S+) put back in its place: ")

Chains = Mapping[str, Sequence[str]]
Same = Callable[[str, Sequence[str], Sequence[str]], bool]
"""Whether the rules wanted in a chain (second) equal those that stand in it (third)."""


class Plan(Struct, frozen=True):
    """Lines for iptables-restore, and what they change, in words."""

    lines: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def same_rules(chain: str, wanted: Sequence[str], standing: Sequence[str]) -> bool:
    """Whether two lists of rules are equal but for their spelling."""
    if len(wanted) != len(standing):
        return False
    return all(
        left == right or canonical(left) == canonical(right)
        for left, right in zip(wanted, standing, strict=True)
    )


def nothing(name: str) -> bool:
    """No chain at all."""
    del name
    return False


def plan_ensure(
    standing: Chains,
    rules: TableRules,
    same: Same = same_rules,
    *,
    prune: Callable[[str], bool] = nothing,
    leave: Collection[str] = (),
) -> Plan:
    """Rewrite the own chains that differ, put right the jumps of the parents that differ, and
    delete standing chains for which ``prune`` is true, unless they are wanted.

    A foreign chain's rule that leads into an own one is ours, and goes where it is not wanted.
    In the parents of ``leave`` jumps are left where they are, if only all of them are there.
    """
    changed: dict[str, tuple[str, ...]] = {}
    changes: list[str] = []
    for name, wanted in rules.chains.items():
        found = standing.get(name)
        if found is not None and same(name, wanted, found):
            continue
        changed[name] = wanted
        changes.append(f"chain {name} {'created' if found is None else 'rewritten'}")
    doomed = [name for name in standing if name not in rules.chains and prune(name)]
    declared, body, deleted = _rewrite(changed, doomed)
    wanted_jumps: dict[str, list[Jump]] = {}
    for jump in rules.jumps:
        wanted_jumps.setdefault(jump.parent, []).append(jump)
    own = {*rules.chains, *doomed}
    leading = _rules_leading_to(standing, own)
    for parent in {**wanted_jumps, **leading}:
        if parent in own:
            continue
        jumps = wanted_jumps.get(parent, [])
        if parent.startswith(OWN_PREFIXES) and not jumps:
            # The rules of another loop's chain are that loop's business, if they can stay.
            lines = [f"-D {parent} {rule}" for rule in leading[parent] if _goal(rule) in doomed]
            body += lines
            changes += (f"jump in {parent} deleted" for _ in lines)
            continue
        lines, words = _plan_parent(
            parent, standing.get(parent, ()), jumps, own, same, leave=parent in leave
        )
        body += lines
        changes += words
    changes += (f"chain {name} deleted" for name in doomed)
    return Plan((*declared, *body, *deleted), tuple(changes))


def plan_change(chains: Mapping[str, Sequence[str]], delete: Iterable[str] = ()) -> Plan:
    """Rewrite own chains and delete others, whatever stands."""
    doomed = [name for name in dict.fromkeys(delete) if name not in chains]
    declared, body, deleted = _rewrite(chains, doomed)
    words = [f"chain {name} rewritten" for name in chains]
    words += (f"chain {name} deleted" for name in doomed)
    return Plan((*declared, *body, *deleted), tuple(words))


def displaced(changes: Iterable[str]) -> frozenset[str]:
    """Of the words of a plan: the parents whose jumps stood, but not in their place."""
    found = (_DISPLACED.match(change) for change in changes)
    return frozenset(match.group(1) for match in found if match)


def plan_remove(standing: Chains, names: Iterable[str]) -> Plan:
    """Delete own chains with every jump to them."""
    doomed = [name for name in dict.fromkeys(names) if name in standing]
    lines = [f":{name} - [0:0]" for name in doomed]
    changes: list[str] = []
    for parent, leading in _rules_leading_to(standing, doomed).items():
        lines += (f"-D {parent} {rule}" for rule in leading)
        changes += (f"jump in {parent} deleted" for _ in leading)
    lines += (f"-X {name}" for name in doomed)
    changes += (f"chain {name} deleted" for name in doomed)
    return Plan(tuple(lines), tuple(changes))


def _rewrite(
    chains: Mapping[str, Sequence[str]], doomed: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Lines that declare chains (which empties them), fill them, and delete the doomed ones."""
    declared = [f":{name} - [0:0]" for name in (*chains, *doomed)]
    body = [f"-A {name} {rule}".rstrip() for name, rules in chains.items() for rule in rules]
    return declared, body, [f"-X {name}" for name in doomed]


def _goal(rule: str) -> str:
    return target(canonical(rule))


def _rules_leading_to(standing: Chains, names: Collection[str]) -> dict[str, list[str]]:
    """Rules of other chains whose target is one of ``names``, by chain."""
    wanted = set(names)
    found: dict[str, list[str]] = {}
    if not wanted:
        return found
    for parent, rules in standing.items():
        if parent in wanted:
            continue
        # Canonical form only where it may be one: there are many rules.
        hits = [
            rule
            for rule in rules
            if not wanted.isdisjoint(_MAYBE_GOAL.findall(rule)) and _goal(rule) in wanted
        ]
        if hits:
            found[parent] = hits
    return found


def _plan_parent(
    parent: str,
    standing: Sequence[str],
    jumps: list[Jump],
    own: Collection[str],
    same: Same,
    *,
    leave: bool,
) -> tuple[list[str], list[str]]:
    first = [jump.rule for jump in jumps if jump.position == "first"]
    last = [jump.rule for jump in jumps if jump.position != "first"]
    wanted = {canonical(jump.rule) for jump in jumps}
    mine = [
        index
        for index, rule in enumerate(standing)
        if canonical(rule) in wanted or _goal(rule) in own
    ]
    ours = [standing[index] for index in mine]
    equal = same(parent, [*first, *last], ours)
    kept = mine if equal else [index for index in mine if canonical(standing[index]) in wanted]
    stale = [standing[index] for index in mine if index not in kept]
    if not equal:
        equal = same(parent, [*first, *last], [standing[index] for index in kept])
    all_stand = equal or wanted == {canonical(standing[index]) for index in kept}
    if (equal and _placed(standing, kept, mine, len(first))) or (leave and all_stand):
        lines = [f"-D {parent} {rule}" for rule in stale]
        return lines, [f"jump in {parent} deleted" for _ in stale]
    lines = [f"-D {parent} {rule}" for rule in ours]
    # Each is put before those already there, hence the last of them first.
    lines += (f"-I {parent} 1 {rule}" for rule in reversed(first))
    lines += (f"-A {parent} {rule}" for rule in last)
    verb = "put back in its place" if all_stand else "restored"
    return lines, [f"jump in {parent} {verb}: {jump.rule}" for jump in jumps]


def _placed(standing: Sequence[str], kept: list[int], mine: list[int], first: int) -> bool:
    """Whether only the agent's own rules stand before the first jumps and after the last ones.

    ``kept`` are the indexes of the jumps, ``mine`` those of all that lead to the same chains.
    """

    def foreign(indexes: Iterable[int]) -> bool:
        return any(
            index not in mine and not _goal(standing[index]).startswith(OWN_PREFIX)
            for index in indexes
        )

    before = range(kept[first - 1]) if first else range(0)
    after = range(kept[first] + 1, len(standing)) if first < len(kept) else range(0)
    return not foreign(before) and not foreign(after)
