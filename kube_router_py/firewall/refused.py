"""Finding the rules of policies that the kernel refuses, so that they stop only themselves.

A kernel without the module for a match (xt_sctp, for one) refuses the whole commit that has such a
rule in it. The rules in question are then tried in halves in a chain that nothing refers to.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.firewall.chains import ALLOW, allow_rules
from kube_router_py.firewall.names import POLICY_CHAIN
from kube_router_py.kernel.ports import Iptables

_TABLE = "filter"
_TRIAL = f"{POLICY_CHAIN}TRIAL"
# More than these are no matter of single rules.
_MOST = 50


def refused_rules(
    iptables: Iptables, family: str, chains: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The rules of policies' chains that cannot be had, each with the kernel's complaint.

    Empty where it is not for the rules of policies that a commit fails. Raises KernelError.
    """
    rules = sorted({rule for name, rules in chains.items() if _is_policy(name) for rule in rules})
    found: dict[str, str] = {}
    try:
        for rule, complaint in _search(iptables, family, rules):
            found[rule] = complaint
            if len(found) > _MOST:
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
