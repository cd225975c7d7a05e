"""What the agent may do to a host, as Protocols: the contract of real adapters and of fakes.

Rules for every adapter:

* it is created, used and closed in one thread;
* every call ends within a bounded time, by an exception if need be;
* ``writes`` counts the changes sent to the kernel since creation, failed ones included: a restart
  with nothing to change must leave it at 0;
* it raises ``KernelError`` (``StateUnknownError`` when replies were lost) only for failures of the
  whole call; what failed for a single item is returned beside the others.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from msgspec import Struct, field

from kube_router_py.kernel.ports_conntrack import Conntrack, NoConntrack
from kube_router_py.proxy.model import (
    Connections,
    IpvsOperation,
    IpvsTable,
    RealServerKey,
    Vip,
    VirtualServerKey,
)

Observe = Callable[[str, float], None]
"""Told what was done (``iptables_v4_save``), and how many seconds it took."""


def unobserved(what: str, seconds: float) -> None:
    """Nobody looks on."""


class OperationFailure(Struct, frozen=True):
    """One operation that the kernel refused: ``errno`` as in errno(3), ``message`` for people."""

    operation: IpvsOperation
    errno: int
    message: str


class Ipvs(Protocol):
    """IPVS of one network namespace."""

    writes: int

    def read(self) -> IpvsTable:
        """All virtual and real servers (kernel-owned flags masked out)."""

    def read_connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Connection counters of one virtual server's real servers; empty if there is none."""

    def apply(self, operations: Sequence[IpvsOperation]) -> list[OperationFailure]:
        """Carry out operations in order; one failure does not stop the others."""

    def set_timeouts(self, tcp_s: int, tcp_fin_s: int, udp_s: int) -> None:
        """Connection timeouts in seconds; 0 leaves a timeout as it is."""

    def close(self) -> None: ...


class NodeAddress(Struct, frozen=True, order=True):
    """An address configured on a link of this node."""

    family: int
    address: bytes
    prefix_length: int
    link: str


class BridgePort(Struct, frozen=True, order=True):
    """A link that is a port of a bridge. ``hairpin``: frames may leave where they came in."""

    bridge: str
    link: str
    hairpin: bool


class VipFailure(Struct, frozen=True):
    vip: Vip
    errno: int
    message: str


class Links(Protocol):
    """Links, addresses and local routes of one network namespace.

    The value of a VIP is the preferred source address (packed) of connections that the node itself
    opens to it, or ``b""`` for none. In mode ``route`` a VIP is a ``local`` route on ``vip_link``
    carrying the agent's own route protocol number; in mode ``address`` it is an address on it.
    """

    writes: int

    def ensure_vip_link(self) -> None:
        """Create the VIP link (a dummy device, up) where it is missing; set it up if it is down."""

    def read_vips(self) -> dict[Vip, bytes]:
        """The VIPs that stand in the kernel and are ours, with their preferred source.

        One that does not stand as this mode wants it (left by the other mode, or by half) is
        reported with itself as preferred source: it differs from what anyone desires, is put
        again, and thereby converted.
        """

    def apply_vips(self, put: Mapping[Vip, bytes], remove: Iterable[Vip]) -> list[VipFailure]:
        """Add or change, then remove. A VIP already right, or already gone, is no failure.

        One that is in both is put. What a put replaces goes only after it stands.
        """

    def node_addresses(self) -> tuple[NodeAddress, ...]:
        """Every address configured on any link but the VIP link, loopback included."""

    def bridge_ports(self) -> tuple[BridgePort, ...]:
        """The ports of every bridge."""

    def owns_vip_link(self) -> bool:
        """Whether the VIP link is there, and this agent's: kube-router's has the same name."""

    def remove_vip_link(self) -> None:
        """Remove the VIP link, if it is ours, with its addresses and local routes (cleanup)."""

    def close(self) -> None: ...


class IpsetSpec(Struct, frozen=True, order=True):
    """A set's identity: name (31 bytes at most), type as ``hash:ip``, family ``inet``/``inet6``."""

    name: str
    type: str
    family: str


