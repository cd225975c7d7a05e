"""No edit of address pools makes the proxy drop what is in the status of a Service of ours."""

import json
from collections.abc import Hashable
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from kube_router_py.address_pool_config import PoolSettings
from kube_router_py.address_pools import DEFAULT_POOL
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kept_addresses import KeptAddresses
from kube_router_py.pool_book import Past, PoolBook
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import POOLS
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.services import Network, load_balancer_ips

RANGES, SMALLER = (ip_network("203.0.113.0/28"),), (ip_network("203.0.113.0/29"),)
CLUSTER = (ip_network("10.96.0.0/16"),)
FLAGS = ProxyOptions(
    ipv6=True, graceful_termination=False, load_balancer_ranges=RANGES, cluster_ranges=CLUSTER
)
POOL_FLAGS = PoolSettings(ranges=RANGES, cluster_ranges=CLUSTER, ipv6=True)
WIDE = "- {name: wide, addresses: [198.51.100.0/24, '2001:db8::/64']}\n"
NARROW = "- {name: wide, addresses: [198.51.100.128/25]}\n"
OTHER = "- {name: other, addresses: [198.51.100.4-198.51.100.20, '2001:db8::7']}\n"
KEPT, GIVEN, SIX = "198.51.100.7", "198.51.100.200", "2001:db8::7"
FOREIGN = "192.0.2.66"


class Agent:
    """One that runs since ``past`` was written down; the kernel is the node's."""

    def __init__(
        self,
        cache: Cache,
        host: Any,
        past: Past,
        text: str | None,
        ranges: tuple[Network, ...] = RANGES,
    ) -> None:
        self.book = PoolBook(structs.replace(POOL_FLAGS, ranges=ranges))
        self.book.put_past(past)
        self.book.put_config(text, past.accepted)
        flags = structs.replace(FLAGS, load_balancer_ranges=ranges)
        self.proxy = ServiceProxy(cache, flags, "node1", host.open, pools=lambda: self.book.pools)
        self.proxy.open()
        self.turn(full=True)

    def edit(self, text: str | None) -> None:
        self.book.put_config(text)
        self.turn(POOLS)

    def turn(self, *dirty: Hashable, full: bool = False) -> None:
        outcome = self.proxy.reconcile(frozenset(dirty), full)
        assert not outcome.failed

    def close(self) -> None:
        self.proxy.close()


def past_of(book: PoolBook, cache: Cache) -> Past:
    """What the agent that allocates leaves for others, as its loop does it."""
    kept = KeptAddresses()
    for service in cache.list(Service):
        found = [ip_address(text) for _, text in load_balancer_ips(service)]
        kept.put(service.metadata.key, filter(lambda at: book.pools.retired_of(at.packed), found))
    return Past(book.accepted_text, kept.text(book.pools))


def kept_of(past: Past) -> dict[str, list[str]]:
    """By the names of pools, but that of the flags."""
    items = json.loads(past.kept)
    return {each["name"]: each["addresses"] for each in items if each["name"] != DEFAULT_POOL}


def balanced(host: Any) -> set[str]:
    """The addresses that have virtual servers, other than ClusterIPs."""
    vips = {str(ip_address(vip.address)) for vip in host.links.vips}
    served = {str(ip_address(key.address)) for key in host.ipvs.read()}
    return {each for each in vips & served if not each.startswith("10.96.")}


def cache_of(make: Any, services: dict[str, str]) -> Cache:
    cache = Cache((Service, EndpointSlice, Node))
    cache.replace(EndpointSlice, [], "1")
    cache.replace(Node, [make.node()], "1")
    made = [
        make.service(name, (f"10.96.0.{number}",), lb_ips=(address,))
        for number, (name, address) in enumerate(services.items(), 1)
    ]
    cache.replace(Service, made, "1")
    return cache


def test_a_pool_shrinks_and_goes_and_its_services_stay(make: Any, host: Any) -> None:
    cache = cache_of(make, {"kept": KEPT, "given": GIVEN, "six": SIX, "foreign": FOREIGN})
    agent = Agent(cache, host, Past(), WIDE)
    assert balanced(host) == {KEPT, GIVEN, SIX}
    writes = host.writes
    for text in (NARROW, WIDE, "- nonsense", None, OTHER, "["):
        agent.edit(text)
        assert balanced(host) == {KEPT, GIVEN, SIX}
        agent.turn(full=True)
        assert balanced(host) == {KEPT, GIVEN, SIX}
    assert host.writes == writes


def test_an_agent_that_starts_later_goes_on_until_the_address_is_given_up(
    make: Any, host: Any
) -> None:
    cache = cache_of(make, {"kept": KEPT, "given": GIVEN, "six": SIX, "foreign": FOREIGN})
    agent = Agent(cache, host, Past(), WIDE)
    agent.edit(NARROW)
    agent.close()
    past = past_of(agent.book, cache)
    assert kept_of(past) == {"wide": [KEPT, SIX]}
    agent = Agent(cache, host, past, NARROW)
    assert balanced(host) == {KEPT, GIVEN, SIX}
    assert host.writes == 0
    # It gives the address up; what is next to it was never allowed by this agent.
    cache.put(Service, make.service("kept", ("10.96.0.1",), lb_ips=("203.0.113.3",)))
    cache.put(Service, make.service("near", ("10.96.0.7",), lb_ips=("198.51.100.8",)))
    agent.turn(full=True)
    assert balanced(host) == {"203.0.113.3", GIVEN, SIX}
    agent.close()
    past = past_of(agent.book, cache)
    assert kept_of(past) == {"wide": [SIX]}
    cache.put(Service, make.service("late", ("10.96.0.8",), lb_ips=(KEPT,)))
    agent = Agent(cache, host, past, NARROW)
    assert balanced(host) == {"203.0.113.3", GIVEN, SIX}
    agent.close()


