"""What the announcer by ARP and NDP asks of others, and its flags."""

from typing import Protocol

from msgspec import Struct

from kube_router_py.address_pools import Address
from kube_router_py.loadbalancer.peer_values import View


class Programmed(Protocol):
    """What this node's service proxy serves (``served.Served``)."""

    is_known: bool

    def begin(self) -> frozenset[Address]: ...
    def take(self) -> tuple[frozenset[Address], frozenset[Address]]: ...
    def pass_on(self, *, has_told: bool = True) -> None: ...
    def end(self) -> None: ...


class Living(Protocol):
    """Which nodes live (``liveness.Liveness``)."""

    @property
    def view(self) -> View: ...
    @property
    def problem(self) -> str: ...
    def follow_members(self, others: dict[str, Address], own: tuple[Address, ...]) -> None: ...
    def follow_ready(self, *, is_ready: bool) -> None: ...
    def follow_drain(self, *, is_draining: bool) -> None: ...


class Layer2Settings(Struct, frozen=True):
    """The flags that the announcer reads."""

    node: str
    port: int
    default_links: tuple[str, ...] = ()
    drain_on_cordon: bool = False
    announce_period_s: float = 0.0
