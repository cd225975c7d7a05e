"""What a flow is looked at in: the objects of a cluster and the flags of its agents. Pure."""

from functools import cached_property
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from msgspec import Struct

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import (
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.proxy.settings import ProxyOptions, proxy_options
from kube_router_py.routing.overlay import NodeLinks
from kube_router_py.routing.settings import RoutingSettings, routing_settings
from kube_router_py.services import service_key_of

if TYPE_CHECKING:
    from kube_router_py.options import Options

# The networks that a node's links are taken to have where nobody looks.
_LENGTHS = {4: 24, 6: 64}


class ClusterObjects(Struct, frozen=True, dict=True):
    """One state of a cluster. Defaults are filled in (``cluster.defaults``)."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    pods: tuple[Pod, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    policies: tuple[NetworkPolicy, ...] = ()
    nodes: tuple[Node, ...] = ()

    @cached_property
    def service_of(self) -> dict[str, Service]:
        """By ``namespace/name``."""
        return {each.metadata.key: each for each in self.services}

    @cached_property
    def slices_of(self) -> dict[str, tuple[EndpointSlice, ...]]:
        """By ``namespace/name`` of their Service."""
        found: dict[str, list[EndpointSlice]] = {}
        for each in self.slices:
            if key := service_key_of(each):
                found.setdefault(key, []).append(each)
        return {key: tuple(each) for key, each in found.items()}

    @cached_property
    def pod_of(self) -> dict[str, Pod]:
        """By ``namespace/name``."""
        return {each.metadata.key: each for each in self.pods}

    @cached_property
    def namespace_of(self) -> dict[str, Namespace]:
        """By name."""
        return {each.metadata.name: each for each in self.namespaces}

    @cached_property
    def views(self) -> dict[str, NodeView]:
        """The nodes as they say themselves, by name."""
        return {each.metadata.name: node_view(each)[0] for each in self.nodes}


class FlowSettings(Struct, frozen=True):
    """The flags that count. ``links``: how nodes are connected, by name; of a node that is not
    there each address is taken to be in a network of the usual size (/24, /64).
    ``firewall_families``: those in which policies are enforced, ``inet`` and ``inet6``.

    ``addresses``: (link, packed address) of what is on a node's links, by name; of a node that is
    not there those that the Node lists count. ``proxy`` and ``routing`` have the ranges of address
    pools among theirs.
    """

    proxy: ProxyOptions
    routing: RoutingSettings
    run_proxy: bool = True
    run_firewall: bool = True
    run_router: bool = True
    allow_own_node: bool = False
    default_deny: bool = False
    firewall_families: tuple[str, ...] = ("inet",)
    links: dict[str, NodeLinks] = {}
    addresses: dict[str, tuple[tuple[str, bytes], ...]] = {}

    def own_addresses(self, name: str, view: NodeView | None) -> frozenset[bytes]:
        """The addresses of a node itself, packed, as far as they are known."""
        live = frozenset(packed for _, packed in self.addresses.get(name, ()))
        return live or frozenset(each.packed for each in (view.addresses if view else ()))

    def links_of(self, view: NodeView) -> NodeLinks:
        """How a node is connected."""
        found = self.links.get(view.name)
        return found if found is not None else usual_links(view)


def usual_links(view: NodeView) -> NodeLinks:
    """Each address of a node in a network of the usual size."""
    return NodeLinks(
        {each: ip_interface((each, _LENGTHS[each.version])).network for each in view.addresses}
    )


def flow_settings(options: "Options") -> FlowSettings:
    """Pick what counts of the agent's options, which name the ranges of all pools."""
    return FlowSettings(
        proxy=proxy_options(options),
        routing=routing_settings(options),
        run_proxy=options.run_service_proxy,
        run_firewall=options.run_firewall,
        run_router=options.run_router,
        allow_own_node=options.netpol_allow_own_node,
        default_deny=options.netpol_default_deny,
        firewall_families=firewall_options(options).families,
    )
