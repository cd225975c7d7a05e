"""Compile who may use a Service, and in which address families it is offered. Pure."""

import ipaddress
from collections.abc import Iterable

from kube_router_py.cluster.objects import Service
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.service_addresses import Report
from kube_router_py.services import FAMILY_NAMES, Network, cluster_ips, parse_address

SOURCE_RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"


def service_families(service: Service, options: ProxyOptions) -> tuple[int, ...]:
    """The enabled families the Service has: those of its ClusterIPs, else as its spec says."""
    ips = cluster_ips(service)
    if ips:
        has = {parsed[0] for ip in ips if (parsed := parse_address(ip))}
        return tuple(family for family in options.families if family in has)
    names = service.spec.ip_families
    if not names:
        return options.families[:1]
    return tuple(family for family in options.families if FAMILY_NAMES[family] in names)


def source_ranges(service: Service, report: Report) -> tuple[Network, ...] | None:
    """The networks whose clients ``loadBalancerSourceRanges`` admits; None: everybody.

    The older annotation counts where the field is empty. What is no CIDR admits nobody.
    """
    listed = service.spec.load_balancer_source_ranges or ()
    field = "spec.loadBalancerSourceRanges[{}]"
    if not listed:
        annotation = (service.metadata.annotation(SOURCE_RANGES_ANNOTATION) or "").strip()
        listed = tuple(annotation.split(",")) if annotation else ()
        field = f"metadata.annotations[{SOURCE_RANGES_ANNOTATION}]"
    if not listed:
        return None
    found: list[Network] = []
    for index, text in enumerate(listed):
        address, slash, length = text.strip().partition("/")
        try:
            # Python would read a bare address, a netmask or a host mask as a network, too.
            if not (slash and length.isascii() and length.isdigit()):
                raise ValueError(text)
            found.append(ipaddress.ip_network(f"{address}/{length}", strict=False))
        except ValueError:
            report(field.format(index), f"{text!r} is no CIDR; it admits no client")
    return tuple(found)


def ranges_of_family(networks: Iterable[Network], family: int) -> tuple[str, ...] | None:
    """The ranges that can match clients of one family, canonical; None: they admit all of it."""
    version = 6 if FAMILY_NAMES[family] == "IPv6" else 4
    own = sorted({each for each in networks if each.version == version}, key=str)
    if any(each.prefixlen == 0 for each in own):
        return None
    return tuple(str(each) for each in own)
