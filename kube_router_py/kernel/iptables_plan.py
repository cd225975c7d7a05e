"""What to send to iptables-restore so that own chains and jumps stand as wanted. Pure.

Input is what iptables-save printed for one table; output are the lines between ``*table`` and
``COMMIT``. All of them take effect in one step, so that packets see the old or the new rules.

Jumps are deleted by their text, never by number: a number may mean another rule by the time the
kernel reads it, a text that is gone makes the whole commit fail and be planned again.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.kernel.ports import Jump, TableRules
from kube_router_py.kernel.rule_text import canonical, target

OWN_PREFIX = "KUBE-ROUTER-"
"""Chains of the whole agent: its loops may each want to be first in a parent chain."""

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


def plan_ensure(standing: Chains, rules: TableRules, same: Same = same_rules) -> Plan:
    """Rewrite the own chains that differ, and put right the jumps of the parents that differ.

    A foreign chain's rule that leads into an own one is ours, and goes where it is not wanted.
    """
    declared: list[str] = []
    body: list[str] = []
    changes: list[str] = []
    for name, wanted in rules.chains.items():
        found = standing.get(name)
        if found is not None and same(name, wanted, found):
            continue
        declared.append(f":{name} - [0:0]")
        body += (f"-A {name} {rule}".rstrip() for rule in wanted)
        changes.append(f"chain {name} {'created' if found is None else 'rewritten'}")
    wanted_jumps: dict[str, list[Jump]] = {}
    for jump in rules.jumps:
        wanted_jumps.setdefault(jump.parent, []).append(jump)
    leading = _rules_leading_to(standing, rules.chains)
    for parent in {**wanted_jumps, **leading}:
        if parent in rules.chains:
            continue
        if parent.startswith(OWN_PREFIX) and parent not in wanted_jumps:
            continue  # the rules of another loop's chain are that loop's business
        lines, changed = _plan_parent(
            parent, standing.get(parent, ()), wanted_jumps.get(parent, []), rules.chains, same
        )
        body += lines
        changes += changed
    return Plan((*declared, *body), tuple(changes))


def plan_remove(standing: Chains, names: Iterable[str]) -> Plan:
    """Delete own chains with every jump to them."""
    doomed = [name for name in dict.fromkeys(names) if name in standing]
    lines = [f":{name} - [0:0]" for name in doomed]
    changes: list[str] = []
    for parent, leading in _rules_leading_to(standing, doomed).items():
        if parent not in doomed:
            lines += (f"-D {parent} {rule}" for rule in leading)
            changes += (f"jump in {parent} deleted" for _ in leading)
    lines += (f"-X {name}" for name in doomed)
    changes += (f"chain {name} deleted" for name in doomed)
    return Plan(tuple(lines), tuple(changes))


def _rules_leading_to(standing: Chains, names: Iterable[str]) -> dict[str, list[str]]:
    """Rules by chain whose target is one of ``names`` (canonical form only where it may be)."""
    wanted = set(names)
    if not wanted:
        return {}
    maybe = re.compile(rf"-[jg] (?:{'|'.join(map(re.escape, sorted(wanted)))})(?:\s|$)")
    found: dict[str, list[str]] = {}
    for parent, rules in standing.items():
        hits = [rule for rule in rules if maybe.search(rule) and target(canonical(rule)) in wanted]
        if hits:
            found[parent] = hits
    return found


def _plan_parent(
    parent: str, standing: Sequence[str], jumps: list[Jump], own: Iterable[str], same: Same
) -> tuple[list[str], list[str]]:
    first = [jump.rule for jump in jumps if jump.position == "first"]
    last = [jump.rule for jump in jumps if jump.position != "first"]
    wanted = {canonical(jump.rule) for jump in jumps}
    chains = set(own)
    mine = [
        index
        for index, rule in enumerate(standing)
        if canonical(rule) in wanted or target(canonical(rule)) in chains
    ]
    ours = [standing[index] for index in mine]
    if same(parent, [*first, *last], ours) and _placed(standing, mine, len(first)):
        return [], []
    lines = [f"-D {parent} {rule}" for rule in ours]
    # Each is put before those already there, hence the last of them first.
    lines += (f"-I {parent} 1 {rule}" for rule in reversed(first))
    lines += (f"-A {parent} {rule}" for rule in last)
    if not jumps:
        return lines, [f"jump in {parent} deleted" for _ in ours]
    return lines, [f"jump in {parent} restored: {jump.rule}" for jump in jumps]


def _placed(standing: Sequence[str], mine: list[int], first: int) -> bool:
    """Whether only the agent's own rules stand before the first jumps and after the last ones."""

    def foreign(indexes: Iterable[int]) -> bool:
        taken = set(mine)
        return any(
            index not in taken and not target(canonical(standing[index])).startswith(OWN_PREFIX)
            for index in indexes
        )

    before = range(mine[first - 1]) if first else range(0)
    after = range(mine[first] + 1, len(standing)) if first < len(mine) else range(0)
    return not foreign(before) and not foreign(after)
