"""iptables: own chains and jumps, compared with iptables-save, changed by one iptables-restore.

Works with both variants of the program (nft and legacy), of which a node uses one; rules of the
other variant stay in force beside it. ``iptables-restore --noflush`` touches only the chains it is
told of, leaves the counters of all other rules, and takes effect as a whole or not at all.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kube_router_py.errors import KernelError
from kube_router_py.kernel.iptables_plan import Chains, Plan, plan_ensure, plan_remove
from kube_router_py.kernel.ports import TableRules
from kube_router_py.kernel.program import Finished, run
from kube_router_py.kernel.rule_text import Rule, canonical, parse_table, words

VARIANTS = ("iptables", "iptables-nft", "iptables-legacy")

# Seconds that the legacy variant itself waits for the xtables lock; the nft variant needs none.
_LOCK_WAIT_S = 5
_TIMEOUT_S = 30.0
_ATTEMPTS = 3
# Exit code of both variants where a lock or another commit was in the way (XT_RESOURCE_PROBLEM).
_BUSY = 4
_BAD_PARAMETER = 2
# Above this many differently spelt rules in a chain, rewriting it is the cheaper answer.
_CHECKS_MAX = 64

# Chains that the kubelet and kubeadm's tools create to show which variant the node uses.
_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")


class _ContendedError(KernelError):
    """Somebody else held the lock or changed the table: read and plan again."""


def choose_variant(names_file: str = "/proc/thread-self/net/ip_tables_names") -> str:
    """The variant whose tables the kubelet wrote to, or else the node's default, ``iptables``.

    The legacy tables are looked at only where they exist: looking would create them.
    """
    candidates = ["iptables-nft"]
    try:
        if "mangle" in Path(names_file).read_text().split():
            candidates.append("iptables-legacy")
    except OSError:  # the kernel has no legacy tables
        pass
    for variant in candidates:
        try:
            saved = run([f"{variant}-save", "-t", "mangle"], timeout_s=_TIMEOUT_S)
        except KernelError:  # not installed
            continue
        if any(hint in saved.stdout for hint in _HINTS):
            return variant
    return "iptables"


def program_name(variant: str, family: str) -> str:
    """The program of a variant for a family: ``ip6tables-nft`` for (iptables-nft, inet6)."""
    return variant if family == "inet" else variant.replace("iptables", "ip6tables", 1)


class IptablesProgram:
    """``ports.Iptables`` of the calling thread's network namespace.

    ``variant`` is the name of the IPv4 program without suffix, one of VARIANTS.
    """

    def __init__(self, variant: str = "iptables") -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        self.writes = 0
        self._variant = variant
        self._random_fully: bool | None = None
        # Spellings that the kernel confirmed to be the same rule, by place and canonical form.
        self._spellings: dict[tuple[str, str, str, Rule], Rule] = {}

    def ensure(self, family: str, table: str, rules: TableRules) -> tuple[str, ...]:
        """Make own chains and jumps stand as given; returns what was changed, in words.

        ``first`` and ``last`` are meant among foreign rules: several loops of the agent can be
        first in the same chain, in whatever order. Raises KernelError, with the line of the
        rule that was refused; then nothing has changed.
        """

        def same(chain: str, wanted: Sequence[str], standing: Sequence[str]) -> bool:
            return self._same(family, table, chain, wanted, standing)

        return self._converge(family, table, lambda chains: plan_ensure(chains, rules, same))

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        """Remove own chains and every jump to them; what is not there is no error."""
        names = tuple(chains)
        self._converge(family, table, lambda standing: plan_remove(standing, names))

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

    def close(self) -> None:
        """Nothing to release: every call runs a program of its own."""

    def _program(self, family: str) -> str:
        return (
            self._variant if family == "inet" else self._variant.replace("iptables", "ip6tables", 1)
        )

    def _converge(
        self, family: str, table: str, plan_for: Callable[[Chains], Plan]
    ) -> tuple[str, ...]:
        retrying = Retrying(
            retry=retry_if_exception_type(_ContendedError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            reraise=True,
        )
        return retrying(self._attempt, family, table, plan_for)

    def _attempt(
        self, family: str, table: str, plan_for: Callable[[Chains], Plan]
    ) -> tuple[str, ...]:
        before = self._read(family, table)
        plan = plan_for(before)
        if not plan.lines:
            return ()
        self.writes += len(plan.changes)
        text = "\n".join((f"*{table}", *plan.lines, "COMMIT", ""))
        done = self._restore(family, text)
        if done.code == 0:
            return plan.changes
        message = f"{self._program(family)}-restore of table {table}: {_blame(done, text)}"
        if done.code == _BUSY or self._read(family, table) != before:
            raise _ContendedError(message)
        raise KernelError(message)

    def _read(self, family: str, table: str) -> Chains:
        command = [f"{self._program(family)}-save", "-t", table]
        done = run(command, timeout_s=_TIMEOUT_S)
        if f"able `{table}' is incompatible" in done.stdout + done.stderr:
            raise KernelError(
                f"table {table} holds rules that {command[0]} cannot read; they were written by "
                "nft(8) or a newer iptables, use that version or delete them"
            )
        if done.code != 0:
            raise KernelError(f"{' '.join(command)}: {done.complaint}")
        return parse_table(done.stdout, table)

    def _restore(self, family: str, text: str, *options: str) -> Finished:
        command = [f"{self._program(family)}-restore", "--noflush", "-w", str(_LOCK_WAIT_S)]
        return run([*command, *options], text, timeout_s=_TIMEOUT_S, writes=not options)

    def _same(
        self, family: str, table: str, chain: str, wanted: Sequence[str], standing: Sequence[str]
    ) -> bool:
        """Whether rules are equal, asking the kernel about spellings that are new to us.

        Only rules in the same place that are found nowhere else in the chain are asked about.
        """
        if len(wanted) != len(standing):
            return False
        printed = [canonical(rule) for rule in standing]
        unknown: list[tuple[str, Rule, Rule]] = []
        for text, found in zip(wanted, printed, strict=True):
            form = canonical(text)
            if form != found and self._spellings.get((family, table, chain, form)) != found:
                unknown.append((text, form, found))
        everywhere = set(printed)
        if len(unknown) > _CHECKS_MAX or any(form in everywhere for _, form, _ in unknown):
            return False
        if not all(self._stands(family, table, chain, text) for text, _, _ in unknown):
            return False
        for _, form, found in unknown:
            self._spellings[family, table, chain, form] = found
        return True

    def _stands(self, family: str, table: str, chain: str, rule: str) -> bool:
        command = [self._program(family), "-w", str(_LOCK_WAIT_S), "-t", table, "-C", chain]
        return run([*command, *words(rule)], timeout_s=_TIMEOUT_S).code == 0


def _blame(done: Finished, text: str) -> str:
    """The program's complaint with the line it is about."""
    lines = text.splitlines()
    found = re.search(r"line:? (\d+)", done.stderr)
    number = int(found.group(1)) if found else 0
    where = f" ({shlex.quote(lines[number - 1])})" if 0 < number <= len(lines) else ""
    return f"{done.complaint or f'exit code {done.code}'}{where}"
