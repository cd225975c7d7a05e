"""RBAC: may this user do that? Answered from the Role and Binding objects in the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .status import Object, StatusError, forbidden
from .store import Store
from .tokens import User

_OPEN_PATHS = ("/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz")


class Action(NamedTuple):
    """What is asked; ``resource`` with its subresource (``pods/status``), or ``path`` alone."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


def _is_subject(subject: Object, user: User, binding_namespace: str) -> bool:
    kind, name = subject.get("kind"), subject.get("name")
    if kind == "User":
        return bool(name == user.name)
    if kind == "Group":
        return name in user.groups
    if kind == "ServiceAccount":
        namespace = subject.get("namespace") or binding_namespace
        return user.name == f"system:serviceaccount:{namespace}:{name}"
    return False


def _rules(store: Store, user: User, namespace: str) -> Iterator[Object]:
    """Every rule that is bound to the user cluster-wide, or in the namespace."""
    bindings = store.list("clusterrolebindings")
    if namespace:
        bindings = bindings + store.list("rolebindings", namespace)
    for binding in bindings:
        space = binding["metadata"].get("namespace", "")
        subjects = binding.get("subjects") or ()
        if not any(_is_subject(subject, user, space) for subject in subjects):
            continue
        ref = binding.get("roleRef") or {}
        name = str(ref.get("name", ""))
        if ref.get("kind") == "Role":
            role = store.find("roles", name, space)
        else:
            role = store.find("clusterroles", name)
        yield from (role or {}).get("rules") or ()


def _has(values: list[str] | None, wanted: str) -> bool:
    return bool(values) and ("*" in values or wanted in values)  # type: ignore[operator]


def _grants(rule: Object, action: Action) -> bool:
    if not _has(rule.get("verbs"), action.verb):
        return False
    if action.path:
        urls = rule.get("nonResourceURLs") or ()
        return any(
            url in ("*", action.path) or (url.endswith("*") and action.path.startswith(url[:-1]))
            for url in urls
        )
    if not _has(rule.get("apiGroups"), action.group):
        return False
    resources = rule.get("resources") or []
    subresource = action.resource.partition("/")[2]
    if not _has(resources, action.resource) and not (
        subresource and f"*/{subresource}" in resources
    ):
        return False
    names = rule.get("resourceNames")
    return not names or action.name in names


def is_allowed(store: Store, user: User, action: Action) -> bool:
    """Whether any rule bound to the user grants the action."""
    if user.is_master:
        return True
    if action.path and action.verb == "get":
        root = "/" + action.path.strip("/").partition("/")[0]
        if root in _OPEN_PATHS or action.path == "/":
            return True
    if action.resource == "selfsubjectaccessreviews" and action.verb == "create":
        return True
    return any(_grants(rule, action) for rule in _rules(store, user, action.namespace))


def refusal(user: User, action: Action) -> StatusError:
    """403, with the words of a real API server."""
    if action.path:
        why = f'User "{user.name}" cannot {action.verb} path "{action.path}"'
        return StatusError(403, "Forbidden", f"forbidden: {why}")
    where = f'in the namespace "{action.namespace}"' if action.namespace else "at the cluster scope"
    plural = action.resource.partition("/")[0]
    return forbidden(
        f"{plural}.{action.group}" if action.group else plural,
        action.name,
        f'User "{user.name}" cannot {action.verb} resource "{action.resource}" in API group '
        f'"{action.group}" {where}',
    )
