"""iptables: own chains and jumps, compared with iptables-save, changed by one iptables-restore.

Works with both variants of the program (nft and legacy). ``iptables-restore --noflush`` touches
only the chains it is told of, leaves the counters of all other rules, and takes effect as a whole
or not at all.
"""

import logging
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kube_router_py.errors import KernelError
from kube_router_py.kernel import iptables_counters
from kube_router_py.kernel.iptables_plan import (
    Chains,
    Plan,
    nothing,
    plan_change,
    plan_ensure,
    plan_remove,
)
from kube_router_py.kernel.iptables_variant import VARIANTS as VARIANTS
from kube_router_py.kernel.iptables_variant import choose_variant as choose_variant
from kube_router_py.kernel.iptables_variant import is_legacy
from kube_router_py.kernel.iptables_variant import program_name as program_name
from kube_router_py.kernel.ports import Counters, Observe, TableRules, unobserved
from kube_router_py.kernel.program import Finished, run
from kube_router_py.kernel.rule_text import Rule, canonical, parse_table, words

log = logging.getLogger(__name__)

# Seconds that the legacy variant itself waits for the xtables lock; the nft variant needs none.
_LOCK_WAIT_S = 5
_TIMEOUT_S = 30.0
_ATTEMPTS = 3
# Exit code of both variants where a lock or another commit was in the way (XT_RESOURCE_PROBLEM).
_BUSY = 4
_IP = {"inet": "v4", "inet6": "v6"}
_BAD_PARAMETER = 2
# Above this many differently spelt rules in a chain, rewriting it is the cheaper answer.
_CHECKS_MAX = 64

_UNREADABLE = re.compile(r"able `\w+' is incompatible|Parsing nftables rule failed")


class _ContendedError(KernelError):
    """Somebody else held the lock or changed the table: read and plan again."""


class UnreadableTableError(KernelError):
    """The table holds rules of nft(8), which iptables cannot show."""


class _Known(Struct):
    """What is known of a chain: rules that were found equal (as wanted, as printed), and
    spellings that the kernel confirmed to be the same rule, by canonical form."""

    equal: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    spellings: dict[Rule, Rule] = field(default_factory=dict)


