"""Which endpoints of a Service take new connections, and every reason why one does not."""

from typing import Any

import pytest


def test_ready_ones_are_in_whatever_their_node(world: Any, outs: Any) -> None:
    world.served()
    trace = world.trace("x/a", "x/web")
    assert outs(trace) == {"a": "in", "b": "in", "c": "in"}
    assert [(each.address, each.port, each.node) for each in trace.backends] == [
        ("10.244.1.10", 8080, "node1"),
        ("10.244.2.10", 8080, "node2"),
        ("10.244.3.10", 8080, "node3"),
    ]
    assert {each.weight for each in trace.backends} == {1}


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        ("ready", "not ready", "terminating", ("in", "not-ready", "terminating")),
        ("ready", "serving", "ready", ("in", "terminating", "in")),
        ("not ready", "serving", "terminating", ("not-ready", "in", "terminating")),
        ("not ready", "not ready", "terminating", ("not-ready", "not-ready", "terminating")),
    ],
)
def test_by_state(
    a: str,
    b: str,
    c: str,
    expected: tuple[str, ...],
    world: Any,
    states: Any,
    outs: Any,
    make_endpoint: Any,
) -> None:
    world.service("x/web", "10.96.0.1")
    given = zip("abc", (a, b, c), strict=True)
    world.endpoints("x/web", *(make_endpoint(name, states[state]) for name, state in given))
    assert tuple(outs(world.trace("x/a", "x/web")).values()) == expected


