"""Deletion: grace periods, finalizers, orphans and namespaces.

A scheduled pod is first marked and removed by its kubelet; finalizers keep an object until they are
gone; a namespace empties itself and goes when the last object in it has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from . import status
from .metadata import timestamp
from .resources import BY_NAME, Resource
from .status import Object

if TYPE_CHECKING:
    from .store import Store


class How(NamedTuple):
    """DeleteOptions; ``grace_period_s`` None means the object's own."""

    grace_period_s: int | None = None
    propagation: str = "Background"
    uid: str = ""
    revision: str = ""
    dry_run: bool = False


def delete(
    store: Store, kind: Resource, old: Object, how: How, clock: Callable[[], float]
) -> tuple[Object, bool]:
    """Delete an object; returns its last state and whether it is gone already."""
    meta = old["metadata"]
    name = meta["name"]
    if how.uid and how.uid != meta["uid"]:
        why = (
            f"Precondition failed: UID in precondition: {how.uid}, "
            f"UID in object meta: {meta['uid']}"
        )
        raise status.conflict(kind.group_resource, name, why)
    if how.revision and how.revision != meta["resourceVersion"]:
        raise status.conflict(kind.group_resource, name)
    if kind.name == "namespaces" and name in ("default", "kube-system"):
        raise status.forbidden(kind.group_resource, name, "this namespace may not be deleted")
    grace = _grace(kind, old, how.grace_period_s)
    if how.dry_run:
        return old, grace == 0 and not meta.get("finalizers")
    if how.propagation == "Orphan":
        _orphan(store, meta["uid"])
    if kind.name == "namespaces":
        return _delete_namespace(store, kind, old, clock)
    if grace == 0 and not meta.get("finalizers"):
        return store.remove(kind, old), True
    if meta.get("deletionTimestamp") and meta.get("deletionGracePeriodSeconds", 0) <= grace:
        return old, False
    marked = {
        **meta,
        "deletionTimestamp": timestamp(clock() + grace),
        "deletionGracePeriodSeconds": grace,
    }
    return store.write(kind, {**old, "metadata": marked}, old), False


def finish_namespace(store: Store, space: Object) -> None:
    """Remove a terminating namespace once it is empty."""
    name = space["metadata"]["name"]
    if store.storage.is_namespace_empty(name) and store.find("namespaces", name) is not None:
        store.storage.remove("namespaces", "", name)


def _grace(kind: Resource, obj: Object, asked: int | None) -> int:
    if kind.name != "pods":
        return 0
    spec, state = obj.get("spec"), obj.get("status")
    if not isinstance(spec, dict) or not isinstance(state, dict | None):
        return 0  # malformed: no kubelet can have started it
    if not spec.get("nodeName") or (state or {}).get("phase") in ("Succeeded", "Failed"):
        return 0  # no kubelet would answer
    if asked is not None and asked >= 0:
        return int(asked)
    own = spec.get("terminationGracePeriodSeconds")
    return own if isinstance(own, int) and own > 0 else 0


def _orphan(store: Store, uid: str) -> None:
    for resource in BY_NAME:
        for obj in store.storage.list(resource):
            owners = obj["metadata"].get("ownerReferences") or []
            left = [owner for owner in owners if owner.get("uid") != uid]
            if len(left) != len(owners):
                metadata = {**obj["metadata"], "ownerReferences": left}
                store.storage.put(resource, {**obj, "metadata": metadata})


def _delete_namespace(
    store: Store, kind: Resource, old: Object, clock: Callable[[], float]
) -> tuple[Object, bool]:
    name = old["metadata"]["name"]
    if not old["metadata"].get("deletionTimestamp"):
        metadata = {**old["metadata"], "deletionTimestamp": timestamp(clock())}
        terminating = {"phase": "Terminating"}
        old = store.write(kind, {**old, "metadata": metadata, "status": terminating}, old)
        for resource in BY_NAME.values():
            if resource.namespaced:
                store.delete_collection(resource.name, name)
    finish_namespace(store, old)
    return old, store.find("namespaces", name) is None
