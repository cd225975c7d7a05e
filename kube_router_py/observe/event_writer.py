"""Kubernetes Events (core/v1) about objects, written in the background.

The name of an Event is that of its object with a hash of what it says: all nodes find the same
thing wrong, and the API server lets only the first of them create it. Nothing is lost with an
Event: a Problem it tells of is in the log, in the metrics and in /readyz as well.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.objects import ConfigMap, Node, ObjectMeta, Pod, Service
from kube_router_py.errors import ApiError
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

COMPONENT = "kube-router-py"
_WAITING_MAX = 256
# The API server keeps Events for an hour: so long is one not told again.
_TOLD_MAX = 4096
_TOLD_S = 3600.0
_PAUSE_S = 5.0
SPACING_S = 0.05
"""Of a whole cluster's agents, started at once, each asks the API server only so often."""
# Events about what has no namespace are in this one: the API server wants it so.
_NO_NAMESPACE = "default"


class Tiding(Struct, frozen=True):
    """What an Event is to tell: of a Service, a Node, a ConfigMap or a Pod, found by its key.

    ``problem`` says what, and where; of an Event whose ``type`` is Normal it is good news. What was
    told is not told again for an hour, unless ``occasion`` (any text) is another one: two nodes
    that are to be heard, or one twice, differ in it.
    """

    kind: type[Service] | type[Node] | type[ConfigMap] | type[Pod]
    key: str
    reason: str
    problem: Problem
    type: str = "Warning"
    occasion: str = ""


def event_about(metadata: ObjectMeta, tiding: Tiding, node: str, now: datetime) -> dict[str, Any]:
    """The Event that tells of a Problem with the object of these metadata."""
    problem = tiding.problem
    said = f"{metadata.uid} {problem.field} {problem.reason}"
    if tiding.occasion:
        said = f"{said} {tiding.reason} {tiding.occasion}"
    digest = hashlib.sha256(said.encode(errors="replace")).hexdigest()[:16]
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    involved = {
        "apiVersion": "v1",
        "kind": tiding.kind.__name__,
        "name": metadata.name,
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "fieldPath": problem.field,
    }
    if metadata.namespace:
        involved["namespace"] = metadata.namespace
    message = f"{problem.field}: {problem.reason}" if problem.field else problem.reason
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name[:200]}.{digest}",
            "namespace": metadata.namespace or _NO_NAMESPACE,
        },
        "involvedObject": involved,
        "type": tiding.type,
        "reason": tiding.reason,
        "message": message[:1024],
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


class EventWriter:
    """Writes Events in a thread of its own, which the first of them starts, one every ``spacing_s``
    at most; ``room`` of them may wait. ``tell`` and ``stop`` are for one thread, the numbers for
    any."""

    def __init__(
        self,
        cache: Cache,
        client: Client,
        node: str,
        spacing_s: float = SPACING_S,
        clock: Callable[[], float] = time.monotonic,
        room: int = _WAITING_MAX,
    ) -> None:
        self._cache, self._client, self._node = cache, client, node
        self._spacing_s, self._clock = spacing_s, clock
        self._refusals: set[int] = set()
        self._told: dict[str, float] = {}
        self._waiting: queue.Queue[Tiding | None] = queue.Queue(room)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._dropped = self._written = 0

    @property
    def dropped(self) -> int:
        """How many Events had no room so far."""
        return self._dropped

    @property
    def written(self) -> int:
        """How many Events the API server has, from this node or another."""
        return self._written

    def tell(self, tiding: Tiding) -> bool:
        """Have it told; False where too many wait already."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="events", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # too many threads on this node; the next Event may have one
                self._dropped += 1
                return False
            self._thread = thread
        try:
            self._waiting.put_nowait(tiding)
        except queue.Full:
            self._dropped += 1
            return False
        return True

    def stop(self, timeout_s: float) -> None:
        """End the thread; what waits is forgotten."""
        self._stopping.set()
        if self._thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                pass  # then it does not wait for more
            self._thread.join(timeout_s)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while (tiding := self._waiting.get()) is not None and not self._stopping.is_set():
            try:
                found: Service | Node | ConfigMap | Pod | None = self._cache.get(
                    tiding.kind, tiding.key
                )
                if found is None:
                    continue
                event = event_about(found.metadata, tiding, self._node, datetime.now(UTC))
                if not self._is_told(event["metadata"]["name"]):
                    self._write(event)
                    self._stopping.wait(self._spacing_s)
            except Exception:  # noqa: BLE001 - one Event must not be the last
                _log.exception("no Event object=%r", f"{tiding.kind.__name__} {tiding.key}")

    def _is_told(self, name: str) -> bool:
        told_at = self._told.get(name)
        return told_at is not None and self._clock() - told_at < _TOLD_S

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
        if len(self._told) >= _TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._told[meta["name"]] = self._clock()

    def _tell_refusal(self, name: str, error: RefusedError) -> None:
        is_known = error.status in self._refusals  # most likely it is so for all
        self._refusals.add(error.status)
        level = logging.DEBUG if is_known else logging.WARNING
        _log.log(level, "no Event event=%s reason=%r", name, str(error))
