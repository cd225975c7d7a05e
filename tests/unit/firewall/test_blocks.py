"""A network without others: as by counting addresses, in as few networks as there can be."""

import ipaddress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.firewall.blocks import Network, subtract

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
    left = subtract(whole, [*holes, other])
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
