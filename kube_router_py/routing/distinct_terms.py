"""How many different ways to announce Services there may be at once. Pure.

Each way is an entry in several route-maps: one where its prefixes are named, one towards the
neighbors that nobody chose, one towards each neighbor that somebody did choose. FRR 8.4 goes
through all entries for each line about any of them: with 200 bgpd took 1.5 s to start (on two busy
cores), with 400 18 s, with 900 77 s, and serves no session meanwhile. Whoever may annotate Services
could stop all of BGP.
"""

from collections.abc import Iterator, Set

from kube_router_py.routing.exports import Terms

MOST_ENTRIES = 128


class DistinctTerms:
    """The terms that Services ask for. Those of the older Services are admitted, as many as there
    may be; ordinary ones always are. What it says does not depend on the order of updates.

    ``peers`` are the neighbors that can be chosen; the names of others cost nothing.
    """

    def __init__(self, peers: Set[str] = frozenset()) -> None:
        self._most = MOST_ENTRIES
        self._peers = frozenset(peers)
        # Which Services ask for them, and their ranks: the least comes first.
        self._users: dict[Terms, dict[str, tuple[str, str]]] = {}
        self._refused: frozenset[Terms] = frozenset()

    def update(
        self, key: str, old: Set[Terms], new: Set[Terms], rank: tuple[str, str]
    ) -> frozenset[str]:
        """Service ``key`` asks for other terms than before, or has another rank; no terms are
        ordinary ones. Returns the Services that have terms which are admitted and were not, or the
        other way round."""
        for terms in old - new:
            users = self._users[terms]
            del users[key]
            if not users:
                del self._users[terms]
        for terms in new:
            self._users.setdefault(terms, {})[key] = rank
        return self._decide()

    def follow_peers(self, peers: Set[str]) -> frozenset[str]:
        """Replace the neighbors that can be chosen; returns the same as ``update``."""
        self._peers = frozenset(peers)
        return self._decide()

    def admits(self, terms: Terms) -> bool:
        return terms not in self._refused

    def refused(self) -> Iterator[str]:
        """The Services whose terms are not admitted."""
        for terms in self._refused:
            yield from self._users[terms]

    def _decide(self) -> frozenset[str]:
        before, self._refused = self._refused, frozenset(self._too_many())
        changed = before ^ self._refused
        return frozenset(each for terms in changed for each in self._users.get(terms, ()))

    def _too_many(self) -> Iterator[Terms]:
        if self._entries(len(self._users), self._peers) <= self._most:
            return  # all fit, whomever they choose
        admitted, chosen = 0, frozenset[str]()
        for terms in sorted(self._users, key=self._order):
            then = chosen | (self._peers & set(terms.peers or ()))
            if self._entries(admitted + 1, then) <= self._most:
                admitted, chosen = admitted + 1, then
            else:
                yield terms

    def _order(self, terms: Terms) -> tuple[object, ...]:
        """Those of the oldest Service first; of one Service with several, in any fixed order."""
        preference = -1 if terms.local_preference is None else terms.local_preference
        asked_by = min(self._users[terms].values())
        return asked_by, terms.communities, preference, terms.peers is None, terms.peers or ()

    @staticmethod
    def _entries(terms: int, chosen: Set[str]) -> int:
        return terms * (2 + len(chosen))
