"""Kubernetes objects from manifest files: YAML documents, JSON, ``kind: List``, directories.

Syntax that cannot be read stops everything (``ManifestError``); an object that cannot be understood
becomes a Problem; kinds the agent does not read are skipped.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from kube_router_py.address_pool_config import CONFIG_MAP
from kube_router_py.cluster.decode import Item, ObjectDecoder
from kube_router_py.cluster.defaults import with_defaults
from kube_router_py.cluster.objects import (
    ConfigMap,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.errors import KubeRouterError
from kube_router_py.manifest_text import SyntaxProblem, documents
from kube_router_py.problem import Problem

T = TypeVar("T")

_KINDS: dict[tuple[str, str], type] = {
    ("v1", "Service"): Service,
    ("v1", "Node"): Node,
    ("v1", "Namespace"): Namespace,
    ("v1", "Pod"): Pod,
    ("v1", "ConfigMap"): ConfigMap,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicy,
}
# Of a kind that anything is kept in, only the one that the agent reads.
_NAMES: dict[type, str] = {ConfigMap: CONFIG_MAP}
_CLUSTER_SCOPED = frozenset({"Node", "Namespace"})
_SUFFIXES = (".yaml", ".yml", ".json")


class ManifestError(KubeRouterError):
    """A file cannot be read, or is neither YAML nor JSON; the message names it."""


class Manifests:
    """The objects of some manifests, by kind; of two with one name the last one counts.

    ``secrets`` are the contents of Secrets by ``namespace/name`` and entry; Secrets are skipped
    unless ``with_secrets``.
    """

    def __init__(self, *, with_secrets: bool = False) -> None:
        self._objects: dict[type, dict[str, Any]] = {kind: {} for kind in _KINDS.values()}
        self._with_secrets = with_secrets
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.problems: list[Problem] = []

    def list(self, kind: type[T]) -> list[T]:
        """All objects of a kind, sorted by name."""
        return [self._objects[kind][key] for key in sorted(self._objects[kind])]

    def get(self, kind: type[T], key: str) -> T | None:
        found: T | None = self._objects[kind].get(key)
        return found

    def take(self, kind: type[T], objects: Mapping[str, T], problems: Iterable[Problem]) -> None:
        """Take in what an API server has listed, by key."""
        self._objects[kind].update(objects)
        self.problems += problems

    def add(self, document: Any, where: str, primary_family: str) -> None:
        """Take in one parsed document; ``where`` says where it stood."""
        if document is None:
            return
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            self.problems.append(Problem(where, "kind", "this is no Kubernetes object"))
            return
        kind = document["kind"]
        if kind.endswith("List") and isinstance(document.get("items"), list):
            for index, item in enumerate(document["items"]):
                if isinstance(item, dict) and kind != "List":
                    # Items of a typed list do not repeat what they are.
                    version = document.get("apiVersion")
                    item = {"apiVersion": version, "kind": kind.removesuffix("List"), **item}
                self.add(item, f"{where} items[{index}]", primary_family)
            return
        version = document.get("apiVersion")
        if not isinstance(version, str) or not version:
            reason = f"is absent or no text: which version of {kind} is this?"
            self.problems.append(Problem(where, "apiVersion", reason))
            return
        struct = _KINDS.get((version, kind))
        if struct is not None:
            self._decode(struct, document, where, primary_family)
        elif self._with_secrets and (version, kind) == ("v1", "Secret"):
            self._take_secret(document, where)

    def _take_secret(self, document: dict[str, Any], where: str) -> None:
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(name, str):
            self.problems.append(Problem(where, "metadata.name", "is absent or no text"))
            return
        key = f"{metadata.get('namespace') or 'default'}/{name}"
        found: dict[str, bytes] = {}
        for field, decode in (("data", _from_base64), ("stringData", str.encode)):
            entries = document.get(field)
            for entry, value in entries.items() if isinstance(entries, dict) else ():
                try:
                    found[str(entry)] = decode(value)
                except (TypeError, ValueError):  # its message may quote the content
                    reason = "cannot be decoded"
                    self.problems.append(Problem(f"Secret {key}", f"{field}.{entry}", reason))
        self.secrets[key] = found

    def _decode(
        self, struct: type, document: dict[str, Any], where: str, primary_family: str
    ) -> None:
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if name != _NAMES.get(struct, name):
            return
        if (
            struct.__name__ not in _CLUSTER_SCOPED
            and isinstance(metadata, dict)
            and not metadata.get("namespace")
        ):
            document = {**document, "metadata": {**metadata, "namespace": "default"}}
        try:
            raw = msgspec.json.encode(document)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self.problems.append(Problem(where, "", f"cannot be decoded: {error}"))
            return
        item: Item[Any] = ObjectDecoder(struct).item(raw)
        if item.problem is not None:
            self.problems.append(item.problem)
        elif item.object is not None:
            self.problems += item.flaws
            self._objects[struct][item.key] = with_defaults(item.object, primary_family)


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def load_manifests(
    files: Sequence[str],
    stdin: IO[str],
    primary_family: str = "IPv4",
    *,
    with_secrets: bool = False,
) -> Manifests:
    """Read files, directories (their YAML and JSON files, in order) and ``-``.

    Raises ManifestError for what cannot be read or parsed.
    """
    manifests = Manifests(with_secrets=with_secrets)
    for name, text in _read(files, stdin):
        for number, document in enumerate(_parse(name, text)):
            manifests.add(document, f"{name} document {number + 1}", primary_family)
    return manifests


def _read(files: Iterable[str], stdin: IO[str]) -> Iterator[tuple[str, str]]:
    for name in files:
        try:
            if name == "-":
                yield "standard input", stdin.read()
                continue
            path = Path(name)
            paths = [path]
            if path.is_dir():
                paths = sorted(
                    each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file()
                )
            for each in paths:
                yield str(each), each.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ManifestError(f"{name} cannot be read: {reason}") from error


def _parse(name: str, text: str) -> list[Any]:
    try:
        return documents(text, is_json=name.endswith(".json"))
    except SyntaxProblem as error:
        raise ManifestError(f"{name} is {error}") from error
