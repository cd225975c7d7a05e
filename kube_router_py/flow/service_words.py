"""What is told of a Service on a node: its addresses and ports, and why one is not served. Pure."""

from ipaddress import ip_address

from kube_router_py.cluster.objects import Service
from kube_router_py.flow.model import Server
from kube_router_py.flow.names import addresses_of
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.model import Flag, Vip, VirtualServerKey, VirtualServerState
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.service_addresses import Kind
from kube_router_py.services import (
    FAMILY_NAMES,
    SKIP_LB_IPS_ANNOTATION,
    cluster_ips,
    has_addresses,
    parse_address,
)

# As people call the sorts of addresses.
KIND_WORDS = {
    str(Kind.CLUSTER_IP): "ClusterIP",
    str(Kind.EXTERNAL_IP): "external IP",
    str(Kind.LOAD_BALANCER_IP): "load balancer IP",
    str(Kind.NODE_PORT): "NodePort",
}
_FLAG_NAMES = {
    Flag.SCHED1: "sched-1",
    Flag.SCHED2: "sched-2",
    Flag.SCHED3: "sched-3",
    Flag.ONEPACKET: "onepacket",
}


def why_no_address(
    service: Service, text: str, compiled: CompiledService, options: ProxyOptions
) -> str:
    """Why one of its addresses is not served, or ``""``."""
    parsed = parse_address(text)
    if parsed is None or Vip(*parsed) in compiled.vips:
        return ""
    if reason := why_refused(text, compiled):
        return reason
    if parsed[0] not in options.families:
        name = FAMILY_NAMES[parsed[0]]
        return f"{text} is not served: --enable-{name.lower()}=false"
    if any(parse_address(each) == parsed for each in (*cluster_ips(service),)):
        return ""
    if not has_addresses(service):
        return f"{text} is not served: the Service is headless"
    if service.metadata.annotation(SKIP_LB_IPS_ANNOTATION) is not None:
        return f"{text} is not served: annotation {SKIP_LB_IPS_ANNOTATION}"
    if service.spec.type != "LoadBalancer":
        return f"{text} is not served: the Service is not of type LoadBalancer"
    return f"{text} is not served: its ipMode is Proxy, the load balancer itself sends to nodes"


def why_refused(text: str, compiled: CompiledService) -> str:
    """Why nobody here may have this address, or ``""``: flags and pools do not allow it."""
    for problem in compiled.problems:
        if text in problem.reason.split()[:1]:
            return problem.reason
    return ""


def kind_at(service: Service, text: str) -> Kind:
    """The sort of an address that a Service names; NODE_PORT for what it does not name."""
    parsed = parse_address(text)
    if any(parse_address(each) == parsed for each in cluster_ips(service)):
        return Kind.CLUSTER_IP
    if any(parse_address(each) == parsed for each in service.spec.external_ips or ()):
        return Kind.EXTERNAL_IP
    return Kind.LOAD_BALANCER_IP if text in addresses_of(service) else Kind.NODE_PORT


def ports_of(service: Service) -> str:
    words = [
        f"{each.port}/{each.protocol or 'TCP'}" + (f" ({each.name})" if each.name else "")
        for each in service.spec.ports or ()
    ]
    return ", ".join(words) or "none"


def server_of(
    server: VirtualServerKey, in_ipvs: VirtualServerKey, protocol: str, state: VirtualServerState
) -> Server:
    return Server(
        address=address_text(server.address),
        port=server.port,
        protocol=protocol,
        scheduler=state.config.scheduler,
        flags=tuple(name for flag, name in _FLAG_NAMES.items() if state.config.flags & flag),
        persistence_s=state.config.persistence_s,
        fwmark=in_ipvs.fwmark,
    )


def address_text(packed: bytes) -> str:
    return str(ip_address(packed))
