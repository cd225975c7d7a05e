"""Traces of random clusters, held against what judges policies and what is compiled for nodes."""

import os
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kube_router_py.explain_sources import cluster_objects
from kube_router_py.firewall.evaluate import Evaluator, Flow, FlowError
from kube_router_py.flow.model import Answer, Question, Trace
from kube_router_py.flow.objects import flow_settings
from kube_router_py.flow.text import story
from kube_router_py.flow.trace import Tracer
from kube_router_py.manifests import Manifests
from kube_router_py.options import parse

PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}
SETTINGS = settings(
    max_examples=60 if os.environ.get("KRP_EXPLORE") else 6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SETTINGS
@given(data=st.data())
def test_between_pods_and_addresses_it_says_what_the_policies_mean(
    data: st.DataObject, clusters: Any, random_clusters: Any
) -> None:
    documents = data.draw(random_clusters.objects())
    manifests = Manifests()
    for document in (*map(clusters.node, clusters.NODE_ADDRESSES), *documents):
        manifests.add(document, "", "IPv4")
    objects = cluster_objects(manifests)
    tracer = Tracer(objects, flow_settings(parse(["--enable-ipv6"], {})))
    evaluator = Evaluator(
        objects.pods, objects.namespaces, objects.policies, objects.nodes, objects.services
    )
    judged = 0
    for flow in random_clusters.flows(documents):
        if flow.protocol not in PROTOCOLS or flow.service:
            continue
        protocol = PROTOCOLS[flow.protocol]
        expected = evaluator.evaluate(Flow(flow.src, flow.dst, protocol, flow.dport))
        trace = tracer.trace(Question(flow.src, flow.dst, flow.dport, protocol))
        lines = list(story(Answer(trace), "a flow"))
        assert lines[0].startswith(trace.outcome)
        if trace.service is not None:
            continue
        path = trace.path
        assert path is not None
        assert (path.allowed, path.egress, path.ingress, path.reasons) == (
            expected.allowed,
            expected.egress,
            expected.ingress,
            expected.reasons,
        )
        assert (trace.source.address, trace.destination.address) == (
            expected.source,
            expected.destination,
        )
        assert (trace.outcome == "denied") == (not expected.allowed)
        judged += 1
    assert judged > 10


# --- Services ------------------------------------------------------------------------------------

FLAGS = (
    "--service-external-ip-range=203.0.113.0/24",
    "--loadbalancer-ip-range=198.51.100.0/24",
    "--service-cluster-ip-range=10.96.0.0/12",
)
PROXY_ONLY = ("--run-router=false", "--run-firewall=false")
CONDITIONS: tuple[Any, ...] = (
    None,
    {"ready": True},
    {"ready": True},
    {"ready": False, "serving": False, "terminating": False},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": False, "terminating": True},
    {},
)


def _random_world(world: Any, draw: random.Random) -> None:
    for number, zone in ((1, "one"), (2, "one"), (3, "two")):
        weight = draw.choice([{}, {}, {"kube-router.io/backend-weight": draw.choice("0125x")}])
        ip = "192.168.2.3" if number == 3 else f"192.168.1.{number}"
        world.node(f"node{number}", ip, number, zone=zone, annotations=weight)
    for number in range(draw.randint(1, 3)):
        _random_service(world, draw, f"x/s{number}", number)
    for _ in range(draw.randint(0, 2)):
        label = draw.choice("abc")
        world.policy(
            f"x/p{label}",
            podSelector={"matchLabels": {"pod": label}},
            policyTypes=["Ingress"],
            ingress=draw.choice([[], [{}]]),
        )


def _random_service(world: Any, draw: random.Random, key: str, number: int) -> None:
    kind = draw.choice(["ClusterIP", "NodePort", "LoadBalancer"])
    ports = [
        {"name": name, "port": port, "targetPort": port}
        | ({"nodePort": 30000 + draw.randint(0, 2)} if kind != "ClusterIP" else {})
        for name, port in (("http", 80), ("sql", 81))[: draw.randint(1, 2)]
    ]
    spec: dict[str, Any] = {"type": kind, "ports": ports}
    spec["internalTrafficPolicy"] = draw.choice(["Cluster", "Cluster", "Local"])
    if kind != "ClusterIP":
        spec["externalTrafficPolicy"] = draw.choice(["Cluster", "Local"])
    if draw.random() < 0.5:
        spec["externalIPs"] = [draw.choice(["203.0.113.1", "203.0.113.2", "192.0.2.1"])]
    if kind == "LoadBalancer":
        spec["ingress"] = [{"ip": f"198.51.100.{draw.randint(1, 2)}"}]
    if draw.random() < 0.3:
        spec["annotations"] = {draw.choice(["kube-router.io/service.dsr"]): "tunnel"}
    if draw.random() < 0.2:
        spec["annotations"] = {"kube-router.io/service.local": "true"}
    world.service(key, f"10.96.0.{number + 1}", **spec)
    for part in range(draw.randint(0, 2)):
        listed = [_random_endpoint(draw) for _ in range(draw.randint(0, 4))]
        port = {"name": draw.choice(["http", "http", "sql", "no"]), "port": draw.choice([80, 81])}
        world.endpoints(key, *listed, port=port)
        document = world.documents["EndpointSlice", "x", f"s{number}-IPv4"]
        document["metadata"]["name"] = f"s{number}-{part}"
        world.add(document)


def _random_endpoint(draw: random.Random) -> dict[str, Any]:
    number = draw.randint(1, 3)
    name = "abc"[number - 1]
    found: dict[str, Any] = {
        "addresses": [f"10.244.{number}.{draw.choice([10, 10, 11])}"],
        "nodeName": f"node{number}",
        "targetRef": {"kind": "Pod", "namespace": "x", "name": name, "uid": f"uid-{name}"},
    }
    if (conditions := draw.choice(CONDITIONS)) is not None:
        found["conditions"] = conditions
    if draw.random() < 0.7:
        found["hints"] = draw.choice(
            [
                {"forZones": [{"name": draw.choice(["one", "two"])}]},
                {"forNodes": [{"name": f"node{draw.randint(1, 3)}"}]},
            ]
        )
    return found


@pytest.mark.parametrize("seed", range(60))
def test_backends_that_are_in_are_the_real_servers_of_the_node(seed: int, world: Any) -> None:
    draw = random.Random(seed)
    _random_world(world, draw)
    tracer = world.tracer(*FLAGS)
    found = 0
    for node in ("node1", "node2", "node3"):
        for server in world.rendered(node, *FLAGS, *PROXY_ONLY)["virtual_servers"]:
            question = Question(f"node/{node}", server["address"], server["port"])
            trace = tracer.trace(question)
            found += 1
            assert trace.service is not None
            assert trace.service.node == node
            standing = trace.service.server
            assert standing is not None, trace.service.why_not
            assert (trace.service.key, trace.service.port_name, trace.service.address.kind) == (
                server["service"],
                server["port_name"],
                server["kind"],
            )
            assert (standing.scheduler, list(standing.flags), standing.fwmark or None) == (
                server["scheduler"],
                server["flags"],
                server["fwmark"],
            )
            wanted = {
                (each["address"], each["port"]): each["weight"]
                for each in server["real_servers"]
                if each["weight"]
            }
            got = {(each.address, each.port): each.weight for each in trace.backends if each.is_in}
            assert got == wanted
            # Everything that is listed is told of, once, and each that is out has its reason.
            places = [(each.address, each.port) for each in trace.backends]
            assert len(places) == len(set(places))
            assert all(each.why for each in trace.backends)
            assert all((each.path is not None) <= each.is_in for each in trace.backends)
            draining = {(each["address"], each["port"]) for each in server.get("draining", ())}
            assert draining <= {
                (each.address, each.port) for each in trace.backends if not each.is_in
            }
            lines = list(story(Answer(trace), "a flow"))
            assert lines[1] == f"  {trace.reason}"
            assert msgspec.json.decode(msgspec.json.encode(trace), type=Trace) == trace
            _check_guard(server.get("guard", {}), trace.service.refused, node)
    assert found


def _check_guard(guard: dict[str, Any], refused: str, node: str) -> None:
    """A node's own processes are no clients from outside."""
    assert bool(refused) == guard.get("dropped", "").startswith("everyone"), node


@pytest.mark.parametrize("seed", range(30))
def test_what_is_rendered_of_no_service_is_not_served(seed: int, world: Any) -> None:
    draw = random.Random(1000 + seed)
    _random_world(world, draw)
    tracer = world.tracer(*FLAGS)
    for node in ("node1", "node2"):
        rendered = world.rendered(node, *FLAGS, *PROXY_ONLY)["virtual_servers"]
        standing = {(each["address"], each["port"]) for each in rendered}
        for address in ("10.96.0.1", "10.96.0.2", "203.0.113.1", "192.0.2.1", "198.51.100.1"):
            for port in (80, 81, 30000, 30001):
                trace = tracer.trace(Question(f"node/{node}", address, port))
                is_served = trace.service is not None and trace.service.server is not None
                assert is_served == ((address, port) in standing)
                if trace.service is not None and not is_served:
                    assert trace.service.why_not


def test_a_flow_that_cannot_be_judged_is_an_error_and_no_trace(world: Any) -> None:
    with pytest.raises(FlowError):
        world.trace("x/nobody", "x/a")
