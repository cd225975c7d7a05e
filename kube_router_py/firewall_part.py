"""The firewall as the agent runs it."""

from collections.abc import Callable
from typing import Any

from kube_router_py.adapters import Host
from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.firewall.controller import KINDS, POOLS, Firewall
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.loop import Loop, Turn
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook

# A new pod waits for its policies: little more than what one commit takes.
_MIN_INTERVAL_S = 0.02


class FirewallPart:
    """A part of the agent (see ``part.Part``). Without ``book`` only flags say which addresses load
    balancers may give."""

    kinds: tuple[type, ...] = KINDS
    reads: tuple[type, ...] = KINDS
    reflectors: tuple[Reflector[Any], ...] = ()

    def __init__(
        self,
        options: Options,
        cache: Cache,
        node: str,
        ports: Callable[[], HostPorts],
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
        on_settled: Callable[[str], None],
        book: PoolBook | None = None,
    ) -> None:
        self._host = Host(ports)
        self._firewall = Firewall(
            cache,
            firewall_options(options),
            node,
            self._host.open,
            on_settled,
            pools=lambda: book.pools if book is not None else AddressPools(),
        )
        self.loop = Loop(
            self._firewall,
            ready=lambda: cache.is_synced(KINDS) and (book is None or book.is_known),
            resync_interval_s=options.iptables_sync_period,
            min_interval_s=_MIN_INTERVAL_S,
            on_turn=on_turn,
            on_dead=on_dead,
        )
        self._firewall.subscribe(cache, self.loop)
        if book is not None:
            book.subscribe(lambda: self.loop.mark((POOLS,)))

    def start(self) -> None:
        """Nothing runs beside the loop."""

    def before_loops_stop(self) -> None:
        """Nothing to end first."""

    def stop(self) -> None:
        """Nothing ran beside the loop."""

    def numbers(self) -> dict[str, float]:
        return self._firewall.numbers

    def writes(self) -> dict[str, int]:
        return self._host.writes()
