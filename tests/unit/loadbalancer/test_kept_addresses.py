"""Ranges less others, and the text of the addresses that Services keep."""

from ipaddress import IPv4Address, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.address_pools import (
    Address,
    AddressPools,
    AddressRange,
    Pool,
    load_balancer_ranges,
)
from kube_router_py.address_ranges import parse_range, remaining
from kube_router_py.kept_addresses import LONGEST, KeptAddresses, parse_kept

CLUSTER = (ip_network("10.96.0.0/16"),)


def ranges(text: str) -> tuple[AddressRange, ...]:
    return tuple(map(parse_range, text.split(","))) if text else ()


def addresses(*texts: str) -> list[Address]:
    return [ip_address(each) for each in texts]


BASES = (int(ip_address("192.0.2.0")), int(ip_address("2001:db8::")))


@st.composite
def some_ranges(draw: st.DrawFn) -> list[AddressRange]:
    found = []
    for base, first, size in draw(
        st.lists(st.tuples(st.sampled_from(BASES), st.integers(0, 20), st.integers(0, 6)))
    ):
        found.append(AddressRange(ip_address(base + first), ip_address(base + first + size)))
    return found


def members(given: object) -> set[Address]:
    assert isinstance(given, list | tuple)
    return {
        ip_address(number)
        for each in given
        for number in range(int(each.first), int(each.last) + 1)
    }


@given(some_ranges(), some_ranges())
def test_what_remains_is_what_is_not_taken_in_order_and_as_few_as_can_be(
    given: list[AddressRange], taken: list[AddressRange]
) -> None:
    found = remaining(given, taken)
    assert members(found) == members(given) - members(taken)
    ends = [(each.version, int(each.first), int(each.last)) for each in found]
    for (version, _, last), (after, first, _) in pairwise(ends):
        assert (version, last + 1) < (after, first)
    pools = AddressPools(retired=found)
    for each in members(given) | members(taken):
        assert pools.is_retired(each) == (each in members(found))


def test_the_whole_of_both_families_can_be_taken_and_left() -> None:
    everything = ranges("0.0.0.0/0,::/0")
    assert remaining(everything) == everything
    assert remaining(everything, everything) == ()
    most = remaining(everything, ranges("255.255.255.255,::"))
    assert [(str(each.first), str(each.last)) for each in most] == [
        ("0.0.0.0", "255.255.255.254"),
        ("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]


def test_addresses_of_load_balancers_may_be_where_pools_were() -> None:
    pools = AddressPools(
        (Pool("one", ranges("192.0.2.0/25")),), ranges("192.0.2.128/25,203.0.113.7")
    )
    flags = (ip_network("203.0.113.0/24"),)
    assert load_balancer_ranges(flags, pools) == (
        ip_network("203.0.113.0/24"),
        ip_network("192.0.2.0/25"),
        ip_network("192.0.2.128/25"),
    )
    assert pools.networks() == (ip_network("192.0.2.0/25"),)
    assert pools.of(ip_address("192.0.2.200").packed) is None


def test_the_text_names_what_services_keep_at_the_moment() -> None:
    kept = KeptAddresses()
    assert kept.text == ""
    kept.put("ns/a", addresses("192.0.2.7", "2001:db8::1"))
    kept.put("ns/b", addresses("192.0.2.10"))
    kept.put("ns/c", addresses("192.0.2.9"))
    kept.put("ns/d", addresses("192.0.2.9"))  # they share it
    assert kept.text == "192.0.2.7,192.0.2.9-192.0.2.10,2001:db8::1"
    kept.put("ns/c", ())
    assert kept.text == "192.0.2.7,192.0.2.9-192.0.2.10,2001:db8::1"
    kept.put("ns/d", ())
    kept.put("ns/d", ())
    kept.put("ns/unknown", ())
    kept.put("ns/a", addresses("2001:db8::2"))
    assert kept.text == "192.0.2.10,2001:db8::2"


@given(st.frozensets(st.integers(0, 40)))
def test_what_is_written_is_what_is_read(numbers: frozenset[int]) -> None:
    kept = KeptAddresses()
    expected = set()
    for number in numbers:
        both = [ip_address(base + number) for base in BASES]
        expected.update(both)
        kept.put(f"ns/{number}", both)
    assert members(parse_kept(kept.text, CLUSTER)) == expected


def test_a_text_that_would_be_too_long_ends_with_a_whole_address() -> None:
    kept = KeptAddresses()
    first = int(ip_address("192.0.0.0"))
    many = [IPv4Address(first + 2 * number) for number in range(8000)]
    kept.put("ns/many", many)
    assert LONGEST - 20 < len(kept.text) <= LONGEST
    found = members(parse_kept(kept.text, CLUSTER))
    assert found == set(many[: len(found)])
    # And as much is read of what somebody else wrote.
    long = ",".join(map(str, many))
    assert members(parse_kept(long, CLUSTER)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("x,192.0.2.1,,192.0.2.300,192.0.2.9-192.0.2.8", "192.0.2.1"),
        ("10.96.0.1,10.97.0.1", "10.97.0.1"),
        ("10.95.255.255-10.96.0.3", "10.95.255.255"),
        ("127.0.0.1,169.254.1.1,224.0.0.1,::1,fe80::1,ff02::1,192.0.2.1", "192.0.2.1"),
        ("0.0.0.0/0,::/0,2001:db8::/64,10.0.0.0/15", ""),
    ],
)
def test_what_no_pool_could_have_is_left_out(text: str, expected: str) -> None:
    assert parse_kept(text, CLUSTER) == ranges(expected)
