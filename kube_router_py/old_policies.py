"""Rules of policies that an earlier agent left, while this one does not follow policies."""

from collections.abc import Callable

from kube_router_py.errors import KernelError, KubeRouterError
from kube_router_py.firewall.frame import ACCEPT
from kube_router_py.kernel.ports import HostPorts


def old_policies(open_ports: Callable[[], HostPorts]) -> str:
    """What to do about policies that an earlier agent has left, or ``""`` where none has, or where
    the kernel cannot be asked."""
    try:
        ports = open_ports()
        try:
            families = [family for family in ("inet", "inet6") if _has_policies(ports, family)]
        finally:
            ports.close()
    except KubeRouterError:
        return ""
    if not families:
        return ""
    return (
        "policies are not followed (--run-firewall=false), but rules of an earlier agent go on "
        "deciding, by addresses that pods no longer have: stop the agent and run kube-router-py "
        f"cleanup on this node, or set --run-firewall families={','.join(families)}"
    )


def _has_policies(ports: HostPorts, family: str) -> bool:
    try:
        return ACCEPT in ports.iptables.counters(family, "filter", (ACCEPT,))
    except KernelError:
        return False
