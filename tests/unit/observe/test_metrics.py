"""Every metric of the catalogue is exported, with its labels, and explained; and none besides."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kube_router_py import routing_part
from kube_router_py.adapters import open_ipvs
from kube_router_py.kernel import ipvs, rule_counters
from kube_router_py.kernel.program import Finished
from kube_router_py.loop_model import Turn
from kube_router_py.observe.catalogue import METRICS, PREFIX, SECTIONS
from kube_router_py.observe.catalogue.model import Metric, Section, by_name
from kube_router_py.observe.collecting import Collectors
from kube_router_py.observe.drift import DriftRepairs
from kube_router_py.observe.exposition import family, single
from kube_router_py.observe.metrics_help import page

_DOCS = Path(__file__).parents[3] / "docs"
# A scrape before the kernel tracks connections, or where nothing is wrong, lacks these.
_OPTIONAL = {"kube_router_conntrack_entries", "kube_router_conntrack_entries_max"}
# Of kube-router, as its metrics.go names them.
_OF_KUBE_ROUTER = """
service_total_connections service_packets_in service_packets_out service_bytes_in service_bytes_out
service_pps_in service_pps_out service_cps service_bps_in service_bps_out controller_ipvs_services
bgp_peer_info build_info controller_bgp_advertisements_received controller_bgp_advertisements_sent
controller_policy_chains controller_policy_ipsets host_routes_synced host_routes_added
host_routes_removed controller_iptables_sync_time controller_iptables_v4_save_time
controller_iptables_v6_save_time controller_iptables_v4_restore_time
controller_iptables_v6_restore_time controller_policy_chains_sync_time
controller_policy_ipset_v4_restore_time controller_policy_ipset_v6_restore_time
controller_ipvs_services_sync_time controller_ipvs_metrics_export_time controller_routes_sync_time
controller_bgp_internal_peers_sync_time host_routes_sync_time
"""

_COUNTERS_OF_KUBE_ROUTER = """
service_total_connections service_packets_in service_packets_out service_bytes_in service_bytes_out
controller_bgp_advertisements_received controller_bgp_advertisements_sent host_routes_added
host_routes_removed
"""


def types(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (kube_router_\w+) (\w+)$", text, re.MULTILINE))


def samples_of(metric: Metric, text: str) -> list[str]:
    suffix = "_count" if metric.kind == "histogram" else ""
    return re.findall(rf"^{metric.name}{suffix}(?:\{{(.*)\}})? \S+$", text, re.MULTILINE)


def test_an_agent_exports_the_catalogue_and_nothing_else(full_agent: SimpleNamespace) -> None:
    text = full_agent.scrape()
    exported = types(text)
    wanted = {name: metric.kind for name, metric in METRICS.items()}
    assert {name: kind for name, kind in exported.items() if name not in _OPTIONAL} == {
        name: kind for name, kind in wanted.items() if name not in _OPTIONAL
    }
    for metric in METRICS.values():
        assert f"# HELP {metric.name} {metric.plain_help}\n" in text or metric.name in _OPTIONAL
        samples = samples_of(metric, text)
        assert samples or metric.name in _OPTIONAL, f"{metric.name} has no value"
        for labels in samples:
            assert tuple(sorted(re.findall(r'(\w+)="', labels))) == tuple(sorted(metric.labels))


def test_what_parts_count_is_in_the_catalogue(full_agent: SimpleNamespace) -> None:
    numbers = full_agent.agent._parts.numbers()
    assert numbers
    for name in numbers:
        metric = METRICS[PREFIX + name]
        assert metric.kind == ("counter" if name.endswith("_total") else "gauge"), name
        assert metric.labels == ()


def test_a_scrape_is_what_prometheus_reads(full_agent: SimpleNamespace) -> None:
    families = list(text_string_to_metric_families(full_agent.scrape()))
    names = [each.name for each in families]
    assert len(names) == len(set(names))
    assert all(each.documentation for each in families if each.name.startswith(PREFIX))
    seen = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for each in families
        for sample in each.samples
    ]
    assert len(seen) == len(set(seen))


def test_names_of_kube_router_are_there() -> None:
    assert {PREFIX + name for name in _OF_KUBE_ROUTER.split()} - METRICS.keys() == set()


def test_values_are_measured(full_agent: SimpleNamespace) -> None:
    text = full_agent.scrape()
    for line in (
        'kube_router_problems{loop="service-proxy",kind="Service"} 1',
        'kube_router_api_requests_total{method="GET",code="200"} 1',
        'kube_router_cache_errors_total{kind="Node",reason="refused"} 1',
        'kube_router_ipvs_connections{state="inactive"} 2',
        'kube_router_service_active_connections{svc_namespace="default",service_name="web",'
        'protocol="tcp",port="80"} 1',
        "kube_router_controller_policy_chains 1",
        'kube_router_controller_bgp_advertisements_sent{type="pod-route"} 1',
        "kube_router_controller_bgp_advertisements_received 3",
        'kube_router_policy_drops_total{namespace="default",pod="web",direction="ingress",'
        'verdict="refused"} 0',
    ):
        assert f"\n{line}\n" in text, line
    for loop in ("service-proxy", "firewall", "router"):
        waited = (
            rf'^kube_router_controller_programming_duration_seconds_count{{loop="{loop}"}} (.*)$'
        )
        (count,) = re.findall(waited, text, re.MULTILINE)
        assert float(count) >= 1, loop
    for name in (
        "controller_policy_ipset_v4_restore_time",
        "controller_policy_chains_sync_time",
        "controller_bgp_internal_peers_sync_time",
        "host_routes_sync_time",
    ):
        (count,) = re.findall(rf"^kube_router_{name}_count (.*)$", text, re.MULTILINE)
        assert float(count) >= 1, name


def test_the_page_is_made_from_the_catalogue() -> None:
    wanted = page()
    assert (_DOCS / "metrics.md").read_text() == wanted, (
        "run: python -m kube_router_py.observe.metrics_help > docs/metrics.md"
    )
    for metric in METRICS.values():
        assert f"| `{metric.name}" in wanted


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_what_is_said_of_a_metric_fits(metric: Metric) -> None:
    assert metric.kind in ("counter", "gauge", "histogram")
    assert re.fullmatch(r"kube_router_[a-z0-9_]+", metric.name)
    assert metric.help == metric.help.strip()
    assert not metric.help.endswith(".") or metric.help.endswith(".)")
    assert "|" not in metric.help, "it would end the cell of the table"
    assert "\n" not in metric.help
    assert "`" not in metric.plain_help
    assert "](" not in metric.plain_help
    if metric.name.endswith("_total"):
        assert metric.kind == "counter"


def test_a_metric_is_in_the_catalogue_once() -> None:
    one = Metric("kube_router_one", "gauge", "one")
    with pytest.raises(ValueError, match="kube_router_one is in the catalogue twice"):
        by_name((Section("A", (one,)), Section("B", (Metric(*structs_of(one)),))))
    assert sum(len(each.metrics) for each in SECTIONS) == len(METRICS)


def structs_of(metric: Metric) -> Iterator[str]:
    yield from (metric.name, metric.kind, metric.help)


def test_samples_are_escaped_and_whole_numbers_stay_exact() -> None:
    (_, sample) = family("cache_objects", [(('a"b\\c\nd',), 3)])
    assert sample == 'kube_router_cache_objects{kind="a\\"b\\\\c\\nd"} 3\n'
    assert single("policy_series_dropped", 2**53 - 1).endswith(" 9007199254740991\n")
    assert single("policy_series_dropped", 2.0**64).endswith(" 1.8446744073709552e+19\n")
    assert single("policy_series_dropped", 0.1).endswith(" 0.1\n")
    with pytest.raises(ValueError, match="zip"):
        "".join(family("cache_objects", [(("a", "b"), 1)]))
    with pytest.raises(KeyError):
        single("nobody_knows", 1)


class Writes:
    def __init__(self) -> None:
        self.counts = {"ipvs": 0, "links": 0}

    def __call__(self) -> dict[str, int]:
        return dict(self.counts)


def turn(*, full: bool = True, keys: int = 0, failed: int = 0, error: str = "") -> Turn:
    return Turn("service-proxy", 0.1, full, keys, failed, error)


def test_drift_is_what_comparisons_change_of_themselves() -> None:
    writes = Writes()
    drift = DriftRepairs({"service-proxy": writes})

    def after(count: int, each: Turn) -> int:
        writes.counts["ipvs"] += count
        drift.follow(each)
        return drift.repairs()["service-proxy", "ipvs"]

    assert after(100, turn()) == 0, "the first turn makes all there is"
    assert after(5, turn(full=False, keys=1)) == 0
    assert after(5, turn(keys=1)) == 0, "an object had changed"
    assert after(0, turn()) == 0
    assert after(3, turn()) == 3
    assert after(2, turn(failed=1)) == 5
    assert after(7, turn()) == 5, "what failed before is made up for"
    assert after(1, turn(error="boom")) == 6
    assert after(9, turn()) == 6
    assert after(1, turn()) == 7
    assert drift.repairs()["service-proxy", "links"] == 0
    drift.follow(Turn("layer2", 0.1, True, 0, 0))  # it has no adapters
    assert {loop for loop, _ in drift.repairs()} == {"service-proxy"}


def test_it_is_of_the_version_that_every_scraper_knows(full_agent: SimpleNamespace) -> None:
    answer = full_agent.agent._observers[0].__self__.page()
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert re.findall(rb"^[^#{ ]*[^a-zA-Z0-9_:#{ ]", answer.body, re.MULTILINE) == []


def test_a_collector_that_fails_costs_its_own_metrics_alone(
    full_agent: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(variant: str, family: str, chains: Sequence[str]) -> Mapping[str, list[int]]:
        raise RuntimeError("a table like no other")

    monkeypatch.setattr(rule_counters, "read_packets", broken)
    first, second = full_agent.scrape(), full_agent.scrape()
    assert "kube_router_policy_hits_total" not in first
    for name in ("frr_up", "service_cps", "cache_objects", "controller_ready", "build_info"):
        assert f"\nkube_router_{name}" in first, name
    assert '\nkube_router_scrape_failures_total{collector="policies"} 1\n' in first
    assert '\nkube_router_scrape_failures_total{collector="sessions"} 0\n' in first
    # Read anew no more than every 15 s, and then as it is.
    assert "kube_router_policy_hits_total" in second
    assert caplog.text.count("metrics not collected name=policies") == 1


def test_the_same_failure_is_told_once_until_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    failing = [True]

    def collect() -> bytes:
        if failing[0]:
            raise OSError("gone")
        return b"here 1\n"

    collectors = Collectors({"one": collect, "two": lambda: b"two 2\n"})
    for is_failing, times in ((True, 1), (True, 1), (False, 1), (True, 2)):
        failing[0] = is_failing
        text = collectors.text()
        assert b"two 2\n" in text
        assert (b"here 1\n" in text) is not is_failing
        assert caplog.text.count("metrics not collected") == times
    assert b'kube_router_scrape_failures_total{collector="one"} 3\n' in text


def test_what_nobody_counts_does_not_end_the_turn_in_which_it_is_done(
    full_agent: SimpleNamespace,
) -> None:
    metrics = full_agent.agent._observers[0].__self__
    metrics.on_done("something_new", 0.1)
    metrics.on_turn(Turn("a loop of tomorrow", 0.1, True, 0, 0))
    assert 'loop="a loop of tomorrow"' in full_agent.scrape()


def test_who_hangs_is_given_up_before_prometheus_gives_the_scrape_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience: list[float] = []
    monkeypatch.setattr(ipvs, "NetlinkIpvs", lambda *, timeout_s: patience.append(timeout_s))
    open_ipvs()
    monkeypatch.setattr(
        rule_counters,
        "run",
        lambda *_, timeout_s: patience.append(timeout_s) or Finished(0, "", ""),
    )
    rule_counters.read_packets("nft", "inet", ())
    assert len(patience) == 2
    # FRR's daemons are asked one after the other, and the first that hangs is the last.
    assert sum(patience) + routing_part._SCRAPE_S < 10


def test_counters_have_the_name_of_counters_unless_kube_router_named_them() -> None:
    counters = {name for name, metric in METRICS.items() if metric.kind == "counter"}
    wrong = {name for name in counters if not name.endswith("_total")}
    assert wrong == {PREFIX + name for name in _COUNTERS_OF_KUBE_ROUTER.split()}
    for name in METRICS:
        assert not re.search(r"_(ms|us|milliseconds|minutes|kb|mb)(_|$)", name), name
