"""Who uses which address, and who may share one. Pure.

Services share an address if all of them name the same key, no two serve the same port of the same
protocol, and all have external traffic policy Cluster or all have Local and the same selector in
the same namespace: the nodes that an address leads to are one choice for all who share it. (The
rules of MetalLB, which lets the namespaces differ.)

External IPs, and what other load balancers gave, are in use, too, but never shared; and so is what
the status of a Service still lists, or may list, until it is seen without it: somebody who was
given it meanwhile would share it as long as the write takes, and for good if it got lost.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kube_router_py.address_pools import Address
from kube_router_py.loadbalancer.node_addresses import is_node

NOT_GIVEN = "an external IP, another load balancer's address, or that of a Service that is going"


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
            return (
                "sharing takes traffic policy Cluster for both, or Local, one namespace and one "
                "selector"
            )
        return ""


class Obstacle(Struct, frozen=True):
    """The Service (or Node) that is in the way, and why; ``is_holder``: it was given the address by
    us, and does not have to give it up."""

    key: str
    why: str
    is_holder: bool = False


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
            return Obstacle(
                min(each for each in self.terms if each != key), f"; {why}", is_holder=True
            )
        taken = {
            port: owner
            for port in terms.ports
            if (owner := self._by_port.get(port)) is not None and owner != key
        }
        if not taken:
            return None
        protocol, number = first = min(taken)
        return Obstacle(taken[first], f"; both serve {protocol} port {number}", is_holder=True)


class _Claims:
    """Addresses that Services use without having been given them by us."""

    def __init__(self) -> None:
        self.of: dict[str, frozenset[Address]] = {}
        self.on: dict[Address, set[str]] = {}

    def put(self, key: str, addresses: Iterable[Address]) -> frozenset[Address]:
        """These are all of a Service. Returns those that it has more or less than before."""
        before, after = self.of.pop(key, frozenset()), frozenset(addresses)
        if after:
            self.of[key] = after
        for address in before - after:
            self.on[address].remove(key)
            if not self.on[address]:
                del self.on[address]
        for address in after - before:
            self.on.setdefault(address, set()).add(key)
        return before ^ after

    def others(self, address: Address, key: str) -> list[str]:
        """The Services other than this one that use an address."""
        users = self.on.get(address)
        return sorted(users - {key}) if users else []


class Holders:
    """Every address in use. An address is free as soon as nobody uses it."""

    def __init__(self) -> None:
        self._ours: dict[Address, _Users] = {}
        self._foreign, self._listed = _Claims(), _Claims()
        # Addresses by the key they are shared by and its family, sorted.
        self._shared: dict[tuple[str, int], list[Address]] = {}
        # At how many of them a port is taken.
        self._taken: Counter[tuple[str, int, tuple[str, int]]] = Counter()

    def __iter__(self) -> Iterator[Address]:
        """All addresses in use."""
        yield from self._ours.keys() | self._foreign.on.keys() | self._listed.on.keys()

    def is_used(self, address: Address) -> bool:
        return any(address in each for each in (self._ours, self._foreign.on, self._listed.on))

    def obstacle(self, address: Address, key: str, terms: Terms) -> Obstacle | None:
        """Why a Service cannot be given an address, if it cannot."""
        users = self._ours.get(address)
        if users is not None and (found := users.obstacle(key, terms)):
            return found
        if others := self._foreign.others(address, key):
            return Obstacle(others[0], "" if is_node(others[0]) else f" ({NOT_GIVEN})")
        if others := self._listed.others(address, key):
            return Obstacle(others[0], ", whose status is not yet seen without it")
        return None

    def shared(self, terms: Terms, version: int) -> Sequence[Address]:
        """The addresses shared by the key of these terms, sorted; none if at each of them one same
        port is taken: to try them all would take long where they are many."""
        found = self._shared.get((terms.share, version), ()) if terms.share else ()
        taken = (self._taken[terms.share, version, port] for port in terms.ports)
        return () if any(each == len(found) for each in taken) else found

    def foreign_users(self, address: Address, key: str) -> list[str]:
        """The Services other than this one that use an address not of our giving."""
        return self._foreign.others(address, key)

    def put(self, address: Address, key: str, terms: Terms) -> None:
        """A Service of ours uses an address on these terms; no other of ours may be an obstacle,
        and it may not use it already."""
        users = self._ours.setdefault(address, _Users())
        users.put(key, terms)
        if terms.share:
            self._taken.update((terms.share, address.version, each) for each in terms.ports)
            if len(users.terms) == 1:
                insort(self._shared.setdefault((terms.share, address.version), []), address)

    def drop(self, address: Address, key: str) -> None:
        """A Service of ours does not use an address any more; it has to have."""
        users = self._ours[address]
        terms = users.drop(key)
        for port in terms.ports if terms.share else ():
            place = terms.share, address.version, port
            self._taken[place] -= 1
            if not self._taken[place]:
                del self._taken[place]
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
        return self._foreign.put(key, addresses)

    def listed(self, key: str) -> frozenset[Address]:
        """What the status of a Service lists, or may list, that it does not hold any more."""
        return self._listed.of.get(key, frozenset())

    @property
    def listing(self) -> frozenset[str]:
        """The Services of which there is such a thing."""
        return frozenset(self._listed.of)

    def put_listed(self, key: str, addresses: Iterable[Address]) -> frozenset[Address]:
        """That is all of it. Returns what changed."""
        return self._listed.put(key, addresses)
