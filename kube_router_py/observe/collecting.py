"""What a scrape is made of, collected apart: a part that fails costs its own metrics alone.

Without that one broken table would make all of an agent's metrics, and with them its alerts, go.
"""

import logging
import threading
from collections.abc import Callable, Mapping

from kube_router_py.observe.exposition import by_label

_log = logging.getLogger(__name__)

Collect = Callable[[], bytes]
"""Gives metrics in Prometheus' text format. For any thread."""


class Collectors:
    """``collectors`` by name, in the order in which they are asked."""

    def __init__(self, collectors: Mapping[str, Collect]) -> None:
        self._collectors = dict(collectors)
        self._lock = threading.Lock()
        self._failures = dict.fromkeys(self._collectors, 0)
        self._complaints: dict[str, str] = {}

    def text(self) -> bytes:
        """What all give that can, and how often each could not. Never raises."""
        found = [self._collected(name, collect) for name, collect in self._collectors.items()]
        with self._lock:
            failures = self._failures.copy()
        return b"".join((*found, "".join(by_label("scrape_failures_total", failures)).encode()))

    def _collected(self, name: str, collect: Collect) -> bytes:
        try:
            text = collect()
        except Exception as error:  # noqa: BLE001 - of whatever kind: the others are wanted
            self._complain(name, error)
            return b""
        with self._lock:
            self._complaints.pop(name, None)
        return text

    def _complain(self, name: str, error: Exception) -> None:
        reason = repr(error)
        with self._lock:
            self._failures[name] += 1
            is_known = self._complaints.get(name) == reason
            self._complaints[name] = reason
        if not is_known:  # not again with every scrape
            _log.error("metrics not collected name=%s reason=%r", name, reason, exc_info=error)
