"""The service proxy as the agent runs it: its loop, its reflectors, and those who follow it."""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kube_router_py.adapters import Host, dsr_opener, open_ipvs
from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import EndpointSlice, Lease, NetworkPolicy, Pod, Service
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.errors import KernelError
from kube_router_py.followers import Followers
from kube_router_py.kernel.address_monitor import AddressMonitor
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.loop import Loop, Turn
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook
from kube_router_py.problem import Problem
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.dirty_keys import KINDS, OWN_NODE, POOLS
from kube_router_py.proxy.dsr_host import OTHER_NODES, Dsr
from kube_router_py.proxy.dsr_ready import LABEL, LABEL_VALUE, LeaseReady
from kube_router_py.proxy.isolation import Isolation
from kube_router_py.proxy.serving import Serving
from kube_router_py.proxy.settings import ThisNode, proxy_options
from kube_router_py.proxy.sysctls import VIP_LINK
from kube_router_py.served import Served, ServedToAll
from kube_router_py.takeover import Takeover

if TYPE_CHECKING:
    from kube_router_py.observe.connections import ConnectionsPage
    from kube_router_py.observe.traffic import TrafficPage

_log = logging.getLogger(__name__)

_STOP_S = 5.0


class _WhenRulesStand:
    """A ``Follower`` that tells ``then`` after full turns in which variant of iptables the proxy's
    rules stand, once they do; ``variant`` is empty until then."""

    def __init__(self, variant: Callable[[], str], then: Callable[[str], None]) -> None:
        self._variant, self._then = variant, then

    def begin(self) -> None:
        """Nothing to prepare."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        del desired, node, changes
        if full and (variant := self._variant()):
            self._then(variant)
        return ()


class ProxyPart:
    """A part of the agent (see ``part.Part``). Without ``takeover`` nobody was here before.

    ``served`` is told which addresses are served. Without ``book`` only flags say which addresses
    load balancers may give.
    """

    # Without these nothing works; without Pods, NetworkPolicies and Leases something is missing.
    kinds: tuple[type, ...] = KINDS
    reads: tuple[type, ...] = (Service, EndpointSlice, Pod, NetworkPolicy)

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        namespace: str,
        ports: Callable[[], HostPorts],
        takeover: Takeover | None,
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
        on_settled: Callable[[str], None],
        served: Served | ServedToAll | None = None,
        book: PoolBook | None = None,
    ) -> None:
        self._cache, self._book = cache, book
        serving = Serving(lambda: self._proxy, served or Served())
        # Apart from the others: without permission to read Leases everything but DSR goes on.
        self.leases = Cache((Lease,))
        isolation = Isolation(cache, cache, node, cache if options.run_firewall else None)
        self._dsr_ready = LeaseReady(cache, self.leases, client, node, namespace)
        self.reflectors: list[Reflector[Any]] = [
            Reflector(
                client,
                self.leases,
                Lease,
                label_selector=f"{LABEL}={LABEL_VALUE}",
                namespace=namespace,
            )
        ]
        self._host = Host(ports)
        self._followers = Followers(options, cache, client, node, lambda: self.loop.status())
        self._takeover = takeover or Takeover(node, lambda: None, lambda: ())
        self._proxy = ServiceProxy(
            cache,
            proxy_options(options),
            node,
            ports=self._host.open,
            dsr=Dsr(node, dsr_opener(options), self._dsr_ready, isolation.is_isolated),
            followers=(
                *self._followers.all(),
                self._takeover,
                _WhenRulesStand(self._variant, on_settled),
                serving,
            ),
            before=serving.before,
            pools=lambda: book.pools if book is not None else AddressPools(),
        )
        self._takeover.is_settled = lambda: self._proxy.rules_stand
        # Made in start(), in the namespace that the agent serves.
        self._monitor: AddressMonitor | None = None
        self._traffic: TrafficPage | None = None
        self._connections: ConnectionsPage | None = None
        self.loop = Loop(
            self._proxy,
            ready=self._is_ready,
            resync_interval_s=options.ipvs_sync_period,
            on_turn=on_turn,
            on_dead=on_dead,
        )
        self._proxy.subscribe(cache, self.loop)
        if book is not None:
            book.subscribe(lambda: self.loop.mark((POOLS,)))
        self._followers.on_opened = lambda: self.loop.mark((OWN_NODE,))
        self.leases.subscribe((Lease,), lambda event: self.loop.mark((OTHER_NODES,)))
        isolation.subscribe(self.loop, (OTHER_NODES,))

    def _is_ready(self) -> bool:
        """Whether enough is known to write to the kernel. Services are served without Pods, where
        it is not permitted to read these; but not for want of a moment's patience."""
        if not (self._cache.is_synced(KINDS) and self._dsr_ready.is_known()):
            return False
        if self._book is not None and not self._book.is_known:
            return False
        pods = self._cache.stats()[Pod]
        return (pods.synced or bool(pods.failing)) and self._takeover.may_program()

    def _variant(self) -> str:
        ports = self._proxy.ports
        return ports.iptables.variant if ports and self._proxy.rules_stand else ""

    def start(self) -> None:
        """Begin what runs beside the loop."""
        self._followers.start()
        self.watch_addresses()

    def watch_addresses(self) -> None:
        """Without it a changed address is found out by the next full turn."""
        try:
            monitor = AddressMonitor(lambda: self.loop.mark((OWN_NODE,)), (VIP_LINK,))
        except KernelError as error:
            _log.warning(
                "addresses are followed every --ipvs-sync-period only reason=%r", str(error)
            )
            return
        monitor.start()
        self._monitor = monitor

    def before_loops_stop(self) -> None:
        if self._monitor is not None:
            self._monitor.stop(_STOP_S)

    def stop(self) -> None:
        """End what ran beside the loop, which has ended."""
        self._dsr_ready.stop(_STOP_S)
        self._followers.stop()

    def numbers(self) -> dict[str, float]:
        return {
            "controller_ipvs_services": self._proxy.virtual_servers,
            "refused_addresses": self._followers.refused.number,
            "events_dropped_total": self._followers.refused.dropped,
        }

    def writes(self) -> dict[str, int]:
        return self._host.writes()

    def status(self) -> dict[str, Any]:
        return {
            "virtual_servers": self._proxy.virtual_servers,
            "addresses": self._proxy.addresses,
            "repaired": self._proxy.repaired,
            "writes": self.writes(),
        }

    def observe_programming(self, observe: Callable[[float], None]) -> None:
        """Have the seconds from a change of endpoints to the kernel told."""
        self._followers.on_programmed = observe

    def connections(self) -> bytes:
        """Connections through IPVS, in Prometheus' text format."""
        if self._connections is None:
            from kube_router_py.observe.connections import ConnectionsPage

            self._connections = ConnectionsPage(self._proxy.served_by)
        return self._connections.text()

    def traffic(self) -> bytes:
        """The traffic of Services, in Prometheus' text format."""
        if self._traffic is None:
            from kube_router_py.observe.traffic import TrafficPage

            self._traffic = TrafficPage(open_ipvs, self._proxy.served_by)
        return self._traffic.text()
