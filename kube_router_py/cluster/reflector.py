"""Reflector: keeps one kind in the cache equal to the API server. One thread each.

List in chunks, replace the store, watch from the list's resourceVersion; when a watch ends, go on
from the last version seen. What goes wrong, and what then happens:

    disconnected   broken or silent connection, no server answers      watch again, same version
    refused        HTTP 401, 403, 429                                  watch again, same version
    server         HTTP 5xx                                            watch again, same version,
                                                                       the fourth time list anew
    expired        HTTP 410, or ERROR in the stream, or a bookmark
                   older than the watch                                list anew
    undecodable    a line or list that is no JSON of this kind         list anew
    suspicious     a list of Services without default/kubernetes      list anew
    internal       a bug of ours; logged with its traceback            list anew

After every failure there is a growing, random pause. None of these removes anything from the cache:
objects go only by a DELETED event or by a complete list that does not have them. A single object
that cannot be decoded becomes a Problem, and its last good version stays; one that can be decoded
in part (a NetworkPolicy) is stored as such, and the parts become Problems.

Lists ask for no resourceVersion, that is, for the present state as etcd has it: after a change
of API server an older answer out of a server's own cache would roll objects back.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from msgspec import Struct
from tenacity import RetryCallState, Retrying, wait_random_exponential

from kube_router_py.cluster import decode
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, RefusedError, Stream
from kube_router_py.cluster.objects import Service
from kube_router_py.cluster.revision import is_older
from kube_router_py.errors import ApiError
from kube_router_py.problem import Problem

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Objects per chunk: 500 keeps the peak of memory at its settled size.
_LIST_LIMIT = 500
# A watch refused with 5xx more often than this in a row is replaced by a list: a server answers
# 504 for a version that it does not have, and after a restore from backup it never will.
_RESUMPTIONS = 3
# How long a watch must have held for the failures before it to be forgotten, in seconds.
_STABLE_S = 20.0
# A watch that ends sooner than this, though a longer one was asked for, counts as a failure,
# however properly it ended.
_TOO_SHORT_S = 1.0
_APISERVER_SERVICE = "default/kubernetes"


class Timing(Struct, frozen=True):
    """How patient a reflector is; all in seconds.

    ``retry_*`` bound the random pause after a failure: it is drawn between ``retry_min_s`` and a
    bound that doubles from ``retry_first_s`` to ``retry_max_s``. ``watch_*`` bound the length asked
    of a watch, drawn anew each time so that nodes do not reconnect together. ``idle_s`` is the
    longest silence: servers send a bookmark about every minute.
    """

    retry_min_s: float = 0.1
    retry_first_s: float = 0.5
    retry_max_s: float = 15.0
    watch_min_s: float = 300.0
    watch_max_s: float = 600.0
    idle_s: float = 150.0


class _Failure(Exception):
    """Something that ends an attempt: why, and whether the watch's version is of no use now."""

    def __init__(
        self, reason: str, message: str, *, relist: bool, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.relist = relist
        self.retry_after_s = retry_after_s


class Reflector(Generic[T]):
    """See the module docstring. ``label_selector`` and ``field_selector`` restrict to a part,
    ``namespace`` to the objects of one namespace. ``keep`` says which objects the cache is to
    hold, where no selector can: one that does not pass (any more) is as good as deleted.

    ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        client: Client,
        cache: Cache,
        kind: type[T],
        *,
        label_selector: str = "",
        field_selector: str = "",
        namespace: str = "",
        keep: Callable[[T], bool] = lambda _: True,
        timing: Timing | None = None,
        list_limit: int = _LIST_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.name = kind.__name__
        self._client = client
        self._cache = cache
        self._path = decode.RESOURCES[kind].path
        if namespace:
            parent, _, plural = self._path.rpartition("/")
            self._path = f"{parent}/namespaces/{namespace}/{plural}"
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._selection = {name: text for name, text in selectors.items() if text}
        self._keep = keep
        self._decoder = decode.ObjectDecoder(kind)
        self._timing = timing or Timing()
        self._list_limit = list_limit
        self._clock = clock
        self._retrying = Retrying()  # tenacity's wait strategies want to be asked through one
        self._wait = wait_random_exponential(
            multiplier=self._timing.retry_first_s,
            max=self._timing.retry_max_s,
            min=self._timing.retry_min_s,
        )
        self._revision: str | None = None  # where to watch from; None: list first
        self._incomplete = False
        self._failures = 0
        self._refused_resumptions = 0
        self._last_reason = ""
        self._told: set[str] = set()  # reasons logged since the last time that a watch stood
        self._stopping = threading.Event()
        self._stream_lock = threading.Lock()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"reflector-{self.name}")
        self._thread.daemon = True  # a hanging name server must not keep the process alive

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread, wherever it waits; True if it has ended in time.

        A blocked watch and a pause end at once; a request that no server has answered yet ends
        at its own timeout. The cache keeps what it has.
        """
        self._stopping.set()
        with self._stream_lock:
            if self._stream is not None:
                self._stream.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._revision is None:
                    self._list()
                self._watch(self._revision or "")
            except _Failure as failure:
                if not self._stopping.is_set():
                    self._note(failure)
            except Exception as error:  # noqa: BLE001 - told, counted, and the kind goes on
                _log.exception("reflector failed kind=%s", self.name)
                self._note(_Failure("internal", f"{type(error).__name__}: {error}", relist=True))

    def _list(self) -> None:
        objects: dict[str, Any] = {}
        problems: dict[str, Problem] = {}
        flaws: dict[str, tuple[Problem, ...]] = {}
        token, restarts, limit, complete = "", 0, self._list_limit, True
        while True:
            query = dict(self._selection)
            if limit:
                query["limit"] = str(limit)
            if token:
                query["continue"] = token
            try:
                page = self._decoder.page(self._client.list(self._path, query))
            except RefusedError as error:
                if error.status == 410 and token:
                    # The snapshot behind the chunks was compacted away. Once may be bad luck; a
                    # list that takes longer than snapshots live can only be had in one piece.
                    restarts += 1
                    objects, problems, flaws, token, complete = {}, {}, {}, "", True
                    limit = self._list_limit if restarts < 2 else 0
                    continue
                raise _failure_of(error, relist=True) from error
            except ApiError as error:
                reason = "undecodable" if isinstance(error, decode.UndecodableError) else None
                raise _failure_of(error, relist=True, reason=reason) from error
            if self._stopping.is_set():
                return
            self._cache.touch(self.kind)
            for item in page.items:
                if item.object is not None:
                    if self._keep(item.object):
                        objects[item.key] = self._keep_known(item.key, item.object)
                        if item.flaws:
                            flaws[item.key] = item.flaws
                elif item.problem is not None:
                    problems[item.key] = item.problem
                    complete = complete and bool(item.key)
            token = page.next
            if not token:
                break
        if self._is_suspicious(objects, problems):
            raise _Failure(
                "suspicious",
                f"the list of Services ({len(objects)}) lacks {_APISERVER_SERVICE}, which every"
                f" API server keeps there itself; it is not believed and everything stays",
                relist=True,
            )
        told = {*problems.values(), *(flaw for found in flaws.values() for flaw in found)}
        for problem in told.difference(self._cache.problems()):
            self._tell(problem)
        self._cache.replace(
            self.kind, objects.values(), page.revision, problems, flaws=flaws, complete=complete
        )
        self._revision = page.revision
        self._incomplete = not complete

    def _keep_known(self, key: str, listed: T) -> T:
        """The stored object where it is equal, so that a relist does not double the memory."""
        stored = self._cache.get(self.kind, key)
        return stored if stored is not None and stored == listed else listed

    def _is_suspicious(self, objects: dict[str, Any], problems: dict[str, Problem]) -> bool:
        return (
            self.kind is Service
            and not self._selection
            and _APISERVER_SERVICE not in objects
            and _APISERVER_SERVICE not in problems
        )

    def _watch(self, revision: str) -> None:
        """Watch until the server ends the watch properly; raises _Failure for any other end."""
        if self._stopping.is_set():
            return
        timing = self._timing
        length_s = random.uniform(timing.watch_min_s, timing.watch_max_s)
        query = {
            **self._selection,
            "resourceVersion": revision,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(length_s))),
        }
        try:
            stream = self._client.watch(self._path, query, idle_timeout_s=timing.idle_s)
        except ApiError as error:
            raise _failure_of(error, relist=False) from error
        with self._stream_lock:
            self._stream = stream
        begun = self._clock()
        try:
            if self._stopping.is_set():
                return  # stop() came before it could see the stream
            self._succeed()
            for line in stream.lines():
                self._apply(line)
        except ApiError as error:
            raise _failure_of(error, relist=False) from error
        finally:
            with self._stream_lock:
                self._stream = None
            stream.close()
            lasted_s = self._clock() - begun
            if lasted_s >= _STABLE_S:
                self._failures = 0
        if self._incomplete:
            # Something listed could have been any object, so nothing was removed: look again.
            self._revision = None
        elif lasted_s < min(_TOO_SHORT_S, length_s / 2):
            raise _Failure("disconnected", "the watch ended as soon as it began", relist=False)

    def _apply(self, line: bytes) -> None:
        try:
            event = decode.watch_event(line)
        except ApiError as error:
            self._cache.report(self.kind, "", Problem(self.name, "", f"{error}; listing anew"))
            raise _Failure("undecodable", str(error), relist=True) from error
        match event.type:
            case "ADDED" | "MODIFIED":
                self._put(self._decoder.item(event.object))
            case "DELETED":
                self._delete(self._decoder.item(event.object))
            case "BOOKMARK":
                self._bookmark(decode.identify(event.object).resource_version or "")
            case "ERROR":
                status = decode.status(event.object)
                text = f"the watch ended with {status.code} {status.reason}: {status.message}"
                raise _Failure("expired", text, relist=True)
            case other:
                text = f"the watch delivered an event of unknown type {other!r}"
                raise _Failure("undecodable", text, relist=True)

    def _put(self, item: decode.Item[T]) -> None:
        if item.object is not None:
            if self._keep(item.object):
                for flaw in self._cache.put(self.kind, item.object, item.revision, item.flaws):
                    self._tell(flaw)
            else:
                self._cache.delete(self.kind, item.key, item.revision)
        elif item.problem is not None:
            if self._cache.report(self.kind, item.key, item.problem, item.revision):
                self._tell(item.problem)
            if not item.key:
                raise _Failure("undecodable", str(item.problem), relist=True)
        self._reach(item.revision)

    def _delete(self, item: decode.Item[T]) -> None:
        # The rest of a deleted object is of no interest: that it decodes is not asked.
        if not item.key:
            raise _Failure("undecodable", "a DELETED event names no object", relist=True)
        self._cache.delete(self.kind, item.key, item.revision)
        self._reach(item.revision)

    def _bookmark(self, revision: str) -> None:
        if is_older(revision, self._revision or ""):
            text = f"the server is at {revision}, before {self._revision}: was it restored?"
            raise _Failure("expired", text, relist=True)
        self._cache.bookmark(self.kind, revision)
        self._reach(revision)

    def _reach(self, revision: str) -> None:
        if revision and not is_older(revision, self._revision or ""):
            self._revision = revision

    # --- failures ------------------------------------------------------------------------------

    def _tell(self, flaw: Problem) -> None:
        found = (flaw.object, flaw.field, flaw.reason)
        _log.warning("object not decodable object=%r field=%r reason=%r", *found)

    def _note(self, failure: _Failure) -> None:
        """Count a failure, log it if it is news, and pause."""
        self._cache.failed(self.kind, failure.reason, str(failure))
        if failure.reason == "expired" != self._last_reason:
            # A server that answers says what to do: the pauses of its absence are over.
            self._failures = 0
        self._last_reason = failure.reason
        self._failures += 1
        if failure.reason == "server":
            self._refused_resumptions += 1
        if failure.relist or self._incomplete or self._refused_resumptions > _RESUMPTIONS:
            self._revision = None
        if failure.reason not in self._told:
            # Once per reason and outage: reasons may take turns as long as a server is coming up.
            # To be too late for a watch is everyday life after an interruption.
            level = logging.INFO if failure.reason == "expired" else logging.WARNING
            what = (self.name, failure.reason, str(failure))
            _log.log(level, "API server trouble kind=%s trouble=%s reason=%r", *what)
            self._told.add(failure.reason)
        state = RetryCallState(self._retrying, None, (), {})
        state.attempt_number = min(self._failures, 32)
        self._stopping.wait(max(self._wait(state), min(failure.retry_after_s, 60.0)))

    def _succeed(self) -> None:
        """A watch stands, on top of a list: say so if the last word was trouble."""
        self._cache.connected(self.kind)
        self._refused_resumptions = 0
        if self._told:
            _log.info("API server in contact again kind=%s", self.name)
            self._told.clear()


def _failure_of(error: ApiError, *, relist: bool, reason: str | None = None) -> _Failure:
    if not isinstance(error, RefusedError):
        return _Failure(reason or "disconnected", str(error), relist=relist)
    if error.status == 410 or error.reason in ("Expired", "Gone"):
        return _Failure("expired", str(error), relist=True)
    if error.status in (401, 403, 429):
        return _Failure("refused", str(error), relist=relist, retry_after_s=error.retry_after_s)
    # Any other 4xx means that the server does not understand the watch, its version for one.
    return _Failure(
        "server",
        str(error),
        relist=relist or error.status < 500,
        retry_after_s=error.retry_after_s,
    )
