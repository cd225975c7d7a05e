"""What is refused from everybody: default routes, Services' addresses, the Node's own list."""

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing.imports import (
    CUSTOM_ANNOTATION,
    MOST,
    compile_refused,
    refused_addresses,
)
from kube_router_py.routing.model import PrefixRange
from kube_router_py.routing.settings import RoutingSettings

FOUR = RoutingSettings()


def refused(settings: RoutingSettings = FOUR, **given: Any) -> list[str]:
    found, problems = compile_refused(settings, "node1", **given)
    assert problems == ()
    return [shown(each) for each in found]


def refused_one_by_one(*outside: Any) -> list[str]:
    found, problems = refused_addresses(tuple(outside), "node1")
    assert problems == ()
    return [shown(each) for each in found]


def shown(each: PrefixRange) -> str:
    return f"{each.network} {each.shortest}-{each.longest}"


def covers(ranges: tuple[PrefixRange, ...], text: str) -> bool:
    prefix = ip_network(text)
    return any(
        each.network.version == prefix.version
        and prefix.network_address in each.network
        and max(each.shortest, each.network.prefixlen) <= prefix.prefixlen <= each.longest
        for each in ranges
    )


def test_default_routes_of_the_enabled_families() -> None:
    assert refused() == ["0.0.0.0/0 0-0"]
    assert refused(RoutingSettings(ipv6=True)) == ["0.0.0.0/0 0-0", "::/0 0-0"]
    assert refused(RoutingSettings(ipv4=False, ipv6=True)) == ["::/0 0-0"]


