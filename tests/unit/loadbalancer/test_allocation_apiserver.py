"""Allocators in processes of their own against an API server that enforces the manifests' RBAC.

Leaders are killed and frozen in the middle of their writes: no address twice, no Service forgotten.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.address_pool_config import CONFIG_MAP, PoolSettings
from kube_router_py.cluster.client import Client, RefusedError, connect
from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.loadbalancer.election import LEASE
from kube_router_py.options import parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.pool_source import PoolSource

# Each waits for several things in turn, on a machine that may be slow.
pytestmark = pytest.mark.timeout(300)

AGENT = Path(__file__).with_name("allocating_agent.py")
OVERLAY = Path(__file__).parents[3] / "manifests/overlays/load-balancer"
DEADLINE_S = 60.0
MANY = 500
RESOURCES = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
}


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        threading.Event().wait(0.05)
    pytest.fail(f"never happened: {what}")


class Agent:
    """One process, and what it has said so far. ``patience``: how many times as long as others it
    waits, for answers and for the end of a Lease."""

    def __init__(self, name: str, kubeconfig: Path, patience: int) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(AGENT), str(kubeconfig), name, str(patience)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        """As by SIGTERM to an agent: in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(DEADLINE_S)

    def dispose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


class Cluster:
    """An API server in a thread, with agents around it."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.socket = socket.create_server(("127.0.0.1", 0))
        port = self.socket.getsockname()[1]
        self.store = Store(("10.96.0.0/16", "fd00:96::/112"))
        self.server = ApiServer(self.store, directory / "pki", ["127.0.0.1"], port)
        token = self.server.issue_token("kube-system", "kube-router-py")
        self.kubeconfig = directory / "kubeconfig"
        self.server.write_kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", token)
        self.agents: list[Agent] = []
        # Called in the server's thread before each write of a status, with their number so far.
        self.on_status: Callable[[int], None] = lambda number: None
        self.status_writes = 0
        self._patch = self.store.patch
        self.store.patch = self._count_patch  # type: ignore[method-assign]
        for document in render_kustomization(OVERLAY):
            if "Role" in document["kind"] and document["metadata"]["name"] == "kube-router-py":
                self.call(self.store.create, RESOURCES[document["kind"]], document)
        self.call(self.server.start, [self.socket])

    def _count_patch(self, resource: str, *args: Any, **how: Any) -> Any:
        if resource == "services":
            self.status_writes += 1
            self.on_status(self.status_writes)
        return self._patch(resource, *args, **how)

    def call(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        async def inside() -> Any:
            result = function(*args, **how)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(DEADLINE_S)

    def agent(self, name: str, patience: int = 1) -> Agent:
        made = Agent(name, self.kubeconfig, patience)
        self.agents.append(made)
        return made

    def client(self) -> Client:
        return connect(parse([f"--kubeconfig={self.kubeconfig}"], {}))

    def lease(self) -> dict[str, Any]:
        found = self.call(self.store.find, "leases", LEASE, "kube-system")
        return dict(found["spec"]) if found else {}

    def accepted_pools(self) -> str:
        found = self.call(self.store.get, "leases", LEASE, "kube-system")
        annotations = found["metadata"].get("annotations", {})
        return str(annotations.get("kube-router.io/accepted-pools", ""))

    def leader(self) -> Agent | None:
        holder = self.lease().get("holderIdentity")
        return next((each for each in self.agents if each.name == holder), None)

    def create(self, name: str, **spec: Any) -> None:
        ports = [{"port": 80, "protocol": "TCP"}]
        service = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "LoadBalancer", "ports": ports, **spec},
        }
        self.call(self.store.create, "services", service)

    def update(self, name: str, **spec: Any) -> None:
        change = {"spec": spec}
        self.call(self._patch, "services", name, change, namespace="default")

    def services(self) -> list[dict[str, Any]]:
        found = self.call(self.store.list, "services")
        return [each for each in found if each["spec"]["type"] == "LoadBalancer"]

    def ingress(self, name: str) -> list[dict[str, Any]]:
        found = self.call(self.store.get, "services", name, "default")
        return list(found["status"]["loadBalancer"].get("ingress") or ())

    def addresses(self) -> list[str]:
        return [
            entry["ip"]
            for each in self.services()
            for entry in each["status"]["loadBalancer"].get("ingress") or ()
        ]

    def events(self) -> set[tuple[str, str, str]]:
        return {
            (each["type"], each["reason"], each["involvedObject"]["name"])
            for each in self.call(self.store.list, "events")
        }

    def close(self) -> None:
        for agent in self.agents:
            agent.dispose()
        self.call(self.server.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE_S)
        self.loop.close()
        self.socket.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path)
    yield running
    running.close()


def test_a_service_gets_addresses_with_the_rights_of_the_manifests_and_nothing_more(
    cluster: Cluster,
) -> None:
    agent = cluster.agent("one", patience=15)  # whom nobody is to follow
    cluster.create("web", ipFamilyPolicy="RequireDualStack")
    ports = [{"port": 80, "protocol": "TCP"}]
    found = until(lambda: cluster.ingress("web"), "web has addresses")
    assert found == [
        {"ip": "10.20.0.0", "ipMode": "VIP", "ports": ports},
        {"ip": "2001:db8:20::", "ipMode": "VIP", "ports": ports},
    ]
    until(lambda: ("Normal", "IPAllocated", "web") in cluster.events(), "the Event of it")
    # The pools that were accepted are kept for agents that start while there is a mistake in them.
    until(lambda: "name: more" in cluster.accepted_pools(), "the annotation of the Lease")
    # Its ports change: so does the status.
    cluster.update("web", ports=[{"port": 443, "protocol": "TCP"}])
    until(
        lambda: cluster.ingress("web")[0]["ports"] == [{"port": 443, "protocol": "TCP"}],
        "the status lists the new port",
    )
    # What nobody can have is told, and others go on.
    cluster.create("odd", loadBalancerIP="203.0.113.1")
    cluster.create("next")
    until(lambda: cluster.ingress("next"), "the next one has an address")
    until(
        lambda: ("Warning", "odd") in {(type_, name) for type_, _, name in cluster.events()},
        "an Event about the one that asks for another's address",
    )
    assert cluster.ingress("odd") == []
    # It is not ours any more: another may have its address.
    cluster.update("web", type="ClusterIP")
    cluster.create("third", loadBalancerIP="10.20.0.0")
    until(lambda: cluster.ingress("third"), "the third has an address")
    assert cluster.ingress("third")[0]["ip"] == "10.20.0.0"

    client = cluster.client()
    path = "/api/v1/namespaces/default/services/next"
    for ask in (
        lambda: client.patch(path, {"spec": {"type": "ClusterIP"}}),
        lambda: client.put(f"{path}/status", {}),
        lambda: client.get(path),
        lambda: client.list("/api/v1/configmaps"),
        lambda: client.list("/api/v1/namespaces/kube-system/secrets"),
        lambda: client.patch("/api/v1/namespaces/kube-system/configmaps/any", {}),
        lambda: client.patch("/api/v1/nodes/any/status", {}),
    ):
        with pytest.raises(RefusedError) as refused:
            ask()
        assert refused.value.status == 403
    client.close()
    agent.end()
    assert cluster.lease()["holderIdentity"] == ""


def test_of_all_config_maps_only_that_of_the_pools_is_read(cluster: Cluster) -> None:
    def put(pools: str) -> None:
        config = {"metadata": {"name": CONFIG_MAP}, "data": {"pools": pools}}
        cluster.call(cluster.store.create, "configmaps", config, namespace="kube-system")

    client = cluster.client()
    book = PoolBook(PoolSettings())
    source = PoolSource(book, client, "node1")
    source.start()
    try:
        until(lambda: book.is_known, "that there are no pools is known")
        put("[{name: web, addresses: [192.0.2.0/24]}]")
        until(lambda: book.pools.pools, "the pools are read")
        with pytest.raises(RefusedError) as refused:
            client.list("/api/v1/namespaces/kube-system/configmaps")
        assert refused.value.status == 403
    finally:
        source.stop(DEADLINE_S)
        client.close()


def check_all_served(cluster: Cluster) -> None:
    until(lambda: len(cluster.addresses()) >= MANY, "all Services have an address")
    addresses = cluster.addresses()
    assert len(addresses) == len(set(addresses)) == MANY


class Victim:
    """Whoever leads when a fifth of the Services are served; it gets a signal then and there."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster, self._number = cluster, number
        self.is_hit = threading.Event()
        self.agent: Agent | None = None
        self.served: dict[str, Any] = {}
        cluster.on_status = self._on_status

    def _on_status(self, writes: int) -> None:
        if writes < MANY // 5 or self.is_hit.is_set():
            return
        store = self._cluster.store
        holder = store.get("leases", LEASE, "kube-system")["spec"]["holderIdentity"]
        self.agent = next(each for each in self._cluster.agents if each.name == holder)
        self.agent.signal(self._number)
        self.served = {
            each["metadata"]["name"]: each["status"]["loadBalancer"]["ingress"]
            for each in store.list("services")
            if each["status"]["loadBalancer"].get("ingress")
        }
        self.is_hit.set()

    def wait(self) -> Agent:
        assert self.is_hit.wait(DEADLINE_S)
        assert self.agent is not None
        return self.agent


