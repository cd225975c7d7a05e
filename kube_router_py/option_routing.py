"""The flags of the route controller and the pod network: a part of ``option_table``."""

from dataclasses import dataclass

from kube_router_py import option_types as kind
from kube_router_py.option_flag import BGP, PEERS, POD_NETWORK, flag


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingOptions:
    """See ``option_table.Options``."""

    enable_cni: bool = flag(
        kind.SWITCH,
        True,
        POD_NETWORK,
        "Write this node's Pod CIDRs into the CNI configuration file.",
    )
    cni_conf_file: str = flag(
        kind.string("FILE", kind.check_absolute_path),
        "/etc/cni/net.d/10-kuberouter.conf",
        POD_NETWORK,
        "The CNI configuration file. (In kube-router an environment variable only.)",
    )
    cni_conf_template: str = flag(
        kind.string("FILE"),
        "",
        POD_NETWORK,
        "What that file is made from where it is missing: the same without subnets and MTU, which "
        "are written into it. Empty, or no such file: plugins bridge and portmap. (Not in "
        "kube-router.)",
    )
    auto_mtu: bool = flag(
        kind.SWITCH,
        True,
        POD_NETWORK,
        "Derive the MTU of the bridge and of Pods from the node's link.",
    )
    enable_overlay: bool = flag(
        kind.SWITCH, True, POD_NETWORK, "Tunnel to nodes that are not reachable directly."
    )
    overlay_type: str = flag(
        kind.choice("subnet", "full"),
        "subnet",
        POD_NETWORK,
        "Tunnel to nodes of other subnets only, or to all nodes.",
    )
    overlay_encap: str = flag(
        kind.choice("ipip", "fou", "vxlan"),
        "ipip",
        POD_NETWORK,
        "How tunnels wrap packets: IP in IP, or in UDP besides (foo-over-UDP), or as VXLAN.",
    )
    overlay_encap_port: int = flag(
        kind.integer(1024, 65535, "PORT"), 5555, POD_NETWORK, "UDP port of foo-over-UDP and VXLAN."
    )
    enable_pod_egress: bool = flag(
        kind.SWITCH, True, POD_NETWORK, "Source-NAT what Pods send out of the cluster."
    )
    disable_source_dest_check: bool = flag(
        kind.SWITCH,
        True,
        POD_NETWORK,
        "On AWS: switch off the source/destination check of this instance at the start; takes the "
        "extra aws (pip install kube-router-py[aws]), without which the log says what to do.",
    )

    cluster_asn: int = flag(
        kind.Kind("ASN", kind.parse_cluster_asn),
        0,
        BGP,
        "AS number of the nodes; 0 stands for 64512.",
    )
    router_id: str = flag(
        kind.string("ID", kind.check_router_id),
        "",
        BGP,
        "BGP router id: an IPv4 address, or generate. Needed where the node has IPv6 only; "
        "otherwise the node's own IPv4 address.",
    )
    bgp_port: int = flag(kind.PORT, 179, BGP, "TCP port on which BGP listens.")
    bgp_holdtime: float = flag(
        kind.duration(3, 65535), 90.0, BGP, "Hold time towards routers outside the cluster."
    )
    bgp_graceful_restart: bool = flag(
        kind.SWITCH, False, BGP, "Keep routes in the neighbors while the agent restarts (RFC 4724)."
    )
    bgp_graceful_restart_time: float = flag(
        kind.duration(), 90.0, BGP, "How long neighbors wait for the restart; at most 1h8m15s."
    )
    bgp_graceful_restart_deferral_time: float = flag(
        kind.duration(),
        360.0,
        BGP,
        "How long route selection waits for the neighbors' End-of-RIB; at most 18h.",
    )
    enable_ibgp: bool = flag(kind.SWITCH, True, BGP, "Peer with the other nodes.")
    nodes_full_mesh: bool = flag(
        kind.SWITCH,
        True,
        BGP,
        "Peer with every node; false: with nodes of the same AS (annotation) only.",
    )
    override_nexthop: bool = flag(
        kind.SWITCH, False, BGP, "Announce this node as next hop to routers outside."
    )
    advertise_pod_cidr: bool = flag(
        kind.SWITCH, True, BGP, "Announce the node's Pod CIDRs to routers outside."
    )
    advertise_cluster_ip: bool = flag(kind.SWITCH, False, BGP, "Announce ClusterIPs.")
    advertise_external_ip: bool = flag(kind.SWITCH, False, BGP, "Announce external IPs.")
    advertise_loadbalancer_ip: bool = flag(kind.SWITCH, False, BGP, "Announce load balancer IPs.")
    advertise_aggregate: tuple[kind.IPNetwork, ...] = flag(
        kind.listed("CIDR", kind.parse_aggregate),
        (),
        BGP,
        "Announce these to routers outside in place of the Services' addresses inside, each as "
        "long as there is one.",
    )
    advertise_specifics_to: tuple[str, ...] = flag(
        kind.listed("PEER", kind.parse_peer),
        (),
        BGP,
        "Routers outside (addresses; interfaces of unnumbered, networks of dynamic ones) that get "
        "the Services' addresses besides the aggregates.",
    )
    bgp_maximum_paths: int = flag(
        kind.integer(1, 256),
        64,
        BGP,
        "Routes to one destination that are used side by side (ECMP).",
        unit="routes",
    )
    drain_on_cordon: bool = flag(
        kind.SWITCH,
        False,
        BGP,
        "Drain this node of Services while it is cordoned, as the annotation "
        "kube-router.io/drain=true does.",
    )
    withdraw_on_exit: bool = flag(
        kind.SWITCH,
        False,
        BGP,
        "Drain this node of Services when the agent is stopped; otherwise a stop means a restart.",
    )
    drain_delay: float = flag(
        kind.duration(0, 3600),
        5.0,
        BGP,
        "How long Services of a node that drains stay announced with the graceful-shutdown "
        "community (RFC 8326), before they are withdrawn.",
    )
    routes_sync_period: float = flag(
        kind.PERIOD, 300.0, BGP, "How often announcements and neighbors are compared as a whole."
    )
    injected_routes_sync_period: float = flag(
        kind.PERIOD, 60.0, BGP, "How often learned routes are compared with the kernel."
    )
    frr_mode: str = flag(
        kind.choice("managed", "external"),
        "managed",
        BGP,
        "managed: the agent runs FRR's daemons itself; external: it configures daemons that "
        "somebody else runs. (Not in kube-router.)",
    )
    frr_dir: str = flag(
        kind.string("DIRECTORY", kind.check_absolute_path),
        "/run/kube-router-py/frr",
        BGP,
        "FRR's run directory; of external daemons the one with their control sockets (mostly "
        "/run/frr). (Not in kube-router.)",
    )
    gobgp_admin_address: str = flag(
        kind.ADDRESS, "127.0.0.1", BGP, "Accepted for compatibility; FRR has no such port."
    )
    gobgp_admin_port: int = flag(
        kind.PORT_OR_OFF, 50051, BGP, "Accepted for compatibility; FRR has no such port."
    )

    peer_router_ips: tuple[kind.IPAddress, ...] = flag(
        kind.listed("ADDRESS", kind.parse_address), (), PEERS, "Addresses of the routers."
    )
    peer_router_asns: tuple[int, ...] = flag(
        kind.listed("ASN", kind.parse_peer_asn), (), PEERS, "Their AS numbers, in the same order."
    )
    peer_router_ports: tuple[int, ...] = flag(
        kind.listed("PORT", kind.parse_port),
        (),
        PEERS,
        "Their ports, in the same order; none: 179.",
    )
    peer_router_passwords: tuple[str, ...] = flag(
        kind.listed("BASE64", kind.parse_password, hide=True),
        (),
        PEERS,
        "Their passwords in base64, in the same order. Seen by all users of the node: better "
        "use --peer-router-passwords-file.",
        is_secret=True,
    )
    peer_router_passwords_file: str = flag(
        kind.string("FILE"),
        "",
        PEERS,
        "File with the passwords: base64, separated by commas. The flag above beats it.",
    )
    peer_router_multihop_ttl: int = flag(
        kind.integer(0, 255),
        0,
        PEERS,
        "Hops to the routers; from 2 on, multihop is used.",
        unit="hops",
    )
    enable_bfd: bool = flag(kind.SWITCH, False, PEERS, "Watch the routers by BFD (RFC 5880).")
    enable_node_bfd: bool = flag(
        kind.SWITCH, False, PEERS, "Watch the other nodes by BFD, too, with what follows."
    )
    bfd_port: int = flag(kind.PORT, 3784, PEERS, "UDP port of BFD; FRR has no other than 3784.")
    bfd_detection_multiplier: int = flag(
        kind.integer(1, 255),
        3,
        PEERS,
        "BFD packets that may be lost before a router counts as down.",
        unit="packets",
    )
    bfd_desired_min_tx_interval: int = flag(
        kind.integer(1, 2**32 - 1),
        1000,
        PEERS,
        "Time between BFD packets sent.",
        unit="milliseconds",
    )
    bfd_required_min_rx_interval: int = flag(
        kind.integer(1, 2**32 - 1),
        1000,
        PEERS,
        "Least time between BFD packets received.",
        unit="milliseconds",
    )
