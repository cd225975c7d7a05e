"""What an operator does to a node: flags that change, and a kernel that lacks something."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from kube_router_py.cluster.objects import Pod
from kube_router_py.errors import KernelError
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import policy_chain
from kube_router_py.firewall.refused import told
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.fake import FakeIptables
from kube_router_py.kernel.ports import BridgePort, HostPorts
from kube_router_py.old_policies import old_policies
from kube_router_py.problem import Problem

BOTH = FirewallOptions(families=("inet", "inet6"))
DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.fixture
def node(firewall_node: Callable[..., Any], clusters: Any) -> Any:
    found = firewall_node(BOTH)
    found.change(*clusters.canonical(), clusters.policy("x/p", DENY))
    assert not found.turn().failed
    assert not found.differences()
    return found


@pytest.mark.parametrize(("kept", "gone"), [("inet", "inet6"), ("inet6", "inet")])
def test_nothing_stays_of_a_family_that_is_switched_off(node: Any, kept: str, gone: str) -> None:
    foreign = node.rules.chains(gone, "filter")
    foreign["INPUT"].append("-s 192.0.2.0/24 -j DROP" if gone == "inet" else "-j DROP")
    before = list(foreign["INPUT"])[-1:]
    node.options = FirewallOptions(families=(kept,))
    node.restart()
    outcome = node.turn()
    assert not outcome.failed, outcome.problems
    assert not node.chains(gone)
    assert node.rules.chains(gone, "filter")["INPUT"] == before
    prefixed = {name.startswith("inet6:") for name in node.own_sets()}
    assert prefixed == {kept == "inet6"}
    assert not node.differences()
    # And back again.
    node.options = BOTH
    node.restart()
    assert not node.turn().failed
    assert not node.differences()


def test_default_deny_switched_off_leaves_no_rule_of_it(
    firewall_node: Callable[..., Any], clusters: Any
) -> None:
    node = firewall_node(FirewallOptions(families=("inet",), default_deny=True))
    node.change(*clusters.canonical())
    node.turn()
    assert any("not programmed yet" in rule for rules in node.chains().values() for rule in rules)
    node.options = FirewallOptions(families=("inet",))
    node.restart()
    node.turn()
    assert not [name for name in node.chains() if "TAIL" in name]
    assert not node.differences()


def test_without_br_netfilter_changes_go_on_one_by_one(node: Any, clusters: Any) -> None:
    """The node is not ready until the module is there; that is no reason to read everything."""
    node.sysctls.clear()
    node.links.bridge_ports.append(BridgePort("cni0", "veth0", hairpin=False))
    outcome = node.turn(full=True)
    assert any("br_netfilter" in each.reason for each in outcome.problems)
    node.sets.runs.clear()
    node.change(clusters.policy("y/p", DENY))
    outcome = node.turn()
    assert not [run for run in node.sets.runs if run.startswith("save")]
    assert any("br_netfilter" in each.reason for each in outcome.problems)
    assert outcome.failed
    assert not node.differences()


def test_refused_rules_are_told_once_for_each_complaint() -> None:
    found = [*told({"b": "no sctp", "a": "no sctp", "c": "no set"})]
    assert found == [
        "the rule 'a' admits nobody (and 1 more like it): no sctp",
        "the rule 'c' admits nobody: no set",
    ]


def test_policies_left_standing_by_an_earlier_agent_are_told(node: Any) -> None:
    opened: list[HostPorts] = []

    def open_ports() -> HostPorts:
        opened.append(node._open())
        return opened[-1]

    told = old_policies(open_ports)
    assert "kube-router-py cleanup" in told
    assert told.endswith("families=inet,inet6")
    assert all(cast(FakeIptables, each.iptables).closed for each in opened)
    for family in BOTH.families:
        node.rules.chains(family, "filter").clear()
    assert old_policies(open_ports) == ""

    def broken() -> HostPorts:
        raise KernelError("no ipset here")

    assert old_policies(broken) == ""


def test_a_policy_with_more_sets_than_there_may_be_takes_no_room_from_others(
    node: Any, clusters: Any
) -> None:
    def by_labels(prefix: str, number: int) -> Any:
        """In a rule for each, so that what one lacks shows in no other."""
        peers = [
            {"podSelector": {"matchLabels": {"pod": "b", prefix: str(n)}}} for n in range(number)
        ]
        return {"podSelector": {}, "ingress": [{"from": [each]} for each in peers]}

    def looked_into(key: str) -> int:
        chain = node.chains()[policy_chain(key, Direction.INGRESS)]
        return sum("--match-set" in rule for rule in chain)

    room = 200
    node.sets.most = len(node.sets.sets) + room
    few = [clusters.policy(f"x/few{n}", by_labels(f"few{n}", 2)) for n in range(20)]
    node.change(*few, clusters.policy("x/many", by_labels("many", 150)))
    outcome = node.turn()
    assert [looked_into(f"x/few{n}") for n in range(20)] == [2] * 20
    # Both families have a set of each.
    assert looked_into("x/many") < 150
    assert len(node.sets.sets) == node.sets.most
    assert any("maximal number of sets" in str(each) for each in outcome.problems)
    # What stands goes on being followed.
    node.change(clusters.pod("x/n", "node2", ["10.244.2.77"], {"pod": "b", "few3": "1"}))
    node.turn()
    assert any("10.244.2.77" in entries for entries in node.own_sets().values())
    node.remove(("NetworkPolicy", "x", "many"))
    node.turn()
    assert not node.turn().failed
    assert not node.differences()


def test_a_pod_that_no_longer_decodes_is_judged_as_it_was(node: Any, clusters: Any) -> None:
    """As target and as peer, through further events, full turns and another list."""
    problem = Problem("Pod x/a", "spec", "is not what it should be")
    node.cache.report(Pod, "x/a", problem, "7")
    assert not node.turn(full=True).failed
    assert "10.244.1.10" in node.own_sets()["kube-router-pods-in"]
    from_a = [{"podSelector": {"matchLabels": {"pod": "a"}}}]
    node.change(clusters.policy("x/q", {"podSelector": {}, "ingress": [{"from": from_a}]}))
    others = [each for each in node.cache.list(Pod) if each.metadata.key != "x/a"]
    node.cache.replace(Pod, others, "9", {"x/a": problem})
    assert not node.turn(full=True).failed
    assert not node.differences()
    (name,) = {
        rule.split("--match-set ")[1].split()[0]
        for rule in node.chains()[policy_chain("x/q", Direction.INGRESS)]
    }
    assert node.own_sets()[name] == {"10.244.1.10"}
    # Deleted is deleted, though.
    node.cache.delete(Pod, "x/a", "11")
    node.turn()
    assert "10.244.1.10" not in node.own_sets()["kube-router-pods-in"]
    assert node.own_sets()[name] == frozenset()
