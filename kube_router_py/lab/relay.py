"""A TCP relay from the caller's loopback to a server inside one of the lab's namespaces.

It has a thread and an event loop of its own: whoever blocks the lab's loop on an answer of that
server still gets it.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

CHUNK = 1 << 16
START_DEADLINE_S = 30.0


class Relay:
    """127.0.0.1:``port`` here, ``target`` there; a target that refuses resets the caller."""

    def __init__(self, connect: Callable[[], socket.socket], target: tuple[str, int]) -> None:
        """``connect`` makes a socket in the target's namespace; called in the relay's thread."""
        self._make_socket = connect
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def open(self) -> None:
        """Listen on a free port. Blocking but short."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_DEADLINE_S)

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(START_DEADLINE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_DEADLINE_S)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = self._make_socket()
        far: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, self._target)
            back, far = await asyncio.open_connection(sock=sock)
            both = (_pump(reader, far), _pump(back, writer))
            pumps = [self._loop.create_task(pump) for pump in both]
            # Either side's end is the end of both: TLS has no use for half a connection.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # nobody listens there: the caller's connection is reset below
        finally:
            for pumping in pumps:
                pumping.cancel()
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()
            if far is None:
                sock.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
