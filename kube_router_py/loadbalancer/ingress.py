"""What the status of a Service lists, and is to list. Pure.

Of a Service that is ours the whole list is ours. Of one that is not ours any more, only what we
gave goes. ``ipMode: VIP``: packets arrive with the address as their destination (KEP-1860).
"""

from collections.abc import Callable, Iterable
from ipaddress import ip_address

from kube_router_py.address_pools import Address
from kube_router_py.cluster.objects import LoadBalancerIngress, PortStatus, Service
from kube_router_py.loadbalancer.decisions import Given
from kube_router_py.services import parse_address

Ingress = tuple[LoadBalancerIngress, ...]


def present_ingress(service: Service) -> Ingress:
    """What the status lists."""
    status = service.status
    return (status.load_balancer.ingress or ()) if status and status.load_balancer else ()


def wanted_ingress(service: Service, addresses: Iterable[Given]) -> Ingress:
    """What the status of a Service with these addresses is to list."""
    ports = tuple(
        PortStatus(port=each.port, protocol=each.protocol or "TCP")
        for each in service.spec.ports or ()
    )
    return tuple(
        LoadBalancerIngress(ip=str(each.address), ip_mode="VIP", ports=ports or None)
        for each in addresses
    )


def ingress_without(service: Service, is_ours: Callable[[Address], bool]) -> Ingress:
    """What is left in the status without the addresses that are ours."""

    def stays(entry: LoadBalancerIngress) -> bool:
        parsed = parse_address(entry.ip) if entry.ip else None
        return parsed is None or not is_ours(ip_address(parsed[1]))

    return tuple(each for each in present_ingress(service) if stays(each))


def as_text(ingress: Ingress) -> str:
    """For people: addresses with commas between."""
    return ", ".join(each.ip or each.hostname or "?" for each in ingress)
