"""Hits and drops of policies from counters that restart, in bounded number."""

import errno
import logging
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import KernelError
from kube_router_py.firewall.chains import pod_rules
from kube_router_py.firewall.counted import CountedChain, counted_chains
from kube_router_py.firewall.holding import Hold
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain, policy_chain
from kube_router_py.observe.growing import Increases, Totals
from kube_router_py.observe.policy_counters import PolicyCounters

INGRESS = Direction.INGRESS
WEB = pod_chain("default/web", INGRESS)
ADDRESS = {"inet": "10.244.1.2", "inet6": "fd00:1::2"}


class Node:
    """Pods, the rules of their chains, and what the kernel counted by them."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[Direction, Hold]] = {}
        self.families = ("inet",)
        self.packets: dict[str, dict[str, list[int]]] = {}
        self.error: KernelError | None = None
        self.broken_family = ""
        self.reads = 0
        self.now_s = 0.0

    def put(self, pod: str, *policies: str, is_audited: bool = False) -> None:
        """A pod is held by these policies; its chain is written, and its counters are 0."""
        self.pods[pod] = {INGRESS: Hold(tuple(sorted(policies)), is_audited)}
        for family in self.families:
            rules = self.rules(pod, family)
            self.packets.setdefault(family, {})[pod_chain(pod, INGRESS)] = [0] * len(rules)

    def rules(self, pod: str, family: str) -> tuple[str, ...]:
        hold = self.pods[pod][INGRESS]
        return pod_rules(
            *(pod, INGRESS, family, (ADDRESS[family],), hold.policies),
            is_audited=hold.is_audited,
        )

    def send(self, pod: str, admitted_by: str = "", count: int = 1, family: str = "inet") -> None:
        """Packets that pass the policies before the one that admits them (none: all)."""
        counters = self.packets[family][pod_chain(pod, INGRESS)]
        for index, rule in enumerate(self.rules(pod, family)):
            counters[index] += count
            if admitted_by and rule.endswith(policy_chain(admitted_by, INGRESS)):
                return

    def chains(self) -> list[CountedChain]:
        chains = {
            family: {pod_chain(pod, INGRESS): self.rules(pod, family) for pod in self.pods}
            for family in self.families
        }
        return [*counted_chains(self.pods, lambda pod: self.pods[pod], chains)]

    def read(self, family: str, chains: Sequence[str]) -> Mapping[str, Sequence[int]]:
        self.reads += 1
        if self.error and self.broken_family in ("", family):
            raise self.error
        found = self.packets[family]
        return {name: [*found[name]] for name in chains if name in found}


@pytest.fixture
def node() -> Node:
    return Node()


def counted(node: Node, limit: int = 2000) -> PolicyCounters:
    return PolicyCounters(node.chains, node.read, lambda: node.now_s, limit)


def values(page: PolicyCounters, node: Node, after_s: float = 15.0) -> dict[str, int]:
    """By the labels' values: those of hits have three, those of drops four."""
    node.now_s += after_s
    found = {}
    for line in page.text().decode().splitlines():
        if line.startswith("kube_router_policy_series_dropped"):
            found["left out"] = int(line.split()[1])
        elif not line.startswith("#"):
            labels, _, value = line.partition("{")[2].partition("} ")
            found["/".join(each.split('"')[1] for each in labels.split(","))] = int(value)
    return found


def test_the_policy_that_admits_and_the_pod_that_refuses_count(node: Node) -> None:
    node.put("default/web", "default/a", "default/b")
    page = counted(node)
    nothing = {
        "default/a/ingress": 0,
        "default/b/ingress": 0,
        "default/web/ingress/refused": 0,
        "left out": 0,
    }
    assert values(page, node) == nothing
    node.send("default/web", "default/a", 3)
    node.send("default/web", "default/b", 2)
    node.send("default/web", count=5)
    assert values(page, node) == {
        "default/a/ingress": 3,
        "default/b/ingress": 2,
        "default/web/ingress/refused": 5,
        "left out": 0,
    }


