"""What a change costs the pod network: how often the kernel is asked for what, on fakes."""

import socket
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.cluster.node import node_view
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.routing.overlay import tunnel_names
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.settings import RoutingSettings


class NoCniFile:
    path = "/etc/cni/net.d/10-kuberouter.conflist"

    def read(self) -> str | None:
        return None

    def write(self, text: str) -> None: ...

    def comes_before(self) -> tuple[str, ...]:
        return ("00-other.conf",)


class World:
    """A node in 192.168.1.0/24; ``asked`` counts what is asked of the kernel."""

    def __init__(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._make = make
        self.asked: Counter[str] = Counter()
        links = FakeLinkKernel()
        links.addresses.append(
            NodeAddress(socket.AF_INET, ip_address("192.168.1.1").packed, 24, "eth0")
        )
        self.host = ports.HostPorts(
            fake.FakeIpvs(),
            fake.FakeLinks("route", links),
            fake.FakeIpsets(),
            fake.FakeIptables(),
            fake.FakeSysctls({"net/ipv4/ip_forward": "0"}),
        )
        self.overlay = fake_overlay()
        self.watched: list[Any] = []
        for name, thing, method in (
            ("addresses", self.host.links, "node_addresses"),
            ("rules", self.host.iptables, "ensure"),
            ("tunnels", self.overlay.links, "put"),
            ("routes", self.overlay.routes, "apply"),
        ):
            self._count(name, thing, method, monkeypatch)
        settings = RoutingSettings()
        self.network = PodNetwork(
            settings,
            "node1",
            has_firewall=True,
            on_overlay=lambda overlay, links: self.watched.append(overlay),
        )
        self.follow("node1", "192.168.1.1", "10.244.1.0/24")
        self.follow("node2", "192.168.7.2", "10.244.2.0/24")
        self.settle(full=True)
        self.asked.clear()
        self.watched.clear()

    def _count(self, name: str, thing: Any, method: str, patch: pytest.MonkeyPatch) -> None:
        call = getattr(thing, method)

        def counted(*arguments: Any) -> Any:
            self.asked[name] += 1
            return call(*arguments)

        patch.setattr(thing, method, counted)

    def follow(self, name: str, address: str, cidr: str) -> None:
        view, _ = node_view(self._make.node(name, [address], [cidr]))
        self.network.follow_node(name, view)

    def settle(self, *, full: bool = False, moved: bool = False) -> None:
        self.network.settle(self.host, self.overlay, NoCniFile(), full=full, moved=moved)

    def routes(self) -> set[str]:
        found, _ = self.overlay.routes.read()
        return {str(each.destination) for each in found if each.table == 254}


@pytest.fixture
def world(make: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(make, monkeypatch)


def test_a_node_without_a_tunnel_costs_its_entries_in_sets(world: World) -> None:
    told = world.network.problems
    writes = world.host.ipsets.writes
    world.follow("node3", "192.168.1.3", "10.244.3.0/24")
    world.settle()
    assert world.asked == Counter()
    assert world.host.ipsets.writes > writes
    # What was wrong with this node before still is: another file comes before ours.
    assert world.network.problems == told != ()


def test_a_node_with_a_tunnel_costs_a_look_at_tunnels(world: World) -> None:
    world.follow("node3", "192.168.9.3", "10.244.3.0/24")
    world.settle()
    assert world.asked == {"tunnels": 1, "routes": 1}
    assert world.routes() == {"10.244.2.0/24", "10.244.3.0/24"}
    assert len(world.watched) == 1
    world.network.follow_node("node2", None)
    world.settle()
    assert world.routes() == {"10.244.3.0/24"}


@pytest.mark.parametrize("told", ["full", "moved"])
def test_what_the_kernel_tells_of_is_looked_at_even_if_nothing_changed(
    world: World, told: str
) -> None:
    world.overlay.routes.apply((), ())
    world.asked.clear()
    world.settle(**{told: True})
    assert world.routes() == {"10.244.2.0/24"}
    assert world.asked == {"addresses": 1, "rules": 2, "tunnels": 1, "routes": 1}


def test_this_node_itself_is_looked_at_as_a_whole(world: World) -> None:
    world.follow("node1", "192.168.1.1", "10.244.9.0/24")
    world.settle()
    assert world.asked == {"addresses": 1, "rules": 2, "tunnels": 1, "routes": 1}


def test_what_failed_is_tried_again_and_told_no_more(world: World) -> None:
    before = world.network.problems
    links: Any = world.overlay.links
    links.refuse.update(tunnel_names((ip_address("192.168.9.3"),)).values())
    world.follow("node3", "192.168.9.3", "10.244.3.0/24")
    world.settle()
    assert not world.network.is_settled
    links.refuse.clear()
    world.settle(full=True)
    assert world.network.is_settled
    assert world.routes() == {"10.244.2.0/24", "10.244.3.0/24"}
    assert world.network.problems == before
