"""Traffic of Services as IPVS counts it, read when somebody asks for the metrics.

With kube-router's names and labels. A value stands for a virtual server: a Service's port at one
address. The kernel's table is dumped once for scrapes that follow each other closely.
"""

import logging
import operator
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.ipvs_decode import Traffic
from kube_router_py.observe.catalogue import PREFIX
from kube_router_py.observe.catalogue.services import TRAFFIC_LABELS
from kube_router_py.observe.exposition import head
from kube_router_py.proxy.model import PROTOCOL_NAMES, VirtualServerKey

_log = logging.getLogger(__name__)

_COUNTERS = {
    "total_connections": "connections",
    "packets_in": "packets_in",
    "packets_out": "packets_out",
    "bytes_in": "bytes_in",
    "bytes_out": "bytes_out",
}
_GAUGES = {
    "cps": "connections_a_second",
    "pps_in": "packets_in_a_second",
    "pps_out": "packets_out_a_second",
    "bps_in": "bytes_in_a_second",
    "bps_out": "bytes_out_a_second",
}
_FRESH_S = 2.0


class ReadsTraffic(Protocol):
    """IPVS, as far as this goes."""

    def read_traffic(self) -> Mapping[VirtualServerKey, Traffic]: ...

    def close(self) -> None: ...


Owner = tuple[str, VirtualServerKey]
"""A Service's key, and the address and port that it is served at (of a fwmark server, too)."""


class TrafficPage:
    """``connect`` opens IPVS in the thread of the scrape; ``owner_of`` tells whose a virtual server
    is, None for nobody's that is known."""

    def __init__(
        self,
        connect: Callable[[], ReadsTraffic],
        owner_of: Callable[[VirtualServerKey], Owner | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect, self._owner_of, self._clock = connect, owner_of, clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._text = b""
        self._complaint = ""

    def text(self) -> bytes:
        """The metrics in Prometheus' text format; without IPVS their names and types only."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                self._text = _text(self._found())
                self._read_at = self._clock()
            return self._text

    def _found(self) -> dict[str, Traffic]:
        try:
            found = self._read()
        except KubeRouterError as error:
            if str(error) != self._complaint:  # not again with every scrape
                _log.warning("traffic of services not read reason=%r", str(error))
            self._complaint = str(error)
            return {}
        self._complaint = ""
        return found

    def _read(self) -> dict[str, Traffic]:
        ipvs = self._connect()
        try:
            table = ipvs.read_traffic()
        finally:
            ipvs.close()
        owned = ((self._owner_of(key), traffic) for key, traffic in table.items())
        return {_labels(*owner): traffic for owner, traffic in owned if owner is not None}


def _text(found: Mapping[str, Traffic]) -> bytes:
    # Written here: the library would take ten times as long (0.7 s for 10,000 virtual
    # servers, during which little else runs), and it would append _total to the names of counters.
    lines: list[str] = []
    for metrics in (_COUNTERS, _GAUGES):
        for name, field in metrics.items():
            lines.append(head(f"service_{name}"))
            name = f"{PREFIX}service_{name}"
            value = operator.attrgetter(field)
            lines += [f"{name}{labels} {value(traffic)}\n" for labels, traffic in found.items()]
    return "".join(lines).encode()


def _labels(service: str, address: VirtualServerKey) -> str:
    namespace, _, name = service.partition("/")
    vip = socket.inet_ntop(address.family, address.address)
    protocol = PROTOCOL_NAMES.get(address.protocol, "?")
    # None of these can have a character in it that would have to be escaped.
    values = zip(TRAFFIC_LABELS, (namespace, name, vip, protocol, address.port), strict=True)
    return "{" + ",".join(f'{label}="{value}"' for label, value in values) + "}"
