"""Ranges less others, pools that were before, and the text of what Services keep of them."""

import json
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.address_pool_config import PoolSettings, parse_config
from kube_router_py.address_pools import (
    DEFAULT_POOL,
    Address,
    AddressPools,
    AddressRange,
    Announcing,
    Pool,
    load_balancer_ranges,
)
from kube_router_py.address_ranges import parse_range, remaining
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.kept_addresses import LONGEST, KeptAddresses
from kube_router_py.retired_pools import read_past, retire

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


def test_the_whole_of_both_families_can_be_taken_and_left() -> None:
    everything = ranges("0.0.0.0/0,::/0")
    assert remaining(everything) == everything
    assert remaining(everything, everything) == ()
    most = remaining(everything, ranges("255.255.255.255,::"))
    assert [(str(each.first), str(each.last)) for each in most] == [
        ("0.0.0.0", "255.255.255.254"),
        ("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]


@st.composite
def some_pools(draw: st.DrawFn) -> tuple[Pool, ...]:
    """Disjoint; some of one name, some announced alike."""
    taken: list[AddressRange] = []
    found = []
    for name, bgp in draw(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=4)):
        own = remaining(draw(some_ranges()), taken)
        taken += own
        found.append(Pool(name, own, priority=3, announcing=Announcing(bgp=bgp)))
    return tuple(found)


@given(some_pools(), st.lists(some_pools(), max_size=3))
def test_what_was_in_pools_before_is_retired_as_it_was_last(
    now: tuple[Pool, ...], before: list[tuple[Pool, ...]]
) -> None:
    pools = retire(AddressPools(now), *before)
    expected = {each: pool for pool in now for each in members(pool.ranges)}
    for group in before:
        for pool in group:
            for each in members(pool.ranges):
                expected.setdefault(each, pool)
    assert pools.pools == now
    every = set().union(*(members(each.ranges) for group in (now, *before) for each in group))
    for each in every:
        pool = expected[each]
        assert pools.announcing_of(each.packed) == (pool.name, pool.announcing)
        kept = pools.retired_of(each.packed)
        assert (kept is None) == (pool in now and pools.of(each.packed) is not None)
    assert {each for pool in pools.retired for each in members(pool.ranges)} == every.difference(
        *(members(each.ranges) for each in now)
    )
    for pool in pools.retired:
        assert pool.ranges == remaining(pool.ranges) != ()
        assert pool == Pool(pool.name, pool.ranges, auto_assign=False, announcing=pool.announcing)
    assert retire(AddressPools(now), pools.retired) == pools
    assert retire(AddressPools(now), tuple(reversed(pools.retired))) == pools


def test_many_pools_may_go_at_once() -> None:
    """More than fit into a ConfigMap, in time that is not that of its square."""
    before = tuple(Pool(f"a{n}", ranges(f"10.{n // 250}.{n % 250}.0/25")) for n in range(5_000))
    now = tuple(Pool(f"b{n}", ranges(f"10.{n // 250}.{n % 250}.0/26")) for n in range(5_000))
    found = retire(AddressPools(now), before)
    assert len(found.retired) == 5_000
    assert all(each.ranges[0].size == 64 for each in found.retired)


def test_addresses_of_load_balancers_may_be_where_pools_were() -> None:
    gone = (Pool("a", ranges("203.0.113.7")), Pool("b", ranges("192.0.2.128/25")))
    pools = AddressPools((Pool("one", ranges("192.0.2.0/25")),), gone)
    flags = (ip_network("203.0.113.0/24"),)
    assert load_balancer_ranges(flags, pools) == (
        ip_network("203.0.113.0/24"),
        ip_network("192.0.2.0/25"),
        ip_network("192.0.2.128/25"),
    )
    assert pools.networks() == (ip_network("192.0.2.0/25"),)
    assert pools.of(ip_address("192.0.2.200").packed) is None


# --- the text -------------------------------------------------------------------------------------

RETIRED = AddressPools(
    retired=(
        Pool("six", ranges("2001:db8::/64")),
        Pool("web", ranges("192.0.2.0/24"), announcing=Announcing(bgp=True)),
    )
)


def left(kept: KeptAddresses, pools: AddressPools = RETIRED) -> dict[str, str]:
    """By the names of pools, what the text says of their addresses."""
    return {
        each["name"]: ",".join(each["addresses"]) for each in json.loads(kept.text(pools) or "[]")
    }


def test_the_text_names_what_services_keep_at_the_moment() -> None:
    kept = KeptAddresses()
    assert kept.text(RETIRED) == ""
    kept.put("ns/a", addresses("192.0.2.7", "2001:db8::1"))
    kept.put("ns/b", addresses("192.0.2.10"))
    kept.put("ns/c", addresses("192.0.2.9"))
    kept.put("ns/d", addresses("192.0.2.9"))  # they share it
    every = {"six": "2001:db8::1", "web": "192.0.2.7,192.0.2.9-192.0.2.10"}
    assert left(kept) == every
    kept.put("ns/c", ())
    assert left(kept) == every
    kept.put("ns/d", ())
    kept.put("ns/d", ())
    kept.put("ns/unknown", ())
    kept.put("ns/a", addresses("2001:db8::2"))
    assert left(kept) == {"six": "2001:db8::2", "web": "192.0.2.10"}
    # The pools change before Services have been looked at again.
    assert left(kept, AddressPools(retired=RETIRED.retired[:1])) == {"six": "2001:db8::2"}
    assert kept.text(AddressPools()) == ""


def test_the_text_is_a_list_of_pools_as_in_the_config_map() -> None:
    kept = KeptAddresses()
    kept.put("ns/a", addresses("192.0.2.7", "2001:db8::1"))
    assert kept.text(RETIRED) == (
        '[{"name":"six","addresses":["2001:db8::1"]},'
        '{"name":"web","addresses":["192.0.2.7"],"announce":{"bgp":true}}]'
    )
    parsed = parse_config(kept.text(RETIRED), PoolSettings(ipv6=True))
    assert parsed.problems == ()
    assert [each.announcing.bgp for each in parsed.pools] == [None, True]


def test_the_pool_of_the_flags_is_there_as_a_whole() -> None:
    """Nobody else knows of it when agents start with another flag."""
    default = Pool(
        DEFAULT_POOL, ranges("203.0.113.0/24,203.0.114.1"), announcing=Announcing(interfaces=("x",))
    )
    other = Pool("other", ranges("198.51.100.0/24"))
    kept = KeptAddresses()
    kept.put("ns/a", addresses("192.0.2.7"))
    pools = AddressPools((default, other), RETIRED.retired)
    assert left(kept, pools) == {
        DEFAULT_POOL: "203.0.113.0-203.0.113.255,203.0.114.1",
        "web": "192.0.2.7",
    }
    assert [each.announcing for each in read_past(kept.text(pools), CLUSTER)] == [
        Announcing(),  # links are of no account without layer 2
        Announcing(bgp=True),
    ]


requirements = st.one_of(
    st.builds(
        Requirement,
        st.sampled_from(["color", "example.com/rack"]),
        st.sampled_from(["In", "NotIn"]),
        st.lists(st.sampled_from(["", "red", "1", "true", "null"]), min_size=1, unique=True).map(
            lambda found: tuple(sorted(found))
        ),
    ),
    st.builds(Requirement, st.just("color"), st.sampled_from(["Exists", "DoesNotExist"])),
)
announcings = st.builds(
    lambda layer2, links, **other: Announcing(
        layer2=layer2, interfaces=links if layer2 else (), **other
    ),
    st.booleans(),
    st.lists(st.sampled_from(["eth0", "bond*", "?0", "0"]), max_size=2).map(tuple),
    bgp=st.sampled_from([None, True, False]),
    nodes=st.lists(requirements, max_size=2, unique=True).map(
        lambda found: Selector(tuple(sorted(found)))
    ),
    communities=st.sampled_from(["", "65000:7", "65000:7,no-export", "1:2:3", "0x10"]),
    local_preference=st.sampled_from([None, 0, 4294967295]),
)


@given(
    st.frozensets(st.integers(0, 40)), st.lists(announcings, min_size=3, max_size=3, unique=True)
)
def test_what_is_written_is_what_is_read(numbers: frozenset[int], found: list[Announcing]) -> None:
    pools = AddressPools(
        retired=(
            Pool("a", ranges("192.0.2.0-192.0.2.15,2001:db8::-2001:db8::f"), announcing=found[0]),
            Pool("a", ranges("192.0.2.16/28"), announcing=found[1]),
            Pool("b", ranges("2001:db8::10-2001:db8::1f"), announcing=found[2]),
        )
    )
    kept = KeptAddresses()
    expected = {}
    for number in numbers:
        both = [ip_address(base + number) for base in BASES]
        kept.put(f"ns/{number}", both)
        for each in both:
            if pools.retired_of(each.packed) is not None:
                expected[each] = pools.announcing_of(each.packed)
    read = read_past(kept.text(pools), CLUSTER)
    assert {
        each: (pool.name, pool.announcing) for pool in read for each in members(pool.ranges)
    } == expected


def test_a_text_that_would_be_too_long_ends_with_a_whole_address() -> None:
    kept = KeptAddresses()
    first = int(ip_address("10.0.0.0"))
    many = [IPv4Address(first + 2 * number) for number in range(8000)]
    kept.put("ns/many", many)
    kept.put("ns/last", addresses("192.0.2.1"))
    pools = AddressPools(retired=(Pool("a", ranges("10.0.0.0/8")), *RETIRED.retired))
    text = kept.text(pools)
    assert LONGEST - 100 < len(text) <= LONGEST
    (pool,) = read_past(text, CLUSTER)
    found = members(pool.ranges)
    assert found == set(many[: len(found)])
    # Nothing is read of what is longer yet, whoever wrote it.
    assert read_past(text.ljust(LONGEST), CLUSTER) == (pool,)
    assert read_past(text.ljust(LONGEST + 1), CLUSTER) == ()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("", ""),
        ("x,192.0.2.1,'',192.0.2.300,192.0.2.9-192.0.2.8", "192.0.2.1"),
        ("10.96.0.1,10.97.0.1", "10.97.0.1"),
        ("10.95.255.255-10.96.0.3", "10.95.255.255"),
        ("127.0.0.1,169.254.1.1,224.0.0.1,'::1','fe80::1','ff02::1',192.0.2.1", "192.0.2.1"),
    ],
)
def test_what_no_pool_could_have_is_left_out(listed: str, expected: str) -> None:
    (found,) = read_past(f"- {{name: a, addresses: [{listed}]}}", CLUSTER)
    assert found.ranges == ranges(expected)


def test_of_what_is_wrong_by_now_the_rest_is_read() -> None:
    text = (
        "- {name: a, addresses: [192.0.2.0/30], announce: {bgp: true, later: x}}\n"
        "- nonsense\n"
        "- {name: A, addresses: ['2001:db8::1'], announce: {layer2: maybe, localPreference: 3}}\n"
        "- {name: a, addresses: [192.0.2.0/24]}\n"
    )
    assert [(each.name, each.ranges, each.announcing) for each in read_past(text, ())] == [
        ("a", ranges("192.0.2.0/30"), Announcing(bgp=True)),
        ("", (), Announcing()),
        ("", ranges("2001:db8::1"), Announcing(local_preference=3)),
        ("a", ranges("192.0.2.0/24"), Announcing()),
    ]
