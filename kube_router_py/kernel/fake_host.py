"""Stateful fakes of links and parameters, with those of sets and rules, for tests and dry runs.

Each fake keeps its state in a *kernel* object that outlives it: two adapters on one such object
are an agent before and after its restart. The kernel objects refuse what the kernel refuses.
"""

import errno
import socket
from collections.abc import Iterable, Mapping

from msgspec import Struct, field, structs

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_ipset import FakeIpsetKernel as FakeIpsetKernel
from kube_router_py.kernel.fake_ipset import FakeIpsets as FakeIpsets
from kube_router_py.kernel.fake_iptables import FakeIptables as FakeIptables
from kube_router_py.kernel.fake_iptables import FakeIptablesKernel as FakeIptablesKernel
from kube_router_py.kernel.fake_iptables import connect as connect
from kube_router_py.kernel.ports import BridgePort, NodeAddress, VipFailure
from kube_router_py.kernel.sysctl import canonical_value, parameter_path
from kube_router_py.kernel.vip_state import Standing
from kube_router_py.proxy.model import Vip

LOOPBACK = (
    NodeAddress(socket.AF_INET, bytes((127, 0, 0, 1)), 8, "lo"),
    NodeAddress(socket.AF_INET6, bytes(15) + b"\1", 128, "lo"),
)


class FakeLinkKernel(Struct):
    """Links of one fake namespace. ``link`` is None (no VIP link), ``down`` or ``up``; without
    ``has_keeper`` it is kube-router's."""

    link: str | None = None
    has_keeper: bool = True
    vips: dict[Vip, Standing] = field(default_factory=dict)
    addresses: list[NodeAddress] = field(default_factory=lambda: list(LOOPBACK))
    bridge_ports: list[BridgePort] = field(default_factory=list)

    def set_down(self) -> None:
        """Take the VIP link down: IPv6 loses addresses and routes; IPv4 local routes survive."""
        self.link = "down"
        self.vips = {
            vip: standing for vip, standing in self.vips.items() if vip.family == socket.AF_INET
        }

    def set_up(self) -> None:
        """Set the VIP link up, creating it where needed: addresses get their routes again."""
        self.link = "up"
        self.vips = {
            vip: structs.replace(standing, kernel_route=standing.address)
            for vip, standing in self.vips.items()
        }


class FakeLinks:
    """A stateful ``ports.Links``."""

    def __init__(self, mode: str = "route", kernel: FakeLinkKernel | None = None) -> None:
        self.writes = 0
        self.closed = False
        self.kernel = kernel or FakeLinkKernel()
        self._mode = mode

    def ensure_vip_link(self) -> None:
        if self.kernel.link != "up":
            self.writes += 1 if self.kernel.link else 2
            self.kernel.set_up()
        self.kernel.has_keeper = True

    def owns_vip_link(self) -> bool:
        return self.kernel.link is not None and self.kernel.has_keeper

    def read_vips(self) -> dict[Vip, bytes]:
        vips = self.kernel.vips
        return {vip: standing.value(vip, self._mode) for vip, standing in vips.items()}

    def apply_vips(self, put: Mapping[Vip, bytes], remove: Iterable[Vip]) -> list[VipFailure]:
        remove = [vip for vip in remove if vip not in put]
        if (put or remove) and self.kernel.link is None:
            raise KernelError("there is no VIP link", errno.ENODEV)
        failures: list[VipFailure] = []
        local = {(each.family, each.address) for each in self.kernel.addresses}
        for vip, source in put.items():
            self.writes += 1
            if self.kernel.link != "up":
                failures.append(VipFailure(vip, errno.ENETDOWN, "the VIP link is down"))
            elif source and (vip.family, source) not in local and source != vip.address:
                failures.append(VipFailure(vip, errno.EINVAL, "no such preferred source"))
            elif self._mode == "route":
                self.kernel.vips[vip] = Standing(source=source)
            else:
                self.kernel.vips[vip] = Standing(True, source or vip.address, not source)
        for vip in remove:
            self.writes += self.kernel.vips.pop(vip, None) is not None
        return failures

    def node_addresses(self) -> tuple[NodeAddress, ...]:
        return tuple(sorted(self.kernel.addresses))

    def bridge_ports(self) -> tuple[BridgePort, ...]:
        return tuple(sorted(self.kernel.bridge_ports))

    def remove_vip_link(self) -> None:
        if self.owns_vip_link():
            self.writes += 1
            self.kernel.link = None
            self.kernel.vips.clear()

    def close(self) -> None:
        self.closed = True


class FakeSysctls:
    """A stateful ``ports.Sysctls``: knows the parameters it was given, refuses the others.

    Those in ``read_only`` cannot be written.
    """

    def __init__(
        self, values: Mapping[str, str] | None = None, read_only: Iterable[str] = ()
    ) -> None:
        self.writes = 0
        self.values = {parameter_path(name): value for name, value in (values or {}).items()}
        self._read_only = frozenset(map(parameter_path, read_only))

    def read(self, name: str) -> str | None:
        value = self.values.get(parameter_path(name))
        return None if value is None else canonical_value(value)

    def write(self, name: str, value: str) -> None:
        path, wanted = parameter_path(name), canonical_value(value)
        if self.read(name) == wanted:
            return
        if path not in self.values:
            raise KernelError(f"cannot set the kernel parameter {name}: no such", errno.ENOENT)
        if path in self._read_only:
            raise KernelError(f"cannot set the kernel parameter {name}: read-only", errno.EROFS)
        self.writes += 1
        self.values[path] = wanted
