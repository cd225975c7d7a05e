"""What a Service asks for, read from its manifest."""

from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.objects import Service
from kube_router_py.loadbalancer.decisions import Reason
from kube_router_py.loadbalancer.requests import (
    Request,
    compile_request,
    foreign_addresses,
    status_addresses,
)
from kube_router_py.options import Options

EXTERNAL = {"strict_external_ip_validation": False, "service_external_ip_range": ()}
ON = SimpleNamespace(loadbalancer_default_class=True, **EXTERNAL)
OFF = SimpleNamespace(loadbalancer_default_class=False)


def _service(
    spec: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    ingress: list[dict[str, Any]] | None = None,
    **metadata: Any,
) -> Service:
    value = {
        "metadata": {
            "namespace": "default",
            "name": "web",
            "uid": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"port": 80}],
            **(spec or {}),
        },
        "status": {"loadBalancer": {"ingress": ingress or []}},
    }
    return msgspec.convert(value, Service)


def _request(*arguments: Any, **more: Any) -> Request:
    request = compile_request(_service(*arguments, **more), ON)
    assert request is not None
    return request


@pytest.mark.parametrize(
    ("spec", "with_default", "without"),
    [
        ({}, True, False),
        ({"loadBalancerClass": ""}, True, False),
        ({"loadBalancerClass": "default"}, True, False),
        ({"loadBalancerClass": "kube-router"}, True, True),
        ({"loadBalancerClass": "example.com/other"}, False, False),
        ({"type": "ClusterIP"}, False, False),
        ({"type": "NodePort", "loadBalancerClass": "kube-router"}, False, False),
    ],
)
def test_which_services_are_ours(spec: dict[str, Any], with_default: bool, without: bool) -> None:
    service = _service(spec)
    assert (compile_request(service, ON) is not None) == with_default
    assert (compile_request(service, OFF) is not None) == without


def test_what_is_going_is_not_ours_but_uses_its_address() -> None:
    service = _service({}, {}, [{"ip": "10.0.0.1"}], deletionTimestamp="2026-01-01T00:00:01Z")
    assert compile_request(service, ON) is None
    assert foreign_addresses(service, False, ON) == (ip_address("10.0.0.1"),)


def test_the_request_says_all_that_counts() -> None:
    request = _request(
        {
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv6", "IPv4"],
            "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
            "externalTrafficPolicy": "Local",
            "selector": {"b": "2", "a": "1"},
        },
        {
            "kube-router.io/address-pool": "gold",
            "kube-router.io/load-balancer-ips": "10.0.0.1, FD00::1",
            "kube-router.io/allow-shared-ip": "k",
        },
        [{"ip": "10.0.0.9"}, {"hostname": "x.example"}, {"ip": "nonsense"}],
        labels={"tier": "gold"},
    )
    assert request == Request(
        key="default/web",
        uid="1",
        created="2026-01-01T00:00:00Z",
        versions=(6, 4),
        needs_all=True,
        pool="gold",
        addresses=(ip_address("10.0.0.1"), ip_address("fd00::1")),
        share="k",
        ports=frozenset({("TCP", 80), ("UDP", 53)}),
        pool_field="metadata.annotations[kube-router.io/address-pool]",
        address_field="metadata.annotations[kube-router.io/load-balancer-ips]",
        backends="default: a=1,b=2",
        labels={"tier": "gold"},
        current=(ip_address("10.0.0.9"),),
        current_texts=("10.0.0.9", "x.example", "nonsense"),
    )


@pytest.mark.parametrize("prefix", ["metallb.io", "metallb.universe.tf"])
def test_metallbs_annotations_are_read(prefix: str) -> None:
    request = _request(
        {},
        {
            f"{prefix}/address-pool": "gold",
            f"{prefix}/loadBalancerIPs": "10.0.0.1",
            f"{prefix}/allow-shared-ip": "k",
        },
    )
    assert (request.pool, request.share) == ("gold", "k")
    assert request.addresses == (ip_address("10.0.0.1"),)
    assert not request.notes


def test_the_older_field_is_read() -> None:
    assert _request({"loadBalancerIP": "10.0.0.1"}).addresses == (ip_address("10.0.0.1"),)


def test_ours_wins_and_what_says_otherwise_is_told() -> None:
    request = _request(
        {"loadBalancerIP": "10.0.0.3"},
        {
            "kube-router.io/load-balancer-ips": "10.0.0.1",
            "metallb.io/loadBalancerIPs": "10.0.0.2",
            "metallb.universe.tf/loadBalancerIPs": "10.0.0.1",
            "kube-router.io/address-pool": "a",
            "metallb.io/address-pool": "b",
            "metallb.universe.tf/address-pool": "a",
        },
    )
    assert (request.pool, request.addresses) == ("a", (ip_address("10.0.0.1"),))
    assert not request.mistakes
    assert {each.reason for each in request.notes} == {Reason.NOT_HEEDED}
    assert [str(each.problem) for each in request.notes] == [
        "Service default/web metadata.annotations[metallb.io/address-pool]: 'b' is not heeded: "
        "metadata.annotations[kube-router.io/address-pool] says otherwise",
        "Service default/web metadata.annotations[metallb.io/loadBalancerIPs]: '10.0.0.2' is not "
        "heeded: metadata.annotations[kube-router.io/load-balancer-ips] says otherwise",
        "Service default/web spec.loadBalancerIP: '10.0.0.3' is not heeded: "
        "metadata.annotations[kube-router.io/load-balancer-ips] says otherwise",
    ]


