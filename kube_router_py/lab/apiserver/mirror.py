"""Mirror: what is known of a real API server's objects, from lists, watches and own writes.

Each source tells of an object at a revision; the newest wins, and every change is one Event. Three
rules keep late news from undoing newer ones:

    a watched event not newer than the last list of its kind is part of that list: ignored
    an object not newer than the one held, of the same uid: ignored
    an object whose deletion was answered is gone, whatever a watch still has to tell about it
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from .status import Object
from .storage import Event

Objects = list[Object]
Key = tuple[str, str]

_log = logging.getLogger(__name__)


def key_of(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def revision_of(obj: Object) -> int:
    """Revisions are opaque by contract and numbers in every release so far."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def uid_of(obj: Object) -> str:
    return str(obj["metadata"].get("uid", ""))


class Mirror:
    """The objects of some resources. For the asyncio loop only; subscribers may write."""

    def __init__(self, resources: Iterable[str]) -> None:
        self._objects: dict[str, dict[Key, Object]] = {resource: {} for resource in resources}
        self._floors: dict[str, int] = dict.fromkeys(self._objects, 0)
        self._gone: dict[str, set[str]] = {resource: set() for resource in self._objects}
        self._subscribers: list[tuple[frozenset[str], Callable[[Event], None]]] = []
        self._undelivered: deque[Event] = deque()
        self._delivering = False

    @property
    def resources(self) -> tuple[str, ...]:
        return tuple(self._objects)

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        return self._objects[resource].get((namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> Objects:
        """Sorted by namespace and name."""
        objects = self._objects[resource]
        return [objects[key] for key in sorted(objects) if namespace in (None, key[0])]

    def subscribe(self, callback: Callable[[Event], None], *resources: str) -> Callable[[], None]:
        """Call back for each change (no name: of all resources); returns the undo."""
        entry = (frozenset(resources or self._objects), callback)
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)

    # --- news ----------------------------------------------------------------------------------

    def replace(self, resource: str, objects: Iterable[Object], revision: int) -> None:
        """A complete list; it must have been asked for after everything told here before."""
        listed = {key_of(obj): obj for obj in objects}
        self._gone[resource] &= {uid_of(obj) for obj in listed.values()}
        self._floors[resource] = max(self._floors[resource], revision)
        for key, old in list(self._objects[resource].items()):
            if key not in listed:
                self._remove(resource, old, revision)
        for obj in listed.values():
            self.put(resource, obj)

    def receive(self, resource: str, type_: str, obj: Object) -> None:
        """A watched event: ADDED, MODIFIED or DELETED."""
        if revision_of(obj) <= self._floors[resource]:
            return
        if type_ != "DELETED":
            self.put(resource, obj)
            return
        self._gone[resource].discard(uid_of(obj))
        held = self._objects[resource].get(key_of(obj))
        if held is not None and uid_of(held) == uid_of(obj):
            self._remove(resource, obj, revision_of(obj))

    def put(self, resource: str, obj: Object) -> None:
        """An object as some answer has it."""
        if uid_of(obj) in self._gone[resource]:
            return
        held = self._objects[resource].get(key_of(obj))
        revision = revision_of(obj)
        if held is not None and revision_of(held) >= revision:
            return
        if held is not None and uid_of(held) != uid_of(obj):
            self._remove(resource, held, revision)  # its deletion was never told
            held = None
        self._objects[resource][key_of(obj)] = obj
        type_ = "ADDED" if held is None else "MODIFIED"
        self._publish(Event(type_, resource, obj, held, revision))

    def forget(self, resource: str, obj: Object) -> None:
        """The server answered that it deleted this object for good."""
        held = self._objects[resource].get(key_of(obj))
        if held is not None and uid_of(held) == uid_of(obj):
            self._gone[resource].add(uid_of(obj))
            self._remove(resource, held, revision_of(held))

    def _remove(self, resource: str, last: Object, revision: int) -> None:
        previous = self._objects[resource].pop(key_of(last))
        self._publish(Event("DELETED", resource, last, previous, revision))

    def _publish(self, event: Event) -> None:
        # A subscriber may write: its event is delivered after this one, to everybody.
        self._undelivered.append(event)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._undelivered:
                current = self._undelivered.popleft()
                for resources, callback in tuple(self._subscribers):
                    if current.resource not in resources:
                        continue
                    try:
                        callback(current)
                    except Exception:  # noqa: BLE001 the change has happened; one subscriber fails alone
                        _log.exception("a subscriber failed on %r", current)
        finally:
            self._delivering = False
