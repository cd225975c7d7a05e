"""Which tunnels lead to other nodes, and what is routed through them. Pure.

    table main   PODS of another node -> its tunnel, from this node's address
    table 77     the other node's address -> its tunnel; looked up by what has an address of this
                 node's pods, since the way between the subnets knows nodes only

A node is reached directly where its address is in a subnet of one of this node's addresses; there
FRR routes to its pods. The subnet that others see is that of the address they know this node by:
where only that one makes the difference, they send through a tunnel and this node does not, so it
has the tunnel all the same, to receive by.

Tunnels lead to addresses that Nodes name, and to nothing else. One tunnel serves all pod CIDRs of
a node in a family. With vxlan there is one device for all nodes of a family.
"""

import ipaddress
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from hashlib import sha256

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.kernel.overlay_ports import (
    TABLE,
    VXLAN_LINKS,
    Address,
    Encap,
    Neighbour,
    Network,
    Overlay,
    Route,
    Tunnel,
)
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.problem import Problem
from kube_router_py.routing.mtu import tunnel_mtu
from kube_router_py.routing.settings import RoutingSettings

_CIDRS, _ADDRESSES = "spec.podCIDRs", "status.addresses"
_DIGITS = 11  # what is left of the 15 bytes of a link's name


class NodeLinks(Struct, frozen=True):
    """How this node is connected: by address of the Node that a link has, its subnet and the
    MTU of that link."""

    subnets: dict[Address, Network] = {}
    mtus: dict[Address, int] = {}

    def mtu_by_version(self, own: NodeView) -> dict[int, int]:
        """Of the links with the addresses by which other nodes know this one."""
        best = (address for address in (own.ipv4, own.ipv6) if address is not None)
        return {each.version: self.mtus[each] for each in best if each in self.mtus}


def node_links(
    own: NodeView, addresses: Iterable[NodeAddress], mtus: Mapping[str, int]
) -> NodeLinks:
    """``addresses`` are those on this node's links, ``mtus`` the links' own."""
    subnets: dict[Address, Network] = {}
    found: dict[Address, int] = {}
    for each in addresses:
        address = ipaddress.ip_address(each.address)
        if address in own.addresses:
            subnets[address] = ipaddress.ip_network((address, each.prefix_length), strict=False)
            if each.link in mtus:
                found[address] = mtus[each.link]
    return NodeLinks(subnets, found)


def compile_overlay(
    own: NodeView,
    others: Iterable[NodeView],
    settings: RoutingSettings,
    links: NodeLinks,
) -> tuple[Overlay, tuple[Problem, ...]]:
    """What shall stand on this node, and what is wrong with Nodes.

    ``others`` are the nodes that may be tunnelled to; leave out those whose pods are reached by
    routers outside. What is wrong with one node leaves out that node, or one CIDR of it.
    """
    if not settings.enable_overlay:
        return Overlay(), ()
    found = _Compiler(own, settings, links)
    nodes = sorted((each for each in others if each.name != own.name), key=lambda it: it.name)
    found.note_addresses(nodes)
    for version in settings.versions:
        if found.has_address(version):
            for node in nodes:
                found.add_node(node, version)
    return found.overlay(), tuple(sorted(found.problems))


class _Link(Struct, frozen=True):
    """The way to a node: ``cidrs`` is empty where it is for receiving only."""

    local: Address
    remote: Address
    cidrs: tuple[Network, ...]


