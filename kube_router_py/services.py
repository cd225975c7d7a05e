"""Facts about Services that several loops share: addresses, usable endpoints, traffic policy.

Pure. Sources: Kubernetes API reference v1.3x (core/v1 Service, discovery.k8s.io/v1 EndpointSlice),
KEP-1669 (terminating endpoints), KEP-1860 (ipMode), KEP-2086 (internalTrafficPolicy), KEP-4444 and
KEP-3015 (traffic distribution).
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointConditions, EndpointSlice, Service

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
PROXY_NAME = "kube-router"

LOCAL_ANNOTATION = "kube-router.io/service.local"
SKIP_LB_IPS_ANNOTATION = "kube-router.io/service.skiplbips"

# First bytes of addresses among which none is unusable: nearly all, told without parsing.
_PLAIN_IPV4 = frozenset(range(1, 224)) - {127, 169}
_PLAIN_IPV6 = frozenset({*range(0x20, 0x40), 0xFC, 0xFD})

FAMILY_NAMES = {int(socket.AF_INET): "IPv4", int(socket.AF_INET6): "IPv6"}

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def service_key_of(endpoint_slice: EndpointSlice) -> str | None:
    """``namespace/name`` of the Service a slice belongs to, or None if that cannot be told.

    Precedence: the label, a single owning Service, the generated name without its dash.
    """
    metadata = endpoint_slice.metadata
    name = metadata.label(SERVICE_NAME_LABEL)
    if not name:
        owners = [owner for owner in metadata.owner_references or () if owner.kind == "Service"]
        if len(owners) == 1:
            name = owners[0].name
        elif not owners:
            name = metadata.generate_name.rstrip("-")
    return f"{metadata.namespace}/{name}" if name else None


class Usability(IntEnum):
    """What an endpoint can be used for; where slices disagree, the greater value counts."""

    TERMINATING = 1  # its pod is going and no longer serves
    PAUSED = 2  # listed, not ready, not terminating: its connections stay, no new ones come
    SERVING_TERMINATING = 3  # its pod is going but still serves: for when nothing is ready
    READY = 4


def usability(conditions: EndpointConditions | None) -> Usability:
    """Read conditions: ready nil is true, serving nil is ready, terminating nil is false."""
    if conditions is None:
        return Usability.READY
    ready = conditions.ready is not False
    if ready:
        return Usability.READY
    if not conditions.terminating:
        return Usability.PAUSED
    return Usability.SERVING_TERMINATING if conditions.serving else Usability.TERMINATING


class Candidate(Struct, frozen=True, gc=False):
    """One endpoint as the choice between endpoints sees it.

    ``node`` is the name of its Node, ``""`` where the slice does not say. ``for_nodes`` and
    ``for_zones`` are its topology hints; None where there are none.
    """

    usability: Usability
    node: str = ""
    for_nodes: frozenset[str] | None = None
    for_zones: frozenset[str] | None = None


def cluster_endpoints(candidates: Mapping[T, Candidate], node: str, zone: str) -> list[T]:
    """The endpoints that traffic policy Cluster uses on a node in a zone (``""``: unknown).

    Ready ones that the topology hints allow, else those that are going but still serve
    (KEP-1669). Hints for nodes (KEP-3015) come before hints for zones (KEP-4444); either sort
    counts only if every ready endpoint has it and one of them is meant for this node, or zone.
    """
    ready = [each for each, found in candidates.items() if _is_ready(found)]
    if not ready:
        return [each for each, found in candidates.items() if _is_last_resort(found)]
    if all(candidates[each].for_nodes for each in ready):
        near = [each for each in ready if node in (candidates[each].for_nodes or ())]
        if near:
            return near
    if zone and all(candidates[each].for_zones for each in ready):
        near = [each for each in ready if zone in (candidates[each].for_zones or ())]
        if near:
            return near
    return ready


def local_endpoints(candidates: Mapping[T, Candidate], node: str) -> list[T]:
    """The endpoints that traffic policy Local uses on a node: there is no other choice, so that
    hints do not count. Ready ones, else those that are going but still serve (KEP-1669)."""
    local = {each: found for each, found in candidates.items() if found.node == node}
    ready = [each for each, found in local.items() if _is_ready(found)]
    return ready or [each for each, found in local.items() if _is_last_resort(found)]


def _is_ready(candidate: Candidate) -> bool:
    return candidate.usability is Usability.READY


def _is_last_resort(candidate: Candidate) -> bool:
    return candidate.usability is Usability.SERVING_TERMINATING


def is_proxied(service: Service) -> bool:
    """Whether this proxy serves a Service: not headless, not ExternalName, not another proxy's."""
    return has_addresses(service) and service.metadata.label(PROXY_NAME_LABEL) in (None, PROXY_NAME)


