"""Read EndpointSlices: the endpoints of one Service port in one family. Pure.

Shared by the parts that ask where a Service is served, so that all of them see the same endpoints.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from kube_router_py.cluster.objects import Endpoint, EndpointSlice, ZoneHint
from kube_router_py.problem import Problem
from kube_router_py.services import (
    FAMILY_NAMES,
    Candidate,
    parse_address,
    unusable_address,
    usability,
)

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

T = TypeVar("T")


def listed_endpoints(
    slices: Sequence[EndpointSlice],
    port_name: str,
    protocol: int,
    family: int,
    key: Callable[[int, bytes, int], T],
    problems: list[Problem],
) -> tuple[dict[T, Candidate], dict[T, str]]:
    """All listed endpoints of one port and family, and the UIDs of their pods where they are named.

    The slices are merged: one entry per (address, port), with its best usability, under what
    ``key`` makes of family (socket.AF_*), packed address and port. A pod may stand in two slices
    for a moment while the controller moves it, with different conditions. Appends to ``problems``
    what is wrong with a slice.
    """
    listed: dict[T, Candidate] = {}
    pods: dict[T, str] = {}
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
            found = key(family, packed, port)
            candidate = _candidate(endpoint)
            known = listed.get(found)
            listed[found] = candidate if known is None else _united(known, candidate)
            if endpoint.target_ref is not None and endpoint.target_ref.kind == "Pod":
                pods[found] = max(endpoint.target_ref.uid, pods.get(found, ""))
    return listed, pods


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
