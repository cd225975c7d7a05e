"""The book of address pools, and what keeps it: a ConfigMap, and a Lease with what was accepted."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.address_pool_config import CONFIG_MAP, PoolSettings
from kube_router_py.address_pools import DEFAULT_POOL, Announcing
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.reflector import Timing
from kube_router_py.errors import ApiError
from kube_router_py.pool_book import Past, PoolBook
from kube_router_py.pool_source import (
    ACCEPTED_ANNOTATION,
    ACCEPTED_LEASE,
    KEPT_ANNOTATION,
    PoolSource,
)
from kube_router_py.problem import Problem

_TIMEOUT_S = 60.0
SETTINGS = PoolSettings(ranges=(ip_network("203.0.113.0/24"),))
FIRST = "- {name: first, addresses: [192.0.2.0/24]}\n"
SECOND = "- {name: second, addresses: [198.51.100.0/24]}\n"
BAD = "- {name: new, addresses: [192.0.2.77]}\n- {name: bad, addresses: [x]}\n"
FAST = Timing(retry_min_s=0.001, retry_first_s=0.002, retry_max_s=0.05)
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


def names(book: PoolBook) -> list[str]:
    return [pool.name for pool in book.pools.pools]


def retired(book: PoolBook) -> list[str]:
    return list(map(str, book.pools.retired_networks()))


def kept_text(*addresses: str) -> str:
    """As the allocator leaves what was of one pool."""
    return json.dumps([{"name": "kept", "addresses": addresses, "announce": {"bgp": True}}])


def announced(book: PoolBook, address: str) -> tuple[str, Announcing] | None:
    return book.pools.announcing_of(ip_address(address).packed)


# --- the book -------------------------------------------------------------------------------------


def test_before_anything_is_known_there_are_the_flags() -> None:
    book = PoolBook(SETTINGS)
    assert (names(book), book.is_known, book.accepted_text) == (["default"], False, None)
    assert book.problems == ()


def test_subscribers_hear_of_what_is_new_and_of_nothing_else() -> None:
    book = PoolBook(SETTINGS)
    heard: list[tuple[list[str], bool, str | None, int]] = []

    def hear() -> None:
        # The book is to be read, and to be changed, by those who are told: no lock is held.
        reader = threading.Thread(target=book.subscribe, args=(lambda: None,))
        reader.start()
        reader.join(_TIMEOUT_S)
        assert not reader.is_alive()
        heard.append((names(book), book.is_known, book.accepted_text, len(book.problems)))

    def fail() -> None:
        raise RuntimeError("a bug of a subscriber")

    book.subscribe(fail)
    book.subscribe(hear)
    assert heard == []
    book.put_config(None)
    assert heard == [(["default"], True, "", 0)]  # the first, though no pool is another
    book.put_config(None)
    book.put_config(FIRST)
    book.put_config(FIRST)
    book.put_config(BAD)
    book.put_config(BAD)
    book.put_config(FIRST)
    book.put_config(SECOND)
    book.put_config(None)
    assert heard[1:] == [
        (["default", "first"], True, FIRST, 0),
        (["default", "first"], True, FIRST, 2),
        (["default", "first"], True, FIRST, 0),
        (["default", "second"], True, SECOND, 0),
        (["default"], True, "", 0),
    ]


def test_what_was_accepted_before_the_start_counts_until_something_else_is() -> None:
    book = PoolBook(SETTINGS)
    book.put_config(BAD, FIRST)
    assert (names(book), book.accepted_text) == (["default", "first"], FIRST)
    book.put_config(SECOND)
    book.put_config(BAD, FIRST)
    assert (names(book), book.accepted_text) == (["default", "second"], SECOND)


def test_of_what_was_never_good_the_right_pools_are_used_and_nothing_is_accepted() -> None:
    book = PoolBook(SETTINGS)
    book.put_config(BAD)
    assert (names(book), book.accepted_text, book.is_known) == (["default", "new"], None, True)


def test_what_cannot_be_read_changes_no_pool() -> None:
    book = PoolBook(SETTINGS)
    calls: list[tuple[Problem, ...]] = []
    book.subscribe(lambda: calls.append(book.problems))
    problem = Problem(SETTINGS.subject, "", "forbidden")
    book.put_unreadable(problem)
    book.put_unreadable(problem)
    assert (names(book), book.is_known, calls) == (["default"], True, [(problem,)])
    book.put_config(FIRST)
    assert book.problems == ()
    book.put_unreadable(problem)
    assert names(book) == ["default", "first"]
    assert book.accepted_text == FIRST
    assert calls[-1] == (problem,)


def test_what_an_edit_takes_away_is_retired_until_it_is_in_a_pool_again() -> None:
    book = PoolBook(SETTINGS)
    heard: list[list[str]] = []
    book.subscribe(lambda: heard.append(retired(book)))
    book.put_config(FIRST)
    assert retired(book) == []
    book.put_config("- {name: first, addresses: [192.0.2.0/25]}\n")
    assert retired(book) == ["192.0.2.128/25"]
    book.put_config(SECOND)
    assert retired(book) == ["192.0.2.0/24"]
    book.put_config("- {name: x, addresses: [192.0.2.64/26]}\n")
    assert retired(book) == ["192.0.2.0/26", "192.0.2.128/25", "198.51.100.0/24"]
    book.put_config(None)
    assert retired(book) == [
        *("192.0.2.0/26", "192.0.2.64/26", "192.0.2.128/25"),
        "198.51.100.0/24",
    ]
    book.put_config(f"{FIRST}{SECOND}")
    assert retired(book) == []
    assert [] not in heard[1:-1]
    assert names(book) == ["default", "first", "second"]


def test_what_never_was_in_force_is_not_retired() -> None:
    book = PoolBook(SETTINGS)
    book.put_config(FIRST)
    book.put_config(BAD)
    assert (names(book), retired(book)) == (["default", "first"], [])
    book.put_config(SECOND)
    assert retired(book) == ["192.0.2.0/24"]
    # Of what was never good the right pools were in force.
    book = PoolBook(SETTINGS)
    book.put_config(BAD)
    book.put_config(SECOND)
    assert retired(book) == ["192.0.2.77/32"]


def test_what_went_before_the_start_is_retired_too() -> None:
    book = PoolBook(SETTINGS)
    assert not book.knows_past
    kept = kept_text("192.0.2.1", "198.51.100.7", "203.0.113.1", "2001:db8::1")
    book.put_past(Past(SECOND, kept))
    assert (book.knows_past, book.is_known, book.accepted_text) == (True, False, None)
    assert retired(book) == ["192.0.2.1/32", "198.51.100.0/24", "2001:db8::1/128"]
    book.put_config(FIRST)
    assert (names(book), book.knows_past, book.is_known) == (["default", "first"], True, True)
    assert retired(book) == ["198.51.100.0/24", "2001:db8::1/128"]
    book.put_unreadable(Problem(SETTINGS.subject, "", "forbidden"))
    assert retired(book) == ["198.51.100.0/24", "2001:db8::1/128"]
    book.put_config(FIRST)
    book.put_config(None)
    assert retired(book) == ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::1/128"]


def test_of_the_past_counts_what_a_pool_could_have() -> None:
    ranges = (ip_network("10.96.0.0/16"),)
    book = PoolBook(PoolSettings(cluster_ranges=ranges))
    accepted = "- {name: a, addresses: [10.96.0.0/24]}\n- {name: b, addresses: [192.0.2.0/30]}\n"
    kept = kept_text("10.96.0.1", "127.0.0.1", "nonsense", "192.0.2.7")
    book.put_past(Past(accepted, kept))
    assert retired(book) == ["192.0.2.0/30", "192.0.2.7/32"]
    for text in ("[", "- x\n", "\0", "#" * 70_000 + "\n" + FIRST):
        book = PoolBook(PoolSettings(cluster_ranges=ranges))
        book.put_past(Past(text, text))
        assert (retired(book), book.knows_past) == ([], True)


def test_what_was_taken_out_goes_on_to_be_announced_as_it_was_last() -> None:
    book = PoolBook(SETTINGS)
    first = "- {name: a, addresses: [192.0.2.0/30], announce: {bgp: true, localPreference: 7}}\n"
    last = "- {name: a, addresses: [192.0.2.0/31], announce: {layer2: true}}\n"
    book.put_config(first)
    with_bgp = ("a", Announcing(bgp=True, local_preference=7))
    assert announced(book, "192.0.2.3") == with_bgp
    book.put_config(last)
    assert announced(book, "192.0.2.3") == with_bgp
    assert announced(book, "192.0.2.1") == ("a", Announcing(layer2=True))
    book.put_config(None)
    assert announced(book, "192.0.2.3") == with_bgp
    assert announced(book, "192.0.2.1") == ("a", Announcing(layer2=True))
    # What comes back goes by the pool that has it then, and so when that one goes.
    book.put_config("- {name: b, addresses: [192.0.2.3]}\n")
    assert announced(book, "192.0.2.3") == ("b", Announcing())
    assert announced(book, "192.0.2.2") == with_bgp
    book.put_config(None)
    assert announced(book, "192.0.2.3") == ("b", Announcing())
    assert announced(book, "192.0.2.2") == with_bgp
    assert announced(book, "192.0.2.4") is None
    assert announced(book, "203.0.113.1") == (DEFAULT_POOL, Announcing())
    assert not any(each.auto_assign for each in book.pools.retired)


def test_what_went_before_the_start_is_announced_as_it_was() -> None:
    book = PoolBook(SETTINGS)
    accepted = "- {name: a, addresses: [192.0.2.0/30], announce: {layer2: true}}\n"
    book.put_past(Past(accepted, kept_text("10.1.2.3", "192.0.2.1")))
    book.put_config(None)
    assert announced(book, "10.1.2.3") == ("kept", Announcing(bgp=True))
    assert announced(book, "192.0.2.1") == ("a", Announcing(layer2=True))


def test_what_is_heard_of_late_counts_less_than_what_was_seen() -> None:
    book = PoolBook(SETTINGS)
    book.put_config("- {name: seen, addresses: [192.0.2.1]}\n")
    book.put_config(SECOND)
    book.put_past(Past(FIRST, kept_text("192.0.2.1", "198.51.100.1", "10.1.2.3")))
    assert announced(book, "192.0.2.1") == ("seen", Announcing())
    assert announced(book, "192.0.2.2") == ("first", Announcing())
    assert announced(book, "198.51.100.1") == ("second", Announcing())
    assert announced(book, "10.1.2.3") == ("kept", Announcing(bgp=True))


def test_a_flag_that_makes_pools_of_before_wrong_costs_them_nothing() -> None:
    """The pool has an address of the flag now, and the name of its pool."""
    book = PoolBook(SETTINGS)
    said = "announce: {bgp: true, unknown: x}"
    accepted = f"- {{name: default, addresses: [203.0.113.0-203.0.114.3], {said}}}\n"
    book.put_past(Past(accepted))
    book.put_config(accepted, accepted)
    assert (names(book), retired(book)) == (["default"], ["203.0.114.0/30"])
    assert announced(book, "203.0.114.1") == (DEFAULT_POOL, Announcing(bgp=True))
    assert announced(book, "203.0.113.1") == (DEFAULT_POOL, Announcing())


# --- what follows the ConfigMap -------------------------------------------------------------------


class Stream:
    """A watch: lines until it is stopped."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[bytes | None] = queue.Queue()

    def lines(self) -> Iterator[bytes]:
        while (line := self.waiting.get(timeout=_TIMEOUT_S)) is not None:
            yield line

    def stop(self) -> None:
        self.waiting.put(None)

    def close(self) -> None:
        """Nothing is open."""


