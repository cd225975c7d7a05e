"""The one cache of the cluster's objects: stores, indexes, subscriptions, and how fresh they are.

Reflectors write, one per kind; everything else reads. One lock guards all of it: a change is
written to the store and the indexes, then told to the subscribers, before the lock is released,
so that whoever takes its dirty keys first and reads the cache second misses nothing. Objects are
immutable and may be kept by readers as long as they like.

Which event wins: an object is never rolled back. Where resourceVersions are comparable
(``revision.py``), a put is ignored if it is not newer than what is stored under the key, than the
deletion that removed the key, than a version that could not be decoded, or than the list that the
store was last replaced from; a delete is ignored if it is older than what is stored. Otherwise the
last write wins. A list is the truth even if its version is older than what is stored: that is what
a cluster restored from a backup looks like.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct, structs

from kube_router_py.cluster import indexes
from kube_router_py.cluster.objects import EndpointSlice, Pod, Service
from kube_router_py.cluster.revision import is_not_newer, is_older
from kube_router_py.problem import Problem

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Deletions remembered per kind against late events for the same key; a list makes them obsolete.
_TOMBSTONES = 4096


class Event(Struct, frozen=True):
    """An object came (``old`` is None), changed, or went (``new`` is None)."""

    kind: type
    key: str
    old: Any | None
    new: Any | None


class KindStats(Struct, frozen=True):
    """One kind in numbers. Counters run since the cache was made; ``*_s`` are seconds.

    ``watch_events`` counts what the server sent (bookmarks included), ``changes`` what subscribers
    were told, ``errors`` failures by reason (the reasons are listed in ``reflector``). ``failing``
    says what is wrong with the connection at the moment, ``""`` while a watch stands.
    ``last_contact`` is the clock's reading when the server last said anything about this kind and
    ``stale_s`` how long ago that is; None before the first contact.
    """

    objects: int
    synced: bool
    revision: str
    watch_events: int
    changes: int
    relists: int
    errors: dict[str, int]
    failing: str
    problems: int
    last_contact: float | None
    stale_s: float | None


class _Store(Generic[T]):
    """The state of one kind."""

    def __init__(self) -> None:
        self.objects: dict[str, T] = {}
        self.tombstones: OrderedDict[str, str] = OrderedDict()
        self.floor = ""
        self.revision = ""
        self.synced = False
        self.problems: dict[str, Problem] = {}
        self.flaws: dict[str, tuple[Problem, ...]] = {}  # of what could be decoded in part
        self.unreadable: dict[str, str] = {}  # revision of what could not be decoded, by key
        self.subscribers: list[Callable[[Event], None]] = []
        self.indexes: list[indexes.Index] = []
        self.watch_events = 0
        self.changes = 0
        self.relists = 0
        self.errors: Counter[str] = Counter()
        self.failing = ""
        self.last_contact: float | None = None

    def all_problems(self) -> list[Problem]:
        return [*self.problems.values(), *(flaw for found in self.flaws.values() for flaw in found)]


class Cache:
    """See the module docstring. ``clock`` is monotonic, in seconds."""

    def __init__(self, kinds: Iterable[type], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Reentrant: a subscriber may read the cache while it is being told.
        self._lock = threading.RLock()
        self._synced = threading.Condition(self._lock)
        self._stores: dict[type, _Store[Any]] = {kind: _Store() for kind in kinds}
        self._slices = self._index(EndpointSlice, indexes.service_of_slice)
        self._vips = self._index(Service, indexes.vips_of_service)
        self._pod_ips = self._index(Pod, indexes.ips_of_pod)
        self._pod_nodes = self._index(Pod, indexes.node_of_pod)
        self._pod_namespaces = self._index(Pod, indexes.namespace_of_pod)

    @property
    def kinds(self) -> tuple[type, ...]:
        return tuple(self._stores)

    # --- writing: reflectors and tests ---------------------------------------------------------

    def put(
        self, kind: type, obj: Any, revision: str = "", flaws: tuple[Problem, ...] = ()
    ) -> tuple[Problem, ...]:
        """Add or change one object. No event if it differs in nothing but resourceVersion.

        ``revision`` is the version that the watch has reached with it; by default the object's own.
        ``flaws`` are parts of it that could not be decoded; returns those that are news.
        """
        meta = obj.metadata
        revision = revision or meta.resource_version
        with self._lock:
            store = self._stores[kind]
            self._reach(store, revision)
            if self._is_late(store, meta.key, revision):
                return ()
            known = store.flaws.get(meta.key, ())
            self._readable(store, meta.key)
            if flaws:
                store.flaws[meta.key] = flaws
            self._write(store, kind, meta.key, obj)
            return tuple(each for each in flaws if each not in known)

    def delete(self, kind: type, key: str, revision: str = "") -> None:
        """Remove one object; nothing happens if there is none or the deletion is an old one."""
        with self._lock:
            store = self._stores[kind]
            self._reach(store, revision)
            # Equal is not late here: a server may send the deleted object at its last version.
            stored = store.objects.get(key)
            known = stored.metadata.resource_version if stored is not None else ""
            if is_older(revision, known) or is_older(revision, store.unreadable.get(key, "")):
                return
            self._readable(store, key)
            if revision and not is_older(revision, store.tombstones.get(key, "")):
                store.tombstones[key] = revision
                store.tombstones.move_to_end(key)
                while len(store.tombstones) > _TOMBSTONES:
                    store.tombstones.popitem(last=False)
            self._write(store, kind, key, None)

    def replace(
        self,
        kind: type,
        objects: Iterable[Any],
        revision: str,
        problems: Mapping[str, Problem] | None = None,
        *,
        flaws: Mapping[str, tuple[Problem, ...]] | None = None,
        complete: bool = True,
    ) -> None:
        """Make the store equal to a list, by exactly the events this takes; the kind is synced.

        ``problems`` are, by key, the listed objects that could not be decoded: their last good
        version stays. ``flaws``, by key, are parts of ``objects`` that could not. With
        ``complete=False`` the list holds an item that could be any object, and nothing is removed
        at all.
        """
        problems = dict(problems or {})
        wanted = {obj.metadata.key: obj for obj in objects}
        with self._lock:
            store = self._stores[kind]
            store.tombstones.clear()
            store.floor = store.revision = revision
            store.last_contact = self._clock()
            store.relists += 1
            store.problems = problems
            store.flaws = dict(flaws or {})
            store.unreadable = dict.fromkeys(problems, revision)
            if complete:
                gone = [k for k in store.objects if k not in wanted and k not in problems]
                for key in gone:
                    self._write(store, kind, key, None)
            for key, obj in wanted.items():
                self._write(store, kind, key, obj)
            store.synced = True
            self._synced.notify_all()

    def bookmark(self, kind: type, revision: str) -> None:
        """The server has nothing newer than what it sent, up to ``revision``."""
        with self._lock:
            self._reach(self._stores[kind], revision)

    def touch(self, kind: type) -> None:
        """The server said something about this kind, just now."""
        with self._lock:
            self._stores[kind].last_contact = self._clock()

    def report(self, kind: type, key: str, problem: Problem, revision: str = "") -> bool:
        """An object (``""``: none in particular) could not be decoded; what is stored stays.

        Returns whether that is news.
        """
        with self._lock:
            store = self._stores[kind]
            self._reach(store, revision)
            if key and self._is_late(store, key, revision):
                return False
            known = store.problems.get(key)
            store.problems[key] = problem
            store.unreadable[key] = revision
            return known != problem

    def clear(self, kind: type, key: str) -> None:
        """Take a reported problem back."""
        with self._lock:
            self._readable(self._stores[kind], key)

    def failed(self, kind: type, reason: str, message: str) -> None:
        """Listing or watching failed: counted under ``reason``, told by ``message``."""
        with self._lock:
            store = self._stores[kind]
            store.errors[reason] += 1
            store.failing = message

    def connected(self, kind: type) -> None:
        """A watch stands: nothing is wrong any more."""
        with self._lock:
            store = self._stores[kind]
            store.last_contact = self._clock()
            store.failing = ""

    # --- reading -------------------------------------------------------------------------------

    def get(self, kind: type[T], key: str) -> T | None:
        with self._lock:
            found: T | None = self._stores[kind].objects.get(key)
            return found

    def list(self, kind: type[T]) -> list[T]:
        """All objects of a kind, in no particular order."""
        with self._lock:
            return [*self._stores[kind].objects.values()]

    def slices_of(self, service_key: str) -> tuple[EndpointSlice, ...]:
        """The EndpointSlices of a Service (``namespace/name``), sorted by name."""
        with self._lock:
            store = self._stores.get(EndpointSlice)
            if store is None:
                return ()
            return tuple(store.objects[key] for key in sorted(self._slices.keys(service_key)))

    def services_of_vip(self, ip: str) -> frozenset[str]:
        """Keys of the Services with this cluster, external or load-balancer address."""
        return self._keys_of_ip(self._vips, ip)

    def pods_of_ip(self, ip: str) -> frozenset[str]:
        """Keys of the pods with this address; finished pods and host-network pods included."""
        return self._keys_of_ip(self._pod_ips, ip)

    def pods_of_node(self, node: str) -> frozenset[str]:
        with self._lock:
            return self._pod_nodes.keys(node)

    def pods_in_namespace(self, namespace: str) -> frozenset[str]:
        with self._lock:
            return self._pod_namespaces.keys(namespace)

    def subscribe(self, kinds: Iterable[type], notify: Callable[[Event], None]) -> None:
        """Call ``notify`` for every change of these kinds from now on.

        It is called under the cache's lock, in the reflector's thread, after the store and the
        indexes are written. It must do no more than mark keys.
        """
        with self._lock:
            for kind in kinds:
                self._stores[kind].subscribers.append(notify)

    def is_synced(self, kinds: Iterable[type] | None = None) -> bool:
        """Whether each of these kinds (all by default) has been listed completely once."""
        with self._lock:
            return all(self._stores[k].synced for k in (self._stores if kinds is None else kinds))

    def wait_synced(self, kinds: Iterable[type] | None, timeout_s: float) -> bool:
        """Wait until ``is_synced(kinds)``; False if that did not happen in time."""
        wanted = None if kinds is None else tuple(kinds)
        with self._synced:
            return self._synced.wait_for(lambda: self.is_synced(wanted), timeout_s)

    def revisions(self) -> dict[type, str]:
        """The last resourceVersion seen per kind, bookmarks included; ``""`` before a list."""
        with self._lock:
            return {kind: store.revision for kind, store in self._stores.items()}

    def problems(self) -> tuple[Problem, ...]:
        """What could not be decoded: whole objects, which stay as they were, and parts; sorted."""
        with self._lock:
            return tuple(sorted(each for s in self._stores.values() for each in s.all_problems()))

    def stats(self) -> dict[type, KindStats]:
        now = self._clock()
        with self._lock:
            return {
                kind: KindStats(
                    objects=len(store.objects),
                    synced=store.synced,
                    revision=store.revision,
                    watch_events=store.watch_events,
                    changes=store.changes,
                    relists=store.relists,
                    errors=dict(store.errors),
                    failing=store.failing,
                    problems=len(store.all_problems()),
                    last_contact=store.last_contact,
                    stale_s=None if store.last_contact is None else now - store.last_contact,
                )
                for kind, store in self._stores.items()
            }

    # --- inside, under the lock ----------------------------------------------------------------

    def _index(self, kind: type, terms_of: Callable[[Any], Iterable[str]]) -> indexes.Index:
        index = indexes.Index(terms_of)
        if kind in self._stores:
            self._stores[kind].indexes.append(index)
        return index

    def _keys_of_ip(self, index: indexes.Index, ip: str) -> frozenset[str]:
        canonical = indexes.canonical_ip(ip)
        with self._lock:
            return index.keys(canonical) if canonical else frozenset()

    def _reach(self, store: _Store[Any], revision: str) -> None:
        """One more event of the watch, which has come as far as ``revision``."""
        store.watch_events += 1
        store.last_contact = self._clock()
        if revision and not is_older(revision, store.revision):
            store.revision = revision

    def _readable(self, store: _Store[Any], key: str) -> None:
        store.problems.pop(key, None)
        store.flaws.pop(key, None)
        store.unreadable.pop(key, None)

    def _is_late(self, store: _Store[Any], key: str, revision: str) -> bool:
        if is_not_newer(revision, store.floor):
            return True
        if is_not_newer(revision, store.unreadable.get(key, "")):
            return True
        stored = store.objects.get(key)
        known = stored.metadata.resource_version if stored else store.tombstones.get(key, "")
        return is_not_newer(revision, known)

    def _write(self, store: _Store[Any], kind: type, key: str, new: Any | None) -> None:
        old = store.objects.get(key)
        if old is new:
            return
        if new is None:
            del store.objects[key]
        else:
            store.objects[key] = new
            store.tombstones.pop(key, None)
            if old is not None and _same_but_for_revision(old, new):
                return
        for index in store.indexes:
            index.update(key, old, new)
        store.changes += 1
        event = Event(kind, key, old, new)
        for notify in store.subscribers:
            try:
                notify(event)
            except Exception:  # noqa: BLE001 - one subscriber's bug must not keep others ignorant
                _log.exception("subscriber failed object=%r", f"{kind.__name__} {key}")


def _same_but_for_revision(old: Any, new: Any) -> bool:
    meta = structs.replace(new.metadata, resource_version=old.metadata.resource_version)
    same: bool = structs.replace(new, metadata=meta) == old
    return same
