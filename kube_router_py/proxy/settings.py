"""What the pure part of the service proxy takes as given: its options and this node."""

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.cluster.objects import Node
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import KUBE_PROXY_LINK
from kube_router_py.services import FAMILY_NAMES, Network, is_inside, unusable_address

if TYPE_CHECKING:
    from kube_router_py.options import Options

WEIGHT_ANNOTATION = "kube-router.io/backend-weight"
# Larger ones the kernel takes, too, but they make wrr walk long cycles.
MAX_WEIGHT = 65535

_VERSIONS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 6}


class ProxyOptions(Struct, frozen=True):
    """The flags the service proxy reads. ``unloadable_schedulers`` is learned from the kernel."""

    ipv4: bool = True
    ipv6: bool = False
    graceful_termination: bool = True
    graceful_period_s: float = 30.0
    strict_external_ips: bool = True
    cluster_ranges: tuple[Network, ...] = ()
    external_ranges: tuple[Network, ...] = ()
    load_balancer_ranges: tuple[Network, ...] = ()
    excluded_cidrs: tuple[Network, ...] = ()
    masquerade_all: bool = False
    hairpin_all: bool = False
    permit_service_ports: bool = True
    node_ports_everywhere: bool = False
    node_port_ranges: tuple[Network, ...] = ()
    source_ranges_on_node_ports: bool = False
    # Whether this node's pods have addresses of its podCIDRs: the CNI is configured by this agent.
    own_pod_network: bool = True
    pod_egress: bool = True
    tcp_timeout_s: int = 0
    tcp_fin_timeout_s: int = 0
    udp_timeout_s: int = 0
    # Connections to track, and for how many seconds; 0 leaves the kernel's own.
    conntrack_max_per_core: int = 0
    conntrack_min: int = 0
    conntrack_established_s: int = 0
    conntrack_close_wait_s: int = 0
    conntrack_udp_s: int = 0
    conntrack_udp_stream_s: int = 0
    unloadable_schedulers: frozenset[str] = frozenset()

    @property
    def families(self) -> tuple[int, ...]:
        """Enabled address families (socket.AF_*), IPv4 first."""
        return tuple(
            int(family)
            for family, enabled in ((socket.AF_INET, self.ipv4), (socket.AF_INET6, self.ipv6))
            if enabled
        )


def proxy_options(options: "Options") -> ProxyOptions:
    """Pick the service proxy's part of the agent's options."""
    return ProxyOptions(
        ipv4=options.enable_ipv4,
        ipv6=options.enable_ipv6,
        graceful_termination=options.ipvs_graceful_termination,
        graceful_period_s=options.ipvs_graceful_period,
        strict_external_ips=options.strict_external_ip_validation,
        cluster_ranges=options.service_cluster_ip_range,
        external_ranges=options.service_external_ip_range,
        load_balancer_ranges=options.loadbalancer_ip_range,
        excluded_cidrs=options.excluded_cidrs,
        masquerade_all=options.masquerade_all,
        hairpin_all=options.hairpin_mode,
        permit_service_ports=options.ipvs_permit_all,
        node_ports_everywhere=options.nodeport_bindon_all_ip,
        node_port_ranges=options.nodeport_addresses,
        source_ranges_on_node_ports=options.source_ranges_on_nodeports,
        own_pod_network=options.run_router,
        pod_egress=options.enable_pod_egress,
        tcp_timeout_s=round(options.service_tcp_timeout),
        tcp_fin_timeout_s=round(options.service_tcpfin_timeout),
        udp_timeout_s=round(options.service_udp_timeout),
        conntrack_max_per_core=options.conntrack_max_per_core,
        conntrack_min=options.conntrack_min,
        conntrack_established_s=round(options.conntrack_tcp_timeout_established),
        conntrack_close_wait_s=round(options.conntrack_tcp_timeout_close_wait),
        conntrack_udp_s=round(options.conntrack_udp_timeout),
        conntrack_udp_stream_s=round(options.conntrack_udp_timeout_stream),
    )


class ThisNode(Struct, frozen=True):
    """This node as the compiler sees it; both mappings are by family (socket.AF_*).

    ``addresses`` holds the primary address of each family, packed; empty while the Node object is
    unknown, and then nothing that needs a node address is compiled. NodePorts are served at
    ``node_port_addresses``. ``weights`` are those of real servers, by the node they are on; nodes
    with the ordinary weight 1 are left out.
    """

    name: str
    addresses: dict[int, bytes] = {}
    pod_cidrs: dict[int, tuple[str, ...]] = {}
    node_port_addresses: dict[int, tuple[bytes, ...]] = {}
    zone: str = ""
    weights: dict[str, int] = {}


