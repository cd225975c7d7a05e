"""The way to the API server must not lead through what the agent itself programs. Pure.

A ClusterIP works on this node only after the agent has made it work, and the agent can do that
only after it has reached the API server. On a node where kube-proxy or an earlier agent has left
its rules the mistake even goes unnoticed, until the first reboot.
"""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

from kube_router_py.cluster.objects import Service
from kube_router_py.errors import ConfigurationError

_REMEDY = (
    "give an address that nodes reach without Services: set KUBERNETES_SERVICE_HOST (and"
    " KUBERNETES_SERVICE_PORT) in the agent's manifest, or --master, or the server in --kubeconfig,"
    " to an address of a control-plane node or of a load balancer in front of them"
)


def check_api_addresses(
    urls: Iterable[str],
    service_cluster_ip_range: Iterable[IPv4Network | IPv6Network],
    kubernetes_service: Service | None = None,
) -> None:
    """Refuse API server addresses that exist only by grace of the agent.

    ``kubernetes_service`` is ``default/kubernetes`` where it is known already; the ranges tell most
    such mistakes before any connection. Raises ConfigurationError with one message per address.
    """
    ranges = tuple(service_cluster_ip_range)
    cluster_ips = _cluster_ips(kubernetes_service)
    mistakes = [_mistake(url, ranges, cluster_ips) for url in urls]
    messages = [message for message in mistakes if message]
    if messages:
        raise ConfigurationError(*messages)


def _mistake(
    url: str,
    ranges: tuple[IPv4Network | IPv6Network, ...],
    cluster_ips: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> str | None:
    host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if labels == ["kubernetes"] or labels[:2] == ["kubernetes", "default"]:
            return (
                f"the API server address {url} is the name of the Service default/kubernetes,"
                f" which resolves and answers only once the agent has programmed it: {_REMEDY}"
            )
        return None
    if address in cluster_ips:
        return (
            f"the API server address {url} is the ClusterIP of the Service default/kubernetes,"
            f" which the agent itself has to program: {_REMEDY}"
        )
    for network in ranges:
        if address.version == network.version and address in network:
            return (
                f"the API server address {url} lies inside --service-cluster-ip-range {network},"
                f" so it is a ClusterIP that the agent itself has to program: {_REMEDY}; if it is"
                f" a node's address, correct --service-cluster-ip-range"
            )
    return None


def _cluster_ips(
    service: Service | None,
) -> frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if service is None:
        return frozenset()
    found = []
    for text in (service.spec.cluster_ip or "", *(service.spec.cluster_ips or ())):
        try:
            found.append(ipaddress.ip_address(text))
        except ValueError:
            continue  # "None" or malformed: nothing that an API address could be equal to
    return frozenset(found)
