"""What a controller manager does for every cluster and the lab's own API server does by itself.

Namespaces get their default ServiceAccount, and are emptied and released when they are deleted;
the finalizers that ``kubectl delete --cascade`` leaves to the garbage collector come off. Only a
real API server needs this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kube_router_py.lab.apiserver.resources import REGISTRY
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.workqueue import WorkQueue

if TYPE_CHECKING:
    from kube_router_py.lab.apiserver.remote import RemoteStore
    from kube_router_py.lab.apiserver.storage import Event

Object = dict[str, Any]

CONTENT = tuple(
    kind.name
    for kind in REGISTRY
    if kind.namespaced and not kind.stored_as and not kind.create_only
)
DEPENDENTS = ("replicasets", "pods", "endpointslices")
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"


class Housekeeping:
    """Both duties, from the store's present state on."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._spaces = WorkQueue("namespace", self._keep_space)
        self._cascades = WorkQueue("cascade", self._end_cascade)
        self._unsubscribe = store.subscribe(self._notice)
        for space in store.list("namespaces"):
            self._spaces.mark(space["metadata"]["name"])

    @property
    def is_idle(self) -> bool:
        return self._spaces.is_idle and self._cascades.is_idle

    def close(self) -> None:
        self._unsubscribe()
        self._spaces.close()
        self._cascades.close()

    def _notice(self, event: Event) -> None:
        metadata = event.object["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if event.resource == "namespaces":
            self._spaces.mark(name)
        elif event.type == "DELETED":
            space = self._store.find("namespaces", namespace) if namespace else None
            if space is not None and space["metadata"].get("deletionTimestamp"):
                self._spaces.mark(namespace)
        elif metadata.get("deletionTimestamp") and _cascades(event.object):
            self._cascades.mark(f"{event.resource}/{namespace}/{name}")

    def _keep_space(self, name: str) -> None:
        space = self._store.find("namespaces", name)
        if space is None:
            return
        if not space["metadata"].get("deletionTimestamp"):
            if self._store.find("serviceaccounts", "default", name) is None:
                account = {"metadata": {"name": "default", "namespace": name}}
                self._store.create("serviceaccounts", account)
            return
        left = [
            obj
            for resource in CONTENT
            for obj in self._store.list(resource, name)
            if not self._delete(resource, obj)
        ]
        if not left:
            self._store.finalize_namespace(name)
        # Otherwise the end of the last pod marks the namespace again.

    def _delete(self, resource: str, obj: Object) -> bool:
        """Delete what a namespace holds; whether it is gone."""
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp"):
            return False
        try:
            return self._store.delete(resource, metadata["name"], metadata["namespace"])[1]
        except StatusError as error:
            if error.code == 404:
                return True
            raise

    def _end_cascade(self, key: str) -> None:
        """Foreground deletion is treated as background: the dependents go right after."""
        resource, namespace, name = key.split("/")
        obj = self._store.find(resource, name, namespace)
        if obj is None or not (found := _cascades(obj)):
            return
        metadata = obj["metadata"]
        if ORPHAN in found:
            self._orphan(metadata["uid"])
        kept = [entry for entry in metadata["finalizers"] if entry not in found]
        revision = metadata["resourceVersion"]
        patch = {"metadata": {"finalizers": kept or None, "resourceVersion": revision}}
        self._store.patch(resource, name, patch, namespace=namespace)

    def _orphan(self, uid: str) -> None:
        for resource in DEPENDENTS:
            for obj in self._store.list(resource):
                metadata = obj["metadata"]
                owners = metadata.get("ownerReferences") or []
                left = [owner for owner in owners if owner.get("uid") != uid]
                if len(left) < len(owners):
                    patch = {"metadata": {"ownerReferences": left or None}}
                    self._store.patch(
                        resource, metadata["name"], patch, namespace=metadata["namespace"]
                    )


def _cascades(obj: Object) -> list[str]:
    finalizers = obj["metadata"].get("finalizers") or []
    return [entry for entry in finalizers if entry in (ORPHAN, FOREGROUND)]
