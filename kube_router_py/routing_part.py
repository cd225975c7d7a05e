"""The route controller as the agent runs it."""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import Node
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.cluster.secrets import read_entry
from kube_router_py.errors import KernelError
from kube_router_py.kernel import kube_router
from kube_router_py.kernel.kube_proxy import Step
from kube_router_py.kernel.overlay_monitor import OverlayMonitor
from kube_router_py.kernel.overlay_ports import Overlay
from kube_router_py.kernel.ports import Observe
from kube_router_py.loop import Loop, Turn
from kube_router_py.observe.event_writer import EventWriter
from kube_router_py.observe.problem_events import SPACING_S, ProblemEvents
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook
from kube_router_py.router_takeover import RouterTakeover
from kube_router_py.routing.cni import BRIDGE
from kube_router_py.routing.controller import (
    DAEMONS,
    KINDS,
    LINKS,
    POOLS,
    SERVED,
    RouteController,
    RoutingPorts,
)
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import routing_settings
from kube_router_py.served import Served
from kube_router_py.source_dest_check import Once

if TYPE_CHECKING:
    from kube_router_py.observe.bgp import BgpPage

_log = logging.getLogger(__name__)

_STOP_S = 5.0
# A turn is cheap; a Service and what the proxy says of it come one after the other.
_MIN_INTERVAL_S = 0.02
# FRR's daemons of an earlier agent go on announcing Services: they are left as they are until the
# proxy has said what it serves, but not for ever: without its turns it may serve nothing any more.
_PROXY_S = 60.0
_POLL_S = 0.05
_SETTLE_S = 10.0
# bgpd takes a withdrawal at once and sends it 50 ms later (work queue, bgp_route.c); where it is
# killed before, in a container that ends, routers keep the Service for a restart that may not come.
_SEND_S = 1.0
# Less than a scrape waits, for each daemon that is asked.
_SCRAPE_S = 2.0

OpenRouting = Callable[[Callable[[], None]], RoutingPorts]
"""Opens the adapters; is given what to call, in any thread, when FRR's daemons have ended."""


