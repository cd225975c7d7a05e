"""What the allocator says: who gets which address, and what is wrong. Pure values."""

from enum import StrEnum

from msgspec import Struct

from kube_router_py.address_pools import Address
from kube_router_py.problem import Problem


class Reason(StrEnum):
    """Why something is told: the reason of the Event."""

    INVALID_REQUEST = "InvalidAddressRequest"
    WRONG_FAMILY = "WrongAddressFamily"
    NOT_HEEDED = "AddressRequestNotHeeded"
    NO_POOL = "NoAddressPool"
    UNKNOWN_POOL = "UnknownAddressPool"
    POOL_FORBIDS = "AddressPoolForbidden"
    NOT_IN_POOL = "AddressNotInPool"
    EXHAUSTED = "AddressPoolExhausted"
    IN_USE = "AddressInUse"
    SHARING = "AddressNotShareable"
    OUTSIDE = "AddressOutsidePools"
    REALLOCATED = "AddressReallocated"
    OVERWRITTEN = "AddressOverwritten"


class Told(Struct, frozen=True, order=True):
    """A Problem, or a piece of news in its form, and the reason of its Event."""

    reason: Reason
    problem: Problem


class Given(Struct, frozen=True):
    """An address and the pool that it is of; ``""`` if it is in no pool (any more)."""

    address: Address
    pool: str


class Decision(Struct, frozen=True):
    """What a Service has from now on.

    ``addresses``: all that its status is to list, in this order; they are reserved from now on,
    whatever becomes of the write. ``must_write``: its status, as last seen, lists others. ``wrong``
    is what is wrong as long as nothing changes; ``news`` what has just happened, told once.
    ``retry``: other Services that this may have made room for, the oldest first: decide them anew.
    """

    key: str
    addresses: tuple[Given, ...] = ()
    must_write: bool = False
    wrong: tuple[Told, ...] = ()
    news: tuple[Told, ...] = ()
    retry: tuple[str, ...] = ()


class Occupancy(Struct, frozen=True):
    """How full a pool is in one family (4 or 6): addresses in all, in use, and still to give.

    With ``avoid_buggy_ips`` there are fewer to give than are not in use.
    """

    pool: str
    version: int
    size: int
    used: int
    free: int
