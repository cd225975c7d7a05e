"""Finding the rules of policies that the kernel refuses, so that they stop only themselves.

A kernel without the module for a match (xt_sctp, for one) refuses the whole commit that has such a
rule in it. Whoever may write policies may write thousands of such rules, so that each protocol is
tried first, by itself. What else may be in the way is tried in halves, in a chain that nothing
refers to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.firewall.chains import ALLOW, TAKE_BACK, allow_rules
from kube_router_py.firewall.names import POLICY_CHAIN
from kube_router_py.kernel.ports import Iptables

_TABLE = "filter"
_TRIAL = f"{POLICY_CHAIN}TRIAL"
_PROTOCOLS = ("tcp", "udp", "sctp")
# More than these are no matter of single rules.
_MOST = 50


def refused_rules(
    iptables: Iptables, family: str, chains: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The rules of policies' chains that cannot be had, each with the kernel's complaint.

    Empty where it is not for the rules of policies that a commit fails. Raises KernelError.
    """
    rules = {rule for name, rules in chains.items() if _is_policy(name) for rule in rules}
    rules.discard(TAKE_BACK)
    found: dict[str, str] = {}
    single = 0
    try:
        for protocol in _PROTOCOLS:
            match = f"-p {protocol} -m {protocol} "
            asking = {rule for rule in rules if rule.startswith(match)}
            trial = [f"{match}--dport 1 -g {ALLOW}"] if asking else []
            for _, complaint in _search(iptables, family, trial):
                found |= dict.fromkeys(asking, complaint)
                rules -= asking
        for rule, complaint in _search(iptables, family, sorted(rules)):
            found[rule] = complaint
            single += 1
            if single > _MOST:
                return {}
    finally:
        iptables.change(family, _TABLE, {}, (_TRIAL,))
    return found


def _is_policy(chain: str) -> bool:
    return chain.startswith(POLICY_CHAIN) and chain != ALLOW


def _search(iptables: Iptables, family: str, rules: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not rules:
        return
    try:
        iptables.change(family, _TABLE, {ALLOW: allow_rules(), _TRIAL: tuple(rules)})
        return
    except StateUnknownError:
        raise
    except KernelError as error:
        if len(rules) == 1:
            yield rules[0], str(error)
            return
    middle = len(rules) // 2
    for half in (rules[:middle], rules[middle:]):
        yield from _search(iptables, family, half)


def without(rules: Iterable[str], refused: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(rule for rule in rules if rule not in refused)


def told(refused: Mapping[str, str]) -> Iterator[str]:
    """Refused rules in words: one of each complaint, and how many more there are."""
    by_complaint: dict[str, list[str]] = {}
    for rule, complaint in refused.items():
        by_complaint.setdefault(complaint, []).append(rule)
    for complaint, rules in by_complaint.items():
        more = f" (and {len(rules) - 1} more like it)" if rules[1:] else ""
        yield f"the rule {min(rules)!r} admits nobody{more}: {complaint}"
