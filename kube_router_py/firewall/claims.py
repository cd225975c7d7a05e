"""Whose a name in the kernel is, where two want one. Pure.

Names of chains and sets are hashes of 80 bits. Nobody finds one that is called as another's, but
whoever may write policies can find two of their own that are called alike, with some patience.
Whoever comes first has the name. The other goes without, waits for it, and fails closed:

- a selector, block or named port without its set matches nobody: rules that look into it are left
  out;
- a policy without its chain admits nobody, but isolates its pods;
- an isolated pod without its chain sends (or is sent) nothing; an audited one stays open, and
  nothing is counted.

A name that is given back is taken in the next turn, when nothing refers any more to what it was.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from kube_router_py.firewall.model import Direction
from kube_router_py.problem import Problem

Owner = TypeVar("Owner", bound=Hashable)
Waiter = TypeVar("Waiter", bound=Hashable)


class Claims(Generic[Owner, Waiter]):
    """Names, each with the one that has it, and those that wait for it."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner] = {}
        self._waiting: dict[str, set[Waiter]] = {}
        self._freed: set[Waiter] = set()

    def holds(self, name: str, owner: Owner) -> bool:
        return self._owners.get(name) == owner

    def claim(self, name: str, owner: Owner) -> bool:
        """Whether the name is now (or was) the owner's."""
        return self._owners.setdefault(name, owner) == owner

    def release(self, name: str, owner: Owner) -> None:
        """Those that wait are told; nothing happens where the name is another's."""
        if self.holds(name, owner):
            del self._owners[name]
            self._freed |= self._waiting.pop(name, set())

    def contested(self, wanted: Iterable[tuple[str, Owner]]) -> set[str]:
        """Names that are another's, or wanted by two at once."""
        found: set[str] = set()
        first: dict[str, Owner] = {}
        for name, owner in wanted:
            if first.setdefault(name, self._owners.get(name, owner)) != owner:
                found.add(name)
        return found

    def wait(self, name: str, waiter: Waiter) -> None:
        self._waiting.setdefault(name, set()).add(waiter)

    def forget(self, name: str, waiter: Waiter) -> None:
        """It waits no longer, if it did."""
        waiting = self._waiting.get(name)
        if waiting is not None:
            waiting.discard(waiter)
            if not waiting:
                del self._waiting[name]

    @property
    def has_freed(self) -> bool:
        """Whether a name is free that some waited for."""
        return bool(self._freed)

    def take_freed(self) -> set[Waiter]:
        """Those that waited for names which were given back since this was last called."""
        freed, self._freed = self._freed, set()
        return freed

    def waiting(self) -> Iterator[tuple[str, Waiter]]:
        for name, waiters in self._waiting.items():
            for waiter in waiters:
                yield name, waiter


Place = tuple[str, Direction]


class ChainClaims(Claims[Place, Place]):
    """Each waits for itself."""

    def seek(self, name: str, place: Place) -> None:
        """Claim a name, or wait for it."""
        if self.claim(name, place):
            self.forget(name, place)
        else:
            self.wait(name, place)

    def give_up(self, name: str, place: Place) -> None:
        """Give back a name, or stop waiting for it."""
        self.forget(name, place)
        self.release(name, place)


class Names:
    """Of all that the firewall makes: chains of pods (and their direction) and of policies, sets of
    what rules look into."""

    def __init__(self) -> None:
        self.pods, self.policies = ChainClaims(), ChainClaims()
        self.sets: Claims[Hashable, Place] = Claims()

    @property
    def have_freed(self) -> bool:
        return self.pods.has_freed or self.policies.has_freed or self.sets.has_freed

    def problems(self, is_audited: Callable[[Place], bool]) -> Iterator[Problem]:
        """``is_audited``: whether a pod is, in a direction."""
        taken = "{} is the name of another's: {} until that one goes; another name mends it"
        for name, (key, direction) in self.pods.waiting():
            does = "not audited" if is_audited((key, direction)) else "refused"
            what = f"{direction} of this pod is {does}"
            yield Problem(f"Pod {key}", "", taken.format(f"chain {name}", what))
        for name, (key, direction) in self.policies.waiting():
            what = f"{direction} rules admit nobody"
            yield Problem(f"NetworkPolicy {key}", "", taken.format(f"chain {name}", what))
        for name, (key, direction) in self.sets.waiting():
            what = f"{direction} rules that look into it admit nobody"
            yield Problem(f"NetworkPolicy {key}", "", taken.format(f"set {name}", what))
