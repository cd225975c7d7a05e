"""The allocator of addresses for Services of type LoadBalancer, as the agent runs it."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import Service
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.loadbalancer.allocation_values import LEADER, POOLS, WRITES
from kube_router_py.loadbalancer.controller import KINDS, Allocation
from kube_router_py.loadbalancer.election import Election, Timing
from kube_router_py.loadbalancer.status_writer import Result, StatusWriter, list_services
from kube_router_py.loop import Loop, Turn
from kube_router_py.observe.event_writer import EventWriter, Tiding
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook
from kube_router_py.pool_source import ACCEPTED_ANNOTATION, KEPT_ANNOTATION
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

# Writes that end together are looked at together.
_MIN_INTERVAL_S = 0.05
_RETRY_MAX_S = 10.0
_STOP_S = 5.0
# A new leader has something to tell of many Services at once.
_EVENTS_ROOM = 4096


class AllocationPart:
    """A part of the agent (see ``part.Part``).

    ``namespace`` is the agent's own, with the Lease. ``pod`` is the name of the agent's Pod, which
    it campaigns by; ``""`` where it runs in none. ``book`` has the pools; somebody else keeps it.
    """

    kinds: tuple[type, ...] = KINDS
    reads: tuple[type, ...] = KINDS
    reflectors: tuple[Reflector[Any], ...] = ()

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        namespace: str,
        pod: str,
        book: PoolBook,
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
        timing: Timing | None = None,
    ) -> None:
        identity = pod or f"{node}_{uuid4()}"
        self.election = Election(
            client, namespace, identity, lambda: self.loop.mark((LEADER,)), timing=timing
        )
        self._book, self._on_turn = book, on_turn
        self._events = EventWriter(cache, client, node, room=_EVENTS_ROOM)
        self._writer = StatusWriter(
            client,
            self.election.may_write,
            self.election.timing.request_s,
            lambda: self.loop.mark((WRITES,)),
        )
        self.controller = Allocation(
            cache,
            options,
            book,
            lambda: self.election.term,
            self._writer,
            partial(list_services, client),
            self._tell,
        )
        self.loop = Loop(
            self.controller,
            ready=lambda: cache.is_synced(KINDS) and book.is_known,
            min_interval_s=_MIN_INTERVAL_S,
            resync_interval_s=options.loadbalancer_sync_period,
            retry_max_s=_RETRY_MAX_S,
            on_turn=self._after_turn,
            on_dead=on_dead,
        )
        self.controller.subscribe(cache, self.loop)
        book.subscribe(self._follow_book)

    def _follow_book(self) -> None:
        """In the thread of whoever changed the pools."""
        self.loop.mark((POOLS,))

    def _after_turn(self, turn: Turn) -> None:
        """Leave what agents that start have to know: first what Services keep, and then the pools
        that no longer have it."""
        report, accepted = self.controller.report, self._book.accepted_text
        if report.term and self._book.knows_past and report.pools is self._book.pools:
            self.election.annotate(KEPT_ANNOTATION, report.kept, report.term)
            if accepted is not None:
                self.election.annotate(ACCEPTED_ANNOTATION, accepted, report.term)
        self._on_turn(turn)

    def _tell(self, key: str, reason: str, problem: Problem, *, is_good: bool = False) -> None:
        kind = "Normal" if is_good else "Warning"
        self._events.tell(Tiding(Service, key, reason, problem, type=kind))

    def start(self) -> None:
        """Begin to campaign."""
        self.election.start()

    def before_loops_stop(self) -> None:
        """Nothing to end first: whoever leads goes on to lead until the loop has ended."""

    def stop(self) -> None:
        """End the writes, then give the Lease back: another agent takes over at once."""
        is_over = self._writer.stop(_STOP_S)
        if not is_over:
            _log.warning("a status is still being written; the Lease is left to expire")
        self.election.stop(_STOP_S, release=is_over)
        self._events.stop(_STOP_S)

    def numbers(self) -> dict[str, float]:
        report, results = self.controller.report, self._writer.results()
        return {
            "loadbalancer_leader": float(self.election.is_leader()),
            "loadbalancer_services_allocated": report.allocated,
            "loadbalancer_services_waiting": report.waiting,
            "loadbalancer_services_refused": report.refused,
            "loadbalancer_address_conflicts": report.conflicts,
            "loadbalancer_status_writes_total": results[Result.WRITTEN],
            "loadbalancer_status_write_conflicts_total": results[Result.CHANGED],
            "loadbalancer_status_write_failures_total": results[Result.FAILED]
            + results[Result.UNKNOWN],
            "events_dropped_total": self._events.dropped,
        }

    def writes(self) -> dict[str, int]:
        """Nothing is written to the kernel."""
        return {}

    def page(self) -> bytes:
        """How full the pools are, in Prometheus' text format; empty unless this agent leads."""
        return "".join(self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        from kube_router_py.observe.exposition import family

        occupancy = self.controller.report.occupancy
        if not occupancy:
            return
        for suffix, field in (("", "size"), ("_in_use", "used"), ("_free", "free")):
            yield from family(
                f"loadbalancer_pool_addresses{suffix}",
                [((each.pool, f"ipv{each.version}"), getattr(each, field)) for each in occupancy],
            )

    def status(self) -> dict[str, Any]:
        """For the page /status."""
        report = self.controller.report
        return {
            "leader": self.election.holder,
            "leads": self.election.is_leader(),
            "identity": self.election.identity,
            "allocated": report.allocated,
            "waiting": report.waiting,
            "refused": report.refused,
            "writing": report.writing,
            "pools": [
                {
                    "name": each.pool,
                    "family": f"IPv{each.version}",
                    "addresses": _for_json(each.size),
                    "in_use": each.used,
                    "free": _for_json(each.free),
                }
                for each in report.occupancy
            ],
        }


def _for_json(count: int) -> int | float:
    """A /64 has more addresses than JSON has whole numbers."""
    return count if count < 1 << 53 else float(count)
