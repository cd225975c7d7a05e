"""Compile one Service with its EndpointSlices to virtual and real servers.

Pure: equal objects give equal results, whatever their order. What is wrong with one port, address
or endpoint becomes a Problem and leaves the rest of the Service as it would be without it.

    Service port x address            -> virtual server    (Kind says which of the four sorts)
    slice port of the same name       -> port of the real servers
    endpoint, by usability and policy -> real server at weight 1, or none
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointSlice, Service, ServicePort
from kube_router_py.problem import Problem
from kube_router_py.proxy.endpoints import Endpoints, compile_endpoints
from kube_router_py.proxy.model import (
    Flag,
    Guard,
    Hairpin,
    HealthCheck,
    RealServer,
    RealServerKey,
    Vip,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.settings import FAMILY_NAMES, ProxyOptions, ThisNode
from kube_router_py.services import (
    cluster_ips,
    is_external_local,
    is_inside,
    is_internal_local,
    is_proxied,
    load_balancer_ips,
    parse_address,
    unusable_address,
)

SCHEDULER_ANNOTATION = "kube-router.io/service.scheduler"
SCHEDULER_FLAGS_ANNOTATION = "kube-router.io/service.schedflags"

DEFAULT_SCHEDULER = "rr"
# net/netfilter/ipvs/ip_vs_*.c
SCHEDULERS = frozenset(
    "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos".split()  # noqa: SIM905 - reads better
)
_SCHEDULER_FLAGS = {"flag-1": Flag.SCHED1, "flag-2": Flag.SCHED2, "flag-3": Flag.SCHED3}
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
TCP = 6

DEFAULT_AFFINITY_S = 10800
_MAX_AFFINITY_S = 86400

# The one value of every masqueraded real server: shared, so that 50,000 of them cost one.
_REAL = RealServer()


class Kind(IntEnum):
    """The sorts of virtual servers; within a Service the lower one owns an address they share."""

    CLUSTER_IP = 1
    EXTERNAL_IP = 2
    LOAD_BALANCER_IP = 3
    NODE_PORT = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


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


class _Address(Struct, frozen=True):
    kind: Kind
    family: int
    packed: bytes
    field: str


def compile_service(
    service: Service, slices: Iterable[EndpointSlice], node: ThisNode, options: ProxyOptions
) -> CompiledService:
    """The desired state of one Service on this node; empty for Services that are not ours."""
    key = service.metadata.key
    found = CompiledService(
        key=key,
        created=service.metadata.creation_timestamp or "",
        virtual_servers={},
        origins={},
        paused={},
        terminating={},
        vips=frozenset(),
        problems=(),
    )
    if not is_proxied(service):
        return found
    slices = sorted(slices, key=lambda each: each.metadata.key)
    problems: list[Problem] = []
    report = _Reporter(f"Service {key}", problems)
    config = _compile_config(service, options, report)
    addresses = _compile_addresses(service, options, report)
    families = _families(service, options)
    inside_local, outside_local = is_internal_local(service), is_external_local(service)
    for index, port in enumerate(service.spec.ports or ()):
        protocol = PROTOCOLS.get(port.protocol or "TCP")
        if protocol is None:
            report(f"spec.ports[{index}].protocol", f"{port.protocol!r} is not TCP, UDP or SCTP")
            continue
        endpoints: dict[int, Endpoints] = {}
        for address, number in _places(
            service, index, port, addresses, families, node, options, report
        ):
            server = VirtualServerKey(address.family, protocol, address.packed, number)
            if server in found.virtual_servers:
                _report_duplicate(found.origins[server], address, port, index, server, report)
                continue
            if address.family not in endpoints:
                endpoints[address.family] = compile_endpoints(
                    slices, port.name or "", protocol, address.family, node.name, problems
                )
            local = inside_local if address.kind is Kind.CLUSTER_IP else outside_local
            group = endpoints[address.family].group(local=local)
            found.virtual_servers[server] = VirtualServerState(
                config, dict.fromkeys(group.usable, _REAL)
            )
            found.origins[server] = Origin(port.name or "", address.kind)
            if protocol == TCP and options.graceful_termination:
                if group.paused:
                    found.paused[server] = group.paused
                if group.terminating:
                    found.terminating[server] = group.terminating
    vips = frozenset(
        Vip(server.family, server.address)
        for server, origin in found.origins.items()
        if origin.kind is not Kind.NODE_PORT
    )
    return CompiledService(
        key=found.key,
        created=found.created,
        virtual_servers=found.virtual_servers,
        origins=found.origins,
        paused=found.paused,
        terminating=found.terminating,
        vips=vips,
        problems=tuple(sorted(set(problems))),
    )


class _Reporter:
    """Collects the Problems of one object."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self._name, self._problems = name, problems

    def __call__(self, field: str, reason: str) -> None:
        self._problems.append(Problem(self._name, field, reason))


def _places(
    service: Service,
    index: int,
    port: ServicePort,
    addresses: Sequence[_Address],
    families: Sequence[int],
    node: ThisNode,
    options: ProxyOptions,
    report: _Reporter,
) -> Iterator[tuple[_Address, int]]:
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
        if packed := node.addresses.get(family):
            yield _Address(Kind.NODE_PORT, family, packed, field), port.node_port


def is_port(number: int | None) -> bool:
    """Whether this is a port number that can be served."""
    return number is not None and 0 < number < 65536


