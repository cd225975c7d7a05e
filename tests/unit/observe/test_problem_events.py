"""Events about what is wrong with routing: on which object, how often, in which words."""

import queue
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import ConfigMap, Node, ObjectMeta, Service
from kube_router_py.observe.event_writer import EventWriter, Tiding, event_about
from kube_router_py.observe.problem_events import ProblemEvents
from kube_router_py.problem import Problem

_TIMEOUT_S = 60.0
PEERS = "metadata.annotations[kube-router.io/peers][1].remoteasn"


class Api:
    """What is posted; nothing is answered before ``held`` is set."""

    def __init__(self) -> None:
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()
        self.held = threading.Event()
        self.held.set()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        assert path == f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        assert self.held.wait(_TIMEOUT_S)
        self.posted.put(body)
        return b"{}"

    def next(self) -> dict[str, Any]:
        return self.posted.get(timeout=_TIMEOUT_S)


class World:
    def __init__(self) -> None:
        self.api, self.cache = Api(), Cache((Node, Service))
        for name in ("node1", "node2"):
            self.cache.put(Node, Node(ObjectMeta(name, uid=f"uid-{name}")))
        self.cache.put(Service, Service(ObjectMeta("web", "shop", "uid-web")))
        self.now_s = 0.0
        self.writer = EventWriter(
            self.cache,
            self.api,  # type: ignore[arg-type]
            "node1",
            0.0,
            lambda: self.now_s,
        )
        self.events = ProblemEvents(self.writer, "node1")


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.api.held.set()
    world.events.stop(_TIMEOUT_S)


def test_a_problem_is_told_of_the_object_that_has_it(world: World) -> None:
    world.events.follow(
        (
            Problem("Node node1", PEERS, "'x' is no AS number; this router is left out"),
            Problem("Node node2", PEERS, "its own agent tells of it"),
            Problem("Service shop/web", "metadata.annotations[a]", "'y' is no community"),
            Problem("Service shop/gone", "metadata.annotations[a]", "nobody to tell it of"),
            Problem("Node node1", "", "BGP: FRR does not run: bgpd exited with 1"),
            Problem("Flag --router-id", "", "is not given"),
        )
    )
    bad, web, frr, flag = (world.api.next() for _ in range(4))
    assert bad["metadata"]["namespace"] == "default"
    assert bad["metadata"]["name"].startswith("node1.")
    assert bad["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "node1",
        "uid": "uid-node1",
        "resourceVersion": "",
        "fieldPath": PEERS,
    }
    assert (bad["type"], bad["reason"]) == ("Warning", "BadRoutingAnnotation")
    assert bad["message"] == f"{PEERS}: 'x' is no AS number; this router is left out"
    assert web["metadata"]["namespace"] == web["involvedObject"]["namespace"] == "shop"
    assert (web["involvedObject"]["kind"], web["reason"]) == ("Service", "BadRoutingAnnotation")
    assert frr["message"] == "BGP: FRR does not run: bgpd exited with 1"
    assert (frr["reason"], flag["reason"]) == ("RoutingProblem", "RoutingProblem")
    assert flag["involvedObject"]["name"] == "node1"
    assert flag["message"] == "Flag --router-id: is not given"
    world.events.stop(_TIMEOUT_S)
    assert world.api.posted.empty()


def test_what_stays_is_told_once_and_what_comes_back_after_an_hour(world: World) -> None:
    first = (Problem("Node node1", PEERS, "one"),)
    world.events.follow(first)
    assert world.api.next()["message"] == f"{PEERS}: one"
    # Turns come and go with the same Problems, and with equal ones.
    world.events.follow(first)
    world.events.follow((*first, Problem("Node node1", PEERS, "two")))
    assert world.api.next()["message"] == f"{PEERS}: two"
    # Solved, and there again: the Event of the first time is still to be seen.
    world.events.follow(())
    world.events.follow(first)
    world.events.follow((*first, Problem("Node node1", PEERS, "three")))
    assert world.api.next()["message"] == f"{PEERS}: three"
    world.events.follow(())
    world.now_s = 3601.0
    world.events.follow(first)
    assert world.api.next()["message"] == f"{PEERS}: one"


def test_what_has_no_room_is_told_in_a_later_turn(world: World) -> None:
    world.api.held.clear()
    many = tuple(Problem("Node node1", PEERS, f"reason {n:03}") for n in range(300))
    world.events.follow(many)
    assert world.events.dropped >= 300 - 256 - 1
    world.api.held.set()
    told: set[str] = set()
    while len(told) < 300:
        try:
            told.add(world.api.posted.get(timeout=0.1)["message"])
        except queue.Empty:
            world.events.follow(many)
    assert told == {f"{PEERS}: {problem.reason}" for problem in many}


def test_where_no_thread_can_be_had_the_next_one_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tiding = Tiding(Node, "node1", "Full", Problem("Node node1", "", "no threads"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert not world.writer.tell(tiding)
    world.writer.stop(0.0)
    assert world.writer.dropped == 1
    other = EventWriter(world.cache, world.api, "node1", 0.0)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert not other.tell(tiding)
    assert other.tell(tiding)
    assert world.api.next()["message"] == "no threads"
    other.stop(_TIMEOUT_S)


def test_good_news_and_config_maps_are_told_of_too(world: World) -> None:
    config = ObjectMeta("pools", "kube-system", "uid-pools", "7")
    cache = Cache((ConfigMap,))
    cache.put(ConfigMap, ConfigMap(config))
    writer = EventWriter(cache, world.api, "node1", 0.0)  # type: ignore[arg-type]
    # A kind that this cache does not have must not end the thread.
    writer.tell(Tiding(Service, "shop/web", "R", Problem("Service shop/web", "", "lost")))
    problem = Problem("ConfigMap kube-system/pools", "pools[0]", "it has no name")
    writer.tell(Tiding(ConfigMap, "kube-system/pools", "BadPools", problem))
    bad = world.api.next()
    writer.stop(_TIMEOUT_S)
    assert (bad["type"], bad["reason"]) == ("Warning", "BadPools")
    assert bad["metadata"]["namespace"] == "kube-system"
    assert bad["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "pools",
        "namespace": "kube-system",
        "uid": "uid-pools",
        "resourceVersion": "7",
        "fieldPath": "pools[0]",
    }
    moved = Problem("Service shop/web", "", "announced by node1")
    for occasion in ("1", "2", "2", "3"):
        tiding = Tiding(Service, "shop/web", "nodeAssigned", moved, "Normal", occasion)
        assert world.writer.tell(tiding)
    told = [world.api.next() for _ in range(3)]
    world.writer.stop(_TIMEOUT_S)
    assert world.api.posted.empty()
    assert {(each["type"], each["reason"]) for each in told} == {("Normal", "nodeAssigned")}
    assert len({each["metadata"]["name"] for each in told}) == 3


def test_an_event_can_always_be_sent() -> None:
    """Texts of strangers, whatever is in them, and however long they are."""
    problem = Problem("Node node1", "", "\ud800" + "x" * 5000)
    meta = ObjectMeta("n" * 253, uid="u")
    event = event_about(meta, Tiding(Node, "n", "R", problem), "node1", datetime.now(UTC))
    assert len(event["message"]) <= 1024
    assert len(event["metadata"]["name"]) <= 253
