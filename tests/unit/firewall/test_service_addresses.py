"""Entries of Services: what a set would refuse is left out, and nothing else."""

from kube_router_py.cluster.objects import ObjectMeta, Service, ServicePort, ServiceSpec
from kube_router_py.firewall.service_addresses import node_ports, service_ports
from kube_router_py.firewall.settings import FirewallOptions


def test_ports_that_there_cannot_be_are_left_out() -> None:
    ports = (
        ServicePort(port=70000, node_port=70000),
        ServicePort(port=0),
        ServicePort(port=80, protocol="QUIC", node_port=30081),
        ServicePort(port=53, protocol="UDP", node_port=30053),
        ServicePort(port=80),
    )
    service = Service(
        metadata=ObjectMeta(name="a", namespace="b"),
        spec=ServiceSpec(type="NodePort", cluster_ip="10.96.0.1", ports=ports),
    )
    options = FirewallOptions(families=("inet",))
    assert service_ports(service, options) == {
        "inet": frozenset({"10.96.0.1,udp:53", "10.96.0.1,tcp:80"})
    }
    assert node_ports(service, options) == {
        "inet": frozenset({"0.0.0.0/1,udp:30053", "128.0.0.0/1,udp:30053"})
    }
