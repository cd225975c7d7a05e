"""What a flag is: the record behind each field of ``Options``, and the groups of the help text."""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from kube_router_py.option_types import Kind

T = TypeVar("T")

AGENT = "What runs on this node"
API = "Kubernetes API"
FAMILIES = "Address families and ranges of the cluster"
PROXY = "Service proxy (IPVS)"
FIREWALL = "Firewall (NetworkPolicy)"
POD_NETWORK = "Pod network (bridge, tunnels, egress)"
BGP = "BGP: this node and its neighbors"
PEERS = "BGP: routers outside the cluster"
LOADBALANCER = "Load balancer (addresses for Services)"
OBSERVE = "Health, metrics, logs"
GROUPS = (
    AGENT,
    API,
    FAMILIES,
    PROXY,
    FIREWALL,
    POD_NETWORK,
    BGP,
    PEERS,
    LOADBALANCER,
    OBSERVE,
)


@dataclass(frozen=True)
class Flag:
    """One flag as declared. ``unit`` is empty where the kind says it (durations, addresses)."""

    name: str
    kind: Kind[Any]
    default: Any
    group: str
    help: str
    unit: str = ""
    short: str = ""
    is_secret: bool = False

    @property
    def field(self) -> str:
        """The attribute of ``Options``."""
        return self.name.replace("-", "_")

    @property
    def environment(self) -> str:
        """The environment variable that may give the value."""
        return "KUBE_ROUTER_" + self.field.upper()

    @property
    def default_text(self) -> str:
        return self.kind.show(self.default)


def flag(
    kind: Kind[T],
    default: T,
    group: str,
    help: str,
    *,
    unit: str = "",
    short: str = "",
    is_secret: bool = False,
) -> T:
    """A field of ``Options``; typed as its value, as ``dataclasses.field`` is."""
    declared = {
        "kind": kind,
        "group": group,
        "help": help,
        "unit": unit,
        "short": short,
        "is_secret": is_secret,
    }
    result: T = dataclasses.field(default=default, metadata=declared)
    return result
