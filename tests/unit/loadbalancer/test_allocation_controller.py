"""The allocator's loop against an API server and caches that lag, without threads and clocks."""

import random
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json, structs

from kube_router_py.address_pools import AddressPools, AddressRange, Pool
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import FencedError, RefusedError
from kube_router_py.cluster.objects import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Namespace,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.errors import ApiError
from kube_router_py.loadbalancer.allocate import Allocator
from kube_router_py.loadbalancer.allocation_values import LEADER
from kube_router_py.loadbalancer.controller import KINDS, Allocation
from kube_router_py.loadbalancer.ingress import ingress_without, present_ingress
from kube_router_py.loadbalancer.known_services import KnownServices
from kube_router_py.loadbalancer.requests import Request
from kube_router_py.loadbalancer.status_writer import (
    Done,
    Result,
    StatusWriter,
    Write,
    list_services,
)
from kube_router_py.loop import Outcome
from kube_router_py.object_key import Key
from kube_router_py.options import Options
from kube_router_py.problem import Problem


def pool(first: str, last: str, name: str = "default", **how: Any) -> Pool:
    return Pool(name, (AddressRange(ip_address(first), ip_address(last)),), **how)


class Book:
    def __init__(self, *pools: Pool) -> None:
        self.pools = AddressPools(pools)
        self.problems: tuple[Problem, ...] = ()


