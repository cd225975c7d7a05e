"""Manifest files: what ``-f`` reads, and the part of kustomize that our ``manifests/`` use.

``render_kustomization`` equals ``kubectl kustomize`` for the fields it knows and refuses all others
by name: a field silently ignored would let the lab run something else than what is deployed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from kube_router_py.lab.apiserver.patches import patch as apply_patch
from kube_router_py.lab.apiserver.resources import REGISTRY
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.errors import LabError

Object = dict[str, Any]

SUFFIXES = (".yaml", ".yml", ".json")
KUSTOMIZATION = "kustomization.yaml"
KNOWN_FIELDS = {"apiVersion", "kind", "resources", "components", "patches", "namespace"}
CLUSTER_SCOPED = {resource.kind for resource in REGISTRY if not resource.namespaced} | {
    "CustomResourceDefinition"
}

# The C parser is about ten times faster where PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_files(paths: Iterable[Path]) -> list[Object]:
    """Objects of files and directories (not recursive, as kubectl), Lists taken apart.

    Raises LabError for an unreadable file, broken syntax, or a document that is no object.
    """
    found: list[Object] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not files:
                raise LabError(f"{path}: no {', '.join(SUFFIXES)} file in this directory")
        else:
            files = [path]
        for file in files:
            found += _read(file)
    return found


def _read(file: Path) -> list[Object]:
    try:
        documents = list(yaml.load_all(file.read_text(), Loader=_Loader))
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"cannot read {file}: {error}") from error
    except yaml.YAMLError as error:
        raise LabError(f"{file} is no valid YAML or JSON: {error}") from error
    return _flatten((document for document in documents if document is not None), file)


def _flatten(documents: Iterable[Any], file: Path) -> list[Object]:
    found: list[Object] = []
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise LabError(f"{file}: a document is no Kubernetes object: it has no kind")
        if document["kind"].endswith("List") and isinstance(document.get("items"), list):
            found += _flatten(document["items"], file)
        else:
            found.append(document)
    return found


def render_kustomization(directory: Path) -> list[Object]:
    """All objects of a kustomization directory, bases first. Raises LabError."""
    return _render(directory, "Kustomization", [])


def _render(directory: Path, kind: str, objects: list[Object]) -> list[Object]:
    """``objects`` with what a directory of this kind does: a Component changes what is there."""
    file = directory / KUSTOMIZATION
    try:
        spec = yaml.load(file.read_text(), Loader=_Loader) or {}
    except OSError as error:
        raise LabError(f"cannot read {file}: {error}") from error
    except yaml.YAMLError as error:
        raise LabError(f"{file} is no valid YAML: {error}") from error
    if unknown := sorted(set(spec) - KNOWN_FIELDS):
        raise LabError(
            f"{file}: the lab does not render {', '.join(unknown)}; "
            f"it knows {', '.join(sorted(KNOWN_FIELDS))}"
        )
    if spec.get("kind", "Kustomization") != kind:
        raise LabError(f"{file}: it is of kind {spec['kind']}, but used as a {kind}")
    objects = list(objects)
    for entry in spec.get("resources") or []:
        path = directory / str(entry)
        if path.is_dir():
            objects += render_kustomization(path)
        elif path.is_file():
            objects += _read(path)
        else:
            raise LabError(f"{file}: resource {entry} is neither a file nor a directory here")
    for entry in spec.get("components") or []:
        objects = _render(directory / str(entry), "Component", objects)
    for entry in spec.get("patches") or []:
        if unknown := sorted(set(entry) - {"path", "patch", "target"}):
            raise LabError(f"{file}: the lab does not render patches with {', '.join(unknown)}")
        text = entry["patch"] if "patch" in entry else (directory / entry["path"]).read_text()
        for content in yaml.load_all(text, Loader=_Loader):
            objects = _patch(objects, content, entry.get("target") or {}, file)
    if namespace := spec.get("namespace"):
        objects = [_in_namespace(obj, namespace) for obj in objects]
    return objects


def _patch(objects: list[Object], content: Any, target: Object, file: Path) -> list[Object]:
    if unknown := sorted(set(target) - {"group", "version", "kind", "name", "namespace"}):
        raise LabError(f"{file}: the lab does not select patch targets by {', '.join(unknown)}")
    is_json = isinstance(content, list)
    if not target:
        if is_json:
            raise LabError(f"{file}: a JSON patch needs a target")
        metadata = content.get("metadata") or {}
        target = {"kind": content["kind"], "name": metadata.get("name")}
        if metadata.get("namespace"):
            target["namespace"] = metadata["namespace"]
    matching = [index for index, obj in enumerate(objects) if _is_target(obj, target)]
    if not matching:
        raise LabError(f"{file}: no object matches the patch target {target}")
    patched = list(objects)
    for index in matching:
        obj = objects[index]
        change = content if is_json else _without_identity(content, obj)
        try:
            patched[index] = apply_patch(
                "json" if is_json else "strategic", obj, change, obj["kind"]
            )
        except StatusError as error:
            raise LabError(f"{file}: patch of {target}: {error}") from error
        if not is_json:
            _order_as_in_patch(content, patched[index])
    return patched


def _order_as_in_patch(change: Object, after: Object) -> None:
    """Init containers that a patch names come first, as kustomize has it; an API server puts what
    is new last. Of these lists alone the order counts."""
    key = "initContainers"
    named = [each["name"] for each in _pod_spec(change).get(key) or []]
    if named:
        _pod_spec(after)[key].sort(
            key=lambda each: named.index(each["name"]) if each["name"] in named else len(named)
        )


def _pod_spec(obj: Object) -> Object:
    found: Object = ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    return found


def _is_target(obj: Object, target: Object) -> bool:
    group, _, version = str(obj.get("apiVersion", "")).rpartition("/")
    facts = {"group": group, "version": version, "kind": obj["kind"], **obj["metadata"]}
    return all(facts.get(name) == value for name, value in target.items())


def _without_identity(content: Object, obj: Object) -> Object:
    """A patch with a target may name any object in its own metadata: that is no renaming."""
    metadata = {**(content.get("metadata") or {}), "name": obj["metadata"]["name"]}
    return {**content, "apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata}


def _in_namespace(obj: Object, namespace: str) -> Object:
    if obj["kind"] == "Namespace":
        return {**obj, "metadata": {**obj["metadata"], "name": namespace}}
    changed = dict(obj)
    if obj["kind"] not in CLUSTER_SCOPED:
        changed["metadata"] = {**obj["metadata"], "namespace": namespace}
    if "subjects" in obj:
        # kustomize only follows the default account and accounts of the same kustomization.
        changed["subjects"] = [
            {**subject, "namespace": namespace} if subject["kind"] == "ServiceAccount" else subject
            for subject in obj["subjects"]
        ]
    return changed