def test_the_older_field_may_name_one_of_two() -> None:
    annotation = {"metallb.io/loadBalancerIPs": "10.0.0.1,fd00::1"}
    assert not _request({"loadBalancerIP": "FD00::1"}, annotation).notes


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("nonsense", Reason.INVALID_REQUEST, "'nonsense' is no IP address"),
        ("10.0.0.1,", Reason.INVALID_REQUEST, "'' is no IP address"),
        ("10.0.0.1/32", Reason.INVALID_REQUEST, "'10.0.0.1/32' is no IP address"),
        ("127.0.0.1", Reason.INVALID_REQUEST, "127.0.0.1 is a loopback address"),
        ("10.0.0.1,10.0.0.2", Reason.INVALID_REQUEST, "10.0.0.2 is one too many"),
        ("fd00::1", Reason.WRONG_FAMILY, "fd00::1 is of another family than the Service"),
        ("x" * 500, Reason.INVALID_REQUEST, f"'{'x' * 80}...' is no IP address"),
    ],
)
def test_a_request_that_cannot_be_read_is_a_mistake(text: str, reason: Reason, says: str) -> None:
    annotations = {"kube-router.io/load-balancer-ips": text}
    request = _request({"ipFamilies": ["IPv4"]}, annotations)
    assert request.addresses == ()
    (mistake,) = request.mistakes
    assert mistake.reason is reason
    assert mistake.problem.field == "metadata.annotations[kube-router.io/load-balancer-ips]"
    assert mistake.problem.reason.startswith(says)


@pytest.mark.parametrize("name", ["annotations", "notes"])
def test_of_a_long_list_not_every_word_is_told(name: str) -> None:
    words = ",".join(f"{number:x}" for number in range(40_000))
    theirs = {"metallb.io/loadBalancerIPs": words}
    ours = {"kube-router.io/load-balancer-ips": "10.0.0.1"} if name == "notes" else {}
    request = _request({}, {**theirs, **ours})
    told = request.notes if name == "notes" else request.mistakes
    assert 1 <= len(told) <= 3
    assert all(len(str(each.problem)) < 300 for each in told)


@pytest.mark.parametrize("name", ["x" * 250_000, "Gold", "a\x1b[2J\nsecond line", "a,b", "-a"])
def test_what_can_be_no_name_of_a_pool_is_a_mistake(name: str) -> None:
    request = _request({}, {"metallb.io/address-pool": name})
    assert request.pool == ""
    (mistake,) = request.mistakes
    assert mistake.reason is Reason.INVALID_REQUEST
    assert mistake.problem.field == "metadata.annotations[metallb.io/address-pool]"
    assert mistake.problem.reason.endswith("is no name of a pool; name one that there is")
    assert len(mistake.problem.reason) < 200
    assert mistake.problem.reason.isprintable()


@pytest.mark.parametrize(
    ("spec", "versions"),
    [
        ({"ipFamilies": None, "clusterIPs": ["fd00::1", "10.0.0.1"]}, (6, 4)),
        ({"ipFamilies": None, "clusterIP": "None"}, (4,)),
        ({"ipFamilies": ["IPv6"]}, (6,)),
    ],
)
def test_families_are_those_of_the_service(spec: dict[str, Any], versions: tuple[int]) -> None:
    assert _request(spec).versions == versions


def test_which_backends_an_address_leads_to() -> None:
    local = {"externalTrafficPolicy": "Local"}
    assert _request({"selector": {"a": "1"}}).backends == ""
    assert _request({**local, "selector": {"a": "1"}}).backends == "default: a=1"
    by_annotation = {"kube-router.io/service.local": "true"}
    assert _request({"selector": {"a": "1"}}, by_annotation).backends == "default: a=1"
    elsewhere = _request({**local, "selector": {"a": "1"}}, namespace="elsewhere")
    assert elsewhere.backends == "elsewhere: a=1", "others' pods, on other nodes"
    other = _service({**local}, name="other")
    assert (request := compile_request(other, ON)) is not None
    assert request.backends != _request(local).backends, "endpoints made by hand are never shared"


def test_addresses_that_are_not_ours_to_give() -> None:
    ingress = [{"ip": "10.0.0.1"}, {"ip": "0.0.0.0"}, {"hostname": "x"}]
    external = {"externalIPs": ["10.0.0.7", "10.0.0.7", "nonsense"]}
    service = _service(external, {}, ingress)
    assert status_addresses(service) == (ip_address("10.0.0.1"),)
    assert foreign_addresses(service, True, ON) == (ip_address("10.0.0.7"),)
    both = (ip_address("10.0.0.7"), ip_address("10.0.0.1"))
    assert foreign_addresses(service, False, ON) == both
    assert foreign_addresses(_service({"type": "ClusterIP"}, {}, ingress), False, ON) == ()


def test_an_external_ip_that_no_node_admits_takes_nothing_out_of_a_pool() -> None:
    service = _service({"externalIPs": ["10.0.0.7", "192.0.2.1"]}, {}, [{"ip": "10.0.0.1"}])
    strict = Options(service_external_ip_range=(ip_network("192.0.2.0/24"),))
    assert foreign_addresses(service, True, strict) == (ip_address("192.0.2.1"),)
    assert foreign_addresses(service, True, Options()) == ()
    assert foreign_addresses(service, False, Options()) == (ip_address("10.0.0.1"),)
