"""Announcing addresses by ARP and NDP as the agent runs it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from kube_router_py.address_pools import Address
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.cluster.secrets import read_entry
from kube_router_py.errors import ApiError
from kube_router_py.kernel.neighbor_ports import OnClaim, Responder
from kube_router_py.kernel.strict_arp import strict_arp_mistake
from kube_router_py.loadbalancer.announcer import KINDS, PEERS, POOLS, SERVED, Announcer
from kube_router_py.loadbalancer.handover import LIMIT_S
from kube_router_py.loadbalancer.key_ring import READ_S, key_mistake
from kube_router_py.loadbalancer.layer2_ports import Layer2Settings
from kube_router_py.loadbalancer.leases import LeaseLife
from kube_router_py.loadbalancer.liveness import Liveness
from kube_router_py.loop import Loop, Turn
from kube_router_py.observe.event_writer import EventWriter, Tiding
from kube_router_py.options import Options
from kube_router_py.pool_book import PoolBook
from kube_router_py.problem import Problem
from kube_router_py.served import Served

_log = logging.getLogger(__name__)

KEY_ENTRY = "key"
ASSIGNED, CONFLICT, OTHERWISE = "nodeAssigned", "AddressConflict", "Layer2Problem"
_STOP_S = 5.0
_MIN_INTERVAL_S = 0.02
_RESYNC_S = 300.0
_POLL_S = 0.02
_HANDOVER_S = LIMIT_S + 2.0
# Sooner than otherwise, while it is not known how nodes are to hear of each other.
_READ_FIRST_S = 5.0
_ASSIGNED_MAX = 20_000
_CLAIMED = "is claimed by"

OpenResponder = Callable[[OnClaim, Callable[[], Collection[Address]]], Responder]
"""Opens a responder; is given what to call with others' claims, and who knows the addresses of this
Node: links with one of them are meant where a pool names none."""


class Layer2Part:
    """A part of the agent (see ``part.Part``). ``namespace`` is the agent's own, with the Secret
    and the Leases. ``served``: what this node's service proxy serves; None: it does not run here.
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
        book: PoolBook,
        served: Served | None,
        open_responder: OpenResponder,
        on_turn: Callable[[Turn], None],
        on_dead: Callable[[str, str], None],
    ) -> None:
        self._cache, self._client, self._node = cache, client, node
        self._namespace, self._secret = namespace, options.loadbalancer_heartbeat_secret
        self._withdraws_on_exit = options.withdraw_on_exit
        self._run_id = os.urandom(4).hex()
        self._open_responder = open_responder
        self.liveness = Liveness(
            node, options.loadbalancer_heartbeat_port, options.loadbalancer_restart_grace
        )
        self._leases = LeaseLife(client, cache, node, namespace, self.liveness)
        self._key_problem: tuple[Problem, ...] = ()
        self._is_missing = False
        self._needed, self._stopping = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read_keys, name="layer2-key", daemon=True)
        self._events = EventWriter(cache, client, node)
        self._assigned: dict[tuple[str, Address], int] = {}
        self._told: set[Problem] = set()
        self.controller = Announcer(
            cache,
            Layer2Settings(
                node=node,
                port=options.loadbalancer_heartbeat_port,
                default_links=options.loadbalancer_layer2_interfaces,
                drain_on_cordon=options.drain_on_cordon,
                announce_period_s=options.loadbalancer_announce_period,
            ),
            lambda: book.pools,
            self.liveness,
            served,
            lambda on_claim: open_responder(on_claim, self._node_addresses),
            self._tell_assigned,
            lambda: (*self._key_problem, *self._proxy_problem(served)),
        )
        self._on_turn = on_turn
        self.loop = Loop(
            self.controller,
            ready=lambda: cache.is_synced(KINDS) and book.is_known,
            min_interval_s=_MIN_INTERVAL_S,
            resync_interval_s=_RESYNC_S,
            on_turn=self._after_turn,
            on_dead=on_dead,
        )
        self.controller.subscribe(cache, self.loop)
        if served is not None:
            served.on_change = lambda: self.loop.mark((SERVED,))
        book.subscribe(lambda: self.loop.mark((POOLS,)))
        self.liveness.on_change = self._living_changed

    def _node_addresses(self) -> tuple[Address, ...]:
        node = self._cache.get(Node, self._node)
        return () if node is None else node_view(node)[0].addresses

    def _proxy_problem(self, served: Served | None) -> tuple[Problem, ...]:
        mistake = strict_arp_mistake() if served is None else ""
        return (Problem(f"Node {self._node}", "", mistake),) if mistake else ()

    def _living_changed(self) -> None:
        """In the heartbeats' thread, or in that which ends the agent."""
        self.loop.mark((PEERS,))
        self._leases.follow()

    def start(self) -> None:
        """Begin to tell the others of this node, and to hear of them."""
        self.liveness.start()
        self._reader.start()

    def before_loops_stop(self) -> None:
        """Hand over, if that is wanted; else say that another process is to come."""
        if not self.controller.is_taking_part:
            return
        if self._withdraws_on_exit:
            self._hand_over()
        else:
            self.liveness.say_restart()

    def _hand_over(self) -> None:
        _log.info("handing over addresses before the end (--withdraw-on-exit)")
        self.controller.is_exiting = True
        self.liveness.follow_drain(is_draining=True)
        self.loop.mark((PEERS,))
        deadline = time.monotonic() + _HANDOVER_S
        while time.monotonic() < deadline and self.loop.status().turning:
            if self.controller.is_silent and self.liveness.has_said_all:
                return
            time.sleep(_POLL_S)
        _log.warning("not all addresses were handed over within_s=%g", _HANDOVER_S)

    def stop(self) -> None:
        """End what ran beside the loop, which has ended."""
        self._stopping.set()
        self._needed.set()
        self._leases.stop(_STOP_S)
        self.liveness.stop(_STOP_S)
        self._events.stop(_STOP_S)

    # --- Events ---------------------------------------------------------------------------------

    def _tell_assigned(self, key: str, address: Address, links: tuple[str, ...]) -> None:
        """In the loop's thread. A restart tells the same as before, so that it is not written
        again; what came back is news."""
        if len(self._assigned) > _ASSIGNED_MAX:
            self._assigned.clear()
        times = self._assigned[key, address] = self._assigned.get((key, address), 0) + 1
        protocol = "ARP" if address.version == 4 else "NDP"
        where = f" on {', '.join(links)}" if links else ""
        text = f"{address} is announced from node {self._node}{where} by {protocol}"
        occasion = self._node if times == 1 else f"{self._node} {self._run_id} {times}"
        self._events.tell(
            Tiding(Service, key, ASSIGNED, Problem(f"Service {key}", "", text), "Normal", occasion)
        )

    def _after_turn(self, turn: Turn) -> None:
        """In the loop's thread."""
        if self.controller.is_taking_part:
            self._needed.set()
        problems = self.loop.status().problems
        self._told.intersection_update(problems)
        for problem in problems:
            if problem not in self._told and self._tell(problem):
                self._told.add(problem)
        self._on_turn(turn)

    def _tell(self, problem: Problem) -> bool:
        kind, _, key = problem.object.partition(" ")
        if kind == "Service":
            reason = CONFLICT if _CLAIMED in problem.reason else OTHERWISE
            return self._events.tell(Tiding(Service, key, reason, problem))
        return self._events.tell(Tiding(Node, self._node, OTHERWISE, problem))

    # --- the key --------------------------------------------------------------------------------

    def _read_keys(self) -> None:
        """In a thread of its own: the API server may take its time. Where no pool is announced by
        ARP and NDP from this node, it is not asked."""
        self._needed.wait()
        while not self._stopping.is_set():
            before = self._key_problem
            try:
                self._read_key()
            except Exception as error:  # noqa: BLE001 - what was read before goes on to hold
                self._tell_key(f"cannot be read ({error}); what was known before still counts")
            if before != self._key_problem:
                self.loop.mark((PEERS,))
            is_known = self.liveness.is_by_lease is not None
            self._stopping.wait(READ_S if is_known else _READ_FIRST_S)

    def _read_key(self) -> None:
        try:
            key = read_entry(self._client, self._namespace, self._secret, KEY_ENTRY)
        except ApiError as error:
            if error.status != 403 or self.liveness.is_by_lease is False:
                raise
            self._tell_key(f"{error}; nodes look at each other's Leases instead")
            self._use(None)
            return
        if key is None and self.liveness.is_by_lease is False and not self._is_missing:
            # Somebody may be replacing it.
            self._is_missing = True
            self._tell_key(f"has no entry {KEY_ENTRY} any more; in a minute Leases will count")
            return
        self._is_missing = False
        if key is not None and (mistake := key_mistake(key)):
            self._tell_key(f"entry {KEY_ENTRY}: {mistake}; nodes look at Leases instead")
            self._use(None)
            return
        self._key_problem = ()
        self._use(key)

    def _use(self, key: bytes | None) -> None:
        was = self.liveness.is_by_lease
        self.liveness.put_key(key)
        if key is None:
            self._leases.begin()
        if was is not (key is None):
            how = f"Leases (no Secret {self._secret})" if key is None else "heartbeats"
            _log.info("nodes that announce by ARP and NDP know of each other by=%r", how)
            self.loop.mark((PEERS,))

    def _tell_key(self, what: str) -> None:
        subject = f"Secret {self._namespace}/{self._secret}"
        self._key_problem = (Problem(f"Node {self._node}", "", f"{subject} {what}"),)

    # --- for any thread -------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        counts = {f"layer2_{name}": value for name, value in self.liveness.numbers().items()}
        return {
            **self.controller.numbers(),
            **counts,
            "events_dropped_total": self._events.dropped,
        }

    def writes(self) -> dict[str, int]:
        """Nothing is written to the kernel."""
        return {}

    def status(self) -> dict[str, Any]:
        """See ``Announcer.status``; and how nodes know of each other."""
        by_lease = self.liveness.is_by_lease
        how = "unknown" if by_lease is None else "leases" if by_lease else "heartbeats"
        return {**self.controller.status(), "liveness": how}
