"""Keys, counters and refusals around the state machine; sockets are a fake, time is told."""

import logging
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from kube_router_py.address_pools import Address
from kube_router_py.loadbalancer import liveness
from kube_router_py.loadbalancer.heartbeat import Standing
from kube_router_py.loadbalancer.liveness import Liveness, boot_clock

KEY, OTHER = b"k" * 32, b"x" * 32
HOME = {"a": ip_address("10.0.0.1"), "b": ip_address("10.0.0.2")}


class FakeSockets:
    """A wire for a few nodes; nothing moves but by ``World.run``."""

    def __init__(
        self, world: "World", on_packet: Callable[[bytes], None], on_tick: Callable[[], float]
    ) -> None:
        self.world, self.on_packet, self.on_tick = world, on_packet, on_tick
        self.failures = 0
        self.problem = ""
        self.is_open = True
        self.own: tuple[Address, ...] = ()
        world.all.append(self)

    def listen(self, addresses: tuple[Address, ...]) -> None:
        self.own = addresses

    def send(self, address: Address, packet: bytes) -> bool:
        self.world.queue.append((address, packet))
        return True

    def wake(self) -> None: ...
    def start(self) -> None: ...
    def stop(self, timeout_s: float) -> None: ...


class World:
    def __init__(self, *keys: bytes | None) -> None:
        self.now = 50.0
        self.all: list[FakeSockets] = []
        self.queue: list[tuple[Address, bytes]] = []
        self.changes: list[str] = []
        self.nodes: dict[str, Liveness] = {}
        for name, key in zip("ab", keys, strict=True):
            node = Liveness(name, 1, 30.0, self._open, lambda: self.now)
            node.on_change = lambda name=name: self.changes.append(name)  # type: ignore[misc]
            node.put_key(key)
            node.follow_members(
                {other: HOME[other] for other in HOME if other != name}, (HOME[name],)
            )
            node.follow_ready(is_ready=True)
            self.nodes[name] = node

    def _open(
        self, port: int, on_packet: Callable[[bytes], None], on_tick: Callable[[], float]
    ) -> FakeSockets:
        return FakeSockets(self, on_packet, on_tick)

    def run(self, duration_s: float) -> None:
        end = self.now + duration_s
        while self.now < end:
            self.now += 0.1
            for each in self.all:
                each.on_tick()
            queue, self.queue = self.queue, []
            for address, packet in queue:
                for each in self.all:
                    if address in each.own:
                        each.on_packet(packet)


def test_nodes_with_the_same_key_hear_each_other() -> None:
    world = World(KEY, KEY)
    world.run(5.0)
    for node in world.nodes.values():
        assert node.view.candidates == {"a", "b"}
        numbers = node.numbers()
        assert numbers["heartbeats_sent_total"] >= 8
        assert numbers["heartbeats_received_total"] >= 8
        assert numbers["heartbeats_refused_total"] == 0
    assert {*world.changes} == {"a", "b"}
    world.changes.clear()
    world.run(5.0)
    assert world.changes == []


def test_others_are_refused_and_that_is_told_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    world = World(KEY, OTHER)
    world.run(30.0)
    assert world.nodes["a"].view.alive == frozenset()
    assert world.nodes["a"].numbers()["heartbeats_refused_total"] >= 50
    told = [each for each in caplog.records if "refused" in each.getMessage()]
    assert len(told) == 2  # one by each node
    world.run(40.0)
    told = [each for each in caplog.records if "refused" in each.getMessage()]
    assert len(told) == 4


def test_a_restart_is_known_before_the_heartbeats_have_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "_WORDS_S", 0.0)
    world = World(None, None)
    world.run(20.0)
    node = world.nodes["a"]
    said: list[Standing] = []
    node.on_change = lambda: said.append(node.view.standing)
    assert node.view.standing is Standing.RUNNING
    node.say_restart()
    assert said == [Standing.RESTARTING]
    # What the sockets' thread finds afterwards is no other news.
    world.run(5.0)
    assert said == [Standing.RESTARTING]


