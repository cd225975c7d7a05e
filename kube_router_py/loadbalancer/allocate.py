"""Who gets which address: a state machine without clock, chance or I/O.

An address is reserved here before anybody writes it, and stays so whatever becomes of the write, so
that two Services never get one by a race. Whoever begins to allocate begins with ``rebuild``: the
status of the Services is the only record there is, and all of it counts before anything is given.

What a Service has stays, as long as it may have it:

* in a pool that is for it, and not another one than it asks for: nothing changes;
* it asks for another pool or address: it moves as soon as that can be had;
* in no pool any more, or in one that is not for it any more: it stays, and a Problem says so,
  unless a pool that has ``reallocate`` can serve it instead;
* its ports or its sharing do not go with those who share its address any more: it has to move.

Of several that have one address in their status without sharing it, the oldest keeps it. An address
that somebody uses as external IP is not given; once it is in a status it is not taken away for
that, either.
"""

from collections.abc import Iterable, Mapping
from heapq import nsmallest

from msgspec import Struct

from kube_router_py.address_pools import Address, AddressPools
from kube_router_py.loadbalancer.allocation_plan import Place, Planner
from kube_router_py.loadbalancer.decisions import Decision, Given, Occupancy, Reason, Told
from kube_router_py.loadbalancer.holders import Holders, Obstacle, Terms
from kube_router_py.loadbalancer.node_addresses import user_of
from kube_router_py.loadbalancer.pool_spaces import PoolSpaces
from kube_router_py.loadbalancer.requests import Request
from kube_router_py.problem import Problem


class _Lost(Struct, frozen=True):
    """An address that a Service had, and who has it instead."""

    address: Address
    obstacle: Obstacle


Wanted = tuple[Request, Mapping[str, str]]
"""A request, and the labels of its namespace."""


