"""The controllers a workload needs: deployments, replica sets, endpoint slices, garbage.

They live in the lab's event loop and are told of every own write before it returns; the work itself
happens right after, in small synchronous steps, so no two controllers interleave.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kube_router_py.lab import deployments, endpoints
from kube_router_py.lab.workqueue import WorkQueue

if TYPE_CHECKING:
    from kube_router_py.lab.apiserver.interface import ObjectStore
    from kube_router_py.lab.apiserver.storage import Event

Object = dict[str, Any]
_log = logging.getLogger(__name__)


def key_of(obj: Object) -> str:
    metadata = obj["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


def _split(key: str) -> tuple[str, str]:
    namespace, _, name = key.partition("/")
    return namespace, name


def controller_of(obj: Object, kind: str) -> str | None:
    """Key of the object's controller if that is of the given kind."""
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("kind") == kind:
            return f"{obj['metadata'].get('namespace', '')}/{owner['name']}"
    return None


class DeploymentController:
    """Keeps one ReplicaSet per pod template and shifts replicas to the newest."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.queue = WorkQueue("deployment", self._reconcile)

    def notice(self, event: Event) -> None:
        if event.resource == "deployments":
            self.queue.mark(key_of(event.object))
        elif event.resource == "replicasets" and (
            owner := controller_of(event.object, "Deployment")
        ):
            self.queue.mark(owner)

    def _reconcile(self, key: str) -> None:
        namespace, name = _split(key)
        deployment = self._store.find("deployments", name, namespace)
        if deployment is None or deployment["metadata"].get("deletionTimestamp"):
            return
        owned = [
            replica_set
            for replica_set in self._store.list("replicasets", namespace)
            if deployments.is_owned_by(replica_set, deployment)
        ]
        wanted = deployments.replica_set_for(deployment)
        current_name = wanted["metadata"]["name"]
        current = next((rs for rs in owned if rs["metadata"]["name"] == current_name), None)
        if current is None:
            current = self._store.create("replicasets", wanted)
            owned.append(current)
        others = [rs for rs in owned if rs["metadata"]["name"] != current_name]
        if not deployment["spec"].get("paused"):
            steps = deployments.compile_scales(deployment, current, others)
            for step, replicas in steps.items():
                patch = {"spec": {"replicas": replicas}}
                self._store.patch("replicasets", step, patch, namespace=namespace)
        status = deployments.deployment_status(deployment, current, others)
        if status != deployment.get("status"):
            new = {**deployment, "status": status}
            self._store.update("deployments", new, subresource="status")


class ReplicaSetController:
    """Creates and deletes pods until their number is right."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.queue = WorkQueue("replicaset", self._reconcile)

    def notice(self, event: Event) -> None:
        if event.resource == "replicasets":
            self.queue.mark(key_of(event.object))
        elif event.resource == "pods" and (owner := controller_of(event.object, "ReplicaSet")):
            self.queue.mark(owner)

    def _reconcile(self, key: str) -> None:
        namespace, name = _split(key)
        replica_set = self._store.find("replicasets", name, namespace)
        if replica_set is None or replica_set["metadata"].get("deletionTimestamp"):
            return
        pods = deployments.active_pods(self._store.list("pods", namespace), replica_set)
        wanted = int(replica_set["spec"].get("replicas", 1))
        for _ in range(wanted - len(pods)):
            self._store.create("pods", self._pod(replica_set))
        for pod in deployments.pods_to_delete(pods, len(pods) - wanted):
            self._store.delete("pods", pod["metadata"]["name"], namespace)
        ready = sum(endpoints.is_pod_ready(pod) for pod in pods)
        status = {
            "replicas": len(pods),
            "fullyLabeledReplicas": len(pods),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "observedGeneration": replica_set["metadata"].get("generation", 1),
        }
        status = {name: value for name, value in status.items() if value or name == "replicas"}
        if status != replica_set.get("status"):
            new = {**replica_set, "status": status}
            self._store.update("replicasets", new, subresource="status")

    @staticmethod
    def _pod(replica_set: Object) -> Object:
        metadata = replica_set["metadata"]
        template = replica_set["spec"]["template"]
        given = template.get("metadata") or {}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "labels": given.get("labels") or {},
                "annotations": given.get("annotations") or {},
                "ownerReferences": [
                    deployments.owner_reference("ReplicaSet", "apps/v1", replica_set)
                ],
            },
            "spec": template["spec"],
        }


