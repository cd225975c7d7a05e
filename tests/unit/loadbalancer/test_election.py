"""The Lease of the allocator: who may write, whatever clocks, requests and processes do."""

import heapq
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.objects import Lease, LeaseSpec, ObjectMeta
from kube_router_py.errors import ApiError
from kube_router_py.loadbalancer.election import (
    LEASE,
    LONGEST_ANNOTATION,
    Election,
    Move,
    Seen,
    Timing,
    decide,
    see,
)

PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
MICRO_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class Store:
    """The API server's part: one Lease, compare-and-swap, merge patches."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.revision = 0
        self.down = ""
        self.writes: list[dict[str, Any]] = []

    def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
        assert (path, query) == (PATH, {"fieldSelector": f"metadata.name={LEASE}"})
        self._refuse()
        items = [self.lease] if self.lease else []
        found = {"kind": "LeaseList", "metadata": {"resourceVersion": "1"}, "items": items}
        return json.dumps(found).encode()

    def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
        assert path == PATH
        self._refuse()
        if self.lease is not None:
            raise RefusedError("there is one", 409, "AlreadyExists", 0)
        return self._store(body)

    def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
        assert path == f"{PATH}/{LEASE}"
        self._refuse()
        if self.lease is None:
            raise RefusedError("there is none", 404, "NotFound", 0)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise RefusedError("another was faster", 409, "Conflict", 0)
        return self._store(body)

    def _refuse(self) -> None:
        if self.down:
            raise ApiError(self.down)

    def _store(self, body: Any) -> bytes:
        self.writes.append(body)
        self.revision += 1
        old = self.lease or {"metadata": {}, "spec": {}}
        annotations = {
            **old["metadata"].get("annotations", {}),
            **body["metadata"].get("annotations", {}),
        }
        metadata = {
            "name": LEASE,
            "namespace": "kube-system",
            "resourceVersion": str(self.revision),
            "annotations": annotations,
        }
        spec = {**old["spec"], **body["spec"]}
        self.lease = {"kind": "Lease", "metadata": metadata, "spec": spec}
        return json.dumps(self.lease).encode()

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)


class World:
    """A store, a clock, candidates without threads."""

    def __init__(self) -> None:
        self.store, self.clock = Store(), Clock()
        self.changes: list[str] = []

    def candidate(self, name: str, client: Any = None) -> Election:
        return Election(
            client or self.store,
            "kube-system",
            name,
            lambda: self.changes.append(name),
            clock=self.clock,
            wall_clock=self.clock.wall,
        )

    def pass_s(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture
def world() -> World:
    return World()


# --- the decision ---------------------------------------------------------------------------------


def lease(holder: str, lasts_s: int | None = 15, renewed: str = "a", revision: str = "1") -> Lease:
    spec = LeaseSpec(holder_identity=holder, lease_duration_seconds=lasts_s, renew_time=renewed)
    return Lease(metadata=ObjectMeta(name=LEASE, resource_version=revision), spec=spec)


@pytest.mark.parametrize(
    ("seen", "now", "move"),
    [
        (None, 0.0, Move.CREATE),
        (Seen(lease("me"), 100.0), 101.0, Move.RENEW),
        (Seen(lease("me"), 100.0), 900.0, Move.RENEW),
        (Seen(lease(""), 100.0), 100.0, Move.TAKE),
        (Seen(lease("", 1), 100.0), 100.0, Move.TAKE),
        (Seen(lease("other"), 100.0), 114.9, Move.WAIT),
        (Seen(lease("other"), 100.0), 115.0, Move.TAKE),
        (Seen(lease("other", 60), 100.0), 159.0, Move.WAIT),
        (Seen(lease("other", 60), 100.0), 160.0, Move.TAKE),
        (Seen(lease("other", None), 100.0), 114.0, Move.WAIT),
        (Seen(lease("other", None), 100.0), 115.0, Move.TAKE),
    ],
)
def test_what_a_candidate_does_next(seen: Seen | None, now: float, move: Move) -> None:
    assert decide(seen, now, "me", Timing()) is move


def test_a_lease_lasts_from_when_it_was_first_seen_so_whatever_is_written_into_it() -> None:
    first = see(lease("other"), None, 100.0)
    assert first.at == 100.0
    # An annotation made by others: another resourceVersion, and no renewal.
    again = see(lease("other", revision="2"), first, 110.0)
    assert again.at == 100.0
    assert again.lease.metadata.resource_version == "2"
    # Clocks of others say nothing, a change does: even to an earlier time.
    assert see(lease("other", renewed="1990"), again, 112.0).at == 112.0
    assert see(lease("third"), again, 113.0).at == 113.0


# --- one candidate --------------------------------------------------------------------------------


def test_without_a_lease_it_is_created_and_renewed_with_the_fields_of_kube_router(
    world: World,
) -> None:
    me = world.candidate("me")
    assert (me.term, me.is_leader(), me.may_write(1)) == (0, False, False)
    me.campaign()
    assert (me.term, me.holder, world.changes) == (1, "me", ["me"])
    assert world.store.lease is not None
    assert world.store.lease["metadata"]["name"] == LEASE
    created = world.store.lease["spec"]
    at = world.clock.wall().strftime(MICRO_TIME)
    assert created == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "acquireTime": at,
        "renewTime": at,
        "leaseTransitions": 0,
    }
    world.pass_s(2)
    me.campaign()
    later = world.clock.wall().strftime(MICRO_TIME)
    assert world.store.lease["spec"] == {**created, "renewTime": later}
    assert (me.term, world.changes) == (1, ["me"])


def test_another_leader_is_waited_for_and_followed_after_its_time_by_the_own_clock(
    world: World,
) -> None:
    world.store._store(
        {
            "metadata": {"annotations": {"someone/else": "kept"}},
            "spec": {
                "holderIdentity": "kube-router-x",
                "leaseDurationSeconds": 15,
                "acquireTime": "2199-01-01T00:00:00.000000Z",
                "renewTime": "2199-01-01T00:00:00.000000Z",
                "leaseTransitions": 4,
            },
        }
    )
    me = world.candidate("me")
    for _ in range(7):
        me.campaign()
        assert (me.term, me.holder) == (0, "kube-router-x")
        world.pass_s(2)
    assert world.changes == []
    world.pass_s(1)
    me.campaign()
    assert me.term == 1
    assert world.store.lease is not None
    spec = world.store.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("me", 5)
    assert spec["acquireTime"] == spec["renewTime"] == world.clock.wall().strftime(MICRO_TIME)
    assert world.store.lease["metadata"]["annotations"] == {"someone/else": "kept"}


def test_nothing_is_written_from_the_renew_deadline_on_and_a_new_term_begins_after_it(
    world: World,
) -> None:
    me = world.candidate("me")
    me.campaign()
    world.store.down = "no route to host"
    world.pass_s(9.9)
    assert me.may_write(1)
    world.pass_s(0.1)
    assert (me.term, me.may_write(1)) == (0, False)
    with pytest.raises(ApiError):
        me.campaign()
    me._notice_loss()
    assert world.changes == ["me", "me"]
    world.store.down = ""
    me.campaign()
    assert (me.term, me.may_write(2), me.may_write(1)) == (2, True, False)


def test_a_request_of_the_longest_kind_ends_while_the_lease_is_held(world: World) -> None:
    # With the usual times the deadline comes first; a slower request begins earlier still.
    timing = Timing(renew_s=14.0, request_s=4.0)
    me = Election(world.store, "kube-system", "me", lambda: None, timing=timing, clock=world.clock)
    me.campaign()
    world.pass_s(10.9)
    assert me.may_write(1)
    world.pass_s(0.2)
    assert me.is_leader()
    assert not me.may_write(1)


def test_the_time_of_a_renewal_counts_from_before_it_was_sent(world: World) -> None:
    class Slow(Store):
        def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
            world.pass_s(3)
            return super().patch(path, body, timeout_s=timeout_s)

    store = Slow()
    me = world.candidate("me", store)
    me.campaign()
    world.pass_s(2)
    me.campaign()
    world.pass_s(6.9)
    assert me.is_leader()
    world.pass_s(0.2)
    assert not me.is_leader()


def test_who_finds_another_in_its_place_stops_at_once_and_campaigns_again(world: World) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    me.campaign()
    other.campaign()
    world.pass_s(15)
    other.campaign()
    assert (other.term, world.store.holder) == (1, "other")
    me.campaign()
    assert (me.term, me.holder) == (0, "other")
    world.pass_s(15)
    me.campaign()
    assert (me.term, me.may_write(2), world.store.holder) == (2, True, "me")


def test_a_deleted_lease_is_created_again(world: World) -> None:
    me = world.candidate("me")
    me.campaign()
    world.store.lease = None
    world.pass_s(2)
    me.campaign()
    assert (me.term, world.store.holder) == (1, "me")


def test_an_answer_that_was_lost_is_found_by_looking(world: World) -> None:
    class Losing(Store):
        loses = True

        def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
            answer = super().patch(path, body, timeout_s=timeout_s)
            if self.loses:
                raise ApiError("the connection broke")
            return answer

    store = Losing()
    me = world.candidate("me", store)
    me.campaign()
    for _ in range(3):
        world.pass_s(2)
        with pytest.raises(ApiError):
            me.campaign()
    store.loses = False
    world.pass_s(2)
    me.campaign()
    world.pass_s(9)
    assert me.term == 1


def test_an_unreadable_lease_is_nobodys_gain(world: World) -> None:
    world.store.lease = {
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": "kube-system", "resourceVersion": "5"},
        "spec": {"holderIdentity": 7},
    }
    me = world.candidate("me")
    with pytest.raises(ApiError, match="cannot be read"):
        me.campaign()
    assert not me.is_leader()


# --- giving back, annotations, the thread ---------------------------------------------------------


def test_given_back_it_is_free_at_once_for_kube_router_too(world: World) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    me.campaign()
    other.campaign()
    world.pass_s(1)
    me.stop(1, release=True)
    assert (me.term, me.may_write(1)) == (0, False)
    assert world.store.lease is not None
    spec = world.store.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("", 1)
    other.campaign()
    assert world.store.holder == "other"
    assert world.store.lease["spec"]["leaseTransitions"] == 1


def test_it_is_not_given_back_while_something_is_on_its_way_or_another_has_it(
    world: World,
) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    me.campaign()
    me.stop(1, release=False)
    assert world.store.holder == "me"
    third = world.candidate("third")
    third.campaign()
    other.campaign()
    world.pass_s(15)
    other.campaign()
    me.stop(1, release=True)
    assert world.store.holder == "other"


def test_annotations_are_written_once_by_whoever_leads_and_kept_by_others(world: World) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    name = "kube-router.io/accepted-pools"
    other.annotate(name, "theirs")
    me.annotate(name, "mine")
    me.annotate("kube-router.io/long", "x" * (LONGEST_ANNOTATION + 1))
    me.campaign()
    other.campaign()
    for _ in range(3):
        world.pass_s(2)
        me.campaign()
    assert [write["metadata"].get("annotations") for write in world.store.writes] == [
        {name: "mine"},
        *(None,) * 3,
    ]
    me.annotate(name, "changed")
    me.campaign()
    assert world.store.lease is not None
    assert world.store.lease["metadata"]["annotations"] == {name: "changed"}
    other.campaign()
    world.pass_s(15)
    other.campaign()
    assert world.store.lease["metadata"]["annotations"] == {name: "theirs"}


def test_an_annotation_of_one_term_is_not_written_in_another(world: World) -> None:
    me = world.candidate("me")
    me.campaign()
    me.annotate("kube-router.io/kept", "first", me.term)
    world.pass_s(30)
    me.campaign()
    assert me.term == 2
    me.annotate("kube-router.io/kept", "second", me.term)
    me.campaign()
    written = [each["metadata"].get("annotations") for each in world.store.writes]
    assert written == [None, None, {"kube-router.io/kept": "second"}]


def test_annotations_that_the_api_server_refuses_do_not_cost_the_lease(world: World) -> None:
    class Strict(Store):
        def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
            if body["metadata"].get("annotations"):
                raise RefusedError("must have at most 262144 bytes", 422, "Invalid", 0)
            return super().patch(path, body, timeout_s=timeout_s)

    store = Strict()
    me = world.candidate("me", store)
    me.campaign()
    me.annotate("kube-router.io/kept", "x" * 100_000)
    for _ in range(3):
        world.pass_s(8)
        me.campaign()
        assert me.term == 1
    assert len(store.writes) == 4


def test_an_annotation_of_a_term_is_not_written_before_it_is_said_anew(world: World) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    name = "kube-router.io/kept-addresses"
    me.annotate(name, "without a term", 0)
    me.campaign()
    assert world.store.lease is not None
    assert "annotations" not in world.store.writes[-1]["metadata"]
    me.annotate(name, "192.0.2.1", me.term)
    me.campaign()
    assert world.store.lease["metadata"]["annotations"] == {name: "192.0.2.1"}
    # Another one leads for a while, and has found out something else.
    world.pass_s(1)
    other.campaign()
    world.pass_s(15)
    other.campaign()
    other.annotate(name, "192.0.2.2", other.term)
    other.campaign()
    assert world.store.lease["metadata"]["annotations"] == {name: "192.0.2.2"}
    me.campaign()
    assert not me.is_leader()
    world.pass_s(15)
    me.campaign()
    assert (world.store.holder, me.term) == ("me", 2)
    assert world.store.lease["metadata"]["annotations"] == {name: "192.0.2.2"}
    me.annotate(name, "", me.term)
    me.campaign()
    assert world.store.lease["metadata"]["annotations"] == {name: ""}


def test_the_thread_campaigns_for_ever_and_tells_of_each_reason_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    changed = threading.Semaphore(0)
    tries = threading.Semaphore(0)

    class Counting(Store):
        """For two threads: nobody writes between the look of another and its write."""

        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
            tries.release()
            with self.lock:
                return super().list(path, query, timeout_s=timeout_s)

        def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
            with self.lock:
                return super().post(path, body, timeout_s=timeout_s)

        def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
            with self.lock:
                return super().patch(path, body, timeout_s=timeout_s)

        def give_to(self, holder: str) -> None:
            with self.lock:
                self._store({"metadata": {}, "spec": {"holderIdentity": holder}})

    store = Counting()
    store.down = "no route to host"
    timing = Timing(retry_s=0.01)
    me = Election(store, "kube-system", "me", changed.release, timing=timing)
    me.start()
    for _ in range(4):
        assert tries.acquire(timeout=60)
    store.down = ""
    assert changed.acquire(timeout=60)
    assert me.term == 1
    store.give_to("other")
    assert changed.acquire(timeout=60)
    assert not me.is_leader()
    store.give_to("")
    assert changed.acquire(timeout=60)
    assert me.term == 2
    me.stop(60, release=True)
    assert store.holder == ""
    assert caplog.text.count("out of reach") == 1


# --- several candidates, skewed clocks, slow requests, frozen processes ---------------------------


class Scheduler:
    """Runs one thread at a time, in the order of simulated time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, threading.Semaphore]] = []
        self._numbers = itertools.count()
        self._control = threading.Semaphore(0)
        self.over = False
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def spawn(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                self.sleep(0, is_first=True)
                work()
            except _Over:
                pass
            except BaseException as error:  # noqa: BLE001 - raised in the test's thread
                self.failures.append(error)
            finally:
                self._control.release()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        assert self._control.acquire(timeout=60)

    def sleep(self, seconds: float, *, is_first: bool = False) -> None:
        turn = threading.Semaphore(0)
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), turn))
        self._control.release()
        assert turn.acquire(timeout=60)
        if self.over:
            raise _Over

    def run(self, until_s: float, check: Callable[[], None]) -> None:
        while not self.failures and self._queue[0][0] < until_s:
            self.now, _, turn = heapq.heappop(self._queue)
            turn.release()
            assert self._control.acquire(timeout=60)
            check()
        self.over = True
        while self._queue:
            turn = heapq.heappop(self._queue)[2]
            turn.release()
            assert self._control.acquire(timeout=60)
        for thread in self._threads:
            thread.join(60)
        for failure in self.failures:
            raise failure


