"""Two nodes' parts with an API server that enforces the manifests' RBAC, real heartbeats over
loopback, and a fake segment."""

import asyncio
import base64
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.address_pool_config import pool_settings
from kube_router_py.address_pools import Address
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, connect
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.kernel.fake_neighbors import FakeResponder, FakeSegment
from kube_router_py.kernel.neighbor_ports import OnClaim
from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.layer2_part import Layer2Part
from kube_router_py.loadbalancer import leases, liveness, peers
from kube_router_py.loadbalancer.announcer import KINDS
from kube_router_py.loadbalancer.peer_values import Timing
from kube_router_py.options import parse
from kube_router_py.pool_book import Past, PoolBook
from kube_router_py.served import Served

OVERLAY = Path(__file__).parents[3] / "manifests/overlays/load-balancer"
DEADLINE_S = 60.0
NAMESPACE = "kube-system"
SECRET = "kube-router-py-heartbeat"
NODES = {"node1": "127.0.0.11", "node2": "127.0.0.12"}
VIPS = [f"192.0.2.{number}" for number in range(1, 13)]
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
        time.sleep(0.02)
    pytest.fail(f"never happened: {what}")


class Cluster:
    """An API server in a thread, with two Nodes and Services that have addresses."""

    def __init__(self, directory: Path, heartbeat_port: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.socket = socket.create_server(("127.0.0.1", 0))
        port = self.socket.getsockname()[1]
        self.store = Store(("10.96.0.0/16",))
        self.server = ApiServer(self.store, directory / "pki", ["127.0.0.1"], port)
        token = self.server.issue_token(NAMESPACE, "kube-router-py")
        self.kubeconfig = directory / "kubeconfig"
        self.server.write_kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", token)
        self.heartbeat_port = heartbeat_port
        self.segment = FakeSegment()
        self.agents: dict[str, Agent] = {}
        for document in render_kustomization(OVERLAY):
            if "Role" in document["kind"] and document["metadata"]["name"] == "kube-router-py":
                self.call(self.store.create, RESOURCES[document["kind"]], document)
        self.call(self.server.start, [self.socket])
        for name, address in NODES.items():
            status = {"addresses": [{"type": "InternalIP", "address": address}]}
            self.call(self.store.create, "nodes", {"metadata": {"name": name}, "status": status})
            self.call(self.store.patch, "nodes", name, {"status": status}, subresource="status")
        for number, vip in enumerate(VIPS):
            name = f"web{number}"
            ports = [{"port": 80, "protocol": "TCP"}]
            self.call(
                self.store.create,
                "services",
                {
                    "metadata": {"name": name, "namespace": "default"},
                    "spec": {"type": "LoadBalancer", "ports": ports},
                },
            )
            ingress = {"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}}
            self.call(
                self.store.patch,
                "services",
                name,
                ingress,
                namespace="default",
                subresource="status",
            )

    def call(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        async def inside() -> Any:
            result = function(*args, **how)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(DEADLINE_S)

    def permit(self, secret: str) -> None:
        """Let the agents read a Secret, as docs/load-balancer.md says."""
        meta = {"name": "kube-router-py-secrets", "namespace": NAMESPACE}
        rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
        self.call(
            self.store.create,
            "roles",
            {"metadata": meta, "rules": [{**rule, "resourceNames": [secret]}]},
        )
        self.call(
            self.store.create,
            "rolebindings",
            {
                "metadata": meta,
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Role",
                    "name": meta["name"],
                },
                "subjects": [
                    {"kind": "ServiceAccount", "name": "kube-router-py", "namespace": NAMESPACE}
                ],
            },
        )

    def put_key(self, key: bytes) -> None:
        data = {"key": base64.b64encode(key).decode()}
        meta = {"name": SECRET, "namespace": NAMESPACE}
        self.call(self.store.create, "secrets", {"metadata": meta, "data": data})

    def start(self, name: str, *flags: str) -> "Agent":
        self.agents[name] = Agent(self, name, flags)
        return self.agents[name]

    def owners(self) -> dict[str, str]:
        """Who answers for each address; empty unless it is exactly one for each, and was while
        all were asked for."""
        found, again = (
            {vip: self.segment.who_has(ip_address(vip)) for vip in VIPS} for _ in range(2)
        )
        if found != again or any(len(each) != 1 for each in found.values()):
            return {}
        return {vip: each[0].partition("/")[0] for vip, each in found.items()}

    def shared(self, *names: str) -> dict[str, str]:
        """Wait until each address has one of these nodes, and each of these some."""
        return until(  # type: ignore[no-any-return]
            lambda: {*(found := self.owners()).values()} == {*names} and found,
            f"{names} shared the addresses",
        )

    def events(self) -> set[tuple[str, str, str]]:
        return {
            (each["type"], each["reason"], each["message"])
            for each in self.call(self.store.list, "events")
        }

    def leases(self) -> set[str]:
        return {each["metadata"]["name"] for each in self.call(self.store.list, "leases")}

    def said(self, node: str) -> str:
        """What the Lease of a node says of it."""
        name = f"{leases.NAME_PREFIX}{node}"
        found = [x for x in self.call(self.store.list, "leases") if x["metadata"]["name"] == name]
        return str(found[0]["metadata"]["annotations"][leases.ANNOTATION]) if found else ""

    def close(self) -> None:
        for agent in self.agents.values():
            agent.end()
        self.call(self.server.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE_S)
        self.loop.close()
        self.socket.close()


class Agent:
    """A node's part, as the agent runs it."""

    def __init__(self, cluster: Cluster, name: str, flags: tuple[str, ...]) -> None:
        self._name, self._segment = name, cluster.segment
        options = parse(
            [
                f"--kubeconfig={cluster.kubeconfig}",
                "--loadbalancer-ip-range=192.0.2.0/24",
                "--loadbalancer-layer2",
                f"--loadbalancer-heartbeat-port={cluster.heartbeat_port}",
                *flags,
            ],
            {},
        )
        self.client: Client = connect(options)
        cache = Cache(KINDS)
        book = PoolBook(pool_settings(options, NAMESPACE))
        self.served = Served()
        self.part = Layer2Part(
            *(options, cache, self.client, name, NAMESPACE, book, self.served),
            *(self._open, lambda turn: None, lambda loop, reason: None),
        )
        self._reflectors = [Reflector(self.client, cache, kind) for kind in KINDS]
        self.part.start()
        for reflector in self._reflectors:
            reflector.start()
        self.part.loop.start()
        book.put_past(Past())
        book.put_config(None)
        self.served.change([ip_address(vip).packed for vip in VIPS])
        self._has_ended = False

    def _open(
        self, on_claim: OnClaim, node_addresses: Callable[[], Collection[Address]]
    ) -> FakeResponder:
        responder = FakeResponder(self._name, on_claim, {"eth0": self._segment})
        responder.node_addresses = node_addresses  # type: ignore[attr-defined]
        return responder

    def end(self) -> None:
        """As by SIGTERM."""
        if not self._has_ended:
            self._has_ended = True
            self.part.before_loops_stop()
            self.finish()

    def finish(self) -> None:
        self._has_ended = True
        assert self.part.loop.stop(DEADLINE_S)
        for reflector in self._reflectors:
            reflector.stop(DEADLINE_S)
        self.part.stop()
        self.client.close()


@pytest.fixture
def cluster(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Cluster]:
    with closing(Cluster(tmp_path, free_port())) as found:
        yield found


def test_two_nodes_by_heartbeats_through_a_restart_and_a_handover(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread that has no turn for long is no death, and not sleep; a restart is told in the end.
    patient = Timing(silence_s=30.0, proof_s=30.0, lonely_s=30.0, slept_s=30.0)
    monkeypatch.setattr(peers, "heartbeat_timing", lambda members: patient)
    monkeypatch.setattr(liveness, "_WORDS_S", DEADLINE_S)
    key = b"k" * 32
    cluster.permit(SECRET)
    cluster.put_key(key)
    first, second = cluster.start("node1"), cluster.start("node2")
    before = cluster.shared("node1", "node2")
    assert first.part.status()["liveness"] == "heartbeats"
    numbers = first.part.numbers()
    assert numbers["layer2_heartbeats_received_total"] > 0
    assert numbers["layer2_announced_addresses"] == [*before.values()].count("node1")
    assert cluster.leases() == set()
    told = {
        ("Normal", "nodeAssigned", f"{vip} is announced from node {name} on eth0 by ARP")
        for vip, name in before.items()
    }
    until(lambda: told <= cluster.events(), "all of that was told")
    # A restart: the other one takes nothing.
    until(lambda: second.part.status()["alive"] == ["node1"], "node1 was heard")
    told_before = len(cluster.segment.told)
    first.end()
    until(lambda: second.part.status()["held"] == ["node1"], "the restart was heard of")
    cluster.start("node1")
    assert cluster.shared("node1", "node2") == before
    for said in cluster.segment.told[told_before:]:
        assert said.mac == f"{before[str(said.address)]}/eth0"
    # Its end for good: handed over before it stops.
    leaving = cluster.agents["node1"]
    leaving.end()
    last = cluster.start("node1", "--withdraw-on-exit")
    cluster.shared("node1", "node2")
    last.part.before_loops_stop()
    assert cluster.shared("node2")
    last.finish()
    # It is not missed: no node is dead. The key, put again, brings the usual pace back.
    monkeypatch.undo()
    second.part.liveness.put_key(key)
    until(lambda: second.part.liveness.view.members == 1, "it was forgotten")


def test_without_permission_to_read_the_secret_leases_count(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = cluster.start("node1")
    cluster.start("node2")
    cluster.shared("node1", "node2")
    assert first.part.status()["liveness"] == "leases"
    assert cluster.leases() == {"kube-router-py-l2-node1", "kube-router-py-l2-node2"}
    assert "Leases" in caplog.text
    (problem,) = until(lambda: first.part.loop.status().problems, "the Problem was known")
    assert SECRET in problem.reason
    assert first.part.numbers()["layer2_heartbeats_sent_total"] == 0
    cluster.agents["node2"].end()
    until(lambda: first.part.status()["held"] == ["node2"], "the restart was heard of")


def test_a_lease_says_at_once_what_its_node_is(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever counts before the others can know answers beside them."""
    monkeypatch.setattr(leases, "RENEW_S", 1000.0)
    cluster.start("node1")
    until(lambda: cluster.said("node1") == "running 30", "the Lease said so")
    cluster.agents["node1"].end()
    assert cluster.said("node1") == "restarting 30"


def test_a_port_that_is_taken_is_told(cluster: Cluster) -> None:
    cluster.permit(SECRET)
    cluster.put_key(b"k" * 32)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((NODES["node1"], cluster.heartbeat_port))
        part = cluster.start("node1").part
        found = until(
            lambda: [
                each for each in part.loop.status().problems if "another program" in each.reason
            ],
            "the port was told of",
        )
        assert str(cluster.heartbeat_port) in found[0].reason
    cluster.start("node2")
    cluster.shared("node1", "node2")
    until(lambda: not part.loop.status().problems, "the Problem was over")


def test_a_key_that_is_too_short_is_told(cluster: Cluster) -> None:
    cluster.permit(SECRET)
    cluster.put_key(b"short")
    part = cluster.start("node1").part
    (problem,) = until(lambda: part.loop.status().problems, "the key was told of")
    assert "5 bytes" in problem.reason
    until(lambda: part.status()["liveness"] == "leases", "Leases counted")
