"""Traffic of Services as IPVS counts it, read when somebody asks for the metrics.

With kube-router's names and labels. A value stands for a virtual server: a Service's port at one
address. The kernel's table is dumped once for scrapes that follow each other closely.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from kube_router_py.errors import KubeRouterError
from kube_router_py.kernel.ipvs_decode import Traffic
from kube_router_py.proxy.model import PROTOCOL_NAMES, VirtualServerKey

_log = logging.getLogger(__name__)

LABELS = ("svc_namespace", "service_name", "service_vip", "protocol", "port")
_COUNTERS = {
    "total_connections": ("connections", "Connections scheduled"),
    "packets_in": ("packets_in", "Packets from clients"),
    "packets_out": ("packets_out", "Packets to clients"),
    "bytes_in": ("bytes_in", "Bytes from clients"),
    "bytes_out": ("bytes_out", "Bytes to clients"),
}
_GAUGES = {
    "cps": ("connections_a_second", "Connections scheduled per second"),
    "pps_in": ("packets_in_a_second", "Packets from clients per second"),
    "pps_out": ("packets_out_a_second", "Packets to clients per second"),
    "bps_in": ("bytes_in_a_second", "Bytes from clients per second"),
    "bps_out": ("bytes_out_a_second", "Bytes to clients per second"),
}
_FRESH_S = 2.0


class ReadsTraffic(Protocol):
    """IPVS, as far as this goes."""

    def read_traffic(self) -> Mapping[VirtualServerKey, Traffic]: ...

    def close(self) -> None: ...


Owner = tuple[str, VirtualServerKey]
"""A Service's key, and the address and port that it is served at (of a fwmark server, too)."""


class TrafficCollector(Collector):
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
        self._found: dict[tuple[str, ...], Traffic] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        found = self._read()
        for name, (field, text) in _COUNTERS.items():
            # Not of type counter: that would append _total to the name.
            counter = UnknownMetricFamily(f"kube_router_service_{name}", text, labels=LABELS)
            for labels, traffic in found.items():
                counter.add_metric(labels, getattr(traffic, field))
            yield counter
        for name, (field, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"kube_router_service_{name}", text, labels=LABELS)
            for labels, traffic in found.items():
                gauge.add_metric(labels, getattr(traffic, field))
            yield gauge

    def _read(self) -> dict[tuple[str, ...], Traffic]:
        with self._lock:
            if self._clock() - self._read_at < _FRESH_S:
                return self._found
            try:
                ipvs = self._connect()
                try:
                    table = ipvs.read_traffic()
                finally:
                    ipvs.close()
            except KubeRouterError as error:
                _log.warning("traffic of services not read reason=%r", str(error))
                return {}
            self._found = {
                _labels(*owner): traffic
                for key, traffic in table.items()
                if (owner := self._owner_of(key)) is not None
            }
            self._read_at = self._clock()
            return self._found


def _labels(service: str, address: VirtualServerKey) -> tuple[str, ...]:
    namespace, _, name = service.partition("/")
    vip = socket.inet_ntop(address.family, address.address)
    return namespace, name, vip, PROTOCOL_NAMES.get(address.protocol, "?"), str(address.port)
