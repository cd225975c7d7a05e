"""A small cluster as its objects, and packets that its firewall has logged."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import yaml
from msgspec import convert

from kube_router_py.cluster import objects
from kube_router_py.cluster.cache import Cache
from kube_router_py.drops.naming import Names
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain
from kube_router_py.kernel.nflog_packets import Packet, Tuple

NODE = "node2"
NOW = 1_700_000_000.5
_KINDS = (
    *(objects.Pod, objects.Service, objects.NetworkPolicy, objects.Namespace, objects.Node),
    objects.EndpointSlice,
)
_CLUSTER = """
- kind: Node
  metadata: {name: node1}
  spec: {podCIDRs: [10.244.1.0/24, "fd10:244:0:1::/64"]}
  status: {addresses: [{type: InternalIP, address: 10.10.0.11}]}
- kind: Node
  metadata: {name: node2}
  spec: {podCIDR: 10.244.2.0/24}
- kind: Pod
  metadata: {name: db, namespace: shop, labels: {app: db}, uid: uid-db}
  spec:
    nodeName: node2
    containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]
  status: {phase: Running, podIP: 10.244.2.2, podIPs: [{ip: 10.244.2.2}, {ip: "fd10:244:0:2::2"}]}
- kind: Pod
  metadata: {name: old, namespace: shop}
  spec: {nodeName: node2}
  status: {phase: Succeeded, podIP: 10.244.2.3}
- kind: Pod
  metadata: {name: client, namespace: default, labels: {app: client}, uid: uid-client}
  spec: {nodeName: node2}
  status: {phase: Running, podIP: 10.244.2.3, podIPs: [{ip: 10.244.2.3}, {ip: "fd10:244:0:2::3"}]}
- kind: Pod
  metadata: {name: agent, namespace: kube-system}
  spec: {nodeName: node1, hostNetwork: true}
  status: {phase: Running, podIP: 10.10.0.11}
- kind: Service
  metadata: {name: db, namespace: shop}
  spec:
    clusterIP: 10.96.0.10
    clusterIPs: [10.96.0.10]
    selector: {app: db}
    ports: [{port: 3306, targetPort: sql, nodePort: 30306}]
- kind: Service
  metadata: {name: other, namespace: shop}
  spec: {clusterIP: 10.96.0.11, selector: {app: other}, ports: [{port: 5432}]}
- kind: EndpointSlice
  metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.2.2]}]
  ports: [{port: 5432, protocol: TCP}]
- kind: NetworkPolicy
  metadata: {name: only-web, namespace: shop}
  spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]}
- kind: NetworkPolicy
  metadata: {name: all, namespace: shop}
  spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
- kind: NetworkPolicy
  metadata: {name: others, namespace: shop}
  spec: {podSelector: {matchLabels: {app: other}}}
- kind: NetworkPolicy
  metadata: {name: way-out, namespace: default}
  spec: {podSelector: {}, policyTypes: [Egress]}
"""


class World:
    """``clock`` stands still unless it is set."""

    def __init__(self, kinds: Iterable[type]) -> None:
        self.now_s = 0.0
        self.cache = Cache(kinds)
        for manifest in yaml.safe_load(_CLUSTER):
            kind = getattr(objects, manifest.pop("kind"))
            if kind in self.cache.kinds:
                self.cache.put(kind, convert(manifest, kind))
        self.names = Names(self.cache, NODE, lambda: self.now_s, lambda: NOW)


def logged(
    key: str = "shop/db", direction: str = "ingress", says: str = "policy", **changes: Any
) -> Packet:
    """What the rule of a pod's chain logs; by default of default/client's TCP to shop/db."""
    chain = pod_chain(key, Direction(direction)) + " " if key else ""
    values: dict[str, Any] = {
        "prefix": f"{chain}{direction} {says} ",
        "family": 4,
        "source": "10.244.2.3",
        "destination": "10.244.2.2",
        "protocol": "tcp",
        "source_port": 40000,
        "destination_port": 5432,
    }
    if (meant := changes.pop("meant", None)) is not None:
        address, port = meant
        values["original"] = Tuple("10.244.2.3", address, "tcp", 40000, port)
    return Packet(**{**values, **changes})


@pytest.fixture
def world() -> World:
    return World(_KINDS)


@pytest.fixture
def world_without_endpoints() -> World:
    """As the firewall has it without the service proxy."""
    return World([kind for kind in _KINDS if kind is not objects.EndpointSlice])


@pytest.fixture
def packet() -> Callable[..., Packet]:
    return logged
