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

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports_frr import BfdState, SessionState, Summary
from kube_router_py.routing.compile import Neighborhood
from kube_router_py.routing.model import Role

_log = logging.getLogger(__name__)

_FRESH_S = 1.0
_TYPES = {Role.NODE: "internal", Role.EXTERNAL: "external"}
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

# Name, type, help, value.
_OF_SESSIONS: tuple[tuple[str, str, str, Callable[[SessionState], float]], ...] = (
    ("established", "gauge", "1 while the session stands", lambda each: each.is_established),
    ("uptime_seconds", "gauge", "Since the session stands", lambda each: each.uptime_s),
    ("prefixes_received", "gauge", "Prefixes received and kept", lambda each: each.received),
    ("prefixes_sent", "gauge", "Prefixes sent", lambda each: each.sent),
    (
        *("connections_established_total", "counter", "Times that the session came up"),
        lambda each: each.established,
    ),
    (
        *("connections_dropped_total", "counter", "Times that the session went down"),
        lambda each: each.dropped,
    ),
)

Sample = tuple[dict[str, str], float]


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

    def text(self) -> bytes:
        """The metrics in Prometheus' text format; without FRR ``frr_up`` 0 and no sessions."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                self._text = "".join(_lines(self._summary(), self._around())).encode()
                self._read_at = self._clock()
            return self._text

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


def _lines(summary: Summary | None, around: Neighborhood | None) -> Iterator[str]:
    is_up = float(summary is not None)
    summary = summary or Summary((), (), {})
    types = _Types(around)
    sessions = [
        (
            {
                "address": each.neighbor,
                "type": types.of(each.neighbor),
                "family": f"ipv{each.version}",
            },
            each,
        )
        for each in summary.sessions
    ]
    yield from _metric("frr_up", "gauge", "1 if zebra and bgpd answer", [({}, is_up)])
    yield from _metric(
        "bgp_peer_info", "gauge", "Always 1; labels tell", _infos(summary.sessions, types)
    )
    for name, kind, help_text, value in _OF_SESSIONS:
        samples = [(labels, float(value(session))) for labels, session in sessions]
        yield from _metric(f"bgp_peer_{name}", kind, help_text, samples)
    bfd = [({"address": key}, each) for key, each in _worst(summary.bfd).items()]
    yield from _metric(
        "bfd_session_up",
        "gauge",
        "1 while the BFD session is up",
        [(labels, float(each.state == "up")) for labels, each in bfd],
    )
    yield from _metric(
        "bfd_session_uptime_seconds",
        "gauge",
        "Since the BFD session is up",
        [(labels, each.uptime_s) for labels, each in bfd],
    )


def _infos(sessions: Iterable[SessionState], types: "_Types") -> list[Sample]:
    """One for each neighbor: its families share a connection, and thereby their state."""
    found = {
        each.neighbor: {
            "address": each.neighbor,
            "type": types.of(each.neighbor),
            "asn": str(each.remote_as),
            "state": each.state,
        }
        for each in sessions
    }
    return [(labels, 1.0) for labels in found.values()]


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


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    # As traffic is: the library would append to names what it thinks right, and take longer.
    name = f"kube_router_{name}"
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in samples:
        shown = ",".join(f'{key}="{text.translate(_ESCAPED)}"' for key, text in labels.items())
        yield f"{name}{{{shown}}} {value:.10g}\n" if shown else f"{name} {value:.10g}\n"
