"""Object metadata: names, namespaces, revisions, times."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

from . import status
from .resources import Resource
from .status import Object

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels: no words, as apimachinery does


def own(value: Any) -> Any:
    """A deep copy of JSON-like data, for the caller to change."""
    if isinstance(value, dict):
        return {key: own(item) for key, item in value.items()}
    if isinstance(value, list):
        return [own(item) for item in value]
    return value


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the API writes times (whole seconds, UTC)."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def complete_metadata(kind: Resource, obj: Object, namespace: str) -> Object:
    """Check kind, name and namespace of an object; completes them; returns its metadata."""
    for field, want in (("apiVersion", kind.api_version), ("kind", kind.kind)):
        if obj.setdefault(field, want) != want:
            raise status.bad_request(
                f"the object provided is unrecognized: {field} is {obj[field]!r}, not {want!r}"
            )
    metadata: Any = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise status.bad_request("metadata is not an object")
    if kind.namespaced:
        given = metadata.get("namespace") or namespace or "default"
        if namespace and given != namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on "
                "the request"
            )
        metadata["namespace"] = given
    else:
        metadata.pop("namespace", None)
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(random.choices(_SUFFIX_LETTERS, k=5))
        metadata["name"] = f"{metadata['generateName']}{suffix}"
    if not isinstance(metadata.get("name"), str) or not metadata["name"]:
        cause = status.Cause(
            "FieldValueRequired",
            "Required value: name or generateName is required",
            "metadata.name",
        )
        raise status.invalid(kind.kind, kind.group, "", [cause])
    return metadata


def check_revision(kind: Resource, metadata: Object, old: Object) -> None:
    """409 when a write names another revision or uid than the object has now."""
    revision = metadata.get("resourceVersion")
    if not revision and kind.needs_revision:
        cause = status.Cause(
            "FieldValueInvalid",
            "Invalid value: 0x0: must be specified for an update",
            "metadata.resourceVersion",
        )
        raise status.invalid(kind.kind, kind.group, metadata["name"], [cause])
    stale = revision and str(revision) != old["metadata"]["resourceVersion"]
    other = metadata.get("uid") and metadata["uid"] != old["metadata"].get("uid")
    if stale or other:
        raise status.conflict(kind.group_resource, metadata["name"])
