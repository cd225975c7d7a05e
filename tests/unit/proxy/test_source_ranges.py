"""compile_service: who may connect, and which addresses are refused."""

import ipaddress
from typing import Any

import pytest

from kube_router_py.cluster.objects import ServicePort
from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.model import Guard
from kube_router_py.proxy.settings import ProxyOptions

DUAL = ProxyOptions(ipv6=True, strict_external_ips=False)
RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
NODE_PORT = ("192.168.1.1", 30080)


def compiled(
    make: Any, service: Any, *slices: Any, options: ProxyOptions = DUAL, **place: Any
) -> CompiledService:
    return compile_service(service, slices, make.place(**place), options)


# --- source ranges -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "v4", "v6", "problems"),
    [
        (("10.0.0.0/8",), ("10.0.0.0/8",), (), 0),
        # Kubernetes allows spaces around them, and set bits behind the prefix.
        ((" 10.1.2.3/8 ", "fd00::/8"), ("10.0.0.0/8",), ("fd00::/8",), 0),
        (("10.0.0.0/8", "10.0.0.0/8", "1.2.3.4/32"), ("1.2.3.4/32", "10.0.0.0/8"), (), 0),
        # All of a family is no restriction in it.
        (("0.0.0.0/0", "fd00::/8"), None, ("fd00::/8",), 0),
        (("10.0.0.0/8", "::/0"), ("10.0.0.0/8",), None, 0),
        # What is none admits nobody: if nothing is left, then nobody at all.
        (("10.0.0.0/8", "10.0.0.0/33"), ("10.0.0.0/8",), (), 1),
        (("all", "", "10.0.0.0", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.0"), (), (), 5),
    ],
)
def test_source_ranges(
    make: Any,
    listed: tuple[str, ...],
    v4: tuple[str, ...] | None,
    v6: tuple[str, ...] | None,
    problems: int,
) -> None:
    expected = {
        make.key(text): Guard(source_ranges=ranges)
        for text, ranges in (("203.0.113.3", v4), ("2001:db8::3", v6))
        if ranges is not None
    }
    ips = {"ips": ("10.96.0.10", "fd00:96::10"), "lb_ips": ("203.0.113.3", "2001:db8::3")}
    by_field = compiled(make, make.service(**ips, load_balancer_source_ranges=listed))
    by_annotation = compiled(make, make.service(**ips, annotations={RANGES: ",".join(listed)}))
    for found in (by_field, by_annotation):
        assert found.guards == expected
        assert len(found.problems) == problems
    if problems:
        fields = {each.field for each in by_field.problems}
        assert all(field.startswith("spec.loadBalancerSourceRanges[") for field in fields)
        assert {each.field for each in by_annotation.problems} == {
            f"metadata.annotations[{RANGES}]"
        }


@pytest.mark.parametrize("listed", [None, ()])
@pytest.mark.parametrize("annotation", [None, "", " "])
def test_without_source_ranges_everybody_connects(
    make: Any, listed: Any, annotation: str | None
) -> None:
    service = make.service(
        lb_ips=("203.0.113.3",),
        load_balancer_source_ranges=listed,
        annotations=None if annotation is None else {RANGES: annotation},
    )
    assert compiled(make, service).guards == {}


def test_the_field_comes_before_the_annotation(make: Any) -> None:
    service = make.service(
        lb_ips=("203.0.113.3",),
        load_balancer_source_ranges=("10.0.0.0/8",),
        annotations={RANGES: "0.0.0.0/0"},
    )
    guards = compiled(make, service).guards
    assert guards == {make.key("203.0.113.3"): Guard(source_ranges=("10.0.0.0/8",))}


def test_source_ranges_are_for_load_balancer_ips_and_for_node_ports_if_wanted(make: Any) -> None:
    service = make.service(
        ports=(ServicePort(port=80, node_port=30080),),
        external_ips=("203.0.113.1", "203.0.113.2"),
        lb_ips=("203.0.113.2", "203.0.113.3"),
        load_balancer_source_ranges=("10.0.0.0/8",),
    )
    guard = Guard(source_ranges=("10.0.0.0/8",))
    # An address that is both must not be a way around the ranges.
    balanced = {make.key("203.0.113.2"): guard, make.key("203.0.113.3"): guard}
    assert compiled(make, service).guards == balanced
    options = ProxyOptions(strict_external_ips=False, source_ranges_on_node_ports=True)
    both = compiled(make, service, options=options).guards
    assert both == balanced | {make.key(*NODE_PORT): guard}


def test_ranges_and_policy_together(make: Any) -> None:
    service = make.service(
        lb_ips=("203.0.113.3",),
        load_balancer_source_ranges=("10.0.0.0/8",),
        external_traffic_policy="Local",
    )
    found = compiled(make, service, make.slice(make.endpoint("10.244.2.2", node="node2")))
    guard = Guard(outsiders=True, source_ranges=("10.0.0.0/8",))
    assert found.guards == {make.key("203.0.113.3"): guard}


# --- refused addresses ---------------------------------------------------------------------------


def test_every_external_address_that_is_not_served_is_counted_as_refused(make: Any) -> None:
    options = ProxyOptions(
        external_ranges=(ipaddress.ip_network("203.0.113.0/24"),),
        cluster_ranges=(ipaddress.ip_network("10.96.0.0/12"),),
    )
    service = make.service(
        ips=("10.96.0.10", "nonsense"),
        port=0,
        external_ips=("203.0.113.1", "198.51.100.1", "127.0.0.1", "2001:db8::1", "x"),
        lb_ips=("198.51.100.2", "10.96.0.99"),
    )
    found = compiled(make, service, options=options)
    assert [each.field for each in found.refused] == [
        *(f"spec.externalIPs[{n}]" for n in (1, 2, 3, 4)),
        *(f"status.loadBalancer.ingress[{n}].ip" for n in (0, 1)),
    ]
    assert set(found.refused) < set(found.problems)
    others = {each.field for each in set(found.problems) - set(found.refused)}
    assert others == {"spec.clusterIPs[1]", "spec.ports[0].port"}
