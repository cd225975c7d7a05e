"""Raw requests to the API server: bytes in, bytes out, several servers, everything with a timeout.

Configuration, credentials and the TLS transport are the ``kubernetes`` package's; its models are
not used, because they cost a hundred times what ``decode`` does. No call here retries by itself
beyond asking the other servers: when to try again is the caller's decision (``reflector``).
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from msgspec import json

from kube_router_py.cluster import decode
from kube_router_py.cluster.credentials import SERVICE_ACCOUNT, ConnectionOptions, Credentials
from kube_router_py.cluster.transport import FencedError, Transport
from kube_router_py.errors import ApiError

__all__ = ["MERGE_PATCH", "Client", "FencedError", "RefusedError", "Stream", "connect"]

_log = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 30.0
# A whole answer, however slowly it trickles in.
_ANSWER_TIMEOUT_S = 120.0
# At most this often are credentials read anew because a server did not accept them.
_RELOAD_INTERVAL_S = 5.0
# etcd limits an object to 1.5 MB; a longer line of a watch is no object.
_LONGEST_LINE = 16 << 20
_LONGEST_REFUSAL = 64 << 10


class RefusedError(ApiError):
    """The API server answered, but not with 2xx.

    ``reason`` is the Status' machine-readable reason (``Expired``, ``Forbidden``; ``""`` if none),
    ``retry_after_s`` how long the server asks to be left alone, in seconds.
    """

    def __init__(self, message: str, status: int, reason: str, retry_after_s: float) -> None:
        super().__init__(message, status)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Stream:
    """The lines of one watch. ``stop`` may be called from any thread, the rest from one."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def lines(self) -> Iterator[bytes]:
        """Each line as soon as it is complete, until the server ends the answer properly.

        Raises ApiError when the connection breaks or stays silent beyond the read timeout. The
        beginning of a line that was cut off is dropped: the event comes again on resumption.
        """
        tail = b""
        while chunk := _read_some(self._response):
            *complete, tail = (tail + chunk).split(b"\n") if tail else chunk.split(b"\n")
            for line in complete:
                if line.strip():
                    yield line
            if len(tail) > _LONGEST_LINE:
                raise ApiError(f"a line of the watch is longer than {_LONGEST_LINE} bytes")
        if tail.strip():
            raise ApiError("the watch ended in the middle of a line")

    def stop(self) -> None:
        """Wake a thread that is blocked in ``lines``: the socket is shut down, not closed."""
        try:
            self._response.shutdown()
        except (ValueError, RuntimeError, OSError):
            pass  # the connection is gone already, nobody is blocked in it

    def close(self) -> None:
        self._response.close()


