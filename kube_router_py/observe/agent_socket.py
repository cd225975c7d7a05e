"""The agent answers the commands of its node (status, explain, drops, doctor) on a unix socket.

HTTP/1.1 over a stream socket of the file system that only root may open: mode 0600, and whoever
connects is asked by SO_PEERCRED (unix(7)) as well. A request is ``POST /NAME`` with a JSON object;
the answer is JSON, or lines of JSON for as long as the other end listens.
"""

import contextlib
import errno
import http.server
import logging
import os
import socket
import socketserver
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import DecodeError, json

from kube_router_py.errors import ConfigurationError, KubeRouterError

_log = logging.getLogger(__name__)

Asked = Mapping[str, Any]
Question = Callable[[Asked], Any]
"""Gives the answer, which has to be encodable as JSON. What it raises goes back as the error: a
ConfigurationError as the asker's mistake, another KubeRouterError as what failed here."""
Stream = Callable[[Asked], Iterator[Any]]
"""Gives one line after the other. None is an empty line, by which is found out that nobody listens
any more: one has to come every second or so. The iterator is closed when it is over."""

_ROOT = 0
_UCRED = struct.Struct("iII")
_MOST_BYTES = 1 << 20
_MOST_CLIENTS = 16
# Those who let drops run in all their terminals must not keep others from asking for the status.
_MOST_STREAMS = 8
# Who has connected asks at once; who reads may be a pager with somebody before it.
_ASKING_S, _READING_S = 10.0, 30.0
_MISTAKE, _BROKEN, _BUSY = 400, 500, 503
_BUSY_BODY = {"error": "too many ask this agent at once; try again"}
_CRASHED = {"error": "the agent failed to answer; its log says why"}


class AgentSocket:
    """Listens at ``path`` from ``start`` to ``stop``; threads of its own serve who asks.

    Nothing of the agent's work needs it: where it cannot listen, the log says so.
    """

    def __init__(
        self, path: str, questions: Mapping[str, Question], streams: Mapping[str, Stream]
    ) -> None:
        self._path = Path(path)
        self._questions, self._streams = dict(questions), dict(streams)
        self._stopping = threading.Event()
        self._stream_room = threading.BoundedSemaphore(_MOST_STREAMS)
        self._server: _Server | None = None
        self._identity: tuple[int, int] | None = None

    def start(self) -> None:
        """Take the place of whatever socket an earlier agent left there."""
        try:
            self._server = self._listen()
        except OSError as error:
            _log.warning(
                "status, explain, drops and doctor cannot ask this agent: no socket path=%s "
                "reason=%r (--agent-socket names another place)",
                self._path,
                error.strerror or str(error),
            )
            return
        thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="agent-socket", daemon=True
        )
        thread.start()

    def _listen(self) -> "_Server":
        directory = self._path.parent
        if not directory.is_dir():
            directory.mkdir(parents=True)  # FRR, another user, has its own below it
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "something that is no socket is in its place")
            self._path.unlink()
        mask = os.umask(0o177)
        try:
            server = _Server(str(self._path), self._answer)
        finally:
            os.umask(mask)
        found = self._path.stat()
        self._identity = (found.st_dev, found.st_ino)
        return server

    def stop(self) -> None:
        """Stop listening; streams end."""
        self._stopping.set()
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        with contextlib.suppress(OSError):
            found = self._path.stat()
            # The next agent may be there already.
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()

    # --- in a thread for each connection -------------------------------------------------------

    def _answer(self, handler: "_Handler", name: str, asked: Asked) -> None:
        stream = self._streams.get(name)
        if stream is not None:
            if not self._stream_room.acquire(blocking=False):
                handler.send_json(_BUSY, _BUSY_BODY)
                return
            try:
                self._stream(handler, name, stream, asked)
            finally:
                self._stream_room.release()
            return
        question = self._questions.get(name)
        if question is None:
            known = ", ".join(sorted({*self._questions, *self._streams}))
            handler.send_json(404, {"error": f"this agent does not know {name!r}, but {known}"})
            return
        try:
            status, body = 200, json.encode(question(asked))
        except Exception as error:  # noqa: BLE001 - who asks must get an answer
            status, told = _failure(name, error)
            body = json.encode(told)
        handler.send(status, body)

    def _stream(self, handler: "_Handler", name: str, stream: Stream, asked: Asked) -> None:
        try:
            lines = stream(asked)
        except Exception as error:  # noqa: BLE001 - who asks must get an answer
            handler.send_json(*_failure(name, error))
            return
        try:
            handler.begin_lines()
            for line in lines:
                if self._stopping.is_set():
                    return
                handler.wfile.write((b"" if line is None else json.encode(line)) + b"\n")
        except OSError:
            pass  # nobody listens any more
        except Exception as error:  # noqa: BLE001 - must not look as if there were no more
            with contextlib.suppress(OSError):
                handler.wfile.write(json.encode(_failure(name, error)[1]) + b"\n")
        finally:
            close = getattr(lines, "close", None)
            if close is not None:
                close()


def _failure(name: str, error: Exception) -> tuple[int, dict[str, str]]:
    if isinstance(error, ConfigurationError):
        return _MISTAKE, {"error": "; ".join(error.messages)}
    if isinstance(error, KubeRouterError):
        return _BROKEN, {"error": str(error)}
    _log.error("a question failed name=%s", name, exc_info=error)
    return _BROKEN, _CRASHED


class _Handler(http.server.BaseHTTPRequestHandler):
    connection: socket.socket
    server: "_Server"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(_ASKING_S)
        # However slowly it comes: a question that is not there by then makes room for others.
        self._late = threading.Timer(_ASKING_S, self._hang_up)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        self._late.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # it is through by now
            self.connection.shutdown(socket.SHUT_RD)

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= _MOST_BYTES:
                raise ValueError(length)
            body = self.rfile.read(length)
            if len(body) != length:
                raise ValueError(len(body))  # half a question may be another one
            asked = json.decode(body or b"{}", type=dict[str, Any])
        except (ValueError, DecodeError, RecursionError):
            self.send_json(_MISTAKE, {"error": "a question is a JSON object, of 1 MiB at most"})
            return
        self._late.cancel()
        self.connection.settimeout(_READING_S)
        self.server.answer(self, self.path.strip("/"), asked)

    def send_json(self, status: int, body: Any) -> None:
        self.send(status, json.encode(body))

    def send(self, status: int, body: bytes) -> None:
        """An answer in JSON."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_lines(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Connection", "close")
        self.end_headers()

    def address_string(self) -> str:
        return "local"  # a unix socket has no address to tell

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("served text=%r", format % args)


def _busy_answer() -> bytes:
    body = json.encode(_BUSY_BODY)
    # Who knows its length does not read on, into the reset of what was asked and never read.
    head = f"HTTP/1.0 {_BUSY} Busy\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # connect(2) of a full queue fails at once for who has a timeout

    def __init__(self, path: str, answer: "Callable[[_Handler, str, Asked], None]") -> None:
        self.answer = answer
        self._room = threading.BoundedSemaphore(_MOST_CLIENTS)
        super().__init__(path, _Handler)

    def verify_request(self, request: Any, client_address: object) -> bool:
        raw = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, user, _ = _UCRED.unpack(raw)
        return user in (_ROOT, os.geteuid())

    def process_request_thread(self, request: Any, client_address: object) -> None:
        if not self._room.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(_busy_answer())
            self.shutdown_request(request)
            return
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("request failed", exc_info=True)
