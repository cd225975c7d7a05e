"""Pod -> ``model.PodFacts``: what policies can go by. Pure."""

import ipaddress
import socket
from collections.abc import Iterator

from kube_router_py.cluster.objects import Container, Pod
from kube_router_py.firewall.model import PodFacts

# Such pods have no address any more, whatever their status says: it may be another pod's by now.
_FINISHED = ("Succeeded", "Failed")
# As the API server has them, which knows no others and refuses them in small letters.
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_NUMBERS = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def pod_facts(pod: Pod, node_name: str) -> PodFacts | None:
    """None for a pod that is no target and no peer: in its node's network, finished, or without an
    address. One that is terminating still runs, and counts."""
    status = pod.status
    if status is None or pod.spec.host_network or status.phase in _FINISHED:
        return None
    addresses: dict[str, tuple[str, ...]] = {}
    for text in dict.fromkeys((status.pod_ip or "", *(x.ip for x in status.pod_ips or ()))):
        family, spelt = _canonical(text)
        if spelt and spelt not in addresses.get(family, ()):
            addresses[family] = (*addresses.get(family, ()), spelt)
    if not addresses:
        return None
    return PodFacts(
        key=pod.metadata.key,
        namespace=pod.metadata.namespace,
        labels=pod.metadata.labels or {},
        addresses=addresses,
        ports=dict(reversed([*_named_ports(pod)])),
        is_local=pod.spec.node_name == node_name,
    )


def _canonical(text: str) -> tuple[str, str]:
    """Family and spelling of an address; two empty strings for what is none.

    An IPv4 address written as an IPv6 one (``::ffff:10.0.0.1``) is the IPv4 address: that is what
    the pod's packets have.
    """
    # The C library spells them alike, and far faster; but mixed notation is not the canonical one.
    for family, number in _NUMBERS.items():
        try:
            packed = socket.inet_pton(number, text)
        except (OSError, ValueError):
            continue
        spelt = socket.inet_ntop(number, packed)
        if number == socket.AF_INET or "." not in spelt:
            return family, spelt
        address = ipaddress.IPv6Address(packed)
        mapped = address.ipv4_mapped
        return ("inet", str(mapped)) if mapped else (family, str(address))
    return "", ""


def _named_ports(pod: Pod) -> Iterator[tuple[tuple[str, str], int]]:
    """Of two ports with one name and protocol the first counts; init containers that go on running
    beside the others (restartPolicy Always) come last, others do not count. A port of a protocol
    that there is not declares nothing."""
    for container in _containers(pod):
        for port in container.ports or ():
            protocol = _PROTOCOLS.get(port.protocol or "TCP")
            if protocol and port.name and 1 <= port.container_port <= 65535:
                yield (protocol, port.name), port.container_port


def _containers(pod: Pod) -> Iterator[Container]:
    yield from pod.spec.containers or ()
    for container in pod.spec.init_containers or ():
        if container.restart_policy == "Always":
            yield container
