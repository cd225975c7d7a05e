"""Who reaches whom under NetworkPolicies: every flow of a matrix, as evaluate says it should be.

A flow is a new connection: between pods of both nodes, from nodes and from outside, in each family
that the cluster has, straight and through ClusterIPs and NodePorts.
"""

import itertools
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

FILE = Path(__file__).with_name("scenarios.yaml")
SCENARIOS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())
NODES = ("node1", "node2")
# Flush them and packets meet none of the firewall's rules.
FIRST_CHAINS = ("KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT")
IPTABLES = {4: "iptables", 6: "ip6tables"}
# What a cluster of one family has instead of an address of the other: policies say that, too.
NOBODY = {4: "192.0.2.1", 6: "2001:db8::1"}


def filled_in(value: Any, world: Any) -> Any:
    """``${y/b:4}`` replaced by the address, or by one that nobody has."""
    if isinstance(value, dict):
        return {key: filled_in(item, world) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, world) for item in value]
    if isinstance(value, str):
        return re.sub(
            r"\$\{([^:}]+):([46])\}",
            lambda found: next(
                (each for each in world.addresses[found[1]] if (":" in each) == (found[2] == "6")),
                NOBODY[int(found[2])],
            ),
            value,
        )
    return value


def named(flows: Iterable[str], world: Any, probes: Any) -> list[Any]:
    """The probes that ``FROM TO PROTOCOL PORT [FAMILY]`` means."""
    known = {check.probe for check in world.checks}
    found = []
    for flow in flows:
        source, target, protocol, port, *family = flow.split()
        for address in world.addresses[target]:
            if not family or (":" in address) == (family == ["6"]):
                found.append(probes.Probe(source, protocol, address, int(port)))
                assert found[-1] in known, f"nobody asks {flow}"
    return found


def enter(scenario: dict[str, Any], policies: Any) -> float:
    """Write the scenario's state; returns how long it took the agents to apply it (s)."""
    state = policies.state(
        filled_in(scenario.get("policies", {}), policies), scenario.get("labels", {})
    )
    policies.set(state)
    written = time.monotonic()
    policies.cluster.wait()
    return time.monotonic() - written


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            each, id=each["name"], marks=[pytest.mark.families] if each.get("families") else []
        )
        for each in SCENARIOS
    ],
)
def test_the_matrix_is_as_evaluate_says(
    scenario: dict[str, Any], policies: Any, probes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    applied_s = enter(scenario, policies)
    report = policies.compare()
    expected = policies.expected(policies.checks)
    for outcome, is_open in (("open", True), ("shut", False)):
        for probe in named(scenario.get(outcome, ()), policies, probes):
            assert expected[probe] is is_open, f"evaluate differs from what is written: {probe}"
    with capsys.disabled():
        print(
            f"\n  {scenario['name']}: {report.flows} flows, {report.open} open, "
            f"{report.flows - report.open} shut ({report.silent} silent); "
            f"{len(report.wrong)} wrong, {len(report.late)} late; "
            f"applied in {applied_s:.1f} s, compared in {report.seconds:.1f} s",
            *report.late[:3],
            sep="; ",
            end="",
        )
    assert report.wrong == ()


@pytest.mark.families
def test_without_its_rules_the_matrix_disagrees(
    policies: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: what the tests above have seen was the work of the rules. Then they come back,
    and the agents find out by themselves."""
    enter(next(each for each in SCENARIOS if each["name"] == "default-deny-all"), policies)
    for node in NODES:
        policies.cluster.agent(node, "stop")
    expected = policies.expected(policies.checks)
    shut = [probe for probe, is_open in expected.items() if not is_open]
    assert len(shut) > 100
    before = policies.prober.ask(shut)
    for node, family in itertools.product(NODES, policies.cluster.families):
        for chain in FIRST_CHAINS:
            policies.cluster.run(node, IPTABLES[family], "-w", "-F", chain)
    without = policies.prober.ask(shut)
    for node in NODES:
        policies.cluster.agent(node, "start")
    policies.cluster.wait()
    report = policies.compare()
    with capsys.disabled():
        print(
            f"\n  of {len(shut)} flows that should be shut, open: with the rules "
            f"{opened(before)}, without {opened(without)}; "
            f"when the agents are back, {len(report.wrong)} of {report.flows} wrong",
            end="",
        )
    assert opened(before) == 0
    assert opened(without) == len(shut)
    assert report.wrong == ()


def opened(answers: dict[Any, Any]) -> int:
    return sum(answer.outcome == "open" for answer in answers.values())
