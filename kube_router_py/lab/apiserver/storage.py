"""Storage: objects under one global revision, with their history, as etcd keeps them.

Objects are plain dicts, immutable by convention: a write stores a new dict, so readers and watchers
share what they got and nobody copies. Every write is one ``Event``; the events since the last
compaction allow a watch to resume and a list to continue at an older revision.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from .status import Object, expired

Objects = list[Object]  # Storage.list hides the builtin inside the class
Events = list["Event"]
HISTORY_EVENTS = 20_000  # older ones are compacted away; a lab rarely writes that many

_log = logging.getLogger(__name__)
_encode = msgspec.json.encode


class Event:
    """One write: ``type`` is ADDED, MODIFIED or DELETED; ``previous`` is None for ADDED.

    The object of a DELETED event is the last state, with the revision of the deletion.
    """

    __slots__ = ("_bytes", "object", "previous", "resource", "revision", "type")

    def __init__(
        self, type_: str, resource: str, object_: Object, previous: Object | None, revision: int
    ) -> None:
        self.type = type_
        self.resource = resource
        self.object = object_
        self.previous = previous
        self.revision = revision
        self._bytes: bytes | None = None

    def line(self, type_: str) -> bytes:
        """The watch line under another type (a selector may turn MODIFIED into ADDED).

        The object is encoded once, however many watches send it.
        """
        if self._bytes is None:
            self._bytes = _encode(self.object)
        return b'{"type":"%s","object":%s}\n' % (type_.encode(), self._bytes)

    def __repr__(self) -> str:
        meta = self.object.get("metadata", {})
        where = f"{meta.get('namespace', '')}/{meta.get('name', '')}"
        return f"<{self.type} {self.resource} {where} @{self.revision}>"


class Watch:
    """A queue of events for one consumer; ``await next()`` or ``take()`` what is there."""

    def __init__(self, storage: Storage, resources: frozenset[str] | None) -> None:
        self._storage = storage
        self._resources = resources
        self._waiter: asyncio.Future[None] | None = None
        self.pending: deque[Any] = deque()

    def offer(self, item: Any, resource: str | None = None) -> None:
        """Queue an item if it concerns this watch (None: it concerns every watch)."""
        if resource is not None and self._resources is not None and resource not in self._resources:
            return
        self.pending.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self) -> list[Any]:
        """Everything queued, without waiting."""
        items = list(self.pending)
        self.pending.clear()
        return items

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something is queued; False when ``timeout_s`` passed first."""
        if self.pending:
            return True
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._waiter, timeout_s)
        except TimeoutError:
            return bool(self.pending)
        finally:
            self._waiter = None
        return True

    async def next(self) -> Any:
        """The next event, waiting for it."""
        await self.wait()
        return self.pending.popleft()

    def close(self) -> None:
        """Receive no more events."""
        self._storage.forget(self)


class Storage:
    """``resource -> namespace -> name -> object`` with revisions, history and watches."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted_revision = 0
        self._objects: dict[str, dict[str, dict[str, Object]]] = {}
        self._history: deque[Event] = deque()
        self._watches: list[Watch] = []
        self._subscribers: list[tuple[frozenset[str] | None, Callable[[Event], None]]] = []
        self._undelivered: deque[Event] = deque()
        self._delivering = False

    # --- reading -------------------------------------------------------------------------------

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects.get(resource, {}).get(namespace, {}).get(name)

    def list(self, resource: str, namespace: str | None = None) -> Objects:
        """All objects, of every namespace when it is None, sorted by namespace and name."""
        spaces = self._objects.get(resource, {})
        if namespace is not None:
            objects = spaces.get(namespace, {})
            return [objects[name] for name in sorted(objects)]
        return [spaces[space][name] for space in sorted(spaces) for name in sorted(spaces[space])]

    def list_at(self, resource: str, namespace: str | None, revision: int) -> Objects:
        """The list as it was at an older revision; 410 when its history is compacted."""
        if revision >= self.revision:
            return self.list(resource, namespace)
        if revision < self.compacted_revision:
            raise expired(
                "The provided continue parameter is too old to display a consistent list result. "
                "You must start a new list without the continue parameter."
            )
        state = {_key(obj): obj for obj in self.list(resource, namespace)}
        for event in reversed(self._history):
            if event.revision <= revision:
                break
            key = _key(event.object)
            if event.resource != resource or (namespace is not None and key[0] != namespace):
                continue
            if event.previous is None:
                state.pop(key, None)
            else:
                state[key] = event.previous
        return [state[key] for key in sorted(state)]

    def is_namespace_empty(self, namespace: str) -> bool:
        """No namespaced object of any kind is left in it."""
        return not any(spaces.get(namespace) for spaces in self._objects.values())

    # --- writing -------------------------------------------------------------------------------

    def put(self, resource: str, obj: Object) -> Object:
        """Store a new or changed object under the next revision; the dict becomes the store's."""
        namespace, name = _key(obj)
        objects = self._objects.setdefault(resource, {}).setdefault(namespace, {})
        previous = objects.get(name)
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        objects[name] = obj
        type_ = "ADDED" if previous is None else "MODIFIED"
        self._publish(Event(type_, resource, obj, previous, self.revision))
        return obj

    def remove(self, resource: str, namespace: str, name: str) -> Object:
        """Remove an object that exists; returns its last state under the deletion's revision."""
        previous = self._objects[resource][namespace].pop(name)
        self.revision += 1
        metadata = {**previous["metadata"], "resourceVersion": str(self.revision)}
        last = {**previous, "metadata": metadata}
        self._publish(Event("DELETED", resource, last, previous, self.revision))
        return last

    def compact(self) -> None:
        """Forget all history: watches and continued lists of older revisions answer 410."""
        self._history.clear()
        self.compacted_revision = self.revision

    def _publish(self, event: Event) -> None:
        self._history.append(event)
        if len(self._history) > HISTORY_EVENTS:
            self.compacted_revision = self._history.popleft().revision
        for watch in self._watches:
            watch.offer(event, event.resource)
        # A subscriber may write: its event is delivered after this one, to everybody.
        self._undelivered.append(event)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._undelivered:
                current = self._undelivered.popleft()
                for resources, callback in tuple(self._subscribers):
                    if resources is not None and current.resource not in resources:
                        continue
                    try:
                        callback(current)
                    except Exception:  # noqa: BLE001 the write has happened; one subscriber fails alone
                        _log.exception("a subscriber failed on %r", current)
        finally:
            self._delivering = False

    # --- watching ------------------------------------------------------------------------------

    def events_since(self, revision: int, resource: str) -> Events:
        """The events after a revision; 410 when they were compacted."""
        if revision < self.compacted_revision:
            raise expired(f"too old resource version: {revision} ({self.compacted_revision})")
        history = list(self._history)
        start = bisect_right(history, revision, key=lambda event: event.revision)
        return [event for event in history[start:] if event.resource == resource]

    def watch(self, resources: Iterable[str] | None = None) -> Watch:
        """A queue that receives every event from now on (None: of all resources)."""
        watch = Watch(self, None if resources is None else frozenset(resources))
        self._watches.append(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        """Stop filling a watch's queue."""
        if watch in self._watches:
            self._watches.remove(watch)

    def subscribe(
        self, callback: Callable[[Event], None], resources: Iterable[str] | None = None
    ) -> Callable[[], None]:
        """Call ``callback`` for each event, in order, before the write returns; returns the undo.

        When a subscriber writes, that write's events follow after the current one.
        """
        entry = (None if resources is None else frozenset(resources), callback)
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
