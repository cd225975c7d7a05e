"""The lowest free address, against the plainest way to find it."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.address_pools import AddressRange
from kube_router_py.loadbalancer.free_addresses import FreeAddresses

_BASE = int(ip_address("10.0.0.240"))


def _range(first: int, size: int) -> AddressRange:
    return AddressRange(ip_address(_BASE + first), ip_address(_BASE + first + size - 1))


@st.composite
def _ranges(draw: st.DrawFn) -> list[AddressRange]:
    """Disjoint, in any order."""
    gaps = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
    made, at = [], 0
    for gap, size in gaps:
        made.append(_range(at + gap, size))
        at += gap + size
    return draw(st.permutations(made))


@given(_ranges(), st.booleans(), st.lists(st.integers(0, 60), max_size=80))
def test_it_is_the_first_that_is_not_in_use(
    ranges: list[AddressRange], avoid_buggy: bool, picks: list[int]
) -> None:
    everything = [value for each in ranges for value in range(int(each.first), int(each.last) + 1)]
    usable = [each for each in everything if not avoid_buggy or each % 256 not in (0, 255)]
    addresses = FreeAddresses(ranges, avoid_buggy)
    used: set[int] = set()
    assert (addresses.size, addresses.usable) == (len(everything), len(usable))
    for pick in picks:
        free = [each for each in usable if each not in used]
        assert addresses.lowest() == (free[0] if free else None)
        assert (addresses.used, addresses.free) == (len(used), len(free))
        value = everything[pick % len(everything)]
        if pick % 3 and (found := addresses.lowest()) is not None:
            addresses.take(found)
            used.add(found)
        elif value in used:
            addresses.release(value)
            used.remove(value)
        else:
            addresses.take(value)
            addresses.take(value)
            used.add(value)


def test_only_ipv4_has_addresses_that_confuse_old_devices() -> None:
    ranges = [AddressRange(ip_address("fd00::"), ip_address("fd00::ff"))]
    addresses = FreeAddresses(ranges, avoid_buggy=True)
    assert addresses.usable == 256
    assert addresses.may_give(int(ip_address("fd00::ff")))
    ranges = [AddressRange(ip_address("10.0.0.0"), ip_address("10.0.1.255"))]
    assert not FreeAddresses(ranges, avoid_buggy=True).may_give(int(ip_address("10.0.0.255")))
    assert FreeAddresses(ranges).may_give(int(ip_address("10.0.0.255")))
