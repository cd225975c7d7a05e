"""The dashboard and the alerts ask for what agents export, and alerts come when they should."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser as promql
import pytest
import yaml

from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.observe.catalogue import METRICS
from kube_router_py.observe.metrics_help import page

MONITORING = Path(__file__).parents[3] / "manifests/monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())
PANELS = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
EVERYTHING = {**QUERIES, **{name: rule["expr"] for name, rule in ALERTS.items()}}

# What Prometheus and its configuration add to all, and the library's metrics of the process.
_OF_TARGETS = {"instance", "job"}
_OF_PROCESSES = {
    "up",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
_SUFFIXES = ("_bucket", "_sum", "_count")


def parsed(expr: str) -> Any:
    """Grafana's variables stand for durations and patterns."""
    return promql.parse(expr.replace("$__rate_interval", "5m"))


def nodes(expr: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield expr
    match expr:
        case promql.AggregateExpr():
            parts = [expr.expr]
        case promql.BinaryExpr():
            parts = [expr.lhs, expr.rhs]
        case promql.Call():
            parts = [*expr.args]
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            parts = [expr.expr]
        case promql.MatrixSelector():
            parts = [expr.vector_selector]
        case promql.VectorSelector() | promql.NumberLiteral() | promql.StringLiteral():
            parts = []
        case _:
            raise AssertionError(f"what is {expr!r}?")
    for part in parts:
        yield from nodes(part)


def selectors(expr: str) -> Iterator[Any]:
    for node in nodes(parsed(expr)):
        if isinstance(node, promql.VectorSelector):
            yield node


def catalogued(name: str) -> tuple[str, set[str]]:
    """The metric that has a sample of this name, and the sample's labels."""
    for suffix in _SUFFIXES:
        metric = METRICS.get(name.removesuffix(suffix))
        if name.endswith(suffix) and metric is not None and metric.kind == "histogram":
            return metric.name, {*metric.labels, *({"le"} if suffix == "_bucket" else ())}
    return name, set(METRICS[name].labels)


@pytest.mark.parametrize("expr", EVERYTHING.values(), ids=list(EVERYTHING))
def test_what_is_asked_for_is_in_the_catalogue(expr: str) -> None:
    found = [*selectors(expr)]
    assert found
    for selector in found:
        if selector.name in _OF_PROCESSES:
            continue
        name, labels = catalogued(selector.name)
        kind = METRICS[name].kind
        asked = {each.name for each in selector.matchers.matchers}
        assert asked <= labels | _OF_TARGETS, f"{selector.name} has no labels {asked - labels}"
        is_sample = selector.name != name or kind != "histogram"
        assert is_sample, f"{selector.name} is a histogram: ask for its buckets"


@pytest.mark.parametrize("expr", EVERYTHING.values(), ids=list(EVERYTHING))
def test_labels_that_are_grouped_by_are_there(expr: str) -> None:
    for node in nodes(parsed(expr)):
        if not isinstance(node, promql.AggregateExpr) or node.modifier is None:
            continue
        wanted = set(node.modifier.labels)
        for selector in (each for each in nodes(node.expr) if hasattr(each, "matchers")):
            labels = catalogued(selector.name)[1] | _OF_TARGETS
            assert wanted <= labels, f"{selector.name} has no labels {wanted - labels}"


@pytest.mark.parametrize("expr", EVERYTHING.values(), ids=list(EVERYTHING))
def test_counters_are_looked_at_by_their_growth_and_gauges_are_not(expr: str) -> None:
    for node in nodes(parsed(expr)):
        if isinstance(node, promql.Call) and node.func.name in ("rate", "increase"):
            (matrix,) = node.args
            name = matrix.vector_selector.name
            if name not in _OF_PROCESSES:
                assert METRICS[catalogued(name)[0]].kind != "gauge", name


def test_what_is_asked_for_is_exported_by_an_agent(full_agent: SimpleNamespace) -> None:
    text = full_agent.scrape()
    exported = {
        line.partition("{")[0].partition(" ")[0]
        for line in text.splitlines()
        if not line.startswith("#")
    }
    asked = {each.name for expr in EVERYTHING.values() for each in selectors(expr)}
    # The lab looks for those, where the kernel tracks connections.
    asked -= {"kube_router_conntrack_entries", "kube_router_conntrack_entries_max"}
    asked -= {"up"}  # Prometheus makes it
    assert asked - exported == set()
    assert len(asked) > 50


# --- the dashboard -------------------------------------------------------------------------------


def test_panels_have_a_place_and_a_number_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= 24 - place["w"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_rows_are_in_the_order_in_which_one_looks() -> None:
    assert [each["title"] for each in DASHBOARD["panels"] if each["type"] == "row"] == [
        "Overview",
        "Service proxy",
        "Network policies",
        "BGP and BFD",
        "Load balancer",
        "API server and caches",
        "Process",
    ]


def test_whoever_imports_it_chooses_the_prometheus() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for asker in (variables["instance"], *PANELS):
        assert asker["datasource"] == wanted
        for target in asker.get("targets", ()):
            assert target["datasource"] == wanted
    assert "id" not in DASHBOARD, "Grafana gives the number"
    assert DASHBOARD["uid"]


@pytest.mark.parametrize("expr", QUERIES.values(), ids=list(QUERIES))
def test_every_query_is_about_the_agents_that_were_chosen(expr: str) -> None:
    chosen = [
        any(str(each.value) == "$instance" for each in selector.matchers.matchers)
        for selector in selectors(expr)
        if not expr.endswith("and on (job, instance) kube_router_build_info")
    ]
    assert all(chosen)


def test_legends_use_labels_that_are_there() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            top = [n for n in nodes(parsed(target["expr"])) if isinstance(n, promql.AggregateExpr)]
            groups = [set(n.modifier.labels) for n in top if n.modifier is not None]
            labels = (
                groups[0]
                if groups
                else set.union(
                    _OF_TARGETS,
                    *(
                        catalogued(each.name)[1]
                        for each in selectors(target["expr"])
                        if each.name not in _OF_PROCESSES
                    ),
                )
            )
            assert wanted <= labels, f"{panel['title']}: {target['legendFormat']}"


# --- the alerts ----------------------------------------------------------------------------------


def test_prometheus_takes_the_rules() -> None:
    path = MONITORING / "rules.yaml"
    done = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert name.startswith("KubeRouter")
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert all(text.strip() for text in rule["annotations"].values())


def test_the_operator_gets_the_same_rules() -> None:
    found = {
        each["kind"]: each for each in render_kustomization(MONITORING / "prometheus-operator")
    }
    assert found["PrometheusRule"]["spec"] == RULES
    labels = {"app.kubernetes.io/name": "kube-router-py"}
    assert found["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    base = render_kustomization(MONITORING.parent / "base")
    (agents,) = [each for each in base if each["kind"] == "DaemonSet"]
    assert labels.items() <= agents["spec"]["template"]["metadata"]["labels"].items()
    assert agents["metadata"]["namespace"] == found["PodMonitor"]["metadata"]["namespace"]


def test_what_policies_metrics_say_is_not_taken_for_the_agents() -> None:
    """The operator gives each target these labels, and renames a metric's own of the same name."""
    of_targets = {"namespace", "pod", "container", "endpoint", "job", "instance"}
    both = {label for metric in METRICS.values() for label in metric.labels} & of_targets
    assert both == {"namespace", "pod"}
    found = render_kustomization(MONITORING / "prometheus-operator")
    (monitor,) = [each for each in found if each["kind"] == "PodMonitor"]
    assert all(each.get("honorLabels") for each in monitor["spec"]["podMetricsEndpoints"])
    (job,) = yaml.safe_load(page().split("```yaml\n")[1].split("```")[0])["scrape_configs"]
    assert job["honor_labels"]
    # By these the agents are found that do not answer.
    pattern = re.escape("up{job=~") + '"(.+)"'
    match = re.match(pattern, ALERTS["KubeRouterAgentDown"]["expr"])
    assert match is not None
    place = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    for name in (place, job["job_name"]):
        assert re.fullmatch(match[1], name), name


def series(name: str, /, **labels: str) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in {"instance": "a", **labels}.items())
    return f"{name}{{{pairs}}}"


A, B = {"instance": "a"}, {"instance": "b"}
SESSION = {"address": "192.0.2.1", "type": "internal", "family": "ipv4"}
POOL = {"pool": "default", "family": "ipv4"}
DROP = {"namespace": "default", "pod": "web", "direction": "ingress"}
LATE = "kube_router_network_programming_duration_seconds_bucket"

Case = tuple[str, Mapping[str, str], list[Mapping[str, str]]]
# When, from what (promtool's notation, a value a minute), and the labels with which the alert
# fires. The series of instance b, or of other labels, are well.
CASES: dict[str, Case] = {
    "KubeRouterNoAgent": ("11m", {}, [{}]),
    "KubeRouterAgentDown": (
        "10m",
        {
            series("up", job="kube-system/kube-router-py"): "0x30",
            series("up", **B, job="kube-system/kube-router-py"): "1 0x3 1x30",
            series("up", job="kube-system/another"): "0x30",
        },
        [{**A, "job": "kube-system/kube-router-py"}],
    ),
    "KubeRouterScrapeIncomplete": (
        "20m",
        {
            series("kube_router_scrape_failures_total", collector="sessions"): "0+1x30",
            series("kube_router_scrape_failures_total", collector="traffic"): "0 1x30",
        },
        [{**A, "collector": "sessions"}],
    ),
    "KubeRouterNotReady": (
        "15m",
        {
            series("kube_router_controller_ready", loop="router"): "0x30",
            series("kube_router_controller_ready", **B, loop="router"): "1 0x8 1x30",
        },
        [{**A, "loop": "router"}],
    ),
    "KubeRouterLoopStuck": (
        "70m",
        {
            series("kube_router_controller_oldest_dirty_seconds", **B, loop="router"): "0x80",
            series("kube_router_controller_oldest_dirty_seconds", loop="firewall"): "0+60x80",
        },
        [{**A, "loop": "firewall"}],
    ),
    "KubeRouterProblems": (
        "20m",
        {
            series("kube_router_problems", loop="firewall", kind="NetworkPolicy"): "2x30",
            series("kube_router_problems", **B, loop="firewall", kind="Node"): "1x5 _x30",
        },
        [{**A, "loop": "firewall", "kind": "NetworkPolicy"}],
    ),
    "KubeRouterRestarts": (
        "30m",
        {
            series("kube_router_build_info", job="k"): "1x60",
            series("kube_router_build_info", **B, job="k"): "1x60",
            series("process_start_time_seconds", job="k"): "100x5 200x5 300x5 400x5 500x30",
            series("process_start_time_seconds", **B, job="k"): "100x5 200x60",
            # Another exporter of the same node, named after it, too.
            series("process_start_time_seconds", **B, job="x"): "100 200 300 400 500 600x60",
        },
        [{**A, "job": "k"}],
    ),
    "KubeRouterLoopRestarts": (
        "30m",
        {
            series("kube_router_controller_restarts_total", loop="router"): "0+1x30",
            series("kube_router_controller_restarts_total", **B, loop="router"): "0 1x30",
        },
        [{**A, "loop": "router"}],
    ),
    "KubeRouterDrift": (
        "60m",
        {
            series(
                "kube_router_drift_repairs_total", loop="service-proxy", adapter="ipvs"
            ): "0+1x60",
            series(
                "kube_router_drift_repairs_total", loop="service-proxy", adapter="links"
            ): "0 3x60",
        },
        [{**A, "loop": "service-proxy", "adapter": "ipvs"}],
    ),
    "KubeRouterApiServerSilent": (
        "15m",
        {
            series("kube_router_cache_stale_seconds", kind="Node"): "0+60x30",
            series("kube_router_cache_stale_seconds", kind="Pod"): "50x30",
        },
        [{**A, "kind": "Node"}],
    ),
    "KubeRouterApiRequestsFail": (
        "30m",
        {
            series("kube_router_api_requests_total", method="GET", code="200"): "0+1x30",
            series("kube_router_api_requests_total", method="GET", code="none"): "0+1x30",
            series("kube_router_api_requests_total", **B, method="GET", code="200"): "0+9x30",
            series("kube_router_api_requests_total", **B, method="GET", code="404"): "0+9x30",
            series("kube_router_api_requests_total", **B, method="GET", code="503"): "0+1x30",
        },
        [A],
    ),
    "KubeRouterProgrammingSlow": (
        "30m",
        {
            series(LATE, le="30"): "0x30",
            series(LATE, le="60"): "0+10x30",
            series(LATE, le="+Inf"): "0+10x30",
            series(LATE, **B, le="30"): "0+10x30",
            series(LATE, **B, le="60"): "0+10x30",
            series(LATE, **B, le="+Inf"): "0+10x30",
        },
        [A],
    ),
    "KubeRouterAddressesRefused": (
        "15m",
        {
            series("kube_router_refused_addresses"): "2x30",
            series("kube_router_refused_addresses", **B): "0x30",
        },
        [A],
    ),
    "KubeRouterConntrackNearlyFull": (
        "10m",
        {
            series("kube_router_conntrack_entries"): "95x30",
            series("kube_router_conntrack_entries_max"): "100x30",
            series("kube_router_conntrack_entries", **B): "85x30",
            series("kube_router_conntrack_entries_max", **B): "100x30",
        },
        [A],
    ),
    "KubeRouterPolicyDrops": (
        "30m",
        {
            series("kube_router_policy_drops_total", **DROP, verdict="refused"): "0+900x30",
            series(
                "kube_router_policy_drops_total", **{**DROP, "pod": "db"}, verdict="audited"
            ): "0+900x30",
            series(
                "kube_router_policy_drops_total", **{**DROP, "pod": "dns"}, verdict="refused"
            ): "0+60x30",
        },
        [DROP],
    ),
    "KubeRouterFrrDown": (
        "10m",
        {series("kube_router_frr_up"): "0x30", series("kube_router_frr_up", **B): "1x30"},
        [A],
    ),
    "KubeRouterFrrRestarts": (
        "20m",
        {
            series("kube_router_frr_starts_total"): "0+1x30",
            series("kube_router_frr_starts_total", **B): "0 1x30",
        },
        [A],
    ),
    "KubeRouterBgpSessionDown": (
        "10m",
        {
            series("kube_router_bgp_peer_established", **SESSION): "0x30",
            series("kube_router_bgp_peer_established", **B, **SESSION): "1 0x3 1x30",
        },
        [{**A, **SESSION}],
    ),
    "KubeRouterBgpSessionFlaps": (
        "20m",
        {
            series("kube_router_bgp_peer_connections_dropped_total", **SESSION): "0+1x30",
            series("kube_router_bgp_peer_connections_dropped_total", **B, **SESSION): "0 1x30",
        },
        [{**A, **SESSION}],
    ),
    "KubeRouterBfdSessionFlaps": (
        "20m",
        {
            series("kube_router_bfd_session_up", address="192.0.2.1"): "1 0 1 0 1 0 1 0 1x30",
            series("kube_router_bfd_session_up", address="192.0.2.2"): "1 0 1x30",
        },
        [{**A, "address": "192.0.2.1"}],
    ),
    "KubeRouterBfdSessionDown": (
        "10m",
        {
            series("kube_router_bfd_session_up", address="192.0.2.1"): "0x30",
            series("kube_router_bfd_session_up", address="192.0.2.2"): "1x30",
        },
        [{**A, "address": "192.0.2.1"}],
    ),
    "KubeRouterPoolNearlyFull": (
        "15m",
        {
            series("kube_router_loadbalancer_pool_addresses", **POOL): "100x30",
            series("kube_router_loadbalancer_pool_addresses_in_use", **POOL): "95x30",
            series("kube_router_loadbalancer_pool_addresses", pool="b", family="ipv6"): "100x30",
            series(
                "kube_router_loadbalancer_pool_addresses_in_use", pool="b", family="ipv6"
            ): "9x30",
            # One that was made for one Service.
            series("kube_router_loadbalancer_pool_addresses", pool="c", family="ipv4"): "1x30",
            series(
                "kube_router_loadbalancer_pool_addresses_in_use", pool="c", family="ipv4"
            ): "1x30",
        },
        [POOL],
    ),
    "KubeRouterPoolFull": (
        "10m",
        {
            series("kube_router_loadbalancer_pool_addresses_free", **POOL): "1 0x30",
            series("kube_router_loadbalancer_pool_addresses_free", pool="b", family="ipv6"): "1x30",
        },
        [POOL],
    ),
    "KubeRouterServicesWaiting": (
        "15m",
        {
            series("kube_router_loadbalancer_services_waiting"): "0x30",
            series("kube_router_loadbalancer_services_waiting", **B): "2x30",
        },
        [{}],
    ),
    "KubeRouterNoLeader": (
        "5m",
        {
            series("kube_router_loadbalancer_leader"): "0x30",
            series("kube_router_loadbalancer_leader", **B): "0x30",
        },
        [{}],
    ),
    "KubeRouterTwoLeaders": (
        "5m",
        {
            series("kube_router_loadbalancer_leader"): "1x30",
            series("kube_router_loadbalancer_leader", **B): "1x30",
        },
        [{}],
    ),
    "KubeRouterLayer2Fenced": (
        "5m",
        {
            series("kube_router_layer2_fenced"): "1x30",
            series("kube_router_layer2_fenced", **B): "0x30",
        },
        [A],
    ),
    "KubeRouterAddressClaimed": (
        "10m",
        {
            series("kube_router_layer2_claims_total"): "0x5 1x30",
            series("kube_router_layer2_claims_total", **B): "7x30",
        },
        [A],
    ),
}
WELL = {
    series("kube_router_build_info", job="kube-router-py"): "1x120",
    series("up", job="kube-router-py"): "1x60 0x2 1x60",
    series("process_start_time_seconds", job="kube-router-py"): "100x60 200x60",
    # It rests: nothing changes, and it compares once an hour (--iptables-sync-period=1h).
    series("kube_router_controller_turns_total", loop="firewall"): "5x50 6x60",
    series("kube_router_controller_oldest_dirty_seconds", loop="firewall"): "0x50 9 0x60",
    series("kube_router_controller_ready", loop="firewall"): "1x120",
    series("kube_router_scrape_failures_total", collector="sessions"): "0x120",
    series("kube_router_cache_stale_seconds", kind="Node"): "60x120",
    series("kube_router_frr_up"): "1x120",
    series("kube_router_bgp_peer_established", **SESSION): "1x60 0x2 1x60",
    series("kube_router_bgp_peer_connections_dropped_total", **SESSION): "0x60 1x60",
    series("kube_router_loadbalancer_leader"): "1x120",
    series("kube_router_loadbalancer_leader", **B): "0x120",
}


def test_every_alert_is_tried() -> None:
    assert CASES.keys() == ALERTS.keys()


def firing(alert: str) -> str:
    return f'ALERTS{{alertname="{alert}",alertstate="firing"}}'


def samples(alert: str, expected: list[Mapping[str, str]]) -> list[dict[str, Any]]:
    """As promtool wants them; of each alert with the severity that its rule gives it."""
    fixed = {"alertname": alert, "alertstate": "firing", **ALERTS[alert]["labels"]}
    found = []
    for labels in expected:
        pairs = ",".join(f'{key}="{value}"' for key, value in {**fixed, **labels}.items())
        found.append({"labels": f"ALERTS{{{pairs}}}", "value": 1})
    return found


def run_promtool(path: Path, tests: list[dict[str, Any]]) -> str:
    """Its complaints; empty if all is as expected."""
    document = {
        "rule_files": [str(MONITORING / "rules.yaml")],
        "evaluation_interval": "1m",
        "tests": tests,
    }
    path.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=100
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def trial(alert: str, given: Mapping[str, str], *when: tuple[str, list[Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "name": alert,
        "input_series": [{"series": key, "values": value} for key, value in given.items()],
        "promql_expr_test": [
            {"expr": firing(alert), "eval_time": at, "exp_samples": expected}
            for at, expected in when
        ],
    }


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    tests = []
    for alert, (at, given, expected) in CASES.items():
        when = [(at, samples(alert, expected))]
        if "for" in ALERTS[alert]:
            when.insert(0, ("1m", []))  # what it begins with may pass
        tests.append(trial(alert, given, *when))
    assert run_promtool(tmp_path / "fires.yaml", tests) == ""


def test_where_all_is_well_there_is_no_alert(tmp_path: Path) -> None:
    well = trial("KubeRouterNoAgent", WELL)
    well["promql_expr_test"] = [{"expr": "ALERTS", "eval_time": "110m", "exp_samples": []}]
    assert run_promtool(tmp_path / "well.yaml", [well]) == ""


def test_promtool_finds_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    wrong = trial("KubeRouterFrrDown", {}, ("10m", samples("KubeRouterFrrDown", [A])))
    assert "KubeRouterFrrDown" in run_promtool(tmp_path / "wrong.yaml", [wrong])
