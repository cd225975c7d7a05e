"""What the firewall of a node wants for the pods of one flow: compiled as the agent does it. Pure.

Of sets only what these pods give them is there, which is what one flow is about.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Pod
from kube_router_py.firewall.desired import Desired
from kube_router_py.firewall.pods import pod_facts
from kube_router_py.firewall.policy import compile_namespace, compile_policy
from kube_router_py.firewall.service_addresses import node_ports, service_ports
from kube_router_py.firewall.settings import FirewallOptions, node_facts
from kube_router_py.flow.model import Trace
from kube_router_py.flow.objects import ClusterObjects

MOST_PATHS = 8
"""Of a Service with very many endpoints a few tell as much as all."""


def firewall_of(
    objects: ClusterObjects, node: str, options: FirewallOptions, trace: Trace
) -> Desired:
    """``node`` is the one whose firewall it is."""
    desired = Desired(options)
    for each in objects.nodes:
        if each.metadata.name == node:
            desired.put_node(node_facts(node_view(each)[0]))
    for space in objects.namespaces:
        desired.put_namespace(space.metadata.name, compile_namespace(space))
    pods = {pod.metadata.key: pod for pod in _pods(objects, trace)}
    namespaces = {pod.metadata.namespace for pod in pods.values()}
    for policy in objects.policies:
        if policy.metadata.namespace in namespaces:
            desired.put_policy(policy.metadata.key, compile_policy(policy))
    for key, pod in pods.items():
        desired.put_pod(key, pod_facts(pod, node))
    service = objects.service_of.get(trace.service.key) if trace.service is not None else None
    if service is not None:
        ports, nodes = service_ports(service, options), node_ports(service, options)
        desired.put_service(service.metadata.key, ports, nodes)
    desired.settle()
    return desired


def _pods(objects: ClusterObjects, trace: Trace) -> Iterator[Pod]:
    """All that have an address of the flow: several may claim one for a moment."""
    addresses = {trace.source.address, trace.destination.address} - {""}
    keys = {trace.source.key, trace.destination.key} - {""}
    for path in trace.paths[:MOST_PATHS]:
        addresses.add(path.address)
        keys.add(path.pod)
        addresses.update(each for each in (path.egress_source, path.ingress_source) if each)
    wanted = set(map(ip_address, addresses))
    for pod in objects.pods:
        if pod.metadata.key in keys or any(each in wanted for each in _addresses(pod)):
            yield pod


def _addresses(pod: Pod) -> Iterator[IPv4Address | IPv6Address]:
    status = pod.status
    if status is None:
        return
    for text in (status.pod_ip, *(each.ip for each in status.pod_ips or ())):
        try:
            yield ip_address(text or "")
        except ValueError:
            continue
