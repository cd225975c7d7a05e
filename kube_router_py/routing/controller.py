"""The route controller's loop: Nodes and Services to the pod network and to BGP.

Packet path. Pods of nodes in the same subnet are reached by routes that FRR learns from those nodes
and installs (table main, protocol bgp, metric 20); pods of other nodes through tunnels, by routes
of ours (protocol 75). What pods send out of the cluster leaves with the node's address. Routers
outside learn from FRR which Service addresses and pods this node is the way to.

Kernel objects owned: tunnels ``tun-...``, routes and rules of protocol 75 in tables main and 77,
chains ``KUBE-ROUTER-POD-EGRESS`` and ``KUBE-ROUTER-POD-FWD`` with their jumps, the sets
``kube-router-pod-subnets`` and ``kube-router-node-ips``, the bridge ``kube-bridge``; the daemons in
FRR's run directory with their configuration; of the CNI file the ranges and the MTU.

Start: nothing is written before the caches have synced; then what stands is read and only what
differs is written. FRR's daemons of an earlier agent are adopted.
Crash, stop: everything stays, FRR's daemons, too. Only ``--withdraw-on-exit`` makes a stop a drain.
FRR's death: its routes stay in the kernel, and with neighbors that do graceful restart; all of it
is started again in order.

What happens in a turn: dirty objects -> pod network (``pod_network``) -> BGP (``speaker``), so
that nothing is announced before the way to it stands. What fails in one does not stop the other.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack
from typing import Protocol

from msgspec import Struct

from kube_router_py.address_pools import AddressPools
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.overlay_ports import OverlayPorts
from kube_router_py.kernel.ports import HostPorts, Observe, unobserved
from kube_router_py.kernel.ports_frr import Frr
from kube_router_py.loop import Loop, Outcome
from kube_router_py.object_key import Key
from kube_router_py.problem import Problem
from kube_router_py.routing.compile import Neighborhood
from kube_router_py.routing.drain import Stage
from kube_router_py.routing.model import Address
from kube_router_py.routing.pod_network import CniFile, PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.speaker import Speaker
from kube_router_py.services import service_key_of

_log = logging.getLogger(__name__)

KINDS = (Service, EndpointSlice, Node)

LINKS = "links and routes of this node"
"""Marked when the kernel tells of a change that concerns the pod network."""
DAEMONS = "FRR's daemons"
"""Marked when they have ended."""
SERVED = "addresses that the service proxy serves"
"""Marked when they have changed."""
POOLS = "pools of addresses"
"""Marked when they have changed."""


class Programmed(Protocol):
    """What this node's service proxy serves (``served.Served``)."""

    def begin(self) -> frozenset[Address]:
        """All addresses."""

    def take(self) -> tuple[frozenset[Address], frozenset[Address]]:
        """Those that came and those that went since the last call, or since ``begin``."""

    def pass_on(self, *, has_told: bool = True) -> None:
        """FRR knows of all that was taken, as far as that is possible; ``has_told``: there was
        anything to tell it."""

    def end(self) -> None:
        """Nothing is taken any more."""


class RoutingPorts(Struct):
    """The adapters of the route controller; opened, used and closed in the loop's thread."""

    host: HostPorts
    overlay: OverlayPorts
    frr: Frr
    cni: CniFile

    def close(self) -> None:
        with ExitStack() as stack:
            for port in (self.host, self.overlay, self.frr):
                stack.callback(port.close)


