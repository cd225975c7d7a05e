"""What pods send out of the cluster leaves with the node's address; what they forward is accepted.

    nat POSTROUTING, last   KUBE-ROUTER-POD-EGRESS  from pods, to neither pods nor nodes: MASQUERADE
    filter FORWARD, last    KUBE-ROUTER-POD-FWD     to and from the pods' bridge, and out of the
                                                    node's link; only where no firewall of ours
                                                    accepts this

    kube-router-pod-subnets   hash:net   pod CIDRs of all nodes
    kube-router-node-ips      hash:ip    addresses of all nodes

IPv6 has sets of its own, prefixed ``inet6:``. Both chains stand behind the rules of others: what
the administrator decides about packets of pods holds. What goes to service addresses has been
rewritten to endpoints by then; where endpoints are off the cluster, the service proxy, whose rules
come first, has chosen a source. Pure.
"""

from collections import Counter
from collections.abc import Iterable

from kube_router_py.cluster.node import NodeView
from kube_router_py.kernel.ports import IpsetSpec, Jump, SetChange, TableRules
from kube_router_py.problem import Problem
from kube_router_py.routing.model import Network

CHAIN = "KUBE-ROUTER-POD-EGRESS"
FORWARD = "KUBE-ROUTER-POD-FWD"
BRIDGE = "kube-bridge"

_FAMILIES = {4: "inet", 6: "inet6"}
_POD_SUBNETS, _NODE_IPS = "kube-router-pod-subnets", "kube-router-node-ips"


def pod_subnets(family: str) -> IpsetSpec:
    """The pod CIDRs of all nodes; ``family`` is ``inet`` or ``inet6``."""
    return _spec(_POD_SUBNETS, "hash:net", family)


def node_ips(family: str) -> IpsetSpec:
    """The addresses of all nodes."""
    return _spec(_NODE_IPS, "hash:ip", family)


def _spec(name: str, kind: str, family: str) -> IpsetSpec:
    return IpsetSpec(f"inet6:{name}" if family == "inet6" else name, kind, family)


def owned_rules() -> dict[str, tuple[str, ...]]:
    """The chains that are made here, by table; the same in both families."""
    return {"nat": (CHAIN,), "filter": (FORWARD,)}


def owned_sets() -> tuple[str, ...]:
    """The names of the sets that are made here, of both families."""
    return tuple(
        spec.name
        for family in _FAMILIES.values()
        for spec in (pod_subnets(family), node_ips(family))
    )


def is_own_chain(name: str) -> bool:
    """Whether a chain is made here, by its name."""
    return name in (CHAIN, FORWARD)


def compile_egress(family: str, *, is_enabled: bool, random_fully: bool) -> TableRules:
    """The rules of table nat in one family; none without ``--enable-pod-egress``.

    The sets have to stand before.
    """
    if not is_enabled:
        return TableRules({})
    pods, nodes = pod_subnets(family).name, node_ips(family).name
    rule = (
        f"-m set --match-set {pods} src -m set ! --match-set {pods} dst "
        f"-m set ! --match-set {nodes} dst -j MASQUERADE"
    )
    if random_fully:
        rule += " --random-fully"
    return TableRules({CHAIN: (rule,)}, (Jump("POSTROUTING", f"-j {CHAIN}", "last"),))


def compile_forward(node_links: Iterable[str], *, is_needed: bool) -> TableRules:
    """The rules of table filter, the same in both families.

    ``node_links`` are those with the node's addresses, by which NodePort connections to pods of
    other nodes leave again. ``is_needed``: the agent's firewall, which accepts what its policies
    allow, does not run.
    """
    if not is_needed:
        return TableRules({})
    rules = (
        f"-i {BRIDGE} -j ACCEPT",
        f"-o {BRIDGE} -j ACCEPT",
        *(f"-o {link} -j ACCEPT" for link in sorted({*node_links} - {BRIDGE})),
    )
    return TableRules({FORWARD: rules}, (Jump("FORWARD", f"-j {FORWARD}", "last"),))


class ClusterSets:
    """The entries of both sets, kept up to date Node by Node.

    ``put`` and ``remove`` say what became of a Node, ``take`` returns what that changes; a Node
    whose addresses and pod CIDRs stay the same changes nothing. ``problems`` are those of Nodes.
    """

    def __init__(self, versions: Iterable[int]) -> None:
        self._families = {version: _FAMILIES[version] for version in versions}
        self._nodes: dict[str, frozenset[tuple[IpsetSpec, str]]] = {}
        # Several nodes may name the same address; the entry goes with the last of them.
        self._users: dict[IpsetSpec, Counter[str]] = {
            spec: Counter()
            for family in self._families.values()
            for spec in (pod_subnets(family), node_ips(family))
        }
        self._touched: dict[tuple[IpsetSpec, str], bool] = {}
        self._wrong: dict[str, tuple[Problem, ...]] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(sorted(each for found in self._wrong.values() for each in found))

    def put(self, view: NodeView) -> None:
        """A Node is as ``view`` says."""
        found: set[tuple[IpsetSpec, str]] = set()
        wrong: list[Problem] = []
        for address in view.addresses:
            if address.version in self._families:
                found.add((node_ips(self._families[address.version]), str(address)))
        for cidr in view.pod_cidrs:
            if cidr.version not in self._families:
                continue
            if cidr.prefixlen == 0:
                reason = f"{cidr} cannot be the pod CIDR of a node: it is no part of the cluster"
                wrong.append(Problem(f"Node {view.name}", "spec.podCIDRs", reason))
                continue
            found.add((pod_subnets(self._families[cidr.version]), _entry(cidr)))
        self._replace(view.name, frozenset(found))
        self._wrong.pop(view.name, None)
        if wrong:
            self._wrong[view.name] = tuple(wrong)

    def remove(self, name: str) -> None:
        """There is no such Node any more."""
        self._replace(name, frozenset())
        self._nodes.pop(name, None)
        self._wrong.pop(name, None)

    def contents(self) -> dict[IpsetSpec, frozenset[str]]:
        """All entries of all sets."""
        return {spec: frozenset(users) for spec, users in self._users.items()}

    def take(self) -> tuple[SetChange, ...]:
        """What has changed since the last call, sets with nothing new left out."""
        add: dict[IpsetSpec, set[str]] = {}
        remove: dict[IpsetSpec, set[str]] = {}
        for (spec, entry), was_there in self._touched.items():
            is_there = entry in self._users[spec]
            if is_there != was_there:
                (add if is_there else remove).setdefault(spec, set()).add(entry)
        self._touched = {}
        return tuple(
            SetChange(
                spec,
                users.keys(),
                frozenset(add.get(spec, ())),
                frozenset(remove.get(spec, ())),
            )
            for spec, users in self._users.items()
            if spec in add or spec in remove
        )

    def _replace(self, name: str, after: frozenset[tuple[IpsetSpec, str]]) -> None:
        before = self._nodes.get(name, frozenset())
        for key in before ^ after:
            spec, entry = key
            users = self._users[spec]
            self._touched.setdefault(key, entry in users)
            users[entry] += 1 if key in after else -1
            if not users[entry]:
                del users[entry]
        self._nodes[name] = after


def _entry(cidr: Network) -> str:
    """As ipset(8) prints it: a network of one address without its length."""
    is_host = cidr.prefixlen == cidr.max_prefixlen
    return str(cidr.network_address) if is_host else str(cidr)
