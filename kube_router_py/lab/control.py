"""The lab's control socket: one JSON request a line, one JSON answer a line."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kube_router_py.errors import KubeRouterError

_log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlServer:
    """Answers each request with ``handler``'s result, or ``{"error": ...}``."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the asker has gone
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return await self._handler(json.loads(line))
        except (KubeRouterError, KeyError, ValueError) as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever happened, the asker must hear of it
            _log.exception("control request %r", line)
            return {"error": f"{type(error).__name__}: {error}"}
