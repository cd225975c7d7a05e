"""What becomes of the source, which way packets take, and who judges them where."""

from typing import Any

import pytest

PORTS = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
HAIRPIN = {"annotations": {"kube-router.io/service.hairpin": ""}}


@pytest.fixture
def to(world: Any) -> Any:
    """The path to one backend (a letter) of a Service, or to a destination itself."""

    def find(source: str, target: str, port: int, *flags: str, backend: str = "") -> Any:
        trace = world.trace(source, target, port, *flags)
        if not backend:
            return trace.path
        return next(each.path for each in trace.backends if each.pod == f"x/{backend}")

    return find


# --- source NAT ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "port", "backend", "flags", "reason", "seen"),
    [
        ("x/client", "x/web", 80, "a", (), "none", "10.244.1.9"),
        ("x/client", "x/web", 80, "b", (), "none", "10.244.1.9"),
        ("node/node1", "x/web", 80, "b", (), "none", "192.168.1.1"),
        ("203.0.113.9", "node/node1", 30080, "a", (), "none", "203.0.113.9"),
        ("203.0.113.9", "node/node1", 30080, "b", (), "off-node", "192.168.1.1"),
        ("x/client", "node/node2", 30080, "b", (), "none", "10.244.1.9"),
        ("x/client", "node/node2", 30080, "c", (), "off-node", "192.168.1.2"),
        ("x/client", "x/web", 80, "b", ("--masquerade-all",), "masquerade-all", "192.168.1.1"),
        ("x/a", "x/web", 80, "a", ("--hairpin-mode",), "hairpin", "192.168.1.1"),
    ],
)
def test_through_a_service(
    source: str,
    target: str,
    port: int,
    backend: str,
    flags: tuple[str, ...],
    reason: str,
    seen: str,
    world: Any,
    to: Any,
) -> None:
    world.served(type="NodePort", ports=PORTS)
    found = to(source, target, port, *flags, backend=backend).translation
    assert (found.reason, found.source) == (reason, seen)
    assert found.is_translated == (reason != "none")


