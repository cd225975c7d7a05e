"""Compile the EndpointSlices of one Service to real servers, for one Service port and family."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointSlice
from kube_router_py.endpoint_slices import listed_endpoints
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import RealServerKey
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.services import Candidate, Usability, cluster_endpoints, local_endpoints


class EndpointGroup(Struct, frozen=True):
    """Real servers of one port under one traffic policy; ``usable`` is sorted."""

    usable: tuple[RealServerKey, ...]
    paused: frozenset[RealServerKey]
    terminating: frozenset[RealServerKey]


class Endpoints:
    """All listed endpoints of one port and family, grouped on demand by traffic policy.

    ``pods`` gives the UID of the pod behind an endpoint, where the slice names one.
    """

    def __init__(
        self,
        listed: dict[RealServerKey, Candidate],
        pods: dict[RealServerKey, str],
        node: ThisNode,
    ) -> None:
        self.pods: Mapping[RealServerKey, str] = pods
        self._listed, self._node = listed, node
        self._cluster: EndpointGroup | None = None
        self._local: EndpointGroup | None = None

    @property
    def cluster(self) -> EndpointGroup:
        """What traffic policy Cluster uses."""
        if self._cluster is None:
            chosen = cluster_endpoints(self._listed, self._node.name, self._node.zone)
            self._cluster = self._group(chosen, self._listed)
        return self._cluster

    @property
    def local(self) -> EndpointGroup:
        """What traffic policy Local uses."""
        if self._local is None:
            chosen = local_endpoints(self._listed, self._node.name)
            self._local = self._group(chosen, self.on_this_node())
        return self._local

    def on_this_node(self) -> list[RealServerKey]:
        """Every listed endpoint of this node, whatever its state."""
        return [key for key, found in self._listed.items() if found.node == self._node.name]

    def node_of(self, key: RealServerKey) -> str:
        """The name of an endpoint's Node, ``""`` where the slice does not say."""
        return self._listed[key].node

    def is_ready(self, key: RealServerKey) -> bool:
        """Whether an endpoint is ready; a terminating one is only where a Service publishes
        addresses that are not ready, as for kube-proxy."""
        return self._listed[key].usability is Usability.READY

    def _group(
        self, chosen: Iterable[RealServerKey], scope: Iterable[RealServerKey]
    ) -> EndpointGroup:
        usable = tuple(sorted(chosen))
        taken = set(usable)
        paused: set[RealServerKey] = set()
        terminating: set[RealServerKey] = set()
        for key in scope:
            use = self._listed[key].usability
            if key in taken or use is Usability.READY:
                continue  # ready and not taken: meant for others; it leaves as any endpoint does
            (paused if use is Usability.PAUSED else terminating).add(key)
        return EndpointGroup(usable, frozenset(paused), frozenset(terminating))


def compile_endpoints(
    slices: Sequence[EndpointSlice],
    port_name: str,
    protocol: int,
    family: int,
    node: ThisNode,
    problems: list[Problem],
) -> Endpoints:
    """What the slices list for one port and family, as real servers; see ``listed_endpoints``."""
    listed, pods = listed_endpoints(slices, port_name, protocol, family, RealServerKey, problems)
    return Endpoints(listed, pods, node)
