"""Which addresses are announced by ARP and NDP, and which node has each. Pure.

Announced are LB IPs in the status of Services that lie, or lay before an edit, in a pool with layer
2 announcing. Every method costs what it touches; only nodes and pools touch all.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kube_router_py.address_pools import Address, AddressPools, Announcing
from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.cluster.selectors import Selector
from kube_router_py.loadbalancer.choice import (
    NOBODY,
    NodeFacts,
    Pick,
    Standby,
    eligible,
    node_facts,
    nodes_with_endpoints,
    pick,
    standby,
)
from kube_router_py.problem import Problem
from kube_router_py.services import has_addresses, is_proxied, load_balancer_ips, parse_address


class Place(Struct):
    """What is known of an address that is announced. ``local``, by Service: the nodes with
    endpoints of a Service that may use no others, None for one that may."""

    address: Address
    pool: str
    announcing: Announcing
    local: dict[str, frozenset[str] | None]
    pick: Pick = NOBODY


class Layer2Index:
    """For one thread. ``has_proxy``: this agent serves Services itself."""

    def __init__(self, node: str, *, drain_on_cordon: bool, has_proxy: bool = True) -> None:
        self._node, self._drain_on_cordon = node, drain_on_cordon
        self._is_served = is_proxied if has_proxy else has_addresses
        self._pools = AddressPools()
        self._candidates: frozenset[str] = frozenset()
        self._facts: dict[str, NodeFacts] = {}
        self._views: dict[str, NodeView] = {}
        # The addresses of all Nodes, with their names: nobody else may answer for these.
        self._taken: dict[bytes, str] = {}
        # By Service: its LB IPs, in a pool or not, with ``local`` of a Place.
        self._services: dict[str, dict[bytes, frozenset[str] | None]] = {}
        self._claimants: dict[bytes, set[str]] = {}
        self._standby: dict[Selector, Standby] = {}
        self.places: dict[bytes, Place] = {}
        self.mine: set[bytes] = set()
        self.others: set[bytes] = set()

    # --- what changes it ------------------------------------------------------------------------

    def follow_pools(self, pools: AddressPools) -> None:
        if pools != self._pools:
            self._pools = pools
            self._standby.clear()
            self.places.clear()
            self._place(list(self._claimants))
            for gone in (self.mine | self.others) - self.places.keys():
                self._forget(gone)

    def follow_candidates(self, candidates: frozenset[str]) -> None:
        """Replace the nodes whose agents live."""
        if candidates != self._candidates:
            self._candidates = candidates
            self._choose_again()

    def follow_nodes(self, changed: Iterable[tuple[str, Node | None]]) -> None:
        """These Nodes are so now; None: deleted."""
        is_news = False
        for name, node in changed:
            before, addresses = self._facts.get(name), self._addresses_of(name)
            if node is None:
                self._facts.pop(name, None)
                self._views.pop(name, None)
            else:
                self._facts[name] = node_facts(node, drain_on_cordon=self._drain_on_cordon)
                self._views[name] = node_view(node)[0]
            is_news |= before != self._facts.get(name)
            if addresses != self._addresses_of(name):
                is_news = True
                self._taken = {
                    each.packed: name for name in self._views for each in self._addresses_of(name)
                }
        if is_news:
            self._choose_again()

    def follow_service(
        self, key: str, service: Service | None, slices: Sequence[EndpointSlice] = ()
    ) -> None:
        """Replace Service ``key`` (``namespace/name``) and its slices; None: there is none."""
        new: dict[bytes, frozenset[str] | None] = {}
        if service is not None and self._is_served(service):
            by_family: dict[int, frozenset[str] | None] = {}
            for _, text in load_balancer_ips(service):
                if (parsed := parse_address(text)) is None:
                    continue
                family, packed = parsed
                if family not in by_family:
                    by_family[family] = nodes_with_endpoints(service, slices, family)
                new[packed] = by_family[family]
        old = self._services.pop(key, {})
        if new:
            self._services[key] = new
        for packed in new.keys() - old.keys():
            self._claimants.setdefault(packed, set()).add(key)
        for packed in old.keys() - new.keys():
            self._claimants[packed].discard(key)
            if not self._claimants[packed]:
                del self._claimants[packed]
        missing = object()
        self._place(
            packed
            for packed in old.keys() | new.keys()
            if old.get(packed, missing) != new.get(packed, missing)
        )

    # --- what it says ---------------------------------------------------------------------------

    def service_keys(self) -> frozenset[str]:
        """The Services of which something is held."""
        return frozenset(self._services)

    def node_names(self) -> frozenset[str]:
        return frozenset(self._facts)

    def drain_cause(self) -> str:
        """Why this node is drained, or ``""``."""
        facts = self._facts.get(self._node)
        return facts.drain_cause if facts is not None else ""

    def is_taking_part(self) -> bool:
        """Whether some pool has this node announce its addresses."""
        return self._node in self._facts and self._is_selected(self._node, self._layer2_selectors())

    def members(self) -> dict[str, Address]:
        """The other nodes with which this one shares addresses, and where they listen; none where
        no pool has this node announce."""
        own, selectors = self._views.get(self._node), self._layer2_selectors()
        if own is None or not self.is_taking_part():
            return {}
        found = {
            name: _common_address(own, view)
            for name, view in self._views.items()
            if name != self._node and self._is_selected(name, selectors)
        }
        return {name: address for name, address in found.items() if address is not None}

    def own_addresses(self) -> tuple[Address, ...]:
        """Where this node listens, if it takes part: its best address of each family."""
        own = self._views.get(self._node)
        if own is None or not self.is_taking_part():
            return ()
        return tuple(each for each in (own.ipv4, own.ipv6) if each)

    def why_nobody(self, packed: bytes) -> str:
        """Why no node answers for an address that is announced, or ``""``."""
        place = self.places[packed]
        if place.pick.owner is not None:
            return ""
        if packed in self._taken:
            return f"it is an address of node {self._taken[packed]}"
        selector = place.announcing.nodes
        if not any(selector.selects(dict(facts.labels)) for facts in self._facts.values()):
            return f"no node has the labels of pool {place.pool} ({selector})"
        if not self._standby_of(selector).usable:
            return "no node that may announce it is alive and not drained"
        return "no node that may announce it has a usable endpoint (traffic policy Local)"

    def problems(self) -> Iterator[Problem]:
        """What this node is to tell of addresses that nobody announces: those that are its own."""
        for address in self._addresses_of(self._node):
            place = self.places.get(address.packed)
            for key in place.local if place is not None else ():
                reason = f"{address} is an address of node {self._node}, and is not announced"
                yield Problem(f"Service {key}", "status.loadBalancer.ingress", reason)

    # --- inside ---------------------------------------------------------------------------------

    def _addresses_of(self, name: str) -> tuple[Address, ...]:
        view = self._views.get(name)
        return () if view is None else view.addresses

    def _is_selected(self, name: str, selectors: Iterable[Selector]) -> bool:
        labels = dict(self._facts[name].labels)
        return any(each.selects(labels) for each in selectors)

    def _standby_of(self, selector: Selector) -> Standby:
        found = self._standby.get(selector)
        if found is None:
            found = self._standby[selector] = standby(self._candidates, self._facts, selector)
        return found

    def _choose_again(self) -> None:
        self._standby.clear()
        for packed in self.places:
            self._choose(packed)

    def _place(self, touched: Iterable[bytes]) -> None:
        for packed in touched:
            claimants = self._claimants.get(packed)
            before = self.places.get(packed)
            if not claimants:
                self._forget(packed)
                continue
            if before is None:
                found = self._pools.announcing_of(packed)
                if found is None or not found[1].layer2:
                    continue
                before = self.places[packed] = Place(ipaddress.ip_address(packed), *found, {})
            before.local = {key: self._services[key][packed] for key in sorted(claimants)}
            self._choose(packed)

    def _layer2_selectors(self) -> set[Selector]:
        every = (*self._pools.pools, *self._pools.retired)
        return {each.announcing.nodes for each in every if each.announcing.layer2}

    def _choose(self, packed: bytes) -> None:
        place = self.places[packed]
        local = [each for each in place.local.values() if each is not None]
        among = eligible(self._standby_of(place.announcing.nodes), local)
        if packed in self._taken:
            among = frozenset()
        place.pick = pick(packed, among, place.pick)
        owner = place.pick.owner
        (self.mine.add if owner == self._node else self.mine.discard)(packed)
        is_others = owner is not None and owner != self._node
        (self.others.add if is_others else self.others.discard)(packed)

    def _forget(self, packed: bytes) -> None:
        self.places.pop(packed, None)
        self.mine.discard(packed)
        self.others.discard(packed)


def _common_address(own: NodeView, other: NodeView) -> Address | None:
    """Another node's address in a family that both have; in that of its first one, if possible."""
    by_family: tuple[tuple[Address | None, Address | None], ...] = (
        (own.ipv4, other.ipv4),
        (own.ipv6, other.ipv6),
    )
    common = [there for here, there in by_family if here is not None and there is not None]
    return other.address if other.address in common else next(iter(common), None)
