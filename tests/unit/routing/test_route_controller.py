"""The route controller on fakes: from the cache to tunnels, rules, sets, the CNI file and FRR."""

import json
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.errors import KernelError
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.object_key import Key
from kube_router_py.routing.controller import (
    DAEMONS,
    KINDS,
    LINKS,
    RouteController,
    RoutingPorts,
)
from kube_router_py.routing.egress import CHAIN, FORWARD, node_ips, pod_subnets
from kube_router_py.routing.model import GracefulRestart
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.served import Served


class FakeCniFile:
    def __init__(self) -> None:
        self.text: str | None = None
        self.others: tuple[str, ...] = ()
        self.error: KernelError | None = None
        self.writes = 0

    @property
    def path(self) -> str:
        return "/etc/cni/net.d/10-kuberouter.conflist"

    def read(self) -> str | None:
        if self.error:
            raise self.error
        return self.text

    def write(self, text: str) -> None:
        self.text = text
        self.writes += 1

    def comes_before(self) -> tuple[str, ...]:
        return self.others


class World:
    def __init__(self, *, has_firewall: bool = False, **flags: Any) -> None:
        self.cache = Cache((Node, Service, EndpointSlice))
        self.settings = RoutingSettings(
            **{
                "graceful_restart": GracefulRestart(),
                "advertise_cluster_ip": True,
                "peer_addresses": (ip_address("203.0.113.1"),),
                "peer_asns": (65000,),
                **flags,
            }
        )
        links = FakeLinkKernel()
        links.addresses.append(
            NodeAddress(socket.AF_INET, ip_address("192.168.1.1").packed, 24, "eth0")
        )
        self.links = fake.FakeLinks("route", links)
        self.host = ports.HostPorts(
            fake.FakeIpvs(),
            self.links,
            fake.FakeIpsets(),
            fake.FakeIptables(),
            fake.FakeSysctls({"net/ipv4/ip_forward": "0"}),
        )
        self.overlay = fake_overlay()
        self.daemons = FakeDaemons()
        self.frr = FakeFrr(self.daemons)
        self.cni = FakeCniFile()
        self.served = Served()
        self.now_s = 0.0
        self.controller = RouteController(
            self.cache,
            self.settings,
            "node1",
            lambda: RoutingPorts(self.host, self.overlay, self.frr, self.cni),
            lambda: PodNetwork(self.settings, "node1", has_firewall=has_firewall),
            PasswordSources(self.settings, "node1"),
            self.served if self.settings.has_proxy else None,
            clock=lambda: self.now_s,
        )
        self.marked: set[Any] = set()
        self.controller.subscribe(self.cache, self)  # type: ignore[arg-type]
        self.controller.open()

    def mark(self, keys: Any) -> None:
        self.marked.update(keys)

    def turn(self, *more: str, full: bool = False) -> Any:
        dirty, self.marked = frozenset((*self.marked, *more)), set()
        return self.controller.reconcile(dirty, full)

    def put(self, thing: Any) -> None:
        self.cache.put(type(thing), thing)

    def bgpd(self) -> str:
        return self.daemons.configs["bgpd"].text()

    def routes(self) -> dict[str, str]:
        found, _ = self.overlay.routes.read()
        return {str(each.destination): each.link for each in found if each.table == 254}

    def entries(self, spec: Any) -> set[str]:
        return {*(self.host.ipsets.read(spec.name) or ())}

    def writes(self) -> tuple[int, ...]:
        return (self.host.writes, self.overlay.writes, self.frr.writes, self.cni.writes)


NEAR = ("node2", ["192.168.1.2"], ["10.244.2.0/24"])
FAR = ("node3", ["192.168.7.3"], ["10.244.3.0/24"])


@pytest.fixture
def world(make: Any) -> World:
    world = World()
    for node in (("node1", ["192.168.1.1"], ["10.244.1.0/24"]), NEAR, FAR):
        world.put(make.node(*node))
    world.put(make.service(ips=["10.96.0.10"]))
    return world


def test_one_turn_makes_everything_and_the_next_writes_nothing(world: World) -> None:
    outcome = world.turn(full=True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    assert list(world.routes()) == ["10.244.3.0/24"]
    assert world.entries(pod_subnets("inet")) == {
        "10.244.1.0/24",
        "10.244.2.0/24",
        "10.244.3.0/24",
    }
    assert world.entries(node_ips("inet")) == {"192.168.1.1", "192.168.1.2", "192.168.7.3"}
    plugin = json.loads(world.cni.text or "")["plugins"][0]
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    assert plugin["mtu"] == 1500 - 20
    assert "neighbor 192.168.1.2 remote-as internal" in world.bgpd()
    assert "network 10.244.1.0/24" in world.bgpd()
    assert world.host.sysctls.read("net/ipv4/ip_forward") == "1"
    before = world.writes()
    assert world.turn(full=True).failed == frozenset()
    assert world.writes() == before


@pytest.mark.parametrize("has_firewall", [False, True])
def test_forwarding_is_accepted_where_no_firewall_of_ours_does(
    make: Any, has_firewall: bool
) -> None:
    world = World(has_firewall=has_firewall)
    world.put(make.node("node1", ["192.168.1.1"], ["10.244.1.0/24"]))
    assert world.turn(full=True).failed == frozenset()
    chains = world.host.iptables.counters("inet", "filter", (FORWARD,))
    assert bool(chains) is not has_firewall
    assert world.host.iptables.counters("inet", "nat", (CHAIN,))


def test_a_node_that_comes_and_goes_is_followed_by_all(world: World, make: Any) -> None:
    world.turn(full=True)
    world.put(make.node("node4", ["192.168.8.4"], ["10.244.4.0/24"]))
    assert world.marked == {Key("Node", "node4")}
    world.turn()
    assert "10.244.4.0/24" in world.entries(pod_subnets("inet"))
    assert "10.244.4.0/24" in world.routes()
    assert "neighbor 192.168.8.4 remote-as" in world.bgpd()
    world.cache.delete(Node, "node4")
    world.turn()
    assert "10.244.4.0/24" not in world.entries(pod_subnets("inet"))
    assert "10.244.4.0/24" not in world.routes()
    assert "192.168.8.4" not in world.bgpd()


def test_a_service_costs_the_pod_network_nothing(world: World, make: Any) -> None:
    world.turn(full=True)
    before = world.writes()
    world.served.change(added=(ip_address("10.96.0.10").packed,))
    world.put(make.service(ips=["10.96.0.10"], annotations={"x": "y"}))
    world.turn()
    after = world.writes()
    assert "network 10.96.0.10/32" in world.bgpd()
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])


