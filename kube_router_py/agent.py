"""The agent: wires caches, loops and probes together, and ends them in order.

Start: logs, the port of the probes, credentials and the addresses of the API server (mistakes here
are the operator's: exit code 2); then reflectors and loops, each in its thread. The kernel is not
written before the first complete lists are there.

Without the API server the agent lives on: what the kernel has goes on serving, and a restart would
not help. Until the first lists are complete it is not ready, and every ``--cache-sync-timeout`` the
log says what is missing and why. (kube-router exits then.)

Stop (SIGTERM, SIGINT): loops first, then reflectors, then the probes. The kernel keeps everything:
connections go on, and the next agent takes over. Exit code 0, or 1 where a loop was given up.
"""

import logging
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType

import kube_router_py
from kube_router_py.adapters import (
    check_capabilities,
    firewall_opener,
    opener,
    responder_opener,
    routing_opener,
)
from kube_router_py.address_pools import AddressPools
from kube_router_py.agent_parts import AgentParts
from kube_router_py.agent_questions import questions, streams
from kube_router_py.cluster.bootstrap import check_api_addresses
from kube_router_py.cluster.client import Client, connect
from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.cluster.objects import Service, ServiceSpec
from kube_router_py.cluster_status import StatusWriter
from kube_router_py.errors import ConfigurationError
from kube_router_py.flow_answers import FlowAnswers
from kube_router_py.kernel.agent_lock import AgentLock
from kube_router_py.kernel.modules import FIREWALL, PROXY, advice, missing_modules
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.layer2_part import OpenResponder
from kube_router_py.loop import Turn
from kube_router_py.observe import log_targets
from kube_router_py.observe.agent_socket import AgentSocket
from kube_router_py.observe.health import Health
from kube_router_py.observe.serve import HttpServer
from kube_router_py.observe.supervisor import notify
from kube_router_py.old_daemons import old_daemons
from kube_router_py.old_policies import old_policies
from kube_router_py.option_flag import FIREWALL as FIREWALL_FLAGS
from kube_router_py.option_flag import LOADBALANCER as LOADBALANCER_FLAGS
from kube_router_py.option_table import FLAGS
from kube_router_py.option_types import check_node_name
from kube_router_py.options import Options, given_text
from kube_router_py.routing_part import OpenRouting
from kube_router_py.takeover import Takeover, left_behind

_log = logging.getLogger(__name__)

_STOP_LOOP_S = 15.0
_STOP_REFLECTORS_S = 5.0
# The agent of the last version may still be ending.
_LOCK_WAIT_S = 30.0

_PARTS = ("run_service_proxy", "run_firewall", "run_router", "run_loadbalancer")
# Flags of parts that do run which nothing reads yet, or never will.
_WITHOUT_EFFECT = frozenset(
    (
        "service-node-port-range",
        "use-nftables-for-netpol",
        "gobgp-admin-address",
        "gobgp-admin-port",
    )
)
# Groups of flags that one part reads and no other.
_READ_BY = {FIREWALL_FLAGS: "run_firewall", LOADBALANCER_FLAGS: "run_loadbalancer"}


def run(options: Options, environ: Mapping[str, str] = os.environ) -> int:
    """Run until a signal says stop; returns the exit code. Raises ConfigurationError."""
    node = node_name(options, environ)
    log_targets.configure(options.v, sys.stderr, environ, node=node, journal=options.log_journal)
    _log.info(
        "starting version=%s node=%s flags=%r",
        kube_router_py.__version__,
        node,
        " ".join(f"--{name}={text}" for name, text in given_text(options).items()),
    )
    for flags in without_effect(options):
        _log.warning("accepted, but without effect: nothing that runs reads them flags=%s", flags)
    if not any(getattr(options, field) for field in _PARTS):
        flags = ",".join(f"--{field.replace('_', '-')}" for field in _PARTS)
        _log.warning("nothing to run: no part is enabled; there are flags=%s", flags)
        return 0
    check_capabilities()
    needed = (*PROXY,) * options.run_service_proxy + (*FIREWALL,) * options.run_firewall
    if missing := missing_modules(dict.fromkeys(needed)):
        _log.warning("the kernel lacks modules reason=%r", advice(missing))
    if not options.run_firewall and (old := old_policies(opener(options, needs_ipvs=False))):
        _log.warning("somebody's network policies are left reason=%r", old)
    if not options.run_router and (old := old_daemons(options.frr_dir)):
        _log.warning("daemons of FRR are left reason=%r", old)
    if options.run_service_proxy and not options.service_tcp_timeout:
        _log.warning(
            "IPVS forgets TCP connections that were idle for 900 s (unless set otherwise), "
            "kube-proxy after a day: set --service-tcp-timeout, or let applications send keepalives"
        )
    lock = AgentLock()
    lock.take(_LOCK_WAIT_S)
    steps = partial(left_behind, options.iptables_backend)
    takeover = Takeover(node_name(options, environ), steps=steps)
    agent = Agent(
        options,
        environ,
        opener(options),
        takeover=takeover,
        firewall_ports=firewall_opener(options),
        routing_ports=routing_opener(options),
        open_responder=responder_opener(options),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, agent.on_signal)
    return agent.run()


