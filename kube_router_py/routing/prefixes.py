"""Prefixes: their order, and how ranges of them are kept few. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses

from kube_router_py.routing.model import Address, Network, PrefixRange, Version


def prefix_order(prefix: Network) -> tuple[int, bytes, int]:
    """By family, IPv4 first, then by address, then by length."""
    return prefix.version, prefix.network_address.packed, prefix.prefixlen


def range_order(each: PrefixRange) -> tuple[tuple[int, bytes, int], int, int]:
    """As their networks, then by lengths."""
    return prefix_order(each.network), each.shortest, each.longest


def host_prefix(address: Address) -> Network:
    """The prefix that is this address alone."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address.packed, 32))
    return IPv6Network((address.packed, 128))


def collapse(networks: Iterable[Network], version: Version) -> list[Network]:
    """The fewest networks that are, together, those given of one IP version."""
    if version == 4:
        return list(collapse_addresses(n for n in networks if isinstance(n, IPv4Network)))
    return list(collapse_addresses(n for n in networks if isinstance(n, IPv6Network)))
