"""The defaults an API server fills in, for objects that come from manifests instead.

Pure. Only what the agent reads is filled in, and nothing is allocated: no ClusterIP, no NodePort,
no pod IP. Source: pkg/apis/core/v1/defaults.go, pkg/apis/networking/v1/defaults.go and the Service
registry of Kubernetes 1.3x, as documented in the API reference.
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar

from msgspec.structs import replace

from kube_router_py.cluster.objects import (
    ClientIPConfig,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    NetworkPolicyPort,
    Node,
    Pod,
    PodIP,
    Service,
    ServicePort,
    SessionAffinityConfig,
)

T = TypeVar("T")

AFFINITY_TIMEOUT_S = 10800


def with_defaults(obj: T, primary_family: str = "IPv4") -> T:
    """``obj`` as an API server would store it; ``primary_family`` is the cluster's."""
    if isinstance(obj, Service):
        return default_service(obj, primary_family)  # type: ignore[return-value]
    default: Callable[[Any], Any] = _DEFAULTS.get(type(obj), lambda same: same)
    result: T = default(obj)
    return result


def default_service(service: Service, primary_family: str = "IPv4") -> Service:
    """Type, ports, affinity, addresses, families and traffic policies of a Service."""
    spec = service.spec
    kind = spec.type or "ClusterIP"
    if kind == "ExternalName":
        return replace(service, spec=replace(spec, type=kind))
    ips = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else None)
    is_external = kind in ("NodePort", "LoadBalancer") or bool(spec.external_ips)
    affinity = spec.session_affinity or "None"
    config = spec.session_affinity_config
    if affinity == "ClientIP" and (
        config is None or config.client_ip is None or config.client_ip.timeout_seconds is None
    ):
        config = SessionAffinityConfig(client_ip=ClientIPConfig(AFFINITY_TIMEOUT_S))
    policy = spec.ip_family_policy or ("RequireDualStack" if len(ips or ()) > 1 else "SingleStack")
    return replace(
        service,
        spec=replace(
            spec,
            type=kind,
            cluster_ip=ips[0] if ips else None,
            cluster_ips=ips,
            ports=tuple(map(_service_port, spec.ports)) if spec.ports else spec.ports,
            session_affinity=affinity,
            session_affinity_config=config,
            ip_families=spec.ip_families or _families(ips or (), policy, primary_family),
            ip_family_policy=policy,
            internal_traffic_policy=spec.internal_traffic_policy or "Cluster",
            external_traffic_policy=spec.external_traffic_policy
            or ("Cluster" if is_external else None),
        ),
    )


def _service_port(port: ServicePort) -> ServicePort:
    return replace(
        port,
        protocol=port.protocol or "TCP",
        target_port=port.port if port.target_port in (None, 0, "") else port.target_port,
    )


def _families(ips: tuple[str, ...], policy: str, primary: str) -> tuple[str, ...]:
    found: list[str] = []
    for ip in ips:
        try:
            found.append(f"IPv{ip_address(ip).version}")
        except ValueError:
            continue  # "None", or a mistake that the compiler tells of
    if found:
        return tuple(found)
    other = "IPv6" if primary == "IPv4" else "IPv4"
    return (primary,) if policy == "SingleStack" else (primary, other)


def _default_slice(endpoint_slice: EndpointSlice) -> EndpointSlice:
    ports = endpoint_slice.ports
    if ports:
        ports = tuple(
            replace(port, name=port.name or "", protocol=port.protocol or "TCP") for port in ports
        )
    return replace(endpoint_slice, ports=ports)


def _default_node(node: Node) -> Node:
    spec = node.spec
    cidrs = spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else None)
    return replace(node, spec=replace(spec, pod_cidr=cidrs[0] if cidrs else None, pod_cidrs=cidrs))


def _default_pod(pod: Pod) -> Pod:
    spec, status = pod.spec, pod.status
    containers = spec.containers
    if containers:
        containers = tuple(
            replace(
                each,
                ports=tuple(replace(port, protocol=port.protocol or "TCP") for port in each.ports),
            )
            if each.ports
            else each
            for each in containers
        )
    if status is not None:
        ips = status.pod_ips or ((PodIP(status.pod_ip),) if status.pod_ip else None)
        status = replace(status, pod_ips=ips, pod_ip=ips[0].ip if ips else None)
    grace_s = spec.termination_grace_period_seconds
    return replace(
        pod,
        status=status,
        spec=replace(
            spec,
            containers=containers,
            termination_grace_period_seconds=30 if grace_s is None else grace_s,
        ),
    )


def _default_policy(policy: NetworkPolicy) -> NetworkPolicy:
    spec = policy.spec
    types = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    ingress = tuple(replace(rule, ports=_protocols(rule.ports)) for rule in spec.ingress or ())
    egress = tuple(replace(rule, ports=_protocols(rule.ports)) for rule in spec.egress or ())
    return replace(
        policy,
        spec=replace(
            spec,
            policy_types=types,
            ingress=ingress if spec.ingress is not None else None,
            egress=egress if spec.egress is not None else None,
        ),
    )


def _protocols(ports: tuple[NetworkPolicyPort, ...] | None) -> tuple[NetworkPolicyPort, ...] | None:
    if ports is None:
        return None
    # Empty is no protocol, and stays so.
    return tuple(
        replace(port, protocol="TCP" if port.protocol is None else port.protocol) for port in ports
    )


def _default_namespace(namespace: Namespace) -> Namespace:
    meta = namespace.metadata
    labels = {**(meta.labels or {}), "kubernetes.io/metadata.name": meta.name}
    return replace(namespace, metadata=replace(meta, labels=labels))


_DEFAULTS: dict[type, Callable[[Any], Any]] = {
    EndpointSlice: _default_slice,
    Namespace: _default_namespace,
    Node: _default_node,
    Pod: _default_pod,
    NetworkPolicy: _default_policy,
}
