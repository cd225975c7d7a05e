"""What a fresh cluster contains before anybody applies anything."""

from __future__ import annotations

from collections.abc import Sequence

from .status import Object
from .store import Store

_RBAC = "rbac.authorization.k8s.io"


def populate(store: Store, addresses: Sequence[str], port: int) -> None:
    """Namespaces, cluster-admin, and the Service default/kubernetes with its EndpointSlices.

    ``addresses``: where nodes reach the API server, of either family. What exists is left alone.
    """
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        if store.find("namespaces", name) is None:
            store.create("namespaces", {"metadata": {"name": name}})
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    admin = {"metadata": {"name": "cluster-admin"}, "rules": everything}
    binding = {
        "metadata": {"name": "cluster-admin"},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": "system:masters"}],
    }
    for resource, obj in (("clusterroles", admin), ("clusterrolebindings", binding)):
        if store.find(resource, "cluster-admin") is None:
            store.create(resource, obj)
    if store.find("services", "kubernetes", "default") is None:
        store.create("services", _service(store, port), namespace="default")
    for family in ("IPv4", "IPv6"):
        own = [a for a in addresses if (":" in a) == (family == "IPv6")]
        name = "kubernetes" if family == "IPv4" else "kubernetes-ipv6"
        if own and store.find("endpointslices", name, "default") is None:
            store.create("endpointslices", _slice(name, family, own, port), namespace="default")


def _service(store: Store, port: int) -> Object:
    family = store.allocator.families[0]
    return {
        "metadata": {
            "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": store.allocator.first_address(family),
            "ipFamilies": [family],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    }


def _slice(name: str, family: str, addresses: Sequence[str], port: int) -> Object:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
