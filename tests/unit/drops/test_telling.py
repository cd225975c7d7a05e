"""Lines of the log and Events: what they say, and that they are few."""

import logging
import queue
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.objects import Pod
from kube_router_py.drops.limits import Bucket, Repeats
from kube_router_py.drops.telling import DropEvents, DropLog, sentence
from kube_router_py.observe.event_writer import EventWriter
from kube_router_py.observe.log_fields import fields, values

_TIMEOUT_S = 60.0


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5) for _ in range(2)] == [True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_does_not_mind_a_clock_that_goes_back() -> None:
    bucket = Bucket(1.0, 1.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)
    assert bucket.take(6.0)


def tell(repeats: Repeats, key: str, now: float) -> int:
    times = repeats.news(key, now)
    if times:
        repeats.told(key, now)
    return times


def test_repeats_are_counted_until_they_are_told_again() -> None:
    repeats = Repeats(60.0, 2)
    assert [tell(repeats, "a", now) for now in (0.0, 1.0, 59.0, 60.0, 61.0, 120.0)] == [
        *(1, 0, 0, 3, 0, 2)
    ]


def test_what_was_not_told_is_still_news() -> None:
    repeats = Repeats(60.0, 2)
    assert [repeats.news("a", 0.0), tell(repeats, "a", 1.0), tell(repeats, "a", 2.0)] == [1, 1, 0]


def test_of_too_many_the_oldest_is_forgotten() -> None:
    repeats = Repeats(60.0, 2)
    assert [tell(repeats, each, 0.0) for each in "abcba"] == [1, 1, 1, 0, 1]


# --- the log -------------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "kube_router_py.drops")
    return caplog


def test_a_line_has_all_that_one_asks_for(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    DropLog().tell(world.names.record(packet(meant=("10.96.0.10", 3306))), 0.0)
    (line,) = log.records
    assert line.getMessage() == (
        "not allowed by policies verdict=refused pod=shop/db,default/client direction=ingress "
        "from=default/client to=shop/db port='5432/TCP' service=shop/db "
        "policies=shop/all,shop/only-web cause=policy times=1"
    )
    named = [value for name, value in fields(values(line.msg, line.args)) if name == "KUBE_OBJECT"]
    assert named == ["shop/db", "default/client", "shop/all", "shop/only-web"]


def test_who_is_no_pod_is_named_all_the_same(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    told = DropLog()
    told.tell(world.names.record(packet(source="10.10.0.11")), 0.0)
    told.tell(world.names.record(packet(source="203.0.113.9")), 0.0)
    told.tell(world.names.record(packet(source="10.244.1.77")), 0.0)
    told.tell(world.names.record(packet(source="", family=0)), 0.0)
    assert [line.getMessage().split()[7] for line in log.records] == [
        "from=node/node1",
        "from=203.0.113.9",
        "from=10.244.1.77",  # of no pod any more, and not the node's own
        "from=-",
    ]


def test_the_same_is_told_once_a_minute(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    told = DropLog()
    for now in range(0, 61, 10):
        told.tell(world.names.record(packet(source_port=40000 + now)), float(now))
    assert [line.getMessage().split()[-1] for line in log.records] == ["times=1", "times=6"]


def test_a_flood_is_cut_and_the_rest_is_counted(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    told = DropLog()
    record = world.names.record
    for port in range(1000):
        told.tell(record(packet(destination_port=port)), 100.0)
    assert len(log.records) == 50
    told.tick(100.0)
    told.tick(101.0)
    told.tell(record(packet(destination_port=1001)), 101.0)
    assert [line.getMessage() for line in log.records[50:] if line.levelno > logging.INFO] == [
        "too many packets are refused to log each suppressed=950"
    ]
    assert len(log.records) == 52


def test_what_had_no_room_is_told_when_it_comes_again(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    told = DropLog()
    for port in range(51):
        told.tell(world.names.record(packet(destination_port=port)), 100.0)
    told.tell(world.names.record(packet(destination_port=50)), 101.0)
    assert "port='50/TCP'" in log.records[-1].getMessage()


def test_a_line_is_of_bounded_length_whoever_writes_policies(
    world: Any, packet: Any, log: pytest.LogCaptureFixture
) -> None:
    found = world.names.record(packet())
    many = tuple(f"shop/p{number:04}" for number in range(3000))
    end = structs.replace(found.destination, services=many)
    DropLog().tell(structs.replace(found, policies=many, destination=end), 0.0)
    (line,) = log.records
    assert len(line.getMessage()) < 1000
    assert "shop/p0019 and 2980 more cause=" in line.getMessage()
    named = [value for name, value in fields(values(line.msg, line.args)) if name == "KUBE_OBJECT"]
    assert set(named) == {"shop/db", "default/client", *many[:20]}


# --- Events --------------------------------------------------------------------------------------


class Api:
    def __init__(self) -> None:
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        assert path == f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        self.posted.put(body)
        return b"{}"

    def next(self) -> dict[str, Any]:
        return self.posted.get(timeout=_TIMEOUT_S)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def events(world: Any, api: Api) -> Any:
    events = DropEvents(EventWriter(world.cache, api, "node2", 0.0))  # type: ignore[arg-type]
    yield events
    events.stop(_TIMEOUT_S)


def test_an_event_is_on_the_pod_that_refused(
    world: Any, packet: Any, api: Api, events: DropEvents
) -> None:
    events.tell(world.names.record(packet()), 0.0)
    found = api.next()
    assert found["involvedObject"]["kind"] == "Pod"
    assert found["involvedObject"]["name"] == "db"
    assert found["involvedObject"]["uid"] == "uid-db"
    assert found["metadata"]["namespace"] == "shop"
    assert (found["type"], found["reason"]) == ("Warning", "PolicyRefused")
    assert found["message"] == (
        "ingress from default/client to shop/db (behind service shop/db), 5432/TCP, was "
        "refused: no policy that isolates the pod allows it (isolated by shop/all, shop/only-web)"
    )
    meant = sentence(world.names.record(packet(meant=("10.96.0.10", 3306))))
    assert "to shop/db (service shop/db), 5432/TCP" in meant
    assert "to shop/db, 5432/TCP" in sentence(
        world.names.record(packet(meant=("10.10.0.12", 8080)))  # a port of a host, and no Service
    )


def test_an_audited_packet_is_no_warning(
    world: Any, packet: Any, api: Api, events: DropEvents
) -> None:
    events.tell(world.names.record(packet("default/client", "egress", "audit")), 0.0)
    found = api.next()
    assert (found["type"], found["reason"]) == ("Normal", "PolicyAudited")
    assert "would be refused" in found["message"]
    assert found["involvedObject"]["name"] == "client"


def test_a_pod_has_few_events_however_much_it_refuses(
    world: Any, packet: Any, api: Api, events: DropEvents
) -> None:
    for port in range(1000):
        events.tell(world.names.record(packet(destination_port=port)), 1.0)
    events.tell(world.names.record(packet("default/client", "egress")), 1.0)
    told = [api.next() for _ in range(6)]
    assert [each["involvedObject"]["name"] for each in told] == ["db"] * 5 + ["client"]
    # What had no room before is news still: a scan of ports hides nothing for an hour.
    events.tell(world.names.record(packet(destination_port=999)), 601.0)
    assert "999/TCP" in api.next()["message"]
    events.stop(_TIMEOUT_S)
    assert api.posted.empty()


def test_the_same_is_no_second_event(world: Any, packet: Any, api: Api, events: DropEvents) -> None:
    for port in range(40000, 40010):
        events.tell(world.names.record(packet(source_port=port)), 0.0)
    events.tell(world.names.record(packet(destination_port=80)), 0.0)
    assert ["80/TCP" in api.next()["message"] for _ in range(2)] == [False, True]
    events.stop(_TIMEOUT_S)
    assert api.posted.empty()
    assert events.dropped == 0


def test_no_event_where_there_is_no_pod(
    world: Any, packet: Any, api: Api, events: DropEvents
) -> None:
    unknown = packet("", "ingress", "default-deny", destination="10.244.2.9")
    events.tell(world.names.record(unknown), 0.0)
    record = world.names.record(packet())
    world.cache.delete(Pod, "shop/db")
    events.tell(record, 0.0)  # gone meanwhile
    events.tell(world.names.record(packet("default/client", "egress")), 0.0)
    assert api.next()["involvedObject"]["name"] == "client"


def test_many_policies_are_not_all_named(world: Any, packet: Any) -> None:
    record = structs.replace(
        world.names.record(packet()), policies=tuple(f"shop/p{number}" for number in range(9))
    )
    assert sentence(record).endswith("shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 4 more)")
    end = structs.replace(record.destination, services=record.policies)
    crowded = sentence(structs.replace(record, destination=end))
    assert "service shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 4 more)" in crowded
