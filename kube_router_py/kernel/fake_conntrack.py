"""A stateful fake of the connections that a host remembers, for tests and dry runs."""

import errno
import os
from collections.abc import Collection

from msgspec import Struct, field

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.ports_conntrack import FlowFailure


class FakeFlow(Struct, frozen=True, order=True):
    """An entry: from client to server as the client sees it, answered by ``answers_from`` to
    ``answers_to``, which differ from them where addresses were translated."""

    client: str
    server: str
    answers_from: str
    answers_to: str
    client_port: int = 40000

    def addresses(self) -> frozenset[str]:
        return frozenset((self.client, self.server, self.answers_from, self.answers_to))


class FakeConntrackKernel(Struct):
    """Connections of one fake namespace: those in ``busy`` cannot be deleted; ``error`` is what
    every call ends with. ``asked``: what was to be forgotten, call by call."""

    flows: set[FakeFlow] = field(default_factory=set)
    busy: set[FakeFlow] = field(default_factory=set)
    error: KubeRouterError | None = None
    asked: list[frozenset[str]] = field(default_factory=list)


class FakeConntrack:
    """A stateful ``ports_conntrack.Conntrack``."""

    def __init__(self, kernel: FakeConntrackKernel | None = None) -> None:
        self.writes = 0
        self.kernel = kernel or FakeConntrackKernel()

    def forget(self, addresses: Collection[str]) -> list[FlowFailure]:
        if not addresses:
            return []
        kernel, wanted = self.kernel, frozenset(addresses)
        kernel.asked.append(wanted)
        if kernel.error is not None:
            raise kernel.error
        found = {flow for flow in kernel.flows if flow.addresses() & wanted}
        self.writes += len(found)
        kernel.flows -= found - kernel.busy
        message = f"a connection cannot be deleted: {os.strerror(errno.EBUSY)}"
        left = {each for flow in found & kernel.busy for each in flow.addresses() & wanted}
        return sorted(FlowFailure(address, message) for address in left)
