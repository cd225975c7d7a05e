"""Pools of addresses that change: their Services follow, and nothing else is looked at."""

from collections.abc import Hashable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kube_router_py.address_pools import AddressPools, AddressRange, Pool
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.loop import Outcome
from kube_router_py.proxy import controller
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import POOLS
from kube_router_py.proxy.settings import ProxyOptions

FLAGS = ProxyOptions(
    ipv6=True,
    graceful_termination=False,
    load_balancer_ranges=(ip_network("203.0.113.0/28"),),
)
BY_FLAG, POOLED, IPV6, NOWHERE = "203.0.113.1", "198.51.100.7", "2001:db8::7", "198.51.100.99"


def pools(*ranges: str) -> AddressPools:
    """One for each range: ``FIRST-LAST``."""
    found = (tuple(map(ip_address, each.split("-"))) for each in ranges)
    return AddressPools(
        tuple(
            Pool(f"pool{number}", (AddressRange(first, last),))
            for number, (first, last) in enumerate(found)
        )
    )


FIRST = pools("198.51.100.1-198.51.100.9")
BOTH = pools("198.51.100.1-198.51.100.9", "2001:db8::-2001:db8::ff")


class Rig:
    """A proxy whose turns the test takes by hand, with Services at four addresses."""

    def __init__(self, make: Any, host: Any) -> None:
        self.make, self.host = make, host
        self.cache = Cache((Service, EndpointSlice, Node))
        addresses = {"flag": BY_FLAG, "pooled": POOLED, "ipv6": IPV6, "nowhere": NOWHERE}
        services = [
            make.service(name, (f"10.96.0.{number}",), lb_ips=(address,))
            for number, (name, address) in enumerate(addresses.items(), 1)
        ]
        services.append(make.service("plain", ("10.96.0.9",)))
        self.cache.replace(Service, services, "1")
        self.cache.replace(EndpointSlice, [], "1")
        self.cache.replace(Node, [make.node()], "1")
        self.pools = AddressPools()
        self.proxy = ServiceProxy(self.cache, FLAGS, "node1", host.open, pools=lambda: self.pools)
        self.proxy.open()

    def turn(self, *dirty: Hashable, full: bool = False) -> Outcome:
        outcome = self.proxy.reconcile(frozenset(dirty), full)
        assert not outcome.failed
        return outcome

    def balanced(self) -> set[str]:
        """The addresses served that are not ClusterIPs."""
        found = {str(ip_address(vip.address)) for vip in self.host.links.vips}
        return {each for each in found if not each.startswith("10.96.")}


def refused(outcome: Outcome) -> set[str]:
    return {each.reason.split()[0] for each in outcome.problems if "is refused" in each.reason}


def test_services_follow_the_pools(make: Any, host: Any) -> None:
    rig = Rig(make, host)
    assert refused(rig.turn(full=True)) == {POOLED, IPV6, NOWHERE}
    assert rig.balanced() == {BY_FLAG}
    rig.pools = BOTH
    assert refused(rig.turn(POOLS)) == {NOWHERE}
    assert rig.balanced() == {BY_FLAG, POOLED, IPV6}
    rig.pools = FIRST
    assert refused(rig.turn(POOLS)) == {IPV6, NOWHERE}
    assert rig.balanced() == {BY_FLAG, POOLED}


def test_a_full_turn_takes_the_pools_as_they_are(make: Any, host: Any) -> None:
    rig = Rig(make, host)
    rig.pools = FIRST
    rig.turn(full=True)
    assert rig.balanced() == {BY_FLAG, POOLED}
    rig.pools = BOTH
    rig.turn(full=True)
    assert rig.balanced() == {BY_FLAG, POOLED, IPV6}


def test_another_agent_begins_with_the_pools_and_writes_nothing(make: Any, host: Any) -> None:
    rig = Rig(make, host)
    rig.pools = BOTH
    rig.turn(full=True)
    rig.proxy.close()
    rig.proxy.open()
    rig.turn(full=True)
    assert rig.host.writes == 0
    assert rig.balanced() == {BY_FLAG, POOLED, IPV6}