class Api:
    """Services as an API server has them: versions, compare-and-swap, a history for caches."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.revision = 100
        self.history: list[tuple[int, str, Service | None]] = []
        self.is_down = False
        self.forgets: frozenset[str] = frozenset()
        self.loses_answer = False
        self.refuses = 0
        self.written: Counter[str] = Counter()

    # --- what users do -------------------------------------------------------------------------

    def create(self, name: str, kind: str = "LoadBalancer", **fields: Any) -> None:
        metadata = ObjectMeta(
            name=name,
            namespace="default",
            uid=f"uid-{self.revision}",
            creation_timestamp=f"2026-01-01T00:00:00Z-{self.revision:06}",
            annotations=fields.pop("annotations", None),
        )
        ports = fields.pop("ports", (ServicePort(port=80, protocol="TCP"),))
        self._store(Service(metadata=metadata, spec=ServiceSpec(type=kind, ports=ports, **fields)))

    def change(self, name: str, annotations: Any = None, **spec: Any) -> None:
        found = self.services[f"default/{name}"]
        new = structs.replace(found, spec=structs.replace(found.spec, **spec))
        if annotations is not None:
            metadata = structs.replace(found.metadata, annotations=annotations)
            new = structs.replace(new, metadata=metadata)
        if new.spec.type != "LoadBalancer" and found.spec.type == "LoadBalancer":
            new = structs.replace(new, status=None)
        self._store(new)

    def set_status(self, name: str, *ips: str) -> None:
        ingress = tuple(LoadBalancerIngress(ip=each) for each in ips)
        status = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress or None))
        self._store(structs.replace(self.services[f"default/{name}"], status=status))

    def mark_deleted(self, name: str) -> None:
        found = self.services[f"default/{name}"]
        metadata = structs.replace(found.metadata, deletion_timestamp="2026-01-01T00:00:00Z")
        self._store(structs.replace(found, metadata=metadata))

    def delete(self, name: str) -> None:
        self.revision += 1
        del self.services[f"default/{name}"]
        self.history.append((self.revision, f"default/{name}", None))

    def touch(self, name: str) -> None:
        """A change that no decoder of ours sees."""
        self._store(self.services[f"default/{name}"])

    def _store(self, service: Service) -> Service:
        self.revision += 1
        metadata = structs.replace(service.metadata, resource_version=str(self.revision))
        service = structs.replace(service, metadata=metadata)
        self.services[service.metadata.key] = service
        self.history.append((self.revision, service.metadata.key, service))
        return service

    def ips(self, name: str) -> list[str]:
        return [each.ip or "" for each in present_ingress(self.services[f"default/{name}"])]

    # --- what the client sees ------------------------------------------------------------------

    def list(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        if self.is_down:
            raise ApiError("no API server answers")
        name = (query or {}).get("fieldSelector", "").removeprefix("metadata.name=")
        items = [each for each in self.services.values() if name in ("", each.metadata.name)]
        metadata = {"resourceVersion": str(self.revision)}
        return json.encode({"kind": "ServiceList", "metadata": metadata, "items": items})

    def patch(
        self,
        path: str,
        body: Any,
        *,
        timeout_s: float | None = None,
        fence: Callable[[], bool] | None = None,
    ) -> bytes:
        if self.is_down:
            raise ApiError("no API server answers")
        if self.refuses:
            raise RefusedError("not so", self.refuses, "", 0)
        if fence is not None and not fence():
            raise FencedError("too late")
        key = "/".join(path.removesuffix("/status").split("/")[4::2])
        found = self.services.get(key)
        if found is None:
            raise RefusedError("there is none", 404, "NotFound", 0)
        if body["metadata"] != {
            "uid": found.metadata.uid,
            "resourceVersion": found.metadata.resource_version,
        }:
            raise RefusedError("it has changed", 409, "Conflict", 0)
        ingress = body["status"]["loadBalancer"]["ingress"]
        if ingress and self.forgets:
            ingress = tuple(
                structs.replace(each, **dict.fromkeys(self.forgets)) for each in ingress
            )
        status = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress))
        self.written[key] += 1
        stored = self._store(structs.replace(found, status=status))
        if self.loses_answer:
            raise ApiError("the connection broke")
        return json.encode(stored)


class SteppedWriter(StatusWriter):
    """Writes when it is told to."""

    def __init__(self, api: Api, may_write: Callable[[int], bool]) -> None:
        super().__init__(api, may_write, 4.0, lambda: None, threads=0)
        self.queue: deque[Write] = deque()
        self.ended: list[Done] = []

    @property
    def is_idle(self) -> bool:
        return not self.queue

    def put(self, write: Write) -> None:
        self.queue.append(write)

    def clear(self) -> None:
        self.queue.clear()
        self.ended.clear()

    def take(self) -> list[Done]:
        done, self.ended = self.ended, []
        return done

    def step(self) -> None:
        self.ended.append(self._write(self.queue.popleft()))


class Agent:
    """One agent: its cache, which is as old as the test wants it to be, and its controller."""

    def __init__(self, api: Api, book: Book, **options: Any) -> None:
        self.api, self.term = api, 0
        self.cache = Cache(KINDS)
        self.cache.replace(Namespace, (Namespace(metadata=ObjectMeta(name="default")),), "1")
        self.cursor = len(api.history)
        self.cache.replace(Service, api.services.values(), str(api.revision))
        self.dirty: set[Hashable] = set()
        self.cache.subscribe(
            KINDS, lambda event: self.dirty.add(Key(event.kind.__name__, event.key))
        )
        self.writer = SteppedWriter(api, lambda term: term == self.term)
        self.told: list[tuple[str, str, str]] = []
        self.controller = Allocation(
            self.cache,
            Options(**options),
            book,
            lambda: self.term,
            self.writer,
            lambda: list_services(api),
            self._tell,
        )
        self.controller.open()

    def _tell(self, key: str, reason: str, problem: Problem, *, is_good: bool = False) -> None:
        self.told.append(("Normal" if is_good else "Warning", reason, key))

    def lead(self, term: int = 1) -> None:
        self.term = term
        self.dirty.add(LEADER)

    def see(self, count: int = 10**6) -> None:
        """So many events reach the cache."""
        for revision, key, service in self.api.history[self.cursor : self.cursor + count]:
            self.cursor += 1
            if service is None:
                self.cache.delete(Service, key, str(revision))
            else:
                self.cache.put(Service, service)

    def turn(self, full: bool = False) -> Outcome:
        dirty, self.dirty = frozenset(self.dirty), set()
        return self.controller.reconcile(dirty, full)

    def settle(self) -> Outcome:
        """Until nothing happens any more."""
        for _ in range(50):
            self.see()
            outcome = self.turn()
            if not self.writer.queue and not self.dirty and outcome.wake_after_s is None:
                return outcome
            while self.writer.queue:
                self.writer.step()
        raise AssertionError("it does not settle")


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def agent(api: Api) -> Agent:
    made = Agent(api, Book(pool("192.0.2.0", "192.0.2.9")))
    made.lead()
    return made


# --- what a Service gets --------------------------------------------------------------------------


def test_who_does_not_lead_writes_nothing_and_is_content(api: Api) -> None:
    agent = Agent(api, Book(pool("192.0.2.0", "192.0.2.9")))
    api.create("web")
    agent.see()
    outcome = agent.turn(full=True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert agent.writer.queue == deque()
    assert agent.controller.report.term == 0


def test_addresses_are_written_with_mode_and_ports_and_told(api: Api, agent: Agent) -> None:
    api.create("web", ports=(ServicePort(port=80), ServicePort(port=53, protocol="UDP")))
    agent.settle()
    assert json.decode(json.encode(present_ingress(api.services["default/web"]))) == [
        {
            "ip": "192.0.2.0",
            "ipMode": "VIP",
            "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        }
    ]
    assert agent.told == [("Normal", "IPAllocated", "default/web")]
    report = agent.controller.report
    assert (report.term, report.allocated, report.waiting, report.writing) == (1, 1, 0, 0)
    assert [(each.pool, each.size, each.used) for each in report.occupancy] == [("default", 10, 1)]
    # Nothing more to be done, by a full turn neither.
    agent.turn(full=True)
    assert not agent.writer.queue


def test_no_service_gets_the_address_of_a_node(api: Api) -> None:
    agent = Agent(api, Book(pool("192.0.2.0", "192.0.2.9")))
    agent.cache.put(Node, _node("one", "192.0.2.0"))
    agent.lead()
    api.create("web")
    agent.settle()
    assert api.ips("web") == ["192.0.2.1"]
    api.create("asks", load_balancer_ip="192.0.2.0")
    (problem,) = agent.settle().problems
    assert "192.0.2.0 is in use by Node one; ask for another one, or take it" in problem.reason
    # Nodes that come later: who has the address of one is told, and new Services do without.
    api.delete("asks")
    agent.cache.put(Node, _node("two", "192.0.2.1"))
    agent.cache.put(Node, _node("three", "192.0.2.2"))
    agent.settle()
    api.create("next")
    agent.settle()
    (problem,) = agent.turn(full=True).problems
    assert "192.0.2.1 is an address of Node two, too; traffic" in problem.reason
    assert (api.ips("web"), api.ips("next")) == (["192.0.2.1"], ["192.0.2.3"])
    # It is somebody's again when its Node has gone.
    agent.cache.delete(Node, "one", "99")
    api.create("last")
    agent.settle()
    assert api.ips("last") == ["192.0.2.0"]


def _node(name: str, address: str) -> Node:
    status = NodeStatus(addresses=(NodeAddress(type="InternalIP", address=address),))
    return Node(metadata=ObjectMeta(name=name), status=status)


def test_one_event_costs_one_service(api: Api, agent: Agent, monkeypatch: Any) -> None:
    for number in range(5):
        api.create(f"web-{number}")
    agent.settle()
    looked_at: list[str] = []
    follow = Allocation._follow
    monkeypatch.setattr(
        Allocation, "_follow", lambda self, key: (looked_at.append(key), follow(self, key))
    )
    api.change("web-3", session_affinity="ClientIP")
    agent.see()
    agent.turn()
    assert looked_at == ["default/web-3"]


def test_changed_ports_change_the_status_and_not_the_address(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.settle()
    api.change("web", ports=(ServicePort(port=443, protocol="TCP"),))
    agent.settle()
    (entry,) = present_ingress(api.services["default/web"])
    assert entry.ip == "192.0.2.0"
    assert entry.ports is not None
    assert [each.port for each in entry.ports] == [443]
    assert len(agent.told) == 1


def test_an_api_server_that_forgets_the_mode_is_written_to_once(api: Api, agent: Agent) -> None:
    api.forgets = frozenset(("ip_mode", "ports"))
    api.create("web")
    agent.settle()
    for _ in range(3):
        agent.turn(full=True)
        agent.settle()
    assert api.written == {"default/web": 1}


def test_the_whole_list_of_a_service_that_is_ours_is_ours(api: Api, agent: Agent) -> None:
    api.create("web")
    api.set_status("web", "203.0.113.9")
    agent.settle()
    # What it has it keeps, of whatever pool; that this is none of ours is told.
    assert api.ips("web") == ["203.0.113.9"]
    assert agent.told[0][:2] == ("Warning", "AddressOutsidePools")
    api.create("next")
    agent.settle()
    api.set_status("next", "192.0.2.0", "198.51.100.1", "192.0.2.7")
    agent.settle()
    assert api.ips("next") == ["192.0.2.0"]


@pytest.mark.parametrize("is_strict", [True, False])
def test_who_may_create_a_service_cannot_use_up_a_pool_by_external_ips(
    api: Api, is_strict: bool
) -> None:
    book = Book(pool("192.0.2.0", "192.0.2.9"))
    agent = Agent(api, book, strict_external_ip_validation=is_strict)
    agent.lead()
    api.create("greedy", kind="ClusterIP", external_ips=[f"192.0.2.{host}" for host in range(10)])
    api.create("web")
    agent.settle()
    assert api.ips("web") == (["192.0.2.0"] if is_strict else [])


def test_another_allocator_is_not_fought_as_fast_as_can_be(api: Api, agent: Agent) -> None:
    api.create("web")
    api.create("other")
    for _ in range(200):
        agent.settle()
        if api.ips("web") == ["192.0.2.0"]:
            api.set_status("web", "198.51.100.1")
            agent.see()
    assert api.written["default/web"] <= 6
    (problem,) = agent.turn().problems
    assert problem.object == "Service default/web"
    assert "lists 198.51.100.1 instead of 192.0.2.0" in problem.reason
    assert ("Warning", "AddressOverwritten", "default/web") in agent.told
    assert api.ips("other") == ["192.0.2.1"]
    # As soon as the other one is gone, the next full turn ends it.
    agent.turn(full=True)
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]
    assert not agent.turn(full=True).problems


def test_services_of_other_classes_are_left_alone(api: Api, agent: Agent) -> None:
    api.create("other", load_balancer_class="example.com/lb")
    api.set_status("other", "192.0.2.0")
    api.create("named", load_balancer_class="kube-router")
    agent.settle()
    assert api.ips("other") == ["192.0.2.0"]
    assert api.ips("named") == ["192.0.2.1"], "what another load balancer gave is in use"
    assert api.written == {"default/named": 1}


# --- what it loses --------------------------------------------------------------------------------


def test_deleted_and_retyped_services_make_room_for_those_who_wait(api: Api) -> None:
    agent = Agent(api, Book(pool("192.0.2.0", "192.0.2.1")))
    agent.lead()
    for name in "abcd":
        api.create(name)
    outcome = agent.settle()
    assert [api.ips(name) for name in "abcd"] == [["192.0.2.0"], ["192.0.2.1"], [], []]
    assert not outcome.failed, "a Service without an address is no failure"
    assert [each.object for each in outcome.problems] == ["Service default/c", "Service default/d"]
    report = agent.controller.report
    assert (report.allocated, report.waiting) == (2, 2)
    warned = [each for each in agent.told if each[0] == "Warning"]
    assert warned == [
        ("Warning", "AddressPoolExhausted", "default/c"),
        ("Warning", "AddressPoolExhausted", "default/d"),
    ]
    api.delete("a")
    agent.settle()
    assert api.ips("c") == ["192.0.2.0"], "the one that has waited longest"
    api.change("b", type="ClusterIP")
    outcome = agent.settle()
    assert api.ips("d") == ["192.0.2.1"]
    assert outcome.problems == ()
    assert len([each for each in agent.told if each[0] == "Warning"]) == 2, "each is told once"


def test_a_service_on_its_way_out_keeps_its_address_to_the_end(api: Api) -> None:
    agent = Agent(api, Book(pool("192.0.2.0", "192.0.2.0")))
    agent.lead()
    api.create("a")
    agent.settle()
    api.mark_deleted("a")
    api.create("b")
    agent.settle()
    assert (api.ips("a"), api.ips("b")) == (["192.0.2.0"], [])
    api.delete("a")
    agent.settle()
    assert api.ips("b") == ["192.0.2.0"]


def test_what_an_old_api_server_leaves_in_a_status_goes_and_what_is_anothers_stays(
    api: Api, agent: Agent
) -> None:
    api.create("web", kind="NodePort")
    api.set_status("web", "192.0.2.3", "203.0.113.1")
    agent.settle()
    assert api.ips("web") == ["203.0.113.1"]


def test_a_service_that_another_takes_over_loses_what_we_gave_and_nothing_else(
    api: Api, agent: Agent
) -> None:
    api.create("web")
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]
    # Made anew in one step as far as the cache can tell, with a class of somebody else's.
    api.change("web", load_balancer_class="example.com/lb")
    api.set_status("web", "192.0.2.0", "203.0.113.1")
    agent.settle()
    assert api.ips("web") == ["203.0.113.1"]
    assert agent.controller.report.allocated == 0


def test_what_is_left_of_a_status() -> None:
    ingress = (
        LoadBalancerIngress(ip="192.0.2.1"),
        LoadBalancerIngress(hostname="lb.example"),
        LoadBalancerIngress(ip="nonsense"),
        LoadBalancerIngress(ip="192.0.2.9"),
    )
    status = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress))
    left = ingress_without(Service(status=status), lambda each: str(each) == "192.0.2.1")
    assert left == ingress[1:]


# --- pools ----------------------------------------------------------------------------------------


def test_other_pools_are_used_at_once_and_problems_of_the_book_are_shown(api: Api) -> None:
    book = Book()
    agent = Agent(api, book)
    book.problems = (Problem("ConfigMap kube-system/pools", "", "is nonsense"),)
    assert agent.turn().problems == book.problems
    agent.lead()
    api.create("web")
    outcome = agent.settle()
    assert len(outcome.problems) == 2
    book.problems = ()
    book.pools = AddressPools((pool("198.51.100.4", "198.51.100.4"),))
    assert agent.settle().problems == ()
    assert api.ips("web") == ["198.51.100.4"]
    book.pools = AddressPools((pool("198.51.100.8", "198.51.100.8", reallocate=True),))
    agent.settle()
    assert api.ips("web") == ["198.51.100.8"]
    assert ("Warning", "AddressReallocated", "default/web") in agent.told


def test_who_moves_to_another_pool_makes_room_for_those_who_wait(api: Api) -> None:
    agent = Agent(
        api,
        Book(
            pool("192.0.2.0", "192.0.2.0"),
            pool("198.51.100.0", "198.51.100.9", name="more", auto_assign=False),
        ),
    )
    agent.lead()
    api.create("a")
    api.create("b")
    agent.settle()
    assert (api.ips("a"), api.ips("b")) == (["192.0.2.0"], [])
    api.change("a", annotations={"kube-router.io/address-pool": "more"})
    agent.settle()
    assert (api.ips("a"), api.ips("b")) == (["198.51.100.0"], ["192.0.2.0"])


def test_labels_of_namespaces_decide_when_they_change(api: Api) -> None:
    from kube_router_py.cluster.selectors import Requirement, Selector

    gold = Selector((Requirement("tier", "In", ("gold",)),))
    agent = Agent(api, Book(pool("192.0.2.0", "192.0.2.9", namespaces=gold)))
    agent.lead()
    api.create("web")
    assert agent.settle().problems
    namespace = Namespace(metadata=ObjectMeta(name="default", labels={"tier": "gold"}))
    agent.cache.put(Namespace, namespace, "2")
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]


def test_nothing_is_given_before_the_labels_of_the_namespace_are_known(api: Api) -> None:
    from kube_router_py.cluster.selectors import Requirement, Selector

    gold = Selector((Requirement("tier", "In", ("gold",)),))
    book = Book(
        pool("192.0.2.0", "192.0.2.9", "all"), pool("10.0.0.0", "10.0.0.9", "gold", namespaces=gold)
    )
    agent = Agent(api, book)
    agent.cache.delete(Namespace, "default", "2")
    agent.lead()
    api.create("old")
    api.set_status("old", "192.0.2.7")
    agent.settle()
    api.create("new")
    outcome = agent.settle()
    assert (api.ips("old"), api.ips("new")) == (["192.0.2.7"], [])
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    namespace = Namespace(metadata=ObjectMeta(name="default", labels={"tier": "gold"}))
    agent.cache.put(Namespace, namespace, "3")
    agent.settle()
    assert (api.ips("old"), api.ips("new")) == (["192.0.2.7"], ["10.0.0.0"])


# --- writes that do not come through --------------------------------------------------------------


def test_after_a_conflict_the_newest_service_is_written_to(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.see()
    agent.turn()
    api.change("web", ports=(ServicePort(port=8080, protocol="TCP"),))
    agent.writer.step()  # refused; the cache has not heard of the change
    assert api.ips("web") == []
    agent.turn()
    agent.writer.step()
    assert api.ips("web") == ["192.0.2.0"]
    (entry,) = present_ingress(api.services["default/web"])
    assert entry.ports is not None
    assert entry.ports[0].port == 8080


def test_a_change_that_no_event_tells_of_is_no_obstacle(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.see()
    agent.turn()
    api.touch("web")
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]


def test_what_failed_is_tried_again_and_the_address_stays_reserved(api: Api, agent: Agent) -> None:
    agent.turn()
    api.create("web")
    agent.see()
    agent.turn()
    api.is_down = True
    agent.writer.step()
    outcome = agent.turn()
    assert outcome.failed == {Key("Service", "default/web")}
    assert outcome.problems[0].field == "status"
    assert not agent.writer.queue, "not before the retry"
    api.is_down = False
    api.create("next")
    agent.see()
    agent.turn()
    agent.writer.step()
    assert api.ips("next") == ["192.0.2.1"]
    agent.turn(full=True)
    agent.writer.step()
    outcome = agent.turn()
    assert api.ips("web") == ["192.0.2.0"]
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert Key("Service", "default/web") in outcome.settled


def test_what_failed_is_forgotten_with_its_service(api: Api, agent: Agent) -> None:
    agent.turn()
    api.create("web")
    agent.see()
    agent.turn()
    api.is_down = True
    agent.writer.step()
    assert agent.turn().failed
    api.is_down = False
    api.delete("web")
    agent.see()
    outcome = agent.turn()
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert Key("Service", "default/web") in outcome.settled


def test_a_write_whose_answer_was_lost_is_found_to_have_been_made(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.see()
    agent.turn()
    api.loses_answer = True
    agent.writer.step()
    api.loses_answer = False
    assert agent.turn().failed
    outcome = agent.settle()  # the event of the write
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert api.written == {"default/web": 1}


def test_until_it_is_known_what_a_status_lists_the_allocator_is_told_of_none(
    api: Api, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    put = Allocator.put

    def record(self: Allocator, request: Request, labels: Mapping[str, str]) -> Any:
        told.append(request.key)
        return put(self, request, labels)

    monkeypatch.setattr(Allocator, "put", record)
    agent.turn()
    api.create("a")
    agent.see()
    agent.turn()
    write = agent.writer.queue[0]
    api.loses_answer = True
    agent.writer.step()
    api.loses_answer = False
    told.clear()
    agent.turn()
    agent.turn(full=True)
    assert list(agent.writer.queue) == [write], "the same once more: it is refused if it was made"
    assert told == []
    agent.writer.step()
    agent.turn()
    assert told == ["default/a"]
    agent.turn(full=True)
    assert (told, list(agent.writer.queue)) == (["default/a"] * 2, [])
    # A refusal is an answer, too.
    api.create("b")
    agent.see()
    agent.turn()
    api.is_down = True
    agent.writer.step()
    agent.turn()
    api.is_down, api.refuses = False, 403
    told.clear()
    agent.turn(full=True)
    agent.writer.step()
    agent.turn()
    assert "default/b" not in told
    agent.turn(full=True)
    assert "default/b" in told
    api.refuses = 0
    agent.writer.step()
    # Or an event tells of it first.
    api.change("a", ports=(ServicePort(port=81, protocol="TCP"),))
    agent.see()
    agent.turn()
    api.loses_answer = True
    agent.writer.step()
    api.loses_answer = False
    agent.turn()
    agent.see()
    told.clear()
    agent.turn()
    assert told == ["default/a"]
    assert agent.turn(full=True).failed == frozenset()
    assert list(agent.writer.queue) == []


def test_what_a_slow_write_may_list_is_given_to_nobody(api: Api) -> None:
    book = Book(pool("192.0.2.0", "192.0.2.0"))
    agent = Agent(api, book, strict_external_ip_validation=False)
    agent.lead()
    api.create("two", kind="ClusterIP")  # the older one
    api.create("one")
    agent.see()
    agent.turn()  # the write is slow
    (slow,) = agent.writer.queue
    agent.writer.queue.clear()
    api.create("claims", kind="ClusterIP", external_ips=("192.0.2.0",))
    api.change("two", type="LoadBalancer")
    agent.see()
    for _ in range(3):
        agent.turn(full=True)
    api.delete("claims")
    agent.see()
    agent.turn(full=True)
    agent.writer.queue.appendleft(slow)
    while agent.writer.queue:
        agent.writer.step()
        assert not (api.ips("one") and api.ips("two"))
    agent.settle()
    assert [api.ips("one"), api.ips("two")] == [["192.0.2.0"], []]


def test_a_service_that_is_gone_frees_its_address_though_the_cache_still_has_it(
    api: Api, agent: Agent
) -> None:
    api.create("web")
    agent.see()
    agent.turn()
    api.delete("web")
    agent.writer.step()
    for _ in range(3):
        agent.turn(full=True)
        assert not agent.writer.queue, "it is not written to again"
    api.create("next")
    agent.settle()
    assert api.ips("next") == ["192.0.2.0"]
    # Of the same name again.
    api.create("web")
    agent.settle()
    assert api.ips("web") == ["192.0.2.1"]


def test_a_service_that_cannot_be_decided_about_spoils_no_other(
    api: Api, agent: Agent, monkeypatch: Any
) -> None:
    from kube_router_py.loadbalancer import controller

    real = controller.compile_request

    def compile_request(service: Service, rules: Any) -> Any:
        if service.metadata.name == "odd":
            raise ZeroDivisionError
        return real(service, rules)

    agent.turn()
    monkeypatch.setattr(controller, "compile_request", compile_request)
    api.create("odd")
    api.create("web")
    outcome = agent.settle()
    assert api.ips("web") == ["192.0.2.0"]
    assert outcome.failed == {Key("Service", "default/odd")}
    monkeypatch.undo()
    outcome = agent.turn(full=True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    agent.settle()
    assert api.ips("odd") == ["192.0.2.1"]


@pytest.mark.parametrize("method", ["compile_request", "Planner.plan"])
def test_nor_does_it_stop_a_leader_that_begins(
    api: Api, agent: Agent, monkeypatch: Any, method: str
) -> None:
    from kube_router_py.loadbalancer import allocation_plan, controller

    compile_really, plan_really = controller.compile_request, allocation_plan.Planner.plan

    def compile_request(service: Service, rules: Any) -> Any:
        if service.metadata.name == "odd":
            raise ZeroDivisionError
        return compile_really(service, rules)

    def plan(planner: Any) -> Any:
        if planner._request.key == "default/odd":
            raise ZeroDivisionError
        return plan_really(planner)

    api.create("odd")
    api.set_status("odd", "192.0.2.0")
    api.create("web")
    with monkeypatch.context() as patched:
        if method == "compile_request":
            patched.setattr(controller, "compile_request", compile_request)
        else:
            patched.setattr(allocation_plan.Planner, "plan", plan)
        outcome = agent.settle()
        assert (api.ips("odd"), api.ips("web")) == (["192.0.2.0"], ["192.0.2.1"])
        assert outcome.failed == {Key("Service", "default/odd")}
    outcome = agent.turn(full=True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    agent.settle()
    assert (api.ips("odd"), api.ips("web")) == (["192.0.2.0"], ["192.0.2.1"])


# --- leaders --------------------------------------------------------------------------------------


def test_a_new_leader_goes_by_a_fresh_list_and_not_by_its_cache(api: Api) -> None:
    book = Book(pool("192.0.2.0", "192.0.2.9"))
    first, second = Agent(api, book), Agent(api, book)
    first.lead()
    for name in "ab":
        api.create(name)
    first.settle()
    first.term = 0
    api.delete("a")
    api.create("c")
    second.lead()
    second.turn()  # its cache has nothing at all
    while second.writer.queue:
        second.writer.step()
    assert (api.ips("b"), api.ips("c")) == (["192.0.2.1"], ["192.0.2.0"])
    # What its cache learns now is old: "a" is there once more, "b" without an address.
    for _ in range(len(api.history)):
        second.see(1)
        second.turn()
        assert not second.writer.queue
    assert first.turn().wake_after_s is None
    assert first.controller.report.term == 0


def test_without_a_list_nothing_begins(api: Api, agent: Agent) -> None:
    api.create("web")
    api.is_down = True
    outcome = agent.turn()
    assert outcome.failed == {LEADER}
    assert "cannot be listed" in outcome.problems[0].reason
    api.is_down = False
    outcome = agent.turn(full=True)
    assert LEADER in outcome.settled
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]


def test_a_new_term_waits_for_the_writes_of_the_last_one(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.see()
    agent.turn()
    on_its_way = agent.writer.queue[0]
    agent.lead(2)
    agent.writer.clear = lambda: None  # type: ignore[method-assign]
    outcome = agent.turn()
    assert outcome.wake_after_s is not None
    assert agent.controller.report.term == 0
    agent.writer.step()
    assert agent.writer.ended[-1].result is Result.FENCED
    assert agent.writer.ended[-1].write is on_its_way
    assert agent.turn().failed == frozenset(), "that was another term's"
    assert agent.controller.report.term == 2
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]


def test_after_a_crash_everything_is_learned_anew(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.settle()
    agent.controller.close()
    agent.controller.open()
    api.create("next")
    agent.settle()
    assert (api.ips("web"), api.ips("next")) == (["192.0.2.0"], ["192.0.2.1"])


def test_an_api_server_that_was_restored_is_believed_in_the_end(api: Api, agent: Agent) -> None:
    api.create("web")
    agent.settle()
    old = api.services["default/web"]
    for name in "abc":
        api.create(name)
    agent.settle()
    # etcd from a backup: all versions are lower, and there is only one Service.
    api.services = {"default/web": old}
    api.revision = int(old.metadata.resource_version)
    agent.cursor = len(api.history)
    agent.cache.replace(Service, api.services.values(), str(api.revision))
    api.create("d")
    agent.see()
    agent.turn(full=True)
    agent.settle()
    agent.turn(full=True)
    agent.settle()
    assert api.ips("web") == ["192.0.2.0"]
    assert api.ips("d") == ["192.0.2.1"]


# --- which version counts -------------------------------------------------------------------------


def version(name: str, revision: int, uid: str = "") -> Service:
    metadata = ObjectMeta(name=name, namespace="x", uid=uid or name, resource_version=str(revision))
    return Service(metadata=metadata)


def test_the_newest_version_counts_wherever_it_is_from() -> None:
    known = KnownServices()
    known.replace([version("a", 50), version("b", 60)], "80")
    assert known.see("x/a", version("a", 40), "45") == version("a", 50)
    assert known.see("x/a", None, "45") == version("a", 50), "the cache is not there yet"
    assert known.see("x/a", version("a", 90), "90") == version("a", 90)
    known.put(version("a", 70))
    assert known["x/a"] == version("a", 90)
    known.put(version("a", 95))
    assert known.see("x/a", version("a", 90), "94") == version("a", 95)
    assert known.see("x/a", None, "96") is None
    assert "x/a" not in known
    assert set(known.keys()) == {"x/b"}


def test_what_the_list_did_not_have_counts_only_if_it_is_newer() -> None:
    known = KnownServices()
    known.replace([], "80")
    assert known.see("x/a", version("a", 70), "75") is None
    assert known.see("x/a", version("a", 81), "81") == version("a", 81)
    known.drop("x/a")
    assert known.see("x/a", version("a", 81), "82") is None
    assert known.see("x/a", None, "83") is None
    assert known.see("x/a", version("a", 84), "84") == version("a", 84)


# --- any order of events --------------------------------------------------------------------------


class Chaos:
    """Two agents, users, lags, lost answers: everything in any order."""

    NAMES = tuple(f"s{number:02}" for number in range(14))
    SIZE = 9

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.api = Api()
        self.book = Book(pool("192.0.2.0", f"192.0.2.{self.SIZE - 1}"))
        self.agents = [Agent(self.api, self.book) for _ in range(2)]
        self.terms = 0

    def step(self) -> None:
        agent = self.random.choice(self.agents)
        does: list[tuple[Callable[[], None], int]] = [
            (self.use, 30),
            (lambda: agent.see(self.random.randrange(1, 6)), 30),
            (lambda: self._discard(agent.turn(self.random.random() < 0.1)), 30),
            (lambda: self.write(agent), 40),
            (self.elect, 3),
            (lambda: self.crash(agent), 1),
        ]
        self.random.choices([each for each, _ in does], [weight for _, weight in does])[0]()
        self.check()

    def _discard(self, outcome: Outcome) -> None:
        assert all(isinstance(each, Key) for each in outcome.failed)

    def use(self) -> None:
        name, api = self.random.choice(self.NAMES), self.api
        found = api.services.get(f"default/{name}")
        if found is None:
            api.create(name, kind=self.random.choice(("LoadBalancer",) * 4 + ("ClusterIP",)))
        else:
            self.random.choice(
                (
                    lambda: api.delete(name),
                    lambda: api.touch(name),
                    lambda: api.change(name, type="ClusterIP"),
                    lambda: api.change(name, type="LoadBalancer"),
                    lambda: api.change(name, ports=(ServicePort(port=81, protocol="TCP"),)),
                )
            )()

    def write(self, agent: Agent) -> None:
        if agent.writer.queue:
            self.api.loses_answer = self.random.random() < 0.1
            self.api.is_down = self.random.random() < 0.1
            agent.writer.step()
            self.api.loses_answer = self.api.is_down = False

    def elect(self) -> None:
        self.terms += 1
        for each in self.agents:
            each.term = 0
        self.random.choice(self.agents).lead(self.terms)

    def crash(self, agent: Agent) -> None:
        agent.writer.clear()
        agent.controller.close()
        agent.controller.open()

    def check(self) -> None:
        used = Counter(ip for name in self.names() for ip in self.api.ips(name))
        assert not used or max(used.values()) == 1, used

    def names(self) -> list[str]:
        return [
            each.metadata.name
            for each in self.api.services.values()
            if each.spec.type == "LoadBalancer"
        ]

    def end(self) -> None:
        """Left alone, everything comes right."""
        self.elect()
        leader = next(each for each in self.agents if each.term)
        leader.settle()
        leader.turn(full=True)
        outcome = leader.settle()
        self.check()
        names = self.names()
        assert not outcome.failed
        assert sum(map(len, map(self.api.ips, names))) == min(self.SIZE, len(names))
        assert len(outcome.problems) == max(0, len(names) - self.SIZE)
        writes = self.api.written.total()
        leader.turn(full=True)
        assert not leader.writer.queue
        assert self.api.written.total() == writes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_address_twice_and_none_lost_in_any_order_of_events(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(400):
        chaos.step()
    chaos.end()
