"""compile_export: which addresses of a Service this node announces, and on which terms."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.cluster.objects import EndpointPort, LoadBalancerIngress, ServicePort
from kube_router_py.routing.exports import ServiceExport, Terms, compile_export
from kube_router_py.routing.model import Community
from kube_router_py.routing.settings import RoutingSettings

CLUSTER, EXTERNAL, BALANCER = "10.96.0.10", "192.0.2.10", "203.0.113.10"
ADVERTISE = "kube-router.io/service.advertise."
BGP = "kube-router.io/service.bgp."


def settings(**given: Any) -> RoutingSettings:
    ranges: dict[str, Any] = {
        "cluster_ranges": (ip_network("10.96.0.0/12"), ip_network("fd00:96::/112")),
        "external_ranges": (ip_network("192.0.2.0/24"),),
        "load_balancer_ranges": (ip_network("203.0.113.0/24"),),
    }
    everything = dict.fromkeys(
        ("advertise_cluster_ip", "advertise_external_ip", "advertise_load_balancer_ip"), True
    )
    return RoutingSettings(**{"ipv6": True, **ranges, **everything, **given})


def export(service: Any, *slices: Any, **given: Any) -> ServiceExport:
    return compile_export(service, slices, "node1", settings(**given))


def announced(service: Any, *slices: Any, **given: Any) -> set[str]:
    return {str(ip_address(each)) for each in export(service, *slices, **given).announced}


def with_all(make: Any, **given: Any) -> Any:
    return make.service(ips=(CLUSTER,), external_ips=(EXTERNAL,), lb_ips=(BALANCER,), **given)


# --- by flag and annotation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "suffix", "address"),
    [
        ("advertise_cluster_ip", "clusterip", CLUSTER),
        ("advertise_external_ip", "externalip", EXTERNAL),
        ("advertise_load_balancer_ip", "loadbalancerip", BALANCER),
    ],
)
def test_each_sort_has_its_flag_and_its_annotation(
    make: Any, flag: str, suffix: str, address: str
) -> None:
    nothing = {
        "advertise_cluster_ip": False,
        "advertise_external_ip": False,
        "advertise_load_balancer_ip": False,
    }
    assert announced(with_all(make), **nothing) == set()
    assert announced(with_all(make), **{**nothing, flag: True}) == {address}
    on = with_all(make, annotations={ADVERTISE + suffix: "true"})
    assert announced(on, **nothing) == {address}
    off = with_all(make, annotations={ADVERTISE + suffix: "false"})
    assert announced(off) == {CLUSTER, EXTERNAL, BALANCER} - {address}


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_true_is_what_go_reads_as_true(make: Any, text: str) -> None:
    service = make.service(annotations={ADVERTISE + "clusterip": text})
    assert announced(service, advertise_cluster_ip=False) == {CLUSTER}


@pytest.mark.parametrize("text", ["", "yes", "tRUE", " true", "true\n", "\x00"])
def test_what_is_neither_true_nor_false_is_false_and_told(make: Any, text: str) -> None:
    service = make.service(annotations={ADVERTISE + "clusterip": text})
    found = export(service)
    assert found.announced == frozenset()
    (problem,) = found.problems
    assert problem.object == "Service default/web"
    assert problem.field == f"metadata.annotations[{ADVERTISE}clusterip]"
    assert "counts as false" in problem.reason
    assert problem.reason.isprintable()


def test_an_external_ip_that_a_balancer_gave_out_is_of_both_sorts(make: Any) -> None:
    service = make.service(external_ips=(EXTERNAL,), lb_ips=(EXTERNAL,))
    only_balancers = {"advertise_cluster_ip": False, "advertise_external_ip": False}
    assert announced(service, strict_external_ips=False, **only_balancers) == {EXTERNAL}
    # As a balancer's it is refused: it lies in no range of balancers.
    assert announced(service, **only_balancers) == set()
    assert announced(service, advertise_load_balancer_ip=False) == {CLUSTER, EXTERNAL}


# --- addresses -------------------------------------------------------------------------------


def test_both_families_and_all_cluster_ips(make: Any) -> None:
    service = make.service(ips=(CLUSTER, "fd00:96::10"))
    assert announced(service) == {CLUSTER, "fd00:96::10"}
    assert announced(service, ipv6=False) == {CLUSTER}


@pytest.mark.parametrize(
    ("external", "strict"),
    [
        ("198.51.100.1", True),  # in no range
        ("10.96.0.99", False),  # in the cluster range, strict or not
        ("127.0.0.1", False),
        ("224.0.0.1", False),
        ("169.254.1.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("192.0.2.1 ", False),
        ("192.0.2.1\n no neighbor 192.0.2.2", False),
        ("router", False),
        ("", False),
    ],
)
def test_an_address_nobody_may_have_is_announced_nowhere(
    make: Any, external: str, strict: bool
) -> None:
    service = make.service(external_ips=(external, EXTERNAL))
    # The proxy of this node tells of it already.
    found = export(service, strict_external_ips=strict)
    assert {ip_address(each) for each in found.addresses} == {
        ip_address(CLUSTER),
        ip_address(EXTERNAL),
    }
    assert found.announced == found.addresses
    assert found.problems == ()
    alone = export(service, strict_external_ips=strict, has_proxy=False)
    assert alone.announced == found.announced
    (problem,) = alone.problems
    assert problem.field == "spec.externalIPs[0]"


def test_balancer_ips_that_this_node_does_not_answer_for(make: Any) -> None:
    ingress = (
        LoadBalancerIngress(ip="203.0.113.1", ip_mode="Proxy"),
        LoadBalancerIngress(hostname="lb.example"),
        LoadBalancerIngress(ip="203.0.113.2", ip_mode="VIP"),
    )
    assert announced(make.service(ips=(CLUSTER,), lb_ips=ingress)) == {CLUSTER, "203.0.113.2"}
    skipped = with_all(make, annotations={"kube-router.io/service.skiplbips": ""})
    assert announced(skipped) == {CLUSTER, EXTERNAL}


@pytest.mark.parametrize(
    "given",
    [
        {"ips": ("None",), "external_ips": (EXTERNAL,)},
        {"labels": {"service.kubernetes.io/headless": ""}},
        {"type": "ExternalName", "external_ips": (EXTERNAL,)},
    ],
)
def test_services_without_addresses_of_their_own(make: Any, given: dict[str, Any]) -> None:
    for has_proxy in (True, False):
        found = export(make.service(**given), has_proxy=has_proxy)
        assert found == ServiceExport("")


def test_another_proxys_service_is_announced_where_ours_does_not_run(make: Any) -> None:
    service = make.service(labels={"service.kubernetes.io/service-proxy-name": "other"})
    assert announced(service) == set()
    assert announced(service, has_proxy=False) == {CLUSTER}


# --- traffic policy ------------------------------------------------------------------------------

LOCAL: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set()),
    ({"internal_traffic_policy": "Local"}, {CLUSTER}),
    ({"external_traffic_policy": "Local"}, {EXTERNAL, BALANCER}),
    ({"annotations": {"kube-router.io/service.local": "true"}}, {EXTERNAL, BALANCER}),
    (
        {
            "annotations": {"kube-router.io/service.local": "true"},
            "internal_traffic_policy": "Local",
        },
        {EXTERNAL, BALANCER},
    ),
]


@pytest.mark.parametrize(("given", "local"), LOCAL)
def test_policy_local_needs_an_endpoint_here_and_cluster_none(
    make: Any, given: dict[str, Any], local: set[str]
) -> None:
    everything = {CLUSTER, EXTERNAL, BALANCER}
    service = with_all(make, **given)
    assert announced(service) == everything - local
    elsewhere = make.slice(make.endpoint("10.244.2.2", node="node2"))
    assert announced(service, elsewhere) == everything - local
    here = make.slice("10.244.1.2", name="web-2")
    assert announced(service, elsewhere, here) == everything


@pytest.mark.parametrize(
    ("states", "is_announced"),
    [
        (("READY",), True),
        (("NOT_READY",), False),
        (("TERMINATING",), False),
        (("SERVING_TERMINATING",), True),
        (("NOT_READY", "SERVING_TERMINATING"), True),
        (("NOT_READY", "TERMINATING"), False),
        ((), False),
    ],
)
def test_an_endpoint_counts_as_it_does_for_the_proxy(
    make: Any, states: tuple[str, ...], is_announced: bool
) -> None:
    service = make.service(internal_traffic_policy="Local")
    endpoints = [
        make.endpoint(f"10.244.1.{n}", getattr(make, state)) for n, state in enumerate(states, 2)
    ]
    assert announced(service, make.slice(*endpoints)) == ({CLUSTER} if is_announced else set())


def test_an_endpoint_counts_for_its_own_family(make: Any) -> None:
    service = make.service(ips=(CLUSTER, "fd00:96::10"), internal_traffic_policy="Local")
    six = make.slice("fd00:10:244:1::2", family="IPv6", name="six")
    assert announced(service, six) == {"fd00:96::10"}
    assert announced(service, make.slice("10.244.1.2")) == {CLUSTER}


def test_one_port_with_an_endpoint_is_enough(make: Any) -> None:
    ports = (ServicePort(name="a", port=80), ServicePort(name="b", port=53, protocol="UDP"))
    service = make.service(ports=ports, internal_traffic_policy="Local")
    udp = (EndpointPort(name="b", port=5353, protocol="UDP"),)
    assert announced(service, make.slice("10.244.1.2", ports=udp)) == {CLUSTER}
    tcp = (EndpointPort(name="b", port=5353, protocol="TCP"),)
    assert announced(service, make.slice("10.244.1.2", ports=tcp)) == set()
    assert announced(service, make.slice("10.244.1.2", ports=())) == set()
    unknown = make.service(
        ports=(ServicePort(port=80, protocol="QUIC"),), internal_traffic_policy="Local"
    )
    assert announced(unknown, make.slice("10.244.1.2")) == set()


def test_slices_are_told_of_where_no_proxy_does_it(make: Any) -> None:
    service = make.service(internal_traffic_policy="Local")
    bad = make.slice("10.244.1.2", "nonsense")
    assert export(service, bad).problems == ()
    found = export(service, bad, has_proxy=False)
    assert found.announced
    (problem,) = found.problems
    assert problem.object == "EndpointSlice default/web-1"


# --- terms ---------------------------------------------------------------------------------------


def test_terms_are_read_from_annotations(make: Any) -> None:
    found = export(
        make.service(
            annotations={
                f"{BGP}communities": "65000:1, no-export",
                f"{BGP}local-preference": "200",
                f"{BGP}peers": "eth0, 192.0.2.1,2001:DB8:0:0::1,192.0.2.1,10.9.8.7/16",
            }
        )
    )
    assert found.problems == ()
    assert found.terms == Terms(
        communities=(Community((65000, 1)), Community((65535, 65281))),
        local_preference=200,
        peers=("10.9.0.0/16", "192.0.2.1", "2001:db8::1", "eth0"),
    )
    assert export(make.service(annotations={"other": "x"})).terms == Terms()


@pytest.mark.parametrize("text", ["0", "4294967295"])
def test_the_limits_of_local_preference(make: Any, text: str) -> None:
    found = export(make.service(annotations={f"{BGP}local-preference": text}))
    assert (found.terms.local_preference, found.problems) == (int(text), ())


@pytest.mark.parametrize(
    "text", ["", "-1", "4294967296", "1e3", "0x10", "\u0663", "100\nx", "9" * 5000]
)
def test_a_local_preference_that_is_none_is_left_out(make: Any, text: str) -> None:
    found = export(
        make.service(annotations={f"{BGP}local-preference": text, f"{BGP}communities": "65000:1"})
    )
    assert found.terms == Terms(communities=(Community((65000, 1)),))
    assert found.announced
    (problem,) = found.problems
    assert problem.field == f"metadata.annotations[{BGP}local-preference]"
    assert problem.reason.isprintable()
    assert len(problem.reason) < 200


def test_a_community_that_is_none_leaves_the_others(make: Any) -> None:
    found = export(make.service(annotations={f"{BGP}communities": "no-export,65000:x"}))
    assert found.terms.communities == (Community((65535, 65281)),)
    (problem,) = found.problems
    assert "'65000:x'" in problem.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "192.0.2.1,",
        "192.0.2.1 192.0.2.2",
        "eth0\x00",
        "eth\n0",
        "a/b",
        "fe80::1%eth0",
        "x" * 16,
    ],
)
def test_peers_that_cannot_be_understood_are_nobody(make: Any, text: str) -> None:
    found = export(make.service(annotations={f"{BGP}peers": text}))
    assert found.terms == Terms(peers=())
    (problem,) = found.problems
    assert "announced to nobody" in problem.reason
    assert problem.reason.isprintable()
