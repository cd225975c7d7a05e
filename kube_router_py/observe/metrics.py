"""Prometheus metrics. Imported only where ``--metrics-port`` is given: the library costs 60 ms.

What there is, and what it means, says ``catalogue``. Names begin with ``kube_router_``; those that
kube-router has, too, keep its names.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

from kube_router_py.cluster.cache import Cache
from kube_router_py.loop_model import Turn
from kube_router_py.observe import agent_samples
from kube_router_py.observe.catalogue import METRICS, PREFIX
from kube_router_py.observe.collecting import Collect, Collectors
from kube_router_py.observe.connections import tracked_text
from kube_router_py.observe.drift import DriftRepairs
from kube_router_py.observe.exposition import CONTENT_TYPE
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
# kube-router's names of what loops do, by loop.
_TURNS = {
    "service-proxy": "controller_ipvs_services_sync_time",
    "firewall": "controller_iptables_sync_time",
    "router": "controller_routes_sync_time",
}
# What adapters and parts tell of, and kube-router's names of it.
_DONE = {
    "iptables_v4_save": "controller_iptables_v4_save_time",
    "iptables_v6_save": "controller_iptables_v6_save_time",
    "iptables_v4_restore": "controller_iptables_v4_restore_time",
    "iptables_v6_restore": "controller_iptables_v6_restore_time",
    "ipset_v4_restore": "controller_policy_ipset_v4_restore_time",
    "ipset_v6_restore": "controller_policy_ipset_v6_restore_time",
    "policy_chains_sync": "controller_policy_chains_sync_time",
    "bgp_internal_peers_sync": "controller_bgp_internal_peers_sync_time",
    "host_routes_sync": "host_routes_sync_time",
}
Numbers = Callable[[], Mapping[str, float]]


class Metrics:
    """The agent's metrics. ``on_turn`` is each loop's observer, ``on_done`` that of parts and
    adapters, ``on_request`` the API client's; ``page`` is what a scrape gets.

    ``gauges`` gives further values at the moment of a scrape, by name without the prefix; those
    that nobody counts are 0. ``writes`` gives the number of changes sent to the kernel so far, by
    loop and adapter; ``traffic`` that of Services and ``more``, by name, what else follows, in
    Prometheus' text format. Each of these may fail without the others.
    """

    def __init__(
        self,
        *,
        version: str,
        cache: Cache,
        loops: Sequence[HasStatus],
        gauges: Numbers,
        writes: Mapping[str, Callable[[], Mapping[str, int]]],
        traffic: Callable[[], bytes] = bytes,
        more: Mapping[str, Collect] | None = None,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._version, self._cache, self._loops = version, cache, loops
        self._gauges, self._writes, self._traffic = gauges, writes, traffic
        self._drift = DriftRepairs(writes)
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        names = [loop.status().name for loop in loops]
        self._turn_seconds = self._histogram("controller_turn_seconds")
        self._waited = self._histogram("controller_programming_duration_seconds")
        for name in names:
            self._waited.labels(loop=name)
        self._turns = {name: self._histogram(_TURNS[name]) for name in names if name in _TURNS}
        self._done = {
            what: self._histogram(name)
            for what, name in _DONE.items()
            if ("router" if "bgp" in name or "host" in name else "firewall") in names
        }
        if "service-proxy" in names:
            self._export = self._histogram("controller_ipvs_metrics_export_time")
            self._programming = self._histogram(
                "network_programming_duration_seconds", _PROGRAMMING_BUCKETS
            )
        self._request_seconds = self._histogram("api_request_duration_seconds")
        own: dict[str, Collect] = {
            "durations": lambda: generate_latest(self._registry),
            "agent": self._agent,
            "caches": lambda: _text(agent_samples.of_caches(self._cache.stats())),
            "loops": self._of_loops,
            "values": lambda: _text(agent_samples.of_values(self._gauges())),
            "conntrack": tracked_text,
        }
        if "service-proxy" in names:
            own["traffic"] = self._traffic_timed
        self._collectors = Collectors({**own, **(more or {})})

    def _histogram(self, name: str, buckets: Sequence[float] = _BUCKETS) -> Histogram:
        metric = METRICS[PREFIX + name]
        return Histogram(
            *(metric.name, metric.plain_help, metric.labels),
            registry=self._registry,
            buckets=buckets,
        )

    def on_programmed(self, seconds: float) -> None:
        """A change of endpoints is in the kernel, so long after it happened."""
        self._programming.observe(seconds)

    def on_turn(self, turn: Turn) -> None:
        full = "true" if turn.full else "false"
        self._turn_seconds.labels(loop=turn.loop, full=full).observe(turn.duration_s)
        waited = self._waited.labels(loop=turn.loop)
        for seconds in turn.waited_s:
            waited.observe(seconds)
        if turn.loop in self._turns:
            self._turns[turn.loop].observe(turn.duration_s)
        self._drift.follow(turn)

    def on_done(self, what: str, seconds: float) -> None:
        """A part or an adapter has done something that took so long. What nobody counts is left
        out: this is called in the midst of a turn, which must not end by it."""
        if what in self._done:
            self._done[what].observe(seconds)

    def on_request(self, method: str, code: str, seconds: float) -> None:
        """An API server was asked. For any thread."""
        with self._lock:
            self._requests[method, code] += 1
        self._request_seconds.labels(method=method).observe(seconds)

    def page(self) -> Answer:
        return Answer(200, CONTENT_TYPE, self._collectors.text())

    def _agent(self) -> bytes:
        with self._lock:
            requests = dict(self._requests)
        return _text(agent_samples.of_agent(self._version, requests))

    def _of_loops(self) -> bytes:
        writes = {name: writes() for name, writes in self._writes.items()}
        loops = [loop.status() for loop in self._loops]
        return _text(agent_samples.of_loops(loops, writes, self._drift.repairs()))

    def _traffic_timed(self) -> bytes:
        with self._export.time():
            return self._traffic()


def _text(samples: Iterable[str]) -> bytes:
    return "".join(samples).encode()
