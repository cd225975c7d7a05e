"""One agent for a network namespace: two of them would undo each other's work.

The lock is a name in the abstract namespace of unix sockets (unix(7)), of which every network
namespace has its own. The kernel frees it with the process, however that ends.
"""

import errno
import logging
import socket
import time
from collections.abc import Callable

from kube_router_py.errors import PreflightError

_log = logging.getLogger(__name__)

NAME = "\0kube-router-py.agent"
_POLL_S = 0.2


class AgentLock:
    """Held from ``take`` to ``release``."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def take(
        self,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the lock; an agent that is just ending is waited for. Raises PreflightError."""
        deadline = clock() + wait_s
        is_told = False
        while True:
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                found.bind(NAME)
            except OSError as error:
                found.close()
                if error.errno != errno.EADDRINUSE:
                    raise PreflightError(
                        f"cannot take the agent's lock: {error.strerror}"
                    ) from error
            else:
                self._socket = found
                return
            if clock() >= deadline:
                raise PreflightError(
                    "another kube-router-py agent runs in this network namespace (ss -xl | grep "
                    "kube-router-py shows its socket); stop that one first"
                )
            if not is_told:
                _log.info("waiting for another agent on this node to end wait_s=%.0f", wait_s)
                is_told = True
            sleep(_POLL_S)

    def release(self) -> None:
        """Give the lock back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
