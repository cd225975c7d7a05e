"""What one Service may have, given what it has and what is free: one decision, nothing kept. Pure.

Every refusal is made here, with what to do about it.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from kube_router_py.address_pools import Address, Pool
from kube_router_py.loadbalancer.decisions import Reason, Told
from kube_router_py.loadbalancer.holders import NOT_GIVEN, Holders, Terms
from kube_router_py.loadbalancer.node_addresses import is_node, user_of
from kube_router_py.loadbalancer.pool_spaces import PoolSpaces, admits
from kube_router_py.loadbalancer.requests import Request
from kube_router_py.problem import Problem

Place = Address | tuple[str, int]
"""Where a Service waits for room: an address, or a pool in one family."""

_NOT_FOR_IT = (
    "which is not for this Service (see its namespaces, namespaceSelector, serviceSelector)"
)
_OF_VERSION: dict[int, type[Address]] = {4: IPv4Address, 6: IPv6Address}
# How many addresses that might be shared are tried before a free one is taken.
_SHARED_TRIES = 32


class Plan(Struct):
    """``moves``: addresses to take, by family, and why, where there was one before. ``wrong`` is
    what stands against more, ``waits`` where there would have to be room for it."""

    moves: dict[int, Address] = {}
    why: dict[int, str] = {}
    wrong: list[Told] = []
    waits: set[Place] = set()


class Planner:
    """The plan for one Service that holds these addresses, by family."""

    def __init__(
        self,
        request: Request,
        namespace_labels: Mapping[str, str],
        terms: Terms,
        held: Mapping[int, Address],
        spaces: PoolSpaces,
        holders: Holders,
    ) -> None:
        self._request, self._labels, self._terms = request, namespace_labels, terms
        self._held, self._spaces, self._holders = held, spaces, holders
        self._plan = Plan()
        self._lacking: list[tuple[int, str]] = []

    def plan(self) -> Plan:
        """What to do for all families together."""
        request, plan = self._request, self._plan
        if not (request.mistakes or request.is_early):
            automatic = []
            for version in request.versions:
                if (asked := request.asked(version)) is not None:
                    self._ask_address(version, asked)
                elif request.pool:
                    self._ask_pool(version)
                else:
                    automatic.append(version)
            self._choose(automatic)
            self._tell_lacking()
            self._all_or_nothing()
        for _, address in sorted(self._result().items()):
            for other in self._holders.foreign_users(address, request.key)[:1]:
                what = "" if is_node(other) else f" ({NOT_GIVEN})"
                self._tell(
                    Reason.IN_USE,
                    f"{address} is an address of {user_of(other)}, too{what}; traffic may "
                    "go to either until one of the two gives it up",
                )
        return plan

    # --- the three ways to an address ----------------------------------------------------------

    def _ask_address(self, version: int, asked: Address) -> None:
        if self._held.get(version) == asked:
            self._check_held(version, may_move=False)
        elif (refusal := self._refusal(asked)) is None:
            self._move(version, asked, "the Service asks for it")
        else:
            reason, why = refusal
            self._refuse(version, reason, why, self._request.address_field)
            if reason in (Reason.IN_USE, Reason.SHARING):
                self._plan.waits.add(asked)

    def _refusal(self, asked: Address) -> tuple[Reason, str] | None:
        """Why a Service cannot have the address that it asks for."""
        pool = self._spaces.of(asked)
        if pool is None:
            return Reason.NOT_IN_POOL, f"{asked} is in no pool; ask for one of a pool, or add it"
        if self._request.pool not in ("", pool.name):
            return Reason.NOT_IN_POOL, _in_another(asked, pool, self._request.pool)
        if not admits(pool, self._request, self._labels):
            why = f"{asked} is in pool {pool.name}, {_NOT_FOR_IT}; ask for one of another pool"
            return Reason.POOL_FORBIDS, why
        space = self._spaces.space(pool.name, asked.version)
        if space is None or not space.may_give(int(asked)):
            return Reason.NOT_IN_POOL, (
                f"pool {pool.name} gives no addresses that end in .0 or .255 (avoidBuggyIPs), such "
                f"as {asked}; ask for another one"
            )
        obstacle = self._holders.obstacle(asked, self._request.key, self._terms)
        if obstacle is None:
            return None
        reason = Reason.SHARING if self._terms.share and obstacle.is_holder else Reason.IN_USE
        way_out = (
            "take it out of the pool" if is_node(obstacle.key) else "have that Service give it up"
        )
        return reason, (
            f"{asked} is in use by {user_of(obstacle.key)}{obstacle.why}; ask for another one, or "
            f"{way_out}"
        )

    def _ask_pool(self, version: int) -> None:
        name, field = self._request.pool, self._request.pool_field
        pool = self._spaces.get(name)
        held = self._held.get(version)
        if held is not None:
            present = self._spaces.of(held)
            if present is None or present.name == name:
                self._check_held(version, may_move=True)
                return
        if pool is None:
            why = f"there is no pool {name}; correct the name, or make the pool"
            self._refuse(version, Reason.UNKNOWN_POOL, why, field)
        elif not admits(pool, self._request, self._labels):
            why = f"it asks for pool {name}, {_NOT_FOR_IT}; ask for another one"
            self._refuse(version, Reason.POOL_FORBIDS, why, field)
        elif self._spaces.space(name, version) is None:
            self._no_pool(version, f"pool {name} has no IPv{version} addresses")
        elif (found := self._find(pool, version)) is None:
            self._exhausted(version, [pool])
        else:
            self._move(version, found, f"the Service asks for pool {name}")

    def _choose(self, versions: Sequence[int]) -> None:
        """For families in which any address will do."""
        missing = []
        for version in versions:
            if version in self._held:
                self._check_held(version, may_move=True)
            else:
                missing.append(version)
        if not missing:
            return
        pools = self._spaces.auto(self._request, self._labels)
        if len(missing) > 1:
            for pool in pools:
                found = {each: self._find(pool, each) for each in missing}
                if None not in found.values():
                    self._plan.moves |= {
                        each: address for each, address in found.items() if address
                    }
                    return
        for version in missing:
            self._choose_one(version, pools, "")

    def _choose_one(self, version: int, pools: Sequence[Pool], why: str) -> None:
        """From the first of these pools that has one; where it has the other family first."""
        able = [each for each in pools if self._spaces.space(each.name, version) is not None]
        beside = {
            pool.name
            for other, address in self._result().items()
            if other != version and (pool := self._spaces.of(address)) is not None
        }
        for pool in sorted(able, key=lambda each: each.name not in beside):
            if (found := self._find(pool, version)) is not None:
                self._move(version, found, why)
                return
        if able:
            self._exhausted(version, able)
        else:
            self._no_pool(version, f"no pool that is for this Service has IPv{version} addresses")

    # --- what it has ---------------------------------------------------------------------------

    def _check_held(self, version: int, may_move: bool) -> None:
        """Tell if the address that it has is not one that it would be given."""
        held = self._held[version]
        pool = self._spaces.of(held)
        asked = self._request.pool
        if pool is not None and admits(pool, self._request, self._labels):
            if asked not in ("", pool.name):  # two wishes that contradict each other
                self._tell(Reason.NOT_IN_POOL, _in_another(held, pool, asked))
            return
        why = f"{held} is in pool {pool.name}, {_NOT_FOR_IT}" if pool else f"{held} is in no pool"
        if may_move and (others := self._reallocating()):
            before = len(self._plan.wrong)
            self._choose_one(version, others, why)
            if version in self._plan.moves:
                return
            del self._plan.wrong[before:]
        reason = Reason.POOL_FORBIDS if pool else Reason.OUTSIDE
        self._tell(
            reason,
            f"{why}, but stays; to have it replaced, set reallocate: true on a pool that is for "
            "this Service and has room, or ask for another address",
        )

    def _reallocating(self) -> list[Pool]:
        """The pools that replace addresses which are not of a pool for this Service any more."""
        if not self._request.pool:
            pools = self._spaces.auto(self._request, self._labels)
            return [each for each in pools if each.reallocate]
        pool = self._spaces.get(self._request.pool)
        if pool is None or not pool.reallocate or not admits(pool, self._request, self._labels):
            return []
        return [pool]

    def _find(self, pool: Pool, version: int) -> Address | None:
        """An address of a pool: one that is shared by the Service's key, else the lowest free."""
        space = self._spaces.space(pool.name, version)
        if space is None:
            return None
        shared = self._holders.shared(self._terms, version)
        found = self._first_shared(pool, shared[:_SHARED_TRIES])
        if found is None and (free := space.lowest()) is not None:
            return _OF_VERSION[version](free)
        return found or self._first_shared(pool, shared[_SHARED_TRIES:])

    def _first_shared(self, pool: Pool, shared: Iterable[Address]) -> Address | None:
        for address in shared:
            if self._spaces.of(address) is not pool:
                continue
            if self._holders.obstacle(address, self._request.key, self._terms) is None:
                return address
        return None

    # --- what comes of it ----------------------------------------------------------------------

    def _result(self) -> dict[int, Address]:
        return {**self._held, **self._plan.moves}

    def _all_or_nothing(self) -> None:
        request, moves = self._request, self._plan.moves
        if not request.needs_all or set(request.versions) <= self._result().keys():
            return
        for version in moves.keys() - self._held.keys():
            del moves[version]

    def _move(self, version: int, address: Address, why: str) -> None:
        self._plan.moves[version] = address
        self._plan.why[version] = why

    def _exhausted(self, version: int, pools: Sequence[Pool]) -> None:
        names = ", ".join(each.name for each in pools)
        self._plan.waits |= {(each.name, version) for each in pools}
        self._refuse(
            version,
            Reason.EXHAUSTED,
            f"no IPv{version} address is free in pool {names}; add some to it, or release others: "
            "the Service gets one as soon as there is room",
        )

    def _no_pool(self, version: int, why: str) -> None:
        self._lacking.append((version, why))

    def _tell_lacking(self) -> None:
        request = self._request
        takes_less = len(request.versions) > 1 and not request.needs_all and self._result()
        for version, why in self._lacking:
            if takes_less and version not in self._held:
                continue  # PreferDualStack takes what there is
            self._refuse(
                version, Reason.NO_POOL, f"{why}; add some, or change what the Service asks for"
            )

    def _refuse(self, version: int, reason: Reason, why: str, field: str = "") -> None:
        if (held := self._held.get(version)) is not None:
            why = f"{why}; until it can be had the Service keeps {held}"
        elif self._request.needs_all:
            why = f"{why} (RequireDualStack: both families or none)"
        self._tell(reason, why, field)

    def _tell(self, reason: Reason, why: str, field: str = "") -> None:
        problem = Problem(f"Service {self._request.key}", field, why)
        self._plan.wrong.append(Told(reason, problem))


def _in_another(address: Address, pool: Pool, asked: str) -> str:
    return (
        f"{address} is in pool {pool.name}, but the Service asks for pool {asked}; change one of "
        "the two"
    )
