"""Connections to one API server, and the moment at which a write is let go."""

from collections.abc import Callable, Iterator
from typing import Any

import kube_router_py
from kube_router_py.errors import ApiError


class FencedError(ApiError):
    """The request was not sent: ``fence`` did not allow it any more when its turn came."""


class Transport:
    """Connections to one API server."""

    def __init__(self, configuration: Any) -> None:
        from kubernetes.client.rest import RESTClientObject

        self._configuration = configuration
        self._pool = RESTClientObject(configuration).pool_manager

    def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        data: bytes | None,
        timeout: Any,
        fence: Callable[[], bool] | None,
    ) -> Any:
        headers = {
            "Accept": "application/json",
            "User-Agent": f"kube-router-py/{kube_router_py.__version__}",
            **headers,
        }
        # Runs the refresh hook; older releases of the package call the key "authorization".
        token = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if token:
            headers["Authorization"] = token.strip()  # a token file may end in a newline
        body: bytes | Iterator[bytes] | None = data
        if fence is not None and data is not None:
            headers["Content-Length"] = str(len(data))
            body = _fenced(data, fence)
        return self._pool.request(
            method,
            self._configuration.host + target,
            headers=headers,
            body=body,
            timeout=timeout,
            preload_content=False,
            redirect=False,
        )

    def close(self) -> None:
        self._pool.clear()


def _fenced(data: bytes, fence: Callable[[], bool]) -> Iterator[bytes]:
    """The body of a request, taken when all that goes before it has gone."""
    if not fence():
        raise FencedError("not sent: the time in which it would have been allowed is over")
    yield data
