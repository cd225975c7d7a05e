"""Server-side apply: who owns which field, and what an apply merges, removes or refuses.

Ownership is kept in metadata.managedFields (FieldsV1) as the real API server does, but only for
objects that were applied server-side at least once: nobody reads it elsewhere, and it costs.
Paths are tuples of FieldsV1 elements: ``f:name``, ``k:{"name":"x"}`` or ``v:value``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .resources import Resource
from .status import Object, StatusError

Path = tuple[str, ...]

# List map keys where they differ from the strategic merge keys, and maps that are one value.
_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers.ports": ("containerPort", "protocol"),
    "initContainers.ports": ("containerPort", "protocol"),
    "Service.spec.ports": ("port", "protocol"),
    "Node.status.addresses": ("type",),
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "hostAliases": ("ip",),
    "hostIPs": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "podIPs": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_SETS = frozenset({"finalizers"})
_ATOMIC_MAPS = frozenset(
    {"Service.spec.selector", "selector", "podSelector", "namespaceSelector", "nodeSelector",
     "fieldRef", "resourceFieldRef", "targetRef", "roleRef"}
)  # fmt: skip
_DEFAULT_KEYS = {"protocol": "TCP"}
_SERVER_OWNED = frozenset(
    {"uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
     "resourceVersion", "managedFields", "name", "namespace", "generateName", "selfLink"}
)  # fmt: skip


def intent(obj: Object) -> Object:
    """What metadata.generation counts: everything but metadata and status."""
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _names(path: Path, kind: str) -> list[str]:
    """The dotted suffixes of a path's field names, longest first, for table look-ups."""
    fields = [kind, *(step[2:] for step in path if step.startswith("f:"))]
    return [".".join(fields[-length:]) for length in (3, 2, 1)]


def _list_keys(path: Path, kind: str) -> tuple[str, ...]:
    for name in _names(path, kind):
        if name in _LIST_KEYS:
            return _LIST_KEYS[name]
    return ()


