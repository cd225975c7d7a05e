"""FRR without FRR: daemons that keep a configuration, end when told to, and are found again.

``FakeDaemons`` are the processes: they outlive the ``FakeFrr`` that started them, as the real ones
outlive an agent. Sessions are what the test says they are.
"""

from collections.abc import Callable, Mapping, Sequence

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_frr_config import FakeConfig
from kube_router_py.kernel.frr_vty import UnsafeCommandError, VtyLostError, is_one_command, masked
from kube_router_py.kernel.ports_frr import (
    DAEMONS,
    BfdState,
    Boot,
    CommandResult,
    DaemonsDownError,
    Opened,
    SessionState,
    Summary,
)

_CORE = ("zebra", "bgpd")


class FakeDaemons:
    """What runs on a node.

    ``refused`` are commands that are not taken, with what is answered instead; ``lost`` is after
    how many commands of the next batch the connection breaks; ``resting_s`` is for how long no
    start is allowed. ``boots`` are all starts of a whole set.
    """

    def __init__(self) -> None:
        self.configs: dict[str, FakeConfig] = {}
        self.listening: tuple[object, ...] = ()
        self.boots: list[Boot] = []
        self.sessions: dict[tuple[str, int], SessionState] = {}
        self.bfd: tuple[BfdState, ...] = ()
        self.refused: dict[str, CommandResult] = {}
        self.lost: int | None = None
        self.resting_s = 0.0
        self.ended = ""

    def kill(self, daemon: str) -> None:
        """As the end of one daemon ends all."""
        self.configs = {}
        self.sessions = {}
        self.ended = f"{daemon} was ended by SIGKILL"

    def out_of_band(self, daemon: str, *commands: str) -> None:
        """What somebody else does to a daemon's configuration."""
        for result in self.configs[daemon].configure(commands):
            assert not result.is_failed, result

    def establish(self, neighbor: str, version: int, received: int = 0) -> None:
        """A session of a neighbor comes up."""
        self.sessions[neighbor, version] = SessionState(
            neighbor, version, 0, "Established", 1.0, received, 0, 1, 0
        )


class FakeFrr:
    """See ``ports_frr.Frr``; ``down`` is called by ``kill``."""

    def __init__(self, daemons: FakeDaemons, down: Callable[[], None] = lambda: None) -> None:
        self._host = daemons
        self._down = down
        self._is_open = False
        self.writes = 0

    def kill(self, daemon: str) -> None:
        """A daemon ends, and the others with it; the adapter notices."""
        self._host.kill(daemon)
        self._down()

    def open(self, boot: Boot) -> Opened:
        found = Opened.KEPT if self._is_open else Opened.ADOPTED
        if not self._host.configs or self._host.listening != (*boot.listen, boot.port):
            self.restart(boot)
            return Opened.STARTED
        self._is_open = True
        wanted = _wanted(boot)
        if found is not Opened.ADOPTED:
            for daemon in set(self._host.configs) - set(wanted):
                del self._host.configs[daemon]
        for daemon in wanted:
            if daemon not in self._host.configs:
                self._host.configs[daemon] = FakeConfig(boot.files.get(daemon, ""))
        return found

    def running(self) -> dict[str, str]:
        return {daemon: self._config(daemon).text() for daemon in self._daemons()}

    def apply(self, commands: Mapping[str, Sequence[str]]) -> dict[str, tuple[CommandResult, ...]]:
        running = self._daemons()
        for batch in commands.values():
            for command in batch:
                if not is_one_command(command):
                    raise UnsafeCommandError(f"not a command for FRR: {masked(command)!r}")
        for daemon, batch in commands.items():
            if batch and daemon not in running:
                raise DaemonsDownError(f"{daemon} is not among the daemons that run")
        return {
            daemon: self._configure(daemon, tuple(commands[daemon]))
            for daemon in DAEMONS
            if daemon in commands
        }

    def restart(self, boot: Boot) -> None:
        if self._host.resting_s > 0:
            raise DaemonsDownError("FRR does not run: it rests", self._host.resting_s)
        self._is_open = True
        self._host.configs = {
            daemon: FakeConfig(boot.files.get(daemon, "")) for daemon in _wanted(boot)
        }
        self._host.listening = (*boot.listen, boot.port)
        self._host.sessions = {}
        self._host.ended = ""
        self._host.boots.append(boot)

    def summary(self) -> Summary:
        self._daemons()
        config = self._config("bgpd")
        sessions = [
            self._host.sessions.get(
                (key, version), SessionState(key, version, number, "Active", 0.0, 0, 0, 0, 0)
            )
            for key, version, number in config.neighbors()
        ]
        routes = {version: 0 for _, version, _ in config.neighbors()}
        bfd = self._host.bfd if "bfdd" in self._host.configs else ()
        return Summary(
            tuple(sorted(sessions, key=lambda each: (each.neighbor, each.version))), bfd, routes
        )

    def stop(self) -> None:
        self._host.configs = {}
        self._host.sessions = {}
        self._is_open = False

    def close(self) -> None:
        self._is_open = False

    def _daemons(self) -> tuple[str, ...]:
        if not self._is_open:
            raise DaemonsDownError("FRR has not been started")
        if not self._host.configs:
            raise DaemonsDownError(f"FRR does not run: {self._host.ended}", self._host.resting_s)
        return tuple(daemon for daemon in DAEMONS if daemon in self._host.configs)

    def _config(self, daemon: str) -> FakeConfig:
        found = self._host.configs.get(daemon)
        if found is None:
            raise KernelError(f"{daemon} does not run")
        return found

    def _configure(self, daemon: str, batch: tuple[str, ...]) -> tuple[CommandResult, ...]:
        config = self._config(daemon)
        config.configure(())
        results: list[CommandResult] = []
        for command in batch:
            if self._host.lost is not None and len(results) == self._host.lost:
                self._host.lost = None
                raise VtyLostError(f"{daemon} closed the connection at {masked(command)!r}")
            self.writes += 1
            refusal = self._host.refused.get(command)
            results.append(refusal if refusal is not None else config.run(command))
        return tuple(results)


def _wanted(boot: Boot) -> tuple[str, ...]:
    return tuple(each for each in DAEMONS if each in _CORE or each in boot.files)
