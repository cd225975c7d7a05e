"""Events about refused addresses, the network programming latency, and traffic as metrics."""

import queue
import re
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.objects import EndpointSlice, ObjectMeta, Service
from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipvs_decode import Traffic
from kube_router_py.observe.event_writer import Tiding, event_about
from kube_router_py.observe.events import REASON, RefusedAddresses
from kube_router_py.observe.programming import ANNOTATION, ProgrammingLatency
from kube_router_py.observe.traffic import TrafficPage
from kube_router_py.problem import Problem
from kube_router_py.proxy.compile import CompiledService
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import VirtualServerKey
from kube_router_py.proxy.settings import ThisNode

NODE = ThisNode("node1")
NOTHING = Changes(frozenset(), frozenset())
_TIMEOUT_S = 60.0


class Api:
    """What is posted; ``answers`` are statuses of refusals, 0 for none."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        assert path == f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        status = self.answers.pop(0) if self.answers else 0
        self.posted.put(body)
        if status:
            raise RefusedError("no", status, "Because", 0.0)
        return b"{}"


def service(name: str, uid: str = "u1") -> Service:
    return Service(ObjectMeta(name, "default", uid))


def refusing(name: str, *addresses: str) -> CompiledService:
    key = f"default/{name}"
    refused = tuple(
        Problem(f"Service {key}", f"spec.externalIPs[{index}]", f"{address} is outside of ranges")
        for index, address in enumerate(addresses)
    )
    return CompiledService(key, "", {}, {}, {}, {}, frozenset(), problems=refused, refused=refused)


def test_every_refused_address_gives_one_event(caplog: pytest.LogCaptureFixture) -> None:
    api, cache, desired = Api(), Cache((Service,)), Desired()
    for name in ("a", "b"):
        cache.put(Service, service(name))
    follower = RefusedAddresses(cache, api, "node1")  # type: ignore[arg-type]
    desired.update("default/a", refusing("a", "192.0.2.1", "192.0.2.2"))
    with caplog.at_level("WARNING"):
        follower.follow(desired, NODE, NOTHING, full=True)
    assert "Events count=2 services='default/a" in caplog.text
    assert follower.number == 2
    events = [api.posted.get(timeout=_TIMEOUT_S) for _ in range(2)]
    assert {event["involvedObject"]["fieldPath"] for event in events} == {
        "spec.externalIPs[0]",
        "spec.externalIPs[1]",
    }
    for event in events:
        assert (event["type"], event["reason"]) == ("Warning", "AddressRefused")
        assert event["involvedObject"]["uid"] == "u1"
    # The same again is no news; what is new is, also in turns that are not full.
    follower.follow(desired, NODE, NOTHING, full=True)
    changes = desired.update("default/b", refusing("b", "192.0.2.3"))
    follower.follow(desired, NODE, changes, full=False)
    assert api.posted.get(timeout=_TIMEOUT_S)["involvedObject"]["name"] == "b"
    follower.follow(desired, NODE, desired.update("default/a", None), full=False)
    assert follower.number == 1
    follower.stop(_TIMEOUT_S)
    assert api.posted.empty()


def test_the_name_of_an_event_is_the_same_on_every_node() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    problem = Problem("Service default/a", "spec.externalIPs[0]", "no")

    def name(service: Service, problem: Problem, node: str) -> str:
        tiding = Tiding(Service, service.metadata.key, REASON, problem)
        return str(event_about(service.metadata, tiding, node, now)["metadata"]["name"])

    first = name(service("a"), problem, "node1")
    assert first == name(service("a"), problem, "node2")
    assert first != name(service("a", "u2"), problem, "node1")
    assert first != name(service("a"), Problem("Service default/a", "", "no"), "node1")
    assert len(name(service("a" * 253), problem, "node1")) <= 253


def test_an_event_that_is_there_is_fine_and_one_that_is_not_permitted_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api, cache, desired = Api(409, 403, 403), Cache((Service,)), Desired()
    follower = RefusedAddresses(cache, api, "node1")  # type: ignore[arg-type]
    with caplog.at_level("WARNING"):
        for name in ("a", "b", "c", "d"):
            cache.put(Service, service(name))
            changes = desired.update(f"default/{name}", refusing(name, "192.0.2.1"))
            follower.follow(desired, NODE, changes, full=False)
            api.posted.get(timeout=_TIMEOUT_S)
        follower.stop(_TIMEOUT_S)
    assert caplog.text.count("no Event") == 1


def test_more_events_than_can_wait_are_counted() -> None:
    held = threading.Event()

    class Slow(Api):
        def post(self, path: str, body: dict[str, Any]) -> bytes:
            held.wait(_TIMEOUT_S)
            return b"{}"

    cache, desired = Cache((Service,)), Desired()
    cache.put(Service, service("a"))
    follower = RefusedAddresses(cache, Slow(), "node1")  # type: ignore[arg-type]
    many = refusing("a", *(f"192.0.2.{n % 250}" for n in range(400)))
    follower.follow(desired, NODE, desired.update("default/a", many), full=False)
    dropped = follower.dropped
    assert dropped >= 400 - 256 - 1
    # Full turns try again, and with them only what had no room.
    follower.follow(desired, NODE, NOTHING, full=False)
    assert follower.dropped == dropped
    follower.follow(desired, NODE, NOTHING, full=True)
    assert 0 < follower.dropped - dropped <= dropped
    held.set()
    follower.stop(_TIMEOUT_S)


def test_what_had_no_room_is_told_later() -> None:
    held, api = threading.Event(), Api()
    posted = api.post

    def post(path: str, body: dict[str, Any]) -> bytes:
        held.wait(_TIMEOUT_S)
        return posted(path, body)

    api.post = post  # type: ignore[method-assign]
    cache, desired = Cache((Service,)), Desired()
    cache.put(Service, service("a"))
    follower = RefusedAddresses(cache, api, "node1", 0.0)  # type: ignore[arg-type]
    many = refusing("a", *(f"192.0.2.{n}" for n in range(256)), "192.0.3.1", "192.0.3.2")
    follower.follow(desired, NODE, desired.update("default/a", many), full=False)
    assert follower.dropped
    held.set()
    fields: set[str] = set()
    while len(fields) < 258:
        try:
            fields.add(api.posted.get(timeout=0.1)["involvedObject"]["fieldPath"])
        except queue.Empty:
            follower.follow(desired, NODE, NOTHING, full=True)
    assert fields == {problem.field for problem in many.refused}
    follower.stop(_TIMEOUT_S)


def slice_at(time: str | None) -> EndpointSlice:
    annotations = {ANNOTATION: time} if time else None
    return EndpointSlice(ObjectMeta("web-1", "default", annotations=annotations))


def test_what_is_never_programmed_is_not_counted() -> None:
    seen: list[float] = []
    latency = ProgrammingLatency(seen.append, lambda: 0.0)
    cache = Cache((EndpointSlice,))
    latency.subscribe(cache)
    found = slice_at("2026-03-01T12:00:00Z")
    for labels in ({"service.kubernetes.io/headless": ""}, None):
        meta = structs.replace(found.metadata, labels=labels)
        cache.delete(EndpointSlice, "default/web-1")
        cache.put(EndpointSlice, structs.replace(found, metadata=meta))
        latency.begin()
        latency.follow(Desired(), NODE, NOTHING, full=False)
        assert len(seen) == (0 if labels else 1)


def test_programming_is_counted_from_the_change_of_the_endpoints() -> None:
    noon_s, now_s = 1772366400.0, [1772366400.0]
    seen: list[float] = []
    latency = ProgrammingLatency(seen.append, lambda: now_s[0])
    cache = Cache((EndpointSlice,))
    latency.subscribe(cache)

    def turn() -> list[float]:
        found, seen[:] = [*seen], []
        return found

    cache.put(EndpointSlice, slice_at("2026-03-01T11:59:59Z"))  # before the start
    latency.begin()
    latency.follow(Desired(), NODE, NOTHING, full=True)
    assert turn() == []
    cache.put(EndpointSlice, slice_at("2026-03-01T12:00:02.5Z"))
    latency.begin()
    cache.put(EndpointSlice, slice_at("2026-03-01T12:00:03Z"))  # too late for this turn
    now_s[0] = noon_s + 4
    latency.follow(Desired(), NODE, NOTHING, full=False)
    assert turn() == [1.5]
    now_s[0] = noon_s + 5
    latency.begin()
    latency.follow(Desired(), NODE, NOTHING, full=False)
    assert turn() == [2.0]
    for text in ("soon", None, "2026-03-01T12:00:03Z"):
        cache.put(EndpointSlice, slice_at(text))
    latency.begin()
    latency.follow(Desired(), NODE, NOTHING, full=False)
    assert turn() == [2.0]


class Ipvs:
    reads = 0
    closed = 0

    def read_traffic(self) -> dict[VirtualServerKey, Traffic]:
        Ipvs.reads += 1
        own = VirtualServerKey(2, 6, bytes((10, 96, 0, 10)), 80)
        foreign = VirtualServerKey(2, 6, bytes((10, 96, 0, 11)), 80)
        direct = VirtualServerKey(2, 0, b"", 0, 0x7D000001)
        return {own: Traffic(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), foreign: Traffic(9, 9, 9, 9, 9)} | {
            direct: Traffic(0, 0, 0, 0, 0)
        }

    def close(self) -> None:
        Ipvs.closed += 1


WEB = (
    '{svc_namespace="default",service_name="web",service_vip="10.96.0.10",protocol="tcp",port="80"}'
)


def test_traffic_has_the_names_and_labels_of_kube_router() -> None:
    def owner_of(key: VirtualServerKey) -> tuple[str, VirtualServerKey] | None:
        if key.fwmark:
            return "default/direct", VirtualServerKey(2, 17, bytes((192, 0, 2, 1)), 53)
        return ("default/web", key) if key.address[3] == 10 else None

    now_s, Ipvs.reads, Ipvs.closed = [0.0], 0, 0
    page = TrafficPage(Ipvs, owner_of, lambda: now_s[0])
    text = page.text().decode()
    # Not by the library's parser: it gives every counter the name that it thinks right.
    found = dict(re.findall(rf"^kube_router_service_(\w+){re.escape(WEB)} (\d+)$", text, re.M))
    types = dict(re.findall(r"^# TYPE kube_router_service_(\w+) (\w+)$", text, re.M))
    values = {
        "total_connections": 1,
        "packets_in": 2,
        "packets_out": 3,
        "bytes_in": 4,
        "bytes_out": 5,
        "cps": 6,
        "pps_in": 7,
        "pps_out": 8,
        "bps_in": 9,
        "bps_out": 10,
    }
    assert {name: int(value) for name, value in found.items()} == values
    assert types.keys() == values.keys()
    gauges = {name for name, kind in types.items() if kind == "gauge"}
    assert gauges == {"cps", "pps_in", "pps_out", "bps_in", "bps_out"}
    assert set(types.values()) == {"counter", "gauge"}
    direct = (
        'kube_router_service_cps{svc_namespace="default",service_name="direct",'
        'service_vip="192.0.2.1",protocol="udp",port="53"} 0\n'
    )
    assert direct in text
    assert "10.96.0.11" not in text
    # Scrapes that follow each other closely cost one look.
    page.text()
    assert (Ipvs.reads, Ipvs.closed) == (1, 1)
    now_s[0] = 10.0
    page.text()
    assert (Ipvs.reads, Ipvs.closed) == (2, 2)


def test_without_ipvs_a_scrape_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Ipvs:
        raise KernelError("no IPVS here")

    now_s = [0.0]
    page = TrafficPage(refuse, lambda key: None, lambda: now_s[0])
    for now_s[0] in (0.0, 30.0, 60.0):
        assert b"# TYPE kube_router_service_cps gauge" in page.text()
    # That of every scrape would be all there is in the log.
    assert caplog.text.count("traffic of services not read") == 1


def test_one_event_that_goes_wrong_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Api):
        def post(self, path: str, body: dict[str, Any]) -> bytes:
            if body["involvedObject"]["name"] == "a":
                self.posted.put(body)
                raise RuntimeError("nobody foresaw this")
            return super().post(path, body)

    api, cache, desired = Broken(), Cache((Service,)), Desired()
    follower = RefusedAddresses(cache, api, "node1")  # type: ignore[arg-type]
    with caplog.at_level("ERROR"):
        for name in ("a", "b"):
            cache.put(Service, service(name))
            changes = desired.update(f"default/{name}", refusing(name, "192.0.2.1"))
            follower.follow(desired, NODE, changes, full=False)
            assert api.posted.get(timeout=_TIMEOUT_S)["involvedObject"]["name"] == name
        follower.stop(_TIMEOUT_S)
    assert "nobody foresaw this" in caplog.text
