"""Who follows is told, the kernel's log is read only meanwhile, and what goes wrong is said."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kube_router_py.drops import hub as hub_module
from kube_router_py.drops.hub import DropHub, Following, Lost
from kube_router_py.drops.record import DropRecord
from kube_router_py.drops.stream import DropStream
from kube_router_py.errors import ConfigurationError, KernelError, KubeRouterError
from kube_router_py.kernel.fake_nflog import FakeNflog, FakePacketLog
from kube_router_py.kernel.nflog_ports import GroupTakenError

_TIMEOUT_S = 60.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def take(following: Following, number: int = 1) -> list[DropRecord | Lost]:
    found: list[DropRecord | Lost] = []
    deadline = time.monotonic() + _TIMEOUT_S
    while len(found) < number:
        assert time.monotonic() < deadline
        found += following.take(0.1)
    return found


class Heard:
    """Whoever is told of every record."""

    def __init__(self) -> None:
        self.records: list[DropRecord] = []
        self.ticks = 0
        self.error: Exception | None = None

    def tell(self, record: DropRecord, now: float) -> None:
        del now
        self.records.append(record)
        if self.error is not None:
            raise self.error

    def tick(self, now: float) -> None:
        del now
        self.ticks += 1


@pytest.fixture
def nflog() -> FakeNflog:
    return FakeNflog()


@pytest.fixture
def make(
    world: Any, nflog: FakeNflog, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., DropHub]]:
    monkeypatch.setattr(hub_module, "_READ_S", 0.02)
    made: list[DropHub] = []

    def make_hub(*tellers: Heard) -> DropHub:
        made.append(DropHub(nflog.open, world.names, tellers))
        return made[-1]

    yield make_hub
    for each in made:
        each.stop(_TIMEOUT_S)


@pytest.fixture
def hub(make: Callable[..., DropHub]) -> DropHub:
    return make()


def test_nothing_is_read_before_somebody_follows(hub: DropHub, nflog: FakeNflog) -> None:
    hub.start()
    assert (nflog.opened, nflog.is_read) == (0, False)


def test_a_follower_is_told(hub: DropHub, nflog: FakeNflog, packet: Any) -> None:
    following = hub.follow()
    assert nflog.is_read
    nflog.log(packet())
    nflog.log(packet(prefix="DROP by policy x/p "))
    nflog.log(packet(destination_port=80))
    ports = [each.destination.port for each in take(following, 2) if isinstance(each, DropRecord)]
    assert ports == [5432, 80]
    assert hub.numbers() == {"drop_records_total": 2, "drop_records_lost_total": 0}


def test_the_log_is_given_back_when_the_last_one_leaves(hub: DropHub, nflog: FakeNflog) -> None:
    first, second = hub.follow(), hub.follow()
    assert nflog.opened == 1
    first.close()
    first.close()
    assert nflog.is_read
    second.close()
    until(lambda: not nflog.is_read)
    third = hub.follow()
    assert (nflog.is_read, nflog.opened) == (True, 2)
    third.close()


def test_who_comes_and_goes_all_the_time_is_served(
    hub: DropHub, nflog: FakeNflog, packet: Any
) -> None:
    """Who follows hears what is logged from then on, however shortly before another one left."""
    for number in range(50):
        following = hub.follow()
        nflog.log(packet(destination_port=number))
        (record,) = take(following)
        assert isinstance(record, DropRecord)
        assert record.destination.port == number
        following.close()


def test_all_who_follow_are_told_the_same(hub: DropHub, nflog: FakeNflog, packet: Any) -> None:
    both = hub.follow(), hub.follow()
    nflog.log(packet())
    first, second = (take(each) for each in both)
    assert first == second


def test_who_comes_later_is_told_what_is_remembered(
    hub: DropHub, nflog: FakeNflog, packet: Any
) -> None:
    first = hub.follow()
    for number in range(20):
        nflog.log(packet(destination_port=number))
    take(first, 20)
    late = [each for each in take(hub.follow(5), 5) if isinstance(each, DropRecord)]
    assert [each.destination.port for each in late] == [15, 16, 17, 18, 19]
    assert hub.follow(0).take(0.0) == []
    wanted = hub.follow(3, lambda record: bool(record.destination.port % 2))
    found = [each for each in take(wanted, 3) if isinstance(each, DropRecord)]
    assert [each.destination.port for each in found] == [15, 17, 19]


def test_what_nobody_followed_is_not_remembered(
    hub: DropHub, nflog: FakeNflog, packet: Any
) -> None:
    first = hub.follow()
    nflog.log(packet())
    take(first)
    first.close()
    until(lambda: not nflog.is_read)
    assert hub.follow(1000).take(0.1) == []


def test_what_was_read_before_a_gap_is_not_remembered(
    hub: DropHub, nflog: FakeNflog, packet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes while the log is being closed, for want of listeners, has it opened again."""
    late: list[Following] = []
    coming = threading.Thread(target=lambda: late.append(hub.follow(1000)))
    closed = nflog.closed

    def close(log: FakePacketLog) -> None:
        closed(log)
        monkeypatch.setattr(nflog, "closed", closed)
        coming.start()
        until(lambda: hub._followers)

    first = hub.follow()
    nflog.log(packet())
    take(first)
    monkeypatch.setattr(nflog, "closed", close)
    first.close()
    until(lambda: late)
    assert late[0].take(0.0) == []
    assert nflog.opened == 2
    coming.join(_TIMEOUT_S)


