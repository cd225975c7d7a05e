"""Which Service an address belongs to, what IPVS has of it, and why it may not be served."""

from typing import Any

import pytest

from kube_router_py.firewall.evaluate import FlowError

PORTS = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
EXTERNAL = "--service-external-ip-range=203.0.113.0/24"
BALANCER = "--loadbalancer-ip-range=198.51.100.0/24"


def test_the_virtual_server(world: Any) -> None:
    world.served(
        annotations={"kube-router.io/service.scheduler": "mh"},
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    step = world.trace("x/client", "x/web").service
    assert (step.key, step.port, step.port_name, step.target_port) == ("x/web", 80, "http", "8080")
    server = step.server
    assert (server.address, server.port, server.protocol) == ("10.96.0.1", 80, "TCP")
    assert (server.scheduler, server.flags, server.persistence_s) == ("mh", ("sched-1",), 60)
    assert (step.policy, step.why_not, step.refused, step.node) == ("Cluster", "", "", "node1")


@pytest.mark.parametrize(
    ("target", "port", "kind"),
    [
        ("10.96.0.1", 80, "cluster-ip"),
        ("203.0.113.1", 80, "external-ip"),
        ("198.51.100.1", 80, "load-balancer-ip"),
        ("node/node1", 30080, "node-port"),
        ("192.168.1.1", 30080, "node-port"),
    ],
)
def test_every_sort_of_address(target: str, port: int, kind: str, world: Any) -> None:
    world.served(
        type="LoadBalancer",
        ports=PORTS,
        externalIPs=["203.0.113.1"],
        ingress=[{"ip": "198.51.100.1"}],
    )
    trace = world.trace("x/client", target, port, EXTERNAL, BALANCER)
    assert (trace.outcome, trace.service.address.kind) == ("allowed", kind)
    assert trace.service.server is not None
    assert {(each.kind, each.address, each.why_not) for each in trace.service.addresses} == {
        ("cluster-ip", "10.96.0.1", ""),
        ("external-ip", "203.0.113.1", ""),
        ("load-balancer-ip", "198.51.100.1", ""),
        ("node-port", "192.168.1.1", ""),
    }


@pytest.mark.parametrize(
    ("target", "port", "flags", "service", "reason", "outcome"),
    [
        # No node may have the address: packets go on as they are, to nobody of this cluster.
        (
            "203.0.113.1",
            80,
            (),
            {"externalIPs": ["203.0.113.1"]},
            "203.0.113.1 is refused: it lies in no --service-external-ip-range",
            "unreachable",
        ),
        (
            "198.51.100.1",
            80,
            (),
            {"type": "LoadBalancer", "ingress": [{"ip": "198.51.100.1"}]},
            "198.51.100.1 is refused: it lies in no --loadbalancer-ip-range",
            "unreachable",
        ),
        (
            "198.51.100.1",
            80,
            (BALANCER,),
            {"type": "LoadBalancer", "ingress": [{"ip": "198.51.100.1", "ipMode": "Proxy"}]},
            "198.51.100.1 is not served: its ipMode is Proxy",
            "allowed",
        ),
        (
            "198.51.100.1",
            80,
            (BALANCER,),
            {
                "type": "LoadBalancer",
                "ingress": [{"ip": "198.51.100.1"}],
                "annotations": {"kube-router.io/service.skiplbips": ""},
            },
            "198.51.100.1 is not served: annotation kube-router.io/service.skiplbips",
            "allowed",
        ),
        (
            "x/web",
            81,
            (),
            {},
            "it has no port 81/TCP; it has 80/TCP (http); this node answers for the address, and "
            "for no such port",
            "unreachable",
        ),
        (
            "x/web",
            30080,
            (),
            {"type": "NodePort", "ports": PORTS},
            "30080 is its NodePort, which is served at addresses of nodes; at 10.96.0.1 it has "
            "80/TCP (http); this node answers for the address, and for no such port",
            "unreachable",
        ),
        (
            "10.0.0.5",
            30080,
            (),
            {"type": "NodePort", "ports": PORTS},
            "NodePort 30080 is not served at 10.0.0.5: on node node1 it is at 192.168.1.1",
            "allowed",
        ),
        (
            "192.168.1.1",
            30080,
            ("--nodeport-addresses=172.16.0.0/12",),
            {"type": "NodePort", "ports": PORTS},
            "NodePort 30080 is not served at 192.168.1.1: on node node1 it is at no address",
            "allowed",
        ),
    ],
)
def test_why_it_is_not_served(
    target: str,
    port: int,
    flags: tuple[str, ...],
    service: dict[str, Any],
    reason: str,
    outcome: str,
    world: Any,
) -> None:
    world.node("node1", "192.168.1.1", 1, zone="one", addresses=["10.0.0.5"])
    world.served(**service)
    trace = world.trace("x/client", target, port, *flags)
    assert trace.service.server is None
    assert trace.service.why_not.startswith(reason)
    assert trace.outcome == outcome
    assert (trace.path is not None) == (outcome == "allowed" or "is refused" in reason)
    assert trace.backends == ()


def test_a_refused_external_ip_that_is_another_nodes(world: Any) -> None:
    """Packets get to that node, which is somebody."""
    world.served(externalIPs=["192.168.1.2"])
    trace = world.trace("x/client", "192.168.1.2", 80)
    assert (trace.service.key, trace.outcome) == ("x/web", "allowed")
    assert "is refused" in trace.reason


def test_an_external_ip_that_is_the_nodes_own(world: Any) -> None:
    """What one Service has not may be another's NodePort, or the node's own: its SSH, its API."""
    world.served(externalIPs=["192.168.1.1"])
    world.served("x/other", "10.96.0.2", type="NodePort", ports=PORTS)
    flags = ("--service-external-ip-range=192.168.0.0/16",)
    for target in ("192.168.1.1", "node/node1"):
        for port, key in ((80, "x/web"), (30080, "x/other")):
            trace = world.trace("192.0.2.7", target, port, *flags)
            assert (trace.service.key, trace.outcome) == (key, "allowed")
            assert trace.service.server is not None
        trace = world.trace("192.0.2.7", target, 22, *flags)
        assert (trace.outcome, trace.path.route.kind) == ("allowed", "node")
        assert trace.reason.startswith("not served: it has no port 22/TCP")


def test_a_family_that_is_not_enabled(world: Any) -> None:
    world.pod("x/six", "node1", "fd00:244:1::61")
    world.served(clusterIPs=["fd00:96::1"], address="fd00:96::1")
    step = world.trace("x/six", "x/web").service
    assert step.why_not == "fd00:96::1 is not served: --enable-ipv6=false"


def test_another_proxy(world: Any, outs: Any) -> None:
    world.served(labels={"service.kubernetes.io/service-proxy-name": "other"})
    trace = world.trace("x/client", "x/web")
    assert trace.service.server is None
    assert "gives it to another proxy, 'other'" in trace.service.why_not
    # Kubernetes' rules hold for that one, too.
    assert (trace.outcome, outs(trace)) == ("allowed", dict.fromkeys("abc", "in"))
    assert {each.path.translation.reason for each in trace.backends} == {"unknown"}
    world.served()
    trace = world.trace("x/client", "x/web", 80, "--run-service-proxy=false")
    assert trace.service.why_not.startswith("--run-service-proxy=false")
    assert trace.service.server is None
    assert "what Kubernetes' rules ask for" in trace.notes[0]


def test_the_older_of_two_that_claim_the_same(world: Any) -> None:
    world.served("x/web", "10.96.0.1", externalIPs=["203.0.113.1"])
    world.served("x/new", "10.96.0.2", externalIPs=["203.0.113.1"])
    for name, created in (("web", "2026-01-01"), ("new", "2026-02-01")):
        metadata = world.documents["Service", "x", name]["metadata"]
        metadata["creationTimestamp"] = f"{created}T00:00:00Z"
    assert world.trace("x/client", "203.0.113.1", 80, EXTERNAL).service.key == "x/web"
    # Who asks for the newer one by name is told.
    trace = world.trace("192.0.2.9", "svc/x/new", 80, EXTERNAL, node="node1")
    reason = "TCP 203.0.113.1:80 is held by the older Service x/web"
    assert (trace.outcome, trace.reason) == ("unreachable", reason)
    assert trace.service.key == "x/new"


def test_a_headless_one(world: Any, outs: Any, make_endpoint: Any, states: Any) -> None:
    world.service("x/set", "None")
    world.endpoints("x/set", make_endpoint("b"), make_endpoint("c", states["not ready"]))
    world.policy("x/closed", podSelector={"matchLabels": {"pod": "b"}}, policyTypes=["Ingress"])
    trace = world.trace("x/client", "set.x.svc", 8080)
    assert trace.service.why_not.startswith("headless: its name leads to the pods themselves")
    assert outs(trace) == {"b": "in", "c": "not-ready"}
    assert (trace.outcome, trace.backends[0].path.pod) == ("denied", "x/b")
    assert trace.backends[0].path.translation.reason == "none"


def test_an_address_that_a_headless_one_names(world: Any) -> None:
    """It has none: whoever else is at that address has it."""
    world.served("x/none", "None", externalIPs=["192.168.1.1"])
    world.served("x/other", "10.96.0.2", type="NodePort", ports=PORTS)
    flags = ("--service-external-ip-range=192.168.0.0/16",)
    trace = world.trace("192.0.2.7", "192.168.1.1", 30080, *flags)
    assert (trace.service.key, trace.service.address.kind) == ("x/other", "node-port")
    assert trace.service.server is not None
    trace = world.trace("192.0.2.7", "192.168.1.1", 22, *flags)
    assert (trace.outcome, trace.path.route.kind) == ("allowed", "node")
    assert trace.service.why_not == "192.168.1.1 is not served: the Service is headless"


def test_a_headless_one_in_two_slices(
    world: Any, outs: Any, make_endpoint: Any, states: Any
) -> None:
    world.service("x/set", "None")
    world.endpoints("x/set", make_endpoint("b", states["not ready"]))
    world.documents["EndpointSlice", "x", "set-IPv4"]["metadata"]["name"] = "set-0"
    world.add(world.documents.pop(("EndpointSlice", "x", "set-IPv4")))
    world.endpoints("x/set", make_endpoint("b"))
    world.endpoints("x/set2", make_endpoint("b", states["terminating"]))
    last = world.documents.pop(("EndpointSlice", "x", "set2-IPv4"))
    last["metadata"] = {**last["metadata"], "labels": {"kubernetes.io/service-name": "set"}}
    world.add(last)
    assert outs(world.trace("x/client", "x/set", 8080)) == {"b": "in"}


def test_direct_server_return_and_source_ranges(world: Any) -> None:
    world.served(
        type="LoadBalancer",
        ports=[{"name": "http", "port": 8080, "targetPort": 8080}],
        annotations={"kube-router.io/service.dsr": "tunnel"},
        ingress=[{"ip": "198.51.100.1"}],
        loadBalancerSourceRanges=["203.0.113.0/28"],
    )
    outcomes = {
        source: world.trace(source, "198.51.100.1", 8080, BALANCER, node="node1").outcome
        for source in ("203.0.113.9", "203.0.113.99")
    }
    assert outcomes == {"203.0.113.9": "allowed", "203.0.113.99": "denied"}


def test_source_ranges(world: Any) -> None:
    world.served(
        type="LoadBalancer",
        ports=PORTS,
        ingress=[{"ip": "198.51.100.1"}],
        loadBalancerSourceRanges=["203.0.113.0/28"],
    )
    good = world.trace("203.0.113.9", "198.51.100.1", 80, BALANCER, node="node1")
    assert (good.outcome, good.service.refused) == ("allowed", "")
    bad = world.trace("203.0.113.99", "198.51.100.1", 80, BALANCER, node="node1")
    reason = "loadBalancerSourceRanges admit 203.0.113.0/28, and not 203.0.113.99"
    assert (bad.outcome, bad.reason, bad.paths) == ("denied", reason, ())
    # They are about the balancer's address alone.
    assert world.trace("203.0.113.99", "node/node1", 30080, BALANCER).outcome == "allowed"
    flag = "--source-ranges-on-nodeports"
    assert world.trace("203.0.113.99", "node/node1", 30080, BALANCER, flag).outcome == "denied"


def test_local_without_an_endpoint(world: Any, make_endpoint: Any, pods_of: Any) -> None:
    world.service("x/web", "10.96.0.1", internalTrafficPolicy="Local")
    world.endpoints("x/web", make_endpoint("b"))
    trace = world.trace("x/client", "x/web")
    reason = "internalTrafficPolicy is Local, and no endpoint on node node1 can be used; dropped"
    assert (trace.outcome, trace.reason) == ("unreachable", reason)
    assert world.trace("x/host", "x/web").outcome == "allowed"
    local = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    world.service("x/out", "10.96.0.2", ports=PORTS, **local)
    world.endpoints("x/out", make_endpoint("b"))
    outside = world.trace("203.0.113.9", "node/node1", 30080)
    assert outside.outcome == "unreachable"
    assert outside.reason.startswith("clients outside of the cluster: externalTrafficPolicy")
    # Pods and nodes have no balancer that would find them another node.
    inside = world.trace("x/client", "node/node1", 30080)
    assert (inside.outcome, pods_of(inside)) == ("allowed", ["x/b"])
    assert world.trace("node/node1", "node/node1", 30080).outcome == "allowed"


def test_a_headless_one_without_endpoints(world: Any, make_endpoint: Any) -> None:
    world.service("x/set", "None")
    trace = world.trace("x/client", "x/set", 8080)
    assert (trace.outcome, trace.reason) == (
        "unreachable",
        "Service x/set has no endpoint for this port",
    )
    world.endpoints("x/set", make_endpoint("b"))
    with pytest.raises(FlowError, match="from: there is no pod x/q"):
        world.trace("x/q", "x/set", 8080)
    world.documents["Pod", "x", "client"]["status"]["phase"] = "Failed"
    with pytest.raises(FlowError, match=r"from: pod x/client is finished \(Failed\)"):
        world.trace("x/client", "x/set", 8080)


def test_a_headless_one_and_families(world: Any, outs: Any, make_endpoint: Any) -> None:
    world.service("x/set", "None")
    world.pod("x/six", "node1", "fd00:244:1::61")
    world.endpoints("x/set", make_endpoint("b"))
    trace = world.trace("x/six", "x/set", 8080)
    assert (trace.outcome, outs(trace)) == ("unreachable", {"b": "family"})
    assert outs(world.trace("x/client", "x/set", 8080, family="IPv6")) == {"b": "family"}
    assert outs(world.trace("x/client", "x/set", 8080, family="IPv4")) == {"b": "in"}


def test_a_port_that_another_proxy_has_not(world: Any) -> None:
    world.served()
    step = world.trace("x/client", "x/web", 81, "--run-service-proxy=false").service
    assert step.why_not == "it has no port 81/TCP; it has 80/TCP (http)"


def test_node_ports_at_loopback_addresses(world: Any) -> None:
    world.served(type="NodePort", ports=PORTS)
    trace = world.trace("node/node1", "127.0.0.1", 30080)
    assert (trace.service, trace.path.route.kind) == (None, "inside")
    assert trace.notes == ("30080 is a NodePort of x/web: none is served at loopback addresses",)
    assert world.trace("node/node1", "127.0.0.1", 30081).notes == ()


def test_a_node_that_no_object_tells_of(world: Any) -> None:
    world.served()
    for name in ("node1", "node2", "node3"):
        del world.documents["Node", "", name]
    trace = world.trace("x/client", "x/web")
    assert trace.outcome == "allowed"
    assert {each.path.translation.reason for each in trace.backends} == {"unknown"}
    assert {each.path.route.kind for each in trace.backends} == {"unknown"}
