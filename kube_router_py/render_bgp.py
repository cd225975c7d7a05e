"""What of ``render`` concerns BGP: the files of FRR's daemons, and what they are to learn. Pure."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.manifests import Manifests
from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import parse_member
from kube_router_py.routing.announcements import compile_announcements
from kube_router_py.routing.compile import compile_neighborhood, compile_router
from kube_router_py.routing.drain import drain_cause, drain_stage
from kube_router_py.routing.frr_config import render_frr
from kube_router_py.routing.frr_sections import FrrConfig
from kube_router_py.routing.model import (
    PASSWORD_MAX,
    Address,
    Network,
    PrefixRange,
    Role,
    RouterConfig,
)
from kube_router_py.routing.overlay import NodeLinks
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.peers import external_peers, secret_refs
from kube_router_py.routing.pod_cidrs import with_pod_cidrs
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.services import service_key_of

LINK_MTU = 1500
_METRIC = 20
_LONG_AFTER_S = float("inf")

Interface = IPv4Interface | IPv6Interface


class Given(Struct, frozen=True, kw_only=True):
    """What is known besides objects and flags of the agent.

    ``links`` are the addresses that the node's links have; empty: those of the Node, in networks of
    the usual size. ``namespace`` is the agent's own. ``password_list`` is what the file of
    ``--peer-router-passwords-file`` holds; None: it is not read.
    """

    links: tuple[Interface, ...] = ()
    link_mtu: int = LINK_MTU
    namespace: str = "kube-system"
    password_list: str | None = None
    show_secrets: bool = False


NOTHING_GIVEN = Given()


def render_bgp(
    manifests: Manifests,
    views: Mapping[str, NodeView],
    node: Node,
    settings: RoutingSettings,
    given: Given,
    served: frozenset[Address] | None,
    links: NodeLinks,
) -> tuple[dict[str, str], list[dict[str, Any]], set[Problem]]:
    """``frr``, what of ``routes`` FRR is to learn, and what is wrong.

    ``views`` are all nodes as they say themselves, ``node`` is this one; see
    ``render_routing.render_routing``.
    """
    config, problems = _router(manifests, views, node, settings, given, served, links)
    if config is None:
        return {}, [], problems
    try:
        frr = render_frr(config)
    except ValueError as error:
        subject = f"Node {node.metadata.name}"
        return {}, [], {*problems, Problem(subject, "", f"there is no BGP: {error}")}
    others = [with_pod_cidrs(view)[0] for name, view in views.items() if name != node.metadata.name]
    texts = _texts(frr, show_secrets=given.show_secrets)
    return texts, [*_learned(config, others, links)], problems


def bgp_notes(
    manifests: Manifests, node: Node, own: NodeView, settings: RoutingSettings, given: Given
) -> Iterator[str]:
    """What of BGP is taken for granted."""
    if _is_listed(settings) and given.password_list is None:
        yield (
            f"note: {settings.peer_passwords_file} is not read: each router is taken to have a "
            "password there"
        )
    for ref in _unknown(manifests, own, settings, given):
        what = f"the entry {ref.key} of Secret {given.namespace}/{ref.name}"
        yield f"note: {what} is not read: a password is taken to be there"
    cause, _ = drain_cause(node, settings)
    if cause:
        yield f"note: this node is drained: {cause}; shown is what it announces in the end"


def _is_listed(settings: RoutingSettings) -> bool:
    """Whether passwords of routers stand in a file."""
    return bool(
        settings.peer_addresses and settings.peer_passwords_file and not settings.peer_passwords
    )


def _password_list(settings: RoutingSettings, given: Given) -> str:
    if given.password_list is not None or not _is_listed(settings):
        return given.password_list or ""
    unknown = base64.b64encode(b"<unknown>").decode()
    return ",".join(unknown for _ in settings.peer_addresses)


def _refs(own: NodeView, settings: RoutingSettings) -> frozenset[SecretRef]:
    return secret_refs(external_peers(own, settings)[0])


def _unknown(
    manifests: Manifests, own: NodeView, settings: RoutingSettings, given: Given
) -> list[SecretRef]:
    """Entries of Secrets that are not among the objects, or not to be read."""
    known = manifests.secrets
    refs = sorted(_refs(own, settings))
    return [each for each in refs if f"{given.namespace}/{each.name}" not in known]


def _secrets(
    manifests: Manifests, own: NodeView, settings: RoutingSettings, given: Given
) -> Mapping[SecretRef, bytes]:
    """What Secrets hold; in place of what is not known, a word that says which it is."""
    found: dict[SecretRef, bytes] = {}
    for ref in _refs(own, settings):
        entries = manifests.secrets.get(f"{given.namespace}/{ref.name}")
        if entries is None:
            found[ref] = f"<Secret:{given.namespace}/{ref}"[: PASSWORD_MAX - 1].encode() + b">"
        elif ref.key in entries:
            found[ref] = entries[ref.key]
    return found


def _router(
    manifests: Manifests,
    views: Mapping[str, NodeView],
    node: Node,
    settings: RoutingSettings,
    given: Given,
    served: frozenset[Address] | None,
    links: NodeLinks,
) -> tuple[RouterConfig | None, set[Problem]]:
    """As the agent compiles it when it starts, and after a drain has come to its end."""
    own = views[node.metadata.name]
    around = compile_neighborhood(
        own,
        [parse_member(view)[0] for view in views.values()],
        settings,
        password_list=_password_list(settings, given),
        secrets=_secrets(manifests, own, settings, given),
    )
    slices: dict[str, list[EndpointSlice]] = {}
    for each in manifests.list(EndpointSlice):
        if key := service_key_of(each):
            slices.setdefault(key, []).append(each)
    services = {
        each.metadata.key: (each, slices.get(each.metadata.key, ()))
        for each in manifests.list(Service)
    }
    announced = compile_announcements(services, own.name, settings, around.peers, served)
    cause, wrong = drain_cause(node, settings)
    stage, _ = drain_stage(_LONG_AFTER_S if cause else None, settings)
    config, found = compile_router(
        settings,
        around,
        announced.current(),
        announced.outside_ranges(),
        stage=stage,
        local=frozenset(links.subnets),
    )
    return config, {*wrong, *found, *announced.problems()}


def _texts(frr: FrrConfig, *, show_secrets: bool) -> dict[str, str]:
    """The file of each daemon; empty for bfdd where no session uses BFD: it is not started."""
    text = frr.text if show_secrets else frr.masked
    return {
        daemon: text(daemon) if daemon != "bfdd" or frr.has_bfd else ""
        for daemon in ("bgpd", "zebra", "bfdd")
    }


def _learned(
    config: RouterConfig, others: Sequence[NodeView], links: NodeLinks
) -> Iterator[dict[str, Any]]:
    """Routes that FRR makes of what nodes of the same network announce, once sessions are up."""
    accepted = _Ranges(
        each
        for neighbor in config.neighbors
        if neighbor.session.role is Role.NODE
        for each in neighbor.session.accept or ()
    )
    refused = _Ranges(config.refuse)
    found: set[tuple[Network, Address]] = set()
    for view in others:
        for cidr in view.pod_cidrs:
            via = view.ipv4 if cidr.version == 4 else view.ipv6
            is_near = any(via in subnet for subnet in links.subnets.values() if via is not None)
            if via is not None and is_near and cidr in accepted and cidr not in refused:
                found.add((cidr, via))
    sources = {each.version: str(each) for each in config.source}
    for cidr, via in sorted(found, key=lambda each: (*network_order(each[0]), each[1].packed)):
        route: dict[str, Any] = {
            "by": "frr",
            "destination": str(cidr),
            "via": str(via),
            "table": "main",
            "protocol": "bgp",
            "metric": _METRIC,
        }
        if cidr.version in sources:
            route["source"] = sources[cidr.version]
        yield route


class _Ranges:
    """Ranges of prefixes, found by their networks."""

    def __init__(self, ranges: Iterable[PrefixRange]) -> None:
        self._by_network: dict[Network, set[PrefixRange]] = {}
        for each in ranges:
            self._by_network.setdefault(each.network, set()).add(each)
        self._lengths = {(each.version, each.prefixlen) for each in self._by_network}

    def __contains__(self, cidr: Network) -> bool:
        return any(
            each.shortest <= cidr.prefixlen <= each.longest
            for version, length in self._lengths
            if version == cidr.version and length <= cidr.prefixlen
            for each in self._by_network.get(cidr.supernet(new_prefix=length), ())
        )


def network_order(network: Network) -> tuple[int, bytes, int]:
    return network.version, network.network_address.packed, network.prefixlen
