"""The announcer on a fake segment: from Services, Nodes and living peers to who answers."""

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.address_pools import Address, AddressPools, AddressRange, Announcing, Pool
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_neighbors import FakeResponder, FakeSegment
from kube_router_py.kernel.neighbor_ports import OnClaim
from kube_router_py.loadbalancer.announcer import (
    CLAIMS,
    KINDS,
    PEERS,
    POOLS,
    RESPONDER,
    Announcer,
)
from kube_router_py.loadbalancer.heartbeat import Standing
from kube_router_py.loadbalancer.layer2_ports import Layer2Settings
from kube_router_py.loadbalancer.peer_values import View
from kube_router_py.loop import Outcome
from kube_router_py.served import Served

NODES = ("a", "b", "c")
ADDRESSES = [f"192.0.2.{number}" for number in range(1, 31)]
STRANGER = "02:00:00:00:00:99"


def pool(name: str, cidr: str, **announcing: Any) -> Pool:
    network = ip_network(cidr)
    return Pool(
        name,
        (AddressRange(network[0], network[-1]),),
        announcing=Announcing(**{"layer2": True, **announcing}),
    )


def node(name: str, *, annotations: dict[str, str] | None = None, **labels: str) -> Node:
    number = NODES.index(name) + 1
    return Node(
        metadata=ObjectMeta(name=name, annotations=annotations, labels=labels),
        status=NodeStatus((NodeAddress("InternalIP", f"10.0.0.{number}"),)),
    )


def service(name: str, *addresses: str, **spec: Any) -> Service:
    ingress = tuple(LoadBalancerIngress(ip=each) for each in addresses)
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(
            **{
                "type": "LoadBalancer",
                "cluster_ip": "10.96.0.1",
                "ports": (ServicePort(port=80),),
                **spec,
            }
        ),
        status=ServiceStatus(LoadBalancerStatus(ingress)),
    )


def endpoints(name: str, *nodes: str) -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"{name}-1", namespace="default", labels={"kubernetes.io/service-name": name}
        ),
        address_type="IPv4",
        endpoints=tuple(
            Endpoint((f"10.1.0.{index}",), EndpointConditions(ready=True), where)
            for index, where in enumerate(nodes, 1)
        ),
        ports=(EndpointPort(port=8080),),
    )


class FakeLiving:
    def __init__(self) -> None:
        self.view = View(frozenset(NODES), may_answer=True, standing=Standing.RUNNING)
        self.problem = ""
        self.members: dict[str, Address] = {}
        self.own: tuple[Address, ...] = ()
        self.is_draining = self.is_ready = False

    def follow_members(self, others: dict[str, Address], own: tuple[Address, ...]) -> None:
        self.members, self.own = others, own

    def follow_ready(self, *, is_ready: bool) -> None:
        self.is_ready = is_ready

    def follow_drain(self, *, is_draining: bool) -> None:
        self.is_draining = is_draining

    def change(self, **view: Any) -> None:
        self.view = structs.replace(self.view, **view)


