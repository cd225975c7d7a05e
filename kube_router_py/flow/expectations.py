"""From a trace to what must be in one node's kernel. Pure.

Only what concerns this node: of other ends is told where to ask. What policies want stands in the
compiled state of the firewall, for the pods of the flow (``firewall_state``).
"""

import re
import socket
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from msgspec import Struct, structs

from kube_router_py.endpoint_slices import PROTOCOLS
from kube_router_py.firewall.chains import DIRECTION_CHAINS
from kube_router_py.firewall.desired import Desired
from kube_router_py.firewall.frame import (
    ACCEPT,
    FORWARD,
    INPUT,
    JUMPS,
    OUTPUT,
    audited_pods,
    isolated_pods,
    local_pods,
)
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain, policy_chain
from kube_router_py.flow.expected import (
    BridgeExpected,
    ChainExpected,
    Elsewhere,
    Expectation,
    JumpExpected,
    LeadsExpected,
    LegExpected,
    LocalExpected,
    RouteExpected,
    ServerExpected,
    SetExpected,
    Unknown,
)
from kube_router_py.flow.firewall_state import MOST_PATHS
from kube_router_py.flow.legs import (
    begins_here,
    family_of,
    is_mere_address,
    leg_from_server,
    leg_to_backend,
    leg_to_end,
    leg_to_server,
    leg_towards_server,
    packet_of,
)
from kube_router_py.flow.model import Path, ServiceStep, Trace
from kube_router_py.flow.rule_match import Packet
from kube_router_py.kernel.ports import IpsetSpec, SetState, TableRules
from kube_router_py.kernel.rule_text import canonical, target
from kube_router_py.proxy.model import RealServerKey, VirtualServerKey
from kube_router_py.proxy.packet_sets import SETS

_SET = re.compile(r"--match-set (\S+) (\S+)")
_POLICY_JUMP = re.compile(r"-j (KUBE-NWPLCY-\S+)")
_FRAME = {"INPUT": (INPUT,), "FORWARD": (FORWARD, ACCEPT), "OUTPUT": (OUTPUT,)}


class NodeState(Struct, frozen=True):
    """This node: its name, its own addresses, what its firewall wants for the pods of the flow, and
    the service proxy's rules by family and table; None where a part does not run."""

    name: str
    addresses: frozenset[str] = frozenset()
    firewall: Desired | None = None
    proxy: Mapping[str, Mapping[str, TableRules]] | None = None
    routes: bool = False


def expectations(trace: Trace, node: NodeState) -> Iterator[Expectation]:
    """In the order of the packet's way; none twice."""
    seen: list[Expectation] = []
    for each in _all(trace, node):
        if each not in seen:
            seen.append(each)
            yield each


def server_node(trace: Trace) -> str:
    """The node whose IPVS has a say: of a NodePort of another node, that one."""
    return (trace.service.node if trace.service is not None else "") or trace.node


def _all(trace: Trace, node: NodeState) -> Iterator[Expectation]:
    is_first = server_node(trace) == node.name
    legs: list[LegExpected] = []
    if trace.service is not None:
        if is_first:
            yield from _server(trace, trace.service, node)
            if trace.service.server is not None:
                source = trace.source
                is_judged = source.node == node.name and _enforces(node, source.address)
                if is_judged and trace.service.server.fwmark and not trace.paths:
                    why = "without a backend nobody has asked whether egress policies refuse it"
                    yield Unknown("the way to the virtual server", why)
                else:
                    legs.append(
                        leg_to_server(trace, trace.service, node.addresses, is_judged=is_judged)
                    )
        elif at := server_node(trace):
            yield Elsewhere(f"virtual server of Service {trace.service.key}", at)
    paths = trace.paths
    if trace.service is not None and trace.service.refused:
        paths = ()  # nobody gets there
    if is_first and paths and trace.service is not None and _is_anybody(trace, node):
        why = f"who sends from {trace.source.address} is not known; a process is node/{node.name}"
        yield Unknown("the way from IPVS to its backends", why)
    for path in paths[:MOST_PATHS]:
        yield from _sides(trace, path, node)
        if is_first:
            yield from _route(trace, path, node)
        found = _legs(trace, path, node)
        is_enforced = _enforces(node, path.address)
        legs += found if is_enforced else map(_without_policies, found)
        if is_enforced and _shares_a_node(trace, path, node.name):
            what = "policies see what passes between pods of one bridge"
            yield BridgeExpected(what, trace.source.address, path.address)
    if len(paths) > MOST_PATHS:
        rest = len(paths) - MOST_PATHS
        yield Unknown(f"{rest} more backends", "of so many only the first are looked at")
    hooks = dict.fromkeys(hook for leg in legs for hook in leg.hooks)
    yield from _frame(trace, node, tuple(hooks))
    yield from legs


