"""A small HTTP server for probes and scrapes: fixed paths, GET only, everything with a timeout."""

import contextlib
import gzip
import http.server
import logging
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from msgspec import Struct

from kube_router_py.errors import ConfigurationError

_log = logging.getLogger(__name__)

_CLIENT_TIMEOUT_S = 5.0
_CLIENTS = 16
# Shorter ones gain nothing. A page of metrics can be 13 MB long, and a twentieth of that.
_COMPRESSED_FROM = 1 << 14
RETRY_S = 5.0


class Answer(Struct, frozen=True):
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Asking(Struct, frozen=True):
    """A page that looks at what is behind the ``?``: the last value of each name."""

    answer: Callable[[Mapping[str, str]], Answer]


Page = Callable[[], Answer] | Asking


class HttpServer:
    """Serves ``pages`` (path to page; that of ``""`` answers at all others) on an address (``""``:
    all, both families) and port.

    The port is bound at once. Raises ConfigurationError, naming ``flag`` and the value ``off`` that
    does without, where that is refused.
    ``port`` 0 takes any free one, which ``port`` then tells.
    """

    def __init__(
        self, address: str, port: int, pages: Mapping[str, Page], flag: str, off: str = "0"
    ) -> None:
        try:
            self._server = listen(address, port, pages)
        except OSError as error:
            where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            raise ConfigurationError(
                f"--{flag} {port}: cannot listen on {where}: {error.strerror}; choose another "
                f"port or address, or --{flag}={off} to do without"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name=f"http-{flag}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests in progress end by their own timeout."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(_CLIENT_TIMEOUT_S)
        self._server.server_close()


class PatientServer:
    """As HttpServer, but a port that somebody else has is waited for in the background: what asks
    there matters, and still the agent goes on without. ``what`` says in the log who listens; the
    flag is of the form ADDRESS:PORT."""

    def __init__(
        self,
        address: str,
        port: int,
        pages: Mapping[str, Page],
        flag: str,
        what: str,
        retry_s: float = RETRY_S,
    ) -> None:
        self._place, self._pages, self._flag, self._what = (address, port), pages, flag, what
        self._retry_s = retry_s
        self._server: HttpServer | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._wait, name=f"wait-{flag}", daemon=True)

    def start(self) -> None:
        """Listen, or begin to wait until that is possible."""
        if reason := self._try():
            told = (self._what, reason, self._retry_s)
            _log.error("a port is tried again and again what=%r reason=%r retry_s=%.0f", *told)
            self._thread.start()

    def stop(self) -> None:
        """Stop listening, or waiting for it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_CLIENT_TIMEOUT_S)
        if self._server is not None:
            self._server.stop()

    def _try(self) -> str:
        """Why it does not listen; empty if it does."""
        try:
            self._server = HttpServer(*self._place, self._pages, self._flag, ":0")
        except ConfigurationError as error:
            return str(error)
        self._server.start()
        return ""

    def _wait(self) -> None:
        while not self._stopping.wait(self._retry_s):
            if not self._try():
                _log.info("listening now what=%r", self._what)
                return


def listen(address: str, port: int, pages: Mapping[str, Page]) -> http.server.ThreadingHTTPServer:
    """A server that listens, and serves whoever calls its methods. Raises OSError."""
    return _server_class(address)((address, port), _handler_class(pages))


def _server_class(address: str) -> type[http.server.ThreadingHTTPServer]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    both = address == "" and socket.has_dualstack_ipv6()
    clients: dict[object, None] = {}  # open connections, the oldest first
    lock = threading.Lock()

    def forget(request: object) -> None:
        with lock:
            clients.pop(request, None)

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if both else family
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def server_bind(self) -> None:
            if both:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Not HTTPServer's: it would look the host's own name up, which may take long.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = "kube-router-py", self.server_address[1]

        def process_request(self, request: object, client_address: object) -> None:
            # Clients that say little or nothing must neither pile up threads nor keep the kubelet
            # away, which would restart the agent: for a new client beyond some the oldest goes.
            with lock:
                clients[request] = None
                if len(clients) > _CLIENTS:
                    oldest = next(iter(clients))
                    del clients[oldest]
                    with contextlib.suppress(OSError):  # it is just ending by itself
                        oldest.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            try:
                super().process_request(request, client_address)  # type: ignore[arg-type]
            except BaseException:
                forget(request)
                raise

        def process_request_thread(self, request: object, client_address: object) -> None:
            try:
                super().process_request_thread(request, client_address)  # type: ignore[arg-type]
            finally:
                forget(request)

        def handle_error(self, request: object, client_address: object) -> None:
            _log.debug("request failed client=%s", client_address, exc_info=True)

    return Server


def takes_gzip(accepted: str) -> bool:
    """Whether gzip is among what the value of Accept-Encoding (RFC 9110, 12.5.3) names."""
    for each in accepted.lower().split(","):
        coding, _, weight = (part.strip() for part in each.partition(";"))
        if coding == "gzip":
            return not re.fullmatch(r"q=0(\.0*)?", weight.replace(" ", ""))
    return False


def _handler_class(pages: Mapping[str, Page]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S
        server_version = "kube-router-py"
        sys_version = ""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            page = pages.get(path) or pages.get("")
            if page is None:
                known = " ".join(sorted(pages))
                answer = Answer(404, "text/plain", f"not here; try: {known}\n".encode())
            else:
                try:
                    if isinstance(page, Asking):
                        answer = page.answer(dict(parse_qsl(query)))
                    else:
                        answer = page()
                except Exception:  # noqa: BLE001 - a probe must get an answer
                    _log.exception("a page failed path=%s", self.path)
                    answer = Answer(500, "text/plain", b"failed; the agent's log says why\n")
            body = answer.body
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            for name, value in answer.headers:
                self.send_header(name, value)
            if len(body) >= _COMPRESSED_FROM:
                self.send_header("Vary", "Accept-Encoding")
                if takes_gzip(self.headers.get("Accept-Encoding", "")):
                    body = gzip.compress(body, 1)  # lets other threads run meanwhile
                    self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            _log.debug("served client=%s text=%r", self.address_string(), format % args)

    return Handler