def test_what_was_read_before_a_failure_is_not_remembered(
    make: Callable[..., DropHub], nflog: FakeNflog, packet: Any
) -> None:
    hub = make(Heard())
    first = hub.follow()
    nflog.log(packet())
    take(first)
    nflog.fail(KernelError("the socket is gone"))
    with pytest.raises(KernelError, match="the socket is gone"):
        take(first)
    assert hub.follow(1000).take(0.0) == []


def test_who_is_slow_loses_and_is_told_how_much(
    make: Callable[..., DropHub],
    nflog: FakeNflog,
    packet: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "_WAITING_MOST", 3)
    heard = Heard()
    hub = make(heard)
    slow = hub.follow()
    for number in range(10):
        nflog.log(packet(destination_port=number))
    until(lambda: len(heard.records) == 10)  # told after the followers
    found = slow.take(0.0)
    assert found[3:] == [Lost(7)]
    ports = [each.destination.port for each in found if isinstance(each, DropRecord)]
    assert ports == [0, 1, 2]
    nflog.log(packet(destination_port=11))
    (record,) = take(slow)
    assert isinstance(record, DropRecord)


def test_what_the_kernel_lost_is_told(hub: DropHub, nflog: FakeNflog, packet: Any) -> None:
    following = hub.follow()
    nflog.lose(12)
    assert take(following) == [Lost(12)]
    assert hub.numbers()["drop_records_lost_total"] == 12