def has_addresses(service: Service) -> bool:
    """Whether a proxy, ours or another, serves a Service: not headless and not ExternalName."""
    spec = service.spec
    if spec.type == "ExternalName" or spec.cluster_ip == "None":
        return False
    return "None" not in (spec.cluster_ips or ()) and service.metadata.label(HEADLESS_LABEL) is None


def cluster_ips(service: Service) -> tuple[str, ...]:
    """All ClusterIPs as written; empty where none is allocated (yet)."""
    spec = service.spec
    if spec.cluster_ips:
        return tuple(ip for ip in spec.cluster_ips if ip)
    return (spec.cluster_ip,) if spec.cluster_ip else ()


def load_balancer_ips(service: Service) -> tuple[tuple[int, str], ...]:
    """(index in status.loadBalancer.ingress, IP) of those that a node must answer for.

    Host names and ``ipMode: Proxy`` (the balancer rewrites the destination itself) are left out,
    and everything where the Service opts out by the ``skiplbips`` annotation.
    """
    status = service.status
    if service.spec.type != "LoadBalancer" or not status or not status.load_balancer:
        return ()
    if service.metadata.annotation(SKIP_LB_IPS_ANNOTATION) is not None:
        return ()
    return tuple(
        (index, ingress.ip)
        for index, ingress in enumerate(status.load_balancer.ingress or ())
        if ingress.ip and ingress.ip_mode != "Proxy"
    )


def load_balanced(services: Iterable[Service]) -> frozenset[str]:
    """Keys of those with LB IPs: what they have depends on where a load balancer may give any."""
    return frozenset(each.metadata.key for each in services if load_balancer_ips(each))


def _is_local_by_annotation(service: Service) -> bool:
    return service.metadata.annotation(LOCAL_ANNOTATION) == "true"


def is_internal_local(service: Service) -> bool:
    """Whether ClusterIP traffic may use endpoints of this node only."""
    if _is_local_by_annotation(service):
        return False
    return service.spec.internal_traffic_policy == "Local"


def is_external_local(service: Service) -> bool:
    """Whether NodePort, external IP and LB IP traffic may use endpoints of this node only."""
    if _is_local_by_annotation(service):
        return True
    return service.spec.external_traffic_policy == "Local"


def parse_address(text: str) -> tuple[int, bytes] | None:
    """(family, packed address), or None for anything that is not a plain IP address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return int(family), socket.inet_pton(family, text)
    except (OSError, ValueError, TypeError):
        return None


def unusable_address(packed: bytes) -> str:
    """Why no Service or endpoint may have this address (as the API server rules), or ``""``."""
    if packed[0] in (_PLAIN_IPV4 if len(packed) == 4 else _PLAIN_IPV6):
        return ""
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return "an IPv4-mapped address"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_link_local:
        return "a link-local address"
    if packed == b"\xff\xff\xff\xff":
        return "the broadcast address"
    return ""


def is_inside(packed: bytes, networks: Sequence[Network]) -> bool:
    """Whether an address lies in one of the networks of its own family; no address lies in none."""
    if not networks or not packed:
        return False
    address = ipaddress.ip_address(packed)
    return any(address in network for network in networks if network.version == address.version)
