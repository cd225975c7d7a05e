"""The pod side of direct server return: a tunnel's end in the pod's own network namespace.

The node sends a packet to a VIP unchanged, inside a packet to the pod's address. In the pod a
tunnel device takes it out again, and the VIP is an address of that device, so that the pod's
server answers, from the VIP, straight to the client.

    kube-tunnel-if   ipip (IPv4 in IPv4), local: the pod's address, from anywhere
    kube-tunnel-v6   ip6tnl (IPv6 in IPv6), likewise

Without these parameters the packets would be dropped, or the pod would answer ARP for the VIP and
draw its traffic on the link that it shares with others: rp_filter off on the device, on the pod's
own link and for all; arp_ignore and arp_announce for all.

All of it happens in a thread made for one visit: a thread that has entered a namespace is never
used for anything else.
"""

import ctypes
import errno
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from struct import Struct as Layout
from typing import Protocol, TypeVar

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.kernel import vip_messages as rt
from kube_router_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
)
from kube_router_py.kernel.ports import PodTunnel
from kube_router_py.proxy.model import Vip

T = TypeVar("T")
_log = logging.getLogger(__name__)

DEVICES = {int(socket.AF_INET): "kube-tunnel-if", int(socket.AF_INET6): "kube-tunnel-v6"}
_KINDS = {int(socket.AF_INET): "ipip", int(socket.AF_INET6): "ip6tnl"}

# A visit takes milliseconds; this bounds what a sick kernel may cost the loop.
_VISIT_TIMEOUT_S = 15.0
_NETLINK_TIMEOUT_S = 5.0

_CLONE_NEWNET = 0x40000000
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 3, 4, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_IPTUN_LOCAL, _IFLA_IPTUN_PROTO = 2, 9
_IFF_UP = 1
_IFINFOMSG = Layout("=BxHiII")  # family; type, index, flags, change
_U32 = Layout("=I")

_libc = ctypes.CDLL(None, use_errno=True)


class Namespaces(Protocol):
    """Where pods' network namespaces come from (``pod_netns.PodNamespaces``)."""

    def open(self, pod_uid: str) -> int: ...


