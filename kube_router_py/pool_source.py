"""Follows the ConfigMap ``kube-router-address-pools`` and keeps the book of address pools."""

import logging
import threading
import time
from collections.abc import Callable

from kube_router_py.address_pool_config import CONFIG_MAP, KEY, parse_config
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.decode import RESOURCES, ObjectDecoder
from kube_router_py.cluster.objects import ConfigMap, Lease
from kube_router_py.cluster.reflector import Reflector, Timing
from kube_router_py.errors import ApiError
from kube_router_py.observe.event_writer import EventWriter, Tiding
from kube_router_py.pool_book import Past, PoolBook
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

ACCEPTED_LEASE = "kube-router-lballoc"
ACCEPTED_ANNOTATION = "kube-router.io/accepted-pools"
"""Of that Lease: the text of the ConfigMap that was accepted last, for agents that start."""
KEPT_ANNOTATION = "kube-router.io/kept-addresses"
"""Of that Lease: what Services have though it was taken out of the pools (``kept_addresses``)."""

REASON = "BadAddressPools"
_PATIENCE_S = 30.0
_DISCONNECTED = "disconnected"  # among the reasons of a reflector
_POLL_S = 0.2
_PAUSE_S = 1.0
_ASK_S = 5.0
# So long the ConfigMap, without a mistake in it, waits to be heard of from the Lease.
_PAST_PATIENCE_S = 5.0
# Every node finds the same mistakes, and asks the API server to take each.
_MOST_EVENTS = 10
_EVENT_SPACING_S = 1.0


class PoolSource:
    """Runs a reflector and a thread of its own; ``start`` and ``stop`` are for one thread.

    The ConfigMap has a cache of its own: where it may not be read, everything else goes on, and
    after ``patience_s`` with the pools of the flags. As long as no API server answers at all,
    nothing is known. Whoever subscribes to ``book`` before ``start`` misses nothing. ``clock`` is
    monotonic, in seconds.
    """

    def __init__(
        self,
        book: PoolBook,
        client: Client,
        node: str,
        *,
        patience_s: float = _PATIENCE_S,
        event_spacing_s: float = _EVENT_SPACING_S,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book, self._client = book, client
        self._namespace = book.settings.namespace
        self._key = f"{self._namespace}/{CONFIG_MAP}"
        self._patience_s, self._clock = patience_s, clock
        self._refused_at: float | None = None
        self._past: Past | None = None
        self._has_waited = False
        self.cache = Cache((ConfigMap,))
        self._reflector = Reflector(
            client,
            self.cache,
            ConfigMap,
            field_selector=f"metadata.name={CONFIG_MAP}",
            namespace=self._namespace,
            timing=timing,
        )
        self._events = EventWriter(self.cache, client, node, event_spacing_s)
        self._told: set[Problem] = set()
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="address-pools", daemon=True)
        self.cache.subscribe((ConfigMap,), lambda event: self._changed.set())

    @property
    def events_dropped(self) -> int:
        """How many Events had no room so far. For any thread."""
        return self._events.dropped

    def start(self) -> None:
        self._reflector.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End what runs; the book keeps what it has."""
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._changed.set()
        self._reflector.stop(timeout_s)
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        self._events.stop(max(0.0, deadline - time.monotonic()))

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except Exception:  # noqa: BLE001 - the next edit may be another matter
                _log.exception("the address pools were not read")
                self._stopping.wait(_PAUSE_S)

    def _follow(self) -> None:
        """Wait for the ConfigMap, and bring the book up to date."""
        if self.cache.wait_synced(None, _POLL_S):
            self._changed.clear()  # first: what changes while it is read is read again
            self._read()
            # A stop that came before the clearing is told by nothing else any more.
            while not self._stopping.is_set():
                if self._changed.wait(_PAUSE_S if self._past is None else None):
                    break
                self._learn_past(0.0)
        elif not self._book.is_known:
            self._lose_patience()

    def _lose_patience(self) -> None:
        stats = self.cache.stats()[ConfigMap]
        if not stats.errors.keys() - {_DISCONNECTED}:
            return  # nobody else has lists to act on, either
        if self._refused_at is None:
            self._refused_at = self._clock()
        if self._clock() - self._refused_at >= self._patience_s:
            remedy = "until it can be read, only --loadbalancer-ip-range counts"
            problem = Problem(self._book.settings.subject, "", f"{stats.failing}; {remedy}")
            _tell(problem)
            self._learn_past(0.0)
            self._book.put_unreadable(problem)

    def _read(self) -> None:
        subject, text = self._book.settings.subject, None
        mistakes = self.cache.problems()
        found = self.cache.get(ConfigMap, self._key)
        if found is not None:
            text = (found.data or {}).get(KEY)
            if text is None:
                reason = f"it has no entry {KEY!r}; write one, empty where there are no pools"
                mistakes = (*mistakes, Problem(subject, "data", reason))
        last_good = None
        if not self._has_waited:
            is_bad = mistakes or parse_config(text or "", self._book.settings).problems
            self._learn_past(self._patience_s if is_bad else _PAST_PATIENCE_S)
            if self._past is None and self._stopping.is_set():
                return  # no agent that ends acts on pools that it cannot judge yet
            self._has_waited = True
            last_good = self._past.accepted if self._past is not None else None
        self._book.put_config(text, last_good, mistakes)
        self._tell()

    def _tell(self) -> None:
        """Log and tell by Events what is newly wrong."""
        problems = self._book.problems
        self._told.intersection_update(problems)
        news = [each for each in problems if each not in self._told]
        if not news:
            return
        self._told.update(news)
        for problem in news:
            _tell(problem)
        about = [each for each in problems if each.object == self._book.settings.subject]
        # The last one says what is done about the others.
        for problem in (*about[: _MOST_EVENTS - 1], *about[_MOST_EVENTS - 1 :][-1:]):
            self._events.tell(Tiding(ConfigMap, self._key, REASON, problem))

    def _learn_past(self, patience_s: float) -> None:
        """Ask once for what was before this agent started, and for so long if nobody answers."""
        begun = self._clock()
        while self._past is None:
            try:
                self._past = self._ask()
            except ApiError as error:
                is_refused = isinstance(error, RefusedError) and error.status == 403
                if is_refused:
                    self._past = Past()
                is_late = self._clock() - begun >= patience_s
                if is_refused or is_late or self._stopping.wait(_PAUSE_S):
                    if patience_s:
                        _log.warning("address pools of before are not known reason=%r", str(error))
                    break
        if self._past is not None and not self._book.knows_past:
            self._book.put_past(self._past)

    def _ask(self) -> Past:
        parent, _, plural = RESOURCES[Lease].path.rpartition("/")
        path = f"{parent}/namespaces/{self._namespace}/{plural}"
        # Not by get: one Role lets the agent list the Leases of its namespace anyway.
        query = {"fieldSelector": f"metadata.name={ACCEPTED_LEASE}"}
        body = self._client.list(path, query, timeout_s=_ASK_S)
        for item in ObjectDecoder(Lease).page(body).items:
            if item.object is not None and item.object.metadata.name == ACCEPTED_LEASE:
                said = item.object.metadata.annotation
                return Past(said(ACCEPTED_ANNOTATION), said(KEPT_ANNOTATION) or "")
        return Past()


def _tell(problem: Problem) -> None:
    found = (problem.object, problem.field, problem.reason)
    _log.warning("address pools have a problem object=%r field=%r reason=%r", *found)
