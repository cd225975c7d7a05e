"""Who an address is, and which policies isolate a pod: from the objects of the cluster. Pure.

Pods and Services are looked up where the cluster is indexed. What is not (endpoints, addresses of
Nodes, policies by namespace) is put in order when it is asked for, at most once per second, and
more rarely where that takes long: nothing is kept while nobody wants to know.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from kube_router_py.cluster.indexes import canonical_ip
from kube_router_py.cluster.objects import EndpointSlice, NetworkPolicy, Node, Pod, Service
from kube_router_py.cluster.objects import ServicePort as Port
from kube_router_py.drops.record import WHY, DropRecord, End, Prefix, read_prefix
from kube_router_py.firewall.model import Direction, Policy
from kube_router_py.firewall.names import pod_chain
from kube_router_py.firewall.policy import compile_policy
from kube_router_py.kernel.nflog_packets import Packet
from kube_router_py.services import service_key_of

T = TypeVar("T")

_FINISHED = ("Succeeded", "Failed")
_LEAST_S = 1.0
# Of the time at most this share goes into putting in order.
_SHARE = 0.05
_PACKET_AGE_MOST_S = 60.0
_GONE_MOST = 1000
_Place = tuple[str, str, int]
"""Address, protocol and port."""


class Cluster(Protocol):
    """What is asked of the cache of objects."""

    @property
    def kinds(self) -> Collection[type]: ...
    def get(self, kind: type[T], key: str) -> T | None: ...
    def list(self, kind: type[T]) -> list[T]: ...
    def pods_of_ip(self, ip: str) -> Collection[str]: ...
    def services_of_vip(self, ip: str) -> Collection[str]: ...
    def pods_of_node(self, node: str) -> Collection[str]: ...


class _Order:
    """What is made of the lists of policies, Nodes and Services, at one moment."""

    def __init__(self, cluster: Cluster) -> None:
        self.policies: dict[str, list[NetworkPolicy]] = {}
        for policy in _known(cluster, NetworkPolicy):
            self.policies.setdefault(policy.metadata.namespace, []).append(policy)
        self.nodes: dict[str, str] = {}
        self.isolating: dict[tuple[str, Direction], tuple[Pod, tuple[str, ...]]] = {}
        self._ranges: dict[tuple[int, int], dict[int, str]] = {}
        for each in _known(cluster, Node):
            name = each.metadata.name
            for address in (each.status and each.status.addresses) or ():
                if canonical := canonical_ip(address.address):  # others are names of hosts
                    self.nodes[canonical] = name
            for cidr in each.spec.pod_cidrs or (each.spec.pod_cidr or "",):
                if (network := _network(cidr)) is not None:
                    bits = network.max_prefixlen - network.prefixlen
                    alike = self._ranges.setdefault((network.version, bits), {})
                    alike[int(network.network_address) >> bits] = name
        self.services: dict[str, list[Service]] = {}
        self.node_ports: dict[tuple[str, int], str] = {}
        for service in _known(cluster, Service):
            self.services.setdefault(service.metadata.namespace, []).append(service)
            for port in service.spec.ports or ():
                if port.node_port:
                    place = (_protocol(port.protocol), port.node_port)
                    self.node_ports[place] = service.metadata.key

    def node_of_range(self, address: str) -> str:
        """The Node in whose range of pod addresses this is. A large cluster has thousands of them,
        but few lengths."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return ""
        for (version, bits), names in self._ranges.items():
            if version == parsed.version and (name := names.get(int(parsed) >> bits)):
                return name
        return ""


def _endpoints(cluster: Cluster) -> dict[_Place, tuple[str, ...]]:
    """The Services of each endpoint."""
    found: dict[_Place, tuple[str, ...]] = {}
    for slice_ in _known(cluster, EndpointSlice):
        key = service_key_of(slice_)
        if not key:
            continue
        for endpoint in slice_.endpoints or ():
            for text in endpoint.addresses or ():
                # IPv4 has one spelling in Kubernetes; only IPv6 is worth the parse.
                address = (canonical_ip(text) or "") if ":" in text else text
                for port in slice_.ports or ():
                    place = (address, _protocol(port.protocol), port.port or 0)
                    others = found.get(place, ())
                    if key not in others:
                        found[place] = (*others, key)
    return found