class _Over(Exception):
    """The simulation has ended."""


class Distant:
    """A client of the store: requests take time, get lost, and arrive although nobody waits."""

    def __init__(self, store: Store, scheduler: Scheduler, rng: random.Random) -> None:
        self.store, self.scheduler, self.rng = store, scheduler, rng

    def list(self, path: str, query: Any = None, *, timeout_s: float | None = None) -> bytes:
        return self._ask(lambda: self.store.list(path, query), timeout_s)

    def patch(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
        return self._ask(lambda: self.store.patch(path, body), timeout_s)

    def post(self, path: str, body: Any, *, timeout_s: float | None = None) -> bytes:
        return self._ask(lambda: self.store.post(path, body), timeout_s)

    def _ask(self, question: Callable[[], bytes], timeout_s: float | None) -> bytes:
        assert timeout_s is not None
        there_s = self.rng.uniform(0, timeout_s) if self.rng.random() < 0.2 else 0.01
        self.scheduler.sleep(there_s)
        if self.rng.random() < 0.1:
            self.scheduler.sleep(timeout_s - there_s)
            raise ApiError("lost on its way")
        answer = question()
        if self.rng.random() < 0.1:
            self.scheduler.sleep(timeout_s - there_s)
            raise ApiError("the answer was lost")
        self.scheduler.sleep(self.rng.uniform(0, timeout_s - there_s) / 4)
        return answer


class Simulation:
    """Candidates that campaign and write, each with a clock of its own."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.store, self.scheduler = Store(), Scheduler()
        # (from, until, who): in which span a write of whom may reach the store.
        self.writes: list[tuple[float, float, str]] = []
        self.frozen_until = [0.0] * count
        self.candidates = [self._candidate(number) for number in range(count)]
        self.woken_writes = 0

    def _candidate(self, number: int) -> Election:
        offset_s = self.rng.uniform(-1e6, 1e6)
        rate = self.rng.uniform(0.999, 1.001)
        epoch = datetime(2000 + 50 * number, 1, 1, tzinfo=UTC)
        election = Election(
            Distant(self.store, self.scheduler, self.rng),
            "kube-system",
            f"agent-{number}",
            lambda: None,
            clock=lambda: offset_s + rate * self.scheduler.now,
            wall_clock=lambda: epoch + timedelta(seconds=self.scheduler.now),
        )
        self.scheduler.spawn(lambda: self._campaign(number, election))
        self.scheduler.spawn(lambda: self._write(number, election))
        return election

    def _rest(self, number: int, seconds: float) -> None:
        self.scheduler.sleep(seconds)
        while (left_s := self.frozen_until[number] - self.scheduler.now) > 0:
            self.scheduler.sleep(left_s)

    def _campaign(self, number: int, election: Election) -> None:
        while True:
            try:
                election.campaign()
            except ApiError:
                pass
            election._notice_loss()
            self._rest(number, self.rng.uniform(1.5, 4.4))
            if self.rng.random() < 0.02:
                self.frozen_until[number] = self.scheduler.now + 20

    def _write(self, number: int, election: Election) -> None:
        term = 0
        while True:
            self._rest(number, self.rng.uniform(0.1, 0.5))
            # The term of the work in hand: learned once, kept over a freeze.
            term = term if term and self.rng.random() < 0.7 else election.term
            if term and election.may_write(term):
                takes_s = self.rng.uniform(0, election.timing.request_s)
                begun = self.scheduler.now
                self.writes.append((begun, begun + takes_s, election.identity))

    def run(self, until_s: float) -> None:
        self.scheduler.run(until_s, self._check)

    def _check(self) -> None:
        writers = [
            each.identity for each in self.candidates if each.term and each.may_write(each.term)
        ]
        assert len(writers) <= 1, f"at {self.scheduler.now}: {writers}"


def overlaps(writes: list[tuple[float, float, str]]) -> Iterator[tuple[Any, Any]]:
    """Pairs of writes of different writers that may reach the store in another order."""
    latest: dict[str, tuple[float, float, str]] = {}
    for write in sorted(writes):
        for other in latest.values():
            if other[2] != write[2] and other[1] > write[0]:
                yield other, write
        if write[2] not in latest or latest[write[2]][1] < write[1]:
            latest[write[2]] = write


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 5))
def test_never_two_may_write_at_one_time_whatever_happens(seed: int, count: int) -> None:
    simulation = Simulation(seed, count)
    simulation.run(600)
    assert list(overlaps(simulation.writes)) == []
    assert simulation.writes, "ten minutes, and nobody ever led"


def test_the_simulation_finds_a_candidate_that_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hasty(seen: Seen | None, now: float, identity: str, timing: Timing) -> Move:
        is_free = seen is not None and now >= seen.at + timing.lease_s / 5
        return Move.TAKE if is_free else decide(seen, now, identity, timing)

    monkeypatch.setattr("kube_router_py.loadbalancer.election.decide", hasty)

    def run_all() -> None:
        for seed in range(20):
            simulation = Simulation(seed, 3)
            simulation.run(600)
            assert list(overlaps(simulation.writes)) == []

    with pytest.raises(AssertionError):
        run_all()


def test_leaders_change_in_the_simulation() -> None:
    simulation = Simulation(7, 3)
    simulation.run(3000)
    assert len({who for _, _, who in simulation.writes}) == 3
    assert simulation.store.lease is not None
    assert simulation.store.lease["spec"]["leaseTransitions"] > 3


def test_a_leader_that_was_frozen_for_twenty_seconds_writes_nothing_when_it_wakes(
    world: World,
) -> None:
    me, other = world.candidate("me"), world.candidate("other")
    me.campaign()
    other.campaign()
    term = me.term
    for _ in range(10):  # "me" does nothing meanwhile
        world.pass_s(2)
        other.campaign()
    assert other.may_write(other.term)
    assert not me.may_write(term)
    me.campaign()
    assert (me.term, me.may_write(term)) == (0, False)
    assert world.store.holder == "other"
