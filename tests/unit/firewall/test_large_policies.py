"""Policies of many peers and ports: they cost their length, not the product of their parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_router_py.cluster.policy_decode import decode_policy
from kube_router_py.errors import KernelError
from kube_router_py.firewall import blocks, chains
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.policy import compile_policy
from kube_router_py.firewall.refused import refused_rules
from kube_router_py.kernel.fake import FakeIptables

SEMANTICS = Path(__file__).parents[2] / "golden" / "policies" / "semantics.yaml"
CASES = {case["name"]: case for case in yaml.safe_load(SEMANTICS.read_text())}
MANY = 300


@pytest.mark.parametrize("name", CASES)
def test_the_forms_that_large_policies_take_mean_the_same(
    name: str, clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "_PAIRS_MOST", 0)
    monkeypatch.setattr(blocks, "_DISJOINT_MOST", 0)
    case = CASES[name]
    cluster = clusters.Cluster(clusters.of_case(case))
    wrong = cluster.wrong(case.get("allowed", ""), True)
    wrong += cluster.wrong(case.get("denied", ""), False)
    assert not wrong, "\n".join(wrong)


def large(clusters: Any, **more: Any) -> Any:
    peers = [{"podSelector": {"matchLabels": {"pod": f"p{n}"}}} for n in range(MANY)]
    ports = [{"port": n + 1} for n in range(MANY)]
    names = [{"port": f"n{n}"} for n in range(MANY)]
    spec = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [*peers, {"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": ports},
            # What came before says nothing about the rules that follow.
            {"from": [{"podSelector": {"matchLabels": {"pod": "c"}}}], "ports": [{"port": 9090}]},
        ],
        "egress": [{"to": peers, "ports": names}, {}],
    }
    return clusters.policy("x/p", {**spec, **more})


def test_as_many_rules_and_sets_as_peers_and_ports(clusters: Any) -> None:
    cluster = clusters.Cluster([*clusters.canonical(), large(clusters)])
    document = cluster.documents["node1"]
    for family in ("ipv4", "ipv6"):
        lines = document["iptables"][family]["filter"].splitlines()
        assert 4 * MANY < len(lines) < 4 * MANY + 200
    assert 4 * MANY < len(document["ipsets"]) < 4 * MANY + 50


def test_a_large_rule_admits_its_pairs_and_no_others(clusters: Any) -> None:
    cluster = clusters.Cluster([*clusters.canonical(), large(clusters)])
    wrong = cluster.wrong("x/b > x/a tcp 80\nx/b > x/a tcp 300\nx/c > x/a tcp 9090", True)
    wrong += cluster.wrong("x/c > x/a tcp 80\ny/b > x/a tcp 80\nx/b > x/a tcp 301", False)
    assert not wrong, "\n".join(wrong)


def test_problems_of_one_policy_are_told_up_to_a_number(clusters: Any) -> None:
    peers = [{"ipBlock": {"cidr": f"10.0.{n}"}} for n in range(MANY)]
    spec = {"podSelector": {}, "ingress": [{"from": peers}]}
    compiled = compile_policy(decode_policy(clusters.policy("x/p", spec))[0])
    assert len(compiled.problems) == 21
    assert compiled.problems[-1].reason == f"{MANY - 20} more like these"


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_chains_by_digits_have_names_that_fit(family: str) -> None:
    """Addresses that differ in their first half only."""
    base = "fd00:{:x}::1" if family == "inet6" else "{}.0.0.17"
    pods = {base.format(n): [f"KUBE-POD-FW-{n}"] for n in range(1, 100)}
    found = chains.dispatch_bucket(Direction.EGRESS, family, 1, pods)
    assert max(map(len, found)) <= 28
    leaves = [rule for rules in found.values() for rule in rules if "KUBE-POD-FW-" in rule]
    assert len(leaves) == len(pods)


class Lacking(FakeIptables):
    """A kernel without one of the matches."""

    def __init__(self, match: str) -> None:
        super().__init__()
        self._match, self.attempts = match, 0

    def change(self, family: str, table: str, chains: Any, delete: Any = ()) -> None:
        self.attempts += 1
        if any(self._match in rule for rules in chains.values() for rule in rules):
            raise KernelError(f"{self._match}: no such match")
        super().change(family, table, chains, delete)


def test_many_rules_of_a_protocol_that_the_kernel_lacks_stop_only_themselves() -> None:
    iptables = Lacking("-m sctp")
    rule: Callable[[str, int], str] = "-p {0} -m {0} --dport {1} -g KUBE-NWPLCY-ALLOW".format
    sctp = tuple(rule("sctp", port) for port in range(1, 2001))
    tcp = tuple(rule("tcp", port) for port in range(1, 2001))
    found = refused_rules(
        iptables, "inet", {"KUBE-NWPLCY-A": (*tcp, *sctp, chains.TAKE_BACK), "KUBE-POD-FW-A": tcp}
    )
    assert found.keys() == set(sctp)
    assert iptables.attempts < 10


def test_what_takes_back_is_never_left_out() -> None:
    found = refused_rules(
        Lacking("MARK --set-xmark 0x0"), "inet", {"KUBE-NWPLCY-A": (chains.TAKE_BACK,)}
    )
    assert not found
