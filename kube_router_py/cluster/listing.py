"""All objects of a kind, asked for once: for commands, which do not watch."""

import time
from typing import Generic, TypeVar

from msgspec import Struct

from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.decode import RESOURCES, ObjectDecoder
from kube_router_py.errors import ApiError
from kube_router_py.problem import Problem

T = TypeVar("T")

_CHUNK = 500


class Listed(Struct, Generic[T], frozen=True):
    """``objects`` by key, in the server's order; ``problems`` are those that cannot be read."""

    objects: dict[str, T]
    problems: tuple[Problem, ...]


def list_all(
    client: Client,
    kind: type[T],
    *,
    namespace: str = "",
    label_selector: str = "",
    deadline: float | None = None,
) -> Listed[T]:
    """List a kind in chunks, of one namespace or of all, until ``deadline`` (``time.monotonic``).

    Raises ApiError; a snapshot that is compacted away meanwhile is asked for anew, in one piece.
    """
    path = RESOURCES[kind].path
    if namespace:
        root, _, plural = path.rpartition("/")
        path = f"{root}/namespaces/{namespace}/{plural}"
    try:
        return _list(client, kind, path, label_selector, _CHUNK, deadline)
    except RefusedError as error:
        if error.status != 410:
            raise
        return _list(client, kind, path, label_selector, 0, deadline)


def _list(
    client: Client,
    kind: type[T],
    path: str,
    label_selector: str,
    chunk: int,
    deadline: float | None,
) -> Listed[T]:
    decoder = ObjectDecoder(kind)
    objects: dict[str, T] = {}
    problems: list[Problem] = []
    query = {"labelSelector": label_selector} if label_selector else {}
    if chunk:
        query["limit"] = str(chunk)
    while True:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise ApiError(f"the API server takes too long to list {path}")
        page = decoder.page(client.list(path, query, timeout_s=left_s))
        for item in page.items:
            if item.object is not None:
                objects[item.key] = item.object
                problems += item.flaws
            elif item.problem is not None:
                problems.append(item.problem)
        if not page.next:
            return Listed(objects, tuple(problems))
        query["continue"] = page.next