class Client:
    """Requests to whichever API server answers, the last good one first. Thread-safe.

    Every method raises RefusedError for an answer other than 2xx and ApiError when no server
    answers. Paths start with ``/api``; the caller has quoted the names in them.

    ``timeout_s`` bounds a request with its answer, all servers together: how long one that was
    begun may be on its way. (Without it each step of it has a bound.) ``fence`` is asked when the
    connection stands and the body of a write is to go: where it says no, nothing happens at the
    server, and FencedError is raised.
    """

    def __init__(
        self, credentials: Credentials, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._current = 0
        self._reloaded_at = clock() - _RELOAD_INTERVAL_S
        self._not_renewed = ""  # what was logged last about that
        # Told of each request: method, HTTP status ("none": no server answered), seconds until the
        # answer began.
        self.observe: Callable[[str, str, float], None] = _ignore
        self._transports = self._build()

    @property
    def addresses(self) -> tuple[str, ...]:
        """URLs of the API servers, in the order in which they are tried at first."""
        return self._credentials.addresses

    @property
    def address(self) -> str:
        """URL of the API server that answered last."""
        return self.addresses[self._current]

    def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        return self._answer("GET", path, query)

    def list(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """One chunk of a collection; ``query`` has limit, continue, selectors."""
        return self._answer("GET", path, query, timeout_s=timeout_s)

    def watch(
        self, path: str, query: Mapping[str, str] | None = None, *, idle_timeout_s: float
    ) -> Stream:
        """Open a watch; ``idle_timeout_s`` is the longest silence the stream tolerates."""
        headers = {"Accept-Encoding": "identity"}
        return Stream(
            self._send(
                "GET", path, {**(query or {}), "watch": "true"}, headers, None, idle_timeout_s
            )
        )

    def patch(
        self,
        path: str,
        body: object,
        content_type: str = MERGE_PATCH,
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        fence: Callable[[], bool] | None = None,
    ) -> bytes:
        """Patch an object or, with ``PATH/status``, its status."""
        return self._answer("PATCH", path, query, body, content_type, timeout_s, fence)

    def post(
        self,
        path: str,
        body: object,
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """Create an object, an Event for one."""
        return self._answer("POST", path, query, body, "application/json", timeout_s)

    def put(self, path: str, body: object, query: Mapping[str, str] | None = None) -> bytes:
        """Update an object: with the resourceVersion in ``body`` it is a compare-and-swap."""
        return self._answer("PUT", path, query, body, "application/json")

    def close(self) -> None:
        """Close idle connections; watches are ended by their owners."""
        for transport in self._transports:
            transport.close()

    # --- inside --------------------------------------------------------------------------------

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object = None,
        content_type: str = "",
        timeout_s: float | None = None,
        fence: Callable[[], bool] | None = None,
    ) -> bytes:
        headers = {"Accept-Encoding": "gzip"}
        if content_type:
            headers["Content-Type"] = content_type
        data = json.encode(body) if content_type else None
        deadline = math.inf if timeout_s is None else self._clock() + timeout_s
        response = self._send(
            method, path, query, headers, data, _READ_TIMEOUT_S, deadline=deadline, fence=fence
        )
        return self._read_all(response, min(deadline, self._clock() + _ANSWER_TIMEOUT_S))

    def _read_all(self, response: Any, deadline: float) -> bytes:
        chunks = []
        try:
            while chunk := _read_some(response):
                chunks.append(chunk)
                if self._clock() > deadline:
                    raise ApiError("an answer took longer than it may")
        except ApiError:
            response.close()
            raise
        return b"".join(chunks)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: dict[str, str],
        data: bytes | None,
        read_timeout_s: float,
        deadline: float = math.inf,
        fence: Callable[[], bool] | None = None,
    ) -> Any:
        how = (headers, data, read_timeout_s, deadline, fence)
        target = f"{path}?{urlencode(query)}" if query else path
        response = self._send_observed(method, target, *how)
        if response.status == 401 and self._reload():
            response.close()
            response = self._send_observed(method, target, *how)
        if not 200 <= response.status < 300:
            raise _refusal(method, path, response)
        return response

    def _send_observed(self, method: str, target: str, *how: Any) -> Any:
        began = self._clock()
        code = "none"
        try:
            response = self._send_to_any(method, target, *how)
            code = str(response.status)
            return response
        finally:
            self.observe(method, code, self._clock() - began)

    def _send_to_any(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        data: bytes | None,
        read_timeout_s: float,
        deadline: float,
        fence: Callable[[], bool] | None,
    ) -> Any:
        from urllib3 import Timeout
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

        transports, first = self._transports, self._current
        failures = []
        certificate_failed = False
        for step in range(len(transports)):
            index = (first + step) % len(transports)
            last = step == len(transports) - 1
            if (left_s := deadline - self._clock()) <= 0:
                failures.append("no time is left")
                break
            timeout = Timeout(
                total=None if left_s == math.inf else left_s,
                connect=min(_CONNECT_TIMEOUT_S, left_s),
                read=min(read_timeout_s, left_s),
            )
            try:
                response = transports[index].request(method, target, headers, data, timeout, fence)
            except (HTTPError, OSError) as error:
                failures.append(f"{self.addresses[index]}: {error}")
                certificate_failed = certificate_failed or isinstance(error, SSLError)
                # Sent but not answered: only a read may be asked again of another server.
                if method != "GET" and not isinstance(
                    error, NewConnectionError | ConnectTimeoutError
                ):
                    break
                continue
            absent = response.status in (502, 503, 504)
            if absent and method == "GET" and not last:
                failures.append(f"{self.addresses[index]}: HTTP {response.status}")
                response.close()
                continue
            if index != first and not absent:
                self._current = index
                _log.warning(
                    "API server changed from=%s to=%s", self.addresses[first], self.address
                )
            return response
        if certificate_failed:
            self._reload()  # a client certificate may have expired: the next attempt has a new one
        raise ApiError(f"no API server answers: {'; '.join(failures)}")

    def _reload(self) -> bool:
        """Read the credentials anew unless that was done just now; whether it is worth a retry."""
        with self._lock:
            if self._clock() - self._reloaded_at < _RELOAD_INTERVAL_S:
                return False
            self._reloaded_at = self._clock()
            try:
                self._credentials.reload()
            except ApiError as error:
                if str(error) != self._not_renewed:
                    self._not_renewed = str(error)
                    _log.warning("credentials not renewed reason=%r", self._not_renewed)
                return False
            self._not_renewed = ""
            old, self._transports = self._transports, self._build()
        for transport in old:
            transport.close()
        return True

    def _build(self) -> tuple[Transport, ...]:
        return tuple(Transport(c) for c in self._credentials.configurations())


def _ignore(method: str, code: str, seconds: float) -> None:
    """Nobody looks on."""


def connect(
    options: ConnectionOptions,
    environ: Mapping[str, str] = os.environ,
    service_account: str = SERVICE_ACCOUNT,
) -> Client:
    """A Client for the servers and credentials that flags and environment name (``Credentials``).

    Nothing is sent yet. Raises ConfigurationError.
    """
    return Client(Credentials(options, environ, service_account))


def _read_some(response: Any) -> bytes:
    """What has arrived, waiting for the first byte; ``b""`` at the end. Raises ApiError."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    try:
        chunk: bytes = response.read1(65536)
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        # urllib3's ProtocolError prints as the tuple of its words and its cause.
        said = next((word for word in error.args if isinstance(word, str)), error)
        raise ApiError(f"the connection to the API server broke: {said}") from error
    return chunk


def _refusal(method: str, path: str, response: Any) -> RefusedError:
    body = b""
    try:
        while len(body) < _LONGEST_REFUSAL and (chunk := _read_some(response)):
            body += chunk
    except ApiError:
        pass  # the status line says enough
    finally:
        response.close()
    status = decode.status(body)
    said = status.message or response.reason or "no reason given"
    try:
        retry_after_s = max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        retry_after_s = 0.0  # an HTTP date; API servers send seconds
    return RefusedError(
        f"{method} {path}: HTTP {response.status}: {said}",
        response.status,
        status.reason or "",
        retry_after_s,
    )
