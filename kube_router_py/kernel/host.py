"""Opening the adapters of this host, for the network namespace of the calling thread."""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack

from kube_router_py.errors import PreflightError
from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.iptables import IptablesProgram, choose_variant, program_name
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.links import NetlinkLinks
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.kernel.sysctl import ProcSysctls


def open_host(
    *,
    vip_mode: str = "route",
    iptables_variant: str | None = None,
    families: Iterable[str] = ("inet",),
) -> HostPorts:
    """Open every adapter; the caller's thread is the one to use and to close them.

    ``vip_mode`` is ``route`` or ``address``; ``iptables_variant`` one of ``iptables.VARIANTS``, or
    None for the one the kubelet uses; ``families`` (``inet``, ``inet6``) those whose programs have
    to be installed. Raises PreflightError, with the remedy, for what the node lacks.
    """
    variant = iptables_variant or choose_variant()
    check_programs(variant, families)
    with ExitStack() as opened:
        ipvs = NetlinkIpvs()
        opened.callback(ipvs.close)
        links = NetlinkLinks(vip_mode)
        opened.callback(links.close)
        ports = HostPorts(ipvs, links, IpsetProgram(), IptablesProgram(variant), ProcSysctls())
        opened.pop_all()
    return ports


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
