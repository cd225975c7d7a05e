"""What the pure part of the service proxy takes as given: its options and this node."""

import socket
from typing import TYPE_CHECKING

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.services import Network

if TYPE_CHECKING:
    from kube_router_py.options import Options

FAMILY_NAMES = {int(socket.AF_INET): "IPv4", int(socket.AF_INET6): "IPv6"}


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
    tcp_timeout_s: int = 0
    tcp_fin_timeout_s: int = 0
    udp_timeout_s: int = 0
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
        tcp_timeout_s=round(options.service_tcp_timeout),
        tcp_fin_timeout_s=round(options.service_tcpfin_timeout),
        udp_timeout_s=round(options.service_udp_timeout),
    )


class ThisNode(Struct, frozen=True):
    """This node as the compiler sees it; both mappings are by family (socket.AF_*).

    ``addresses`` holds the primary address of each family, packed; empty while the Node object is
    unknown, and then nothing that needs a node address is compiled.
    """

    name: str
    addresses: dict[int, bytes] = {}
    pod_cidrs: dict[int, tuple[str, ...]] = {}
    # Where NodePorts are served; the primary addresses alone unless flags say otherwise.
    node_port_addresses: dict[int, tuple[bytes, ...]] = {}
    zone: str = ""
    # Weights of real servers by the node they are on; nodes with the ordinary weight 1 are left out.
    weights: dict[str, int] = {}


def this_node(view: NodeView) -> ThisNode:
    """The part of a Node that virtual servers and source NAT depend on."""
    best = ((int(socket.AF_INET), view.ipv4), (int(socket.AF_INET6), view.ipv6))
    cidrs = (
        (int(socket.AF_INET), view.pod_cidrs_ipv4),
        (int(socket.AF_INET6), view.pod_cidrs_ipv6),
    )
    return ThisNode(
        name=view.name,
        addresses={family: address.packed for family, address in best if address is not None},
        pod_cidrs={
            family: tuple(sorted(str(network) for network in networks))
            for family, networks in cidrs
            if networks
        },
    )
