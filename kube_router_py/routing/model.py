"""What the route controller wants of BGP, as values. Pure.

Addresses and prefixes are ``ipaddress`` objects, times are whole seconds unless a name says
otherwise. Nothing in here is text from outside: names are limited to what FRR takes as one word
(see ``is_word``), so that what is rendered from these values cannot be more than was meant.

Sources: RFC 4271 (BGP-4), RFC 1997 and 8092 (communities), RFC 4456 (reflectors), RFC 4724
(graceful restart), RFC 5082 (GTSM), RFC 5880 (BFD), RFC 8326 (graceful shutdown).
"""

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from msgspec import Struct

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Version = Literal[4, 6]

# FRR keeps a password of at most 80 bytes and reads it as one word.
PASSWORD_MAX = 80
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)


def is_word(text: str) -> bool:
    """Whether FRR takes this as one name: 1 to 63 of letters, digits, ``_``, ``.`` and ``-``."""
    return _WORD.fullmatch(text) is not None


class PrefixRange(Struct, frozen=True, order=True):
    """Prefixes inside ``network`` whose length is between ``shortest`` and ``longest`` (bits)."""

    network: Network
    shortest: int
    longest: int


class Community(Struct, frozen=True, order=True):
    """A community (RFC 1997, two 16-bit halves) or a large one (RFC 8092, three 32-bit parts)."""

    parts: tuple[int, int] | tuple[int, int, int]

    @property
    def is_large(self) -> bool:
        return len(self.parts) == 3


class Bfd(Struct, frozen=True):
    """Parameters of BFD sessions (RFC 5880); intervals in milliseconds."""

    detection_multiplier: int = 3
    receive_interval_ms: int = 1000
    transmit_interval_ms: int = 1000


class Role(StrEnum):
    """On which side of the cluster's border a neighbor is."""

    NODE = "node"
    EXTERNAL = "external"


class Session(Struct, frozen=True, kw_only=True):
    """What sessions with a neighbor, or with any of a listen range, are made with.

    ``remote_as`` is an AS number, ``"internal"`` (ours) or ``"external"`` (any but ours).
    ``versions`` are the address families that are exchanged. ``multihop`` is the number of hops
    that an external session may take (0 or 1: directly connected), ``ttl_security`` the number
    that it may at most have taken (GTSM; 0: off); one excludes the other. ``accept`` are the
    prefixes that may be learned; None: all that the router's ``refuse`` leaves.
    """

    role: Role
    remote_as: int | Literal["internal", "external"]
    versions: tuple[Version, ...]
    port: int = 179
    password: str = ""
    local_address: Address | None = None
    multihop: int = 0
    ttl_security: int = 0
    hold_s: int | None = None
    bfd: Bfd | None = None
    graceful_restart: bool = False
    reflector_client: bool = False
    next_hop_self: bool = False
    accept: tuple[PrefixRange, ...] | None = None
    # As the operator knows it: "node worker-2", "annotation kube-router.io/peers[1]".
    description: str = ""


class Neighbor(Struct, frozen=True, kw_only=True):
    """One neighbor, by its address, or by the interface behind which it is (unnumbered)."""

    address: Address | None = None
    interface: str = ""
    session: Session

    @property
    def key(self) -> str:
        return str(self.address) if self.address is not None else self.interface


class ListenRange(Struct, frozen=True, kw_only=True):
    """Neighbors that may come by themselves from anywhere in ``network`` (dynamic neighbors)."""

    network: Network
    session: Session
    limit: int = 100


class Kind(StrEnum):
    """What an announced prefix leads to."""

    PODS = "pods"
    SERVICE = "service"


class Announcement(Struct, frozen=True, kw_only=True):
    """A prefix that this node originates.

    Prefixes of kind PODS go to nodes and, if the router says so, to external neighbors; those of
    kind SERVICE to external neighbors only. ``peers`` narrows the external neighbors down to those
    with these keys; None: all. ``communities`` come on top of the router's own.
    """

    prefix: Network
    kind: Kind
    communities: tuple[Community, ...] = ()
    local_preference: int | None = None
    peers: tuple[str, ...] | None = None


class Aggregate(Struct, frozen=True, kw_only=True):
    """A prefix announced to external neighbors in place of the Service prefixes inside it.

    It stands as long as one of these does. ``specific_to`` are the keys of the neighbors that get
    the specific ones besides.
    """

    prefix: Network
    specific_to: tuple[str, ...] = ()


class GracefulRestart(Struct, frozen=True, kw_only=True):
    """RFC 4724: how long neighbors wait for this router, and it for their End-of-RIB (s)."""

    restart_s: int = 90
    deferral_s: int = 360


# FRR 8.4 reads at most 256 words of a line: "set as-path prepend" and these numbers.
PREPEND_MAX = 250


class Prepend(Struct, frozen=True, kw_only=True):
    """An AS number put in front of the path towards external neighbors, ``times`` times."""

    asn: int
    times: int


class RouterConfig(Struct, frozen=True, kw_only=True):
    """Everything that this node's FRR is told.

    ``listen`` and ``port`` are where bgpd listens (changed by a restart only). Sequences are
    sorted: ``neighbors`` by key, ``listen_ranges`` by network, ``announcements`` by prefix.
    ``refuse`` is learned from nobody. ``source`` are the addresses that learned routes name as
    preferred source, at most one for each family. ``drain`` marks all that is announced with the
    graceful-shutdown community (RFC 8326).
    """

    asn: int
    router_id: IPv4Address
    listen: tuple[Address, ...] = ()
    port: int = 179
    cluster_id: IPv4Address | None = None
    graceful_restart: GracefulRestart | None = None
    maximum_paths: int = 64
    neighbors: tuple[Neighbor, ...] = ()
    listen_ranges: tuple[ListenRange, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    announce_pods_outside: bool = True
    communities: tuple[Community, ...] = ()
    prepend: Prepend | None = None
    refuse: tuple[PrefixRange, ...] = ()
    source: tuple[Address, ...] = ()
    drain: bool = False
