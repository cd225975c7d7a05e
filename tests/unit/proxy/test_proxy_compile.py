"""compile_service: what one Service asks of this node."""

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    LoadBalancerIngress,
    ServicePort,
    SessionAffinityConfig,
)
from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.model import Flag, Vip
from kube_router_py.proxy.settings import ProxyOptions, ThisNode

DUAL = ProxyOptions(ipv6=True, strict_external_ips=False)
CLUSTER = (ipaddress.ip_network("10.96.0.0/12"),)


def compiled(make: Any, service: Any, *slices: Any, options: ProxyOptions = DUAL) -> Any:
    return compile_service(service, slices, make.place(), options)


def fields(found: CompiledService) -> list[str]:
    return [problem.field for problem in found.problems]


def test_cluster_ip(make: Any) -> None:
    found = compiled(make, make.service(), make.slice("10.244.1.2", "10.244.2.2"))
    key = make.key("10.96.0.10")
    assert list(found.virtual_servers) == [key]
    assert make.weights(found.virtual_servers[key]) == {"10.244.1.2": 1, "10.244.2.2": 1}
    assert found.vips == {Vip(key.family, key.address)}
    assert str(found.origins[key].kind) == "cluster-ip"
    assert found.problems == ()


def test_every_cluster_ip_of_both_families_takes_endpoints_of_its_own(make: Any) -> None:
    found = compiled(
        make,
        make.service(ips=("10.96.0.10", "fd00:96::10")),
        make.slice("10.244.1.2"),
        make.slice("fd00:10:244:1::2", name="web-6", family="IPv6"),
    )
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == {"10.244.1.2": 1}
    v6 = found.virtual_servers[make.key("fd00:96::10")]
    assert make.weights(v6) == {"fd00:10:244:1::2": 1}


def test_a_disabled_family_is_left_out_quietly(make: Any) -> None:
    found = compiled(make, make.service(ips=("10.96.0.10", "fd00:96::10")), options=ProxyOptions())
    assert list(found.virtual_servers) == [make.key("10.96.0.10")]
    assert found.problems == ()


def test_node_port_stands_on_the_primary_address_of_the_services_families(make: Any) -> None:
    found = compiled(make, make.service(node_port=30080), make.slice("10.244.1.2"))
    assert set(found.virtual_servers) == {make.key("10.96.0.10"), make.key("192.168.1.1", 30080)}
    assert Vip(2, bytes([192, 168, 1, 1])) not in found.vips
    both = compiled(make, make.service(ips=("10.96.0.10", "fd00:96::10"), node_port=30080))
    assert make.key("fd00:1::1", 30080) in both.virtual_servers


def test_without_a_node_address_there_is_no_node_port(make: Any) -> None:
    found = compile_service(make.service(node_port=30080), (), ThisNode("node1"), DUAL)
    assert list(found.virtual_servers) == [make.key("10.96.0.10")]


def test_external_and_load_balancer_ips(make: Any) -> None:
    service = make.service(
        external_ips=("203.0.113.1", "203.0.113.2"),
        lb_ips=(
            "203.0.113.2",
            "203.0.113.3",
            LoadBalancerIngress(hostname="lb.example"),
            LoadBalancerIngress(ip="203.0.113.9", ip_mode="Proxy"),
        ),
    )
    found = compiled(make, service, make.slice("10.244.1.2"))
    kinds = {key.address[-1]: str(origin.kind) for key, origin in found.origins.items()}
    assert kinds == {10: "cluster-ip", 1: "external-ip", 2: "external-ip", 3: "load-balancer-ip"}


def test_skiplbips_and_local_annotations(make: Any) -> None:
    service = make.service(
        external_ips=("203.0.113.1",),
        lb_ips=("203.0.113.3",),
        internal_traffic_policy="Local",
        annotations={
            "kube-router.io/service.skiplbips": "",
            "kube-router.io/service.local": "true",
        },
    )
    endpoints = make.slice("10.244.1.2", make.endpoint("10.244.2.2", node="node2"))
    found = compiled(make, service, endpoints)
    assert make.key("203.0.113.3") not in found.virtual_servers
    external = found.virtual_servers[make.key("203.0.113.1")]
    assert make.weights(external) == {"10.244.1.2": 1}
    internal = found.virtual_servers[make.key("10.96.0.10")]
    assert make.weights(internal) == {"10.244.1.2": 1, "10.244.2.2": 1}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.96.0.99", "--service-cluster-ip-range"),
        ("198.51.100.1", "--service-external-ip-range"),
        ("not-an-address", "not an IP address"),
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("169.254.1.1", "link-local"),
        ("224.0.0.5", "multicast"),
        ("::ffff:1.2.3.4", "IPv4-mapped"),
    ],
)
def test_a_refused_external_ip_leaves_the_others(make: Any, address: str, reason: str) -> None:
    options = ProxyOptions(
        ipv6=True,
        cluster_ranges=CLUSTER,
        external_ranges=(ipaddress.ip_network("203.0.113.0/24"),),
    )
    service = make.service(external_ips=(address, "203.0.113.1"))
    found = compiled(make, service, options=options)
    assert set(found.virtual_servers) == {make.key("10.96.0.10"), make.key("203.0.113.1")}
    assert fields(found) == ["spec.externalIPs[0]"]
    assert reason in found.problems[0].reason


