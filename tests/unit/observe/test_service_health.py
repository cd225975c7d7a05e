"""What load balancers are told: healthCheckNodePorts of Services, and the health of the node."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node, NodeSpec, ObjectMeta, Taint
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.health_checks import HealthChecks
from kube_router_py.observe.health_ports import HealthPorts, LocalEndpoints
from kube_router_py.observe.node_health import NodeHealth, ProxyHealth
from kube_router_py.observe.serve import Answer, PatientServer
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import HealthCheck
from kube_router_py.proxy.settings import ThisNode

_TIMEOUT_S = 60.0
LOOPBACK = ("127.0.0.1",)


def ask(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, Any, Any]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=_TIMEOUT_S) as found:
            return found.status, json.load(found), found.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def health() -> list[bool]:
    return [True]


@pytest.fixture
def ports(health: list[bool]) -> Iterator[HealthPorts]:
    # Retries are a matter of one test, which sets its own time.
    found = HealthPorts(lambda: health[0], retry_s=3600)
    yield found
    found.close()


def test_a_port_answers_as_kube_proxys_does(
    ports: HealthPorts, health: list[bool], free_port: Callable[[], int]
) -> None:
    port = free_port()
    assert ports.update({port: LocalEndpoints("default/web", 2)}, LOOPBACK) == {}
    status, body, headers = ask(port, "/healthz")
    assert status == 200
    assert body == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert ask(port, "/anything")[0] == 200
    ports.update({port: LocalEndpoints("default/web", 0)}, LOOPBACK)
    status, body, _ = ask(port)
    assert (status, body["localEndpoints"]) == (503, 0)
    health[0] = False
    ports.update({port: LocalEndpoints("default/web", 2)}, LOOPBACK)
    status, body, _ = ask(port)
    assert (status, body["serviceProxyHealthy"]) == (503, False)


def test_ports_come_and_go(ports: HealthPorts, free_port: Callable[[], int]) -> None:
    first, second = free_port(), free_port()
    ports.update({first: LocalEndpoints("a/a", 1), second: LocalEndpoints("b/b", 1)}, LOOPBACK)
    assert ask(first)[1]["service"]["name"] == "a"
    assert ask(second)[1]["service"]["name"] == "b"
    ports.update({second: LocalEndpoints("b/b", 1)}, LOOPBACK)
    with pytest.raises(urllib.error.URLError):
        ask(first)
    assert ask(second)[0] == 200


def test_a_port_that_is_taken_disturbs_no_other_and_is_tried_again(
    ports: HealthPorts, free_port: Callable[[], int]
) -> None:
    other, port = free_port(), free_port()
    with socket.create_server(("127.0.0.1", port)):
        wanted = {port: LocalEndpoints("a/a", 1), other: LocalEndpoints("b/b", 1)}
        refused = ports.update(wanted, LOOPBACK)
        assert set(refused) == {port}
        assert ask(other)[0] == 200
    assert ports.update(wanted, LOOPBACK) == {}
    assert ask(port)[0] == 200


def test_a_port_that_is_free_again_is_had_without_an_update(free_port: Callable[[], int]) -> None:
    opened, port = threading.Event(), free_port()
    ports = HealthPorts(lambda: True, opened.set, retry_s=0.05)
    try:
        with socket.create_server(("127.0.0.1", port)):
            assert set(ports.update({port: LocalEndpoints("a/a", 1)}, LOOPBACK)) == {port}
        assert opened.wait(_TIMEOUT_S)
        assert ask(port)[0] == 200
    finally:
        ports.close()


def test_all_addresses_of_both_families(ports: HealthPorts, free_port: Callable[[], int]) -> None:
    port = free_port()
    assert ports.update({port: LocalEndpoints("a/a", 1)}, ("",)) == {}
    assert ask(port)[0] == 200
    assert ask(port, host="[::1]")[0] == 200


def compiled(key: str, port: int, local: int) -> CompiledService:
    check = HealthCheck(port, local)
    return CompiledService(key, "", {}, {}, {}, {}, frozenset(), (), health_check=check)


def test_checks_follow_what_is_programmed(ports: HealthPorts, free_port: Callable[[], int]) -> None:
    checks, desired, port = HealthChecks(ports, is_restricted=True), Desired(), free_port()
    node = ThisNode("node1", node_port_addresses={int(socket.AF_INET): (b"\x7f\0\0\1",)})

    def follow(local: int | None) -> list[Problem]:
        found = None if local is None else compiled("default/web", port, local)
        return list(checks.follow(desired, node, desired.update("default/web", found), full=False))

    assert follow(1) == []
    assert ask(port)[0] == 200
    follow(0)
    assert ask(port)[0] == 503
    follow(None)
    with pytest.raises(urllib.error.URLError):
        ask(port)
    with socket.create_server(("127.0.0.1", port)):
        (problem,) = follow(1)
        assert (problem.object, problem.field) == (
            "Service default/web",
            "spec.healthCheckNodePort",
        )
    # The next turn tries again, whatever it is about.
    assert list(checks.follow(desired, node, NOTHING, full=False)) == []
    assert ask(port)[0] == 200


def test_checks_follow_the_nodes_addresses(
    ports: HealthPorts, free_port: Callable[[], int]
) -> None:
    checks, desired, port = HealthChecks(ports, is_restricted=True), Desired(), free_port()
    changes = desired.update("default/web", compiled("default/web", port, 1))

    def follow(changes: Changes, *addresses: bytes) -> None:
        node = ThisNode("node1", node_port_addresses={int(socket.AF_INET): addresses})
        assert list(checks.follow(desired, node, changes, full=False)) == []

    follow(changes, b"\x7f\0\0\1")
    assert ask(port)[0] == 200
    follow(NOTHING, b"\x7f\0\0\2")
    assert ask(port, host="127.0.0.2")[0] == 200
    with pytest.raises(urllib.error.URLError):
        ask(port)


def status(*, turning: bool = True) -> LoopStatus:
    return LoopStatus(
        name="service-proxy",
        turning=turning,
        ready=True,
        reason="",
        dirty=0,
        busy=False,
        settled=True,
        last_turn_s=7.0,
        last_success_s=7.0,
        turns=3,
        successes=3,
        restarts=0,
        problems=(),
    )


def node(**meta: Any) -> Node:
    taints = meta.pop("taints", ())
    return Node(ObjectMeta("node1", **meta), NodeSpec(taints=tuple(taints)))


def turn(proxy: ProxyHealth) -> None:
    proxy.begin()
    assert proxy.follow(Desired(), ThisNode("node1"), NOTHING, full=True) == ()


NOTHING = Changes(frozenset(), frozenset())
GOING = Taint("ToBeDeletedByClusterAutoscaler", "NoSchedule")


@pytest.mark.parametrize(
    ("found", "turning", "healthz", "livez", "eligible"),
    [
        (node(), True, 200, 200, True),
        (None, True, 200, 200, True),
        (node(taints=[Taint("dedicated", "NoExecute")]), True, 200, 200, True),
        (node(taints=[GOING]), True, 503, 200, False),
        (node(deletion_timestamp="2026-03-01T12:00:00Z"), True, 503, 200, False),
        (node(), False, 503, 503, True),
    ],
)
def test_a_node_is_asked(
    found: Node | None, turning: bool, healthz: int, livez: int, eligible: bool
) -> None:
    cache = Cache((Node,))
    if found is not None:
        cache.put(Node, found)
    now_s = [0.0]
    proxy = ProxyHealth(lambda: status(turning=turning), lambda: now_s[0])
    turn(proxy)
    now_s[0] = 7.0
    health = NodeHealth(cache, "node1", proxy, lambda: 1772366400.0)
    answers = {path: page() for path, page in health.pages().items()}
    assert {path: answer.status for path, answer in answers.items()} == {
        "/healthz": healthz,
        "/livez": livez,
    }
    body = json.loads(answers["/healthz"].body)
    assert body["nodeEligible"] is eligible
    assert body["currentTime"] == "2026-03-01T12:00:00+00:00"
    late = "2026-03-01T11:59:53+00:00"
    assert body["lastUpdated"] == (body["currentTime"] if healthz == 200 else late)


def test_a_proxy_works_once_it_has_programmed_and_as_long_as_it_gets_on() -> None:
    now_s = [0.0]
    proxy = ProxyHealth(status, lambda: now_s[0])
    assert not proxy.is_healthy()
    proxy.begin()
    assert not proxy.is_healthy()
    turn(proxy)
    assert proxy.is_healthy()
    now_s[0] = 3600.0  # nothing to do for an hour
    assert (proxy.is_healthy(), proxy.age_s()) == (True, 3600.0)
    proxy.begin()
    now_s[0] += 50
    proxy.begin()  # the attempt failed, and another is made
    assert proxy.is_healthy()
    now_s[0] += 11
    assert not proxy.is_healthy()
    turn(proxy)
    assert (proxy.is_healthy(), proxy.age_s()) == (True, 0.0)


def test_the_port_of_the_nodes_health_is_waited_for(
    caplog: pytest.LogCaptureFixture, free_port: Callable[[], int]
) -> None:
    port = free_port()
    pages = {"/healthz": lambda: Answer(200, "application/json", b"{}")}
    with caplog.at_level("INFO"), socket.create_server(("127.0.0.1", port)):
        server = PatientServer("127.0.0.1", port, pages, "healthz-bind-address", "no health", 0.05)
        server.start()
        assert (
            f"what='no health' reason='--healthz-bind-address {port}: cannot listen on"
            in caplog.text
        )
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while not is_open(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(port, "/healthz")[0] == 200
    finally:
        server.stop()
    assert not is_open(port)


def test_a_server_that_waits_for_its_port_can_be_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = PatientServer("127.0.0.1", taken.getsockname()[1], {}, "flag", "no health", 3600)
        server.start()
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < _TIMEOUT_S