def test_why_in_words(world: Any, states: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints(
        "x/web",
        make_endpoint("a", states["serving"]),
        make_endpoint("b", states["terminating"]),
        make_endpoint("c", states["not ready"]),
    )
    assert [each.why for each in world.trace("x/a", "x/web").backends] == [
        "its pod is going but still serves, and nothing is ready",
        "its pod is going and serves no longer",
        "not ready: it keeps its connections and takes no new ones",
    ]


def test_internal_policy_local(world: Any, outs: Any) -> None:
    world.served(internalTrafficPolicy="Local", externalIPs=["203.0.113.1"])
    flags = ("--service-external-ip-range=203.0.113.0/24",)
    local = {"a": "in", "b": "traffic-policy", "c": "traffic-policy"}
    assert outs(world.trace("x/a", "x/web")) == local
    assert world.trace("x/a", "x/web").backends[1].why == "policy Local: it is on node node2"
    # The other sorts of addresses have a policy of their own.
    everywhere = world.trace("x/a", "203.0.113.1", 80, *flags)
    assert (outs(everywhere), everywhere.service.policy) == (dict.fromkeys("abc", "in"), "Cluster")


def test_external_policy_local(world: Any, outs: Any) -> None:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    world.served(type="NodePort", externalTrafficPolicy="Local", ports=ports)
    on_2 = world.trace("203.0.113.9", "node/node2", 30080)
    assert outs(on_2) == {"a": "traffic-policy", "b": "in", "c": "traffic-policy"}
    assert outs(world.trace("x/a", "x/web")) == dict.fromkeys("abc", "in")


def test_hints(world: Any, outs: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    hints = {"a": "one", "b": "one", "c": "two"}
    world.endpoints(
        "x/web",
        *(
            make_endpoint(name, hints={"forZones": [{"name": zone}]})
            for name, zone in hints.items()
        ),
    )
    trace = world.trace("x/a", "x/web")
    assert outs(trace) == {"a": "in", "b": "in", "c": "hints"}
    assert trace.backends[2].why == "topology hints mean it for zones two"
    assert outs(world.trace("x/c", "x/web")) == {"a": "hints", "b": "hints", "c": "in"}


def test_hints_for_nodes(world: Any, outs: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints(
        "x/web",
        *(
            make_endpoint(name, hints={"forNodes": [{"name": f"node{number}"}]})
            for number, name in enumerate("abc", 1)
        ),
    )
    trace = world.trace("x/b", "x/web")
    assert outs(trace) == {"a": "hints", "b": "in", "c": "hints"}
    assert trace.backends[0].why == "topology hints mean it for nodes node1"


def test_weight_of_the_node(world: Any, outs: Any) -> None:
    weight = {"kube-router.io/backend-weight": "0"}
    world.node("node2", "192.168.1.2", 2, zone="one", annotations=weight)
    world.served()
    trace = world.trace("x/a", "x/web")
    assert outs(trace) == {"a": "in", "b": "weight", "c": "in"}
    assert trace.backends[1].why == "the weight of node node2 is 0"


DSR = {"kube-router.io/service.dsr": "tunnel"}
RANGE = "--service-external-ip-range=203.0.113.0/24"


def test_direct_server_return(world: Any, outs: Any) -> None:
    same = [{"name": "http", "port": 8080, "targetPort": 8080}]
    world.served(annotations=DSR, externalIPs=["203.0.113.1"], ports=same)
    trace = world.trace("198.51.100.1", "203.0.113.1", 8080, RANGE, node="node1")
    assert outs(trace) == dict.fromkeys("abc", "in")
    assert trace.service.server.fwmark > 0
    assert {each.path.translation.reason for each in trace.backends} == {"direct"}
    # A ClusterIP never is.
    plain = world.trace("x/a", "10.96.0.1", 8080, RANGE)
    assert plain.service.server.fwmark == 0


def test_direct_server_return_changes_no_ports(world: Any, outs: Any) -> None:
    world.served(annotations=DSR, externalIPs=["203.0.113.1"])
    trace = world.trace("198.51.100.1", "203.0.113.1", 80, RANGE, node="node1")
    assert outs(trace) == dict.fromkeys("abc", "dsr")
    assert "the pod listens on port 8080, not 80" in trace.backends[0].why
    assert trace.outcome == "unreachable"


def test_direct_server_return_and_isolated_pods(world: Any, outs: Any) -> None:
    same = [{"name": "http", "port": 8080, "targetPort": 8080}]
    world.served(annotations=DSR, externalIPs=["203.0.113.1"], ports=same)
    world.policy("x/open", policyTypes=["Ingress"], ingress=[{}])
    question = ("198.51.100.1", "203.0.113.1", 8080, RANGE)
    assert outs(world.trace(*question, node="node1")) == {"a": "dsr", "b": "in", "c": "in"}
    # Other programs that enforce policies know no audit; this agent's firewall does.
    audit = {"kube-router.io/audit": "true"}
    world.documents["NetworkPolicy", "x", "open"]["metadata"]["annotations"] = audit
    assert outs(world.trace(*question, node="node1"))["a"] == "in"
    assert outs(world.trace(*question, "--run-firewall=false", node="node1"))["a"] == "dsr"


def test_a_slice_without_the_port(world: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints("x/web", make_endpoint("a"), port={"name": "other"})
    trace = world.trace("x/b", "x/web")
    assert [(each.out, each.why) for each in trace.backends] == [
        ("unusable", "EndpointSlice x/web-IPv4 lists no port 'http' for TCP")
    ]
    assert trace.outcome == "unreachable"
    assert trace.reason == "no endpoint of Service x/web takes new connections: 1 unusable"


def test_a_slice_without_ports_and_an_impossible_address(world: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints("x/web", make_endpoint("a"), port=None)
    (found,) = world.trace("x/b", "x/web").backends
    assert (found.out, found.pod) == ("unusable", "x/a")
    assert "lists no port, so its endpoints serve none of the Service's" in found.why
    world.endpoints("x/web", make_endpoint("a", addresses=["127.0.0.1"]))
    (found,) = world.trace("x/b", "x/web").backends
    assert (found.out, found.address) == ("unusable", "127.0.0.1")
    assert "is a loopback address" in found.why


def test_the_other_family(world: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints("x/web", make_endpoint("a", addresses=["fd00:244:1::10"]), family="IPv6")
    (found,) = world.trace("x/b", "x/web").backends
    assert (found.out, found.why) == ("family", "it has an IPv6 address, not IPv4")


def test_no_endpoint_at_all(world: Any) -> None:
    world.service("x/web", "10.96.0.1")
    trace = world.trace("x/a", "x/web")
    assert (trace.outcome, trace.backends) == ("unreachable", ())
    assert trace.reason == "Service x/web has no endpoint for this port"
