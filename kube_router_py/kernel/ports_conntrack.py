"""What the agent may do to the connections that a host remembers, as a Protocol. The rules for
adapters are those of ``ports``."""

from collections.abc import Collection
from typing import Protocol

from msgspec import Struct


class FlowFailure(Struct, frozen=True, order=True):
    """An address of which some connection is still remembered; ``message`` is for people."""

    address: str
    message: str


class Conntrack(Protocol):
    """The connections that one network namespace remembers (conntrack)."""

    writes: int

    def forget(self, addresses: Collection[str]) -> list[FlowFailure]:
        """Delete every entry that has one of these addresses as source or destination, original or
        of the reply: direct ones, and those that were translated.

        Costs one walk through the table, however many addresses. An entry that is gone already is
        no failure; one that comes up meanwhile may stay. Raises PreflightError where the kernel
        cannot be asked for lack of a module.
        """


class NoConntrack:
    """``Conntrack`` of a loop that has nothing to do with connections, and may not forget any."""

    def __init__(self) -> None:
        self.writes = 0

    def forget(self, addresses: Collection[str]) -> list[FlowFailure]:
        """Forgets nothing."""
        return []
