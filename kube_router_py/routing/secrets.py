"""Passwords of neighbors that stand in a file or in Secrets, read where they change by themselves.

A file that somebody is writing, or a Secret that cannot be read for a moment, must not cost a
session: what was read last goes on counting, and a Problem says so.
"""

import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from kube_router_py.errors import ApiError, KubeRouterError
from kube_router_py.problem import Problem
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.peers import password_list_mistake
from kube_router_py.routing.settings import RoutingSettings

_FILE = "--peer-router-passwords-file"
# Meanwhile nothing is announced or withdrawn; an API server that hangs takes its time each time.
_PATIENCE_S = 5.0
_AGAIN_S = 5.0
_FORBIDDEN = 403

ReadSecret = Callable[[SecretRef], bytes | None]
"""The content of an entry of a Secret, None where there is none. Raises KubeRouterError."""


class PasswordSources:
    """``read_secret`` asks the API server; without it no annotation can name a Secret."""

    def __init__(
        self,
        settings: RoutingSettings,
        node_name: str,
        read_secret: ReadSecret | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._subject = f"Node {node_name}"
        self._read_secret = read_secret
        self._clock = clock
        self._file = ""
        self._secrets: dict[SecretRef, bytes] = {}
        self._problems: dict[object, Problem] = {}
        # Some entry could not be asked for and was never read: it may be there all the same.
        self._lacks_some = False
        self._again_at_s = 0.0

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(sorted(self._problems.values()))

    def password_list(self) -> str:
        """What the passwords file holds, or held when it was last in order."""
        path = self._settings.peer_passwords_file
        if not path:
            return ""
        self._problems.pop(_FILE, None)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            self._tell(_FILE, _FILE, f"{path} cannot be read ({error})")
            return self._file
        if wrong := password_list_mistake(text, self._settings):
            self._tell(_FILE, _FILE, wrong)
            return self._file
        self._file = text
        return text

    def secrets(self, refs: Set[SecretRef]) -> Mapping[SecretRef, bytes]:
        """What these entries hold; one that is not there is not in the result."""
        for gone in self._secrets.keys() - refs:
            del self._secrets[gone]
        for known in [each for each in self._problems if isinstance(each, SecretRef)]:
            del self._problems[known]
        self._lacks_some = False
        began_s = self._clock()
        for ref in sorted(refs, key=lambda each: (each in self._secrets, each)):
            self._look_up(ref, began_s + _PATIENCE_S)
        ended_s = self._clock()
        # Never more than half of the time.
        self._again_at_s = ended_s + max(_AGAIN_S, ended_s - began_s)
        return dict(self._secrets)

    def again_in_s(self) -> float | None:
        """In how many seconds to ask once more for what could not be asked for and was never read;
        None: there is no such entry."""
        return max(self._again_at_s - self._clock(), 0.0) if self._lacks_some else None

    def _look_up(self, ref: SecretRef, deadline_s: float) -> None:
        if self._read_secret is None:
            return
        try:
            if self._clock() > deadline_s:
                raise ApiError("the API server is too slow")
            content = self._read_secret(ref)
        except KubeRouterError as error:
            self._tell(ref, f"Secret {ref}", f"cannot be read ({error})")
            is_final = isinstance(error, ApiError) and error.status == _FORBIDDEN
            self._lacks_some |= ref not in self._secrets and not is_final
            return
        if content is None:
            self._secrets.pop(ref, None)
        else:
            self._secrets[ref] = content

    def _tell(self, key: object, field: str, what: str) -> None:
        reason = f"{what}; the passwords read before still count"
        self._problems[key] = Problem(self._subject, field, reason)
