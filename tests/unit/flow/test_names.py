"""What the words for the ends of a flow mean, and what is said where they mean nothing."""

from typing import Any

import pytest

from kube_router_py.firewall.evaluate import FlowError


@pytest.mark.parametrize(
    ("source", "kind", "key", "address", "node"),
    [
        ("x/a", "pod", "x/a", "10.244.1.10", "node1"),
        ("pod/x/a", "pod", "x/a", "10.244.1.10", "node1"),
        ("x/host", "pod", "x/host", "192.168.1.2", "node2"),
        ("10.244.2.10", "pod", "x/b", "10.244.2.10", "node2"),
        ("node/node3", "node", "node3", "192.168.2.3", "node3"),
        ("192.168.2.3", "node", "node3", "192.168.2.3", "node3"),
        ("203.0.113.9", "external", "", "203.0.113.9", ""),
    ],
)
def test_sources(source: str, kind: str, key: str, address: str, node: str, world: Any) -> None:
    end = world.trace(source, "x/c").source
    assert (end.written, end.kind, end.key, end.address, end.node) == (
        source,
        kind,
        key,
        address,
        node,
    )


@pytest.mark.parametrize(
    ("target", "kind", "key", "address"),
    [
        ("x/b", "pod", "x/b", "10.244.2.10"),
        ("pod/x/b", "pod", "x/b", "10.244.2.10"),
        ("x/web", "service", "x/web", "10.96.0.1"),
        ("service/x/web", "service", "x/web", "10.96.0.1"),
        ("svc/x/web", "service", "x/web", "10.96.0.1"),
        ("web.x.svc", "service", "x/web", "10.96.0.1"),
        ("web.x.svc.cluster.local", "service", "x/web", "10.96.0.1"),
        ("Web.X.svc.example.org.", "service", "x/web", "10.96.0.1"),
        ("10.96.0.1", "service", "x/web", "10.96.0.1"),
        ("10.244.2.10", "pod", "x/b", "10.244.2.10"),
        ("node/node2", "node", "node2", "192.168.1.2"),
        ("192.168.1.2", "node", "node2", "192.168.1.2"),
        ("203.0.113.9", "external", "", "203.0.113.9"),
    ],
)
def test_destinations(target: str, kind: str, key: str, address: str, world: Any) -> None:
    world.served()
    end = world.trace("x/a", target).destination
    assert (end.written, end.kind, end.key, end.address) == (target, kind, key, address)


def test_a_pod_comes_before_a_service_of_its_name(world: Any) -> None:
    world.served("x/a", "10.96.0.2")
    assert world.trace("x/b", "x/a").destination.address == "10.244.1.10"
    assert world.trace("x/b", "svc/x/a").destination.address == "10.96.0.2"


def test_a_namespace_called_node_or_svc(world: Any) -> None:
    world.pod("node/p", "node1", "10.244.1.50")
    world.pod("svc/p", "node1", "10.244.1.51")
    assert world.trace("node/p", "svc/p").source.address == "10.244.1.50"
    assert world.trace("svc/p", "node/p").destination.address == "10.244.1.50"
    assert world.trace("node/node1", "svc/p").source.kind == "node"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("x/aa", "x/b", "from: there is no pod x/aa; did you mean x/a?"),
        ("x/zzz", "x/b", "from: there is no pod x/zzz"),
        ("y/a", "x/b", "from: there is no pod y/a; did you mean x/a?"),
        (
            "x/web",
            "x/b",
            "from: there is no pod x/web; there is a Service of that name, but no connection "
            "begins at a Service",
        ),
        ("a", "x/b", "from: 'a' is neither namespace/pod, node/NAME nor an IP address"),
        ("10.0.0.256", "x/b", "from: '10.0.0.256' is neither namespace/pod"),
        ("node/node9", "x/b", "from: there is no Node 'node9'; did you mean node3, node2, node1?"),
        ("node/q", "x/b", "from: there is no Node 'q'"),
        ("x/a", "x/wep", "to: there is no pod or Service x/wep; did you mean x/web?"),
        ("x/a", "svc/x/wep", "to: there is no Service x/wep; did you mean x/web?"),
        ("x/a", "web.y.svc", "to: there is no Service y/web; did you mean x/web?"),
        ("x/a", "node/nod1", "to: there is no Node 'nod1'; did you mean node1, node3, node2?"),
        ("x/a", "a/b/c", "to: 'a/b/c' is neither namespace/pod, service/NAMESPACE/NAME"),
        ("x/a", "svc/x", "to: there is no pod or Service svc/x"),
        ("x/a", "x/alias", "to: Service x/alias is ExternalName: it has no address"),
        ("x/a", "x/pending", "to: x/pending has no address: no ClusterIP is allocated"),
        ("x/gone", "x/b", "from: pod x/gone is finished (Succeeded) and has no address"),
    ],
)
def test_what_is_not_there(source: str, target: str, message: str, world: Any) -> None:
    world.served()
    world.service("x/alias", type="ExternalName", externalName="example.org")
    world.service("x/pending")
    world.pod("x/gone", "node1", "10.244.1.99")
    world.documents["Pod", "x", "gone"]["status"]["phase"] = "Succeeded"
    with pytest.raises(FlowError) as error:
        world.trace(source, target)
    assert str(error.value).startswith(message)
    if "did you mean" not in message:
        assert "did you mean" not in str(error.value)


