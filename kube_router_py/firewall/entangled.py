"""Whether the changes of a turn have to take effect in one step. Pure.

A flow's verdict is made of what the sender's policies say of the receiver and the receiver's of the
sender; each depends on chains, which all change at once, and on who is in which sets. As long as
only one of these changes for a flow, the order of the steps (see ``apply``) keeps its verdict
between the old and the new one. Where two do, it may let pass what both refuse.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct, field

from kube_router_py.firewall.contents import Contents, SetDelta
from kube_router_py.firewall.frame import isolated_pods
from kube_router_py.firewall.holding import Isolation
from kube_router_py.firewall.model import Direction, PodFacts
from kube_router_py.kernel.ports import IpsetSpec

Place = tuple[str, Direction]
"""A policy's chain: the policy's key, and the direction."""

_OPPOSITE = {
    Direction.INGRESS: Direction.EGRESS,
    Direction.EGRESS: Direction.INGRESS,
}


class Entanglement:
    """Takes note of changes of chains until ``take`` says in which families they are entangled with
    those of sets."""

    def __init__(self, families: Iterable[str]) -> None:
        self._families = tuple(families)
        # Addresses that other policies hold, and families in which a policy that stays has other
        # rules.
        self._recast: dict[tuple[str, Direction], set[str]] = {}
        self._rewritten: set[str] = set()

    def note_pod(self, *states: tuple[PodFacts, Isolation] | None) -> None:
        """A local pod was, and is, isolated like this. Where it is audited nothing is refused, as
        if it were not."""
        for family in self._families:
            for direction in Direction:
                held = [
                    (facts.addresses.get(family, ()), isolation[direction].policies)
                    for facts, isolation in filter(None, states)
                    if direction in isolation and not isolation[direction].is_audited
                ]
                if len(held) != 2 or held[0] != held[1]:
                    found = self._recast.setdefault((family, direction), set())
                    found.update(address for addresses, _ in held for address in addresses)

    def note_rules(self, family: str) -> None:
        """A policy that stays has other rules."""
        self._rewritten.add(family)

    def take(
        self,
        changed: Mapping[IpsetSpec, SetDelta],
        users: Mapping[IpsetSpec, Collection[Place]],
        sets: Contents,
    ) -> frozenset[str]:
        """The families; ``users`` are the policies' chains whose rules look into a set."""
        found = (f for f in self._families if self._moves(f, changed, users, sets).are_entangled())
        families = frozenset(found)
        self._recast.clear()
        self._rewritten.clear()
        return families

    def _moves(
        self,
        family: str,
        changed: Mapping[IpsetSpec, SetDelta],
        users: Mapping[IpsetSpec, Collection[Place]],
        sets: Contents,
    ) -> "Moves":
        moves = Moves(is_rewritten=family in self._rewritten)
        for spec in changed.keys() & users.keys():
            if spec.family != family:
                continue
            delta = changed[spec]
            addresses = {entry.split(",")[0] for entry in (*delta.add, *delta.remove)}
            for _, direction in users[spec]:
                if direction is Direction.INGRESS and spec.type == "hash:ip,port":
                    moves.targets |= addresses
                else:
                    moves.peers[direction] |= addresses
        for direction in Direction:
            spec = isolated_pods(direction, family)
            delta = changed.get(spec, SetDelta(set(), set()))
            moves.recast[direction] = self._recast.get((family, direction), set())
            moves.now[direction] = sets[spec].keys()
            moves.before[direction] = sets[spec].keys() - delta.add | delta.remove
        return moves


def _each() -> dict[Direction, set[str]]:
    return {direction: set() for direction in Direction}


class Moves(Struct):
    """Addresses of one family, as one turn changes them.

    ``recast``: of local pods that other policies hold in a direction. ``before``, ``now``: of those
    that are isolated. ``peers``: what comes and goes in sets by which rules know peers, ``targets``
    in those that tell the named ports of the pods isolated for ingress. ``is_rewritten``: a policy
    that stays has other rules.
    """

    recast: dict[Direction, set[str]] = field(default_factory=_each)
    before: dict[Direction, set[str]] = field(default_factory=_each)
    now: dict[Direction, Collection[str]] = field(default_factory=dict)
    peers: dict[Direction, set[str]] = field(default_factory=_each)
    targets: set[str] = field(default_factory=set)
    is_rewritten: bool = False

    def are_entangled(self) -> bool:
        """Whether a flow's verdict may depend on two steps, each with a change of its own.

        A pod that was not isolated, or is no longer, refuses nothing in one of the two states:
        there the order of the steps is enough.
        """
        if not (any(self.peers.values()) or self.targets):
            return False
        if self.is_rewritten or self._are_targets_entangled():
            return True
        for direction, other in _OPPOSITE.items():
            # It is held to other policies, and is another peer to others.
            if self.recast[direction] & self.peers[other]:
                return True
            # So is one end of a flow, and the other end is another peer to it.
            stays = self._remain(direction) & self.recast[direction]
            if stays and self.peers[direction] and len(stays | self.peers[direction]) > 1:
                return True
        # Both ends of a flow are other peers to each other.
        ends = [self.peers[other] & self._ever(each) for each, other in _OPPOSITE.items()]
        return bool(all(ends) and len(ends[0] | ends[1]) > 1)

    def _are_targets_entangled(self) -> bool:
        ingress, egress = Direction.INGRESS, Direction.EGRESS
        found = self.targets & self._remain(ingress)
        return bool(
            found and (self.peers[ingress] or found & (self.recast[ingress] | self.peers[egress]))
        )

    def _remain(self, direction: Direction) -> set[str]:
        return {each for each in self.before[direction] if each in self.now[direction]}

    def _ever(self, direction: Direction) -> set[str]:
        return self.before[direction].union(self.now[direction])