class IptablesProgram:
    """``ports.Iptables`` of the calling thread's network namespace.

    ``variant`` is the name of the IPv4 program without suffix, one of VARIANTS.
    """

    def __init__(self, variant: str = "iptables") -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        self.writes = 0
        self.variant = variant
        self.observe: Observe = unobserved
        self._random_fully: bool | None = None
        self._is_legacy: bool | None = None
        self._known: dict[tuple[str, str], dict[str, _Known]] = {}

    def ensure(
        self,
        family: str,
        table: str,
        rules: TableRules,
        prune: Callable[[str], bool] = nothing,
        *,
        leave: Collection[str] = (),
    ) -> tuple[str, ...]:
        """Make own chains and jumps stand as given; returns what was changed, in words.

        ``first`` and ``last`` are meant among foreign rules: several loops of the agent can be
        first in the same chain, in whatever order. Raises KernelError, with the line of the
        rule that was refused; then nothing has changed.
        """

        def same(chain: str, wanted: Sequence[str], standing: Sequence[str]) -> bool:
            return self._same(family, table, chain, tuple(wanted), tuple(standing))

        return self._converge(
            family,
            table,
            lambda chains: plan_ensure(chains, rules, same, prune=prune, leave=leave),
        )

    def change(
        self,
        family: str,
        table: str,
        chains: Mapping[str, tuple[str, ...]],
        delete: Iterable[str] = (),
    ) -> None:
        """Rewrite own chains and delete others in one step, without reading the table.

        One to be deleted that does not exist is no error. Raises KernelError with the rule that
        was refused; nothing has changed then.
        """
        plan = plan_change(chains, delete)
        if plan.lines:
            _retrying()(self._commit, family, table, plan)

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        """Remove own chains and every jump to them; what is not there is no error."""
        names = tuple(chains)
        self._converge(family, table, lambda standing: plan_remove(standing, names))

    def chains(self, family: str, table: str) -> Chains:
        """All chains of a table with their rules as iptables-save prints them."""
        return self._read(family, table)

    def counters(self, family: str, table: str, chains: Iterable[str]) -> dict[str, Counters]:
        """Counters of the rules of these chains; those that do not exist are left out."""
        chains = tuple(chains)
        if self._is_legacy is None:
            self._is_legacy = is_legacy(self.variant)
        if self._is_legacy and (iptc := iptables_counters.library()) is not None:
            try:
                return iptables_counters.read_counters(iptc, family, table, chains)
            except KernelError as error:
                log.debug("asking iptables-save for counters reason=%r", str(error))
        return iptables_counters.parse_counters(self._save(family, table, "-c"), table, chains)

    def random_fully(self) -> bool:
        """Whether SNAT and MASQUERADE know --random-fully here (iptables 1.6.2, Linux 3.14).

        Asked once, by a commit that is only tested.
        """
        if self._random_fully is None:
            trial = (
                "*nat\n:KUBE-ROUTER-TRIAL - [0:0]\n"
                "-A KUBE-ROUTER-TRIAL -j MASQUERADE --random-fully\n"
                "-A KUBE-ROUTER-TRIAL -j SNAT --to-source 192.0.2.1 --random-fully\nCOMMIT\n"
            )
            done = self._restore("inet", trial, "--test")
            if done.code not in (0, _BAD_PARAMETER):
                raise KernelError(f"{self._program('inet')}-restore --test: {done.complaint}")
            self._random_fully = done.code == 0
        return self._random_fully

    def same(
        self, family: str, table: str, chain: str, wanted: Sequence[str], standing: Sequence[str]
    ) -> bool:
        """Whether rules that stand in a chain are those wanted, in whatever spelling."""
        return self._same(family, table, chain, tuple(wanted), tuple(standing))

    def close(self) -> None:
        """Nothing to release: every call runs a program of its own."""

    def _program(self, family: str) -> str:
        return program_name(self.variant, family)

    def _converge(
        self, family: str, table: str, plan_for: Callable[[Chains], Plan]
    ) -> tuple[str, ...]:
        return _retrying()(self._attempt, family, table, plan_for)

    def _attempt(
        self, family: str, table: str, plan_for: Callable[[Chains], Plan]
    ) -> tuple[str, ...]:
        before = self._read(family, table)
        plan = plan_for(before)
        if not plan.lines:
            return ()
        try:
            self._commit(family, table, plan)
        except _ContendedError:
            raise
        except KernelError as error:
            if self._read(family, table) != before:
                raise _ContendedError(str(error)) from error
            raise
        return plan.changes

    def _commit(self, family: str, table: str, plan: Plan) -> None:
        """Carry out a plan, all of it or nothing."""
        self.writes += len(plan.changes)
        text = "\n".join((f"*{table}", *plan.lines, "COMMIT", ""))
        done = self._restore(family, text)
        if done.code == 0:
            return
        message = f"{self._program(family)}-restore of table {table}: {_blame(done, text)}"
        raise (_ContendedError if done.code == _BUSY else KernelError)(message)

    def _read(self, family: str, table: str) -> Chains:
        chains = parse_table(self._save(family, table), table)
        known = self._known.get((family, table), {})
        for name in known.keys() - chains.keys():
            del known[name]
        return chains

    def _save(self, family: str, table: str, *options: str) -> str:
        command = [f"{self._program(family)}-save", "-t", table, *options]
        began = time.monotonic()
        done = run(command, timeout_s=_TIMEOUT_S)
        self.observe(f"iptables_{_IP[family]}_save", time.monotonic() - began)
        if _UNREADABLE.search(done.stdout + done.stderr):
            raise UnreadableTableError(
                f"table {table} holds rules that {command[0]} cannot read; they were written by "
                "nft(8) or a newer iptables, use that version or delete them"
            )
        if done.code != 0:
            raise KernelError(f"{' '.join(command)}: {done.complaint}")
        return done.stdout

    def _restore(self, family: str, text: str, *options: str) -> Finished:
        command = [f"{self._program(family)}-restore", "--noflush", "-w", str(_LOCK_WAIT_S)]
        began = time.monotonic()
        done = run([*command, *options], text, timeout_s=_TIMEOUT_S, writes=not options)
        if not options:
            self.observe(f"iptables_{_IP[family]}_restore", time.monotonic() - began)
        return done

    def _same(
        self,
        family: str,
        table: str,
        chain: str,
        wanted: tuple[str, ...],
        standing: tuple[str, ...],
    ) -> bool:
        """Whether rules are equal, asking the kernel about spellings that are new to us.

        Only rules in the same place that are found nowhere else in the chain are asked about.
        What was found equal once is not looked at again while it is printed alike.
        """
        if wanted == standing:
            return True
        if len(wanted) != len(standing):
            return False
        known = self._known.setdefault((family, table), {}).setdefault(chain, _Known())
        if known.equal == (wanted, standing):
            return True
        unknown: list[tuple[str, Rule, Rule]] = []
        for text, found in zip(wanted, standing, strict=True):
            if text == found:
                continue
            form, printed = canonical(text), canonical(found)
            if form != printed and known.spellings.get(form) != printed:
                unknown.append((text, form, printed))
        if unknown:
            everywhere = set(map(canonical, standing))
            if len(unknown) > _CHECKS_MAX or any(form in everywhere for _, form, _ in unknown):
                return False
            if not all(self._stands(family, table, chain, text) for text, _, _ in unknown):
                return False
            known.spellings.update({form: printed for _, form, printed in unknown})
        known.equal = (wanted, standing)
        return True

    def _stands(self, family: str, table: str, chain: str, rule: str) -> bool:
        command = [self._program(family), "-w", str(_LOCK_WAIT_S), "-t", table, "-C", chain]
        return run([*command, *words(rule)], timeout_s=_TIMEOUT_S).code == 0


def _retrying() -> Retrying:
    return Retrying(
        retry=retry_if_exception_type(_ContendedError),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.05, max=0.5),
        reraise=True,
    )


def _blame(done: Finished, text: str) -> str:
    """The program's complaint with the line it is about."""
    lines = text.splitlines()
    found = re.search(r"line:? (\d+)", done.stderr)
    number = int(found.group(1)) if found else 0
    where = f" ({shlex.quote(lines[number - 1])})" if 0 < number <= len(lines) else ""
    return f"{done.complaint or f'exit code {done.code}'}{where}"
