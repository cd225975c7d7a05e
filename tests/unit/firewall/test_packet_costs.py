"""How many rules a packet meets: not more where there are more pods, or more policies of others."""

import ipaddress
import itertools
from typing import Any

import pytest

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.manifests import Manifests
from kube_router_py.render_firewall import render_firewall

OUTSIDE = ipaddress.ip_address("203.0.113.9")


def document(pods: int, policies: int) -> dict[str, Any]:
    """The first half of the pods, in namespace x, is isolated, each by one policy of its own; pods
    in y are not; further policies concern the first of the isolated."""
    manifests = Manifests()

    def add(kind: str, version: str, name: str, namespace: str = "", **rest: Any) -> None:
        metadata = {"name": name, "labels": {"pod": name}}
        if namespace:
            metadata["namespace"] = namespace
        given = {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}
        manifests.add(given, name, "IPv4")

    for number in range(pods):
        address = str(ipaddress.ip_address("10.244.0.0") + number)
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        namespace = "x" if number < pods // 2 else "y"
        spec = {"nodeName": "node1", "containers": [{"name": "c"}]}
        add("Pod", "v1", f"p{number}", namespace, spec=spec, status=status)
        if namespace == "x":
            selector = {"matchLabels": {"pod": f"p{number}"}}
            rules = {"podSelector": selector, "ingress": [{"ports": [{"port": 80}]}]}
            add("NetworkPolicy", "networking.k8s.io/v1", f"q{number}", "x", spec=rules)
    for number in range(policies):
        peer = {"podSelector": {"matchLabels": {"pod": f"nobody{number}"}}}
        rules = {"podSelector": {"matchLabels": {"pod": "p0"}}, "ingress": [{"from": [peer]}]}
        add("NetworkPolicy", "networking.k8s.io/v1", f"more{number}", "x", spec=rules)
    assert not manifests.problems
    assert {len(manifests.list(kind)) for kind in (Node, Namespace)} == {0}
    assert len(manifests.list(Pod)) == pods
    assert len(manifests.list(NetworkPolicy)) == pods // 2 + policies
    return render_firewall(manifests, "node1", FirewallOptions())[0]


@pytest.fixture
def visited(tracer: Any) -> Any:
    def count(firewall: Any, pod: int) -> int:
        address = ipaddress.ip_address("10.244.0.0") + pod
        packet = tracer.Packet("FORWARD", OUTSIDE, address, 6, 40000, 80)
        trace = firewall.walk(packet)
        assert trace.verdict == "ACCEPT"
        number: int = trace.visited
        return number

    return count


def test_a_packet_of_a_pod_that_is_not_isolated_meets_the_same_few_rules(
    visited: Any, tracer: Any
) -> None:
    counts = {
        visited(tracer.Firewall(document(pods, policies)), pods - 1)
        for pods, policies in itertools.product((4, 64, 400), (0, 100))
    }
    assert len(counts) == 1
    assert counts.pop() < 10


def test_a_packet_of_an_isolated_pod_does_not_meet_the_rules_of_others(
    visited: Any, tracer: Any
) -> None:
    small = tracer.Firewall(document(40, 0))
    few = max(visited(small, number) for number in range(20))
    for pods, policies in ((40, 200), (600, 0)):
        found = tracer.Firewall(document(pods, policies))
        # All but the one whom the further policies concern.
        most = max(visited(found, number) for number in range(1, pods // 2, 7))
        # Three hundred addresses are told apart by two digits, not one.
        assert most <= few + (16 if pods == 600 else 0), (pods, policies, most, few)