def node_name(options: Options, environ: Mapping[str, str]) -> str:
    """This node's name: the flag, else NODE_NAME, else the host's own in small letters, as the
    kubelet has it. Raises ConfigurationError for what no Node can be called."""
    if options.hostname_override:
        return options.hostname_override
    source, name = "NODE_NAME", environ.get("NODE_NAME", "").strip()
    if not name:
        source, name = "the host's name", socket.gethostname().lower()
    try:
        check_node_name(name)
    except ValueError as error:
        raise ConfigurationError(
            f"{source} {name!r} {error}, as --hostname-override or NODE_NAME"
        ) from None
    return name


def without_effect(options: Options) -> Iterator[str]:
    """Flags that were given and change nothing, as one text for the log."""
    idle = {
        flag.name
        for flag in FLAGS
        if (part := _READ_BY.get(flag.group)) is not None and not getattr(options, part)
    }
    # The service proxy reads it, too.
    useless = _WITHOUT_EFFECT | (idle - {"loadbalancer-ip-range"})
    given = [f"--{name}" for name in given_text(options) if name in useless]
    if given:
        yield ",".join(given)


class Agent:
    """One agent. ``client`` is made from the options; of the others see ``AgentParts``.

    The constructor binds the port of the probes and reads credentials, but sends nothing.
    Raises ConfigurationError.
    """

    def __init__(
        self,
        options: Options,
        environ: Mapping[str, str],
        ports: Callable[[], HostPorts],
        client: Client | None = None,
        takeover: Takeover | None = None,
        firewall_ports: Callable[[], HostPorts] | None = None,
        routing_ports: OpenRouting | None = None,
        open_responder: OpenResponder | None = None,
    ) -> None:
        self._options = options
        self._environ = environ
        # Whoever puts a word here ends the agent. Not an Event: a signal may arrive while the main
        # thread holds an Event's lock, and its handler would wait for that lock for ever.
        self._ending: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lost = ""
        self.node = node_name(options, environ)
        self.client = client or connect(options, environ)
        check_api_addresses(
            self.client.addresses, options.service_cluster_ip_range, _own_service(environ)
        )
        self._observers: list[Callable[[Turn], None]] = []
        self._parts = AgentParts(
            *(options, self.client, self.node, environ, ports, takeover),
            *(firewall_ports or ports, routing_ports, open_responder),
            *(self._on_turn, self._on_dead),
        )
        self.cache, self.proxy = self._parts.cache, self._parts.proxy
        self.routing = self._parts.routing
        self._kinds = self._parts.kinds
        self.loops = [part.loop for part in self._parts.all]
        self._reflectors = [*self._parts.reflectors()]
        self.writes = self._parts.writes
        self.health = Health(
            node=self.node,
            version=kube_router_py.__version__,
            cache=self.cache,
            loops=self.loops,
            kinds=self._kinds,
            sections=self._parts.status,
        )
        self.servers = list(self._bind())
        self._cluster_status: StatusWriter | None = None
        if options.cluster_status_interval:
            self._cluster_status = StatusWriter(
                self.client,
                self.cache,
                own_namespace(environ),
                self.node,
                self.health.status,
                options.cluster_status_interval,
            )
        book = self._parts.book
        flows = FlowAnswers(
            *(options, self.cache, self.client, self.node),
            pools=lambda: book.pools if book is not None else AddressPools(),
        )
        self._socket = AgentSocket(
            options.agent_socket, questions(self.health, options, flows), streams(self._parts)
        )

    def _bind(self) -> Iterator[HttpServer]:
        options = self._options
        if options.health_port:
            yield HttpServer(
                options.health_addr, options.health_port, self.health.pages(), "health-port"
            )
        if options.metrics_port:
            from kube_router_py.observe.metrics import Metrics

            metrics = Metrics(
                version=kube_router_py.__version__,
                cache=self.cache,
                loops=self.loops,
                gauges=self._numbers,
                writes={part.loop.name: part.writes for part in self._parts.all},
                traffic=self.proxy.traffic if self.proxy else bytes,
                more=self._parts.pages(),
            )
            if self.proxy:
                self.proxy.observe_programming(metrics.on_programmed)
            self._observers.append(metrics.on_turn)
            self._parts.observe(metrics.on_done)
            self.client.observe = metrics.on_request
            pages = {options.metrics_path: metrics.page}
            yield HttpServer(options.metrics_addr, options.metrics_port, pages, "metrics-port")
        if options.enable_pprof and options.pprof_port:
            from kube_router_py.observe.profile import Profiler

            # No address to choose: nobody but the node itself has any business there.
            yield HttpServer("127.0.0.1", options.pprof_port, Profiler().pages(), "pprof-port")

    def _numbers(self) -> dict[str, float]:
        return {**self._parts.numbers(), "log_records_dropped_total": log_targets.dropped()}

    def _on_turn(self, turn: Turn) -> None:
        for observe in self._observers:
            try:
                observe(turn)
            except Exception:  # noqa: BLE001 - who only looks on must not end the loop
                _log.exception("a turn was not observed loop=%s", turn.loop)

    def _on_dead(self, loop: str, reason: str) -> None:
        self._lost = f"{loop}: {reason}"
        self.end()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal ends the process at once."""
        del frame
        signal.signal(number, signal.SIG_DFL)
        self.end()

    def end(self) -> None:
        """Make ``run`` return. For any thread and for signal handlers."""
        self._ending.put("end")

    def run(self) -> int:
        """Start everything, wait until told to end, stop everything; returns the exit code."""
        started = time.monotonic()
        for server in self.servers:
            server.start()
        self._socket.start()
        if self._cluster_status is not None:
            self._cluster_status.start()
        # First: those who follow the cache want to hear its first events, too.
        self._parts.start()
        for reflector in self._reflectors:
            reflector.start()
        for loop in self.loops:
            loop.start()
        notify(self._environ, "READY=1", "STATUS=waiting for the first lists of the API server")
        self._watch_sync(started)
        self._ending.get()
        return self._stop()

    def _watch_sync(self, started: float) -> None:
        """Tell how the first lists go, until they are complete or the agent ends."""
        timeout_s = self._options.cache_sync_timeout
        told_at = started
        while self._ending.empty():
            # Short waits: a signal must not have to wait for the cache.
            if self.cache.wait_synced(self._kinds, 0.2):
                _log.info("caches synced after_s=%.1f", time.monotonic() - started)
                notify(self._environ, f"STATUS=following the API server as {self.node}")
                self._check_way_to_api()
                return
            if time.monotonic() - told_at >= timeout_s:
                told_at = time.monotonic()
                self._tell_missing(told_at - started)

    def _tell_missing(self, after_s: float) -> None:
        """One line per reason, not per kind: it is mostly the same for all."""
        reasons: dict[str, list[str]] = {}
        for kind, stats in self.cache.stats().items():
            if not stats.synced:
                reasons.setdefault(stats.failing, []).append(kind.__name__)
        for reason, kinds in reasons.items():
            _log.error(
                "no complete list yet kinds=%s after_s=%.0f servers=%s reason=%r",
                ",".join(sorted(kinds)),
                after_s,
                ",".join(self.client.addresses),
                reason,
            )

    def _check_way_to_api(self) -> None:
        """The mistake that only the cluster can tell. Everything works now, so go on serving."""
        own = self.cache.get(Service, "default/kubernetes")
        try:
            check_api_addresses(self.client.addresses, (), own)
        except ConfigurationError as error:
            _log.error("this node will not come up again after a reboot reason=%r", str(error))

    def _stop(self) -> int:
        _log.info("stopping; the kernel keeps what it has reason=%r", self._lost or "asked to")
        notify(self._environ, "STOPPING=1")
        self._parts.before_loops_stop()
        for loop in self.loops:
            if not loop.stop(_STOP_LOOP_S):
                _log.warning("a turn does not end; leaving without it loop=%s", loop.name)
        for reflector in self._reflectors:
            reflector.stop(0)  # all begin to end at once, whatever each waits for
        deadline = time.monotonic() + _STOP_REFLECTORS_S
        for reflector in self._reflectors:
            reflector.stop(max(0.0, deadline - time.monotonic()))
        # Who asks for them must not find parts that are closed.
        self._socket.stop()
        if self._cluster_status is not None:
            self._cluster_status.stop()
        self._parts.stop()
        for server in self.servers:
            server.stop()
        self.client.close()
        _log.info("stopped writes=%r", self.writes())
        return 1 if self._lost else 0


def _own_service(environ: Mapping[str, str]) -> Service | None:
    """``default/kubernetes`` as the kubelet tells of it: KUBERNETES_SERVICE_HOST is overridden in
    our manifests, this other variable for the same address is not."""
    address = environ.get("KUBERNETES_PORT_443_TCP_ADDR", "")
    return Service(spec=ServiceSpec(cluster_ip=address)) if address else None
