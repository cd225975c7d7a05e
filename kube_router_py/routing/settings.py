"""What the pure part of the route controller takes as given: the agent's options, as values."""

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.routing.model import Address, Bfd, GracefulRestart, Network, Version
from kube_router_py.routing.pool_terms import PoolTerms, compile_pool_terms

if TYPE_CHECKING:
    from kube_router_py.options import Options

# Where --cluster-asn is 0; as kube-router.
DEFAULT_ASN = 64512
# What the capability's 12 bits hold (RFC 4724), and what FRR takes; seconds.
_LONGEST_RESTART_S = 4095
_LONGEST_DEFERRAL_S = 3600


class RoutingSettings(Struct, frozen=True, kw_only=True):
    """The flags the route controller reads; names are those of the flags where nothing is said.

    Times are whole seconds, but for ``drain_delay_s``. ``router_id`` is an address, or one made
    from the node's (``generate_router_id``), or None: the node's own IPv4 address.
    ``graceful_restart_outside`` says whether routers outside are asked for it, too; between nodes
    it is always on. ``graceful_restart`` are its times. ``peer_*`` are the lists of
    ``--peer-router-*``, in the order given; ports and passwords may be missing altogether.
    The passwords file is read by whoever compiles: ``peers.external_peers`` takes what it holds.
    """

    ipv4: bool = True
    ipv6: bool = False

    # Which addresses Services may have: ``service_addresses.AddressRules``.
    strict_external_ips: bool = True
    cluster_ranges: tuple[Network, ...] = ()
    external_ranges: tuple[Network, ...] = ()
    load_balancer_ranges: tuple[Network, ...] = ()
    # Those of them that were taken out of pools: somebody else may announce the rest of them.
    retired_ranges: tuple[Network, ...] = ()
    # How pools have their addresses announced, see ``with_pools``.
    pools: tuple[PoolTerms, ...] = ()
    # Whether the service proxy runs on this node, so that addresses lead somewhere only once it
    # has programmed them.
    has_proxy: bool = True

    cluster_asn: int = DEFAULT_ASN
    router_id: IPv4Address | None = None
    generate_router_id: bool = False
    port: int = 179
    hold_s: int = 90
    graceful_restart: GracefulRestart = GracefulRestart()
    graceful_restart_outside: bool = False
    enable_ibgp: bool = True
    full_mesh: bool = True
    override_nexthop: bool = False
    maximum_paths: int = 64

    advertise_pod_cidr: bool = True
    advertise_cluster_ip: bool = False
    advertise_external_ip: bool = False
    advertise_load_balancer_ip: bool = False
    advertise_aggregate: tuple[Network, ...] = ()
    advertise_specifics_to: tuple[str, ...] = ()
    drain_on_cordon: bool = False
    withdraw_on_exit: bool = False
    drain_delay_s: float = 5.0

    peer_addresses: tuple[Address, ...] = ()
    peer_asns: tuple[int, ...] = ()
    peer_ports: tuple[int, ...] = ()
    peer_passwords: tuple[str, ...] = ()
    peer_passwords_file: str = ""
    peer_multihop: int = 0
    peer_bfd: bool = False
    node_bfd: bool = False
    bfd: Bfd = Bfd()
    bfd_port: int = 3784

    enable_cni: bool = True
    cni_conf_file: str = ""
    cni_conf_template: str = ""
    auto_mtu: bool = True
    enable_overlay: bool = True
    overlay_type: str = "subnet"
    overlay_encap: str = "ipip"
    overlay_encap_port: int = 5555
    enable_pod_egress: bool = True
    disable_source_dest_check: bool = True

    @property
    def versions(self) -> tuple[Version, ...]:
        """Enabled IP versions, 4 first."""
        both: tuple[tuple[Version, bool], ...] = ((4, self.ipv4), (6, self.ipv6))
        return tuple(version for version, is_enabled in both if is_enabled)

    @property
    def families(self) -> tuple[int, ...]:
        """Enabled address families (socket.AF_*), IPv4 first."""
        both = ((socket.AF_INET, self.ipv4), (socket.AF_INET6, self.ipv6))
        return tuple(int(family) for family, is_enabled in both if is_enabled)


