"""A packet's way through the rules that stand, as far as it can be told from here. Pure.

Rules of others that refuse a packet, or send it elsewhere, are noted, and the walk goes on behind
them: what the agent's own chains say is told beside that. A rule that may match is noted, and
counts as one that does not; where it may have let the packet pass or leave a chain, whatever rules
of others say behind it is no longer sure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct, field

from kube_router_py.flow.rule_match import Packet, SetOf, Verdict, matches
from kube_router_py.kernel.iptables_plan import OWN_PREFIXES
from kube_router_py.kernel.ports_reading import Tables
from kube_router_py.kernel.rule_text import Rule, canonical

_DROPS = frozenset(("DROP", "REJECT", "SYNPROXY", "TARPIT", "STEAL"))
# Elsewhere: to another destination, or into a program that decides.
_DIVERTS = frozenset(("DNAT", "REDIRECT", "TPROXY", "NETMAP", "QUEUE", "NFQUEUE"))
_SOURCES = frozenset(("SNAT", "MASQUERADE"))
_TAKES = _DROPS | _DIVERTS | _SOURCES
# Chains of others may be a maze; what is not told from so many rules is not told.
_MOST_RULES = 20_000
_DEEPEST = 64

Ending = Literal["accept", "drop", "nat", "end"]


class Place(Struct, frozen=True):
    """A rule where it stands: ``number`` counts from 1, 0 is the policy of a built-in chain."""

    table: str
    chain: str
    number: int
    rule: str

    def __str__(self) -> str:
        if not self.number:
            return f"{self.rule} in table {self.table}"
        return f"rule {self.number} of {self.chain} in table {self.table}: {self.rule}"


class Foreign(Struct, frozen=True):
    """A rule of others that takes the packet; ``is_sure`` is False where it may."""

    place: Place
    is_sure: bool


class Fate(Struct):
    """What came of a walk through one chain of a table.

    ``ending``: ``end`` where no rule decided. ``own``: the rule of the agent's chains that refuses
    the packet, accepts it or changes its source. ``accepted``: the rule of others that accepts it.
    ``chains`` are those it went through.
    """

    ending: Ending = "end"
    own: Place | None = None
    accepted: Place | None = None
    foreign: list[Foreign] = field(default_factory=list)
    chains: set[str] = field(default_factory=set)
    mark: int = 0
    is_complete: bool = True


def is_own(chain: str) -> bool:
    """Whether a chain is one of the agent's, by its name."""
    return chain.startswith(OWN_PREFIXES)


def walk(
    tables: Tables, table: str, chain: str, packet: Packet, set_of: SetOf, mark: int = 0
) -> Fate:
    """Through a chain, built-in or own, of one table; nothing where there is no such chain."""
    chains = tables.chains.get(table, {})
    walker = _Walker(table, chains, packet, set_of, mark)
    fate = walker.fate
    outcome = walker.enter(chain, is_sure=True, depth=0)
    policy = tables.policies.get((table, chain), "ACCEPT")
    if outcome is None and policy == "DROP":
        place = Place(table, chain, 0, f"the policy of {chain} is DROP")
        fate.foreign.append(Foreign(place, is_sure=not walker.is_doubtful))
    return fate