class Api:
    """As much of an API server as a ConfigMap and a Lease need. ``refused`` answers with 403,
    ``absent`` not at all; both are paths, and may be changed at any time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.revision = 10
        self.objects: dict[str, dict[str, Any]] = {CONFIG_MAPS: {}, LEASES: {}}
        self.refused: set[str] = set()
        self.absent: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.streams: list[Stream] = []
        self.posted: queue.Queue[dict[str, Any]] = queue.Queue()

    def put(self, path: str, name: str, **fields: Any) -> None:
        with self.lock:
            self.revision += 1
            meta = {"name": name, "namespace": "kube-system", "uid": f"uid-{name}"}
            meta |= {"resourceVersion": str(self.revision), **fields.pop("metadata", {})}
            known = name in self.objects[path]
            self.objects[path][name] = {"metadata": meta, **fields}
            self._tell(path, "MODIFIED" if known else "ADDED", self.objects[path][name])

    def delete(self, path: str, name: str) -> None:
        with self.lock:
            self.revision += 1
            gone = self.objects[path].pop(name)
            gone["metadata"]["resourceVersion"] = str(self.revision)
            self._tell(path, "DELETED", gone)

    def _tell(self, path: str, kind: str, obj: dict[str, Any]) -> None:
        if path == CONFIG_MAPS and obj["metadata"]["name"] == CONFIG_MAP:
            for stream in self.streams:
                stream.waiting.put(json.dumps({"type": kind, "object": obj}).encode())

    def _begin(self, path: str, query: Mapping[str, str] | None) -> str:
        selector = (query or {}).get("fieldSelector", "")
        self.asked.append((path, selector))
        if path in self.refused:
            raise RefusedError(f"GET {path}: HTTP 403: forbidden", 403, "Forbidden", 0.0)
        if path in self.absent:
            raise ApiError("no API server answers")
        field, _, name = selector.partition("=")
        assert field == "metadata.name"
        return name

    def list(self, path: str, query: Mapping[str, str] | None = None, **how: Any) -> bytes:
        with self.lock:
            name = self._begin(path, query)
            kind = {CONFIG_MAPS: "ConfigMapList", LEASES: "LeaseList"}[path]
            found = [obj for key, obj in self.objects[path].items() if key == name]
            meta = {"resourceVersion": str(self.revision)}
            return json.dumps({"kind": kind, "metadata": meta, "items": found}).encode()

    def watch(self, path: str, query: Mapping[str, str], *, idle_timeout_s: float) -> Stream:
        with self.lock:
            name, stream = self._begin(path, query), Stream()
            found = self.objects[path].get(name)
            if found and int(found["metadata"]["resourceVersion"]) > int(query["resourceVersion"]):
                line = json.dumps({"type": "MODIFIED", "object": found})
                stream.waiting.put(line.encode())
            self.streams.append(stream)
            return stream

    def post(self, path: str, body: dict[str, Any], **how: Any) -> bytes:
        assert path == "/api/v1/namespaces/kube-system/events"
        self.posted.put(body)
        return b"{}"


def until(condition: Callable[[], Any], what: str = "the book") -> None:
    end = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


class World:
    def __init__(self) -> None:
        self.api, self.now_s, self.looks = Api(), 0.0, 0
        self.book = PoolBook(SETTINGS)
        self.source: PoolSource | None = None

    def start(self) -> PoolBook:
        self.source = PoolSource(
            self.book,
            self.api,  # type: ignore[arg-type]
            "node1",
            event_spacing_s=0.0,
            timing=FAST,
            clock=self._clock,
        )
        self.source.start()
        return self.book

    def _clock(self) -> float:
        now_s = self.now_s
        self.looks += 1
        return now_s

    def config(self, text: str | None) -> None:
        self.api.put(CONFIG_MAPS, CONFIG_MAP, data=None if text is None else {"pools": text})

    def keep(self, text: str, kept: str = "") -> None:
        annotations = {ACCEPTED_ANNOTATION: text, KEPT_ANNOTATION: kept}
        self.api.put(LEASES, ACCEPTED_LEASE, metadata={"annotations": annotations})

    def asked(self, path: str) -> int:
        with self.api.lock:
            return sum(each == path for each, _ in self.api.asked)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    if world.source is not None:
        world.source.stop(_TIMEOUT_S)
        assert not any(
            thread.name in ("address-pools", "reflector-ConfigMap", "events")
            for thread in threading.enumerate()
        )


def test_edits_of_the_config_map_are_followed(world: World) -> None:
    world.config(FIRST)
    world.api.put(CONFIG_MAPS, "other", data={"pools": SECOND})
    book = world.start()
    until(lambda: book.is_known)
    assert names(book) == ["default", "first"]
    assert {selector for path, selector in world.api.asked if path == CONFIG_MAPS} == {
        f"metadata.name={CONFIG_MAP}"
    }
    world.config(SECOND)
    until(lambda: names(book) == ["default", "second"])
    world.config(BAD)
    until(lambda: len(book.problems) == 2)
    assert (names(book), book.accepted_text) == (["default", "second"], SECOND)
    world.config(FIRST)
    until(lambda: names(book) == ["default", "first"])
    assert book.problems == ()
    world.api.delete(CONFIG_MAPS, CONFIG_MAP)
    until(lambda: names(book) == ["default"])
    assert (book.accepted_text, book.problems) == ("", ())
    # What was before is asked for once.
    assert world.asked(LEASES) == 1


def test_a_stop_amid_a_reading_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.config(FIRST)
    book = world.start()
    until(lambda: book.is_known)
    source, wait_synced = world.source, world.source.cache.wait_synced
    stopper = threading.Thread(target=source.stop, args=(_TIMEOUT_S,))

    def stopped_meanwhile(*asked: Any) -> bool:
        stopper.start()
        until(lambda: "reflector-ConfigMap" not in {each.name for each in threading.enumerate()})
        return wait_synced(*asked)

    monkeypatch.setattr(source.cache, "wait_synced", stopped_meanwhile)
    world.config(SECOND)
    until(lambda: stopper.ident is not None)
    stopper.join(_TIMEOUT_S)
    assert "address-pools" not in {each.name for each in threading.enumerate()}


def test_without_a_config_map_it_is_known_that_there_is_none(world: World) -> None:
    book = world.start()
    until(lambda: book.is_known)
    assert (names(book), book.accepted_text, book.problems) == (["default"], "", ())
    world.config(FIRST)
    until(lambda: names(book) == ["default", "first"])


def test_mistakes_are_told_by_events_of_the_config_map(world: World) -> None:
    world.config(FIRST)
    book = world.start()
    until(lambda: book.is_known)
    world.config(BAD)
    told = [world.api.posted.get(timeout=_TIMEOUT_S) for _ in range(2)]
    for event in told:
        assert (event["type"], event["reason"]) == ("Warning", "BadAddressPools")
        assert event["involvedObject"]["kind"] == "ConfigMap"
        assert event["involvedObject"]["name"] == CONFIG_MAP
        assert event["involvedObject"]["uid"] == f"uid-{CONFIG_MAP}"
    assert told[0]["message"].startswith("pools[1].addresses[0]: 'x' is no range of addresses")
    assert "before it was edited" in told[1]["message"]
    # The same mistakes with another beside them: only that one is news.
    world.config(BAD + "- {name: third}\n")
    event = world.api.posted.get(timeout=_TIMEOUT_S)
    assert event["message"].startswith("pools[2].addresses: there are none")
    assert len(book.problems) == 3
    assert world.api.posted.empty()


def test_not_every_one_of_many_mistakes_is_an_event(world: World) -> None:
    world.config("- x\n" * 40)
    world.start()
    told = [world.api.posted.get(timeout=_TIMEOUT_S)["message"] for _ in range(10)]
    assert "only those without a mistake are used: none" in told[-1]
    assert len(set(told)) == 10


def test_a_config_map_without_the_entry_is_a_bad_edit(world: World) -> None:
    world.config(FIRST)
    book = world.start()
    until(lambda: book.is_known)
    world.config(None)
    until(lambda: book.problems)
    assert names(book) == ["default", "first"]
    assert book.problems[0].field == "data"
    assert "no entry 'pools'" in book.problems[0].reason


def test_after_a_restart_with_a_bad_config_map_the_lease_says_what_was_accepted(
    world: World,
) -> None:
    world.config(BAD)
    world.keep(FIRST)
    book = world.start()
    until(lambda: book.is_known)
    assert (names(book), book.accepted_text) == (["default", "first"], FIRST)
    assert [each.field for each in book.problems] == ["pools[1].addresses[0]", ""]
    assert world.api.asked.count((LEASES, f"metadata.name={ACCEPTED_LEASE}")) == 1
    world.config(BAD + "# again\n")
    world.config(SECOND)
    until(lambda: names(book) == ["default", "second"])
    assert world.asked(LEASES) == 1


def test_an_agent_that_ends_judges_no_pools_without_what_was_before(world: World) -> None:
    world.config(BAD)
    world.api.absent.add(LEASES)
    book = world.start()
    until(lambda: world.asked(LEASES) > 0)
    assert world.source is not None
    world.source.stop(_TIMEOUT_S)
    assert not book.is_known


@pytest.mark.parametrize("is_refused", [False, True])
def test_where_nobody_has_kept_anything_the_right_pools_are_used(
    world: World, is_refused: bool
) -> None:
    world.config(BAD)
    if is_refused:
        world.api.refused.add(LEASES)
    book = world.start()
    until(lambda: book.is_known)
    assert (names(book), book.accepted_text) == (["default", "new"], None)


def test_for_a_lease_that_cannot_be_had_nobody_waits_for_ever(world: World) -> None:
    world.config(BAD)
    world.keep(FIRST)
    world.api.absent.add(LEASES)
    book = world.start()
    until(lambda: world.asked(LEASES))
    assert not book.is_known
    world.now_s = 30.0
    until(lambda: book.is_known)
    assert names(book) == ["default", "new"]


def test_a_lease_that_can_be_had_later_is_waited_for(world: World) -> None:
    world.config(BAD)
    world.keep(FIRST)
    world.api.absent.add(LEASES)
    book = world.start()
    until(lambda: world.asked(LEASES))
    world.api.absent.clear()
    until(lambda: book.is_known)
    assert names(book) == ["default", "first"]


def test_a_config_map_that_may_not_be_read_holds_nobody_up(world: World) -> None:
    world.config(FIRST)
    world.api.refused.add(CONFIG_MAPS)
    book = world.start()
    until(lambda: world.looks > 3, "a look at the clock")
    assert (book.is_known, names(book)) == (False, ["default"])
    world.now_s, begun = 29.9, world.looks
    until(lambda: world.looks > begun + 3, "a look at the clock")
    assert not book.is_known
    world.now_s = 30.0
    until(lambda: book.is_known)
    (problem,) = book.problems
    assert problem.object == SETTINGS.subject
    assert "HTTP 403: forbidden" in problem.reason
    assert "--loadbalancer-ip-range" in problem.reason
    assert (names(book), book.accepted_text) == (["default"], None)
    world.api.refused.clear()
    until(lambda: names(book) == ["default", "first"])
    assert book.problems == ()


def test_as_long_as_nobody_answers_nothing_is_known(world: World) -> None:
    """Whoever acts on lists must not take the flags' pool for all when a server comes back."""
    world.config(FIRST)
    world.api.absent.add(CONFIG_MAPS)
    book = world.start()
    until(lambda: world.asked(CONFIG_MAPS) > 1)
    world.now_s = 3600.0
    asked = world.asked(CONFIG_MAPS)
    # Its pauses are 50 ms at most: time for several looks at the cache, of 200 ms each.
    until(lambda: world.asked(CONFIG_MAPS) > asked + 20)
    assert not book.is_known
    world.api.absent.clear()
    until(lambda: book.is_known)
    assert names(book) == ["default", "first"]


