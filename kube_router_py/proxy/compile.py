"""Compile one Service with its EndpointSlices to virtual and real servers.

Pure: equal objects give equal results, whatever their order. What is wrong with one port, address
or endpoint becomes a Problem and leaves the rest of the Service as it would be without it.

    Service port x address            -> virtual server    (Kind says which of the four sorts)
    slice port of the same name       -> port of the real servers
    endpoint, by usability and policy -> real server with its node's weight, or none
    traffic policy, source ranges     -> guard             (who does not get that far)
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointSlice, Service, ServicePort
from kube_router_py.endpoint_slices import PROTOCOLS
from kube_router_py.problem import Problem
from kube_router_py.proxy.addresses import ranges_of_family, service_families, source_ranges
from kube_router_py.proxy.endpoints import EndpointGroup, Endpoints, compile_endpoints
from kube_router_py.proxy.model import (
    Guard,
    Hairpin,
    HealthCheck,
    RealServer,
    RealServerKey,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.scheduling import compile_scheduling, weigh
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.service_addresses import Address, Kind, Report, compile_addresses
from kube_router_py.services import (
    is_external_local,
    is_internal_local,
    is_proxied,
)

HAIRPIN_ANNOTATION = "kube-router.io/service.hairpin"

TCP = 6


@cache
def _real(weight: int) -> RealServer:
    """One value per weight of a masqueraded real server, shared: 50,000 of them cost one."""
    return RealServer(weight)


_REAL = _real(1)
_OPEN = Guard()


class Origin(Struct, frozen=True, gc=False):
    """Where a virtual server comes from, for documents and logs."""

    port_name: str
    kind: Kind


class CompiledService(Struct, frozen=True):
    """Everything one Service asks of this node. Treat the dictionaries as immutable.

    ``paused`` and ``terminating`` name listed endpoints that take no new connections: of a TCP
    virtual server they stay at weight 0 *if they are in the kernel*, a paused one as long as it is
    listed, a terminating one until its connections or the grace period end. ``guards`` names the
    virtual servers not everybody may reach.
    """

    key: str
    created: str
    virtual_servers: dict[VirtualServerKey, VirtualServerState]
    origins: dict[VirtualServerKey, Origin]
    paused: dict[VirtualServerKey, frozenset[RealServerKey]]
    terminating: dict[VirtualServerKey, frozenset[RealServerKey]]
    vips: frozenset[Vip]
    problems: tuple[Problem, ...]
    guards: dict[VirtualServerKey, Guard] = {}
    hairpins: frozenset[Hairpin] = frozenset()
    health_check: HealthCheck | None = None
    # Those of the problems that tell of an external or load balancer IP which is not served.
    refused: tuple[Problem, ...] = ()


def compile_service(
    service: Service, slices: Iterable[EndpointSlice], node: ThisNode, options: ProxyOptions
) -> CompiledService:
    """The desired state of one Service on this node; empty for Services that are not ours."""
    key = service.metadata.key
    created = service.metadata.creation_timestamp or ""
    if not is_proxied(service):
        return CompiledService(key, created, {}, {}, {}, {}, frozenset(), ())
    return _Compiler(service, slices, node, options).compile()


class _Compiler:
    """The compilation of one Service: what its parts have in common while it lasts."""

    def __init__(
        self,
        service: Service,
        slices: Iterable[EndpointSlice],
        node: ThisNode,
        options: ProxyOptions,
    ) -> None:
        self._service, self._node, self._options = service, node, options
        self._slices = sorted(slices, key=lambda each: each.metadata.key)
        self._problems: list[Problem] = []
        self._refused: list[Problem] = []
        self._config = compile_scheduling(service, options, self._report)
        self._ranges = source_ranges(service, self._report)
        self._internal_local = is_internal_local(service)
        self._external_local = is_external_local(service)
        self._servers: dict[VirtualServerKey, VirtualServerState] = {}
        self._origins: dict[VirtualServerKey, Origin] = {}
        self._paused: dict[VirtualServerKey, frozenset[RealServerKey]] = {}
        self._terminating: dict[VirtualServerKey, frozenset[RealServerKey]] = {}
        self._guards: dict[VirtualServerKey, Guard] = {}
        self._hairpins: set[Hairpin] = set()
        # Ready endpoints of this node by family: what the health check counts.
        self._local: dict[int, set[bytes]] = {}

    def _report(self, field: str, reason: str) -> None:
        name = f"Service {self._service.metadata.key}"
        self._problems.append(Problem(name, field, reason))

    def _refuse(self, field: str, reason: str) -> None:
        self._report(field, reason)
        self._refused.append(self._problems[-1])

    def compile(self) -> CompiledService:
        service, options = self._service, self._options
        addresses = compile_addresses(service, options, self._report, self._refuse)
        families = service_families(service, options)
        for index, port in enumerate(service.spec.ports or ()):
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None:
                field = f"spec.ports[{index}].protocol"
                self._report(field, f"{port.protocol!r} is not TCP, UDP or SCTP")
                continue
            places = _places(service, index, port, addresses, families, self._node, self._report)
            self._compile_port(index, port, protocol, places)
        health_check = self._compile_health_check()
        return CompiledService(
            key=service.metadata.key,
            created=service.metadata.creation_timestamp or "",
            virtual_servers=self._servers,
            origins=self._origins,
            paused=self._paused,
            terminating=self._terminating,
            vips=frozenset(
                Vip(server.family, server.address)
                for server, origin in self._origins.items()
                if origin.kind is not Kind.NODE_PORT
            ),
            problems=tuple(sorted(set(self._problems))),
            guards=self._guards,
            hairpins=frozenset(self._hairpins),
            health_check=health_check,
            refused=tuple(sorted(set(self._refused))),
        )

    def _compile_port(
        self,
        index: int,
        port: ServicePort,
        protocol: int,
        places: Iterator[tuple[Address, int]],
    ) -> None:
        name = port.name or ""
        endpoints: dict[int, Endpoints] = {}
        states: dict[int, VirtualServerState] = {}
        for address, number in places:
            server = VirtualServerKey(address.family, protocol, address.packed, number)
            if server in self._servers:
                self._report_duplicate(self._origins[server], address, name, index, server)
                continue
            if address.family not in endpoints:
                found = compile_endpoints(
                    self._slices, name, protocol, address.family, self._node, self._problems
                )
                endpoints[address.family] = found
                self._note_local(protocol, address.family, found)
            found = endpoints[address.family]
            group, guard = self._choose(address, found)
            # Virtual servers with the same endpoints share one value: memory.
            if id(group) not in states:
                states[id(group)] = self._state(group, found)
            self._servers[server] = states[id(group)]
            self._origins[server] = Origin(name, address.kind)
            if guard is not _OPEN:
                self._guards[server] = guard
            if protocol == TCP and self._options.graceful_termination:
                if group.paused:
                    self._paused[server] = group.paused
                if group.terminating:
                    self._terminating[server] = group.terminating

    def _choose(self, address: Address, endpoints: Endpoints) -> tuple[EndpointGroup, Guard]:
        """The endpoints behind an address, by its traffic policy, and who does not get there."""
        if address.kind is Kind.CLUSTER_IP:
            if not self._internal_local:
                return endpoints.cluster, _OPEN
            is_cut_off = not endpoints.local.usable and bool(endpoints.cluster.usable)
            return endpoints.local, Guard(everyone=True) if is_cut_off else _OPEN
        ranges: tuple[str, ...] | None = None
        if self._ranges is not None and self._is_limited(address):
            ranges = ranges_of_family(self._ranges, address.family)
        limits = _OPEN if ranges is None else Guard(source_ranges=ranges)
        if not self._external_local:
            return endpoints.cluster, limits
        if endpoints.local.usable:
            return endpoints.local, limits
        # Pods and nodes of the cluster have no balancer that would find them a better node. With
        # nothing usable anywhere everybody is refused, and what is paused elsewhere stays paused.
        if endpoints.cluster.usable:
            limits = Guard(outsiders=True, source_ranges=ranges)
        return endpoints.cluster, limits

    def _is_limited(self, address: Address) -> bool:
        if address.kind is Kind.NODE_PORT:
            return self._options.source_ranges_on_node_ports
        return address.by_load_balancer

    def _state(self, group: EndpointGroup, endpoints: Endpoints) -> VirtualServerState:
        config, reals = self._config, self._weigh(group, endpoints)
        if self._node.weights:
            config = weigh(self._service, config, reals.values(), self._options, self._report)
        return VirtualServerState(config, reals)

    def _weigh(self, group: EndpointGroup, endpoints: Endpoints) -> dict[RealServerKey, RealServer]:
        weights = self._node.weights
        if not weights:
            return dict.fromkeys(group.usable, _REAL)
        found = {key: weights.get(endpoints.node_of(key), 1) for key in group.usable}
        if not any(found.values()):
            # All on nodes that are to take nothing: better they than nobody.
            return dict.fromkeys(group.usable, _REAL)
        return {key: _real(weight) for key, weight in found.items()}

    def _note_local(self, protocol: int, family: int, endpoints: Endpoints) -> None:
        """What hangs on the endpoints of this node alone; for most Services nothing does."""
        wanted = self._service.metadata.annotation(HAIRPIN_ANNOTATION) is not None
        if wanted or self._options.hairpin_all:
            self._hairpins.update(Hairpin(protocol, key) for key in endpoints.on_this_node())
        if self._service.spec.health_check_node_port:
            local = endpoints.on_this_node()
            ready = {key.address for key in local if endpoints.is_ready(key)}
            self._local.setdefault(family, set()).update(ready)

    def _compile_health_check(self) -> HealthCheck | None:
        spec = self._service.spec
        port = spec.health_check_node_port
        if spec.type != "LoadBalancer" or not self._external_local or not port:
            return None
        if not is_port(port):
            self._report("spec.healthCheckNodePort", f"{port} is not a port number (1-65535)")
            return None
        # A pod of a dual-stack Service is one endpoint, not two.
        return HealthCheck(port, max(map(len, self._local.values()), default=0))

    def _report_duplicate(
        self, first: Origin, address: Address, name: str, index: int, server: VirtualServerKey
    ) -> None:
        """A second claim of the Service on one virtual server: legal only for the same port."""
        if first.port_name != name:
            is_node_port = address.kind is Kind.NODE_PORT
            field = address.field if is_node_port else f"spec.ports[{index}].port"
            text = f"{server} is already taken by port {first.port_name!r} of this Service"
            self._report(field, text)


def _places(
    service: Service,
    index: int,
    port: ServicePort,
    addresses: Sequence[Address],
    families: Sequence[int],
    node: ThisNode,
    report: Report,
) -> Iterator[tuple[Address, int]]:
    """Every (address, port number) at which one Service port is offered on this node."""
    if is_port(port.port):
        for address in addresses:
            yield address, port.port
    else:
        report(f"spec.ports[{index}].port", f"{port.port} is not a port number (1-65535)")
    if service.spec.type not in ("NodePort", "LoadBalancer") or not port.node_port:
        return
    field = f"spec.ports[{index}].nodePort"
    if not is_port(port.node_port):
        report(field, f"{port.node_port} is not a port number (1-65535)")
        return
    for family in families:
        for packed in node.node_port_addresses.get(family, ()):
            yield Address(Kind.NODE_PORT, family, packed, field), port.node_port


def is_port(number: int | None) -> bool:
    """Whether this is a port number that can be served."""
    return number is not None and 0 < number < 65536
