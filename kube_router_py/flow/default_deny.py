"""``--netpol-default-deny``: addresses of a node's pods that belong to no pod there. Pure.

What ``firewall.frame`` refuses in its last chains: every node refuses what comes from or goes to
such an address in its own pod CIDRs, by what it sends on and what comes in.
"""

from ipaddress import ip_address

from kube_router_py.flow.legs import family_of
from kube_router_py.flow.names import Names
from kube_router_py.flow.objects import ClusterObjects, FlowSettings
from kube_router_py.kernel.overlay_ports import Address


class DefaultDeny:
    """Whose address nobody has, as far as the agents know."""

    def __init__(self, objects: ClusterObjects, settings: FlowSettings, names: Names) -> None:
        self._objects, self._settings, self._names = objects, settings, names

    def node_of(self, text: str) -> str:
        """The node that refuses what goes to an address, ``""`` where none does."""
        return next((name for name in sorted(self._objects.views) if self.is_of(name, text)), "")

    def is_of(self, node: str, text: str) -> bool:
        """Whether this node refuses what comes from an address, but for what it sends itself."""
        settings, view = self._settings, self._objects.views.get(node)
        address = ip_address(text)
        if not (settings.run_firewall and settings.default_deny) or view is None:
            return False
        if family_of(text) not in settings.firewall_families:
            return False
        is_of_pods = any(address in each for each in view.pod_cidrs)
        if not is_of_pods or self._is_the_nodes(node, address):
            return False
        pods = (self._objects.pod_of[key] for key in self._names.pods_at.get(str(address), ()))
        return not any(pod.spec.node_name == node for pod in pods)

    def _is_the_nodes(self, name: str, address: Address) -> bool:
        """Its bridge has an address among those of pods: where nobody looks, the first one."""
        view = self._objects.views[name]
        if address.packed in self._settings.own_addresses(name, view):
            return True
        is_looked_at = bool(self._settings.addresses.get(name))
        return not is_looked_at and any(
            address == each.network_address + 1 for each in view.pod_cidrs
        )
