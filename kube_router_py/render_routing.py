"""What of ``render`` concerns routing: FRR's files, routes, tunnels, the CNI configuration. Pure.

Of the node itself nothing is looked at. What its links have is given (``Given``) or taken to be as
usual, every address that the service proxy would serve counts as served, and the CNI configuration
is the one that is made where there is none.
"""

import json
import socket
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Any

from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.kernel.overlay_ports import MAIN, PRIORITY, TABLE, VNI, Encap, Overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.manifests import Manifests
from kube_router_py.problem import Problem
from kube_router_py.render_bgp import Given, Interface, bgp_notes, network_order, render_bgp
from kube_router_py.routing.cni import compile_cni
from kube_router_py.routing.egress import ClusterSets
from kube_router_py.routing.model import Address
from kube_router_py.routing.mtu import pod_mtu
from kube_router_py.routing.overlay import NodeLinks, compile_overlay, node_links
from kube_router_py.routing.pod_cidrs import with_pod_cidrs
from kube_router_py.routing.settings import RoutingSettings

_LENGTHS = {4: 24, 6: 64}
_PROTOCOL = "75"
_TABLES = {MAIN: "main", TABLE: str(TABLE)}


def parse_link(text: str) -> Interface:
    """An address with the length of its network's prefix. Raises ValueError: "is no ..."."""
    try:
        if "/" in text:
            return ip_interface(text)
    except ValueError:
        pass
    raise ValueError("is no address with the length of its network, such as 10.0.0.11/24")


def render_routing(
    manifests: Manifests,
    node_name: str,
    settings: RoutingSettings,
    given: Given,
    served: frozenset[Address] | None,
) -> tuple[dict[str, Any], set[Problem]]:
    """``frr``, ``routes``, ``rules``, ``tunnels`` and ``cni``, and what is wrong.

    ``served`` are the addresses that the service proxy of this node would serve; None: it does not
    run there. All is empty where the Node is not among the objects.
    """
    node = manifests.get(Node, node_name)
    if node is None:
        return {"frr": {}, "routes": [], "rules": [], "tunnels": [], "cni": {}}, set()
    raw = {each.metadata.name: node_view(each)[0] for each in manifests.list(Node)}
    views: dict[str, NodeView] = {}
    problems: set[Problem] = set(node_view(node)[1])
    cluster = ClusterSets(settings.versions)
    for name, view in raw.items():
        views[name], wrong = with_pod_cidrs(view)
        problems.update(wrong)
        cluster.put(views[name])
    problems.update(cluster.problems)
    own = views.pop(node_name)
    links = _links(own, given)
    overlay, found = compile_overlay(own, views.values(), settings, links)
    problems.update(found)
    cni, wrong_cni = _cni(own, settings, links)
    problems.update(wrong_cni)
    frr, learned, wrong_bgp = render_bgp(manifests, raw, node, settings, given, served, links)
    problems.update(wrong_bgp)
    document = {
        "frr": frr,
        "routes": [*_own_routes(overlay), *learned],
        "rules": [
            {
                "from": str(each),
                "table": _TABLES[TABLE],
                "priority": PRIORITY,
                "protocol": _PROTOCOL,
            }
            for each in sorted(overlay.rules, key=network_order)
        ],
        "tunnels": [*_tunnels(overlay)],
        "cni": cni,
    }
    return document, problems


def routing_notes(
    manifests: Manifests, node_name: str, settings: RoutingSettings, given: Given
) -> Iterator[str]:
    """What is taken for granted and cannot be known from objects."""
    node = manifests.get(Node, node_name)
    if node is None:
        yield f"note: Node {node_name} is not among the objects: nothing of its routing is shown"
        return
    own, _ = with_pod_cidrs(node_view(node)[0])
    if own.addresses:
        networks = ", ".join(str(each) for each in _interfaces(own, given))
        yield (
            f"note: the node's links are not looked at; they are taken to have {networks} and an "
            f"MTU of {given.link_mtu} (--link, --link-mtu)"
        )
    if settings.enable_cni:
        yield (
            f"note: {settings.cni_conf_file} is not looked at; it is shown as it is made where "
            "there is none"
        )
    if settings.has_proxy and manifests.list(Service):
        yield "note: each address of a Service counts as served by this node's proxy by now"
    yield from bgp_notes(manifests, node, own, settings, given)


# --- what is not known ----------------------------------------------------------------------


