"""The iptables rules of the service proxy: few, the same for every Service, matching sets.

Where they stand. A packet to a service address comes to filter INPUT before IPVS takes it (which
does so at the end of LOCAL_IN); what the node itself sends is taken by IPVS in OUTPUT, where only
the tables raw and mangle come before.

    filter INPUT, first      KUBE-ROUTER-GUARD      who is kept from a Service: traffic policies
                                                    without a local endpoint, source ranges
                             KUBE-ROUTER-SERVICES   to a VIP, but no port that is served: REJECT
    filter INPUT, last       KUBE-ROUTER-ACCEPT     what is served, under a policy of DROP too;
                                                    behind the administrator's rules, which decide
    mangle OUTPUT            KUBE-ROUTER-GUARD-OUT  the guard for the node's own connections
    nat POSTROUTING          KUBE-ROUTER-HAIRPIN    a pod that reaches itself gets another source
                             KUBE-ROUTER-MASQ       source NAT (see ``masquerade``)

A guard looks at new connections only: a client that was there before a policy changed, or before
the last local endpoint began to drain, keeps what it has. What conntrack does not know (NOTRACK)
counts as new. Pure.
"""

import socket

from msgspec import Struct

from kube_router_py.kernel.ports import IpsetSpec, Jump, TableRules
from kube_router_py.marks import DSR_MARK, DSR_MARK_MASK
from kube_router_py.problem import Problem
from kube_router_py.proxy import dsr, masquerade
from kube_router_py.proxy.packet_sets import FAMILIES, SETS, FamilySets
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.proxy.surroundings import Surroundings

GUARD = "KUBE-ROUTER-GUARD"
GUARD_OUT = "KUBE-ROUTER-GUARD-OUT"
SERVICES = "KUBE-ROUTER-SERVICES"
ACCEPT = "KUBE-ROUTER-ACCEPT"

# Errors that concern a connection, pings, and what IPv6 finds its neighbours by (RFC 4890, 4.4).
_ICMP = {
    int(socket.AF_INET): [f"-p icmp -m icmp --icmp-type {kind}" for kind in (3, 8, 11)],
    int(socket.AF_INET6): [
        f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind}" for kind in (1, 2, 3, 4, 128, 129, 135, 136)
    ],
}
_REJECT = {
    int(socket.AF_INET): "-j REJECT --reject-with icmp-port-unreachable",
    int(socket.AF_INET6): "-j REJECT --reject-with icmp6-port-unreachable",
}


class FamilyRules(Struct, frozen=True):
    """What one family (``inet``, ``inet6``) needs: sets first, then the rules that refer to them.

    ``entries`` are those of the sets that follow nodes and pods.
    """

    family: str
    sets: FamilySets
    entries: dict[IpsetSpec, frozenset[str]]
    tables: dict[str, TableRules]


def owned_rules() -> dict[str, tuple[str, ...]]:
    """The chains that the service proxy makes, by table; the same in both families."""
    return {
        "filter": (GUARD, SERVICES, ACCEPT),
        "mangle": (GUARD_OUT, dsr.CHAIN),
        "nat": (masquerade.HAIRPIN, masquerade.CHAIN),
    }


def is_own_chain(name: str) -> bool:
    """Whether a chain is the service proxy's, in whatever table, by its name."""
    return any(name in chains for chains in owned_rules().values())


def marker_chains() -> tuple[str, ...]:
    """Those, of each table, that tell that this service proxy was here: the names of others
    kube-router has, too."""
    return (GUARD, GUARD_OUT, dsr.CHAIN, masquerade.CHAIN)


def compile_rules(
    node: ThisNode, around: Surroundings, options: ProxyOptions, *, random_fully: bool
) -> tuple[tuple[FamilyRules, ...], tuple[Problem, ...]]:
    """Rules and sets of every enabled family, and what keeps them from being complete."""
    found: list[FamilyRules] = []
    problems: list[Problem] = []
    for family in options.families:
        sets = SETS[family]
        nat, missing = masquerade.compile_masquerade(
            node, around, options, family, random_fully=random_fully
        )
        problems += missing
        local = masquerade.local_entries(node, around, family)
        entries = {
            # Also where no Node tells of this node, or of the addresses of its pods.
            sets.cluster: around.cluster.get(family, frozenset()) | local,
            sets.local: local,
            sets.local_ips: around.addresses.get(family, frozenset()),
        }
        tables = {"filter": _filter(family, options), "mangle": _mangle(sets), "nat": nat}
        found.append(FamilyRules(FAMILIES[family], sets, entries, tables))
    return tuple(found), tuple(problems)


def _filter(family: int, options: ProxyOptions) -> TableRules:
    sets = SETS[family]
    served = f"-m set --match-set {sets.svip_port.name} dst,dst"
    to_vip = f"-m set --match-set {sets.svip.name} dst"
    chains = {
        GUARD: (
            _KNOWN,
            _nobody(sets),
            f"-m set --match-set {sets.no_local.name} dst,dst "
            f"-m set ! --match-set {sets.cluster.name} src -j DROP",
            _outside_of_ranges(sets),
        ),
        SERVICES: (
            *(f"{icmp} -j RETURN" for icmp in _ICMP[family]),
            f"{served} -j RETURN",
            # The address came to a link of this node by other hands: its ports are theirs.
            f"-m set --match-set {sets.local_ips.name} dst -j RETURN",
            _REJECT[family],
        ),
        ACCEPT: (
            f"{served} -j ACCEPT",
            *(f"{icmp} {to_vip} -j ACCEPT" for icmp in _ICMP[family]),
            f"-m mark --mark {DSR_MARK:#x}/{DSR_MARK_MASK:#x} -j ACCEPT",
        ),
    }
    jumps = [Jump("INPUT", f"-j {GUARD}", "first")]
    if options.permit_service_ports:
        jumps.append(Jump("INPUT", f"{to_vip} -j {SERVICES}", "first"))
        jumps.append(Jump("INPUT", f"-j {ACCEPT}", "last"))
    return TableRules(chains, tuple(jumps))


def _mangle(sets: FamilySets) -> TableRules:
    rules = (_KNOWN, _nobody(sets), _outside_of_ranges(sets))
    return TableRules({GUARD_OUT: rules}, (Jump("OUTPUT", f"-j {GUARD_OUT}", "first"),))


_KNOWN = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"


def _nobody(sets: FamilySets) -> str:
    return f"-m set --match-set {sets.drop.name} dst,dst -j DROP"


def _outside_of_ranges(sets: FamilySets) -> str:
    return (
        f"-m set --match-set {sets.limited.name} dst,dst "
        f"-m set ! --match-set {sets.allowed.name} dst,dst,src -j DROP"
    )
