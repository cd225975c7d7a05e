"""The index over Services: who holds an address, what is programmed, which peers there are."""

import sys
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kube_router_py.problem import Problem
from kube_router_py.routing.announcements import (
    Announcements,
    compile_announcements,
    pod_announcements,
)
from kube_router_py.routing.distinct_terms import MOST_ENTRIES
from kube_router_py.routing.model import Announcement, Community, Kind
from kube_router_py.routing.settings import RoutingSettings

BGP = "kube-router.io/service.bgp."
SHARED = "192.0.2.10"
OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
SETTINGS = RoutingSettings(
    ipv6=True,
    has_proxy=False,
    advertise_external_ip=True,
    strict_external_ips=False,
    cluster_ranges=(ip_network("10.96.0.0/12"),),
    external_ranges=(ip_network("192.0.2.0/24"),),
)
PROXIED = RoutingSettings(advertise_cluster_ip=True, has_proxy=True)


@pytest.fixture
def index() -> Announcements:
    return Announcements("node1", SETTINGS, {"192.0.2.1", "eth0"})


def prefixes(index: Announcements) -> list[str]:
    return [str(each.prefix) for each in index.current()]


def shared(make: Any, name: str, created: str | None, **given: Any) -> Any:
    return make.service(name, created=created, external_ips=(SHARED,), **given)


# --- Pod CIDRs -----------------------------------------------------------------------------------


def test_pod_cidrs_of_the_enabled_families_sorted_and_once() -> None:
    cidrs = [*map(ip_network, ("fd00:1::/64", "10.244.9.0/24", "10.244.1.0/24", "10.244.9.0/24"))]
    found, problems = pod_announcements(cidrs, SETTINGS, "node1")
    assert [str(each.prefix) for each in found] == ["10.244.1.0/24", "10.244.9.0/24", "fd00:1::/64"]
    assert {each.kind for each in found} == {Kind.PODS}
    assert problems == ()
    found, _ = pod_announcements(cidrs, RoutingSettings(), "node1")
    assert [str(each.prefix) for each in found] == ["10.244.1.0/24", "10.244.9.0/24"]


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/4", "::/0", "fe80::/64"])
def test_what_is_no_network_of_pods_is_told(cidr: str) -> None:
    network = ip_network(cidr)
    found, problems = pod_announcements([network, ip_network("10.1.0.0/24")], SETTINGS, "node1")
    assert [str(each.prefix) for each in found] == ["10.1.0.0/24"]
    assert [(each.object, each.field) for each in problems] == [("Node node1", "spec.podCIDRs")]


# --- the index -----------------------------------------------------------------------------------


def test_announcements_are_sorted_and_change_by_one(make: Any, index: Announcements) -> None:
    texts = ("192.0.2.200", "fd00:5::1", "192.0.2.3", "9.9.9.9")
    for number, text in enumerate(texts):
        changed = index.update(str(number), make.service(external_ips=(text,)))
        assert {each.network_address for each in changed} == {ip_address(text)}
    assert prefixes(index) == ["9.9.9.9/32", "192.0.2.3/32", "192.0.2.200/32", "fd00:5::1/128"]
    assert index.current() is index.current()
    assert index.update("2", make.service(external_ips=("192.0.2.3",))) == frozenset()
    assert index.remove("2") == {ip_network("192.0.2.3/32")}
    assert index.remove("2") == frozenset()
    assert prefixes(index) == ["9.9.9.9/32", "192.0.2.200/32", "fd00:5::1/128"]


def test_the_last_local_endpoint_takes_the_announcement_with_it(
    make: Any, index: Announcements
) -> None:
    service = make.service(external_ips=(SHARED,), external_traffic_policy="Local")
    assert index.update("a", service, [make.slice("10.244.1.2")]) == {ip_network("192.0.2.10/32")}
    assert index.update("a", service, [make.slice("10.244.1.3")]) == frozenset()
    gone = make.slice(make.endpoint("10.244.1.3", make.TERMINATING))
    assert index.update("a", service, [gone]) == {ip_network("192.0.2.10/32")}
    assert index.current() == ()


def test_a_shared_address_stays_as_long_as_anyone_wants_it(make: Any, index: Announcements) -> None:
    local = shared(make, "a", OLD, external_traffic_policy="Local")
    index.update("default/a", local, [make.slice("10.244.1.2")])
    index.update("default/b", shared(make, "b", NEW, external_traffic_policy="Local"))
    assert prefixes(index) == ["192.0.2.10/32"]
    index.update("default/b", shared(make, "b", NEW))
    assert index.update("default/a", local) == frozenset()
    assert prefixes(index) == ["192.0.2.10/32"]
    index.remove("default/b")
    assert index.current() == ()
    assert index.problems() == ()