def _interfaces(own: NodeView, given: Given) -> tuple[Interface, ...]:
    usual = (ip_interface((each, _LENGTHS[each.version])) for each in own.addresses)
    return given.links or tuple(usual)


def _links(own: NodeView, given: Given) -> NodeLinks:
    families = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
    addresses = [
        NodeAddress(families[each.version], each.ip.packed, each.network.prefixlen, "eth0")
        for each in _interfaces(own, given)
    ]
    return node_links(own, addresses, {"eth0": given.link_mtu})


# --- pod network ----------------------------------------------------------------------------


def _own_routes(overlay: Overlay) -> Iterator[dict[str, Any]]:
    places = sorted(overlay.routes, key=lambda each: (network_order(each.destination), each.link))
    for each in places:
        route: dict[str, Any] = {"by": "agent", "destination": str(each.destination)}
        if each.gateway is not None:
            route["via"] = str(each.gateway)
        route |= {"link": each.link, "table": _TABLES[each.table], "protocol": _PROTOCOL}
        if each.source is not None:
            route["source"] = str(each.source)
        yield route


def _tunnels(overlay: Overlay) -> Iterator[dict[str, Any]]:
    for name in sorted(overlay.tunnels):
        each = overlay.tunnels[name]
        ip_in_ip = "ipip" if each.version == 4 else "ip6tnl"
        tunnel: dict[str, Any] = {
            "name": name,
            "kind": "vxlan" if each.encap is Encap.VXLAN else ip_in_ip,
            "encapsulation": str(each.encap),
            "local": str(each.local),
            "remote": str(each.remote) if each.remote is not None else None,
            "port": each.port or None,
            "mtu": each.mtu,
        }
        if each.encap is Encap.VXLAN:
            tunnel["vni"] = VNI
            tunnel["neighbours"] = [
                {"address": str(one.address), "mac": one.mac.hex(":")}
                for one in sorted(overlay.neighbours, key=lambda it: it.address.packed)
                if one.link == name
            ]
        yield tunnel


def _cni(
    own: NodeView, settings: RoutingSettings, links: NodeLinks
) -> tuple[dict[str, Any], set[Problem]]:
    if not settings.enable_cni:
        return {}, set()
    mtu, found = pod_mtu(links.mtu_by_version(own), settings, own.name)
    problems = set(found)
    cidrs = [each for each in own.pod_cidrs if each.version in settings.versions]
    change = compile_cni(None, settings.cni_conf_file, own.name, cidrs, mtu)
    problems.update(change.problems)
    if change.text is None:
        return {}, problems
    return {"file": settings.cni_conf_file, "content": json.loads(change.text)}, problems


# --- for people -----------------------------------------------------------------------------


def text_of_routing(document: dict[str, Any]) -> Iterator[str]:
    """The same for people, line by line."""
    for daemon, text in document.get("frr", {}).items():
        yield f"FRR {daemon}" if text else f"FRR {daemon} is not started: no session uses BFD"
        yield from ("    " + line for line in text.splitlines())
    for route in document.get("routes", ()):
        words = [f"Route {route['destination']}"]
        words += [f"via {route['via']}"] if "via" in route else []
        words += [f"dev {route['link']}"] if "link" in route else []
        words.append(f"table {route['table']} proto {route['protocol']}")
        words += [f"src {route['source']}"] if "source" in route else []
        if route["by"] == "frr":
            words.append(f"metric {route['metric']}, by FRR once it has learned it")
        yield " ".join(words)
    for rule in document.get("rules", ()):
        yield f"Rule {rule['priority']}: from {rule['from']} lookup {rule['table']}"
    for each in document.get("tunnels", ()):
        yield f"Tunnel {each['name']} {_shown_tunnel(each)}"
        for one in each.get("neighbours", ()):
            yield f"    -> {one['address']} at {one['mac']}"
    cni = document.get("cni")
    if cni:
        yield f"CNI {cni['file']}"
        yield from ("    " + line for line in json.dumps(cni["content"], indent=2).splitlines())


def _shown_tunnel(tunnel: dict[str, Any]) -> str:
    words = [tunnel["kind"]]
    if tunnel["encapsulation"] == Encap.FOU:
        words.append("in fou")
    words.append(f"local {tunnel['local']}")
    words += [f"remote {tunnel['remote']}"] if tunnel["remote"] else []
    words += [f"port {tunnel['port']}"] if tunnel["port"] else []
    words.append(f"mtu {tunnel['mtu']}")
    return " ".join(words)
