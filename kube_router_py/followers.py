"""Those who follow the service proxy, as the agent puts them together: health checks of load
balancers, Events, and how long the network takes to follow."""

from collections.abc import Callable

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe.events import RefusedAddresses
from kube_router_py.observe.health_checks import HealthChecks
from kube_router_py.observe.health_ports import HealthPorts
from kube_router_py.observe.node_health import NodeHealth, ProxyHealth
from kube_router_py.observe.programming import ProgrammingLatency
from kube_router_py.observe.serve import PatientServer
from kube_router_py.options import Options
from kube_router_py.proxy.follower import Follower

_STOP_S = 5.0


class Followers:
    """``status`` is the service proxy's loop's. Before the start may be set: ``on_programmed``,
    which gets the seconds from a change of endpoints to the kernel; ``on_opened``, called when a
    port that was taken answers after all."""

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
        self.on_opened: Callable[[], None] = lambda: None
        self.refused = RefusedAddresses(cache, client, node)
        self._proxy_health = ProxyHealth(status)
        self._checks = HealthChecks(
            HealthPorts(self._proxy_health.is_healthy, lambda: self.on_opened()),
            is_restricted=bool(options.nodeport_addresses),
        )
        self._latency = ProgrammingLatency(lambda seconds: self.on_programmed(seconds))
        self._server = PatientServer(
            *options.healthz_bind_address,
            NodeHealth(cache, node, self._proxy_health).pages(),
            "healthz-bind-address",
            "load balancers cannot ask for this node's health",
        )
        self._is_on = bool(options.healthz_bind_address[1])

    def all(self) -> tuple[Follower, ...]:
        """To be told after each turn."""
        return self._proxy_health, self._checks, self.refused, self._latency

    def start(self) -> None:
        self._latency.subscribe(self._cache)
        if self._is_on:
            self._server.start()

    def stop(self) -> None:
        """Stop answering and telling. Load balancers find nobody and turn to other nodes."""
        self._server.stop()
        self._checks.close()
        self.refused.stop(_STOP_S)
