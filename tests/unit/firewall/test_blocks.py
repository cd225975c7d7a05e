"""A network without others: as by counting addresses, in as few networks as there can be."""

import ipaddress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.cluster.objects import IPBlock
from kube_router_py.firewall import blocks
from kube_router_py.firewall.blocks import Network, compile_block, subtract

# Near the ends of the number range, where arithmetic goes wrong.
BASES = {4: (0, 0x0A000000, 0xFFFFFF00), 6: (0, 0xFD << 120, (1 << 128) - 256)}


def networks(version: int, narrowest: int, widest: int) -> st.SearchStrategy[Network]:
    bits = 32 if version == 4 else 128

    def network(base: int, host: int, length: int) -> Network:
        kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
        return kind((base + host, bits - length), strict=False)

    return st.builds(
        network,
        st.sampled_from(BASES[version]),
        st.integers(0, 255),
        st.integers(narrowest, widest),
    )


@pytest.mark.parametrize("version", [4, 6])
@given(st.data())
def test_what_is_left_is_what_no_hole_covers(version: int, data: st.DataObject) -> None:
    whole = data.draw(networks(version, 0, 8))
    holes = data.draw(st.lists(networks(version, 0, 9), max_size=4))
    other = data.draw(networks(10 - version, 0, 8))
    left = [*subtract(whole, [*holes, other])]
    wanted = [each for each in whole if not any(each in hole for hole in holes)]
    assert [each for network in left for each in network] == wanted
    fewest: list[Any] = list(ipaddress.collapse_addresses(cast("list[Any]", left)))
    assert fewest == left


@pytest.mark.parametrize(
    ("whole", "holes", "left"),
    [
        ("0.0.0.0/0", [], ["0.0.0.0/0"]),
        ("0.0.0.0/0", ["0.0.0.0/0"], []),
        ("0.0.0.0/0", ["0.0.0.0/1"], ["128.0.0.0/1"]),
        ("::/0", ["8000::/1"], ["::/1"]),
        ("10.0.0.0/30", ["10.0.0.1/32", "10.0.0.0/31"], ["10.0.0.2/31"]),
        ("10.0.0.0/24", ["10.0.0.0/8"], []),
        ("10.0.0.0/24", ["10.0.1.0/24", "9.255.255.0/24", "::/0"], ["10.0.0.0/24"]),
    ],
)
def test_ends_of_the_number_range(whole: str, holes: list[str], left: list[str]) -> None:
    parsed = [ipaddress.ip_network(hole) for hole in holes]
    assert [str(x) for x in subtract(ipaddress.ip_network(whole), parsed)] == left


def matched(entries: tuple[str, ...], address: Any) -> bool:
    """As a set of type hash:net does: the longest prefix decides."""
    found = [
        (ipaddress.ip_network(network).prefixlen, not flag)
        for network, _, flag in (entry.partition(" ") for entry in entries)
        if address in ipaddress.ip_network(network)
    ]
    return max(found, default=(0, False))[1]


@pytest.mark.parametrize("version", [4, 6])
@given(st.data())
def test_exceptions_that_are_entries_themselves_leave_the_same(
    version: int, data: st.DataObject
) -> None:
    bits = 32 if version == 4 else 128
    wholes = networks(version, 0, 8) | networks(version, bits, bits)
    whole = data.draw(wholes)
    holes = data.draw(st.lists(networks(version, 0, 9) | networks(version, bits, bits), max_size=4))
    holes += data.draw(st.lists(st.sampled_from(list(whole.subnets())), max_size=2))
    block = IPBlock(str(whole), tuple(map(str, holes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_DISJOINT_MOST", 0)
        entries = compile_block(block).networks
    assert not any(entry.split()[0].endswith("/0") for entry in entries)
    assert len(entries) <= len(holes) + 2
    near = [int(whole.network_address), int(whole.broadcast_address), 1 << bits - 1]
    near += [int(end) for hole in holes for end in (hole[0], hole[-1])]
    kind = type(whole.network_address)
    for number in {max(0, min(n + d, (1 << bits) - 1)) for n in near for d in (-1, 0, 1)}:
        address = kind(number)
        wanted = address in whole and not any(address in hole for hole in holes)
        assert matched(entries, address) == wanted, address


def test_a_block_of_many_exceptions_is_as_large_as_they_are() -> None:
    holes = tuple(f"2001:db8:{n:x}:1:2:3:4:5/128" for n in range(3000))
    assert len(compile_block(IPBlock("::/0", holes)).networks) == 3002
    # Far fewer leave disjoint networks.
    assert len(compile_block(IPBlock("::/0", holes[:1])).networks) == 128
