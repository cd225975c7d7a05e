"""How packets leave a node: by the bridge, a tunnel, another node's address, or out of the cluster.

What ``routing.overlay`` compiles says which tunnels there are; between nodes of one subnet FRR
routes to pods directly. Pure.
"""

from functools import cached_property
from ipaddress import ip_address

from msgspec import structs

from kube_router_py.cluster.node import NodeView
from kube_router_py.flow.model import Route
from kube_router_py.flow.names import Names
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.kernel.overlay_ports import MAIN, TABLE, Address, Overlay
from kube_router_py.problem import Problem
from kube_router_py.routing.egress import BRIDGE
from kube_router_py.routing.overlay import compile_overlay
from kube_router_py.routing.peers import external_peers
from kube_router_py.routing.pod_cidrs import with_pod_cidrs

_OTHERS = "another pod network routes here (--run-router=false)"


class NodeRoutes:
    """The routes of one node; ``name`` may be one that no object tells of."""

    def __init__(
        self, objects: ClusterObjects, settings: FlowSettings, names: Names, name: str
    ) -> None:
        self._objects, self._settings, self._names, self._name = objects, settings, names, name

    def to(self, source: str, destination: str) -> Route:
        """The way of a packet between these addresses. ``source`` is what it has while it is
        routed: source NAT comes after."""
        if source == destination:
            return Route("inside", "it goes back to where it comes from")
        address = ip_address(destination)
        if address.is_loopback:
            return Route("inside", "a loopback address leads nowhere else")
        own = self._views.get(self._name)
        if own is None:
            return Route("unknown", f"Node {self._name} is not among the objects")
        if address.packed in self._settings.own_addresses(own.name, own):
            return Route("node", f"an address of node {own.name} itself")
        if self._names.pods_at.get(destination):
            return self._to_pod(own, source, address)
        if (name := self._names.node_at.get(destination)) and name != own.name:
            return self._to_node(own, source, address, name)
        if owner := self._owner(address):
            if owner == own.name:
                return self._by_bridge(address, "no pod of this node has the address")
            return self._to_pod_of(own, address, owner)
        return self._outside(own)

    def _to_pod(self, own: NodeView, source: str, address: Address) -> Route:
        keys = self._names.pods_at[str(address)]
        nodes = {self._objects.pod_of[key].spec.node_name or "" for key in keys}
        if own.name in nodes:
            return self._by_bridge(address, f"pod {keys[0]} is on this node")
        owner = self._owner(address) or min(nodes)
        if not owner:
            return Route("unknown", f"pod {keys[0]} is on no node yet")
        if owner == own.name:
            why = f"the address is in a pod CIDR of this node, though pod {keys[0]} is elsewhere"
            return self._by_bridge(address, why)
        return self._to_pod_of(own, address, owner)

    def _by_bridge(self, address: Address, why: str) -> Route:
        if not self._settings.run_router:
            return Route("pod", why)
        return Route("pod", why, link=BRIDGE, destination=self._cidr(self._name, address))

    def _to_pod_of(self, own: NodeView, address: Address, name: str) -> Route:
        """To a pod of another node."""
        if not self._settings.run_router:
            return Route("unknown", _OTHERS)
        other = self._views.get(name)
        if other is None:
            return Route("unknown", f"Node {name} is not among the objects")
        if found := self._tunnel(address, MAIN, f"node {name} is {self._how_far(own, other)}"):
            return found
        via = other.ipv4 if address.version == 4 else other.ipv6
        cidr = self._cidr(name, address)
        if not cidr:
            return Route("unknown", f"no pod CIDR of node {name} has the address")
        if reason := self._problem(name):
            return Route("none", reason, destination=cidr)
        if via is not None and self._is_near(own, via):
            why = f"FRR learns it from node {name}, in the same subnet"
            return Route("direct", why, next_hop=str(via), destination=cidr)
        why = f"by routers outside: node {name} is in another subnet, and there is no tunnel"
        return Route("direct", why, destination=cidr, peers=self._peers(own))

    def _to_node(self, own: NodeView, source: str, address: Address, name: str) -> Route:
        """To an address of another node: what has an address of a pod goes through the tunnel."""
        is_pod = any(ip_address(source) in each for each in own.pod_cidrs)
        if self._settings.run_router and is_pod:
            why = f"from a pod to node {name}: the network between the subnets knows nodes only"
            if found := self._tunnel(address, TABLE, why):
                return found
        if self._is_near(own, address):
            return Route("direct", f"node {name} is in the same subnet", next_hop=str(address))
        return Route("direct", f"to node {name}, by this node's own routes")

    def _outside(self, own: NodeView) -> Route:
        if not self._settings.run_router:
            return Route("outside", "out of the cluster, by this node's own routes")
        peers = self._peers(own)
        words = "out of the cluster, by this node's own routes"
        if peers:
            words += f" or what {', '.join(peers)} announced"
        return Route("outside", words, peers=peers)

    # --- facts ---------------------------------------------------------------------------------

    @cached_property
    def _views(self) -> dict[str, NodeView]:
        return {name: with_pod_cidrs(view)[0] for name, view in self._objects.views.items()}

    @cached_property
    def _overlay(self) -> tuple[Overlay, tuple[Problem, ...]]:
        own = self._views[self._name]
        settings = self._settings
        others = (view for name, view in self._views.items() if name != self._name)
        return compile_overlay(own, others, settings.routing, settings.links_of(own))

    def _tunnel(self, address: Address, table: int, why: str) -> Route | None:
        overlay = self._overlay[0]
        found = [
            each
            for each in overlay.routes
            if each.table == table
            and each.destination.version == address.version
            and address in each.destination
        ]
        if not found:
            return None
        route = max(found, key=lambda each: each.destination.prefixlen)
        tunnel = overlay.tunnels[route.link]
        remote = tunnel.remote or route.gateway or (address if table == TABLE else None)
        return Route(
            "tunnel",
            why,
            link=route.link,
            encapsulation=str(tunnel.encap),
            next_hop=str(remote) if remote is not None else "",
            destination=str(route.destination),
        )

    def _how_far(self, own: NodeView, other: NodeView) -> str:
        if self._settings.routing.overlay_type == "full":
            return "reached through a tunnel, as all nodes are (--overlay-type=full)"
        return f"in another subnet than node {own.name}"

    def _problem(self, name: str) -> str:
        for each in self._overlay[1]:
            if each.object == f"Node {name}":
                return each.reason
        return ""

    def _is_near(self, own: NodeView, address: Address) -> bool:
        subnets = self._settings.links_of(own).subnets.values()
        return any(address in each for each in subnets if each.version == address.version)

    def _owner(self, address: Address) -> str:
        """The node whose pod CIDR has an address."""
        return next((name for name in sorted(self._views) if self._cidr(name, address)), "")

    def _cidr(self, name: str, address: Address) -> str:
        view = self._views.get(name)
        cidrs = view.pod_cidrs if view is not None else ()
        for each in cidrs:
            if each.version == address.version and address in each:
                return str(each)
        return ""

    def _peers(self, own: NodeView) -> tuple[str, ...]:
        """The routers outside that this node talks to."""
        # Passwords do not matter for who they are.
        settings = structs.replace(
            self._settings.routing, peer_passwords=(), peer_passwords_file=""
        )
        specs, _ = external_peers(self._objects.views[own.name], settings)
        found = (each.address or each.interface or each.network for each in specs)
        return tuple(
            f"{peer} (AS {each.remote_as})" for peer, each in zip(found, specs, strict=True)
        )
