"""Which addresses are told to be served: those whose virtual servers stand in the kernel."""

from collections.abc import Hashable, Iterable
from ipaddress import ip_address
from typing import Any

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.serving import Serving
from kube_router_py.proxy.settings import ProxyOptions


class Rig:
    def __init__(self, make: Any) -> None:
        self.make, self.host = make, make.Host()
        self.cache = Cache((Service, EndpointSlice, Node))
        self.cache.put(Node, make.node())
        self.dirty: set[Hashable] = set()
        self.told: list[tuple[set[str], set[str]]] = []
        self.proxy = ServiceProxy(
            self.cache,
            ProxyOptions(strict_external_ips=False),
            "node1",
            self.host.open,
            followers=(
                Serving(
                    lambda: self.proxy.standing, lambda key: self.proxy.served_by(key), self.tell
                ),
            ),
        )
        self.proxy.open()
        self.proxy.subscribe(self.cache, self)

    def mark(self, keys: Iterable[Hashable]) -> None:
        self.dirty.update(keys)

    def tell(self, added: Iterable[bytes], removed: Iterable[bytes]) -> None:
        self.told.append(
            ({str(ip_address(a)) for a in added}, {str(ip_address(r)) for r in removed})
        )

    def turn(self, *, full: bool = False) -> list[tuple[set[str], set[str]]]:
        dirty, self.dirty = frozenset(self.dirty), set()
        self.proxy.reconcile(dirty, full)
        told, self.told = self.told, []
        return told


def test_an_address_comes_with_its_first_virtual_server_and_goes_with_its_last(make: Any) -> None:
    rig = Rig(make)
    rig.turn(full=True)
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], external_ips=("203.0.113.9",)))
    rig.cache.put(Service, make.service("other", ["10.96.0.11"], 81, external_ips=("203.0.113.9",)))
    ((added, removed),) = rig.turn()
    assert (added, removed) == ({"10.96.0.10", "10.96.0.11", "203.0.113.9"}, set())
    assert rig.turn(full=True) == []
    rig.cache.delete(Service, "default/web")
    assert rig.turn() == [(set(), {"10.96.0.10"})]
    rig.cache.delete(Service, "default/other")
    assert rig.turn() == [(set(), {"10.96.0.11", "203.0.113.9"})]
