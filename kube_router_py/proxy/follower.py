"""Who is told what the service proxy has asked of the kernel: health checks, events, metrics."""

from collections.abc import Iterable
from typing import Protocol

from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode


class Follower(Protocol):
    """Called in the loop's thread; may neither wait nor raise."""

    def begin(self) -> None:
        """A turn begins: it will see what the cache holds by now."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """A turn has ended well; ``full``: anything may have changed. Returns what is wrong."""