def test_who_floods_the_log_does_not_get_all_of_the_agents_time(
    hub: DropHub, nflog: FakeNflog, packet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not read in time waits in the kernel; whoever wants an end has it at once."""
    monkeypatch.setattr(hub_module, "_READ_PER_S", 1 / (100 * _TIMEOUT_S))
    following = hub.follow()
    nflog.log(packet(destination_port=1))
    take(following)
    nflog.log(packet(destination_port=2))
    assert following.take(0.2) == []
    following.close()
    until(lambda: not nflog.is_read)


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_group_that_is_taken_is_told_at_once(hub: DropHub, nflog: FakeNflog) -> None:
    nflog.holder = "tcpdump (process 12)"
    for _ in range(2):
        with pytest.raises(GroupTakenError, match="tcpdump"):
            hub.follow()
    nflog.holder = ""
    hub.follow().close()


def test_a_read_that_fails_ends_those_who_follow(
    hub: DropHub, nflog: FakeNflog, packet: Any
) -> None:
    following = hub.follow()
    nflog.fail(KernelError("the socket is gone"))
    with pytest.raises(KernelError, match="the socket is gone"):
        take(following)
    again = hub.follow()
    nflog.log(packet())
    assert len(take(again)) == 1


def test_a_bug_is_told_as_one(
    hub: DropHub, nflog: FakeNflog, caplog: pytest.LogCaptureFixture
) -> None:
    following = hub.follow()
    nflog.fail(ZeroDivisionError())
    with pytest.raises(KernelError, match="the agent's log says why"):
        take(following)
    assert any(record.exc_info for record in caplog.records)


def test_a_packet_that_cannot_be_named_is_left_out(
    hub: DropHub,
    nflog: FakeNflog,
    packet: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    following = hub.follow()
    for changes in ({"prefix": None}, {"prefix": None}, {}):
        nflog.log(packet(**changes))
    (record,) = take(following)
    assert isinstance(record, DropRecord)
    assert [each.getMessage() for each in caplog.records] == ["a refused packet could not be told"]


def test_a_thread_that_cannot_start_is_tried_again(
    hub: DropHub, nflog: FakeNflog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the container has as many as it may have."""

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            hub.follow()
    hub.follow().close()
    until(lambda: not nflog.is_read)


def test_the_agents_end_ends_those_who_follow(hub: DropHub, nflog: FakeNflog) -> None:
    following = hub.follow()
    hub.stop(_TIMEOUT_S)
    assert not nflog.is_read
    with pytest.raises(KubeRouterError, match="the agent stops"):
        following.take(_TIMEOUT_S)
    with pytest.raises(KubeRouterError, match="the agent stops"):
        hub.follow()


# --- --policy-drop-log ---------------------------------------------------------------------------


def test_with_a_teller_it_is_read_always(
    make: Callable[..., DropHub], nflog: FakeNflog, packet: Any
) -> None:
    heard = Heard()
    hub = make(heard)
    hub.start()
    until(lambda: nflog.is_read)
    nflog.log(packet())
    until(lambda: heard.records)
    following = hub.follow(1000)
    assert take(following) == heard.records  # remembered
    following.close()
    nflog.log(packet())
    until(lambda: len(heard.records) == 2)
    assert nflog.opened == 1
    until(lambda: heard.ticks)


def test_a_teller_that_fails_is_tried_again_with_the_next(
    make: Callable[..., DropHub],
    nflog: FakeNflog,
    packet: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()
    heard.error = ZeroDivisionError()
    hub = make(heard)
    following = hub.follow()
    for _ in range(3):
        nflog.log(packet())
    assert len(take(following, 3)) == 3
    until(lambda: len(heard.records) == 3)


def test_a_taken_group_is_tried_again(
    make: Callable[..., DropHub],
    nflog: FakeNflog,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "_AGAIN_S", 0.05)
    opened = threading.Event()
    nflog.holder = "tcpdump (process 12)"
    hub = make(Heard())
    with caplog.at_level(logging.WARNING):
        hub.start()
        until(lambda: caplog.records)
        opened.wait(0.2)  # several attempts, one line
        nflog.holder = ""
        until(lambda: nflog.is_read)
    (line,) = caplog.records
    assert "tcpdump (process 12)" in line.getMessage()


def test_who_follows_does_not_wait_for_the_next_attempt(
    make: Callable[..., DropHub], nflog: FakeNflog, caplog: pytest.LogCaptureFixture
) -> None:
    nflog.holder = "tcpdump (process 12)"
    hub = make(Heard())
    hub.start()
    until(lambda: caplog.records)
    with pytest.raises(GroupTakenError):
        hub.follow()
    nflog.holder = ""
    hub.follow().close()
    assert nflog.is_read


# --- the stream ----------------------------------------------------------------------------------


def test_a_stream_says_where_it_is_and_then_what_is_refused(
    hub: DropHub, nflog: FakeNflog, packet: Any
) -> None:
    stream = DropStream(hub, "node2", {"follow": True})
    assert next(stream) == {"node": "node2"}
    nflog.log(packet())
    nflog.lose(3)
    found: list[Any] = []
    while len(found) < 2:
        if (line := next(stream)) is not None:
            found.append(line)
    assert {"lost": 3} in found
    (record,) = (each["drop"] for each in found if "drop" in each)
    assert record.pod == "shop/db"
    stream.close()
    until(lambda: not nflog.is_read)


def test_a_stream_that_nobody_began_to_read_gives_the_log_back(
    hub: DropHub, nflog: FakeNflog
) -> None:
    DropStream(hub, "node2", {}).close()
    until(lambda: not nflog.is_read)


def test_a_stream_of_a_namespace(hub: DropHub, nflog: FakeNflog, packet: Any) -> None:
    stream = DropStream(hub, "node2", {"follow": True, "namespace": "shop"})
    nflog.log(packet("default/client", "egress", destination="203.0.113.9"))
    nflog.log(packet())
    lines = [line for line in (next(stream) for _ in range(2)) if line]
    while len(lines) < 2:
        lines += [line for line in (next(stream),) if line]
    assert lines[1]["drop"].destination.pod == "shop/db"
    stream.close()


def test_without_follow_it_ends(hub: DropHub, nflog: FakeNflog, packet: Any) -> None:
    first = hub.follow()
    for number in range(30):
        nflog.log(packet(destination_port=number))
    take(first, 30)
    lines = [line for line in DropStream(hub, "node2", {"for_s": 0}) if line is not None]
    assert len(lines) == 32  # all that is remembered, and its two ends
    assert (lines[0], lines[-1]) == ({"node": "node2"}, {"end": True})
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.4
        return now

    later = [*DropStream(hub, "node2", {"for_s": 1.0}, clock)]
    assert len(later) == 32 + later.count(None)
    following = DropStream(hub, "node2", {"follow": True})
    next(following)
    assert [next(following)["drop"].destination.port for _ in range(10)] == [*range(20, 30)]  # type: ignore[index]
    assert next(following) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"namespace": 1},
        {"follow": "yes"},
        {"for_s": "10s"},
        {"for_s": -1},
        {"for_s": 1e9},
        {"for_s": True},
        {"for_s": float("nan")},
    ],
)
def test_what_cannot_be_asked(hub: DropHub, nflog: FakeNflog, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DropStream(hub, "node2", asked)
    assert nflog.opened == 0
