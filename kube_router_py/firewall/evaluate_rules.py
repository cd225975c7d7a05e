"""What one NetworkPolicy says of one peer and port, read straight from the object. Pure.

Written from the API reference (networking.k8s.io/v1) for ``evaluate``, and from nothing that the
compiler of chains uses: each is there to find the other's mistakes. What cannot be understood
matches nothing; the directions that a policy is about stay closed.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from kube_router_py.cluster.objects import (
    Container,
    IPBlock,
    LabelSelector,
    LabelSelectorRequirement,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    Pod,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOLS = ("TCP", "UDP", "SCTP")

_AUDIT = "kube-router.io/audit"
_NO_LABELS: Mapping[str, str] = {}
_CIDR = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}", re.ASCII)


class ReadPeer(Struct, frozen=True):
    """``cidr`` minus ``holes``; or, where there is none, the pods that the selectors select. Of
    those one may be None: no namespace selector means the policy's own namespace, no pod selector
    all pods."""

    cidr: Network | None = None
    holes: tuple[Network, ...] = ()
    namespaces: LabelSelector | None = None
    pods: LabelSelector | None = None


class ReadPort(Struct, frozen=True):
    """``name`` (of the destination pod's), else the numbers ``first`` to ``last``."""

    protocol: str
    name: str | None = None
    first: int = 0
    last: int = 65535


class ReadRule(Struct, frozen=True):
    """``peers`` or ``ports`` None: any. An empty tuple: a list of which nothing could be read."""

    peers: tuple[ReadPeer, ...] | None
    ports: tuple[ReadPort, ...] | None


class ReadPolicy(Struct, frozen=True):
    """Rules by position; None for a direction that the policy is not about. ``audited`` is None
    where the policy leaves it to its Namespace."""

    key: str
    namespace: str
    target: LabelSelector | None
    ingress: tuple[ReadRule, ...] | None
    egress: tuple[ReadRule, ...] | None
    audited: bool | None = None

    def is_about(self, pod: Pod) -> bool:
        """Whether the pod is one of those that it isolates."""
        return (
            self.target is not None
            and pod.metadata.namespace == self.namespace
            and selects(self.target, pod.metadata.labels)
        )


def read_policy(policy: NetworkPolicy) -> ReadPolicy:
    spec = policy.spec
    types = {each for each in spec.policy_types or () if each in ("Ingress", "Egress")}
    if not types:
        types = {"Ingress", "Egress"} if spec.egress else {"Ingress"}
    target = LabelSelector() if spec.pod_selector is None else spec.pod_selector
    ingress = tuple(_rule(rule.from_, rule.ports) for rule in spec.ingress or ())
    egress = tuple(_rule(rule.to, rule.ports) for rule in spec.egress or ())
    return ReadPolicy(
        policy.metadata.key,
        policy.metadata.namespace,
        target if is_usable(target) else None,
        ingress if "Ingress" in types else None,
        egress if "Egress" in types else None,
        read_audit(policy.metadata.annotations),
    )


def read_audit(annotations: Mapping[str, str] | None) -> bool | None:
    """Only "true" is an audit; None where nothing is written."""
    written = (annotations or {}).get(_AUDIT)
    return None if written is None else written == "true"


def _rule(
    peers: Sequence[NetworkPolicyPeer] | None, ports: Sequence[NetworkPolicyPort] | None
) -> ReadRule:
    return ReadRule(
        tuple(each for each in map(_peer, peers) if each is not None) if peers else None,
        tuple(each for each in map(_port, ports) if each is not None) if ports else None,
    )


def _peer(peer: NetworkPolicyPeer) -> ReadPeer | None:
    selectors = [each for each in (peer.namespace_selector, peer.pod_selector) if each is not None]
    if peer.ip_block is not None:
        return None if selectors else _block(peer.ip_block)
    if not selectors or not all(map(is_usable, selectors)):
        return None
    return ReadPeer(namespaces=peer.namespace_selector, pods=peer.pod_selector)


def _block(block: IPBlock) -> ReadPeer | None:
    cidr = _network(block.cidr)
    holes = [_network(each) for each in block.except_ or ()]
    if cidr is None or None in holes:
        return None
    return ReadPeer(cidr=cidr, holes=tuple(each for each in holes if each is not None))


def _network(text: str) -> Network | None:
    """Host bits are allowed; a mask in place of a length is not (net.ParseCIDR in Go)."""
    if not _CIDR.fullmatch(text):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _port(port: NetworkPolicyPort) -> ReadPort | None:
    protocol = "TCP" if port.protocol is None else port.protocol
    if protocol not in PROTOCOLS:
        return None
    if not isinstance(port.port, int):
        if port.end_port is not None:
            return None
        return ReadPort(protocol, name=port.port)
    last = port.port if port.end_port is None else port.end_port
    if not 1 <= port.port <= last <= 65535:
        return None
    return ReadPort(protocol, first=port.port, last=last)


# --- labels ------------------------------------------------------------------------------------


def is_usable(selector: LabelSelector) -> bool:
    """Whether every requirement of a selector means something."""
    return all(map(_is_requirement, selector.match_expressions or ()))


def _is_requirement(each: LabelSelectorRequirement) -> bool:
    if each.operator in ("In", "NotIn"):
        return bool(each.key) and bool(each.values)
    return bool(each.key) and each.operator in ("Exists", "DoesNotExist") and not each.values


def selects(selector: LabelSelector, labels: Mapping[str, str] | None) -> bool:
    """Whether a usable selector selects what has these labels."""
    labels = labels or _NO_LABELS
    for key, value in (selector.match_labels or _NO_LABELS).items():
        if labels.get(key) != value:
            return False
    return all(_holds(each, labels) for each in selector.match_expressions or ())


def _holds(each: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    has = each.key in labels
    if each.operator == "Exists":
        return has
    if each.operator == "DoesNotExist":
        return not has
    is_listed = has and labels[each.key] in (each.values or ())
    return is_listed if each.operator == "In" else not is_listed


# --- ports of pods -----------------------------------------------------------------------------


def declared_ports(pod: Pod) -> dict[tuple[str, str], int]:
    """By protocol and name; of several declarations of one the first counts."""
    found: dict[tuple[str, str], int] = {}
    for container in _lasting_containers(pod):
        for port in container.ports or ():
            if port.name and 1 <= port.container_port <= 65535:
                found.setdefault((port.protocol or "TCP", port.name), port.container_port)
    return found


def _lasting_containers(pod: Pod) -> Iterator[Container]:
    yield from pod.spec.containers or ()
    yield from (each for each in pod.spec.init_containers or () if each.restart_policy == "Always")


def is_inside(address: Address, peer: ReadPeer) -> bool:
    """Whether an address is in the ipBlock of a peer; networks of the other family have none."""
    return peer.cidr is not None and address in peer.cidr and not _in_any(address, peer.holes)


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