def test_a_leader_that_is_killed_in_the_middle_leaves_no_double_and_none_lost(
    cluster: Cluster,
) -> None:
    victim = Victim(cluster, signal.SIGKILL)
    for number in range(MANY):
        cluster.create(f"web-{number:03}")
    for name in ("one", "two", "three"):
        cluster.agent(name)
    killed = victim.wait()
    killed.process.wait(DEADLINE_S)
    assert 0 < len(victim.served) < MANY
    check_all_served(cluster)
    assert cluster.leader() is not killed
    # What the first one gave stays.
    for name, ingress in victim.served.items():
        assert cluster.ingress(name) == ingress


def test_a_leader_that_was_frozen_in_the_middle_writes_nothing_when_it_wakes(
    cluster: Cluster,
) -> None:
    victim = Victim(cluster, signal.SIGSTOP)
    for number in range(MANY):
        cluster.create(f"web-{number:03}")
    for name in ("one", "two"):
        cluster.agent(name)
    frozen = victim.wait()
    check_all_served(cluster)
    until(lambda: cluster.leader() not in (None, frozen), "another one leads")
    before = {each["metadata"]["name"]: each["metadata"] for each in cluster.services()}
    tried = cluster.status_writes
    said = len(frozen.lines)

    frozen.signal(signal.SIGCONT)
    until(
        lambda: any("does not give addresses any more" in line for line in frozen.lines[said:]),
        "the frozen one has noticed",
    )
    until(
        lambda: any("given by holder=" in line for line in frozen.lines[said:]),
        "it has seen who leads",
    )
    # A Service that the new leader gives an address: the old one has seen its news by then, too.
    cluster.create("last")
    until(lambda: cluster.ingress("last"), "the last one has an address")
    for _ in range(3):  # time to do what it should not
        renewed = cluster.lease()["renewTime"]
        until(lambda known=renewed: cluster.lease()["renewTime"] != known, "a renewal")
    frozen.end()
    after = {each["metadata"]["name"]: each["metadata"] for each in cluster.services()}
    assert {name: after[name]["resourceVersion"] for name in before} == {
        name: meta["resourceVersion"] for name, meta in before.items()
    }
    # Not even attempts that are refused, though hundreds waited; but for what was under way.
    assert cluster.status_writes - tried < 20
    assert "the Lease kube-router-lballoc is given back" not in "".join(frozen.lines)


def test_when_the_leader_stops_in_order_the_next_one_goes_on_with_what_it_gave(
    cluster: Cluster,
) -> None:
    for name in ("one", "two"):
        cluster.agent(name)
    cluster.create("before")
    first = until(lambda: cluster.ingress("before"), "the first one has an address")
    leader = cluster.leader()
    assert leader is not None
    leader.end()
    cluster.create("after")
    second = until(lambda: cluster.ingress("after"), "the second one has an address")
    assert cluster.ingress("before") == first
    assert second[0]["ip"] != first[0]["ip"]
    assert cluster.lease()["leaseTransitions"] >= 1


def test_the_store_of_these_tests_refuses_what_was_decided_on_an_older_version(
    cluster: Cluster,
) -> None:
    cluster.create("web")
    found = cluster.call(cluster.store.get, "services", "web", "default")
    cluster.update("web", externalTrafficPolicy="Local")
    change = {
        "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "10.20.0.1"}]}},
    }
    client = cluster.client()
    with pytest.raises(RefusedError) as refused:
        client.patch("/api/v1/namespaces/default/services/web/status", change)
    assert refused.value.status == 409
    client.close()
    with pytest.raises(StatusError):
        cluster.call(cluster.store.get, "services", "none", "default")