class RouteController:
    """See the module docstring. Everything but ``subscribe`` runs in the loop's thread.

    ``make_network``: a new ``PodNetwork`` that has seen nothing. ``programmed`` tells which
    addresses this node's service proxy serves; None: it does not run here. ``after_full`` is called
    when a full turn has made everything stand. ``pools`` are asked for when ``POOLS`` are marked.
    """

    name = "router"

    def __init__(
        self,
        cache: Cache,
        settings: RoutingSettings,
        node_name: str,
        ports: Callable[[], RoutingPorts],
        make_network: Callable[[], PodNetwork],
        passwords: PasswordSources,
        programmed: Programmed | None = None,
        after_full: Callable[[PodNetwork, RoutingPorts], None] = lambda network, ports: None,
        clock: Callable[[], float] = time.monotonic,
        pools: Callable[[], AddressPools] = AddressPools,
    ) -> None:
        self._cache, self._pools = cache, pools
        self._settings = settings
        self._node_name = node_name
        self._make_ports = ports
        self._make_network = make_network
        self._passwords = passwords
        self._programmed = programmed
        self._after_full = after_full
        self._clock = clock
        self._ports: RoutingPorts | None = None
        self._network: PodNetwork | None = None
        self._speaker: Speaker | None = None
        self._nodes: set[str] = set()
        self._broken: dict[Key, Problem] = {}
        # Told how long things took.
        self.observe: Observe = unobserved
        # Set by whoever ends the agent, before the loop is marked.
        self.is_exiting = False
        # All Services are withdrawn. For any thread.
        self.is_drained = False

    def subscribe(self, cache: Cache, loop: Loop) -> None:
        """Have every event mark what it changes."""

        def notify(event: Event) -> None:
            loop.mark(_dirty_keys(event))

        cache.subscribe(KINDS, notify)

    @property
    def numbers(self) -> dict[str, float]:
        """For the metrics, by name without the prefix. For any thread."""
        speaker = self._speaker
        return {
            "controller_bgp_advertised_services": speaker.announced if speaker else 0,
            "controller_bgp_drift_total": speaker.drift if speaker else 0,
            "frr_starts_total": speaker.starts if speaker else 0,
            "host_routes_synced": self._network.routes if self._network else 0,
        }

    @property
    def advertisements(self) -> Mapping[str, int]:
        """What FRR was told to announce and to withdraw, by type. For any thread."""
        return self._speaker.advertisements if self._speaker else {}

    @property
    def neighborhood(self) -> Neighborhood | None:
        """Who this node's neighbors were in the last turn. For any thread."""
        return self._speaker.neighborhood if self._speaker else None

    @property
    def drain_cause(self) -> str:
        """Why this node is drained of Services; empty: it is not."""
        return self._speaker.drain_cause if self._speaker else ""

    def open(self) -> None:
        """Create the adapters; called again after a crash, and then nothing is trusted."""
        self.close()
        self._ports = ports = self._make_ports()
        self._network = self._make_network()
        self._speaker = Speaker(
            self._cache, self._settings, self._node_name, ports.frr, self._passwords
        )
        if self._programmed is not None:
            self._speaker.follow_programmed(self._programmed.begin())
        self._nodes, self._broken = set(), {}

    def close(self) -> None:
        """Close the adapters; the kernel and FRR's daemons keep everything."""
        ports, self._ports = self._ports, None
        if self._programmed is not None:
            self._programmed.end()
        if ports is not None:
            ports.close()

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """One turn, over the dirty keys or (``full``) over everything, compared with what runs."""
        ports, network, speaker = self._ports, self._network, self._speaker
        if ports is None or network is None or speaker is None:
            raise RuntimeError("reconcile before open")
        keys = self._all_keys(speaker) if full else {key for key in dirty if isinstance(key, Key)}
        self._follow_all(keys, network, speaker, with_pools=full or POOLS in dirty)
        if self._programmed is not None:
            speaker.change_programmed(*self._programmed.take())
        network.settle(ports.host, ports.overlay, ports.cni, full=full, moved=LINKS in dirty)
        speaker.is_exiting = self.is_exiting
        written = ports.frr.writes
        began = time.monotonic()
        spoken = speaker.settle(full=full, local=network.around.addresses, now_s=self._clock())
        self.observe("bgp_internal_peers_sync", time.monotonic() - began)
        if self._programmed is not None:
            self._programmed.pass_on(has_told=ports.frr.writes != written)
        self.is_drained = spoken.is_settled and spoken.stage is Stage.WITHDRAWN
        if full and network.is_settled and spoken.is_settled:
            self._after_full(network, ports)
        failed: set[Hashable] = {*self._broken}
        if not network.is_settled:
            failed.add(LINKS)
        if not spoken.is_settled:
            failed.add(DAEMONS)
        problems = {*self._broken.values(), *network.problems, *spoken.problems}
        return Outcome(
            frozenset(failed),
            tuple(sorted(problems)),
            spoken.wake_after_s,
            settled=frozenset((LINKS, DAEMONS)),
        )

    def _all_keys(self, speaker: Speaker) -> set[Key]:
        nodes = {*self._nodes, *(each.metadata.name for each in self._cache.list(Node))}
        services = {*speaker.services_known()}
        services.update(each.metadata.key for each in self._cache.list(Service))
        return {
            *(Key("Node", name) for name in nodes),
            *(Key("Service", name) for name in services),
        }

    def _follow_all(
        self, keys: set[Key], network: PodNetwork, speaker: Speaker, *, with_pools: bool
    ) -> None:
        nodes = {each for each in keys if each.kind == "Node"}
        for key in sorted(nodes):
            self._follow(key, network, speaker)
        services = keys - nodes
        # Which pools concern this node, its labels say.
        if with_pools or Key("Node", self._node_name) in nodes:
            again = speaker.follow_pools(self._pools())
            services.update(Key("Service", name) for name in again)
        for key in sorted(services):
            self._follow(key, network, speaker)

    def _follow(self, key: Key, network: PodNetwork, speaker: Speaker) -> None:
        """Bring the desired state up to date with one object of the cache."""
        self._broken.pop(key, None)
        try:
            if key.kind == "Service":
                speaker.follow_service(key.name)
                return
            node = self._cache.get(Node, key.name)
            network.follow_node(key.name, node_view(node)[0] if node is not None else None)
            speaker.follow_node(key.name)
            if node is not None:
                self._nodes.add(key.name)
            else:
                self._nodes.discard(key.name)
        except KubeRouterError:
            raise
        except Exception as error:  # noqa: BLE001 - one object must not stop the others
            _log.exception("cannot compile object=%r", str(key))
            reason = f"cannot be compiled ({error!r}); what it was before still counts"
            self._broken[key] = Problem(str(key), "", reason)


def _dirty_keys(event: Event) -> Iterator[Key]:
    if event.kind is EndpointSlice:
        for each in (event.old, event.new):
            if each is not None and (name := service_key_of(each)):
                yield Key("Service", name)
    else:
        yield Key(event.kind.__name__, event.key)
