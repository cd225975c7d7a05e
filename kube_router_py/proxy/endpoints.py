"""Compile the EndpointSlices of one Service to real servers, for one Service port and family."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from kube_router_py.cluster.objects import Endpoint, EndpointSlice, ZoneHint
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import RealServerKey
from kube_router_py.proxy.settings import FAMILY_NAMES, ThisNode
from kube_router_py.services import (
    Candidate,
    Usability,
    cluster_endpoints,
    local_endpoints,
    parse_address,
    unusable_address,
    usability,
)

_PROTOCOL_NAMES = {6: "TCP", 17: "UDP", 132: "SCTP"}


class EndpointGroup(Struct, frozen=True):
    """Real servers of one port under one traffic policy; ``usable`` is sorted."""

    usable: tuple[RealServerKey, ...]
    paused: frozenset[RealServerKey]
    terminating: frozenset[RealServerKey]


class Endpoints:
    """All listed endpoints of one port and family, grouped on demand by traffic policy.

    ``pods`` gives the UID of the pod behind an endpoint, where the slice names one.
    """

    def __init__(
        self,
        listed: dict[RealServerKey, Candidate],
        pods: dict[RealServerKey, str],
        node: ThisNode,
    ) -> None:
        self.pods: Mapping[RealServerKey, str] = pods
        self._listed, self._node = listed, node
        self._cluster: EndpointGroup | None = None
        self._local: EndpointGroup | None = None

    @property
    def cluster(self) -> EndpointGroup:
        """What traffic policy Cluster uses."""
        if self._cluster is None:
            chosen = cluster_endpoints(self._listed, self._node.name, self._node.zone)
            self._cluster = self._group(chosen, self._listed)
        return self._cluster

    @property
    def local(self) -> EndpointGroup:
        """What traffic policy Local uses."""
        if self._local is None:
            chosen = local_endpoints(self._listed, self._node.name)
            self._local = self._group(chosen, self.on_this_node())
        return self._local

    def on_this_node(self) -> list[RealServerKey]:
        """Every listed endpoint of this node, whatever its state."""
        return [key for key, found in self._listed.items() if found.node == self._node.name]

    def node_of(self, key: RealServerKey) -> str:
        """The name of an endpoint's Node, ``""`` where the slice does not say."""
        return self._listed[key].node

    def is_ready(self, key: RealServerKey) -> bool:
        """Whether an endpoint is ready; a terminating one is only where a Service publishes
        addresses that are not ready, as for kube-proxy."""
        return self._listed[key].usability is Usability.READY

    def _group(
        self, chosen: Iterable[RealServerKey], scope: Iterable[RealServerKey]
    ) -> EndpointGroup:
        usable = tuple(sorted(chosen))
        taken = set(usable)
        paused: set[RealServerKey] = set()
        terminating: set[RealServerKey] = set()
        for key in scope:
            use = self._listed[key].usability
            if key in taken or use is Usability.READY:
                continue  # ready and not taken: meant for others; it leaves as any endpoint does
            (paused if use is Usability.PAUSED else terminating).add(key)
        return EndpointGroup(usable, frozenset(paused), frozenset(terminating))


def compile_endpoints(
    slices: Sequence[EndpointSlice],
    port_name: str,
    protocol: int,
    family: int,
    node: ThisNode,
    problems: list[Problem],
) -> Endpoints:
    """Merge the slices: one entry per (address, port), with its best usability.

    A pod may stand in two slices for a moment while the controller moves it, with different
    conditions. Appends to ``problems`` what is wrong with a slice.
    """
    listed: dict[RealServerKey, Candidate] = {}
    pods: dict[RealServerKey, str] = {}
    family_name = FAMILY_NAMES[family]
    for each in slices:
        if not each.endpoints or each.address_type not in ("", family_name):
            _check_type(each, problems)
            continue
        port = _find_port(each, port_name, protocol, problems)
        if port is None:
            continue
        for index, endpoint in enumerate(each.endpoints):
            packed = _address_of(each, index, endpoint, family, problems)
            if packed is None:
                continue
            key = RealServerKey(family, packed, port)
            candidate = _candidate(endpoint)
            known = listed.get(key)
            listed[key] = candidate if known is None else _united(known, candidate)
            if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod":
                pods[key] = max(endpoint.target_ref.uid, pods.get(key, ""))
    return Endpoints(listed, pods, node)


def _candidate(endpoint: Endpoint) -> Candidate:
    use, node, hints = usability(endpoint.conditions), endpoint.node_name or "", endpoint.hints
    if hints is None:
        return Candidate(use, node)
    return Candidate(use, node, _names(hints.for_nodes), _names(hints.for_zones))


def _names(hints: tuple[ZoneHint, ...] | None) -> frozenset[str] | None:
    return frozenset(hint.name for hint in hints) if hints else None


def _united(one: Candidate, other: Candidate) -> Candidate:
    """Two entries for one endpoint: the better state, the hints of both. The same in any order."""
    return Candidate(
        max(one.usability, other.usability),
        max(one.node, other.node),
        (one.for_nodes or frozenset()) | (other.for_nodes or frozenset()) or None,
        (one.for_zones or frozenset()) | (other.for_zones or frozenset()) or None,
    )


def _check_type(each: EndpointSlice, problems: list[Problem]) -> None:
    if each.address_type not in ("", "IPv4", "IPv6", "FQDN"):
        problems.append(
            Problem(
                f"EndpointSlice {each.metadata.key}",
                "addressType",
                f"{each.address_type!r} is not IPv4, IPv6 or FQDN",
            )
        )


def _find_port(
    each: EndpointSlice, name: str, protocol: int, problems: list[Problem]
) -> int | None:
    """The number that a Service port has in this slice, where named target ports are resolved."""
    if not each.ports:
        problems.append(
            Problem(
                f"EndpointSlice {each.metadata.key}",
                "ports",
                "lists no port, so its endpoints serve none of the Service's; "
                "does every targetPort name a port of the pods?",
            )
        )
        return None
    for index, port in enumerate(each.ports):
        if (port.name or "") != name or (port.protocol or "TCP") != _PROTOCOL_NAMES[protocol]:
            continue
        if port.port is not None and 0 < port.port < 65536:
            return port.port
        what = "is absent" if port.port is None else f"{port.port} is not a port number (1-65535)"
        problems.append(Problem(f"EndpointSlice {each.metadata.key}", f"ports[{index}].port", what))
    return None


def _address_of(
    each: EndpointSlice, index: int, endpoint: Endpoint, family: int, problems: list[Problem]
) -> bytes | None:
    """The endpoint's address: the first one, as all addresses of an endpoint are alike."""
    field = f"endpoints[{index}].addresses[0]"
    reason = ""
    packed = b""
    if not endpoint.addresses:
        reason = "is absent"
    elif (parsed := parse_address(endpoint.addresses[0])) is None:
        reason = f"{endpoint.addresses[0]!r} is not an IP address"
    elif parsed[0] != family:
        # In a slice that does not say its type, the other family's endpoints are no mistake.
        if not each.address_type:
            return None
        reason = f"{endpoint.addresses[0]} is not of addressType {each.address_type}"
    else:
        packed = parsed[1]
        if bad := unusable_address(packed):
            reason = f"{endpoint.addresses[0]} is {bad}"
    if reason:
        problems.append(Problem(f"EndpointSlice {each.metadata.key}", field, reason))
        return None
    return packed
