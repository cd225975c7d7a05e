"""Tables of nft(8) that are not iptables': what they drop is dropped, whatever ours accepts. Pure.

A verdict of accept ends one table's chain, not the way of the packet: that of the next base chain
at the same hook is asked, too (nft(8), VERDICT STATEMENTS).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kube_router_py.doctor.findings import Finding, found
from kube_router_py.doctor.leftovers import is_elsewhere

Object = Mapping[str, Any]

_OF_IPTABLES = frozenset(("filter", "nat", "mangle", "raw", "security"))
_HOOKS = frozenset(("prerouting", "input", "forward", "output", "postrouting"))
_LINKS = tuple({"meta": {"key": key}} for key in ("iif", "oif", "iifname", "oifname"))
# kube-proxy's is told of by itself.
_KNOWN = frozenset(("kube-proxy",))


def foreign_tables(listed: Object) -> tuple[tuple[str, str], ...]:
    """(family, name) of tables that iptables does not show, in ``nft -j list tables``."""
    return tuple(
        (each["family"], each["name"])
        for each in _of_kind(listed, "table")
        if each["family"] in ("ip", "ip6", "inet")
        and each["name"] not in _KNOWN
        and not (each["family"] != "inet" and each["name"] in _OF_IPTABLES)
    )


def drops(listed: Object) -> Iterator[Finding]:
    """Judge ``nft -j list table``: base chains whose policy is drop, and rules in them, or in
    chains they jump to, that drop or reject."""
    rules: dict[str, list[Object]] = {}
    for rule in _of_kind(listed, "rule"):
        rules.setdefault(str(rule.get("chain")), []).append(rule)
    for chain in _of_kind(listed, "chain"):
        if chain.get("type") != "filter" or chain.get("hook") not in _HOOKS:
            continue
        where = f"nft {chain['family']} {chain['table']}/{chain['name']}"
        if chain.get("policy") == "drop":
            yield found(
                "policy-drop",
                where,
                f"the policy of this chain at hook {chain['hook']} is drop: what its rules do not "
                "accept is dropped, though the agent's rules accept it",
                "accept there what pods, Services and nodes send to each other (firewalld: put the "
                "pods' and Services' networks into the zone trusted)",
            )
        if _drops(str(chain["name"]), rules, set()):
            yield found(
                "foreign-drop",
                where,
                f"rules of this chain at hook {chain['hook']}, or of chains it jumps to, drop or "
                "reject packets, though the agent's rules accept them",
                "see nft list table "
                f"{chain['family']} {chain['table']}; remove what is not meant for pods, Services "
                "and nodes",
            )


def _drops(chain: str, rules: Mapping[str, list[Object]], seen: set[str]) -> bool:
    if chain in seen:
        return False
    seen.add(chain)
    for rule in rules.get(chain, ()):
        expressions = [each for each in rule.get("expr") or () if isinstance(each, Mapping)]
        is_drop = any("drop" in each or "reject" in each for each in expressions)
        if is_drop and not _is_harmless(expressions):
            return True
        for each in expressions:
            leads = each.get("jump") or each.get("goto")
            if isinstance(leads, Mapping) and _drops(str(leads.get("target")), rules, seen):
                return True
    return False


def _is_harmless(expressions: Iterable[Object]) -> bool:
    """Only what conntrack calls invalid is dropped, or what is of a bridge that is others'."""
    for each in expressions:
        match = each.get("match")
        if not isinstance(match, Mapping):
            continue
        left, right = match.get("left"), match.get("right")
        if left == {"ct": {"key": "state"}}:
            return right in ("invalid", ["invalid"])
        is_of_link = left in _LINKS and match.get("op") == "==" and isinstance(right, str)
        if is_of_link and is_elsewhere(str(right), is_negated=False):
            return True
    return False


def _of_kind(listed: Object, kind: str) -> Iterator[Object]:
    for each in listed.get("nftables") or ():
        if isinstance(each, Mapping) and isinstance(each.get(kind), Mapping):
            yield each[kind]