class _Compiler:
    def __init__(self, own: NodeView, settings: RoutingSettings, links: NodeLinks) -> None:
        self._own = own
        self._settings = settings
        self._links = links
        self._encap = Encap(settings.overlay_encap)
        self._addresses: dict[int, list[int]] = {}
        self._ways: dict[Address, _Link] = {}
        self._owners: dict[Network | Address, str] = {}
        self.problems: set[Problem] = set()

    def note_addresses(self, nodes: Iterable[NodeView]) -> None:
        """Remember where nodes are: a route to pods must not lead there."""
        noted: dict[int, set[int]] = defaultdict(set)
        for node in (self._own, *nodes):
            for address in node.addresses:
                noted[address.version].add(int(address))
        self._addresses = {version: sorted(each) for version, each in noted.items()}

    def has_address(self, version: int) -> bool:
        """Whether this node has an address to tunnel from, in this family."""
        local = self._local(version)
        if local is None:
            reason = f"no IPv{version} address: no tunnels over IPv{version}"
        elif local not in self._links.subnets:
            reason = f"no link of the node has {local}: no tunnels over IPv{version}"
        else:
            return True
        self._problem(self._own, _ADDRESSES, reason)
        return False

    def add_node(self, node: NodeView, version: int) -> None:
        local = self._local(version)
        assert local is not None
        cidrs = [each for each in node.pod_cidrs if each.version == version]
        if not cidrs:
            return
        remote = node.ipv4 if version == 4 else node.ipv6
        if remote is None:
            reason = f"no IPv{version} address: its IPv{version} pods are not reached from here"
            self._problem(node, _ADDRESSES, reason)
            return
        if reason := self._unusable(remote, node):
            self._problem(node, _ADDRESSES, reason)
            return
        is_full = self._settings.overlay_type == "full"
        is_near = any(remote in subnet for subnet in self._links.subnets.values())
        if not is_full and remote in self._links.subnets[local]:
            return
        usable = tuple(each for each in cidrs if self._is_usable(each, node))
        before = self._ways.get(remote)
        routed = (*(before.cidrs if before is not None else ()), *usable)
        self._ways[remote] = _Link(local, remote, routed if is_full or not is_near else ())

    def overlay(self) -> Overlay:
        """Everything together."""
        ways = [self._ways[each] for each in sorted(self._ways, key=_sort_key)]
        rules = frozenset(
            each for each in self._own.pod_cidrs if each.version in self._settings.versions
        )
        make = self._vxlan if self._encap is Encap.VXLAN else self._tunnels
        names, tunnels, neighbours = make(ways)
        routes = frozenset(
            route for way in ways for route in self._routes(way, names[way.remote]) if way.cidrs
        )
        return Overlay(
            tunnels={each.name: each for each in tunnels},
            neighbours=neighbours,
            routes=routes,
            rules=rules,
        )

    def _tunnels(
        self, ways: list[_Link]
    ) -> tuple[dict[Address, str], list[Tunnel], frozenset[Neighbour]]:
        names = tunnel_names(way.remote for way in ways)
        tunnels = [self._tunnel(names[way.remote], way.local, way.remote) for way in ways]
        return names, tunnels, frozenset()

    def _vxlan(
        self, ways: list[_Link]
    ) -> tuple[dict[Address, str], list[Tunnel], frozenset[Neighbour]]:
        macs: dict[bytes, Address] = {}
        neighbours: set[Neighbour] = set()
        names: dict[Address, str] = {}
        for way in [*ways]:
            link = VXLAN_LINKS[way.remote.version]
            neighbour = Neighbour(link, way.remote)
            names[way.remote] = link
            same = macs.setdefault(neighbour.mac, way.remote)
            if same != way.remote:
                # One of 2**40: both cannot be told apart behind one device.
                ways.remove(way)
                reason = f"its vxlan hardware address is that of {same}: give it another address"
                self.problems.add(Problem(f"Node {self._owners[way.remote]}", _ADDRESSES, reason))
                continue
            neighbours.add(neighbour)
        tunnels = {}
        for way in ways:
            name = names[way.remote]
            tunnels[name] = self._tunnel(name, way.local, None)
        return names, [*tunnels.values()], frozenset(neighbours)

    def _tunnel(self, name: str, local: Address, remote: Address | None) -> Tunnel:
        # Without a known MTU, that of Ethernet.
        link_mtu = self._links.mtus.get(local, 1500)
        has_port = self._encap is not Encap.IPIP
        return Tunnel(
            name=name,
            encap=self._encap,
            local=local,
            remote=remote,
            port=self._settings.overlay_encap_port if has_port else 0,
            mtu=tunnel_mtu(link_mtu, self._encap, local.version),
        )

    def _routes(self, way: _Link, link: str) -> Iterable[Route]:
        gateway = way.remote if self._encap is Encap.VXLAN else None
        for cidr in way.cidrs:
            yield Route(destination=cidr, link=link, gateway=gateway, source=way.local)
        host: Network = ipaddress.ip_network(way.remote)
        yield Route(destination=host, link=link, table=TABLE)

    def _local(self, version: int) -> Address | None:
        return self._own.ipv4 if version == 4 else self._own.ipv6

    def _unusable(self, remote: Address, node: NodeView) -> str:
        """Why no tunnel can lead to an address; empty if one can."""
        if remote in self._own.addresses:
            return f"{remote} is an address of this node, too: no tunnel leads there"
        if remote.is_multicast or remote.is_unspecified or remote.is_loopback:
            return f"no tunnel can lead to {remote}"
        other = self._owners.setdefault(remote, node.name)
        if other != node.name:
            reason = f"{remote} is the address of Node {other}, too: they share its tunnel"
            self._problem(node, _ADDRESSES, reason)
        return ""

    def _is_usable(self, cidr: Network, node: NodeView) -> bool:
        reason = ""
        if any(cidr.overlaps(each) for each in self._own_cidrs(cidr.version)):
            reason = f"{cidr} overlaps with pod CIDRs of this node: it is not routed"
        elif self._has_a_node(cidr):
            reason = f"{cidr} contains addresses of nodes: it is not routed"
        elif self._owners.setdefault(cidr, node.name) != node.name:
            reason = f"{cidr} is of Node {self._owners[cidr]}, too: it is routed there"
        if reason:
            self._problem(node, _CIDRS, reason)
        return not reason

    def _own_cidrs(self, version: int) -> tuple[Network, ...]:
        return self._own.pod_cidrs_ipv4 if version == 4 else self._own.pod_cidrs_ipv6

    def _has_a_node(self, cidr: Network) -> bool:
        addresses = self._addresses.get(cidr.version, [])
        first = bisect_left(addresses, int(cidr.network_address))
        return first < len(addresses) and addresses[first] <= int(cidr.broadcast_address)

    def _problem(self, node: NodeView, field: str, reason: str) -> None:
        self.problems.add(Problem(f"Node {node.name}", field, reason))


def tunnel_names(remotes: Iterable[Address]) -> dict[Address, str]:
    """The names of the tunnels to these addresses: kube-router's, which runbooks know.

    kube-router hashes the digits of an address without its dots: 21.3.0.4 and 2.13.0.4 would have
    the same. Where that happens, all concerned get names from the whole address instead.
    """
    by_name: dict[str, list[Address]] = defaultdict(list)
    for address in remotes:
        by_name[_name(str(address).replace(".", "").replace(":", ""))].append(address)
    names = {same[0]: name for name, same in by_name.items() if len(same) == 1}
    taken = set(names.values())
    alike = sorted((it for same in by_name.values() if len(same) > 1 for it in same), key=_sort_key)
    for address in alike:
        text = str(address)
        while (name := _name(text)) in taken:
            text += "/"
        names[address] = name
        taken.add(name)
    return names


def _name(text: str) -> str:
    return f"tun-{sha256(text.encode()).hexdigest()[:_DIGITS]}"


def _sort_key(address: Address) -> tuple[int, bytes]:
    return address.version, address.packed