def test_what_was_counted_before_the_agent_started_is_not_counted_again(node: Node) -> None:
    node.put("default/web", "default/a")
    node.send("default/web", count=100)
    page = counted(node)
    assert values(page, node)["default/web/ingress/refused"] == 0
    node.send("default/web", count=1)
    # A pod that comes later began at zero.
    node.put("default/new", "default/a")
    node.send("default/new", count=7)
    found = values(page, node)
    assert found["default/web/ingress/refused"] == 1
    assert found["default/new/ingress/refused"] == 7


def test_chains_that_are_taken_over_are_not_counted_from_their_beginning(node: Node) -> None:
    """Of a scrape that comes before the firewall's first turn, or while the table is not read."""
    page = counted(node)
    assert values(page, node) == {"left out": 0}
    node.put("default/web", "default/a")
    node.send("default/web", count=100)
    node.error = KernelError("iptables-save: busy")
    assert values(page, node)["default/web/ingress/refused"] == 0
    node.error = None
    assert values(page, node)["default/web/ingress/refused"] == 0
    node.send("default/web", count=1)
    assert values(page, node)["default/web/ingress/refused"] == 1


def test_a_firewall_that_is_started_anew_counts_nothing_twice(node: Node) -> None:
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    node.send("default/web", count=5)
    assert values(page, node)["default/web/ingress/refused"] == 5
    pods, node.pods = node.pods, {}  # nothing is known until its first turn
    assert values(page, node)["default/web/ingress/refused"] == 5
    node.pods = pods
    node.send("default/web", count=1)
    assert values(page, node)["default/web/ingress/refused"] == 6


