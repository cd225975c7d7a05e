"""FRR taking its routes back before its end: those of this node's kernel and those of its peers.

Ended by a signal, FRR leaves routes: peers keep theirs for a restart (RFC 4724) that never comes;
zebra keeps those of a bgpd that was gone before its word was read. An administrative shutdown is a
hard reset (RFC 8538), after which nobody keeps anything.
"""

import errno
import ipaddress
import os
import socket
import time
from contextlib import closing
from typing import TypeVar

from msgspec import DecodeError, Raw, json

from kube_router_py.errors import KernelError
from kube_router_py.kernel import overlay_messages as om
from kube_router_py.kernel.frr_process import Layout, runs_elsewhere
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from kube_router_py.kernel.overlay_ports import MAIN, Network
from kube_router_py.kernel.ports_frr import CommandResult

RTPROT_BGP = 186
"""linux/rtnetlink.h"""
_SHOWS = {4: "show ip route bgp json", 6: "show ipv6 route bgp json"}
_POLL_S = 0.02
_BGP_PORT = 179
_Shape = TypeVar("_Shape")


def take_routes_back(zebra: VtyClient, bgpd: VtyClient, timeout_s: float) -> str:
    """Make what bgpd learned leave the kernel, and what it announced leave its peers.

    Returns what is left after ``timeout_s``, for people; empty if nothing is. Raises KernelError.
    """
    deadline = time.monotonic() + timeout_s
    routes = _of_bgpd(zebra)
    shown = bgpd.show("show running-config").text.splitlines()
    for line in shown:
        if line.startswith("router bgp "):
            bgpd.configure((line, "bgp shutdown", "exit"))
    with closing(NetlinkSocket(NETLINK_ROUTE, strict=True)) as sock:
        while left := routes & _standing(sock):
            if time.monotonic() > deadline:
                return f"{len(left)} learned routes stay in the kernel"
            time.sleep(_POLL_S)
    return ""


def clear_up(layout: Layout, *, are_gone: bool) -> None:
    """When no daemon of ours runs any more: remove bgpd's file and, unless they ``are_gone``, the
    routes that it had learned before it was killed, as with its container. Nothing is removed where
    there is no such file.

    Another FRR's routes look the same: where a zebra runs or somebody speaks BGP all stay. Raises
    KernelError then, and where the kernel refuses.
    """
    trace = layout.path("bgpd", "conf")
    if not os.path.exists(trace):
        return
    try:
        if not are_gone:
            _remove_routes(layout)
    finally:
        os.unlink(trace)  # what comes afterwards is not ours; and there are passwords in it


def _remove_routes(layout: Layout) -> None:
    with closing(NetlinkSocket(NETLINK_ROUTE, strict=True)) as sock:
        left = _standing(sock)
        if left and (_speaks_another() or runs_elsewhere(layout, "zebra")):
            raise KernelError(
                f"{len(left)} routes learned by BGP stay (ip route show proto bgp): another FRR or "
                "BGP speaker runs here, and whose they are cannot be told; delete ours by hand"
            )
        for each in left:
            sock.request(om.RTM_DELROUTE, om.any_route(each, MAIN, RTPROT_BGP))


def _speaks_another() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", _BGP_PORT))
            listener.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _of_bgpd(zebra: VtyClient) -> frozenset[Network]:
    """Where bgpd's routes lead. zebra forgets a route before the kernel does: ask it first."""
    found: list[str] = []
    for command in _SHOWS.values():
        found += _decoded(zebra.show(command), dict[str, Raw])
    return frozenset(map(ipaddress.ip_network, found))


def _decoded(reply: CommandResult, shape: type[_Shape]) -> _Shape:
    try:
        return json.decode(reply.text or "{}", type=shape)
    except DecodeError as error:
        raise KernelError(f"no JSON: {error}") from error


def _standing(sock: NetlinkSocket) -> frozenset[Network]:
    found = (
        om.decode_route(payload)
        for version in _SHOWS
        for payload in sock.dump(om.RTM_GETROUTE, om.route_dump(version, MAIN, RTPROT_BGP))
    )
    return frozenset(
        each.destination for each in found if each is not None and each.protocol == RTPROT_BGP
    )
