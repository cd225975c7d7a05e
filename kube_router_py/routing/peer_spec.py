"""A router outside the cluster as flags or an annotation describe it. Pure values."""

from typing import Literal

from msgspec import Struct

from kube_router_py.option_types import parse_peer_asn
from kube_router_py.routing.model import Address, Bfd, Network
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.values import parse_number

RemoteAs = int | Literal["internal", "external"]

DEFAULT_PORT = 179


class PeerSpec(Struct, frozen=True, kw_only=True):
    """One router, or all those of a network that may come by themselves.

    Exactly one of ``address``, ``interface`` (unnumbered) and ``network`` (dynamic neighbors) says
    which. ``object`` and ``field`` are where it is described, as Problems name it;
    ``description`` as the session does. None stands for what the flags say (``hold_s`` in seconds,
    ``multihop``, ``graceful_restart``) or for the node's own address (``local_address``).
    """

    object: str
    field: str
    description: str
    remote_as: RemoteAs
    address: Address | None = None
    interface: str = ""
    network: Network | None = None
    local_address: Address | None = None
    port: int = DEFAULT_PORT
    password: str = ""
    secret: SecretRef | None = None
    hold_s: int | None = None
    multihop: int | None = None
    ttl_security: int = 0
    bfd: Bfd | None = None
    graceful_restart: bool | None = None

    @property
    def version(self) -> int:
        """The IP version that sessions run over; 0 for an interface."""
        if self.network is not None:
            return self.network.version
        return self.address.version if self.address is not None else 0


def parse_remote_as(text: str) -> RemoteAs:
    """An AS number that may stand on the wire, or how it relates to ours: internal, external."""
    if text == "internal":
        return "internal"
    if text == "external":
        return "external"
    number = parse_number(text, 1, 2**32 - 1, "an AS number, internal or external")
    return parse_peer_asn(str(number))
