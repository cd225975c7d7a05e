"""The pod network of this node: bridge, CNI file, forwarding, egress and tunnels, as Nodes say.

Each of them is a step; one that fails is told and stops no other. All is compared with the kernel
when this Node changes, when the kernel tells of a change, and in full turns. Another Node costs its
entries in the two sets that every node's egress rule looks into and, if it is reached through a
tunnel, a look at tunnels and routes.
"""

import time
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address
from typing import Protocol

from msgspec import Struct, structs

from kube_router_py.cluster.node import NodeView
from kube_router_py.errors import KernelError
from kube_router_py.kernel.overlay_ports import Overlay, OverlayPorts
from kube_router_py.kernel.ports import HostPorts, Observe, unobserved
from kube_router_py.problem import Problem
from kube_router_py.routing.cni import BRIDGE, compile_cni
from kube_router_py.routing.cni_template import read_template
from kube_router_py.routing.egress import (
    ClusterSets,
    compile_egress,
    compile_forward,
    is_own_chain,
)
from kube_router_py.routing.model import Address, Network
from kube_router_py.routing.mtu import pod_mtu
from kube_router_py.routing.overlay import NodeLinks, node_links
from kube_router_py.routing.overlay_apply import apply_overlay
from kube_router_py.routing.overlay_nodes import OverlayNodes
from kube_router_py.routing.pod_cidrs import with_pod_cidrs
from kube_router_py.routing.settings import RoutingSettings

_FAMILIES = {4: "inet", 6: "inet6"}
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


class CniFile(Protocol):
    """``kernel.cni_file.CniFile``."""

    @property
    def path(self) -> str: ...

    def read(self) -> str | None: ...

    def write(self, text: str) -> None: ...

    def comes_before(self) -> tuple[str, ...]: ...


class Surroundings(Struct, frozen=True):
    """What the kernel said of this node: its links as far as they matter, and its addresses."""

    links: NodeLinks = NodeLinks()
    names: frozenset[str] = frozenset()
    addresses: frozenset[Address] = frozenset()


