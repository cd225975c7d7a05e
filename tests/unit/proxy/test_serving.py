"""Which addresses are told to be served: those whose virtual servers stand in the kernel."""

import errno
import socket
from collections.abc import Hashable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.fake import FakeLinks
from kube_router_py.kernel.ports import NodeAddress, VipFailure
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import OWN_NODE
from kube_router_py.proxy.model import Vip
from kube_router_py.proxy.serving import Serving
from kube_router_py.proxy.settings import ProxyOptions


def texts(addresses: Iterable[bytes]) -> set[str]:
    return {str(ip_address(each)) for each in addresses}


class Rig:
    def __init__(self, make: Any) -> None:
        self.make, self.host = make, make.Host()
        self.cache = Cache((Service, EndpointSlice, Node))
        self.cache.put(Node, make.node())
        self.dirty: set[Hashable] = set()
        self.told: list[tuple[str, set[str], set[str]]] = []
        serving = Serving(lambda: self.proxy, self)
        self.proxy = ServiceProxy(
            self.cache,
            ProxyOptions(strict_external_ips=False),
            "node1",
            self.host.open,
            followers=(serving,),
            before=serving.before,
        )
        self.proxy.open()
        self.proxy.subscribe(self.cache, self)

    def mark(self, keys: Iterable[Hashable]) -> None:
        self.dirty.update(keys)

    def change(self, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> None:
        self.told.append(("change", texts(added), texts(removed)))

    def withdraw(self, addresses: Iterable[bytes]) -> None:
        standing = {str(ip_address(vip.address)) for vip in self.host.links.vips}
        self.told.append(("withdraw", texts(addresses), standing & texts(addresses)))

    def turn(self, *, full: bool = False) -> list[tuple[str, set[str], set[str]]]:
        dirty, self.dirty = frozenset(self.dirty), set()
        self.proxy.reconcile(dirty, full)
        told, self.told = self.told, []
        return told


@pytest.fixture
def rig(make: Any) -> Rig:
    found = Rig(make)
    assert found.turn(full=True) == [("change", set(), set())]
    return found


def test_an_address_comes_with_its_first_virtual_server_and_goes_with_its_last(
    make: Any, rig: Rig
) -> None:
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], external_ips=("203.0.113.9",)))
    rig.cache.put(Service, make.service("other", ["10.96.0.11"], 81, external_ips=("203.0.113.9",)))
    ((_, added, removed),) = rig.turn()
    assert (added, removed) == ({"10.96.0.10", "10.96.0.11", "203.0.113.9"}, set())
    assert rig.turn(full=True) == [("change", set(), set())]
    rig.cache.delete(Service, "default/web")
    # While it still stands.
    assert rig.turn() == [("withdraw", {"10.96.0.10"}, {"10.96.0.10"})]
    rig.cache.delete(Service, "default/other")
    gone = {"10.96.0.11", "203.0.113.9"}
    assert rig.turn() == [("withdraw", gone, gone)]
    assert rig.turn(full=True) == [("change", set(), set())]


def test_an_address_that_the_kernel_refuses_is_not_served(
    make: Any, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply_but_one(self: FakeLinks, put: Mapping[Vip, bytes], remove: Iterable[Vip]) -> Any:
        taken = {vip: source for vip, source in put.items() if vip != refused}
        failures = [VipFailure(vip, errno.EINVAL, "refused") for vip in put if vip == refused]
        return [*failures, *apply_vips(self, taken, remove)]

    apply_vips = FakeLinks.apply_vips
    refused = Vip(socket.AF_INET, ip_address("10.96.0.10").packed)
    monkeypatch.setattr(FakeLinks, "apply_vips", apply_but_one)
    rig.cache.put(Service, make.service("web", ["10.96.0.10", "10.96.0.11"]))
    assert rig.turn() == [("change", {"10.96.0.11"}, set())]
    monkeypatch.undo()
    assert rig.turn(full=True) == [("change", {"10.96.0.10"}, set())]


def test_an_address_of_the_node_is_served_without_being_put(make: Any, rig: Rig) -> None:
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], external_ips=("192.168.1.1",)))
    assert rig.turn() == [("change", {"10.96.0.10", "192.168.1.1"}, set())]


def test_an_address_that_comes_back_is_told_again(make: Any, rig: Rig) -> None:
    vip = ip_address("10.96.0.10").packed
    rig.cache.put(Service, make.service("web", ["10.96.0.10"]))
    rig.turn()
    service = rig.cache.get(Service, "default/web")
    rig.cache.delete(Service, "default/web")
    assert rig.turn() == [("withdraw", {"10.96.0.10"}, {"10.96.0.10"})]
    assert service is not None
    rig.cache.put(Service, service)
    assert rig.turn() == [("change", {"10.96.0.10"}, set())]
    assert vip in {each.address for each in rig.host.links.vips}


def test_an_address_that_the_node_takes_for_its_own_stays_served(make: Any, rig: Rig) -> None:
    vip = ip_address("203.0.113.9").packed
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], external_ips=("203.0.113.9",)))
    rig.turn()
    # As keepalived does where it puts an external IP on the node that is its master.
    rig.host.links.addresses.append(NodeAddress(socket.AF_INET, vip, 32, "eth0"))
    rig.mark((OWN_NODE,))
    told = rig.turn()
    assert vip not in {each.address for each in rig.host.links.vips}
    assert [each for each in told if each[0] == "withdraw"] == []
    assert rig.turn(full=True) == [("change", set(), set())]


def test_a_service_that_changes_its_only_port_stays_served(make: Any, rig: Rig) -> None:
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], 80))
    rig.turn()
    rig.cache.put(Service, make.service("web", ["10.96.0.10"], 81))
    assert rig.turn() == []
    assert rig.turn(full=True) == [("change", set(), set())]


def test_a_listener_that_fails_does_not_stop_the_proxy(
    make: Any, rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(addresses: Iterable[bytes]) -> None:
        raise RuntimeError("nobody there")

    rig.cache.put(Service, make.service("web", ["10.96.0.10"]))
    rig.turn()
    monkeypatch.setattr(rig, "withdraw", fail)
    rig.cache.delete(Service, "default/web")
    rig.turn()
    assert rig.host.links.vips == {}
    assert "was not told" in caplog.text