def _is_anybody(trace: Trace, node: NodeState) -> bool:
    """Whether all that is known of who comes to IPVS is an address of the node itself."""
    source = trace.source
    if source.kind == "external":
        return source.address in node.addresses  # its Node does not list it
    return is_mere_address(trace) and source.node == node.name


def _enforces(node: NodeState, address: str) -> bool:
    """Whether the firewall has chains for the family of an address."""
    return node.firewall is not None and family_of(address) in node.firewall.chains


def _without_policies(leg: LegExpected) -> LegExpected:
    return structs.replace(leg, passes=True, why="this agent enforces no policies")


def _shares_a_node(trace: Trace, path: Path, node: str) -> bool:
    """Whether both ends are pods of a node, and not the same one."""
    source = trace.source
    is_pod = source.kind == "pod" and bool(path.pod) and path.pod != source.key
    return is_pod and source.node == path.node == node


# --- the Service ---------------------------------------------------------------------------------


def server_key(service: ServiceStep) -> VirtualServerKey:
    """What IPVS knows the Service's address by."""
    server = service.server
    packed = ip_address(service.address.address).packed
    family = int(socket.AF_INET if len(packed) == 4 else socket.AF_INET6)
    if server is not None and server.fwmark:
        return VirtualServerKey(family, 0, b"", 0, server.fwmark)
    return VirtualServerKey(family, PROTOCOLS[service.protocol], packed, service.address.port)


def _server(trace: Trace, service: ServiceStep, node: NodeState) -> Iterator[Expectation]:
    what = f"virtual server of Service {service.key}"
    if node.proxy is None:
        yield Unknown(what, "this agent runs no service proxy (--run-service-proxy)")
        return
    key = server_key(service)
    server = service.server
    if server is None:
        yield ServerExpected(what, key, None)
        return
    wanted = {
        RealServerKey(key.family, ip_address(each.address).packed, each.port): each.weight
        for each in trace.backends
        if each.is_in
    }
    yield ServerExpected(what, key, wanted, server.scheduler, server.persistence_s)
    address = service.address
    if server.fwmark:
        return
    if address.kind == "node-port":
        yield LocalExpected("address of the node with the NodePort", address.address)
    else:
        yield LocalExpected("address of the Service", address.address)
    packet = packet_of(trace, trace.source.address, address.address, address.port)
    sets = SETS[key.family]
    entry = f"{address.address},{packet.protocol}:{address.port}"
    state = SetState(sets.svip_port, 0, frozenset((entry,)))
    yield SetExpected("the Service's address and port are served", state, "dst,dst", packet)
    if address.kind != "node-port" and address.address not in node.addresses:
        state = SetState(sets.svip, 0, frozenset((address.address,)))
        yield SetExpected("the address is one of Services", state, "dst", packet)


# --- policies ------------------------------------------------------------------------------------


def _sides(trace: Trace, path: Path, node: NodeState) -> Iterator[Expectation]:
    source = trace.source
    if source.kind == "pod":
        side, what = path.egress, f"egress policies of pod {source.key}"
        if source.node != node.name:
            if source.node:
                yield Elsewhere(what, source.node)
        elif node.firewall is not None:
            seen = path.egress_source or source.address
            to = path.address, path.port
            if trace.service is not None and server_node(trace) != trace.node:
                to = trace.service.address.address, trace.service.address.port
            packet = packet_of(trace, seen, *to)
            decided = side.decided_by.policy if side.decided_by else ""
            yield from _isolation(node.firewall, source.key, Direction.EGRESS, packet, decided)
    side = path.ingress
    what = f"ingress policies of pod {path.pod}" if path.pod else f"ingress of {path.address}"
    if path.judged_at and path.judged_at != node.name:
        yield Elsewhere(what, path.judged_at)
    elif path.pod and path.node == node.name and node.firewall is not None:
        seen = path.ingress_source or source.address
        packet = packet_of(trace, seen, path.address, path.port)
        decided = side.decided_by.policy if side.decided_by else ""
        yield from _isolation(node.firewall, path.pod, Direction.INGRESS, packet, decided)


