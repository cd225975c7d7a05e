"""How many different ways to announce Services there may be at once. Pure.

Each way is a route-map, and FRR 8.4 goes through all route-maps for each line about any of them:
with 32 bgpd starts in 0.4 s and takes one more in 40 ms, with 150 in 14 s and 340 ms, with 500 in
minutes, and serves no session meanwhile. Whoever may annotate Services could stop all of BGP.
"""

from collections.abc import Iterator

from kube_router_py.routing.exports import ORDINARY, Terms

MOST = 32


class DistinctTerms:
    """The terms that Services ask for. Those of the older Services are admitted, as many as there
    may be; ordinary ones always are. What it says does not depend on the order of updates."""

    def __init__(self) -> None:
        self._most = MOST
        # Which Services ask for them, and their ranks: the least comes first.
        self._users: dict[Terms, dict[str, tuple[str, str]]] = {}
        self._refused: frozenset[Terms] = frozenset()

    def update(self, key: str, old: Terms, new: Terms, rank: tuple[str, str]) -> frozenset[str]:
        """Service ``key`` asks for other terms than before, or has another rank. Returns the
        Services whose terms are admitted and were not, or the other way round."""
        users = self._users.get(old, {})
        users.pop(key, None)
        if not users:
            self._users.pop(old, None)
        if new != ORDINARY:
            self._users.setdefault(new, {})[key] = rank
        if len(self._users) <= self._most and not self._refused:
            return frozenset()
        order = sorted(self._users, key=lambda terms: min(self._users[terms].values()))
        before, self._refused = self._refused, frozenset(order[self._most :])
        changed = before ^ self._refused
        return frozenset(each for terms in changed for each in self._users.get(terms, ()))

    def admits(self, terms: Terms) -> bool:
        return terms not in self._refused

    def refused(self) -> Iterator[str]:
        """The Services whose terms are not admitted."""
        for terms in self._refused:
            yield from self._users[terms]
