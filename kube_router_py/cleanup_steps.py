"""Steps of a cleanup that several parts of the agent have."""

from collections.abc import Callable, Iterable
from typing import Protocol

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts

Step = tuple[str, Callable[[], str]]
"""What is removed, and what removes it: says what became of it, or raises KernelError."""


NOTHING = "nothing was there"


class HasWrites(Protocol):
    @property
    def writes(self) -> int: ...


def removed(port: HasWrites, remove: Callable[[], None]) -> str:
    """Remove what may be there; whether it was, the port's count of changes tells."""
    before = port.writes
    remove()
    return "removed" if port.writes > before else NOTHING


def remove_chains(
    ports: HostPorts, family: str, table: str, chains: tuple[str, ...], *, must: bool
) -> str:
    """``must``: that the table cannot be read is a failure, not a sign that nothing is there."""
    try:
        return removed(ports.iptables, lambda: ports.iptables.remove(family, table, chains))
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"


def destroy_sets(ports: HostPorts, names: Iterable[str]) -> str:
    return removed(ports.ipsets, lambda: ports.ipsets.destroy(names))
