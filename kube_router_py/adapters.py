"""The host adapters as the agent opens them, counted across restarts of a loop."""

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel.ports import DsrPorts, HostPorts, Observe, unobserved
from kube_router_py.options import Options

if TYPE_CHECKING:
    from kube_router_py.kernel.ipvs import NetlinkIpvs
    from kube_router_py.kernel.neighbor_ports import Address, OnClaim, OpenResponder, Responder
    from kube_router_py.kernel.nflog_ports import PacketLog
    from kube_router_py.routing.controller import RoutingPorts

_log = logging.getLogger(__name__)

_CAP_NET_ADMIN = 12
# Of the 10 s that Prometheus has by default for a scrape, which asks others, too.
_SCRAPE_S = 3.0
_ADAPTERS = ("ipvs", "links", "ipsets", "iptables", "sysctls", "conntrack")
_DEFAULT_PROC_SYS = "/proc/sys"


class Host:
    """Makes the adapters of one loop, in the loop's thread, and sums up what they wrote."""

    def __init__(self, make: Callable[[], HostPorts]) -> None:
        self._make = make
        # Told how long the programs for rules and sets took.
        self.observe: Observe = unobserved
        self._ports: HostPorts | None = None
        self._before = dict.fromkeys(_ADAPTERS, 0)

    def open(self) -> HostPorts:
        """New adapters. Raises PreflightError where the node lacks something."""
        before = self.writes()
        self._ports = self._make()
        for port in (self._ports.ipsets, self._ports.iptables):
            port.observe = self._tell
        self._before = before
        return self._ports

    def _tell(self, what: str, seconds: float) -> None:
        self.observe(what, seconds)

    def writes(self) -> dict[str, int]:
        """Changes sent to the kernel since the agent started, by adapter. For any thread."""
        ports = self._ports
        return {
            name: self._before[name] + (getattr(ports, name).writes if ports else 0)
            for name in _ADAPTERS
        }


def open_ipvs() -> "NetlinkIpvs":
    """IPVS for the thread of a scrape, which may not use that of the loop."""
    from kube_router_py.kernel.ipvs import NetlinkIpvs

    return NetlinkIpvs(timeout_s=_SCRAPE_S)


def open_packet_log() -> "PacketLog":
    """What the firewall's rules log of refused packets. Raises KernelError."""
    from kube_router_py.kernel.nflog import NflogSocket

    return NflogSocket()


def opener(options: Options, *, needs_ipvs: bool = True) -> Callable[[], HostPorts]:
    """How this node's adapters are opened under these options."""
    families = ["inet"] * options.enable_ipv4 + ["inet6"] * options.enable_ipv6

    def open_ports() -> HostPorts:
        # Imported here: opening is the only place that needs them, and they are slow to load.
        from kube_router_py.kernel.host import open_host
        from kube_router_py.kernel.sysctl import ProcSysctls

        ports = open_host(
            vip_mode=options.vip_mode,
            iptables_backend=options.iptables_backend,
            families=families,
            needs_ipvs=needs_ipvs,
        )
        if options.proc_sys_path == _DEFAULT_PROC_SYS:
            return ports
        return structs.replace(ports, sysctls=ProcSysctls(options.proc_sys_path))

    return open_ports


def firewall_opener(options: Options) -> Callable[[], HostPorts]:
    """How the firewall's adapters are opened: it goes without IPVS, but not with every iptables."""
    open_any = opener(options, needs_ipvs=False)

    def open_ports() -> HostPorts:
        from kube_router_py.kernel.conntrack import NetlinkConntrack
        from kube_router_py.kernel.iptables_variant import check_masks

        ports = open_any()
        try:
            check_masks(ports.iptables.variant)
        except Exception:
            ports.close()
            raise
        return structs.replace(ports, conntrack=NetlinkConntrack())

    return open_ports


def routing_opener(
    options: Options, *, with_names: bool = True
) -> Callable[[Callable[[], None]], "RoutingPorts"]:
    """How the route controller's adapters are opened; they are given what to call when FRR's
    daemons have ended. ``with_names``: its routing tables get names."""
    open_any = opener(options, needs_ipvs=False)

    def open_ports(down: Callable[[], None]) -> "RoutingPorts":
        from kube_router_py.kernel.cni_file import CniFile
        from kube_router_py.kernel.frr import ExternalFrr, ManagedFrr
        from kube_router_py.kernel.frr_process import Layout
        from kube_router_py.kernel.overlay_links import NetlinkOverlayLinks
        from kube_router_py.kernel.overlay_ports import OverlayPorts
        from kube_router_py.kernel.overlay_routes import NetlinkOverlayRoutes
        from kube_router_py.kernel.table_names import name_tables
        from kube_router_py.routing.controller import RoutingPorts

        try:
            if with_names:
                name_tables()
        except KernelError as error:  # names are for people only
            _log.warning("routing tables have no names reason=%r", str(error))
        external = options.frr_mode == "external"
        return RoutingPorts(
            open_any(),
            OverlayPorts(NetlinkOverlayLinks(options.proc_sys_path), NetlinkOverlayRoutes()),
            ExternalFrr(options.frr_dir)
            if external
            else ManagedFrr(Layout(run_dir=options.frr_dir), down),
            CniFile(options.cni_conf_file),
        )

    return open_ports


def dsr_opener(options: Options) -> Callable[[], DsrPorts]:
    """How the adapters of direct server return are opened; only nodes that need them do."""

    def open_ports() -> DsrPorts:
        from kube_router_py.kernel.dsr_adapters import open_dsr

        return open_dsr(options.runtime_endpoint, options.proc_sys_path)

    return open_ports


def responder_opener(options: Options) -> "OpenResponder":
    """How ARP and NDP come to be answered: the responder is given whom to tell of claims of others
    and where to ask for the Node's addresses. Raises PreflightError without CAP_NET_RAW."""

    def open_responder(
        on_claim: "OnClaim", node_addresses: "Callable[[], Collection[Address]]"
    ) -> "Responder":
        from kube_router_py.kernel.neighbor_responder import NeighborResponder

        return NeighborResponder(on_claim, node_addresses, options.loadbalancer_layer2_interfaces)

    return open_responder


def check_capabilities(status: Path = Path("/proc/self/status")) -> None:
    """Raise PreflightError where the process may not configure the network at all."""
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_NET_ADMIN & 1:
            raise PreflightError(
                f"the capability CAP_NET_ADMIN is missing (user id {os.geteuid()}); run the agent "
                "as root, or give the capability in the manifest's securityContext or in the "
                "systemd unit"
            )
