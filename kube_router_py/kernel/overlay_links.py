"""Tunnel devices: made, changed and removed by what differs; whose they are, their names say.

Those that the agent made or took over carry the alias ``kube-router-py``, by which cleanup tells
them from those of a kube-router that runs here.

A device is made anew where its kind, its endpoints or its encapsulation differ: most of that the
kernel does not change in place. Devices that kube-router left are adopted where they are the same.

Beyond vxlan nothing is learned and nothing asked: where the other nodes are, and what hardware
addresses they have, is written down as permanent entries.
"""

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from kube_router_py.errors import KernelError
from kube_router_py.kernel import overlay_messages as om
from kube_router_py.kernel.fou import FouPorts
from kube_router_py.kernel.modules import missing_modules
from kube_router_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkSocket,
    message,
)
from kube_router_py.kernel.overlay_ports import (
    VXLAN_LINKS,
    Encap,
    Neighbour,
    OverlayFailure,
    Tunnel,
    is_own_name,
)

_KINDS = ("ipip", "ip6tnl", "vxlan")
_MODULES = {"ipip": ("ipip",), "ip6tnl": ("ip6_tunnel",), "vxlan": ("vxlan",)}
_FOU_MODULES = {4: ("fou",), 6: ("fou", "fou6")}
_PUT = NLM_F_CREATE | NLM_F_REPLACE
_MAKE = NLM_F_CREATE | NLM_F_EXCL
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH)