def test_an_address_is_announced_while_the_proxy_serves_it(world: World) -> None:
    world.turn(full=True)
    assert "network 10.96.0.10/32" not in world.bgpd()
    packed = ip_address("10.96.0.10").packed
    world.served.change(added=(packed,))
    world.turn()
    assert "network 10.96.0.10/32" in world.bgpd()
    world.controller.open()  # after a crash: everything is asked for anew
    world.turn(full=True)
    assert "network 10.96.0.10/32" in world.bgpd()
    world.served.change(removed=(packed,))
    world.turn()
    assert "network 10.96.0.10/32" not in world.bgpd()


def test_slices_mark_their_service(world: World, make: Any) -> None:
    world.turn(full=True)
    world.put(make.slice("10.244.1.5"))
    assert world.marked == {Key("Service", "default/web")}


def test_this_node_gone_for_a_moment_takes_nothing_away(world: World) -> None:
    world.turn(full=True)
    before = world.writes()
    world.cache.delete(Node, "node1")
    assert world.turn().failed == frozenset()
    assert world.turn(full=True).failed == frozenset()
    assert world.writes() == before


def test_without_this_node_nothing_but_sets_is_written(make: Any) -> None:
    world = World()
    world.put(make.node(*NEAR))
    outcome = world.turn(full=True)
    assert outcome.failed == {DAEMONS}
    assert [each.object for each in outcome.problems] == ["Node node1"]
    assert (world.overlay.writes, world.cni.text, world.daemons.boots) == (0, None, [])


def test_what_fails_in_the_pod_network_does_not_stop_bgp(world: World) -> None:
    world.cni.error = KernelError("cannot read the file")
    outcome = world.turn(full=True)
    assert outcome.failed == {LINKS}
    assert [each.reason for each in outcome.problems] == ["cannot read the file"]
    assert "neighbor 192.168.1.2" in world.bgpd()
    assert world.routes()
    world.cni.error = None
    assert world.turn(LINKS, full=True).failed == frozenset()
    assert world.cni.text


def test_what_fails_in_frr_does_not_stop_the_pod_network(world: World) -> None:
    world.daemons.resting_s = 9.0
    outcome = world.turn(full=True)
    assert outcome.failed == {DAEMONS}
    assert outcome.wake_after_s == 9.0
    assert world.routes()
    assert world.cni.text


def test_one_object_that_cannot_be_compiled_stops_no_other(
    world: World, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.cache.slices_of

    def broken(key: str) -> Any:
        if key == "default/bad":
            raise ValueError("unforeseen")
        return real(key)

    monkeypatch.setattr(world.cache, "slices_of", broken)
    world.put(make.service("bad", ips=["10.96.0.66"]))
    world.served.change(added=(ip_address("10.96.0.10").packed,))
    outcome = world.turn(full=True)
    assert outcome.failed == {Key("Service", "default/bad")}
    assert "network 10.96.0.10/32" in world.bgpd()


def test_a_foreign_change_is_put_right_when_the_kernel_tells_of_it(world: World) -> None:
    world.turn(full=True)
    world.overlay.routes.apply((), ())
    assert world.routes() == {}
    world.turn()
    assert world.routes() == {}  # nothing told
    world.turn(LINKS)
    assert list(world.routes()) == ["10.244.3.0/24"]


def test_a_node_without_pod_cidr_waits_with_a_clear_message(make: Any) -> None:
    world = World()
    world.put(make.node("node1", ["192.168.1.1"], []))
    outcome = world.turn(full=True)
    assert any("no pod CIDR yet" in each.reason for each in outcome.problems)
    assert world.cni.text is None
    world.put(make.node("node1", ["192.168.1.1"], ["10.244.1.0/24"]))
    assert not any("no pod CIDR yet" in each.reason for each in world.turn().problems)
    assert world.cni.text


def test_another_configuration_that_comes_before_ours_is_told(world: World) -> None:
    world.cni.others = ("05-other.conf",)
    outcome = world.turn(full=True)
    assert outcome.failed == frozenset()
    assert "05-other.conf" in str(outcome.problems)


def test_kinds_are_what_events_come_from() -> None:
    assert set(KINDS) == {Service, EndpointSlice, Node}


def test_what_fails_is_tried_again_by_full_turns_not_by_every_service(
    world: World, make: Any
) -> None:
    world.cni.error = KernelError("the file system is read-only")
    assert LINKS in world.turn(full=True).failed
    world.cni.error = None
    before = world.cni.writes
    world.put(make.service("other", ips=["10.96.0.11"]))
    assert LINKS in world.turn().failed
    assert world.cni.writes == before
    assert world.turn(full=True).failed == frozenset()
    assert world.cni.writes > before
