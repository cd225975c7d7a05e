"""What becomes of a connection's source on the node that sends it on. Pure.

Through a Service: what ``proxy.masquerade`` has rules for. Out of the cluster: what
``routing.egress`` has. The reasons are told there.
"""

from functools import cached_property
from ipaddress import ip_address, ip_network

from kube_router_py.flow.model import Translation
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.flow.services import Met
from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.proxy.masquerade import local_entries
from kube_router_py.proxy.model import Hairpin, RealServerKey
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.proxy.surroundings import Surroundings, cluster_networks, pod_addresses
from kube_router_py.routing.egress import ClusterSets, node_ips, pod_subnets
from kube_router_py.routing.pod_cidrs import with_pod_cidrs
from kube_router_py.services import Network, parse_address

_FAMILIES = {4: "inet", 6: "inet6"}


class SourceNat:
    """The source NAT of one node."""

    def __init__(self, objects: ClusterObjects, settings: FlowSettings, node: ThisNode) -> None:
        self._objects, self._settings, self._node = objects, settings, node
        self._networks: dict[tuple[str, int], tuple[Network, ...]] = {}

    def of_backend(self, source: str, real: RealServerKey, met: Met) -> Translation:
        """Of a connection from ``source`` that IPVS sends to ``real``."""
        if not met.is_ours:
            return Translation("unknown", False, source, "the other proxy decides")
        if met.direct is not None:
            why = "direct server return: the pod sees the client, and answers it without this node"
            return Translation("direct", False, source, why)
        own = self._node.addresses.get(real.family)
        if own is None and self._node.name not in self._objects.views:
            why = f"Node {self._node.name} is not among the objects"
            return Translation("unknown", False, source, why)
        if own is None:
            why = "this node has no address of the family, so that nothing rewrites sources"
            return Translation("none", False, source, why)
        node = str(ip_address(own))
        options = self._settings.proxy
        if self.hairpin(source, real, met):
            why = "the pod reaches itself through its own Service"
            return Translation("hairpin", True, node, why)
        if options.masquerade_all:
            return Translation("masquerade-all", True, node, "--masquerade-all")
        address = str(ip_address(real.address))
        is_from_here = self._is_local(source, real.family)
        if not is_from_here and not self._is_local(address, real.family):
            why = "neither the client nor the backend is on this node, and replies have to pass it"
            return Translation("off-node", True, node, why)
        is_off = options.own_pod_network and options.pod_egress and is_from_here
        if is_off and not self._is_in_cluster(address, real.family):
            why = "the backend is outside of the cluster, where pods' addresses mean nothing"
            return Translation("off-cluster", True, node, why)
        why = "replies come back through this node by themselves"
        return Translation("none", False, source, why)

    def hairpin(self, source: str, real: RealServerKey, met: Met) -> bool:
        """Whether a rule lets this endpoint reach itself."""
        if parse_address(source) != (real.family, real.address):
            return False
        compiled = met.group.desired.compiled(met.step.key)
        hairpins = compiled.hairpins if compiled is not None else ()
        return Hairpin(met.server.protocol, real) in hairpins

    def of_direct(self, source: str, destination: str) -> Translation:
        """Of a connection that no Service is concerned with."""
        routing = self._settings.routing
        if not self._settings.run_router:
            why = "whatever another pod network does on the way out (--run-router=false)"
            if self._is_pod(source) and not self._is_known(destination):
                return Translation("unknown", False, source, why)
        elif routing.enable_pod_egress and self._is_pod(source) and not self._is_known(destination):
            own = self._node.addresses.get((parse_address(source) or (0, b""))[0])
            why = "from a pod out of the cluster (--enable-pod-egress)"
            return Translation("pod-egress", True, str(ip_address(own)) if own else "", why)
        return Translation("none", False, source, "nothing rewrites it")

    def _is_local(self, text: str, family: int) -> bool:
        entries = local_entries(self._node, self._around, family)
        return self._is_among(text, ("local", family), entries)

    def _is_in_cluster(self, text: str, family: int) -> bool:
        entries = self._around.cluster.get(family, frozenset())
        local = local_entries(self._node, self._around, family)
        return self._is_among(text, ("cluster", family), entries | local)

    def is_of_cluster(self, text: str) -> bool:
        """Whether an address is a node's or a pod's, as the guards of Services see it."""
        parsed = parse_address(text)
        return parsed is not None and self._is_in_cluster(text, parsed[0])

    def _is_pod(self, text: str) -> bool:
        family = _FAMILIES[ip_address(text).version]
        subnets = self._sets.get(pod_subnets(family), frozenset())
        return self._is_among(text, (family, 1), subnets)

    def _is_known(self, text: str) -> bool:
        family = _FAMILIES[ip_address(text).version]
        nodes = self._sets.get(node_ips(family), frozenset())
        return self._is_pod(text) or self._is_among(text, (family, 2), nodes)

    def _is_among(self, text: str, name: tuple[str, int], entries: frozenset[str]) -> bool:
        networks = self._networks.get(name)
        if networks is None:
            networks = self._networks[name] = tuple(map(ip_network, entries))
        address = ip_address(text)
        return any(address in each for each in networks if each.version == address.version)

    @cached_property
    def _around(self) -> Surroundings:
        pods = None
        if not self._settings.proxy.own_pod_network:
            pods = pod_addresses(self._objects.pods, self._node.name)
        return Surroundings(cluster_networks(self._objects.nodes), pods)

    @cached_property
    def _sets(self) -> dict[IpsetSpec, frozenset[str]]:
        sets = ClusterSets((4, 6))
        for view in self._objects.views.values():
            sets.put(with_pod_cidrs(view)[0])
        return sets.contents()
