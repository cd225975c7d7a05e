"""The agent's answer to ``drops``: lines for as long as whoever asks wants them.

{"node": "node1"}                    first, once the kernel's log is read
{"drop": {...}}                      a ``record.DropRecord``
{"lost": 12}                         so many are missing here
{"end": true}                        last; without it the agent broke off, and there may be more
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from kube_router_py.drops.hub import REMEMBERED, DropHub, Lost
from kube_router_py.drops.record import DropRecord
from kube_router_py.errors import ConfigurationError

_ALIVE_S = 1.0
_FOR_S = 10.0
_FOR_MOST_S = 24 * 3600.0
_TAIL = 10


class DropStream:
    """``asked``: ``namespace`` (empty: all), ``follow`` (until the other end leaves; ``for_s``
    seconds otherwise). Those that are remembered come first: all that are asked for, or to who
    follows the last ten of them. Raises ConfigurationError for what cannot be asked, and as
    ``DropHub.follow``."""

    def __init__(
        self,
        hub: DropHub,
        node: str,
        asked: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        namespace, follow = asked.get("namespace") or "", asked.get("follow", False)
        for_s = asked.get("for_s", _FOR_S)
        if not isinstance(namespace, str) or not isinstance(follow, bool):
            raise ConfigurationError("namespace is a text and follow true or false")
        if isinstance(for_s, bool) or not isinstance(for_s, int | float):
            raise ConfigurationError("for_s is a number of seconds")
        if not 0 <= for_s <= _FOR_MOST_S:
            raise ConfigurationError(f"for_s is 0 to {_FOR_MOST_S:.0f}")
        self._namespace, self._clock = namespace, clock
        self._following = hub.follow(_TAIL if follow else REMEMBERED, self._is_wanted)
        self._ends_at = None if follow else clock() + for_s
        self._lines: deque[dict[str, Any]] = deque(({"node": node},))
        self._is_over = False

    def __iter__(self) -> "DropStream":
        return self

    def __next__(self) -> dict[str, Any] | None:
        """One line; None where there is nothing to say for a second."""
        if self._lines:
            return self._lines.popleft()
        if self._is_over:
            raise StopIteration
        left_s = _ALIVE_S if self._ends_at is None else self._ends_at - self._clock()
        for each in self._following.take(min(_ALIVE_S, max(0.0, left_s))):
            if isinstance(each, Lost):
                self._lines.append({"lost": each.lost})
            elif self._is_wanted(each):
                self._lines.append({"drop": each})
        if self._lines:
            return self._lines.popleft()
        if left_s <= 0:
            self._is_over = True
            return {"end": True}
        return None

    def close(self) -> None:
        """Give the log back if nobody else reads it."""
        self._following.close()

    def _is_wanted(self, record: DropRecord) -> bool:
        return not self._namespace or record.concerns(self._namespace)
