"""What lies around this node's Services: the cluster's nodes, this node's pods and links. Pure."""

import ipaddress
import socket
from collections.abc import Iterable

from msgspec import Struct

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, Pod
from kube_router_py.kernel.ports import NodeAddress

_FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
# Phases of pods that have no address any more, whatever their status says.
FINISHED = ("Succeeded", "Failed")

Texts = dict[int, frozenset[str]]
"""By family (socket.AF_*): addresses and networks as text, in their canonical form."""


class Surroundings(Struct, frozen=True):
    """``cluster``: addresses and pod CIDRs of all Nodes. ``local_pods``: the addresses of this
    node's pods, None where its pod CIDRs tell. ``addresses``: those on this node's links."""

    cluster: Texts = {}
    local_pods: Texts | None = None
    addresses: Texts = {}


def cluster_networks(nodes: Iterable[Node]) -> Texts:
    """Every address and pod CIDR that Nodes name; what cannot be read is left out."""
    found: dict[int, set[str]] = {}
    for node in nodes:
        view, _ = node_view(node)
        for each in (*view.addresses, *view.pod_cidrs):
            found.setdefault(_FAMILIES[each.version], set()).add(str(each))
    return _frozen(found)


def pod_addresses(pods: Iterable[Pod], node_name: str) -> Texts:
    """The addresses of a node's pods, but for those in its own network, or finished."""
    found: dict[int, set[str]] = {}
    for pod in pods:
        status = pod.status
        if pod.spec.node_name != node_name or pod.spec.host_network or status is None:
            continue
        if status.phase in FINISHED:
            continue  # the address may be another pod's by now
        for text in {each.ip for each in status.pod_ips or ()} | {status.pod_ip or ""}:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                continue
            found.setdefault(_FAMILIES[address.version], set()).add(str(address))
    return _frozen(found)


def link_addresses(addresses: Iterable[NodeAddress]) -> Texts:
    """The addresses on this node's links."""
    found: dict[int, set[str]] = {}
    for each in addresses:
        found.setdefault(each.family, set()).add(socket.inet_ntop(each.family, each.address))
    return _frozen(found)


def _frozen(found: dict[int, set[str]]) -> Texts:
    return {family: frozenset(texts) for family, texts in found.items()}
