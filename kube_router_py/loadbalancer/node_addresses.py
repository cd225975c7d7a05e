"""Addresses of Nodes: no Service gets one, which every node would take for its own. Pure."""

from kube_router_py.address_pools import Address
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node

_NODE = "Node "


def node_use(name: str, node: Node | None) -> tuple[str, tuple[Address, ...]]:
    """The key by which the Node of this name is noted among those who use addresses, which is that
    of no Service, and its addresses: none where it has gone."""
    return f"{_NODE}{name}", () if node is None else node_view(node)[0].addresses


def is_node(key: str) -> bool:
    return key.startswith(_NODE)


def user_of(key: str) -> str:
    """In words, who uses an address."""
    return key if is_node(key) else f"Service {key}"
