"""Which hooks of a node a packet of a flow passes, and what it looks like there. Pure.

What IPVS takes: a client's packet passes PREROUTING and INPUT, or OUTPUT as far as mangle where the
client is the node, then IPVS chooses the destination, and the packet passes OUTPUT and POSTROUTING
as if it began here (ip_vs_nat_xmit, net/netfilter/ipvs/ip_vs_xmit.c).
"""

from msgspec import structs

from kube_router_py.flow.expected import Hook, LegExpected
from kube_router_py.flow.model import Path, ServiceStep, Trace
from kube_router_py.flow.rule_match import Packet

_IN: tuple[Hook, ...] = (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("nat", "PREROUTING"))
_INPUT: tuple[Hook, ...] = (("mangle", "INPUT"), ("filter", "INPUT"))
_FORWARD: tuple[Hook, ...] = (("mangle", "FORWARD"), ("filter", "FORWARD"))
_OUTPUT: tuple[Hook, ...] = (("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "OUTPUT"))
_OUT: tuple[Hook, ...] = (("mangle", "POSTROUTING"), ("nat", "POSTROUTING"))


def begins_here(trace: Trace, node: str, addresses: frozenset[str]) -> bool:
    """Whether a process of the node itself connects, be it one of a pod in its network;
    ``addresses`` are the node's own."""
    source = trace.source
    if source.node != node:
        return False
    if source.kind == "node":
        return not is_mere_address(trace)
    return source.kind == "pod" and source.address in addresses


def is_mere_address(trace: Trace) -> bool:
    """Whether the source is a node's address and no more: behind it may be somebody whose source
    was rewritten, so that it is judged as one from outside."""
    return trace.source.kind == "node" and not trace.source.written.startswith("node/")


def packet_of(trace: Trace, source: str, destination: str, port: int) -> Packet:
    """One of the flow, between two addresses."""
    return Packet(
        family_of(destination), trace.question.protocol.lower(), source, destination, port
    )


def family_of(address: str) -> str:
    """As iptables calls it."""
    return "inet6" if ":" in address else "inet"


def leg_to_server(
    trace: Trace, service: ServiceStep, addresses: frozenset[str], *, is_judged: bool
) -> LegExpected:
    """From the client to the virtual server; ``addresses`` are the node's own. One that is found by
    mark is at no address of the node, and what is for it INPUT judges for good (``is_judged``:
    this node enforces the client's egress policies)."""
    address = service.address
    packet = packet_of(trace, trace.source.address, address.address, address.port)
    is_here = begins_here(trace, trace.node, addresses)
    is_marked = service.server is not None and service.server.fwmark > 0
    packet = structs.replace(
        packet, is_local_target=not is_marked, is_local_source=trace.source.address in addresses
    )
    refused = f"the guard refuses: {service.refused}" if service.refused else ""
    if is_marked and is_judged and not all(each.egress.allowed for each in trace.paths):
        refused = f"egress policies of pod {trace.source.key} refuse it"
    return LegExpected(
        f"{packet}, to the virtual server",
        packet,
        (("raw", "OUTPUT"), ("mangle", "OUTPUT")) if is_here else (*_IN, *_INPUT),
        not refused,
        refused or "nobody is kept from the Service",
        in_of="" if is_here else trace.source.address,
    )


def leg_to_backend(trace: Trace, path: Path, node: str, addresses: frozenset[str]) -> LegExpected:
    """Behind IPVS, to a backend that is elsewhere or a pod of this node."""
    packet = packet_of(trace, trace.source.address, path.address, path.port)
    packet = structs.replace(
        packet,
        by_ipvs=True,
        is_local_source=trace.source.address in addresses,
        is_local_target=path.address in addresses,
    )
    is_local = path.address in addresses
    return LegExpected(
        f"{packet}, from IPVS to its backend",
        packet,
        # A real server on the node itself is reached without another look.
        () if is_local else (*_OUTPUT, *_OUT),
        *_passes(trace, path, node),
        out_to=path.address,
        source=None if is_local else _source(path),
    )


def leg_to_end(trace: Trace, path: Path, node: str, addresses: frozenset[str]) -> LegExpected:
    """Straight to the address: through the node, into it, or out of it."""
    is_first = trace.node == node
    seen = trace.source.address if is_first else path.ingress_source or trace.source.address
    replaced = _source(path) if is_first else None
    return _straight(trace, path, node, addresses, seen, _passes(trace, path, node), replaced)


def leg_towards_server(
    trace: Trace, path: Path, service: ServiceStep, node: str, addresses: frozenset[str]
) -> LegExpected:
    """From a client of this node to the NodePort of another one, which does the rest."""
    address = service.address
    path = structs.replace(path, address=address.address, port=address.port, judged_at="", pod="")
    seen = trace.source.address
    return _straight(trace, path, node, addresses, seen, _passes(trace, path, node), None)


def leg_from_server(trace: Trace, path: Path, node: str, addresses: frozenset[str]) -> LegExpected:
    """What another node's IPVS sends to a pod of this one."""
    seen = path.ingress_source or trace.source.address
    verdict = _passes(trace, path, node, is_behind=True)
    return _straight(trace, path, node, addresses, seen, verdict, None)


def _straight(
    trace: Trace,
    path: Path,
    node: str,
    addresses: frozenset[str],
    seen: str,
    verdict: tuple[bool, str],
    replaced: str | None,
) -> LegExpected:
    packet = packet_of(trace, seen, path.address, path.port)
    is_source, is_target = seen in addresses, path.address in addresses
    packet = structs.replace(packet, is_local_source=is_source, is_local_target=is_target)
    if is_source and begins_here(trace, node, addresses):
        hooks: tuple[Hook, ...] = (*_OUTPUT, *_OUT)
        in_of = ""
    else:
        hooks = (*_IN, *_INPUT) if is_target else (*_IN, *_FORWARD, *_OUT)
        in_of = seen
    return LegExpected(
        str(packet),
        packet,
        hooks,
        *verdict,
        in_of=in_of,
        out_to="" if is_target else path.address,
        source=None if is_target else replaced,
    )


def _source(path: Path) -> str | None:
    if path.translation.reason == "unknown":
        return None
    if not path.translation.is_translated:
        return ""
    return path.translation.source or "*"


def _passes(trace: Trace, path: Path, node: str, *, is_behind: bool = False) -> tuple[bool, str]:
    """Whether the policies that this node enforces allow it, and what they say. ``is_behind``:
    another node has sent it on, so that egress was its first node's matter."""
    source = trace.source
    # What comes from an address that no pod has is refused where it comes from.
    at = source.node if source.kind == "pod" else trace.node
    if at == node and not is_behind and not path.egress.allowed:
        return False, f"egress {_judge(source.key)} refuse it"
    if path.judged_at == node and not path.ingress.allowed:
        return False, f"ingress {_judge(path.pod)} refuse it"
    return True, "policies of this node's pods allow it"


def _judge(pod: str) -> str:
    return f"policies of pod {pod}" if pod else "rules for addresses of no pod"
