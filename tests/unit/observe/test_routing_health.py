"""What an operator sees of the route controller: readiness, the log, Events and numbers."""

import queue
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from kube_router_py.agent import Agent
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.errors import KernelError
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.kernel.ports_frr import Boot, Opened
from kube_router_py.observe.health import Health
from kube_router_py.options import parse
from kube_router_py.part import numbers
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing.model import Role
from kube_router_py.routing_part import RoutingPart

_TIMEOUT_S = 60.0
PEERS = """
- remoteip: 203.0.113.1
  remoteasn: 65000
- remoteip: 203.0.113.2
  remoteasn: nonsense
"""


class Api:
    def __init__(self) -> None:
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        self.posted.put(body)
        return b"{}"

    def next(self) -> dict[str, Any]:
        return self.posted.get(timeout=_TIMEOUT_S)


class NoCniFile:
    path = "/etc/cni/net.d/10-kuberouter.conflist"
    writes = 0

    def read(self) -> str | None:
        return None

    def write(self, text: str) -> None:
        raise AssertionError("--enable-cni=false")

    def comes_before(self) -> tuple[str, ...]:
        return ()


class Frr(FakeFrr):
    """One whose start may fail."""

    error: Exception | None = None

    def open(self, boot: Boot) -> Opened:
        if self.error is not None:
            raise self.error
        return super().open(boot)


def node(peers: str = "") -> Node:
    found: Node = msgspec.convert(
        {
            "metadata": {
                "name": "node1",
                "uid": "u1",
                "annotations": {"kube-router.io/peers": peers} if peers else {},
            },
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]},
        },
        Node,
    )
    return found