class NetlinkOverlayLinks:
    """``overlay_ports.OverlayLinks`` of the network namespace in which it was created.

    ``root`` is where kernel parameters are.
    """

    def __init__(self, root: str | os.PathLike[str] = "/proc/sys") -> None:
        self.writes = 0
        self._root = Path(root)
        self._socket = NetlinkSocket(NETLINK_ROUTE, strict=True)
        self._fou = FouPorts()
        # Ports that were opened here, or that tunnels of ours had: a port alone tells no owner.
        self._received: set[tuple[int, int]] = set()
        self._asked_for: set[str] = set()
        self._tuned: set[int] = set()

    def read(self) -> dict[str, Tunnel | None]:
        """The devices with names of ours; None for one that is no tunnel as we make them."""
        return {name: each.tunnel for name, each in self._devices().items() if is_own_name(name)}

    def put(
        self, tunnels: Mapping[str, Tunnel], neighbours: Collection[Neighbour]
    ) -> list[OverlayFailure]:
        """Make these tunnels stand, up, with these neighbours (see ``overlay_ports``)."""
        failures: list[OverlayFailure] = []
        self._receive(tunnels.values(), failures)
        standing = self._devices()
        for name, wanted in sorted(tunnels.items()):
            try:
                self._put(wanted, standing)
            except KernelError as error:
                failures.append(OverlayFailure(f"link {name}", error.errno, str(error)))
        for version, name in VXLAN_LINKS.items():
            if name in tunnels and name in standing:
                behind = frozenset(each for each in neighbours if each.link == name)
                try:
                    failures += self._put_neighbours(version, standing[name].index, behind)
                except KernelError as error:
                    failures.append(OverlayFailure(f"link {name}", error.errno, str(error)))
        return failures

    def prune(self, keep: Collection[str]) -> list[OverlayFailure]:
        """Remove tunnels with names of ours but for those to keep, and ports they received by."""
        return self._remove(lambda device: device.name not in keep)

    def remove_own(self) -> list[OverlayFailure]:
        """Remove the tunnels that the agent made or took over, and no others (cleanup)."""
        return self._remove(lambda device: device.is_marked)

    def _remove(self, should_go: Callable[[om.Device], bool]) -> list[OverlayFailure]:
        failures: list[OverlayFailure] = []
        left: list[Tunnel] = []
        for name, device in sorted(self._devices().items()):
            if not is_own_name(name) or device.kind not in _KINDS:
                continue
            if not should_go(device):
                left += [device.tunnel] if device.tunnel is not None else []
                continue
            try:
                self._delete(device)
            except KernelError as error:
                failures.append(OverlayFailure(f"link {name}", error.errno, str(error)))
        for port in sorted(self._received - _ports(left)):
            try:
                self.writes += 1
                self._fou.remove(port)
                self._received.discard(port)
            except KernelError as error:
                failures.append(OverlayFailure(f"fou port {port[1]}", error.errno, str(error)))
        return failures

    def ensure_bridge(self, name: str, mtu: int | None) -> None:
        """Make a bridge stand, up, with an MTU (None: whatever it has). Raises KernelError."""
        device = self._device(name)
        if device is None:
            self._write(om.RTM_NEWLINK, om.new_bridge(name), _MAKE)
            device = self._device(name)
        if device is None or device.kind != "bridge":
            kind = device.kind if device is not None and device.kind else "unknown"
            raise KernelError(f"link {name} is of kind {kind}, not bridge", errno.EEXIST)
        if mtu is not None and device.mtu != mtu:
            self._write(om.RTM_NEWLINK, om.link_mtu(device.index, mtu))
        if not device.is_up:
            self._write(om.RTM_NEWLINK, om.link_up(device.index))

    def mtus(self) -> dict[str, int]:
        """The MTU of every link, in bytes."""
        found = map(om.decode_device, self._dump(om.RTM_GETLINK, om.LINK_DUMP))
        return {each.name: each.mtu for each in found}

    def close(self) -> None:
        """Close the netlink sockets. Devices stay."""
        self._socket.close()
        self._fou.close()

    def _receive(self, tunnels: Iterable[Tunnel], failures: list[OverlayFailure]) -> None:
        wanted = _ports(tunnels)
        if not wanted:
            return
        for version, _ in wanted:
            self._load(_FOU_MODULES[version])
        try:
            standing = self._fou.read()
        except KernelError as error:
            failures.append(OverlayFailure("fou ports", error.errno, str(error)))
            return
        for port in sorted(wanted - standing):
            try:
                self.writes += 1
                self._fou.add(port)
            except KernelError as error:
                failures.append(OverlayFailure(f"fou port {port[1]}", error.errno, str(error)))
                continue
            self._received.add(port)

    def _put(self, wanted: Tunnel, standing: dict[str, om.Device]) -> None:
        """``standing`` follows what is done."""
        device = standing.get(wanted.name)
        if device is not None and device.kind not in _KINDS:
            raise KernelError(
                f"a link of kind {device.kind or 'unknown'} has this name; rename or delete it",
                errno.EEXIST,
            )
        if device is None or _identity(device.tunnel) != _identity(wanted):
            for other in [*standing.values()]:
                if _is_in_the_way(other, wanted):
                    self._delete(other)
                    del standing[other.name]
            device = self._make(wanted)
            standing[wanted.name] = device
        if device.mtu != wanted.mtu:
            self._write(om.RTM_NEWLINK, om.link_mtu(device.index, wanted.mtu))
        if device.index not in self._tuned:
            self._tune(wanted)
            self._tuned.add(device.index)
        if not device.is_up or not device.is_marked:
            self._write(om.RTM_NEWLINK, om.link_marked_up(device.index))

    def _make(self, wanted: Tunnel) -> om.Device:
        self._load(_MODULES[om.kind_of(wanted)])
        try:
            self._write(om.RTM_NEWLINK, om.new_tunnel(wanted), _MAKE)
        except KernelError as error:
            raise KernelError(f"{error}{_remedy(error.errno, wanted)}", error.errno) from error
        device = self._device(wanted.name)
        if device is None:
            raise KernelError("it went away at once", errno.ENODEV)
        return device

    def _tune(self, wanted: Tunnel) -> None:
        """What another node itself sends to pods comes by the tunnel, from an address that is not
        behind it: strict reverse path filtering would drop it."""
        if wanted.version == 6:
            self._set(f"net/ipv6/conf/{wanted.name}/disable_ipv6", ("1",), "0")
            return
        parameter = f"net/ipv4/conf/{wanted.name}/rp_filter"
        if "1" in (self._get("net/ipv4/conf/all/rp_filter"), self._get(parameter)):
            self._set(parameter, ("0", "1"), "2")

    def _get(self, parameter: str) -> str:
        try:
            return (self._root / parameter).read_text().strip()
        except OSError:
            return ""

    def _set(self, parameter: str, wrong: Collection[str], value: str) -> None:
        if self._get(parameter) not in wrong:
            return
        self.writes += 1
        try:
            (self._root / parameter).write_text(value)
        except OSError as error:
            raise KernelError(
                f"cannot set {parameter} to {value}: {error.strerror}", error.errno or 0
            ) from error

    def _put_neighbours(
        self, version: int, index: int, wanted: frozenset[Neighbour]
    ) -> list[OverlayFailure]:
        entries = {(each.address, each.mac) for each in wanted}
        steps: list[tuple[int, int, bytes, str]] = []
        for dump, encode in (
            (om.forwarding_dump(index), om.forwarding_entry),
            (om.neighbour_dump(version, index), om.neighbour_entry),
        ):
            decoded = map(om.decode_entry, self._dump(om.RTM_GETNEIGH, dump))
            standing = [it for it in decoded if it is not None and it.index == index]
            found = {(it.address, it.mac) for it in standing if it.is_permanent}
            # Hardware addresses of forwarding entries are unique: what is wrong goes first.
            for address, mac in sorted(found - entries):
                steps.append((om.RTM_DELNEIGH, 0, encode(address, mac, index), str(address)))
            for address, mac in sorted(entries - found):
                steps.append((om.RTM_NEWNEIGH, _PUT, encode(address, mac, index), str(address)))
        first = self._socket.reserve(len(steps))
        self.writes += len(steps)
        refused = self._socket.batch(
            message(kind, flags, first + offset, payload)
            for offset, (kind, flags, payload, _) in enumerate(steps)
        )
        return [
            OverlayFailure(f"neighbour {steps[seq - first][3]}", code, os.strerror(code))
            for seq, code in refused.items()
            if steps[seq - first][0] != om.RTM_DELNEIGH or code not in _GONE
        ]

    def _devices(self) -> dict[str, om.Device]:
        found = map(om.decode_device, self._dump(om.RTM_GETLINK, om.LINK_DUMP))
        devices = {it.name: it for it in found if it.kind in _KINDS or is_own_name(it.name)}
        self._tuned &= {each.index for each in devices.values()}
        return devices

    def _device(self, name: str) -> om.Device | None:
        try:
            index = socket.if_nametoindex(name)
            return om.decode_device(self._socket.request(om.RTM_GETLINK, om.link(index))[0])
        except OSError:
            return None
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def _delete(self, device: om.Device) -> None:
        if device.tunnel is not None:
            self._received |= _ports((device.tunnel,))
        try:
            self._write(om.RTM_DELLINK, om.link(device.index))
        except KernelError as error:
            if error.errno not in _GONE:
                raise

    def _dump(self, kind: int, payload: bytes) -> list[bytes]:
        try:
            return self._socket.dump(kind, payload)
        except KernelError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                return []
            raise

    def _load(self, modules: Iterable[str]) -> None:
        """Have the kernel load what it would not by itself; the refusal that follows tells."""
        missing_modules([name for name in modules if name not in self._asked_for])
        self._asked_for.update(modules)

    def _write(self, kind: int, payload: bytes, flags: int = 0) -> None:
        self.writes += 1
        self._socket.request(kind, payload, flags)


