"""What the agent knows of itself at the moment of a scrape, in Prometheus' text format. Pure."""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kube_router_py.cluster.cache import KindStats
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.catalogue import METRICS, PREFIX
from kube_router_py.observe.drift import Repairs
from kube_router_py.observe.exposition import by_label, family, single


def of_agent(version: str, requests: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """``requests`` to API servers by method and code."""
    yield from family("build_info", [((version, platform.python_version()), 1)])
    yield from family("api_requests_total", sorted(requests.items()))


def of_values(values: Mapping[str, float]) -> Iterator[str]:
    """Those without labels, by name without the prefix."""
    for name, value in sorted(values.items()):
        if PREFIX + name in METRICS:  # the others cannot be explained; a test finds them
            yield single(name, value)


def of_caches(stats: Mapping[type, KindStats]) -> Iterator[str]:
    """Of the kinds of objects that are followed."""
    caches = {kind.__name__: each for kind, each in stats.items()}
    yield from by_label("cache_objects", {name: it.objects for name, it in caches.items()})
    yield from by_label("cache_synced", {name: it.synced for name, it in caches.items()})
    stale = {name: it.stale_s for name, it in caches.items() if it.stale_s is not None}
    yield from by_label("cache_stale_seconds", stale)
    yield from by_label("cache_problems", {name: it.problems for name, it in caches.items()})
    events = {name: it.watch_events for name, it in caches.items()}
    yield from by_label("cache_watch_events_total", events)
    yield from by_label("cache_changes_total", {name: it.changes for name, it in caches.items()})
    yield from by_label("cache_relists_total", {name: it.relists for name, it in caches.items()})
    errors = [
        ((name, reason), number)
        for name, it in sorted(caches.items())
        for reason, number in sorted(it.errors.items())
    ]
    yield from family("cache_errors_total", errors)


def of_loops(
    statuses: Sequence[LoopStatus], writes: Mapping[str, Mapping[str, int]], repairs: Repairs
) -> Iterator[str]:
    """``writes`` by loop and adapter."""
    total: Counter[str] = Counter()
    for of_loop in writes.values():
        total.update(of_loop)
    yield from by_label("kernel_writes_total", total)
    yield from family("drift_repairs_total", sorted(repairs.items()))
    loops = {loop.name: loop for loop in statuses}
    yield from by_label("controller_turns_total", {name: it.turns for name, it in loops.items()})
    successes = {name: it.successes for name, it in loops.items()}
    yield from by_label("controller_successes_total", successes)
    restarts = {name: it.restarts for name, it in loops.items()}
    yield from by_label("controller_restarts_total", restarts)
    yield from by_label("controller_ready", {name: it.ready for name, it in loops.items()})
    yield from by_label("controller_dirty_keys", {name: it.dirty for name, it in loops.items()})
    oldest = {name: it.oldest_dirty_s for name, it in loops.items()}
    yield from by_label("controller_oldest_dirty_seconds", oldest)
    problems = {name: len(it.problems) for name, it in loops.items()}
    yield from by_label("controller_problems", problems)
    kinds = [
        ((name, kind), number)
        for name, it in sorted(loops.items())
        for kind, number in sorted(Counter(_kind(each.object) for each in it.problems).items())
    ]
    yield from family("problems", kinds)


def _kind(subject: str) -> str:
    """``Service`` of ``Service default/web``."""
    return subject.partition(" ")[0]
