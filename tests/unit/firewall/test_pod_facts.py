"""What policies can go by in a pod, where its manifest is odd."""

from collections.abc import Callable
from typing import Any

import pytest

from kube_router_py.cluster.objects import NetworkPolicy, Pod
from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.firewall.evaluate_rules import PROTOCOLS, declared_ports
from kube_router_py.firewall.pods import pod_facts
from kube_router_py.manifests import Manifests

DENY = {"podSelector": {}, "policyTypes": ["Ingress"]}


def decoded(manifest: Any) -> Pod:
    manifests = Manifests()
    manifests.add(manifest, "", "IPv4")
    (found,) = manifests.list(Pod)
    return found


@pytest.mark.parametrize(
    ("protocol", "declares"),
    [("TCP", "tcp"), ("SCTP", "sctp"), ("", "tcp"), (None, "tcp"), ("tcp", ""), ("ICMP", "")],
)
def test_only_protocols_of_the_api_declare_a_port(
    clusters: Any, protocol: str | None, declares: str
) -> None:
    port = {"name": "web", "containerPort": 80}
    if protocol is not None:
        port["protocol"] = protocol
    pod = decoded(clusters.pod("x/a", "node1", ["10.0.0.1"], ports=[port]))
    facts = pod_facts(pod, "node1")
    assert facts is not None
    assert facts.ports == ({(declares, "web"): 80} if declares else {})
    # The evaluator asks for no other protocols.
    asked = {key: number for key, number in declared_ports(pod).items() if key[0] in PROTOCOLS}
    assert asked == {(name.upper(), port): n for (name, port), n in facts.ports.items()}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("::ffff:10.244.1.5", {"inet": ("10.244.1.5",)}),
        ("0:0:0:0:0:FFFF:0af4:0105", {"inet": ("10.244.1.5",)}),
        ("::10.244.1.5", {"inet6": ("::af4:105",)}),
        ("fd00:0::5", {"inet6": ("fd00::5",)}),
        ("fe80::1%eth0", None),
    ],
)
def test_addresses_have_one_spelling(
    clusters: Any, written: str, meant: dict[str, tuple[str, ...]] | None
) -> None:
    facts = pod_facts(decoded(clusters.pod("x/a", "node1", [written])), "node1")
    assert (facts and facts.addresses) == meant


@pytest.mark.parametrize("written", ["::ffff:10.244.1.5", "::10.244.1.5"])
def test_a_pod_with_an_odd_address_is_isolated_and_no_full_turn_finds_drift(
    firewall_node: Callable[..., Any], clusters: Any, written: str
) -> None:
    node = firewall_node()
    node.change(clusters.namespace("x"), clusters.policy("x/p", DENY))
    node.change(clusters.pod("x/a", "node1", [written]))
    assert not node.turn().failed
    before = node.writes
    assert not node.turn(full=True).failed
    assert node.writes == before
    assert node.firewall.numbers["controller_policy_drift_total"] == 0


def test_both_judges_take_a_mapped_address_for_the_one_in_the_packets(clusters: Any) -> None:
    manifests = Manifests()
    manifests.add(clusters.policy("x/p", DENY), "", "IPv4")
    pod = decoded(clusters.pod("x/a", "node1", ["::ffff:10.244.1.5"]))
    rules = Evaluator([pod], [], manifests.list(NetworkPolicy))
    assert not rules.evaluate(Flow("10.9.9.9", "10.244.1.5", "TCP", 80)).allowed
