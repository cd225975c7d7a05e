"""Where the agent of this node is: its flags, its environment, the files that it sees.

An agent that runs is asked on its socket. Doctor may have been started elsewhere, on the node
itself or by nsenter: then files are looked at where the agent's are, below /proc/PID/root.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from kube_router_py import agent_client
from kube_router_py.cluster.credentials import SERVICE_ACCOUNT
from kube_router_py.doctor.agent_state import absent, differing
from kube_router_py.doctor.facts_host import agent_lock_is_held, listening_process
from kube_router_py.doctor.findings import Finding, found
from kube_router_py.doctor.paths import inside
from kube_router_py.errors import ApiError, ConfigurationError
from kube_router_py.options import FLAGS, Options, given_text, parse, scan

_HIDDEN = "(hidden)"
_OF_DOCTOR = ("agent-socket",)


class Place(Struct, frozen=True):
    """``root`` comes before a path as the agent writes it; ``pid`` is 0 and ``status`` None where
    none runs."""

    options: Options
    environ: Mapping[str, str]
    root: str = ""
    pid: int = 0
    status: Mapping[str, Any] | None = None
    flags: Mapping[str, str] = {}
    is_here: bool = True

    @property
    def is_running(self) -> bool:
        return self.status is not None

    @property
    def service_account(self) -> str:
        return inside(self.root, SERVICE_ACCOUNT)

    @property
    def run_dir(self) -> str:
        """FRR's, as seen from here."""
        return inside(self.root, self.options.frr_dir)


def without_agent(options: Options, environ: Mapping[str, str]) -> Place:
    """Before it starts: the flags that were given, and the files that are seen here."""
    return Place(options, environ, flags=given_text(options))


def find(
    options: Options, arguments: Sequence[str], environ: Mapping[str, str]
) -> tuple[Place, list[Finding]]:
    """``arguments`` are doctor's flags, which ``options`` are from."""
    path = options.agent_socket
    try:
        told = agent_client.ask(path, "options")
        status = agent_client.ask(path, "status")
    except (ApiError, ConfigurationError) as error:
        is_silent = agent_lock_is_held()
        return without_agent(options, environ), [absent(str(error), is_silent=is_silent)]
    flags = {str(name): str(text) for name, text in (told.get("flags") or {}).items()}
    findings: list[Finding] = []
    try:
        options_ = parse([f"--{n}={t}" for n, t in flags.items() if t != _HIDDEN], {})
    except ConfigurationError as error:
        findings.append(
            found(
                "could-not-look",
                "the agent's flags",
                f"they are not those of this version: {error}",
                "use the agent's own program for doctor",
            )
        )
        options_ = options
    findings += differing(_given(arguments, options), _all_texts(options_))
    pid = _pid(path)
    is_here = True
    if pid and not _shares_network(pid):
        is_here = False
        findings.append(
            found(
                "wrong-network-namespace",
                "doctor",
                "it runs in another network namespace than the agent, and sees other rules, links "
                "and sets",
                "run it in the agent's pod (kubectl exec), or on the node itself",
            )
        )
    environ = _environ(pid) or environ
    place = Place(options_, environ, _root(pid), pid, status, flags, is_here)
    return place, findings


def _given(arguments: Sequence[str], options: Options) -> dict[str, str]:
    """The flags that stand on doctor's command line, as texts."""
    names = set(scan(arguments).texts) - set(_OF_DOCTOR)
    return {name: text for name, text in _all_texts(options).items() if name in names}


def _all_texts(options: Options) -> dict[str, str]:
    return {
        flag.name: flag.kind.show(getattr(options, flag.field))
        for flag in FLAGS
        if not flag.is_secret
    }


def _pid(path: str) -> int:
    try:
        return listening_process(path)
    except OSError:
        return 0


def _shares_network(pid: int) -> bool:
    try:
        theirs = os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return True  # it cannot be told: another pid namespace, or no permission
    return theirs == os.stat("/proc/thread-self/ns/net").st_ino


def _root(pid: int) -> str:
    """``""`` where the agent sees the same files as we do, or its own cannot be looked at."""
    root = f"/proc/{pid}/root"
    try:
        theirs, ours = os.stat(f"{root}/"), os.stat("/")
        os.listdir(f"{root}/")
    except OSError:
        return ""
    return "" if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else root


def _environ(pid: int) -> dict[str, str]:
    if not pid or pid == os.getpid():
        return {}
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(part.split("=", 1) for part in text.split("\0") if "=" in part)
