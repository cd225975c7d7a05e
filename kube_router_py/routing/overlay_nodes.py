"""The overlay kept up to date while Nodes come, change and go. Pure.

What a node needs here follows from it alone, unless it gets into another one's way. So the overlay
is the sum of what ``compile_overlay`` says of each node by itself, and a Node costs its own part of
it. Nodes that are in each other's way (an address or a pod CIDR that both have, pods where another
node is, tunnels or hardware addresses that would be named alike) are compiled together.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from ipaddress import ip_network

from kube_router_py.cluster.node import NodeView
from kube_router_py.kernel.overlay_ports import (
    Address,
    Encap,
    Neighbour,
    Network,
    Overlay,
    Route,
    Tunnel,
    mac_of,
)
from kube_router_py.problem import Problem
from kube_router_py.routing.overlay import NodeLinks, compile_overlay, tunnel_names
from kube_router_py.routing.settings import RoutingSettings

Compiled = tuple[Overlay, tuple[Problem, ...]]

# The part of those that are compiled together; no Node has this name.
_TOGETHER = ""


class OverlayNodes:
    """All other nodes. What ``compile`` returns is equal to what ``compile_overlay`` returns for
    all of them, and is the same object as long as nothing has changed."""

    def __init__(self, settings: RoutingSettings) -> None:
        self._settings = settings
        self._views: dict[str, NodeView] = {}
        self._crowd = _Crowd(Encap(settings.overlay_encap))
        # Nodes that are in somebody's way.
        self._entangled: set[str] = set()
        self._changed: set[str] = set()
        self._around: tuple[NodeView, NodeLinks] | None = None
        self._sum = _Sum()
        self._whole: Compiled | None = None

    def put(self, view: NodeView) -> None:
        """A node is as ``view`` says."""
        self.remove(view.name)
        self._views[view.name] = view
        self._crowd.add(view)
        others = self._crowd.others(view)
        if others:
            self._entangled |= {view.name, *others}
            self._changed |= {_TOGETHER, *others}

    def remove(self, name: str) -> None:
        """A node is gone, if it was there."""
        self._changed.add(name)
        self._whole = None
        view = self._views.pop(name, None)
        if view is None:
            return
        others = self._crowd.others(view)
        self._crowd.remove(view)
        if others:
            free = {it for it in others if not self._crowd.others(self._views[it])}
            self._entangled -= {name, *free}
            self._changed |= {_TOGETHER, *free}

    def compile(self, own: NodeView, links: NodeLinks) -> Compiled:
        """What shall stand on this node; see ``compile_overlay``."""
        if (own, links) != self._around:
            self._around, self._whole = (own, links), None
            self._changed = {_TOGETHER, *self._views}
            self._sum = _Sum()
        if self._whole is None:
            # First: what leaves one part may be in another one now.
            for part in self._changed:
                self._sum.subtract(part)
            for part in self._changed:
                views = [self._views[each] for each in self._members(part)]
                if views:
                    self._sum.add(part, compile_overlay(own, views, self._settings, links))
            self._changed = set()
            nobody = compile_overlay(own, (), self._settings, links)
            self._whole = self._sum.total(nobody)
        return self._whole

    def _members(self, part: str) -> Collection[str]:
        if part == _TOGETHER:
            return self._entangled
        return (part,) if part in self._views and part not in self._entangled else ()


class _Sum:
    """Parts by name, and all of them together."""

    def __init__(self) -> None:
        self._parts: dict[str, Compiled] = {}
        self._tunnels: dict[str, Tunnel] = {}
        # With vxlan all nodes have the same one.
        self._users: Counter[str] = Counter()
        self._neighbours: set[Neighbour] = set()
        self._routes: set[Route] = set()
        self._wrong: set[str] = set()

    def add(self, name: str, part: Compiled) -> None:
        self._parts[name] = part
        overlay, problems = part
        self._tunnels.update(overlay.tunnels)
        self._users.update(overlay.tunnels.keys())
        self._neighbours |= overlay.neighbours
        self._routes |= overlay.routes
        if problems:
            self._wrong.add(name)

    def subtract(self, name: str) -> None:
        """Without a part, if it was there."""
        part = self._parts.pop(name, None)
        if part is None:
            return
        overlay, _ = part
        for link in overlay.tunnels:
            self._users[link] -= 1
            if not self._users[link]:
                del self._users[link], self._tunnels[link]
        self._neighbours -= overlay.neighbours
        self._routes -= overlay.routes
        self._wrong.discard(name)

    def total(self, nobody: Compiled) -> Compiled:
        """``nobody`` is what there is without any other node."""
        overlay, problems = nobody
        told = {*problems, *(it for name in self._wrong for it in self._parts[name][1])}
        total = Overlay(
            tunnels=dict(self._tunnels),
            neighbours=frozenset(self._neighbours),
            routes=frozenset(self._routes),
            rules=overlay.rules,
        )
        return total, tuple(sorted(told))


class _Crowd:
    """Who has what only one node may have, and who is where."""

    def __init__(self, encap: Encap) -> None:
        self._is_vxlan = encap is Encap.VXLAN
        self._owners: dict[Hashable, tuple[str, ...]] = {}
        self._addresses: dict[int, list[int]] = {4: [], 6: []}
        # Of pod CIDRs; they are few.
        self._lengths: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}

    def add(self, view: NodeView) -> None:
        for claim in self._claims(view):
            self._owners[claim] = (*self._owners.get(claim, ()), view.name)
        for address in view.addresses:
            insort(self._addresses[address.version], int(address))
        for cidr in view.pod_cidrs:
            self._lengths[cidr.version][cidr.prefixlen] += 1

    def remove(self, view: NodeView) -> None:
        for claim in self._claims(view):
            left = tuple(each for each in self._owners.pop(claim) if each != view.name)
            if left:
                self._owners[claim] = left
        for address in view.addresses:
            known = self._addresses[address.version]
            del known[bisect_left(known, int(address))]
        for cidr in view.pod_cidrs:
            lengths = self._lengths[cidr.version]
            lengths[cidr.prefixlen] -= 1
            if not lengths[cidr.prefixlen]:
                del lengths[cidr.prefixlen]

    def others(self, view: NodeView) -> set[str]:
        """The nodes that a node, itself among them or not, is in the way of."""
        found = {each for claim in self._claims(view) for each in self._owners.get(claim, ())}
        for cidr in view.pod_cidrs:
            for address in self._inside(cidr):
                found.update(self._owners[address])
        for address in view.addresses:
            for cidr in self._around(address):
                found.update(self._owners.get(cidr, ()))
        return found - {view.name}

    def _claims(self, view: NodeView) -> set[Hashable]:
        """Addresses, pod CIDRs, and what follows from the addresses that tunnels lead to."""
        found: set[Hashable] = {*view.addresses, *view.pod_cidrs}
        best = [each for each in (view.ipv4, view.ipv6) if each is not None]
        if self._is_vxlan:
            return found.union(map(mac_of, best))
        return found.union(*(tunnel_names((each,)).values() for each in best))

    def _inside(self, cidr: Network) -> Iterator[Address]:
        """Addresses of nodes in a pod CIDR."""
        known, last = self._addresses[cidr.version], int(cidr.broadcast_address)
        at = bisect_left(known, int(cidr.network_address))
        while at < len(known) and known[at] <= last:
            yield type(cidr.network_address)(known[at])
            at += 1

    def _around(self, address: Address) -> Iterator[Network]:
        """The pod CIDRs that an address would be in."""
        for length in self._lengths[address.version]:
            yield ip_network((address, length), strict=False)
