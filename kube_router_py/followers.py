"""Those who follow the service proxy, as the agent puts them together: health checks of load
balancers, Events, and how long the network takes to follow."""

import logging
from collections.abc import Callable

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.errors import ConfigurationError
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.events import RefusedAddresses
from kube_router_py.observe.health_checks import HealthChecks
from kube_router_py.observe.health_ports import HealthPorts
from kube_router_py.observe.node_health import NodeHealth, is_healthy
from kube_router_py.observe.programming import ProgrammingLatency
from kube_router_py.observe.serve import HttpServer
from kube_router_py.options import Options
from kube_router_py.proxy.follower import Follower

_log = logging.getLogger(__name__)

_STOP_S = 5.0


class Followers:
    """``status`` is the service proxy's loop's. ``on_programmed`` may be set before the start; it
    gets the seconds from a change of endpoints to the kernel."""

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        status: Callable[[], LoopStatus],
    ) -> None:
        self._cache = cache
        self.on_programmed: Callable[[float], None] = lambda seconds: None
        self.refused = RefusedAddresses(cache, client, node)
        self._checks = HealthChecks(
            HealthPorts(lambda: is_healthy(status())),
            is_restricted=bool(options.nodeport_addresses),
        )
        self._latency = ProgrammingLatency(lambda seconds: self.on_programmed(seconds))
        self._bind_address = options.healthz_bind_address
        self._node_health = NodeHealth(cache, node, status)
        self._server: HttpServer | None = None

    def all(self) -> tuple[Follower, ...]:
        """To be told after each turn."""
        return self._checks, self.refused, self._latency

    def start(self) -> None:
        self._latency.subscribe(self._cache)
        self._server = _listen(*self._bind_address, self._node_health)
        if self._server is not None:
            self._server.start()

    def stop(self) -> None:
        """Stop answering and telling. Load balancers find nobody and turn to other nodes."""
        if self._server is not None:
            self._server.stop()
        self._checks.close()
        self.refused.stop(_STOP_S)


def _listen(address: str, port: int, health: NodeHealth) -> HttpServer | None:
    """The server of --healthz-bind-address. Where the port is taken, by kube-proxy most likely,
    everything else goes on: the node is being taken over."""
    if not port:
        return None
    try:
        return HttpServer(address, port, health.pages(), "healthz-bind-address")
    except ConfigurationError as error:
        _log.error("load balancers cannot ask for this node's health: %s", error)
        return None