def _encode(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _item_step(item: Object, keys: tuple[str, ...]) -> str:
    chosen = {key: item.get(key, _DEFAULT_KEYS.get(key)) for key in keys}
    return "k:" + _encode({key: value for key, value in chosen.items() if value is not None})


def _leaves(value: Any, path: Path, kind: str, out: dict[Path, Any]) -> None:
    """Every owned place below ``path`` with its value; atomic lists and maps are one place."""
    names = _names(path, kind)
    if isinstance(value, dict) and value and not any(name in _ATOMIC_MAPS for name in names):
        for key, item in value.items():
            _leaves(item, (*path, f"f:{key}"), kind, out)
    elif isinstance(value, list) and (keys := _list_keys(path, kind)):
        for item in value:
            where = (*path, _item_step(item, keys))
            out[(*where, ".")] = None
            for key, part in item.items():
                _leaves(part, (*where, f"f:{key}"), kind, out)
    elif isinstance(value, list) and names[-1] in _SETS:
        for item in value:
            out[(*path, f"v:{_encode(item)}")] = item
    else:
        out[path] = value


def leaves(obj: Object, kind: str) -> dict[Path, Any]:
    """The places of an object that a manager can own, with their values."""
    out: dict[Path, Any] = {}
    for key, value in obj.items():
        if key in ("apiVersion", "kind"):
            continue
        if key == "metadata":
            value = {name: item for name, item in value.items() if name not in _SERVER_OWNED}
            if not value:
                continue
        _leaves(value, (f"f:{key}",), kind, out)
    return out


def _fields_v1(paths: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def _paths(tree: Object, prefix: Path = ()) -> set[Path]:
    found: set[Path] = set()
    for step, below in tree.items():
        if below:
            found |= _paths(below, (*prefix, step))
        else:
            found.add((*prefix, step))
    return found


class _Managers:
    """metadata.managedFields as sets of paths, by (manager, operation)."""

    def __init__(self, obj: Object | None) -> None:
        self.owned: dict[tuple[str, str], set[Path]] = {}
        self.times: dict[tuple[str, str], str] = {}
        entries = (obj or {}).get("metadata", {}).get("managedFields") or ()
        for entry in entries:
            who = (entry.get("manager", ""), entry.get("operation", "Update"))
            self.owned.setdefault(who, set()).update(_paths(entry.get("fieldsV1") or {}))
            self.times[who] = entry.get("time", "")

    def render(self, api_version: str) -> list[Object]:
        return [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": api_version,
                "time": self.times.get((manager, operation), ""),
                "fieldsType": "FieldsV1",
                "fieldsV1": _fields_v1(paths),
            }
            for (manager, operation), paths in sorted(self.owned.items())
            if paths
        ]


def record(kind: Resource, old: Object, new: Object, manager: str, now: str) -> None:
    """After an ordinary write: the writer owns what it changed; what vanished has no owner."""
    if not old["metadata"].get("managedFields"):
        return
    new["metadata"].setdefault("managedFields", old["metadata"]["managedFields"])
    before, after = leaves(old, kind.kind), leaves(new, kind.kind)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    gone = before.keys() - after.keys()
    changed = {path for path in changed if path[0] != "f:status"}
    if not changed and not gone:
        return
    managers = _Managers(new)
    for paths in managers.owned.values():
        paths -= changed | gone
    who = (manager, "Update")
    managers.owned.setdefault(who, set()).update(changed)
    managers.times[who] = now
    new["metadata"]["managedFields"] = managers.render(kind.api_version)


def apply(
    kind: Resource, old: Object | None, config: Object, manager: str, *, force: bool, now: str
) -> Object:
    """The object after ``manager`` applied ``config`` (owned); 409 with every conflict."""
    config.get("metadata", {}).pop("managedFields", None)
    wanted = leaves(config, kind.kind)
    managers = _Managers(old)
    who = (manager, "Apply")
    if old is not None and not managers.owned and not _was_applied_by_client(old):
        existing = {p for p in leaves(old, kind.kind) if p[0] != "f:status"}
        managers.owned[("before-first-apply", "Update")] = existing
        managers.times[("before-first-apply", "Update")] = now
    live = leaves(old, kind.kind) if old is not None else {}
    differing = {p for p, value in wanted.items() if p in live and live[p] != value}
    conflicts: list[tuple[tuple[str, str], Path]] = []
    for other, paths in managers.owned.items():
        if other != who:
            conflicts += [(other, path) for path in sorted(differing & paths)]
    if conflicts and not force:
        raise _conflict(kind, config, conflicts)
    for other, paths in managers.owned.items():
        if other != who:
            paths -= differing
    others = set().union(*(paths for other, paths in managers.owned.items() if other != who))
    removed = managers.owned.get(who, set()) - wanted.keys() - others
    managers.owned[who] = set(wanted)
    new: Object = _without(old, removed, (), kind.kind) if old is not None else {}
    new = _merge(new, config, (), kind.kind)
    new["metadata"] = dict(new["metadata"])
    previous = (old or {}).get("metadata", {}).get("managedFields")
    managers.times.setdefault(who, now)
    entries = managers.render(kind.api_version)
    if entries != previous:
        managers.times[who] = now
        entries = managers.render(kind.api_version)
    new["metadata"]["managedFields"] = entries
    return new


def _was_applied_by_client(obj: Object) -> bool:
    # kubectl takes over what its own client-side apply wrote, without a conflict.
    annotations = obj["metadata"].get("annotations") or {}
    return "kubectl.kubernetes.io/last-applied-configuration" in annotations


def _conflict(
    kind: Resource, config: Object, conflicts: list[tuple[tuple[str, str], Path]]
) -> StatusError:
    causes, lines = [], []
    for (manager, _), path in conflicts:
        field = "".join(
            f"[{','.join(f'{k}={_encode(v)}' for k, v in msgspec.json.decode(step[2:]).items())}]"
            if step.startswith("k:")
            else f".{step[2:]}"
            for step in path
            if step != "."
        )
        message = f'conflict with "{manager}" using {kind.api_version}'
        causes.append({"reason": "FieldManagerConflict", "message": message, "field": field})
        lines.append(f"{message}: {field}")
    plural = "s" if len(conflicts) > 1 else ""
    name = config.get("metadata", {}).get("name", "")
    details = {"name": name, "group": kind.group, "kind": kind.plural, "causes": causes}
    message = f"Apply failed with {len(conflicts)} conflict{plural}: " + (
        lines[0] if len(lines) == 1 else "\n".join(["", *(f"- {line}" for line in lines)]).strip()
    )
    return StatusError(409, "Conflict", message, details)


def _without(value: Any, removed: set[Path], path: Path, kind: str) -> Any:
    """``value`` less the removed places; containers that become empty by it go too."""
    if isinstance(value, dict):
        new = {}
        for key, item in value.items():
            where = (*path, f"f:{key}")
            if where in removed:
                continue
            kept = _without(item, removed, where, kind)
            if kept or not item or kept == item:
                new[key] = kept
        return new
    if isinstance(value, list) and (keys := _list_keys(path, kind)):
        items = []
        for item in value:
            where = (*path, _item_step(item, keys))
            if (*where, ".") not in removed:
                items.append(_without(item, removed, where, kind))
        return items
    if isinstance(value, list) and any(p[: len(path)] == path for p in removed):
        return [item for item in value if (*path, f"v:{_encode(item)}") not in removed]
    return value


def _merge(live: Any, config: Any, path: Path, kind: str) -> Any:
    names = _names(path, kind)
    if isinstance(config, dict) and isinstance(live, dict):
        if path and any(name in _ATOMIC_MAPS for name in names):
            return config
        new = dict(live)
        for key, value in config.items():
            if path or key not in ("apiVersion", "kind"):
                new[key] = _merge(live.get(key), value, (*path, f"f:{key}"), kind)
            else:
                new[key] = value
        return new
    if isinstance(config, list) and isinstance(live, list):
        if keys := _list_keys(path, kind):
            have = {_item_step(item, keys): item for item in live}
            want = {_item_step(item, keys): item for item in config}
            merged = [
                _merge(have.get(step), item, (*path, step), kind) for step, item in want.items()
            ]
            return merged + [item for step, item in have.items() if step not in want]
        if names[-1] in _SETS:
            return live + [item for item in config if item not in live]
    return config