class Agent:
    """One node's announcer; turns when it is told to."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.living = FakeLiving()
        self.served = Served(withdrawal_s=600.0)
        self.assigned: list[tuple[str, str, tuple[str, ...]]] = []
        self.marked: set[Hashable] = set()
        self.responder: FakeResponder | None = None
        self.error: KernelError | None = None
        self.controller = Announcer(
            world.cache,
            Layer2Settings(name, 20246, **world.flags),
            lambda: world.pools,
            self.living,
            self.served,
            lambda on_claim: self._open(name, on_claim),
            lambda key, address, links: self.assigned.append((key, str(address), links)),
            clock=lambda: world.now,
        )
        self.controller.subscribe(world.cache, self)  # type: ignore[arg-type]
        self.served.on_change = lambda: self.mark(("served",))
        self.controller.open()
        self.outcome = Outcome()

    def _open(self, name: str, on_claim: OnClaim) -> FakeResponder:
        self.responder = FakeResponder(name, on_claim, self.world.segments)
        return self.responder

    def mark(self, keys: Iterable[Hashable]) -> None:
        self.marked.update(keys)

    def serve(self, *addresses: str, gone: Iterable[str] = ()) -> None:
        self.served.change(
            [ip_address(each).packed for each in addresses],
            [ip_address(each).packed for each in gone],
        )

    def turn(self, *, full: bool = False) -> Outcome:
        dirty, self.marked = frozenset(self.marked), set()
        assert self.responder is not None
        self.responder.error = self.error
        self.outcome = self.controller.reconcile(dirty, full)
        return self.outcome

    @property
    def announced(self) -> set[str]:
        assert self.responder is not None
        return {str(each) for each in self.responder.links()}


class World:
    def __init__(self, *, pools: tuple[Pool, ...] = (), **flags: Any) -> None:
        self.now = 100.0
        self.flags = flags
        self.cache = Cache(KINDS)
        self.pools = AddressPools(pools or (pool("web", "192.0.2.0/24"),))
        self.segments = {"eth0": FakeSegment(), "eth1": FakeSegment()}
        for name in NODES:
            self.cache.put(Node, node(name))
        self.agents = {name: Agent(self, name) for name in NODES}

    def put(self, thing: Any) -> None:
        self.cache.put(type(thing), thing)

    def serve(self, *addresses: str) -> None:
        for agent in self.agents.values():
            agent.serve(*addresses)

    def turn(self, *, full: bool = False) -> None:
        for agent in self.agents.values():
            while True:
                agent.turn(full=full)
                if not agent.marked - {CLAIMS}:
                    break

    def candidates(self, *names: str) -> None:
        for agent in self.agents.values():
            agent.living.change(candidates=frozenset(names))
            agent.mark((PEERS,))

    def answers(self, address: str, link: str = "eth0") -> tuple[str, ...]:
        macs = self.segments[link].who_has(ip_address(address))
        return tuple(mac.partition("/")[0] for mac in macs)


@pytest.fixture
def world() -> World:
    """30 Services with an address each, served by all three nodes."""
    found = World()
    for number, address in enumerate(ADDRESSES):
        found.put(service(f"s{number}", address))
    found.serve(*ADDRESSES)
    found.turn(full=True)
    return found


def owners(world: World) -> dict[str, str]:
    found = {address: world.answers(address) for address in ADDRESSES}
    assert all(len(each) == 1 for each in found.values()), found
    return {address: each[0] for address, each in found.items()}


def test_each_address_is_one_nodes_and_all_have_some(world: World) -> None:
    assert set(owners(world).values()) == set(NODES)
    assert all(agent.outcome.problems == () for agent in world.agents.values())
    told = {each for agent in world.agents.values() for each in agent.assigned}
    assert told == {(f"default/s{n}", each, ("eth0",)) for n, each in enumerate(ADDRESSES)}


def test_whom_to_talk_to(world: World) -> None:
    living = world.agents["a"].living
    assert living.members == {"b": ip_address("10.0.0.2"), "c": ip_address("10.0.0.3")}
    assert living.own == (ip_address("10.0.0.1"),)
    assert living.is_ready
    world.pools = AddressPools((pool("web", "192.0.2.0/24", layer2=False),))
    world.agents["a"].mark((POOLS,))
    world.agents["a"].turn()
    assert living.members == {}
    assert not living.own
    assert not world.agents["a"].controller.is_taking_part
    assert world.agents["a"].announced == set()


def test_an_address_is_announced_when_it_is_served_only(world: World) -> None:
    world.put(service("new", "192.0.2.100"))
    world.turn()
    assert world.answers("192.0.2.100") == ()
    world.serve("192.0.2.100")
    world.turn()
    (owner,) = world.answers("192.0.2.100")
    agent = world.agents[owner]
    # Silent before the proxy removes it; nobody else takes it meanwhile.
    agent.serve(gone=["192.0.2.100"])
    agent.turn()
    assert world.answers("192.0.2.100") == ()


def test_before_the_proxy_knows_what_it_serves_the_node_is_not_ready() -> None:
    world = World()
    agent = world.agents["a"]
    agent.turn(full=True)
    assert not agent.living.is_ready
    agent.serve()
    agent.turn()
    assert agent.living.is_ready


def test_what_an_edit_takes_out_of_the_pools_goes_on_as_before(world: World) -> None:
    before = owners(world)
    world.pools = AddressPools((), retired=world.pools.pools)
    for agent in world.agents.values():
        agent.mark((POOLS,))
    world.turn()
    assert owners(world) == before
    assert all(len(agent.living.members) == 2 for agent in world.agents.values())
    world.pools = AddressPools()
    for agent in world.agents.values():
        agent.mark((POOLS,))
    world.turn()
    assert not any(world.answers(each) for each in ADDRESSES)


@pytest.mark.parametrize(
    "found",
    [
        service("other", "198.51.100.1"),  # in no pool
        service("proxied", "192.0.2.200", type="ClusterIP"),
        structs.replace(
            service("by-others", "192.0.2.200"),
            metadata=ObjectMeta(
                name="by-others",
                namespace="default",
                labels={"service.kubernetes.io/service-proxy-name": "cilium"},
            ),
        ),
    ],
)
def test_what_is_not_announced(found: Service) -> None:
    world = World()
    world.put(found)
    world.serve("198.51.100.1", "192.0.2.200")
    world.turn(full=True)
    assert world.answers("198.51.100.1") == world.answers("192.0.2.200") == ()


def test_nobody_answers_for_the_address_of_a_node() -> None:
    """The node would be cut off."""
    world = World(pools=(pool("web", "10.0.0.0/24"),))
    for number, address in enumerate(("10.0.0.1", "10.0.0.2", "10.0.0.9")):
        world.put(service(f"s{number}", address))
    world.serve("10.0.0.1", "10.0.0.2", "10.0.0.9")
    world.turn(full=True)
    assert len(world.answers("10.0.0.9")) == 1
    assert world.answers("10.0.0.1") == world.answers("10.0.0.2") == ()
    first, _, _ = world.agents["c"].controller.status()["addresses"]
    assert (first["owner"], first["why_nobody"]) == (None, "it is an address of node a")
    (problem,) = world.agents["a"].outcome.problems
    assert problem.object == "Service default/s0"
    assert "node a" in problem.reason
    world.put(
        structs.replace(node("b"), status=NodeStatus((NodeAddress("InternalIP", "10.0.0.9"),)))
    )
    world.turn()
    assert world.answers("10.0.0.9") == ()
    assert len(world.answers("10.0.0.2")) == 1


def test_a_service_that_goes_is_silent(world: World) -> None:
    world.cache.delete(Service, "default/s0")
    world.turn()
    assert world.answers(ADDRESSES[0]) == ()


def test_a_dead_nodes_addresses_move_and_no_others(world: World) -> None:
    before = owners(world)
    dead = world.agents.pop("b")
    dead.controller.close()
    world.candidates("a", "c")
    world.turn()
    after = owners(world)
    assert {each for each in ADDRESSES if before[each] != after[each]} == {
        each for each in ADDRESSES if before[each] == "b"
    }
    # A client that never asks again has heard it.
    cache = world.segments["eth0"].cache
    assert all(cache[ip_address(each)] == f"{after[each]}/eth0" for each in ADDRESSES)


def test_a_drain_is_handed_over_without_a_gap(world: World) -> None:
    before = owners(world)
    world.put(node("b", annotations={"kube-router.io/drain": "true"}))
    drained = world.agents["b"]
    drained.turn()
    drained.turn()
    assert drained.living.is_draining
    assert {each for each in ADDRESSES if before[each] == "b"} == drained.announced
    assert drained.outcome.wake_after_s == pytest.approx(2.0)
    world.now += 0.5
    world.turn()  # the others learn of it later, and claim
    drained.turn()
    assert drained.announced == set()
    assert "b" not in owners(world).values()


def test_whoever_hears_no_claim_stops_in_the_end(world: World) -> None:
    world.put(node("b", annotations={"kube-router.io/drain": "true"}))
    drained = world.agents["b"]
    drained.turn()
    world.now += 1.9
    drained.turn()
    assert drained.announced
    world.now += 0.2
    drained.turn()
    assert not drained.announced


@pytest.mark.parametrize(
    "change", [{"may_answer": False, "is_fenced": True}, {"may_answer": False}]
)
def test_a_node_that_may_not_answer_stops_at_once(world: World, change: dict[str, Any]) -> None:
    agent = world.agents["a"]
    agent.living.change(**change)
    outcome = agent.turn()
    assert agent.announced == set()
    assert agent.controller.is_silent
    assert any("fewer than half" in each.reason for each in outcome.problems) == (
        "is_fenced" in change
    )


def test_only_nodes_with_endpoints_for_policy_local() -> None:
    world = World()
    world.put(service("local", "192.0.2.1", external_traffic_policy="Local"))
    world.serve("192.0.2.1")
    world.turn(full=True)
    assert world.answers("192.0.2.1") == ()
    status = world.agents["a"].controller.status()["addresses"][0]
    assert "endpoint" in status["why_nobody"]
    for where in ("a", "b", "c"):
        world.put(endpoints("local", where))
        world.turn()
        world.turn()
        assert world.answers("192.0.2.1") == (where,)


def test_pools_choose_nodes_and_links() -> None:
    rack = Selector((Requirement("rack", "In", ("2",)),))
    world = World(pools=(pool("web", "192.0.2.0/24", nodes=rack, interfaces=("eth1",)),))
    world.put(node("c", rack="2"))
    world.put(service("web", "192.0.2.1"))
    world.serve("192.0.2.1")
    world.turn(full=True)
    assert world.answers("192.0.2.1", "eth1") == ("c",)
    assert world.answers("192.0.2.1", "eth0") == ()
    assert world.agents["a"].living.members == {}
    world.put(node("c", rack="3"))
    world.turn()
    assert world.answers("192.0.2.1", "eth1") == ()
    status = world.agents["a"].controller.status()["addresses"][0]
    assert (status["owner"], "labels" in status["why_nobody"]) == (None, True)


def test_no_link_is_told() -> None:
    world = World(pools=(pool("web", "192.0.2.0/24", interfaces=("bond*",)),))
    world.put(service("web", "192.0.2.1"))
    world.serve("192.0.2.1")
    world.turn(full=True)
    problems = [each for agent in world.agents.values() for each in agent.outcome.problems]
    assert [(each.object, "bond*" in each.reason) for each in problems] == [
        ("Service default/web", True)
    ]


def test_a_late_answer_of_another_is_corrected_once_per_second(world: World) -> None:
    before = owners(world)
    address = next(each for each in ADDRESSES if before[each] == "a")
    agent, segment = world.agents["a"], world.segments["eth0"]
    segment.claim(ip_address(address), STRANGER)
    agent.turn()
    assert segment.cache[ip_address(address)] == "a/eth0"
    segment.claim(ip_address(address), STRANGER)
    agent.turn()
    assert segment.cache[ip_address(address)] == STRANGER
    assert agent.outcome.wake_after_s == pytest.approx(1.0)
    world.now += 1.0
    agent.turn()
    assert segment.cache[ip_address(address)] == "a/eth0"
    assert agent.outcome.problems == ()


def test_a_conflict_that_lasts_is_told_with_the_hardware_address(world: World) -> None:
    before = owners(world)
    address = next(each for each in ADDRESSES if before[each] == "a")
    agent = world.agents["a"]
    for _ in range(13):
        world.segments["eth0"].claim(ip_address(address), STRANGER)
        agent.turn()
        world.now += 1.0
    (problem,) = agent.outcome.problems
    assert problem.object == f"Service default/s{ADDRESSES.index(address)}"
    assert all(word in problem.reason for word in (STRANGER, "eth0", address, "20246"))
    world.now += 61.0
    assert agent.turn().problems == ()


def test_what_the_responder_refuses_is_tried_again(world: World) -> None:
    agent = world.agents["a"]
    before = agent.announced
    agent.error = KernelError("busy")
    world.cache.delete(Service, "default/s0")
    for each in ADDRESSES[1:]:
        world.cache.delete(Service, f"default/s{ADDRESSES.index(each)}")
    outcome = agent.turn()
    assert RESPONDER in outcome.failed
    assert agent.announced == before
    agent.error = None
    assert agent.turn().failed == frozenset()
    assert agent.announced == set()


def test_a_responder_that_goes_on_refusing_is_replaced_and_this_node_does_not_count(
    world: World,
) -> None:
    agent = world.agents["a"]
    assert agent.living.is_ready
    agent.error = KernelError("the responder has ended")
    world.cache.delete(Service, "default/s0")
    for each in ADDRESSES[1:]:
        world.cache.delete(Service, f"default/s{ADDRESSES.index(each)}")
    agent.turn()
    with pytest.raises(KernelError, match="has ended"):
        agent.turn(full=True)
    agent.controller.close()
    assert not agent.living.is_ready
    agent.controller.open()
    agent.error = None
    agent.turn(full=True)
    assert agent.living.is_ready


def test_one_that_no_pool_selects_is_not_ready() -> None:
    """It hears nobody, and would take all when it is selected."""
    rack = Selector((Requirement("rack", "In", ("2",)),))
    world = World(pools=(pool("web", "192.0.2.0/24", nodes=rack),))
    world.serve()
    world.turn(full=True)
    assert not world.agents["a"].living.is_ready
    world.put(node("a", rack="2"))
    world.turn()
    assert world.agents["a"].living.is_ready


def test_single_claims_now_and_then_are_no_conflict(world: World) -> None:
    address = next(each for each, name in owners(world).items() if name == "a")
    agent = world.agents["a"]
    for _ in range(5):
        world.segments["eth0"].claim(ip_address(address), STRANGER)
        assert agent.turn().problems == ()
        assert world.segments["eth0"].cache[ip_address(address)] == "a/eth0"
        world.now += 11.0


def test_a_conflict_that_lasts_is_not_fought_at_any_price(world: World) -> None:
    address = next(each for each, name in owners(world).items() if name == "a")
    agent, segment = world.agents["a"], world.segments["eth0"]
    for _ in range(12):
        segment.claim(ip_address(address), STRANGER)
        agent.turn()
        world.now += 1.0
    segment.told.clear()
    for _ in range(30):
        segment.claim(ip_address(address), STRANGER)
        agent.turn()
        world.now += 1.0
    told = [each for each in segment.told if each.mac == "a/eth0" and str(each.address) == address]
    assert len(told) == 1


def test_what_is_handed_over_is_silent_when_the_proxy_removes_it(world: World) -> None:
    mine = [each for each, name in owners(world).items() if name == "b"]
    world.put(node("b", annotations={"kube-router.io/drain": "true"}))
    drained = world.agents["b"]
    drained.turn()
    assert drained.announced == {*mine}
    drained.serve(gone=mine[:1])
    drained.turn()
    assert drained.announced == {*mine[1:]}


def test_a_withdrawal_waits_until_nothing_is_answered_any_more(world: World) -> None:
    address = next(each for each, name in owners(world).items() if name == "a")
    agent = world.agents["a"]
    done = threading.Event()

    def withdraw() -> None:
        agent.served.withdraw([ip_address(address).packed])
        done.set()

    agent.marked.clear()
    thread = threading.Thread(target=withdraw)
    thread.start()
    end = time.monotonic() + 60.0
    while not agent.marked and time.monotonic() < end:
        time.sleep(0.01)
    assert not done.is_set()
    agent.turn()
    assert address not in agent.announced
    thread.join(60.0)
    assert done.is_set()


def test_links_of_a_pool_that_change(world: World) -> None:
    before = owners(world)
    world.pools = AddressPools((pool("web", "192.0.2.0/24", interfaces=("eth1",)),))
    for agent in world.agents.values():
        agent.mark((POOLS,))
    world.turn()
    assert all(world.answers(each, "eth0") == () for each in ADDRESSES)
    assert {each: world.answers(each, "eth1")[0] for each in ADDRESSES} == before


def test_all_is_told_again_when_a_node_comes_back(world: World) -> None:
    world.candidates("a", "b")
    world.turn()
    segment = world.segments["eth0"]
    agent = world.agents["a"]
    kept = agent.announced
    agent.living.change(candidates=frozenset(NODES))
    agent.turn()  # what c gets is still answered for, until c claims it
    assert agent.outcome.wake_after_s is not None
    world.now += 2.1
    segment.told.clear()
    agent.turn()
    assert {str(each.address) for each in segment.told} == agent.announced
    assert agent.announced < kept


def test_all_is_told_again_when_a_node_is_heard_again_that_was_away(world: World) -> None:
    agent = world.agents["a"]
    world.candidates("a", "b")
    world.turn()
    agent.living.change(alive=frozenset({"b"}))
    agent.turn()
    told = world.segments["eth0"].told
    told.clear()
    agent.living.change(alive=frozenset({"b", "c"}))
    agent.turn()
    assert {str(each.address) for each in told} == agent.announced
    told.clear()
    agent.turn()
    agent.living.change(alive=frozenset())
    agent.turn()
    agent.living.change(alive=frozenset({"b"}))  # it restarts, and counts all the time
    agent.turn()
    assert told == []


def test_periodic_announcements() -> None:
    world = World(announce_period_s=60.0)
    world.put(service("web", "192.0.2.1"))
    world.serve("192.0.2.1")
    world.turn(full=True)
    (owner,) = world.answers("192.0.2.1")
    agent, segment = world.agents[owner], world.segments["eth0"]
    segment.told.clear()
    agent.turn()
    assert segment.told == []
    assert agent.outcome.wake_after_s == pytest.approx(60.0)
    world.now += 60.0
    agent.turn()
    assert [str(each.address) for each in segment.told] == ["192.0.2.1"]


def test_handing_over_before_the_end(world: World) -> None:
    agent = world.agents["a"]
    agent.controller.is_exiting = True
    agent.turn()
    assert agent.living.is_draining
    assert not agent.controller.is_silent
    world.candidates("b", "c")
    agent.turn()
    assert not agent.controller.is_silent
    world.turn()
    agent.turn()
    assert agent.controller.is_silent
    assert set(owners(world).values()) == {"b", "c"}


def test_a_crash_of_the_loop_begins_anew(world: World) -> None:
    before = owners(world)
    agent = world.agents["a"]
    agent.controller.open()
    agent.turn(full=True)
    assert owners(world) == before


def test_incremental_is_as_from_scratch(world: World) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: world.put(service("s1", "192.0.2.2", "192.0.2.77")),
        lambda: world.put(service("s2", "192.0.2.2")),
        lambda: world.put(service("s3", "192.0.2.4", external_traffic_policy="Local")),
        lambda: world.put(endpoints("s3", "b")),
        lambda: world.candidates("a", "c"),
        lambda: world.put(service("s2", "192.0.2.3", external_traffic_policy="Local")),
        lambda: world.candidates("a", "b", "c"),
        lambda: world.cache.delete(Service, "default/s1"),
        lambda: world.cache.delete(Node, "c"),
        lambda: world.put(node("c")),
        lambda: world.put(node("a", annotations={"kube-router.io/drain": "true"})),
    ]
    world.serve("192.0.2.77")
    for change in changes:
        change()
        world.turn()
        world.now += 3.0
        world.turn()
        fresh = Agent(world, "b")
        fresh.living.view = world.agents["b"].living.view
        fresh.serve(*ADDRESSES, "192.0.2.77")
        fresh.turn(full=True)
        assert fresh.announced == world.agents["b"].announced
        fresh.controller.close()


def test_numbers_and_status(world: World) -> None:
    agent = world.agents["a"]
    numbers = agent.controller.numbers()
    assert numbers["layer2_addresses"] == len(ADDRESSES)
    assert numbers["layer2_announced_addresses"] == len(agent.announced)
    assert numbers["layer2_takeovers_total"] == len(agent.announced)
    assert numbers["layer2_fenced"] == 0
    status = agent.controller.status()
    here = [each for each in status["addresses"] if each["answered_here"]]
    assert {each["address"] for each in here} == agent.announced
    assert all(each["links"] == ["eth0"] and each["owner"] == "a" for each in here)