def test_only_services_with_such_addresses_are_compiled_again(
    make: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(make, host)
    rig.pools = FIRST
    rig.turn(full=True)
    compiled: list[str] = []
    real = controller.compile_service

    def note(service: Service, *rest: Any) -> Any:
        compiled.append(service.metadata.name)
        return real(service, *rest)

    def never() -> None:
        raise AssertionError("the kernel was read")

    monkeypatch.setattr(controller, "compile_service", note)
    monkeypatch.setattr(rig.host.ipvs, "read", never)
    rig.turn(POOLS)  # as they are: nothing depends on it
    assert compiled == []
    rig.pools = BOTH
    rig.turn(POOLS)
    assert compiled == ["flag", "ipv6", "nowhere", "pooled"]


def test_a_refusal_names_all_remedies(make: Any, host: Any) -> None:
    reasons = [each.reason for each in Rig(make, host).turn(full=True).problems]
    (reason,) = [each for each in reasons if each.startswith(NOWHERE)]
    for remedy in (
        "--loadbalancer-ip-range",
        "kube-router-address-pools",
        "--run-loadbalancer",
        "--strict-external-ip-validation=false",
    ):
        assert remedy in reason


# --- whatever happens ----------------------------------------------------------------------------


def machine(make: Any, host_type: Any) -> type[RuleBasedStateMachine]:
    names = st.sampled_from(["a", "b", "c"])
    addresses = st.sampled_from([BY_FLAG, POOLED, IPV6, NOWHERE])
    services = st.builds(
        make.service,
        name=names,
        ips=st.sampled_from([("10.96.0.1",), ("10.96.0.2", "fd00:96::2")]),
        lb_ips=st.lists(addresses, max_size=2, unique=True),
        external_ips=st.lists(addresses, max_size=1).map(tuple),
        created=st.sampled_from([None, "2024-01-01T00:00:00Z"]),
    )
    states = st.sampled_from(
        [AddressPools(), FIRST, BOTH, pools("198.51.100.0-198.51.100.255"), pools("::-::1")]
    )

    class Machine(RuleBasedStateMachine):
        @initialize(found=states)
        def start(self, found: AddressPools) -> None:
            self.cache = Cache((Service, EndpointSlice, Node))
            for kind in (Service, EndpointSlice):
                self.cache.replace(kind, [], "1")
            self.cache.replace(Node, [make.node()], "1")
            self.dirty: set[Hashable] = set()
            self.host, self.pools = host_type(), found
            self.proxy = self._proxy(self.host)
            self.proxy.subscribe(self.cache, self)
            self.proxy.reconcile(frozenset(), True)

        def _proxy(self, host: Any) -> ServiceProxy:
            found = ServiceProxy(self.cache, FLAGS, "node1", host.open, pools=lambda: self.pools)
            found.open()
            return found

        def mark(self, keys: Iterable[Hashable]) -> None:
            self.dirty.update(keys)

        @rule(service=services, waits=st.booleans())
        def put_service(self, service: Service, waits: bool) -> None:
            self.cache.put(Service, service)
            self.take_turn(waits)

        @rule(name=names, waits=st.booleans())
        def delete_service(self, name: str, waits: bool) -> None:
            self.cache.delete(Service, f"default/{name}")
            self.take_turn(waits)

        @rule(found=states, waits=st.booleans())
        def change_pools(self, found: AddressPools, waits: bool) -> None:
            self.pools = found
            self.mark((POOLS,))
            self.take_turn(waits)

        def take_turn(self, waits: bool) -> None:
            """Unless it waits for more to come."""
            if waits:
                return
            dirty, self.dirty = frozenset(self.dirty), set()
            outcome = self.proxy.reconcile(dirty, False)
            fresh = host_type()
            scratch = self._proxy(fresh).reconcile(frozenset(), True)
            assert outcome.failed == scratch.failed == frozenset()
            assert outcome.problems == scratch.problems
            assert self.host.ipvs.read() == fresh.ipvs.read()
            assert self.host.ports.links.read_vips() == fresh.ports.links.read_vips()
            assert self.host.ipsets == fresh.ipsets

        def teardown(self) -> None:
            self.take_turn(waits=False)

    return Machine


def test_step_by_step_is_as_from_scratch(make: Any) -> None:
    run_state_machine_as_test(
        machine(make, make.Host),
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
    )
