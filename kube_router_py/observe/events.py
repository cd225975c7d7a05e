"""Kubernetes Events about Services, written in the background, and the count of what is refused.

The name of an Event is that of the Service with a hash of what it says: all nodes find the same
thing wrong, and the API server lets only the first of them create it. Nothing is lost with an
Event: the Problem it tells of is in the log, in the metrics and in /readyz as well.
"""

import hashlib
import logging
import queue
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.objects import Service
from kube_router_py.errors import ApiError
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode

_log = logging.getLogger(__name__)

COMPONENT = "kube-router-py"
REASON = "AddressRefused"
_WAITING_MAX = 256
# As the API server keeps Events for an hour, so long is one not told again.
_TOLD_MAX = 4096
_PAUSE_S = 5.0
# Of a whole cluster's agents, started at once, each asks the API server only so often.
_SPACING_S = 0.05
_NAMED_AT_START = 20


def service_event(service: Service, problem: Problem, node: str, now: datetime) -> dict[str, Any]:
    """The Event (core/v1) that tells of a Problem with a Service."""
    meta = service.metadata
    said = f"{meta.uid} {problem.field} {problem.reason}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name[:200]}.{digest}", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "fieldPath": problem.field,
        },
        "type": "Warning",
        "reason": REASON,
        "message": f"{problem.field}: {problem.reason}"[:1024],
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


class RefusedAddresses:
    """A ``Follower``: each external or load balancer IP that is not served gives an Event, and what
    was refused at the start is counted in one line of the log."""

    def __init__(
        self, cache: Cache, client: Client, node: str, spacing_s: float = _SPACING_S
    ) -> None:
        self._cache, self._client, self._node = cache, client, node
        self._spacing_s = spacing_s
        self._refused: dict[str, tuple[Problem, ...]] = {}
        self._queued: dict[str, set[Problem]] = {}
        self._refusals: set[int] = set()
        self._was_counted = False
        self._told: set[str] = set()
        self._waiting: queue.Queue[tuple[str, Problem] | None] = queue.Queue(_WAITING_MAX)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._dropped = self._written = 0

    @property
    def dropped(self) -> int:
        """How many Events had no room so far; each full turn tries again. For any thread."""
        return self._dropped

    @property
    def number(self) -> int:
        """How many addresses are refused at the moment. For any thread."""
        return sum(map(len, list(self._refused.values())))

    @property
    def written(self) -> int:
        """How many Events the API server has, from this node or another. For any thread."""
        return self._written

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
        self._stopping.set()
        if self._thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                pass  # then it does not wait for more
            self._thread.join(timeout_s)

    def _count(self) -> None:
        if self._refused:
            names = sorted(self._refused)
            more = len(names) - _NAMED_AT_START
            _log.warning(
                "addresses refused: %d, of services %s%s; the problems say why, and so do Events",
                self.number,
                ", ".join(names[:_NAMED_AT_START]),
                f" and {more} more" if more > 0 else "",
            )

    def _tell(self, key: str, problem: Problem) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((key, problem))
        except queue.Full:
            self._dropped += 1
            return False
        return True

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while (found := self._waiting.get()) is not None and not self._stopping.is_set():
            service = self._cache.get(Service, found[0])
            if service is None:
                continue
            try:
                event = service_event(service, found[1], self._node, datetime.now(UTC))
                if event["metadata"]["name"] not in self._told:
                    self._write(event)
                    self._stopping.wait(self._spacing_s)
            except Exception:  # noqa: BLE001 - one Event must not be the last
                _log.exception("no Event for service=%s", found[0])

    def _write(self, event: dict[str, Any]) -> None:
        meta = event["metadata"]
        while not self._stopping.is_set():
            try:
                self._client.post(f"/api/v1/namespaces/{meta['namespace']}/events", event)
                self._written += 1
            except RefusedError as error:
                if error.status == 429 or error.status >= 500:
                    self._stopping.wait(_PAUSE_S)
                    continue
                if error.status == 409:  # another node was first
                    self._written += 1
                else:
                    self._tell_refusal(meta["name"], error)
            except ApiError:
                self._stopping.wait(_PAUSE_S)
                continue
            break
        if len(self._told) < _TOLD_MAX:
            self._told.add(meta["name"])

    def _tell_refusal(self, name: str, error: RefusedError) -> None:
        is_known = error.status in self._refusals  # most likely it is so for all
        self._refusals.add(error.status)
        level = logging.DEBUG if is_known else logging.WARNING
        _log.log(level, "no Event name=%s reason=%r", name, str(error))
