"""Aggregates stand as long as somebody is told of a Service address inside."""

from ipaddress import ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.problem import Problem
from kube_router_py.routing.aggregates import compile_aggregates
from kube_router_py.routing.model import Aggregate, Announcement, Kind
from kube_router_py.routing.prefixes import prefix_order
from kube_router_py.routing.settings import RoutingSettings

PEERS = frozenset({"203.0.113.1", "203.0.113.2", "eth0"})


def settings(*aggregates: str, to: tuple[str, ...] = (), **given: Any) -> RoutingSettings:
    networks = tuple(ip_network(each) for each in aggregates)
    values: dict[str, Any] = {"ipv6": True, **given}
    return RoutingSettings(advertise_aggregate=networks, advertise_specifics_to=to, **values)


def announcements(*texts: str, peers: tuple[str, ...] | None = None) -> list[Announcement]:
    found = sorted(map(ip_network, texts), key=prefix_order)
    return [Announcement(prefix=each, kind=Kind.SERVICE, peers=peers) for each in found]


def standing(rules: RoutingSettings, found: list[Announcement]) -> list[str]:
    aggregates, problems = compile_aggregates(rules, found, PEERS)
    assert problems == ()
    return [str(each.prefix) for each in aggregates]


def test_one_stands_while_an_address_lies_inside() -> None:
    rules = settings("192.0.2.0/24", "198.51.100.0/25", "fd00:5::/64")
    assert standing(rules, []) == []
    assert standing(rules, announcements("192.0.1.255/32", "192.0.3.0/32")) == []
    assert standing(rules, announcements("192.0.2.0/32")) == ["192.0.2.0/24"]
    assert standing(rules, announcements("192.0.2.255/32")) == ["192.0.2.0/24"]
    assert standing(rules, announcements("198.51.100.128/32")) == []
    assert standing(rules, announcements("fd00:5::ffff/128")) == ["fd00:5::/64"]
    everything = announcements("198.51.100.1/32", "192.0.2.9/32", "fd00:5::1/128")
    assert standing(rules, everything) == ["192.0.2.0/24", "198.51.100.0/25", "fd00:5::/64"]


def test_one_that_is_asked_for_twice_or_without_its_family() -> None:
    twice = settings("192.0.2.0/24", "192.0.2.0/24")
    assert standing(twice, announcements("192.0.2.1/32")) == ["192.0.2.0/24"]
    four = settings("fd00:5::/64", ipv6=False)
    assert standing(four, announcements("fd00:5::1/128")) == []
    other = settings("192.0.2.0/24")
    assert standing(other, announcements("192.0.1.1/32", "2001:db8::1/128")) == []


def test_nested_ones_stand_on_their_own() -> None:
    rules = settings("192.0.2.0/24", "192.0.2.128/25")
    assert standing(rules, announcements("192.0.2.1/32")) == ["192.0.2.0/24"]
    assert standing(rules, announcements("192.0.2.200/32")) == ["192.0.2.0/24", "192.0.2.128/25"]


def test_an_address_that_nobody_hears_of_holds_none_up() -> None:
    rules = settings("192.0.2.0/24")
    quiet = announcements("192.0.2.1/32", peers=())
    assert standing(rules, quiet) == []
    assert standing(rules, quiet + announcements("192.0.2.2/32")) == ["192.0.2.0/24"]
    assert standing(rules, announcements("192.0.2.1/32", peers=("eth0",))) == ["192.0.2.0/24"]


def test_those_that_get_the_addresses_besides() -> None:
    rules = settings("192.0.2.0/24", to=("eth0", "203.0.113.9", "203.0.113.1", "eth0"))
    found, problems = compile_aggregates(rules, announcements("192.0.2.1/32"), PEERS)
    assert found == (
        Aggregate(prefix=ip_network("192.0.2.0/24"), specific_to=("203.0.113.1", "eth0")),
    )
    reason = "203.0.113.9 is no configured router outside the cluster; it is left out"
    assert problems == (Problem("Flag --advertise-specifics-to", "", reason),)


bits = st.integers(0, 255)


@given(
    aggregates=st.lists(st.tuples(bits, st.integers(24, 31)), max_size=4),
    addresses=st.sets(bits, max_size=6),
)
def test_as_asked_of_each_address(aggregates: list[tuple[int, int]], addresses: set[int]) -> None:
    networks = [ip_network(f"192.0.2.{n}/{length}", strict=False) for n, length in aggregates]
    services = announcements("192.0.1.255/32", "192.0.3.0/32", *(f"192.0.2.{n}" for n in addresses))
    expected = {
        network
        for network in networks
        if any(each.prefix.network_address in network for each in services)
    }
    found = standing(settings(*map(str, networks)), services)
    assert found == [str(each) for each in sorted(expected, key=prefix_order)]
