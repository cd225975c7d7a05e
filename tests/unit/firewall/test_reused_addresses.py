"""Addresses that go from one pod to the next: what conntrack remembers of them goes in between."""

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.fake_conntrack import FakeFlow

FAR = "203.0.113.10"
ADDRESSES = ("10.244.1.10", "fd00:10:244:1::10")
"""Of x/a, on this node."""
DENY = {"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"]}
OF_A = {
    FakeFlow(FAR, ADDRESSES[0], ADDRESSES[0], FAR),
    FakeFlow(FAR, "10.96.0.1", ADDRESSES[0], "192.168.1.1"),
    FakeFlow(ADDRESSES[1], "fd00::7", "fd00::7", ADDRESSES[1]),
}
OF_OTHERS = {
    FakeFlow(FAR, "10.244.1.12", "10.244.1.12", FAR),
    FakeFlow(FAR, "10.244.2.11", "10.244.2.11", FAR),
}


@pytest.fixture
def node(firewall_node: Callable[..., Any], clusters: Any) -> Any:
    found = firewall_node(FirewallOptions(families=("inet", "inet6")))
    found.change(*clusters.canonical(), clusters.policy("x/p", DENY))
    found.conntrack.flows = OF_A | OF_OTHERS
    assert not found.turn().failed
    assert not found.conntrack.asked
    return found


def replaced(clusters: Any, key: str, *addresses: str, uid: str = "another") -> Any:
    """A pod of this node with these addresses."""
    found = clusters.pod(key, "node1", addresses)
    found["metadata"]["uid"] = uid
    return found


def goes(node: Any, clusters: Any) -> None:
    node.remove(("Pod", "x", "a"))


def finishes(node: Any, clusters: Any) -> None:
    node.change(clusters.pod("x/a", "node1", ADDRESSES, phase="Succeeded"))


def moves(node: Any, clusters: Any) -> None:
    node.change(clusters.pod("x/a", "node1", ("10.244.1.99",)))


def passes_on(node: Any, clusters: Any) -> None:
    node.remove(("Pod", "x", "a"))
    node.change(replaced(clusters, "z/new", *ADDRESSES))


def comes_again(node: Any, clusters: Any) -> None:
    node.change(replaced(clusters, "x/a", *ADDRESSES))


def is_claimed_by_two(node: Any, clusters: Any) -> None:
    """The API server has not heard yet of the end of the first."""
    node.change(replaced(clusters, "z/new", *ADDRESSES))


@pytest.mark.parametrize(
    "change", [goes, finishes, moves, passes_on, comes_again, is_claimed_by_two]
)
def test_connections_of_an_address_that_changes_hands_go(
    node: Any, clusters: Any, change: Callable[[Any, Any], None]
) -> None:
    change(node, clusters)
    assert not node.turn().failed
    assert node.conntrack.asked == [frozenset(ADDRESSES)]
    assert node.conntrack.flows == OF_OTHERS
    assert not node.turn(full=True).failed
    assert len(node.conntrack.asked) == 1


def test_they_go_when_the_first_of_two_claimants_goes(node: Any, clusters: Any) -> None:
    is_claimed_by_two(node, clusters)
    node.turn()
    node.conntrack.flows |= OF_A
    goes(node, clusters)
    node.turn()
    assert node.conntrack.flows == OF_OTHERS