def _isolation(
    firewall: Desired, pod: str, direction: Direction, packet: Packet, decided: str
) -> Iterator[Expectation]:
    """``decided``: the policy whose rule admits."""
    family = packet.family
    chains = firewall.chains.get(family)
    if chains is None:
        yield Unknown(f"{direction} policies of pod {pod}", "this family is not enabled here")
        return
    side = "src" if direction is Direction.EGRESS else "dst"
    own = (isolated_pods(direction, family), audited_pods(direction, family))
    for spec in (local_pods(family), *own):
        yield SetExpected(f"{direction} of pod {pod}", _wanted(firewall, spec), side, packet)
    name = pod_chain(pod, direction)
    if (rules := chains.get(name)) is None:
        return
    top = DIRECTION_CHAINS[direction]
    yield LeadsExpected(f"address of pod {pod} leads to its {direction} chain", top, name, packet)
    yield ChainExpected(f"{direction} chain of pod {pod}", family, "filter", name, rules)
    specs = {spec.name: spec for spec in firewall.sets.specs()}
    for rule in rules:
        if (jump := _POLICY_JUMP.search(rule)) is None or jump[1] not in chains:
            continue
        note = f"with the rule that admits ({decided})"
        is_deciding = bool(decided) and jump[1] == policy_chain(decided, direction)
        lines = chains[jump[1]]
        what = f"{direction} chain of a policy of pod {pod}"
        yield ChainExpected(what, family, "filter", jump[1], lines, note if is_deciding else "")
        for each in lines:
            for found, sides in _SET.findall(each):
                if found in specs:
                    yield SetExpected(
                        f"peers or ports of a policy of pod {pod}",
                        _wanted(firewall, specs[found]),
                        sides,
                        packet,
                    )


def _wanted(firewall: Desired, spec: IpsetSpec) -> SetState:
    return SetState(spec, 0, frozenset(firewall.sets[spec]))


# --- chains that are there for everybody ---------------------------------------------------------


def _frame(
    trace: Trace, node: NodeState, hooks: tuple[tuple[str, str], ...]
) -> Iterator[Expectation]:
    address = trace.destination.address or trace.source.address
    family = family_of(address)
    if node.firewall is not None and family in node.firewall.chains:
        chains = node.firewall.chains[family]
        for jump in JUMPS:
            if ("filter", jump.parent) in hooks:
                yield JumpExpected(family, "filter", jump)
        for _, parent in (hook for hook in hooks if hook[0] == "filter"):
            for name in _FRAME.get(parent, ()):
                if name in chains:
                    what = f"chain of {parent}"
                    yield ChainExpected(what, family, "filter", name, chains[name])
    if node.proxy is None or trace.service is None or server_node(trace) != node.name:
        return
    for table, rules in node.proxy.get(family, {}).items():
        for jump in rules.jumps:
            if (table, jump.parent) not in hooks:
                continue
            yield JumpExpected(family, table, jump)
            name = target(canonical(jump.rule))
            if table != "nat" and name in rules.chains:
                what = f"chain of {jump.parent}"
                yield ChainExpected(what, family, table, name, rules.chains[name])


# --- ways ----------------------------------------------------------------------------------------


def _legs(trace: Trace, path: Path, node: NodeState) -> Iterator[LegExpected]:
    service, own = trace.service, (node.name, node.addresses)
    if service is None or service.server is None:
        if node.name in (trace.node, path.node) and path.route.kind not in ("inside", "none"):
            yield leg_to_end(trace, path, *own)
        return
    if server_node(trace) != node.name:
        if trace.node == node.name:
            yield leg_towards_server(trace, path, service, *own)
        if path.node == node.name and (path.pod or path.judged_at):
            yield leg_from_server(trace, path, *own)
        return
    if service.server.fwmark or path.route.kind == "none" or _is_anybody(trace, node):
        return
    # What stays inside a pod passes no hook; a hairpin goes out and comes back.
    if path.route.kind != "inside" or path.translation.reason == "hairpin":
        yield leg_to_backend(trace, path, *own)


_KINDS = {"pod": "unicast", "node": "local", "none": "none"}


def _route(trace: Trace, path: Path, node: NodeState) -> Iterator[Expectation]:
    route = path.route
    if route.kind == "inside" or (trace.service is not None and trace.service.server is not None):
        # What IPVS sends on begins here, whoever the client is.
        source = ""
    else:
        is_here = begins_here(trace, node.name, node.addresses) or _is_anybody(trace, node)
        source = "" if is_here else trace.source.address
    # A pod that reaches itself through its Service needs more than a route.
    is_itself = bool(path.pod) and path.pod == trace.source.key
    if route.kind in ("inside", "unknown") or is_itself:
        return
    gateway = route.next_hop if route.kind == "direct" and node.routes else ""
    yield RouteExpected(
        f"route to {path.pod or path.address}",
        path.address,
        _KINDS.get(route.kind, "unicast"),
        route.link,
        gateway,
        source,
    )
