"""The ends of a flow: whose address is it, and where is that? Pure."""

import ipaddress
from collections.abc import Iterable, Iterator

from msgspec import Struct

from kube_router_py.cluster.objects import Node, Pod, Service
from kube_router_py.firewall.evaluate_rules import Address

FAMILIES = {"IPv4": 4, "IPv6": 6}

_FINISHED = ("Succeeded", "Failed")
_NODE_PREFIX = "node/"


class Place(Struct, frozen=True):
    """One end of a flow.

    ``owners`` are the live pods with this address, ``nodes`` where the end is (none: outside of
    the cluster). ``process_of`` is the node where the flow comes from a process of the node itself;
    ``in_host_network``: it is a pod there.
    """

    name: str
    address: Address
    owners: tuple[Pod, ...]
    nodes: frozenset[str]
    process_of: str | None = None
    in_host_network: bool = False


class Places:
    """Everything that has an address, by address and by name."""

    def __init__(
        self, pods: Iterable[Pod], nodes: Iterable[Node], services: Iterable[Service]
    ) -> None:
        self._pods = {pod.metadata.key: pod for pod in pods}
        self._addresses: dict[str, dict[int, Address]] = {}
        self._owners: dict[Address, list[Pod]] = {}
        for key in sorted(self._pods):
            pod = self._pods[key]
            if _is_finished(pod) or pod.spec.host_network:
                continue
            for address in _addresses_of_pod(pod):
                self._owners.setdefault(address, []).append(pod)
        self._nodes = {node.metadata.name: tuple(_addresses_of_node(node)) for node in nodes}
        self._node_at: dict[Address, str] = {}
        for name in sorted(self._nodes):
            for address in self._nodes[name]:
                self._node_at.setdefault(address, name)
        self._services: dict[Address, str] = {}
        for service in services:
            for address, kind in _addresses_of_service(service):
                self._services.setdefault(address, f"{kind} of {service.metadata.key}")

    def addresses_of_node(self, name: str) -> tuple[Address, ...]:
        return self._nodes.get(name, ())

    def ends(self, source: str, destination: str, family: str) -> tuple[Place, Place]:
        """Both ends, with addresses of one family. Raises ValueError, saying which end is wrong."""
        if family and family not in FAMILIES:
            raise ValueError(f"family {family!r} is none of {', '.join(FAMILIES)}")
        wanted = (FAMILIES[family],) if family else tuple(FAMILIES.values())
        sources = self._end(source, "from")
        targets = self._end(destination, "to")
        for version in wanted:
            if version in sources and version in targets:
                return (
                    self._place(source, sources[version], is_source=True),
                    self._place(destination, targets[version], is_source=False),
                )
        for end, found in ((source, sources), (destination, targets)):
            if family and wanted[0] not in found:
                raise ValueError(f"{end} has no {family} address")
        raise ValueError(f"{source} and {destination} have no address family in common")

    def notes(self, written: str, source: Place, target: Place) -> Iterator[str]:
        """What a reader might expect otherwise; ``written`` is the source as it was asked for."""
        service = self._services.get(target.address)
        if service is not None and not target.owners:
            yield (
                f"{target.address} is the {service} and is judged as it stands, policies apply to "
                "the pods behind it"
            )
        node = self._node_at.get(source.address)
        if node is not None and _literal(written) is not None:
            yield (
                f"{source.address} is an address of node {node}, judged like any other "
                f"(a process there is node/{node})"
            )

    def _end(self, text: str, field: str) -> dict[int, Address]:
        """The first address of each family."""
        known = self._addresses.get(f"{field} {text}")
        if known is None:
            known = self._find(text, field)
            self._addresses[f"{field} {text}"] = known
        return known

    def _find(self, text: str, field: str) -> dict[int, Address]:
        literal = _literal(text)
        if literal is not None:
            return {literal.version: literal}
        if self._is_node(text, field):
            name = text.removeprefix(_NODE_PREFIX)
            if name not in self._nodes:
                raise ValueError(f"{field}: there is no Node {name!r}")
            return _first_of_each(self._nodes[name], f"{field}: Node {name}")
        namespace, slash, name = text.partition("/")
        if not namespace or not slash or not name or "/" in name:
            node = ", node/NAME" if field == "from" else ""
            raise ValueError(f"{field}: {text!r} is neither namespace/pod{node} nor an IP address")
        pod = self._pods.get(text)
        if pod is None:
            remedy = ""
            if field == "to" and text.startswith(_NODE_PREFIX) and name in self._nodes:
                remedy = "; for the node, give its address"
            raise ValueError(f"{field}: there is no pod {text}{remedy}")
        if _is_finished(pod):
            phase = pod.status.phase if pod.status else ""
            raise ValueError(f"{field}: pod {text} is finished ({phase}) and has no address")
        addresses = tuple(_addresses_of_pod(pod))
        if pod.spec.host_network and not addresses:
            addresses = self._nodes.get(pod.spec.node_name or "", ())
        return _first_of_each(addresses, f"{field}: pod {text}")

    def _is_node(self, text: str, field: str) -> bool:
        if field != "from" or not text.startswith(_NODE_PREFIX):
            return False
        # A namespace may be called "node"; a Node of that name comes first.
        return text.removeprefix(_NODE_PREFIX) in self._nodes or text not in self._pods

    def _place(self, text: str, address: Address, *, is_source: bool) -> Place:
        owners = tuple(self._owners.get(address, ()))
        if _literal(text) is not None:
            nodes = {pod.spec.node_name or "" for pod in owners}
            if not owners and not is_source and address in self._node_at:
                nodes.add(self._node_at[address])
            keys = ", ".join(pod.metadata.key for pod in owners)
            return Place(f"{keys} ({address})" if keys else text, address, owners, frozenset(nodes))
        if is_source and self._is_node(text, "from"):
            name = text.removeprefix(_NODE_PREFIX)
            return Place(f"{text} ({address})", address, owners, frozenset((name,)), name)
        pod = self._pods[text]
        node = pod.spec.node_name or ""
        if pod.spec.host_network:
            process_of = node if is_source else None
            return Place(text, address, owners, frozenset((node,)), process_of, True)
        return Place(text, address, owners, frozenset((node,)))


