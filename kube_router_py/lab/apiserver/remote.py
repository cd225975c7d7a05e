"""RemoteStore: the lab's controllers, scheduler and kubelets as clients of a real API server.

Reads come out of a mirror that list and watch keep; writes are blocking HTTP requests, and their
answers enter the mirror before the call returns. So the lab's parts see what they wrote, as they do
with the lab's own ``Store``; a write made on an outdated object is refused with 409, the present
object is fetched, and the caller's next attempt starts from that one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from . import status
from .metadata import own
from .mirror import Mirror
from .resources import BY_KIND, BY_NAME, Resource
from .rest import PATCHES, Rest, path_of
from .status import Object, StatusError
from .storage import Event

Objects = list[Object]  # RemoteStore.list hides the builtin inside the class

MIRRORED = (
    "namespaces",
    "nodes",
    "pods",
    "services",
    "endpointslices",
    "deployments",
    "replicasets",
)
WATCH_S = 240
SILENCE_S = WATCH_S + 60.0
RETRY_S = 0.3

_log = logging.getLogger(__name__)


class _Expired(Exception):
    """The watch's revision is forgotten: list again."""


class RemoteStore:
    """An ``ObjectStore`` in front of a server; between ``open`` and ``close``, in one loop."""

    def __init__(self, url: str, token: str, ca: Path) -> None:
        """``url``: https, host and port; ``token``: an administrator's; ``ca``: a PEM file."""
        self._url = url
        self._token = token
        self._ca = ca
        self._rest = Rest(url, token, ca)
        self._mirror = Mirror(MIRRORED)
        self._positions: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """List everything once and go on watching. StatusError when the server refuses."""
        context = ssl.create_default_context(cafile=str(self._ca))
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}", "Accept": "application/json"},
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=SILENCE_S),
        )
        for resource in self._mirror.resources:
            self._relist(resource)
            self._tasks.append(asyncio.create_task(self._follow(resource, self._session)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        self._rest.close()

    # --- reading -------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The server's present revision, asked for each time."""
        found = self._rest.call("GET", path_of(BY_NAME["namespaces"]), query={"limit": "1"})
        return int(found["metadata"]["resourceVersion"])

    def refresh(self) -> None:
        """List every mirrored kind: afterwards nothing written before this call is missing."""
        for resource in self._mirror.resources:
            self._relist(resource)

    def find(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """The object or None: mirrored kinds as they are known, others as the server has them."""
        if resource in self._mirror.resources:
            return self._mirror.find(resource, namespace, name)
        try:
            return self._fetch(BY_NAME[resource], name, namespace)
        except StatusError as error:
            if error.code == 404:
                return None
            raise

    def get(self, resource: str, name: str, namespace: str = "") -> Object:
        """The object; 404 StatusError when it does not exist."""
        obj = self.find(resource, name, namespace)
        if obj is None:
            raise status.not_found(BY_NAME[resource].group_resource, name)
        return obj

    def list(self, resource: str, namespace: str | None = None) -> Objects:
        """Objects sorted by namespace and name."""
        if resource in self._mirror.resources:
            return self._mirror.list(resource, namespace)
        return self._list(BY_NAME[resource], namespace)[0]

    def subscribe(self, callback: Callable[[Event], None], *resources: str) -> Callable[[], None]:
        """Call back for each Event of a mirrored kind; returns the function to stop."""
        return self._mirror.subscribe(callback, *resources)

    # --- writing -------------------------------------------------------------------------------

    def create(self, resource: str, obj: Object, *, namespace: str = "") -> Object:
        """Create; 409 when the name is taken."""
        kind = BY_NAME[resource]
        space = self._namespace(kind, obj, namespace)
        return self._learn(kind, self._rest.call("POST", path_of(kind, space), _typed(kind, obj)))

    def update(
        self, resource: str, obj: Object, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        """Replace the object, or its status; 409 when its resourceVersion is not current.

        A status is patched: the lab is its only author, and a PUT of a pod's status would also
        bring back annotations that somebody has changed meanwhile.
        """
        kind = BY_NAME[resource]
        space, name = self._namespace(kind, obj, namespace), obj["metadata"]["name"]
        if subresource == "status":
            held = (self.find(resource, name, space) or {}).get("status") or {}
            wanted = obj.get("status") or {}
            change = {**dict.fromkeys(held), **wanted}  # null: what is no longer there
            uid = obj["metadata"].get("uid")
            patch = {**({"metadata": {"uid": uid}} if uid else {}), "status": change}
            return self.patch(resource, name, patch, namespace=space, subresource="status")
        path = path_of(kind, space, name, subresource)
        return self._write(kind, name, space, "PUT", path, _typed(kind, obj))

    def patch(
        self,
        resource: str,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        form: str = "merge",
        subresource: str = "",
    ) -> Object:
        """Patch the object, or only its status; ``form``: json, merge or strategic."""
        kind = BY_NAME[resource]
        path = path_of(kind, namespace, name, subresource)
        return self._write(kind, name, namespace, "PATCH", path, patch, PATCHES[form])

    def apply(self, obj: Object) -> Object:
        """Create the object or strategically merge it into the existing one (``-f`` files)."""
        kind = BY_KIND.get((str(obj.get("apiVersion")), str(obj.get("kind"))))
        if kind is None or kind.create_only:
            raise status.bad_request(
                f'the lab applies no kind "{obj.get("kind")}" in version "{obj.get("apiVersion")}"'
                ": use kubectl"
            )
        try:
            return self.create(kind.name, obj)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise
        metadata = obj["metadata"]
        patch = {key: value for key, value in obj.items() if key != "status"}
        space = self._namespace(kind, obj, "")
        return self.patch(kind.name, metadata["name"], patch, namespace=space, form="strategic")

    def bind(self, pod: str, namespace: str, node: str) -> Object:
        """Give a pod its node; a real server takes that as a Binding only."""
        kind = BY_NAME["pods"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        self._rest.call("POST", path_of(kind, namespace, pod, "binding"), binding)
        return self._fetch(kind, pod, namespace)  # the answer is a Status, not the pod

    def finalize_namespace(self, name: str) -> None:
        """Take the finalizers off a namespace: the server then removes it."""
        kind = BY_NAME["namespaces"]
        space = self._fetch(kind, name, "")
        emptied = {**space, "spec": {**(space.get("spec") or {}), "finalizers": []}}
        self._rest.call("PUT", path_of(kind, None, name, "finalize"), emptied)

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "",
        *,
        grace_period_s: int | None = None,
        uid: str = "",
    ) -> tuple[Object, bool]:
        """Delete in the background; returns the last state and whether it is gone already."""
        kind = BY_NAME[resource]
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        options["propagationPolicy"] = "Background"
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if uid:
            options["preconditions"] = {"uid": uid}
        last = self.find(resource, name, namespace)
        try:
            answer = self._rest.call("DELETE", path_of(kind, namespace, name), options)
        except StatusError as error:
            if error.code == 404 and last is not None:
                self._forget(kind, last)
            raise
        if answer.get("kind") == "Status":
            last = last or {"metadata": {"name": name, "namespace": namespace}}
            self._forget(kind, last)
            return last, True
        answer = _typed(kind, answer)
        if _is_terminating(kind, answer, grace_period_s):
            return self._learn(kind, answer), False
        self._forget(kind, answer)
        return answer, True

    # --- requests ------------------------------------------------------------------------------

    def _namespace(self, kind: Resource, obj: Object, given: str) -> str:
        if not kind.namespaced:
            return ""
        return str((obj.get("metadata") or {}).get("namespace") or given or "default")

    def _fetch(self, kind: Resource, name: str, namespace: str) -> Object:
        return self._learn(kind, self._rest.call("GET", path_of(kind, namespace, name)))

    def _write(
        self,
        kind: Resource,
        name: str,
        namespace: str,
        method: str,
        path: str,
        body: Any,
        content_type: str = "application/json",
    ) -> Object:
        try:
            return self._learn(kind, self._rest.call(method, path, body, content_type=content_type))
        except StatusError as error:
            if error.code == 409:
                self._fetch(kind, name, namespace)  # for the next attempt
            raise

    def _learn(self, kind: Resource, obj: Object) -> Object:
        obj = _typed(kind, obj)
        if kind.name in self._mirror.resources:
            self._mirror.put(kind.name, obj)
        return obj

    def _forget(self, kind: Resource, obj: Object) -> None:
        if kind.name in self._mirror.resources:
            self._mirror.forget(kind.name, obj)

    def _list(self, kind: Resource, namespace: str | None) -> tuple[Objects, str]:
        # No resourceVersion: the state as etcd has it now, not as some cache remembers it.
        found = self._rest.call("GET", path_of(kind, namespace))
        items = [_typed(kind, item) for item in found.get("items") or []]
        items.sort(key=lambda o: (o["metadata"].get("namespace", ""), o["metadata"]["name"]))
        return items, str(found["metadata"]["resourceVersion"])

    def _relist(self, resource: str) -> None:
        # Blocking, so that no watched event can come between the answer and its use.
        objects, revision = self._list(BY_NAME[resource], None)
        self._mirror.replace(resource, objects, int(revision))
        self._positions[resource] = revision

    # --- watching ------------------------------------------------------------------------------

    async def _follow(self, resource: str, session: aiohttp.ClientSession) -> None:
        is_current, told = True, ""
        while True:
            try:
                if not is_current:
                    self._relist(resource)
                    is_current = True
                await self._watch(resource, session)
                told = ""
            except _Expired:
                is_current = False
                continue
            except (aiohttp.ClientError, OSError, ValueError, StatusError) as error:
                if told != type(error).__name__:  # an absence is news once
                    told = type(error).__name__
                    _log.info("watch of %s: %s: %s", resource, told, error)
            await asyncio.sleep(RETRY_S)

    async def _watch(self, resource: str, session: aiohttp.ClientSession) -> None:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
            "resourceVersion": self._positions[resource],
        }
        async with session.get(self._url + path_of(BY_NAME[resource]), params=query) as answer:
            if answer.status == 410:
                raise _Expired
            answer.raise_for_status()
            tail = b""
            try:
                async for chunk in answer.content.iter_any():
                    *lines, tail = (tail + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            self._receive(resource, msgspec.json.decode(line))
            finally:
                # A polite end of TLS would wait for the server, beyond the end of the loop.
                if answer.connection is not None and answer.connection.transport is not None:
                    answer.connection.transport.abort()

    def _receive(self, resource: str, event: Object) -> None:
        type_, obj = event["type"], event["object"]
        if type_ == "ERROR":
            if obj.get("code") == 410:
                raise _Expired
            raise StatusError(int(obj.get("code") or 500), "", str(obj.get("message")))
        revision = str(obj["metadata"]["resourceVersion"])
        if type_ != "BOOKMARK":
            self._mirror.receive(resource, type_, _typed(BY_NAME[resource], obj))
        # A list may have gone further meanwhile; revisions of one server are numbers.
        if int(revision) > int(self._positions[resource]):
            self._positions[resource] = revision


def _typed(kind: Resource, obj: Object) -> Object:
    """The object with its kind, which items of lists leave out."""
    return {**own(obj), "apiVersion": kind.api_version, "kind": kind.kind}


def _is_terminating(kind: Resource, obj: Object, grace_period_s: int | None) -> bool:
    """Whether an object in the answer to a deletion is still there."""
    metadata = obj["metadata"]
    if kind.name == "namespaces":
        return True  # its own finalizer comes off later
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return bool(metadata.get("finalizers"))
    # With 0 the answer is the last state stored, still with the grace period of before.
    return grace_period_s != 0 and bool(metadata.get("deletionGracePeriodSeconds"))