class PodNetwork:
    """Used in the thread of the route controller's loop.

    ``has_firewall``: the agent's firewall accepts what is forwarded. ``on_overlay`` is told what
    stands after each comparison, for whoever listens to the kernel; ``observe`` how long it took.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        node_name: str,
        *,
        has_firewall: bool,
        on_overlay: Callable[[Overlay, Collection[str]], None] = lambda overlay, links: None,
        observe: Observe = unobserved,
    ) -> None:
        self._observe = observe
        self._settings = settings
        self._node_name = node_name
        self._has_firewall = has_firewall
        self._on_overlay = on_overlay
        self._views: dict[str, NodeView] = {}
        # This node as it was last seen: that it is gone for a moment takes nothing away.
        self._own: NodeView | None = None
        self._sets = ClusterSets(settings.versions)
        self._wrong: dict[str, tuple[Problem, ...]] = {}
        self._tunnels = OverlayNodes(settings)
        # What was made to stand, and on which links; None: nothing that is known to.
        self._standing: tuple[Overlay, frozenset[str]] | None = None
        self._is_stale = True
        self._is_own_stale = True
        self._failed: tuple[Problem, ...] = ()
        self._told: tuple[Problem, ...] = ()
        self._told_of_tunnels: tuple[Problem, ...] = ()
        self.around = Surroundings()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All that is wrong now: with Nodes, and with what could not be done."""
        wrong = {each for found in self._wrong.values() for each in found}
        told = {*self._told, *self._told_of_tunnels}
        return tuple(sorted({*wrong, *self._sets.problems, *told, *self._failed}))

    @property
    def routes(self) -> int:
        """How many routes of ours stand, as far as that is known. For any thread."""
        standing = self._standing
        return len(standing[0].routes) if standing is not None else 0

    @property
    def is_settled(self) -> bool:
        """Nothing has to be tried again."""
        return not self._failed

    def follow_node(self, name: str, view: NodeView | None) -> None:
        """A Node is as ``view`` says, or gone."""
        if view is None:
            if name != self._node_name and self._views.pop(name, None) is not None:
                self._wrong.pop(name, None)
                self._sets.remove(name)
                self._tunnels.remove(name)
                self._is_stale = True
            return
        view, wrong = with_pod_cidrs(view)
        # Of annotations nothing else matters here, and somebody always writes some.
        view = structs.replace(view, annotations={})
        self._wrong[name] = wrong
        if view == self._views.get(name):
            return
        self._views[name] = view
        self._sets.put(view)
        self._is_stale = True
        if name == self._node_name:
            self._own = view
            self._is_own_stale = True
        else:
            self._tunnels.put(view)

    def settle(
        self, ports: HostPorts, overlay: OverlayPorts, cni: CniFile, *, full: bool, moved: bool
    ) -> None:
        """Bring the node to what has been followed. ``full``: compare everything with the kernel;
        ``moved``: the kernel has told of a change. See ``problems`` for what came of it. What
        failed is tried again in full turns and when a Node changes, not for every Service."""
        if not (full or moved or self._is_stale):
            return
        failed: list[Problem] = []
        told: list[Problem] = []
        own = self._own
        is_all = full or bool(self._failed)

        def step(work: Callable[[], Iterator[Problem]]) -> None:
            try:
                told.extend(work())
            except KernelError as error:
                failed.append(Problem(f"Node {self._node_name}", "", str(error)))

        step(lambda: self._write_sets(ports, is_all=is_all))
        if own is not None:
            if is_all or moved or self._is_own_stale:
                self._standing = None
                step(lambda: self._look_around(own, ports, overlay))
                step(lambda: self._forward(ports))
                step(lambda: self._write_rules(ports))
                step(lambda: self._write_cni(own, overlay, cni))
                self._told = tuple(told)
            failed += self._write_overlay(own, overlay)
        self._failed = tuple(failed)
        self._is_stale = self._is_own_stale = False

    def pods_behind(self, neighbors: Collection[str]) -> Iterator[Network]:
        """The pod CIDRs of nodes one of whose addresses is among these."""
        for name, view in self._views.items():
            if name != self._node_name and any(str(it) in neighbors for it in view.addresses):
                yield from view.pod_cidrs

    # --- steps --------------------------------------------------------------------------------

    def _look_around(
        self, own: NodeView, ports: HostPorts, overlay: OverlayPorts
    ) -> Iterator[Problem]:
        addresses = ports.links.node_addresses()
        known = {ip_address(each.address): each.link for each in addresses}
        self.around = Surroundings(
            node_links(own, addresses, overlay.links.mtus()),
            frozenset(link for address, link in known.items() if address in own.addresses),
            frozenset(known),
        )
        yield from ()

    def _forward(self, ports: HostPorts) -> Iterator[Problem]:
        for version in self._settings.versions:
            ports.sysctls.write(_FORWARDING[version], "1")
        yield from ()

    def _write_sets(self, ports: HostPorts, *, is_all: bool) -> Iterator[Problem]:
        changes = self._sets.take()
        if is_all:
            for spec, entries in self._sets.contents().items():
                ports.ipsets.ensure(spec, entries)
            return
        for failure in ports.ipsets.change_all(changes):
            raise KernelError(f"set {failure.name}: {failure.message}")
        yield from ()

    def _write_rules(self, ports: HostPorts) -> Iterator[Problem]:
        random_fully = ports.iptables.random_fully()
        forward = compile_forward(self.around.names, is_needed=not self._has_firewall)
        for version in self._settings.versions:
            family = _FAMILIES[version]
            egress = compile_egress(
                family, is_enabled=self._settings.enable_pod_egress, random_fully=random_fully
            )
            ports.iptables.ensure(family, "nat", egress, is_own_chain)
            ports.iptables.ensure(family, "filter", forward, is_own_chain)
        yield from ()

    def _write_cni(self, own: NodeView, overlay: OverlayPorts, cni: CniFile) -> Iterator[Problem]:
        if not self._settings.enable_cni:
            return
        mtu, problems = pod_mtu(
            self.around.links.mtu_by_version(own), self._settings, self._node_name
        )
        yield from problems
        overlay.links.ensure_bridge(BRIDGE, mtu)
        cidrs = [each for each in own.pod_cidrs if each.version in self._settings.versions]
        text = cni.read()
        template = read_template(self._settings.cni_conf_template) if text is None else None
        found = compile_cni(text, cni.path, self._node_name, cidrs, mtu, template)
        yield from found.problems
        if found.text is not None:
            cni.write(found.text)
        for name in cni.comes_before():
            reason = (
                f"container runtimes use {name} instead, which comes before it: remove that file, "
                "or let --cni-conf-file name it"
            )
            yield Problem(f"File {cni.path}", "", reason)

    def _write_overlay(self, own: NodeView, overlay: OverlayPorts) -> tuple[Problem, ...]:
        """The kernel is not asked while the same shall stand as before. Returns what failed."""
        desired, self._told_of_tunnels = self._tunnels.compile(own, self.around.links)
        wanted = desired, self.around.names
        if wanted == self._standing:
            return ()
        began = time.monotonic()
        try:
            failed = apply_overlay(overlay, desired, self._node_name)
        except KernelError as error:
            failed = (Problem(f"Node {self._node_name}", "", str(error)),)
        self._observe("host_routes_sync", time.monotonic() - began)
        self._standing = None if failed else wanted
        self._on_overlay(*wanted)
        return failed
