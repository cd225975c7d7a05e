"""From events to dirty keys: whose desired state an event of the cache can change.

A Service, or one of its EndpointSlices, makes ``namespace/name`` dirty. What is no Service has the
keys below.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol

from msgspec import structs

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import EndpointSlice, Node, Pod, Service
from kube_router_py.problem import Problem
from kube_router_py.proxy.settings import WEIGHT_ANNOTATION
from kube_router_py.proxy.surroundings import Texts, pod_addresses
from kube_router_py.services import service_key_of

KINDS = (Service, EndpointSlice, Node)
# This node, the weights of all, and everything that no Service is to blame for.
OWN_NODE = "own node"
# The addresses and pod CIDRs of all nodes.
CLUSTER_NODES = "nodes of the cluster"
# The addresses of this node's pods.
LOCAL_PODS = "pods of this node"
# When pods will be killed.
LEAVING_PODS = "pods that are being deleted"
# Which addresses load balancers may have given. Marked by whoever knows of them.
POOLS = "pools of addresses"
NOT_SERVICES = frozenset((OWN_NODE, CLUSTER_NODES, LOCAL_PODS, LEAVING_PODS, POOLS))


class Marks(Protocol):
    """The part of a Loop that events need."""

    def mark(self, keys: Iterable[Hashable]) -> None: ...


def subscribe(cache: Cache, loop: Marks, node_name: str) -> None:
    """Have every event mark what it can change."""

    def notify(event: Event) -> None:
        if keys := dirty_keys(event, node_name):
            loop.mark(keys)

    cache.subscribe(tuple(kind for kind in (*KINDS, Pod) if kind in cache.kinds), notify)


def dirty_keys(event: Event, node_name: str) -> frozenset[Hashable]:
    """The keys that one event makes dirty."""
    if event.kind is Service:
        return frozenset((event.key,))
    if event.kind is EndpointSlice:
        found = (service_key_of(each) for each in (event.old, event.new) if each)
        return frozenset(key for key in found if key)
    if event.kind is Pod:
        return frozenset(_of_pod(event.old, event.new, node_name))
    return _of_node(event, node_name)


def _of_node(event: Event, node_name: str) -> frozenset[Hashable]:
    """A kubelet writes its Node's status all the time, others its annotations; seldom anything
    that we read. Of other Nodes that is where they are, and the weight of their endpoints."""
    keys: set[Hashable] = set()
    views = [node_view(each)[0] if each else None for each in (event.old, event.new)]
    if _place(views[0]) != _place(views[1]):
        keys.add(CLUSTER_NODES)
    facts = _own_facts if event.key == node_name else _weight
    old, new = (facts(each) if each else None for each in (event.old, event.new))
    if old != new:
        keys.add(OWN_NODE)
    return frozenset(keys)


def _place(view: NodeView | None) -> object:
    return view and (view.addresses, view.pod_cidrs)


def _own_facts(node: Node) -> tuple[NodeView, list[Problem], str | None]:
    """The part of a Node that decides what its proxy does: of its annotations the weight alone."""
    view, problems = node_view(node)
    return structs.replace(view, annotations={}), problems, _weight(node)


def _weight(node: Node) -> str | None:
    return node.metadata.annotation(WEIGHT_ANNOTATION)


def _of_pod(old: Pod | None, new: Pod | None, node_name: str) -> Iterator[Hashable]:
    if _addresses(old, node_name) != _addresses(new, node_name):
        yield LOCAL_PODS
    if new is not None and _leaving(new) and (old is None or _leaving(old) != _leaving(new)):
        yield LEAVING_PODS


def _addresses(pod: Pod | None, node_name: str) -> Texts:
    return pod_addresses((pod,), node_name) if pod else {}


def _leaving(pod: Pod) -> tuple[str | None, int | None] | None:
    meta = pod.metadata
    if meta.deletion_timestamp is None:
        return None
    return meta.deletion_timestamp, meta.deletion_grace_period_seconds
