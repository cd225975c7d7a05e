import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.client import Client, connect
from kube_router_py.cluster.objects import NetworkPolicy, Node, Pod, Service
from kube_router_py.cluster.reflector import Reflector, Timing

FAST = Timing(
    retry_min_s=0.001, retry_first_s=0.002, retry_max_s=0.05, watch_min_s=300, watch_max_s=300
)
SLOW_RETRY = Timing(retry_min_s=600, retry_first_s=600, retry_max_s=600)

Start = Callable[..., Reflector[Any]]


@pytest.fixture
def cache() -> Cache:
    return Cache([Service, Pod, Node, NetworkPolicy])


@pytest.fixture
def told(cache: Cache) -> list[Event]:
    events: list[Event] = []
    cache.subscribe([Service, Pod, Node], events.append)
    return events


@pytest.fixture
def start(client: Client, cache: Cache) -> Iterator[Start]:
    started: list[Reflector[Any]] = []

    def make(kind: type = Service, timing: Timing = FAST, **options: Any) -> Reflector[Any]:
        reflector = Reflector(client, cache, kind, timing=timing, **options)
        reflector.start()
        started.append(reflector)
        return reflector

    yield make
    assert all(reflector.stop(30) for reflector in started)


@contextmanager
def reflecting(master: str, cache: Cache) -> Iterator[Client]:
    """As ``start``, from servers of the test's own; gives the client."""
    options = SimpleNamespace(master=master, kubeconfig="")
    client = connect(options, {}, service_account="/nonexistent")
    reflector = Reflector(client, cache, Service, timing=FAST)
    reflector.start()
    try:
        yield client
    finally:
        assert reflector.stop(30)
        client.close()


def keys(cache: Cache, kind: type = Service) -> set[str]:
    return {obj.metadata.key for obj in cache.list(kind)}


def lists(api: Any) -> list[Any]:
    return [r for r in api.requests if not r.watch]


def watches(api: Any) -> list[Any]:
    return [r for r in api.requests if r.watch]


def test_list_then_watch(api: Any, cache: Cache, start: Start, until: Any) -> None:
    api.put("Service", "ns/a", spec={"clusterIP": "10.96.0.2"})
    start()
    assert cache.wait_synced([Service], 30)
    assert keys(cache) == {"default/kubernetes", "ns/a"}
    api.put("Service", "ns/b")
    api.delete("Service", "ns/a")
    until(lambda: keys(cache) == {"default/kubernetes", "ns/b"})
    assert cache.revisions()[Service] == str(api.revision)
    (watch,) = watches(api)
    assert watch.query["allowWatchBookmarks"] == "true"
    assert watch.query["timeoutSeconds"] == "300"
    assert watch.query["resourceVersion"] == str(api.revision - 2)
    assert "resourceVersion" not in lists(api)[0].query


