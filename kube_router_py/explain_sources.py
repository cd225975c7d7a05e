"""Where ``explain`` has a cluster's objects from: manifests, or the lists of an API server."""

import os

from kube_router_py.address_pool_config import CONFIG_MAP
from kube_router_py.cluster.client import RefusedError, connect
from kube_router_py.cluster.decode import ObjectDecoder
from kube_router_py.cluster.listing import list_all
from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.cluster.objects import (
    ConfigMap,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.flow.objects import ClusterObjects
from kube_router_py.manifests import Manifests
from kube_router_py.options import Options

_KINDS = (Node, Namespace, Pod, Service, EndpointSlice, NetworkPolicy)
# What may be absent, or not to be read by everybody: the pools.
_OPTIONAL = (403, 404)


def cluster_objects(manifests: Manifests) -> ClusterObjects:
    return ClusterObjects(
        services=tuple(manifests.list(Service)),
        slices=tuple(manifests.list(EndpointSlice)),
        pods=tuple(manifests.list(Pod)),
        namespaces=tuple(manifests.list(Namespace)),
        policies=tuple(manifests.list(NetworkPolicy)),
        nodes=tuple(manifests.list(Node)),
    )


def read_cluster(options: Options) -> Manifests:
    """All objects that count, from the API server that flags and environment name. Raises
    ConfigurationError and ApiError."""
    manifests = Manifests()
    client = connect(options)
    try:
        for kind in _KINDS:
            listed = list_all(client, kind)
            manifests.take(kind, listed.objects, listed.problems)
        path = f"/api/v1/namespaces/{own_namespace(os.environ)}/configmaps/{CONFIG_MAP}"
        try:
            pools = ObjectDecoder(ConfigMap).item(client.get(path))
        except RefusedError as error:
            if error.status not in _OPTIONAL:
                raise
        else:
            found = {pools.key: pools.object} if pools.object is not None else {}
            manifests.take(ConfigMap, found, (pools.problem,) if pools.problem else ())
    finally:
        client.close()
    return manifests
