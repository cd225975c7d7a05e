"""Which addresses the proxy serves: local ones, with a virtual server that stands in the kernel."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import Verb, VirtualServerKey, VirtualServerState
from kube_router_py.proxy.plan import Plan
from kube_router_py.proxy.settings import ThisNode


class Proxy(Protocol):
    """What is asked of ``controller.ServiceProxy``."""

    @property
    def standing(self) -> Mapping[VirtualServerKey, VirtualServerState]: ...

    def served_by(self, key: VirtualServerKey) -> tuple[str, VirtualServerKey] | None: ...

    def is_local(self, address: bytes) -> bool: ...

    def is_of_node(self, address: bytes) -> bool: ...


class Listener(Protocol):
    """Who is told packed addresses (``served.Served``)."""

    def change(self, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> None: ...

    def withdraw(self, addresses: Iterable[bytes]) -> None: ...


class Serving:
    """A ``Follower`` that tells which addresses are served, in the loop's thread."""

    def __init__(self, proxy: Callable[[], Proxy], listener: Listener) -> None:
        self._proxy, self._listener = proxy, listener
        self._places: dict[VirtualServerKey, bytes] = {}
        self._users: Counter[bytes] = Counter()
        self._told: set[bytes] = set()
        # They have virtual servers, but the node does not take them for its own.
        self._unreachable: set[bytes] = set()

    def begin(self) -> None:
        """Nothing to prepare."""

    def before(self, planned: Plan) -> None:
        """These writes are about to be made: what they end is withdrawn first."""
        proxy = self._proxy()
        # One that the node has got for its own is removed, and served as before.
        going = {vip.address for vip in planned.remove_vips if not proxy.is_of_node(vip.address)}
        left = Counter(
            self._places[each.key]
            for each in planned.shrink
            if each.verb is Verb.DELETE_VIRTUAL_SERVER and each.key in self._places
        )
        coming = {
            found[1].address
            for each in planned.grow
            if each.verb is Verb.ADD_VIRTUAL_SERVER and (found := proxy.served_by(each.key))
        }
        going.update(
            address
            for address, fewer in left.items()
            if self._users[address] == fewer and address not in coming
        )
        if going := going & self._told:
            self._told -= going
            self._listener.withdraw(going)

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        del desired, node
        proxy = self._proxy()
        standing = proxy.standing
        touched = {vip.address for vip in changes.vips} | self._unreachable
        for key in {*standing, *self._places} if full else changes.servers:
            found = proxy.served_by(key) if key in standing else None
            touched |= self._place(key, found[1].address if found else None)
        if full:
            touched |= self._users.keys() | self._told
        self._unreachable = {
            each for each in touched if self._users[each] and not proxy.is_local(each)
        }
        served = {each for each in touched if self._users[each]} - self._unreachable
        added, removed = served - self._told, (touched - served) & self._told
        self._told = (self._told | added) - removed
        for each in touched:
            if not self._users[each]:
                del self._users[each]
        if added or removed or full:
            self._listener.change(added, removed)
        return ()

    def _place(self, key: VirtualServerKey, new: bytes | None) -> set[bytes]:
        """Note the address of a virtual server; returns what that touches."""
        old = self._places.pop(key, None)
        if new is not None:
            self._places[key] = new
        if new == old:
            return set()
        found = {each for each in (old, new) if each is not None}
        for each in found:
            self._users[each] += 1 if each == new else -1
        return found