class _Kept(Generic[T]):
    """A value that costs something to make, and may be a little old."""

    def __init__(self, make: Callable[[], T], clock: Callable[[], float]) -> None:
        self._make, self._clock = make, clock
        self._value: T | None = None
        self._good_until = 0.0

    def value(self) -> T:
        started = self._clock()
        if self._value is None or started >= self._good_until:
            self._value = self._make()
            ended = self._clock()
            self._good_until = ended + max(_LEAST_S, (ended - started) / _SHARE)
        return self._value

    def forget(self) -> None:
        self._value = None


class Names:
    """Names packets. ``clock`` is monotonic, ``now`` the time of day; both in seconds."""

    def __init__(
        self,
        cluster: Cluster,
        node: str,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._cluster, self._node = cluster, node
        self._now = now
        self._orders = _Kept(self._order, clock)
        self._ends = _Kept(lambda: _endpoints(cluster), clock)
        self._chains = _Kept(self._local_chains, clock)
        self._has_endpoints = EndpointSlice in cluster.kinds
        self._compiled: dict[str, tuple[NetworkPolicy, Policy]] = {}
        self._pods: dict[str, str] = {}

    def record(self, packet: Packet) -> DropRecord | None:
        """None for a packet that no rule of the firewall has logged."""
        prefix = read_prefix(packet.prefix)
        if prefix is None:
            return None
        order = self._orders.value()
        is_ingress = prefix.direction is Direction.INGRESS
        pod: str | None = None
        if prefix.chain:
            pod = self._isolated(prefix, packet.destination if is_ingress else packet.source)
        sender, receiver = (None, pod) if is_ingress else (pod, None)
        protocol = packet.protocol
        source = self._end(order, protocol, packet.source, packet.source_port, sender)
        destination = self._end(
            order, protocol, packet.destination, packet.destination_port, receiver
        )
        if pod is None:
            pod = (destination if is_ingress else source).pod
        return DropRecord(
            time=self._time(packet),
            node=self._node,
            direction=prefix.direction,
            verdict=prefix.verdict,
            cause=prefix.cause,
            reason=WHY[prefix.cause],
            protocol=packet.protocol,
            source=source,
            destination=destination,
            pod=pod,
            policies=self._policies(order, pod, prefix),
            chain=prefix.chain,
            meant=self._meant(order, packet),
            icmp=packet.icmp,
            is_fragment=packet.is_fragment,
        )

    def forget(self) -> None:
        """Nobody asks for the time being."""
        for kept in (self._orders, self._ends, self._chains):
            kept.forget()
        self._compiled.clear()
        self._pods.clear()

    def _order(self) -> _Order:
        order = _Order(self._cluster)
        standing = {id(each) for policies in order.policies.values() for each in policies}
        self._compiled = {k: v for k, v in self._compiled.items() if id(v[0]) in standing}
        return order

    def _local_chains(self) -> dict[str, str]:
        """The pods of this node by the names of their chains, and those that went lately: a pod's
        chain stands a little longer than the pod, and a name is never another pod's."""
        found = {
            pod_chain(key, direction): key
            for key in self._cluster.pods_of_node(self._node)
            for direction in Direction
        }
        gone = [each for each in self._pods.items() if each[0] not in found]
        self._pods = {**dict(gone[-_GONE_MOST:]), **found}
        return self._pods

    def _time(self, packet: Packet) -> str:
        now = at = self._now()
        # What the kernel says of packets of this node's own may be another clock's.
        if packet.timestamp is not None and 0 <= now - packet.timestamp <= _PACKET_AGE_MOST_S:
            at = packet.timestamp
        text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        return text.removesuffix("+00:00") + "Z"

    # --- who is it -----------------------------------------------------------------------------

    def _isolated(self, prefix: Prefix, address: str) -> str:
        """The pod whose chain this is; empty if it is gone: who has its address now is another."""
        if found := self._chains.value().get(prefix.chain):
            return found
        # It may have come just now.
        known = self._cluster.pods_of_ip(address)
        return next((k for k in known if pod_chain(k, prefix.direction) == prefix.chain), "")

    def _end(
        self, order: _Order, protocol: str, address: str, port: int | None, expected: str | None
    ) -> End:
        """``expected``: the pod that it must be, None where that is not known."""
        pod = self._pod(address, expected)
        services: tuple[str, ...] = ()
        if pod is None:
            # Whoever has an external IP put into a Service must not speak for a pod's address.
            services = tuple(sorted(self._cluster.services_of_vip(address)))
        if not services and port is not None:
            services = self._behind(order, pod, address, protocol, port)
        if pod is not None:
            return End(address, port, pod.metadata.key, pod.spec.node_name or "", services)
        own = order.nodes.get(address, "")
        node = own or order.node_of_range(address)
        is_in_range = bool(node and not own and not expected)
        return End(address, port, expected or "", node, services, is_in_range)

    def _pod(self, address: str, expected: str | None) -> Pod | None:
        """The expected pod; where that is not known, the live one with an address of its own (of
        several, one goes and one comes, the first by name)."""
        for key in sorted(self._cluster.pods_of_ip(address)):
            pod = self._cluster.get(Pod, key)
            if pod is None or pod.spec.host_network:
                continue
            phase = pod.status and pod.status.phase
            if key == expected or (expected is None and phase not in _FINISHED):
                return pod
        return None

    def _behind(
        self, order: _Order, pod: Pod | None, address: str, protocol: str, port: int
    ) -> tuple[str, ...]:
        """The Services that have this address and port as an endpoint."""
        if self._has_endpoints:
            return tuple(sorted(self._ends.value().get((address, protocol, port), ())))
        if pod is None:
            return ()
        return tuple(sorted(_selecting(order, pod, protocol, port)))

    def _meant(self, order: _Order, packet: Packet) -> End | None:
        first = packet.original
        if first is None or (first.destination, first.destination_port) == (
            packet.destination,
            packet.destination_port,
        ):
            return None
        address, port = first.destination, first.destination_port
        services = {
            key
            for key in self._cluster.services_of_vip(address)
            if self._serves(key, first.protocol, port)
        }
        node = order.nodes.get(address, "")
        if not services and port is not None:
            key = order.node_ports.get((first.protocol, port))
            services = {key} if key else set()
        return End(address, port, "", node, tuple(sorted(services)))

    def _serves(self, key: str, protocol: str, port: int | None) -> bool:
        service = self._cluster.get(Service, key)
        ports = service.spec.ports or () if service else ()
        return port is None or any(
            each.port == port and _protocol(each.protocol) == protocol for each in ports
        )

    # --- by which policies ---------------------------------------------------------------------

    def _policies(self, order: _Order, key: str, prefix: Prefix) -> tuple[str, ...]:
        pod = self._cluster.get(Pod, key) if key else None
        if pod is None:
            return ()
        known = order.isolating.get((key, prefix.direction))
        if known is None or known[0] is not pod:
            known = (pod, self._isolating(order, pod, prefix.direction))
            order.isolating[key, prefix.direction] = known
        return known[1]

    def _isolating(self, order: _Order, pod: Pod, direction: Direction) -> tuple[str, ...]:
        labels = pod.metadata.labels or {}
        found = []
        for each in order.policies.get(pod.metadata.namespace, ()):
            policy = self._compile(each)
            if policy.target is None or direction not in policy.rules:
                continue
            if policy.target.pods.selects(labels):
                found.append(policy.key)
        return tuple(sorted(found))

    def _compile(self, policy: NetworkPolicy) -> Policy:
        key = policy.metadata.key
        known = self._compiled.get(key)
        if known is None or known[0] is not policy:
            known = self._compiled[key] = (policy, compile_policy(policy))
        return known[1]


def _known(cluster: Cluster, kind: type[T]) -> list[T]:
    return cluster.list(kind) if kind in cluster.kinds else []


def _selecting(order: _Order, pod: Pod, protocol: str, port: int) -> Iterator[str]:
    labels = pod.metadata.labels or {}
    for service in order.services.get(pod.metadata.namespace, ()):
        selector = service.spec.selector
        if not selector or any(labels.get(name) != value for name, value in selector.items()):
            continue
        if any(
            _protocol(each.protocol) == protocol and _target(each, pod) == port
            for each in service.spec.ports or ()
        ):
            yield service.metadata.key


def _target(port: Port, pod: Pod) -> int:
    """The number of the pod's port that a Service sends to; 0: the pod has no port of this name."""
    target: Any = port.target_port or port.port
    if isinstance(target, int):
        return target
    for container in pod.spec.containers or ():
        for each in container.ports or ():
            if each.name == target and _protocol(each.protocol) == _protocol(port.protocol):
                return each.container_port
    return 0


def _protocol(name: str | None) -> str:
    return (name or "TCP").lower()


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
