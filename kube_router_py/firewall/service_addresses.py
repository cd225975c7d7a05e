"""The addresses and ports at which Services are reached, as entries of sets. Pure.

What a pod sends there is judged by the address that IPVS sends it on to, not by the Service's own.
"""

import ipaddress
from collections.abc import Iterator

from kube_router_py.cluster.objects import Service
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.services import (
    Network,
    cluster_ips,
    is_inside,
    is_proxied,
    load_balancer_ips,
    parse_address,
    unusable_address,
)

_FAMILIES = {4: "inet", 6: "inet6"}
_PROTOCOLS = ("tcp", "udp", "sctp")
# In two halves: sets do not take /0.
_EVERYWHERE = {"inet": ("0.0.0.0/1", "128.0.0.0/1"), "inet6": ("::/1", "8000::/1")}


def service_ports(service: Service, options: FirewallOptions) -> dict[str, frozenset[str]]:
    """By family: ``ADDRESS,PROTOCOL:PORT`` of every ClusterIP, external IP and load balancer IP.

    Addresses that the service proxy refuses are left out: whoever may create a Service could
    otherwise name this node's own address, and lift the policies for what runs there.
    """
    found: dict[str, set[str]] = {family: set() for family in options.families}
    if not is_proxied(service):
        return {}
    for packed in _addresses(service, options):
        address = ipaddress.ip_address(packed)
        if (family := _FAMILIES[address.version]) in found:
            found[family].update(
                f"{address},{entry}"
                for port in service.spec.ports or ()
                for entry in _entry(port.protocol, port.port)
            )
    return {family: frozenset(entries) for family, entries in found.items() if entries}


def node_ports(service: Service, options: FirewallOptions) -> dict[str, frozenset[str]]:
    """By family: ``NETWORK,PROTOCOL:PORT`` of every NodePort, whatever the node's addresses: these
    are in the rule that looks into the set (``frame``)."""
    if not is_proxied(service) or service.spec.type not in ("NodePort", "LoadBalancer"):
        return {}
    ports = [
        entry
        for port in service.spec.ports or ()
        for entry in _entry(port.protocol, port.node_port)
    ]
    return {
        family: frozenset(f"{half},{port}" for half in _EVERYWHERE[family] for port in ports)
        for family in options.families
        if ports
    }


def _entry(protocol: str | None, number: int | None) -> Iterator[str]:
    """One that a set would refuse is no reason to do without all others; the proxy tells of it."""
    name = (protocol or "TCP").lower()
    if name in _PROTOCOLS and number and 1 <= number <= 65535:
        yield f"{name}:{number}"


def _addresses(service: Service, options: FirewallOptions) -> Iterator[bytes]:
    for text in cluster_ips(service):
        yield from _usable(text)
    for text in service.spec.external_ips or ():
        yield from _admitted(text, options.external_ranges, options)
    for _, text in load_balancer_ips(service):
        yield from _admitted(text, options.load_balancer_ranges, options)


def _admitted(text: str, ranges: tuple[Network, ...], options: FirewallOptions) -> Iterator[bytes]:
    for packed in _usable(text):
        if not options.strict_external_ips or is_inside(packed, ranges):
            yield packed


def _usable(text: str) -> Iterator[bytes]:
    parsed = parse_address(text)
    if parsed and not unusable_address(parsed[1]):
        yield parsed[1]
