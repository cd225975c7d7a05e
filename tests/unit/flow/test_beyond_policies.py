"""What the rules of a node do whatever the rules of policies say."""

import socket
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.explain_sources import cluster_objects
from kube_router_py.flow.model import Question
from kube_router_py.flow.objects import flow_settings
from kube_router_py.flow.trace import Tracer

BALANCER = "--loadbalancer-ip-range=198.51.100.0/24"
VIP = "198.51.100.1"
CLIENT = {"matchLabels": {"pod": "client"}}
# Of node1, which its Node does not list: a second link, and the bridge of the pods.
SECOND, BRIDGE = "10.0.5.1", "10.244.1.1"
OWN = ("192.168.1.1", SECOND, BRIDGE, "127.0.0.1")


@pytest.fixture
def closed(world: Any) -> Any:
    """x/client is isolated for egress, and may reach x/a and x/b on the port of the Service."""
    peers = [{"podSelector": {"matchLabels": {"pod": name}}} for name in "ab"]
    rule = {"to": peers, "ports": [{"port": 8080}]}
    world.policy("x/out", podSelector=CLIENT, policyTypes=["Egress"], egress=[rule])
    return world


def looked_at(world: Any, target: str, port: int, *flags: str, source: str = "x/client") -> Any:
    """A trace of an agent of node1, which looks at its addresses."""
    settings = flow_settings(world.options(*flags))
    live = tuple(("eth1", socket.inet_aton(each)) for each in OWN)
    tracer = Tracer(
        cluster_objects(world.manifests()), structs.replace(settings, addresses={"node1": live})
    )
    return tracer.trace(Question(source, target, port, node="node1"))


# --- direct server return ------------------------------------------------------------------------


def direct(world: Any) -> None:
    world.served(
        type="LoadBalancer",
        ports=[{"name": "http", "port": 8080, "targetPort": 8080}],
        annotations={"kube-router.io/service.dsr": "tunnel"},
        ingress=[{"ip": VIP}],
    )


def test_egress_policies_cannot_follow_direct_server_return(closed: Any) -> None:
    direct(closed)
    trace = closed.trace("x/client", VIP, 8080, BALANCER)
    assert trace.outcome == "denied"
    assert trace.reason == (
        "egress of x/client: isolated by x/out, and egress policies cannot follow direct server "
        "return"
    )
    assert {each.egress.allowed for each in trace.paths} == {False}
    # Its ClusterIP is served otherwise, and what is not isolated is let be.
    assert closed.trace("x/client", "10.96.0.1", 8080, BALANCER).outcome == "partly"
    assert closed.trace("x/a", VIP, 8080, BALANCER).outcome == "allowed"
    flags = (BALANCER, "--run-firewall=false")
    assert closed.trace("x/client", VIP, 8080, *flags).backends[0].path.egress.allowed


def test_an_audit_lets_direct_server_return_pass(closed: Any) -> None:
    direct(closed)
    policy = closed.documents["NetworkPolicy", "x", "out"]
    policy["metadata"]["annotations"] = {"kube-router.io/audit": "true"}
    trace = closed.trace("x/client", VIP, 8080, BALANCER)
    side = trace.paths[0].egress
    assert (trace.outcome, side.allowed, side.would_refuse) == ("allowed", True, True)
    assert trace.paths[0].reasons[0] == (
        "egress of x/client: audited by x/out, and egress policies cannot follow direct server "
        "return, it would be refused"
    )


# --- endpoints on the client's own node ----------------------------------------------------------


def api_servers(world: Any, *addresses: str) -> None:
    world.service("x/api", "10.96.0.9")
    ready = {"ready": True}
    world.endpoints("x/api", *({"addresses": [each], "conditions": ready} for each in addresses))


def test_ipvs_hands_over_on_the_clients_own_node(closed: Any) -> None:
    api_servers(closed, "192.168.1.1", "192.168.1.2")
    trace = closed.trace("x/client", "x/api", 80, "--masquerade-all")
    own, other = (each.path for each in trace.backends)
    assert trace.outcome == "partly"
    assert own.reasons == (
        "egress of x/client: isolated by x/out, but on its own node IPVS hands it over behind all "
        "filters",
        "ingress of the pod is not isolated",
    )
    assert (own.allowed, own.egress.allowed, own.egress.isolated) == (True, True, True)
    assert (own.route.kind, own.translation.reason) == ("node", "none")
    assert (other.allowed, other.translation.reason) == (False, "masquerade-all")
    # Straight to the address of the node it is judged, and so is what another proxy sends on.
    assert closed.trace("x/client", "192.168.1.1", 8080).outcome == "denied"
    assert closed.trace("x/client", "x/api", 80, "--run-service-proxy=false").outcome == "denied"


