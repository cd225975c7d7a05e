"""The loop every controller runs in: dirty keys in, turns out, and two stamps.

    mark(keys) --> dirty --+
    start, crash, resync --+--> turn: controller.reconcile(keys, full) --> Outcome
    retry, wake-up --------+         | failed keys wait for the retry, which is full

A turn starts at once when something is due, but at least ``min_interval_s`` after the last one,
so that bursts coalesce. It is *full* (read the kernel back, compare everything) at the start,
after a crash, when failed keys are retried, and every ``resync_interval_s``. Keys that fail wait
for a retry with growing, jittered delays; new keys do not wait for them.

An exception that escapes the controller is logged with the keys in hand; the controller is closed
and, after a delay, opened again. Only a controller that cannot be opened many times over a long
while is given up: ``on_dead`` is called, and the agent exits.

Stamps: every pass of the thread, idle ones included, says that the loop turns (liveness); a turn
after which no key is failing says that it succeeds (readiness).
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Hashable, Iterable

from kube_router_py.loop_log import log_escaped, shown, tell_problems, told
from kube_router_py.loop_model import Clock, Controller, LoopStatus, MonotonicClock, Outcome, Turn
from kube_router_py.loop_waiting import Waiting
from kube_router_py.problem import Problem

__all__ = ["Clock", "Controller", "Loop", "LoopStatus", "MonotonicClock", "Outcome", "Turn"]

_log = logging.getLogger(__name__)

_READY_POLL_S = 0.1  # seconds


class Loop:
    """Runs one controller in one thread. See the module docstring.

    ``ready`` says whether the caches that the controller reads are synced; until then no turn runs.
    ``unready_after_s``: how long something may be failing, or a turn take, before the loop counts
    as not ready.
    ``stall_after_s``: how long a single turn may take before the loop counts as stuck.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        ready: Callable[[], bool],
        resync_interval_s: float,
        min_interval_s: float = 0.1,
        retry_min_s: float = 0.5,
        retry_max_s: float = 60.0,
        unready_after_s: float = 30.0,
        stall_after_s: float = 180.0,
        give_up_opens: int = 10,
        give_up_after_s: float = 300.0,
        heartbeat_s: float = 5.0,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
        on_turn: Callable[[Turn], None] | None = None,
        on_dead: Callable[[str, str], None] | None = None,
    ) -> None:
        self._controller = controller
        self.name = controller.name
        self._ready = ready
        self._resync_interval_s = resync_interval_s
        self._min_interval_s = min_interval_s
        self._retry_min_s = retry_min_s
        self._retry_max_s = retry_max_s
        self._unready_after_s = unready_after_s
        self._stall_after_s = stall_after_s
        self._give_up_opens = give_up_opens
        self._give_up_after_s = give_up_after_s
        self._heartbeat_s = heartbeat_s
        self._clock = clock or MonotonicClock()
        self._jitter = jitter
        self._on_turn = on_turn
        self._on_dead = on_dead
        self._thread: threading.Thread | None = None

        self._changed = threading.Condition()  # guards everything below
        now = self._clock.now()
        self._dirty: set[Hashable] = set()
        self._failed: set[Hashable] = set()
        self._waiting = Waiting()
        self._full_wanted = True
        self._not_before = now
        self._resync_at = now
        self._retry_at: float | None = None
        self._wake_at: float | None = None
        self._open = False
        self._open_at = now
        self._open_failures = 0
        self._open_failing_since = now
        self._attempts = 0
        self._error = ""
        self._failing_since: float | None = None
        self._busy = False
        self._stopping = False
        self._dead = ""
        self._stamp = now
        self._last_success: float | None = None
        self._turns = 0
        self._successes = 0
        self._restarts = 0
        self._problems: tuple[Problem, ...] = ()

    # --- called from any thread ----------------------------------------------------------------

    def mark(self, keys: Iterable[Hashable]) -> None:
        """These keys changed: look at them in the next turn."""
        keys = tuple(keys)
        with self._changed:
            self._dirty.update(keys)
            self._waiting.mark(keys, self._clock.now())
            self._changed.notify_all()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the turn in progress; False if it has not ended in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def status(self) -> LoopStatus:
        with self._changed:
            now = self._clock.now()
            turning = not self._dead and now - self._stamp <= self._stall_after_s
            reason = self._unready_reason(now, turning)
            return LoopStatus(
                name=self.name,
                turning=turning,
                ready=not reason,
                reason=reason,
                dirty=len(self._dirty | self._failed),
                busy=self._busy,
                settled=not (
                    self._busy
                    or self._dirty
                    or self._failed
                    or self._full_wanted
                    or self._error
                    or self._last_success is None
                ),
                last_turn_s=now - self._stamp,
                last_success_s=None if self._last_success is None else now - self._last_success,
                turns=self._turns,
                successes=self._successes,
                restarts=self._restarts,
                problems=self._problems,
                oldest_dirty_s=self._waiting.oldest_s(now),
            )

    def _unready_reason(self, now: float, turning: bool) -> str:
        if self._dead:
            return self._dead
        if not turning:
            return f"no turn ended for {now - self._stamp:.0f} s"
        failing = self._error or (f"failing: {shown(self._failed)}" if self._failed else "")
        if self._last_success is None:
            return failing or "no turn has succeeded yet"
        if now - self._stamp > self._unready_after_s:
            return f"a turn has not ended for {now - self._stamp:.0f} s"
        if self._failing_since is not None and now - self._failing_since > self._unready_after_s:
            return f"for {now - self._failing_since:.0f} s: {failing}"
        return ""

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping and not self._dead:
                self.turn_if_due()
                ready = self._ready()
                with self._changed:
                    delay_s = min(self._due_in_s(ready), self._heartbeat_s)
                    if delay_s > 0 and not self._stopping and not self._dead:
                        self._clock.wait(self._changed, delay_s)
        except BaseException as error:
            self._die(f"the loop ended by {type(error).__name__}: {error}")
            raise
        finally:
            self._close()
            if self._dead and self._on_dead:
                self._on_dead(self.name, self._dead)

    def due_in_s(self) -> float:
        """Seconds until the next turn is due, if nothing is marked meanwhile; 0 when one is."""
        ready = self._ready()
        with self._changed:
            return self._due_in_s(ready)

    def _due_in_s(self, ready: bool) -> float:
        # ``ready`` is asked before our lock is taken: it takes the cache's lock, under which the
        # cache calls ``mark``, which takes ours.
        now = self._clock.now()
        if not self._open:
            return max(0.0, self._open_at - now)
        due = self._resync_at
        if self._dirty or self._full_wanted:
            due = now
        for at in (self._retry_at, self._wake_at):
            if at is not None:
                due = min(due, at)
        delay_s = max(0.0, max(due, self._not_before) - now)
        return delay_s if ready else max(delay_s, _READY_POLL_S)

    def turn_if_due(self) -> bool:
        """Open the controller where it is closed, then run one turn if one is due."""
        with self._changed:
            self._stamp = self._clock.now()
        if self.due_in_s() > 0:
            return False
        if not self._open and not self._reopen():
            return False
        if self.due_in_s() > 0:  # open, but the caches are not synced yet
            return False
        with self._changed:
            # Taking the keys and becoming busy is one step: at no moment does a change that the
            # cache has told look applied when it is not.
            started = self._clock.now()
            retrying = self._retry_at is not None and started >= self._retry_at
            full = self._full_wanted or retrying or started >= self._resync_at
            keys = frozenset(self._dirty | self._failed if full else self._dirty)
            self._dirty.clear()
            taken = self._waiting.take(keys)
            if self._wake_at is not None and started >= self._wake_at:
                self._wake_at = None
            self._busy = True
        outcome = Outcome()
        error = ""
        try:
            outcome = self._controller.reconcile(keys, full)
        except Exception as caught:  # noqa: BLE001 - whatever it was, the other loops go on
            error = told(caught)
            log_escaped(self.name, caught, keys)
            self._close()
        ended = self._clock.now()
        with self._changed:
            if error:
                self._after_crash(keys, error, ended)
            else:
                self._after_turn(keys, full, outcome, ended)
                # Such that failed before, and are not any more, though nobody marked them.
                taken |= self._waiting.take(outcome.settled - self._dirty - self._failed)
            waited_s = self._waiting.settle(taken, self._failed & (keys | outcome.failed), ended)
            self._busy = False
            self._stamp = ended
            self._not_before = ended + self._min_interval_s
            self._turns += 1
        if self._on_turn:
            self._on_turn(
                Turn(
                    *(self.name, ended - started, full, len(keys), len(outcome.failed), error),
                    waited_s,
                )
            )
        return True

    def _reopen(self) -> bool:
        try:
            self._controller.open()
        except Exception as caught:  # noqa: BLE001 - as above
            log_escaped(self.name, caught, frozenset(), "cannot start")
            with contextlib.suppress(Exception):
                self._controller.close()
            self._after_failed_open(told(caught))
            return False
        with self._changed:
            self._open = True
            self._open_failures = 0
            self._stamp = self._clock.now()
        return True

    def _close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            self._controller.close()
        except Exception as caught:  # noqa: BLE001 - it is being thrown away anyway
            log_escaped(self.name, caught, frozenset(), "cannot be closed")

    # --- after a turn, under the lock ----------------------------------------------------------

    def _after_turn(
        self, keys: frozenset[Hashable], full: bool, outcome: Outcome, now: float
    ) -> None:
        before = frozenset(self._failed)
        self._error = ""
        if full:
            self._failed = set(outcome.failed)
            self._full_wanted = False
            self._resync_at = now + self._resync_interval_s
            self._retry_at = None
        else:
            self._failed = (self._failed - keys - outcome.settled) | outcome.failed
        if outcome.wake_after_s is not None:
            wake_at = now + max(outcome.wake_after_s, self._min_interval_s)
            self._wake_at = wake_at if self._wake_at is None else min(self._wake_at, wake_at)
        if outcome.problems != self._problems:
            tell_problems(self.name, self._problems, outcome.problems)
            self._problems = outcome.problems
        if not self._failed:
            if before or self._failing_since is not None:
                _log.info("recovered loop=%s failures=%d", self.name, self._attempts)
            self._last_success = now
            self._successes += 1
            self._attempts = 0
            self._retry_at = None
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = now
        if self._retry_at is None:
            self._attempts += 1
            self._retry_at = now + self._backoff_s()
        if self._failed != before:
            _log.warning(
                "some keys failed and will be tried again loop=%s count=%d keys=%r retry_in_s=%.1f",
                self.name,
                len(self._failed),
                shown(self._failed),
                self._retry_at - now,
            )

    def _after_crash(self, keys: frozenset[Hashable], error: str, now: float) -> None:
        self._failed |= keys
        self._full_wanted = True
        self._restarts += 1
        self._attempts += 1
        self._error = error
        if self._failing_since is None:
            self._failing_since = now
        self._open_at = now + self._backoff_s()

    def _after_failed_open(self, error: str) -> None:
        with self._changed:
            now = self._stamp = self._clock.now()
            if self._open_failures == 0:
                self._open_failing_since = now
            self._open_failures += 1
            self._attempts += 1
            self._error = error
            self._full_wanted = True
            if self._failing_since is None:
                self._failing_since = now
            self._open_at = now + self._backoff_s()
            hopeless = (
                self._open_failures >= self._give_up_opens
                and now - self._open_failing_since >= self._give_up_after_s
            )
        if hopeless:
            self._die(f"given up after {self._open_failures} attempts to start: {error}")

    def _die(self, reason: str) -> None:
        with self._changed:
            self._dead = reason
        _log.critical("loop ended loop=%s reason=%r", self.name, reason)

    def _backoff_s(self) -> float:
        """Doubles with each attempt, and is up to a quarter shorter, at random."""
        delay_s = self._retry_min_s * 2.0 ** min(self._attempts - 1, 30)
        return min(delay_s, self._retry_max_s) * (1 - self._jitter() / 4)
