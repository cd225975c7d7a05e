"""Short ways to write Services, slices and Nodes, and which addresses there are."""

from collections.abc import Sequence
from typing import Any

import pytest

from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)

READY = EndpointConditions(ready=True, serving=True, terminating=False)
NOT_READY = EndpointConditions(ready=False, serving=False, terminating=False)
SERVING_TERMINATING = EndpointConditions(ready=False, serving=True, terminating=True)
TERMINATING = EndpointConditions(ready=False, serving=False, terminating=True)


class Make:
    """Builders; every argument has a plain default."""

    READY, NOT_READY = READY, NOT_READY
    SERVING_TERMINATING, TERMINATING = SERVING_TERMINATING, TERMINATING

    def service(
        self,
        name: str = "web",
        ips: Sequence[str] = ("10.96.0.10",),
        *,
        ports: Sequence[ServicePort] = (ServicePort(port=80),),
        created: str | None = None,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        lb_ips: Sequence[LoadBalancerIngress | str] = (),
        **spec: Any,
    ) -> Service:
        ingress = tuple(
            LoadBalancerIngress(ip=each) if isinstance(each, str) else each for each in lb_ips
        )
        return Service(
            metadata=ObjectMeta(
                name=name,
                namespace="default",
                creation_timestamp=created,
                annotations=annotations,
                labels=labels,
            ),
            spec=ServiceSpec(
                **{
                    "type": "LoadBalancer" if lb_ips else "ClusterIP",
                    "cluster_ip": ips[0] if ips else None,
                    "cluster_ips": tuple(ips),
                    "ports": tuple(ports),
                    **spec,
                }
            ),
            status=ServiceStatus(LoadBalancerStatus(ingress)) if ingress else None,
        )

    def endpoint(
        self, address: str, conditions: EndpointConditions | None = READY, node: str = "node1"
    ) -> Endpoint:
        return Endpoint(addresses=(address,), conditions=conditions, node_name=node)

    def slice(
        self,
        *endpoints: Endpoint | str,
        service: str = "web",
        name: str | None = None,
        ports: Sequence[EndpointPort] | None = (EndpointPort(port=8080),),
        family: str = "IPv4",
    ) -> EndpointSlice:
        return EndpointSlice(
            metadata=ObjectMeta(
                name=name or f"{service}-1",
                namespace="default",
                labels={"kubernetes.io/service-name": service},
            ),
            address_type=family,
            endpoints=tuple(
                self.endpoint(each) if isinstance(each, str) else each for each in endpoints
            ),
            ports=tuple(ports) if ports is not None else None,
        )

    def node(
        self,
        name: str = "node1",
        addresses: Sequence[str] = ("192.168.1.1", "fd00:1::1"),
        cidrs: Sequence[str] = ("10.244.1.0/24", "fd00:10:244:1::/64"),
        *,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        **spec: Any,
    ) -> Node:
        return Node(
            metadata=ObjectMeta(name=name, annotations=annotations, labels=labels),
            spec=NodeSpec(pod_cidrs=tuple(cidrs), **spec),
            status=NodeStatus(tuple(NodeAddress("InternalIP", text) for text in addresses)),
        )


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()
