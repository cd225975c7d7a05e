"""Which node answers for an address by ARP and NDP. Pure.

Rendezvous hashing: every node gives each address a number that is made of both, and the greatest
one has it. All that see the same nodes choose the same one without a word; where a node goes, only
what it had moves, and evenly to all others.

Who may be chosen: nodes that the pool selects, that are not drained, whose agent lives, and (where
only endpoints of the receiving node may be used) that have a usable one. Among those, nodes that
call themselves not ready come last. A condition that is Unknown is the API server's ignorance, and
heartbeats know better.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from hashlib import blake2b

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.cluster.selectors import Selector
from kube_router_py.endpoint_slices import PROTOCOLS, listed_endpoints
from kube_router_py.node_drain import node_drain_cause
from kube_router_py.problem import Problem
from kube_router_py.services import Candidate, is_external_local, local_endpoints


class NodeFacts(Struct, frozen=True):
    """What the Node object says that matters here. ``drain_cause``: why it is drained, or ``""``;
    ``is_unwell``: its kubelet says that it is not ready."""

    labels: tuple[tuple[str, str], ...] = ()
    drain_cause: str = ""
    is_unwell: bool = False


class Pick(Struct, frozen=True):
    """The node that has an address, of those that may; None: there is none."""

    owner: str | None = None
    among: frozenset[str] = frozenset()


class Standby(Struct, frozen=True):
    """The nodes that may answer for a pool's addresses: all, and those that are ready."""

    usable: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()


NOBODY = Pick()


def node_facts(node: Node, *, drain_on_cordon: bool) -> NodeFacts:
    """Read a Node."""
    conditions = (node.status.conditions if node.status else None) or ()
    return NodeFacts(
        tuple(sorted((node.metadata.labels or {}).items())),
        node_drain_cause(node, on_cordon=drain_on_cordon)[0],
        any(each.type == "Ready" and each.status == "False" for each in conditions),
    )


def standby(candidates: Set[str], nodes: Mapping[str, NodeFacts], selector: Selector) -> Standby:
    """Who may answer for the addresses of a pool with this selector. ``candidates`` are the nodes
    whose agents live; one without a Node object is none."""
    usable = frozenset(
        name
        for name in candidates
        if (facts := nodes.get(name)) is not None
        and not facts.drain_cause
        and selector.selects(dict(facts.labels))
    )
    return Standby(usable, frozenset(name for name in usable if not nodes[name].is_unwell))


def eligible(nodes: Standby, local: Sequence[frozenset[str]] = ()) -> frozenset[str]:
    """Who may answer for one address.

    ``local`` has, for each of its Services that may use endpoints of the receiving node only, the
    nodes with one. All of several such Services are to be served; where no node has endpoints of
    all of them, one that serves any is better than none.
    """
    found = nodes.usable
    if local:
        found = found & (
            frozenset.intersection(*local) & found or frozenset[str]().union(*local) & found
        )
    return found & nodes.ready or found


def pick(address: bytes, nodes: frozenset[str], before: Pick = NOBODY) -> Pick:
    """Choose among nodes. ``before`` is what was chosen for this address last: it saves asking
    nodes again that have lost already, and changes nothing else."""
    if nodes == before.among:
        return before
    if not nodes:
        return NOBODY
    asked: Iterable[str] = nodes
    if before.owner is not None and before.owner in nodes:
        asked = (before.owner, *(nodes - before.among))
    return Pick(max(asked, key=lambda node: (_weight(address, node), node)), nodes)


def _weight(address: bytes, node: str) -> bytes:
    said = node.encode(errors="surrogatepass")
    return blake2b(said, digest_size=8, salt=address, person=b"krp-layer2").digest()


def nodes_with_endpoints(
    service: Service, slices: Sequence[EndpointSlice], family: int
) -> frozenset[str] | None:
    """The nodes with a usable endpoint for a port of a Service in a family (socket.AF_*), where
    only those of the receiving node may be used; None: all endpoints may be used everywhere."""
    if not is_external_local(service):
        return None
    told: list[Problem] = []  # the service proxy tells the same
    found: set[str] = set()
    for port in service.spec.ports or ():
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        if protocol is None:
            continue
        listed, _ = listed_endpoints(slices, port.name or "", protocol, family, _key, told)
        by_node: dict[str, dict[tuple[bytes, int], Candidate]] = {}
        for key, candidate in listed.items():
            if candidate.node:
                by_node.setdefault(candidate.node, {})[key] = candidate
        found.update(node for node, own in by_node.items() if local_endpoints(own, node))
    return frozenset(found)


def _key(family: int, packed: bytes, port: int) -> tuple[bytes, int]:
    return packed, port
