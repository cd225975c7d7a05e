"""Who uses which address, and who may share one. Pure.

Services share an address if all of them name the same key, no two serve the same port of the same
protocol, and all have external traffic policy Cluster or all have Local and the same selector: the
nodes that an address leads to are one choice for all who share it. (The rules of MetalLB.)

External IPs, and what other load balancers gave, are in use, too, but never shared.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kube_router_py.address_pools import Address


class Terms(Struct, frozen=True):
    """On which terms a Service uses an address; ``share`` empty: alone."""

    share: str
    backends: str
    ports: frozenset[tuple[str, int]]

    def disagreement(self, other: "Terms") -> str:
        """Why two Services cannot share an address whatever their ports, or ``""``."""
        if not self.share or self.share != other.share:
            return "the two do not name the same key in kube-router.io/allow-shared-ip"
        if self.backends != other.backends:
            return "sharing takes traffic policy Cluster for both, or Local and the same selector"
        return ""


class Obstacle(Struct, frozen=True):
    """The Service that is in the way; ``is_foreign``: with an address that is not of our giving."""

    key: str
    why: str
    is_foreign: bool = False


class _Users:
    """The Services of ours that use one address. They agree on the terms, so that a newcomer is
    held against one of them and against all ports."""

    def __init__(self) -> None:
        self.terms: dict[str, Terms] = {}
        self._by_port: dict[tuple[str, int], str] = {}

    def put(self, key: str, terms: Terms) -> None:
        self.terms[key] = terms
        self._by_port.update(dict.fromkeys(terms.ports, key))

    def drop(self, key: str) -> Terms:
        terms = self.terms.pop(key)
        for port in terms.ports:
            del self._by_port[port]
        return terms

    def obstacle(self, key: str, terms: Terms) -> Obstacle | None:
        other = next((each for each in self.terms if each != key), None)
        if other is None:
            return None
        if why := terms.disagreement(self.terms[other]):
            return Obstacle(min(each for each in self.terms if each != key), why)
        taken = {
            port: owner
            for port in terms.ports
            if (owner := self._by_port.get(port)) is not None and owner != key
        }
        if not taken:
            return None
        protocol, number = first = min(taken)
        return Obstacle(taken[first], f"both serve {protocol} port {number}")


class Holders:
    """Every address in use. An address is free as soon as nobody uses it."""

    def __init__(self) -> None:
        self._ours: dict[Address, _Users] = {}
        self._foreign: dict[Address, set[str]] = {}
        self._foreign_of: dict[str, tuple[Address, ...]] = {}
        # Addresses by the key they are shared by and its family, sorted.
        self._shared: dict[tuple[str, int], list[Address]] = {}

    def __iter__(self) -> Iterator[Address]:
        """All addresses in use."""
        yield from self._ours
        yield from (each for each in self._foreign if each not in self._ours)

    def is_used(self, address: Address) -> bool:
        return address in self._ours or address in self._foreign

    def obstacle(self, address: Address, key: str, terms: Terms) -> Obstacle | None:
        """Why a Service cannot use an address, if it cannot."""
        users = self._ours.get(address)
        if users is not None and (found := users.obstacle(key, terms)):
            return found
        if others := self.foreign_users(address, key):
            return Obstacle(others[0], "it is not shared", is_foreign=True)
        return None

    def shared(self, share: str, version: int) -> Sequence[Address]:
        """The addresses shared by this key, sorted."""
        return self._shared.get((share, version), ())

    def foreign_users(self, address: Address, key: str) -> list[str]:
        """The Services other than this one that use an address not of our giving."""
        return sorted(self._foreign.get(address, set()) - {key})

    def put(self, address: Address, key: str, terms: Terms) -> None:
        """A Service of ours uses an address on these terms; no other of ours may be an obstacle,
        and it may not use it already."""
        users = self._ours.setdefault(address, _Users())
        users.put(key, terms)
        if terms.share and len(users.terms) == 1:
            insort(self._shared.setdefault((terms.share, address.version), []), address)

    def drop(self, address: Address, key: str) -> None:
        """A Service of ours does not use an address any more; it has to have."""
        users = self._ours[address]
        terms = users.drop(key)
        if users.terms:
            return
        del self._ours[address]
        if terms.share:
            listed = self._shared[terms.share, address.version]
            del listed[bisect_left(listed, address)]
            if not listed:
                del self._shared[terms.share, address.version]

    def put_foreign(self, key: str, addresses: Iterable[Address]) -> frozenset[Address]:
        """These are all that a Service uses not of our giving. Returns those that changed."""
        before, after = self._foreign_of.pop(key, ()), tuple(addresses)
        if after:
            self._foreign_of[key] = after
        for address in set(before).difference(after):
            self._foreign[address].remove(key)
            if not self._foreign[address]:
                del self._foreign[address]
        for address in after:
            self._foreign.setdefault(address, set()).add(key)
        return frozenset(before) ^ frozenset(after)
