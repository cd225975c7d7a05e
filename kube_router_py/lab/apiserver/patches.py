"""JSON patch (RFC 6902), JSON merge patch (RFC 7396) and Kubernetes' strategic merge patch.

All are pure: they return a new value and share unchanged parts with the old one.
"""

from __future__ import annotations

from typing import Any

from .status import Cause, StatusError, bad_request, invalid

# Lists that strategic merge patches merge by a key instead of replacing. A name is looked up with
# its parent first. Source: the patchMergeKey tags of k8s.io/api, for the kinds served here.
_MERGE_KEYS = {
    "containers.ports": "containerPort",
    "initContainers.ports": "containerPort",
    "Service.spec.ports": "port",
    "Node.status.addresses": "type",
    "addresses": "",
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "hostAliases": "ip",
    "hostIPs": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "secrets": "name",
    "taints": "key",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_MERGED_SETS = frozenset({"finalizers", "podCIDRs"})


def merge_key(path: tuple[str, ...]) -> str:
    """The key a list's items merge by, or "" when the list is replaced; path starts at the kind."""
    for length in (3, 2, 1):
        key = _MERGE_KEYS.get(".".join(path[-length:]))
        if key is not None:
            return key
    return ""


def patch(form: str, old: Any, change: Any, kind: str) -> Any:
    """Apply ``change``; ``form``: json, merge or strategic; ``kind`` selects the merge keys."""
    if form == "json":
        return json_patch(old, change, kind)
    if not isinstance(change, dict):
        raise bad_request("the patch is not a JSON object")
    if form == "merge":
        return merge_patch(old, change)
    if form == "strategic":
        return strategic_merge(old, change, (kind,))
    raise ValueError(f"unknown form of patch: {form}")


def merge_patch(old: Any, change: Any) -> Any:
    """RFC 7396: null deletes, objects merge, everything else replaces."""
    if not isinstance(change, dict):
        return change
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merge_patch(new.get(key), value)
    return new


# --- JSON patch ----------------------------------------------------------------------------------


def _steps(pointer: Any) -> list[str]:
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise bad_request(f"JSON patch: invalid pointer {pointer!r}")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _index(items: list[Any], step: str, limit: int) -> int:
    if step == "-":
        return len(items)
    if not step.isdigit() or int(step) > limit:
        raise LookupError(step)
    return int(step)


def _fetch(value: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(value, dict):
            value = value[step]
        elif isinstance(value, list):
            value = value[_index(value, step, len(value) - 1)]
        else:
            raise LookupError(step)
    return value


def _edit(value: Any, steps: list[str], operation: str, item: Any) -> Any:
    """A copy of ``value`` along ``steps`` with one place added, replaced or removed."""
    if not steps:
        return item
    step, rest = steps[0], steps[1:]
    if isinstance(value, dict):
        new = dict(value)
        if rest:
            new[step] = _edit(value[step], rest, operation, item)
        elif operation == "remove":
            del new[step]
        else:
            if operation == "replace" and step not in value:
                raise LookupError(step)
            new[step] = item
        return new
    if isinstance(value, list):
        items = list(value)
        last = operation == "add" and not rest
        index = _index(items, step, len(items) if last else len(items) - 1)
        if rest:
            items[index] = _edit(items[index], rest, operation, item)
        elif operation == "remove":
            del items[index]
        elif operation == "add":
            items.insert(index, item)
        else:
            items[index] = item
        return items
    raise LookupError(step)


def json_patch(old: Any, operations: Any, kind: str) -> Any:
    """RFC 6902; a path that is missing or a test that fails is 422, as in a real API server."""
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    new = old
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation or "path" not in operation:
            raise bad_request("a JSON patch operation needs op and path")
        name, steps = operation["op"], _steps(operation["path"])
        try:
            if name in ("add", "replace"):
                new = _edit(new, steps, name, operation["value"])
            elif name == "remove":
                new = _edit(new, steps, name, None)
            elif name in ("move", "copy"):
                source = _steps(operation["from"])
                value = _fetch(new, source)
                if name == "move":
                    new = _edit(new, source, "remove", None)
                new = _edit(new, steps, "add", value)
            elif name == "test":
                if _fetch(new, steps) != operation.get("value"):
                    raise _refused(kind, f"testing path {operation['path']}: test failed")
            else:
                raise bad_request(f"JSON patch: unknown operation {name!r}")
        except LookupError as error:
            raise _refused(kind, f"{name} operation does not apply: {operation['path']}") from error
    return new


def _refused(kind: str, why: str) -> StatusError:
    cause = Cause("FieldValueInvalid", f"the server rejected our request: {why}", "patch")
    return invalid(kind, "", "", [cause])


# --- strategic merge -----------------------------------------------------------------------------


def strategic_merge(old: Any, change: Any, path: tuple[str, ...]) -> Any:
    """Merge as the API's Go types are tagged: maps merge, some lists merge by key.

    Understands $patch: replace|delete|merge, $setElementOrder/x, $deleteFromPrimitiveList/x and
    $retainKeys.
    """
    if not isinstance(change, dict):
        return change
    directive = change.get("$patch")
    if directive == "replace":
        return {key: value for key, value in change.items() if not key.startswith("$")}
    if directive == "delete":
        return {}
    new = dict(old) if isinstance(old, dict) else {}
    retained = change.get("$retainKeys")
    if isinstance(retained, list):
        new = {key: value for key, value in new.items() if key in retained}
    for key, value in change.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            new[field] = [item for item in new.get(field) or () if item not in value]
        if key.startswith("$"):
            continue
        where = (*path, key)
        if value is None:
            new.pop(key, None)
        elif isinstance(value, list):
            order = change.get(f"$setElementOrder/{key}")
            new[key] = _merge_list(new.get(key), value, where, order)
        elif isinstance(value, dict):
            new[key] = strategic_merge(new.get(key), value, where)
        else:
            new[key] = value
    for key, order in change.items():
        field = key.partition("/")[2]
        if key.startswith("$setElementOrder/") and field not in change and field in new:
            new[field] = _ordered(new[field], order, merge_key((*path, field)))
    return new


def _merge_list(old: Any, change: list[Any], path: tuple[str, ...], order: Any) -> list[Any]:
    key = merge_key(path)
    current = list(old) if isinstance(old, list) else []
    if path[-1] in _MERGED_SETS:
        merged = current + [item for item in change if item not in current]
        return _ordered(merged, order, "")
    if not key:
        return change
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in change):
        return [item for item in change if isinstance(item, dict) and "$patch" not in item]
    for item in change:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(
                f"map: {item} does not contain declared merge key: {key} ({'.'.join(path[1:])})"
            )
        same = [n for n, have in enumerate(current) if have.get(key) == item[key]]
        if item.get("$patch") == "delete":
            current = [have for have in current if have.get(key) != item[key]]
        elif same:
            # The key alone is ambiguous where two entries share it (port 53 TCP and UDP).
            protocol = item.get("protocol")
            exact = [n for n in same if protocol and current[n].get("protocol") == protocol]
            index = (exact or same)[0]
            current[index] = strategic_merge(current[index], item, path)
        else:
            current.append(strategic_merge({}, item, path))
    return _ordered(current, order, key)


def _ordered(items: list[Any], order: Any, key: str) -> list[Any]:
    """Items named in ``order`` in that order; others keep their place after what precedes them."""
    if not isinstance(order, list):
        return items
    wanted = [entry.get(key) if key and isinstance(entry, dict) else entry for entry in order]

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    named = sorted(
        (item for item in items if identity(item) in wanted),
        key=lambda item: wanted.index(identity(item)),
    )
    return named + [item for item in items if identity(item) not in wanted]
