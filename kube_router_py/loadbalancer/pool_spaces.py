"""All pools with what is free in them. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from kube_router_py.address_pools import Address, AddressPools, Pool
from kube_router_py.loadbalancer.decisions import Occupancy
from kube_router_py.loadbalancer.free_addresses import FreeAddresses
from kube_router_py.loadbalancer.requests import Request


class PoolSpaces:
    """Pools of which these addresses are in use."""

    def __init__(self, pools: AddressPools, used: Iterable[Address]) -> None:
        self.pools = pools
        self._by_name = {each.name: each for each in pools.pools}
        self._auto = sorted(
            (each for each in pools.pools if each.auto_assign),
            key=lambda each: (each.priority, not _selects_some(each), each.name),
        )
        self._spaces = {
            (pool.name, version): FreeAddresses(ranges, pool.avoid_buggy_ips)
            for pool in pools.pools
            for version in (4, 6)
            if (ranges := [each for each in pool.ranges if each.version == version])
        }
        places = sorted(
            (each.version, int(each.first), int(each.last), pool.name)
            for pool in pools.pools
            for each in pool.ranges
        )
        self._firsts = [(version, first) for version, first, _, _ in places]
        self._lasts = [(version, last, name) for version, _, last, name in places]
        for address in used:
            self.take(address)

    def get(self, name: str) -> Pool | None:
        return self._by_name.get(name)

    def of(self, address: Address) -> Pool | None:
        """The pool that has an address."""
        place = (address.version, int(address))
        index = bisect_right(self._firsts, place) - 1
        if index < 0 or place > self._lasts[index][:2]:
            return None
        return self._by_name[self._lasts[index][2]]

    def auto(self, request: Request, namespace_labels: Mapping[str, str]) -> list[Pool]:
        """The pools that give to a Service which asks for none, the first choice first: by
        priority, those made for some Services before those for all, by name."""
        return [each for each in self._auto if admits(each, request, namespace_labels)]

    def space(self, pool: str, version: int) -> FreeAddresses | None:
        """The addresses of a pool in one family; None: it has none."""
        return self._spaces.get((pool, version))

    def take(self, address: Address) -> None:
        """An address is in use, of whatever pool, or of none."""
        pool = self.of(address)
        if pool is not None:
            self._spaces[pool.name, address.version].take(int(address))

    def release(self, address: Address) -> None:
        """An address that was in use is not, of whatever pool, or of none."""
        pool = self.of(address)
        if pool is not None:
            self._spaces[pool.name, address.version].release(int(address))

    def occupancy(self) -> Iterator[Occupancy]:
        for (name, version), space in self._spaces.items():
            yield Occupancy(name, version, space.size, space.used, space.free)

    @property
    def steps(self) -> int:
        """How many numbers were looked at to find a free address, so far."""
        return sum(each.steps for each in self._spaces.values())


def admits(pool: Pool, request: Request, namespace_labels: Mapping[str, str]) -> bool:
    """Whether a pool is for a Service at all."""
    if pool.namespace_names is not None and request.namespace not in pool.namespace_names:
        return False
    return pool.namespaces.selects(namespace_labels) and pool.services.selects(request.labels)


def _selects_some(pool: Pool) -> bool:
    selectors = (pool.namespaces, pool.services)
    return pool.namespace_names is not None or any(each.requirements for each in selectors)
