"""What we may do to FRR, as a Protocol: the contract of the real adapters and of the fake.

The rules of ``ports`` hold. Daemons are named as FRR names them; a set is zebra and bgpd, and bfdd
where BFD is used. They live and die together: see ``frr_daemons``.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from msgspec import Struct

from kube_router_py.errors import KernelError

DAEMONS = ("zebra", "bfdd", "bgpd")
"""In the order of their start: each one uses those before it."""


class DaemonsDownError(KernelError):
    """FRR does not run: ``restart`` it, in ``wait_s`` seconds at the earliest."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class CommandResult(Struct, frozen=True):
    """What a daemon answered to a command: FRR's result code and its text.

    Codes (lib/command.h): 0 done, 1 warning, 2 unknown, 3 ambiguous, 4 incomplete, 13 refused.
    Some refusals come with code 0 and a text that begins with ``%``.
    """

    command: str
    code: int
    text: str

    @property
    def is_failed(self) -> bool:
        return self.code != 0 or self.text.lstrip().startswith("%")

    @property
    def complaint(self) -> str:
        """What the daemon said, on one line."""
        said = " ".join(self.text.split()).lstrip("% ")
        return said or f"result code {self.code}"


class Boot(Struct, frozen=True):
    """What a set of daemons starts with.

    ``files``: the whole configuration of each daemon that is to run; zebra and bgpd always are.
    ``listen`` and ``port``: where bgpd listens; no address: on all, port 0: nowhere.
    """

    files: Mapping[str, str]
    listen: tuple[IPv4Address | IPv6Address, ...] = ()
    port: int = 179


class Opened(StrEnum):
    """What ``open`` found and did. After any but STARTED, what runs may differ from the files."""

    KEPT = "kept"
    ADOPTED = "adopted"
    STARTED = "started"


class SessionState(Struct, frozen=True):
    """A BGP session in one address family. ``neighbor`` is an address or an interface.

    ``uptime_s`` is how long it has been established (0: it is not), ``established`` and ``dropped``
    count since bgpd started. A state other than ``Established`` is one of RFC 4271, or
    ``Idle (Admin)``, ``Idle (PfxCt)``.
    """

    neighbor: str
    version: int
    remote_as: int
    state: str
    uptime_s: float
    received: int
    sent: int
    established: int
    dropped: int

    @property
    def is_established(self) -> bool:
        return self.state == "Established"


class BfdState(Struct, frozen=True):
    """A BFD session (RFC 5880): ``up``, ``down``, ``init`` or ``shutdown``."""

    neighbor: str
    state: str
    uptime_s: float


class Summary(Struct, frozen=True):
    """Sessions by neighbor and version; ``routes`` is the size of bgpd's table, by version (nodes
    of a tree, of which some hold no prefix). ``updates``: UPDATE messages received, by neighbor,
    where they were asked for."""

    sessions: tuple[SessionState, ...]
    bfd: tuple[BfdState, ...]
    routes: Mapping[int, int]
    updates: Mapping[str, int] = {}


class Frr(Protocol):
    """One set of daemons, those of the network namespace of the calling thread."""

    @property
    def writes(self) -> int:
        """Configuration commands sent since creation, by ``apply``."""

    def open(self, boot: Boot) -> Opened:
        """See to it that the daemons of ``boot.files`` run; called again, it does no more than
        that. What runs already is kept with the configuration it has. A bfdd that is wanted for the
        first time is started beside the others (before a neighbor is to use it), one that is wanted
        no more is ended (after none uses it; whatever is adopted is whole at first). Where
        ``listen`` or ``port`` are others than before, this is a ``restart``.

        Raises PreflightError where the node lacks something, DaemonsDownError while a start is to
        be waited for, KernelError where the daemons do not start.
        """

    def running(self) -> dict[str, str]:
        """The configuration of each daemon as it shows it. Raises DaemonsDownError, KernelError."""

    def apply(self, commands: Mapping[str, Sequence[str]]) -> dict[str, tuple[CommandResult, ...]]:
        """Configuration commands for each daemon, from the top level on, in the order of DAEMONS.

        A result for each command; one that fails does not stop the others. Raises
        UnsafeCommandError before anything is sent, DaemonsDownError, KernelError or
        StateUnknownError.
        """

    def restart(self, boot: Boot) -> None:
        """End all daemons without a word to anybody and start them with these files.

        Routes stay in the kernel, and with neighbors that do graceful restart. Raises as ``open``;
        what can be known to fail before, such as an address to listen on that is not this node's,
        ends nothing.
        """

    def summary(self) -> Summary:
        """Sessions and their counters. Raises DaemonsDownError, KernelError."""

    def stop(self) -> None:
        """End the daemons for good: sessions close, learned routes leave the kernel. Raises
        KernelError, with the daemons ended, where routes stay."""

    def close(self) -> None:
        """Let go of the daemons, which run on."""