class World:
    def __init__(self) -> None:
        self.cache = Cache((Node, Service, EndpointSlice))
        for kind, found in ((Service, []), (EndpointSlice, []), (Node, [node()])):
            self.cache.replace(kind, found, "1")
        self.api, self.daemons = Api(), FakeDaemons()
        self.frr = Frr(self.daemons)
        self.frr_error: Exception | None = None
        options = parse(
            ["--run-router=true", "--run-service-proxy=false", "--enable-cni=false"], {}
        )
        self.part = RoutingPart(
            options,
            self.cache,
            self.api,  # type: ignore[arg-type]
            "node1",
            "kube-system",
            self._open,
            None,
            lambda turn: None,
            lambda loop, reason: None,
        )
        self.health = Health(node="node1", version="1", cache=self.cache, loops=[self.part.loop])

    def _open(self, down: Callable[[], None]) -> RoutingPorts:
        links = FakeLinkKernel()
        links.addresses.append(
            NodeAddress(socket.AF_INET, ip_address("192.168.1.1").packed, 24, "eth0")
        )
        self.frr = Frr(self.daemons, down)
        self.frr.error = self.frr_error
        host = ports.HostPorts(
            fake.FakeIpvs(),
            fake.FakeLinks("route", links),
            fake.FakeIpsets(),
            fake.FakeIptables(),
            fake.FakeSysctls({"net/ipv4/ip_forward": "0"}),
        )
        return RoutingPorts(host, fake_overlay(), self.frr, NoCniFile())

    def turn(self) -> dict[str, Any]:
        """The next turn that is due; then what /readyz says."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not self.part.loop.turn_if_due():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.health.report()

    def neighbors(self) -> set[str]:
        return {key for key, _, _ in self.daemons.configs["bgpd"].neighbors()}


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level("INFO")
    found = World()
    yield found
    found.part.stop()


def test_a_malformed_annotation_leaves_out_one_router_and_is_told_everywhere(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert world.turn()["ready"]
    world.cache.put(Node, node(PEERS))
    report = world.turn()
    # All else is as it should be, so the node is ready.
    assert (report["ready"], report["reason"]) == (True, "")
    assert world.neighbors() == {"203.0.113.1"}
    (problem,) = report["loops"]["router"]["problems"]
    assert problem["object"] == "Node node1"
    assert problem["field"] == "metadata.annotations[kube-router.io/peers][1].remoteasn"
    assert "nonsense" in problem["reason"]
    assert "left out" in problem["reason"]
    what = f"loop=router object='Node node1' field={problem['field']!r}"
    line = f"problem {what} reason={problem['reason']!r}"
    assert [each.message for each in caplog.records].count(line) == 1
    event = world.api.next()
    assert (event["reason"], event["involvedObject"]["uid"]) == ("BadRoutingAnnotation", "u1")
    assert event["message"] == f"{problem['field']}: {problem['reason']}"
    world.cache.put(Node, node())
    assert world.turn()["loops"]["router"]["problems"] == []
    assert f"problem solved {what}" in caplog.text


def test_a_start_of_frr_that_fails_makes_the_node_unready_and_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "bgpd cannot listen on 192.168.1.1 port 179: Address already in use; end it"
    world.frr_error = KernelError(reason)
    report = world.turn()
    assert not report["ready"]
    assert report["reason"] == "router: failing: FRR's daemons"
    (problem,) = report["loops"]["router"]["problems"]
    assert problem == {"object": "Node node1", "field": "", "reason": f"BGP: {reason}"}
    what = f"loop=router object='Node node1' field='' reason='BGP: {reason}'"
    assert f"problem {what}" in caplog.text
    event = world.api.next()
    assert (event["reason"], event["message"]) == ("RoutingProblem", f"BGP: {reason}")
    # The loop turns all the same: a restart of the agent would not help.
    assert world.health.live().status == 200
    world.frr.error = None
    assert world.turn()["ready"]  # the retry
    assert f"problem solved {what}" in caplog.text


def test_frr_that_ends_is_started_again_and_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.turn()
    assert world.part.numbers()["frr_starts_total"] == 1
    neighborhood = world.part.controller.neighborhood
    assert neighborhood is not None
    assert neighborhood.own.name == "node1"
    world.frr.kill("zebra")
    assert world.turn()["ready"]
    assert world.part.numbers()["frr_starts_total"] == 2
    # One that may not be started yet is waited for, and told of.
    world.daemons.resting_s = 0.01
    world.frr.kill("bgpd")
    report = world.turn()
    (problem,) = report["loops"]["router"]["problems"]
    assert problem["reason"] == "BGP: FRR does not run: it rests"
    assert (
        "problem loop=router object='Node node1' field='' reason='BGP: FRR does not run"
        in caplog.text
    )
    world.daemons.resting_s = 0.0
    report = world.turn()
    assert (report["ready"], report["loops"]["router"]["problems"]) == (True, [])
    assert world.part.numbers()["frr_starts_total"] == 3


def test_neighbors_are_known_to_the_metrics_by_their_role(world: World) -> None:
    world.cache.put(Node, node(PEERS))
    world.turn()
    found = world.part.controller.neighborhood
    assert found is not None
    assert [(each.key, each.session.role) for each in found.neighbors] == [
        ("203.0.113.1", Role.EXTERNAL)
    ]
    # No FRR answers where the flag says that it is.
    assert b"\nkube_router_frr_up 0\n" in world.part.sessions()


class NoCredentials:
    addresses = ("http://192.0.2.1:6443",)

    def configurations(self) -> tuple[Any, ...]:
        return ()

    def reload(self) -> None: ...


def test_the_agent_serves_sessions_and_adds_up_what_its_parts_count(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    def no_host(*ignored: Any) -> Any:
        raise KernelError("no host here")

    port = free_port()
    flags = (
        *("--run-router=true", "--health-port=0", "--healthz-bind-address="),
        *("--metrics-addr=127.0.0.1", f"--metrics-port={port}", f"--frr-dir={tmp_path}"),
    )
    agent = Agent(
        parse([*flags], {}),
        {"NODE_NAME": "node1"},
        no_host,
        client=Client(NoCredentials()),  # type: ignore[arg-type]
        routing_ports=no_host,
    )
    (server,) = agent.servers
    server.start()
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
    finally:
        server.stop()
    for line in (
        "kube_router_frr_up 0",
        "kube_router_frr_starts_total 0",
        "kube_router_controller_bgp_advertised_services 0",
        # Of both the service proxy and the route controller.
        "kube_router_events_dropped_total 0",
    ):
        assert text.count(f"\n{line}\n") == 1, line
    assert "# TYPE kube_router_service_cps gauge" in text
    for part in (agent.proxy, agent.routing):
        assert part is not None
        assert part.numbers()["events_dropped_total"] == 0


def test_what_several_parts_count_is_added_up() -> None:
    class Counting:
        def __init__(self, **numbers: float) -> None:
            self.numbers = lambda: numbers

    parts: list[Any] = [Counting(events_dropped_total=2, a=1), Counting(events_dropped_total=3)]
    assert numbers(parts) == {"events_dropped_total": 5, "a": 1}
