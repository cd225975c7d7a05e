"""The kernel parameters that IPVS forwarding needs, and why each. Pure."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kube_router_py.proxy.settings import ProxyOptions

VIP_LINK = "kube-dummy-if"
_BRIDGE = "kube-bridge"
# A bridge hands the reply of one of its pods to another directly, past IPVS, unless told not to.
_NO_BRIDGE_FILTER = (
    "the kernel has no such parameter: if pods of this node share a bridge, they cannot reach each "
    "other by service addresses; load the module (modprobe br_netfilter)"
)


class Sysctl(Struct, frozen=True):
    """``name`` below /proc/sys gets ``value``: always, or only where it reads ``only_from``.

    ``is_optional``: the kernel may well be without it, and then it is not needed either.
    ``is_minimum``: a larger value that stands is left. ``is_tuning``: where it cannot be set, as in
    a network namespace that is not the host's, that is no problem.
    ``advice``: the same, but some nodes need it; what to tell them where it is absent.
    """

    name: str
    value: str
    only_from: str | None = None
    is_optional: bool = False
    is_minimum: bool = False
    is_tuning: bool = False
    advice: str = ""


def sysctls(
    options: ProxyOptions, node_links: Iterable[str], kernel: tuple[int, int], cores: int = 1
) -> tuple[Sysctl, ...]:
    """What to set, in order. ``node_links`` carry the node's addresses; ``kernel`` as (5, 9)."""
    found = [
        # Replies of pods on other nodes pass conntrack for the source NAT of masquerade.
        Sysctl("net/ipv4/vs/conntrack", "1"),
        # A client of a deleted endpoint is told so, or its next datagram goes to a living one.
        Sysctl("net/ipv4/vs/expire_nodest_conn", "1"),
        # Session affinity does not hold a client to an endpoint of weight 0.
        Sysctl("net/ipv4/vs/expire_quiescent_template", "1"),
    ]
    if kernel < (5, 9):
        # Before 5.9 a reused client port waits a second for its old entry.
        found.append(Sysctl("net/ipv4/vs/conn_reuse_mode", "0"))
    found += _conntrack(options, cores)
    links = sorted(set(node_links))
    if options.ipv4:
        found += [
            Sysctl("net/ipv4/ip_forward", "1"),
            # Service addresses are local to every node: none may answer ARP for them.
            Sysctl("net/ipv4/conf/all/arp_ignore", "1"),
            Sysctl("net/ipv4/conf/all/arp_announce", "2"),
            # A reply may leave by another link than the request came by; 0 is left alone.
            *(
                Sysctl(f"net/ipv4/conf/{link}/rp_filter", "2", only_from="1", is_optional=True)
                for link in ("all", _BRIDGE, VIP_LINK, *links)
            ),
            Sysctl("net/bridge/bridge-nf-call-iptables", "1", advice=_NO_BRIDGE_FILTER),
        ]
    if options.ipv6:
        found += [
            # A forwarding node ignores router advertisements unless told to go on with them (2);
            # without this line the next one could cost it its default route.
            *(
                Sysctl(f"net/ipv6/conf/{link}/accept_ra", "2", only_from="1", is_optional=True)
                for link in links
            ),
            Sysctl("net/ipv6/conf/all/forwarding", "1"),
            Sysctl("net/bridge/bridge-nf-call-ip6tables", "1", advice=_NO_BRIDGE_FILTER),
        ]
    return tuple(found)


def _conntrack(options: ProxyOptions, cores: int) -> Iterator[Sysctl]:
    """Room for the connections of a busy node, as kube-proxy makes it."""
    limit = max(options.conntrack_min, options.conntrack_max_per_core * cores)
    if options.conntrack_max_per_core:
        # Four entries to a bucket, as the kernel itself has it at most.
        for name, value in (("buckets", limit // 4), ("max", limit)):
            yield Sysctl(
                f"net/netfilter/nf_conntrack_{name}",
                str(value),
                is_optional=True,
                is_minimum=True,
                is_tuning=True,
            )
    for name, seconds in (
        ("tcp_timeout_established", options.conntrack_established_s),
        ("tcp_timeout_close_wait", options.conntrack_close_wait_s),
        ("udp_timeout", options.conntrack_udp_s),
        ("udp_timeout_stream", options.conntrack_udp_stream_s),
    ):
        if seconds:
            full_name = f"net/netfilter/nf_conntrack_{name}"
            yield Sysctl(full_name, str(seconds), is_optional=True, is_tuning=True)