def test_what_services_kept_is_known_before_anything_else_is(world: World) -> None:
    world.config(FIRST)
    world.keep(SECOND, kept_text("192.0.2.9", "10.1.2.3"))
    seen: list[tuple[bool, list[str]]] = []
    world.book.subscribe(lambda: seen.append((world.book.is_known, retired(world.book))))
    book = world.start()
    until(lambda: book.is_known)
    assert (names(book), retired(book)) == (
        ["default", "first"],
        ["10.1.2.3/32", "198.51.100.0/24"],
    )
    assert [each for is_known, each in seen if is_known] == [retired(book)]


def test_where_only_flags_can_be_read_services_keep_what_they_have(world: World) -> None:
    world.api.refused.add(CONFIG_MAPS)
    world.keep(FIRST, kept_text("10.1.2.3"))
    book = world.start()
    until(lambda: world.looks > 3, "a look at the clock")
    world.now_s = 30.0
    until(lambda: book.is_known)
    assert (names(book), retired(book)) == (["default"], ["10.1.2.3/32", "192.0.2.0/24"])


def test_for_what_services_kept_nobody_waits_long_and_it_is_asked_for_later(
    world: World,
) -> None:
    world.config(FIRST)
    world.keep(FIRST, kept_text("10.1.2.3"))
    world.api.absent.add(LEASES)
    book = world.start()
    until(lambda: world.asked(LEASES))
    assert not book.is_known
    world.now_s = 5.0
    until(lambda: book.is_known)
    assert (names(book), retired(book), book.knows_past) == (["default", "first"], [], False)
    world.api.absent.clear()
    until(lambda: book.knows_past)
    assert (names(book), retired(book)) == (["default", "first"], ["10.1.2.3/32"])
    asked = world.asked(LEASES)
    world.config(SECOND)
    until(lambda: names(book) == ["default", "second"])
    assert world.asked(LEASES) == asked


def test_who_may_not_read_the_lease_goes_on_without(world: World) -> None:
    world.config(FIRST)
    world.keep(FIRST, kept_text("10.1.2.3"))
    world.api.refused.add(LEASES)
    book = world.start()
    until(lambda: book.is_known)
    assert (names(book), retired(book), book.knows_past) == (["default", "first"], [], True)
    assert world.asked(LEASES) == 1