def visit(descriptor: int, work: Callable[[], T], timeout_s: float = _VISIT_TIMEOUT_S) -> T:
    """Do ``work`` in the network namespace behind ``descriptor``, in a thread of its own.

    Raises what the work raises, and StateUnknownError if it does not end in time: the thread then
    keeps the namespace open until it does. The descriptor is the callee's from here on.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            try:
                _enter(descriptor)
            finally:
                os.close(descriptor)
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="pod-visit", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise StateUnknownError(f"a pod's namespace gave no answer within {timeout_s:g} s")
    if errors:
        raise errors[0]
    return results[0]


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise PreflightError(
            "a pod's network namespace may not be entered: the agent lacks the capability "
            "CAP_SYS_ADMIN (see manifests/overlays/dsr)"
        )
    raise KernelError(f"entering a pod's network namespace: {os.strerror(code)}", code)


class NetlinkPodTunnels:
    """``ports.PodTunnels`` of the pods on this node. ``root`` is where kernel parameters are."""

    def __init__(self, namespaces: Namespaces, root: str | os.PathLike[str] = "/proc/sys") -> None:
        self.writes = 0
        self._namespaces = namespaces
        self._root = Path(root)

    def ensure(self, pod_uid: str, tunnel: PodTunnel, *, only: bool = False) -> int:
        """Make the pod's tunnel stand with these VIPs (``only``: and no others); returns the MTU
        of the pod's link.

        Raises KernelError, with the remedy where there is one.
        """
        return self._visit(pod_uid, lambda: _Visit(self._root).ensure(tunnel, only))

    def remove(self, pod_uid: str, families: Iterable[int]) -> None:
        """Remove the tunnels of a pod. A missing one is no error; a missing pod raises."""
        wanted = tuple(families)
        self._visit(pod_uid, lambda: _Visit(self._root).remove(wanted))

    def close(self) -> None:
        """Nothing is held between visits."""

    def _visit(self, pod_uid: str, work: Callable[[], tuple[int, T]]) -> T:
        writes, found = visit(self._namespaces.open(pod_uid), work)
        self.writes += writes
        return found


class _Visit:
    """What is done while in a pod's namespace; methods return (number of writes, result)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writes = 0

    def ensure(self, tunnel: PodTunnel, only: bool) -> tuple[int, int]:
        with closing(NetlinkSocket(NETLINK_ROUTE, strict=True, timeout_s=_NETLINK_TIMEOUT_S)) as at:
            link, mtu = self._pod_link(at, tunnel)
            name = DEVICES[tunnel.family]
            for parameter, value in _before(tunnel.family, link):
                self._set(parameter, value)
            index = self._device(at, name, tunnel)
            for parameter, value in _after(tunnel.family, name):
                self._set(parameter, value)
            if not rt.decode_link(at.request(rt.RTM_GETLINK, rt.link_request(index))[0]).is_up:
                self._write(at, _RTM_NEWLINK, _IFINFOMSG.pack(0, 0, index, _IFF_UP, _IFF_UP))
            wanted = {Vip(tunnel.family, vip) for vip in tunnel.vips}
            standing = {
                Vip(entry.family, entry.address)
                for entry in _addresses(at, tunnel.family, index)
                if not _is_link_local(entry.address)
            }
            for vip in sorted(wanted - standing):
                self._write(
                    at, rt.RTM_NEWADDR, rt.put_address(vip, index), NLM_F_CREATE | NLM_F_REPLACE
                )
            for vip in sorted(standing - wanted) if only else ():
                self._write(at, rt.RTM_DELADDR, rt.delete_address(vip, index))
        return self._writes, mtu

    def remove(self, families: Iterable[int]) -> tuple[int, None]:
        with closing(NetlinkSocket(NETLINK_ROUTE, strict=True, timeout_s=_NETLINK_TIMEOUT_S)) as at:
            for family in families:
                index = _index(DEVICES[family])
                if index:
                    self._write(at, _RTM_DELLINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
        return self._writes, None

    def _pod_link(self, at: NetlinkSocket, tunnel: PodTunnel) -> tuple[str, int]:
        """The link with the pod's address, whatever it is called, and its MTU."""
        for entry in _addresses(at, tunnel.family, 0):
            if entry.address == tunnel.address:
                found = at.request(rt.RTM_GETLINK, rt.link_request(entry.index))[0]
                values = dict(attributes(found, _IFINFOMSG.size))
                name = values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
                return name, int(_U32.unpack(values[_IFLA_MTU])[0])
        address = ipaddress.ip_address(tunnel.address)
        raise KernelError(
            f"the pod's namespace has no link with its address {address}", errno.EADDRNOTAVAIL
        )

    def _device(self, at: NetlinkSocket, name: str, tunnel: PodTunnel) -> int:
        index = _index(name)
        kind = _KINDS[tunnel.family]
        if index:
            if _local_end(at, index, kind) == tunnel.address:
                return index
            _log.info(
                "replacing a tunnel link=%s address=%s", name, ipaddress.ip_address(tunnel.address)
            )
            self._write(at, _RTM_DELLINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
        data = [attribute(_IFLA_IPTUN_LOCAL, tunnel.address)]
        if tunnel.family == socket.AF_INET6:
            data.append(attribute(_IFLA_IPTUN_PROTO, bytes((socket.IPPROTO_IPV6,))))
        payload = (
            _IFINFOMSG.pack(0, 0, 0, 0, 0)
            + attribute(_IFLA_IFNAME, name.encode() + b"\0")
            + nested(
                _IFLA_LINKINFO,
                attribute(_IFLA_INFO_KIND, kind.encode() + b"\0"),
                nested(_IFLA_INFO_DATA, *data),
            )
        )
        try:
            self._write(at, _RTM_NEWLINK, payload, NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise KernelError(
                    f"the kernel has no {kind} tunnels: load its module on the node (modprobe "
                    f"{'ipip' if kind == 'ipip' else 'ip6_tunnel'})",
                    error.errno,
                ) from error
            raise KernelError(f"device {name}: {error}", error.errno) from error
        return _index(name)

    def _write(self, at: NetlinkSocket, kind: int, payload: bytes, flags: int = 0) -> None:
        self._writes += 1
        at.request(kind, payload, flags)

    def _set(self, parameter: str, value: str) -> None:
        path = self._root / parameter
        try:
            if path.read_text().strip() != value:
                self._writes += 1
                path.write_text(value)
        except FileNotFoundError:
            return  # a kernel without this family's parameter does without its effect, too
        except OSError as error:
            raise KernelError(
                f"cannot set {parameter} in the pod to {value}: {error.strerror}", error.errno or 0
            ) from error


def _before(family: int, link: str) -> list[tuple[str, str]]:
    """Parameters that must hold before the VIP is an address in the pod."""
    if family == socket.AF_INET6:
        return []
    return [
        ("net/ipv4/conf/all/arp_ignore", "1"),
        ("net/ipv4/conf/all/arp_announce", "2"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        (f"net/ipv4/conf/{link}/rp_filter", "0"),
    ]


def _after(family: int, device: str) -> list[tuple[str, str]]:
    if family == socket.AF_INET6:
        return [(f"net/ipv6/conf/{device}/disable_ipv6", "0")]
    return [(f"net/ipv4/conf/{device}/rp_filter", "0")]


def _addresses(at: NetlinkSocket, family: int, index: int) -> list[rt.AddressEntry]:
    payloads = at.dump(rt.RTM_GETADDR, rt.address_dump(family, index))
    entries = (rt.decode_address(payload) for payload in payloads)
    return [entry for entry in entries if entry and index in (0, entry.index)]


def _local_end(at: NetlinkSocket, index: int, kind: str) -> bytes:
    """The local address of a tunnel, or ``b""`` for a device of another kind."""
    found = at.request(rt.RTM_GETLINK, rt.link_request(index))[0]
    info = dict(attributes(dict(attributes(found, _IFINFOMSG.size)).get(_IFLA_LINKINFO, b"")))
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode() != kind:
        return b""
    return dict(attributes(info.get(_IFLA_INFO_DATA, b""))).get(_IFLA_IPTUN_LOCAL, b"")


def _is_link_local(address: bytes) -> bool:
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
