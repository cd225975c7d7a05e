"""What the allocator's loop and the part of the agent around it say to each other."""

from typing import Protocol

from msgspec import Struct

from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.objects import Service
from kube_router_py.loadbalancer.decisions import Occupancy
from kube_router_py.object_key import Key
from kube_router_py.problem import Problem

POOLS = Key("pools")
LEADER = Key("leader")
WRITES = Key("writes")


class Pools(Protocol):
    """The pools that hold at the moment."""

    @property
    def pools(self) -> AddressPools: ...

    @property
    def problems(self) -> tuple[Problem, ...]: ...


class Tell(Protocol):
    """Tells of a Service by an Event."""

    def __call__(self, key: str, reason: str, problem: Problem, *, is_good: bool = False) -> None:
        """Never blocks."""


class Report(Struct, frozen=True):
    """How the allocation is, for other threads: numbers of Services, and how full the pools are.

    ``kept`` names what Services have of what was retired from ``pools`` (``kept_addresses``).
    """

    term: int = 0
    allocated: int = 0
    waiting: int = 0
    refused: int = 0
    conflicts: int = 0
    writing: int = 0
    occupancy: tuple[Occupancy, ...] = ()
    kept: str = ""
    pools: AddressPools = AddressPools()


Listing = tuple[dict[str, Service], str, frozenset[str]]
"""All Services by key, the version of the list, and the keys of those that cannot be read."""


def service_key(name: str) -> Key:
    return Key(Service.__name__, name)
