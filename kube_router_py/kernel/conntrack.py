"""Connections that the kernel remembers, by netlink (ctnetlink).

Facts used (kernel sources net/netfilter/nf_conntrack_netlink.c, nfnetlink.c, and measured on 6.18):

* a dump goes through the whole table, whatever it is asked for: with 50,000 entries 20 ms where
  CTA_FILTER selects one address at one place of the four, 125 ms where all are handed over. One
  dump of everything serves any number of addresses, older kernels (before 5.8) too;
* an entry is deleted by its original tuple, which goes back as it was told, in the zone it was
  told of; CTA_ID spares one that has come in its place meanwhile, unless it took the same memory.
  A request without a tuple would delete everything;
* an entry that is in a flowtable cannot be deleted (EBUSY);
* where the module is missing and cannot be loaded, nfnetlink answers EINVAL.
"""

import errno
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import closing

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.kernel.netlink import (
    NETLINK_NETFILTER,
    NetlinkSocket,
    attribute,
    attributes,
    message,
    nested,
)
from kube_router_py.kernel.ports_conntrack import FlowFailure

_SUBSYSTEM = 1 << 8
_GET = _SUBSYSTEM | 1
_DELETE = _SUBSYSTEM | 2
_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_REPLY = 2
_CTA_ID = 12
_CTA_ZONE = 18
_CTA_TUPLE_IP = 1
# struct nfgenmsg: family, version, resource id.
_HEAD_BYTES = 4
_NO_MODULE = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)


class NetlinkConntrack:
    """``ports_conntrack.Conntrack`` of the namespace that the calling thread is in."""

    def __init__(self) -> None:
        self.writes = 0

    def forget(self, addresses: Collection[str]) -> list[FlowFailure]:
        """See ``Conntrack.forget``."""
        if not addresses:
            return []
        packed = {_packed(address): address for address in addresses}
        try:
            # It is seldom needed; a socket kept open would have to be looked after.
            with closing(NetlinkSocket(NETLINK_NETFILTER)) as sock:
                return self._forget(sock, packed)
        except StateUnknownError:
            raise
        except KernelError as error:
            if error.errno in _NO_MODULE:
                raise PreflightError(
                    "the kernel does not tell its connections: load the module "
                    "nf_conntrack_netlink on the host"
                ) from error
            raise KernelError(f"conntrack: {error}", error.errno) from error

    def _forget(self, sock: NetlinkSocket, packed: dict[bytes, str]) -> list[FlowFailure]:
        entries = sock.dump(_GET, _head(packed), keep=_mentions(packed))
        first = sock.reserve(len(entries)) if entries else 0
        self.writes += len(entries)
        refused = sock.batch(
            message(_DELETE, 0, first + index, _deletion(entry))
            for index, entry in enumerate(entries)
        )
        failures = {
            FlowFailure(packed[address], f"a connection cannot be deleted: {os.strerror(code)}")
            for seq, code in refused.items()
            if code != errno.ENOENT
            for address in _addresses(entries[seq - first])
            if address in packed
        }
        return sorted(failures)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _head(packed: Collection[bytes]) -> bytes:
    """Asks for one family, or for all (AF_UNSPEC)."""
    lengths = {len(address) for address in packed}
    family = {4: socket.AF_INET, 16: socket.AF_INET6}[lengths.pop()] if len(lengths) == 1 else 0
    return bytes((family, 0, 0, 0))


def _mentions(packed: Collection[bytes]) -> Callable[[bytes], bool]:
    # The bytes of an address turn up in ports and counters, too; but most entries lack them.
    search = re.compile(b"|".join(map(re.escape, packed))).search

    def mentions(payload: bytes) -> bool:
        return search(payload) is not None and any(each in packed for each in _addresses(payload))

    return mentions


def _addresses(payload: bytes) -> Iterator[bytes]:
    """Source and destination, of the original direction and of the reply."""
    for kind, value in attributes(payload, _HEAD_BYTES):
        if kind not in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY):
            continue
        for part, addresses in attributes(value):
            if part == _CTA_TUPLE_IP:
                for _, address in attributes(addresses):
                    yield address


def _deletion(payload: bytes) -> bytes:
    """Asks for the deletion of an entry that a dump told of."""
    found = dict(attributes(payload, _HEAD_BYTES))
    same = (attribute(kind, found[kind]) for kind in (_CTA_ID, _CTA_ZONE) if kind in found)
    return payload[:_HEAD_BYTES] + nested(_CTA_TUPLE_ORIG, found[_CTA_TUPLE_ORIG]) + b"".join(same)