def test_on_another_node_the_client_is_judged(closed: Any) -> None:
    """A NodePort of node2, whose backend is node2 itself."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]
    closed.service("x/api", "10.96.0.9", type="NodePort", ports=ports)
    closed.endpoints("x/api", {"addresses": ["192.168.1.2"], "conditions": {"ready": True}})
    assert closed.trace("x/client", "node/node2", 30080).outcome == "denied"


# --- addresses of the node that its Node does not list -------------------------------------------


@pytest.mark.parametrize("address", [SECOND, BRIDGE])
def test_addresses_that_the_node_does_not_list(closed: Any, address: str) -> None:
    found = looked_at(closed, address, 22, source="x/a")
    path = found.path
    assert (path.route.kind, path.translation.reason) == ("node", "none")
    assert (path.translation.source, found.outcome) == ("10.244.1.10", "allowed")
    assert found.destination.what == "an address of node node1 itself"
    # It is judged like an address that is listed.
    assert looked_at(closed, address, 22).outcome == "denied"
    exempt = looked_at(closed, address, 22, "--netpol-allow-own-node")
    assert exempt.outcome == "allowed"
    why = f"egress of x/client: isolated by x/out, but {address} is its own node"
    assert exempt.path.reasons[0] == why


def test_other_addresses_are_still_outside(closed: Any) -> None:
    for source in ("x/client", "x/b"):
        flags = ("--netpol-allow-own-node",)
        path = looked_at(closed, "10.0.5.2", 22, *flags, source=source).path
        assert (path.route.kind, path.allowed) == ("outside", source == "x/b")
    # Of another node it is not known that it is its own.
    assert looked_at(closed, SECOND, 22, source="x/b").path.route.kind == "outside"


# --- default deny --------------------------------------------------------------------------------

DENY = "--netpol-default-deny"


@pytest.mark.parametrize(
    ("source", "target", "refused"),
    [
        ("x/client", "10.244.1.77", True),
        ("203.0.113.9", "10.244.1.77", True),
        ("192.168.1.1", "10.244.1.77", True),
        ("x/b", "10.244.1.77", True),
        ("node/node2", "10.244.1.77", True),
        ("node/node1", "10.244.1.77", False),
        ("x/client", "10.244.2.77", True),
        ("x/client", "10.244.1.1", False),  # the bridge's
        ("x/client", "10.245.1.77", False),
        ("x/client", "x/a", False),
        ("10.244.1.77", "x/a", True),
        ("10.244.1.77", "192.168.1.1", True),
        ("10.244.1.77", "203.0.113.9", True),
        ("10.244.2.77", "x/a", False),  # another node may have it
    ],
)
def test_an_address_of_no_pod_is_refused(
    world: Any, source: str, target: str, refused: bool
) -> None:
    def allowed(*flags: str) -> bool:
        return bool(world.trace(source, target, 80, *flags, node="node1").path.allowed)

    assert allowed(DENY) == (not refused)
    assert allowed()
    assert allowed(DENY, "--run-firewall=false")


@pytest.mark.parametrize("target", ["x/a", "192.168.1.1", "x/api", "203.0.113.9"])
def test_an_address_of_no_pod_is_looked_at_from_its_own_node(world: Any, target: str) -> None:
    api_servers(world, "192.168.1.1")
    trace = world.trace("10.244.2.77", target, 80, DENY)
    assert (trace.node, trace.outcome) == ("node2", "denied")
    assert "no pod on node node2 has the address" in trace.reason
    assert world.trace("10.244.2.77", target, 80).outcome == "allowed"


def test_who_refuses_an_address_of_no_pod_is_told(world: Any) -> None:
    trace = world.trace("x/client", "10.244.2.77", 80, DENY)
    why = "ingress of 10.244.2.77: no pod on node node2 has the address (--netpol-default-deny)"
    assert (trace.outcome, trace.reason) == ("denied", why)
    assert (trace.path.judged_at, trace.path.node) == ("node2", "node2")
    ipv6 = ("fd00:244:1::77", 80, DENY)
    assert world.trace("fd00::9", *ipv6, node="node1").outcome == "allowed"
    assert world.trace("fd00::9", *ipv6, "--enable-ipv6", node="node1").outcome == "denied"
    # A pod elsewhere that claims the address is none of that node's.
    world.pod("x/odd", "node1", "10.244.2.78")
    assert world.trace("x/client", "10.244.2.78", 80, DENY).outcome == "denied"


def test_a_backend_that_no_pod_has_is_refused(world: Any) -> None:
    api_servers(world, "10.244.1.77", "192.168.1.1")
    for source, outcomes in (
        ("x/client", [False, True]),
        ("node/node1", [True, True]),
        ("node/node2", [False, True]),
        ("10.244.1.78", [False, True]),  # what IPVS hands over nobody judges
    ):
        paths = world.trace(source, "x/api", 80, DENY, node="node1").paths
        assert [each.allowed for each in paths] == outcomes, source
    # Unless no Service lets it pass: then it is no other packet for the node.
    flags = (DENY, "--netpol-allow-own-node")
    paths = world.trace("10.244.1.78", "x/api", 80, *flags, node="node1").paths
    assert [each.allowed for each in paths] == [False, False]


def test_the_bridge_is_known_where_somebody_looks(world: Any) -> None:
    assert looked_at(world, BRIDGE, 80, DENY).outcome == "allowed"
    assert looked_at(world, "10.244.1.2", 80, DENY).outcome == "denied"
