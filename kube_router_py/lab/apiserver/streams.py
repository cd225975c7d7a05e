"""Watch streams: one JSON event a line, for as long as client and timeout allow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from . import tables
from .reading import match_of, number, revision_of
from .resources import Resource
from .status import Object, StatusError
from .storage import Event, Watch
from .store import Store
from .targets import Target
from .views import show

BOOKMARK_PERIOD_S = 60.0


class Raw(NamedTuple):
    """Bytes to send as they are (a test feeds garbage)."""

    data: bytes


class Bookmark(NamedTuple):
    """Tell the client how far it is: everything up to this revision was sent before."""

    revision: int
    ends_initial: bool = False


class Hangup(NamedTuple):
    """End this stream."""


class Stream:
    """One open watch request."""

    def __init__(
        self, store: Store, target: Target, query: Mapping[str, str], table: str = ""
    ) -> None:
        """``table``: what rows carry (Object, Metadata, None) when the client wants Tables.

        Raises StatusError for what is wrong with the request. Events count from here on.
        """
        self.resource: Resource = target.resource
        self._store = store
        self._namespace = target.namespace
        self._match = match_of(query, target)
        self._table = table
        self._has_columns = False
        self._bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        self._timeout_s = number(query, "timeoutSeconds") or random.uniform(1800, 3600)
        initial = query.get("sendInitialEvents")
        self.failure: StatusError | None = None
        self._backlog: list[Any] = []
        asked = revision_of(query, store)
        name = self.resource.name
        try:
            if initial == "true" or (asked == 0 and initial != "false"):
                found = store.storage.list(name, self._namespace or None)
                self._backlog = [
                    Event("ADDED", name, obj, None, int(obj["metadata"]["resourceVersion"]))
                    for obj in found
                ]
                if initial == "true":
                    self._backlog.append(Bookmark(store.revision, ends_initial=True))
            elif asked:
                self._backlog = list(store.storage.events_since(asked, name))
        except StatusError as error:
            self.failure = error
        self.watch: Watch = store.watch(name)

    def push_bookmark(self) -> None:
        """Queue a bookmark at the current revision, for a client that takes bookmarks."""
        if self._bookmarks:
            self.watch.offer(Bookmark(self._store.revision))

    async def run(self, write: Callable[[bytes], Any]) -> None:
        """Write lines with ``await write(data)`` until the time is over or a Hangup is queued."""
        if self.failure is not None:
            await write(_line("ERROR", self.failure.body()))
            return
        end = time.monotonic() + self._timeout_s
        if not await self._send(self._backlog, write):
            return
        self._backlog = []
        while True:
            left = end - time.monotonic()
            if left <= 0:
                break
            if not await self.watch.wait(min(left, BOOKMARK_PERIOD_S)) and left > BOOKMARK_PERIOD_S:
                self.push_bookmark()
            if not await self._send(self.watch.take(), write):
                return
        if self._bookmarks:  # the next watch then resumes from here
            await write(self._bookmark(Bookmark(self._store.revision)))

    async def _send(self, items: list[Any], write: Callable[[bytes], Any]) -> bool:
        lines: list[bytes] = []
        more = True
        for item in items:
            if isinstance(item, Event):
                line = self._event(item)
                if line:
                    lines.append(line)
            elif isinstance(item, Bookmark):
                lines.append(self._bookmark(item))
            elif isinstance(item, Raw):
                lines.append(item.data.rstrip(b"\n") + b"\n")
            else:
                more = False
                break
        if lines:
            await write(b"".join(lines))
        return more

    def _event(self, event: Event) -> bytes:
        if self._namespace and event.object["metadata"].get("namespace") != self._namespace:
            return b""
        type_ = event.type
        if self._match is not None:
            is_in = self._match(event.object)
            was_in = event.previous is not None and self._match(event.previous)
            if type_ == "DELETED":
                is_in = was_in
            elif is_in:
                type_ = "MODIFIED" if was_in else "ADDED"
            elif was_in:
                type_, is_in = "DELETED", True
            if not is_in:
                return b""
        if self._table:
            obj = show(self.resource, event.object)
            meta = {"resourceVersion": str(event.revision)}
            table = tables.render(
                self.resource, [obj], meta, time.time(),
                include=self._table, with_columns=not self._has_columns,
            )  # fmt: skip
            self._has_columns = True
            return _line(type_, table)
        if self.resource.stored_as:
            return _line(type_, show(self.resource, event.object))
        return event.line(type_)

    def _bookmark(self, bookmark: Bookmark) -> bytes:
        metadata: Object = {
            "resourceVersion": str(bookmark.revision),
            "creationTimestamp": None,
        }
        if bookmark.ends_initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        if self._table:
            return _line("BOOKMARK", tables.render(self.resource, [], metadata, 0.0))
        kind = {"kind": self.resource.kind, "apiVersion": self.resource.api_version}
        return _line("BOOKMARK", {**kind, "metadata": metadata})


def _line(type_: str, obj: Object) -> bytes:
    return msgspec.json.encode({"type": type_, "object": obj}) + b"\n"


async def serve(request: web.BaseRequest, stream: Stream) -> web.StreamResponse:
    """Answer a watch request until the stream ends or the client goes away."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        # Headers leave at once: a client must not wait for the first event to know it watches.
        await stream.run(response.write)
        await response.write_eof()
    except ConnectionError:
        pass  # the client went away; the kernel told us late
    finally:
        stream.watch.close()
    return response
