"""Bytes of the API server to frozen structs, item by item: one bad object spoils no other.

The decoder skips what the structs of ``objects`` do not name, so managedFields, pod specs and
the like are never built. An item is decoded twice at most: as it is, and, where that fails, once
more without its ``null`` members (Go writes ``null`` for an absent list or map in some fields, and
means "not set"). An item that still does not fit becomes a Problem that carries its name; only of
a NetworkPolicy is kept what can be read, for without it its pods would be open.
"""

from typing import Any, Generic, TypeVar

from msgspec import DecodeError, Raw, Struct, ValidationError, convert, field, json, structs

from kube_router_py.cluster.decode_error import explain
from kube_router_py.cluster.objects import (
    ApiStruct,
    ConfigMap,
    EndpointSlice,
    Lease,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.cluster.policy_decode import decode_policy
from kube_router_py.errors import ApiError
from kube_router_py.problem import Problem

T = TypeVar("T")

# Annotations of others are as large as their authors like (256 kB each object), and nobody here
# reads them. kubectl stores the whole manifest in one of them a second time.
_ANNOTATION_DOMAINS = ("kube-router.io", "kubernetes.io", "metallb.io", "metallb.universe.tf")
_SUBDOMAINS = tuple(f".{domain}" for domain in _ANNOTATION_DOMAINS)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# msgspec raises RecursionError for JSON nested more deeply than the interpreter allows.
_UNREADABLE = (DecodeError, RecursionError)


class UndecodableError(ApiError):
    """An answer as a whole is not what was asked for: a proxy's page, half a list, a Status."""


class Resource(Struct, frozen=True):
    """Where a kind is listed and watched: ``path`` is its cluster-wide collection."""

    path: str
    plural: str


RESOURCES: dict[type, Resource] = {
    Service: Resource("/api/v1/services", "services"),
    EndpointSlice: Resource("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices"),
    Node: Resource("/api/v1/nodes", "nodes"),
    Namespace: Resource("/api/v1/namespaces", "namespaces"),
    Pod: Resource("/api/v1/pods", "pods"),
    NetworkPolicy: Resource("/apis/networking.k8s.io/v1/networkpolicies", "networkpolicies"),
    ConfigMap: Resource("/api/v1/configmaps", "configmaps"),
    Lease: Resource("/apis/coordination.k8s.io/v1/leases", "leases"),
}


class _Identity(ApiStruct, frozen=True):
    """The part of an object's metadata that says which object it is."""

    name: str = ""
    namespace: str | None = None
    resource_version: str | None = None


class _Identified(ApiStruct, frozen=True):
    metadata: _Identity = _Identity()


class _ListMeta(ApiStruct, frozen=True):
    resource_version: str | None = None
    continue_: str | None = field(default=None, name="continue")


class _ListEnvelope(ApiStruct, frozen=True):
    kind: str = ""
    metadata: _ListMeta = _ListMeta()
    items: tuple[Raw, ...] | None = None


class Item(Struct, Generic[T], frozen=True):
    """One object as far as it could be read.

    Either ``object`` is set or ``problem`` is. ``key`` is ``""`` when not even the name could be
    read; ``revision`` is the object's resourceVersion. ``flaws`` tell of parts of ``object`` that
    could not be read and were replaced by something harmless.
    """

    key: str
    revision: str
    object: T | None
    problem: Problem | None
    flaws: tuple[Problem, ...] = ()


class Page(Struct, Generic[T], frozen=True):
    """One chunk of a list; ``next`` is the token of the following chunk, ``""`` at the end."""

    revision: str
    next: str
    items: tuple[Item[T], ...]


class WatchEvent(Struct, frozen=True):
    """One line of a watch: ``type`` is ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str
    object: Raw


class Status(ApiStruct, frozen=True):
    """What the API server says about a request that it did not carry out."""

    message: str | None = None
    reason: str | None = None
    code: int | None = None


class ObjectDecoder(Generic[T]):
    """Decodes one kind. Holds no state between calls; safe to share between threads."""

    def __init__(self, kind: type[T]) -> None:
        self.kind = kind
        self.name = kind.__name__
        self._decoder = json.Decoder(kind)

    def page(self, body: bytes) -> Page[T]:
        """Decode one chunk of a list.

        Raises UndecodableError for anything that is no list of this kind with a resourceVersion:
        an empty object or a Status with HTTP 200 must never pass for "there is nothing".
        """
        try:
            envelope = _LIST.decode(body)
        except _UNREADABLE as error:
            raise UndecodableError(f"the list of {self.name} cannot be decoded: {error}") from error
        if envelope.kind != f"{self.name}List":
            raise UndecodableError(
                f"asked for a list of {self.name}, the answer is of kind {envelope.kind!r}"
            )
        revision = envelope.metadata.resource_version
        if not revision:
            raise UndecodableError(f"the list of {self.name} has no resourceVersion")
        items = tuple(self.item(raw) for raw in envelope.items or ())
        return Page(revision, envelope.metadata.continue_ or "", items)

    def item(self, raw: Raw | bytes) -> Item[T]:
        """Decode one object; what is wrong with it is in the answer, nothing is raised."""
        try:
            decoded = self._decoder.decode(raw)
        except _UNREADABLE as error:
            return self._second_look(raw, error)
        return self._accept(decoded)

    def _second_look(self, raw: Raw | bytes, error: Exception) -> Item[T]:
        flaws: tuple[Problem, ...] = ()
        decoded: Any
        try:
            document = json.decode(raw)
            if self.kind is NetworkPolicy:
                decoded, flaws = decode_policy(document)
            else:
                decoded = convert(_without_nulls(document), self.kind)
        except _UNREADABLE as still:
            return self._reject(raw, still if isinstance(still, ValidationError) else error)
        return self._accept(decoded, flaws)

    def _accept(self, decoded: T, flaws: tuple[Problem, ...] = ()) -> Item[T]:
        # Every kind in RESOURCES has metadata; T is not bound to say so.
        meta = decoded.metadata  # type: ignore[attr-defined]
        if not meta.name:
            problem = Problem(f"{self.name} ?", "metadata.name", "the object has no name")
            return Item("", meta.resource_version, None, problem)
        if meta.annotations and not all(map(_is_of_interest, meta.annotations)):
            kept = {k: v for k, v in meta.annotations.items() if _is_of_interest(k)}
            decoded = structs.replace(  # type: ignore[type-var]
                decoded, metadata=structs.replace(meta, annotations=kept)
            )
        return Item(meta.key, meta.resource_version, decoded, None, flaws)

    def _reject(self, raw: Raw | bytes, error: Exception) -> Item[T]:
        identity = identify(raw)
        key = (
            f"{identity.namespace}/{identity.name}"
            if identity.namespace and identity.name
            else identity.name
        )
        reason, where = explain(error)
        problem = Problem(f"{self.name} {key or '?'}", where, reason)
        return Item(key, identity.resource_version or "", None, problem)


def identify(raw: Raw | bytes) -> _Identity:
    """Name, namespace and resourceVersion of an object of any kind; empty where unreadable."""
    try:
        return _IDENTIFIED.decode(raw).metadata
    except _UNREADABLE:
        return _Identity()


def watch_event(line: bytes) -> WatchEvent:
    """Decode the envelope of one line of a watch. Raises UndecodableError if it is none."""
    try:
        return _EVENT.decode(line)
    except _UNREADABLE as error:
        raise UndecodableError(f"a line of the watch cannot be decoded: {error}") from error


def status(body: Raw | bytes) -> Status:
    """The Status that goes with a refusal; an empty one where the body is something else."""
    try:
        return _STATUS.decode(body)
    except _UNREADABLE:
        return Status()


def _is_of_interest(annotation: str) -> bool:
    domain = annotation.partition("/")[0]
    is_read = domain in _ANNOTATION_DOMAINS or domain.endswith(_SUBDOMAINS)
    return is_read and annotation != _LAST_APPLIED


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


_LIST = json.Decoder(_ListEnvelope)
_EVENT = json.Decoder(WatchEvent)
_STATUS = json.Decoder(Status)
_IDENTIFIED = json.Decoder(_Identified)
