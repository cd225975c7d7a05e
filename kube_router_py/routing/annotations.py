"""Read what a Node says about itself as a BGP router: its address, its annotations. Pure.

Annotations are those of kube-router, all below ``kube-router.io/``. Here are read ``node.asn``,
``rr.server`` and ``rr.client`` of every node, and of this node ``bgp-local-addresses``,
``path-prepend.as``, ``path-prepend.repeat-n`` and ``node.bgp.communities``. Pod CIDRs are read by
``pod_cidrs``, routers outside by ``peer_annotations``, what is refused by ``imports``, the wish to
be drained by ``drain``.

Differences from kube-router, where all of this is read once: an item that is wrong is told and
left out, and everything else holds. An unusable cluster id leaves the node a reflector with its
router id in its place (FRR's own choice), instead of keeping BGP from starting. The AS path is
lengthened by at most 250 (FRR takes no more words), not 255.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from msgspec import Struct

from kube_router_py.cluster.node import NodeView
from kube_router_py.problem import Problem
from kube_router_py.routing.communities import parse_communities
from kube_router_py.routing.model import (
    PREPEND_MAX,
    Address,
    Community,
    Network,
    Prepend,
    Version,
)
from kube_router_py.routing.pod_cidrs import with_pod_cidrs
from kube_router_py.routing.texts import annotation_field, shown
from kube_router_py.routing.values import parse_address, parse_number, unusable_neighbor

_PREFIX = "kube-router.io/"
ASN_ANNOTATION = f"{_PREFIX}node.asn"
SERVER_ANNOTATION = f"{_PREFIX}rr.server"
CLIENT_ANNOTATION = f"{_PREFIX}rr.client"
LISTEN_ANNOTATION = f"{_PREFIX}bgp-local-addresses"
PREPEND_AS_ANNOTATION = f"{_PREFIX}path-prepend.as"
PREPEND_TIMES_ANNOTATION = f"{_PREFIX}path-prepend.repeat-n"
COMMUNITIES_ANNOTATION = f"{_PREFIX}node.bgp.communities"

T = TypeVar("T")

_MOST_AS = 2**32 - 1
# Characters of one annotation, and items of a list: more is no list that anyone wrote.
_LONGEST = 1 << 14
_MOST = 64


class Reflector(Struct, frozen=True):
    """A node's part in route reflection (RFC 4456); None: the router id is the cluster id."""

    is_server: bool
    cluster_id: IPv4Address | None = None


class Member(Struct, frozen=True, kw_only=True):
    """A node of the cluster as other nodes hold sessions with it.

    ``address`` is the primary address whatever it is good for, ``ipv4`` and ``ipv6`` the best ones
    that sessions can be held with, ``addresses`` all that the node lists. ``asn`` is what the
    annotation says; ``identity.asn_of`` knows whether that counts.
    """

    name: str
    address: Address | None = None
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    addresses: tuple[Address, ...] = ()
    asn: int | None = None
    reflector: Reflector | None = None
    pod_networks: tuple[Network, ...] = ()

    def address_of(self, version: Version) -> Address | None:
        return self.ipv4 if version == 4 else self.ipv6


class NodeAnnotations(Struct, frozen=True, kw_only=True):
    """What this node's annotations say to it alone. No ``listen``: its own addresses."""

    listen: tuple[Address, ...] = ()
    prepend: Prepend | None = None
    communities: tuple[Community, ...] = ()


def parse_member(view: NodeView) -> tuple[Member, list[Problem]]:
    """A node as a router, and what is wrong with its annotations, for the node itself to tell."""
    reader = _Reader(view)
    view, problems = with_pod_cidrs(view)
    usable = [address for address in view.addresses if not unusable_neighbor(address)]
    member = Member(
        name=view.name,
        address=view.address,
        ipv4=next((each for each in usable if isinstance(each, IPv4Address)), None),
        ipv6=next((each for each in usable if isinstance(each, IPv6Address)), None),
        addresses=view.addresses,
        asn=reader.take(ASN_ANNOTATION, _asn),
        reflector=_reflector(reader),
        # One that is everything would let a default route in.
        pod_networks=tuple(network for network in view.pod_cidrs if network.prefixlen),
    )
    return member, [*reader.problems, *problems]