def _literal(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _first_of_each(addresses: Iterable[Address], what: str) -> dict[int, Address]:
    found: dict[int, Address] = {}
    for address in addresses:
        found.setdefault(address.version, address)
    if not found:
        raise ValueError(f"{what} has no address")
    return found


def _is_finished(pod: Pod) -> bool:
    return pod.status is not None and pod.status.phase in _FINISHED


def _addresses_of_pod(pod: Pod) -> Iterator[Address]:
    if pod.status is None:
        return
    written = [pod.status.pod_ip or "", *(each.ip for each in pod.status.pod_ips or ())]
    seen: set[Address] = set()
    for text in written:
        address = _literal(text)
        # The IPv4 address that an IPv6 one stands for is what is in the pod's packets.
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if address is not None and address not in seen:
            seen.add(address)
            yield address


def _addresses_of_node(node: Node) -> Iterator[Address]:
    """Internal ones first: a node's processes use such a one."""
    if node.status is None:
        return
    for kind in ("InternalIP", "ExternalIP"):
        for each in node.status.addresses or ():
            if each.type == kind and (address := _literal(each.address)) is not None:
                yield address


def _addresses_of_service(service: Service) -> Iterator[tuple[Address, str]]:
    spec = service.spec
    balancer = service.status.load_balancer if service.status else None
    for kind, texts in (
        ("ClusterIP", (spec.cluster_ip, *(spec.cluster_ips or ()))),
        ("external IP", spec.external_ips or ()),
        ("load-balancer IP", [each.ip for each in (balancer and balancer.ingress) or ()]),
    ):
        for text in texts:
            if text and (address := _literal(text)) is not None:
                yield address, kind