class Allocator:
    """All Services of type LoadBalancer that are ours, all pools, and every address in use.

    Keys are ``namespace/name``. For one thread. Wherever keys are returned, what is decided about
    these Services may be different now: ``decide`` them anew, in this order, the oldest first.
    """

    def __init__(self, pools: AddressPools) -> None:
        self._holders = Holders()
        self._spaces = PoolSpaces(pools, ())
        self._wanted: dict[str, Wanted] = {}
        self._held: dict[str, dict[int, Address]] = {}
        self._terms: dict[str, Terms] = {}
        self._waits_of: dict[str, frozenset[Place]] = {}
        self._waiting_for: dict[Place, set[str]] = {}

    @property
    def pools(self) -> AddressPools:
        return self._spaces.pools

    @property
    def waiting(self) -> frozenset[str]:
        """The Services that do not have what they want for want of space, or of an address that
        another has."""
        return frozenset(self._waits_of)

    @property
    def unconfirmed(self) -> frozenset[str]:
        """The Services whose status may list more than they have: what it may list is nobody
        else's until they are ``put`` with a status that has what they have."""
        return self._holders.listing

    @property
    def steps(self) -> int:
        """How many numbers were looked at to find a free address, since the pools changed."""
        return self._spaces.steps

    def occupancy(self) -> tuple[Occupancy, ...]:
        """How full every pool is in each of its families."""
        return tuple(self._spaces.occupancy())

    def given(self, key: str) -> tuple[Given, ...]:
        """What a Service has at the moment, in the order of its status; () if it is unknown."""
        if key not in self._wanted:
            return ()
        request, held = self._wanted[key][0], self._held.get(key, {})
        order = [each for each in request.versions if each in held]
        order += sorted(held.keys() - order)
        return tuple(Given(held[each], self._pool_name(held[each])) for each in order)

    def in_order(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the keys that are known, the oldest Service first."""
        known = (each for each in keys if each in self._wanted)
        return tuple(sorted(known, key=lambda each: self._wanted[each][0].age))

    # --- what happens --------------------------------------------------------------------------

    def rebuild(
        self, wanted: Iterable[Wanted], foreign: Mapping[str, Iterable[Address]]
    ) -> tuple[str, ...]:
        """Forget everything but the pools, and go by the status of all Services that are ours.
        ``foreign`` is what ``note_foreign`` gets, for every Service. Returns all keys."""
        self._holders = Holders()
        self._held, self._terms = {}, {}
        self._waits_of, self._waiting_for = {}, {}
        self._wanted = {each[0].key: each for each in wanted}
        for key, addresses in foreign.items():
            self._holders.put_foreign(key, addresses)
        self._spaces = PoolSpaces(self.pools, self._holders)
        order = self.in_order(self._wanted)
        for key in order:
            self._adopt(self._wanted[key][0])
        for key in order:
            self._list(key, self._unheld(key), set())
        return order

    def set_pools(self, pools: AddressPools) -> tuple[str, ...]:
        """These are the pools from now on. Returns all keys."""
        self._spaces = PoolSpaces(pools, self._holders)
        return self.in_order(self._wanted)

    def note_foreign(self, key: str, addresses: Iterable[Address]) -> tuple[str, ...]:
        """These are all addresses that a Service, ours or not, uses and that are not given here
        (``requests.foreign_addresses``). To be told before ``remove`` and ``put`` of this key."""
        places: set[Place] = set()
        for address in self._holders.put_foreign(key, addresses):
            self._settle(address, places)
        return self._retry(places)

    def put(self, request: Request, namespace_labels: Mapping[str, str]) -> Decision:
        """A Service is new, or has changed, or the labels of its namespace have. To be told again
        once in a while, too, at a time when no write of it is under way: see ``unconfirmed``."""
        before = self._wanted.get(request.key)
        key, freed = request.key, tuple[str, ...]()
        if before is not None and before[0].uid != request.uid:
            freed = self.remove(key)  # another one, of the same name
        self._wanted[key] = (request, namespace_labels)
        if set(request.current) == set(self._held.get(key, {}).values()):
            places: set[Place] = set()
            self._list(key, (), places)  # the last write has come through
            freed = (*freed, *self._retry(places))
        return self._decide(key, freed)

    def decide(self, key: str) -> Decision:
        """What a Service has now. Raises KeyError for one that is not known."""
        return self._decide(key, ())

    def remove(self, key: str) -> tuple[str, ...]:
        """A Service is gone, or not ours any more; it may be unknown."""
        places: set[Place] = set()
        for address in self._held.pop(key, {}).values():
            self._holders.drop(address, key)
            self._settle(address, places)
        self._list(key, (), places)
        self._terms.pop(key, None)
        self._wanted.pop(key, None)
        places |= self._wait(key, frozenset())
        return self._retry(places)

    # --- how -----------------------------------------------------------------------------------

    def _decide(self, key: str, retry: tuple[str, ...]) -> Decision:
        request, labels = self._wanted[key]
        places: set[Place] = set()
        lost = self._leave(request, places) | self._adopt(request)
        held = self._held[key]
        terms = self._terms[key]
        plan = Planner(request, labels, terms, held, self._spaces, self._holders).plan()
        news = []
        for version, address in plan.moves.items():
            if (before := held.get(version)) is not None:
                self._drop(key, version, places)
                news.append(_moved(key, before, address, plan.why[version]))
            self._take(key, version, address)
            if terms.share:
                self._settle(address, places)  # others may join
        news += [_lost(key, each, held.get(each.address.version)) for each in lost.values()]
        self._list(key, (*self._holders.listed(key), *self._unheld(key)), places)
        places |= self._wait(key, frozenset(plan.waits))
        addresses = self.given(key)
        texts = tuple(str(each.address) for each in addresses)
        return Decision(
            key=key,
            addresses=addresses,
            must_write=texts != request.current_texts if texts else bool(request.current),
            wrong=(*request.mistakes, *plan.wrong, *request.notes),
            news=tuple(news),
            retry=self.in_order({*retry, *self._retry(places)} - {key}),
        )

    def _leave(self, request: Request, places: set[Place]) -> dict[int, _Lost]:
        """Leave what the Service does not want any more, and what its neighbours now forbid."""
        key, terms = request.key, _terms_of(request)
        held, before = self._held.get(key, {}), self._terms.get(key)
        lost = {}
        for version, address in list(held.items()):
            is_wanted = version in request.versions
            # Nobody has come to rely on what no status lists yet.
            is_new = address not in request.current
            is_contested = is_new and bool(self._holders.foreign_users(address, key))
            if is_wanted and terms == before and not is_contested:
                continue
            self._drop(key, version, places)
            if not is_wanted:
                continue
            obstacle = self._holders.obstacle(address, key, terms)
            if obstacle is None or not (obstacle.is_holder or is_contested):
                held[version] = address
                self._holders.put(address, key, terms)
            else:
                lost[version] = _Lost(address, obstacle)
        self._terms[key] = terms
        return lost

    def _adopt(self, request: Request) -> dict[int, _Lost]:
        """Take what its status says it has; returns what others have instead."""
        key = request.key
        held = self._held.setdefault(key, {})
        terms = self._terms.setdefault(key, _terms_of(request))
        lost: dict[int, _Lost] = {}
        for version in request.versions:
            asked = request.asked(version)
            listed = (each for each in request.current if each.version == version)
            for address in sorted(listed, key=lambda each: each != asked):
                if version in held:
                    break
                obstacle = self._holders.obstacle(address, key, terms)
                if obstacle is None or not obstacle.is_holder:
                    self._take(key, version, address)
                else:
                    lost.setdefault(version, _Lost(address, obstacle))
            if version in held:
                lost.pop(version, None)
        return lost

    def _take(self, key: str, version: int, address: Address) -> None:
        self._held[key][version] = address
        self._holders.put(address, key, self._terms[key])
        self._spaces.take(address)

    def _drop(self, key: str, version: int, places: set[Place]) -> None:
        """A Service does not hold an address any more; its status may list it still."""
        address = self._held[key].pop(version)
        self._holders.drop(address, key)
        self._list(key, (*self._holders.listed(key), address), places)

    def _unheld(self, key: str) -> set[Address]:
        """What the status of a Service lists without its holding it."""
        return set(self._wanted[key][0].current) - set(self._held[key].values())

    def _list(self, key: str, addresses: Iterable[Address], places: set[Place]) -> None:
        held = self._held.get(key, {}).values()
        for each in self._holders.put_listed(key, set(addresses).difference(held)):
            self._settle(each, places)

    def _settle(self, address: Address, places: set[Place]) -> None:
        """The use of an address has changed: note whether it is free, and who might want it."""
        pool = self._spaces.of(address)
        places.add(address)
        if pool is not None:
            places.add((pool.name, address.version))
        if self._holders.is_used(address):
            self._spaces.take(address)
        else:
            self._spaces.release(address)

    def _wait(self, key: str, places: frozenset[Place]) -> set[Place]:
        """From now on a Service waits for room there. Returns where it does not any more."""
        before = self._waits_of.pop(key, frozenset())
        for place in before - places:
            self._waiting_for[place].remove(key)
            if not self._waiting_for[place]:
                del self._waiting_for[place]
        for place in places - before:
            self._waiting_for.setdefault(place, set()).add(key)
        if places:
            self._waits_of[key] = places
        return {each for each in before - places if isinstance(each, tuple)}

    def _retry(self, places: Iterable[Place]) -> tuple[str, ...]:
        """Who may find room there now: of those who are sure to take an address that is free, no
        more than there are. When one of them has been decided about, the next one's turn comes."""
        keys: set[str] = set()
        for place in places:
            waiting = self._waiting_for.get(place, set())
            if isinstance(place, tuple) and waiting:
                space = self._spaces.space(*place)
                sure = [each for each in waiting if self._is_easy(each)]
                keys.update(waiting.difference(sure))
                free = space.free if space is not None else 0
                keys.update(nsmallest(free, sure, key=lambda each: self._wanted[each][0].age))
            else:
                keys.update(waiting)
        return self.in_order(keys)

    def _is_easy(self, key: str) -> bool:
        """Whether any free address is enough for a Service, and nothing less."""
        request, _ = self._wanted[key]
        return not (request.needs_all or request.share or self._holders.listed(key))

    def _pool_name(self, address: Address) -> str:
        pool = self._spaces.of(address)
        return pool.name if pool is not None else ""


def _terms_of(request: Request) -> Terms:
    return Terms(request.share, request.backends, request.ports)


def _moved(key: str, before: Address, after: Address, why: str) -> Told:
    reason = f"the address changes from {before} to {after}: {why}"
    return Told(Reason.REALLOCATED, Problem(f"Service {key}", "", reason))


def _lost(key: str, lost: _Lost, after: Address | None) -> Told:
    becomes = (
        f"changes from {lost.address} to {after}" if after else f"{lost.address} is taken away"
    )
    why = f"{user_of(lost.obstacle.key)} has {lost.address}, too{lost.obstacle.why}"
    problem = Problem(f"Service {key}", "", f"the address {becomes}: {why}")
    return Told(Reason.REALLOCATED, problem)