def test_an_endpoint_off_the_cluster(world: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints("x/web", {"addresses": ["203.0.113.50"], "conditions": {"ready": True}})

    def reason(source: str, *flags: str) -> tuple[str, str]:
        (found,) = world.trace(source, "x/web", 80, *flags).backends
        return found.path.translation.reason, found.path.route.kind

    assert reason("x/client") == ("off-cluster", "outside")
    assert reason("node/node1") == ("off-cluster", "outside")
    assert reason("x/client", "--enable-pod-egress=false") == ("none", "outside")
    assert reason("x/client", "--run-router=false") == ("none", "outside")


@pytest.mark.parametrize(
    ("source", "target", "flags", "reason"),
    [
        ("x/a", "203.0.113.9", (), "pod-egress"),
        ("x/a", "203.0.113.9", ("--enable-pod-egress=false",), "none"),
        ("x/a", "203.0.113.9", ("--run-router=false",), "unknown"),
        ("x/a", "x/b", (), "none"),
        ("x/a", "192.168.2.3", (), "none"),
        ("x/host", "203.0.113.9", (), "none"),
        ("203.0.113.9", "x/a", (), "none"),
    ],
)
def test_without_a_service(
    source: str, target: str, flags: tuple[str, ...], reason: str, to: Any
) -> None:
    assert to(source, target, 22, *flags).translation.reason == reason


def test_another_pod_network_tells_its_pods_by_name(world: Any, to: Any) -> None:
    # An address that is in no Node's pod CIDR.
    world.pod("x/odd", "node1", "172.20.0.7")
    world.served()
    assert to("x/odd", "x/web", 80, "--run-router=false", backend="b").translation.reason == "none"
    assert to("x/odd", "x/web", 80, backend="b").translation.reason == "off-node"


# --- a pod behind its own Service ----------------------------------------------------------------


def test_a_pod_reaches_itself_with_hairpin_only(world: Any, to: Any) -> None:
    world.served()
    trace = world.trace("x/a", "x/web")
    (own,) = [each.path for each in trace.backends if each.pod == "x/a"]
    assert (own.allowed, own.route.kind, trace.outcome) == (True, "none", "partly")
    assert trace.reason.startswith("1 of 3 backends of Service x/web cannot be reached: the pod")
    world.served(**HAIRPIN)
    trace = world.trace("x/a", "x/web")
    (own,) = [each.path for each in trace.backends if each.pod == "x/a"]
    assert (own.translation.reason, own.route.kind, trace.outcome) == ("hairpin", "pod", "allowed")


def test_alone_behind_its_own_service(world: Any, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    world.endpoints("x/web", make_endpoint("a"))
    trace = world.trace("x/a", "x/web")
    assert (trace.outcome, trace.backends[0].path.allowed) == ("unreachable", True)
    assert trace.reason.startswith("the pod would be sent its own address")


def test_in_the_network_of_the_node_it_needs_no_hairpin(world: Any) -> None:
    world.service("x/web", "10.96.0.1")
    listed = {"addresses": ["192.168.1.2"], "nodeName": "node2", "conditions": {"ready": True}}
    world.endpoints("x/web", listed)
    for source in ("x/host", "node/node2"):
        trace = world.trace(source, "x/web")
        assert (trace.outcome, trace.backends[0].path.route.kind) == ("allowed", "inside")


# --- routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "flags", "kind", "hop", "destination"),
    [
        ("x/a", "x/client", (), "pod", "", "10.244.1.0/24"),
        ("x/a", "x/a", (), "inside", "", ""),
        ("x/a", "192.168.1.1", (), "node", "", ""),
        ("x/a", "x/b", (), "direct", "192.168.1.2", "10.244.2.0/24"),
        ("x/a", "x/c", (), "tunnel", "192.168.2.3", "10.244.3.0/24"),
        ("node/node1", "x/c", (), "tunnel", "192.168.2.3", "10.244.3.0/24"),
        ("x/a", "x/b", ("--overlay-type=full",), "tunnel", "192.168.1.2", "10.244.2.0/24"),
        ("x/a", "x/c", ("--enable-overlay=false",), "direct", "", "10.244.3.0/24"),
        ("x/a", "192.168.1.2", (), "direct", "192.168.1.2", ""),
        # The network between the subnets knows nodes only.
        ("x/a", "192.168.2.3", (), "tunnel", "192.168.2.3", "192.168.2.3/32"),
        ("node/node1", "192.168.2.3", (), "direct", "", ""),
        ("x/a", "203.0.113.9", (), "outside", "", ""),
        ("x/a", "x/c", ("--run-router=false",), "unknown", "", ""),
        ("x/a", "x/client", ("--run-router=false",), "pod", "", ""),
    ],
)
def test_routes(
    source: str,
    target: str,
    flags: tuple[str, ...],
    kind: str,
    hop: str,
    destination: str,
    to: Any,
) -> None:
    route = to(source, target, 22, *flags).route
    assert (route.kind, route.next_hop, route.destination) == (kind, hop, destination)
    assert route.link.startswith("tun-") == (kind == "tunnel")


def test_encapsulations(to: Any) -> None:
    assert to("x/a", "x/c", 22).route.encapsulation == "ipip"
    flags = ("--overlay-encap=vxlan", "--overlay-encap-port=4789")
    found = to("x/a", "x/c", 22, *flags).route
    assert (found.encapsulation, found.link, found.next_hop) == (
        "vxlan",
        "tun-vxlan",
        "192.168.2.3",
    )


def test_peers_lead_outside(to: Any) -> None:
    flags = (
        "--peer-router-ips=192.168.1.254",
        "--peer-router-asns=65001",
        "--peer-router-passwords=c2VjcmV0",
    )
    route = to("x/a", "203.0.113.9", 443, *flags).route
    assert route.peers == ("192.168.1.254 (AS 65001)",)
    assert "secret" not in repr(route)


def test_a_node_that_is_not_routed_to(world: Any, to: Any) -> None:
    world.node("node4", "192.168.3.4", 4)
    world.pod("x/d", "node4", "192.168.3.50")
    assert to("x/a", "x/d", 22).route.kind == "unknown"
    world.documents["Node", "", "node4"]["spec"]["podCIDRs"] = ["192.168.3.0/24"]
    found = to("x/a", "x/d", 22)
    reason = "192.168.3.0/24 contains addresses of nodes: it is not routed"
    assert (found.allowed, found.route.kind, found.route.why) == (True, "none", reason)
    assert world.trace("x/a", "x/d").outcome == "unreachable"


def test_the_address_of_this_nodes_pods_on_another_one(world: Any, to: Any) -> None:
    world.pod("x/d", "node3", "10.244.1.77")
    route = to("x/a", "x/d", 22).route
    assert (route.kind, route.link) == ("pod", "kube-bridge")
    assert route.why.endswith("though pod x/d is elsewhere")


def test_nothing_is_known_of_a_node_without_an_object(world: Any, to: Any) -> None:
    del world.documents["Node", "", "node1"]
    found = to("x/a", "x/b", 22)
    assert (found.allowed, found.route.kind) == (True, "unknown")


# --- policies ------------------------------------------------------------------------------------


def test_source_nat_comes_between_both_ends(world: Any, to: Any) -> None:
    """A backend elsewhere sees the node; on the node that rewrites, rewriting comes last."""
    world.served(type="NodePort", ports=PORTS)
    block = {"ipBlock": {"cidr": "203.0.113.0/24"}}
    world.policy("x/outside", policyTypes=["Ingress"], ingress=[{"from": [block]}])
    trace = world.trace("203.0.113.9", "node/node1", 30080)
    assert {each.pod: each.path.allowed for each in trace.backends} == {
        "x/a": True,
        "x/b": False,
        "x/c": False,
    }
    assert [each.path.ingress_source for each in trace.backends] == [
        "203.0.113.9",
        "192.168.1.1",
        "192.168.1.1",
    ]
    assert [each.path.judged_at for each in trace.backends] == ["node1", "node2", "node3"]
    assert trace.outcome == "partly"
    assert trace.reason.startswith("2 of 3 backends of Service x/web cannot be reached: ingress of")


def test_on_the_node_that_rewrites_policies_see_the_client(world: Any, to: Any) -> None:
    world.served()
    block = {"ipBlock": {"cidr": "192.168.1.1/32"}}
    world.policy("x/node", policyTypes=["Ingress"], ingress=[{"from": [block]}])
    here = to("x/client", "x/web", 80, "--masquerade-all", backend="a")
    there = to("x/client", "x/web", 80, "--masquerade-all", backend="b")
    assert [(each.ingress_source, each.allowed) for each in (here, there)] == [
        ("10.244.1.9", False),
        ("192.168.1.1", True),
    ]
    assert {each.translation.reason for each in (here, there)} == {"masquerade-all"}


def test_both_ends_deny_a_rewritten_flow(world: Any) -> None:
    world.served(type="NodePort", ports=PORTS)
    world.policy("x/closed", policyTypes=["Ingress", "Egress"])
    paths = [each.path for each in world.trace("x/client", "node/node2", 30080).backends]
    assert not any(each.allowed for each in paths)
    assert paths[2].reasons[:2] == (
        "egress of x/client: isolated by x/closed, no rule admits 192.168.1.2 on TCP 30080",
        "ingress of x/c: isolated by x/closed, no rule admits 192.168.1.2 on TCP 8080",
    )


def test_the_client_sees_the_node_port_of_another_node(world: Any, to: Any) -> None:
    """Its policies judge what leaves its node, before the other one chooses a backend."""
    world.served(type="NodePort", ports=PORTS)
    node = {"to": [{"ipBlock": {"cidr": "192.168.1.2/32"}}]}
    client = {"matchLabels": {"pod": "client"}}
    world.policy("x/out", podSelector=client, policyTypes=["Egress"], egress=[node])
    trace = world.trace("x/client", "node/node2", 30080)
    assert (trace.outcome, trace.node, trace.service.node) == ("allowed", "node1", "node2")
    assert trace.service.way.next_hop == "192.168.1.2"
    assert {each.path.egress_destination for each in trace.backends} == {"192.168.1.2"}
    # Another port of that node, or another node, they do not admit.
    world.policy("x/out", podSelector=client, policyTypes=["Egress"], egress=[])
    closed = world.trace("x/client", "node/node2", 30080)
    assert closed.outcome == "denied"
    assert closed.backends[1].path.reasons == (
        "egress of x/client: isolated by x/out, no rule admits 192.168.1.2 on TCP 30080",
    )
    world.policy("x/out", podSelector=client, policyTypes=["Egress"], egress=[node])
    # On its own node it is the backends that they judge.
    own = world.trace("x/client", "node/node1", 30080)
    assert (own.outcome, own.service.way) == ("denied", None)


def test_partly(world: Any) -> None:
    world.served()
    world.policy(
        "x/closed", podSelector={"matchLabels": {"pod": "b"}}, policyTypes=["Ingress"], ingress=[]
    )
    trace = world.trace("x/client", "x/web")
    assert trace.outcome == "partly"
    assert trace.reason == (
        "1 of 3 backends of Service x/web cannot be reached: ingress of x/b: isolated by x/closed, "
        "no rule admits x/client on TCP 8080"
    )


def test_nodes_and_their_own_pods(world: Any, to: Any) -> None:
    world.served()
    world.policy("x/closed", policyTypes=["Ingress"])
    assert to("node/node1", "x/web", 80, backend="a").allowed
    assert not to("node/node1", "x/web", 80, backend="b").allowed
    assert not to("192.168.1.1", "x/web", 80, backend="a").allowed


def test_nobody_judges_without_a_firewall(to: Any) -> None:
    assert to("x/a", "x/b", 22).judged_at == "node2"
    assert to("x/a", "x/b", 22, "--run-firewall=false").judged_at == ""
    assert to("x/a", "203.0.113.9", 22).judged_at == ""
