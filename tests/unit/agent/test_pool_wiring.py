"""Who reads the address pools waits until they are known, and hears when they change."""

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

import pytest

from kube_router_py.address_pool_config import PoolSettings
from kube_router_py.agent import Agent
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import (
    EndpointSlice,
    Lease,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.errors import KernelError
from kube_router_py.firewall import controller as firewall
from kube_router_py.firewall_part import FirewallPart
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.loop import Outcome
from kube_router_py.options import parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.problem import Problem
from kube_router_py.proxy import dirty_keys as proxy
from kube_router_py.proxy_part import ProxyPart
from kube_router_py.routing import controller as routing
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing_part import RoutingPart

CONFIG = "- {name: a, addresses: [198.51.100.0/24]}"
KINDS = (Service, EndpointSlice, Node, Pod, NetworkPolicy, Namespace)


class NoCredentials:
    addresses = ("http://192.0.2.1:6443",)

    def configurations(self) -> tuple[Any, ...]:
        return ()

    def reload(self) -> None: ...


def host() -> HostPorts:
    raise KernelError("no host here")


def routing_host(down: Callable[[], None]) -> RoutingPorts:
    raise KernelError("no host here")


def synced() -> Cache:
    cache = Cache(KINDS)
    for kind in KINDS:
        cache.replace(kind, [], "1")
    return cache


def make_proxy(book: PoolBook | None) -> Any:
    options, client = parse([], {}), SimpleNamespace(get=None, post=None)
    part = ProxyPart(
        *(options, synced(), client, "node1", "kube-system", host, None),  # type: ignore[arg-type]
        *(lambda turn: None, lambda loop, reason: None, lambda variant: None),
        book=book,
    )
    part.leases.replace(Lease, [], "1")
    return part


def make_firewall(book: PoolBook | None) -> Any:
    return FirewallPart(
        *(parse([], {}), synced(), "node1", host),
        *(lambda turn: None, lambda loop, reason: None, lambda variant: None),
        book=book,
    )


def make_routing(book: PoolBook | None) -> Any:
    options, client = parse([], {}), SimpleNamespace(get=None, post=None)
    return RoutingPart(
        *(options, synced(), client, "node1", "kube-system"),  # type: ignore[arg-type]
        *(routing_host, None),
        *(lambda turn: None, lambda loop, reason: None),
        book=book,
    )


class Turns:
    """What a loop runs in place of its controller: only that it is run matters here."""

    name = "anything"

    def __init__(self) -> None:
        self.number = 0

    def open(self) -> None: ...

    def close(self) -> None: ...

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        self.number += 1
        return Outcome()


PARTS = pytest.mark.parametrize("make", [make_proxy, make_firewall, make_routing])


@PARTS
@pytest.mark.parametrize("is_readable", [True, False])
def test_nothing_is_removed_for_want_of_pools(
    make: Callable[[PoolBook | None], Any], is_readable: bool
) -> None:
    book = PoolBook(PoolSettings())
    part = make(book)
    part.loop._controller = turns = Turns()
    try:
        assert not part.loop.turn_if_due()
        if is_readable:
            book.put_config(CONFIG)
        else:
            book.put_unreadable(Problem("ConfigMap", "", "may not be read"))
        assert part.loop.turn_if_due()
        assert turns.number == 1
    finally:
        part.stop()


@PARTS
def test_without_pools_there_is_nothing_to_wait_for(
    make: Callable[[PoolBook | None], Any],
) -> None:
    part = make(None)
    part.loop._controller = turns = Turns()
    try:
        assert part.loop.turn_if_due()
        assert turns.number == 1
    finally:
        part.stop()


def test_every_part_of_the_agent_hears_of_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--health-port=0", "--healthz-bind-address=", "--run-loadbalancer"]
    agent = Agent(
        parse([*flags, "--loadbalancer-ip-range=203.0.113.0/24"], {}),
        {"NODE_NAME": "node1"},
        host,
        client=Client(NoCredentials()),  # type: ignore[arg-type]
        routing_ports=routing_host,
    )
    marked: dict[str, set[Any]] = {}
    for loop in agent.loops:
        monkeypatch.setattr(loop, "mark", marked.setdefault(loop.name, set()).update)
    book = agent._parts.book
    assert book is not None
    book.put_config(CONFIG)
    assert proxy.POOLS in marked["service-proxy"]
    assert firewall.POOLS in marked["firewall"]
    assert routing.POOLS in marked["router"]
