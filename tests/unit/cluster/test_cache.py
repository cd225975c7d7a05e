import threading
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.objects import (
    Endpoint,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.problem import Problem

KINDS = (Service, EndpointSlice, Pod)


def service(name: str, ip: str | None = None, revision: str = "") -> Service:
    meta = ObjectMeta(name=name, namespace="ns", resource_version=revision)
    return Service(meta, ServiceSpec(cluster_ip=ip))


def pod(name: str, *ips: str, node: str = "node1", namespace: str = "ns") -> Pod:
    return Pod(
        ObjectMeta(name=name, namespace=namespace),
        PodSpec(node_name=node),
        PodStatus(pod_ip=ips[0] if ips else None, pod_ips=tuple(PodIP(ip) for ip in ips)),
    )


@pytest.fixture
def cache() -> Cache:
    return Cache(KINDS)


@pytest.fixture
def told(cache: Cache) -> list[Event]:
    events: list[Event] = []
    cache.subscribe(KINDS, events.append)
    return events


def test_put_change_delete_are_told_with_old_and_new(cache: Cache, told: list[Event]) -> None:
    first, second = service("a", "10.0.0.1"), service("a", "10.0.0.2")
    cache.put(Service, first)
    cache.put(Service, second)
    cache.delete(Service, "ns/a")
    cache.delete(Service, "ns/a")
    assert told == [
        Event(Service, "ns/a", None, first),
        Event(Service, "ns/a", first, second),
        Event(Service, "ns/a", second, None),
    ]
    assert cache.get(Service, "ns/a") is None
    assert cache.list(Service) == []


def test_a_new_resource_version_alone_is_stored_but_not_told(
    cache: Cache, told: list[Event]
) -> None:
    cache.put(Service, service("a", "10.0.0.1", "5"))
    cache.put(Service, service("a", "10.0.0.1", "6"))
    assert len(told) == 1
    stored = cache.get(Service, "ns/a")
    assert stored is not None
    assert stored.metadata.resource_version == "6"
    assert cache.revisions()[Service] == "6"


@pytest.mark.parametrize(("stored", "late"), [("9", "8"), ("10", "9"), ("9", "9"), ("100", "99")])
def test_an_older_or_repeated_event_rolls_nothing_back(
    cache: Cache, told: list[Event], stored: str, late: str
) -> None:
    cache.put(Service, service("a", "10.0.0.1", stored))
    cache.put(Service, service("a", "10.0.0.2", late))
    assert cache.services_of_vip("10.0.0.1") == {"ns/a"}
    assert len(told) == 1
    assert cache.revisions()[Service] == stored


@pytest.mark.parametrize(("first", "then"), [("9", "x8"), ("", ""), ("x9", "8"), ("9", "08")])
def test_incomparable_versions_let_the_last_write_win(cache: Cache, first: str, then: str) -> None:
    cache.put(Service, service("a", "10.0.0.1", first))
    cache.put(Service, service("a", "10.0.0.2", then))
    assert cache.services_of_vip("10.0.0.2") == {"ns/a"}


def test_a_late_event_does_not_bring_a_deleted_object_back(cache: Cache, told: list[Event]) -> None:
    cache.put(Service, service("a", revision="5"))
    cache.delete(Service, "ns/a", "9")
    cache.put(Service, service("a", revision="7"))
    assert cache.get(Service, "ns/a") is None
    cache.delete(Service, "ns/a", "6")  # a late deletion must not make the other forgotten
    cache.put(Service, service("a", revision="8"))
    assert cache.get(Service, "ns/a") is None
    cache.put(Service, service("a", revision="10"))
    assert cache.get(Service, "ns/a") is not None
    assert [e.new is None for e in told] == [False, True, False]


def test_a_late_deletion_does_not_remove_the_successor(cache: Cache) -> None:
    cache.put(Service, service("a", revision="7"))
    cache.delete(Service, "ns/a", "6")
    assert cache.get(Service, "ns/a") is not None


def test_a_deletion_at_the_last_version_of_the_object_counts(cache: Cache) -> None:
    cache.put(Service, service("a", revision="7"))
    cache.delete(Service, "ns/a", "7")
    assert cache.get(Service, "ns/a") is None


def test_what_is_older_than_the_list_is_ignored(cache: Cache, told: list[Event]) -> None:
    cache.replace(Service, [service("a", revision="3")], "20")
    cache.put(Service, service("gone", revision="19"))
    assert [e.key for e in told] == ["ns/a"]


def test_replace_tells_exactly_the_difference(cache: Cache, told: list[Event]) -> None:
    kept, old, gone = service("kept"), service("changed", "10.0.0.1"), service("gone")
    cache.replace(Service, [kept, old, gone], "1")
    told.clear()
    new, added = service("changed", "10.0.0.2"), service("added")
    cache.replace(Service, [service("kept", revision="9"), new, added], "2")
    assert sorted(told, key=lambda e: e.key) == [
        Event(Service, "ns/added", None, added),
        Event(Service, "ns/changed", old, new),
        Event(Service, "ns/gone", gone, None),
    ]


def test_a_list_from_before_is_believed(cache: Cache) -> None:
    """A cluster restored from a backup: versions start again at a lower number."""
    cache.replace(Service, [service("a", "10.0.0.1", "100")], "100")
    cache.replace(Service, [service("a", "10.0.0.2", "40")], "50")
    cache.put(Service, service("a", "10.0.0.3", "51"))
    assert cache.services_of_vip("10.0.0.3") == {"ns/a"}
    assert cache.revisions()[Service] == "51"


def test_replace_keeps_the_last_good_version_of_what_cannot_be_decoded(cache: Cache) -> None:
    good = service("bad", "10.0.0.1")
    cache.replace(Service, [good, service("gone")], "1")
    problem = Problem("Service ns/bad", "spec", "wrong")
    cache.replace(Service, [], "2", {"ns/bad": problem})
    assert cache.list(Service) == [good]
    assert cache.problems() == (problem,)
    cache.replace(Service, [good], "3")
    assert cache.problems() == ()


def test_an_incomplete_list_removes_nothing(cache: Cache) -> None:
    cache.replace(Service, [service("a")], "1")
    cache.replace(Service, [service("b")], "2", complete=False)
    assert {s.metadata.name for s in cache.list(Service)} == {"a", "b"}


def test_problems_come_and_go_with_their_object(cache: Cache) -> None:
    problem = Problem("Service ns/a", "spec.ports", "wrong")
    assert cache.report(Service, "ns/a", problem, "5")
    assert not cache.report(Service, "ns/a", problem, "6")
    assert cache.problems() == (problem,)
    cache.put(Service, service("a", revision="4"))  # older than what could not be decoded
    assert cache.problems() == (problem,)
    cache.put(Service, service("a", revision="7"))
    assert cache.problems() == ()
    cache.report(Service, "ns/a", problem, "8")
    cache.delete(Service, "ns/a", "9")
    assert cache.problems() == ()
    cache.report(Service, "ns/a", problem)
    cache.clear(Service, "ns/a")
    assert cache.problems() == ()


def test_slices_by_service_sorted_by_name(cache: Cache) -> None:
    def slice_(name: str, service_name: str | None, address: str = "10.1.0.1") -> EndpointSlice:
        labels = {"kubernetes.io/service-name": service_name} if service_name else None
        meta = ObjectMeta(name=name, namespace="ns", labels=labels)
        return EndpointSlice(meta, "IPv4", (Endpoint((address,)),))

    cache.put(EndpointSlice, slice_("web-b", "web"))
    cache.put(EndpointSlice, slice_("web-a", "web"))
    cache.put(EndpointSlice, slice_("other", "db"))
    cache.put(EndpointSlice, slice_("orphan", None))
    assert [s.metadata.name for s in cache.slices_of("ns/web")] == ["web-a", "web-b"]
    changed = slice_("web-a", "web", "10.1.0.9")
    cache.put(EndpointSlice, changed)
    assert cache.slices_of("ns/web")[0] is changed
    cache.put(EndpointSlice, slice_("web-a", "db"))
    assert [s.metadata.name for s in cache.slices_of("ns/web")] == ["web-b"]
    cache.delete(EndpointSlice, "ns/web-b")
    assert cache.slices_of("ns/web") == ()
    assert cache.slices_of("elsewhere/db") == ()


def test_services_by_every_kind_of_vip_in_any_spelling(cache: Cache) -> None:
    spec = ServiceSpec(
        cluster_ip="10.96.0.1",
        cluster_ips=("10.96.0.1", "fd00::1"),
        external_ips=("192.0.2.1", "nonsense"),
    )
    ingress = (LoadBalancerIngress(ip="203.0.113.1"), LoadBalancerIngress(hostname="lb.example"))
    status = ServiceStatus(LoadBalancerStatus(ingress))
    cache.put(Service, Service(ObjectMeta("a", "ns"), spec, status))
    cache.put(Service, service("headless", "None"))
    cache.put(Service, Service(ObjectMeta("b", "ns"), ServiceSpec(external_ips=("192.0.2.1",))))
    for ip in ("10.96.0.1", "fd00::1", "FD00:0::01", "203.0.113.1"):
        assert cache.services_of_vip(ip) == {"ns/a"}
    assert cache.services_of_vip("192.0.2.1") == {"ns/a", "ns/b"}
    assert cache.services_of_vip("None") == frozenset()
    cache.delete(Service, "ns/a")
    assert cache.services_of_vip("fd00::1") == frozenset()
    assert cache.services_of_vip("192.0.2.1") == {"ns/b"}


def test_pods_by_ip_node_and_namespace(cache: Cache) -> None:
    cache.put(Pod, pod("a", "10.1.0.1", "fd00:1::1"))
    cache.put(Pod, pod("b", "10.1.0.2", node="node2", namespace="other"))
    cache.put(Pod, pod("pending", node=""))
    assert cache.pods_of_ip("FD00:1::1") == {"ns/a"}
    assert cache.pods_of_node("node2") == {"other/b"}
    assert cache.pods_in_namespace("ns") == {"ns/a", "ns/pending"}
    cache.put(Pod, pod("a", "10.1.0.2"))
    assert cache.pods_of_ip("10.1.0.1") == frozenset()
    assert cache.pods_of_ip("10.1.0.2") == {"ns/a", "other/b"}
    cache.replace(Pod, [], "5")
    assert cache.pods_of_node("node1") == cache.pods_in_namespace("ns") == frozenset()


def test_indexes_of_kinds_that_are_not_cached_are_empty() -> None:
    cache = Cache([Service])
    assert cache.slices_of("ns/a") == ()
    assert cache.pods_of_ip("10.0.0.1") == frozenset()


def test_subscribers_are_told_after_the_store_and_may_read_it(cache: Cache) -> None:
    seen: list[Any] = []
    cache.subscribe(
        [Service],
        lambda e: seen.append((cache.get(Service, e.key), cache.services_of_vip("10.0.0.1"))),
    )
    cache.put(Service, service("a", "10.0.0.1"))
    cache.put(Pod, pod("p"))
    assert seen == [(service("a", "10.0.0.1"), {"ns/a"})]


def test_a_subscriber_that_fails_keeps_nobody_ignorant(
    cache: Cache, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("bug")

    later: list[Event] = []
    cache.subscribe([Service], fail)
    cache.subscribe([Service], later.append)
    cache.put(Service, service("a"))
    assert len(told) == len(later) == 1
    assert "object='Service ns/a'" in caplog.text


def test_synced_needs_a_list_of_every_kind(cache: Cache) -> None:
    cache.put(Service, service("a"))
    assert not cache.is_synced([Service])
    cache.replace(Service, [], "1")
    assert cache.is_synced([Service])
    assert not cache.is_synced()
    assert not cache.wait_synced(None, 0)
    waiter = threading.Thread(target=lambda: results.append(cache.wait_synced(KINDS, 60)))
    results: list[bool] = []
    waiter.start()
    cache.replace(EndpointSlice, [], "1")
    cache.replace(Pod, [], "1")
    waiter.join(60)
    assert results == [True]


def test_stats_and_staleness_by_an_injected_clock() -> None:
    now = [100.0]
    cache = Cache([Service], clock=lambda: now[0])
    empty = cache.stats()[Service]
    assert (empty.last_contact, empty.stale_s, empty.synced) == (None, None, False)
    cache.replace(Service, [service("a")], "10")
    now[0] = 103.0
    cache.bookmark(Service, "17")
    now[0] = 105.5
    cache.failed(Service, "server", "HTTP 500")
    stats = cache.stats()[Service]
    assert stats.objects == stats.changes == stats.relists == stats.watch_events == 1
    assert (stats.last_contact, stats.stale_s) == (103.0, 2.5)
    assert (stats.errors, stats.failing) == ({"server": 1}, "HTTP 500")
    assert (stats.synced, stats.revision) == (True, "17")
    assert cache.revisions() == {Service: "17"}
    cache.connected(Service)
    assert cache.stats()[Service].failing == ""
    assert cache.stats()[Service].stale_s == 0.0


def test_remembered_deletions_are_bounded(cache: Cache) -> None:
    for number in range(6000):
        cache.delete(Service, f"ns/s{number}", str(number + 1))
    assert len(cache._stores[Service].tombstones) < 5000
