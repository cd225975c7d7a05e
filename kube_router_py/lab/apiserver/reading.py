"""Lists: selectors, chunks and revisions of a list request."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import msgspec

from .selectors import Match, selector
from .status import Object, bad_request, too_large_revision
from .store import Store
from .targets import Target

Objects = list[Object]


def number(query: Mapping[str, str], name: str) -> int:
    """A number of the query, 0 when absent; 400 when it is none."""
    text = query.get(name) or "0"
    if not text.isdigit():
        raise bad_request(f'invalid {name}: "{text}": must be a number')
    return int(text)


def match_of(query: Mapping[str, str], target: Target) -> Match | None:
    """Both selectors and, for a request of one object by name, its name; None matches all."""
    fields = query.get("fieldSelector", "")
    return selector(query.get("labelSelector", ""), fields, target.resource)


def revision_of(query: Mapping[str, str], store: Store) -> int:
    """The resourceVersion asked for (0: any); 504 when the store is not that new."""
    revision = number(query, "resourceVersion")
    if revision > store.revision:
        raise too_large_revision(revision, store.revision)
    return revision


def _token(revision: int, last: Object) -> str:
    meta = last["metadata"]
    after = [revision, meta.get("namespace", ""), meta["name"]]
    return base64.urlsafe_b64encode(msgspec.json.encode(after)).decode()


def _parse(token: str) -> tuple[int, str, str]:
    try:
        raw = base64.urlsafe_b64decode(token)
        return msgspec.json.decode(raw, type=tuple[int, str, str])
    except (ValueError, msgspec.MsgspecError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def read_list(store: Store, target: Target, query: Mapping[str, str]) -> tuple[Objects, Object]:
    """The objects of one chunk, and the ListMeta; 410 when a continued list was compacted."""
    match, limit = match_of(query, target), number(query, "limit")
    namespace = target.namespace or None
    after: tuple[str, str] | None = None
    if query.get("continue"):
        revision, *last = _parse(query["continue"])
        after = (last[0], last[1])
        found = store.storage.list_at(target.resource.name, namespace, revision)
    else:
        asked, revision = revision_of(query, store), store.revision
        if asked and query.get("resourceVersionMatch") == "Exact":
            revision = asked
        found = store.storage.list_at(target.resource.name, namespace, revision)
    if match is not None:
        found = [obj for obj in found if match(obj)]
    if after is not None:
        found = [
            obj
            for obj in found
            if (obj["metadata"].get("namespace", ""), obj["metadata"]["name"]) > after
        ]
    meta: Object = {"resourceVersion": str(revision)}
    # resourceVersion=0 is served from a cache that ignores the limit in a real API server.
    if limit and len(found) > limit and query.get("resourceVersion") != "0":
        if match is None:
            meta["remainingItemCount"] = len(found) - limit
        found = found[:limit]
        meta["continue"] = _token(revision, found[-1])
    return found, meta
