"""Pools of addresses: what is announced of them, how, by which nodes; and that it follows edits."""

import socket
from collections.abc import Hashable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kube_router_py.address_pools import AddressPools, AddressRange, Announcing, Pool
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.routing import distinct_terms, speaker
from kube_router_py.routing.announcements import compile_announcements
from kube_router_py.routing.controller import POOLS, RouteController, RoutingPorts
from kube_router_py.routing.exports import Terms, compile_export
from kube_router_py.routing.imports import MOST, service_ranges
from kube_router_py.routing.model import Community, RouterConfig
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.pool_terms import NO_POOL, compile_pool_terms, pool_of
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings, with_pools

ONE, TWO, IPV6, BY_FLAG = "198.51.100.7", "192.0.2.7", "2001:db8::7", "203.0.113.7"
RANGES = {
    "one": ("198.51.100.1", "198.51.100.9"),
    "two": ("192.0.2.0", "192.0.2.255"),
    "six": ("2001:db8::", "2001:db8::ffff"),
}
RED = Selector((Requirement("color", "In", ("red",)),))
ADVERTISE = "kube-router.io/service.advertise.loadbalancerip"
BGP = "kube-router.io/service.bgp."
COMMUNITY = Community((65000, 7))


def pool(name: str, **announcing: Any) -> Pool:
    first, last = map(ip_address, RANGES[name])
    return Pool(name, (AddressRange(first, last),), announcing=Announcing(**announcing))


def flags(**given: Any) -> RoutingSettings:
    ranges = {"load_balancer_ranges": (ip_network("203.0.113.0/24"),)}
    return RoutingSettings(**{"ipv6": True, "has_proxy": False, **ranges, **given})


def export(service: Any, *pools: Pool, labels: dict[str, str] | None = None, **given: Any) -> Any:
    found = with_pools(flags(**given), AddressPools(pools), labels or {})
    return compile_export(service, (), "node1", found)


def announced(service: Any, *pools: Pool, **given: Any) -> set[str]:
    return {str(ip_address(each)) for each in export(service, *pools, **given).announced}


# --- what is announced ---------------------------------------------------------------------------


@pytest.mark.parametrize("by_flag", [False, True])
@pytest.mark.parametrize("by_pool", [None, False, True])
@pytest.mark.parametrize("annotation", [None, "false", "true"])
def test_the_annotation_comes_before_the_pool_and_the_pool_before_the_flag(
    make: Any, by_flag: bool, by_pool: bool | None, annotation: str | None
) -> None:
    notes = None if annotation is None else {ADVERTISE: annotation}
    service = make.service(ips=("10.96.0.1",), lb_ips=(ONE, BY_FLAG), annotations=notes)
    found = announced(service, pool("one", bgp=by_pool), advertise_load_balancer_ip=by_flag)
    elsewhere = by_flag if annotation is None else annotation == "true"
    pooled = elsewhere if annotation is not None or by_pool is None else by_pool
    assert found == {each for each, is_it in ((ONE, pooled), (BY_FLAG, elsewhere)) if is_it}


def test_what_lies_in_no_pool_and_in_no_range_is_announced_nowhere(make: Any) -> None:
    service = make.service(lb_ips=(ONE, TWO), annotations={ADVERTISE: "true"})
    assert announced(service) == set()
    assert announced(service, pool("two")) == {TWO}


@pytest.mark.parametrize("annotation", [None, "true"])
def test_a_node_that_is_not_selected_announces_nothing(make: Any, annotation: str | None) -> None:
    notes = None if annotation is None else {ADVERTISE: annotation}
    service = make.service(lb_ips=(ONE, TWO), annotations=notes)
    found = (pool("one", bgp=True, nodes=RED), pool("two", bgp=True))
    assert announced(service, *found) == {TWO}
    assert announced(service, *found, labels={"color": "blue"}) == {TWO}
    assert announced(service, *found, labels={"color": "red"}) == {ONE, TWO}


