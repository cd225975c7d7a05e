"""Pod -> ``model.PodFacts``: what policies can go by. Pure."""

import ipaddress
import socket
from collections.abc import Iterator

from kube_router_py.cluster.objects import Container, Pod
from kube_router_py.firewall.model import PodFacts

# Such pods have no address any more, whatever their status says: it may be another pod's by now.
_FINISHED = ("Succeeded", "Failed")
_FAMILIES = {4: "inet", 6: "inet6"}
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
    """Family and spelling of an address; two empty strings for what is none."""
    # The C library spells them alike, and far faster; but mixed notation is not the canonical one.
    for family, number in _NUMBERS.items():
        try:
            spelt = socket.inet_ntop(number, socket.inet_pton(number, text))
        except (OSError, ValueError):
            continue
        if number == socket.AF_INET or "." not in spelt:
            return family, spelt
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "", ""
    return _FAMILIES[address.version], str(address)


def _named_ports(pod: Pod) -> Iterator[tuple[tuple[str, str], int]]:
    """Of two ports with one name and protocol the first counts; init containers that go on running
    beside the others (restartPolicy Always) come last, others do not count."""
    for container in _containers(pod):
        for port in container.ports or ():
            if port.name and 1 <= port.container_port <= 65535:
                yield ((port.protocol or "TCP").lower(), port.name), port.container_port


def _containers(pod: Pod) -> Iterator[Container]:
    yield from pod.spec.containers or ()
    for container in pod.spec.init_containers or ():
        if container.restart_policy == "Always":
            yield container