class RoutingPart:
    """A part of the agent (see ``part.Part``).

    ``namespace`` is the agent's own, with the Secrets that annotations name. ``served``: the
    addresses that this node's service proxy serves; None: it does not run here. Without ``book``
    only flags say which addresses load balancers may give, and how these are announced.
    """

    kinds: tuple[type, ...] = KINDS
    reads: tuple[type, ...] = KINDS
    reflectors: tuple[Reflector[Any], ...] = ()

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        namespace: str,
        open_ports: OpenRouting,
        served: Served | None,
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
        book: PoolBook | None = None,
    ) -> None:
        settings = routing_settings(options)
        takeover = RouterTakeover(self._left_by_kube_router)
        self._open_ports = open_ports
        self._ports: RoutingPorts | None = None
        self._written: dict[str, int] = {}
        # Routes added and removed through adapters that were closed.
        self._moved = (0, 0)
        # Made in start(), in the namespace that the agent serves.
        self._monitor: OverlayMonitor | None = None
        self.controller = RouteController(
            cache,
            settings,
            node,
            self._open,
            lambda: PodNetwork(
                *(settings, node),
                has_firewall=options.run_firewall,
                on_overlay=self._watch,
                observe=lambda what, seconds: self.controller.observe(what, seconds),
            ),
            PasswordSources(
                settings, node, lambda ref: read_entry(client, namespace, ref.name, ref.key)
            ),
            served,
            takeover.follow,
            pools=lambda: book.pools if book is not None else AddressPools(),
        )
        self._settings, self._served, self._book = settings, served, book
        self._on_turn = on_turn
        self._events = ProblemEvents(EventWriter(cache, client, node, SPACING_S), node)
        self._frr_dir = options.frr_dir
        self._page: BgpPage | None = None
        self._waits_until: float | None = None
        if served is not None:
            served.on_change = lambda: self.loop.mark((SERVED,))
        self.loop = Loop(
            self.controller,
            ready=lambda: cache.is_synced(KINDS) and self._knows_pools() and self._may_announce(),
            min_interval_s=_MIN_INTERVAL_S,
            resync_interval_s=min(options.routes_sync_period, options.injected_routes_sync_period),
            on_turn=self._after_turn,
            on_dead=on_dead,
        )
        self.controller.subscribe(cache, self.loop)
        if book is not None:
            book.subscribe(lambda: self.loop.mark((POOLS,)))
        if options.disable_source_dest_check:
            _switch_off_source_dest_check(cache, node)

    def _open(self) -> RoutingPorts:
        written, moved = self.writes(), self._moved_so_far()
        self._ports = self._open_ports(lambda: self.loop.mark((DAEMONS,)))
        self._written, self._moved = written, moved
        return self._ports

    def _left_by_kube_router(self) -> Iterator[Step]:
        ports = self._ports
        if ports is not None:
            yield from kube_router.leftovers_of_router(ports.host.iptables.variant)

    def _watch(self, overlay: Overlay, links: Collection[str]) -> None:
        if self._monitor is not None:
            destinations = {each.destination for each in overlay.routes}
            self._monitor.watch({*links, BRIDGE}, destinations)

    def start(self) -> None:
        """Begin to listen to the kernel; without that, changes are found by full turns."""
        try:
            monitor = OverlayMonitor(lambda: self.loop.mark((LINKS,)))
        except KernelError as error:
            _log.warning(
                "routes and tunnels are looked at every --injected-routes-sync-period only "
                "reason=%r",
                str(error),
            )
            return
        monitor.start()
        self._monitor = monitor

    def _knows_pools(self) -> bool:
        return self._book is None or self._book.is_known

    def _may_announce(self) -> bool:
        """Whether the proxy has said what it serves, or has had its time; asked once the cache is
        there."""
        if self._served is None or self._served.is_known:
            return True
        now = time.monotonic()
        if self._waits_until is None:
            self._waits_until = now + _PROXY_S
        return now >= self._waits_until

    def before_loops_stop(self) -> None:
        if self._settings.withdraw_on_exit:
            self._withdraw()
        if self._monitor is not None:
            self._monitor.stop(_STOP_S)

    def _withdraw(self) -> None:
        """Drain this node of Services while everything still works."""
        limit_s = self._settings.drain_delay_s + _SETTLE_S
        _log.info(
            "withdrawing Services before the end (--withdraw-on-exit) delay_s=%g",
            self._settings.drain_delay_s,
        )
        deadline = time.monotonic() + limit_s
        self.controller.is_exiting = True
        self.loop.mark((SERVED,))
        while not self.controller.is_drained:
            status = self.loop.status()
            if not status.turning or time.monotonic() > deadline:
                _log.warning(
                    "Services are not withdrawn reason=%r", status.reason or f"after {limit_s:g} s"
                )
                return
            time.sleep(_POLL_S)
        time.sleep(_SEND_S)

    def _after_turn(self, turn: Turn) -> None:
        """In the loop's thread."""
        self._events.follow(self.loop.status().problems)
        self._on_turn(turn)

    def stop(self) -> None:
        """End what ran beside the loop, which has ended."""
        self._events.stop(_STOP_S)

    def numbers(self) -> dict[str, float]:
        return {**self.controller.numbers, "events_dropped_total": self._events.dropped}

    def writes(self) -> dict[str, int]:
        ports = self._ports
        now = {} if ports is None else {"overlay": ports.overlay.writes, "frr": ports.frr.writes}
        if ports is not None:
            now["ipsets"], now["iptables"] = ports.host.ipsets.writes, ports.host.iptables.writes
            now["sysctls"] = ports.host.sysctls.writes
        return {
            name: now.get(name, 0) + self._written.get(name, 0) for name in {*now, *self._written}
        }

    def _moved_so_far(self) -> tuple[int, int]:
        """Routes added and removed since the agent started."""
        added, removed = self._moved
        if (ports := self._ports) is None:
            return added, removed
        return added + ports.overlay.routes.added, removed + ports.overlay.routes.removed

    def observe(self, observe: Observe) -> None:
        """Have it told how long things take."""
        self.controller.observe = observe

    def routes(self) -> bytes:
        """Routes and announcements, in Prometheus' text format."""
        from kube_router_py.observe.exposition import by_label, single

        added, removed = self._moved_so_far()
        sent = by_label("controller_bgp_advertisements_sent", self.controller.advertisements)
        return "".join(
            (*sent, single("host_routes_added", added), single("host_routes_removed", removed))
        ).encode()

    def sessions(self) -> bytes:
        """The sessions of BGP and BFD, in Prometheus' text format."""
        return self._bgp().text()

    def _bgp(self) -> "BgpPage":
        if self._page is None:
            from kube_router_py.kernel.frr import read_summary
            from kube_router_py.observe.bgp import BgpPage

            read = partial(read_summary, self._frr_dir, _SCRAPE_S)
            self._page = BgpPage(read, lambda: self.controller.neighborhood)
        return self._page

    def status(self) -> dict[str, Any]:
        around, numbers = self.controller.neighborhood, self.controller.numbers
        identity = around.identity if around is not None else None
        found: dict[str, Any] = {
            "asn": identity.asn if identity is not None else None,
            "router_id": str(identity.router_id) if identity is not None else None,
            "announced_services": int(numbers["controller_bgp_advertised_services"]),
            "drained": self.controller.drain_cause,
            "repaired": int(numbers["controller_bgp_drift_total"]),
            "frr": "answers",
            "neighbors": [],
            "writes": self.writes(),
        }
        try:
            found["neighbors"] = self._bgp().rows()
        except KernelError as error:
            found["frr"] = str(error)
        return found


def _switch_off_source_dest_check(cache: Cache, node: str) -> None:
    once = Once()

    def notify(event: Event) -> None:
        if event.key == node and isinstance(event.new, Node):
            once.follow(event.new.spec.provider_id or "")

    cache.subscribe((Node,), notify)