def test_pools_say_nothing_of_other_sorts_of_addresses(make: Any) -> None:
    service = make.service(ips=(ONE,), external_ips=(TWO,))
    found = (pool("one", bgp=False, nodes=RED), pool("two", bgp=False, communities="65000:7"))
    rules = {"advertise_cluster_ip": True, "advertise_external_ip": True}
    whole = export(service, *found, strict_external_ips=False, **rules)
    assert {str(ip_address(each)) for each in whole.announced} == {ONE, TWO}
    assert whole.pooled == {}


def test_traffic_policy_local_counts_for_pools_too(make: Any) -> None:
    service = make.service(lb_ips=(ONE,), external_traffic_policy="Local")
    assert announced(service, pool("one", bgp=True)) == set()


# --- and how -------------------------------------------------------------------------------------


def test_each_address_has_the_terms_of_its_pool(make: Any) -> None:
    service = make.service(lb_ips=(ONE, TWO, BY_FLAG))
    found = export(
        service,
        pool("one", communities="65000:7,no-export", local_preference=50),
        pool("two", local_preference=200),
        advertise_load_balancer_ip=True,
    )
    both = (COMMUNITY, Community((65535, 65281)))
    terms = {str(ip_address(each)): found.terms_of(each) for each in found.announced}
    assert terms == {ONE: Terms(both, 50), TWO: Terms((), 200), BY_FLAG: Terms()}
    assert found.unusual == {Terms(both, 50), Terms((), 200)}
    assert found.problems == ()


@pytest.mark.parametrize(
    ("name", "text", "terms"),
    [
        ("communities", "65000:1", Terms((Community((65000, 1)),), 50)),
        ("communities", "", Terms((), 50)),
        ("communities", "nonsense", Terms((), 50)),
        ("local-preference", "300", Terms((COMMUNITY,), 300)),
        ("local-preference", "much", Terms((COMMUNITY,), None)),
        ("peers", "192.0.2.200", Terms((COMMUNITY,), 50, ("192.0.2.200",))),
    ],
)
def test_an_annotation_counts_instead_of_what_its_pool_says_of_that_sort(
    make: Any, name: str, text: str, terms: Terms
) -> None:
    service = make.service(lb_ips=(ONE,), annotations={BGP + name: text})
    found = export(service, pool("one", bgp=True, communities="65000:7", local_preference=50))
    assert [found.terms_of(each) for each in found.announced] == [terms]


def test_services_that_share_an_address_agree_by_their_pool(make: Any) -> None:
    rules = with_pools(flags(), AddressPools((pool("one", bgp=True, communities="65000:7"),)), {})
    own = {BGP + "communities": "65000:7"}
    services = [
        make.service("old", ips=(), lb_ips=(ONE,), created="2024"),
        make.service("same", ips=(), lb_ips=(ONE,), created="2025", annotations=own),
        make.service("other", ips=(), lb_ips=(ONE,), annotations={BGP + "communities": "1:1"}),
    ]
    index = compile_announcements(
        {each.metadata.key: (each, ()) for each in services}, "node1", rules
    )
    assert [(str(each.prefix), each.communities) for each in index.current()] == [
        (f"{ONE}/32", (COMMUNITY,))
    ]
    (problem,) = index.problems()
    assert problem.object == "Service default/other"


def test_only_as_many_terms_as_fit_and_those_of_the_oldest(make: Any) -> None:
    pools = AddressPools((pool("one", local_preference=1), pool("two", local_preference=2)))
    rules = with_pools(flags(advertise_load_balancer_ip=True), pools, {})
    services = [
        make.service("young", ips=(), lb_ips=(TWO, BY_FLAG), created="2025"),
        make.service("old", ips=(), lb_ips=(ONE,), created="2024"),
    ]
    found = {each.metadata.key: (each, ()) for each in services}
    with patch.object(distinct_terms, "MOST_ENTRIES", 2):
        index = compile_announcements(found, "node1", rules)
    assert [str(each.prefix.network_address) for each in index.current()] == [ONE, BY_FLAG]
    (problem,) = index.problems()
    assert problem.object == "Service default/young"


