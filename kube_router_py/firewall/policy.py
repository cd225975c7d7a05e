"""NetworkPolicy -> ``model.Policy``, Namespace -> ``model.NamespaceFacts``. Pure.

Source: Kubernetes API reference v1.3x, networking.k8s.io/v1. The API server refuses most of what
becomes a Problem here; what reaches us broken all the same (old objects, files) must not open
anything: it matches nothing, and the directions that the policy is about stay closed.
"""

from collections.abc import Callable, Iterable, Iterator

from kube_router_py.cluster.objects import (
    LabelSelector,
    Namespace,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
)
from kube_router_py.cluster.selectors import EVERYTHING, Selector, parse_selector
from kube_router_py.firewall.blocks import compile_block
from kube_router_py.firewall.model import (
    Direction,
    NamespaceFacts,
    Peer,
    Policy,
    Port,
    PortName,
    PortRange,
    Rule,
    Selection,
)
from kube_router_py.policy_audit import asked_audit, mistyped_audit
from kube_router_py.problem import Problem

_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}

# Of one policy as many are told one by one: it may have tens of thousands, in each turn.
_PROBLEMS_MOST = 20

_Tell = Callable[[str, str], None]
_RuleParts = tuple[tuple[NetworkPolicyPeer, ...] | None, tuple[NetworkPolicyPort, ...] | None]


def compile_policy(policy: NetworkPolicy) -> Policy:
    """Never raises; what is wrong is in ``problems``."""
    meta, spec = policy.metadata, policy.spec
    problems = [*mistyped_audit(f"NetworkPolicy {meta.key}", meta)]
    left_out = 0

    def tell(field: str, reason: str) -> None:
        nonlocal left_out
        if len(problems) < _PROBLEMS_MOST:
            problems.append(Problem(f"NetworkPolicy {meta.key}", field, reason))
        else:
            left_out += 1

    target: Selection | None = None
    try:
        # Lost on its way where it is missing: the API server demands it, {} selects all.
        selector = parse_selector(spec.pod_selector or LabelSelector())
        target = Selection(namespace=meta.namespace, pods=selector)
    except ValueError as error:
        tell("spec.podSelector", f"{error}; the policy selects no pod")
    written: dict[Direction, Iterable[_RuleParts]] = {
        Direction.INGRESS: [(rule.from_, rule.ports) for rule in spec.ingress or ()],
        Direction.EGRESS: [(rule.to, rule.ports) for rule in spec.egress or ()],
    }
    rules = {
        direction: tuple(_rules(meta.namespace, direction, written[direction], tell))
        for direction in _directions(spec.policy_types, bool(spec.egress), tell)
    }
    if left_out:
        problems.append(Problem(f"NetworkPolicy {meta.key}", "", f"{left_out} more like these"))
    return Policy(meta.key, target, rules, tuple(problems), asked_audit(meta))


def compile_namespace(namespace: Namespace) -> NamespaceFacts:
    meta = namespace.metadata
    problems = mistyped_audit(f"Namespace {meta.name}", meta)
    return NamespaceFacts(meta.labels or {}, asked_audit(meta) is True, problems)


def _directions(
    types: tuple[str, ...] | None, has_egress: bool, tell: _Tell
) -> tuple[Direction, ...]:
    known = tuple(direction for name, direction in _TYPES.items() if name in (types or ()))
    for name in types or ():
        if name not in _TYPES:
            tell("spec.policyTypes", f"{name!r} is neither Ingress nor Egress, and is ignored")
    if known:
        return known
    return (Direction.INGRESS, Direction.EGRESS) if has_egress else (Direction.INGRESS,)


def _rules(
    namespace: str, direction: Direction, written: Iterable[_RuleParts], tell: _Tell
) -> Iterator[Rule]:
    side = "from" if direction is Direction.INGRESS else "to"
    for index, (peers, ports) in enumerate(written):
        field = f"spec.{direction}[{index}]"
        yield Rule(
            index,
            tuple(_peers(namespace, peers, f"{field}.{side}", tell)) if peers else None,
            tuple(_ports(ports, f"{field}.ports", tell)) if ports else None,
        )


def _peers(
    namespace: str, peers: Iterable[NetworkPolicyPeer], field: str, tell: _Tell
) -> Iterator[Peer]:
    found: dict[Peer, None] = {}
    for index, peer in enumerate(peers):
        try:
            found.setdefault(_peer(namespace, peer))
        except ValueError as error:
            tell(f"{field}[{index}]", f"{error}; this peer matches nobody")
    yield from found


def _peer(namespace: str, peer: NetworkPolicyPeer) -> Peer:
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            raise ValueError("an ipBlock excludes podSelector and namespaceSelector")
        try:
            return compile_block(peer.ip_block)
        except ValueError as error:
            raise ValueError(f"ipBlock.{error}") from None
    if peer.pod_selector is None and peer.namespace_selector is None:
        raise ValueError("one of podSelector, namespaceSelector and ipBlock is needed")
    pods = _selector(peer.pod_selector, "podSelector")
    if peer.namespace_selector is None:
        return Selection(namespace=namespace, pods=pods)
    return Selection(namespaces=_selector(peer.namespace_selector, "namespaceSelector"), pods=pods)


def _selector(selector: LabelSelector | None, field: str) -> Selector:
    if selector is None:
        return EVERYTHING
    try:
        return parse_selector(selector)
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from None


def _ports(ports: Iterable[NetworkPolicyPort], field: str, tell: _Tell) -> Iterator[Port]:
    found: dict[Port, None] = {}
    for index, port in enumerate(ports):
        try:
            found.setdefault(_port(port))
        except ValueError as error:
            tell(f"{field}[{index}]", f"{error}; this entry matches nothing")
    yield from found


def _port(port: NetworkPolicyPort) -> Port:
    # Null means TCP; an empty string is no protocol.
    name = "TCP" if port.protocol is None else port.protocol
    protocol = _PROTOCOLS.get(name)
    if protocol is None:
        raise ValueError(f"protocol {name!r} is none of {', '.join(_PROTOCOLS)}")
    if port.port is None:
        if port.end_port is not None:
            raise ValueError("endPort needs a port")
        return PortRange(protocol)
    if isinstance(port.port, str):
        if port.end_port is not None:
            raise ValueError(f"endPort needs a numeric port, not {port.port!r}")
        return PortName(protocol, port.port)
    last = port.port if port.end_port is None else port.end_port
    for field, number in (("port", port.port), ("endPort", last)):
        if not 1 <= number <= 65535:
            raise ValueError(f"{field} {number} is not in 1..65535")
    if last < port.port:
        raise ValueError(f"endPort {last} is below port {port.port}")
    return PortRange(protocol, port.port, last)
