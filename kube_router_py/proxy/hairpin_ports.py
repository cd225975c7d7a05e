"""Whether pods can reach themselves through their Service, as far as their bridge is concerned.

The reply of a pod to itself comes back as a frame for the port it came from: with
net.bridge.bridge-nf-call-iptables (which pods of one bridge need to reach each other by Services)
the source NAT is undone on the bridge already, and the bridge sends nothing back to where it came
from unless the port is in hairpin mode (bridge(8)). Pure.
"""

import ipaddress
from collections.abc import Iterable

from kube_router_py.kernel.ports import BridgePort, NodeAddress
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import RealServerKey

BRIDGE_FILTERS = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
_NAMED = 5


def hairpin_problems(
    endpoints: Iterable[RealServerKey],
    addresses: Iterable[NodeAddress],
    ports: Iterable[BridgePort],
    node_name: str,
) -> tuple[Problem, ...]:
    """A Problem for each bridge with such endpoints and with ports that are not in hairpin mode."""
    off: dict[str, list[str]] = {}
    for port in ports:
        if not port.hairpin:
            off.setdefault(port.bridge, []).append(port.link)
    if not off:
        return ()
    pods = {(each.family, ipaddress.ip_address(each.address)) for each in endpoints}
    bridges: set[str] = set()
    for each in addresses:
        if each.link in off and each.link not in bridges:
            network = ipaddress.ip_network((each.address, each.prefix_length), strict=False)
            if any(family == each.family and address in network for family, address in pods):
                bridges.add(each.link)
    return tuple(_problem(bridge, off[bridge], node_name) for bridge in sorted(bridges))


def _problem(bridge: str, links: list[str], node_name: str) -> Problem:
    more = len(links) - _NAMED
    named = ", ".join(links[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return Problem(
        f"Node {node_name}",
        "",
        f"pods on {bridge} do not reach themselves through their Service: hairpin mode is off for "
        f"its ports {named}; set hairpinMode in the CNI configuration, and for pods that run "
        f"already: bridge link set dev {links[0]} hairpin on",
    )