# --- pools as values -----------------------------------------------------------------------------


def test_an_address_is_found_in_the_pool_of_its_family() -> None:
    found = compile_pool_terms(
        AddressPools((pool("one", bgp=True), pool("six", bgp=False), pool("two"))), {}
    )
    assert len(found) == 2  # the third says nothing of announcements

    def of(text: str) -> bool | None:
        return pool_of(ip_address(text).packed, found).is_announced

    first, last = RANGES["one"]
    assert (of(first), of(last), of(IPV6)) == (True, True, False)
    for text in ("198.51.100.0", "198.51.100.10", TWO, "2001:db8::1:0", "c633:6407::"):
        assert pool_of(ip_address(text).packed, found) is NO_POOL


@given(st.data())
def test_an_address_is_found_whatever_the_order_of_ranges(data: st.DataObject) -> None:
    """Also among those that were taken out of pools."""
    base = (int(ip_address("192.0.2.0")), int(ip_address("2001:db8::")))
    numbers = data.draw(st.lists(st.integers(0, 79), unique=True))
    owner = {each: data.draw(st.integers(0, 3)) for each in numbers}
    addresses = {each: ip_address(base[each % 2] + each) for each in range(80)}
    pools = [
        Pool(
            str(number),
            tuple(
                AddressRange(addresses[each], addresses[each])
                for each in numbers
                if owner[each] == number
            ),
            announcing=Announcing(local_preference=number),
        )
        for number in range(4)
    ]
    found = compile_pool_terms(AddressPools(tuple(pools[:2]), tuple(pools[2:])), {})
    for each, address in addresses.items():
        assert pool_of(address.packed, found).local_preference == owner.get(each)


def test_ranges_are_those_of_flags_and_pools() -> None:
    inside = Pool("in", (AddressRange(ip_address("203.0.113.1"), ip_address("203.0.113.2")),))
    found = with_pools(flags(), AddressPools((pool("one"), inside)), {}).load_balancer_ranges
    assert [str(each) for each in found] == [
        "203.0.113.0/24",
        *("198.51.100.1/32", "198.51.100.2/31", "198.51.100.4/30", "198.51.100.8/31"),
    ]


def test_pools_in_many_pieces_do_not_make_lists_that_hold_up_bgp() -> None:
    pieces = tuple(
        AddressRange(each, each) for each in (ip_address(f"10.0.{n}.1") for n in range(250))
    ) + tuple(AddressRange(each, each) for each in (ip_address(f"10.1.{n}.1") for n in range(250)))
    whole = pool("two")
    found = with_pools(flags(), AddressPools((Pool("many", pieces), whole)), {})
    shown = service_ranges(found)
    assert len(shown) == MOST
    assert {ip_network("203.0.113.0/24"), ip_network("192.0.2.0/24")} <= set(shown)


def test_what_was_taken_out_of_pools_may_be_learned() -> None:
    taken = ip_network("198.51.100.64/26")
    retired = Pool("gone", (AddressRange(taken[0], taken[-1]),))
    found = with_pools(flags(), AddressPools((pool("one"),), (retired,)), {})
    assert taken in found.load_balancer_ranges
    never = with_pools(flags(), AddressPools((pool("one"),)), {})
    assert service_ranges(found) == service_ranges(never)


# --- live ----------------------------------------------------------------------------------------


class NoCniFile:
    """Nothing writes it (--enable-cni=false)."""

    path, writes = "/nowhere", 0

    def read(self) -> str | None:
        raise NotImplementedError

    def write(self, text: str) -> None:
        raise NotImplementedError

    def comes_before(self) -> tuple[str, ...]:
        raise NotImplementedError


