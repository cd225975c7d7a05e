"""What a loop and its controller say to each other, and what others learn about a loop."""

import threading
import time
from collections.abc import Hashable
from typing import Protocol

from msgspec import Struct

from kube_router_py.problem import Problem


class Outcome(Struct, frozen=True):
    """What a turn came to.

    ``failed``: keys to try again; they may name more than was asked for. ``problems``: everything
    that is wrong with objects now, not only with those of this turn. ``wake_after_s``: call again
    after so many seconds even if nothing changes (draining); an earlier wake-up may come.
    ``settled``: keys that are in order unless they are ``failed``, also if nobody asked for them.
    """

    failed: frozenset[Hashable] = frozenset()
    problems: tuple[Problem, ...] = ()
    wake_after_s: float | None = None
    settled: frozenset[Hashable] = frozenset()


class Controller(Protocol):
    """What a loop runs. All methods are called in the loop's thread."""

    name: str

    def open(self) -> None:
        """Create the adapters; called again after a crash. May raise KubeRouterError."""

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """Bring the kernel to what the cache says, for ``dirty`` keys or (``full``) as a whole."""

    def close(self) -> None:
        """Give the adapters back; nothing is removed from the kernel. Called also after a failed
        ``open``."""


class Clock(Protocol):
    """Time as the loop sees it; tests bring their own."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""

    def wait(self, condition: threading.Condition, timeout_s: float) -> None:
        """Wait for a notification or the time; the caller holds the condition."""


class MonotonicClock:
    """The host's clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_s: float) -> None:
        condition.wait(timeout_s)


class Turn(Struct, frozen=True):
    """One turn, for metrics. ``error`` is empty unless an exception escaped.

    ``waited_s``: for each key that the turn succeeded with, the seconds since it was marked.
    """

    loop: str
    duration_s: float
    full: bool
    keys: int
    failed: int
    error: str = ""
    waited_s: tuple[float, ...] = ()


class LoopStatus(Struct, frozen=True):
    """How a loop is. ``turning`` is its liveness, ``ready`` its readiness, ``reason`` why not.

    ``settled``: idle, nothing dirty, nothing failing. Ages are seconds; ``last_success_s`` is None
    before the first success. ``oldest_dirty_s``: for how long the key that waits longest has been
    waiting or failing, 0 if none is.
    """

    name: str
    turning: bool
    ready: bool
    reason: str
    dirty: int
    busy: bool
    settled: bool
    last_turn_s: float
    last_success_s: float | None
    turns: int
    successes: int
    restarts: int
    problems: tuple[Problem, ...]
    oldest_dirty_s: float = 0.0
