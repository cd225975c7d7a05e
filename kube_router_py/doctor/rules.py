"""iptables' rules of this node, ours and those of others: who decides before us. Pure."""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

from msgspec import Struct

from kube_router_py.doctor.findings import Finding, found
from kube_router_py.doctor.leftovers import is_elsewhere, is_policy_chain
from kube_router_py.firewall.frame import JUMPS as FIREWALL_JUMPS
from kube_router_py.firewall.frame import frame_sets
from kube_router_py.firewall.frame import is_own_chain as is_firewall_chain
from kube_router_py.kernel.kube_proxy import is_chain as is_kube_proxy_chain
from kube_router_py.kernel.rule_text import canonical, parse_table, target, words
from kube_router_py.options import Options
from kube_router_py.proxy.packet_sets import SETS
from kube_router_py.proxy.service_rules import ACCEPT as PROXY_ACCEPT
from kube_router_py.proxy.service_rules import GUARD, GUARD_OUT
from kube_router_py.proxy.service_rules import is_own_chain as is_proxy_chain
from kube_router_py.routing.egress import node_ips, pod_subnets
from kube_router_py.routing.egress import owned_rules as routing_rules

PROGRAMS = {"inet": "iptables", "inet6": "ip6tables"}
_FILTERING = ("raw", "mangle", "filter", "security")
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_DROPS = ("DROP", "REJECT")
_NO_VERDICT = ("LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "TCPMSS", "")
# The kubelet's own: it keeps strangers from 127.0.0.0/8, and makes chains that show its variant.
_OF_KUBELET = ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT")
# Chains by which other pod networks accept what pods send and are sent.
_OF_POD_NETWORKS = ("FLANNEL-FWD", "cali-FORWARD", "CILIUM_FORWARD")
_DEEPEST = 5
_ROUTING = frozenset(name for names in routing_rules().values() for name in names)


class Table(Struct, frozen=True):
    """One table as iptables-save prints it: rules by chain, policies of the built-in ones."""

    family: str
    name: str
    chains: Mapping[str, tuple[str, ...]]
    policies: Mapping[str, str] = {}


def parse_saved(text: str, family: str) -> tuple[Table, ...]:
    """All tables in the output of iptables-save or ip6tables-save."""
    names = [line[1:].strip() for line in text.splitlines() if line.startswith("*")]
    return tuple(
        Table(family, name, parse_table(text, name), _policies(text, name)) for name in names
    )


def _policies(text: str, table: str) -> dict[str, str]:
    found_: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line[1:].strip() == table
        elif inside and line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            if policy != "-":
                found_[chain] = policy
    return found_


def is_own_chain(name: str) -> bool:
    """Whether a chain is of any part of the agent's."""
    return is_firewall_chain(name) or is_proxy_chain(name) or name in _ROUTING


def goal(rule: str) -> str:
    """Where a rule leads: a target or a chain."""
    return target(canonical(rule))


def foreign_drops(tables: Iterable[Table]) -> Iterator[Finding]:
    """Rules of others that drop what never comes to ours, or does before our verdict stands: one
    finding for each chain that has such, as fail2ban has a rule for every address."""
    for table in tables:
        if table.name not in _FILTERING:
            continue
        dropping: dict[str, dict[str, None]] = {}
        for hook in _HOOKS:
            rules = table.chains.get(hook, ())
            # In filter the administrator's rules may come behind ours: there they decide. The
            # tables before are passed by all packets.
            end = len(rules) if table.name != "filter" else _last_own(rules) + 1
            for rule in rules[:end]:
                for where, text in _drops(table, hook, rule, _DEEPEST):
                    dropping.setdefault(where, {})[text] = None
        for where, texts in dropping.items():
            program, first = PROGRAMS[table.family], next(iter(texts))
            more = f" (and {len(texts) - 1} more in this chain)" if len(texts) > 1 else ""
            yield found(
                "foreign-drop",
                f"{program} {table.name}/{where}",
                "a rule of somebody else's drops packets before the agent's rules see them: "
                f"-A {where} {first}{more}",
                f"remove it ({program} -t {table.name} -D {where} {first}) if it is not meant, or "
                "append it behind the agent's rules",
            )


def _last_own(rules: tuple[str, ...]) -> int:
    return max((n for n, rule in enumerate(rules) if is_own_chain(goal(rule))), default=-1)


def _drops(table: Table, chain: str, rule: str, depth: int) -> Iterator[tuple[str, str]]:
    leads = goal(rule)
    if leads in _DROPS:
        if not _is_harmless(rule):
            yield chain, rule
    elif depth and leads in table.chains and not _is_known(table.name, leads):
        for inner in table.chains[leads]:
            yield from _drops(table, leads, inner, depth - 1)


def _is_known(table: str, chain: str) -> bool:
    """Chains whose drops are told of elsewhere, or concern nothing of ours."""
    return (
        is_own_chain(chain)
        or chain in _OF_KUBELET
        or is_kube_proxy_chain(table, chain)
        # Its drops are policies. Where the agent enforces those or makes the pod network, that
        # it is here has a code of its own.
        or is_policy_chain(chain)
        or chain.startswith("DOCKER")
    )


def _is_harmless(rule: str) -> bool:
    """What is dropped there is no packet of pods or Services: conntrack's invalid ones, those from
    outside to the loopback, those of bridges that are others'."""
    split = words(rule)
    pairs = list(pairwise(split))
    if ("--ctstate", "INVALID") in pairs:
        return True
    if any(option == "-d" and value.startswith("127.") for option, value in pairs):
        return True
    for number, (option, value) in enumerate(pairs):
        if option in ("-i", "-o"):
            is_negated = number > 0 and split[number - 1] == "!"
            # Docker: what comes to a container, but not over its bridge.
            if is_negated and not _is_for_one_address(pairs):
                continue
            if is_elsewhere(value, is_negated=is_negated):
                return True
    return False


def _is_for_one_address(pairs: Iterable[tuple[str, str]]) -> bool:
    return any(option == "-d" and value.endswith(("/32", "/128")) for option, value in pairs)


def policies(tables: Iterable[Table]) -> Iterator[Finding]:
    """A policy of DROP is fine where our rules accept what is ours."""
    accepting: dict[str, tuple[str, ...]] = {
        "FORWARD": ("KUBE-ROUTER-ACCEPT-FWD", "KUBE-ROUTER-POD-FWD", *_OF_POD_NETWORKS),
        "INPUT": (PROXY_ACCEPT,),
    }
    for table in tables:
        for chain, policy in table.policies.items():
            if policy != "DROP" or table.name not in _FILTERING:
                continue
            leads = [goal(rule) for rule in table.chains.get(chain, ())]
            if table.name == "filter" and any(it in leads for it in accepting.get(chain, ())):
                continue
            if table.name == "filter" and "ACCEPT" in leads and chain != "FORWARD":
                continue  # an administrator's list of what may pass
            yield found(
                "policy-drop",
                f"{PROGRAMS[table.family]} {table.name}/{chain}",
                "its policy is DROP, and no rule of the agent's accepts what pods and Services "
                "need there",
                f"{PROGRAMS[table.family]} -t {table.name} -P {chain} ACCEPT, or accept in rules "
                "of your own what is to pass",
            )


class Expected(Struct, frozen=True):
    """A jump of ours: the table and chain it stands in, its goal, and whether it comes first."""

    table: str
    parent: str
    goal: str
    is_first: bool


def expected_jumps(options: Options) -> tuple[Expected, ...]:
    """Those that stand while an agent runs with these options."""
    found_: list[Expected] = []
    if options.run_firewall:
        found_ += [
            Expected("filter", jump.parent, goal(jump.rule), jump.position == "first")
            for jump in FIREWALL_JUMPS
        ]
    if options.run_service_proxy:
        found_ += [
            Expected("filter", "INPUT", GUARD, True),
            Expected("mangle", "OUTPUT", GUARD_OUT, True),
        ]
    return tuple(found_)


def own_jumps(
    tables: Iterable[Table], options: Options, families: Iterable[str]
) -> Iterator[Finding]:
    """Ours are there, and nobody else decides before those that have to come first."""
    by_name = {(each.family, each.name): each for each in tables}
    for family in families:
        told: set[tuple[str, str]] = set()
        for jump in expected_jumps(options):
            place = (jump.table, jump.parent)
            table = by_name.get((family, jump.table))
            rules = table.chains.get(jump.parent, ()) if table else ()
            leads = [goal(rule) for rule in rules]
            where = f"{PROGRAMS[family]} {jump.table}/{jump.parent}"
            if jump.goal not in leads:
                yield found(
                    "own-jump-missing",
                    where,
                    f"the agent's jump to {jump.goal} is not there: what it decides has no effect",
                    "find out who removes it (a firewall that is reloaded?); the agent puts it "
                    "back with its next comparison (--iptables-sync-period)",
                )
            elif jump.is_first and place not in told and table is not None:
                before = [
                    rule
                    for rule in rules[: leads.index(jump.goal)]
                    if _decides(table, goal(rule), is_own_chain)
                ]
                if before:
                    told.add(place)
                    yield found(
                        "own-jump-not-first",
                        where,
                        f"a rule of somebody else's comes before the agent's: {before[0]}; what it "
                        "accepts is not subject to network policies",
                        "have the other program append its rules",
                    )


def _decides(table: Table, leads: str, is_own: Callable[[str], bool]) -> bool:
    """Whether a rule that leads there may accept; those that drop are told of as foreign drops."""
    if is_own(leads) or leads in (*_NO_VERDICT, *_DROPS, *_OF_KUBELET):
        return False
    if leads in table.chains:
        return any(_decides(table, goal(rule), is_own) for rule in table.chains[leads])
    return True


def expected_sets(options: Options) -> tuple[str, ...]:
    """Names of the IPv4 sets that stand while an agent runs with these options."""
    found_: dict[str, None] = {}
    for family in ["inet"] * options.enable_ipv4 + ["inet6"] * options.enable_ipv6:
        if options.run_firewall:
            found_.update(dict.fromkeys(spec.name for spec in frame_sets(family)))
        if options.run_router and options.enable_pod_egress:
            found_.update(dict.fromkeys(s.name for s in (pod_subnets(family), node_ips(family))))
        if options.run_service_proxy:
            found_.update(dict.fromkeys(_proxy_sets(family)))
    return tuple(found_)


def _proxy_sets(family: str) -> Iterator[str]:
    sets = SETS[int(socket.AF_INET if family == "inet" else socket.AF_INET6)]
    yield sets.svip_port.name
    yield sets.svip.name


def own_sets(standing: Iterable[str], options: Options) -> Iterator[Finding]:
    there = set(standing)
    for name in expected_sets(options):
        if name not in there:
            yield found(
                "own-set-missing",
                f"ipset {name}",
                "the agent's set is not there: rules that ask for it are not, either",
                "find out who removes it (ipset destroy); the agent makes it again with its next "
                "comparison, or at once when it is restarted",
            )


def variants(own: Mapping[str, int], kubelet: Mapping[str, int], in_use: str) -> Iterator[Finding]:
    """``own`` and ``kubelet``: how many chains there are of either, by variant (nft, legacy);
    ``in_use`` is the variant that the agent uses."""
    other = "legacy" if in_use == "nft" else "nft"
    if kubelet.get(other) and not kubelet.get(in_use):
        yield found(
            "iptables-variant-mismatch",
            f"iptables-{in_use}",
            f"the agent uses iptables-{in_use}, but the kubelet has its chains in iptables-{other}",
            f"set --iptables-backend={other}, or auto; all programs of a node have to use the same",
        )
    if own.get(other):
        yield found(
            "own-chains-in-both-variants" if own.get(in_use) else "iptables-variant-mismatch",
            f"iptables-{other}",
            f"{own[other]} chains of the agent are in iptables-{other}, which it does not use (any "
            "more); they are in force all the same",
            "restart the agent, which removes them, or run kube-router-py cleanup and start it",
        )
