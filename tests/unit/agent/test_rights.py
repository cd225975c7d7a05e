"""RBAC: each overlay's agent asks for all that its Roles grant, for nothing else, and misses each.

Agents run on a fake kernel, with the overlay's own flags, against the lab's API server, which holds
them to the overlay's Roles and counts what they ask.
"""

import asyncio
import base64
import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kube_router_py.agent import Agent
from kube_router_py.cluster.client import connect
from kube_router_py.doctor.permissions import needed
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeIpsets, FakeIptables, FakeLinks, FakeSysctls
from kube_router_py.kernel.fake_ipvs import FakeIpvs
from kube_router_py.kernel.fake_neighbors import FakeResponder, FakeSegment
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.lab.apiserver import rbac
from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.store import Store
from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.options import parse
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.sysctls import sysctls
from kube_router_py.routing.controller import RoutingPorts

pytestmark = pytest.mark.timeout(300)

Object = dict[str, Any]

OVERLAYS = Path(__file__).parents[3] / "manifests/overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())
WHOLE = "load-balancer"
NAMESPACE = "kube-system"
DEADLINE_S = 90.0
PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
}


class Right(NamedTuple):
    """What one verb of a rule grants; ``namespace`` and ``name`` empty for all of them."""

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def covers(self, action: rbac.Action) -> bool:
        return (
            (self.group, self.resource, self.verb) == (action.group, action.resource, action.verb)
            and self.namespace in ("", action.namespace)
            and self.name in ("", action.name)
        )


# Events about Pods, which need --policy-drop-log=events and dropped packets: tests/unit/drops.
NOT_BY_THESE_FLAGS = {"firewall": {Right("", "events", "create")}}


def roles(overlay: str) -> list[Object]:
    return [obj for obj in render_kustomization(OVERLAYS / overlay) if obj["kind"] in PLURALS]


def rights(objects: list[Object]) -> set[Right]:
    return {
        Right(group, resource, verb, obj["metadata"].get("namespace", ""), name)
        for obj in objects
        for rule in obj.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def without(objects: list[Object], right: Right) -> list[Object]:
    """The same Roles, of which none grants that one."""
    changed = copy.deepcopy(objects)
    for obj in changed:
        if obj["metadata"].get("namespace", "") != right.namespace or "rules" not in obj:
            continue
        split = [
            {**rule, "apiGroups": [group], "resources": [resource], "verbs": [verb]}
            for rule in obj["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
            if (group, resource, verb) != right[:3]
            or right.name not in rule.get("resourceNames", [""])
        ]
        obj["rules"] = split
    return changed


def until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(what())
        time.sleep(0.02)


class Server:
    """An API server in a thread; what its one account asked, and was refused."""

    def __init__(self, directory: Path, objects: list[Object]) -> None:
        self.asked: set[rbac.Action] = set()
        self.refused: set[rbac.Action] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        self.store = Store(("10.96.0.0/16",))
        self._server = ApiServer(self.store, directory / "pki", ["127.0.0.1"], port)
        token = self._server.issue_token(NAMESPACE, "kube-router-py")
        self.kubeconfig = directory / "kubeconfig"
        self._server.write_kubeconfig(self.kubeconfig, f"https://127.0.0.1:{port}", token)
        for obj in objects:
            self.call(self.store.create, PLURALS[obj["kind"]], obj)
        fill(lambda *args, **how: self.call(self.store.create, *args, **how))
        self.call(self._server.start, [self._socket])

    def call(self, function: Callable[..., Any], *args: Any, **how: Any) -> Any:
        async def inside() -> Any:
            result = function(*args, **how)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result(DEADLINE_S)

    def exercised(self, granted: set[Right]) -> set[Right]:
        asked = [*self.asked]
        return {right for right in granted if any(map(right.covers, asked))}

    def close(self) -> None:
        self.call(self._server.stop)
        self._socket.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


@pytest.fixture
def serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[list[Object]], Server]]:
    """Starts the server with these Roles."""
    servers: list[Server] = []
    decide = rbac.is_allowed

    def counted(store: Store, user: Any, action: rbac.Action) -> bool:
        found = decide(store, user, action)
        if servers and not user.is_master and not action.path:
            (servers[0].asked if found else servers[0].refused).add(action)
        return found

    monkeypatch.setattr(rbac, "is_allowed", counted)

    def start(objects: list[Object]) -> Server:
        servers.append(Server(tmp_path, objects))
        return servers[0]

    yield start
    for server in servers:
        server.close()


