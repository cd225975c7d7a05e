"""Servers for the healthCheckNodePorts of Services: there load balancers ask whether a node is
worth sending connections to, and are answered as by kube-proxy.

One thread waits for connections to all ports; each is served in one of its own, which ends soon.
"""

import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import ThreadingHTTPServer

from msgspec import Struct, json

from kube_router_py.observe.serve import RETRY_S, Answer, listen

_log = logging.getLogger(__name__)

_Place = tuple[str, int]


class LocalEndpoints(Struct, frozen=True):
    """How many ready endpoints of a Service (``namespace/name``) are on this node."""

    service: str
    number: int


class HealthPorts:
    """Answers on ports for Services. ``is_healthy`` tells whether the service proxy works at all.

    Ports that could not be had are tried again every few seconds; ``on_opened`` is called, in a
    thread of this, when some are had. ``update`` and ``close`` are for one thread.
    """

    def __init__(
        self,
        is_healthy: Callable[[], bool],
        on_opened: Callable[[], None] = lambda: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._is_healthy, self._on_opened, self._retry_s = is_healthy, on_opened, retry_s
        self._missing: dict[_Place, str] = {}
        self._local: dict[int, LocalEndpoints] = {}
        self._servers: dict[_Place, ThreadingHTTPServer] = {}
        self._lock = threading.Lock()
        self._selector: selectors.BaseSelector | None = None
        self._wake: tuple[int, int] = (-1, -1)
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def update(
        self, wanted: Mapping[int, LocalEndpoints], addresses: Iterable[str]
    ) -> dict[int, str]:
        """Answer on these ports, of these addresses (``""``: all), and on no others; returns why
        ports could not be had."""
        places = {(address, port) for address in addresses for port in wanted}
        if self._thread is None:
            if not places:
                return {}
            self._start()
        with self._lock:
            self._local = dict(wanted)
            for place in self._servers.keys() - places:
                self._close_place(place)
            self._missing.clear()
            self._open_places(places - self._servers.keys())
            refused = {port: reason for (_, port), reason in self._missing.items()}
        self._poke()
        return refused

    def close(self) -> None:
        """Stop answering."""
        if self._thread is None:
            return
        self._is_closing = True
        self._poke()
        self._thread.join(5.0)
        with self._lock:
            self._missing.clear()
            for place in [*self._servers]:
                self._close_place(place)
            if self._selector is not None:
                self._selector.close()
        for end in self._wake:
            os.close(end)
        self._thread = None

    def _start(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.pipe()
        self._selector.register(self._wake[0], selectors.EVENT_READ)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="health-ports", daemon=True)
        self._thread.start()

    def _poke(self) -> None:
        os.write(self._wake[1], b"x")

    def _open_places(self, places: Iterable[_Place]) -> None:
        """Open what can be had; ``_missing`` tells of the rest. Under the lock."""
        for place in sorted(places):
            try:
                self._open_place(place)
            except OSError as error:
                self._missing[place] = f"cannot listen on {_text(place)}: {error.strerror}"
            else:
                self._missing.pop(place, None)

    def _open_place(self, place: _Place) -> None:
        address, port = place
        server = listen(address, port, {"": lambda: self._answer(port)})
        server.timeout = 0  # the selector has waited already
        self._servers[place] = server
        if self._selector is not None:
            self._selector.register(server, selectors.EVENT_READ, place)

    def _close_place(self, place: _Place) -> None:
        server = self._servers.pop(place)
        if self._selector is not None:
            self._selector.unregister(server)
        server.server_close()

    def _run(self) -> None:
        if self._selector is None:
            return
        retry_at = 0.0
        while not self._is_closing:
            ready = self._selector.select(self._retry_s if self._missing else None)
            if self._missing and time.monotonic() >= retry_at:
                retry_at = time.monotonic() + self._retry_s
                self._retry()
            for key, _ in ready:
                if key.data is None:
                    os.read(self._wake[0], 1024)
                    continue
                with self._lock:  # it may have been closed since
                    server = self._servers.get(key.data)
                    if server is not None and server is key.fileobj:
                        server.handle_request()

    def _retry(self) -> None:
        with self._lock:
            before = len(self._missing)
            if not self._is_closing:
                self._open_places([*self._missing])
            has_opened = len(self._missing) < before
        if has_opened:
            _log.info("health checks of Services answer on ports that were taken")
            self._on_opened()

    def _answer(self, port: int) -> Answer:
        local = self._local.get(port)
        if local is None:
            return Answer(404, "text/plain", b"no Service has this port any more\n")
        namespace, _, name = local.service.partition("/")
        healthy = self._is_healthy()
        body = {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": local.number,
            "serviceProxyHealthy": healthy,
        }
        headers = (
            ("X-Content-Type-Options", "nosniff"),
            ("X-Load-Balancing-Endpoint-Weight", str(local.number)),
        )
        status = 200 if local.number and healthy else 503
        return Answer(status, "application/json", json.encode(body), headers)


def _text(place: _Place) -> str:
    address, port = place
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