def test_one_family_that_is_not_read_does_not_stop_the_other(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.families = ("inet", "inet6")
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    node.error, node.broken_family = KernelError("iptables-save is not installed"), "inet"
    for family in node.families:
        node.send("default/web", count=2, family=family)
    assert values(page, node)["default/web/ingress/refused"] == 2
    assert values(page, node)["default/web/ingress/refused"] == 2
    assert caplog.text.count("is not installed") == 1
    node.error = None
    assert values(page, node)["default/web/ingress/refused"] == 4


def test_a_table_that_hangs_is_waited_for_once(node: Node) -> None:
    node.families = ("inet", "inet6")
    node.put("default/web", "default/a")
    node.error = KernelError("iptables-save took more than 4 s", errno.ETIMEDOUT)
    values(counted(node), node)
    assert node.reads == 1


def test_a_chain_that_is_rewritten_goes_on_counting(node: Node) -> None:
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    node.send("default/web", count=10)
    assert values(page, node)["default/web/ingress/refused"] == 10
    node.put("default/web", "default/a", "default/b")
    node.send("default/web", count=4)
    assert values(page, node)["default/web/ingress/refused"] == 14
    node.put("default/web", "default/a", "default/b")
    node.send("default/web", "default/b", 2)
    found = values(page, node)
    assert found["default/web/ingress/refused"] == 14
    assert found["default/b/ingress"] == 2


def test_both_families_and_all_pods_of_a_policy_are_added_up(node: Node) -> None:
    node.families = ("inet", "inet6")
    node.put("default/web", "default/a")
    node.put("default/db", "default/a")
    page = counted(node)
    values(page, node)
    node.send("default/web", "default/a", 1, "inet")
    node.send("default/web", "default/a", 2, "inet6")
    node.send("default/db", "default/a", 4, "inet6")
    node.send("default/db", "", 8, "inet6")
    found = values(page, node)
    assert found["default/a/ingress"] == 7
    assert found["default/db/ingress/refused"] == 8


def test_audited_pods_have_a_verdict_of_their_own(node: Node) -> None:
    node.put("default/web", "default/a", is_audited=True)
    page = counted(node)
    values(page, node)
    node.send("default/web", count=3)
    found = values(page, node)
    assert found["default/web/ingress/audited"] == 3
    assert "default/web/ingress/refused" not in found


def test_a_chain_that_is_not_what_it_is_taken_for_is_read_the_next_time(node: Node) -> None:
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    node.send("default/web", count=5)
    right = node.packets["inet"][WEB]
    node.packets["inet"][WEB] = [999]
    assert values(page, node)["default/web/ingress/refused"] == 0
    del node.packets["inet"][WEB]
    assert values(page, node)["default/web/ingress/refused"] == 0
    node.packets["inet"][WEB] = right
    assert values(page, node)["default/web/ingress/refused"] == 5


def test_pods_that_are_gone_end_after_some_minutes(node: Node) -> None:
    node.put("default/web", "default/a")
    node.put("default/db", "default/b")
    page = counted(node)
    values(page, node)
    del node.pods["default/db"]
    assert "default/db/ingress/refused" in values(page, node, 299)
    found = values(page, node, 16)
    assert "default/db/ingress/refused" not in found
    assert "default/b/ingress" not in found
    assert "default/web/ingress/refused" in found


def test_there_are_never_more_series_than_allowed(node: Node) -> None:
    for number in range(5):
        node.put(f"default/p{number}", f"default/n{number}")
    page = counted(node, limit=3)
    assert values(page, node)["left out"] == 4
    for number in range(5):
        node.send(f"default/p{number}", count=10)
        node.send(f"default/p{number}", f"default/n{number}", count=1)
    found = values(page, node)
    assert len([key for key in found if key.startswith("default/")]) == 6
    assert found["/other/ingress/refused"] == 20
    assert found["/other/ingress"] == 2
    assert sum(v for key, v in found.items() if key.endswith("refused")) == 50


def test_the_kernel_is_not_asked_more_often_than_every_15_s(node: Node) -> None:
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    assert node.reads == 1
    values(page, node, 14)
    assert node.reads == 1
    values(page, node, 1)
    assert node.reads == 2


def test_where_it_cannot_be_asked_the_numbers_stay(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.put("default/web", "default/a")
    page = counted(node)
    values(page, node)
    node.send("default/web", count=5)
    assert values(page, node)["default/web/ingress/refused"] == 5
    node.error = KernelError("iptables-save: busy")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert values(page, node)["default/web/ingress/refused"] == 5
    assert caplog.text.count("iptables-save: busy") == 1
    node.error = None
    node.send("default/web", count=2)
    assert values(page, node)["default/web/ingress/refused"] == 7


def test_without_policies_nothing_is_read(node: Node) -> None:
    assert values(counted(node), node) == {"left out": 0}
    assert node.reads == 0


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9)))))
def test_growth_is_all_that_was_counted_however_often_it_restarts(
    steps: list[tuple[int, int] | None],
) -> None:
    """None: a restart. A restart that is caught up with between two looks cannot be seen."""
    increases: Increases[str] = Increases()
    now, told, total = [0, 0], [0, 0], [0, 0]
    increases.take({"chain": now}, {"chain"})
    for step in steps:
        if step is None:
            now = [0, 0]
        else:
            now = [old + new for old, new in zip(now, step, strict=True)]
            total = [old + new for old, new in zip(total, step, strict=True)]
        grown = increases.take({"chain": [*now]}, {"chain"})["chain"]
        assert all(each >= 0 for each in grown)
        told = [old + new for old, new in zip(told, grown, strict=True)]
    assert told == total


def test_other_series_are_never_forgotten() -> None:
    totals: Totals[str] = Totals(lambda each: "other", 1)
    totals.need(["a", "b"], 0)
    totals.add("b", 3)
    totals.need(["b"], 1000)
    assert totals.values() == {"other": 3}
    totals.need(["b"], 1001)
    totals.add("b", 4)
    assert totals.values() == {"other": 3, "b": 4}
    assert totals.left_out == 0
