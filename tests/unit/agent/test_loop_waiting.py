"""How long keys wait for a turn that succeeds with them."""

from collections.abc import Hashable

import pytest

from kube_router_py.loop import Loop, Outcome, Turn
from kube_router_py.loop_model import Controller, MonotonicClock
from kube_router_py.loop_waiting import Waiting


class Time(MonotonicClock):
    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> float:
        return self.now_s


class Script(Controller):
    """Answers what a test has prepared; each turn takes ``takes_s``."""

    name = "script"

    def __init__(self, time: Time) -> None:
        self.time = time
        self.takes_s = 0.0
        self.answers: list[Outcome | Exception] = []
        self.loop: Loop | None = None
        self.marks: tuple[Hashable, ...] = ()

    def open(self) -> None: ...

    def close(self) -> None: ...

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        self.time.now_s += self.takes_s
        if self.loop is not None:
            self.loop.mark(self.marks)
        answer = self.answers.pop(0) if self.answers else Outcome()
        if isinstance(answer, Exception):
            raise answer
        return answer


class World:
    def __init__(self) -> None:
        self.time = Time()
        self.script = Script(self.time)
        self.turns: list[Turn] = []
        self.loop = Loop(
            self.script,
            ready=lambda: True,
            resync_interval_s=10_000.0,
            min_interval_s=0.0,
            retry_min_s=2.0,
            clock=self.time,
            jitter=lambda: 0.0,
            on_turn=self.turns.append,
        )
        assert self.turn() == ()

    def turn(self, after_s: float = 0.0) -> tuple[float, ...]:
        """How long the keys of the next turn had waited, shortest first."""
        self.time.now_s += after_s
        assert self.loop.turn_if_due()
        return tuple(sorted(self.turns[-1].waited_s))

    @property
    def oldest_s(self) -> float:
        return self.loop.status().oldest_dirty_s


@pytest.fixture
def world() -> World:
    return World()


def test_a_key_waits_from_its_mark_to_the_end_of_its_turn(world: World) -> None:
    assert world.oldest_s == 0
    world.loop.mark(("a",))
    world.time.now_s += 3
    world.loop.mark(("a", "b"))
    assert world.oldest_s == 3
    world.script.takes_s = 0.5
    assert world.turn(1) == (1.5, 4.5)
    assert world.oldest_s == 0


def test_what_fails_goes_on_waiting(world: World) -> None:
    world.loop.mark(("a", "b"))
    world.script.answers = [Outcome(frozenset(("a", "other")))]
    assert world.turn(1) == (1,)
    assert world.oldest_s == 1
    world.loop.mark(("c",))
    assert world.turn(1) == (1,), "it does not wait for those that fail"
    # The retry has both again; what nobody had marked waits since it was found to fail.
    assert world.turn(1) == (2, 3)
    assert world.oldest_s == 0


def test_what_is_marked_during_a_turn_waits_anew(world: World) -> None:
    world.loop.mark(("a",))
    world.script.loop, world.script.marks, world.script.takes_s = world.loop, ("a",), 1.0
    assert world.turn(1) == (2,)
    world.script.loop = None
    assert world.oldest_s == 0
    assert world.turn(4) == (5,)


def test_after_a_crash_nothing_has_been_done(world: World) -> None:
    world.loop.mark(("a",))
    world.script.answers = [RuntimeError("boom")]
    assert world.turn(1) == ()
    assert world.oldest_s == 1
    assert world.turn(9) == (10,)


def test_what_is_settled_without_being_marked_is_told(world: World) -> None:
    world.script.answers = [Outcome(frozenset(("links",)))]
    world.loop.mark(("a",))
    assert world.turn(1) == (1,)
    world.loop.mark(("b",))
    world.script.answers = [Outcome(settled=frozenset(("links", "never failed")))]
    assert world.turn(1) == (1, 1)
    assert world.oldest_s == 0


def test_a_key_that_fails_counts_from_its_oldest_mark() -> None:
    waiting = Waiting()
    waiting.mark("a", 1)
    taken = waiting.take("ab")
    waiting.mark("a", 2)
    assert waiting.settle(taken, {"a"}, 3) == ()
    assert waiting.oldest_s(4) == 3
    assert waiting.settle(waiting.take("a"), (), 5) == (4,)
    assert waiting.oldest_s(6) == 0