class EndpointSliceController:
    """Keeps the EndpointSlices of every Service with a selector."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.queue = WorkQueue("endpointslice", self._reconcile)

    def notice(self, event: Event) -> None:
        if event.resource == "services":
            self.queue.mark(key_of(event.object))
        elif event.resource == "nodes":
            if _labels(event.object) != _labels(event.previous):
                for service in self._store.list("services"):
                    self.queue.mark(key_of(service))
        elif event.resource == "endpointslices":
            if owner := controller_of(event.object, "Service"):
                self.queue.mark(owner)
        elif event.resource == "pods":
            states = [event.object, *([event.previous] if event.previous else [])]
            for service in self._store.list("services", event.object["metadata"]["namespace"]):
                selector = service["spec"].get("selector")
                if selector and any(endpoints.selects(selector, pod) for pod in states):
                    self.queue.mark(key_of(service))

    def _reconcile(self, key: str) -> None:
        namespace, name = _split(key)
        service = self._store.find("services", name, namespace)
        if service is None or service["metadata"].get("deletionTimestamp"):
            return  # the garbage collector takes the slices away
        nodes = {node["metadata"]["name"]: node for node in self._store.list("nodes")}
        desired = endpoints.compile_slices(service, self._store.list("pods", namespace), nodes)
        unused = [
            obj
            for obj in self._store.list("endpointslices", namespace)
            if deployments.is_owned_by(obj, service)
            and _labels(obj).get(endpoints.MANAGED_LABEL) == endpoints.MANAGED_BY
        ]
        # A slice is kept for the same family and ports, so that a change is a change of one object.
        waiting = []
        for wanted in desired:
            kept = next(
                (old for old in unused if _shape(old) == _shape(wanted)),
                None,
            )
            if kept is None:
                waiting.append(wanted)
            else:
                unused.remove(kept)
                self._write(kept, wanted)
        for wanted in waiting:
            kept = next((o for o in unused if o["addressType"] == wanted["addressType"]), None)
            if kept is None:
                self._store.create("endpointslices", wanted)
            else:
                unused.remove(kept)
                self._write(kept, wanted)
        for old in unused:
            self._store.delete("endpointslices", old["metadata"]["name"], namespace)

    def _write(self, old: Object, wanted: Object) -> None:
        labels = wanted["metadata"]["labels"]
        new = {
            **old,
            "metadata": {**old["metadata"], "labels": labels},
            "ports": wanted["ports"],
            "endpoints": wanted["endpoints"],
        }
        if new != old:
            self._store.update("endpointslices", new)


def _labels(obj: Object | None) -> dict[str, str]:
    return ((obj or {}).get("metadata") or {}).get("labels") or {}


def _shape(obj: Object) -> tuple[str, str]:
    return obj["addressType"], str([sorted(port.items()) for port in obj.get("ports") or []])


class GarbageCollector:
    """Deletes objects whose last owner is gone."""

    def __init__(self, store: ObjectStore, resources: tuple[str, ...]) -> None:
        self._store = store
        self._resources = resources
        self.queue = WorkQueue("garbage", self._collect)

    def notice(self, event: Event) -> None:
        if event.type == "DELETED":
            self.queue.mark(event.object["metadata"]["uid"])

    def _collect(self, uid: str) -> None:
        for resource in self._resources:
            for obj in self._store.list(resource):
                metadata = obj["metadata"]
                owners = metadata.get("ownerReferences") or []
                if not any(owner.get("uid") == uid for owner in owners):
                    continue
                if len(owners) > 1 and self._is_any_alive(owners, uid):
                    continue
                if not metadata.get("deletionTimestamp"):
                    self._store.delete(resource, metadata["name"], metadata["namespace"])

    def _is_any_alive(self, owners: list[Object], gone: str) -> bool:
        uids = {owner.get("uid") for owner in owners} - {gone}
        return any(
            obj["metadata"]["uid"] in uids
            for resource in (*self._resources, "deployments", "services")
            for obj in self._store.list(resource)
        )


class Controllers:
    """All of them, subscribed to one store."""

    def __init__(self, store: ObjectStore) -> None:
        dependents = ("replicasets", "pods", "endpointslices")
        self._parts = (
            DeploymentController(store),
            ReplicaSetController(store),
            EndpointSliceController(store),
            GarbageCollector(store, dependents),
        )
        self._unsubscribe = [store.subscribe(part.notice) for part in self._parts]

    @property
    def is_idle(self) -> bool:
        return all(part.queue.is_idle for part in self._parts)

    def close(self) -> None:
        for stop in self._unsubscribe:
            stop()
        for part in self._parts:
            part.queue.close()
