"""The scheduler: a node for each pod, spreading the pods of one owner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kube_router_py.lab.endpoints import is_pod_finished
from kube_router_py.lab.workqueue import WorkQueue

if TYPE_CHECKING:
    from kube_router_py.lab.apiserver.interface import ObjectStore
    from kube_router_py.lab.apiserver.storage import Event

Object = dict[str, Any]


def is_schedulable(node: Object) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not node.get("spec", {}).get("unschedulable")


def choose_node(pod: Object, nodes: Iterable[Object], pods: Sequence[Object]) -> str | None:
    """The ready node with the fewest pods of the same owner, then the fewest pods. Pure.

    ``nodeSelector`` is honoured; affinities and resources are not: the lab has room.
    """
    owners = {o.get("uid") for o in pod["metadata"].get("ownerReferences") or []}
    selector = pod["spec"].get("nodeSelector") or {}

    def load(name: str) -> tuple[int, int, str]:
        present = [
            other
            for other in pods
            if other["spec"].get("nodeName") == name
            and not is_pod_finished(other)
            and not other["metadata"].get("deletionTimestamp")
        ]
        siblings = sum(
            any(o.get("uid") in owners for o in other["metadata"].get("ownerReferences") or [])
            for other in present
        )
        return siblings, len(present), name

    fitting = [
        node["metadata"]["name"]
        for node in nodes
        if is_schedulable(node)
        and all(
            (node["metadata"].get("labels") or {}).get(name) == value
            for name, value in selector.items()
        )
    ]
    return min(fitting, key=load) if fitting else None


class Scheduler:
    """Binds pending pods; a pod that fits nowhere is tried again when a node changes."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.queue = WorkQueue("scheduler", self._reconcile)
        self._unsubscribe = store.subscribe(self._notice, "pods", "nodes")

    def close(self) -> None:
        self._unsubscribe()
        self.queue.close()

    def _notice(self, event: Event) -> None:
        if event.resource == "nodes":
            for pod in self._store.list("pods"):
                self._mark(pod)
        elif event.type != "DELETED":
            self._mark(event.object)

    def _mark(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if not pod["spec"].get("nodeName") and not metadata.get("deletionTimestamp"):
            self.queue.mark(f"{metadata['namespace']}/{metadata['name']}")

    def _reconcile(self, key: str) -> None:
        namespace, _, name = key.partition("/")
        pod = self._store.find("pods", name, namespace)
        if pod is None or pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
            return
        node = choose_node(pod, self._store.list("nodes"), self._store.list("pods"))
        if node is not None:
            self._store.bind(name, namespace, node)