def test_what_is_no_packet_of_ours_is_counted_only() -> None:
    world = World(KEY, KEY)
    for packet in (b"", b"x" * 50, b"KRH\x01" + bytes(200), bytes(512)):
        world.all[0].on_packet(packet)
    assert world.nodes["a"].numbers()["heartbeats_refused_total"] == 4


def test_without_a_key_nothing_is_sent_and_leases_count() -> None:
    world = World(None, None)
    world.run(2.0)
    assert world.nodes["a"].numbers()["heartbeats_sent_total"] == 0
    world.nodes["a"].hear_lease("b", Standing.RUNNING, 30.0)
    world.run(2.0)
    assert world.nodes["a"].view.candidates == {"a", "b"}
    # The API server is away: nobody dies of that.
    world.nodes["a"].is_in_contact = lambda: False
    world.run(100.0)
    assert world.nodes["a"].view.candidates == {"a", "b"}
    world.nodes["a"].is_in_contact = lambda: True
    world.run(33.0)
    assert world.nodes["a"].view.candidates == {"a"}


def test_before_it_is_known_how_to_hear_of_others_a_node_does_not_begin() -> None:
    world = World(KEY, KEY)
    lonely = Liveness("c", 1, 30.0, world._open, lambda: world.now)
    lonely.follow_ready(is_ready=True)
    world.run(10.0)
    assert lonely.view.standing is Standing.JOINING
    lonely.put_key(KEY)
    lonely.follow_ready(is_ready=True)
    world.run(2.0)
    assert lonely.view.may_answer


@pytest.mark.parametrize("lag_s", [0.0, 30.0, 60.0])
def test_a_key_that_comes_or_goes_while_the_agents_run_is_no_death(lag_s: float) -> None:
    """Nodes read the Secret at different moments; Leases are renewed by those that began to."""
    world = World(None, None)
    renewing = {"a", "b"}
    heard: set[frozenset[str]] = set()

    def run(duration_s: float) -> None:
        end = world.now + duration_s
        while world.now < end:
            for name in renewing:
                for other in HOME.keys() - {name}:
                    world.nodes[other].hear_lease(name, world.nodes[name].view.standing, 30.0)
            for _ in range(10):
                world.run(1.0)
                heard.update(node.view.candidates for node in world.nodes.values())

    run(20.0)
    heard.clear()
    world.nodes["a"].put_key(KEY)
    run(lag_s)
    world.nodes["b"].put_key(KEY)
    run(100.0)
    assert {node.is_by_lease for node in world.nodes.values()} == {False}
    renewing.clear()  # as if they had started with the key
    run(40.0)
    for name in "ab":
        world.nodes[name].put_key(None)
        renewing.add(name)
        run(lag_s)
    sent = world.nodes["a"].numbers()["heartbeats_sent_total"]
    run(200.0)
    assert world.nodes["a"].numbers()["heartbeats_sent_total"] < sent + 200
    assert heard == {frozenset("ab")}


def test_a_node_that_cannot_hear_does_not_believe_that_nobody_is_there() -> None:
    """Its port is another program's, perhaps that of the process before."""
    world = World(KEY, KEY)
    world.run(5.0)
    world.nodes["b"] = late = Liveness("b", 1, 30.0, world._open, lambda: world.now)
    world.all[1].own = ()
    world.all[2].is_open = False
    late.put_key(KEY)
    late.follow_members({"a": HOME["a"]}, ())
    late.follow_ready(is_ready=True)
    world.run(20.0)
    assert late.view.standing is Standing.JOINING
    assert world.nodes["a"].view.candidates == {"a"}
    world.all[2].is_open = True
    late.follow_members({"a": HOME["a"]}, (HOME["b"],))
    for _ in range(80):
        world.run(0.1)
        assert late.view.candidates != {"b"}
    assert late.view.candidates == world.nodes["a"].view.candidates == {"a", "b"}


def test_of_two_that_cannot_hear_by_heartbeats_leases_tell() -> None:
    world = World(None, None)
    for each in world.all:
        each.is_open = False
    world.run(20.0)
    assert world.nodes["a"].view.may_answer


def test_the_clock_does_not_go_back() -> None:
    times = [boot_clock() for _ in range(100)]
    assert times == sorted(times)