class SetState(Struct, frozen=True):
    """What the kernel holds under a name; there is room for ``maxelem`` entries."""

    spec: IpsetSpec
    maxelem: int
    entries: frozenset[str]


class SetChange(Struct, frozen=True):
    """How a set that stands is to change.

    ``content`` is all that the set shall hold afterwards. It is looked at only where the set is
    missing, too small, or cheaper made anew; ``add`` and ``remove`` are the difference.
    """

    spec: IpsetSpec
    content: Collection[str]
    add: frozenset[str] = frozenset()
    remove: frozenset[str] = frozenset()


class SetFailure(Struct, frozen=True):
    """One set that is not as it should be; ``message`` is for people."""

    name: str
    message: str


class Ipsets(Protocol):
    """Named sets. Entries are written as ipset(8) prints them (``10.0.0.0/24``).

    ``observe`` is told of restores: ``ipset_v4_restore`` and ``ipset_v6_restore``, both where sets
    of both families are in one.
    """

    writes: int
    observe: Observe

    def read(self, name: str) -> frozenset[str] | None:
        """Entries of a set, or None if there is no such set."""

    def read_all(self, is_own: Callable[[str], bool]) -> dict[str, SetState]:
        """All sets whose name is own, by name; spare sets left by a crash are none."""

    def ensure(self, spec: IpsetSpec, entries: frozenset[str]) -> int:
        """Make the set exist with exactly these entries, by deltas.

        Returns the number of changes: one for each entry added or deleted, one for a new set.
        """

    def put_all(self, sets: Mapping[IpsetSpec, Collection[str]]) -> list[SetFailure]:
        """Create sets with these entries, or replace all that they hold, each in one step.

        One that stands with another type or family is replaced unless a rule refers to it. A set
        is as complete as the kernel allows: an entry it refuses is reported and left out.
        """

    def change(self, spec: IpsetSpec, add: frozenset[str], remove: frozenset[str]) -> int:
        """Add, then remove entries of a set that stands, without reading it; returns their number.

        What is there already, or gone already, is no error. Raises KernelError where there is no
        such set or no room in it: ``ensure`` is the remedy for both.
        """

    def change_all(self, changes: Sequence[SetChange]) -> list[SetFailure]:
        """Carry out the additions of all changes, then the removals, without reading the sets.

        What is there already, or gone already, is no error. A set is made larger before it is
        full; a missing one is created. Whatever cannot be done to one is done to the others.
        """

    def destroy(self, names: Iterable[str]) -> None:
        """Destroy sets by name; a missing one is no error.

        All are tried. KernelError then names those that are in use.
        """

    def close(self) -> None: ...


class Jump(Struct, frozen=True):
    """A rule in a chain that is not ours, leading into one that is.

    ``rule`` is the text after ``-A PARENT `` as iptables-save prints it. ``position`` is
    ``first`` (kept before all foreign rules of the parent) or ``last`` (behind them).
    """

    parent: str
    rule: str
    position: str = "first"


class TableRules(Struct, frozen=True):
    """Own chains of one table with all their rules (text after ``-A CHAIN ``), and the jumps."""

    chains: dict[str, tuple[str, ...]]
    jumps: tuple[Jump, ...] = ()


Counters = tuple[tuple[int, int], ...]
"""Packets and bytes of each rule of a chain, in the order of the rules."""