class World:
    """A route controller over a cache, and all that it told FRR."""

    def __init__(self, cache: Cache, pools: AddressPools, **given: Any) -> None:
        self.pools = pools
        self.told: list[RouterConfig] = []
        links = FakeLinkKernel()
        own = ip_address("192.168.1.1").packed
        links.addresses.append(NodeAddress(socket.AF_INET, own, 24, "eth0"))
        host = ports.HostPorts(
            fake.FakeIpvs(),
            fake.FakeLinks("route", links),
            fake.FakeIpsets(),
            fake.FakeIptables(),
            fake.FakeSysctls({"net/ipv4/ip_forward": "0"}),
        )
        rules = flags(
            enable_cni=False,
            ipv6=False,
            peer_addresses=(ip_address("192.0.2.200"),),
            peer_asns=(65000,),
            **given,
        )
        self.daemons = FakeDaemons()
        self.controller = RouteController(
            cache,
            rules,
            "node1",
            lambda: RoutingPorts(host, fake_overlay(), FakeFrr(self.daemons), NoCniFile()),
            lambda: PodNetwork(rules, "node1", has_firewall=True),
            PasswordSources(rules, "node1"),
            clock=lambda: 0.0,
            pools=lambda: self.pools,
        )
        self.controller.open()

    def turn(self, *dirty: Hashable, full: bool = False) -> Any:
        render = speaker.render_frr

        def note(config: RouterConfig) -> Any:
            self.told.append(config)
            return render(config)

        with patch.object(speaker, "render_frr", note):
            outcome = self.controller.reconcile(frozenset(dirty), full)
        assert not outcome.failed
        return outcome

    def announced(self) -> set[str]:
        found = (each.prefix for each in self.told[-1].announcements)
        return {str(each.network_address) for each in found if each.prefixlen == 32}


def cache_of(*things: Any) -> Cache:
    cache = Cache((Node, Service, EndpointSlice))
    for kind in cache.kinds:
        cache.replace(kind, [each for each in things if isinstance(each, kind)], "1")
    return cache


def own_node(make: Any, **labels: str) -> Any:
    return make.node("node1", ["192.168.1.1"], ["10.244.1.0/24"], labels=labels)


def test_what_was_taken_out_of_pools_is_announced_as_before(make: Any) -> None:
    service = make.service("one", ips=("10.96.0.1",), lb_ips=(ONE,))
    for says in (True, False):
        world = World(
            cache_of(own_node(make, color="red"), service),
            AddressPools(),
            advertise_load_balancer_ip=says,
        )
        terms = {"nodes": RED, "communities": "65000:7", "local_preference": 50}
        before = pool("one", bgp=not says, **terms)
        world.pools = AddressPools((before,))
        world.turn(full=True)
        told = world.told[-1].announcements
        assert world.announced() == (set() if says else {ONE})
        world.pools = AddressPools((), (before,))
        outcome = world.turn(POOLS)
        assert world.told[-1].announcements == told
        assert "is refused" not in str(outcome.problems)
        # Its neighbors may announce the rest of the range now, though nobody's address.
        refused = {str(each.network) for each in world.told[-1].refuse}
        assert f"{ONE}/32" in refused
        assert not refused & {str(each) for each in world.pools.retired_networks()}


def test_nodes_that_did_not_announce_it_do_not_begin_when_it_leaves_its_pool(make: Any) -> None:
    service = make.service("one", ips=("10.96.0.1",), lb_ips=(ONE,))
    before = pool("one", bgp=True, nodes=RED)
    world = World(cache_of(own_node(make), service), AddressPools((before,)))
    world.turn(full=True)
    world.pools = AddressPools((), (before,))
    world.turn(POOLS)
    assert world.announced() == set()


