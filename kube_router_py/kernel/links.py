"""The VIP link and what makes VIPs local: routes of type ``local``, or addresses.

A VIP needs no address, only a *local* routing decision: a host route in table ``local`` that leads
to the VIP link. Ours carry protocol number 75 and metric 75. The metric keeps them apart from the
routes that the kernel makes for addresses (metric 0): neither replaces the other, and where both
exist the kernel's comes first, so an address that the node really has stays as it was.

In mode ``address`` a VIP is an address on the VIP link as well. The kernel's own route for it names
the VIP as preferred source; where another is wanted, ours is put and the kernel's is deleted.

A VIP that stands as in the other mode, or as kube-router left it, or by half, is reported by
``read_vips`` with itself as preferred source. Nobody wants that, so it will be put again and is
thereby converted: what is needed is made first, what is not is deleted once that succeeded.

Routes and addresses go through batched netlink (27 us a route, measured; pyroute2 takes 200 times
that). The link itself is made by pyroute2, imported only then (120 ms, 24 MB).
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping

import msgspec

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.kernel import vip_messages as rt
from kube_router_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NetlinkSocket,
    message,
)
from kube_router_py.kernel.ports import BridgePort, NodeAddress, VipFailure
from kube_router_py.kernel.vip_state import Standing
from kube_router_py.proxy.model import Vip

log = logging.getLogger(__name__)

VIP_LINK = "kube-dummy-if"
MODES = ("route", "address")

# The kernel adds its route for an IPv6 address from a work queue, some time after the address.
_KERNEL_ROUTE_DEADLINE_S = 2.0
_KERNEL_ROUTE_POLL_S = 0.01

_GONE = (errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
_PUT = NLM_F_CREATE | NLM_F_REPLACE
# A table or family that this namespace does not have holds nothing.
_NO_TABLE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)


_Step = tuple[Vip, int, int, bytes]  # VIP, message type, flags, payload


class NetlinkLinks:
    """``ports.Links`` of the network namespace in which it was created. ``mode``: see MODES."""

    def __init__(self, mode: str = "route", vip_link: str = VIP_LINK) -> None:
        if mode not in MODES:
            raise ValueError(f"VIP mode {mode!r} is none of {', '.join(MODES)}")
        self.writes = 0
        self._mode = mode
        self._name = vip_link
        self._socket = NetlinkSocket(NETLINK_ROUTE, strict=True)
        # What the last read found, kept up to date by writes; of the link with this index.
        self._standing: dict[Vip, Standing] | None = None
        self._standing_on = 0

    def close(self) -> None:
        """Close the netlink socket. Links, addresses and routes stay."""
        self._socket.close()

    def ensure_vip_link(self) -> None:
        """Create the VIP link where it is missing, and set it up where it is down.

        A link that went down has lost its routes; ``read_vips`` then tells which.
        """
        index = self._index()
        if index:
            state = self._link_state(index)
            if state.kind != "dummy":
                raise KernelError(
                    f"link {self._name} is of kind {state.kind or 'unknown'}, not dummy; delete it "
                    f"(ip link delete {self._name}) if it is not needed, or rename it",
                    errno.EEXIST,
                )
            if not state.is_up:
                self._set_up(index)
        else:
            log.info("creating link=%s", self._name)
            self.writes += 1
            self._change_link("add", ifname=self._name, kind="dummy")
            index = self._index()
            self._set_up(index)
        if not self._has_keeper(index):
            self.writes += 1
            self._socket.request(rt.RTM_NEWADDR, rt.put_address(rt.KEEPER, index), _PUT)

    def owns_vip_link(self) -> bool:
        """Whether the VIP link is there and the agent's: kube-router's lacks the keeper address."""
        index = self._index()
        return index != 0 and self._link_state(index).kind == "dummy" and self._has_keeper(index)

    def _has_keeper(self, index: int) -> bool:
        return any(entry.address == rt.KEEPER.address for entry in self._addresses(index))

    def _set_up(self, index: int) -> None:
        self._standing = None
        self.writes += 1
        self._change_link("set", index=index, state="up")

    def remove_vip_link(self) -> None:
        """Remove the VIP link, and with it its addresses and routes; one that is missing, or is not
        the agent's, is no error."""
        self._standing = None
        if self.owns_vip_link():
            self.writes += 1
            self._change_link("del", index=self._index())

    def read_vips(self) -> dict[Vip, bytes]:
        """The VIPs that stand on the VIP link, with their preferred source (see the module)."""
        standing = self._standing = self._read_standing(self._index())
        return {vip: each.value(vip, self._mode) for vip, each in standing.items()}

    def apply_vips(self, put: Mapping[Vip, bytes], remove: Iterable[Vip]) -> list[VipFailure]:
        """Add or change, then remove. A VIP that cannot be put is left as it was.

        Raises KernelError where there is no VIP link, StateUnknownError where answers were lost.
        """
        remove = [vip for vip in remove if vip not in put]
        if not put and not remove:
            return []
        index = self._index()
        if not index:
            raise KernelError(f"there is no link {self._name}", errno.ENODEV)
        standing = self._standing
        if standing is None or self._standing_on != index:
            standing = self._read_standing(index)
        self._standing = None  # until it is known that all went well
        failures: dict[Vip, VipFailure] = {}
        make = [step for vip in put for step in self._make(vip, put[vip], index, standing)]
        self._send(make, failures, ())
        made = {vip: source for vip, source in put.items() if vip not in failures}
        self._await_kernel_routes(made, index, standing)
        undo = [step for vip in made for step in self._convert(vip, made[vip], index, standing)]
        undo += [step for vip in remove for step in _unmake(vip, index, standing)]
        self._send(undo, failures, _GONE)
        if not failures:
            self._standing = standing
            for vip in remove:
                standing.pop(vip, None)
            for vip, source in made.items():
                standing[vip] = self._result(vip, source)
        return list(failures.values())

    def node_addresses(self) -> tuple[NodeAddress, ...]:
        """Every address configured on any link but the VIP link, loopback included; sorted."""
        names = dict(socket.if_nameindex())
        found: list[NodeAddress] = []
        for entry in self._addresses(0):
            # A link that came or went between the two questions has no name: it is not told.
            name = names.get(entry.index, self._name)
            if name != self._name:
                found.append(NodeAddress(entry.family, entry.address, entry.prefix_length, name))
        return tuple(sorted(found))

    def bridge_ports(self) -> tuple[BridgePort, ...]:
        """The ports of every bridge, sorted."""
        names = dict(socket.if_nameindex())
        found: list[BridgePort] = []
        for payload in self._socket.dump(rt.RTM_GETLINK, rt.BRIDGE_LINKS):
            port = rt.decode_bridge_port(payload)
            if port is not None and port[0] in names and port[1] in names:
                found.append(BridgePort(names[port[0]], names[port[1]], port[2]))
        return tuple(sorted(found))

    def _make(
        self, vip: Vip, source: bytes, index: int, standing: dict[Vip, Standing]
    ) -> list[_Step]:
        steps: list[_Step] = []
        if self._mode == "address":
            if not standing.get(vip, Standing()).address:
                steps.append((vip, rt.RTM_NEWADDR, _PUT, rt.put_address(vip, index)))
            source = source or vip.address
        steps.append((vip, rt.RTM_NEWROUTE, _PUT, rt.put_route(vip, index, source)))
        return steps

    def _convert(
        self, vip: Vip, source: bytes, index: int, standing: dict[Vip, Standing]
    ) -> list[_Step]:
        """What a VIP that now stands no longer needs."""
        before = standing.get(vip, Standing())
        steps: list[_Step] = []
        if self._mode == "route" and before.address:
            steps.append((vip, rt.RTM_DELADDR, 0, rt.delete_address(vip, index)))
        if before.kernel_route if self._mode == "route" else self._is_overruled(source, before):
            payload = rt.delete_route(vip, index, rt.KERNEL_PROTOCOL)
            steps.append((vip, rt.RTM_DELROUTE, 0, payload))
        return steps

    def _is_overruled(self, source: bytes, before: Standing) -> bool:
        """In mode ``address``: whether the kernel's route is there and prefers a wrong source."""
        return bool(source) and (before.kernel_route or not before.address)

    def _result(self, vip: Vip, source: bytes) -> Standing:
        if self._mode == "route":
            return Standing(source=source)
        return Standing(address=True, source=source or vip.address, kernel_route=not source)

    def _await_kernel_routes(
        self, made: Mapping[Vip, bytes], index: int, standing: dict[Vip, Standing]
    ) -> None:
        """Wait for the routes that the kernel adds for new IPv6 addresses, to delete them then.

        Those that do not come in time are seen, and deleted, after the next ``read_vips``.
        """
        if self._mode == "route":
            return
        awaited = {
            vip
            for vip, source in made.items()
            if source
            and vip.family == socket.AF_INET6
            and not standing.get(vip, Standing()).address
        }
        deadline = time.monotonic() + _KERNEL_ROUTE_DEADLINE_S
        while awaited:
            for route in self._routes(socket.AF_INET6, index):
                if route.protocol == rt.KERNEL_PROTOCOL:
                    awaited.discard(route.vip)
            if not awaited or time.monotonic() > deadline:
                return
            time.sleep(_KERNEL_ROUTE_POLL_S)

    def _send(
        self, steps: list[_Step], failures: dict[Vip, VipFailure], harmless: tuple[int, ...]
    ) -> None:
        first = self._socket.reserve(len(steps))
        self.writes += len(steps)
        refused = self._socket.batch(
            message(kind, flags, first + offset, payload)
            for offset, (_, kind, flags, payload) in enumerate(steps)
        )
        for seq, code in refused.items():
            if code in harmless:
                continue
            vip = steps[seq - first][0]
            failures.setdefault(vip, VipFailure(vip, code, _explain(code)))

    def _read_standing(self, index: int) -> dict[Vip, Standing]:
        self._standing_on = index
        found: dict[Vip, Standing] = {}
        if not index:
            return found
        for entry in self._addresses(index):
            vip = Vip(entry.family, entry.address)
            if entry.prefix_length == len(entry.address) * 8 and not _is_no_vip(vip):
                found[vip] = Standing(address=True)
        for family in rt.FAMILIES:
            for route in self._routes(family, index):
                before = found.get(route.vip, Standing())
                if route.protocol == rt.OWN_PROTOCOL:
                    found[route.vip] = msgspec.structs.replace(before, source=route.source)
                elif route.protocol == rt.KERNEL_PROTOCOL and not _is_no_vip(route.vip):
                    found[route.vip] = msgspec.structs.replace(before, kernel_route=True)
        return found

    def _addresses(self, index: int) -> list[rt.AddressEntry]:
        entries = (
            rt.decode_address(payload)
            for family in rt.FAMILIES
            for payload in self._dump(rt.RTM_GETADDR, rt.address_dump(family, index))
        )
        return [entry for entry in entries if entry and index in (0, entry.index)]

    def _routes(self, family: int, index: int) -> list[rt.LocalRoute]:
        payloads = self._dump(rt.RTM_GETROUTE, rt.route_dump(family, index))
        routes = (rt.decode_route(payload, index) for payload in payloads)
        return [route for route in routes if route]

    def _dump(self, kind: int, payload: bytes) -> list[bytes]:
        try:
            return self._socket.dump(kind, payload)
        except StateUnknownError:
            raise
        except KernelError as error:
            if error.errno in _NO_TABLE:
                return []
            raise

    def _index(self) -> int:
        try:
            return socket.if_nametoindex(self._name)
        except OSError:
            return 0

    def _link_state(self, index: int) -> rt.LinkState:
        return rt.decode_link(self._socket.request(rt.RTM_GETLINK, rt.link_request(index))[0])

    def _change_link(self, verb: str, **what: str | int) -> None:
        from pyroute2 import IPRoute, NetlinkError  # costly, rarely needed

        try:
            with IPRoute() as route:
                route.link(verb, **what)
        except NetlinkError as error:
            remedy = ""
            if error.code == errno.EOPNOTSUPP:
                remedy = " (the kernel has no dummy links: load its module, modprobe dummy)"
            reason = f"{os.strerror(error.code)}{remedy}"
            raise KernelError(f"link {self._name}, {verb}: {reason}", error.code) from error


def _unmake(vip: Vip, index: int, standing: dict[Vip, Standing]) -> list[_Step]:
    before = standing.get(vip, Standing())
    steps: list[_Step] = []
    if before.address:
        steps.append((vip, rt.RTM_DELADDR, 0, rt.delete_address(vip, index)))
    for present, protocol in (
        (before.kernel_route, rt.KERNEL_PROTOCOL),
        (before.source is not None, rt.OWN_PROTOCOL),
    ):
        if present:
            steps.append((vip, rt.RTM_DELROUTE, 0, rt.delete_route(vip, index, protocol)))
    return steps


def _is_no_vip(vip: Vip) -> bool:
    """The address that keeps the link's routes, and fe80::/10, which IPv6 gives every link."""
    if vip.family == socket.AF_INET:
        return vip == rt.KEEPER
    return vip.address[0] == 0xFE and vip.address[1] & 0xC0 == 0x80


def _explain(code: int) -> str:
    text = os.strerror(code)
    if code == errno.EINVAL:
        return f"{text} (is the preferred source an address of this node?)"
    if code == errno.ENETDOWN:
        return f"{text} (the VIP link is down)"
    return text
