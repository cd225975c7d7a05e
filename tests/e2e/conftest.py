"""Fixtures of the end-to-end tests: they run as the COMMAND of a lab, see .ci/real-tests.

Requests are made by sockets created inside the lab's namespaces and used from here, so that one
costs a system call and not a process: under emulation that is the difference of seconds.
"""

import base64
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import yaml

from kube_router_py.agent_client import ask
from kube_router_py.lab import sandbox, state

T = TypeVar("T")
Object = dict[str, Any]
DEADLINE_S = 300.0


class ApiError(OSError):
    """The API server has refused a request."""


class Api:
    """Just enough of a client; the judges of the API server have tests of their own.

    One connection for each thread: under emulation, a handshake costs more than all the rest.
    """

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = urlsplit(cluster["server"]).netloc
        self._token = config["users"][0]["user"]["token"]
        if data := cluster.get("certificate-authority-data"):
            self._tls = ssl.create_default_context(cadata=base64.b64decode(data).decode())
        else:
            self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._local = threading.local()
        self._connections: list[HTTPSConnection] = []

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def request(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        connection = kept = getattr(self._local, "connection", None)
        if connection is None:
            connection = HTTPSConnection(self._server, timeout=60, context=self._tls)
            self._connections.append(connection)
        self._local.connection = None
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
        except (HTTPException, OSError):
            connection.close()
            if kept is None:
                raise
            return self.request(method, path, body, kind)  # the server had closed it meanwhile
        answer = response.read()
        self._local.connection = connection
        if response.status >= 400:
            raise ApiError(f"{method} {path}: HTTP {response.status}: {answer[:500]!r}")
        return dict(json.loads(answer))

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    @contextlib.contextmanager
    def watch(self, path: str) -> Iterator[Iterator[Object]]:
        """The events of a watch that stands once this is entered."""
        with contextlib.closing(
            HTTPSConnection(self._server, timeout=DEADLINE_S, context=self._tls)
        ) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            with connection.getresponse() as response:
                assert response.status == 200, path
                yield map(json.loads, iter(response.readline, b""))

    def create(self, path: str, body: Object) -> Object:
        return self.request("POST", path, body)

    def merge(self, path: str, body: Object) -> Object:
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> Object:
        return self.request("DELETE", path)


class Traffic:
    """Requests of one client, one after the other, until told to stop."""

    def __init__(
        self, cluster: "Cluster", client: str, address: str, port: int, protocol: str
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ask = lambda: str(cluster.ask(client, address, port, protocol)["pod"])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    @property
    def attempts(self) -> int:
        return self.answers.total() + len(self.failures)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[self._ask()] += 1
            except (OSError, ValueError) as error:
                self.failures.append(repr(error))
            self._stop.wait(0.02)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Cluster:
    """The running lab, from its COMMAND's point of view."""

    def __init__(self) -> None:
        self.state = state.attach(os.environ)
        self.api = Api(self.state.kubeconfig)
        self.logs = Path(os.environ["LAB_LOGS"])
        self.families = tuple(f for f in (4, 6) if f"LAB_NODE1_IP{f}" in os.environ)

    def addresses(self, host: str) -> tuple[str, ...]:
        """One of each family that the cluster has."""
        return tuple(self.address(host, family) for family in self.families)

    def address(self, host: str, family: int) -> str:
        return os.environ[f"LAB_{host.upper()}_IP{family}"]

    def inside(self, target: str, work: Callable[[], T]) -> T:
        """Run ``work`` in the network of ``target``, in a thread made for it."""
        path = self.state.netns_path(self.state.resolve(target))
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                sandbox.setns(path)
                result.append(work())
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, target: str, family: int, kind: int) -> socket.socket:
        number = socket.AF_INET6 if family == 6 else socket.AF_INET
        return self.inside(target, lambda: socket.socket(number, kind))

    def ask(
        self, target: str, address: str, port: int, protocol: str = "TCP", timeout_s: float = 20.0
    ) -> Object:
        """One request from ``target``; what the pod answered. Raises OSError."""
        family = 6 if ":" in address else 4
        kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        with self.socket(target, family, kind) as sock:
            sock.settimeout(timeout_s)
            sock.connect((address, port))
            if protocol == "UDP":
                sock.send(b"?")
                return dict(json.loads(sock.recv(65536)))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        return dict(json.loads(data.partition(b"\r\n\r\n")[2]))

    def traffic(self, client: str, address: str, port: int, protocol: str = "TCP") -> Traffic:
        """``with cluster.traffic(...) as traffic:`` asks all the while."""
        return Traffic(self, client, address, port, protocol)

    def run(self, target: str, *argv: str) -> str:
        done = subprocess.run(
            self.state.enter(target, argv), capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    def eventually(self, check: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        """The first true value of ``check``; fails with ``what`` after a generous deadline."""
        end = time.monotonic() + deadline_s
        while not (value := check()):
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline_s:.0f} s: {what}")
            time.sleep(0.1)
        return value

    def wait(self) -> None:
        """Until every agent has applied everything that the API holds now."""
        self.state.ask({"op": "wait", "timeout_s": DEADLINE_S})

    def agent(self, node: str, verb: str, *arguments: str) -> None:
        """Stop, start, kill, freeze or thaw an agent; ``arguments`` are for this start."""
        self.state.ask({"op": "agent", "node": node, "verb": verb, "agent_args": arguments})

    def agent_log(self, node: str) -> str:
        return (self.logs / f"agent-{node}.log").read_text(errors="replace")

    def page(self, node: str, port: int, path: str) -> str:
        """A page of the node's agent, over the node's loopback."""
        family = self.families[0]
        with self.socket(node, family, socket.SOCK_STREAM) as sock:
            sock.settimeout(60)
            sock.connect(("127.0.0.1" if family == 4 else "::1", port))
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        return data.partition(b"\r\n\r\n")[2].decode()

    def asked(self, node: str, question: str, words: Object | None = None) -> Object:
        """What the node's agent answers on its socket."""
        return ask(str(self.state.agent_socket(node)), question, words)

    def ready(self, node: str) -> Object:
        return dict(json.loads(self.page(node, 20244, "/readyz")))

    def metric(self, node: str, name: str) -> float:
        """The sum over all labels of one metric of a node's agent."""
        text = self.page(node, METRICS_PORT, "/metrics")
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def ipvs(self, node: str) -> dict[str, list[str]]:
        """``{"TCP 10.96.0.1:443": ["10.10.0.2:6443 1"]}``: real servers with their weights."""
        table: dict[str, list[str]] = {}
        current: list[str] = []
        for line in self.run(node, "ipvsadm", "-Ln").splitlines():
            words = line.split()
            if words and words[0] in ("TCP", "UDP", "SCTP"):
                current = table.setdefault(f"{words[0]} {words[1]}", [])
            elif words and words[0] == "->" and words[1] != "RemoteAddress:Port":
                current.append(f"{words[1]} {words[3]}")
        return table


METRICS_PORT = 20245


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "families: also on clusters of one address family")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.wait()
    yield cluster
    cluster.api.close()


@pytest.fixture(scope="session")
def probes(beside: Callable[[str], ModuleType]) -> Any:
    """Module lab_probes: many connections at once."""
    return beside("e2e/lab_probes")


@pytest.fixture(scope="module")
def policies(cluster: Cluster, probes: Any, beside: Callable[[str], ModuleType]) -> Iterator[Any]:
    """The namespaces, pods and Services of policies.yaml, with no policy in them before and after.

    Nodes answer every refused probe: usually they ration ICMP errors, and silence costs seconds.
    """
    for node in ("node1", "node2"):
        cluster.inside(node, _do_not_ration_icmp)
    world = beside("e2e/lab_policies").World(cluster)
    try:
        yield world
    finally:
        world.close()


def _do_not_ration_icmp() -> None:
    Path("/proc/sys/net/ipv4/icmp_ratemask").write_text("0")
    Path("/proc/sys/net/ipv6/icmp/ratemask").write_text("255")  # a type there is not


@pytest.fixture
def echo_ip(cluster: Cluster) -> str:
    """The first ClusterIP of the Service that all of echo.yaml's pods of that name are behind."""
    service = cluster.api.get("/api/v1/namespaces/e2e/services/echo")
    return str(service["spec"]["clusterIP"])
