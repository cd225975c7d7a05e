"""Looking at the cluster: what fails leaves the rest; what works keeps no agent from starting."""

from types import SimpleNamespace

import pytest

from kube_router_py.cluster.listing import Listed
from kube_router_py.cluster.objects import (
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServiceSpec,
)
from kube_router_py.doctor import cluster_view
from kube_router_py.doctor.cluster import Answer
from kube_router_py.doctor.cluster_view import look_at_cluster
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.place import Place
from kube_router_py.errors import ApiError
from kube_router_py.options import Options
from kube_router_py.problem import Problem

API = "https://172.30.0.1:443"
ADDRESS = NodeAddress(type="InternalIP", address="192.0.2.11")
NONE = {"run_service_proxy": False, "run_firewall": False, "run_router": False}
PROXY = Options(run_router=False)
NODE = Node(metadata=ObjectMeta(name="node1"), status=NodeStatus(addresses=(ADDRESS,)))


def service(name, cluster_ip, **fields):
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(cluster_ip=cluster_ip, **fields),
    )


@pytest.fixture
def api(monkeypatch):
    """An API server that answers and permits all; set its ``nodes`` and ``services``."""
    server = SimpleNamespace(
        nodes=Listed({"node1": NODE}, ()),
        services=Listed({"default/kubernetes": service("kubernetes", "10.96.0.1")}, ()),
    )
    client = SimpleNamespace(addresses=(API,), close=lambda: None)
    facts = {
        "answers": lambda credentials: [Answer(API, 200, "", 0.0)],
        "refused": lambda *asked: (),
        "nodes": lambda client: server.nodes,
        "services": lambda client: server.services,
    }
    for name, fact in facts.items():
        monkeypatch.setattr(cluster_view.facts_api, name, fact)
    monkeypatch.setattr(cluster_view, "Client", lambda credentials: client)
    monkeypatch.setattr(cluster_view, "Credentials", lambda *given: client)
    return server


def looked(options=PROXY, *, is_preflight=True, status=None):
    look = Look()
    place = Place(options, {}, status=status)
    view = look_at_cluster(look, place, "node1", is_preflight=is_preflight)
    return view, [(each.code, each.severity) for each in look.findings]


@pytest.mark.usefixtures("api")
def test_a_healthy_cluster_yields_nothing():
    view, told = looked()
    assert told == []
    assert view.node.name == "node1"
    assert [each.metadata.name for each in view.services] == ["kubernetes"]


OUTSIDE = service("web", "172.30.0.9", external_ips=("203.0.113.7",))
REFUSED = [("service-range-wrong", "error"), ("external-ip-refused", "warning")]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("run_service_proxy", REFUSED),
        ("run_router", REFUSED),
        ("run_loadbalancer", REFUSED),
        ("run_firewall", []),
    ],
)
def test_addresses_of_services_are_judged_for_parts_that_serve_or_announce_them(
    api, monkeypatch, part, expected
):
    monkeypatch.setattr(cluster_view.facts_api, "pools_text", lambda *given: None)
    api.services = Listed({"default/web": OUTSIDE}, ())
    _, told = looked(Options(**{**NONE, "enable_cni": False, part: True}))
    assert [each for each in told if each[0] != "pod-cidr-missing"] == expected


@pytest.mark.parametrize("part", ["run_service_proxy", "run_router"])
@pytest.mark.parametrize("is_told", [True, False])
def test_an_agent_that_runs_knows_better_which_addresses_are_refused(api, part, is_told):
    api.services = Listed({"default/web": OUTSIDE}, ())
    problems = [{"object": "Service default/web", "reason": "is refused"}] * is_told
    _, told = looked(Options(**{**NONE, part: True}), status={"problems": problems})
    assert (("external-ip-refused", "warning") in told) is is_told


@pytest.mark.parametrize(("is_preflight", "severity"), [(True, "warning"), (False, "error")])
def test_a_way_that_works_keeps_no_agent_from_starting(api, is_preflight, severity):
    listed = {"default/kubernetes": service("kubernetes", "172.30.0.1")}
    api.services = Listed(listed, ())
    _, told = looked(is_preflight=is_preflight)
    assert ("api-through-cluster-ip", severity) in told


def test_a_node_that_cannot_be_read_is_not_missing(api):
    api.nodes = Listed({}, (Problem("Node node1", "status", "is odd"),))
    view, told = looked()
    assert told == [("could-not-look", "warning")]
    assert view.node is None
    api.nodes = Listed({}, (Problem("Node node2", "status", "is odd"),))
    assert looked()[1] == [("could-not-look", "warning"), ("node-missing", "error")]


def test_a_list_that_is_not_given_leaves_the_other(api, monkeypatch):
    def refuse(client):
        raise ApiError("too busy")

    monkeypatch.setattr(cluster_view.facts_api, "services", refuse)
    view, told = looked()
    assert told == [("could-not-look", "warning")]
    assert view.node.name == "node1"


def test_a_judgement_that_fails_leaves_what_was_seen(api, monkeypatch):
    def fail(*given):
        yield from ()
        raise ValueError("odd")

    monkeypatch.setattr(cluster_view.cluster, "check_service_range", fail)
    monkeypatch.setattr(cluster_view, "_service_addresses", fail)
    view, told = looked()
    assert told == [("could-not-look", "warning")] * 2
    assert view.node.name == "node1"
