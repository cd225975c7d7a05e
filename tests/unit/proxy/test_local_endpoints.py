"""compile_service: what hangs on the endpoints of this node, hairpins and health checks."""

from typing import Any

import pytest

from kube_router_py.cluster.objects import EndpointPort, ServicePort
from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.model import HealthCheck
from kube_router_py.proxy.settings import ProxyOptions

DUAL = ProxyOptions(ipv6=True, strict_external_ips=False)


def compiled(
    make: Any, service: Any, *slices: Any, options: ProxyOptions = DUAL, **place: Any
) -> CompiledService:
    return compile_service(service, slices, make.place(**place), options)


# --- hairpins ------------------------------------------------------------------------------------


def test_hairpins_are_every_local_endpoint_whatever_its_state(make: Any) -> None:
    ports = (ServicePort(name="a", port=80), ServicePort(name="b", port=53, protocol="UDP"))
    service = make.service(
        ips=("10.96.0.10", "fd00:96::10"),
        ports=ports,
        annotations={"kube-router.io/service.hairpin": ""},
        external_ips=(),
    )
    states = (make.READY, make.NOT_READY, make.SERVING_TERMINATING, make.TERMINATING)
    slice_ports = (
        EndpointPort(name="a", port=8080),
        EndpointPort(name="b", port=5353, protocol="UDP"),
    )
    slices = (
        make.slice(
            *(make.endpoint(f"10.244.1.{n}", state) for n, state in enumerate(states, 2)),
            make.endpoint("10.244.2.2", node="node2"),
            ports=slice_ports,
        ),
        make.slice("fd00:10:244:1::2", name="six", family="IPv6", ports=slice_ports[:1]),
    )
    found = compiled(make, service, *slices)
    shown = {(each.protocol, str(each.real_server)) for each in found.hairpins}
    assert shown == {
        *((6, f"10.244.1.{n}:8080") for n in (2, 3, 4, 5)),
        *((17, f"10.244.1.{n}:5353") for n in (2, 3, 4, 5)),
        (6, "[fd00:10:244:1::2]:8080"),
    }
    bare = make.service(ips=("10.96.0.10", "fd00:96::10"), ports=ports)
    assert compiled(make, bare, *slices).hairpins == frozenset()
    everywhere = ProxyOptions(ipv6=True, hairpin_all=True)
    assert compiled(make, bare, *slices, options=everywhere).hairpins == found.hairpins


# --- health checks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, HealthCheck(32000, 2)),
        ({"external_traffic_policy": "Cluster"}, None),
        ({"type": "NodePort"}, None),
        ({"health_check_node_port": None}, None),
        ({"health_check_node_port": 0}, None),
        ({"internal_traffic_policy": "Local"}, HealthCheck(32000, 2)),
    ],
)
def test_who_answers_health_checks(
    make: Any, spec: dict[str, Any], expected: HealthCheck | None
) -> None:
    """Distinct ready pods of this node, over all ports and both families."""
    base = {
        "type": "LoadBalancer",
        "external_traffic_policy": "Local",
        "health_check_node_port": 32000,
        "ips": ("10.96.0.10", "fd00:96::10"),
        "ports": (ServicePort(name="a", port=80), ServicePort(name="b", port=443)),
    }
    ports = (EndpointPort(name="a", port=8080), EndpointPort(name="b", port=8443))
    slices = (
        make.slice(
            "10.244.1.2",
            "10.244.1.3",
            make.endpoint("10.244.1.4", make.NOT_READY),
            make.endpoint("10.244.1.5", make.SERVING_TERMINATING),
            make.endpoint("10.244.2.2", node="node2"),
            ports=ports,
        ),
        make.slice("fd00:10:244:1::2", "fd00:10:244:1::3", name="six", family="IPv6", ports=ports),
    )
    assert compiled(make, make.service(**{**base, **spec}), *slices).health_check == expected


def test_a_node_that_only_drains_answers_that_it_has_none(make: Any) -> None:
    service = make.service(
        lb_ips=("203.0.113.3",), external_traffic_policy="Local", health_check_node_port=32000
    )
    leaving = make.slice(make.endpoint("10.244.1.2", make.SERVING_TERMINATING))
    found = compiled(make, service, leaving)
    assert found.health_check == HealthCheck(32000, 0)
    state = found.virtual_servers[make.key("203.0.113.3")]
    assert make.weights(state) == {"10.244.1.2": 1}
    assert compiled(make, service).health_check == HealthCheck(32000, 0)


def test_an_impossible_health_check_port_is_told(make: Any) -> None:
    service = make.service(
        lb_ips=("203.0.113.3",), external_traffic_policy="Local", health_check_node_port=70000
    )
    found = compiled(make, service)
    assert found.health_check is None
    assert [each.field for each in found.problems] == ["spec.healthCheckNodePort"]
