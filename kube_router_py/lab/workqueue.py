"""Dirty keys for controllers inside the lab's event loop."""

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)

RETRY_S = 0.5


class WorkQueue:
    """Calls ``reconcile(key)`` once per dirty key, soon after ``mark``, never inside it.

    A key that fails is logged and tried again; the others go on. ``is_idle`` is True when nothing
    is dirty, so that waiting for "the cluster has reacted" needs no sleeping.
    """

    def __init__(self, name: str, reconcile: Callable[[str], None]) -> None:
        self._name = name
        self._reconcile = reconcile
        self._dirty: dict[str, None] = {}
        self._scheduled: asyncio.Handle | None = None
        self._retries: set[asyncio.TimerHandle] = set()
        self._closed = False

    @property
    def is_idle(self) -> bool:
        return not self._dirty and not self._retries

    def mark(self, key: str) -> None:
        if self._closed:
            return
        self._dirty[key] = None
        if self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._turn)

    def close(self) -> None:
        self._closed = True
        self._dirty.clear()
        for timer in self._retries:
            timer.cancel()

    def _turn(self) -> None:
        self._scheduled = None
        keys, self._dirty = list(self._dirty), {}
        for key in keys:
            try:
                self._reconcile(key)
            except Exception as error:  # noqa: BLE001 - one object must not stop the controller
                _log.warning("%s: %s: %s", self._name, key, error)
                self._retry(key)

    def _retry(self, key: str) -> None:
        def again() -> None:
            self._retries.discard(timer)
            self.mark(key)

        timer = asyncio.get_running_loop().call_later(RETRY_S, again)
        self._retries.add(timer)
