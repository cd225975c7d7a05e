"""FRR as the route controller uses it: see ``ports_frr`` for the contract.

``ManagedFrr`` runs the daemons itself; ``ExternalFrr`` talks to such as run elsewhere
(``--frr-mode=external``) and only changes their configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from msgspec import structs

from kube_router_py.errors import KernelError
from kube_router_py.kernel import frr_summary
from kube_router_py.kernel.frr_daemons import FrrDaemons, Patience
from kube_router_py.kernel.frr_preflight import check_version
from kube_router_py.kernel.frr_process import Layout
from kube_router_py.kernel.frr_vty import (
    UnsafeCommandError,
    VtyClient,
    VtyLostError,
    VtyUnavailableError,
    is_one_command,
    masked,
)
from kube_router_py.kernel.frr_watch import Rhythm
from kube_router_py.kernel.ports_frr import (
    DAEMONS,
    BfdState,
    Boot,
    CommandResult,
    DaemonsDownError,
    Opened,
    Summary,
)

_TIMEOUT_S = 30.0


class _Sockets:
    """What can be done to daemons over their control sockets, one client for each."""

    def __init__(self, path_of: Callable[[str], str], timeout_s: float) -> None:
        self._path_of = path_of
        self._timeout_s = timeout_s
        self._clients: dict[str, VtyClient] = {}
        self.writes = 0

    def client(self, daemon: str) -> VtyClient:
        found = self._clients.get(daemon)
        if found is None:
            found = self._clients[daemon] = VtyClient(self._path_of(daemon), self._timeout_s)
        return found

    @property
    def connections(self) -> int:
        """How often daemons were connected to; the same number means the same processes."""
        return sum(each.connections for each in self._clients.values())

    def running(self, daemons: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for daemon in daemons:
            reply = self.client(daemon).show("show running-config")
            if reply.is_failed:
                raise KernelError(f"{daemon} does not show its configuration: {reply.complaint}")
            found[daemon] = reply.text
        return found

    def apply(
        self, commands: Mapping[str, Sequence[str]], daemons: Sequence[str]
    ) -> dict[str, tuple[CommandResult, ...]]:
        for batch in commands.values():
            for command in batch:
                if not is_one_command(command):
                    raise UnsafeCommandError(f"not a command for FRR: {masked(command)!r}")
        for daemon in commands:
            if commands[daemon] and daemon not in daemons:
                raise DaemonsDownError(f"{daemon} is not among the daemons that run")
        found: dict[str, tuple[CommandResult, ...]] = {}
        for daemon in DAEMONS:
            batch = commands.get(daemon, ())
            self.writes += len(batch)
            if daemon in commands:
                found[daemon] = self.client(daemon).configure(batch)
        return found

    def summary(self, daemons: Sequence[str]) -> Summary:
        sessions, routes = frr_summary.sessions(self.client("bgpd").show(frr_summary.BGP))
        bfd: tuple[BfdState, ...] = ()
        if "bfdd" in daemons:
            bfd = frr_summary.bfd_sessions(self.client("bfdd").show(frr_summary.BFD))
        return Summary(sessions, bfd, routes)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients = {}


def read_summary(directory: str, timeout_s: float) -> Summary:
    """What ``Frr.summary`` tells, and the messages received, for any thread: over connections of
    its own to the daemons whose control sockets are in ``directory``, whoever runs them.

    Raises KernelError where zebra or bgpd does not answer; no bfdd means no BFD sessions.
    """
    sockets = _Sockets(lambda daemon: f"{directory}/{daemon}.vty", timeout_s)
    try:
        sockets.client("zebra").show("echo alive")
        found = sockets.summary(("bgpd",))
        reply = sockets.client("bgpd").show(frr_summary.NEIGHBORS)
        found = structs.replace(found, updates=frr_summary.updates(reply))
        with suppress(VtyUnavailableError, VtyLostError):
            reply = sockets.client("bfdd").show(frr_summary.BFD)
            return structs.replace(found, bfd=frr_summary.bfd_sessions(reply))
        return found
    finally:
        sockets.close()


class ManagedFrr:
    """Daemons that are children of the agent, or of the agent before it.

    ``down`` is called in another thread when ``restart`` is due; it must do no more than wake
    somebody up.
    """

    def __init__(
        self,
        layout: Layout,
        down: Callable[[], None],
        timeout_s: float = _TIMEOUT_S,
        patience: Patience | None = None,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._daemons = FrrDaemons(layout, down, patience, rhythm)
        self._sockets = _Sockets(lambda daemon: layout.path(daemon, "vty"), timeout_s)

    @property
    def writes(self) -> int:
        return self._sockets.writes

    def open(self, boot: Boot) -> Opened:
        return self._daemons.open(boot)

    def running(self) -> dict[str, str]:
        return self._sockets.running(self._daemons.daemons)

    def apply(self, commands: Mapping[str, Sequence[str]]) -> dict[str, tuple[CommandResult, ...]]:
        return self._sockets.apply(commands, self._daemons.daemons)

    def restart(self, boot: Boot) -> None:
        self._daemons.restart(boot)

    def summary(self) -> Summary:
        return self._sockets.summary(self._daemons.daemons)

    def stop(self) -> None:
        self._sockets.close()
        self._daemons.stop()

    def close(self) -> None:
        self._sockets.close()
        self._daemons.close()


class ExternalFrr:
    """Daemons that somebody else runs, known by the directory of their control sockets.

    Where they listen is up to who starts them; so is their restart, after which the difference
    between what they show and what is wanted is as large as it can be, and is sent.
    """

    def __init__(self, directory: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._directory = directory
        self._sockets = _Sockets(lambda daemon: f"{directory}/{daemon}.vty", timeout_s)
        # Which daemons, over which connections.
        self._used: tuple[str, ...] = ()
        self._connections = 0

    @property
    def writes(self) -> int:
        return self._sockets.writes

    def open(self, boot: Boot) -> Opened:
        was = self._used, self._connections
        used = tuple(each for each in DAEMONS if each in boot.files or each != "bfdd")
        self._read(used)
        self._used, self._connections = used, self._sockets.connections
        return Opened.KEPT if was == (used, self._connections) else Opened.ADOPTED

    def running(self) -> dict[str, str]:
        return self._read(self._used)

    def _read(self, daemons: Sequence[str]) -> dict[str, str]:
        try:
            found = self._sockets.running(daemons)
        except VtyUnavailableError as error:
            raise DaemonsDownError(
                f"FRR does not run: {error}; start its daemons with --vty_socket {self._directory}"
            ) from error
        for text in found.values():
            check_version(text)
        return found

    def apply(self, commands: Mapping[str, Sequence[str]]) -> dict[str, tuple[CommandResult, ...]]:
        return self._sockets.apply(commands, self._used)

    def restart(self, boot: Boot) -> None:
        raise KernelError(
            "FRR is run by somebody else (--frr-mode=external): restart zebra (-r -K 60) and bgpd, "
            f"zebra first, with {' '.join(_listening(boot))}"
        )

    def summary(self) -> Summary:
        return self._sockets.summary(self._used)

    def stop(self) -> None:
        self.close()

    def close(self) -> None:
        self._sockets.close()
        self._connections = 0


def _listening(boot: Boot) -> list[str]:
    """Where bgpd is to listen, as flags of its command line."""
    return ["bgpd", "-p", str(boot.port), *(f"-l {address}" for address in boot.listen)]
