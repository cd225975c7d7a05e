"""Steps of a cleanup that several parts of the agent have."""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts

Step = tuple[str, Callable[[], str]]
"""What is removed, and what removes it: says what became of it, or raises KernelError."""


NOTHING = "nothing was there"
NOT_OURS = "none of this agent's"

OtherVariant = Callable[
    [str, Iterable[str], Callable[[str], bool], Collection[str]], tuple[str, ...]
]
"""``kernel.other_variant.remove_from_other_variant``."""


class HasWrites(Protocol):
    @property
    def writes(self) -> int: ...


def removed(port: HasWrites, remove: Callable[[], None]) -> str:
    """Remove what may be there; whether it was, the port's count of changes tells."""
    before = port.writes
    remove()
    return "removed" if port.writes > before else NOTHING


def remove_chains(
    ports: HostPorts,
    family: str,
    table: str,
    chains: tuple[str, ...],
    markers: Collection[str] = (),
    *,
    must: bool,
) -> str:
    """``markers``: without one of these chains the table is left; kube-router has others of the
    same names. ``must``: that the table cannot be read is a failure, not a sign that nothing is
    there."""
    try:
        if markers and not ports.iptables.counters(family, table, markers):
            return NOT_OURS
        return removed(ports.iptables, lambda: ports.iptables.remove(family, table, chains))
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"


def remove_from_other(
    ports: HostPorts,
    other_variant: OtherVariant,
    is_own: Callable[[str], bool],
    markers: Collection[str] = (),
) -> str:
    """The same in the variant of iptables that is not this node's: an earlier agent may have used
    it (--iptables-backend), and its rules are in force all the same."""
    gone = other_variant(ports.iptables.variant, ("inet", "inet6"), is_own, markers)
    return f"{len(gone)} chains removed" if gone else NOTHING


def destroy_sets(ports: HostPorts, names: Iterable[str]) -> str:
    return removed(ports.ipsets, lambda: ports.ipsets.destroy(names))
