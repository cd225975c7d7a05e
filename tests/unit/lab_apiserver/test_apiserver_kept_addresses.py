"""A pool shrinks: the agent that allocates leaves what Services keep, for agents that start."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.address_pool_config import CONFIG_MAP, pool_settings
from kube_router_py.address_pools import Announcing
from kube_router_py.allocation_part import AllocationPart
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import connect
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.loadbalancer.controller import KINDS
from kube_router_py.loadbalancer.election import LEASE, Timing
from kube_router_py.options import Options, parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.pool_source import ACCEPTED_ANNOTATION, KEPT_ANNOTATION, PoolSource

STOP_S = 60.0
WIDE = "- {name: a, addresses: [192.0.2.0-192.0.2.2], announce: {bgp: true}}\n"
NARROW = "- {name: a, addresses: [192.0.2.0], announce: {bgp: true}}\n"
AS_BEFORE = ("a", Announcing(bgp=True))
Until = Callable[[Callable[[], Any], str], Any]


class World:
    """A lab's API server, and agents that do nothing but allocate."""

    def __init__(self, cluster: Any, stack: ExitStack) -> None:
        self.cluster, self.stack = cluster, stack
        self.call("create", "configmaps", _config(WIDE), namespace="kube-system")

    def call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        return self.cluster.call(getattr(self.cluster.store, verb), *args, **kwargs)

    def edit(self, text: str) -> None:
        change = {"data": {"pools": text}}
        self.call("patch", "configmaps", CONFIG_MAP, change, namespace="kube-system")

    def follow(self, *flags: str) -> tuple[PoolBook, ExitStack]:
        """An agent's book of the pools, from its start on."""
        client = connect(self.options(), {})
        stack = self.stack.enter_context(ExitStack())
        stack.enter_context(closing(client))
        book = PoolBook(pool_settings(self.options(*flags), "kube-system"))
        source = PoolSource(book, client, "node1", event_spacing_s=0.0)
        stack.callback(source.stop, STOP_S)
        source.start()
        return book, stack

    def allocate(self, name: str, *flags: str) -> tuple[PoolBook, ExitStack]:
        """An agent that allocates, whenever it leads."""
        book, stack = self.follow(*flags)
        client, cache = connect(self.options(), {}), Cache(KINDS)
        stack.enter_context(closing(client))
        part = AllocationPart(
            *(self.options(), cache, client, f"node-{name}", "kube-system", name, book),
            *(lambda turn: None, lambda loop, reason: None),
            timing=Timing(retry_s=0.2),
        )
        stack.callback(part.stop)
        stack.callback(part.loop.stop, STOP_S)
        for kind in KINDS:
            reflector = Reflector(client, cache, kind)
            stack.callback(reflector.stop, STOP_S)
            reflector.start()
        part.start()
        part.loop.start()
        return book, stack

    def options(self, *flags: str) -> Options:
        return parse([f"--kubeconfig={self.cluster.kubeconfig}", *flags], {})

    def create(self, name: str) -> None:
        ports = [{"port": 80, "protocol": "TCP"}]
        service = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "LoadBalancer", "ports": ports},
        }
        self.call("create", "services", service)

    def addresses(self, name: str) -> list[str]:
        found = self.call("get", "services", name, "default")
        return [each["ip"] for each in found["status"]["loadBalancer"].get("ingress") or ()]

    def has(self, number: int) -> bool:
        """Whether so many Services have an address."""
        found = [each["metadata"]["name"] for each in self.call("list", "services", "default")]
        return sum(bool(self.addresses(name)) for name in found) == number

    def annotations(self) -> dict[str, str]:
        """Those of the Lease."""
        found = self.call("find", "leases", LEASE, "kube-system")
        return (found or {}).get("metadata", {}).get("annotations") or {}

    def left(self) -> tuple[str | None, str | None]:
        """What the Lease says: the pools that were accepted, the addresses that are kept."""
        said = self.annotations()
        kept = said.get(KEPT_ANNOTATION)
        if kept:
            (pool,) = json.loads(kept)
            assert (pool["name"], pool["announce"]) == ("a", {"bgp": True})
            kept = ",".join(pool["addresses"])
        return said.get(ACCEPTED_ANNOTATION), kept