class Iptables(Protocol):
    """iptables of one network namespace, both families (``inet``, ``inet6``).

    ``variant`` is one of ``iptables_variant.VARIANTS``. ``observe`` is told of
    ``iptables_v4_save``, ``iptables_v4_restore`` and the same of v6.
    """

    writes: int
    variant: str
    observe: Observe

    def ensure(
        self,
        family: str,
        table: str,
        rules: TableRules,
        prune: Callable[[str], bool] = ...,
        *,
        leave: Collection[str] = (),
    ) -> tuple[str, ...]:
        """Make own chains and jumps stand as given; returns what was changed, in words.

        Rules are compared with what the kernel holds; nothing is written when they agree.
        Standing chains that ``prune`` says are own and that are not among ``rules`` are deleted
        in the same step, with every jump to them. In the parents of ``leave`` a jump that stands
        anywhere stays where it is. Foreign chains and rules are never touched.
        """

    def change(
        self,
        family: str,
        table: str,
        chains: Mapping[str, tuple[str, ...]],
        delete: Iterable[str] = (),
    ) -> None:
        """Rewrite own chains and delete others in one step, without reading the table.

        One to be deleted that does not exist is no error. Raises KernelError with the rule that
        was refused; nothing has changed then.
        """

    def counters(self, family: str, table: str, chains: Iterable[str]) -> dict[str, Counters]:
        """Counters of the rules of these chains; those that do not exist are left out."""

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        """Remove own chains and every jump to them."""

    def random_fully(self) -> bool:
        """Whether SNAT and MASQUERADE know --random-fully here."""

    def close(self) -> None: ...


class Sysctls(Protocol):
    """Kernel parameters by dotted or slashed name below /proc/sys (``net/ipv4/vs/conntrack``)."""

    writes: int

    def read(self, name: str) -> str | None:
        """The value, or None where the kernel has no such parameter."""

    def write(self, name: str, value: str) -> None:
        """Set the value if it differs. Raises KernelError, naming the parameter and the remedy."""


class PodTunnel(Struct, frozen=True):
    """The pod side of direct server return in one family: ``address`` is the pod's, packed, and
    ``vips`` are the addresses that the pod answers for."""

    family: int
    address: bytes
    vips: frozenset[bytes]


class PodTunnels(Protocol):
    """Tunnel devices in the network namespaces of this node's pods."""

    writes: int

    def ensure(self, pod_uid: str, tunnel: PodTunnel, *, only: bool = False) -> int:
        """Make the pod's tunnel stand with these VIPs (``only``: and no others); returns the MTU
        of the pod's link.

        Raises KernelError or PreflightError, of which no other pod takes notice.
        """

    def remove(self, pod_uid: str, families: Iterable[int]) -> None:
        """Remove the pod's tunnels of these families; a missing one is no error.

        Raises as ``ensure`` does, also if there is no such pod any more.
        """

    def close(self) -> None: ...


class PolicyRouting(Protocol):
    """The rule and the table by which packets with a mark of direct server return are local."""

    writes: int

    def stands(self, family: int) -> bool:
        """Whether our rule or our route is there."""

    def ensure(self, families: Iterable[int]) -> None:
        """Make rule and route stand for each of these families (socket.AF_*)."""

    def remove(self, families: Iterable[int]) -> None:
        """Remove them; what is not there, or is not ours, is no error and stays."""

    def link_towards(self, family: int, address: bytes) -> str:
        """The link by which packets to an address leave this node; empty if there is none."""

    def close(self) -> None: ...


class DsrPorts(Struct):
    """The adapters of direct server return; opened, used and closed in the loop's thread."""

    tunnels: PodTunnels
    routing: PolicyRouting

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.tunnels.close)
            stack.callback(self.routing.close)

    @property
    def writes(self) -> int:
        """Changes sent to the kernel by both adapters."""
        return self.tunnels.writes + self.routing.writes


class HostPorts(Struct):
    """The adapters of one host that one loop uses; opened, used and closed in its thread."""

    ipvs: Ipvs
    links: Links
    ipsets: Ipsets
    iptables: Iptables
    sysctls: Sysctls
    conntrack: Conntrack = field(default_factory=NoConntrack)

    def close(self) -> None:
        """Close all that has something to close, whatever one of them raises."""
        with ExitStack() as stack:
            for port in (self.ipvs, self.links, self.ipsets, self.iptables):
                stack.callback(port.close)

    @property
    def writes(self) -> int:
        """Changes sent to the kernel by all adapters together."""
        ports = (self.ipvs, self.links, self.ipsets, self.iptables, self.sysctls, self.conntrack)
        return sum(port.writes for port in ports)
