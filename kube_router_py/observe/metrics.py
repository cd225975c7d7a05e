"""Prometheus metrics. Imported only where ``--metrics-port`` is given: the library costs 60 ms.

Names begin with ``kube_router_``; those that kube-router has, too, keep its names.
"""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kube_router_py.cluster.cache import Cache
from kube_router_py.loop_model import Turn
from kube_router_py.observe.health import HasStatus
from kube_router_py.observe.serve import Answer

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
# As kube-proxy's: 0.25 s, 0.5 s, then each second to 59, each 5 to 115, each 30 to 300.
_PROGRAMMING_BUCKETS = (
    *(0.25, 0.5),
    *map(float, range(1, 60)),
    *map(float, range(60, 116, 5)),
    *map(float, range(120, 301, 30)),
)
Numbers = Callable[[], Mapping[str, float]]


class Metrics:
    """The agent's metrics. ``on_turn`` is each loop's observer, ``page`` what a scrape gets.

    ``gauges`` gives further values at the moment of a scrape, by name without the prefix (those
    that end in ``_total`` are counters);
    ``writes`` the number of changes sent to the kernel so far, by adapter; ``traffic`` that of
    Services and ``more`` what else follows, in Prometheus' text format.
    """

    def __init__(
        self,
        *,
        version: str,
        cache: Cache,
        loops: Sequence[HasStatus],
        gauges: Numbers,
        writes: Numbers,
        traffic: Callable[[], bytes] = bytes,
        more: Callable[[], bytes] = bytes,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Collector(version, cache, loops, gauges, writes))
        self._traffic, self._more = traffic, more
        self._turn_seconds = Histogram(
            "kube_router_controller_turn_seconds",
            "Duration of turns, by loop; full: the kernel was read back",
            ("loop", "full"),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._ipvs_sync = Histogram(
            "kube_router_controller_ipvs_services_sync_time",
            "Duration of the service proxy's turns in seconds",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._iptables_sync = Histogram(
            "kube_router_controller_iptables_sync_time",
            "Duration of the firewall's turns in seconds",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._routes_sync = Histogram(
            "kube_router_controller_routes_sync_time",
            "Duration of the route controller's turns in seconds",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._export = Histogram(
            "kube_router_controller_ipvs_metrics_export_time",
            "Duration of reading the traffic of Services in seconds",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._programming = Histogram(
            "kube_router_network_programming_duration_seconds",
            "From a change of endpoints (last-change-trigger-time) to this node's kernel",
            registry=self._registry,
            buckets=_PROGRAMMING_BUCKETS,
        )

    def on_programmed(self, seconds: float) -> None:
        """A change of endpoints is in the kernel, so long after it happened."""
        self._programming.observe(seconds)

    def on_turn(self, turn: Turn) -> None:
        full = "true" if turn.full else "false"
        self._turn_seconds.labels(loop=turn.loop, full=full).observe(turn.duration_s)
        if turn.loop == "service-proxy":
            self._ipvs_sync.observe(turn.duration_s)
        elif turn.loop == "firewall":
            self._iptables_sync.observe(turn.duration_s)
        elif turn.loop == "router":
            self._routes_sync.observe(turn.duration_s)

    def page(self) -> Answer:
        with self._export.time():
            traffic = self._traffic()
        text = generate_latest(self._registry) + traffic + self._more()
        return Answer(200, CONTENT_TYPE_LATEST, text)


class _Collector(Collector):
    """Reads caches and loops at the moment of a scrape, so that nobody has to push."""

    def __init__(
        self,
        version: str,
        cache: Cache,
        loops: Sequence[HasStatus],
        gauges: Numbers,
        writes: Numbers,
    ) -> None:
        self._version = version
        self._cache = cache
        self._loops = loops
        self._gauges = gauges
        self._writes = writes

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            "kube_router_build_info", "Always 1; labels tell", labels=("version", "pythonversion")
        )
        build.add_metric((self._version, platform.python_version()), 1)
        yield build
        for name, value in sorted(self._gauges().items()):
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"kube_router_{name}", "See docs/metrics.md", value=value)
        writes = CounterMetricFamily(
            "kube_router_kernel_writes", "Changes sent to the kernel", labels=("adapter",)
        )
        for adapter, number in sorted(self._writes().items()):
            writes.add_metric((adapter,), number)
        yield writes
        yield from self._caches()
        yield from self._turns()

    def _caches(self) -> Iterable[Metric]:
        objects = _gauge("cache_objects", "Objects in the cache", "kind")
        synced = _gauge("cache_synced", "1 once the kind was listed completely", "kind")
        stale = _gauge("cache_stale_seconds", "Since the API server last said anything", "kind")
        problems = _gauge("cache_problems", "Objects that cannot be decoded", "kind")
        events = _counter("cache_watch_events", "Events received, bookmarks included", "kind")
        changes = _counter("cache_changes", "Changes told to the loops", "kind")
        relists = _counter("cache_relists", "Complete lists", "kind")
        errors = _counter("cache_errors", "Failures of lists and watches", "kind", "reason")
        for kind, stats in self._cache.stats().items():
            name = (kind.__name__,)
            objects.add_metric(name, stats.objects)
            synced.add_metric(name, stats.synced)
            if stats.stale_s is not None:
                stale.add_metric(name, stats.stale_s)
            problems.add_metric(name, stats.problems)
            events.add_metric(name, stats.watch_events)
            changes.add_metric(name, stats.changes)
            relists.add_metric(name, stats.relists)
            for reason, number in stats.errors.items():
                errors.add_metric((kind.__name__, reason), number)
        yield from (objects, synced, stale, problems, events, changes, relists, errors)

    def _turns(self) -> Iterable[Metric]:
        turns = _counter("controller_turns", "Turns", "loop")
        successes = _counter("controller_successes", "Turns with nothing failing", "loop")
        restarts = _counter("controller_restarts", "Restarts after an escaped exception", "loop")
        ready = _gauge("controller_ready", "As /readyz", "loop")
        dirty = _gauge("controller_dirty_keys", "Keys waiting, failing ones included", "loop")
        problems = _gauge("controller_problems", "Objects with something wrong", "loop")
        for loop in self._loops:
            status = loop.status()
            name = (status.name,)
            turns.add_metric(name, status.turns)
            successes.add_metric(name, status.successes)
            restarts.add_metric(name, status.restarts)
            ready.add_metric(name, status.ready)
            dirty.add_metric(name, status.dirty)
            problems.add_metric(name, len(status.problems))
        yield from (turns, successes, restarts, ready, dirty, problems)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kube_router_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"kube_router_{name}", text, labels=labels)
