"""This node, as the loops need it: addresses, pod CIDRs, zone, annotations. Pure."""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msgspec import Struct

from kube_router_py.cluster.objects import Node
from kube_router_py.problem import Problem

ZONE_LABEL = "topology.kubernetes.io/zone"
OLD_ZONE_LABEL = "failure-domain.beta.kubernetes.io/zone"


class NodeView(Struct, frozen=True):
    """What a Node says about itself.

    ``address`` is the primary address: the first InternalIP, else the first ExternalIP, else None.
    ``ipv4`` and ``ipv6`` are the best address of each family: the primary one where the family is
    the same, else by that same order. ``addresses`` are all of either type, in that order.
    ``pod_cidrs`` are ``spec.podCIDRs``, or ``spec.podCIDR`` alone where there is no list.
    """

    name: str
    address: IPv4Address | IPv6Address | None
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    addresses: tuple[IPv4Address | IPv6Address, ...]
    pod_cidrs_ipv4: tuple[IPv4Network, ...]
    pod_cidrs_ipv6: tuple[IPv6Network, ...]
    zone: str
    annotations: dict[str, str]

    def annotation(self, name: str) -> str | None:
        return self.annotations.get(name)

    @property
    def pod_cidrs(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return (*self.pod_cidrs_ipv4, *self.pod_cidrs_ipv6)


def node_view(node: Node) -> tuple[NodeView, list[Problem]]:
    """Compile a Node. What cannot be understood is left out and told as a Problem."""
    problems: list[Problem] = []
    subject = f"Node {node.metadata.name}"
    addresses = _addresses(node, subject, problems)
    if not addresses:
        problems.append(
            Problem(subject, "status.addresses", "the node has no usable InternalIP or ExternalIP")
        )
    cidrs = _pod_cidrs(node, subject, problems)
    labels = node.metadata.labels or {}
    view = NodeView(
        name=node.metadata.name,
        address=addresses[0] if addresses else None,
        ipv4=next((a for a in addresses if isinstance(a, IPv4Address)), None),
        ipv6=next((a for a in addresses if isinstance(a, IPv6Address)), None),
        addresses=addresses,
        pod_cidrs_ipv4=tuple(c for c in cidrs if isinstance(c, IPv4Network)),
        pod_cidrs_ipv6=tuple(c for c in cidrs if isinstance(c, IPv6Network)),
        zone=labels.get(ZONE_LABEL) or labels.get(OLD_ZONE_LABEL) or "",
        annotations=dict(node.metadata.annotations or {}),
    )
    return view, problems


def _addresses(
    node: Node, subject: str, problems: list[Problem]
) -> tuple[IPv4Address | IPv6Address, ...]:
    listed = (node.status.addresses if node.status else None) or ()
    found: dict[IPv4Address | IPv6Address, None] = {}
    for wanted in ("InternalIP", "ExternalIP"):
        for position, entry in enumerate(listed):
            if entry.type != wanted:
                continue
            try:
                found.setdefault(ipaddress.ip_address(entry.address))
            except ValueError:
                field = f"status.addresses[{position}].address"
                problems.append(Problem(subject, field, f"{entry.address!r} is no IP address"))
    return tuple(found)


def _pod_cidrs(
    node: Node, subject: str, problems: list[Problem]
) -> tuple[IPv4Network | IPv6Network, ...]:
    spec = node.spec
    if spec.pod_cidrs:
        named = [(f"spec.podCIDRs[{i}]", cidr) for i, cidr in enumerate(spec.pod_cidrs)]
    else:
        named = [("spec.podCIDR", spec.pod_cidr)] if spec.pod_cidr else []
    found: dict[IPv4Network | IPv6Network, None] = {}
    for field, text in named:
        try:
            found.setdefault(ipaddress.ip_network(text, strict=False))
        except ValueError:
            problems.append(Problem(subject, field, f"{text!r} is no CIDR"))
    return tuple(found)