def test_announcements_follow_the_pools_and_sessions_stay(make: Any) -> None:
    services = [
        make.service("one", ips=("10.96.0.1",), lb_ips=(ONE,)),
        make.service("two", ips=("10.96.0.2",), lb_ips=(TWO,)),
    ]
    world = World(cache_of(own_node(make), *services), AddressPools())
    world.turn(full=True)
    assert world.announced() == set()
    world.pools = AddressPools((pool("one", bgp=True), pool("two")))
    world.turn(POOLS)
    assert world.announced() == {ONE}
    world.pools = AddressPools((pool("one", bgp=False), pool("two", bgp=True, communities="1:1")))
    world.turn(POOLS)
    assert world.announced() == {TWO}
    world.pools = AddressPools((pool("one", bgp=True),))
    outcome = world.turn(POOLS)
    assert world.announced() == {ONE}
    # Without a proxy here it is told by this part.
    assert f"{TWO} is refused" in str(outcome.problems)
    world.pools = AddressPools((pool("two", bgp=True),))
    world.turn(full=True)  # without an event
    assert world.announced() == {TWO}
    neighbors = [each.neighbors for each in world.told]
    assert neighbors == neighbors[:1] * len(neighbors)


def test_the_terms_of_a_pool_are_followed(make: Any) -> None:
    service = make.service("one", ips=("10.96.0.1",), lb_ips=(ONE,))
    world = World(cache_of(own_node(make), service), AddressPools())
    world.turn(full=True)

    def terms(**announcing: Any) -> Any:
        world.pools = AddressPools((pool("one", bgp=True, **announcing),))
        world.turn(POOLS)
        (found,) = (each for each in world.told[-1].announcements if each.prefix.prefixlen == 32)
        return found.communities, found.local_preference

    assert terms() == ((), None)
    assert terms(communities="65000:7") == ((COMMUNITY,), None)
    assert terms(communities="65000:7", local_preference=50) == ((COMMUNITY,), 50)
    assert terms(local_preference=50) == ((), 50)


def test_nobody_teaches_the_node_a_way_to_what_lies_in_a_pool(make: Any) -> None:
    world = World(cache_of(own_node(make)), AddressPools())
    world.turn(full=True)
    world.pools = AddressPools((pool("two"),))
    world.turn(POOLS)
    networks = [{str(each.network) for each in config.refuse} for config in world.told]
    assert networks[1] - networks[0] == {"192.0.2.0/24"}


def test_the_labels_of_the_node_are_followed(make: Any) -> None:
    service = make.service("one", ips=("10.96.0.1",), lb_ips=(ONE,))
    cache = cache_of(own_node(make, color="blue"), service)
    world = World(cache, AddressPools((pool("one", bgp=True, nodes=RED),)))
    marked: set[Any] = set()

    class Loop:
        def mark(self, keys: Iterable[Hashable]) -> None:
            marked.update(keys)

    world.controller.subscribe(cache, Loop())  # type: ignore[arg-type]
    world.turn(full=True)
    assert world.announced() == set()
    cache.put(Node, own_node(make, color="red"))
    world.turn(*marked)
    assert world.announced() == {ONE}
    cache.delete(Node, "node1")  # for a moment
    world.turn(*marked, POOLS)
    assert world.announced() == {ONE}
    world.pools = AddressPools((pool("one"),))
    world.turn(full=True)  # without an event
    assert world.announced() == set()
    world.pools = AddressPools((pool("one", bgp=True, nodes=RED),))
    world.turn(POOLS)
    assert world.announced() == {ONE}
    cache.put(Node, own_node(make))
    world.turn(*marked)
    assert world.announced() == set()


