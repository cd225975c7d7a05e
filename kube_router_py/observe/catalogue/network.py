"""Metrics of routes, sessions and addresses of load balancers."""

from kube_router_py.observe.catalogue.model import Section, counter, gauge, histogram

_SESSION = ("address", "type", "family")
_POOL = ("pool", "family")

SECTIONS = (
    Section(
        "BGP and BFD",
        (
            gauge(
                "frr_up",
                "1 if zebra and bgpd answer. Before the first turn of the route controller, or for "
                "want of an identity ([BGP neighbors](bgp-neighbors.md)), they do not run",
            ),
            gauge(
                "bgp_peer_info",
                "always 1; one for each neighbor",
                *("address", "type", "asn", "state"),
            ),
            gauge("bgp_peer_established", "1 while the session stands", *_SESSION),
            gauge("bgp_peer_uptime_seconds", "for how long; 0: it does not stand", *_SESSION),
            gauge(
                "bgp_peer_prefixes_received",
                "prefixes learned that the rules for imports let pass",
                *_SESSION,
            ),
            gauge("bgp_peer_prefixes_sent", "prefixes announced to it", *_SESSION),
            counter(
                "bgp_peer_connections_established_total",
                "how often the session came up since bgpd started",
                *_SESSION,
            ),
            counter("bgp_peer_connections_dropped_total", "how often it went down", *_SESSION),
            gauge(
                "bfd_session_up",
                "1 while the BFD session is up; of several with one neighbor the one that is down "
                "counts",
                "address",
            ),
            gauge("bfd_session_uptime_seconds", "for how long", "address"),
            counter(
                "controller_bgp_advertisements_received",
                "UPDATE messages that bgpd received from all neighbors. (kube-router counts best "
                "paths, of which one message can bring many.)",
            ),
            counter(
                "controller_bgp_advertisements_sent",
                "prefixes that FRR was told to announce or to withdraw, whatever the number of "
                "neighbors; `type` is `pod-route`, `advertise-vip` or `withdraw-vip`. "
                "(kube-router counts each again with every sync; here only what changes counts.)",
                "type",
            ),
            gauge(
                "controller_bgp_advertised_services",
                "Service addresses that this node announces",
            ),
            counter(
                "controller_bgp_drift_total",
                "commands that put right what others had changed in FRR",
            ),
            counter(
                "frr_starts_total",
                "how often the agent has started FRR's daemons; 0 after it took over running ones, "
                "1 after the first start. More: they ended, or had to be started anew for their "
                "identity or where they listen",
            ),
            histogram(
                "controller_bgp_internal_peers_sync_time",
                "how long a turn took to work out all that FRR is to run, sessions between nodes "
                "among it, and to send what differs. (These are not done apart from the others.)",
            ),
            histogram(
                "controller_routes_sync_time",
                "duration of the route controller's turns, under kube-router's name",
            ),
        ),
        before=(
            "A scrape asks FRR over connections of its own, wherever FRR runs (`--frr-dir`, also "
            "with `--frr-mode=external`); with 100 neighbors that takes some milliseconds. Where "
            "zebra or bgpd does not answer, `kube_router_frr_up` is 0 and there are no sessions. "
            "Labels:",
        ),
        labels={
            "address": "the neighbor's address, or the interface behind which it is",
            "type": (
                "`internal`: a node; `external`: a router outside, also one of the same "
                "AS; empty: not one that the agent knows of"
            ),
            "asn": "its AS number; 0 as long as it is not known (`internal`, `external`)",
            "state": (
                "as FRR has it: `Established`; `Idle`, `Connect`, `Active` and so on (RFC "
                "4271), `Idle (Admin)`, `Idle (PfxCt)`. A wrong password leaves a session "
                "in `Connect` or `Active`"
            ),
            "family": "`ipv4` or `ipv6`: what is exchanged, whatever the session runs over",
        },
        flag="--run-router",
    ),
    Section(
        "Routes of the pod network",
        (
            gauge(
                "host_routes_synced",
                "routes of the agent's own that stand: those into tunnels. Routes to nodes of the "
                "same subnet are FRR's, see `bgp_peer_prefixes_received`",
            ),
            counter("host_routes_added", "routes that the agent added or replaced"),
            counter("host_routes_removed", "routes that it removed"),
            histogram(
                "host_routes_sync_time",
                "how long comparing and writing tunnels and routes took, when there was something "
                "to compare",
            ),
        ),
        flag="--run-router",
    ),
    Section(
        "Addresses of load balancers",
        (
            gauge(
                "loadbalancer_leader",
                "1 on the node that allocates; the sum over all nodes should be 1",
            ),
            gauge("loadbalancer_pool_addresses", "addresses of a pool", *_POOL),
            gauge("loadbalancer_pool_addresses_in_use", "those that Services have", *_POOL),
            gauge(
                "loadbalancer_pool_addresses_free",
                "those that can still be given (without .0 and .255 where the pool avoids these)",
                *_POOL,
            ),
            gauge("loadbalancer_services_allocated", "Services that have what they want"),
            gauge(
                "loadbalancer_services_waiting",
                "Services without an address that they want; an Event of each says why",
            ),
            gauge(
                "loadbalancer_services_refused", "Services that ask for something that cannot be"
            ),
            gauge("loadbalancer_address_conflicts", "Services whose address another one has"),
            counter("loadbalancer_status_writes_total", "statuses written"),
            counter(
                "loadbalancer_status_write_conflicts_total",
                "not written since the Service had changed; decided on anew",
            ),
            counter(
                "loadbalancer_status_write_failures_total",
                "not written for another reason; tried again",
            ),
        ),
        before=(
            "The pools are told of by the agent that allocates (`kube_router_loadbalancer_leader` "
            "1); the others have no samples of them.",
        ),
        flag="--run-loadbalancer",
    ),
    Section(
        "Announcing by ARP and NDP",
        (
            gauge(
                "layer2_addresses",
                "addresses that are to be announced by ARP or NDP, by whichever node",
            ),
            gauge("layer2_announced_addresses", "those that this node answers for"),
            counter("layer2_takeovers_total", "addresses that came to this node"),
            gauge("layer2_peers_alive", "other nodes that live"),
            gauge(
                "layer2_fenced",
                "1 where this node hears too few others to answer for anything",
            ),
            counter("layer2_heartbeats_sent_total", "heartbeats"),
            counter("layer2_heartbeats_received_total", "heartbeats that counted"),
            counter(
                "layer2_heartbeats_refused_total",
                "heartbeats that did not: another key, a repetition, no heartbeat at all",
            ),
            counter("layer2_heartbeats_unsent_total", "heartbeats that the kernel did not send"),
            counter("layer2_answers_total", "answers to ARP requests and neighbor solicitations"),
            counter(
                "layer2_announcements_total",
                "gratuitous ARP and unsolicited neighbor advertisements sent",
            ),
            counter(
                "layer2_claims_total",
                "times that somebody else claimed one of these addresses",
            ),
            counter(
                "layer2_dropped_total",
                "questions not answered: too many in a second, or too old",
            ),
            counter(
                "layer2_failures_total",
                "answers that could not be sent, links that could not be opened",
            ),
            gauge("layer2_links", "links on which this node listens"),
        ),
        flag="--run-loadbalancer",
    ),
)
