"""Ranges of addresses as operators write them, and what they may not have in common. Pure."""

import re
from collections.abc import Hashable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

from kube_router_py.address_pools import Address, AddressRange
from kube_router_py.services import Network

T = TypeVar("T", bound=Hashable)

_CIDR = re.compile(r"([0-9a-fA-F.:]{2,45})/([0-9]{1,3})", re.ASCII)
_EXAMPLE = "write it like 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 2001:db8::10"

# What no Service can have, whatever its cluster: the API server refuses most of it (validation of
# spec.externalIPs), routers and kernels the rest (RFC 1122, RFC 4291).
_UNUSABLE: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(text), name)
    for text, name in (
        ("0.0.0.0/8", "unspecified addresses"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    )
)


def range_of(network: Network) -> AddressRange:
    """All addresses of a network, the first and the last included."""
    return AddressRange(network[0], network[-1])


def parse_range(text: str) -> AddressRange:
    """A CIDR, two addresses with a dash between, or one address.

    Raises ValueError, whose text goes on after the value: "is no range of addresses; ...".
    """
    text = text.strip()
    if "/" in text:
        return _cidr(text)
    first, dash, last = text.partition("-")
    found = AddressRange(_address(first), _address(last if dash else first))
    if found.first.version != found.last.version:
        raise ValueError("begins in one address family and ends in the other; write two ranges")
    if int(found.first) > int(found.last):
        raise ValueError("ends before it begins; write the lower address first")
    return found


def _cidr(text: str) -> AddressRange:
    match = _CIDR.fullmatch(text)
    if match is None:
        raise ValueError(f"is no range of addresses; {_EXAMPLE}")
    address, length = _address(match[1]), int(match[2])
    if length > address.max_prefixlen:
        raise ValueError(f"has a prefix longer than {address.max_prefixlen} bits; correct it")
    network = ip_network((int(address).to_bytes(address.max_prefixlen // 8), length), strict=False)
    if network[0] != address:
        raise ValueError(f"has an address inside of its network; write {network}, or the address")
    return range_of(network)


def _address(text: str) -> Address:
    try:
        address = ip_address(text.strip())
    except ValueError:
        raise ValueError(f"is no range of addresses; {_EXAMPLE}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("has a zone; leave out what is behind the percent sign")
    return address


def unusable(found: AddressRange) -> str:
    """Which addresses in a range no Service can have, in words; ``""``: it can have all."""
    for network, name in _UNUSABLE:
        if overlap(found, range_of(network)):
            return f"{name} ({network})"
    return ""


def overlap(one: AddressRange, other: AddressRange) -> bool:
    """Whether two ranges have an address in common."""
    if one.version != other.version:
        return False
    return int(one.first) <= int(other.last) and int(other.first) <= int(one.last)


def overlaps(ranges: Iterable[tuple[T, AddressRange]]) -> Iterator[tuple[T, T]]:
    """Pairs of ranges, by what goes with them, that have an address in common: enough of them that
    each range which overlaps any other is in one, and no more than there are ranges."""
    furthest: dict[int, tuple[T, AddressRange]] = {}
    for owner, each in sorted(ranges, key=lambda item: (item[1].version, int(item[1].first))):
        known = furthest.get(each.version)
        if known is not None and overlap(known[1], each):
            yield known[0], owner
        if known is None or int(each.last) > int(known[1].last):
            furthest[each.version] = owner, each


def usable_parts(found: AddressRange, taken: Iterable[Network]) -> tuple[AddressRange, ...]:
    """What is left of a range without the addresses that no Service can have and those ``taken``,
    in order."""
    parts = [found]
    for network in (*(network for network, _ in _UNUSABLE), *taken):
        parts = [rest for part in parts for rest in _without(part, range_of(network))]
    return tuple(parts)


def _without(part: AddressRange, hole: AddressRange) -> Iterator[AddressRange]:
    if not overlap(part, hole):
        yield part
        return
    kind = IPv4Address if part.version == 4 else IPv6Address
    if int(part.first) < int(hole.first):
        yield AddressRange(part.first, kind(int(hole.first) - 1))
    if int(part.last) > int(hole.last):
        yield AddressRange(kind(int(hole.last) + 1), part.last)


def remaining(
    ranges: Iterable[AddressRange], taken: Iterable[AddressRange] = ()
) -> tuple[AddressRange, ...]:
    """What of these ranges is in none of those taken: sorted, disjoint, as few as can be."""
    ranges, taken = tuple(ranges), tuple(taken)
    found: list[AddressRange] = []
    for version, kind in ((4, IPv4Address), (6, IPv6Address)):
        holes, begin = _merged(taken, version), 0
        for first, last in _merged(ranges, version):
            while begin < len(holes) and holes[begin][1] < first:
                begin += 1
            index = begin
            while index < len(holes) and (low := holes[index][0]) <= last:
                if first < low:
                    found.append(AddressRange(kind(first), kind(low - 1)))
                first = holes[index][1] + 1
                index += 1
            if first <= last:
                found.append(AddressRange(kind(first), kind(last)))
    return tuple(found)


def _merged(ranges: Iterable[AddressRange], version: int) -> list[tuple[int, int]]:
    """Those of one family, in order and without neighbors, as numbers."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(
        (int(each.first), int(each.last)) for each in ranges if each.version == version
    ):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged
