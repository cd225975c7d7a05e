"""Writes addresses into the status of Services: a few threads, one write per Service at a time.

A write carries the resourceVersion of what it was decided on: where the Service has changed since,
nothing is written, and the present Service is fetched. It begins only while the term of the leader
who decided it lasts, which is asked once more when the connection stands (``client``'s ``fence``).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

from msgspec import Struct

from kube_router_py.cluster import decode
from kube_router_py.cluster.client import FencedError, RefusedError
from kube_router_py.cluster.objects import LoadBalancerIngress, Service
from kube_router_py.errors import ApiError

_log = logging.getLogger(__name__)

_SERVICES = decode.ObjectDecoder(Service)
_LIST_LIMIT = "500"

Ingress = tuple[LoadBalancerIngress, ...]


class Result(Enum):
    """What became of a write."""

    WRITTEN = "written"
    CHANGED = "changed"  # meanwhile: here is the present Service
    GONE = "gone"
    FENCED = "fenced"
    FAILED = "failed"
    UNKNOWN = "unknown"  # it failed, and may have been made all the same


class Write(Struct, frozen=True):
    """``ingress`` is to be all that the status of this version of the Service lists."""

    term: int
    service: Service
    ingress: Ingress

    @property
    def key(self) -> str:
        return self.service.metadata.key


class Done(Struct, frozen=True):
    """A write that has ended; ``service`` as it is now, where that is known."""

    write: Write
    result: Result
    service: Service | None = None
    why: str = ""


class Services(Protocol):
    """What is used of the client."""

    def list(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> bytes: ...

    def patch(
        self,
        path: str,
        body: object,
        *,
        timeout_s: float | None = None,
        fence: Callable[[], bool] | None = None,
    ) -> bytes: ...


class StatusWriter:
    """``may_write`` says whether a request of a term may begin that takes ``timeout_s`` at most;
    ``on_done`` is called, in any thread, when there is something to ``take``."""

    def __init__(
        self,
        client: Services,
        may_write: Callable[[int], bool],
        timeout_s: float,
        on_done: Callable[[], None],
        threads: int = 4,
    ) -> None:
        self._client, self._may_write, self._timeout_s = client, may_write, timeout_s
        self._on_done, self._count = on_done, threads
        self._changed = threading.Condition()
        self._waiting: deque[Write] = deque()
        self._done: list[Done] = []
        self._running = 0
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._results = dict.fromkeys(Result, 0)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way to the API server, or waits to be."""
        with self._changed:
            return not self._waiting and not self._running

    def results(self) -> dict[Result, int]:
        """How many writes ended how, so far."""
        with self._changed:
            return dict(self._results)

    def put(self, write: Write) -> None:
        """Have it written; the next one of the same Service is to wait for its end."""
        with self._changed:
            if self._stopping:
                return
            if len(self._threads) < self._count:
                thread = threading.Thread(
                    target=self._run, name=f"status-{len(self._threads)}", daemon=True
                )
                thread.start()  # may fail, for want of threads; then the next write tries again
                self._threads.append(thread)
            self._waiting.append(write)
            self._changed.notify()

    def clear(self) -> None:
        """Forget what waits, and what has ended; what is on its way goes on."""
        with self._changed:
            self._waiting.clear()
            self._done.clear()

    def take(self) -> list[Done]:
        """What has ended since the last time."""
        with self._changed:
            done, self._done = self._done, []
        return done

    def stop(self, timeout_s: float) -> bool:
        """End the threads; whether nothing is on its way any more."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    # --- the threads ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting)
                if self._stopping:
                    return
                write = self._waiting.popleft()
                self._running += 1
            try:
                done = self._write(write)
            except Exception as error:  # noqa: BLE001 - the thread must outlive what nobody foresaw
                _log.exception("the status was not written service=%s", write.key)
                done = Done(write, Result.UNKNOWN, why=repr(error))
            with self._changed:
                self._running -= 1
                self._results[done.result] += 1
                self._done.append(done)
                self._changed.notify_all()
            self._on_done()

    def _write(self, write: Write) -> Done:
        def fence() -> bool:
            return self._may_write(write.term)

        if not fence():
            return Done(write, Result.FENCED)
        metadata = write.service.metadata
        path = f"/api/v1/namespaces/{metadata.namespace}/services/{metadata.name}/status"
        try:
            answer = self._client.patch(
                path, status_patch(write), timeout_s=self._timeout_s, fence=fence
            )
        except FencedError:
            return Done(write, Result.FENCED)
        except RefusedError as error:
            if error.status in (404, 409):
                return self._look(write)
            result = Result.UNKNOWN if error.status >= 500 else Result.FAILED
            return Done(write, result, why=str(error))
        except ApiError as error:
            return Done(write, Result.UNKNOWN, why=str(error))
        item = _SERVICES.item(answer)
        if item.object is None:
            return Done(write, Result.UNKNOWN, why=f"the answer cannot be read: {item.problem}")
        return Done(write, Result.WRITTEN, item.object)

    def _look(self, write: Write) -> Done:
        """The present Service: by a list, since the agent may not get single ones. As long as it
        is not seen, what it was that changed it may have been this write, made before."""
        metadata = write.service.metadata
        path = f"/api/v1/namespaces/{metadata.namespace}/services"
        query = {"fieldSelector": f"metadata.name={metadata.name}"}
        try:
            page = _SERVICES.page(self._client.list(path, query, timeout_s=self._timeout_s))
        except ApiError as error:
            return Done(write, Result.UNKNOWN, why=str(error))
        for item in page.items:
            if item.object is not None and item.key == write.key:
                return Done(write, Result.CHANGED, item.object)
            if item.problem is not None:
                return Done(write, Result.UNKNOWN, why=str(item.problem))
        return Done(write, Result.GONE)


def status_patch(write: Write) -> dict[str, Any]:
    """The merge patch. UID and resourceVersion: this very Service, as it was decided on."""
    metadata = write.service.metadata
    return {
        "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
        "status": {"loadBalancer": {"ingress": write.ingress or None}},
    }


def list_services(client: Services) -> tuple[dict[str, Service], str, frozenset[str]]:
    """All Services as the API server has them now, by key; the version of the list; and the keys of
    those that cannot be read. Raises ApiError.

    No resourceVersion is asked for: an API server asks etcd, and not its own cache.
    """
    for limit in (_LIST_LIMIT, _LIST_LIMIT):
        try:
            return _list(client, limit)
        except RefusedError as error:
            if error.status != 410:  # the snapshot behind the chunks was compacted away
                raise
    return _list(client, "")


def _list(client: Services, limit: str) -> tuple[dict[str, Service], str, frozenset[str]]:
    found: dict[str, Service] = {}
    unreadable: set[str] = set()
    token = ""
    while True:
        query = {"limit": limit} if limit else {}
        if token:
            query["continue"] = token
        page = _SERVICES.page(client.list(decode.RESOURCES[Service].path, query))
        for item in page.items:
            if item.object is not None:
                found[item.key] = item.object
            else:
                unreadable.add(item.key)
        token = page.next
        if not token:
            return found, page.revision, frozenset(unreadable)
