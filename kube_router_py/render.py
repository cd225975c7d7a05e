"""``render``: what the agent would program on a node, from manifests alone.

The document is the format of the golden tests and what a user attaches to a bug report. Each loop
adds its own keys; those of a subsystem that is switched off are absent.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from msgspec import structs

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.endpoint_slices import PROTOCOLS
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.manifests import ManifestError, Manifests, load_manifests
from kube_router_py.options import Options
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import compile_service
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.dsr import DirectServer
from kube_router_py.proxy.model import (
    Flag,
    Forward,
    Guard,
    RealServer,
    RealServerKey,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.settings import (
    ProxyOptions,
    ThisNode,
    backend_weights,
    node_port_problems,
    proxy_options,
    this_node,
)
from kube_router_py.render_bgp import NOTHING_GIVEN, Given
from kube_router_py.render_dsr import DirectServers, with_direct_return
from kube_router_py.render_firewall import render_firewall, text_of_firewall
from kube_router_py.render_pools import with_pools
from kube_router_py.render_routing import render_routing, routing_notes, text_of_routing
from kube_router_py.routing.model import Address
from kube_router_py.routing.settings import routing_settings
from kube_router_py.routing.settings import with_pools as with_pool_terms
from kube_router_py.services import FAMILY_NAMES, cluster_ips, is_proxied, service_key_of

_FLAG_NAMES = {
    Flag.SCHED1: "sched-1",
    Flag.SCHED2: "sched-2",
    Flag.SCHED3: "sched-3",
    Flag.ONEPACKET: "onepacket",
}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def main(
    files: Sequence[str],
    node: str,
    options: Options,
    output: str,
    given: Given,
    stdin: IO[str],
    stdout: IO[str],
) -> int:
    """Render manifests for one node; ``output`` is ``json`` or ``text``. Returns the exit code.

    Objects that are wrong become ``problems`` and exit code 0; a file that cannot be read or parsed
    is told on stderr and exit code 1. Without ``given.show_secrets`` no Secret and no file of
    passwords is read, and no password of an annotation or a flag shown.
    """
    try:
        family = _primary_family(options)
        manifests = load_manifests(files, stdin, family, with_secrets=given.show_secrets)
        if given.show_secrets and options.run_router and options.peer_router_passwords_file:
            given = structs.replace(given, password_list=_text(options.peer_router_passwords_file))
    except ManifestError as error:
        print(f"kube-router-py render: {error}", file=sys.stderr)
        return 1
    for note in _notes(manifests, node, options, given):
        print(f"kube-router-py render: {note}", file=sys.stderr)
    document = render(manifests, node, options, given)
    if output == "text":
        stdout.write("\n".join((*render_text(document), "")))
    else:
        stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


def _primary_family(options: Options) -> str:
    """The family a Service has when nothing says otherwise: that of the first cluster range."""
    for network in options.service_cluster_ip_range:
        return f"IPv{network.version}"
    return "IPv4" if options.enable_ipv4 else "IPv6"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def _notes(manifests: Manifests, node: str, options: Options, given: Given) -> Iterator[str]:
    if options.nodeport_bindon_all_ip or options.nodeport_addresses:
        yield (
            "note: NodePorts are shown at addresses that the Node lists; the agent goes by those "
            "that the node's links have"
        )
    for service in manifests.list(Service):
        is_cluster = service.spec.type != "ExternalName"
        if is_cluster and is_proxied(service) and not cluster_ips(service):
            yield (
                f"note: Service {service.metadata.key} has no clusterIP; none is allocated here, "
                "so it has no virtual server of that kind"
            )
    if options.run_router:
        yield from routing_notes(manifests, node, routing_settings(options), given)


def render(
    manifests: Manifests, node_name: str, options: Options, given: Given = NOTHING_GIVEN
) -> dict[str, Any]:
    """The whole document, ready for JSON."""
    document: dict[str, Any] = {}
    options, pools, wrong_pools = with_pools(manifests, options, given.namespace)
    problems = {*manifests.problems, *wrong_pools}
    served: frozenset[Address] | None = None
    if options.run_service_proxy:
        desired, direct, more = _compile(manifests, node_name, proxy_options(options))
        served = frozenset(
            ip_address(packed)
            for packed in (
                *(vip.address for vip in desired.vips()),
                *(server.address.address for server in direct.values()),
            )
        )
        document["virtual_servers"] = _virtual_servers(desired, direct)
        document["health_checks"] = _health_checks(desired)
        document["hairpins"] = _hairpins(desired)
        problems |= more
    if options.run_firewall:
        found, wrong = render_firewall(manifests, node_name, firewall_options(options))
        document |= found
        problems |= wrong
    if options.run_router:
        own = manifests.get(Node, node_name)
        labels = (own.metadata.labels if own is not None else None) or {}
        settings = with_pool_terms(routing_settings(options), pools, labels)
        found, wrong = render_routing(manifests, node_name, settings, given, served)
        document |= found
        problems |= wrong
    document["problems"] = [
        {"object": each.object, "field": each.field, "reason": each.reason}
        for each in sorted(problems)
    ]
    return document


def _compile(
    manifests: Manifests, node_name: str, options: ProxyOptions
) -> tuple[Desired, DirectServers, set[Problem]]:
    problems: set[Problem] = set()
    node = ThisNode(node_name)
    found = manifests.get(Node, node_name)
    if found is not None:
        view, node_problems = node_view(found)
        problems.update(node_problems)
        weights, weight_problems = backend_weights(manifests.list(Node))
        problems.update(weight_problems)
        node = this_node(view, options, weights=weights)
    slices: dict[str, list[EndpointSlice]] = {}
    for each in manifests.list(EndpointSlice):
        if key := service_key_of(each):
            slices.setdefault(key, []).append(each)
    desired = Desired()
    with_node_ports: list[str] = []
    compiled = {
        service.metadata.key: compile_service(
            service, slices.get(service.metadata.key, ()), node, options
        )
        for service in manifests.list(Service)
    }
    compiled, direct = with_direct_return(compiled, slices, manifests, node)
    for service in manifests.list(Service):
        key = service.metadata.key
        desired.update(key, compiled[key])
        has_node_ports = service.spec.type in ("NodePort", "LoadBalancer") and any(
            port.node_port for port in service.spec.ports or ()
        )
        if has_node_ports and is_proxied(service):
            with_node_ports.append(key)
    problems.update(desired.problems())
    missing = [FAMILY_NAMES[f] for f in options.families if f not in node.addresses]
    if with_node_ports:
        problems.update(node_port_problems(node, options))
    if with_node_ports and missing:
        names = ", ".join(with_node_ports[:5]) + (", ..." if len(with_node_ports) > 5 else "")
        if found is None:
            field, what = "", "is not among the objects"
        else:
            field, what = "status.addresses", f"has no {' and no '.join(missing)} address"
        reason = f"{what}: NodePorts are left out ({names})"
        problems.add(Problem(f"Node {node_name}", field, reason))
    return desired, direct, problems


def _virtual_servers(desired: Desired, direct: DirectServers) -> list[dict[str, Any]]:
    def place(key: VirtualServerKey) -> tuple[Any, ...]:
        origin = desired.origin(key)
        where = direct[key].address if key in direct else key
        return (desired.owner(key), origin.port_name, origin.kind, where)

    return [
        _virtual_server(desired, key, direct.get(key), state)
        for key in sorted(desired.servers(), key=place)
        if (state := desired.state(key)) is not None
    ]


def _virtual_server(
    desired: Desired,
    key: VirtualServerKey,
    direct: DirectServer | None,
    state: VirtualServerState,
) -> dict[str, Any]:
    address = direct.address if direct else key
    origin = desired.origin(key)
    tunnelled = any(real.forward == Forward.TUNNEL for real in state.real_servers.values())
    entry: dict[str, Any] = {
        "service": desired.owner(key),
        "port_name": origin.port_name,
        "kind": str(origin.kind),
        "protocol": _PROTOCOL_NAMES[address.protocol],
        "address": str(ip_address(address.address)),
        "port": address.port,
        "fwmark": key.fwmark or None,
        "scheduler": state.config.scheduler,
        "flags": [name for flag, name in _FLAG_NAMES.items() if state.config.flags & flag],
        "persistence_s": state.config.persistence_s,
        "forward": "tunnel" if tunnelled else "masquerade",
        "real_servers": [
            _real_server(real, value) for real, value in sorted(state.real_servers.items())
        ],
    }
    guard = Guard(source_ranges=direct.sources) if direct else desired.guard(key)
    if guard and guard != Guard():
        entry["guard"] = _guard(guard)
    leaving = desired.paused(key) | desired.terminating(key)
    if leaving:
        entry["draining"] = [_real_server(real, RealServer(weight=0)) for real in sorted(leaving)]
    return entry


def _guard(guard: Guard) -> dict[str, Any]:
    """Who does not get as far as the virtual server; only what applies."""
    found: dict[str, Any] = {}
    if guard.everyone:
        found["dropped"] = "everyone: no endpoint on this node"
    if guard.outsiders:
        found["dropped"] = "clients outside the cluster: no endpoint on this node"
    if guard.source_ranges is not None:
        found["source_ranges"] = list(guard.source_ranges)
    return found


def _real_server(key: RealServerKey, value: RealServer) -> dict[str, Any]:
    return {
        "address": str(ip_address(key.address)),
        "port": key.port,
        "weight": value.weight,
    }


def _health_checks(desired: Desired) -> list[dict[str, Any]]:
    return [
        {"service": key, "port": found.port, "local_endpoints": found.local_endpoints}
        for key, found in sorted(desired.health_checks(), key=lambda each: each[0])
    ]


def _hairpins(desired: Desired) -> list[dict[str, Any]]:
    """Endpoints of this node that may reach themselves through their Service."""
    return [
        {
            "service": key,
            "protocol": _PROTOCOL_NAMES[each.protocol],
            "address": str(ip_address(each.real_server.address)),
            "port": each.real_server.port,
        }
        for key in sorted(desired.services())
        if (compiled := desired.compiled(key))
        for each in sorted(compiled.hairpins)
    ]


def render_text(document: dict[str, Any]) -> Iterator[str]:
    """The same document for people, line by line."""
    servers = document.get("virtual_servers", [])
    for service, entries in groupby(servers, key=lambda entry: str(entry["service"])):
        yield f"Service {service}"
        for entry in entries:
            yield "  " + _server_line(entry)
            for real in entry["real_servers"]:
                yield f"    -> {_place(real)} weight {real['weight']}"
            for real in entry.get("draining", ()):
                yield f"    -> {_place(real)} draining"
            guard = entry.get("guard", {})
            if "dropped" in guard:
                yield f"    dropped: {guard['dropped']}"
            if "source_ranges" in guard:
                yield f"    only from: {', '.join(guard['source_ranges']) or 'nowhere'}"
            if not entry["real_servers"] and "dropped" not in guard:
                yield "    (no endpoint takes new connections: they are refused)"
    if "virtual_servers" in document and not servers:
        yield "No virtual servers."
    for check in document.get("health_checks", ()):
        answer = "200" if check["local_endpoints"] else "503"
        yield (
            f"Health check of Service {check['service']}: port {check['port']} answers {answer}, "
            f"ready endpoints on this node: {check['local_endpoints']}"
        )
    for hairpin in document.get("hairpins", ()):
        where = f"{hairpin['protocol']} {_place(hairpin)}"
        yield f"Hairpin of Service {hairpin['service']}: {where}"
    yield from text_of_firewall(document)
    yield from text_of_routing(document)
    if document["problems"]:
        yield "Problems"
        for problem in document["problems"]:
            yield f"  {Problem(**problem)}"


def _server_line(entry: dict[str, Any]) -> str:
    words = [f"{entry['kind']} {entry['protocol']} {_place(entry)}"]
    if entry["port_name"]:
        words.append(f"({entry['port_name']})")
    words.append(entry["scheduler"])
    words += entry["flags"]
    if entry["fwmark"]:
        words.append(f"fwmark {entry['fwmark']:#x}")
    if entry["persistence_s"]:
        words.append(f"persistent {entry['persistence_s']} s")
    if entry["forward"] != "masquerade":
        words.append(entry["forward"])
    return " ".join(words)


def _place(entry: dict[str, Any]) -> str:
    address = entry["address"]
    return f"[{address}]:{entry['port']}" if ":" in address else f"{address}:{entry['port']}"
