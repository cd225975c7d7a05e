"""A stateful fake of iptables, which refuses what the kernel refuses."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_ipset import FakeIpsetKernel
from kube_router_py.kernel.iptables_plan import (
    Plan,
    nothing,
    plan_change,
    plan_ensure,
    plan_remove,
)
from kube_router_py.kernel.ports import Counters, Observe, TableRules, unobserved
from kube_router_py.kernel.rule_text import canonical, target

_BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
_VERDICTS = ("ACCEPT", "DROP", "RETURN", "REJECT", "LOG", "NFLOG")
_EXTENSIONS = ("MARK", "CONNMARK", "TCPMSS", "MASQUERADE", "SNAT", "DNAT")
_TARGETS = (*_VERDICTS, *_EXTENSIONS)
_MATCHED_SET = re.compile(r"--match-set (\S+)")


class FakeIptablesKernel(Struct, eq=False):
    """Rules of one fake namespace: {(family, table): {chain: rules}}. Equal if their rules are.

    A commit that writes to a chain in ``refused`` fails, as does one with a rule that has a text of
    ``refused_texts`` in it. ``after_step`` is called after each
    commit, ``commits`` holds the lines of each. With ``sets`` (see ``connect``) a rule can only
    match a set that exists.
    """

    tables: dict[tuple[str, str], dict[str, list[str]]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    refused_texts: set[str] = field(default_factory=set)
    counted: dict[tuple[str, str, str], Counters] = field(default_factory=dict)
    """Counters that differ from zero, by family, table and chain."""
    sets: FakeIpsetKernel | None = None
    after_step: Callable[[], None] | None = None
    commits: list[tuple[str, ...]] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeIptablesKernel) and self.tables == other.tables

    __hash__ = None  # type: ignore[assignment]

    def chains(self, family: str, table: str) -> dict[str, list[str]]:
        """The chains of a table, with the built-in ones. The caller may edit them."""
        built_in = _BUILT_IN[table]
        return self.tables.setdefault((family, table), {name: [] for name in built_in})

    def restore(self, family: str, table: str, lines: Sequence[str]) -> None:
        """Carry out the lines between ``*table`` and ``COMMIT``, all or none."""
        chains = {name: list(rules) for name, rules in self.chains(family, table).items()}
        for line in lines:
            _restore_line(chains, table, line)
        for line in lines:
            self._check_line(chains, line)
        self.tables[family, table] = chains
        self.commits.append((f"*{table} {family}", *lines))
        if self.after_step is not None:
            self.after_step()

    def matched_sets(self) -> set[str]:
        """Names of the sets that any rule refers to."""
        return {
            name
            for chains in self.tables.values()
            for rules in chains.values()
            for rule in rules
            for name in _MATCHED_SET.findall(rule)
        }

    def _check_line(self, chains: Mapping[str, list[str]], line: str) -> None:
        verb, _, rest = line.partition(" ")
        chain, _, rule = (line[1:] if line.startswith(":") else rest).partition(" ")
        if chain in self.refused:
            raise KernelError(f"{line}: refused by the test")
        if verb not in ("-A", "-I"):
            return
        if any(text in rule for text in self.refused_texts):
            raise KernelError(f"{line}: refused by the test")
        goal = target(canonical(rule.partition(" ")[2] if verb == "-I" else rule))
        if goal and goal not in chains and goal not in _TARGETS:
            raise KernelError(f"{line}: no chain {goal}")
        for name in _MATCHED_SET.findall(rule):
            if self.sets is not None and name not in self.sets.sets:
                raise KernelError(f"{line}: Set {name} doesn't exist.")


def connect(sets: FakeIpsetKernel, rules: FakeIptablesKernel) -> None:
    """Make sets and rules those of one namespace: what a rule matches cannot be destroyed."""
    rules.sets = sets
    sets.references = rules.matched_sets


def _restore_line(chains: dict[str, list[str]], table: str, line: str) -> None:
    if line.startswith(":"):
        chains[line[1:].split(" ", 1)[0]] = []
        return
    verb, chain, *rest = line.split(" ", 2)
    rule = rest[0] if rest else ""
    if chain not in chains:
        raise KernelError(f"{line}: no chain {chain}")
    rules = chains[chain]
    if verb == "-A":
        rules.append(rule)
    elif verb == "-I":
        number, _, rule = rule.partition(" ")
        rules.insert(int(number) - 1, rule)
    elif verb == "-D":
        forms = [canonical(standing) for standing in rules]
        if canonical(rule) not in forms:
            raise KernelError(f"{line}: no such rule")
        del rules[forms.index(canonical(rule))]
    elif verb == "-X":
        # A rule that may name it is looked at more closely; there are many.
        used = any(
            chain in each and target(canonical(each)) == chain
            for other in chains.values()
            for each in other
        )
        if rules or used or chain in _BUILT_IN[table]:
            raise KernelError(f"{line}: chain is in use")
        del chains[chain]
    else:
        raise KernelError(f"{line}: unknown command")


class FakeIptables:
    """A stateful ``ports.Iptables``; ``knows_random_fully`` is its answer to that question."""

    def __init__(
        self, kernel: FakeIptablesKernel | None = None, *, knows_random_fully: bool = True
    ) -> None:
        self.writes = 0
        self.variant = "iptables"
        self.observe: Observe = unobserved
        self.closed = False
        self.kernel = kernel or FakeIptablesKernel()
        self._random_fully = knows_random_fully

    def ensure(
        self,
        family: str,
        table: str,
        rules: TableRules,
        prune: Callable[[str], bool] = nothing,
        *,
        leave: Collection[str] = (),
    ) -> tuple[str, ...]:
        standing = self.kernel.chains(family, table)
        plan = plan_ensure(standing, rules, prune=prune, leave=leave)
        return self._apply(family, table, plan)

    def change(
        self,
        family: str,
        table: str,
        chains: Mapping[str, tuple[str, ...]],
        delete: Iterable[str] = (),
    ) -> None:
        self._apply(family, table, plan_change(chains, delete))

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        self._apply(family, table, plan_remove(self.kernel.chains(family, table), chains))

    def counters(self, family: str, table: str, chains: Iterable[str]) -> dict[str, Counters]:
        standing = self.kernel.chains(family, table)
        counted = self.kernel.counted
        return {
            name: counted.get((family, table, name), ((0, 0),) * len(standing[name]))
            for name in chains
            if name in standing
        }

    def random_fully(self) -> bool:
        return self._random_fully

    def close(self) -> None:
        self.closed = True

    def _apply(self, family: str, table: str, plan: Plan) -> tuple[str, ...]:
        self.writes += len(plan.changes)
        if plan.lines:
            self.kernel.restore(family, table, plan.lines)
        return plan.changes
