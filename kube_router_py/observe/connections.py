"""Connections through IPVS by the port of a Service, and how many the kernel tracks.

Read when somebody asks for the metrics, the list of IPVS not more often than every 15 s.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator

from kube_router_py.errors import KernelError
from kube_router_py.kernel.connection_tables import (
    IpvsConnections,
    Tracked,
    read_ipvs_connections,
    read_tracked,
)
from kube_router_py.observe.exposition import by_label, family, single
from kube_router_py.observe.growing import SERIES_MAX
from kube_router_py.observe.traffic import Owner
from kube_router_py.proxy.model import PROTOCOL_NAMES, VirtualServerKey

_log = logging.getLogger(__name__)

_FRESH_S = 15.0

_Port = tuple[str, str, str, int]
"""Namespace and name of a Service, protocol, port."""
_OTHER: _Port = ("", "other", "", 0)


class ConnectionsPage:
    """``owner_of`` tells whose a virtual server is, None for nobody's that is known."""

    def __init__(
        self,
        owner_of: Callable[[VirtualServerKey], Owner | None],
        read: Callable[[], IpvsConnections] = read_ipvs_connections,
        clock: Callable[[], float] = time.monotonic,
        limit: int = SERIES_MAX,
    ) -> None:
        self._owner_of, self._read, self._clock = owner_of, read, clock
        self._limit = limit
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._text = b""

    def text(self) -> bytes:
        """In Prometheus' text format; without IPVS there are no Services in it."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                try:
                    found = self._read()
                except KernelError as error:
                    _log.debug("connections through IPVS not read reason=%r", str(error))
                    found = IpvsConnections(0, {})
                self._text = "".join(self._lines(found)).encode()
                self._read_at = self._clock()
            return self._text

    def _lines(self, found: IpvsConnections) -> Iterator[str]:
        ports: dict[_Port, tuple[int, int]] = {}
        for key, numbers in found.servers.items():
            owner = self._owner_of(key)
            if owner is not None:
                active, inactive = ports.get(port := _port(owner), (0, 0))
                ports[port] = active + numbers.active, inactive + numbers.inactive
        left_out = sorted(ports, key=lambda each: (-sum(ports[each]), each))[self._limit :]
        others = [ports.pop(each) for each in left_out]
        if others:
            ports[_OTHER] = sum(each[0] for each in others), sum(each[1] for each in others)
        for index, state in enumerate(("active", "inactive")):
            samples = [(port, ports[port][index]) for port in sorted(ports)]
            yield from family(f"service_{state}_connections", samples)
        servers = found.servers.values()
        states = {
            "active": sum(each.active for each in servers),
            "inactive": sum(each.inactive for each in servers),
        }
        yield from by_label("ipvs_connections", states)
        yield single("ipvs_connection_table_buckets", found.buckets)
        yield single("ipvs_series_dropped", len(left_out))


def _port(owner: Owner) -> _Port:
    service, address = owner
    namespace, _, name = service.partition("/")
    return namespace, name, PROTOCOL_NAMES.get(address.protocol, "?"), address.port


def tracked_text(read: Callable[[], Tracked | None] = read_tracked) -> bytes:
    """How many connections the kernel tracks; empty where it tracks none."""
    tracked = read()
    if tracked is None:
        return b""
    text = single("conntrack_entries", tracked.entries)
    return (text + single("conntrack_entries_max", tracked.most)).encode()
