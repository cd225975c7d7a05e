"""Pools of addresses for Services of type LoadBalancer: values that all parts share. Pure.

The service proxy and the firewall take them for ranges in which such a Service may have an address,
the route controller and the announcer for how an address is announced, the allocator for what there
is to give.
"""

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable

from msgspec import Struct

from kube_router_py.cluster.selectors import EVERYTHING, Selector
from kube_router_py.services import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_POOL = "default"
"""The pool that --loadbalancer-ip-range makes."""


class AddressRange(Struct, frozen=True):
    """The addresses from ``first`` to ``last``, both included and of one family."""

    first: Address
    last: Address

    @property
    def version(self) -> int:
        return self.first.version

    @property
    def size(self) -> int:
        return int(self.last) - int(self.first) + 1

    def has(self, address: Address) -> bool:
        if address.version != self.version:
            return False
        return int(self.first) <= int(address) <= int(self.last)


class Announcing(Struct, frozen=True):
    """How the addresses of a pool are announced.

    ``bgp``: None leaves it to --advertise-loadbalancer-ip; the annotation of a Service decides in
    any case. ``layer2``: by ARP and NDP, on links of these names (none: all that are fit for it;
    ``*`` and ``?`` as in file names). ``nodes`` are those that announce at all. ``communities`` (as
    in the annotation ``kube-router.io/service.bgp.communities``) and ``local_preference`` hold for
    Services that have none of their own.
    """

    bgp: bool | None = None
    layer2: bool = False
    interfaces: tuple[str, ...] = ()
    nodes: Selector = EVERYTHING
    communities: str = ""
    local_preference: int | None = None


class Pool(Struct, frozen=True):
    """Addresses to give, and to whom.

    ``ranges`` are disjoint, in the order in which they are used up. ``priority``: the lower number
    comes first. ``namespaces`` (labels of the Service's namespace) and ``services`` (its own
    labels) both have to select a Service; ``namespace_names`` None: all. Unless ``auto_assign``,
    only Services that ask for it get an address of it. ``avoid_buggy_ips``: neither .0 nor .255 of
    IPv4. ``reallocate``: a Service whose address is in no pool any more gets another one.
    """

    name: str
    ranges: tuple[AddressRange, ...]
    auto_assign: bool = True
    avoid_buggy_ips: bool = False
    namespace_names: frozenset[str] | None = None
    namespaces: Selector = EVERYTHING
    services: Selector = EVERYTHING
    priority: int = 0
    reallocate: bool = False
    announcing: Announcing = Announcing()

    def has(self, address: Address) -> bool:
        return any(each.has(address) for each in self.ranges)


class AddressPools(Struct, frozen=True):
    """All pools; no two have an address in common. In the order of priority, then of names.

    ``retired``: what was in pools before an edit took it away, apart from each other and from all
    pools, as pools of sorted ranges that say no more than how they were announced. Nobody gets an
    address of them, but who has one goes on to be served at it, announced as before: nothing names
    such an address but the status of a Service, which users may not write, so that nobody can draw
    traffic by them.
    """

    pools: tuple[Pool, ...] = ()
    retired: tuple[Pool, ...] = ()

    def of(self, packed: bytes) -> Pool | None:
        """The pool that has an address (packed)."""
        address = ipaddress.ip_address(packed)
        return next((each for each in self.pools if each.has(address)), None)

    def retired_of(self, packed: bytes) -> Pool | None:
        """The pool that an address (packed) was taken out of."""
        if not self.retired:
            return None
        address = ipaddress.ip_address(packed)
        return next((each for each in self.retired if _is_in_sorted(address, each.ranges)), None)

    def announcing_of(self, packed: bytes) -> tuple[str, Announcing] | None:
        """How an address (packed) is announced, behind the name of the pool that says so; None: it
        is and was in none."""
        pool = self.of(packed) or self.retired_of(packed)
        return (pool.name, pool.announcing) if pool is not None else None

    @property
    def ranges(self) -> tuple[AddressRange, ...]:
        """Those of all pools."""
        return tuple(each for pool in self.pools for each in pool.ranges)

    def networks(self) -> tuple[Network, ...]:
        """All addresses of pools as networks."""
        return _networks(self.ranges)

    def retired_networks(self) -> tuple[Network, ...]:
        """All that is retired as networks, in order."""
        ranges = (each for pool in self.retired for each in pool.ranges)
        return _networks(sorted(ranges, key=lambda each: _place(each.first)))


def load_balancer_ranges(flags: Iterable[Network], pools: AddressPools) -> tuple[Network, ...]:
    """Where the addresses of load balancers may be: the networks that flags name, and those of all
    pools that lie in none of them, also what was taken out of pools."""
    given = tuple(dict.fromkeys(flags))
    pooled = (*pools.networks(), *pools.retired_networks())
    return (*given, *(each for each in pooled if not _is_in_any(each, given)))


def _networks(ranges: Iterable[AddressRange]) -> tuple[Network, ...]:
    return tuple(
        network
        for each in ranges
        for network in ipaddress.summarize_address_range(each.first, each.last)
    )


def _place(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _is_in_sorted(address: Address, ranges: tuple[AddressRange, ...]) -> bool:
    index = bisect_right(ranges, _place(address), key=lambda each: _place(each.first))
    return index > 0 and ranges[index - 1].has(address)


def _is_in_any(network: Network, others: Iterable[Network]) -> bool:
    return any(
        network.version == each.version
        and network.prefixlen >= each.prefixlen
        and network.network_address in each
        for each in others
    )
