"""Compile the EndpointSlices of one Service to real servers, for one Service port and family."""

from collections.abc import Sequence

from msgspec import Struct

from kube_router_py.cluster.objects import Endpoint, EndpointSlice
from kube_router_py.problem import Problem
from kube_router_py.proxy.model import RealServerKey
from kube_router_py.proxy.settings import FAMILY_NAMES
from kube_router_py.services import Usability, parse_address, unusable_address, usability, usable

_PROTOCOL_NAMES = {6: "TCP", 17: "UDP", 132: "SCTP"}


class EndpointGroup(Struct, frozen=True):
    """Real servers of one port under one traffic policy; ``usable`` is sorted."""

    usable: tuple[RealServerKey, ...]
    paused: frozenset[RealServerKey]
    terminating: frozenset[RealServerKey]


class Endpoints:
    """All listed endpoints of one port and family, grouped on demand by traffic policy."""

    def __init__(self, listed: dict[RealServerKey, Usability], local: set[RealServerKey]) -> None:
        self._listed, self._local = listed, local
        self._groups: dict[bool, EndpointGroup] = {}

    def group(self, *, local: bool) -> EndpointGroup:
        """The endpoints that policy Cluster, or policy Local (``local=True``), may use."""
        if local not in self._groups:
            self._groups[local] = self._group(local)
        return self._groups[local]

    def _group(self, local: bool) -> EndpointGroup:
        listed = [
            (key, use) for key, use in self._listed.items() if not local or key in self._local
        ]
        chosen = tuple(sorted(usable(listed)))
        taken = set(chosen)
        rest = {key: use for key, use in listed if key not in taken}
        return EndpointGroup(
            usable=chosen,
            paused=frozenset(key for key, use in rest.items() if use is Usability.PAUSED),
            terminating=frozenset(key for key, use in rest.items() if use is not Usability.PAUSED),
        )


def compile_endpoints(
    slices: Sequence[EndpointSlice],
    port_name: str,
    protocol: int,
    family: int,
    node_name: str,
    problems: list[Problem],
) -> Endpoints:
    """Merge the slices: one entry per (address, port), with its best usability.

    A pod may stand in two slices for a moment while the controller moves it, with different
    conditions. Appends to ``problems`` what is wrong with a slice.
    """
    listed: dict[RealServerKey, Usability] = {}
    local: set[RealServerKey] = set()
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
            use = usability(endpoint.conditions)
            listed[key] = max(use, listed.get(key, use))
            if endpoint.node_name == node_name:
                local.add(key)
    return Endpoints(listed, local)


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
