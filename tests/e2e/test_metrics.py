"""Agents that run export what the dashboard and the alerts ask for, and count what happens."""

import json
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kube_router_py.observe.catalogue import METRICS, SECTIONS

pytestmark = pytest.mark.e2e

MONITORING = Path(__file__).parents[2] / "manifests/monitoring"
PORT = 20245
# The loops that run where an agent has these flags.
LOOPS = {
    "": "",
    "--run-service-proxy": "service-proxy",
    "--run-firewall": "firewall",
    "--run-router": "router",
    "--run-loadbalancer": "loadbalancer",
}
FROM_Y = {
    "podSelector": {},
    "policyTypes": ["Ingress"],
    "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}],
}
PACKETS = 5

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(cluster: Any, node: str) -> Samples:
    """Values by name and labels; it is text that Prometheus reads."""
    text = cluster.page(node, PORT, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(expr: Any) -> set[str]:
    """The metrics that an expression asks for."""
    if isinstance(expr, promql.VectorSelector):
        return {expr.name}
    found: set[str] = set()
    for field in ("expr", "lhs", "rhs", "vector_selector"):
        if (part := getattr(expr, field, None)) is not None:
            found |= names(part)
    for argument in getattr(expr, "args", ()):
        found |= names(argument)
    return found


def asked_for() -> set[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    texts += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    found = {
        name
        for text in texts
        for name in names(promql.parse(text.replace("$__rate_interval", "5m")))
    }
    return found - {"up"}  # Prometheus makes it


def test_agents_export_what_dashboard_and_alerts_ask_for(cluster: Any) -> None:
    text = cluster.page("node1", PORT, "/metrics")
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    running = {"", *cluster.ready("node1")["loops"]}
    there = {
        metric.name
        for section in SECTIONS
        if LOOPS[section.flag] in running
        for metric in section.metrics
    }
    # What an allocator says of its pools, only the one says that leads.
    pools = {name for name in METRICS if "_pool_addresses" in name}
    assert there - typed <= pools
    assert {name for name in typed if name.startswith("kube_router_")} <= METRICS.keys()
    absent = {name for name in METRICS if name not in there}
    wanted = {
        name.removesuffix("_bucket") if name.removesuffix("_bucket") in METRICS else name
        for name in asked_for()
    }
    assert len(wanted) > 50
    assert wanted - typed <= absent | pools


def test_what_policies_admit_and_refuse_is_counted(policies: Any, probes: Any) -> None:
    cluster = policies.cluster
    policies.set(policies.state({"x/metrics": FROM_Y}, {}))
    cluster.wait()
    hits = (
        "kube_router_policy_hits_total",
        frozenset({"namespace": "x", "policy": "metrics", "direction": "ingress"}.items()),
    )
    drops = (
        "kube_router_policy_drops_total",
        frozenset(
            {
                "namespace": "x",
                "pod": "a",
                "direction": "ingress",
                "verdict": "refused",
            }.items()
        ),
    )

    def counted() -> tuple[float, float] | None:
        found = scraped(cluster, "node1")
        return (found[hits], found[drops]) if hits in found and drops in found else None

    # From then on they count; a scrape reads the kernel every 15 s.
    before = cluster.eventually(counted, "the policy and the pod are counted")
    (address, *_) = policies.addresses["x/a"]
    friend, foe = (probes.Probe(f"{each}/a", "TCP", address, 80) for each in "yz")
    for _ in range(PACKETS):
        answers = policies.prober.ask([friend, foe])
        assert answers[friend].outcome == "open"
        assert answers[foe].outcome != "open"

    def has_grown() -> bool:
        now = counted()
        return now is not None and all(
            new >= old + PACKETS for new, old in zip(now, before, strict=True)
        )

    cluster.eventually(has_grown, "the packets are counted")
    # Nobody else sent anything to these pods, but for what was sent a second time.
    now = counted()
    assert now is not None
    assert all(new <= old + 4 * PACKETS for new, old in zip(now, before, strict=True))
    policies.set(policies.state({}, {}))
    cluster.wait()


def test_an_agent_measures(cluster: Any) -> None:
    """After the policy above, which was written by agents that may have found all else there."""
    found = scraped(cluster, "node1")

    def total(name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(
            value
            for (each, its), value in found.items()
            if each == f"kube_router_{name}" and wanted <= its
        )

    loops = [*cluster.ready("node1")["loops"]]
    for loop in loops:
        assert total("controller_turns_total", loop=loop) > 0
        assert total("controller_ready", loop=loop) == 1
    assert total("controller_programming_duration_seconds_count") > 0
    assert total("api_requests_total", method="GET", code="200") > 0
    assert total("api_request_duration_seconds_count", method="GET") > 0
    assert 0 < total("conntrack_entries") <= total("conntrack_entries_max")
    for name in ("iptables_v4_save", "iptables_v4_restore", "policy_ipset_v4_restore"):
        assert total(f"controller_{name}_time_count") > 0, name
        assert total(f"controller_{name}_time_sum") > 0, name
    if "service-proxy" in loops:
        assert total("ipvs_connection_table_buckets") > 0
