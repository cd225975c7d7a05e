"""BGP and BFD sessions as FRR tells of them, read when somebody asks for the metrics.

``bgp_peer_info`` has kube-router's name and labels. A scrape asks FRR over connections of its own,
which takes a few milliseconds, once for scrapes that follow each other closely; where FRR does not
answer there are no sessions, and ``frr_up`` says so. Series: six for each neighbor and family, one
for each neighbor, two for each BFD session.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports_frr import BfdState, SessionState, Summary
from kube_router_py.observe.exposition import by_label, family, single
from kube_router_py.observe.growing import Increases
from kube_router_py.routing.compile import Neighborhood
from kube_router_py.routing.model import Role

_log = logging.getLogger(__name__)

_FRESH_S = 1.0
_TYPES = {Role.NODE: "internal", Role.EXTERNAL: "external"}
_OF_SESSIONS: dict[str, Callable[[SessionState], float]] = {
    "bgp_peer_established": lambda each: each.is_established,
    "bgp_peer_uptime_seconds": lambda each: each.uptime_s,
    "bgp_peer_prefixes_received": lambda each: each.received,
    "bgp_peer_prefixes_sent": lambda each: each.sent,
    "bgp_peer_connections_established_total": lambda each: each.established,
    "bgp_peer_connections_dropped_total": lambda each: each.dropped,
}


class BgpPage:
    """``read`` asks FRR, in the thread of the scrape, and raises KernelError where it is silent;
    ``around`` is what FRR's configuration was last made of, None before the first time."""

    def __init__(
        self,
        read: Callable[[], Summary],
        around: Callable[[], Neighborhood | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._around, self._clock = read, around, clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._text = b""
        self._silent = ""
        # Messages of all neighbors so far; FRR counts anew when it is restarted.
        self._increases: Increases[str] = Increases(from_zero=True)
        self._updates = 0

    def text(self) -> bytes:
        """The metrics in Prometheus' text format; without FRR ``frr_up`` 0 and no sessions."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                summary = self._summary()
                self._text = "".join(_lines(summary, self._around())).encode()
                self._text += self._received(summary).encode()
                self._read_at = self._clock()
            return self._text

    def _received(self, summary: Summary | None) -> str:
        if summary is not None:
            updates = {key: (count,) for key, count in summary.updates.items()}
            self._updates += sum(n for (n,) in self._increases.take(updates, updates).values())
        return single("controller_bgp_advertisements_received", self._updates)

    def rows(self) -> list[dict[str, Any]]:
        """The same as rows of a table: one for each neighbor and address family.

        Raises KernelError where FRR does not answer.
        """
        return _rows(self._read(), self._around())

    def _summary(self) -> Summary | None:
        try:
            found = self._read()
        except KernelError as error:
            if not self._silent:
                _log.warning("no metrics of BGP sessions for now reason=%r", str(error))
            self._silent = str(error)
            return None
        if self._silent:
            _log.info("metrics of BGP sessions are back")
        self._silent = ""
        return found


def _rows(summary: Summary, around: Neighborhood | None) -> list[dict[str, Any]]:
    types = _Types(around)
    bfd = _worst(summary.bfd)
    return [
        {
            "neighbor": each.neighbor,
            "type": types.of(each.neighbor),
            "asn": each.remote_as,
            "family": f"IPv{each.version}",
            "state": each.state,
            "up_s": round(each.uptime_s),
            "received": each.received,
            "sent": each.sent,
            "bfd": bfd[each.neighbor].state if each.neighbor in bfd else "",
        }
        for each in summary.sessions
    ]


def _lines(summary: Summary | None, around: Neighborhood | None) -> Iterator[str]:
    yield single("frr_up", summary is not None)
    summary = summary or Summary((), (), {})
    types = _Types(around)
    # One for each neighbor: its families share a connection, and thereby their state.
    infos = {
        each.neighbor: (each.neighbor, types.of(each.neighbor), each.remote_as, each.state)
        for each in summary.sessions
    }
    yield from family("bgp_peer_info", [(labels, 1) for labels in infos.values()])
    sessions = [
        ((each.neighbor, types.of(each.neighbor), f"ipv{each.version}"), each)
        for each in summary.sessions
    ]
    for name, value in _OF_SESSIONS.items():
        yield from family(name, [(labels, value(session)) for labels, session in sessions])
    bfd = _worst(summary.bfd)
    yield from by_label("bfd_session_up", {key: each.state == "up" for key, each in bfd.items()})
    yield from by_label(
        "bfd_session_uptime_seconds", {key: each.uptime_s for key, each in bfd.items()}
    )


def _worst(sessions: Iterable[BfdState]) -> dict[str, BfdState]:
    """By neighbor; of one that has several sessions (one and more hops away), one that is down."""
    found: dict[str, BfdState] = {}
    for each in sessions:
        if each.neighbor not in found or each.uptime_s < found[each.neighbor].uptime_s:
            found[each.neighbor] = each
    return found


class _Types:
    """Whether neighbors are nodes (kube-router: internal) or outside (external)."""

    def __init__(self, around: Neighborhood | None) -> None:
        self._types: dict[str, str] = {}
        self._ranges = () if around is None else around.listen_ranges
        if around is not None:
            self._types = {each.key: _TYPES[each.session.role] for each in around.neighbors}

    def of(self, key: str) -> str:
        found = self._types.get(key)
        return self._of_dynamic(key) if found is None else found

    def _of_dynamic(self, key: str) -> str:
        """Of a neighbor that came by itself; empty for one that is not known (any more)."""
        try:
            address = ip_address(key)
        except ValueError:
            return ""
        for each in self._ranges:
            if address in each.network:
                return _TYPES[each.session.role]
        return ""