def test_the_older_service_sets_the_terms_and_the_other_is_told(
    make: Any, index: Announcements
) -> None:
    preferred = {f"{BGP}local-preference": "200", f"{BGP}peers": "eth0"}
    index.update("default/new", shared(make, "new", NEW, annotations=preferred))
    assert [each.local_preference for each in index.current()] == [200]
    assert index.update("default/old", shared(make, "old", OLD)) == {ip_network("192.0.2.10/32")}
    assert index.current() == (Announcement(prefix=ip_network("192.0.2.10/32"), kind=Kind.SERVICE),)
    assert [(each.object, each.field.partition("bgp.")[2]) for each in index.problems()] == [
        ("Service default/new", "local-preference]"),
        ("Service default/new", "peers]"),
    ]
    assert all("older Service default/old" in each.reason for each in index.problems())
    # Recreated, it is the younger one; without an age it comes last, by name then.
    index.update("default/old", shared(make, "old", "2026-01-01T00:00:00Z"))
    assert [each.local_preference for each in index.current()] == [200]
    index.update("default/old", shared(make, "old", None))
    assert [each.local_preference for each in index.current()] == [200]
    index.update("default/new", shared(make, "new", None, annotations=preferred))
    assert [each.local_preference for each in index.current()] == [200]
    index.update("default/aaa", shared(make, "aaa", None))
    assert [each.local_preference for each in index.current()] == [None]


def test_other_terms_are_announced_at_once(make: Any, index: Announcements) -> None:
    prefix = ip_network("192.0.2.10/32")
    for preference in ("100", "200"):
        terms = {f"{BGP}local-preference": preference}
        assert index.update("default/a", shared(make, "a", OLD, annotations=terms)) == {prefix}
        assert [each.local_preference for each in index.current()] == [int(preference)]
    assert index.update("default/a", shared(make, "a", OLD)) == {prefix}
    assert [each.local_preference for each in index.current()] == [None]


def test_the_same_terms_are_no_conflict(make: Any, index: Announcements) -> None:
    terms = {f"{BGP}communities": "65000:1"}
    index.update("default/a", shared(make, "a", OLD, annotations=terms))
    index.update("default/b", shared(make, "b", NEW, annotations=terms))
    assert index.problems() == ()
    assert [each.communities for each in index.current()] == [(Community((65000, 1)),)]


def test_peers_are_those_that_there_are(make: Any, index: Announcements) -> None:
    choosing = {f"{BGP}peers": "192.0.2.1,192.0.2.2"}
    index.update("default/a", make.service("a", external_ips=(SHARED,), annotations=choosing))
    index.update("default/b", make.service("b", external_ips=("192.0.2.11",)))
    assert [each.peers for each in index.current()] == [("192.0.2.1",), None]
    assert index.problems() == (
        Problem(
            "Service default/a",
            f"metadata.annotations[{BGP}peers]",
            "192.0.2.2 is no configured router outside the cluster; it is left out",
        ),
    )
    touched = ip_network("192.0.2.10/32")
    assert index.follow_peers({"192.0.2.2", "192.0.2.1"}) == {touched}
    assert [each.peers for each in index.current()] == [("192.0.2.1", "192.0.2.2"), None]
    assert index.problems() == ()
    assert index.follow_peers({"192.0.2.1", "192.0.2.2"}) == frozenset()
    assert index.follow_peers(set()) == {touched}
    # To nobody, not to everybody.
    assert [each.peers for each in index.current()] == [(), None]


def test_peers_of_a_service_without_addresses_are_no_matter(
    make: Any, index: Announcements
) -> None:
    choosing = {f"{BGP}peers": "192.0.2.9"}
    for number, ips in enumerate((("None",), ())):
        index.update(f"default/{number}", make.service(ips=ips, annotations=choosing))
    assert index.problems() == ()
    assert index.follow_peers({"192.0.2.9"}) == frozenset()


def test_problems_go_with_their_service(make: Any, index: Announcements) -> None:
    bad = make.service(external_ips=("nonsense",))
    index.update("default/web", bad)
    assert [each.field for each in index.problems()] == ["spec.externalIPs[0]"]
    index.update("default/web", make.service())
    assert index.problems() == ()


# --- how many different terms there may be -------------------------------------------------------