def parse_annotations(view: NodeView) -> tuple[NodeAnnotations, list[Problem]]:
    """What a node's annotations say to itself, and what is wrong with them."""
    reader = _Reader(view)
    annotations = NodeAnnotations(
        listen=reader.items(LISTEN_ANNOTATION, _listen),
        prepend=_prepend(reader),
        communities=_communities(reader),
    )
    return annotations, reader.problems


class _Reader:
    """The annotations of one Node, and what was found to be wrong with them."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self.problems: list[Problem] = []

    def text(self, name: str) -> str | None:
        """An annotation without blanks around it; None where there is none, or nothing in it."""
        text = self._view.annotation(name)
        if text is not None and len(text) > _LONGEST:
            self.tell(name, f"it is longer than {_LONGEST} characters and ignored; shorten it")
            return None
        return text.strip() or None if text is not None else None

    def has(self, name: str) -> bool:
        return self._view.annotation(name) is not None

    def take(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self.text(name)
        try:
            return parse(text) if text is not None else None
        except ValueError as error:
            self.tell(name, f"{shown(text or '')} {error}; it is ignored")
            return None

    def items(self, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """The items of a list with commas between, each once; blank ones are skipped."""
        found: dict[T, None] = {}
        texts = [each for item in (self.text(name) or "").split(",") if (each := item.strip())]
        if len(texts) > _MOST:
            self.tell(name, f"it has {len(texts)} items; the first {_MOST} count")
        for text in texts[:_MOST]:
            try:
                found.setdefault(parse(text))
            except ValueError as error:
                self.tell(name, f"{shown(text)} {error}; it is left out")
        return tuple(found)

    def tell(self, name: str, reason: str) -> None:
        problem = Problem(f"Node {self._view.name}", annotation_field(name), reason)
        self.problems.append(problem)


def _reflector(reader: _Reader) -> Reflector | None:
    """Whose annotation is there at all is one: other nodes look at no more than that."""
    for name, is_server in ((SERVER_ANNOTATION, True), (CLIENT_ANNOTATION, False)):
        if reader.has(name):
            return Reflector(is_server, reader.take(name, _cluster_id))
    return None


def _prepend(reader: _Reader) -> Prepend | None:
    names = (PREPEND_AS_ANNOTATION, PREPEND_TIMES_ANNOTATION)
    given = [name for name in names if reader.text(name) is not None]
    if len(given) == 1:
        missing = next(name for name in names if name not in given)
        reader.tell(given[0], f"nothing is prepended without {missing}; annotate both or neither")
        return None
    asn = reader.take(PREPEND_AS_ANNOTATION, _asn)
    times = reader.take(PREPEND_TIMES_ANNOTATION, _times)
    if not asn or not times:
        return None
    if times > PREPEND_MAX:
        reason = f"{times} is more than FRR can do; it is prepended {PREPEND_MAX} times"
        reader.tell(PREPEND_TIMES_ANNOTATION, reason)
    return Prepend(asn=asn, times=min(times, PREPEND_MAX))


def _communities(reader: _Reader) -> tuple[Community, ...]:
    text = reader.text(COMMUNITIES_ANNOTATION)
    if text is None:
        return ()
    communities, mistakes = parse_communities(text)
    for mistake in mistakes:
        reader.tell(COMMUNITIES_ANNOTATION, f"{mistake}; the others are attached")
    return communities


# --- values -------------------------------------------------------------------------------------


def _asn(text: str) -> int:
    return parse_number(text, 1, _MOST_AS, "an AS number")


def _times(text: str) -> int:
    return parse_number(text, 0, 255)


def _cluster_id(text: str) -> IPv4Address:
    """A number of 32 bits other than 0, or the address that it looks like."""
    try:
        address = IPv4Address(text) if "." in text else IPv4Address(parse_number(text, 1, _MOST_AS))
    except ValueError:
        address = IPv4Address(0)
    if not int(address):
        raise ValueError(
            f"is not a cluster id; write a number from 1 to {_MOST_AS}, or an IPv4 address"
        )
    return address


def _listen(text: str) -> Address:
    """An address that bgpd can listen on."""
    address = parse_address(text)
    if address.is_multicast or (address.version == 6 and address.is_link_local):
        raise ValueError("is nothing to listen on; write an address of the node")
    return address
