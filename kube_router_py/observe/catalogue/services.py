"""Metrics of the service proxy."""

from kube_router_py.observe.catalogue.model import Section, counter, gauge, histogram

TRAFFIC_LABELS = ("svc_namespace", "service_name", "service_vip", "protocol", "port")
CONNECTION_LABELS = ("svc_namespace", "service_name", "protocol", "port")

SECTIONS = (
    Section(
        "Traffic of Services",
        (
            counter("service_total_connections", "connections scheduled", *TRAFFIC_LABELS),
            counter("service_packets_in", "packets from clients", *TRAFFIC_LABELS),
            counter("service_packets_out", "packets to clients", *TRAFFIC_LABELS),
            counter("service_bytes_in", "bytes from clients", *TRAFFIC_LABELS),
            counter("service_bytes_out", "bytes to clients", *TRAFFIC_LABELS),
            gauge("service_cps", "connections per second", *TRAFFIC_LABELS),
            gauge("service_pps_in", "packets per second from clients", *TRAFFIC_LABELS),
            gauge("service_pps_out", "packets per second to clients", *TRAFFIC_LABELS),
            gauge("service_bps_in", "bytes per second from clients", *TRAFFIC_LABELS),
            gauge("service_bps_out", "bytes per second to clients", *TRAFFIC_LABELS),
        ),
        before=(
            "One series for each port of a Service at each of its addresses. IPVS counts since "
            "the virtual server was made, and sums up every two seconds. NodePorts are there for "
            "every address at which they are served, and so are Services with direct server "
            "return (no reply of which passes this node: `_out` stays 0).",
            "A scrape reads IPVS once, through a socket of its own, and no more than every two "
            "seconds. With 10,000 virtual servers that takes about 0.15 s of processor time and "
            "the page is 13 MB long (compressed on its way, where the asker takes gzip): ask less "
            "often there, or drop what nobody looks at "
            "(`metric_relabel_configs`).",
        ),
        flag="--run-service-proxy",
    ),
    Section(
        "Connections through IPVS",
        (
            gauge(
                "service_active_connections",
                "connections of a Service's port that are established, at all its addresses "
                "and backends together",
                *CONNECTION_LABELS,
            ),
            gauge(
                "service_inactive_connections",
                "those that are beginning or ending; of UDP all",
                *CONNECTION_LABELS,
            ),
            gauge(
                "ipvs_connections",
                "connections of all virtual servers together, those of nobody's Service included; "
                "`state` is `active` or `inactive`",
                "state",
            ),
            gauge("ipvs_connection_table_buckets", "size of the kernel's table of connections"),
            gauge(
                "ipvs_series_dropped",
                "ports of Services beyond the 2000 with the most connections: they have no series "
                "of their own, and are added up under the name `other`",
            ),
            gauge(
                "refused_addresses",
                "external and load balancer IPs that are not served; an Event of each Service "
                "says why",
            ),
            gauge(
                "controller_ipvs_services",
                "virtual servers in the kernel, as far as the agent knows",
            ),
            histogram(
                "controller_ipvs_services_sync_time",
                "duration of the service proxy's turns, under kube-router's name",
            ),
            histogram(
                "controller_ipvs_metrics_export_time",
                "how long scrapes took to read and write the traffic of Services",
            ),
            histogram(
                "network_programming_duration_seconds",
                "kube-proxy's SLI: from a change of endpoints (the annotation "
                "`endpoints.kubernetes.io/last-change-trigger-time` of an EndpointSlice) until "
                "this node's kernel has it; buckets as kube-proxy's, 0.25 s to 300 s. Not counted "
                "are changes from before the agent's start, and headless Services",
            ),
        ),
        before=(
            "The kernel's list of virtual and real servers (`/proc/net/ip_vs`) is read for these, "
            "no more than every 15 s.",
        ),
        flag="--run-service-proxy",
    ),
)