def test_strict_validation_without_ranges_refuses_all_and_off_refuses_cluster_addresses(
    make: Any,
) -> None:
    service = make.service(external_ips=("203.0.113.1",), lb_ips=("203.0.113.2",))
    strict = compiled(make, service, options=ProxyOptions())
    assert list(strict.virtual_servers) == [make.key("10.96.0.10")]
    assert fields(strict) == ["spec.externalIPs[0]", "status.loadBalancer.ingress[0].ip"]
    loose = ProxyOptions(strict_external_ips=False, cluster_ranges=CLUSTER)
    assert len(compiled(make, service, options=loose).virtual_servers) == 3
    hijack = compiled(make, make.service(external_ips=("10.96.0.1",)), options=loose)
    assert fields(hijack) == ["spec.externalIPs[0]"]


def test_external_ip_of_a_disabled_family_is_told(make: Any) -> None:
    found = compiled(
        make,
        make.service(external_ips=("2001:db8::1",)),
        options=ProxyOptions(strict_external_ips=False),
    )
    assert fields(found) == ["spec.externalIPs[0]"]


@pytest.mark.parametrize(
    "service",
    [
        {"ips": ("None",)},
        {"type": "ExternalName"},
        {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        {"labels": {"service.kubernetes.io/headless": ""}},
    ],
)
def test_services_that_are_not_ours(make: Any, service: dict[str, Any]) -> None:
    found = compiled(make, make.service(**service), make.slice("10.244.1.2"))
    assert (found.virtual_servers, found.vips, found.problems) == ({}, frozenset(), ())


def test_our_own_proxy_name_is_served(make: Any) -> None:
    labels = {"service.kubernetes.io/service-proxy-name": "kube-router"}
    assert compiled(make, make.service(labels=labels)).virtual_servers


def test_several_ports_match_slices_by_name_and_protocol(make: Any) -> None:
    service = make.service(
        ports=(
            ServicePort(name="web", port=80, target_port="http"),
            ServicePort(name="dns", port=53, protocol="UDP"),
            ServicePort(name="sig", port=2905, protocol="SCTP"),
        )
    )
    old = make.slice(
        "10.244.1.2",
        name="old",
        ports=(
            EndpointPort(name="web", port=8080),
            EndpointPort(name="dns", port=5353, protocol="UDP"),
            EndpointPort(name="sig", port=2905, protocol="SCTP"),
        ),
    )
    new = make.slice(
        "10.244.1.3", name="new", ports=(EndpointPort(name="web", port=9090, protocol="TCP"),)
    )
    found = compiled(make, service, old, new)
    assert set(found.virtual_servers[make.key("10.96.0.10")].real_servers) == {
        make.real("10.244.1.2", 8080),
        make.real("10.244.1.3", 9090),
    }
    udp = found.virtual_servers[make.key("10.96.0.10", 53, "UDP")]
    assert set(udp.real_servers) == {make.real("10.244.1.2", 5353)}
    sctp = found.virtual_servers[make.key("10.96.0.10", 2905, "SCTP")]
    assert set(sctp.real_servers) == {make.real("10.244.1.2", 2905)}
    assert found.problems == ()


def test_an_endpoint_in_two_slices_is_one_real_server_at_its_best(make: Any) -> None:
    found = compiled(
        make,
        make.service(),
        make.slice(make.endpoint("10.244.1.2", make.NOT_READY), name="a"),
        make.slice("10.244.1.2", name="b"),
    )
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == {"10.244.1.2": 1}
    assert found.paused == {}


@pytest.mark.parametrize(
    ("conditions", "weights"),
    [
        (None, {"10.244.1.2": 1}),
        (EndpointConditions(), {"10.244.1.2": 1}),
        (EndpointConditions(ready=True, terminating=True), {"10.244.1.2": 1}),
        (EndpointConditions(ready=False), {}),
        (EndpointConditions(ready=False, serving=True), {}),
        (EndpointConditions(ready=False, terminating=True), {}),
        (EndpointConditions(ready=False, serving=True, terminating=True), {"10.244.1.2": 1}),
    ],
)
def test_absent_conditions(
    make: Any, conditions: EndpointConditions | None, weights: dict[str, int]
) -> None:
    found = compiled(make, make.service(), make.slice(make.endpoint("10.244.1.2", conditions)))
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == weights


def test_serving_terminating_endpoints_are_a_last_resort(make: Any) -> None:
    leaving = make.endpoint("10.244.1.3", make.SERVING_TERMINATING)
    gone = make.endpoint("10.244.1.4", make.TERMINATING)
    waiting = make.endpoint("10.244.1.5", make.NOT_READY)
    key = make.key("10.96.0.10")
    some = compiled(make, make.service(), make.slice("10.244.1.2", leaving, gone, waiting))
    assert make.weights(some.virtual_servers[key]) == {"10.244.1.2": 1}
    assert some.terminating[key] == {make.real("10.244.1.3"), make.real("10.244.1.4")}
    assert some.paused[key] == {make.real("10.244.1.5")}
    none = compiled(make, make.service(), make.slice(leaving, gone, waiting))
    assert make.weights(none.virtual_servers[key]) == {"10.244.1.3": 1}
    assert none.terminating[key] == {make.real("10.244.1.4")}


def test_only_tcp_drains_and_only_if_wanted(make: Any) -> None:
    udp = make.service(ports=(ServicePort(port=53, protocol="UDP"),))
    waiting = make.slice(
        make.endpoint("10.244.1.5", make.NOT_READY),
        ports=(EndpointPort(port=53, protocol="UDP"),),
    )
    assert compiled(make, udp, waiting).paused == {}
    off = ProxyOptions(graceful_termination=False)
    tcp = make.slice(make.endpoint("10.244.1.5", make.NOT_READY))
    assert compiled(make, make.service(), tcp, options=off).paused == {}


def test_traffic_policies_choose_local_endpoints_and_fall_back_locally(make: Any) -> None:
    service = make.service(
        node_port=30080, external_traffic_policy="Local", internal_traffic_policy="Cluster"
    )
    here = make.endpoint("10.244.1.2", make.SERVING_TERMINATING)
    there = make.endpoint("10.244.2.2", node="node2")
    found = compiled(make, service, make.slice(here, there))
    outside = found.virtual_servers[make.key("192.168.1.1", 30080)]
    assert make.weights(outside) == {"10.244.1.2": 1}
    inside = found.virtual_servers[make.key("10.96.0.10")]
    assert make.weights(inside) == {"10.244.2.2": 1}
    nowhere = compiled(make, make.service(internal_traffic_policy="Local"), make.slice(there))
    assert make.weights(nowhere.virtual_servers[make.key("10.96.0.10")]) == {}


def test_without_endpoints_the_virtual_server_stands_empty(make: Any) -> None:
    found = compiled(make, make.service())
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == {}


@pytest.mark.parametrize(
    ("affinity", "timeout_s", "persistence_s", "problems"),
    [
        (None, None, 0, 0),
        ("None", 5, 0, 0),
        ("ClientIP", None, 10800, 0),
        ("ClientIP", 60, 60, 0),
        ("ClientIP", 86401, 10800, 1),
        ("Cookie", None, 0, 1),
    ],
)
def test_session_affinity(
    make: Any, affinity: str | None, timeout_s: int | None, persistence_s: int, problems: int
) -> None:
    config = SessionAffinityConfig(ClientIPConfig(timeout_s)) if timeout_s else None
    service = make.service(session_affinity=affinity, session_affinity_config=config)
    found = compiled(make, service)
    (state,) = found.virtual_servers.values()
    assert state.config.persistence_s == persistence_s
    assert len(found.problems) == problems


@pytest.mark.parametrize(
    ("annotations", "scheduler", "flags", "problems"),
    [
        ({}, "rr", 0, 0),
        ({"scheduler": "lc"}, "lc", 0, 0),
        ({"scheduler": "wlc"}, "wlc", 0, 0),
        ({"scheduler": "best"}, "rr", 0, 1),
        ({"scheduler": "fo"}, "rr", 0, 1),
        ({"scheduler": "mh", "schedflags": "flag-1,flag-2"}, "mh", Flag.SCHED1 | Flag.SCHED2, 0),
        ({"scheduler": "mh", "schedflags": "flag-3, flag-9"}, "mh", Flag.SCHED1 | Flag.SCHED3, 1),
        ({"scheduler": "mh"}, "mh", Flag.SCHED1, 0),
        ({"scheduler": "sh", "schedflags": "flag-2"}, "sh", Flag.SCHED1 | Flag.SCHED2, 0),
        ({"scheduler": "lc", "schedflags": "flag-1"}, "lc", 0, 1),
        ({"scheduler": "sh", "schedflags": "flag-1"}, "sh", Flag.SCHED1, 0),
    ],
)
def test_scheduler_annotations(
    make: Any, annotations: dict[str, str], scheduler: str, flags: int, problems: int
) -> None:
    names = {f"kube-router.io/service.{name}": value for name, value in annotations.items()}
    options = ProxyOptions(unloadable_schedulers=frozenset({"fo"}))
    found = compiled(make, make.service(annotations=names), options=options)
    (state,) = found.virtual_servers.values()
    assert (state.config.scheduler, state.config.flags) == (scheduler, flags)
    assert len(found.problems) == problems


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (ServicePort(name="b", port=0), "spec.ports[1].port"),
        (ServicePort(name="b", port=70000), "spec.ports[1].port"),
        (ServicePort(name="b", port=81, protocol="ICMP"), "spec.ports[1].protocol"),
        (ServicePort(name="b", port=80), "spec.ports[1].port"),
    ],
)
def test_a_bad_port_is_isolated(make: Any, bad: ServicePort, field: str) -> None:
    found = compiled(make, make.service(ports=(ServicePort(name="a", port=80), bad)))
    assert list(found.virtual_servers) == [make.key("10.96.0.10")]
    assert fields(found) == [field]


