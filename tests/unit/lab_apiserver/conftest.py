"""A running API server in a thread of its own, and kubectl with a home of its own."""

import asyncio
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.store import Store

DEADLINE_S = 60.0


def poll_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition is true; fail with what was awaited."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        threading.Event().wait(0.02)
    pytest.fail(f"never happened: {what}")


class Cluster:
    """The server, its loop, and ways to ask it."""

    def __init__(self, directory: Path, service_cidrs: tuple[str, ...], port: int) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))  # a fixed port stays through stop
        self.port = port
        self.url = f"https://127.0.0.1:{self.port}"
        self.store = Store(service_cidrs)
        self.server = ApiServer(self.store, directory / "pki", ["127.0.0.1"], self.port)
        self.kubeconfig = directory / "kubeconfig"
        self.server.write_kubeconfig(self.kubeconfig, self.url)
        self.start()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in the server's loop; awaits what it returns if that can be awaited."""

        async def inside() -> Any:
            result = function(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(DEADLINE_S)

    def start(self, **how: Any) -> None:
        self.call(self.server.start, [self.socket], **how)

    def stop(self) -> None:
        self.call(self.server.stop)

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE_S)
        self.loop.close()
        self.socket.close()


class Kubectl:
    """kubectl against one cluster."""

    def __init__(self, cluster: Cluster, home: Path, program: str) -> None:
        self._program = program
        self.environment = {
            "HOME": str(home),
            "KUBECONFIG": str(cluster.kubeconfig),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *args],
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def __call__(self, *args: str, stdin: str = "") -> str:
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self("get", *args, "-o", "json"))

    def popen(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._program, *args],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def store() -> Store:
    """A store with the namespace default, dual-stack, without HTTP."""
    made = Store(("10.96.0.0/16", "fd00:96::/112"), clock=lambda: 1_700_000_000.0)
    made.create("namespaces", {"metadata": {"name": "default"}})
    return made


@pytest.fixture
def cluster(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Cluster]:
    running = Cluster(tmp_path, ("10.96.0.0/16", "fd00:96::/112"), free_port())
    yield running
    running.close()


@pytest.fixture
def kubectl(cluster: Cluster, tmp_path: Path, recent_kubectl: str) -> Kubectl:
    home = tmp_path / "home"
    home.mkdir()
    return Kubectl(cluster, home, recent_kubectl)


@pytest.fixture
def until() -> Callable[[Callable[[], Any], str], Any]:
    """Poll a condition until it holds, or fail with what was awaited."""
    return poll_until
