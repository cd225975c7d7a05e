"""Opening the adapters of direct server return, for the calling thread's network namespace."""

import os

from kube_router_py.kernel.pod_netns import CrictlFinder, Finder, PodNamespaces, ProcFinder
from kube_router_py.kernel.policy_routing import NetlinkPolicyRouting
from kube_router_py.kernel.ports import DsrPorts
from kube_router_py.kernel.tunnels import NetlinkPodTunnels


def open_dsr(
    runtime_endpoint: str = "", proc_sys: str | os.PathLike[str] = "/proc/sys"
) -> DsrPorts:
    """Adapters that find pods through /proc and, where one is given, a CRI socket.

    ``proc_sys`` is where kernel parameters can be written, in every namespace that is entered.
    """
    finders: list[Finder] = [ProcFinder()]
    if runtime_endpoint:
        finders.append(CrictlFinder(runtime_endpoint))
    tunnels = NetlinkPodTunnels(PodNamespaces(finders), proc_sys)
    return DsrPorts(tunnels, NetlinkPolicyRouting())
