"""Who gets which address: one rule a test."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kube_router_py.address_pools import Address, AddressPools, AddressRange, Pool
from kube_router_py.cluster.selectors import Requirement, Selector
from kube_router_py.loadbalancer.allocate import Allocator
from kube_router_py.loadbalancer.decisions import Decision, Occupancy, Reason, Told
from kube_router_py.loadbalancer.requests import (
    ADDRESS_ANNOTATIONS,
    POOL_ANNOTATIONS,
    SHARE_ANNOTATIONS,
    Request,
)
from kube_router_py.problem import Problem


def _pool(name: str, *ranges: str, **more: Any) -> Pool:
    ends = [each.split("-") for each in ranges]
    made = tuple(AddressRange(ip_address(each[0]), ip_address(each[-1])) for each in ends)
    return Pool(name, made, **more)


def _pools(*pools: Pool) -> AddressPools:
    return AddressPools(pools)


def _request(name: str, *current: str, **more: Any) -> Request:
    more = {"versions": (4,), "created": name, "ports": frozenset({("TCP", 80)}), **more}
    more["addresses"] = tuple(map(ip_address, more.get("addresses", ())))
    return Request(
        key=f"default/{name}",
        uid=f"uid of {name}",
        current=tuple(map(ip_address, current)),
        current_texts=current,
        **more,
    )


def _texts(decision: Decision) -> list[str]:
    return [str(each.address) for each in decision.addresses]


def _reasons(decision: Decision) -> list[Reason]:
    return [each.reason for each in decision.wrong]


PAGE = (Path(__file__).parents[3] / "docs" / "load-balancer.md").read_text()


class World:
    """An allocator, and the statuses that it has written."""

    def __init__(self, *pools: Pool) -> None:
        self.allocator = Allocator(_pools(*pools))
        self._requests: dict[str, Request] = {}

    def put(self, name: str, *current: str, **more: Any) -> Decision:
        """A Service that is new, or asks for something else; its status is as it was."""
        before = self._requests.get(name)
        if before is not None and not current:
            current = before.current_texts
        return self.see(name, _request(name, *current, **more))

    def see(self, name: str, request: Request) -> Decision:
        self._requests[name] = request
        return self.allocator.put(request, {})

    def written(self, name: str) -> Decision:
        """The status has what was decided, and is seen so."""
        given = [each.address for each in self.allocator.given(f"default/{name}")]
        texts = tuple(map(str, given))
        request = replace(self._requests[name], current=tuple(given), current_texts=texts)
        return self.see(name, request)

    def give(self, name: str, **more: Any) -> list[str]:
        self.put(name, **more)
        return _texts(self.written(name))


def test_the_lowest_free_address_is_given_and_given_again() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.3"))
    assert [world.give(each) for each in "abc"] == [["10.0.0.1"], ["10.0.0.2"], ["10.0.0.3"]]
    assert _reasons(world.put("d")) == [Reason.EXHAUSTED]
    assert world.allocator.remove("default/b") == ("default/d",)
    assert _texts(world.allocator.decide("default/d")) == ["10.0.0.2"]
    assert not world.allocator.waiting


def test_what_is_decided_is_written_once() -> None:
    world = World(_pool("a", "10.0.0.1"))
    assert world.put("a").must_write
    assert world.allocator.decide("default/a").must_write, "the write may have failed"
    assert not world.written("a").must_write


def test_an_address_in_the_status_stays_wherever_it_is_in_a_pool() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"), _pool("b", "10.1.0.1", auto_assign=False))
    decision = world.put("a", "10.1.0.1")
    assert (_texts(decision), decision.must_write, decision.wrong) == (["10.1.0.1"], False, ())


def test_before_anything_is_given_all_that_statuses_say_is_reserved() -> None:
    allocator = Allocator(_pools(_pool("a", "10.0.0.1-10.0.0.9")))
    old = [_request("a"), _request("b", "10.0.0.1"), _request("c", "10.0.0.2")]
    order = allocator.rebuild([(each, {}) for each in old], {"x/y": [ip_address("10.0.0.3")]})
    assert order == ("default/a", "default/b", "default/c")
    given = [_texts(allocator.decide(each)) for each in order]
    assert given == [["10.0.0.4"], ["10.0.0.1"], ["10.0.0.2"]]


def test_of_two_with_one_address_the_older_keeps_it() -> None:
    allocator = Allocator(_pools(_pool("a", "10.0.0.1-10.0.0.9")))
    young, old = _request("b", "10.0.0.1"), _request("a", "10.0.0.1")
    allocator.rebuild([(young, {}), (old, {})], {})
    decision = allocator.decide("default/b")
    assert _texts(decision) == ["10.0.0.2"]
    assert not allocator.decide("default/a").must_write
    (news,) = decision.news
    assert news.reason is Reason.REALLOCATED
    assert news.problem.reason == (
        "the address changes from 10.0.0.1 to 10.0.0.2: Service default/a has 10.0.0.1, too; the "
        "two do not name the same key in kube-router.io/allow-shared-ip"
    )


def test_a_loser_without_another_address_is_to_list_none() -> None:
    allocator = Allocator(_pools(_pool("a", "10.0.0.1")))
    both = [_request("a", "10.0.0.1"), _request("b", "10.0.0.1")]
    for key in allocator.rebuild([(each, {}) for each in both], {}):
        decision = allocator.decide(key)
    assert (_texts(decision), decision.must_write) == ([], True)
    assert _reasons(decision) == [Reason.EXHAUSTED]
    # The older one goes; the address is still in a status, and nobody else's.
    assert allocator.remove("default/a") == ("default/b",)
    assert _texts(allocator.put(_request("c"), {})) == []
    assert _texts(allocator.decide("default/b")) == ["10.0.0.1"]


def test_what_a_status_may_still_list_is_given_to_nobody() -> None:
    world = World(_pool("a", "10.0.0.1"), _pool("b", "10.0.1.1", auto_assign=False))
    world.give("a")
    assert _texts(world.put("a", pool="b")) == ["10.0.1.1"]
    assert _reasons(world.put("c")) == [Reason.EXHAUSTED]
    assert _reasons(world.put("d", addresses=["10.0.0.1"])) == [Reason.IN_USE]
    assert world.allocator.unconfirmed == {"default/a"}
    assert world.written("a").retry == ("default/c", "default/d")
    assert _texts(world.allocator.decide("default/c")) == ["10.0.0.1"]


def test_what_may_be_on_its_way_into_a_status_is_given_to_nobody() -> None:
    world = World(_pool("a", "10.0.0.1"), _pool("b", "10.0.1.1", auto_assign=False))
    world.put("a")
    assert _texts(world.put("a", pool="b")) == ["10.0.1.1"]
    assert _reasons(world.put("c")) == [Reason.EXHAUSTED]
    assert world.written("a").retry == ("default/c",)


def test_the_same_holds_from_the_first_moment_of_a_leader() -> None:
    allocator = Allocator(_pools(_pool("a", "10.0.0.1"), _pool("b", "10.0.1.1")))
    wanted = [
        _request("a", "10.0.0.1", pool="b"),
        _request("b", addresses=["10.0.0.1"]),
        _request("c", "10.0.0.1"),
    ]
    allocator.rebuild([(each, {}) for each in wanted], {})
    assert _texts(allocator.decide("default/a")) == ["10.0.1.1"]
    allocator.put(_request("a", "10.0.1.1", pool="b"), {})
    assert _reasons(allocator.decide("default/b")) == [Reason.IN_USE], "the status of c lists it"


def test_another_service_of_the_same_name_inherits_nothing() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.give("a")
    decision = world.see("a", replace(_request("a", pool="gone"), uid="another"))
    assert (_texts(decision), decision.must_write) == ([], False)


def test_an_address_that_is_asked_for_is_waited_for() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    world.give("a")
    world.give("b")
    decision = world.put("b", addresses=["10.0.0.1"])
    assert _texts(decision) == ["10.0.0.2"]
    assert [str(each.problem.reason) for each in decision.wrong] == [
        "10.0.0.1 is in use by Service default/a; the two do not name the same key in "
        "kube-router.io/allow-shared-ip; ask for another one, or have that Service give it up; "
        "until it can be had the Service keeps 10.0.0.2"
    ]
    assert world.allocator.remove("default/a") == ("default/b",)
    decision = world.allocator.decide("default/b")
    assert _texts(decision) == ["10.0.0.1"]
    assert [each.reason for each in decision.news] == [Reason.REALLOCATED]


_REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"addresses": ["192.0.2.1"]}, Reason.NOT_IN_POOL),
    ({"addresses": ["10.0.0.0"]}, Reason.NOT_IN_POOL),
    ({"addresses": ["10.0.0.5"], "pool": "gold"}, Reason.NOT_IN_POOL),
    ({"addresses": ["10.9.0.1"]}, Reason.POOL_FORBIDS),
    ({"addresses": ["10.0.0.1"]}, Reason.IN_USE),
    ({"addresses": ["10.0.0.1"], "share": "k"}, Reason.SHARING),
    ({"addresses": ["10.0.0.200"]}, Reason.IN_USE),
    ({"pool": "gone"}, Reason.UNKNOWN_POOL),
    ({"pool": "gold"}, Reason.POOL_FORBIDS),
    ({"pool": "full"}, Reason.EXHAUSTED),
    ({"pool": "full", "versions": (6,)}, Reason.NO_POOL),
    ({"versions": (6,)}, Reason.NO_POOL),
    ({"versions": (4, 6), "needs_all": True}, Reason.NO_POOL),
]


@pytest.mark.parametrize(("asked", "reason"), _REFUSED)
def test_a_refusal_names_its_reason_and_harms_nobody(asked: dict[str, Any], reason: Reason) -> None:
    world = World(
        _pool("a", "10.0.0.0-10.0.0.255", avoid_buggy_ips=True),
        _pool("full", "10.5.0.1", auto_assign=False),
        _pool("gold", "10.9.0.1", services=Selector((Requirement("tier", "In", ("gold",)),))),
    )
    world.allocator.note_foreign("x/y", [ip_address("10.0.0.200")])
    world.give("first")
    world.give("full", pool="full")
    decision = world.put("b", **asked, address_field="addresses", pool_field="pool")
    assert (_texts(decision), decision.must_write) == ([], False)
    assert _reasons(decision) == [reason]
    (told,) = decision.wrong
    assert told.problem.object == "Service default/b"
    is_of_pool = reason in (Reason.UNKNOWN_POOL, Reason.POOL_FORBIDS)
    field = "addresses" if "addresses" in asked else "pool" if is_of_pool else ""
    assert told.problem.field == field
    assert re.search(r"; (ask for|correct|change|add) ", told.problem.reason), "what to do"
    assert not decision.news
    assert world.give("c") == ["10.0.0.2"]
    # Of a Service that has an address the same changes nothing but what is told.
    if asked.get("versions", (4,)) == (4,):
        decision = world.put("c", **asked)
        assert (_texts(decision), decision.must_write) == (["10.0.0.2"], False)
        assert _reasons(decision) == [reason]
        assert "keeps 10.0.0.2" in decision.wrong[0].problem.reason


@pytest.mark.parametrize("reason", Reason)
def test_every_event_is_explained(reason: Reason) -> None:
    assert f"\n| `{reason}` | " in PAGE


@pytest.mark.parametrize(
    "name", [*POOL_ANNOTATIONS[:2], *ADDRESS_ANNOTATIONS[:2], *SHARE_ANNOTATIONS[:2]]
)
def test_every_annotation_is_explained(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_what_cannot_be_read_keeps_its_address() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    world.give("a")
    mistake = Told(Reason.INVALID_REQUEST, Problem("Service default/a", "x", "is wrong"))
    decision = world.put("a", mistakes=(mistake,), pool="b")
    assert (_texts(decision), decision.must_write) == (["10.0.0.1"], False)
    assert decision.wrong == (mistake,)
    assert _texts(world.put("b", mistakes=(mistake,))) == []


# --- pools ---------------------------------------------------------------------------------------


def test_pools_are_chosen_by_priority_then_by_selectors_then_by_name() -> None:
    gold = Selector((Requirement("tier", "In", ("gold",)),))
    world = World(
        _pool("e", "10.0.0.5", priority=-1, auto_assign=False),
        _pool("d", "10.0.0.4", priority=1),
        _pool("a", "10.0.0.1"),
        _pool("b", "10.0.0.2"),
        _pool("c", "10.0.0.3", services=gold),
        _pool("f", "10.0.0.6", namespace_names=frozenset({"other"}), priority=-2),
    )
    labels = {"tier": "gold"}
    given = [world.give(each, labels=labels)[0][-1] for each in "abcd"]
    assert given == ["3", "1", "2", "4"]
    assert _reasons(world.put("e", labels=labels)) == [Reason.EXHAUSTED]


def test_labels_of_the_namespace_count() -> None:
    pools = _pools(_pool("a", "10.0.0.1", namespaces=Selector((Requirement("x", "Exists"),))))
    allocator = Allocator(pools)
    assert _reasons(allocator.put(_request("a"), {})) == [Reason.NO_POOL]
    assert _texts(allocator.put(_request("a"), {"x": ""})) == ["10.0.0.1"]
    assert _reasons(allocator.put(_request("a"), {})) == [Reason.POOL_FORBIDS], "but it stays"


def test_another_pool_is_moved_to_when_it_is_asked_for() -> None:
    world = World(_pool("a", "10.0.0.1"), _pool("b", "10.1.0.1"))
    assert world.give("a") == ["10.0.0.1"]
    assert world.give("b") == ["10.1.0.1"]
    assert _reasons(world.put("a", pool="b")) == [Reason.EXHAUSTED]
    assert world.allocator.remove("default/b") == ("default/a",)
    assert _texts(world.allocator.decide("default/a")) == ["10.1.0.1"]


@pytest.mark.parametrize("asked", [{}, {"pool": "a"}])
def test_a_pool_that_shrinks_takes_nothing_away_unasked(asked: dict[str, Any]) -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    world.give("a", **asked)
    assert world.allocator.set_pools(_pools(_pool("a", "10.0.0.2-10.0.0.9"))) == ("default/a",)
    decision = world.allocator.decide("default/a")
    assert (_texts(decision), decision.must_write) == (["10.0.0.1"], False)
    assert decision.addresses[0].pool == ""
    assert _reasons(decision) == [Reason.OUTSIDE]
    world.allocator.set_pools(_pools(_pool("a", "10.0.0.2-10.0.0.9", reallocate=True)))
    decision = world.allocator.decide("default/a")
    assert _texts(decision) == ["10.0.0.2"]
    assert [each.problem.reason for each in decision.news] == [
        "the address changes from 10.0.0.1 to 10.0.0.2: 10.0.0.1 is in no pool"
    ]


def test_a_pool_that_replaces_but_is_full_is_waited_for() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.give("a")
    world.give("b")
    world.allocator.set_pools(_pools(_pool("a", "10.0.0.2", reallocate=True)))
    assert _reasons(world.allocator.decide("default/a")) == [Reason.OUTSIDE]
    assert world.allocator.remove("default/b") == ("default/a",)
    assert _texts(world.allocator.decide("default/a")) == ["10.0.0.2"]


def test_a_pool_that_grows_or_is_renamed_serves_at_once() -> None:
    world = World(_pool("a", "10.0.0.1"))
    world.give("a")
    world.put("b")
    world.allocator.set_pools(_pools(_pool("new", "10.0.0.1-10.0.0.2")))
    decision = world.allocator.decide("default/a")
    assert (decision.addresses[0].pool, decision.wrong) == ("new", ())
    assert _texts(world.allocator.decide("default/b")) == ["10.0.0.2"]


# --- families ------------------------------------------------------------------------------------


def test_both_families_come_from_one_pool_if_one_has_them() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"), _pool("b", "10.1.0.1", "fd00::1-fd00::9"))
    assert world.give("a", versions=(6, 4)) == ["fd00::1", "10.1.0.1"]
    assert world.give("b", versions=(6, 4)) == ["fd00::2", "10.0.0.1"]


def test_the_second_family_comes_from_beside_the_first() -> None:
    world = World(_pool("a", "fd00::1-fd00::9"), _pool("b", "10.1.0.1", "fd01::1-fd01::9"))
    world.give("a")
    assert world.give("a", versions=(4, 6)) == ["10.1.0.1", "fd01::1"]
    assert world.give("a", versions=(6,)) == ["fd01::1"]
    assert world.give("b", versions=(4, 6), addresses=["10.1.0.1"]) == ["10.1.0.1", "fd01::2"]


def test_who_prefers_both_takes_what_there_is() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"), _pool("b", "fd00::1", auto_assign=False))
    decision = world.put("a", versions=(4, 6))
    assert (_texts(decision), decision.wrong) == (["10.0.0.1"], ())
    world.allocator.set_pools(_pools(_pool("a", "10.0.0.1"), _pool("b", "fd00::1")))
    assert _texts(world.allocator.decide("default/a")) == ["10.0.0.1", "fd00::1"]
    decision = world.put("b", versions=(4, 6))
    assert _reasons(decision) == [Reason.EXHAUSTED, Reason.EXHAUSTED]


def test_who_requires_both_gets_both_or_none() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9", "fd00::1"))
    world.give("a", versions=(6,))
    decision = world.put("b", versions=(4, 6), needs_all=True)
    assert (_texts(decision), _reasons(decision)) == ([], [Reason.EXHAUSTED])
    assert world.give("c") == ["10.0.0.1"]
    assert world.allocator.remove("default/a") == ("default/b",)
    assert _texts(world.allocator.decide("default/b")) == ["10.0.0.2", "fd00::1"]


def test_who_has_one_and_now_requires_both_keeps_it() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    world.give("a")
    decision = world.put("a", versions=(4, 6), needs_all=True)
    assert (_texts(decision), _reasons(decision)) == (["10.0.0.1"], [Reason.NO_POOL])


# --- sharing -------------------------------------------------------------------------------------


def _ports(*numbers: int) -> frozenset[tuple[str, int]]:
    return frozenset(("TCP", each) for each in numbers)


def test_services_with_one_key_share_an_address() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    assert world.give("a", share="k", ports=_ports(80)) == ["10.0.0.1"]
    assert world.give("b", share="k", ports=_ports(443)) == ["10.0.0.1"]
    assert world.give("c", share="k", ports=_ports(80)) == ["10.0.0.2"]
    assert world.give("d", share="k", ports=_ports(53), backends="app=web") == ["10.0.0.3"]
    assert world.give("e", share="other", ports=_ports(53)) == ["10.0.0.4"]
    assert world.give("f", share="k", ports=frozenset({("UDP", 80)})) == ["10.0.0.1"]
    world.allocator.remove("default/a")
    assert world.give("g", share="k", ports=_ports(80)) == ["10.0.0.1"]
    (occupancy,) = world.allocator.occupancy()
    assert occupancy == Occupancy("a", 4, 9, 4, 5)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"share": "k", "ports": _ports(80)}, "; both serve TCP port 80"),
        ({"share": "l", "ports": _ports(81)}, "; the two do not name the same key in"),
        ({"share": "k", "ports": _ports(81), "backends": "x=y"}, "; sharing takes traffic policy"),
    ],
)
def test_who_cannot_share_is_told_why(asked: dict[str, Any], why: str) -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"))
    world.give("a", share="k")
    decision = world.put("b", addresses=["10.0.0.1"], **asked)
    assert _reasons(decision) == [Reason.SHARING]
    assert f"10.0.0.1 is in use by Service default/a{why}" in decision.wrong[0].problem.reason
    # What stood against it goes: the Service hears of it.
    decision = world.put(
        "a", share=asked["share"], ports=_ports(1), backends=asked.get("backends", "")
    )
    assert decision.retry == ("default/b",)
    assert _texts(world.allocator.decide("default/b")) == ["10.0.0.1"]


def test_who_does_not_fit_in_any_more_has_to_move() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.give("a", share="k", ports=_ports(80))
    world.give("b", share="k", ports=_ports(81))
    decision = world.put("b", share="k", ports=_ports(80, 81))
    assert _texts(decision) == ["10.0.0.2"]
    assert [each.reason for each in decision.news] == [Reason.REALLOCATED]
    assert _texts(world.written("b")) == ["10.0.0.2"]
    assert _texts(world.put("a", share="", ports=_ports(80))) == ["10.0.0.1"], "it is alone there"


def test_when_no_address_is_free_every_shared_one_is_tried() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.60"))
    for number in range(60):
        taken = _ports(80, 81) if number < 59 else _ports(80)
        world.give(f"s{number:02}", share="k", ports=taken)
    assert world.give("z", share="k", ports=_ports(81)) == ["10.0.0.60"]


# --- addresses of others -------------------------------------------------------------------------


def test_many_who_wait_for_a_place_beside_many_are_no_work(monkeypatch: Any) -> None:
    """All share one key and serve one port: whoever may create Services can make that."""
    from kube_router_py.loadbalancer.holders import Holders

    tried: list[str] = []
    really = Holders.obstacle

    def obstacle(holders: Holders, address: Any, key: str, terms: Any) -> Any:
        tried.append(key)
        return really(holders, address, key, terms)

    monkeypatch.setattr(Holders, "obstacle", obstacle)
    world = World(_pool("a", "10.0.0.0-10.0.0.255"))
    for number in range(300):
        world.give(f"s{number:03}", share="k", ports=_ports(80, number))
    assert len(world.allocator.waiting) == 44
    assert not tried
    assert world.give("beside", share="k", ports=_ports(81)) == ["10.0.0.0"]
    assert len(tried) == 1
    assert world.allocator.remove("default/s007")
    assert world.give("s299", share="k", ports=_ports(80, 299)) == ["10.0.0.7"]
    assert world.give("s298", share="k", ports=_ports(298)) == ["10.0.0.0"]


def test_external_ips_are_not_given() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.allocator.note_foreign("x/y", [ip_address("10.0.0.1")])
    assert world.give("a") == ["10.0.0.2"]
    world.put("b")
    assert world.allocator.note_foreign("x/y", []) == ("default/b",)
    assert _texts(world.allocator.decide("default/b")) == ["10.0.0.1"]


def test_its_own_external_ip_stands_in_nobodys_way() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.allocator.note_foreign("default/a", [ip_address("10.0.0.1")])
    assert world.give("a", addresses=["10.0.0.1"]) == ["10.0.0.1"]


def test_an_external_ip_takes_no_address_away_but_is_told() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.give("a")
    world.allocator.note_foreign("x/y", [ip_address("10.0.0.1")])
    decision = world.allocator.decide("default/a")
    assert (_texts(decision), _reasons(decision)) == (["10.0.0.1"], [Reason.IN_USE])


def test_an_address_that_no_status_lists_yet_gives_way_to_an_external_ip() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.2"))
    world.put("a")
    world.allocator.note_foreign("x/y", [ip_address("10.0.0.1")])
    decision = world.allocator.decide("default/a")
    assert (_texts(decision), _reasons(decision)) == (["10.0.0.2"], [])


# --- how much, how fast --------------------------------------------------------------------------


def test_occupancy_follows_pools_and_services() -> None:
    world = World(_pool("a", "10.0.0.0-10.0.0.3", "fd00::-fd00::ffff:ffff:ffff:ffff"))
    world.give("a", versions=(4, 6))
    world.put("b", "192.0.2.1")
    world.allocator.note_foreign("x/y", [ip_address("10.0.0.0"), ip_address("10.0.0.3")])
    assert world.allocator.occupancy() == (
        Occupancy("a", 4, 4, 2, 2),
        Occupancy("a", 6, 2**64, 1, 2**64 - 1),
    )
    world.allocator.set_pools(_pools(_pool("b", "10.0.0.2-10.0.0.9", "192.0.2.1")))
    assert world.allocator.occupancy() == (Occupancy("b", 4, 9, 2, 7),)
    world.allocator.remove("default/b")
    assert world.allocator.occupancy() == (Occupancy("b", 4, 9, 1, 8),)


_FRAGMENTS = [
    f"10.{number // 250}.{number % 250}.1-10.{number // 250}.{number % 250}.4"
    for number in range(900)
]


def test_no_more_are_tried_again_than_there_is_room_for() -> None:
    world = World(_pool("a", "10.0.0.1-10.0.0.9"), _pool("b", "10.1.0.1-10.1.0.9"))
    for number in range(40):
        world.put(f"s{number:02}")
    assert len(world.allocator.waiting) == 22
    assert world.allocator.remove("default/s03") == ("default/s18",)
    assert world.allocator.remove("default/s12") == ("default/s18",), "the oldest, as before"
    # It takes one of the two; for the other it is the next one's turn.
    assert world.allocator.decide("default/s18").retry == ("default/s19",)
    # Who gives up waiting makes room as well.
    assert world.allocator.remove("default/s19") == ("default/s20",)
    assert world.allocator.decide("default/s20").retry == ()
    assert world.allocator.decide("default/s21").addresses == ()


@pytest.mark.parametrize(
    ("ranges", "version"),
    [(["10.0.0.0-10.0.255.255"], 4), (_FRAGMENTS, 4), (["fd00::-fd00::ffff:ffff:ffff:ffff"], 6)],
    ids=["a /16", "fragments", "a /64"],
)
def test_a_free_address_is_found_in_few_steps(ranges: list[str], version: int) -> None:
    allocator = Allocator(_pools(_pool("a", *ranges)))
    first = ip_address(ranges[0].partition("-")[0])
    reserved: list[Address] = [first + 2 * number for number in range(1000)]
    for number, address in enumerate(reserved):
        allocator.note_foreign(f"x/{number}", [address])

    def steps(work: Callable[[int], object]) -> list[int]:
        found = []
        for number in range(1000):
            before = allocator.steps
            work(number)
            found.append(allocator.steps - before)
        return found

    fill = steps(lambda number: allocator.put(_request(f"s{number}", versions=(version,)), {}))
    assert sum(fill) <= 3 * len(fill), "each reserved address is passed once"

    def churn(number: int) -> None:
        allocator.remove(f"default/s{number * 7 % 1000}")
        allocator.put(_request(f"t{number}", versions=(version,)), {})

    assert max(steps(churn)) <= 3
