"""Compile one Service to what this node announces of it. Pure.

An address is announced if the Service's annotation for its sort says so, or else (that of a load
balancer) the pool it is from, or else the flag; not by nodes that its pool leaves out; and if
traffic that arrives here is served: where only endpoints of this node may be used (traffic policy
Local), one of them must be usable for a port of the Service, in the family of the address. With
traffic policy Cluster there is no such condition, as in kube-router: an address without any
endpoint is announced, too, so that its clients are refused instead of timing out.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from kube_router_py.cluster.objects import EndpointSlice, Service
from kube_router_py.endpoint_slices import PROTOCOLS, listed_endpoints
from kube_router_py.option_types import parse_peer
from kube_router_py.problem import Problem
from kube_router_py.routing.communities import parse_communities
from kube_router_py.routing.model import Community
from kube_router_py.routing.pool_terms import NO_POOL, PoolTerms, pool_of
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import annotation_field, parse_boolean, shown
from kube_router_py.service_addresses import Address, Kind, Report, compile_addresses, refusal
from kube_router_py.services import (
    has_addresses,
    is_external_local,
    is_internal_local,
    is_proxied,
    local_endpoints,
)

ADVERTISE_ANNOTATIONS = {
    Kind.CLUSTER_IP: "kube-router.io/service.advertise.clusterip",
    Kind.EXTERNAL_IP: "kube-router.io/service.advertise.externalip",
    Kind.LOAD_BALANCER_IP: "kube-router.io/service.advertise.loadbalancerip",
}
_BGP = "kube-router.io/service.bgp."
LOCAL_PREFERENCE_ANNOTATION = f"{_BGP}local-preference"
COMMUNITIES_ANNOTATION = f"{_BGP}communities"
PEERS_ANNOTATION = f"{_BGP}peers"

_MOST_PREFERRED = 2**32 - 1
_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)


class Terms(Struct, frozen=True):
    """How a Service wants its addresses announced.

    ``peers`` are the keys of the only neighbors outside that hear of them; None: all hear.
    """

    communities: tuple[Community, ...] = ()
    local_preference: int | None = None
    peers: tuple[str, ...] | None = None


ORDINARY = Terms()


class ServiceExport(Struct, frozen=True):
    """What one Service asks to be announced from this node; addresses are packed.

    ``addresses`` are all that it may have, ``announced`` those of them that are announced;
    ``pooled`` are the terms of those for which pools say otherwise than ``terms``.
    """

    created: str
    addresses: frozenset[bytes] = frozenset()
    announced: frozenset[bytes] = frozenset()
    terms: Terms = ORDINARY
    problems: tuple[Problem, ...] = ()
    pooled: dict[bytes, Terms] = {}

    def terms_of(self, packed: bytes) -> Terms:
        """How an address is announced."""
        return self.pooled.get(packed, self.terms)

    @property
    def unusual(self) -> frozenset[Terms]:
        """All the terms it asks for, but ordinary ones."""
        if not self.pooled:
            return frozenset((self.terms,) if self.announced and self.terms != ORDINARY else ())
        return frozenset(map(self.terms_of, self.announced)) - {ORDINARY}


def compile_export(
    service: Service, slices: Sequence[EndpointSlice], node: str, settings: RoutingSettings
) -> ServiceExport:
    """What of one Service the node of this name announces; nothing of Services without addresses.

    Services that are another proxy's are announced where ours does not run. Where it does, it tells
    what is wrong with addresses and slices, and nothing of that is repeated here.
    """
    created = service.metadata.creation_timestamp or ""
    if not (is_proxied(service) if settings.has_proxy else has_addresses(service)):
        return ServiceExport(created)
    return _Exporter(service, slices, node, settings).compile(created)


class _Exporter:
    """The compilation of one Service: what its parts have in common while it lasts."""

    def __init__(
        self,
        service: Service,
        slices: Sequence[EndpointSlice],
        node: str,
        settings: RoutingSettings,
    ) -> None:
        self._service, self._slices = service, slices
        self._node, self._settings = node, settings
        self._problems: list[Problem] = []
        self._served: dict[int, bool] = {}

    def compile(self, created: str) -> ServiceExport:
        tell = _nobody if self._settings.has_proxy else self._report
        addresses = compile_addresses(self._service, self._settings, tell, tell)
        said = self._said()
        by_flag = _by_flag(self._settings)
        terms = compile_terms(self._service, self._report)
        announced: set[bytes] = set()
        pooled: dict[bytes, Terms] = {}
        for address in addresses:
            for kind in _kinds(address, self._settings):
                pool = NO_POOL
                if kind is Kind.LOAD_BALANCER_IP:
                    pool = pool_of(address.packed, self._settings.pools)
                by_default = kind in by_flag if pool.is_announced is None else pool.is_announced
                is_wanted = pool.is_here and said.get(kind, by_default)
                if is_wanted and self._is_served(kind, address.family):
                    announced.add(address.packed)
                    if (own := self._in_pool(terms, pool)) != terms:
                        pooled[address.packed] = own
        return ServiceExport(
            created=created,
            addresses=frozenset(address.packed for address in addresses),
            announced=frozenset(announced),
            terms=terms,
            problems=tuple(sorted(set(self._problems))),
            pooled=pooled,
        )

    def _in_pool(self, terms: Terms, pool: PoolTerms) -> Terms:
        """The terms of an address from a pool; an annotation counts even if it is wrong."""
        if not pool.has_terms:
            return terms
        notes = self._service.metadata.annotations or {}
        has_communities = COMMUNITIES_ANNOTATION in notes
        has_preference = LOCAL_PREFERENCE_ANNOTATION in notes
        return Terms(
            terms.communities if has_communities else pool.communities,
            terms.local_preference if has_preference else pool.local_preference,
            terms.peers,
        )

    def _report(self, field: str, reason: str) -> None:
        self._problems.append(Problem(f"Service {self._service.metadata.key}", field, reason))

    def _said(self) -> dict[Kind, bool]:
        """What annotations say of announcing the sorts of addresses."""
        said: dict[Kind, bool] = {}
        for kind, name in ADVERTISE_ANNOTATIONS.items():
            text = self._service.metadata.annotation(name)
            if text is None:
                continue
            is_wanted = parse_boolean(text)
            if is_wanted is None:
                reason = f"{shown(text)} is neither true nor false; it counts as false"
                self._report(annotation_field(name), reason)
            said[kind] = bool(is_wanted)
        return said

    def _is_served(self, kind: Kind, family: int) -> bool:
        """Whether traffic that comes here may go on."""
        is_local = is_internal_local if kind is Kind.CLUSTER_IP else is_external_local
        if not is_local(self._service):
            return True
        if family not in self._served:
            self._served[family] = self._has_local_endpoint(family)
        return self._served[family]

    def _has_local_endpoint(self, family: int) -> bool:
        problems = [] if self._settings.has_proxy else self._problems
        for port in self._service.spec.ports or ():
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None:
                continue
            listed, _ = listed_endpoints(
                self._slices, port.name or "", protocol, family, _endpoint_key, problems
            )
            if local_endpoints(listed, self._node):
                return True
        return False


def _by_flag(settings: RoutingSettings) -> set[Kind]:
    flags = (
        (Kind.CLUSTER_IP, settings.advertise_cluster_ip),
        (Kind.EXTERNAL_IP, settings.advertise_external_ip),
        (Kind.LOAD_BALANCER_IP, settings.advertise_load_balancer_ip),
    )
    return {kind for kind, is_announced in flags if is_announced}


def _nobody(field: str, reason: str) -> None:
    """The service proxy of this node tells the same."""


def _endpoint_key(family: int, packed: bytes, port: int) -> tuple[bytes, int]:
    return packed, port


def _kinds(address: Address, settings: RoutingSettings) -> Iterator[Kind]:
    """The sorts of an address: an external IP may be one that a load balancer gave out, too."""
    yield address.kind
    is_other = address.by_load_balancer and address.kind is not Kind.LOAD_BALANCER_IP
    if is_other and not refusal(Kind.LOAD_BALANCER_IP, address.packed, settings):
        yield Kind.LOAD_BALANCER_IP


def compile_terms(service: Service, report: Report) -> Terms:
    """The annotations that say how a Service is announced; ``report`` gets (field, reason).

    A local preference or a community that cannot be understood is left out. If the peers cannot be
    understood, none of them hears: a Service meant for some routers must not reach all.
    """
    annotations = service.metadata.annotations
    if not annotations or not any(name.startswith(_BGP) for name in annotations):
        return ORDINARY
    communities: tuple[Community, ...] = ()
    if (text := annotations.get(COMMUNITIES_ANNOTATION)) is not None:
        communities, mistakes = parse_communities(text)
        for mistake in mistakes:
            report(annotation_field(COMMUNITIES_ANNOTATION), mistake)
    preference: int | None = None
    if (text := annotations.get(LOCAL_PREFERENCE_ANNOTATION)) is not None:
        preference = int(text) if _DIGITS.fullmatch(text.strip()) else None
        if preference is None or preference > _MOST_PREFERRED:
            preference = None
            reason = f"{shown(text)} is not a number within 0-{_MOST_PREFERRED}; it is left out"
            report(annotation_field(LOCAL_PREFERENCE_ANNOTATION), reason)
    peers: tuple[str, ...] | None = None
    if (text := annotations.get(PEERS_ANNOTATION)) is not None:
        try:
            peers = tuple(sorted({parse_peer(item.strip()) for item in text.split(",")}))
        except ValueError:
            peers = ()
            reason = (
                f"{shown(text)} is not a list of routers' IP addresses or interfaces; "
                "the Service is announced to nobody"
            )
            report(annotation_field(PEERS_ANNOTATION), reason)
    return Terms(communities, preference, peers)
