"""Asks the agent of this node, over the socket that ``observe.agent_socket`` serves."""

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import DecodeError, json

from kube_router_py.errors import ApiError, ConfigurationError

_TIMEOUT_S = 60.0
_MOST_BYTES = 256 << 20


class NoAgentError(ApiError):
    """Nobody listens: the agent does not run, or elsewhere."""


def ask(path: str, name: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The agent's answer to a question. Raises NoAgentError, ConfigurationError for what it calls
    the asker's mistake, ApiError for what failed there."""
    connection = _Connection(path)
    try:
        answer = _request(connection, path, name, asked)
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"the agent at {path} does not answer ({error})") from error
    finally:
        connection.close()
    if answer.length:
        raise ApiError(f"the agent at {path} broke off in the middle of its answer; does it end?")
    return _decoded(body, path)


def follow(path: str, name: str, asked: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The lines of a stream as they come, until the agent ends it. Raises as ``ask``."""
    connection = _Connection(path)
    try:
        answer = _request(connection, path, name, asked)
        while line := answer.readline():
            if not line.endswith(b"\n"):
                raise broken_off(path)
            if text := line.strip():
                found = _decoded(text, path)
                if set(found) == {"error"}:
                    raise ApiError(str(found["error"]))
                yield found
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"the agent at {path} does not answer any more ({error})") from error
    finally:
        connection.close()


def broken_off(path: str) -> ApiError:
    """For a stream that ended where there should be more."""
    return ApiError(
        f"the agent at {path} broke off: it ended, or what it told was not read for half a minute"
    )


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        try:
            self.sock.connect(self._path)
        except OSError as error:
            self.sock.close()
            remedy = "is it running, and is --agent-socket the same as the agent's?"
            if isinstance(error, PermissionError):
                remedy = "ask as root"
            elif isinstance(error, BlockingIOError):
                remedy = "many ask it already, and it is slow or hangs; its log may say why"
            raise NoAgentError(
                f"no agent answers at {self._path} ({error.strerror or error}); {remedy}"
            ) from error


def _request(
    connection: _Connection, path: str, name: str, asked: Mapping[str, Any] | None
) -> http.client.HTTPResponse:
    with contextlib.suppress(ConnectionError):  # it may answer before it has read all
        connection.request("POST", f"/{name}", json.encode(asked or {}))
    answer = connection.getresponse()
    if answer.status == http.client.OK:
        return answer
    message = str(_decoded(answer.read(_MOST_BYTES), path).get("error") or f"HTTP {answer.status}")
    if answer.status == http.client.BAD_REQUEST:
        raise ConfigurationError(message)
    raise ApiError(message)


def _decoded(body: bytes, path: str) -> dict[str, Any]:
    try:
        return json.decode(body, type=dict[str, Any])
    except DecodeError as error:
        raise ApiError(f"what answers at {path} is no agent of this version: {error}") from error
