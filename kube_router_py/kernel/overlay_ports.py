"""What the overlay asks of a host: tunnels, routes and rules as values, and the Protocols.

    tun-0123456789a   ipip or ip6tnl, one for each other node and family
    tun-vxlan         vxlan over IPv4, one for all nodes; ``tun-vxlan6`` over IPv6

Rules for adapters: see ``kernel.ports``. Values are made of ``ipaddress`` objects. Pure.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Protocol

from msgspec import Struct

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAIN: Final = 254
TABLE: Final = 77
"""The table ``kube-router``: what pods send to nodes beyond a tunnel."""
TABLE_NAME: Final = "kube-router"
PRIORITY: Final = 32763
"""Of the rules that lead there: before main, behind those of direct server return."""
VNI: Final = 77
VXLAN_LINKS: Final = {4: "tun-vxlan", 6: "tun-vxlan6"}
_NAME = re.compile(r"tun-[0-9a-f]{11}")


def is_own_name(name: str) -> bool:
    """Whether the agent, or kube-router before it, gives tunnels such names."""
    return _NAME.fullmatch(name) is not None or name in VXLAN_LINKS.values()


class Encap(StrEnum):
    """How a tunnel wraps packets: the values of ``--overlay-encap``."""

    IPIP = "ipip"
    FOU = "fou"
    VXLAN = "vxlan"


class Tunnel(Struct, frozen=True, kw_only=True):
    """A tunnel device. ``remote`` is None for vxlan, which learns the others from neighbours.

    ``port`` is the UDP port of FoU (as GUE) and vxlan, 0 for ipip. ``mtu`` is in bytes.
    """

    name: str
    encap: Encap
    local: Address
    remote: Address | None = None
    port: int = 0
    mtu: int

    @property
    def version(self) -> int:
        return self.local.version


class Neighbour(Struct, frozen=True):
    """A node behind a vxlan device; its hardware address follows from its address."""

    link: str
    address: Address

    @property
    def mac(self) -> bytes:
        return mac_of(self.address)


class Route(Struct, frozen=True, kw_only=True):
    """A route of ours in table ``main`` or 77, into a tunnel.

    ``gateway`` is the node beyond a vxlan device, taken to be on that link.
    """

    destination: Network
    link: str
    table: int = MAIN
    gateway: Address | None = None
    source: Address | None = None


class Overlay(Struct, frozen=True, kw_only=True):
    """All that stands on this node for the overlay. ``rules`` are sources that look up table 77."""

    tunnels: dict[str, Tunnel] = {}
    neighbours: frozenset[Neighbour] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Network] = frozenset()


class OverlayFailure(Struct, frozen=True):
    """One thing that is not as it should be: ``subject`` is a link, route or rule, for people."""

    subject: str
    errno: int
    message: str


def mac_of(address: Address) -> bytes:
    """The hardware address of a node's vxlan device: locally administered (IEEE 802), and the
    same wherever it is worked out. For IPv4 it holds the address; for IPv6, 40 bits of a hash."""
    if isinstance(address, IPv4Address):
        return b"\x02\x4b" + address.packed
    return b"\x06" + sha256(address.packed).digest()[:5]


class OverlayLinks(Protocol):
    """Tunnel devices of one network namespace; those of other names are never touched."""

    writes: int

    def read(self) -> dict[str, Tunnel | None]:
        """The devices with names of ours; None for one that is no tunnel as we make them."""

    def put(
        self, tunnels: Mapping[str, Tunnel], neighbours: Collection[Neighbour]
    ) -> list[OverlayFailure]:
        """Make these tunnels stand, up, with these neighbours.

        One with other endpoints or encapsulation is made anew; what differs otherwise is changed.
        """

    def prune(self, keep: Collection[str]) -> list[OverlayFailure]:
        """Remove tunnels with names of ours but for those to keep, and ports they received by."""

    def remove_own(self) -> list[OverlayFailure]:
        """Remove the tunnels that the agent made or took over, and no others (cleanup)."""

    def ensure_bridge(self, name: str, mtu: int | None) -> None:
        """Make a bridge stand, up, with an MTU (None: whatever it has). Raises KernelError."""

    def mtus(self) -> dict[str, int]:
        """The MTU of every link, in bytes."""

    def close(self) -> None: ...


class OverlayRoutes(Protocol):
    """Routes of protocol 75 in tables main and 77, and rules of protocol 75 that look up 77.

    ``added`` (or replaced) and ``removed`` are how many routes, since creation.
    """

    writes: int
    added: int
    removed: int

    def read(self) -> tuple[frozenset[Route], frozenset[Network]]:
        """Our routes and the sources of our rules."""

    def apply(self, routes: Collection[Route], rules: Collection[Network]) -> list[OverlayFailure]:
        """Make exactly these stand, adding before removing. Routes of others stay as they are:
        one in the place of ours is a failure, but kube-router's, which is replaced."""

    def remove_left_by_kube_router(self, destinations: Iterable[Network]) -> int:
        """Remove kube-router's routes (protocol 17, main) to these; returns their number."""

    def close(self) -> None: ...


class OverlayPorts(Struct):
    """The adapters of the overlay; opened, used and closed in the loop's thread."""

    links: OverlayLinks
    routes: OverlayRoutes

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.links.close)
            stack.callback(self.routes.close)

    @property
    def writes(self) -> int:
        """Changes sent to the kernel by both adapters."""
        return self.links.writes + self.routes.writes