def test_everything_in_the_ranges_of_services() -> None:
    settings = RoutingSettings(
        ipv6=True,
        cluster_ranges=(ip_network("10.96.0.0/12"), ip_network("fd00:96::/112")),
        external_ranges=(ip_network("192.0.2.0/24"),),
        load_balancer_ranges=(ip_network("203.0.113.0/24"), ip_network("192.0.2.0/24")),
    )
    assert refused(settings, pods=[ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")]) == [
        "0.0.0.0/0 0-0",
        "10.96.0.0/12 12-32",
        "192.0.2.0/24 24-32",
        "203.0.113.0/24 24-32",
        "::/0 0-0",
        "fd00:96::/112 112-128",
    ]


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.244.1.0/24", "10.244.1.128/25", "0.0.0.0/0"])
def test_a_range_with_pods_in_it_leaves_the_routes_between_nodes(text: str) -> None:
    settings = RoutingSettings(external_ranges=(ip_network(text),))
    pods = [ip_network("10.244.1.0/24"), ip_network("10.244.2.0/24")]
    found, _ = compile_refused(settings, "node1", pods=pods)
    assert not any(covers(found, str(each)) for each in pods)
    assert covers(found, "10.244.1.200/32")


def test_a_range_of_everything_refuses_no_route_without_pods_either() -> None:
    settings = RoutingSettings(external_ranges=(ip_network("0.0.0.0/0"),))
    found, _ = compile_refused(settings, "node1")
    assert not covers(found, "198.51.100.0/24")
    assert covers(found, "198.51.100.1/32")
    assert covers(found, "0.0.0.0/0")


def test_own_aggregates_are_not_learned_back() -> None:
    settings = RoutingSettings(
        advertise_aggregate=(ip_network("192.0.2.0/24"), ip_network("fd00:5::/64"))
    )
    assert refused(settings) == ["0.0.0.0/0 0-0", "192.0.2.0/24 24-24"]


# --- addresses in no range -------------------------------------------------------------------


def test_addresses_in_no_range_are_refused_one_by_one() -> None:
    outside = [ip_address("198.51.100.1"), ip_address("198.51.100.2"), ip_address("fd00:5::1")]
    assert refused_one_by_one(*outside) == [
        "198.51.100.1/32 32-32",
        "198.51.100.2/32 32-32",
        "fd00:5::1/128 128-128",
    ]


def test_many_neighbors_become_few_entries_that_refuse_no_other_route() -> None:
    first = int(ip_address("198.51.96.0"))
    outside = [IPv4Address(first + n) for n in range(1024 + 1)]
    assert refused_one_by_one(*outside) == [
        "198.51.96.0/22 32-32",
        "198.51.100.0/32 32-32",
    ]


def test_more_than_fit_are_told_and_most_are_refused() -> None:
    first = int(ip_address("198.18.0.0"))
    scattered = [IPv4Address(first + 2 * n) for n in range(MOST)]
    together = [IPv4Address(first + 65536 + n) for n in range(1024)]
    found, problems = refused_addresses((*scattered, *together), "node1")
    assert len(found) == MOST
    assert covers(found, f"{together[5]}/32")
    (problem,) = problems
    assert problem.object == "Node node1"
    assert problem.reason.startswith(f"{MOST + 1024} Service addresses lie in no range")


@given(st.sets(st.integers(0, 2**10), max_size=700))
def test_of_those_that_fit_each_is_refused_and_no_other(numbers: set[int]) -> None:
    first = int(ip_address("198.18.0.0"))
    outside = tuple(IPv4Address(first + n) for n in sorted(numbers))
    found, problems = refused_addresses(outside, "node1")
    assert len(found) <= MOST
    assert all((each.shortest, each.longest) == (32, 32) for each in found)
    held = {address for each in found for address in each.network}
    assert held <= set(outside)
    assert problems or held == set(outside)


# --- the annotation ------------------------------------------------------------------------------


def test_the_nodes_own_list_is_refused_with_all_inside() -> None:
    text = "10.1.0.0/16, 10.2.3.4/24 ,fd00:7::/48"
    assert refused(RoutingSettings(ipv6=True), custom=text) == [
        "0.0.0.0/0 0-0",
        "10.1.0.0/16 16-32",
        "10.2.3.0/24 24-32",
        "::/0 0-0",
        "fd00:7::/48 48-128",
    ]
    assert refused(custom=text)[-1] == "10.2.3.0/24 24-32"
    assert refused(custom="") == refused(custom="  ") == refused()


def test_neighbors_in_it_become_one_entry_that_spares_their_common_prefix() -> None:
    assert refused(custom="10.1.0.0/17,10.1.128.0/17")[1:] == ["10.1.0.0/16 17-32"]


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "10.1.0.0",
        "10.1.0.0/33",
        "10.1.0.0/255.0.0.0",
        "",
        "10.1.0.0/8\nx",
        "fe80::%x/9",
    ],
)
def test_what_is_no_cidr_is_told_and_the_others_count(bad: str) -> None:
    found, problems = compile_refused(FOUR, "node1", custom=f"10.2.0.0/16,{bad},10.3.0.0/24")
    assert [shown(each) for each in found[1:]] == ["10.2.0.0/16 16-32", "10.3.0.0/24 24-32"]
    (problem,) = problems
    assert problem.field == f"metadata.annotations[{CUSTOM_ANNOTATION}]"
    assert problem.reason.isprintable()


def test_a_list_as_long_as_an_annotation_may_be_stays_short() -> None:
    text = ",".join(f"10.{a}.{b}.0/24" for a in range(0, 200, 2) for b in range(0, 200, 2))
    found, problems = compile_refused(FOUR, "node1", custom=text + ",172.16.0.0/12")
    assert len(found) == MOST + 1
    assert covers(found, "172.16.1.0/24")
    assert [f"more than {MOST} CIDRs" in each.reason for each in problems] == [True]
    _, problems = compile_refused(FOUR, "node1", custom="," * 100_000)
    assert len(problems) == 1


@given(st.text(max_size=60), st.booleans())
def test_whatever_is_written_the_ranges_make_sense(text: str, ipv6: bool) -> None:
    found, problems = compile_refused(RoutingSettings(ipv6=ipv6), "node1", custom=text)
    for each in found:
        assert each.network.prefixlen <= each.shortest <= each.longest
        assert each.longest <= each.network.max_prefixlen
        assert each.network.version == 4 or ipv6
    assert all(str(each).isprintable() for each in problems)
