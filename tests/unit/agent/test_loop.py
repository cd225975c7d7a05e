"""The loop on virtual time: coalescing, retries, resync, crashes, stamps; nothing is ever lost."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.loop import Loop, Outcome
from kube_router_py.problem import Problem

PROBLEM = Problem("Service default/bad", "spec.ports[0].port", "is out of range; choose 1 to 65535")


class HandClock:
    """Time moves when a test says so."""

    def __init__(self):
        self._now = 1000.0
        self._lock = threading.Lock()
        self._waiting = {}

    def now(self):
        return self._now

    def wait(self, condition, timeout_s):
        with self._lock:
            self._waiting[condition] = self._now + timeout_s
        condition.wait(30)
        with self._lock:
            self._waiting.pop(condition, None)

    def advance(self, seconds):
        with self._lock:
            self._now += seconds
            due = [condition for condition, at in self._waiting.items() if at <= self._now]
        for condition in due:
            with condition:
                condition.notify_all()


class Recorder:
    """A controller whose answers a test prepares, and that keeps what it was asked."""

    name = "recorder"

    def __init__(self):
        self.turns = []
        self.answers = []
        self.opened = 0
        self.closed = 0
        self.open_errors = []
        self.threads = set()

    def open(self):
        self.opened += 1
        if self.open_errors:
            raise self.open_errors.pop(0)

    def reconcile(self, dirty, full):
        self.threads.add(threading.get_ident())
        self.turns.append((set(dirty), full))
        answer = self.answers.pop(0) if self.answers else Outcome()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed += 1


def make(controller=None, *, ready=lambda: True, **arguments):
    controller = controller or Recorder()
    clock = HandClock()
    arguments = {
        "min_interval_s": 1.0,
        "retry_min_s": 2.0,
        "retry_max_s": 60.0,
        "resync_interval_s": 300.0,
        "jitter": lambda: 0.0,
        **arguments,
    }
    return controller, clock, Loop(controller, ready=ready, clock=clock, **arguments)


def started():
    """A loop past its first, full turn and the interval after it."""
    controller, clock, loop = make()
    assert loop.turn_if_due()
    clock.advance(1)
    controller.turns.clear()
    return controller, clock, loop


def test_the_first_turn_is_full_and_needs_no_key():
    controller, _, loop = make()
    assert loop.turn_if_due()
    assert controller.turns == [(set(), True)]
    assert loop.status().ready


def test_no_turn_before_the_caches_are_synced():
    synced = False
    controller, clock, loop = make(ready=lambda: synced)
    loop.mark(["a"])
    assert not loop.turn_if_due()
    assert controller.opened == 1
    assert 0 < loop.due_in_s() < 1
    assert loop.status().reason == "no turn has succeeded yet"
    synced = True
    clock.advance(1)
    assert loop.turn_if_due()
    assert controller.turns == [({"a"}, True)]


def test_a_mark_is_handled_at_once_and_alone():
    controller, _, loop = started()
    loop.mark(["a", "b"])
    assert loop.due_in_s() == 0
    assert loop.turn_if_due()
    assert controller.turns == [({"a", "b"}, False)]


def test_a_burst_coalesces_into_one_turn_per_interval():
    controller, clock, loop = started()
    loop.mark(["a"])
    loop.turn_if_due()
    for key in "bcd":
        loop.mark([key])
        assert not loop.turn_if_due()
    assert loop.due_in_s() == 1
    clock.advance(1)
    assert loop.turn_if_due()
    assert controller.turns == [({"a"}, False), ({"b", "c", "d"}, False)]


def test_nothing_due_nothing_done():
    controller, clock, loop = started()
    assert not loop.turn_if_due()
    clock.advance(200)
    assert not loop.turn_if_due()
    assert controller.turns == []


def test_resync_is_full_and_periodic():
    controller, clock, loop = started()
    clock.advance(299)
    assert loop.turn_if_due()
    clock.advance(300)
    assert loop.turn_if_due()
    assert controller.turns == [(set(), True), (set(), True)]


def test_failed_keys_come_back_in_a_full_retry_with_growing_delays():
    controller, clock, loop = started()
    controller.answers = [Outcome(failed=frozenset("a"))] * 7
    loop.mark("ab")
    loop.turn_if_due()
    delays = []
    for _ in range(7):
        delays.append(loop.due_in_s())
        clock.advance(loop.due_in_s())
        assert loop.turn_if_due()
    assert delays == [2, 4, 8, 16, 32, 60, 60]
    assert controller.turns[1:] == [({"a"}, True)] * 7
    assert loop.status().settled


def test_jitter_shortens_delays():
    controller, _, loop = make(jitter=lambda: 1.0)
    controller.answers = [Outcome(failed=frozenset("a"))]
    loop.turn_if_due()
    assert loop.due_in_s() == pytest.approx(1.5)


def test_new_keys_do_not_wait_for_a_failing_one_nor_carry_it():
    controller, clock, loop = started()
    controller.answers = [Outcome(failed=frozenset("a"))]
    loop.mark("a")
    loop.turn_if_due()
    loop.mark("b")
    clock.advance(1)
    assert loop.turn_if_due()
    assert controller.turns[-1] == ({"b"}, False)
    assert loop.status().dirty == 1
    clock.advance(1)
    assert loop.turn_if_due()
    assert controller.turns[-1] == ({"a"}, True)


def test_a_failing_key_that_is_found_in_order_is_healed():
    controller, clock, loop = started()
    failing = frozenset("ab")
    controller.answers = [Outcome(failed=failing, settled=failing), Outcome(settled=frozenset("a"))]
    loop.mark("ab")
    loop.turn_if_due()
    loop.mark("c")
    clock.advance(1)
    loop.turn_if_due()
    assert controller.turns[-1] == ({"c"}, False)
    assert (loop.status().dirty, loop.status().settled) == (1, False)  # b waits for its retry


def test_a_failing_key_that_is_marked_and_succeeds_is_healed():
    controller, clock, loop = started()
    controller.answers = [Outcome(failed=frozenset("a"))]
    loop.mark("a")
    loop.turn_if_due()
    loop.mark("a")
    clock.advance(1)
    loop.turn_if_due()
    assert controller.turns[-1] == ({"a"}, False)
    assert loop.status().settled
    assert loop.due_in_s() > 100


def test_a_wake_up_runs_an_empty_turn():
    controller, clock, loop = started()
    controller.answers = [Outcome(wake_after_s=10), Outcome(wake_after_s=20), Outcome()]
    loop.mark("a")
    loop.turn_if_due()
    clock.advance(5)
    loop.mark("b")
    loop.turn_if_due()
    clock.advance(loop.due_in_s())
    assert loop.turn_if_due()
    assert controller.turns == [({"a"}, False), ({"b"}, False), (set(), False)]
    assert loop.status().settled


def test_an_escaped_exception_restarts_the_controller_and_loses_no_key(caplog):
    controller, clock, loop = started()
    controller.answers = [RuntimeError("boom"), KernelError("no buffers")]
    loop.mark(["default/web"])
    loop.turn_if_due()
    assert (controller.opened, controller.closed) == (1, 1)
    assert "default/web" in caplog.text
    assert "boom" in caplog.text
    clock.advance(1.9)
    loop.mark(["default/new"])
    assert not loop.turn_if_due()
    clock.advance(0.1)
    assert loop.turn_if_due()
    clock.advance(4)
    assert loop.turn_if_due()
    assert controller.opened == 3
    assert controller.turns[1:] == [({"default/web", "default/new"}, True)] * 2
    status = loop.status()
    assert (status.restarts, status.ready, status.settled) == (2, True, True)


def test_a_loop_is_ready_until_a_failure_lasts():
    controller, clock, loop = started()
    controller.answers = [Outcome(failed=frozenset("a"))] * 20
    loop.mark("a")
    loop.turn_if_due()
    assert loop.status().ready
    for _ in range(6):
        clock.advance(loop.due_in_s())
        loop.turn_if_due()
    status = loop.status()
    assert not status.ready
    assert status.turning
    assert "failing: a" in status.reason
    controller.answers = []
    clock.advance(loop.due_in_s())
    loop.turn_if_due()
    assert loop.status().ready


def test_a_loop_whose_first_turn_fails_is_not_ready():
    controller, _, loop = make()
    controller.answers = [RuntimeError("boom")]
    loop.turn_if_due()
    status = loop.status()
    assert not status.ready
    assert "boom" in status.reason
    assert status.turning


def test_a_stuck_turn_shows_in_readiness_and_then_in_liveness():
    controller, clock, loop = started()
    seen = []

    def stuck(dirty, full):
        for seconds in (29, 2, 150):
            clock.advance(seconds)
            seen.append(loop.status())
        return Outcome()

    controller.reconcile = stuck
    loop.mark("a")
    loop.turn_if_due()
    assert [status.turning for status in seen] == [True, True, False]
    assert [status.ready for status in seen] == [True, False, False]
    assert "has not ended for 31 s" in seen[1].reason
    assert all(status.busy for status in seen)
    assert loop.status().turning
    assert loop.status().ready


def test_a_controller_that_cannot_be_opened_is_given_up_after_many_tries_over_a_long_time():
    dead = []
    controller = Recorder()
    controller.open_errors = [PreflightError("no ip_vs; load the module")] * 1000
    controller, clock, loop = make(
        controller, on_dead=lambda name, reason: dead.append((name, reason))
    )
    began = clock.now()
    while "given up" not in loop.status().reason:
        clock.advance(loop.due_in_s())
        loop.turn_if_due()
    assert controller.opened >= 10
    assert clock.now() - began >= 300
    assert controller.closed == controller.opened
    assert not loop.status().turning
    loop.start()
    assert loop.stop(30)
    assert dead[0][0] == "recorder"
    assert "no ip_vs" in dead[0][1]


def test_problems_are_told_once_and_solved_once(caplog):
    caplog.set_level("INFO")
    controller, clock, loop = started()
    controller.answers = [Outcome(problems=(PROBLEM,)), Outcome(problems=(PROBLEM,)), Outcome()]
    for key in "abc":
        loop.mark(key)
        loop.turn_if_due()
        clock.advance(1)
        if key == "b":
            assert loop.status().problems == (PROBLEM,)
    told = [record.getMessage() for record in caplog.records if "default/bad" in record.message]
    assert len(told) == 2
    assert told[1].startswith("problem solved")


def test_very_many_problems_are_told_in_few_lines(caplog):
    caplog.set_level("INFO")
    controller, clock, loop = started()
    problems = tuple(Problem(f"Service ns/s{n:04}", "spec", "is bad") for n in range(5000))
    for some in (problems, ()):
        controller.answers.append(Outcome(problems=some))
        loop.mark(["a"])
        assert loop.turn_if_due()
        clock.advance(1)
    assert loop.status().problems == ()
    lines = [r.getMessage() for r in caplog.records if "problem" in r.getMessage()]
    assert len(lines) == 42
    assert sum("count=4980" in line for line in lines) == 2


def test_a_change_is_never_settled_before_it_is_applied():
    controller, _, loop = started()
    seen = []
    controller.reconcile = lambda dirty, full: seen.append(loop.status()) or Outcome()
    assert loop.status().settled
    loop.mark("a")
    assert not loop.status().settled
    loop.turn_if_due()
    assert not seen[0].settled
    assert loop.status().settled


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        threading.Event().wait(0.001)


def test_the_thread_turns_on_marks_and_ends_when_asked():
    controller, clock, loop = make(min_interval_s=0.0)
    loop.start()
    until(lambda: controller.turns == [(set(), True)])
    loop.mark("a")
    until(lambda: controller.turns[1:] == [({"a"}, False)])
    until(lambda: loop.status().settled)
    clock.advance(200)  # heartbeats, not turns
    clock.advance(99)
    assert loop.stop(30)
    assert controller.closed == 1
    assert controller.threads.isdisjoint({threading.get_ident()})


def test_the_cache_may_mark_while_the_loop_asks_whether_it_is_ready():
    """The cache marks under its own lock, which ``ready`` takes too: no order may deadlock."""
    cache_lock = threading.RLock()

    def ready():
        with cache_lock:
            return True

    controller, _, loop = make(ready=ready, min_interval_s=0.0)
    loop.start()
    for number in range(2000):
        with cache_lock:
            loop.mark([number])
    until(lambda: set().union(*(keys for keys, _ in controller.turns)) == set(range(2000)))
    assert loop.stop(30)


def test_an_exception_in_one_loop_does_not_touch_another():
    bad, good = Recorder(), Recorder()
    bad.answers = [RuntimeError("boom")] * 3
    _, _, first = make(bad, min_interval_s=0.0)
    _, _, second = make(good, min_interval_s=0.0)
    first.start()
    second.start()
    second.mark("a")
    until(lambda: bad.turns and {"a"} <= set().union(*(keys for keys, _ in good.turns)))
    assert first.stop(30)
    assert second.stop(30)


KEYS = st.sampled_from("abcde")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("mark"), st.sets(KEYS, min_size=1)),
        st.tuples(st.just("advance"), st.floats(0, 400)),
        st.tuples(st.just("fail"), st.sets(KEYS)),
        st.tuples(st.just("crash"), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_mark_is_followed_by_a_successful_turn_over_its_key(steps):
    """Whatever fails in between: once nothing fails any more, each marked key has been handled."""
    controller, clock, loop = make()
    pending = set()
    answers = []

    def reconcile(dirty, full):
        answer = answers.pop(0) if answers else Outcome()
        if isinstance(answer, Exception):
            raise answer
        failed = answer.failed & (dirty if not full else set("abcde"))
        pending.difference_update(set("abcde") - failed if full else dirty - failed)
        pending.update(failed)
        return Outcome(failed=frozenset(failed))

    controller.reconcile = reconcile
    for verb, value in steps:
        if verb == "mark":
            pending.update(value)
            loop.mark(value)
        elif verb == "advance":
            clock.advance(value)
        elif verb == "fail":
            answers.append(Outcome(failed=frozenset(value)))
        else:
            answers.append(RuntimeError("boom"))
        loop.turn_if_due()
        assert not (pending and loop.status().settled)
    answers.clear()
    for _ in range(20):
        clock.advance(loop.due_in_s())
        loop.turn_if_due()
        if loop.status().settled:
            break
    assert loop.status().settled
    assert not pending