def test_a_bad_node_port_leaves_the_cluster_ip(make: Any) -> None:
    found = compiled(make, make.service(node_port=99999))
    assert list(found.virtual_servers) == [make.key("10.96.0.10")]
    assert fields(found) == ["spec.ports[0].nodePort"]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Endpoint(addresses=("10.244.1.999",)), "endpoints[1].addresses[0]"),
        (Endpoint(addresses=()), "endpoints[1].addresses[0]"),
        (Endpoint(), "endpoints[1].addresses[0]"),
        (Endpoint(addresses=("fd00::1",)), "endpoints[1].addresses[0]"),
        (Endpoint(addresses=("127.0.0.1",)), "endpoints[1].addresses[0]"),
    ],
)
def test_a_bad_endpoint_is_isolated(make: Any, bad: Endpoint, field: str) -> None:
    found = compiled(make, make.service(), make.slice("10.244.1.2", bad))
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == {"10.244.1.2": 1}
    assert [(p.object, p.field) for p in found.problems] == [("EndpointSlice default/web-1", field)]


@pytest.mark.parametrize(
    ("ports", "field"),
    [
        (None, "ports"),
        ((), "ports"),
        ((EndpointPort(),), "ports[0].port"),
        ((EndpointPort(port=0),), "ports[0].port"),
    ],
)
def test_a_slice_with_nil_ports_is_isolated(make: Any, ports: Any, field: str) -> None:
    good = make.slice("10.244.1.2", name="good")
    found = compiled(make, make.service(), make.slice("10.244.1.3", name="bad", ports=ports), good)
    assert make.weights(found.virtual_servers[make.key("10.96.0.10")]) == {"10.244.1.2": 1}
    assert [(p.object, p.field) for p in found.problems] == [("EndpointSlice default/bad", field)]


