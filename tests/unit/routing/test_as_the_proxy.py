"""With traffic policy Local a Service is announced where the proxy has something behind it."""

from ipaddress import ip_network
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from kube_router_py.proxy.compile import compile_service
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.routing.exports import compile_export
from kube_router_py.routing.settings import RoutingSettings

RANGES: dict[str, Any] = {
    "ipv6": True,
    "cluster_ranges": (ip_network("10.96.0.0/12"), ip_network("fd00:96::/112")),
    "external_ranges": (ip_network("192.0.2.0/24"),),
}
STATES = [None, *(EndpointConditions(*each) for each in product((True, False, None), repeat=3))]
PORTS = [("a", "TCP"), ("b", "UDP"), ("", "TCP")]
endpoints = st.builds(
    Endpoint,
    addresses=st.sampled_from(
        [("10.1.0.1",)] * 3 + [("10.1.0.2",), ("fd00::1",), ("127.0.0.1",), ()]
    ),
    conditions=st.sampled_from(STATES),
    node_name=st.sampled_from(["node1", "node1", "node2", None]),
)
slices = st.builds(
    EndpointSlice,
    address_type=st.sampled_from(["IPv4", "IPv4", "IPv6", "", "FQDN"]),
    endpoints=st.lists(endpoints, min_size=1, max_size=3).map(tuple),
    ports=st.lists(
        st.sampled_from([EndpointPort(name, kind, 80) for name, kind in PORTS]), min_size=1
    ).map(tuple),
)
services = st.builds(
    Service,
    metadata=st.just(ObjectMeta(name="web", namespace="default")),
    spec=st.builds(
        ServiceSpec,
        type=st.just("ClusterIP"),
        cluster_ips=st.sampled_from([("10.96.0.1",), ("10.96.0.1", "fd00:96::1")]),
        external_ips=st.sampled_from([(), ("192.0.2.1",), ("192.0.2.1", "198.51.100.1")]),
        ports=st.lists(
            st.sampled_from([ServicePort(n, kind, 80 + i) for i, (n, kind) in enumerate(PORTS)]),
            min_size=1,
            unique=True,
        ).map(tuple),
        internal_traffic_policy=st.just("Local"),
        external_traffic_policy=st.just("Local"),
    ),
)


@settings(max_examples=150, deadline=None)
@given(service=services, found=st.lists(slices, min_size=1, max_size=2))
def test_announced_where_a_local_endpoint_is_served(
    service: Service, found: list[EndpointSlice]
) -> None:
    served = compile_service(service, found, ThisNode("node1"), ProxyOptions(**RANGES))
    announced = compile_export(
        service,
        found,
        "node1",
        RoutingSettings(advertise_cluster_ip=True, advertise_external_ip=True, **RANGES),
    )
    # Outside clients are kept off an address without anything local behind it.
    expected = {
        server.address
        for server, state in served.virtual_servers.items()
        if state.real_servers and not (server in served.guards and served.guards[server].outsiders)
    }
    assert announced.announced == expected
