"""What the API server says, as findings."""

import pytest

from kube_router_py.cluster.objects import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Service,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.doctor import cluster
from kube_router_py.doctor.cluster import Answer
from kube_router_py.doctor.permissions import Permission
from kube_router_py.options import Options, parse
from kube_router_py.problem import Problem
from kube_router_py.proxy.settings import proxy_options

A, B = "https://192.0.2.1:6443", "https://192.0.2.2:6443"
GOOD = Answer(A, 200, "", 0.0)


def told(findings):
    return [(each.code, each.severity) for each in findings]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([GOOD], []),
        ([GOOD, Answer(B, 200, "", 4.9)], []),
        ([Answer(A, 0, "refused")], [("api-unreachable", "error")]),
        ([Answer(A, 503)], [("api-unreachable", "error")]),
        ([GOOD, Answer(B, 0, "refused")], [("api-unreachable", "warning")]),
        ([Answer(A, 401, "Unauthorized")], [("api-unauthorized", "error")]),
        ([Answer(A, 403, 'User "system:anonymous" cannot')], [("api-unauthorized", "error")]),
        ([Answer(A, 403, 'User "system:serviceaccount:a:b" cannot')], []),
        ([Answer(A, 200, "", 6.0)], [("clock-skew", "warning")]),
        ([Answer(A, 200, "", -6.0)], [("clock-skew", "warning")]),
        ([Answer(A, 200, "", 700.0)], [("clock-skew", "error")]),
        ([Answer(A, 200, "", None)], []),
    ],
)
def test_answers(answers, expected):
    assert told(cluster.check_answers(answers)) == expected


def test_a_server_that_is_ahead_finds_this_node_behind():
    (ahead,) = cluster.check_answers([Answer(A, 200, "", 60.0)])
    assert "60 s behind" in ahead.what
    (behind,) = cluster.check_answers([Answer(A, 200, "", -60.0)])
    assert "60 s ahead of" in behind.what


@pytest.mark.parametrize(
    ("url", "is_wrong"),
    [
        (A, False),
        ("https://10.96.0.1:443", True),
        ("https://172.30.0.1:443", True),
        ("https://kubernetes.default.svc:443", True),
    ],
)
def test_the_way_to_the_api_server(url, is_wrong):
    kubernetes = Service(spec=ServiceSpec(cluster_ip="172.30.0.1"))
    found = list(cluster.check_way([url], Options(), kubernetes))
    assert [each.code for each in found] == ["api-through-cluster-ip"] * is_wrong
    assert all(each.remedy and url in each.object for each in found)


def test_objects_that_cannot_be_read_are_told_in_one_finding():
    problems = [Problem(f"Service a/{n}", "spec", "odd") for n in range(5)]
    (only,) = cluster.unreadable("Services", problems)
    assert (only.code, only.object) == ("could-not-look", "Services")
    assert "Service a/0 spec: odd" in only.what
    assert "and 2 more" in only.what
    assert list(cluster.unreadable("Services", [])) == []


def test_each_permission_that_lacks_is_told():
    needs = Permission("", "nodes", "list")
    may = Permission("", "events", "create", is_optional=True)
    found = list(cluster.check_permissions([needs, may], "account"))
    assert told(found) == [("rbac-missing", "error"), ("rbac-missing", "warning")]
    assert found[0].object == "permission list nodes"


def node(*cidrs, annotations=None):
    return Node(
        metadata=ObjectMeta(name="node1", annotations=annotations),
        spec=NodeSpec(pod_cidrs=cidrs),
        status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address="192.0.2.11"),)),
    )


ROUTER = Options(run_router=True)


@pytest.mark.parametrize(
    ("found", "options", "codes"),
    [
        (node("10.244.1.0/24"), ROUTER, []),
        (None, ROUTER, ["node-missing"]),
        (node(), ROUTER, ["pod-cidr-missing"]),
        (node(), Options(run_router=False), []),
        (node(annotations={"kube-router.io/pod-cidrs": "10.1.0.0/24"}), ROUTER, []),
        (node("10.244.1.0/24"), Options(enable_ipv6=True), ["pod-cidr-missing"]),
    ],
)
def test_nodes(found, options, codes):
    assert [each.code for each in cluster.check_node(found, "node1", options)] == codes


def service(name="web", cluster_ip="10.96.0.7", external=(), balanced=()):
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(
            type="LoadBalancer" if balanced else "ClusterIP",
            cluster_ip=cluster_ip,
            cluster_ips=(cluster_ip,),
            external_ips=external or None,
        ),
        status=ServiceStatus(
            load_balancer=LoadBalancerStatus(
                ingress=tuple(LoadBalancerIngress(ip=each) for each in balanced)
            )
        ),
    )


@pytest.mark.parametrize(
    ("address", "flags", "is_wrong"),
    [
        ("10.96.0.7", [], False),
        ("None", [], False),
        ("10.111.255.254", [], False),
        ("10.112.0.1", [], True),
        ("fd00::7", [], False),
        ("fd00::7", ["--enable-ipv6", "--service-cluster-ip-range=10.96.0.0/12,fd01::/112"], True),
    ],
)
def test_the_range_of_cluster_ips(address, flags, is_wrong):
    found = list(cluster.check_service_range([service(cluster_ip=address)], parse(flags, {})))
    assert [each.code for each in found] == ["service-range-wrong"] * is_wrong


def test_one_wrong_flag_is_one_finding_however_many_services_there_are():
    many = [service(f"s{n}", f"172.30.0.{n}") for n in range(9)]
    (only,) = cluster.check_service_range(many, Options())
    assert "and 6 more" in only.what


@pytest.mark.parametrize(
    ("given", "flags", "codes"),
    [
        ({"balanced": ["203.0.113.7"]}, [], ["lb-ip-refused"]),
        ({"balanced": ["203.0.113.7"]}, ["--loadbalancer-ip-range=203.0.113.0/24"], []),
        ({"balanced": ["203.0.113.7"]}, ["--strict-external-ip-validation=false"], []),
        ({"external": ("203.0.113.7",)}, [], ["external-ip-refused"]),
        ({"external": ("203.0.113.7",)}, ["--service-external-ip-range=203.0.113.7/32"], []),
        ({"balanced": ["2001:db8::7"]}, [], []),
    ],
)
def test_addresses_of_services(given, flags, codes):
    rules = proxy_options(parse(flags, {}))
    found = list(cluster.check_service_addresses([service(**given)], rules))
    assert [each.code for each in found] == codes
    for each in found:
        flag = "--loadbalancer-ip-range" if given.get("balanced") else "--service-external-ip-range"
        assert each.object == "Service default/web"
        assert f"{flag}=203.0.113.7/32" in each.remedy


@pytest.mark.parametrize(
    ("free", "waiting", "codes"), [(0, 1, ["pool-full"]), (0, 0, []), (5, 1, [])]
)
def test_pools(free, waiting, codes):
    pools = [{"name": "default", "family": "IPv4", "free": free}]
    assert [each.code for each in cluster.check_pools(pools, waiting)] == codes
