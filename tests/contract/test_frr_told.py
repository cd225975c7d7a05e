"""What operators are told when something is wrong with BGP, by the route controller's part of the
agent with real FRR: readiness, the log as journalctl shows it, Events, metrics."""

import logging
import os
import queue
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import ModuleType
from typing import Any

import msgspec
import pytest

from kube_router_py.adapters import routing_opener
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.observe.health import Health
from kube_router_py.observe.log import LineFormatter, Prefix
from kube_router_py.options import parse
from kube_router_py.routing_part import RoutingPart

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

FLAGS = (
    *("--run-router", "--run-service-proxy=false", "--run-firewall=false"),
    *("--enable-cni=false", "--enable-overlay=false"),
)
PEERS = """
- {remoteip: 10.99.0.9, remoteasn: 65000, password: c2VjcmV0}
- {remoteip: 10.99.0.8, remoteasn: nonsense}
- {remoteip: 10.99.0.7, remoteasn: 65000, password: "c2VjcmV0IQ="}
"""
FIELD = "metadata.annotations[kube-router.io/peers]"


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    found = beside("frr_lab")
    found.require()
    return found


class Api:
    def __init__(self) -> None:
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        self.posted.put(body)
        return b"{}"


class Journal(logging.Handler):
    """The lines that journald gets."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(LineFormatter(prefix=Prefix.PRIORITY, tracebacks=False))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def says(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in list(self.lines))


def node(peers: str = "") -> Node:
    found: Node = msgspec.convert(
        {
            "metadata": {
                "name": "node1",
                "uid": "u1",
                "annotations": {"kube-router.io/peers": peers} if peers else {},
            },
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.1"}]},
        },
        Node,
    )
    return found


class World:
    """The part, running in a namespace of its own."""

    def __init__(self, lab: Any, stack: ExitStack) -> None:
        self.lab, self._stack = lab, stack
        self.box = stack.enter_context(closing(lab.Box("node")))
        self.box.run(
            lab.sh,
            "ip link add eth0 type veth peer name peer0",
            "ip link set eth0 up",
            "ip link set peer0 up",
            "ip addr add 10.99.0.1/24 dev eth0",
        )
        self.layout = stack.enter_context(lab.run_directory())
        self.journal, self.api = Journal(), Api()
        package = logging.getLogger("kube_router_py")
        package.addHandler(self.journal)
        stack.callback(package.removeHandler, self.journal)
        self.cache = Cache((Node, Service, EndpointSlice))
        for kind, found in ((Service, []), (EndpointSlice, []), (Node, [node()])):
            self.cache.replace(kind, found, "1")

    def start(self, *flags: str) -> None:
        options = parse([*FLAGS, f"--frr-dir={self.layout.run_dir}", *flags], {})
        self.part = RoutingPart(
            options,
            self.cache,
            self.api,  # type: ignore[arg-type]
            "node1",
            "kube-system",
            routing_opener(options),
            served=None,
            on_turn=lambda turn: None,
            on_dead=lambda loop, reason: None,
        )
        self._health = Health(node="node1", version="1", cache=self.cache, loops=[self.part.loop])
        self._stack.callback(self.part.stop)
        self._stack.callback(self.part.loop.stop, 60.0)
        self.box.run(self.part.loop.start)

    def ready(self) -> dict[str, Any]:
        return self._health.report()

    def problems(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.ready()["loops"]["router"]["problems"]
        return found

    def metrics(self) -> str:
        return self.part.sessions().decode()

    def event(self) -> tuple[str, str]:
        found = self.api.posted.get(timeout=self.lab.DEADLINE_S)
        assert found["involvedObject"]["uid"] == "u1"
        return found["reason"], found["message"]


@pytest.fixture
def world(lab: Any, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level("INFO", "kube_router_py")
    with ExitStack() as stack:
        yield World(lab, stack)


def _listen() -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("0.0.0.0", 179))
    found.listen()
    return found


def test_a_taken_port_a_bad_annotation_and_the_death_of_frr(world: World, lab: Any) -> None:
    with world.box.run(_listen):
        world.start()
        (problem,) = lab.until(world.problems, "it cannot listen")
        assert problem["object"] == "Node node1"
        assert "bgpd cannot listen on 10.99.0.1 port 179: Address already" in problem["reason"]
        assert "end what listens there" in problem["reason"]
        report = world.ready()
        assert not report["ready"]
        assert "router: failing: FRR's daemons" in report["reason"]
        assert world.journal.says(
            "<4>WARNING loop: problem loop=router object='Node node1'", "port 179"
        )
        reason, message = world.event()
        assert (reason, "port 179" in message) == ("RoutingProblem", True)
        assert "\nkube_router_frr_up 0\n" in world.metrics()
    lab.until(lambda: world.ready()["ready"], "it listens")
    assert world.journal.says("<6>INFO loop: problem solved", "port 179")
    lab.until(lambda: "\nkube_router_frr_up 1\n" in world.metrics(), "FRR answers")

    # What is wrong with two of three routers leaves out these, and nothing else.
    world.cache.put(Node, node(PEERS))
    first, second = lab.until(lambda: len(found := world.problems()) == 2 and found, "problems")
    assert (first["field"], second["field"]) == (f"{FIELD}[1].remoteasn", f"{FIELD}[2].password")
    for each in (first, second):
        assert each["reason"].endswith("this router is left out")
        what = f"object='Node node1' field={each['field']!r} reason={each['reason']!r}"
        line = f"<4>WARNING loop: problem loop=router {what}"
        assert line in world.journal.lines
    events = {world.event(), world.event()}
    assert events == {
        ("BadRoutingAnnotation", f"{each['field']}: {each['reason']}") for each in (first, second)
    }
    lab.until(lambda: 'bgp_peer_info{address="10.99.0.9"' in world.metrics(), "the third is there")
    assert 'address="10.99.0.7"' not in world.metrics()
    assert world.ready()["ready"]

    was = lab.pid_of(world.layout, "bgpd")
    os.kill(was, signal.SIGKILL)
    lab.until(lambda: world.part.numbers()["frr_starts_total"] >= 2, "FRR is started again")
    dead = rf"<3>ERROR kernel: FRR is restarted, its routes stay daemon=bgpd pid={was} .*SIGKILL"
    assert any(re.match(dead, line) for line in world.journal.lines)
    started = [line for line in world.journal.lines if "FRR started daemons=zebra,bgpd" in line]
    assert len(started) >= 2
    lab.until(lambda: 'bgp_peer_info{address="10.99.0.9"' in world.metrics(), "the neighbor again")
    lab.until(lambda: world.ready()["ready"], "all is well")
    # Nothing of all this shows a password, in any spelling.
    told = "\n".join(world.journal.lines) + world.metrics() + str(events) + str(world.ready())
    for secret in ("c2VjcmV0", "secret!"):
        assert secret not in told
    assert not re.search(r"\bsecret\b", told)


def test_daemons_that_others_run_are_told_of_as_well(world: World, lab: Any) -> None:
    theirs = ManagedFrr(world.layout, lambda: None)
    world.box.run(theirs.open, lab.boot("node"))
    world.start("--frr-mode=external", "--cluster-asn=64512")
    lab.until(lambda: world.ready()["ready"], "the part has found FRR")
    lab.until(lambda: "\nkube_router_frr_up 1\n" in world.metrics(), "and so have the metrics")
    assert world.part.numbers()["frr_starts_total"] == 0
    world.box.run(theirs.stop)
    world.cache.put(Node, node("- {remoteip: 10.99.0.9, remoteasn: 65000}"))
    (problem,) = lab.until(world.problems, "FRR is gone")
    assert "FRR does not run" in problem["reason"]
    assert f"start its daemons with --vty_socket {world.layout.run_dir}" in problem["reason"]
    lab.until(lambda: "\nkube_router_frr_up 0\n" in world.metrics(), "the metrics say so")
    assert "RoutingProblem" in world.event()
