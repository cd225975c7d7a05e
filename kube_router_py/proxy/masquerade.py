"""Source NAT for load-balanced traffic whose reply would otherwise take another way.

IPVS rewrites the destination only; the reply must come back through this node to be rewritten
again. It does by itself where one end is here:

    client            backend           reply
    pod of this node  itself            never leaves the pod                          source NAT
    pod of this node  anywhere          to a pod of this node: comes back             keep
    pod of this node  off the cluster   has no way to a pod                           source NAT
    this node         anywhere          to an address of this node: comes back        keep
    anyone            pod of this node  leaves through this node                      keep
    anyone            this node         (host network) leaves from here               keep
    anyone else       another node      would go to the client directly               source NAT

So "here" is one set per family, this node's pods and its address, and one rule. A set instead of a
rule per CIDR: with two rules, traffic of the one CIDR matches the rule of the other. Pods are known
by the node's pod CIDRs where their addresses come from these, else each by its own.

Off the cluster (an API server elsewhere, EndpointSlices written by hand) needs ``--enable-pod-
egress``, which says that pod addresses have no meaning out there, and the agent's own pod network:
another CNI has rules for it, and may give pods addresses that no Node tells of. Pure.
"""

import socket

from kube_router_py.kernel.ports import Jump, TableRules
from kube_router_py.problem import Problem
from kube_router_py.proxy.packet_sets import SETS
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.proxy.surroundings import Surroundings
from kube_router_py.services import FAMILY_NAMES

CHAIN = "KUBE-ROUTER-MASQ"
HAIRPIN = "KUBE-ROUTER-HAIRPIN"
# As iptables-save prints it: xt_ipvs does not print --ipvs beside any other of its options.
_JUMP = "-m ipvs --vdir ORIGINAL --vmethod MASQ -j"
_JUMPS = tuple(Jump("POSTROUTING", f"{_JUMP} {chain}", "first") for chain in (HAIRPIN, CHAIN))


def local_entries(node: ThisNode, around: Surroundings, family: int) -> frozenset[str]:
    """This node's pods and its address, in one family."""
    if around.local_pods is None:
        pods = frozenset(node.pod_cidrs.get(family, ()))
    else:
        pods = around.local_pods.get(family, frozenset())
    packed = node.addresses.get(family)
    return pods | {socket.inet_ntop(family, packed)} if packed else pods


def compile_masquerade(
    node: ThisNode,
    around: Surroundings,
    options: ProxyOptions,
    family: int,
    *,
    random_fully: bool,
) -> tuple[TableRules, tuple[Problem, ...]]:
    """The nat rules of one family, and what keeps them from being complete."""
    packed = node.addresses.get(family)
    if not packed:
        problem = Problem(
            f"Node {node.name}",
            "status.addresses",
            f"no {FAMILY_NAMES[family]} address: no NodePorts and no source NAT for "
            f"{FAMILY_NAMES[family]}",
        )
        return TableRules({HAIRPIN: (), CHAIN: ()}, _JUMPS), (problem,)
    problems: tuple[Problem, ...] = ()
    knows_pods = around.local_pods is not None or node.pod_cidrs.get(family)
    if not knows_pods and not options.masquerade_all:
        problem = Problem(
            f"Node {node.name}",
            "spec.podCIDRs",
            f"no {FAMILY_NAMES[family]} pod CIDR: clients of this node's pods appear with the "
            "node's address; let the controller manager allocate node CIDRs",
        )
        problems = (problem,)
    sets = SETS[family]
    snat = f"-j SNAT --to-source {socket.inet_ntop(family, packed)}"
    snat += " --random-fully" if random_fully else ""
    hairpin = f"-m set --match-set {sets.hairpin.name} src,dst,dst {snat}"
    local = f"--match-set {sets.local.name}"
    if options.masquerade_all:
        rules = [snat]
    else:
        rules = [f"-m set ! {local} src -m set ! {local} dst {snat}"]
        if options.own_pod_network and options.pod_egress:
            rules.append(f"-m set {local} src -m set ! --match-set {sets.cluster.name} dst {snat}")
    return TableRules({HAIRPIN: (hairpin,), CHAIN: tuple(rules)}, _JUMPS), problems
