"""Who this node is to its neighbors: AS number, router id, cluster id, where it listens. Pure.

With ``--nodes-full-mesh`` all nodes are in the AS of ``--cluster-asn``, whatever they are annotated
with, as in kube-router; without it each node is in the AS of its annotation, and one without
annotation has no BGP.
"""

from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from kube_router_py.problem import Problem
from kube_router_py.routing.annotations import (
    ASN_ANNOTATION,
    LISTEN_ANNOTATION,
    Member,
    NodeAnnotations,
)
from kube_router_py.routing.model import Address, Version
from kube_router_py.routing.prefixes import host_prefix, prefix_order
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.texts import annotation_field

_FNV_OFFSET, _FNV_PRIME = 2166136261, 16777619


class Identity(Struct, frozen=True, kw_only=True):
    """``listen`` is sorted; ``cluster_id`` is that of a reflector, None: its router id."""

    asn: int
    router_id: IPv4Address
    listen: tuple[Address, ...]
    cluster_id: IPv4Address | None = None


def asn_of(member: Member, settings: RoutingSettings) -> int | None:
    """The AS that a node is in; None: it is in none, and no session is held with it."""
    return settings.cluster_asn if settings.full_mesh else member.asn


def usable_versions(own: Member, settings: RoutingSettings) -> tuple[Version, ...]:
    """The enabled IP versions that this node has an address of, 4 first."""
    return tuple(version for version in settings.versions if own.address_of(version) is not None)


def compile_identity(
    own: Member, annotations: NodeAnnotations, settings: RoutingSettings
) -> tuple[Identity | None, list[Problem]]:
    """This node's identity; None where it lacks what BGP needs, which the Problems say."""
    subject = f"Node {own.name}"
    problems = list(_addresses(own, subject, settings))
    asn = asn_of(own, settings)
    field = annotation_field(ASN_ANNOTATION)
    if asn is None:
        reason = "the node has no AS number; annotate it, or set --nodes-full-mesh"
        problems.append(Problem(subject, field, f"{reason}: there are no BGP sessions until then"))
    elif own.asn not in (None, asn):
        reason = f"{own.asn} does not count: with --nodes-full-mesh all nodes are in AS {asn}"
        problems.append(Problem(subject, field, reason))
    router_id = _router_id(own, settings)
    if router_id is None:
        reason = "a node without IPv4 address needs --router-id: there are no BGP sessions"
        problems.append(Problem(subject, "status.addresses", reason))
    elif not int(router_id):
        reason = "0.0.0.0 is no router id; give an address, or generate"
        problems.append(Problem("Flag --router-id", "", reason))
    listen = _listen(own, annotations, settings, problems)
    if asn is None or router_id is None or not int(router_id) or not listen:
        return None, problems
    is_server = own.reflector is not None and own.reflector.is_server
    identity = Identity(
        asn=asn,
        router_id=router_id,
        listen=listen,
        cluster_id=own.reflector.cluster_id if own.reflector and is_server else None,
    )
    return identity, problems


def generated_router_id(address: IPv4Address | IPv6Address) -> IPv4Address:
    """FNV-1a (32 bits) of the address in its 16-byte form, as kube-router generates it."""
    packed = address.packed
    if len(packed) == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    number = _FNV_OFFSET
    for byte in packed:
        number = (number ^ byte) * _FNV_PRIME % 2**32
    return IPv4Address(number)


def _router_id(own: Member, settings: RoutingSettings) -> IPv4Address | None:
    if settings.generate_router_id:
        return generated_router_id(own.address) if own.address is not None else None
    return settings.router_id or own.ipv4


def _addresses(own: Member, subject: str, settings: RoutingSettings) -> list[Problem]:
    """An enabled family that the node has no address of: its routes lead nowhere."""
    return [
        Problem(
            subject,
            "status.addresses",
            f"the node has no usable IPv{version} address: there are no BGP sessions over "
            f"IPv{version}; give it one, or set --enable-ipv{version}=false",
        )
        for version in settings.versions
        if own.address_of(version) is None
    ]


def _listen(
    own: Member, annotations: NodeAnnotations, settings: RoutingSettings, problems: list[Problem]
) -> tuple[Address, ...]:
    """Addresses of the annotation, as far as their family is enabled; or else the node's own."""
    enabled = [each for each in annotations.listen if each.version in settings.versions]
    for address in annotations.listen:
        if address not in enabled:
            reason = (
                f"{address} is left out: --enable-ipv{address.version}=false; leave it out here, "
                "or enable that family"
            )
            field = annotation_field(LISTEN_ANNOTATION)
            problems.append(Problem(f"Node {own.name}", field, reason))
    own_addresses = (own.address_of(version) for version in settings.versions)
    addresses = enabled or [each for each in own_addresses if each is not None]
    return tuple(sorted(addresses, key=lambda each: prefix_order(host_prefix(each))))
