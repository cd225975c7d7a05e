"""Which addresses the proxy serves: those of virtual servers that stand in the kernel."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import VirtualServerKey, VirtualServerState
from kube_router_py.proxy.settings import ThisNode

Standing = Mapping[VirtualServerKey, VirtualServerState]
ServedBy = Callable[[VirtualServerKey], tuple[str, VirtualServerKey] | None]


class Serving:
    """A ``Follower`` that tells ``changed(added, removed)`` packed addresses, in the loop's thread.

    ``standing`` are the virtual servers in the kernel, ``served_by`` tells at which address one is
    served (its own, or that behind its fwmark).
    """

    def __init__(
        self,
        standing: Callable[[], Standing],
        served_by: ServedBy,
        changed: Callable[[Iterable[bytes], Iterable[bytes]], None],
    ) -> None:
        self._standing, self._served_by, self._changed = standing, served_by, changed
        self._places: dict[VirtualServerKey, bytes] = {}
        self._users: Counter[bytes] = Counter()

    def begin(self) -> None:
        """Nothing to prepare."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        del desired, node
        standing = self._standing()
        keys = {*standing, *self._places} if full else changes.servers
        touched: dict[bytes, bool] = {}
        for key in keys:
            found = self._served_by(key) if key in standing else None
            new = found[1].address if found else None
            old = self._places.get(key)
            if new == old:
                continue
            if old is not None:
                del self._places[key]
                self._count(old, -1, touched)
            if new is not None:
                self._places[key] = new
                self._count(new, 1, touched)
        added = [each for each, was in touched.items() if not was and self._users[each]]
        removed = [each for each, was in touched.items() if was and not self._users[each]]
        for each in touched:
            if not self._users[each]:
                del self._users[each]
        if added or removed:
            self._changed(added, removed)
        return ()

    def _count(self, address: bytes, step: int, touched: dict[bytes, bool]) -> None:
        touched.setdefault(address, bool(self._users[address]))
        self._users[address] += step
