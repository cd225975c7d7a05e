"""What may be expected of a node's kernel for one flow, as values. Pure.

Each says in ``what`` what it is about, in words for people.
"""

from msgspec import Struct

from kube_router_py.flow.rule_match import Packet
from kube_router_py.kernel.ports import Jump, SetState
from kube_router_py.proxy.model import RealServerKey, VirtualServerKey

Hook = tuple[str, str]
"""Table and built-in chain."""


class Elsewhere(Struct, frozen=True):
    """What another node's kernel has."""

    what: str
    node: str


class Unknown(Struct, frozen=True):
    """What cannot be compared, and why."""

    what: str
    why: str


class ServerExpected(Struct, frozen=True):
    """A virtual server with exactly these real servers (weights), and any that drain at weight 0;
    ``real_servers`` is None where there must be none."""

    what: str
    key: VirtualServerKey
    real_servers: dict[RealServerKey, int] | None
    scheduler: str = ""
    persistence_s: int = 0


class LocalExpected(Struct, frozen=True):
    """An address that the node takes for its own."""

    what: str
    address: str


class SetExpected(Struct, frozen=True):
    """Whether a set matches a packet (``sides`` as of ``--match-set``), as ``wanted`` says."""

    what: str
    wanted: SetState
    sides: str
    packet: Packet


class JumpExpected(Struct, frozen=True):
    """A jump of the agent into one of its chains."""

    family: str
    table: str
    jump: Jump


class ChainExpected(Struct, frozen=True):
    """A chain of the agent's with exactly these rules; ``note`` says what is in it."""

    what: str
    family: str
    table: str
    chain: str
    rules: tuple[str, ...]
    note: str = ""


class LeadsExpected(Struct, frozen=True):
    """A chain of table filter that leads a packet to another one."""

    what: str
    chain: str
    to: str
    packet: Packet


class RouteExpected(Struct, frozen=True):
    """How packets to an address leave; empty fields may be anything. ``kind``: ``local``,
    ``unicast`` or ``none``. ``source``: of what comes in from it, ``""`` for what begins here."""

    what: str
    address: str
    kind: str = "unicast"
    link: str = ""
    gateway: str = ""
    source: str = ""


class BridgeExpected(Struct, frozen=True):
    """That iptables sees what passes between two ports of one bridge, if both addresses are behind
    the same link."""

    what: str
    source: str
    destination: str


class LegExpected(Struct, frozen=True):
    """One way of a packet through the hooks of this node. ``passes``: whether the agent's own rules
    let it pass. ``in_of``: whence it comes in (an address), ``out_to``: whereto it leaves.

    ``source``: what its source becomes (``""``: it stays, ``*``: whatever the kernel chooses, None:
    not looked at here).
    """

    what: str
    packet: Packet
    hooks: tuple[Hook, ...]
    passes: bool
    why: str
    in_of: str = ""
    out_to: str = ""
    source: str | None = None


Expectation = (
    Elsewhere
    | Unknown
    | ServerExpected
    | LocalExpected
    | SetExpected
    | JumpExpected
    | ChainExpected
    | LeadsExpected
    | RouteExpected
    | BridgeExpected
    | LegExpected
)
