"""The two API servers a lab can have: its own, in this process, or a real kube-apiserver and etcd.

Both are reached by nodes at the fabric's addresses of ``apiserver`` and by the caller's kubectl on
loopback, and both come with an ``ObjectStore`` for the lab's controllers and kubelets.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from kube_router_py.lab import fabric
from kube_router_py.lab.apiserver.interface import ObjectStore
from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.errors import LabError

if TYPE_CHECKING:
    from kube_router_py.lab.agents import Agents
    from kube_router_py.lab.apiserver.real import RealApiServer
    from kube_router_py.lab.apiserver.remote import RemoteStore
    from kube_router_py.lab.housekeeping import Housekeeping
    from kube_router_py.lab.netns import Namespaces
    from kube_router_py.lab.relay import Relay

API_PORT = 6443
BOOKMARK_INTERVAL_S = 0.5
BOOTSTRAP_PAUSE_S = 0.2
WAITED_ANNOTATION = "lab/waited-for"

Account = tuple[str, str]


class Backend(Protocol):
    """One API server; made and opened once the fabric is there."""

    @property
    def store(self) -> ObjectStore: ...

    @property
    def ca(self) -> Path:
        """The CA certificate that agents trust."""
        ...

    @property
    def is_idle(self) -> bool:
        """Nothing the server needs of the lab is left to do."""
        ...

    async def open(self, deadline: float) -> str:
        """Start; returns where the caller's kubectl reaches it; ``deadline``: time.monotonic()."""
        ...

    def issue_token(self, account: Account) -> str:
        """A token of a ServiceAccount (namespace, name)."""
        ...

    def write_kubeconfig(self, path: Path) -> None: ...

    def refresh(self) -> None:
        """Afterwards the store knows every write that happened before."""

    async def wait_applied(self, agents: Agents, deadline: float) -> int:
        """Every agent has applied what the API holds now; returns its revision."""
        ...

    async def steer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``kube-router-py lab apiserver``."""
        ...

    async def close(self) -> None: ...


def _addresses(topology: fabric.Topology) -> list[str]:
    host = topology.host(fabric.APISERVER)
    return [a for family in topology.families if (a := host.address(family))]


class OwnBackend:
    """The lab's API server, in this very event loop."""

    def __init__(self, topology: fabric.Topology, namespaces: Namespaces, directory: Path) -> None:
        # Slow to import under emulation, so it happens here, while the fabric is being built.
        from kube_router_py.lab.apiserver.server import ApiServer

        self.store = Store(topology.service_cidrs)
        self._namespaces = namespaces
        self._addresses = _addresses(topology)
        self._server = ApiServer(self.store, directory / "pki", self._addresses, API_PORT)
        self._sockets: list[socket.socket] = []
        self._loopback_port = 0

    @property
    def ca(self) -> Path:
        return self._server.certificates.ca

    @property
    def is_idle(self) -> bool:
        return True

    async def open(self, deadline: float) -> str:
        await self._listen()
        return self._url

    @property
    def _url(self) -> str:
        return f"https://127.0.0.1:{self._loopback_port}"

    def issue_token(self, account: Account) -> str:
        return self._server.issue_token(*account)

    def write_kubeconfig(self, path: Path) -> None:
        self._server.write_kubeconfig(path, self._url)

    def refresh(self) -> None:
        """The store is where writes happen."""

    async def wait_applied(self, agents: Agents, deadline: float) -> int:
        """Bookmarks tell agents what the present revision is."""
        revision = self.store.revision

        async def push() -> None:
            while True:  # a watch that has just been opened anew missed the one before
                self._server.push_bookmarks()
                await asyncio.sleep(BOOKMARK_INTERVAL_S)

        pushing = asyncio.create_task(push())
        try:
            await agents.wait_applied(revision, deadline)
        finally:
            pushing.cancel()
        return revision

    async def steer(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = request["verb"]
        if verb == "stop":
            await self._server.stop()
        elif verb == "start":
            if request.get("compact"):
                self.store.compact()
            await self._listen()
        elif verb == "inject":
            line = str(request["line"]).encode() + b"\n"
            return {"watches": self._server.inject_watch_line(request["resource"], line)}
        elif verb == "hang-up":
            return {"watches": self._server.end_watches(request.get("resource") or "")}
        elif verb == "requests":
            return {"requests": self._server.requests}
        else:
            raise LabError(f"unknown verb {verb!r}")
        return {"revision": self.store.revision}

    async def close(self) -> None:
        await self._server.stop()

    async def _listen(self) -> None:
        """Listen where nodes reach us and, for kubectl, on the caller's loopback."""
        for old in self._sockets:
            old.close()
        self._sockets = [
            await self._namespaces.call(lambda a=address: self._bind(a))  # type: ignore[misc]
            for address in self._addresses
        ]
        loopback = socket.socket(socket.AF_INET)
        self._sockets.append(loopback)
        loopback.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        loopback.bind(("127.0.0.1", self._loopback_port))
        self._loopback_port = loopback.getsockname()[1]
        await self._server.start(self._sockets)

    def _bind(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self._namespaces.socket(fabric.APISERVER, family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, API_PORT))
        return sock


class RealBackend:
    """kube-apiserver and etcd as processes in the namespace ``apiserver``.

    The lab's parts and kubectl reach them through a relay on loopback. ``store`` exists from
    ``open`` on.
    """

    def __init__(
        self,
        topology: fabric.Topology,
        namespaces: Namespaces,
        directory: Path,
        accounts: Sequence[Account],
    ) -> None:
        """Blocking (certificates). PreflightError without the programs."""
        from kube_router_py.lab.apiserver.real import RealApiServer

        self._namespaces = namespaces
        self._address = _addresses(topology)[0]
        self._server: RealApiServer = RealApiServer(
            directory / "apiserver",
            _addresses(topology),
            API_PORT,
            topology.service_cidrs,
            run=self._popen,
            accounts=accounts,
        )
        self._relay: Relay | None = None
        self._store: RemoteStore | None = None
        self._housekeeping: Housekeeping | None = None

    @property
    def store(self) -> RemoteStore:
        assert self._store is not None
        return self._store

    @property
    def ca(self) -> Path:
        return self._server.certificates.ca

    @property
    def is_idle(self) -> bool:
        return self._housekeeping is not None and self._housekeeping.is_idle

    async def open(self, deadline: float) -> str:
        from kube_router_py.lab.apiserver.remote import RemoteStore
        from kube_router_py.lab.housekeeping import Housekeeping
        from kube_router_py.lab.relay import Relay

        self._relay = Relay(self._socket, (self._address, API_PORT))
        self._relay.open()
        await self._namespaces.call(lambda: self._server.start(self._url))
        self._store = RemoteStore(self._url, self._server.admin_token, self.ca)
        await self._store.open()
        await self._wait_bootstrapped(deadline)
        self._housekeeping = Housekeeping(self._store)
        return self._url

    async def _wait_bootstrapped(self, deadline: float) -> None:
        """A server that is ready may still be writing the objects of a fresh cluster."""
        wanted = (
            ("namespaces", "default", ""),
            ("namespaces", "kube-system", ""),
            ("services", "kubernetes", "default"),
            ("endpointslices", "kubernetes", "default"),
        )
        while missing := [entry for entry in wanted if self.store.find(*entry) is None]:
            if time.monotonic() > deadline:
                names = ", ".join(f"{resource}/{name}" for resource, name, _ in missing)
                raise LabError(f"the API server has not made {names}:\n{self._server.tail()}")
            await asyncio.sleep(BOOTSTRAP_PAUSE_S)

    def issue_token(self, account: Account) -> str:
        return self._server.account_tokens[account]

    def write_kubeconfig(self, path: Path) -> None:
        self._server.write_kubeconfig(path, self._url)

    def refresh(self) -> None:
        self.store.refresh()

    async def wait_applied(self, agents: Agents, deadline: float) -> int:
        """A real server sends bookmarks about once a minute and on nobody's request.

        So one object of each kind agents watch is annotated after the revision to wait for: an
        agent that has seen the annotation has seen everything before it, by the order of watches.
        """
        revision = self.store.revision
        patch = {"metadata": {"annotations": {WAITED_ANNOTATION: str(revision)}}}
        for resource in ("services", "endpointslices"):
            self.store.patch(resource, "kubernetes", patch, namespace="default")
        for node in self.store.list("nodes"):
            self.store.patch("nodes", node["metadata"]["name"], patch)
        await agents.wait_applied(revision, deadline)
        return revision

    async def steer(self, request: dict[str, Any]) -> dict[str, Any]:
        verb = request["verb"]
        if verb == "stop":
            await self._namespaces.call(self._server.kill)
            return {}
        if verb == "start":
            if request.get("compact"):
                await self._namespaces.call(
                    lambda: self._namespaces.inside(fabric.APISERVER, self._server.compact)
                )
            await self._namespaces.call(lambda: self._server.start(self._url))
            return {"revision": self.store.revision}
        raise LabError(
            f"`lab apiserver {verb}` is a switch of the lab's own API server; the real one, which "
            "this lab runs, only has stop and start"
        )

    async def close(self) -> None:
        if self._housekeeping is not None:
            self._housekeeping.close()
        if self._store is not None:
            await self._store.close()
        await self._namespaces.call(self._server.stop)
        if self._relay is not None:
            self._relay.close()

    @property
    def _url(self) -> str:
        assert self._relay is not None
        return f"https://127.0.0.1:{self._relay.port}"

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return self._namespaces.socket(fabric.APISERVER, family)

    def _popen(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return self._namespaces.popen(
            fabric.APISERVER, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
