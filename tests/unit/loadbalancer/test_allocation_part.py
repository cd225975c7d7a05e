"""The allocator as a part of the agent: what it tells of itself, and how it ends."""

from typing import Any

from msgspec import json

from kube_router_py.address_pool_config import PoolSettings
from kube_router_py.allocation_part import AllocationPart
from kube_router_py.cluster.cache import Cache
from kube_router_py.errors import ApiError
from kube_router_py.loadbalancer.allocation_values import Report
from kube_router_py.loadbalancer.controller import KINDS
from kube_router_py.loadbalancer.decisions import Occupancy
from kube_router_py.options import Options
from kube_router_py.part import Part
from kube_router_py.pool_book import PoolBook


class Silent:
    """A client without a server."""

    def list(self, *args: Any, **how: Any) -> bytes:
        raise ApiError("no API server answers")

    patch = post = list


def part(
    pod: str = "agent-x", book: PoolBook | None = None, cache: Cache | None = None
) -> AllocationPart:
    client: Any = Silent()
    book = book or PoolBook(PoolSettings())
    return AllocationPart(
        *(Options(), cache or Cache(KINDS), client, "node-a", "kube-system", pod, book),
        *(lambda turn: None, lambda loop, reason: None),
    )


def test_it_campaigns_by_the_name_of_its_pod_or_of_its_node_and_something_unique() -> None:
    assert part().election.identity == "agent-x"
    first, second = part("").election.identity, part("").election.identity
    assert first.startswith("node-a_")
    assert first != second


def test_how_full_the_pools_are_is_told_while_it_leads() -> None:
    made = part()
    protocol: Part = made
    assert set(protocol.kinds) == set(KINDS)
    assert made.page() == b""
    occupancy = (
        Occupancy("default", 4, 10, 3, 7),
        Occupancy('a"b\\c', 6, 1 << 64, 1, (1 << 64) - 1),
    )
    made.controller.report = Report(term=1, allocated=4, waiting=2, occupancy=occupancy)
    lines = made.page().decode().splitlines()
    assert 'kube_router_loadbalancer_pool_addresses{pool="default",family="ipv4"} 10' in lines
    assert 'kube_router_loadbalancer_pool_addresses_in_use{pool="default",family="ipv4"} 3' in lines
    assert (
        'kube_router_loadbalancer_pool_addresses{pool="a\\"b\\\\c",family="ipv6"} '
        "1.8446744073709552e+19"
    ) in lines
    assert sum(line.startswith("# TYPE") for line in lines) == 3
    assert made.numbers()["loadbalancer_services_waiting"] == 2
    assert made.numbers()["loadbalancer_leader"] == 0.0
    shown = json.decode(json.encode(made.status()))
    assert shown["pools"][0] == {
        "name": "default",
        "family": "IPv4",
        "addresses": 10,
        "in_use": 3,
        "free": 7,
    }
    assert shown["pools"][1]["addresses"] == 2.0**64


def test_without_pools_that_are_known_the_loop_does_not_begin() -> None:
    book, cache = PoolBook(PoolSettings()), Cache(KINDS)
    made = part(book=book, cache=cache)
    for kind in KINDS:
        cache.replace(kind, (), "1")
    assert not made.loop.turn_if_due()
    made.start()
    book.put_config(None)
    assert made.loop.turn_if_due()
    made.before_loops_stop()
    made.stop()
    assert made.writes() == {}