@pytest.mark.parametrize("is_new", [False, True])
def test_the_rules_of_the_new_state_stand_by_then(
    node: Any, clusters: Any, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    conntrack = node.opened[-1].conntrack
    forget = conntrack.forget

    def look(addresses: Any) -> Any:
        seen.append(node.differences())
        return forget(addresses)

    monkeypatch.setattr(conntrack, "forget", look)
    node.change(clusters.policy("z/p", {**DENY, "podSelector": {}}))
    goes(node, clusters)
    if is_new:
        node.change(replaced(clusters, "z/new", *ADDRESSES))
    assert not node.turn().failed
    assert seen == [[]]


def test_many_pods_that_go_at_once_cost_one_walk(node: Any, clusters: Any) -> None:
    pods = [f"z/p{number}" for number in range(50)]
    for number, key in enumerate(pods):
        node.change(replaced(clusters, key, f"10.244.1.{100 + number}"))
    node.turn()
    assert not node.conntrack.asked
    node.remove(*(("Pod", *key.split("/")) for key in pods))
    node.turn()
    assert [len(each) for each in node.conntrack.asked] == [50]


def test_connections_outlive_policies_labels_and_readiness(node: Any, clusters: Any) -> None:
    node.change(clusters.policy("x/p", {**DENY, "policyTypes": ["Egress"]}))
    node.change(clusters.pod("x/a", "node1", ADDRESSES, labels={"pod": "z"}, terminating=True))
    node.turn()
    node.remove(("NetworkPolicy", "x", "p"))
    node.turn()
    node.turn(full=True)
    assert not node.conntrack.asked


def test_pods_elsewhere_and_of_the_host_network_have_none_here(node: Any, clusters: Any) -> None:
    node.remove(("Pod", "x", "b"))
    host = clusters.pod("z/host", "node1", ("192.168.1.1",), host_network=True)
    node.change(host)
    node.turn()
    node.remove(("Pod", "z", "host"))
    node.turn()
    assert not node.conntrack.asked


def test_a_family_that_is_not_enforced_is_left_alone(
    firewall_node: Callable[..., Any], clusters: Any
) -> None:
    node = firewall_node(FirewallOptions(families=("inet",)))
    node.change(*clusters.canonical())
    node.turn()
    node.remove(("Pod", "x", "a"))
    node.turn()
    assert node.conntrack.asked == [frozenset(ADDRESSES[:1])]


def test_a_restart_forgets_nothing(node: Any) -> None:
    node.restart()
    assert not node.turn().failed
    assert not node.turn(full=True).failed
    assert not node.conntrack.asked
    assert node.conntrack.flows == OF_A | OF_OTHERS
    assert node.writes == 0


@pytest.mark.parametrize("error", [KernelError, StateUnknownError])
def test_what_failed_is_told_and_tried_again(
    node: Any, clusters: Any, error: type[KernelError]
) -> None:
    node.conntrack.error = error("the kernel is out of memory", errno.ENOMEM)
    goes(node, clusters)
    outcome = node.turn()
    assert [str(key) for key in outcome.failed] == ["Node node1"]
    assert [each.reason for each in outcome.problems] == [
        "policies: reused addresses: the kernel is out of memory"
    ]
    # The rules do not wait for it.
    assert not node.differences()
    node.conntrack.error = None
    outcome = node.firewall.reconcile(outcome.failed, False)
    assert not outcome.failed
    assert not outcome.problems
    assert node.conntrack.flows == OF_OTHERS


def test_an_entry_that_stays_has_only_its_address_tried_again(node: Any, clusters: Any) -> None:
    (busy,) = node.conntrack.busy = {each for each in OF_A if each.client == ADDRESSES[1]}
    goes(node, clusters)
    outcome = node.turn()
    assert node.conntrack.flows == {busy, *OF_OTHERS}
    assert [each.reason.partition(": a")[0] for each in outcome.problems] == [
        f"policies: reused addresses: {ADDRESSES[1]}"
    ]
    node.conntrack.busy = set()
    outcome = node.firewall.reconcile(outcome.failed, False)
    assert not outcome.failed
    assert not outcome.problems
    assert node.conntrack.asked == [frozenset(ADDRESSES), frozenset(ADDRESSES[1:])]
    assert node.conntrack.flows == OF_OTHERS


def test_while_rules_cannot_be_written_it_is_done_at_once_and_again_at_last(
    node: Any, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old rules admit in between must not stay."""
    iptables = node.opened[-1].iptables

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise KernelError("resource temporarily unavailable", errno.EAGAIN)

    with monkeypatch.context() as patch:
        for name in ("change", "ensure"):
            patch.setattr(iptables, name, refuse)
        goes(node, clusters)
        outcome = node.turn()
        assert outcome.failed
        assert node.conntrack.flows == OF_OTHERS
        node.conntrack.flows |= OF_A
        # Not again with each attempt: the address may be somebody's by now.
        outcome = node.firewall.reconcile(outcome.failed, False)
        assert outcome.failed
        assert node.conntrack.flows == OF_A | OF_OTHERS
    assert not node.firewall.reconcile(outcome.failed, False).failed
    assert node.conntrack.flows == OF_OTHERS


def test_a_kernel_that_does_not_tell_its_connections_stops_nothing(
    node: Any, clusters: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    node.conntrack.error = PreflightError("load the module nf_conntrack_netlink")
    for key in ("a", "c"):
        node.remove(("Pod", "x", key))
        outcome = node.turn()
        assert not outcome.failed
        assert [each.reason for each in outcome.problems] == [
            "policies: reused addresses: load the module nf_conntrack_netlink"
        ]
        assert not node.differences()
    assert len([each for each in caplog.records if "cannot forget" in each.message]) == 1
    # The module is there now; what went before is somebody else's.
    node.conntrack.error = None
    node.change(clusters.pod("x/d", "node1", ("10.244.1.40",)))
    node.turn()
    node.remove(("Pod", "x", "d"))
    assert not node.turn().problems
    assert node.conntrack.asked[-1] == {"10.244.1.40"}
