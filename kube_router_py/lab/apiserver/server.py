"""ApiServer: HTTPS in front of the store, on sockets the lab made in its namespaces.

Every request: authenticate (401), parse the path (404), authorise (403), then one of the verbs. A
request body is JSON or YAML; protobuf gets 415 with the remedy. ``?labValidation=off`` or the
header ``X-Lab-Validation: off`` stores what no real API server would accept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from . import bootstrap, certificates, discovery, rbac, reading, streams, tables, tokens, views
from .bodies import decode_object
from .calls import Call, table_rows
from .rbac import Action
from .status import Object, StatusError, no_such_path, success
from .store import Store
from .targets import Target, target_of, verb_of

_log = logging.getLogger(__name__)
_HEALTH = ("healthz", "livez", "readyz")
_BODY_LIMIT = 3 << 20  # bytes, as a real API server's


class ApiServer:
    """The lab's API server. The store outlives ``stop``; so do tokens and certificates."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        addresses: Sequence[str],
        port: int,
        *,
        names: Sequence[str] = ("localhost", "kubernetes", "kubernetes.default.svc"),
        expired_watch_is_http: bool = False,
    ) -> None:
        """Make certificates under ``directory`` and the objects of a fresh cluster.

        ``addresses``: where nodes reach this server, for the certificate and default/kubernetes;
        ``names``: further names or addresses in the certificate. ``expired_watch_is_http``: answer
        a watch of a compacted revision with HTTP 410 instead of an ERROR event in a stream (real
        API servers do either).
        """
        self.store = store
        self.tokens = tokens.Tokens()
        cluster_ips = [store.allocator.first_address(f) for f in store.allocator.families]
        loopback = ("127.0.0.1", "::1")
        all_names = (*addresses, *names, *cluster_ips, *loopback)
        self.certificates = certificates.create(directory, all_names)
        self.requests: dict[str, int] = {}
        self._address = f"{addresses[0]}:{port}" if addresses else ""
        self._context: ssl.SSLContext | None = None
        self.expired_watch_is_http = expired_watch_is_http
        self._http: web.Server | None = None
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._streams: set[streams.Stream] = set()
        bootstrap.populate(store, addresses, port)

    # --- life ----------------------------------------------------------------------------------

    async def start(self, sockets: Sequence[socket.socket], *, compact: bool = False) -> None:
        """Serve on bound TCP sockets (they stay the caller's); ``compact`` forgets history first.

        After ``stop`` the same sockets can be passed again.
        """
        if compact:
            self.store.compact()
        if self._context is None:
            self._context = self.certificates.server_context()
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None)
        loop = asyncio.get_running_loop()
        for sock in sockets:
            # A duplicate, because asyncio closes what it serves on.
            listener = await loop.create_server(
                self._http,
                sock=sock.dup(),
                ssl=self._context,
                ssl_handshake_timeout=120,
                backlog=256,
            )
            self._listeners.append(listener)
        self._sockets = list(sockets)

    async def stop(self) -> None:
        """Vanish as a crashed process does: connections are reset, new ones refused."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for sock in self._sockets:
            try:
                # The caller's descriptor would keep accepting into its backlog.
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by the caller already
        self._sockets.clear()
        if self._http is not None:
            for connection in self._http.connections:
                if connection.transport is not None:
                    connection.transport.abort()
            await self._http.shutdown(0.1)
            self._http = None

    # --- for the lab ---------------------------------------------------------------------------

    def issue_token(self, namespace: str, name: str) -> str:
        """A bearer token for a ServiceAccount."""
        return self.tokens.issue(namespace, name)

    def kubeconfig(self, server_url: str, token: str = "") -> str:
        """A kubeconfig file as text, for the administrator unless a token is given."""
        return tokens.kubeconfig(
            server_url, self.certificates.ca_data(), token or self.tokens.admin
        )

    def write_kubeconfig(self, path: Path, server_url: str, token: str = "") -> None:
        """Write that file, readable by its owner only."""
        path.touch(mode=0o600)
        path.write_text(self.kubeconfig(server_url, token))

    def open_watches(self, resource: str = "") -> int:
        """How many watches are open, of one resource or of all. For any thread."""
        found = self._streams.copy()  # the loop's thread may change it meanwhile
        return sum(not resource or s.resource.name == resource for s in found)

    def push_bookmarks(self) -> None:
        """Tell every open watch that takes bookmarks the current revision."""
        for stream in self._streams:
            stream.push_bookmark()

    def inject_watch_line(self, resource: str, line: bytes) -> int:
        """Send bytes as one line of every open watch of a resource; returns how many there are."""
        return self._offer(resource, streams.Raw(line))

    def end_watches(self, resource: str = "") -> int:
        """End open watches (of one resource, or all) as a timeout would; returns how many."""
        return self._offer(resource, streams.Hangup())

    def _offer(self, resource: str, item: object) -> int:
        chosen = [s for s in self._streams if not resource or s.resource.name == resource]
        for stream in chosen:
            stream.watch.offer(item)
        return len(chosen)

    # --- requests ------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except StatusError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.code == 401 else None
            return _json(error.body(), error.code, headers)
        except web.HTTPRequestEntityTooLarge:
            why = f"Request entity too large: limit is {_BODY_LIMIT}"
            return _json(StatusError(413, "RequestEntityTooLarge", why).body(), 413)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # noqa: BLE001 one request fails alone, and says so in the log
            _log.exception("%s %s failed", request.method, request.path)
            failure = StatusError(500, "InternalError", "Internal error: see the lab's log")
            return _json(failure.body(), 500)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path, query = request.path, request.query
        if path.strip("/").partition("/")[0] in _HEALTH:
            return web.Response(text="ok")
        if path == "/version":
            return _json(discovery.VERSION)
        user = self.tokens.user_of(request.headers, request.headers.getall("Impersonate-Group", []))
        target = target_of(path)
        if target is None:
            action = Action(request.method.lower(), path=path)
            if not rbac.is_allowed(self.store, user, action):
                raise rbac.refusal(user, action)
            document = discovery.document(path.rstrip("/") or "/", self._address)
            if document is None or request.method not in ("GET", "HEAD"):
                raise no_such_path()
            return _json(document)
        verb = verb_of(request.method, target, query)
        action = target.action(verb, query)
        key = f"{verb} {action.resource}"
        self.requests[key] = self.requests.get(key, 0) + 1
        if not rbac.is_allowed(self.store, user, action):
            raise rbac.refusal(user, action)
        if target.subresource == "log":
            raise StatusError(
                501,
                "NotImplemented",
                "the lab has no container logs; run a command in the pod with: kube-router-py lab "
                f"exec {target.namespace}/{target.name} -- COMMAND",
            )
        if verb == "watch":
            return await self._watch(request, target)
        body = b""
        if verb not in ("get", "list"):
            body = await request.clone(client_max_size=_BODY_LIMIT).read()
        if target.resource.create_only:
            review = decode_object(body, request.headers.get("Content-Type", ""))
            return _json(self._review(user, review), 201)
        call = Call(self.store, target, request)
        if verb == "get":
            return self._show(request, target, call.get())
        if verb == "list":
            found, meta = reading.read_list(self.store, target, query)
            return self._show_list(request, target, found, meta)
        if verb == "delete":
            obj, is_gone = call.delete(body)
            if is_gone and not target.resource.returns_deleted:
                meta = obj["metadata"]
                kind = target.resource
                details = {"name": meta["name"], "group": kind.group, "kind": kind.plural}
                return _json(success({**details, "uid": meta["uid"]}))
            return self._show(request, target, obj)
        if verb == "deletecollection":
            found = call.delete_collection(body)
            meta = {"resourceVersion": str(self.store.revision)}
            return self._show_list(request, target, found, meta)
        obj, created = call.write(verb, body)
        return self._show(request, target, obj, 201 if created else 200)

    async def _watch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        stream = streams.Stream(self.store, target, request.query, table_rows(request))
        if stream.failure is not None and self.expired_watch_is_http:
            stream.watch.close()
            raise stream.failure
        self._streams.add(stream)
        try:
            return await streams.serve(request, stream)
        finally:
            self._streams.discard(stream)

    def _review(self, user: tokens.User, review: Object) -> Object:
        """Answer a SelfSubjectAccessReview (kubectl auth can-i)."""
        spec = review.get("spec") or {}
        asked = spec.get("resourceAttributes")
        if asked:
            sub = asked.get("subresource")
            resource = asked.get("resource", "") + (f"/{sub}" if sub else "")
            action = Action(
                asked.get("verb", ""), asked.get("group", ""), resource,
                asked.get("namespace", ""), asked.get("name", ""),
            )  # fmt: skip
        else:
            asked = spec.get("nonResourceAttributes") or {}
            action = Action(asked.get("verb", ""), path=asked.get("path", "/"))
        allowed = rbac.is_allowed(self.store, user, action)
        kind = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
        return {**kind, "metadata": {}, "spec": spec, "status": {"allowed": allowed}}

    def _show(
        self, request: web.BaseRequest, target: Target, obj: Object, code: int = 200
    ) -> web.Response:
        rows = table_rows(request)
        if target.subresource != "scale":
            obj = views.show(target.resource, obj)
            if rows:
                meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
                table = tables.render(target.resource, [obj], meta, time.time(), include=rows)
                return _json(table, code)
        return _json(obj, code)

    def _show_list(
        self, request: web.BaseRequest, target: Target, objects: list[Object], meta: Object
    ) -> web.Response:
        kind, rows = target.resource, table_rows(request)
        shown = [views.show(kind, obj) for obj in objects] if kind.stored_as else objects
        if rows:
            return _json(tables.render(kind, shown, meta, time.time(), include=rows))
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
        return _json({**head, "metadata": meta, "items": shown})


def _json(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=code,
        content_type="application/json",
        headers=headers,
    )
