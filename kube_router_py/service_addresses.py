"""Compile the addresses of a Service: which it has, of which sort, and which are refused. Pure.

Shared by the parts that serve these addresses and that lead there, so that no address is announced
that nobody may have.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from msgspec import Struct

from kube_router_py.cluster.objects import Service
from kube_router_py.services import (
    FAMILY_NAMES,
    Network,
    cluster_ips,
    is_inside,
    load_balancer_ips,
    parse_address,
    unusable_address,
)

Report = Callable[[str, str], None]

_POOLED = "--loadbalancer-ip-range and in no address pool"
_TO_POOLS = "there, or (with --run-loadbalancer) to ConfigMap kube-router-address-pools"


class AddressRules(Protocol):
    """The flags, and address pools, that say which addresses a Service may have; families are
    socket.AF_*."""

    @property
    def families(self) -> tuple[int, ...]: ...
    @property
    def strict_external_ips(self) -> bool: ...
    @property
    def cluster_ranges(self) -> tuple[Network, ...]: ...
    @property
    def external_ranges(self) -> tuple[Network, ...]: ...
    @property
    def load_balancer_ranges(self) -> tuple[Network, ...]: ...


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


def compile_addresses(
    service: Service, rules: AddressRules, report: Report, refused: Report
) -> list[Address]:
    """ClusterIPs, external IPs and LB IPs that this node answers for, in the order of Kind.

    ``report`` gets (field, reason) of a ClusterIP that is wrong; ``refused`` that of an external or
    LB IP which is not served, for whatever reason: somebody may be using it.
    """
    found: dict[bytes, Address] = {}
    enabled = rules.families
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
        elif why := refusal(kind, packed, rules):
            tell(field, f"{text} is refused: {why}")
        else:
            found[packed] = Address(kind, family, packed, field, parsed in balanced)

    for index, text in enumerate(cluster_ips(service)):
        admit(Kind.CLUSTER_IP, f"spec.clusterIPs[{index}]", text)
    for index, text in enumerate(service.spec.external_ips or ()):
        admit(Kind.EXTERNAL_IP, f"spec.externalIPs[{index}]", text)
    for index, text in load_balancer_ips(service):
        admit(Kind.LOAD_BALANCER_IP, f"status.loadBalancer.ingress[{index}].ip", text)
    return list(found.values())


def refusal(kind: Kind, packed: bytes, rules: AddressRules) -> str:
    """Why an external or LB IP is not admitted, or ``""``: anyone who may create a Service could
    otherwise draw any address's traffic to the nodes (CVE-2020-8554)."""
    if kind is Kind.CLUSTER_IP:
        return ""
    if is_inside(packed, rules.cluster_ranges):
        return "it lies in --service-cluster-ip-range"
    if not rules.strict_external_ips:
        return ""
    if kind is Kind.EXTERNAL_IP:
        where, there, ranges = "--service-external-ip-range", "there", rules.external_ranges
    else:
        where, there, ranges = _POOLED, _TO_POOLS, rules.load_balancer_ranges
    if is_inside(packed, ranges):
        return ""
    return (
        f"it lies in no {where}; add its range {there}, or set "
        "--strict-external-ip-validation=false"
    )