def routing_settings(options: "Options") -> RoutingSettings:
    """Pick the route controller's part of the agent's options."""
    return RoutingSettings(
        ipv4=options.enable_ipv4,
        ipv6=options.enable_ipv6,
        strict_external_ips=options.strict_external_ip_validation,
        cluster_ranges=options.service_cluster_ip_range,
        external_ranges=options.service_external_ip_range,
        load_balancer_ranges=options.loadbalancer_ip_range,
        has_proxy=options.run_service_proxy,
        cluster_asn=options.cluster_asn or DEFAULT_ASN,
        router_id=_router_id(options.router_id),
        generate_router_id=options.router_id == "generate",
        port=options.bgp_port,
        hold_s=int(options.bgp_holdtime),
        # The flags' own check looks at the times only where the switch is on.
        graceful_restart=GracefulRestart(
            restart_s=_within(options.bgp_graceful_restart_time, _LONGEST_RESTART_S),
            deferral_s=_within(options.bgp_graceful_restart_deferral_time, _LONGEST_DEFERRAL_S),
        ),
        graceful_restart_outside=options.bgp_graceful_restart,
        enable_ibgp=options.enable_ibgp,
        full_mesh=options.nodes_full_mesh,
        override_nexthop=options.override_nexthop,
        maximum_paths=options.bgp_maximum_paths,
        advertise_pod_cidr=options.advertise_pod_cidr,
        advertise_cluster_ip=options.advertise_cluster_ip,
        advertise_external_ip=options.advertise_external_ip,
        advertise_load_balancer_ip=options.advertise_loadbalancer_ip,
        advertise_aggregate=options.advertise_aggregate,
        advertise_specifics_to=options.advertise_specifics_to,
        drain_on_cordon=options.drain_on_cordon,
        withdraw_on_exit=options.withdraw_on_exit,
        drain_delay_s=options.drain_delay,
        peer_addresses=options.peer_router_ips,
        peer_asns=options.peer_router_asns,
        peer_ports=options.peer_router_ports,
        peer_passwords=options.peer_router_passwords,
        peer_passwords_file=options.peer_router_passwords_file,
        peer_multihop=options.peer_router_multihop_ttl,
        peer_bfd=options.enable_bfd,
        node_bfd=options.enable_node_bfd,
        bfd=Bfd(
            detection_multiplier=options.bfd_detection_multiplier,
            receive_interval_ms=options.bfd_required_min_rx_interval,
            transmit_interval_ms=options.bfd_desired_min_tx_interval,
        ),
        bfd_port=options.bfd_port,
        enable_cni=options.enable_cni,
        cni_conf_file=options.cni_conf_file,
        cni_conf_template=options.cni_conf_template,
        auto_mtu=options.auto_mtu,
        enable_overlay=options.enable_overlay,
        overlay_type=options.overlay_type,
        overlay_encap=options.overlay_encap,
        overlay_encap_port=options.overlay_encap_port,
        enable_pod_egress=options.enable_pod_egress,
        disable_source_dest_check=options.disable_source_dest_check,
    )


def with_pools(
    settings: RoutingSettings, pools: AddressPools, labels: Mapping[str, str]
) -> RoutingSettings:
    """The flags, with these pools on the node that has these labels."""
    return structs.replace(
        settings,
        load_balancer_ranges=load_balancer_ranges(settings.load_balancer_ranges, pools),
        retired_ranges=pools.retired_networks(),
        pools=compile_pool_terms(pools, labels),
    )


def _router_id(text: str) -> IPv4Address | None:
    return None if text in ("", "generate") else IPv4Address(text)


def _within(seconds: float, most: int) -> int:
    return max(1, min(most, int(seconds)))
