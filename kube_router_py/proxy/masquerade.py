"""Source NAT for load-balanced traffic whose reply would otherwise take another way.

IPVS rewrites the destination only; the reply must come back through this node to be rewritten
again. It does by itself where one end is here:

    client            backend          reply
    pod of this node  anywhere         to a pod of this node: comes back             keep
    this node         anywhere         to an address of this node: comes back        keep
    anyone            pod of this node leaves through this node                      keep
    anyone            this node        (host network) leaves from here               keep
    anyone else       another node     would go to the client directly               source NAT

So "here" is one set per family, this node's pod CIDRs and its address, and one rule. A set instead
of a rule per CIDR: with two rules, traffic of the one CIDR matches the rule of the other. Pure.
"""

import socket

from msgspec import Struct

from kube_router_py.kernel.ports import IpsetSpec, Jump, TableRules
from kube_router_py.problem import Problem
from kube_router_py.proxy.settings import FAMILY_NAMES, ProxyOptions, ThisNode

TABLE = "nat"
CHAIN = "KUBE-ROUTER-MASQ"
# As iptables-save prints it: xt_ipvs does not print --ipvs beside any other of its options.
_JUMP = Jump("POSTROUTING", f"-m ipvs --vdir ORIGINAL --vmethod MASQ -j {CHAIN}", "first")

_SETS = {
    int(socket.AF_INET): IpsetSpec("kube-router-local-cidrs", "hash:net", "inet"),
    int(socket.AF_INET6): IpsetSpec("inet6:kube-router-local-cidrs", "hash:net", "inet6"),
}


class Masquerade(Struct, frozen=True):
    """What one family needs: a set (put first) and the rules that refer to it."""

    family: str
    set: IpsetSpec
    entries: frozenset[str]
    rules: TableRules


def compile_masquerade(
    node: ThisNode, options: ProxyOptions, *, random_fully: bool
) -> tuple[tuple[Masquerade, ...], tuple[Problem, ...]]:
    """The source NAT of every enabled family, and what keeps it from being complete."""
    found: list[Masquerade] = []
    problems: list[Problem] = []
    for family in options.families:
        name = FAMILY_NAMES[family]
        spec = _SETS[family]
        packed = node.addresses.get(family)
        cidrs = node.pod_cidrs.get(family, ())
        rules: tuple[str, ...] = ()
        entries = set(cidrs)
        if packed:
            address = socket.inet_ntop(family, packed)
            entries.add(address)
            rules = (_rule(spec.name, address, options, random_fully=random_fully),)
            if not cidrs and not options.masquerade_all:
                problems.append(
                    Problem(
                        f"Node {node.name}",
                        "spec.podCIDRs",
                        f"no {name} pod CIDR: clients of this node's pods appear with the node's "
                        "address; let the controller manager allocate node CIDRs",
                    )
                )
        else:
            problems.append(
                Problem(
                    f"Node {node.name}",
                    "status.addresses",
                    f"no {name} address: no NodePorts and no source NAT for {name}",
                )
            )
        found.append(
            Masquerade(spec.family, spec, frozenset(entries), TableRules({CHAIN: rules}, (_JUMP,)))
        )
    return tuple(found), tuple(problems)


def _rule(set_name: str, address: str, options: ProxyOptions, *, random_fully: bool) -> str:
    snat = f"-j SNAT --to-source {address}" + (" --random-fully" if random_fully else "")
    if options.masquerade_all:
        return snat
    return f"-m set ! --match-set {set_name} src -m set ! --match-set {set_name} dst {snat}"