def _families(service: Service, options: ProxyOptions) -> tuple[int, ...]:
    """The enabled families the Service has: those of its ClusterIPs, else as its spec says."""
    ips = cluster_ips(service)
    if ips:
        has = {parsed[0] for ip in ips if (parsed := parse_address(ip))}
        return tuple(family for family in options.families if family in has)
    names = service.spec.ip_families
    if not names:
        return options.families[:1]
    return tuple(family for family in options.families if FAMILY_NAMES[family] in names)


def _compile_config(service: Service, options: ProxyOptions, report: _Reporter) -> VirtualServer:
    scheduler = service.metadata.annotation(SCHEDULER_ANNOTATION) or DEFAULT_SCHEDULER
    field = f"metadata.annotations[{SCHEDULER_ANNOTATION}]"
    if scheduler not in SCHEDULERS:
        report(field, f"{scheduler!r} is no IPVS scheduler; {DEFAULT_SCHEDULER} is used instead")
        scheduler = DEFAULT_SCHEDULER
    elif scheduler in options.unloadable_schedulers:
        report(
            field,
            f"the kernel cannot load {scheduler!r} (module ip_vs_{scheduler}); "
            f"{DEFAULT_SCHEDULER} is used instead",
        )
        scheduler = DEFAULT_SCHEDULER
    return VirtualServer(
        scheduler=scheduler,
        flags=_compile_flags(service, scheduler, report),
        persistence_s=_compile_persistence(service, report),
    )


def _compile_flags(service: Service, scheduler: str, report: _Reporter) -> int:
    text = service.metadata.annotation(SCHEDULER_FLAGS_ANNOTATION)
    if not text:
        return 0
    field = f"metadata.annotations[{SCHEDULER_FLAGS_ANNOTATION}]"
    if scheduler != "mh":
        report(field, f"scheduler flags have a meaning for mh only, not for {scheduler}")
        return 0
    flags = 0
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name in _SCHEDULER_FLAGS:
            flags |= int(_SCHEDULER_FLAGS[name])
        else:
            report(field, f"{name!r} is none of {', '.join(_SCHEDULER_FLAGS)}")
    return flags


def _compile_persistence(service: Service, report: _Reporter) -> int:
    spec = service.spec
    if spec.session_affinity in (None, "", "None"):
        return 0
    if spec.session_affinity != "ClientIP":
        report("spec.sessionAffinity", f"{spec.session_affinity!r} is not None or ClientIP")
        return 0
    client_ip = spec.session_affinity_config and spec.session_affinity_config.client_ip
    timeout_s = client_ip.timeout_seconds if client_ip else None
    if timeout_s is None:
        return DEFAULT_AFFINITY_S
    if not 0 < timeout_s <= _MAX_AFFINITY_S:
        report(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            f"{timeout_s} is not within 1-{_MAX_AFFINITY_S} s; {DEFAULT_AFFINITY_S} is used",
        )
        return DEFAULT_AFFINITY_S
    return timeout_s


def _compile_addresses(
    service: Service, options: ProxyOptions, report: _Reporter
) -> list[_Address]:
    """ClusterIPs, external IPs and LB IPs that this node answers for, in the order of Kind."""
    found: dict[bytes, _Address] = {}
    enabled = options.families

    def admit(kind: Kind, field: str, text: str) -> None:
        parsed = parse_address(text)
        if parsed is None:
            report(field, f"{text!r} is not an IP address")
            return
        family, packed = parsed
        if packed in found:
            return  # an external IP that a load balancer gave out too: the external IP it is
        if reason := unusable_address(packed):
            report(field, f"{text} is {reason}")
        elif family not in enabled:
            # Every ClusterIP of a dual-stack cluster on a single-stack node: nothing to tell.
            if kind is not Kind.CLUSTER_IP:
                report(
                    field, f"{text} is not served: --enable-{FAMILY_NAMES[family].lower()}=false"
                )
        elif refusal := _refuse(kind, packed, options):
            report(field, f"{text} is refused: {refusal}")
        else:
            found[packed] = _Address(kind, family, packed, field)

    for index, text in enumerate(cluster_ips(service)):
        admit(Kind.CLUSTER_IP, f"spec.clusterIPs[{index}]", text)
    for index, text in enumerate(service.spec.external_ips or ()):
        admit(Kind.EXTERNAL_IP, f"spec.externalIPs[{index}]", text)
    for index, text in load_balancer_ips(service):
        admit(Kind.LOAD_BALANCER_IP, f"status.loadBalancer.ingress[{index}].ip", text)
    return list(found.values())


def _refuse(kind: Kind, packed: bytes, options: ProxyOptions) -> str:
    """Why an external or LB IP is not admitted, or ``""``: anyone who may create a Service could
    otherwise draw any address's traffic to the nodes (CVE-2020-8554)."""
    if kind is Kind.CLUSTER_IP:
        return ""
    if is_inside(packed, options.cluster_ranges):
        return "it lies in --service-cluster-ip-range"
    if not options.strict_external_ips:
        return ""
    if kind is Kind.EXTERNAL_IP:
        flag, ranges = "--service-external-ip-range", options.external_ranges
    else:
        flag, ranges = "--loadbalancer-ip-range", options.load_balancer_ranges
    if is_inside(packed, ranges):
        return ""
    return (
        f"it lies in no {flag}; add its range there, or set --strict-external-ip-validation=false"
    )


def _report_duplicate(
    first: Origin,
    address: _Address,
    port: ServicePort,
    index: int,
    server: VirtualServerKey,
    report: _Reporter,
) -> None:
    """A second claim of the same Service on one virtual server: legal only for the same port."""
    if first.port_name != (port.name or ""):
        field = address.field if address.kind is Kind.NODE_PORT else f"spec.ports[{index}].port"
        report(field, f"{server} is already taken by port {first.port_name!r} of this Service")
