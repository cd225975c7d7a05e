"""An API server just real enough to hurt: HTTP over loopback, history, compaction, and faults."""

import json
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kube_router_py.cluster.client import Client, connect
from kube_router_py.cluster.decode import RESOURCES

PATHS = {kind.__name__: resource.path for kind, resource in RESOURCES.items()}
KINDS = {path: name for name, path in PATHS.items()}


class Chaos:
    """Random misbehaviour, drawn from one seed; ``active`` switches it off for a while."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.active = True

    def hits(self, probability: float) -> bool:
        return self.active and self.random.random() < probability


class Api:
    """The server's state, and what a test may do to it. Keys are ``namespace/name`` or ``name``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.revision = 10
        self.compacted = 0
        self.epoch = 0
        self.stopped = False
        self.objects: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in PATHS}
        self.history: dict[str, list[tuple[int, str, bytes]]] = {name: [] for name in PATHS}
        self.deleted: dict[str, set[str]] = {name: set() for name in PATHS}
        self.snapshots: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.requests: list[SimpleNamespace] = []
        self.watching: dict[str, int] = dict.fromkeys(PATHS, 0)
        self.watches_begun: dict[str, int] = dict.fromkeys(PATHS, 0)
        # Each takes (handler, request) and returns True if it has answered; used once, in order.
        self.faults: deque[Callable[[Any, SimpleNamespace], bool]] = deque()
        # Like a fault, but stays.
        self.intercept: Callable[[Any, SimpleNamespace], bool] | None = None
        self.inject: deque[bytes] = deque()
        self.gone_in_stream = True
        self.silent = False
        self.chaos: Chaos | None = None
        self.url = ""
        self.server: ThreadingHTTPServer | None = None

    # --- objects -----------------------------------------------------------------------------

    def put(self, kind: str, key: str, **fields: Any) -> dict[str, Any]:
        with self.changed:
            self.revision += 1
            namespace, _, name = key.rpartition("/")
            known = self.objects[kind].get(key)
            meta = {
                "name": name,
                "uid": known["metadata"]["uid"] if known else f"uid-{self.revision}",
                **fields.pop("metadata", {}),
                "resourceVersion": str(self.revision),
                "managedFields": [{"manager": "test", "fieldsV1": {"f:spec": {}}}],
            }
            if namespace:
                meta["namespace"] = namespace
            obj = {"kind": kind, "apiVersion": "v1", "metadata": meta, **fields}
            self.objects[kind][key] = obj
            self._record(kind, "MODIFIED" if known else "ADDED", obj)
            return obj

    def delete(self, kind: str, key: str) -> None:
        with self.changed:
            self.revision += 1
            obj = self.objects[kind].pop(key)
            self.deleted[kind].add(key)
            meta = {**obj["metadata"], "resourceVersion": str(self.revision)}
            self._record(kind, "DELETED", {**obj, "metadata": meta})

    def _record(self, kind: str, type_: str, obj: dict[str, Any]) -> None:
        line = json.dumps({"type": type_, "object": obj}).encode() + b"\n"
        self.history[kind].append((self.revision, type_, line))
        self.changed.notify_all()

    def has_news(self, kind: str, cursor: int, epoch: int) -> bool:
        """Whether a watch that has come to ``cursor`` has something to do."""
        latest = self.history[kind][-1][0] if self.history[kind] else 0
        fresh = bool(self.inject) or cursor < self.compacted or latest > cursor
        return self.epoch != epoch or (fresh and not self.silent)

    # --- trouble -----------------------------------------------------------------------------

    def compact(self) -> None:
        with self.changed:
            self.compacted = self.revision
            self.snapshots.clear()
            self.changed.notify_all()

    def disconnect(self) -> None:
        """Break every watch, without a proper end."""
        with self.changed:
            self.epoch += 1
            self.changed.notify_all()

    def send_line(self, line: bytes) -> None:
        """Put a line into the next watch that looks."""
        with self.changed:
            self.inject.append(line + b"\n")
            self.changed.notify_all()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> Callable[..., bool]:
        """A fault: answer the next request so."""

        def fault(handler: Any, request: SimpleNamespace) -> bool:
            handler.reply(status, body, headers)
            return True

        return fault

    def start(self, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        api = self

        class Bound(Handler):
            server_api = api

        self.stopped = False
        self.server = Server(("127.0.0.1", port), Bound)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.stopped = True
        self.disconnect()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are the point here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_api: Api

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_PATCH(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    do_POST = do_PUT = do_PATCH

    def _serve(self, body: bytes) -> None:
        api = self.server_api
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        request = SimpleNamespace(
            method=self.command,
            path=parts.path,
            query=query,
            headers=dict(self.headers.items()),
            body=body,
            watch=query.get("watch") == "true",
        )
        with api.changed:
            api.requests.append(request)
            fault = api.faults.popleft() if api.faults else api.intercept
        if fault and fault(self, request):
            return
        kind = KINDS.get(parts.path)
        if self.command != "GET":
            self.reply(200, body)
        elif kind is None:
            self.reply(404, json.dumps({"kind": "Status", "message": "not found"}).encode())
        elif self._chaos_refuses():
            return
        elif request.watch:
            self._watch(kind, query)
        else:
            self._list(kind, query)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drop(self) -> None:
        """End the connection without a proper end of the answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def status(self, code: int, reason: str) -> bytes:
        return json.dumps(
            {"kind": "Status", "code": code, "reason": reason, "message": f"test says {reason}"}
        ).encode()

    def _chaos_refuses(self) -> bool:
        chaos = self.server_api.chaos
        if chaos is None or not chaos.hits(0.15):
            return False
        code = chaos.random.choice([401, 403, 429, 500, 503, 0])
        if code:
            self.reply(code, self.status(code, "Chaos"))
        else:
            self.drop()
        return True

    def _list(self, kind: str, query: dict[str, str]) -> None:
        api, chaos = self.server_api, self.server_api.chaos
        with api.changed:
            if "continue" in query:
                revision, start = map(int, query["continue"].split(":"))
                snapshot = api.snapshots.get((kind, revision))
                if snapshot is None or (chaos and chaos.hits(0.1)):
                    self.reply(410, self.status(410, "Expired"))
                    return
            else:
                revision, start = api.revision, 0
                snapshot = [o for _, o in sorted(api.objects[kind].items())]
                if kind == "Service" and chaos and chaos.hits(0.2):
                    snapshot = [o for o in snapshot if o["metadata"]["name"] != "kubernetes"][::2]
                api.snapshots[kind, revision] = snapshot
            limit = int(query.get("limit", "0")) or len(snapshot) or 1
            items = snapshot[start : start + limit]
            more = start + limit < len(snapshot)
            meta = {"resourceVersion": str(revision)}
            if more:
                meta["continue"] = f"{revision}:{start + limit}"
            body = json.dumps({"kind": f"{kind}List", "metadata": meta, "items": items}).encode()
        if chaos and chaos.hits(0.1):
            body = body[: len(body) // 2]
        self.reply(200, body)

    # --- watch -------------------------------------------------------------------------------

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        api, chaos = self.server_api, self.server_api.chaos
        cursor = int(query["resourceVersion"])
        ends = time.monotonic() + float(query["timeoutSeconds"])
        with api.changed:
            epoch = api.epoch
            if cursor < api.compacted and not api.gone_in_stream:
                self.reply(410, self.status(410, "Expired"))
                return
            api.watching[kind] += 1
            api.watches_begun[kind] += 1
        try:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                with api.changed:
                    api.changed.wait_for(
                        partial(api.has_news, kind, cursor, epoch),
                        timeout=max(0.0, ends - time.monotonic()),
                    )
                    if api.epoch != epoch:
                        self.drop()
                        return
                    gone = cursor < api.compacted
                    batch = [] if gone else [h for h in api.history[kind] if h[0] > cursor]
                    past = [h for h in api.history[kind] if h[0] <= cursor]
                    lines = [api.inject.popleft() for _ in range(len(api.inject))]
                    bookmark = api.revision
                if gone:
                    self._chunk(b'{"type":"ERROR","object":%s}\n' % self.status(410, "Expired"))
                    self._chunk(b"")
                    return
                if time.monotonic() >= ends and not batch and not lines:
                    self._chunk(b"")
                    return
                lines += [line for _, _, line in batch]
                cursor = max([cursor, *(revision for revision, _, _ in batch)])
                if chaos and chaos.hits(0.15) and lines:
                    # Cut off: a beginning of the batch, in order, and half a line.
                    whole = chaos.random.randrange(len(lines))
                    for line in lines[:whole]:
                        self._chunk(line)
                    self._chunk(lines[whole][: len(lines[whole]) // 2])
                    self.drop()
                    return
                if chaos and chaos.hits(0.5):
                    lines += chaos.random.choices(lines, k=2) if lines else []
                    lines += [h[2] for h in chaos.random.choices(past, k=3)] if past else []
                    chaos.random.shuffle(lines)
                if chaos and chaos.hits(0.1):
                    lines.append(b'{"type": "MODIFIED", "object": {"metadata"\n')
                # One write: what was shuffled arrives as a whole or not at all.
                if lines:
                    self._chunk(b"".join(lines))
                if chaos and chaos.hits(0.3):
                    meta = {"metadata": {"resourceVersion": str(bookmark)}}
                    event = {"type": "BOOKMARK", "object": {"kind": kind, "spec": None, **meta}}
                    with api.changed:
                        missed = any(cursor < h[0] <= bookmark for h in api.history[kind])
                    if not missed:
                        self._chunk(json.dumps(event).encode() + b"\n")
        finally:
            with api.changed:
                api.watching[kind] -= 1

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


@pytest.fixture
def api() -> Iterator[Api]:
    """A running server that has default/kubernetes."""
    double = Api()
    double.put("Service", "default/kubernetes", spec={"clusterIP": "10.96.0.1"})
    double.start()
    yield double
    if double.server:
        double.stop()


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    connected = connect(
        SimpleNamespace(master=api.url, kubeconfig=""), {}, service_account="/nonexistent"
    )
    yield connected
    connected.close()


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition, generously; the failure names what was waited for."""

    def wait(condition: Callable[[], object], what: str = "", deadline_s: float = 30.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what or condition}"
            time.sleep(0.005)

    return wait


@pytest.fixture
def new_api() -> Iterator[Callable[[], Api]]:
    """More servers, stopped at the end."""
    made: list[Api] = []

    def make() -> Api:
        double = Api()
        double.put("Service", "default/kubernetes", spec={"clusterIP": "10.96.0.1"})
        made.append(double)
        return double

    yield make
    for double in made:
        if double.server:
            double.stop()


@pytest.fixture
def chaos_of() -> type[Chaos]:
    return Chaos