def _ports(tunnels: Iterable[Tunnel]) -> set[tuple[int, int]]:
    return {(each.version, each.port) for each in tunnels if each.encap is Encap.FOU}


def _identity(tunnel: Tunnel | None) -> object:
    """What cannot be changed in place."""
    if tunnel is None:
        return None
    return tunnel.encap, tunnel.local, tunnel.remote, tunnel.port


def _is_in_the_way(device: om.Device, wanted: Tunnel) -> bool:
    """Whether a device of ours has the name, or what the kernel lets only one device have."""
    if not is_own_name(device.name) or device.kind not in _KINDS:
        return False
    if device.name == wanted.name:
        return True
    has, is_vxlan = device.tunnel, wanted.encap is Encap.VXLAN
    if has is None or (has.encap is Encap.VXLAN) is not is_vxlan:
        return False
    if is_vxlan:
        return has.version == wanted.version and has.port == wanted.port
    return (has.local, has.remote) == (wanted.local, wanted.remote)


def _remedy(code: int, tunnel: Tunnel) -> str:
    names = [*_MODULES[om.kind_of(tunnel)]]
    names += _FOU_MODULES[tunnel.version] if tunnel.encap is Encap.FOU else ()
    if code in (errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT):
        return f" (is the kernel without such tunnels? modprobe -a {' '.join(names)})"
    if code == errno.EEXIST:
        return " (another tunnel has the same endpoints; delete it if it is not needed)"
    if code == errno.EADDRINUSE:
        return f" (another program has UDP port {tunnel.port}, see --overlay-encap-port)"
    return ""
