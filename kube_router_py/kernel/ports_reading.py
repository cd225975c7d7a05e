"""What ``explain`` asks a node's kernel, as values and a Protocol. Nothing is written.

Addresses are text in canonical form, families ``inet`` and ``inet6`` (of sockets: AF_*).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from kube_router_py.kernel.ports import SetState
from kube_router_py.proxy.model import VirtualServerKey, VirtualServerState


class Tables(Struct, frozen=True):
    """All tables of one variant of iptables in one family, as iptables-save prints them.

    ``chains``: rules (text after ``-A CHAIN ``) by table and chain; ``policies``: of the built-in
    chains, ``ACCEPT`` or ``DROP``.
    """

    chains: Mapping[str, Mapping[str, Sequence[str]]] = {}
    policies: Mapping[tuple[str, str], str] = {}


class Way(Struct, frozen=True):
    """A route as the kernel would take it. ``kind``: ``unicast``, ``local``, or what else the
    kernel calls it; ``link`` and ``gateway`` may be empty. ``refused``: why there is none."""

    kind: str
    link: str = ""
    gateway: str = ""
    refused: str = ""


class KernelReading(Protocol):
    """Reads one node's kernel for one answer; what was read once is not read again.

    Every method raises KernelError where something cannot be read. ``variant``: that of iptables
    which the agent uses.
    """

    variant: str

    def variants(self) -> tuple[str, ...]:
        """The variants of iptables that may have rules here, the agent's first."""

    def rules(self, variant: str, family: str) -> Tables:
        """All rules of a variant in a family."""

    def same(
        self, family: str, table: str, chain: str, wanted: Sequence[str], standing: Sequence[str]
    ) -> bool:
        """Whether rules of a chain of ours are equal but for their spelling."""

    def ipset(self, name: str) -> SetState | None:
        """A set, or None where there is no such set."""

    def virtual_server(self, key: VirtualServerKey) -> VirtualServerState | None:
        """A virtual server of IPVS, or None where there is none."""

    def way(self, destination: str, source: str = "", in_link: str = "") -> Way:
        """The route to an address, for what comes in by a link where one is given."""

    def sysctl(self, name: str) -> str | None:
        """A kernel parameter (``net/ipv4/ip_forward``), or None where there is no such."""

    def nft(self) -> str:
        """Tables of nf_tables that ``rules`` does not give, as nft(8) lists them."""

    def close(self) -> None: ...
