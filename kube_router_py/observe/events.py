"""Events about external and load balancer IPs that are not served, and how many those are."""

import logging
from collections.abc import Iterable

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import Service
from kube_router_py.observe.event_writer import SPACING_S, EventWriter, Tiding
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode

_log = logging.getLogger(__name__)

REASON = "AddressRefused"
_NAMED_AT_START = 20


class RefusedAddresses:
    """A ``Follower``: each external or load balancer IP that is not served gives an Event, and what
    was refused at the start is counted in one line of the log."""

    def __init__(
        self, cache: Cache, client: Client, node: str, spacing_s: float = SPACING_S
    ) -> None:
        self._events = EventWriter(cache, client, node, spacing_s)
        self._refused: dict[str, tuple[Problem, ...]] = {}
        self._queued: dict[str, set[Problem]] = {}
        self._was_counted = False

    @property
    def dropped(self) -> int:
        """How many Events had no room so far; each full turn tries again. For any thread."""
        return self._events.dropped

    @property
    def number(self) -> int:
        """How many addresses are refused at the moment. For any thread."""
        return sum(map(len, list(self._refused.values())))

    @property
    def written(self) -> int:
        """How many Events the API server has, from this node or another. For any thread."""
        return self._events.written

    def begin(self) -> None:
        """Nothing to prepare."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """Tell what is newly refused. It is a Problem already: nothing is returned."""
        del node
        for key in {*desired.services(), *self._refused} if full else changes.services:
            compiled = desired.compiled(key)
            refused = compiled.refused if compiled else ()
            before = self._queued.pop(key, set())
            self._refused.pop(key, None)
            if refused:
                self._refused[key] = refused
                self._queued[key] = {
                    problem for problem in refused if problem in before or self._tell(key, problem)
                }
        if full and not self._was_counted:
            self._was_counted = True
            self._count()
        return ()

    def stop(self, timeout_s: float) -> None:
        """End the thread; what waits is forgotten."""
        self._events.stop(timeout_s)

    def _count(self) -> None:
        if self._refused:
            names = sorted(self._refused)
            more = len(names) - _NAMED_AT_START
            _log.warning(
                "addresses refused, the problems say why, and so do Events count=%d services=%r",
                self.number,
                ", ".join(names[:_NAMED_AT_START]) + (f" and {more} more" if more > 0 else ""),
            )

    def _tell(self, key: str, problem: Problem) -> bool:
        return self._events.tell(Tiding(Service, key, REASON, problem))