class _Walker:
    def __init__(
        self,
        table: str,
        chains: Mapping[str, Sequence[str]],
        packet: Packet,
        set_of: SetOf,
        mark: int,
        *,
        is_stopped: bool = True,
    ) -> None:
        self._table, self._chains = table, chains
        self._packet, self._set_of = packet, set_of
        self._left, self._is_stopped = _MOST_RULES, is_stopped
        self.fate = Fate(mark=mark)
        # A rule that may match may have sealed the packet's fate.
        self.is_doubtful = False

    def enter(self, chain: str, *, is_sure: bool, depth: int) -> str | None:
        """``stop`` where the fate of a packet that gets here is sealed, None where it leaves the
        chain. ``is_sure``: it does get here, as far as the rules that may match leave it."""
        if depth > _DEEPEST:
            self.fate.is_complete = False
            return None
        self.fate.chains.add(chain)
        may_have_left = False
        for number, text in enumerate(self._chains.get(chain, ()), 1):
            self._left -= 1
            if self._left < 0:
                self.fate.is_complete = False
                return "stop"
            rule = canonical(text)
            verdict = matches(rule, self._packet, self.fate.mark, self._set_of)
            if verdict is False:
                continue
            place = Place(self._table, chain, number, text)
            said = self._do(rule, place, is_sure and not may_have_left and verdict is True, depth)
            if said is None:
                continue
            if verdict is True and said == "leave":
                return None
            if verdict is True and not may_have_left:
                return said
            may_have_left |= said == "leave"
            self.is_doubtful |= said == "stop"
            if verdict is True:
                return None
        return None

    def _do(self, rule: Rule, place: Place, is_sure: bool, depth: int) -> str | None:
        """What becomes of a packet that the rule matches: ``stop``, ``leave`` for the end of its
        chain, None for the next rule."""
        goal = rule[-1] if rule and rule[-1][0] in ("-j", "-g") else ()
        if len(goal) < 2:
            return None
        target = goal[1]
        if target in self._chains:
            said = self.enter(target, is_sure=is_sure, depth=depth + 1)
            return said or ("leave" if goal[0] == "-g" else None)
        if target == "RETURN":
            return "leave"
        if target == "MARK":
            self._set_mark(goal, is_sure=is_sure)
            return None
        if target == "ACCEPT":
            return self._accept(place, is_sure=is_sure)
        return self._take(target, place, is_sure=is_sure) if target in _TAKES else None

    def _accept(self, place: Place, *, is_sure: bool) -> str:
        if not is_sure:
            return "stop"
        self.fate.ending = "accept"
        if is_own(place.chain):
            self.fate.own = place
        else:
            self.fate.accepted = place
        return "stop"

    def _take(self, target: str, place: Place, *, is_sure: bool) -> str | None:
        if not is_own(place.chain):
            self.fate.foreign.append(Foreign(place, is_sure and not self.is_doubtful))
            return "stop" if target in _SOURCES else None
        if not is_sure or not self._is_stopped:
            return None
        self.fate.ending = "nat" if target in _SOURCES else "drop"
        self.fate.own = place
        return "stop"

    def _set_mark(self, goal: Sequence[str], *, is_sure: bool) -> None:
        if not is_sure or "--set-xmark" not in goal:
            return
        value, _, mask = goal[goal.index("--set-xmark") + 1].partition("/")
        bits = int(mask, 0) if mask else 0xFFFFFFFF
        self.fate.mark = (self.fate.mark & ~bits) ^ int(value, 0)


def leads(
    tables: Tables, table: str, chain: str, to: str, packet: Packet, set_of: SetOf
) -> Verdict:
    """Whether a chain leads a packet to another one, whatever chains of other pods, which may claim
    the same address for a moment, say before."""
    walker = _Walker(table, tables.chains.get(table, {}), packet, set_of, 0, is_stopped=False)
    walker.enter(chain, is_sure=True, depth=0)
    return to in walker.fate.chains


def before_own(
    rules: Sequence[str], is_jump: Callable[[str], bool]
) -> list[tuple[int, str]] | None:
    """The rules of others that stand before a jump of ours, with their numbers; None where there is
    no such jump."""
    others: list[tuple[int, str]] = []
    for number, text in enumerate(rules, 1):
        if is_jump(text):
            return others
        if not _leads_to_own(text):
            others.append((number, text))
    return None


def _leads_to_own(text: str) -> bool:
    rule = canonical(text)
    goal = rule[-1] if rule else ()
    return len(goal) > 1 and goal[0] in ("-j", "-g") and is_own(goal[1])
