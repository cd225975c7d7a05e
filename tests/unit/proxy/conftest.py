"""Short ways to write Services, slices and IPVS values, and a host made of fakes."""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    ObjectReference,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    ZoneHint,
)
from kube_router_py.kernel import ports
from kube_router_py.kernel.fake import FakeIpsets, FakeIptables, FakeIpvs, FakeLinks, FakeSysctls
from kube_router_py.kernel.fake_host import (
    LOOPBACK,
    FakeIpsetKernel,
    FakeIptablesKernel,
    FakeLinkKernel,
)
from kube_router_py.proxy.model import (
    RealServerKey,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.settings import ThisNode

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
READY = EndpointConditions(ready=True, serving=True, terminating=False)
NOT_READY = EndpointConditions(ready=False, serving=False, terminating=False)
SERVING_TERMINATING = EndpointConditions(ready=False, serving=True, terminating=True)
TERMINATING = EndpointConditions(ready=False, serving=False, terminating=True)


class FakeHost:
    """A host that outlives its adapters: ``open`` gives new ones on the same kernel state."""

    def __init__(self, addresses: Iterable[str] = ("192.168.1.1", "fd00:1::1")) -> None:
        own = [ipaddress.ip_address(text) for text in addresses]
        self.ipvs = FakeIpvs()
        self.links = FakeLinkKernel(
            addresses=[
                *LOOPBACK,
                *(
                    ports.NodeAddress(
                        socket.AF_INET if ip.version == 4 else socket.AF_INET6,
                        ip.packed,
                        24 if ip.version == 4 else 64,
                        "eth0",
                    )
                    for ip in own
                ),
            ]
        )
        self.ipsets = FakeIpsetKernel()
        self.iptables = FakeIptablesKernel()
        self.sysctls = {
            "net/ipv4/vs/conntrack": "0",
            "net/ipv4/vs/expire_nodest_conn": "0",
            "net/ipv4/vs/expire_quiescent_template": "0",
            "net/ipv4/ip_forward": "0",
            "net/ipv4/conf/all/arp_ignore": "0",
            "net/ipv4/conf/all/arp_announce": "0",
            "net/ipv4/conf/all/rp_filter": "0",
            "net/ipv4/conf/eth0/rp_filter": "1",
            "net/bridge/bridge-nf-call-iptables": "0",
            "net/bridge/bridge-nf-call-ip6tables": "0",
            "net/ipv6/conf/all/forwarding": "0",
            "net/ipv6/conf/eth0/accept_ra": "1",
        }
        self.opened: list[ports.HostPorts] = []
        self.refused_sysctls: tuple[str, ...] = ()

    def open(self) -> ports.HostPorts:
        self.ipvs.closed = False
        self.ipvs.writes = 0
        self.ipvs.operations.clear()
        sysctls = FakeSysctls(self.sysctls, self.refused_sysctls)
        sysctls.values = self.sysctls
        opened = ports.HostPorts(
            self.ipvs,
            FakeLinks(kernel=self.links),
            FakeIpsets(self.ipsets),
            FakeIptables(self.iptables),
            sysctls,
        )
        self.opened.append(opened)
        return opened

    @property
    def ports(self) -> ports.HostPorts:
        return self.opened[-1]

    @property
    def writes(self) -> int:
        return self.ports.writes


class Make:
    """Builders; every argument has a plain default."""

    READY, NOT_READY = READY, NOT_READY
    SERVING_TERMINATING, TERMINATING = SERVING_TERMINATING, TERMINATING
    Host = FakeHost

    def service(
        self,
        name: str = "web",
        ips: Sequence[str] = ("10.96.0.10",),
        port: int = 80,
        *,
        ports: Sequence[ServicePort] | None = None,
        node_port: int | None = None,
        created: str | None = None,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        lb_ips: Sequence[LoadBalancerIngress | str] = (),
        **spec: Any,
    ) -> Service:
        kind = "LoadBalancer" if lb_ips else "NodePort" if node_port else "ClusterIP"
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
                    "type": kind,
                    "cluster_ip": ips[0] if ips else None,
                    "cluster_ips": tuple(ips),
                    "ports": tuple(ports)
                    if ports is not None
                    else (ServicePort(port=port, node_port=node_port),),
                    **spec,
                }
            ),
            status=ServiceStatus(LoadBalancerStatus(ingress)) if ingress else None,
        )

    def endpoint(
        self,
        address: str,
        conditions: EndpointConditions | None = READY,
        node: str = "node1",
        *,
        zones: Sequence[str] = (),
        nodes: Sequence[str] = (),
        pod: str = "",
    ) -> Endpoint:
        """``zones`` and ``nodes`` are its topology hints, ``pod`` the UID of its Pod."""
        hints = EndpointHints(
            for_zones=tuple(map(ZoneHint, zones)) or None,
            for_nodes=tuple(map(ZoneHint, nodes)) or None,
        )
        return Endpoint(
            addresses=(address,),
            conditions=conditions,
            node_name=node,
            hints=hints if zones or nodes else None,
            target_ref=ObjectReference("Pod", uid=pod) if pod else None,
        )

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
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
    ) -> Node:
        return Node(
            metadata=ObjectMeta(name=name, labels=labels, annotations=annotations),
            spec=NodeSpec(pod_cidrs=tuple(cidrs)),
            status=NodeStatus(tuple(NodeAddress("InternalIP", text) for text in addresses)),
        )

    def place(
        self,
        v4: str = "192.168.1.1",
        v6: str = "fd00:1::1",
        *,
        zone: str = "",
        weights: dict[str, int] | None = None,
    ) -> ThisNode:
        packed = {
            int(socket.AF_INET): ipaddress.ip_address(v4).packed,
            int(socket.AF_INET6): ipaddress.ip_address(v6).packed,
        }
        return ThisNode(
            "node1",
            packed,
            {
                int(socket.AF_INET): ("10.244.1.0/24",),
                int(socket.AF_INET6): ("fd00:10:244:1::/64",),
            },
            {family: (address,) for family, address in packed.items()},
            zone,
            weights or {},
        )

    def key(self, address: str, port: int = 80, protocol: str = "TCP") -> VirtualServerKey:
        ip = ipaddress.ip_address(address)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return VirtualServerKey(int(family), PROTOCOLS[protocol], ip.packed, port)

    def real(self, address: str, port: int = 8080) -> RealServerKey:
        ip = ipaddress.ip_address(address)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return RealServerKey(int(family), ip.packed, port)

    def weights(self, state: VirtualServerState | None) -> dict[str, int] | None:
        if state is None:
            return None
        return {
            str(ipaddress.ip_address(real.address)): value.weight
            for real, value in state.real_servers.items()
        }


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()
