"""Reading what iptables' target NFLOG logs: the contract of the socket and of its fake."""

from collections.abc import Callable
from typing import Protocol

from kube_router_py.errors import KernelError
from kube_router_py.kernel.nflog_packets import Packet


class GroupTakenError(KernelError):
    """Another program reads this group, and the kernel gives it to one at a time; the message says
    which program it is, as far as can be seen."""


class PacketLog(Protocol):
    """One group of one network namespace, from the moment this is made. For one thread."""

    @property
    def lost(self) -> int:
        """How many packets came that nobody was given, for want of room, since it was opened."""

    def read(self, timeout_s: float) -> list[Packet]:
        """What came, in order; empty where nothing did in time. Raises KernelError."""

    def close(self) -> None:
        """Give the group back at once. May be repeated."""


OpenPacketLog = Callable[[], PacketLog]
"""Raises GroupTakenError, or KernelError where the kernel has no such thing."""
