"""Refused packets as the agent tells of them: asked on its socket, or as ``--policy-drop-log``
wants it. See docs/drops.md."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from kube_router_py.adapters import open_packet_log
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.drops.hub import DropHub, Teller
from kube_router_py.drops.naming import Names
from kube_router_py.drops.stream import DropStream
from kube_router_py.drops.telling import EVENT_SPACING_S, EVENTS_WAITING, DropEvents, DropLog
from kube_router_py.kernel.nflog_ports import OpenPacketLog
from kube_router_py.observe.event_writer import EventWriter
from kube_router_py.options import Options


class Drops:
    """Runs beside the firewall's loop. ``stream`` is for threads of the agent's socket."""

    def __init__(
        self,
        options: Options,
        cache: Cache,
        client: Client,
        node: str,
        open_log: OpenPacketLog = open_packet_log,
    ) -> None:
        self._node = node
        self._events: DropEvents | None = None
        tellers: list[Teller] = []
        if options.policy_drop_log != "off":
            tellers.append(DropLog())
        if options.policy_drop_log == "events":
            self._events = DropEvents(
                EventWriter(cache, client, node, EVENT_SPACING_S, room=EVENTS_WAITING)
            )
            tellers.append(self._events)
        names = Names(cache, node, time.monotonic, time.time)
        self._hub = DropHub(open_log, names, tellers)

    def start(self) -> None:
        """Read from now on, if the options say so."""
        self._hub.start()

    def stop(self, timeout_s: float) -> None:
        """Give the kernel's log back, and end what tells."""
        self._hub.stop(timeout_s)
        if self._events is not None:
            self._events.stop(timeout_s)

    def stream(self, asked: Mapping[str, Any]) -> Iterator[Any]:
        """The answer to ``drops``, see ``stream``."""
        return DropStream(self._hub, self._node, asked)

    def numbers(self) -> dict[str, float]:
        """For the metrics, by name without the prefix. For any thread."""
        dropped = self._events.dropped if self._events is not None else 0
        return {**self._hub.numbers(), "events_dropped_total": dropped}
