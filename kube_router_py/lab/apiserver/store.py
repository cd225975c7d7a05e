"""The API without HTTP: create, update, patch, delete, apply and watch, as the real one does them.

The lab's controllers use ``Store`` in the asyncio loop of the server; the server adds only
authentication, content types and streams. Objects are JSON-like dicts, immutable by convention:
what you read is shared, so build a new dict (or ``own(obj)``) to change it. Every failure is a
``StatusError`` with the code and words of a real API server.

``lenient=True`` skips defaulting, validation and allocation and keeps the status given, so that
tests can feed objects no real API server would accept.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import deletion, managed_fields, patches, service_status, status
from .allocation import Allocator
from .defaulting import default
from .interface import ObjectStore
from .metadata import check_revision, complete_metadata, own, timestamp
from .resources import BY_KIND, BY_NAME, Resource
from .selectors import Match, label_selector
from .status import Object
from .storage import Event, Storage, Watch
from .validation import validate

__all__ = ["Event", "Store", "Watch", "own", "timestamp"]

Objects = list[Object]  # Store.list hides the builtin inside the class


class Store:
    """Every object of the lab's cluster."""

    def __init__(
        self,
        service_cidrs: Sequence[str] = ("10.96.0.0/16",),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``service_cidrs``: one per address family, the cluster's primary family first."""
        self.storage = Storage()
        self.allocator = Allocator(service_cidrs)
        self._clock = clock

    # --- reading -------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision of the newest write."""
        return self.storage.revision

    def find(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """The object, or None."""
        return self.storage.find(resource, namespace, name)

    def get(self, resource: str, name: str, namespace: str = "") -> Object:
        """The object; 404 StatusError when it does not exist."""
        obj = self.storage.find(resource, namespace, name)
        if obj is None:
            raise status.not_found(BY_NAME[resource].group_resource, name)
        return obj

    def list(
        self, resource: str, namespace: str | None = None, selector: str | Match = ""
    ) -> Objects:
        """Objects sorted by namespace and name; ``selector`` is a label selector or a predicate."""
        objects = self.storage.list(resource, namespace)
        if not selector:
            return objects
        match = label_selector(selector) if isinstance(selector, str) else selector
        return [obj for obj in objects if match(obj)]

    def watch(self, *resources: str) -> Watch:
        """A queue of the Events from now on (no name: of all resources). Close it after use."""
        return self.storage.watch(resources or None)

    def subscribe(self, callback: Callable[[Event], None], *resources: str) -> Callable[[], None]:
        """Call back for each Event, before the write returns; returns the function to stop."""
        return self.storage.subscribe(callback, resources or None)

    def compact(self) -> None:
        """Forget history: older watches and continued lists get 410."""
        self.storage.compact()

    # --- writing -------------------------------------------------------------------------------

    def create(
        self,
        resource: str,
        obj: Object,
        *,
        namespace: str = "",
        manager: str = "lab",
        lenient: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Create; returns the stored object. 409 when the name is taken."""
        kind = BY_NAME[resource]
        obj = own(obj)
        metadata = complete_metadata(kind, obj, namespace)
        space = metadata.get("namespace", "")
        self._check_namespace(kind, space, metadata["name"])
        if self.find(resource, metadata["name"], space) is not None:
            raise status.already_exists(kind.group_resource, metadata["name"])
        for name in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(name, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp(self._clock())
        if kind.has_generation:
            metadata["generation"] = 1
        if not lenient:
            if kind.has_status and not kind.keeps_status:
                obj.pop("status", None)
            default(kind, obj)
            validate(kind, obj, None)
            if resource == "services":
                self.allocator.allocate(obj, None)
        return obj if dry_run else self.write(kind, obj, None)

    def update(
        self,
        resource: str,
        obj: Object,
        *,
        namespace: str = "",
        subresource: str = "",
        manager: str = "lab",
        lenient: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Replace the object, or only its status; 409 when its resourceVersion is not current.

        Without a resourceVersion the update is unconditional. Unchanged content writes nothing.
        """
        kind = BY_NAME[resource]
        new = own(obj)
        metadata = complete_metadata(kind, new, namespace)
        old = self.get(resource, metadata["name"], metadata.get("namespace", ""))
        check_revision(kind, metadata, old)
        return self._replace(
            kind, old, new, subresource, manager=manager, lenient=lenient, dry_run=dry_run
        )

    def patch(
        self,
        resource: str,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        form: str = "merge",
        subresource: str = "",
        manager: str = "lab",
        lenient: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Patch the object, or only its status; ``form``: json, merge or strategic."""
        kind = BY_NAME[resource]
        old = self.get(resource, name, namespace)
        new = patches.patch(form, old, patch, kind.kind)
        if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
            raise status.bad_request("the patch leaves no object")
        new = own(new)
        if new["metadata"].get("name") != name:
            raise status.bad_request("the name of the object cannot be patched")
        check_revision(kind, new["metadata"], old)
        return self._replace(
            kind, old, new, subresource, manager=manager, lenient=lenient, dry_run=dry_run
        )

    def server_side_apply(
        self,
        resource: str,
        name: str,
        config: Object,
        *,
        namespace: str = "",
        manager: str = "lab",
        force: bool = False,
        subresource: str = "",
        lenient: bool = False,
        dry_run: bool = False,
    ) -> tuple[Object, bool]:
        """Apply a manager's whole intent; returns the object and whether it was created."""
        kind = BY_NAME[resource]
        old = self.find(resource, name, namespace)
        now = timestamp(self._clock())
        config = own(config)
        new = own(managed_fields.apply(kind, old, config, manager, force=force, now=now))
        if old is None:
            new["metadata"]["name"] = name
            created = self.create(
                resource, new, namespace=namespace, lenient=lenient, dry_run=dry_run
            )
            return created, True
        changed = self._replace(kind, old, new, subresource, lenient=lenient, dry_run=dry_run)
        return changed, False

    def apply(self, obj: Object, *, lenient: bool = False) -> Object:
        """Create the object or strategically merge it into the existing one (``-f`` files)."""
        kind = BY_KIND.get((str(obj.get("apiVersion")), str(obj.get("kind"))))
        if kind is None or kind.create_only:
            raise status.bad_request(
                f'no matches for kind "{obj.get("kind")}" in version "{obj.get("apiVersion")}"'
            )
        metadata = obj.get("metadata") or {}
        namespace = (metadata.get("namespace") or "default") if kind.namespaced else ""
        name = str(metadata.get("name", ""))
        if self.find(kind.name, name, namespace) is None:
            return self.create(kind.name, obj, namespace=namespace, lenient=lenient)
        ignored = ("status", "apiVersion", "kind")
        patch = {key: value for key, value in obj.items() if lenient or key not in ignored}
        return self.patch(
            kind.name, name, patch, namespace=namespace, form="strategic", lenient=lenient
        )

    def bind(self, pod: str, namespace: str, node: str) -> Object:
        """Give a pod its node."""
        return self.patch("pods", pod, {"spec": {"nodeName": node}}, namespace=namespace)

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "",
        *,
        grace_period_s: int | None = None,
        propagation: str = "Background",
        uid: str = "",
        revision: str = "",
        dry_run: bool = False,
    ) -> tuple[Object, bool]:
        """Delete; returns the last state and whether it is gone already.

        A scheduled pod first only gets a deletionTimestamp ``grace_period_s`` ahead (None: its
        terminationGracePeriodSeconds); the kubelet removes it by deleting with 0. Finalizers keep
        an object until they are gone. ``propagation`` Orphan cuts the owner references of
        dependents; otherwise they are left to the garbage collector. ``uid`` and ``revision`` are
        preconditions.
        """
        return deletion.delete(
            self,
            BY_NAME[resource],
            self.get(resource, name, namespace),
            deletion.How(grace_period_s, propagation, uid, revision, dry_run),
            self._clock,
        )

    def delete_collection(
        self, resource: str, namespace: str | None, match: Match | None = None, **how: Any
    ) -> Objects:
        """Delete all that match; returns what was there. ``how`` as for ``delete``."""
        found = [obj for obj in self.storage.list(resource, namespace) if not match or match(obj)]
        for obj in found:
            meta = obj["metadata"]
            self.delete(resource, meta["name"], meta.get("namespace", ""), **how)
        return found

    # --- for deletion and apply ----------------------------------------------------------------

    def _check_namespace(self, kind: Resource, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        space = self.find("namespaces", namespace)
        if space is None:
            raise status.not_found("namespaces", namespace)
        if space["metadata"].get("deletionTimestamp"):
            raise status.forbidden(
                kind.group_resource,
                name,
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated",
            )

    def _replace(
        self,
        kind: Resource,
        old: Object,
        new: Object,
        subresource: str = "",
        *,
        manager: str = "",
        lenient: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Write ``new`` (owned) over ``old``; an empty manager leaves field ownership as given."""
        if subresource == "status":
            merged = {key: value for key, value in old.items() if key != "status"}
            if "status" in new:
                merged["status"] = new["status"]
            new = {**merged, "metadata": {**old["metadata"]}}
            if kind.name == "services" and not lenient:
                service_status.check(kind, new)
        elif kind.has_status and not lenient:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        before, metadata = old["metadata"], new["metadata"]
        for name in (
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
            "generateName",
        ):
            metadata.pop(name, None)
            if name in before:
                metadata[name] = before[name]
        if not lenient and not subresource:
            default(kind, new)
            if kind.name == "services":
                service_status.drop_unfit(new)
                self.allocator.carry_over(new, old)
            validate(kind, new, old)
            if kind.name == "services":
                self.allocator.allocate(new, old)
        if kind.has_generation and managed_fields.intent(new) != managed_fields.intent(old):
            metadata["generation"] = before.get("generation", 0) + 1
        if manager and not subresource.startswith("status"):
            managed_fields.record(kind, old, new, manager, timestamp(self._clock()))
        if new == old or dry_run:
            return old if new == old else new
        unfinished = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds")
        if metadata.get("deletionTimestamp") and not unfinished:
            return self.remove(kind, self.write(kind, new, old))
        return self.write(kind, new, old)

    def write(self, kind: Resource, obj: Object, old: Object | None) -> Object:
        """Store a complete object (owned, with own metadata) and follow its allocations."""
        if kind.name == "services":
            self.allocator.observe(old, obj)
        stored = self.storage.put(kind.name, obj)
        if kind.name == "namespaces" and old is None:
            account = {"metadata": {"name": "default"}}
            self.create("serviceaccounts", account, namespace=obj["metadata"]["name"])
        return stored

    def remove(self, kind: Resource, obj: Object) -> Object:
        """Remove a stored object now; returns its last state."""
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        if kind.name == "services":
            self.allocator.observe(obj, None)
        last = self.storage.remove(kind.name, namespace, metadata["name"])
        space = self.find("namespaces", namespace) if namespace else None
        if space is not None and space["metadata"].get("deletionTimestamp"):
            deletion.finish_namespace(self, space)
        return last


def load(store: ObjectStore, objects: Iterable[Object]) -> Objects:
    """Apply many objects; Namespaces first, as files may name them in any order."""
    ordered = sorted(objects, key=lambda obj: obj.get("kind") != "Namespace")
    return [store.apply(obj) for obj in ordered]
