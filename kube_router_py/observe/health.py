"""What the probes and ``/readyz`` say.

``/healthz`` and ``/livez`` fail only when a loop no longer turns: then a restart may help, and it
costs nothing that works. ``/readyz`` fails when the node is not served as the cluster wants it:
caches that never synced, a Node object that does not exist, a loop that does not succeed. An API
server that is away does not count: ``failing`` says why, ``stale_s`` for how long.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import json

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.log import harmless
from kube_router_py.observe.serve import Answer, Page

# A probe every few seconds must not carry a list as long as the cluster's Services.
_MOST = 100


class HasStatus(Protocol):
    """A loop, as far as health is concerned."""

    def status(self) -> LoopStatus: ...


class Health:
    """Reports on the loops and on the kinds of objects that they read.

    Without ``kinds`` nothing works; of the cache's others something is missing at worst.
    ``sections``: what the parts of the agent say of their work, for ``status``.
    """

    def __init__(
        self,
        *,
        node: str,
        version: str,
        cache: Cache,
        loops: Sequence[HasStatus],
        kinds: Iterable[type] | None = None,
        sections: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._version = version
        self._cache = cache
        self._loops = loops
        self._kinds = tuple(cache.kinds if kinds is None else kinds)
        self._sections = sections
        self._lock = threading.Lock()
        self._applied_revision: int | None = None
        self._clock, self._started = clock, clock()

    def pages(self) -> dict[str, Page]:
        return {
            "/healthz": self.live,
            "/livez": self.live,
            "/readyz": self.ready,
            "/problems": self.problems,
        }

    def live(self) -> Answer:
        loops = {status.name: status for status in (loop.status() for loop in self._loops)}
        stuck = {name: s.reason for name, s in loops.items() if not s.turning}
        body = {"live": not stuck, "stuck": stuck}
        return _json(500 if stuck else 200, body)

    def ready(self) -> Answer:
        report = self.report()
        return _json(200 if report["ready"] else 503, report)

    def status(self) -> dict[str, Any]:
        """All that the agent says of itself."""
        report = self.report()
        number = len(self._cache.problems())
        number += sum(len(loop.status().problems) for loop in self._loops)
        loops: dict[str, Any] = report.pop("loops")
        found = [*report.pop("problems")]
        for loop in loops.values():
            found += loop.pop("problems")
        behind = {name: cache for name, cache in report.pop("caches").items() if cache["failing"]}
        return {
            **report,
            "up_s": round(self._clock() - self._started),
            "loops": loops,
            "behind": behind,
            **self._sections(),
            "problem_count": number,
            "problems": found,
        }

    def problems(self) -> Answer:
        """All of them, one in a line."""
        found = [*self._cache.problems()]
        for loop in self._loops:
            found += loop.status().problems
        text = "".join(harmless(str(problem)) + "\n" for problem in sorted(found))
        return Answer(200, "text/plain; charset=utf-8", text.encode(errors="replace"))

    def report(self) -> dict[str, Any]:
        """The document of ``/readyz``; docs/debugging.md explains it."""
        # The order matters for applied_revision: what a revision covers was marked before the
        # revision was told, so a loop that is settled afterwards has applied it.
        caches = self._cache.stats()
        statuses = [loop.status() for loop in self._loops]
        needed = {kind: caches[kind] for kind in self._kinds}
        applied = self._apply_revision((s.revision for s in needed.values()), statuses)
        unsynced = sorted(kind.__name__ for kind, stats in needed.items() if not stats.synced)
        reasons: list[str] = []
        if unsynced:
            reasons.append(f"waiting for the first list of {', '.join(unsynced)}")
        elif self._is_nobody():
            reasons.append(
                f"there is no Node {self._node!r}; is the name right (--hostname-override, "
                "NODE_NAME)?"
            )
        reasons += [f"{s.name}: {s.reason}" for s in statuses if s.reason]
        return {
            "ready": not reasons,
            "reason": "; ".join(reasons),
            "node": self._node,
            "version": self._version,
            "applied_revision": applied,
            "loops": {status.name: _loop(status) for status in statuses},
            "caches": {
                kind.__name__: {
                    "synced": stats.synced,
                    "revision": stats.revision,
                    "objects": stats.objects,
                    "failing": stats.failing,
                    "stale_s": _rounded(stats.stale_s),
                }
                for kind, stats in caches.items()
            },
            "problems": _problems(self._cache.problems()),
        }

    def _is_nobody(self) -> bool:
        """A wrong name: without its Node the agent serves neither NodePorts nor source NAT."""
        return Node in self._cache.kinds and self._cache.get(Node, self._node) is None

    def _apply_revision(
        self, revisions: Iterable[str], statuses: Sequence[LoopStatus]
    ) -> int | None:
        """The revision up to which everything is applied; the last such one while work goes on."""
        with self._lock:
            if all(status.settled for status in statuses):
                try:
                    self._applied_revision = min(map(int, revisions), default=None)
                except ValueError:
                    pass  # not listed yet, or a server whose revisions are no numbers
            return self._applied_revision


def _loop(status: LoopStatus) -> Mapping[str, Any]:
    return {
        "turning": status.turning,
        "ready": status.ready,
        "reason": status.reason,
        "dirty": status.dirty,
        "busy": status.busy,
        "settled": status.settled,
        "last_turn_s": _rounded(status.last_turn_s),
        "last_success_s": _rounded(status.last_success_s),
        "turns": status.turns,
        "restarts": status.restarts,
        "problems": _problems(status.problems),
    }


def _problems(problems: Iterable[Any]) -> list[dict[str, str]]:
    found = list(problems)
    listed = [{"object": p.object, "field": p.field, "reason": p.reason} for p in found[:_MOST]]
    if len(found) > _MOST:
        more = f"and {len(found) - _MOST} more; /problems shows all"
        listed.append({"object": "", "field": "", "reason": more})
    return listed


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return Answer(status, "application/json", json.format(json.encode(body), indent=1) + b"\n")