def test_nil_fields_everywhere(make: Any) -> None:
    service = make.service(ips=(), ports=())
    assert compiled(make, service).problems == ()
    empty = make.slice()
    assert compiled(make, make.service(), empty).problems == ()
    fqdn = make.slice("example.com", family="FQDN")
    assert compiled(make, make.service(), fqdn).problems == ()


@given(data=st.data())
def test_order_of_input_does_not_matter(make: Any, data: st.DataObject) -> None:
    states = st.sampled_from([make.READY, make.NOT_READY, make.SERVING_TERMINATING, None])
    addresses = st.integers(1, 6).map(lambda n: f"10.244.1.{n}")
    endpoints = st.builds(make.endpoint, addresses, states, st.sampled_from(["node1", "node2"]))
    slices = [
        make.slice(*data.draw(st.lists(endpoints, max_size=5)), name=f"s{n}") for n in range(3)
    ]
    service = make.service(external_traffic_policy="Local", node_port=30000)
    results = [compiled(make, service, *order) for order in itertools.permutations(slices)]
    shuffled = [
        make.slice(*data.draw(st.permutations(each.endpoints)), name=each.metadata.name)
        for each in slices
    ]
    results.append(compiled(make, service, *shuffled))
    first = results[0]
    for other in results[1:]:
        assert other == first
        assert [list(s.real_servers) for s in other.virtual_servers.values()] == [
            list(s.real_servers) for s in first.virtual_servers.values()
        ]
