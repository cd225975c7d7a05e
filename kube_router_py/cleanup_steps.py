"""Steps of a cleanup that several parts of the agent have."""

from collections.abc import Callable, Iterable

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts

Step = tuple[str, Callable[[], str]]
"""What is removed, and what removes it: says what became of it, or raises KernelError."""


def remove_chains(
    ports: HostPorts, family: str, table: str, chains: tuple[str, ...], *, must: bool
) -> str:
    """``must``: that the table cannot be read is a failure, not a sign that nothing is there."""
    try:
        ports.iptables.remove(family, table, chains)
    except KernelError as error:
        if must:
            raise
        return f"not there ({error})"
    return "removed"


def destroy_sets(ports: HostPorts, names: Iterable[str]) -> str:
    ports.ipsets.destroy(names)
    return "removed"
