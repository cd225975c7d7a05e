"""Opening the adapters of this host, for the network namespace of the calling thread."""

import errno
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from kube_router_py.errors import PreflightError
from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.iptables_variant import program_name, variant_of
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.links import NetlinkLinks
from kube_router_py.kernel.ports import HostPorts, Ipvs, OperationFailure
from kube_router_py.kernel.sysctl import ProcSysctls
from kube_router_py.proxy.model import (
    Connections,
    IpvsOperation,
    IpvsTable,
    RealServerKey,
    VirtualServerKey,
)


def open_host(
    *,
    vip_mode: str = "route",
    iptables_variant: str | None = None,
    iptables_backend: str = "auto",
    families: Iterable[str] = ("inet",),
    needs_ipvs: bool = True,
) -> HostPorts:
    """Open every adapter; the caller's thread is the one to use and to close them.

    ``vip_mode`` is ``route`` or ``address``; ``iptables_variant`` one of ``iptables.VARIANTS``, or
    None for what ``iptables_backend`` (``auto``, ``nft``, ``legacy``) says; ``families`` (``inet``,
    ``inet6``) those whose programs have to be installed. Without ``needs_ipvs`` a kernel that has
    none is taken for one whose table is empty. Raises PreflightError, with the remedy, for what the
    node lacks.
    """
    variant = iptables_variant or variant_of(iptables_backend)
    check_programs(variant, families)
    with ExitStack() as opened:
        ipvs = _open_ipvs(needs_ipvs)
        opened.callback(ipvs.close)
        links = NetlinkLinks(vip_mode)
        opened.callback(links.close)
        ports = HostPorts(ipvs, links, IpsetProgram(), IptablesProgram(variant), ProcSysctls())
        opened.pop_all()
    return ports


def _open_ipvs(needed: bool) -> Ipvs:
    try:
        return NetlinkIpvs()
    except PreflightError:
        if needed:
            raise
        return NoIpvs()


class NoIpvs:
    """``ports.Ipvs`` of a kernel that has none: nothing is there, and nothing can be made."""

    def __init__(self) -> None:
        self.writes = 0

    def read(self) -> IpvsTable:
        return {}

    def read_connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        del key
        return {}

    def apply(self, operations: Sequence[IpvsOperation]) -> list[OperationFailure]:
        """Refuses every operation."""
        return [OperationFailure(each, errno.ENOENT, "no IPVS here") for each in operations]

    def set_timeouts(self, tcp_s: int, tcp_fin_s: int, udp_s: int) -> None:
        """There are no connections to which they could apply."""

    def close(self) -> None:
        """Nothing is open."""


def check_programs(variant: str, families: Iterable[str]) -> None:
    """Raise PreflightError naming every program that is needed and not installed."""
    needed = ["ipset"]
    for family in families:
        base = program_name(variant, family)
        needed += (base, f"{base}-save", f"{base}-restore")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise PreflightError(
            f"not installed: {', '.join(missing)}; install the packages iptables and ipset"
        )