def test_families(world: Any, make_endpoint: Any) -> None:
    world.pod("x/dual", "node1", "10.244.1.60", "fd00:244:1::60")
    world.pod("x/six", "node2", "fd00:244:2::61")
    world.served(clusterIPs=["10.96.0.1", "fd00:96::1"])
    first = world.trace("x/dual", "x/web")
    assert (first.source.address, first.destination.address) == ("10.244.1.60", "10.96.0.1")
    assert first.source.addresses == ("10.244.1.60", "fd00:244:1::60")
    assert first.destination.addresses == ("10.96.0.1", "fd00:96::1")
    assert world.trace("x/a", "node/node1").destination.addresses == ("192.168.1.1", "fd00:1::1")
    second = world.trace("x/dual", "x/web", 80, "--enable-ipv6", family="IPv6")
    assert (second.source.address, second.destination.address) == ("fd00:244:1::60", "fd00:96::1")
    third = world.trace("x/six", "x/web", 80, "--enable-ipv6")
    assert third.destination.address == "fd00:96::1"
    with pytest.raises(FlowError, match="x/six or x/web has no IPv4 address"):
        world.trace("x/six", "x/web", family="IPv4")
    with pytest.raises(FlowError, match="have no address family in common"):
        world.trace("x/six", "x/a")


@pytest.mark.parametrize(
    ("port", "protocol", "message"),
    [
        (0, "TCP", "port 0 is not in 1..65535"),
        (65536, "UDP", "port 65536 is not in 1..65535"),
        (80, "47", "protocol '47': Services have none but TCP, UDP, SCTP"),
        (80, "HTTP", "protocol 'HTTP': Services have none but TCP, UDP, SCTP"),
    ],
)
def test_ports_of_services(port: int, protocol: str, message: str, world: Any) -> None:
    world.served()
    with pytest.raises(FlowError, match=message):
        world.trace("x/a", "x/web", port, protocol=protocol)


def test_where_it_is_looked_from(world: Any) -> None:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    world.served(type="NodePort", ports=ports)
    assert world.trace("x/b", "x/web").node == "node2"
    assert world.trace("x/host", "x/web").node == "node2"
    assert world.trace("x/b", "x/web", node="node2").notes == ()
    assert world.trace("203.0.113.9", "x/c").node == "node3"
    assert world.trace("203.0.113.9", "node/node3", 30080).node == "node3"
    chosen = world.trace("203.0.113.9", "10.96.0.1", node="node2")
    assert (chosen.node, chosen.notes) == ("node2", ())
    first = world.trace("203.0.113.9", "10.96.0.1")
    note = "looked at from node node1, where the client may come in (--node)"
    assert (first.node, first.notes) == ("node1", (note,))
    kept = world.trace("x/b", "x/web", node="node1")
    note = "x/b is on node node2: looked at from there"
    assert (kept.node, kept.notes) == ("node2", (note,))
    with pytest.raises(FlowError, match="--node: there is no Node 'node9'"):
        world.trace("x/b", "x/web", node="node9")


def test_a_service_by_name_from_outside_is_its_outer_address(world: Any) -> None:
    world.served(externalIPs=["203.0.113.1"])
    flag = "--service-external-ip-range=203.0.113.0/24"
    outside = world.trace("192.0.2.9", "svc/x/web", 80, flag, node="node1")
    assert (outside.outcome, outside.destination.address) == ("allowed", "203.0.113.1")
    assert world.trace("x/a", "svc/x/web", 80, flag).destination.address == "10.96.0.1"
    world.served()
    assert world.trace("192.0.2.9", "svc/x/web", node="node1").destination.address == "10.96.0.1"
