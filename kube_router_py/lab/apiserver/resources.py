"""The registry: every kind the lab's API server serves, declared once."""

from __future__ import annotations

from dataclasses import dataclass

from . import columns
from .columns import Column

ALL_VERBS = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)


@dataclass(frozen=True)
class Resource:
    """One kind. ``name`` is the key in the store: the plural, unique for what is stored.

    ``fields``: dotted paths usable in field selectors besides metadata.name and .namespace.
    ``has_generation``: metadata.generation counts changes of the spec.
    ``keeps_status``: a create keeps the status it brings (elsewhere status is dropped).
    ``stored_as``: another resource whose objects this one is a view of.
    ``returns_deleted``: a deletion answers with the object, not with a Status.
    ``create_only``: a review that is answered and never stored.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[Column, ...] = columns.GENERIC
    has_status: bool = False
    has_scale: bool = False
    has_generation: bool = False
    keeps_status: bool = False
    needs_revision: bool = False
    fields: tuple[str, ...] = ()
    stored_as: str = ""
    returns_deleted: bool = False
    create_only: bool = False

    @property
    def name(self) -> str:
        return self.stored_as or self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """As error messages write it: ``deployments.apps``, ``pods``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def base_path(self) -> str:
        prefix = f"/apis/{self.group}" if self.group else "/api"
        return f"{prefix}/{self.version}"


_RBAC = "rbac.authorization.k8s.io"
_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)
_EVENT_FIELDS = (
    *(
        f"involvedObject.{name}"
        for name in (
            "kind",
            "namespace",
            "name",
            "uid",
            "apiVersion",
            "resourceVersion",
            "fieldPath",
        )
    ),
    "reason",
    "reportingComponent",
    "source",
    "type",
)

REGISTRY: tuple[Resource, ...] = (
    Resource(
        "", "v1", "Namespace", "namespaces", namespaced=False, short_names=("ns",),
        columns=columns.NAMESPACE, has_status=True, fields=("status.phase",),
    ),
    Resource(
        "", "v1", "Pod", "pods", short_names=("po",), categories=("all",), columns=columns.POD,
        has_status=True, fields=_POD_FIELDS, returns_deleted=True,
    ),
    Resource(
        "", "v1", "Service", "services", short_names=("svc",), categories=("all",),
        columns=columns.SERVICE, has_status=True, fields=("spec.clusterIP", "spec.type"),
        returns_deleted=True,
    ),
    Resource("", "v1", "Endpoints", "endpoints", short_names=("ep",), columns=columns.ENDPOINTS),
    Resource(
        "", "v1", "Node", "nodes", namespaced=False, short_names=("no",), columns=columns.NODE,
        has_status=True, keeps_status=True, fields=("spec.unschedulable",),
    ),
    Resource("", "v1", "ConfigMap", "configmaps", short_names=("cm",), columns=columns.CONFIG_MAP),
    Resource("", "v1", "Secret", "secrets", columns=columns.SECRET, fields=("type",)),
    Resource(
        "", "v1", "ServiceAccount", "serviceaccounts", short_names=("sa",),
        columns=columns.SERVICE_ACCOUNT, returns_deleted=True,
    ),
    Resource(
        "", "v1", "Event", "events", short_names=("ev",), columns=columns.EVENT,
        fields=_EVENT_FIELDS,
    ),
    Resource(
        "events.k8s.io", "v1", "Event", "events", short_names=("ev",), columns=columns.EVENT,
        fields=_EVENT_FIELDS, stored_as="events",
    ),
    Resource(
        "apps", "v1", "Deployment", "deployments", short_names=("deploy",), categories=("all",),
        columns=columns.DEPLOYMENT, has_status=True, has_scale=True, has_generation=True,
    ),
    Resource(
        "apps", "v1", "ReplicaSet", "replicasets", short_names=("rs",), categories=("all",),
        columns=columns.REPLICA_SET, has_status=True, has_scale=True, has_generation=True,
        fields=("status.replicas",),
    ),
    Resource(
        "apps", "v1", "DaemonSet", "daemonsets", short_names=("ds",), categories=("all",),
        columns=columns.DAEMON_SET, has_status=True, has_generation=True,
    ),
    Resource(
        "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices",
        columns=columns.ENDPOINT_SLICE, has_generation=True,
    ),
    Resource(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", short_names=("netpol",),
        columns=columns.NETWORK_POLICY, has_generation=True,
    ),
    Resource(
        "coordination.k8s.io", "v1", "Lease", "leases", columns=columns.LEASE,
        needs_revision=True,
    ),
    Resource(_RBAC, "v1", "Role", "roles", columns=columns.ROLE),
    Resource(_RBAC, "v1", "ClusterRole", "clusterroles", namespaced=False, columns=columns.ROLE),
    Resource(_RBAC, "v1", "RoleBinding", "rolebindings", columns=columns.BINDING),
    Resource(
        _RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False,
        columns=columns.BINDING,
    ),
    Resource(
        "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews",
        namespaced=False, create_only=True,
    ),
)  # fmt: skip

BY_NAME = {resource.name: resource for resource in REGISTRY if not resource.stored_as}
BY_PATH = {(r.group, r.version, r.plural): r for r in REGISTRY}
BY_KIND = {(r.api_version, r.kind): r for r in REGISTRY}
GROUP_VERSIONS = tuple(dict.fromkeys((r.group, r.version) for r in REGISTRY))
