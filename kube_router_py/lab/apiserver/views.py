"""Views: objects shown in another shape than they are stored.

Scale (autoscaling/v1) of a Deployment or ReplicaSet, and Events of events.k8s.io, which are the
core Events under other field names.
"""

from __future__ import annotations

from . import status
from .columns import selector_text
from .resources import Resource
from .status import Object

_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_CORE_NAMES = {new: old for old, new in _EVENT_NAMES.items()}


def show(resource: Resource, obj: Object) -> Object:
    """A stored object as this resource presents it."""
    if not resource.stored_as:
        return obj
    renamed = {_EVENT_NAMES.get(key, key): value for key, value in obj.items()}
    return {**renamed, "apiVersion": resource.api_version}


def store_form(resource: Resource, obj: Object) -> Object:
    """The opposite of ``show``."""
    if not resource.stored_as:
        return obj
    renamed = {_CORE_NAMES.get(key, key): value for key, value in obj.items()}
    return {**renamed, "apiVersion": "v1"}


def scale_of(obj: Object) -> Object:
    """The Scale of an object with spec.replicas."""
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    metadata = {key: obj["metadata"][key] for key in names if key in obj["metadata"]}
    spec = obj.get("spec") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": spec.get("replicas", 0)},
        "status": {
            "replicas": (obj.get("status") or {}).get("replicas", 0),
            "selector": selector_text(spec.get("selector")),
        },
    }


def with_scale(obj: Object, scale: Object) -> Object:
    """The object with the replicas (and precondition) of a Scale; 400 when it has none."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise status.bad_request("spec.replicas of a Scale must be a number")
    metadata = dict(obj["metadata"])
    revision = (scale.get("metadata") or {}).get("resourceVersion")
    if revision:
        metadata["resourceVersion"] = revision
    return {**obj, "metadata": metadata, "spec": {**obj["spec"], "replicas": replicas}}