def test_an_edit_that_no_agent_saw_changes_nothing_either(make: Any, host: Any) -> None:
    cache = cache_of(make, {"kept": KEPT, "given": GIVEN})
    agent = Agent(cache, host, Past(), WIDE)
    agent.close()
    agent = Agent(cache, host, past_of(agent.book, cache), OTHER)
    assert balanced(host) == {KEPT, GIVEN}
    agent.close()
    agent = Agent(cache, host, past_of(agent.book, cache), None)
    assert balanced(host) == {KEPT, GIVEN}
    agent.close()


def test_a_flag_that_shrinks_over_a_restart_changes_nothing_either(make: Any, host: Any) -> None:
    upper, lower = "203.0.113.9", "203.0.113.1"
    cache = cache_of(make, {"upper": upper, "lower": lower, "given": GIVEN})
    agent = Agent(cache, host, Past(), WIDE)
    past = past_of(agent.book, cache)
    for ranges in (SMALLER, ()):
        for _ in range(2):  # the leader first, and then the others
            agent.close()
            agent = Agent(cache, host, past, WIDE, ranges)
            assert balanced(host) == {upper, lower, GIVEN}
        past = past_of(agent.book, cache)
        agent.close()
        agent = Agent(cache, host, past, WIDE, ranges)
        assert balanced(host) == {upper, lower, GIVEN}
        # What nobody had is forgotten by then.
        assert agent.book.pools.retired_of(ip_address("203.0.113.10").packed) is None
        past = past_of(agent.book, cache)
    agent.close()


# --- whatever happens ----------------------------------------------------------------------------


def machine(make: Any, host_type: Any) -> type[RuleBasedStateMachine]:
    names = st.sampled_from(["a", "b", "c"])
    choices = [KEPT, GIVEN, SIX, "198.51.100.8", "2001:db8::8", FOREIGN]
    choices += ["203.0.113.1", "203.0.113.9"]
    texts = st.sampled_from(
        [None, "", WIDE, NARROW, OTHER, "[", "- {name: x}", WIDE + OTHER, WIDE + "- nonsense"]
    )

    class Machine(RuleBasedStateMachine):
        """A leader and another agent; addresses are given as they are in pools of the leader."""

        @initialize(text=texts)
        def start(self, text: str | None) -> None:
            self.cache, self.text = cache_of(make, {}), text
            self.host, self.given = host_type(), dict[str, str]()
            self.ranges: tuple[Network, ...] = RANGES
            self.leader = Agent(self.cache, host_type(), Past(), text)
            self.agent = Agent(self.cache, self.host, Past(), text)

        @rule(name=names, address=st.sampled_from(choices))
        def give(self, name: str, address: str) -> None:
            if self.leader.book.pools.of(ip_address(address).packed) is None:
                return
            if address in self.given.values():
                return
            self.given[name] = address
            number = 1 + ord(name) - ord("a")
            service = make.service(name, (f"10.96.0.{number}",), lb_ips=(address,))
            self.cache.put(Service, service)
            self.agent.turn(full=True)

        @rule(name=names)
        def take(self, name: str) -> None:
            self.given.pop(name, None)
            self.cache.delete(Service, f"default/{name}")
            self.agent.turn(full=True)

        @rule(text=texts)
        def edit(self, text: str | None) -> None:
            self.text = text
            self.leader.edit(text)
            self.agent.edit(text)

        @rule(
            others_too=st.booleans(),
            unseen=st.none() | texts.map(lambda text: (text,)),
            ranges=st.none() | st.sampled_from([RANGES, SMALLER, ()]),
        )
        def restart(
            self,
            others_too: bool,
            unseen: tuple[str | None] | None,
            ranges: tuple[Network, ...] | None,
        ) -> None:
            """Of this agent, or of all of them, and then also with other flags and with an edit
            that nobody saw."""
            past = past_of(self.leader.book, self.cache)
            if others_too:
                if unseen is not None:
                    self.text = unseen[0]
                if ranges is not None:
                    self.ranges = ranges
                self.leader.close()
                self.leader = Agent(self.cache, host_type(), past, self.text, self.ranges)
            self.agent.close()
            self.agent = Agent(self.cache, self.host, past, self.text, self.ranges)

        @invariant()
        def all_that_was_given_is_served(self) -> None:
            if hasattr(self, "host"):
                assert balanced(self.host) == set(self.given.values())

    return Machine


def test_no_edit_and_no_restart_drops_an_address(make: Any) -> None:
    run_state_machine_as_test(
        machine(make, make.Host),
        settings=settings(max_examples=40, stateful_step_count=20, deadline=None),
    )
