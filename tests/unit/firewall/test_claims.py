"""Chains and sets whose names are those of others, as if hashes had but a few bits."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod
from kube_router_py.firewall import names
from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain, policy_chain

DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def alike(patch: pytest.MonkeyPatch, *kinds: str, different: int = 1) -> None:
    """Have all hashes of these kinds (all: of any kind) be one of so many ``different`` ones."""
    real = names._hash

    def tiny(*parts: str) -> str:
        found = real(*parts)
        if kinds and parts[0] not in kinds:
            return found
        return "ABCDE"[hashlib.sha256(found.encode()).digest()[0] % different] * len(found)

    patch.setattr(names, "_hash", tiny)


def finish(node: Any) -> list[str]:
    """Turns until nothing is left to be done; what is told then."""
    for _ in range(8):
        outcome = node.turn()
        if not outcome.failed:
            return sorted(map(str, outcome.problems))
    raise AssertionError(f"never done: {outcome.problems}")


def ingress(pods: str, peers: str) -> Any:
    peer = {"podSelector": {"matchLabels": {"pod": peers}}}
    return {"podSelector": {"matchLabels": {"pod": pods}}, "ingress": [{"from": [peer]}]}


def target_of(node: Any, address: str) -> list[str]:
    """Where packets to an address are sent on to."""
    rules = [rule for chain in node.chains().values() for rule in chain]
    return [rule.split()[-1] for rule in rules if rule.startswith(f"-d {address}/32 -j ")]


@pytest.fixture
def node(firewall_node: Callable[..., Any], clusters: Any) -> Any:
    found = firewall_node()
    found.change(*clusters.canonical())
    assert not finish(found)
    return found


def test_a_second_pod_of_one_chain_is_refused_until_the_first_goes(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike(monkeypatch, "pod")
    only_a = {"podSelector": {"matchLabels": {"pod": "a"}}}
    node.change(clusters.policy("x/p", only_a), clusters.policy("y/p", only_a))
    told = finish(node)
    chain = pod_chain("x/a", Direction.INGRESS)
    assert target_of(node, "10.244.1.10") == [chain]
    assert target_of(node, "10.244.1.20") == ["DROP"]
    assert any("Pod y/a" in each and chain in each for each in told)
    assert not any("Pod x/a" in each for each in told)
    # Nothing of it is left to the first when the second goes, and comes again.
    gone = node.objects["Pod", "y", "a"]
    node.remove(("Pod", "y", "a"))
    assert not any("Pod" in each for each in finish(node))
    assert target_of(node, "10.244.1.20") == []
    node.change(gone)
    finish(node)
    assert target_of(node, "10.244.1.20") == ["DROP"]
    node.remove(("Pod", "x", "a"))
    assert not any("Pod" in each for each in finish(node))
    assert target_of(node, "10.244.1.20") == [chain]
    assert any("ingress of pod y/a" in rule for rule in node.chains()[chain])


def test_two_refused_pods_of_one_address_stay_refused_when_one_goes(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike(monkeypatch, "pod")
    node.change(clusters.policy("x/p", {"podSelector": {}}))
    for name in ("d", "e"):
        node.change(clusters.pod(f"x/{name}", "node1", ["10.244.1.99"]))
    finish(node)
    assert target_of(node, "10.244.1.99") == ["DROP"]
    node.remove(("Pod", "x", "e"))
    finish(node)
    assert target_of(node, "10.244.1.99") == ["DROP"]


def test_a_second_policy_of_one_chain_admits_nobody_until_the_first_goes(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike(monkeypatch, "policy")
    node.change(clusters.policy("x/p", {"podSelector": {}, "ingress": [{}]}))
    assert not finish(node)
    # It selects other pods, so that the first has nothing to do with them.
    node.change(clusters.policy("y/q", {"podSelector": {}, "ingress": [{"ports": [{"port": 7}]}]}))
    told = finish(node)
    chain = policy_chain("x/p", Direction.INGRESS)
    (line,) = told
    assert "NetworkPolicy y/q" in line
    assert chain in line

    def asks(pod: str) -> bool:
        rules = node.chains()[pod_chain(pod, Direction.INGRESS)]
        return any(rule.endswith(f"-j {chain}") for rule in rules)

    assert not any(" --dport 7 " in rule for rule in node.chains()[chain])
    assert (asks("x/a"), asks("y/a")) == (True, False)
    assert "10.244.1.20" in node.own_sets()["kube-router-pods-in"]
    node.remove(("NetworkPolicy", "x", "p"))
    assert not finish(node)
    assert any(" --dport 7 " in rule for rule in node.chains()[chain])
    assert asks("y/a")
    node.remove(("NetworkPolicy", "y", "q"))
    assert not finish(node)
    assert chain not in node.chains()


def test_a_second_selection_of_one_set_matches_nobody_until_the_first_goes(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike(monkeypatch, "pods")
    node.change(
        clusters.policy("x/p", ingress("a", "b")), clusters.policy("x/q", ingress("c", "a"))
    )
    told = finish(node)
    name = "KUBE-SRC-" + "A" * 16
    assert node.own_sets()[name] == {"10.244.2.11"}
    assert any(name in rule for rule in node.chains()[policy_chain("x/p", Direction.INGRESS)])
    assert node.chains()[policy_chain("x/q", Direction.INGRESS)] == ()
    assert len(told) == 2, told  # in each family
    assert all("NetworkPolicy x/q" in each and name in each for each in told)
    # Members of the second never come into the set of the first.
    node.change(clusters.pod("x/a", "node1", ["10.244.1.10"], {"pod": "a", "new": "label"}))
    node.change(clusters.pod("x/e", "node2", ["10.244.2.77"], {"pod": "a"}))
    finish(node)
    assert node.own_sets()[name] == {"10.244.2.11"}
    node.remove(("NetworkPolicy", "x", "p"))
    assert not finish(node)
    assert node.own_sets()[name] == {"10.244.1.10", "10.244.2.77"}
    assert any(name in rule for rule in node.chains()[policy_chain("x/q", Direction.INGRESS)])
    node.remove(("NetworkPolicy", "x", "q"))
    assert not finish(node)
    assert name not in node.own_sets()


def test_two_selections_of_one_set_in_one_policy_match_nobody(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike(monkeypatch, "pods")
    peers = [{"podSelector": {"matchLabels": {"pod": each}}} for each in "bc"]
    spec = {"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": [{"from": peers}]}
    node.change(clusters.policy("x/p", spec))
    assert any("NetworkPolicy x/p" in each for each in finish(node))
    assert node.chains()[policy_chain("x/p", Direction.INGRESS)] == ()
    spec["ingress"] = [{"from": peers[:1]}]
    node.change(clusters.policy("x/p", spec))
    assert not finish(node)


@pytest.mark.timeout(600)  # to find the smallest cluster
def test_nothing_is_admitted_that_policies_refuse_and_all_heals(
    clusters: Any, random_clusters: Any, firewall_node: Callable[..., Any]
) -> None:
    """Whatever names are alike, whatever comes and goes."""
    real = names._hash

    @settings(max_examples=60)
    @given(random_clusters.objects(), st.integers(1, 5), st.data())
    def hold(objects: list[Any], number: int, data: st.DataObject) -> None:
        nodes = [*map(clusters.node, clusters.NODE_ADDRESSES)]
        with pytest.MonkeyPatch.context() as patch:
            alike(patch, different=number)
            cluster = clusters.Cluster([*nodes, *objects], is_raw=False)
            kinds = (Pod, Namespace, NetworkPolicy, Node)
            rules = Evaluator(*(cluster.manifests.list(kind) for kind in kinds))
            protocols = {n: name.upper() for name, n in clusters.PROTOCOLS.items()}
            for flow in random_clusters.flows(objects):
                if flow.service:
                    continue
                source = f"node/{flow.src_node}" if flow.src_process else flow.src
                family = "IPv6" if ":" in flow.src else "IPv4"
                asked = Flow(source, flow.dst, protocols[flow.protocol], flow.dport, family)
                if not rules.evaluate(asked).allowed:
                    assert not cluster.trace(flow)[0], flow
            node = firewall_node()
            told = data.draw(st.permutations(objects))
            for each in told:
                node.change(each)
                node.turn()
            finish(node)
            identities = [clusters.identity(each) for each in told]
            for identity in data.draw(st.permutations(identities)):
                node.remove(identity)
                node.turn()
            assert not [each for each in finish(node) if "name of another" in each]
            assert not node.differences()
        assert names._hash is real

    hold()
