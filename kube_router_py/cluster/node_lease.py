"""A Lease by which a node tells others something; it goes with its Node."""

from collections.abc import Mapping
from typing import Any

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.objects import Node


class NodeLease:
    """The Lease ``name`` in ``namespace``, of a node which ``nodes`` (a cache of Nodes) knows."""

    def __init__(self, client: Client, nodes: Cache, namespace: str, name: str, node: str) -> None:
        self._client, self._nodes, self._node = client, nodes, node
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name

    def write(
        self,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        """Set these; without ``spec`` it is left as it is, or names the holder in a new one.
        Raises ApiError."""
        change: dict[str, Any] = {"metadata": {"labels": labels, "annotations": annotations}}
        if spec is not None:
            change["spec"] = spec
        try:
            self._client.patch(f"{self._path}/{self._name}", change)
        except RefusedError as error:
            if error.status != 404:
                raise
            self._client.post(self._path, self._new(change))

    def _new(self, change: Mapping[str, Any]) -> dict[str, Any]:
        metadata = {**change["metadata"], "name": self._name, "namespace": self._namespace}
        node = self._nodes.get(Node, self._node)
        if node is not None and node.metadata.uid:
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._node}
            metadata["ownerReferences"] = [{**owner, "uid": node.metadata.uid}]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": change.get("spec", {"holderIdentity": self._node}),
        }
