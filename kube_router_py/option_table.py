"""Every flag, declared once: the fields of ``Options``.

A field's name is the flag's name with underscores; its kind gives type and check, its default is
the value when neither flag nor environment variable gives one. Flags are those of kube-router;
the few that are ours say so. Checks that concern several flags are in ``option_checks``.
"""

import dataclasses
from dataclasses import dataclass

from kube_router_py import option_types as kind
from kube_router_py.option_flag import (
    AGENT,
    API,
    FAMILIES,
    FIREWALL,
    LOADBALANCER,
    OBSERVE,
    PROXY,
    Flag,
    flag,
)
from kube_router_py.option_routing import RoutingOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(RoutingOptions):
    """The values of all flags. Durations are float seconds, lists tuples, CIDRs networks.

    ``Options()`` holds the defaults; it is not checked. ``options.parse`` gives checked ones.
    """

    run_service_proxy: bool = flag(
        kind.SWITCH, True, AGENT, "Program Services into IPVS, in place of kube-proxy."
    )
    run_firewall: bool = flag(
        kind.SWITCH, True, AGENT, "Enforce NetworkPolicies by iptables and ipsets."
    )
    run_router: bool = flag(
        kind.SWITCH, True, AGENT, "Connect the pods of all nodes and announce addresses by BGP."
    )
    run_loadbalancer: bool = flag(
        kind.SWITCH, False, AGENT, "Allocate addresses to Services of type LoadBalancer."
    )
    cleanup_config: bool = flag(
        kind.SWITCH, False, AGENT, "Remove what the agent left in this node's kernel, then exit."
    )
    hostname_override: str = flag(
        kind.string("NAME", kind.check_node_name),
        "",
        AGENT,
        "Name of this node's Node object. Without it NODE_NAME is used, then the host's name.",
    )
    iptables_backend: str = flag(
        kind.choice("auto", "nft", "legacy"),
        "auto",
        AGENT,
        "Which variant of iptables to use. auto: the one in which the kubelet has its chains, else "
        "the node's iptables. (Not in kube-router.)",
    )
    proc_sys_path: str = flag(
        kind.string("PATH", kind.check_absolute_path),
        "/proc/sys",
        AGENT,
        "Where kernel parameters can be written. A container without privileges sees /proc/sys "
        "read-only and mounts the host's elsewhere. (Not in kube-router.)",
    )

    kubeconfig: str = flag(
        kind.string("FILE"),
        "",
        API,
        "Kubeconfig with the API server's address and credentials. Without it and --master the "
        "Pod's ServiceAccount is used.",
    )
    master: str = flag(
        kind.string("URL,...", kind.check_urls),
        "",
        API,
        "API server, at an address that works before any Service is programmed (never its "
        "ClusterIP); several, with commas between, are tried in turn. Overrides the server of "
        "--kubeconfig.",
    )
    cache_sync_timeout: float = flag(
        kind.PERIOD,
        60.0,
        API,
        "How long the first list of all objects may take before the log says what is missing. "
        "The agent goes on trying, and is not ready meanwhile.",
    )

    enable_ipv4: bool = flag(kind.SWITCH, True, FAMILIES, "Serve IPv4.")
    enable_ipv6: bool = flag(kind.SWITCH, False, FAMILIES, "Serve IPv6.")
    service_cluster_ip_range: tuple[kind.IPNetwork, ...] = flag(
        kind.NETWORKS,
        (kind.parse_network("10.96.0.0/12"),),
        FAMILIES,
        "Where the cluster takes ClusterIPs from: one CIDR, or one of each family.",
    )
    service_external_ip_range: tuple[kind.IPNetwork, ...] = flag(
        kind.NETWORKS, (), FAMILIES, "Where external IPs of Services may come from."
    )
    service_node_port_range: tuple[int, int] = flag(
        kind.Kind("LOW-HIGH", kind.parse_port_range, lambda ports: f"{ports[0]}-{ports[1]}"),
        (30000, 32767),
        FAMILIES,
        "Where the cluster takes NodePorts from.",
    )

    ipvs_sync_period: float = flag(
        kind.PERIOD,
        300.0,
        PROXY,
        "How often IPVS is read back as a whole and repaired. Changes of Services do not wait "
        "for it.",
    )
    ipvs_graceful_termination: bool = flag(
        kind.SWITCH,
        True,
        PROXY,
        "Let the connections of an endpoint that goes away end by themselves (weight 0) before "
        "it is removed. (kube-router: off unless asked for.)",
    )
    ipvs_graceful_period: float = flag(
        kind.PERIOD, 30.0, PROXY, "How long such connections may last where the Pod does not say."
    )
    ipvs_permit_all: bool = flag(
        kind.SWITCH,
        True,
        PROXY,
        "Accept traffic to the ports of Services and refuse the rest of a service address.",
    )
    excluded_cidrs: tuple[kind.IPNetwork, ...] = flag(
        kind.NETWORKS,
        (),
        PROXY,
        "Virtual servers inside may be someone else's: none is ever removed for want of a Service, "
        "and those of no Service are never changed. A Service that asks for an address inside is "
        "programmed all the same.",
    )
    masquerade_all: bool = flag(
        kind.SWITCH, False, PROXY, "Source-NAT all traffic that IPVS load-balances."
    )
    hairpin_mode: bool = flag(
        kind.SWITCH, False, PROXY, "Let every Pod reach itself through its own Service."
    )
    nodeport_bindon_all_ip: bool = flag(
        kind.SWITCH,
        False,
        PROXY,
        "Serve NodePorts on every address of the node, not on its InternalIP only.",
    )
    nodeport_addresses: tuple[kind.IPNetwork, ...] = flag(
        kind.NETWORKS,
        (),
        PROXY,
        "Serve NodePorts on those of the node's addresses that lie in these networks, as "
        "kube-proxy's flag of this name. Not together with --nodeport-bindon-all-ip.",
    )
    source_ranges_on_nodeports: bool = flag(
        kind.SWITCH,
        False,
        PROXY,
        "Apply loadBalancerSourceRanges to NodePorts, too. Balancers outside the cluster probe "
        "and forward with addresses of their own: those have to be in the ranges then.",
    )
    strict_external_ip_validation: bool = flag(
        kind.SWITCH,
        True,
        PROXY,
        "Refuse external IPs outside --service-external-ip-range, and load balancer IPs outside "
        "--loadbalancer-ip-range and address pools.",
    )
    service_tcp_timeout: float = flag(
        kind.whole_seconds(2147483),
        0.0,
        PROXY,
        "Idle time after which IPVS forgets a TCP connection; 0s leaves the kernel's own.",
    )
    service_tcpfin_timeout: float = flag(
        kind.whole_seconds(2147483),
        0.0,
        PROXY,
        "How long IPVS keeps a closed TCP connection; 0s leaves the kernel's own.",
    )
    service_udp_timeout: float = flag(
        kind.whole_seconds(2147483),
        0.0,
        PROXY,
        "Idle time after which IPVS forgets a UDP flow; 0s leaves the kernel's own.",
    )
    conntrack_max_per_core: int = flag(
        kind.integer(0, 2**31 - 1),
        32768,
        PROXY,
        "Connections to track, for each core of the node; 0 leaves the kernel's limit. A larger "
        "limit is never lowered. As kube-proxy's flag, as are the next ones.",
        unit="connections",
    )
    conntrack_min: int = flag(
        kind.integer(0, 2**31 - 1),
        131072,
        PROXY,
        "Connections to track at least, however few the cores.",
        unit="connections",
    )
    conntrack_tcp_timeout_established: float = flag(
        kind.whole_seconds(2147483),
        86400.0,
        PROXY,
        "How long an idle TCP connection is tracked; 0s leaves the kernel's own.",
    )
    conntrack_tcp_timeout_close_wait: float = flag(
        kind.whole_seconds(2147483),
        3600.0,
        PROXY,
        "How long a half-closed TCP connection is tracked; 0s leaves the kernel's own.",
    )
    conntrack_udp_timeout: float = flag(
        kind.whole_seconds(2147483),
        0.0,
        PROXY,
        "How long a UDP flow without an answer is tracked; 0s leaves the kernel's own.",
    )
    conntrack_udp_timeout_stream: float = flag(
        kind.whole_seconds(2147483),
        0.0,
        PROXY,
        "How long an answered UDP flow is tracked; 0s leaves the kernel's own.",
    )
    runtime_endpoint: str = flag(
        kind.string("SOCKET", kind.check_unix_socket),
        "",
        PROXY,
        "The container runtime's CRI socket, used for direct server return.",
    )
    vip_mode: str = flag(
        kind.choice("route", "address"),
        "route",
        PROXY,
        "How service addresses become local: by local routes, or by addresses on kube-dummy-if "
        "as kube-router does (slower with many). (Not in kube-router.)",
    )

    iptables_sync_period: float = flag(
        kind.PERIOD, 300.0, FIREWALL, "How often all policies are compared with the kernel."
    )
    netpol_default_deny: bool = flag(
        kind.SWITCH, False, FIREWALL, "Refuse a Pod's traffic until its policies are programmed."
    )
    netpol_allow_own_node: bool = flag(
        kind.SWITCH,
        False,
        FIREWALL,
        "Let Pods reach the node they run on, whatever their egress policies say. (Not in "
        "kube-router, which applies them.)",
    )
    policy_drop_log: str = flag(
        kind.choice("off", "log", "events"),
        "off",
        FIREWALL,
        "Tell what policies refuse (or, audited, would refuse): in the log, and with 'events' on "
        "the Pods as well. The agent reads NFLOG group 100 then all the time, so that tcpdump "
        "cannot; with 'off' only while 'kube-router-py drops' runs. (Not in kube-router.)",
    )
    use_nftables_for_netpol: bool = flag(
        kind.SWITCH,
        False,
        FIREWALL,
        "Without effect: iptables and ipsets enforce policies. (Experimental in kube-router.)",
    )

    loadbalancer_ip_range: tuple[kind.IPNetwork, ...] = flag(
        kind.NETWORKS,
        (),
        LOADBALANCER,
        "Addresses to give to Services of type LoadBalancer: the pool 'default', beside those in "
        "the ConfigMap kube-router-address-pools.",
    )
    loadbalancer_default_class: bool = flag(
        kind.SWITCH, True, LOADBALANCER, "Serve Services without a load balancer class, too."
    )
    loadbalancer_sync_period: float = flag(
        kind.PERIOD, 60.0, LOADBALANCER, "How often all allocations are compared."
    )
    loadbalancer_layer2: bool = flag(
        kind.SWITCH,
        False,
        LOADBALANCER,
        "Announce the addresses of --loadbalancer-ip-range by ARP and NDP, too.",
    )
    loadbalancer_layer2_interfaces: tuple[str, ...] = flag(
        kind.listed("INTERFACE", str),
        (),
        LOADBALANCER,
        "The links on which addresses are announced by ARP and NDP where their pool names none; "
        "* and ? as in file names; none: all with an address of the Node's.",
    )
    loadbalancer_heartbeat_port: int = flag(
        kind.PORT,
        20246,
        LOADBALANCER,
        "UDP port on which the nodes that announce by ARP and NDP tell each other that they live.",
    )
    loadbalancer_heartbeat_secret: str = flag(
        kind.string("NAME"),
        "kube-router-py-heartbeat",
        LOADBALANCER,
        "The Secret in the agent's namespace whose entry 'key' signs heartbeats. Without it nodes "
        "look at each other's Leases, and take over more slowly.",
    )
    loadbalancer_restart_grace: float = flag(
        kind.PERIOD,
        30.0,
        LOADBALANCER,
        "How long an agent that was stopped keeps the addresses that its node announces by ARP and "
        "NDP, so that a restart moves none.",
    )
    loadbalancer_announce_period: float = flag(
        kind.duration(),
        0.0,
        LOADBALANCER,
        "How often gratuitous ARP and unsolicited NA are repeated; 0: after a change only.",
    )

    agent_socket: str = flag(
        kind.string("PATH", kind.check_absolute_path),
        "/run/kube-router-py/agent.sock",
        OBSERVE,
        "Where status, explain, drops and doctor ask the agent of this node; only root may. "
        "(Not in kube-router.)",
    )
    cluster_status_interval: float = flag(
        kind.duration(),
        60.0,
        OBSERVE,
        "How often the agent writes a summary of its node's state into a Lease, for status "
        "--cluster; what is new is written at most so often. 0: never. (Not in kube-router.)",
    )
    health_addr: str = flag(
        kind.ADDRESS, "", OBSERVE, "Address of /healthz and /readyz; none: all addresses."
    )
    health_port: int = flag(
        kind.PORT_OR_OFF, 20244, OBSERVE, "Port of /healthz and /readyz; 0: off."
    )
    healthz_bind_address: tuple[str, int] = flag(
        kind.Kind("ADDRESS:PORT", kind.parse_bind_address, kind.show_bind_address),
        ("", 10256),
        OBSERVE,
        "Where load balancers ask whether this node takes connections (/healthz, and /livez), as "
        "kube-proxy's flag of this name; without an address on all, port 0: off.",
    )
    metrics_addr: str = flag(
        kind.ADDRESS, "", OBSERVE, "Address of the metrics; none: all addresses."
    )
    metrics_port: int = flag(
        kind.PORT_OR_OFF, 0, OBSERVE, "Port of the Prometheus metrics; 0: off."
    )
    metrics_path: str = flag(
        kind.string("PATH", kind.check_http_path), "/metrics", OBSERVE, "HTTP path of the metrics."
    )
    enable_pprof: bool = flag(
        kind.SWITCH,
        False,
        OBSERVE,
        "Tell on 127.0.0.1 what the agent's threads are doing and where its memory goes "
        "(/debug/pprof/profile, threads, heap: see docs/metrics.md).",
    )
    pprof_port: int = flag(
        kind.PORT_OR_OFF,
        6060,
        OBSERVE,
        "Port on 127.0.0.1 of --enable-pprof; 0: off. (Not in kube-router, which uses this one.)",
    )
    log_journal: str = flag(
        kind.choice("auto", "on", "off"),
        "auto",
        OBSERVE,
        "Log to systemd's journal, with a field for each value of a line: auto: where its socket "
        "is; on: count as lost what it does not take; off: stderr alone. (Not in kube-router.)",
    )
    v: int = flag(
        kind.integer(0, 10),
        0,
        OBSERVE,
        "Log more: 1 tells each change, from 2 on everything.",
        unit="level",
        short="v",
    )


FLAGS: tuple[Flag, ...] = tuple(
    Flag(name=item.name.replace("_", "-"), default=item.default, **item.metadata)
    for item in dataclasses.fields(Options)
)
