"""Which pod of this node has which address, and which addresses have changed hands. Pure.

The owners of an address are all live pods that claim it, by name and UID. That they are others than
before is what counts: a pod that has an address that was another's must not have its connections.
An address that nobody had, as far as is known, has not changed hands; so after a start nothing has.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Owner(NamedTuple):
    """A pod; one that comes again under the same name is another."""

    key: str
    uid: str


class Owners:
    """To be told of every change of a pod of this node."""

    def __init__(self) -> None:
        self._addresses: dict[str, tuple[Owner, frozenset[str]]] = {}
        self._claims: dict[str, set[Owner]] = {}
        # The owners at the last ``settle`` of addresses that have been touched since.
        self._before: dict[str, frozenset[Owner]] = {}

    def put(self, key: str, uid: str, addresses: Iterable[str]) -> None:
        """A pod and all its addresses; none if it is not of this node, or not live any more."""
        owner, claimed = Owner(key, uid), frozenset(addresses)
        former, had = self._addresses.pop(key, (owner, frozenset[str]()))
        if claimed:
            self._addresses[key] = owner, claimed
        if (former, had) == (owner, claimed):
            return
        for address in had:
            self._touch(address).discard(former)
        for address in claimed:
            self._touch(address).add(owner)

    def _touch(self, address: str) -> set[Owner]:
        claims = self._claims.setdefault(address, set())
        self._before.setdefault(address, frozenset(claims))
        return claims

    def settle(self) -> set[str]:
        """The addresses that had owners at the last call, and have others now, or none."""
        changed = set()
        for address, before in self._before.items():
            if before and before != self._claims[address]:
                changed.add(address)
            if not self._claims[address]:
                del self._claims[address]
        self._before.clear()
        return changed