def test_only_services_of_load_balancers_are_looked_at(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [make.service("one", lb_ips=(ONE,)), make.service("plain", ips=("10.96.0.2",))]
    world = World(cache_of(own_node(make), *services), AddressPools())
    world.turn(full=True)
    looked: list[str] = []
    real = speaker.Speaker.follow_service

    def note(self: Any, key: str) -> None:
        looked.append(key)
        real(self, key)

    monkeypatch.setattr(speaker.Speaker, "follow_service", note)
    world.turn(POOLS)
    assert looked == []
    world.pools = AddressPools((pool("one"),))
    world.turn(POOLS)
    assert looked == ["default/one"]


# --- whatever happens ----------------------------------------------------------------------------


def machine(make: Any) -> type[RuleBasedStateMachine]:
    names = st.sampled_from("abc")
    addresses = st.sampled_from([ONE, TWO, BY_FLAG, "198.51.100.99"])
    notes = st.dictionaries(
        st.sampled_from([ADVERTISE, BGP + "communities", BGP + "local-preference"]),
        st.sampled_from(["true", "false", "100"]),
        max_size=2,
    )
    services = st.builds(
        make.service,
        name=names,
        ips=st.just(("10.96.0.1",)),
        lb_ips=st.lists(addresses, min_size=1, max_size=2, unique=True),
        external_ips=st.lists(addresses, max_size=1).map(tuple),
        created=st.sampled_from([None, "2024", "2025"]),
        annotations=notes,
    )

    @st.composite
    def states(draw: Any) -> AddressPools:
        found = [
            pool(
                name,
                bgp=draw(st.sampled_from([None, True, True, False])),
                nodes=draw(st.sampled_from([Selector(), Selector(), RED])),
                communities=draw(st.sampled_from(["", "65000:7", "0:100"])),
                local_preference=draw(st.sampled_from([None, 100, 5])),
            )
            for name in draw(st.lists(st.sampled_from(["one", "two", "six"]), unique=True))
        ]
        number = draw(st.integers(0, len(found)))
        return AddressPools(tuple(found[number:]), tuple(found[:number]))

    class Machine(RuleBasedStateMachine):
        @initialize(
            found=states(),
            some=st.lists(services, min_size=2, max_size=3),
            strict=st.booleans(),
            most=st.sampled_from([2, 4, 128]),
        )
        def start(self, found: AddressPools, some: list[Service], strict: bool, most: int) -> None:
            self.strict = strict
            self.limit = patch.object(distinct_terms, "MOST_ENTRIES", most)
            self.limit.start()
            self.cache = cache_of(own_node(make))
            for each in some:
                self.cache.put(Service, each)
            self.dirty: set[Hashable] = set()
            self.world = World(self.cache, found, strict_external_ips=strict)
            self.world.controller.subscribe(self.cache, self)  # type: ignore[arg-type]
            self.world.turn(full=True)

        def mark(self, keys: Iterable[Hashable]) -> None:
            self.dirty.update(keys)

        @rule(service=services, waits=st.booleans())
        def put_service(self, service: Service, waits: bool) -> None:
            self.cache.put(Service, service)
            self.take_turn(waits)

        @rule(name=names)
        def delete_service(self, name: str) -> None:
            self.cache.delete(Service, f"default/{name}")

        @rule(color=st.sampled_from(["red", "blue"]), waits=st.booleans())
        def change_labels(self, color: str, waits: bool) -> None:
            self.cache.put(Node, own_node(make, color=color))
            self.take_turn(waits)

        @rule(found=states(), waits=st.booleans())
        def change_pools(self, found: AddressPools, waits: bool) -> None:
            self.world.pools = found
            self.mark((POOLS,))
            self.take_turn(waits)

        def take_turn(self, waits: bool) -> None:
            """Unless it waits for more to come."""
            if waits:
                return
            dirty, self.dirty = frozenset(self.dirty), set()
            outcome = self.world.turn(*dirty)
            fresh = World(self.cache, self.world.pools, strict_external_ips=self.strict)
            scratch = fresh.turn(full=True)
            assert self.world.told[-1] == fresh.told[-1]
            assert outcome.problems == scratch.problems

        def teardown(self) -> None:
            try:
                self.take_turn(waits=False)
            finally:
                self.limit.stop()

    return Machine


def test_step_by_step_is_as_from_scratch(make: Any) -> None:
    run_state_machine_as_test(
        machine(make),
        settings=hypothesis_settings(max_examples=80, stateful_step_count=15, deadline=None),
    )
