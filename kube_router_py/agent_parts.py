"""The parts that an agent has, by its options, and what they have in common."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kube_router_py.address_pool_config import pool_settings
from kube_router_py.allocation_part import AllocationPart
from kube_router_py.backend_change import BackendChange
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.cluster.objects import Pod
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.drops.agent_side import Drops
from kube_router_py.firewall.frame import is_own_chain as is_firewall_chain
from kube_router_py.firewall_part import FirewallPart
from kube_router_py.kernel.ports import HostPorts, Observe
from kube_router_py.layer2_part import Layer2Part, OpenResponder
from kube_router_py.loop import Turn
from kube_router_py.options import Options
from kube_router_py.part import Part, numbers
from kube_router_py.pool_book import PoolBook
from kube_router_py.pool_source import PoolSource
from kube_router_py.proxy.service_rules import is_own_chain as is_proxy_chain
from kube_router_py.proxy_part import ProxyPart
from kube_router_py.routing_part import OpenRouting, RoutingPart
from kube_router_py.served import Served, ServedToAll
from kube_router_py.takeover import Takeover

_log = logging.getLogger(__name__)

_STOP_S = 5.0


class AgentParts:
    """Makes the parts; ``all`` has them in the order in which they are started and stopped.

    ``ports`` opens the host's adapters for each part (``firewall_ports`` those of the firewall,
    which needs less; ``routing_ports`` those of the route controller, which does not run without;
    ``open_responder`` that of ARP and NDP, without which nobody answers). Without ``takeover``
    nobody was here before, this agent included.
    """

    def __init__(
        self,
        options: Options,
        client: Client,
        node: str,
        environ: Mapping[str, str],
        ports: Callable[[], HostPorts],
        takeover: Takeover | None,
        firewall_ports: Callable[[], HostPorts],
        routing_ports: OpenRouting | None,
        open_responder: OpenResponder | None,
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
    ) -> None:
        self._options, self._client, self._node = options, client, node
        self.cache = Cache(_kinds(options))
        self.proxy: ProxyPart | None = None
        self.firewall: FirewallPart | None = None
        self.routing: RoutingPart | None = None
        self.allocation: AllocationPart | None = None
        self.layer2: Layer2Part | None = None
        self.all: list[Part] = []

        def changed(is_own: Callable[[str], bool]) -> Callable[[str], None]:
            return BackendChange(is_own).settled if takeover else lambda variant: None

        # The route controller reads the one, the announcer by ARP and NDP the other.
        served, served_here = Served(), Served(sending_s=0.0)
        readers: list[Served] = []
        namespace = own_namespace(environ)
        # The pools that Services get addresses of, for all parts; None: nobody gives any.
        self.book: PoolBook | None = None
        self._pool_source: PoolSource | None = None
        if options.run_loadbalancer:
            self.book = PoolBook(pool_settings(options, namespace))
            self._pool_source = PoolSource(self.book, client, node)
        if options.run_router and routing_ports is not None:
            readers.append(served)
        if self.book is not None and open_responder is not None:
            readers.append(served_here)
        if options.run_service_proxy:
            self.proxy = ProxyPart(
                *(options, self.cache, client, node, namespace, ports, takeover),
                *(on_turn, on_dead, changed(is_proxy_chain), ServedToAll(readers), self.book),
            )
            self.all.append(self.proxy)
        if options.run_firewall:
            self.firewall = FirewallPart(
                *(options, self.cache, node, firewall_ports),
                *(on_turn, on_dead, changed(is_firewall_chain), self.book),
            )
            self.all.append(self.firewall)
        if options.run_router and routing_ports is not None:
            self.routing = RoutingPart(
                *(options, self.cache, client, node, namespace, routing_ports),
                *(served if self.proxy else None, on_turn, on_dead, self.book),
            )
            self.all.append(self.routing)
        if self.book is not None:
            pod = environ.get("POD_NAME", "").strip()
            self.allocation = AllocationPart(
                *(options, self.cache, client, node, namespace, pod, self.book),
                *(on_turn, on_dead),
            )
            self.all.append(self.allocation)
            if open_responder is not None:
                self.layer2 = Layer2Part(
                    *(options, self.cache, client, node, namespace, self.book),
                    *(served_here if self.proxy else None, open_responder, on_turn, on_dead),
                )
                self.all.append(self.layer2)
        self.drops = Drops(options, self.cache, client, node) if options.run_firewall else None
        # In the order of the first part that needs them.
        self.kinds = tuple(dict.fromkeys(kind for part in self.all for kind in part.kinds))

    def reflectors(self) -> Iterator[Reflector[Any]]:
        """Those of the shared cache, then those of the parts' own."""
        for kind in self.cache.kinds:
            if kind is Pod and not self._options.run_firewall:
                # Of other nodes only those on their way out: that is when draining ends.
                yield Reflector(self._client, self.cache, Pod, keep=self._concerns_proxy)
            else:
                yield Reflector(self._client, self.cache, kind)
        for part in self.all:
            yield from part.reflectors

    def _concerns_proxy(self, pod: Pod) -> bool:
        return pod.spec.node_name == self._node or pod.metadata.deletion_timestamp is not None

    def start(self) -> None:
        """Begin what runs beside the loops."""
        for part in self.all:
            part.start()
        if self._pool_source is not None:
            self._pool_source.start()
        if self.drops is not None:
            self.drops.start()

    def before_loops_stop(self) -> None:
        """End what must not mark the loops any more."""
        if self._pool_source is not None:
            self._pool_source.stop(_STOP_S)
        for part in self.all:
            part.before_loops_stop()

    def stop(self) -> None:
        """End what ran beside the loops, which have ended."""
        if self.drops is not None:
            self.drops.stop(_STOP_S)
        for part in self.all:
            part.stop()

    def numbers(self) -> dict[str, float]:
        """Values for the metrics, by name without the prefix."""
        found = numbers(self.all)
        if self._pool_source is not None:
            dropped = found.get("events_dropped_total", 0)
            found["events_dropped_total"] = dropped + self._pool_source.events_dropped
        if self.drops is not None:
            for name, value in self.drops.numbers().items():
                found[name] = found.get(name, 0) + value
        return found

    def pages(self) -> dict[str, Callable[[], bytes]]:
        """What gives metrics that have labels, in Prometheus' text format."""
        found: dict[str, Callable[[], bytes]] = {}
        if self.proxy:
            found["connections"] = self.proxy.connections
        if self.firewall:
            found["policies"] = self.firewall.counters
        if self.routing:
            found["routes"], found["sessions"] = self.routing.routes, self.routing.sessions
        if self.allocation:
            found["pools"] = self.allocation.page
        return found

    def observe(self, observe: Observe) -> None:
        """Have it told how long things take."""
        for part in (self.firewall, self.routing):
            if part is not None:
                part.observe(observe)

    def status(self) -> dict[str, Any]:
        """What the parts say of their work, for ``status``."""
        sections: dict[str, Part | None] = {
            "service_proxy": self.proxy,
            "firewall": self.firewall,
            "router": self.routing,
            "load_balancer": self.allocation,
            "layer2": self.layer2,
        }
        return {name: _said(part) for name, part in sections.items() if part is not None}

    def writes(self) -> dict[str, int]:
        """Changes sent to the kernel since the agent started, by adapter. For any thread."""
        total: Counter[str] = Counter()
        for part in self.all:
            total.update(part.writes())
        return dict(total)


def _said(part: Part) -> dict[str, Any]:
    try:
        return part.status()
    except Exception as error:  # noqa: BLE001 - what the others say is the more wanted then
        _log.exception("a part cannot tell its status loop=%s", part.loop.name)
        return {"failed": repr(error)}


def _kinds(options: Options) -> tuple[type, ...]:
    """What the shared cache holds."""
    found: dict[type, None] = {}
    for is_on, part in (
        (options.run_service_proxy, ProxyPart),
        (options.run_firewall, FirewallPart),
        (options.run_router, RoutingPart),
        (options.run_loadbalancer, AllocationPart),
        (options.run_loadbalancer, Layer2Part),
    ):
        if is_on:
            found.update(dict.fromkeys((*part.kinds, *part.reads)))
    return tuple(found)
