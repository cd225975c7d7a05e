"""Packets between two pods on one bridge: iptables sees them only if it is told so."""

from collections.abc import Iterable

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts

_SYSCTLS = {
    "inet": "net/bridge/bridge-nf-call-iptables",
    "inet6": "net/bridge/bridge-nf-call-ip6tables",
}


def filter_bridges(ports: HostPorts, families: Iterable[str]) -> list[str]:
    """Have iptables see what passes a bridge; returns where that cannot be had, and why."""
    found: list[str] = []
    for family in families:
        name = _SYSCTLS[family]
        try:
            if ports.sysctls.read(name) is not None:
                ports.sysctls.write(name, "1")
            elif ports.links.bridge_ports():
                found.append(
                    f"there is no {name}: policies do not apply between pods of this node "
                    "that share a bridge; load the module br_netfilter"
                )
        except KernelError as error:
            found.append(str(error))
    return found
