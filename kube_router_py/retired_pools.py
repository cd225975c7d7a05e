"""What was in address pools before: retired by edits, or told of the time before a start. Pure."""

from bisect import bisect_right, insort
from collections.abc import Iterable

from msgspec import structs

from kube_router_py.address_pool_config import LONGEST
from kube_router_py.address_pools import AddressPools, AddressRange, Announcing, Pool
from kube_router_py.address_ranges import remaining, usable_parts
from kube_router_py.pool_reader import read_items, read_pool
from kube_router_py.services import Network


def retire(pools: AddressPools, *before: tuple[Pool, ...]) -> AddressPools:
    """These pools after others were there, the latest first: what is in none now is retired."""
    taken = sorted(pools.ranges, key=_place)
    found: dict[tuple[str, Announcing], list[AddressRange]] = {}
    for pool in (each for group in before for each in group):
        for part in pool.ranges:
            gone = remaining((part,), _near(part, taken))
            if gone:
                found.setdefault((pool.name, pool.announcing), []).extend(gone)
            for each in gone:
                insort(taken, each, key=_place)
    retired = (
        Pool(name, remaining(ranges), auto_assign=False, announcing=announcing)
        for (name, announcing), ranges in found.items()
    )
    ordered = sorted(retired, key=lambda each: (each.name, _place(each.ranges[0])))
    return structs.replace(pools, retired=tuple(ordered))


def _near(part: AddressRange, taken: list[AddressRange]) -> list[AddressRange]:
    """Those of ranges, disjoint and in order, that may have an address of this one."""
    begin = bisect_right(taken, _place(part), key=_place)
    end = bisect_right(taken, (part.version, int(part.last)), lo=begin, key=_place)
    return taken[max(0, begin - 1) : end]


def _place(found: AddressRange) -> tuple[int, int]:
    return found.version, int(found.first)


def read_past(text: str, cluster_ranges: Iterable[Network]) -> tuple[Pool, ...]:
    """The pools of a ConfigMap that was accepted, or of a text of ``kept_addresses``, as far as
    they can be read.

    Flags may be others than when it was written, so that pools may be none by now, or have the
    names and addresses of others. What could be in no pool (ClusterIPs, for instance) is left out.
    """
    if len(text.encode(errors="surrogatepass")) > LONGEST:
        return ()
    try:
        items = read_items(text)
    except ValueError:
        return ()
    taken = tuple(cluster_ranges)
    drafts = (read_pool(item, "", lambda field, reason: None) for item in items)
    return tuple(
        structs.replace(
            each.pool,
            ranges=tuple(part for found in each.pool.ranges for part in usable_parts(found, taken)),
        )
        for each in drafts
    )
