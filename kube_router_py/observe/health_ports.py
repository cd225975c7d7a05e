"""Servers for the healthCheckNodePorts of Services: there load balancers ask whether a node is
worth sending connections to, and are answered as by kube-proxy.

One thread waits for connections to all ports; each is served in one of its own, which ends soon.
"""

import logging
import os
import selectors
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import ThreadingHTTPServer

from msgspec import Struct, json

from kube_router_py.observe.serve import Answer, listen

_log = logging.getLogger(__name__)

_Place = tuple[str, int]


class LocalEndpoints(Struct, frozen=True):
    """How many ready endpoints of a Service (``namespace/name``) are on this node."""

    service: str
    number: int


class HealthPorts:
    """Answers on ports for Services. ``is_healthy`` tells whether the service proxy works at all.

    ``update`` and ``close`` are for one thread.
    """

    def __init__(self, is_healthy: Callable[[], bool]) -> None:
        self._is_healthy = is_healthy
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
        ports could not be had, which are tried again by the next update."""
        places = {(address, port) for address in addresses for port in wanted}
        if self._thread is None:
            if not places:
                return {}
            self._start()
        refused: dict[int, str] = {}
        with self._lock:
            self._local = dict(wanted)
            for place in self._servers.keys() - places:
                self._close_place(place)
            for place in sorted(places - self._servers.keys()):
                try:
                    self._open_place(place)
                except OSError as error:
                    refused[place[1]] = f"cannot listen on {_text(place)}: {error.strerror}"
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
        while not self._is_closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake[0], 1024)
                    continue
                with self._lock:  # it may have been closed since
                    server = self._servers.get(key.data)
                    if server is not None and server is key.fileobj:
                        server.handle_request()

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
