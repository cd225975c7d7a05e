"""What the pure part of the firewall takes as given: its options and this node."""

from typing import TYPE_CHECKING

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.services import Network

if TYPE_CHECKING:
    from kube_router_py.options import Options


class FirewallOptions(Struct, frozen=True):
    """The flags the firewall reads. ``families``: ``inet``, ``inet6``.

    ``node_port_ranges`` are the networks in which NodePorts are served; in a family without any,
    it is all addresses of the node (``node_ports_everywhere``) or its primary one.
    """

    families: tuple[str, ...] = ("inet",)
    default_deny: bool = False
    allow_own_node: bool = False
    strict_external_ips: bool = True
    external_ranges: tuple[Network, ...] = ()
    load_balancer_ranges: tuple[Network, ...] = ()
    node_ports_everywhere: bool = True
    node_port_ranges: tuple[Network, ...] = ()


class NodeFacts(Struct, frozen=True):
    """This node: the networks that its pods have addresses of, and its own primary address, by
    family."""

    pod_networks: dict[str, tuple[str, ...]] = {}
    addresses: dict[str, str] = {}


def firewall_options(options: "Options") -> FirewallOptions:
    """Pick the firewall's part of the agent's options."""
    families = ("inet",) * options.enable_ipv4 + ("inet6",) * options.enable_ipv6
    return FirewallOptions(
        families=families,
        default_deny=options.netpol_default_deny,
        allow_own_node=options.netpol_allow_own_node,
        strict_external_ips=options.strict_external_ip_validation,
        external_ranges=options.service_external_ip_range,
        load_balancer_ranges=options.loadbalancer_ip_range,
        # Another proxy has flags of its own: what it serves is not known.
        node_ports_everywhere=options.nodeport_bindon_all_ip or not options.run_service_proxy,
        node_port_ranges=options.nodeport_addresses,
    )


def node_facts(node: NodeView) -> NodeFacts:
    return NodeFacts(
        {
            "inet": tuple(map(str, node.pod_cidrs_ipv4)),
            "inet6": tuple(map(str, node.pod_cidrs_ipv6)),
        },
        {
            family: str(address)
            for family, address in (("inet", node.ipv4), ("inet6", node.ipv6))
            if address is not None
        },
    )
