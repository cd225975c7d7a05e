"""The pod CIDRs of a node as the route controller takes them: from annotations, else the Node's.

``kube-router.io/pod-cidrs`` (several, separated by commas) comes before ``kube-router.io/pod-cidr``
(one), and both before ``spec.podCIDRs``. Pure.
"""

from ipaddress import IPv4Network, IPv6Network

from msgspec.structs import replace

from kube_router_py.cluster.node import NodeView
from kube_router_py.problem import Problem
from kube_router_py.routing.model import Network
from kube_router_py.routing.texts import annotation_field, shown
from kube_router_py.routing.values import parse_cidr

POD_CIDRS = "kube-router.io/pod-cidrs"
POD_CIDR = "kube-router.io/pod-cidr"


def with_pod_cidrs(view: NodeView) -> tuple[NodeView, tuple[Problem, ...]]:
    """The same node with the pod CIDRs that count, and what is wrong with annotations.

    An item that is no CIDR is left out; an annotation without any good one counts for nothing.
    """
    problems: list[Problem] = []
    for annotation in (POD_CIDRS, POD_CIDR):
        text = view.annotation(annotation)
        if text is None:
            continue
        found: dict[Network, None] = {}
        for item in filter(None, (each.strip() for each in text.split(","))):
            try:
                found.setdefault(parse_cidr(item))
            except ValueError:
                field = annotation_field(annotation)
                problems.append(Problem(f"Node {view.name}", field, f"{shown(item)} is no CIDR"))
        if found:
            ipv4 = tuple(each for each in found if isinstance(each, IPv4Network))
            ipv6 = tuple(each for each in found if isinstance(each, IPv6Network))
            return replace(view, pod_cidrs_ipv4=ipv4, pod_cidrs_ipv6=ipv6), tuple(problems)
    return view, tuple(problems)
