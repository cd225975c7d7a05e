"""The endpoints of a Service's port: which take new connections on a node, and why the others do
not. Pure."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from msgspec import Struct, structs

from kube_router_py.cluster.objects import Endpoint, EndpointSlice
from kube_router_py.endpoint_slices import listed_endpoints
from kube_router_py.flow.model import Backend, OutReason
from kube_router_py.flow.services import Met
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import RealServerKey
from kube_router_py.proxy.settings import ThisNode
from kube_router_py.service_addresses import Kind
from kube_router_py.services import (
    FAMILY_NAMES,
    Candidate,
    Usability,
    local_endpoints,
    parse_address,
    usability,
)


class _Place(Struct, frozen=True):
    """What a slice says of an endpoint besides its state."""

    pod: str = ""
    node: str = ""
    zone: str = ""


def backends(met: Met, slices: Sequence[EndpointSlice], node: ThisNode) -> tuple[Backend, ...]:
    """All listed endpoints of the port that is met, sorted by address, without their paths.

    None where it is not known what stands behind the address.
    """
    if met.state is None or met.port is None:
        return ()
    slices = sorted(slices, key=lambda each: each.metadata.key)
    problems: list[Problem] = []
    name, family = met.port.name or "", met.server.family
    listed, _ = listed_endpoints(slices, name, met.server.protocol, family, RealServerKey, problems)
    places = _places(slices)
    judge = _Judge(met, listed, node)
    found: list[Backend] = []
    for key in sorted(listed):
        out, why, weight = judge.of(key)
        text = str(ip_address(key.address))
        place = places.get(text, _Place())
        found.append(
            Backend(text, key.port, out, why, place.pod, listed[key].node, place.zone, weight)
        )
    known = {each.address for each in found}
    found += _left_out(slices, places, known, met, problems)
    if not found:
        found += _other_family(slices, places, family)
    return tuple(found)


def plain_endpoints(slices: Sequence[EndpointSlice], port: int) -> tuple[Backend, ...]:
    """Those of a headless Service: its name leads to those that are ready, whatever the port."""
    found: dict[str, Backend] = {}
    places = _places(slices)
    for _, endpoint, text in _endpoints(slices):
        use = usability(endpoint.conditions)
        is_ready = use is Usability.READY
        out: OutReason = (
            "" if is_ready else ("not-ready" if use is Usability.PAUSED else "terminating")
        )
        why = "ready" if is_ready else _STATES[use]
        known = found.get(text)
        if known is None or known.out:
            place = places[text]
            found[text] = Backend(text, port, out, why, place.pod, place.node, place.zone)
    order = sorted(found, key=lambda each: (ip_address(each).version, ip_address(each).packed))
    return tuple(found[each] for each in order)


_STATES = {
    Usability.PAUSED: "not ready: it keeps its connections and takes no new ones",
    Usability.TERMINATING: "its pod is going and serves no longer",
    Usability.SERVING_TERMINATING: "its pod is going, and others are ready",
}


class _Judge:
    """Why endpoints are in or out, for one address of a Service on one node."""

    def __init__(self, met: Met, listed: dict[RealServerKey, Candidate], node: ThisNode) -> None:
        self._met, self._listed, self._node = met, listed, node
        self._chosen = met.state.real_servers if met.state is not None else {}
        plain = met.group.plain[met.step.key].virtual_servers.get(met.server)
        self._plain = plain.real_servers if plain is not None else {}
        self._is_local = met.step.policy == "Local" and (
            met.kind is Kind.CLUSTER_IP or bool(local_endpoints(listed, node.name))
        )
        self._dsr = {
            each.reason.partition(" is not used for ")[0]: each.reason.partition(": ")[2]
            for each in met.group.desired.problems()
            if each.object == f"Service {met.step.key}" and " is not used for " in each.reason
        }

    def of(self, key: RealServerKey) -> tuple[OutReason, str, int]:
        """Why it is out (``""``: it is in), the same in words, its weight."""
        candidate = self._listed[key]
        if key in self._chosen:
            weight = self._chosen[key].weight
            if weight == 0:
                return "weight", f"the weight of node {candidate.node} is 0", 0
            return "", self._why_in(candidate), weight
        if key in self._plain:
            return "dsr", self._dsr.get(f"endpoint {key}", "it cannot be reached by a tunnel"), 0
        if self._is_local and candidate.node != self._node.name:
            where = f"on node {candidate.node}" if candidate.node else "on no node of the cluster"
            return "traffic-policy", f"policy Local: it is {where}", 0
        if candidate.usability is Usability.READY:
            return "hints", _hints(candidate), 0
        is_paused = candidate.usability is Usability.PAUSED
        return "not-ready" if is_paused else "terminating", _STATES[candidate.usability], 0

    def _why_in(self, candidate: Candidate) -> str:
        if candidate.usability is Usability.SERVING_TERMINATING:
            return "its pod is going but still serves, and nothing is ready"
        if self._is_local:
            return "ready, on this node"
        return "ready"


def _hints(candidate: Candidate) -> str:
    words = []
    if candidate.for_nodes:
        words.append(f"nodes {', '.join(sorted(candidate.for_nodes))}")
    if candidate.for_zones:
        words.append(f"zones {', '.join(sorted(candidate.for_zones))}")
    return f"topology hints mean it for {' and '.join(words)}"


def _left_out(
    slices: Sequence[EndpointSlice],
    places: dict[str, _Place],
    known: set[str],
    met: Met,
    problems: Sequence[Problem],
) -> Iterator[Backend]:
    """What stands in slices of the family, and is no endpoint of the port."""
    name = (met.port.name if met.port is not None else None) or ""
    for each, _, text in _endpoints(slices, met.server.family):
        if text in known:
            continue
        known.add(text)
        subject = f"EndpointSlice {each.metadata.key}"
        told = [problem for problem in problems if problem.object == subject]
        port = f"port {name!r}" if name else "port"
        why = f"{subject} lists no {port} for {met.step.protocol}"
        if told:
            why = f"{subject} {told[0].field}: {told[0].reason}"
        place = places[text]
        yield Backend(text, 0, "unusable", why, place.pod, place.node, place.zone)


def _other_family(
    slices: Sequence[EndpointSlice], places: dict[str, _Place], family: int
) -> Iterator[Backend]:
    for _, _, text in _endpoints(slices):
        parsed = parse_address(text)
        if parsed is not None and parsed[0] != family:
            why = f"it has an {FAMILY_NAMES[parsed[0]]} address, not {FAMILY_NAMES[family]}"
            place = places[text]
            yield Backend(text, 0, "family", why, place.pod, place.node, place.zone)


def _endpoints(
    slices: Sequence[EndpointSlice], family: int = 0
) -> Iterator[tuple[EndpointSlice, Endpoint, str]]:
    """Every endpoint with its first address, canonical where it is one; 0: of all families."""
    for each in slices:
        for endpoint in each.endpoints or ():
            text = endpoint.addresses[0] if endpoint.addresses else ""
            parsed = parse_address(text)
            if parsed is not None:
                text = str(ip_address(parsed[1]))
            if parsed is not None and family in (0, parsed[0]):
                yield each, endpoint, text


def _places(slices: Sequence[EndpointSlice]) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    for each, endpoint, text in _endpoints(slices):
        target = endpoint.target_ref
        is_pod = target is not None and target.kind in ("Pod", "") and bool(target.name)
        space = (target.namespace if target is not None else "") or each.metadata.namespace
        pod = f"{space}/{target.name}" if target is not None and is_pod else ""
        place = _Place(pod, endpoint.node_name or "", endpoint.zone or "")
        found[text] = structs.replace(place, pod=place.pod or found.get(text, place).pod)
    return found
