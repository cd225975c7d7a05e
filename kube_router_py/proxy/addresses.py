"""Compile where a Service is offered: its addresses, which are refused, who may use them. Pure."""

import ipaddress
from collections.abc import Callable, Iterable
from enum import IntEnum

from msgspec import Struct

from kube_router_py.cluster.objects import Service
from kube_router_py.proxy.settings import FAMILY_NAMES, ProxyOptions
from kube_router_py.services import (
    Network,
    cluster_ips,
    is_inside,
    load_balancer_ips,
    parse_address,
    unusable_address,
)

SOURCE_RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"

Report = Callable[[str, str], None]


class Kind(IntEnum):
    """The sorts of virtual servers; within a Service the lower one owns an address they share."""

    CLUSTER_IP = 1
    EXTERNAL_IP = 2
    LOAD_BALANCER_IP = 3
    NODE_PORT = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Address(Struct, frozen=True):
    """One address that a Service is offered at, and the field that says so.

    ``by_load_balancer``: clients come through a load balancer, so that
    ``loadBalancerSourceRanges`` holds for them.
    """

    kind: Kind
    family: int
    packed: bytes
    field: str
    by_load_balancer: bool = False


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


def compile_addresses(
    service: Service, options: ProxyOptions, report: Report, refused: Report
) -> list[Address]:
    """ClusterIPs, external IPs and LB IPs that this node answers for, in the order of Kind.

    ``report`` gets (field, reason) of a ClusterIP that is wrong; ``refused`` that of an external or
    LB IP which is not served, for whatever reason: somebody may be using it.
    """
    found: dict[bytes, Address] = {}
    enabled = options.families
    balanced = {parsed for _, text in load_balancer_ips(service) if (parsed := parse_address(text))}

    def admit(kind: Kind, field: str, text: str) -> None:
        tell = report if kind is Kind.CLUSTER_IP else refused
        parsed = parse_address(text)
        if parsed is None:
            tell(field, f"{text!r} is not an IP address")
            return
        family, packed = parsed
        if packed in found:
            return  # an external IP that a load balancer gave out too: the external IP it is
        if reason := unusable_address(packed):
            tell(field, f"{text} is {reason}")
        elif family not in enabled:
            # Every ClusterIP of a dual-stack cluster on a single-stack node: nothing to tell.
            if kind is not Kind.CLUSTER_IP:
                tell(field, f"{text} is not served: --enable-{FAMILY_NAMES[family].lower()}=false")
        elif refusal := _refuse(kind, packed, options):
            tell(field, f"{text} is refused: {refusal}")
        else:
            found[packed] = Address(kind, family, packed, field, parsed in balanced)

    for index, text in enumerate(cluster_ips(service)):
        admit(Kind.CLUSTER_IP, f"spec.clusterIPs[{index}]", text)
    for index, text in enumerate(service.spec.external_ips or ()):
        admit(Kind.EXTERNAL_IP, f"spec.externalIPs[{index}]", text)
    for index, text in load_balancer_ips(service):
        admit(Kind.LOAD_BALANCER_IP, f"status.loadBalancer.ingress[{index}].ip", text)
    return list(found.values())


def _refuse(kind: Kind, packed: bytes, options: ProxyOptions) -> str:
    """Why an external or LB IP is not admitted, or ``""``: anyone who may create a Service could
    otherwise draw any address's traffic to the nodes (CVE-2020-8554)."""
    if kind is Kind.CLUSTER_IP:
        return ""
    if is_inside(packed, options.cluster_ranges):
        return "it lies in --service-cluster-ip-range"
    if not options.strict_external_ips:
        return ""
    if kind is Kind.EXTERNAL_IP:
        flag, ranges = "--service-external-ip-range", options.external_ranges
    else:
        flag, ranges = "--loadbalancer-ip-range", options.load_balancer_ranges
    if is_inside(packed, ranges):
        return ""
    return (
        f"it lies in no {flag}; add its range there, or set --strict-external-ip-validation=false"
    )


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
