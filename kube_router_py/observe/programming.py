"""How long the network takes to follow: the time from a change of endpoints to this node's kernel.

That is the SLI of kube-proxy (Kubernetes, sig-scalability, network programming latency): the
endpoint controller notes in an annotation of an EndpointSlice when the change happened that it
wrote, and here is looked how old that is once it is programmed. Changes from before this agent
looked are not counted.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import EndpointSlice
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.services import HEADLESS_LABEL

# While nothing can be programmed the newest changes stand for all.
_WAITING_MAX = 10_000

ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"


class ProgrammingLatency:
    """A ``Follower``; ``observe`` gets seconds. ``wall_clock``: seconds since the epoch."""

    def __init__(
        self, observe: Callable[[float], None], wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._observe = observe
        self._wall_clock = wall_clock
        self._started_s = wall_clock()
        self._lock = threading.Lock()
        self._arrived: deque[float] = deque(maxlen=_WAITING_MAX)
        self._in_turn: deque[float] = deque(maxlen=_WAITING_MAX)

    def subscribe(self, cache: Cache) -> None:
        """Note the times of changes as they arrive."""
        cache.subscribe((EndpointSlice,), self._note)

    def _note(self, event: Event) -> None:
        times = [each and each.metadata.annotation(ANNOTATION) for each in (event.old, event.new)]
        if event.new is None or not times[1] or times[0] == times[1]:
            return
        if HEADLESS_LABEL in (event.new.metadata.labels or ()):
            return  # nothing of it is programmed
        try:
            seconds = datetime.fromisoformat(times[1]).timestamp()
        except (ValueError, OverflowError):
            return
        if seconds >= self._started_s:
            with self._lock:
                self._arrived.append(seconds)

    def begin(self) -> None:
        """What has arrived by now is programmed at the end of this turn."""
        with self._lock:
            self._in_turn += self._arrived
            self._arrived.clear()

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """It is programmed."""
        del desired, node, changes, full
        now_s = self._wall_clock()
        for seconds in self._in_turn:
            self._observe(max(0.0, now_s - seconds))
        self._in_turn.clear()
        return ()