def fill(create: Callable[..., Any]) -> None:
    """A cluster in which there is something to do for every part, and to complain of."""
    peers = "- {remoteip: 192.0.2.99, remoteasn: 65000, passwordsecretref: {name: %s, key: p}}"
    for number in (1, 2):
        annotations = {"kube-router.io/peers": peers % "kube-router-py-bgp"}
        create(
            "nodes",
            {
                "metadata": {"name": f"node{number}", "annotations": annotations},
                "spec": {"podCIDR": f"10.244.{number}.0/24"},
                "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{number}"}]},
            },
        )
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    for name, spec in (
        ("web", {"type": "LoadBalancer"}),
        # Not of --service-external-ip-range: refused, and told in an Event.
        ("refused", {"externalIPs": ["203.0.113.7"]}),
    ):
        meta = {"name": name, "namespace": "default"}
        create("services", {"metadata": meta, "spec": {**spec, "ports": ports}})
    pools = "- {name: default, addresses: [198.51.100.0/24], announce: {layer2: true}}\n"
    meta = {"name": "kube-router-address-pools", "namespace": NAMESPACE}
    create("configmaps", {"metadata": meta, "data": {"pools": pools}})
    for name, key in (("kube-router-py-bgp", "p"), ("kube-router-py-heartbeat", "key")):
        content = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
        meta = {"name": name, "namespace": NAMESPACE}
        create("secrets", {"metadata": meta, "data": {key: content}})


class CniFile:
    path = "/etc/cni/net.d/10-kuberouter.conflist"

    def read(self) -> str | None:
        return None

    def write(self, text: str) -> None: ...

    def comes_before(self) -> tuple[str, ...]:
        return ()


PARAMETERS = [each.name for each in sysctls(ProxyOptions(ipv4=True, ipv6=True), ("eth0",), (6, 1))]


def host() -> HostPorts:
    return HostPorts(
        *(FakeIpvs(), FakeLinks(), FakeIpsets(), FakeIptables()),
        FakeSysctls(dict.fromkeys((*PARAMETERS, "net/ipv4/ip_forward"), "0")),
    )


def arguments(overlay: str) -> list[str]:
    (daemon_set,) = [
        obj for obj in render_kustomization(OVERLAYS / overlay) if obj["kind"] == "DaemonSet"
    ]
    (agent,) = daemon_set["spec"]["template"]["spec"]["containers"]
    return [str(argument) for argument in agent["args"]]


@contextmanager
def running(
    overlay: str, server: Server, directory: Path, answers: list[str], port: int
) -> Iterator[Agent]:
    """An agent with the overlay's flags; what tests need besides is of no concern to the server.

    ``answers``: codes of what it is answered, as the metrics of its requests have them.
    """
    flags = [f"--kubeconfig={server.kubeconfig}", f"--agent-socket={directory}/agent.sock"]
    flags += [
        "--cluster-status-interval=1s",
        "--health-port=0",
        "--healthz-bind-address=",
        f"--frr-dir={directory}/frr",
        f"--loadbalancer-heartbeat-port={port}",
    ]
    options = parse([*arguments(overlay), *flags], {})
    environ = {"NODE_NAME": "node1", "POD_NAMESPACE": NAMESPACE, "POD_NAME": "agent-1"}
    segment = FakeSegment()
    daemons = FakeDaemons()
    agent = Agent(
        *(options, environ, host),
        client=connect(options, environ),
        routing_ports=lambda down: RoutingPorts(
            host(), fake_overlay(), FakeFrr(daemons, down), CniFile()
        ),
        open_responder=lambda claim, own: FakeResponder("node1", claim, {"eth0": segment}),
    )
    agent.client.observe = lambda method, code, took_s: answers.append(code)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield agent
    finally:
        agent.end()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("overlay", NAMES)
def test_the_agent_asks_for_all_that_it_may_and_for_nothing_else(
    overlay: str,
    serve: Callable[[list[Object]], Server],
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    objects = roles(overlay)
    granted = rights(objects) - NOT_BY_THESE_FLAGS.get(overlay, set())
    server = serve(objects)
    with running(overlay, server, tmp_path, [], free_port()) as agent:
        until(
            lambda: server.exercised(granted) == granted or server.refused,
            lambda: f"never asked for: {granted - server.exercised(granted)}",
        )
        until(
            lambda: agent.health.status()["ready"] or server.refused,
            lambda: f"not ready: {agent.health.status()}",
        )
    assert server.refused == set()


@pytest.mark.parametrize("right", sorted(rights(roles(WHOLE))), ids=lambda right: " ".join(right))
def test_each_right_is_missed_where_it_is_not_granted(
    right: Right,
    serve: Callable[[list[Object]], Server],
    tmp_path: Path,
    free_port: Callable[[], int],
) -> None:
    objects = without(roles(WHOLE), right)
    assert rights(objects) == rights(roles(WHOLE)) - {right}
    server = serve(objects)
    answers: list[str] = []
    with running(WHOLE, server, tmp_path, answers, free_port()):
        until(lambda: "403" in answers, lambda: f"not missed; asked {server.asked}")
    assert {action for action in server.refused if right.covers(action)} == server.refused != set()


def test_the_rights_that_doctor_tries_are_those_of_the_overlay() -> None:
    for overlay in NAMES:
        tried = {
            Right(it.group, it.resource, it.verb, NAMESPACE if it.is_own else "", it.name)
            for it in needed(parse(arguments(overlay), {}))
        }
        granted = rights(roles(overlay))
        # Whether there are passwords of BGP neighbors only annotations tell.
        granted -= {Right("", "secrets", "get", NAMESPACE, "kube-router-py-bgp")}
        assert tried == granted, overlay