def test_a_policy_that_decodes_in_part_is_stored_from_list_and_watch(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    broken = {"podSelector": {}, "ingress": [{"ports": [{"port": [1]}]}]}
    api.put("NetworkPolicy", "ns/listed", spec=broken)
    start(NetworkPolicy)
    assert cache.wait_synced([NetworkPolicy], 30)
    api.put("NetworkPolicy", "ns/watched", spec=broken)
    until(lambda: keys(cache, NetworkPolicy) == {"ns/listed", "ns/watched"})
    assert [(each.object, each.field) for each in cache.problems()] == [
        ("NetworkPolicy ns/listed", "spec.ingress[0].ports[0].port"),
        ("NetworkPolicy ns/watched", "spec.ingress[0].ports[0].port"),
    ]
    api.put("NetworkPolicy", "ns/watched", spec={})
    until(lambda: len(cache.problems()) == 1)


def test_a_list_comes_in_chunks(api: Any, cache: Cache, start: Start) -> None:
    for i in range(11):
        api.put("Service", f"ns/s{i:02}")
    start(list_limit=5)
    assert cache.wait_synced([Service], 30)
    assert len(keys(cache)) == 12
    asked = lists(api)
    assert [r.query.get("limit") for r in asked] == ["5", "5", "5"]
    assert ["continue" in r.query for r in asked] == [False, True, True]


def test_compaction_in_mid_list_starts_the_list_again(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    for i in range(11):
        api.put("Service", f"ns/s{i:02}")
    api.put("Service", "ns/deleted-meanwhile")
    refusals = []

    def compact_between_chunks(handler: Any, request: Any) -> bool:
        if "continue" in request.query and len(refusals) < 2:
            if "ns/deleted-meanwhile" in api.objects["Service"]:
                api.delete("Service", "ns/deleted-meanwhile")
            refusals.append(request)
            api.compact()
        return False

    api.intercept = compact_between_chunks
    start(list_limit=5)
    assert cache.wait_synced([Service], 30)
    assert len(keys(cache)) == 12
    # Twice refused: the third attempt is in one piece.
    assert [("continue" in r.query, r.query.get("limit")) for r in lists(api)] == [
        (False, "5"),
        (True, "5"),
        (False, "5"),
        (True, "5"),
        (False, None),
    ]
    assert cache.stats()[Service].errors == {}


def test_after_a_disconnect_the_watch_resumes_without_a_list(
    api: Any, cache: Cache, start: Start, told: list[Event], until: Any
) -> None:
    start()
    until(lambda: api.watching["Service"])
    api.put("Service", "ns/a")
    until(lambda: "ns/a" in keys(cache))
    api.disconnect()
    api.put("Service", "ns/b")
    until(lambda: "ns/b" in keys(cache))
    assert len(lists(api)) == 1
    assert [e.key for e in told] == ["default/kubernetes", "ns/a", "ns/b"]
    assert cache.stats()[Service].errors == {"disconnected": 1}


def test_a_proper_end_of_the_watch_is_no_failure(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    # Long ones by their clock: what the machine loses may be most of a second.
    start(timing=Timing(watch_min_s=1, watch_max_s=1), clock=itertools.count(0, 100).__next__)
    until(lambda: len(watches(api)) >= 3)
    assert len(lists(api)) == 1
    assert cache.stats()[Service].errors == {}


def test_a_watch_that_ends_at_once_is_a_failure_and_followed_by_a_pause(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    def end_at_once(handler: Any, request: Any) -> bool:
        if request.watch:
            handler.reply(200, b"")
        return bool(request.watch)

    api.intercept = end_at_once
    start(timing=SLOW_RETRY, clock=lambda: 0.0)
    until(lambda: cache.stats()[Service].errors)
    assert cache.stats()[Service].errors == {"disconnected": 1}
    assert len(watches(api)) == 1


def test_a_line_cut_in_the_middle_is_a_disconnect_and_no_garbage(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    def cut(handler: Any, request: Any) -> bool:
        if request.watch and not cut_off:
            cut_off.append(request)
            handler.reply(200, b'{"type":"ADDED","object":{"metadata":{"na')
            return True
        return False

    cut_off: list[Any] = []
    api.intercept = cut
    start()
    until(lambda: api.watching["Service"])
    assert cache.stats()[Service].errors == {"disconnected": 1}
    assert cache.stats()[Service].relists == 1


@pytest.mark.parametrize("in_stream", [True, False])
def test_after_compaction_a_list_tells_exact_deletes(
    in_stream: bool, api: Any, cache: Cache, start: Start, told: list[Event], until: Any
) -> None:
    for name in ("kept", "changed", "gone"):
        api.put("Service", f"ns/{name}", spec={"clusterIP": "10.96.0.2"})
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    api.gone_in_stream = in_stream
    with api.changed:  # the watch must not see any of it
        api.epoch += 1
        api.delete("Service", "ns/gone")
        api.put("Service", "ns/changed", spec={"clusterIP": "10.96.0.3"})
        api.put("Service", "ns/added")
        api.compact()
    until(lambda: cache.stats()[Service].relists == 2)
    assert {(e.key, e.old is None, e.new is None) for e in told} == {
        ("ns/gone", False, True),
        ("ns/changed", False, False),
        ("ns/added", True, False),
    }
    assert len(told) == 3
    assert cache.stats()[Service].errors["expired"] == 1


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_refused_list_or_watch_removes_nothing(
    status: int, api: Any, cache: Cache, start: Start, told: list[Event], until: Any
) -> None:
    api.put("Service", "ns/a")
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    refused: list[Any] = []

    def refuse(handler: Any, request: Any) -> bool:
        refused.append(request)
        handler.reply(status, handler.status(status, "Refused"))
        return True

    api.intercept = refuse
    api.compact()
    api.disconnect()
    until(lambda: len(refused) > 8)
    assert told == []
    assert keys(cache) == {"default/kubernetes", "ns/a"}
    assert cache.is_synced([Service])
    assert f"HTTP {status}: test says Refused" in cache.stats()[Service].failing
    api.intercept = None
    api.put("Service", "ns/b")
    until(lambda: "ns/b" in keys(cache))
    until(lambda: cache.stats()[Service].failing == "")


def test_an_absent_server_removes_nothing_and_is_found_again(
    new_api: Any,
    cache: Cache,
    told: list[Event],
    until: Any,
    free_port: Callable[[], int],
) -> None:
    api, port = new_api(), free_port()
    api.start(port=port)
    with reflecting(api.url, cache):
        until(lambda: api.watching["Service"])
        told.clear()
        api.stop()
        until(lambda: cache.stats()[Service].errors.get("disconnected", 0) > 5)
        assert told == []
        api.put("Service", "ns/a")
        api.start(port=port)
        until(lambda: "ns/a" in keys(cache))
        assert cache.stats()[Service].relists == 1


def test_reasons_that_take_turns_are_logged_once_per_outage(
    api: Any, cache: Cache, start: Start, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kube_router_py")
    for _ in range(4):
        api.faults += [api.answer(503), api.answer(429)]
    start()
    until(lambda: caplog.text.count("in contact again") == 1)
    assert cache.stats()[Service].errors == {"server": 4, "refused": 4}
    assert caplog.text.count("API server trouble") == 2
    api.faults.append(api.answer(503))
    api.disconnect()
    until(lambda: caplog.text.count("in contact again") == 2)
    assert caplog.text.count("API server trouble") == 4


def test_a_server_that_is_back_and_compacted_is_listed_without_the_pauses_of_its_absence(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    # After thirty failures a pause is drawn from ten minutes.
    timing = Timing(retry_min_s=0.001, retry_first_s=0.001, retry_max_s=600)
    reflector = start(timing=timing)
    until(lambda: api.watching["Service"])
    reflector._failures = 30
    api.gone_in_stream = False
    with api.changed:
        api.put("Service", "ns/a")
        api.inject.append(
            b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}\n'
        )
        api.history["Service"].clear()
        api.changed.notify_all()
    until(lambda: "ns/a" in keys(cache))


def test_a_version_the_server_never_has_leads_to_a_list(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    start()
    until(lambda: api.watching["Service"])

    def too_large(handler: Any, request: Any) -> bool:
        if request.watch:
            handler.reply(504, handler.status(504, "Timeout"))
        return bool(request.watch)

    api.intercept = too_large
    api.disconnect()
    until(lambda: cache.stats()[Service].relists >= 2)
    assert cache.stats()[Service].errors["server"] >= 4


def test_a_restored_server_is_noticed_by_its_bookmark(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    start()
    until(lambda: api.watching["Service"])
    api.send_line(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"3"}}}')
    until(lambda: cache.stats()[Service].relists == 2)


def test_bookmarks_move_the_point_of_resumption(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    start()
    until(lambda: api.watching["Service"])
    revision = str(api.revision + 50)
    api.send_line(
        json.dumps(
            {
                "type": "BOOKMARK",
                "object": {"metadata": {"resourceVersion": revision}, "spec": {"ports": None}},
            }
        ).encode()
    )
    until(lambda: cache.revisions()[Service] == revision)
    api.disconnect()
    until(lambda: len(watches(api)) == 2)
    assert watches(api)[1].query["resourceVersion"] == revision


def test_a_list_of_services_without_default_kubernetes_is_not_believed(
    api: Any,
    cache: Cache,
    start: Start,
    told: list[Event],
    until: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.put("Service", "ns/a")
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    with api.changed:
        kubernetes = api.objects["Service"].pop("default/kubernetes")
        del api.objects["Service"]["ns/a"]
        api.compact()
        api.revision += 1
        api.epoch += 1
    api.compact()
    until(lambda: cache.stats()[Service].errors.get("suspicious", 0) >= 5)
    assert told == []
    assert keys(cache) == {"default/kubernetes", "ns/a"}
    assert caplog.text.count("lacks default/kubernetes") == 1
    with api.changed:
        api.objects["Service"]["default/kubernetes"] = kubernetes
    api.deleted["Service"].add("ns/a")
    until(lambda: keys(cache) == {"default/kubernetes"})


def test_a_first_list_of_services_without_default_kubernetes_does_not_sync(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    api.delete("Service", "default/kubernetes")
    start()
    until(lambda: cache.stats()[Service].errors.get("suspicious", 0) >= 2)
    assert not cache.is_synced([Service])
    assert "default/kubernetes" in cache.stats()[Service].failing


def test_other_kinds_may_be_empty(api: Any, cache: Cache, start: Start) -> None:
    start(Pod)
    assert cache.wait_synced([Pod], 30)
    assert cache.list(Pod) == []


def test_an_undecodable_default_kubernetes_is_there_all_the_same(
    api: Any, cache: Cache, start: Start
) -> None:
    api.put("Service", "default/kubernetes", spec={"ports": [{"port": "https"}]})
    start()
    assert cache.wait_synced([Service], 30)
    assert [p.object for p in cache.problems()] == ["Service default/kubernetes"]


def test_garbage_in_the_watch_is_reported_and_heals_by_a_list(
    api: Any,
    cache: Cache,
    start: Start,
    told: list[Event],
    until: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.put("Service", "ns/a")
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    reported: list[Any] = []
    report = cache.report
    cache.report = lambda *a, **k: (reported.append(a[2]), report(*a, **k))[1]  # type: ignore
    api.send_line(b'{"type": "DELETED", "object": {"metadata": {"name')
    until(lambda: cache.stats()[Service].relists == 2)
    until(lambda: cache.stats()[Service].failing == "")
    assert told == []
    assert len(reported) == 1
    assert "listing anew" in reported[0].reason
    assert cache.problems() == ()
    assert "trouble=undecodable" in caplog.text
    assert cache.stats()[Service].errors == {"undecodable": 1}


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"ADDED","object":{"metadata":{}}}',
        b'{"type":"DELETED","object":{"metadata":{}}}',
        b'{"type":"SURPRISE","object":{"metadata":{"name":"a"}}}',
        b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}',
        b'{"type":"ERROR","object":null}',
    ],
)
def test_a_strange_event_leads_to_a_list_and_removes_nothing(
    line: bytes, api: Any, cache: Cache, start: Start, told: list[Event], until: Any
) -> None:
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    api.send_line(line)
    until(lambda: cache.stats()[Service].relists == 2)
    assert told == []


def test_an_undecodable_object_stays_at_its_last_good_version(
    api: Any, cache: Cache, start: Start, told: list[Event], until: Any
) -> None:
    api.put("Service", "ns/a", spec={"clusterIP": "10.96.0.2"})
    start()
    until(lambda: api.watching["Service"])
    told.clear()
    api.put("Service", "ns/a", spec={"ports": [{"port": "http"}]})
    api.put("Service", "ns/b", spec={"clusterIP": "10.96.0.3"})
    until(lambda: "ns/b" in keys(cache))
    assert cache.services_of_vip("10.96.0.2") == {"ns/a"}
    (problem,) = cache.problems()
    assert (problem.object, problem.field) == ("Service ns/a", "spec.ports[0].port")
    with api.changed:
        api.epoch += 1
        api.put("Service", "ns/c")
        api.compact()
    until(lambda: cache.stats()[Service].relists == 2)  # and through a list as well
    assert cache.services_of_vip("10.96.0.2") == {"ns/a"}
    assert cache.problems() == (problem,)
    assert [e.key for e in told] == ["ns/b", "ns/c"]
    api.put("Service", "ns/a", spec={"clusterIP": "10.96.0.4"})
    until(lambda: cache.services_of_vip("10.96.0.4") == {"ns/a"})
    assert cache.problems() == ()


def test_an_undecodable_object_can_be_deleted(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    api.put("Service", "ns/a", spec={"clusterIP": "10.96.0.2"})
    start()
    until(lambda: api.watching["Service"])
    api.put("Service", "ns/a", spec={"ports": "none"})
    until(lambda: cache.problems())
    api.delete("Service", "ns/a")
    until(lambda: keys(cache) == {"default/kubernetes"})
    assert cache.problems() == ()


def test_a_listed_object_without_a_name_holds_all_deletes_back(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    api.put("Pod", "ns/a")
    start(Pod)
    until(lambda: api.watching["Pod"])
    with api.changed:
        api.epoch += 1
        del api.objects["Pod"]["ns/a"]
        api.objects["Pod"]["ns/b"] = {"metadata": {"name": "b", "namespace": "ns"}}
        api.objects["Pod"]["?"] = {"metadata": {"name": "", "namespace": "ns"}}
        api.revision += 1
        api.compact()
    until(lambda: "ns/b" in keys(cache, Pod))
    assert "ns/a" in keys(cache, Pod)
    assert [p.object for p in cache.problems()] == ["Pod ?"]
    # The first watch broke, the second came too late; the third stands on top of the new list,
    # and before it does there is nothing to disconnect.
    until(lambda: api.watches_begun["Pod"] == 3)
    with api.changed:
        del api.objects["Pod"]["?"]
    api.disconnect()
    until(lambda: keys(cache, Pod) == {"ns/b"})
    assert cache.problems() == ()


def test_selectors_go_with_list_and_watch(api: Any, start: Start, until: Any) -> None:
    start(Node, label_selector="color=red", field_selector="metadata.name=a")
    until(lambda: api.watching["Node"])
    assert {r.query["labelSelector"] for r in api.requests} == {"color=red"}
    assert {r.query["fieldSelector"] for r in api.requests} == {"metadata.name=a"}


def test_without_selectors_everything_is_asked_for(api: Any, start: Start, until: Any) -> None:
    start(Node)
    until(lambda: api.watching["Node"])
    assert not {"labelSelector", "fieldSelector"}.intersection(*(r.query for r in api.requests))


def test_what_is_not_to_be_kept_is_as_good_as_deleted(
    api: Any, cache: Cache, start: Start, until: Any
) -> None:
    def labels(color: str) -> dict[str, Any]:
        return {"metadata": {"labels": {"color": color}}}

    api.put("Node", "a", **labels("red"))
    api.put("Node", "b", **labels("blue"))
    start(Node, keep=lambda node: (node.metadata.labels or {}).get("color") == "red")
    until(lambda: keys(cache, Node) == {"a"})
    until(lambda: api.watching["Node"])
    api.put("Node", "c", **labels("red"))
    api.put("Node", "a", **labels("blue"))
    until(lambda: keys(cache, Node) == {"c"})
    api.put("Node", "a", **labels("red"))
    until(lambda: keys(cache, Node) == {"a", "c"})


def test_a_silent_connection_is_given_up(api: Any, cache: Cache, start: Start, until: Any) -> None:
    api.silent = True
    start(timing=Timing(retry_min_s=0.001, retry_first_s=0.002, retry_max_s=0.01, idle_s=0.2))
    until(lambda: len(watches(api)) >= 3)
    assert len(lists(api)) == 1
    assert cache.stats()[Service].errors["disconnected"] >= 2
    failing = cache.stats()[Service].failing
    assert "timed out" in failing or not failing


def test_the_server_may_ask_for_a_pause(api: Any, cache: Cache, start: Start, until: Any) -> None:
    api.faults.append(api.answer(429, b"", Retry_After="600"))
    reflector = start()
    until(lambda: cache.stats()[Service].errors == {"refused": 1})
    assert reflector.stop(30)
    assert len(api.requests) == 1


def test_managed_fields_never_reach_the_cache(api: Any, cache: Cache, start: Start) -> None:
    api.put("Pod", "ns/a", spec={"containers": [{"name": "c", "env": [{"value": "secret"}]}]})
    start(Pod)
    assert cache.wait_synced([Pod], 30)
    kept = repr(cache.list(Pod))
    assert "manager" not in kept
    assert "secret" not in kept


def test_a_blocked_watch_stops_at_once(api: Any, cache: Cache, start: Start, until: Any) -> None:
    api.silent = True
    reflector = start(timing=Timing(idle_s=600))
    until(lambda: api.watching["Service"] and not cache.stats()[Service].failing)
    assert reflector.is_alive()
    assert reflector.stop(30)
    assert not reflector.is_alive()


def test_a_pause_stops_at_once(api: Any, cache: Cache, start: Start, until: Any) -> None:
    api.intercept = api.answer(500)
    reflector = start(timing=SLOW_RETRY)
    until(lambda: cache.stats()[Service].errors)
    assert reflector.stop(30)


def test_stop_before_start_and_twice(client: Client, cache: Cache) -> None:
    reflector = Reflector(client, cache, Service)
    assert reflector.stop(1)
    assert reflector.stop(1)


def test_a_bug_is_logged_and_survived(
    api: Any, cache: Cache, start: Start, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replace, failures = cache.replace, [RuntimeError("bug"), RuntimeError("bug")]

    def broken(*args: Any, **kwargs: Any) -> None:
        if failures:
            raise failures.pop()
        replace(*args, **kwargs)

    cache.replace = broken  # type: ignore[method-assign]
    start()
    assert cache.wait_synced([Service], 30)
    assert cache.stats()[Service].errors == {"internal": 2}
    assert "RuntimeError: bug" in caplog.text


def test_a_watch_moves_to_another_server_and_goes_on(
    api: Any, new_api: Any, cache: Cache, until: Any
) -> None:
    other = new_api()
    other.start()
    with reflecting(f"{api.url},{other.url}", cache) as client:
        until(lambda: api.watching["Service"])
        api.stop()
        until(lambda: other.watching["Service"])
        other.put("Service", "ns/a")
        until(lambda: "ns/a" in keys(cache))
        assert client.address == other.url
