"""Targets: what a request's method, path and query ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .rbac import Action
from .resources import BY_PATH, Resource
from .selectors import exact_name
from .status import method_not_allowed, no_such_path

_NAMESPACE_PARTS = ("status", "finalize")


class Target(NamedTuple):
    """A resource, or one object or subresource of it; ``namespace`` "" means all of them."""

    resource: Resource
    namespace: str
    name: str
    subresource: str

    def action(self, verb: str, query: Mapping[str, str] | None = None) -> Action:
        """What RBAC decides about.

        A list or watch of one name (``fieldSelector=metadata.name=x``) is about that object: a rule
        with resourceNames allows it.
        """
        name = self.name
        if query and not name and verb in ("list", "watch"):
            name = exact_name(query.get("fieldSelector", ""))
        plural = self.resource.plural
        resource = f"{plural}/{self.subresource}" if self.subresource else plural
        namespace = self.namespace
        if self.resource.plural == "namespaces":
            namespace = self.name
        return Action(verb, self.resource.group, resource, namespace, name)


def target_of(path: str) -> Target | None:
    """The target of ``/api/v1/...`` and ``/apis/GROUP/VERSION/...``; None for any other path.

    Raises 404 for resources that do not exist.
    """
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _NAMESPACE_PARTS:
        namespace, rest = rest[1], rest[2:]
    resource = BY_PATH.get((group, version, rest[0]))
    if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
        raise no_such_path()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if name and resource.namespaced and not namespace:
        raise no_such_path()
    known = ("status",) * resource.has_status + ("scale",) * resource.has_scale
    if subresource == "log" and resource.plural == "pods":
        return Target(resource, namespace, name, subresource)
    if subresource and subresource not in known:
        raise no_such_path()
    return Target(resource, namespace, name, subresource)


def verb_of(method: str, target: Target, query: Mapping[str, str]) -> str:
    """The API verb; 405 where the method makes no sense."""
    if method in ("GET", "HEAD"):
        if target.name:
            return "get"
        return "watch" if query.get("watch") in ("true", "1") else "list"
    if method == "POST" and not target.name:
        return "create"
    if method == "PUT" and target.name:
        return "update"
    if method == "PATCH" and target.name:
        return "patch"
    if method == "DELETE" and not target.subresource:
        return "delete" if target.name else "deletecollection"
    raise method_not_allowed()
