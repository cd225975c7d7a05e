"""Read what a Service of type LoadBalancer asks for. Pure.

Which Services are ours: those of the class ``kube-router``; those of no class, or of the class
``default``, unless --loadbalancer-default-class=false (as kube-router).

Of several ways to ask for the same thing the first in this order counts, and what a later one says
otherwise is told: the annotation of kube-router.io, of metallb.io, of metallb.universe.tf,
``spec.loadBalancerIP``. Sources: Kubernetes API reference v1.3x (core/v1 Service), KEP-563
(dual-stack), KEP-1959 (load balancer class), https://metallb.io/usage.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Protocol

from msgspec import Struct

from kube_router_py.address_pools import Address
from kube_router_py.cluster.objects import LoadBalancerIngress, Service
from kube_router_py.loadbalancer.decisions import Reason, Told
from kube_router_py.problem import Problem
from kube_router_py.services import (
    Network,
    cluster_ips,
    is_external_local,
    is_inside,
    parse_address,
    unusable_address,
)

CLASS = "kube-router"
_NO_CLASS = (None, "", "default")

POOL_ANNOTATIONS = (
    "kube-router.io/address-pool",
    "metallb.io/address-pool",
    "metallb.universe.tf/address-pool",
)
ADDRESS_ANNOTATIONS = (
    "kube-router.io/load-balancer-ips",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
)
SHARE_ANNOTATIONS = (
    "kube-router.io/allow-shared-ip",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
)
LEGACY_FIELD = "spec.loadBalancerIP"

_VERSIONS = {"IPv4": 4, "IPv6": 6}
_POOL_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
# Of so many words at least one is a mistake. Whoever may write an annotation has room for 100,000,
# and each that is told is an Event.
_MOST_WORDS = 3


class ClassRules(Protocol):
    """The flag that says which Services are ours."""

    @property
    def loadbalancer_default_class(self) -> bool: ...


class Rules(ClassRules, Protocol):
    """The flags that say so, and which external IPs a Service may have."""

    @property
    def strict_external_ip_validation(self) -> bool: ...
    @property
    def service_external_ip_range(self) -> tuple[Network, ...]: ...


class Request(Struct, frozen=True):
    """What one Service asks for, and what its status says it has.

    ``versions``: the families wanted (4, 6), the first one first; ``needs_all``: all of them or
    none. ``pool`` and ``addresses`` (one of a family at most) are what it insists on, in which
    fields the two next ones say; ``share`` is the key by which it shares an address; all empty
    where it does not care. ``ports`` are (protocol, port); ``backends`` is empty with external
    traffic policy Cluster, and otherwise says which endpoints there are: Services that share an
    address have to agree on it. ``current`` are the addresses in its status, ``current_texts``
    everything that its status has, as written.

    ``mistakes``: why it cannot be read; it keeps what it has and gets nothing. ``is_early``: the
    same, as the labels of its namespace are not known yet. ``notes``: what is not heeded.
    """

    key: str
    uid: str
    created: str
    versions: tuple[int, ...]
    needs_all: bool = False
    pool: str = ""
    addresses: tuple[Address, ...] = ()
    pool_field: str = ""
    address_field: str = ""
    share: str = ""
    ports: frozenset[tuple[str, int]] = frozenset()
    backends: str = ""
    labels: Mapping[str, str] = {}
    current: tuple[Address, ...] = ()
    current_texts: tuple[str, ...] = ()
    mistakes: tuple[Told, ...] = ()
    notes: tuple[Told, ...] = ()
    is_early: bool = False

    @property
    def namespace(self) -> str:
        return self.key.partition("/")[0]

    @property
    def age(self) -> tuple[str, str]:
        """Sorts Services, the oldest first."""
        return self.created, self.key

    def asked(self, version: int) -> Address | None:
        """The address of this family that it insists on."""
        return next((each for each in self.addresses if each.version == version), None)


def compile_request(service: Service, rules: ClassRules) -> Request | None:
    """What a Service asks for; None if it is not ours: of another type or class, or going."""
    metadata, spec = service.metadata, service.spec
    if spec.type != "LoadBalancer" or metadata.deletion_timestamp:
        return None
    if spec.load_balancer_class in _NO_CLASS:
        if not rules.loadbalancer_default_class:
            return None
    elif spec.load_balancer_class != CLASS:
        return None
    reader = _Reader(service)
    return Request(
        key=metadata.key,
        uid=metadata.uid,
        created=metadata.creation_timestamp or "",
        versions=reader.versions,
        needs_all=spec.ip_family_policy == "RequireDualStack",
        pool=reader.pool(),
        addresses=reader.addresses(),
        pool_field=reader.fields[0],
        address_field=reader.fields[1],
        share=reader.text(SHARE_ANNOTATIONS),
        ports=frozenset(((port.protocol or "TCP").upper(), port.port) for port in spec.ports or ()),
        backends=_backends(service),
        labels=metadata.labels or {},
        current=status_addresses(service),
        current_texts=tuple(each.ip or each.hostname or "" for each in _ingress_of(service)),
        mistakes=tuple(reader.mistakes),
        notes=tuple(reader.notes),
    )


def status_addresses(service: Service) -> tuple[Address, ...]:
    """The addresses in the status of a Service, without what no Service may have."""
    return tuple(_usable(each.ip for each in _ingress_of(service)))


def foreign_addresses(service: Service, is_ours: bool, rules: Rules) -> tuple[Address, ...]:
    """The addresses that a Service uses and that are not the allocator's to give: its external
    IPs, and what another load balancer has given it. A Service that is being deleted is not ours
    any more, but its address is still served. An external IP that no node admits is not used:
    whoever may create a Service could use up all pools by naming their addresses."""
    found = dict.fromkeys(_usable(service.spec.external_ips or ()))
    if rules.strict_external_ip_validation:
        admitted = rules.service_external_ip_range
        found = {each: None for each in found if is_inside(each.packed, admitted)}
    if not is_ours and service.spec.type == "LoadBalancer":
        found |= dict.fromkeys(status_addresses(service))
    return tuple(found)


class _Reader:
    """Reads the texts of one Service, and collects what is wrong with them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.versions = _versions(service)
        self.fields = ["", ""]  # those of the pool and of the addresses
        self.mistakes: list[Told] = []
        self.notes: list[Told] = []

    def text(self, names: tuple[str, ...]) -> str:
        """The first of these annotations that says something."""
        said = list(self._said(names))
        for field, other in said[1:]:
            if other != said[0][1]:
                self._note(field, f"{_shown(other)} is not heeded: {said[0][0]} says otherwise")
        return said[0][1] if said else ""

    def pool(self) -> str:
        """The pool asked for; none if there can be none of that name."""
        name = self.text(POOL_ANNOTATIONS)
        self.fields[0] = next((field for field, _ in self._said(POOL_ANNOTATIONS)), "")
        if name and not _POOL_NAME.fullmatch(name):
            self._mistake(
                self.fields[0], f"{_shown(name)} is no name of a pool; name one that there is"
            )
            return ""
        return name

    def addresses(self) -> tuple[Address, ...]:
        """The addresses asked for; none if they are not what a Service may ask for."""
        said = list(self._said(ADDRESS_ANNOTATIONS))
        if legacy := (self._service.spec.load_balancer_ip or "").strip():
            said.append((LEGACY_FIELD, legacy))
        if not said:
            return ()
        (field, text), *others = said
        self.fields[1] = field
        found = self._parse(field, text)
        for other, words in others:
            if not set(map(_canonical, words.split(",", _MOST_WORDS))) <= set(map(str, found)):
                self._note(other, f"{_shown(words)} is not heeded: {field} says otherwise")
        return found

    def _said(self, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for name in names:
            if text := (self._service.metadata.annotation(name) or "").strip():
                yield f"metadata.annotations[{name}]", text

    def _parse(self, field: str, text: str) -> tuple[Address, ...]:
        found: dict[int, Address] = {}
        before = len(self.mistakes)
        for word in map(str.strip, text.split(",", _MOST_WORDS)[:_MOST_WORDS]):
            parsed = parse_address(word)
            if parsed is None:
                self._mistake(field, f"{_shown(word)} is no IP address; name one of each family")
            elif why := unusable_address(parsed[1]):
                self._mistake(field, f"{word} is {why}; name one of a pool")
            elif (address := ip_address(parsed[1])).version in found:
                self._mistake(field, f"{word} is one too many: one of each family is all there is")
            elif address.version not in self.versions:
                families = " and ".join(f"IPv{each}" for each in self.versions)
                self._mistake(
                    field,
                    f"{word} is of another family than the Service, which has {families}; change "
                    "it, or spec.ipFamilies",
                    Reason.WRONG_FAMILY,
                )
            else:
                found[address.version] = address
        return tuple(found.values()) if len(self.mistakes) == before else ()

    def _mistake(self, field: str, text: str, reason: Reason = Reason.INVALID_REQUEST) -> None:
        self.mistakes.append(self._told(reason, field, text))

    def _note(self, field: str, text: str) -> None:
        self.notes.append(self._told(Reason.NOT_HEEDED, field, text))

    def _told(self, reason: Reason, field: str, text: str) -> Told:
        return Told(reason, Problem(f"Service {self._service.metadata.key}", field, text))


def _versions(service: Service) -> tuple[int, ...]:
    """The families of a Service; the API server fills them in, a manifest may not have them."""
    families = (_VERSIONS.get(each) for each in service.spec.ip_families or ())
    by_address = (6 if ":" in each else 4 for each in cluster_ips(service) if each != "None")
    found = [each for each in families if each] or list(by_address) or [4]
    return tuple(dict.fromkeys(found))


def _ingress_of(service: Service) -> tuple[LoadBalancerIngress, ...]:
    status = service.status
    return (status.load_balancer.ingress or ()) if status and status.load_balancer else ()


def _usable(texts: Iterable[str | None]) -> Iterator[Address]:
    for text in texts:
        parsed = parse_address(text) if text else None
        if parsed is not None and not unusable_address(parsed[1]):
            yield ip_address(parsed[1])


def _backends(service: Service) -> str:
    """Empty unless only endpoints of the node itself count; then which those are: a selector
    selects in its own namespace."""
    if not is_external_local(service):
        return ""
    selector = service.spec.selector
    if not selector:  # made by hand: whether another's are the same nobody knows
        return f"those of {service.metadata.key}"
    selected = ",".join(f"{name}={value}" for name, value in sorted(selector.items()))
    return f"{service.metadata.namespace}: {selected}"


def _canonical(text: str) -> str:
    parsed = parse_address(text.strip())
    return str(ip_address(parsed[1])) if parsed else text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
