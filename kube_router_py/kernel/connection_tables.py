"""How full the kernel's tables of connections are, from /proc."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct, structs

from kube_router_py.errors import KernelError
from kube_router_py.proxy.model import VirtualServerKey

# The network namespace of the thread that asks; /proc/net is that of the process.
_IP_VS = Path("/proc/thread-self/net/ip_vs")
_CONNTRACK = Path("/proc/sys/net/netfilter")
_PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": 132}
_BUCKETS = re.compile(r"\(size=(\d+)\)")


class ServerConnections(Struct, frozen=True):
    """Of one virtual server, all its real servers together."""

    active: int
    inactive: int


class IpvsConnections(Struct, frozen=True):
    """``buckets`` is the size of the table of connections (a hash table, which is never full)."""

    buckets: int
    servers: dict[VirtualServerKey, ServerConnections]


class Tracked(Struct, frozen=True):
    """Connections that conntrack follows, and how many it has room for."""

    entries: int
    most: int


def read_ipvs_connections(path: Path = _IP_VS) -> IpvsConnections:
    """Raises KernelError, also where the kernel has no IPVS."""
    try:
        with path.open() as file:
            return parse_ip_vs(file)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}", error.errno or 0) from error


def parse_ip_vs(lines: Iterable[str]) -> IpvsConnections:
    """The text of /proc/net/ip_vs (ip_vs_info_seq_show() in net/netfilter/ipvs/ip_vs_ctl.c)."""
    buckets = 0
    counts: dict[VirtualServerKey, tuple[int, int]] = {}
    key: VirtualServerKey | None = None
    for line in lines:
        words = line.split()
        if words[:1] == ["->"]:
            if key is not None and len(words) >= 6:
                if key.fwmark and words[1].startswith("["):  # the mark does not tell its family
                    counts[key := structs.replace(key, family=socket.AF_INET6)] = counts.pop(key)
                active, inactive = counts[key]
                counts[key] = active + int(words[4]), inactive + int(words[5])
        elif words and (words[0] in _PROTOCOLS or words[0] == "FWM"):
            key = _key(words[0], words[1])
            counts[key] = (0, 0)
        elif match := _BUCKETS.search(line):
            buckets = int(match[1])
    servers = {each: ServerConnections(*numbers) for each, numbers in counts.items()}
    return IpvsConnections(buckets, servers)


def _key(protocol: str, place: str) -> VirtualServerKey:
    if protocol == "FWM":
        return VirtualServerKey(socket.AF_INET, 0, b"", 0, int(place, 16))
    address, _, port = place.rpartition(":")
    if address.startswith("["):
        packed = ipaddress.IPv6Address(address.strip("[]")).packed
        return VirtualServerKey(socket.AF_INET6, _PROTOCOLS[protocol], packed, int(port, 16))
    packed = bytes.fromhex(address)
    return VirtualServerKey(socket.AF_INET, _PROTOCOLS[protocol], packed, int(port, 16))


def read_tracked(directory: Path = _CONNTRACK) -> Tracked | None:
    """None where the kernel tracks no connections."""
    try:
        entries = int((directory / "nf_conntrack_count").read_text())
        return Tracked(entries, int((directory / "nf_conntrack_max").read_text()))
    except (OSError, ValueError):
        return None
