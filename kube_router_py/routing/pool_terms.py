"""What pools of addresses say of announcing their addresses, as one node takes it. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.address_pools import AddressPools, Pool
from kube_router_py.routing.communities import parse_communities
from kube_router_py.routing.model import Community


class PoolTerms(Struct, frozen=True):
    """One pool, whose ``ranges`` are pairs of a first and a last address (packed), in order, those
    of IPv4 first.

    ``is_here``: this node may announce them. ``is_announced``: whether they are announced where no
    annotation says so or not; None leaves it to the flag. ``communities`` and ``local_preference``
    hold for Services without annotations of that sort.
    """

    ranges: tuple[tuple[bytes, bytes], ...] = ()
    is_here: bool = True
    is_announced: bool | None = None
    communities: tuple[Community, ...] = ()
    local_preference: int | None = None

    @property
    def has_terms(self) -> bool:
        return bool(self.communities) or self.local_preference is not None


NO_POOL = PoolTerms()


def compile_pool_terms(pools: AddressPools, labels: Mapping[str, str]) -> tuple[PoolTerms, ...]:
    """The pools that say anything of it, on the node with these labels; also those of before, of
    what was taken out of them."""
    found = (_terms(each, labels) for each in (*pools.pools, *pools.retired))
    return tuple(each for each in found if each != PoolTerms(each.ranges))


def _terms(pool: Pool, labels: Mapping[str, str]) -> PoolTerms:
    said = pool.announcing
    # What is no community was told by whoever read the pools, and is none of theirs.
    communities = parse_communities(said.communities)[0] if said.communities else ()
    return PoolTerms(
        tuple(sorted(((each.first.packed, each.last.packed) for each in pool.ranges), key=_place)),
        said.nodes.selects(labels),
        said.bgp,
        communities,
        said.local_preference,
    )


def pool_of(packed: bytes, pools: Iterable[PoolTerms]) -> PoolTerms:
    """The one that has an address; no two have the same."""
    place = _place((packed,))
    for pool in pools:
        index = bisect_right(pool.ranges, place, key=_place)
        if index:
            first, last = pool.ranges[index - 1]
            if len(first) == len(packed) and packed <= last:
                return pool
    return NO_POOL


def _place(found: Sequence[bytes]) -> tuple[int, bytes]:
    """Sorts ranges by their first addresses."""
    return len(found[0]), found[0]