def test_more_terms_than_there_may_be_silence_the_youngest(make: Any, index: Announcements) -> None:
    most = MOST_ENTRIES // 2

    def service(number: int, preference: str, created: str = "") -> Any:
        terms = {f"{BGP}local-preference": preference} if preference else None
        return make.service(
            created=created or f"20{number:02}",
            external_ips=(f"192.0.2.{number}",),
            annotations=terms,
        )

    for number in range(1, most + 3):
        index.update(f"default/{number}", service(number, str(number)))
    assert len(index.current()) == most
    silenced = [each.object for each in index.problems()]
    assert silenced == [f"Service default/{most + 1}", f"Service default/{most + 2}"]
    assert all("announced to nobody" in each.reason for each in index.problems())
    # Terms that another Service has, or none, cost nothing.
    same, ordinary = ip_network("192.0.2.98/32"), ip_network("192.0.2.99/32")
    assert index.update("default/98", service(98, "1")) == {same}
    assert index.update("default/99", service(99, "")) == {ordinary}
    # What one leaves, the next in age takes.
    freed = {ip_network("192.0.2.7/32"), ip_network(f"192.0.2.{most + 1}/32")}
    assert index.remove("default/7") == freed
    assert [each.object for each in index.problems()] == [f"Service default/{most + 2}"]
    index.update("default/7", service(7, "7"))
    assert [each.object for each in index.problems()] == silenced
    # Recreated, it is the youngest.
    index.update("default/7", service(7, "7", created="2099"))
    assert "Service default/7" in {each.object for each in index.problems()}
    index.update("default/7", service(7, "7"))
    assert [each.object for each in index.problems()] == silenced
    for number in range(1, most + 3):
        index.update(f"default/{number}", service(number, ""))
    assert index.problems() == ()
    assert len(index.current()) == most + 4


# --- programmed ----------------------------------------------------------------------------------


def test_nothing_is_announced_before_the_proxy_has_programmed_it(make: Any) -> None:
    index = Announcements("node1", PROXIED)
    vip, prefix = ip_address("10.96.0.10"), ip_network("10.96.0.10/32")
    assert index.update("default/web", make.service()) == frozenset()
    assert index.current() == ()
    assert index.change_programmed(added=[ip_address("10.96.0.11")]) == frozenset()
    assert index.change_programmed(added=[vip]) == {prefix}
    assert prefixes(index) == ["10.96.0.10/32"]
    assert index.change_programmed(added=[vip]) == frozenset()
    # Its place in the kernel is about to go: withdrawn first, though the Service still stands.
    assert index.change_programmed(removed=[vip]) == {prefix}
    assert index.current() == ()
    assert index.follow_programmed({vip}) == {prefix}
    assert index.follow_programmed({vip, ip_address("10.96.0.11")}) == frozenset()
    assert index.follow_programmed(set()) == {prefix}
    assert index.follow_programmed(None) == {prefix}
    assert index.change_programmed(removed=[vip]) == frozenset()
    assert prefixes(index) == ["10.96.0.10/32"]
    assert index.follow_programmed(set()) == {prefix}


def test_replaced_at_once_an_address_stays(make: Any) -> None:
    index = Announcements("node1", PROXIED)
    vip = ip_address("10.96.0.10")
    index.update("default/web", make.service())
    index.change_programmed(added=[vip])
    assert index.change_programmed(added=[vip], removed=[vip]) == frozenset()
    assert prefixes(index) == ["10.96.0.10/32"]


# --- addresses in no range -------------------------------------------------------------------


def test_addresses_in_no_range_are_known_as_long_as_a_service_has_them(
    make: Any, index: Announcements
) -> None:
    outside = ("198.51.100.1", "fd00:5::1", "198.51.100.9")
    # Announced or not: here by nobody.
    quiet = {"kube-router.io/service.advertise.externalip": "false"}
    index.update("a", make.service(external_ips=(*outside[:2], SHARED), annotations=quiet))
    assert len(index.outside_ranges()) == 2
    index.update("b", make.service(external_ips=outside[1:]))
    assert index.outside_ranges() == tuple(
        map(ip_address, ("198.51.100.1", "198.51.100.9", "fd00:5::1"))
    )
    index.remove("b")
    assert index.outside_ranges() == tuple(map(ip_address, ("198.51.100.1", "fd00:5::1")))
    index.update("a", make.service())
    assert index.outside_ranges() == ()


def test_a_change_costs_the_same_among_ten_thousand_services(make: Any) -> None:
    def calls(number: int) -> int:
        """Calls that a lost endpoint and the next one take, with that many Services besides."""
        services = {
            f"default/{n}": (make.service(ips=(str(ip_address("10.96.0.0") + n),)), ())
            for n in range(1, number + 1)
        }
        index = compile_announcements(services, "node1", PROXIED, programmed=None)
        service = make.service(internal_traffic_policy="Local", ips=("10.96.0.0",))
        index.update("default/x", service, [make.slice("10.244.1.2")])
        assert len(index.current()) == number + 1
        count = 0

        def note(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            index.update("default/x", service)
            index.update("default/x", service, [make.slice("10.244.1.3")])
            index.current()
        finally:
            sys.setprofile(None)
        return count

    assert calls(10_000) <= calls(100) + 20