# Links whose addresses are not the node's: of container bridges and of dummies. As kube-router.
_FOREIGN_LINKS = ("dummy", "kube", "docker")
# Dummies that hold nothing but Services' addresses: kube-router's, kube-proxy's, the DNS cache's.
_VIP_LINKS = frozenset({"kube-dummy-if", KUBE_PROXY_LINK, "nodelocaldns"})


def this_node(
    view: NodeView,
    options: ProxyOptions | None = None,
    live: Iterable[tuple[str, bytes]] = (),
    weights: dict[str, int] | None = None,
) -> ThisNode:
    """The part of a Node that virtual servers and source NAT depend on.

    ``live`` are (link, packed address) of what is configured in the kernel; without any, the
    addresses that the Node object lists take their place. Which of them serve NodePorts, flags
    say: the primary one of each family, every one (it included), or those in given networks.
    """
    options = options or ProxyOptions()
    best = ((int(socket.AF_INET), view.ipv4), (int(socket.AF_INET6), view.ipv6))
    cidrs = (
        (int(socket.AF_INET), view.pod_cidrs_ipv4),
        (int(socket.AF_INET6), view.pod_cidrs_ipv6),
    )
    addresses = {family: address.packed for family, address in best if address is not None}
    return ThisNode(
        name=view.name,
        addresses=addresses,
        pod_cidrs={
            family: tuple(sorted(str(network) for network in networks))
            for family, networks in cidrs
            if networks
        },
        node_port_addresses=_node_port_addresses(view, addresses, options, live),
        zone=view.zone,
        weights=weights or {},
    )


def _node_port_addresses(
    view: NodeView,
    primary: dict[int, bytes],
    options: ProxyOptions,
    live: Iterable[tuple[str, bytes]],
) -> dict[int, tuple[bytes, ...]]:
    """By family; an empty tuple where networks are given and no address lies in them."""
    # A family without networks is as if there were none at all.
    ranges = {
        family: own
        for family, version in _VERSIONS.items()
        if (own := [each for each in options.node_port_ranges if each.version == version])
    }
    if not options.node_ports_everywhere and not ranges:
        return {family: (packed,) for family, packed in primary.items()}
    found: dict[int, set[bytes]] = {family: set() for family in ranges}
    for link, packed in [*live] or [("", address.packed) for address in view.addresses]:
        family = int(socket.AF_INET if len(packed) == 4 else socket.AF_INET6)
        if link in _VIP_LINKS:
            continue
        if family in ranges:
            is_wanted = is_inside(packed, ranges[family])
        else:
            is_wanted = options.node_ports_everywhere and not any(
                word in link for word in _FOREIGN_LINKS
            )
        # To a loopback address no reply comes back from another one; and a DNS cache, or another
        # proxy, may have put a Service's address on a link.
        is_usable = not unusable_address(packed) and not is_inside(packed, options.cluster_ranges)
        if is_wanted and is_usable:
            found.setdefault(family, set()).add(packed)
    for family, packed in primary.items():
        if family not in ranges:
            found.setdefault(family, set()).add(packed)
    return {family: tuple(sorted(addresses)) for family, addresses in found.items()}


def node_port_problems(node: ThisNode, options: ProxyOptions) -> list[Problem]:
    """Where ``--nodeport-addresses`` leaves no address to serve NodePorts at."""
    reason = "none is within --nodeport-addresses: no NodePort is served over {} on this node"
    return [
        Problem(f"Node {node.name}", "status.addresses", reason.format(FAMILY_NAMES[family]))
        for family in options.families
        if node.node_port_addresses.get(family) == ()
    ]


def backend_weights(nodes: Iterable[Node]) -> tuple[dict[str, int], tuple[Problem, ...]]:
    """The weights that Nodes ask for by annotation, other than 1, and what is wrong with some."""
    weights: dict[str, int] = {}
    problems: list[Problem] = []
    for node in nodes:
        text = node.metadata.annotation(WEIGHT_ANNOTATION)
        if text is None:
            continue
        weight = _weight(text)
        if weight is None:
            shown = text if len(text) <= 20 else f"{text[:20]}..."
            reason = f"{shown!r} is not a number within 0-{MAX_WEIGHT}; its endpoints have weight 1"
            field = f"metadata.annotations[{WEIGHT_ANNOTATION}]"
            problems.append(Problem(f"Node {node.metadata.name}", field, reason))
        elif weight != 1:
            weights[node.metadata.name] = weight
    return weights, tuple(sorted(problems))


def _weight(text: str) -> int | None:
    # Python refuses to convert thousands of digits, and there may be as many.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_WEIGHT))):
        return None
    weight = int(text)
    return weight if weight <= MAX_WEIGHT else None