def _config(text: str) -> dict[str, Any]:
    return {"metadata": {"name": CONFIG_MAP}, "data": {"pools": text}}


def retired(book: PoolBook) -> list[str]:
    return list(map(str, book.pools.retired_networks()))


@pytest.fixture
def world(cluster: Any) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(cluster, stack)


def test_what_services_keep_is_known_to_agents_that_start(world: World, until: Until) -> None:
    def starts_with() -> list[str]:
        book, stack = world.follow()
        until(lambda: book.is_known, "its pools")
        found = retired(book)
        stack.close()
        return found

    first, agent = world.allocate("first")
    for number, name in enumerate(("zero", "one", "two"), 1):
        world.create(name)
        until(partial(world.has, number), "an address")
    until(lambda: world.left() == (WIDE, ""), "what the first one leaves")
    assert starts_with() == []

    world.edit(NARROW)
    until(lambda: world.left() == (NARROW, "192.0.2.1-192.0.2.2"), "what is kept")
    assert [world.addresses(name) for name in ("zero", "one", "two")] == [
        ["192.0.2.0"],
        ["192.0.2.1"],
        ["192.0.2.2"],
    ]
    assert retired(first) == starts_with() == ["192.0.2.1/32", "192.0.2.2/32"]
    assert first.pools.announcing_of(ip_address("192.0.2.2").packed) == AS_BEFORE

    # Another one takes over, and knows as much.
    agent.close()
    second, agent = world.allocate("second")
    world.call("delete", "services", "one", "default")
    until(lambda: world.left() == (NARROW, "192.0.2.2"), "what is given up")
    assert starts_with() == ["192.0.2.2/32"]
    assert retired(second) == ["192.0.2.1/32", "192.0.2.2/32"]
    assert second.pools.announcing_of(ip_address("192.0.2.2").packed) == AS_BEFORE

    # A range that comes back while nobody looks.
    agent.close()
    world.edit(WIDE)
    book, _ = world.allocate("third")
    until(lambda: world.left() == (WIDE, ""), "nothing is kept")
    assert (retired(book), starts_with()) == ([], [])
    assert world.addresses("two") == ["192.0.2.2"]


def test_a_smaller_flag_takes_nothing_from_services(world: World, until: Until) -> None:
    def names_flag(said: str) -> bool:
        return said in (world.annotations().get(KEPT_ANNOTATION) or "")

    world.edit("")
    wide, narrow = (f"--loadbalancer-ip-range=192.0.2.0/{length}" for length in (30, 31))
    _, agent = world.allocate("first", wide)
    for number, name in enumerate(("zero", "one", "two"), 1):
        world.create(name)
        until(partial(world.has, number), "an address")
    until(partial(names_flag, '"192.0.2.0-192.0.2.3"'), "the flag")
    # Agents start with the other flag: whoever does not allocate, and then the one that does.
    book, _ = world.follow(narrow)
    until(lambda: book.is_known, "its pools")
    assert retired(book) == ["192.0.2.2/31"]
    agent.close()
    book, _ = world.allocate("second", narrow)
    until(partial(names_flag, '"192.0.2.0-192.0.2.1"'), "the other flag")
    assert world.addresses("two") == ["192.0.2.2"]
    assert retired(book) == ["192.0.2.2/31"]
    book, _ = world.follow(narrow)
    until(lambda: book.is_known, "its pools")
    assert retired(book) == ["192.0.2.2/32"]


def test_an_address_that_no_pool_ever_had_is_nothing_to_leave(world: World, until: Until) -> None:
    world.create("foreign")
    ingress = [{"ip": "203.0.113.66"}]
    status = {"status": {"loadBalancer": {"ingress": ingress}}}
    world.call("patch", "services", "foreign", status, namespace="default", subresource="status")
    world.allocate("first")
    world.create("own")
    until(lambda: world.addresses("own"), "an address")
    until(lambda: world.left() == (WIDE, ""), "what it leaves")
    assert world.addresses("foreign") == ["203.0.113.66"]
    world.edit("")
    until(lambda: world.left() == ("", "192.0.2.0"), "what is kept")
