"""Kubernetes objects, holding exactly the fields the agent reads.

Field names are the API's, in snake case. Lists are tuples, absent and ``null`` are both accepted
wherever the API server is known to send either. Everything else in an object (managedFields,
pod specs, ...) is skipped by the decoder and never reaches memory.
Source: Kubernetes API reference v1.3x (core/v1, discovery.k8s.io/v1, networking.k8s.io/v1,
coordination.k8s.io/v1).
"""

from msgspec import Struct, field


class ApiStruct(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of all API objects: frozen, camelCase on the wire."""


class OwnerReference(ApiStruct, frozen=True):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(ApiStruct, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generate_name: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: tuple[OwnerReference, ...] | None = None

    @property
    def key(self) -> str:
        """``namespace/name``, or ``name`` for a cluster-scoped object."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def label(self, name: str) -> str | None:
        return self.labels.get(name) if self.labels else None

    def annotation(self, name: str) -> str | None:
        return self.annotations.get(name) if self.annotations else None


class LabelSelectorRequirement(ApiStruct, frozen=True):
    key: str = ""
    operator: str = ""
    values: tuple[str, ...] | None = None


class LabelSelector(ApiStruct, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[LabelSelectorRequirement, ...] | None = None


# --- core/v1 Service ---------------------------------------------------------------------------


class ServicePort(ApiStruct, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int = 0
    target_port: int | str | None = None
    node_port: int | None = None


class ClientIPConfig(ApiStruct, frozen=True):
    timeout_seconds: int | None = None


class SessionAffinityConfig(ApiStruct, frozen=True):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(ApiStruct, frozen=True):
    type: str = ""
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: tuple[str, ...] | None = field(default=None, name="clusterIPs")
    external_ips: tuple[str, ...] | None = field(default=None, name="externalIPs")
    ports: tuple[ServicePort, ...] | None = None
    selector: dict[str, str] | None = None
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    traffic_distribution: str | None = None
    health_check_node_port: int | None = None
    publish_not_ready_addresses: bool | None = None
    ip_families: tuple[str, ...] | None = None
    ip_family_policy: str | None = None
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = field(default=None, name="loadBalancerIP")
    load_balancer_source_ranges: tuple[str, ...] | None = None


class PortStatus(ApiStruct, frozen=True):
    port: int = 0
    protocol: str | None = None
    error: str | None = None


class LoadBalancerIngress(ApiStruct, frozen=True):
    ip: str | None = None
    hostname: str | None = None
    ip_mode: str | None = None
    ports: tuple[PortStatus, ...] | None = None


class LoadBalancerStatus(ApiStruct, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(ApiStruct, frozen=True):
    load_balancer: LoadBalancerStatus | None = None


class Service(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None


# --- discovery.k8s.io/v1 EndpointSlice ---------------------------------------------------------


class EndpointConditions(ApiStruct, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ZoneHint(ApiStruct, frozen=True):
    name: str = ""


class EndpointHints(ApiStruct, frozen=True):
    for_zones: tuple[ZoneHint, ...] | None = None
    for_nodes: tuple[ZoneHint, ...] | None = None


class ObjectReference(ApiStruct, frozen=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class Endpoint(ApiStruct, frozen=True):
    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(ApiStruct, frozen=True):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    address_type: str = ""
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


# --- core/v1 Node, Namespace, Pod --------------------------------------------------------------


class Taint(ApiStruct, frozen=True):
    key: str = ""
    effect: str = ""


class NodeSpec(ApiStruct, frozen=True):
    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = field(default=None, name="podCIDRs")
    provider_id: str | None = field(default=None, name="providerID")
    unschedulable: bool | None = None
    taints: tuple[Taint, ...] | None = None


class NodeAddress(ApiStruct, frozen=True):
    type: str = ""
    address: str = ""


class NodeCondition(ApiStruct, frozen=True):
    type: str = ""
    status: str = ""
    message: str = ""


class NodeStatus(ApiStruct, frozen=True):
    addresses: tuple[NodeAddress, ...] | None = None
    conditions: tuple[NodeCondition, ...] | None = None


class Node(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus | None = None


class Namespace(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


class ContainerPort(ApiStruct, frozen=True):
    name: str | None = None
    container_port: int = 0
    protocol: str | None = None


class Container(ApiStruct, frozen=True):
    name: str = ""
    ports: tuple[ContainerPort, ...] | None = None
    restart_policy: str | None = None


class PodSpec(ApiStruct, frozen=True):
    node_name: str | None = None
    host_network: bool | None = None
    termination_grace_period_seconds: int | None = None
    containers: tuple[Container, ...] | None = None
    init_containers: tuple[Container, ...] | None = None


class PodIP(ApiStruct, frozen=True):
    ip: str = ""


class PodStatus(ApiStruct, frozen=True):
    phase: str | None = None
    host_ip: str | None = field(default=None, name="hostIP")
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: tuple[PodIP, ...] | None = field(default=None, name="podIPs")


class Pod(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus | None = None


# --- networking.k8s.io/v1 NetworkPolicy --------------------------------------------------------


class IPBlock(ApiStruct, frozen=True):
    cidr: str = ""
    except_: tuple[str, ...] | None = field(default=None, name="except")


class NetworkPolicyPeer(ApiStruct, frozen=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(ApiStruct, frozen=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class NetworkPolicyIngressRule(ApiStruct, frozen=True):
    from_: tuple[NetworkPolicyPeer, ...] | None = field(default=None, name="from")
    ports: tuple[NetworkPolicyPort, ...] | None = None


class NetworkPolicyEgressRule(ApiStruct, frozen=True):
    to: tuple[NetworkPolicyPeer, ...] | None = None
    ports: tuple[NetworkPolicyPort, ...] | None = None


class NetworkPolicySpec(ApiStruct, frozen=True):
    pod_selector: LabelSelector | None = None
    policy_types: tuple[str, ...] | None = None
    ingress: tuple[NetworkPolicyIngressRule, ...] | None = None
    egress: tuple[NetworkPolicyEgressRule, ...] | None = None


class NetworkPolicy(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: NetworkPolicySpec = NetworkPolicySpec()


# --- v1 Secret: asked for one by one (see ``secrets``) -------------------------------------------


class Secret(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


# --- v1 ConfigMap: one of them is followed (see ``pool_source``) ---------------------------------


class ConfigMap(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] | None = None


# --- coordination.k8s.io/v1 Lease --------------------------------------------------------------


class LeaseSpec(ApiStruct, frozen=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(ApiStruct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: LeaseSpec = LeaseSpec()
