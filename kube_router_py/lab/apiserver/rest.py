"""Blocking requests to a real API server: JSON in, JSON out, a StatusError for every failure."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3

from .resources import Resource
from .status import Object, StatusError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # under software emulation a busy server takes its time
PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


def path_of(
    kind: Resource, namespace: str | None = None, name: str = "", subresource: str = ""
) -> str:
    """The URL path of a collection (of all namespaces for None), an object, a subresource."""
    space = f"/namespaces/{namespace}" if kind.namespaced and namespace else ""
    words = "".join(f"/{word}" for word in (name, subresource) if word)
    return f"{kind.base_path}{space}/{kind.plural}{words}"


class Rest:
    """The administrator's requests over one kept connection; for one thread."""

    def __init__(self, url: str, token: str, ca: Path) -> None:
        """``url`` is https with a host and a port; ``ca`` the PEM file to trust."""
        parts = urlsplit(url)
        self._url = url
        self._pool = urllib3.HTTPSConnectionPool(
            parts.hostname or "",
            parts.port,
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            ca_certs=str(ca),
        )

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> Object:
        """One request. StatusError with the server's words, or 503 when there is no answer."""
        target = f"{path}?{urlencode(query)}" if query else path
        headers = dict(self._pool.headers)
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = msgspec.json.encode(body)
        try:
            answer = self._pool.request(method, target, body=data, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            why = f"the API server at {self._url} does not answer: {error}"
            raise StatusError(503, "ServiceUnavailable", why) from error
        try:
            found = msgspec.json.decode(answer.data) if answer.data else {}
        except msgspec.DecodeError:
            found = {"message": answer.data.decode(errors="replace").strip()}
        if not isinstance(found, dict):
            raise StatusError(500, "InternalError", f"{method} {path}: the answer is no object")
        if answer.status > 299:
            raise StatusError(
                answer.status,
                str(found.get("reason") or ""),
                str(found.get("message") or f"{method} {path}: HTTP {answer.status}"),
                found.get("details"),
            )
        return found

    def is_ready(self) -> bool:
        """Whether /readyz says ok."""
        try:
            headers = dict(self._pool.headers)
            return bool(self._pool.request("GET", "/readyz", headers=headers).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()
