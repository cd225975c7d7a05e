"""The route controller in the agent: what it waits for, and what it does before the end."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kube_router_py import routing_part
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.options import parse
from kube_router_py.routing.controller import RoutingPorts
from kube_router_py.routing_part import RoutingPart
from kube_router_py.served import Served

VIP = "10.96.0.10"
PEERS = "- remoteip: 203.0.113.1\n  remoteasn: 65000\n"
DEADLINE_S = 60.0


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def node(peers: str = PEERS, provider_id: str = "") -> Node:
    found: Node = msgspec.convert(
        {
            "metadata": {"name": "node1", "annotations": {"kube-router.io/peers": peers}},
            "spec": {"podCIDRs": ["10.244.1.0/24"], "providerID": provider_id},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]},
        },
        Node,
    )
    return found


def service() -> Service:
    found: Service = msgspec.convert(
        {
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIPs": [VIP], "ports": [{"port": 80}]},
        },
        Service,
    )
    return found


class World:
    def __init__(self, *flags: str, served: Served | None = None, **about: Any) -> None:
        self.cache = Cache((Node, Service, EndpointSlice))
        self.daemons = FakeDaemons()
        self.asked: list[str] = []
        options = parse(
            ["--enable-cni=false", "--advertise-cluster-ip", "--enable-overlay=false", *flags], {}
        )
        client = SimpleNamespace(get=self._get, post=lambda path, body: b"{}")
        self.part = RoutingPart(
            *(options, self.cache, client, "node1", "kube-system", self._open),  # type: ignore[arg-type]
            *(served, lambda turn: None, lambda loop, reason: None),
        )
        for kind, found in ((Service, [service()]), (EndpointSlice, []), (Node, [node(**about)])):
            self.cache.replace(kind, found, "1")

    def _get(self, path: str) -> bytes:
        self.asked.append(path)
        data = {"password": base64.b64encode(b"hush").decode()}
        return json.dumps({"kind": "Secret", "data": data}).encode()

    def _open(self, down: Callable[[], None]) -> RoutingPorts:
        links = FakeLinkKernel()
        links.addresses.append(
            NodeAddress(socket.AF_INET, ip_address("192.168.1.1").packed, 24, "eth0")
        )
        host = ports.HostPorts(
            fake.FakeIpvs(),
            fake.FakeLinks("route", links),
            fake.FakeIpsets(),
            fake.FakeIptables(),
            fake.FakeSysctls({"net/ipv4/ip_forward": "0"}),
        )
        cni: Any = None  # not touched: --enable-cni=false
        return RoutingPorts(host, fake_overlay(), FakeFrr(self.daemons, down), cni)

    def bgpd(self) -> str:
        return self.daemons.configs["bgpd"].text() if "bgpd" in self.daemons.configs else ""


def test_a_service_is_announced_once_the_proxy_serves_it() -> None:
    served = Served()
    world = World(served=served)
    assert not world.part.loop.turn_if_due()  # FRR may still announce what was served before
    served.change()
    assert world.part.loop.turn_if_due()
    assert "network 10.244.1.0/24" in world.bgpd()
    assert VIP not in world.bgpd()
    served.change(added=(ip_address(VIP).packed,))
    until(world.part.loop.turn_if_due, "a turn")
    assert f"network {VIP}/32" in world.bgpd()


def test_a_proxy_that_never_serves_does_not_keep_pods_from_being_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(routing_part, "time", SimpleNamespace(monotonic=lambda: now[0]))
    world = World(served=Served())
    assert not world.part.loop.turn_if_due()
    now[0] = routing_part._PROXY_S
    until(world.part.loop.turn_if_due, "the first turn")
    assert "network 10.244.1.0/24" in world.bgpd()


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_a_stop_withdraws_services_only_where_that_is_wanted(is_withdrawn: bool) -> None:
    served = Served()
    served.change(added=(ip_address(VIP).packed,))
    flags = ("--withdraw-on-exit", "--drain-delay=10ms") if is_withdrawn else ()
    world = World(*flags, served=served)
    world.part.loop.start()
    until(lambda: f"network {VIP}/32" in world.bgpd(), "the Service is announced")
    world.part.before_loops_stop()
    assert (VIP in world.bgpd()) is not is_withdrawn
    assert world.part.loop.stop(DEADLINE_S)
    assert (VIP in world.bgpd()) is not is_withdrawn
    # Pods, and the sessions, stay.
    assert "network 10.244.1.0/24" in world.bgpd()
    assert "neighbor 203.0.113.1 remote-as 65000" in world.bgpd()


def test_a_stop_does_not_wait_for_a_loop_that_was_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World("--withdraw-on-exit", "--drain-delay=1h")
    world.part.loop._die("given up")
    started = time.monotonic()
    world.part.before_loops_stop()
    assert time.monotonic() - started < DEADLINE_S
    assert "are not withdrawn" in caplog.text


def test_a_proxy_is_not_kept_waiting_by_a_loop_that_has_ended() -> None:
    served = Served(withdrawal_s=DEADLINE_S * 10)
    served.change(added=(ip_address(VIP).packed,))
    world = World(served=served)
    world.part.loop.start()
    until(lambda: f"network {VIP}/32" in world.bgpd(), "the Service is announced")
    served.withdraw((ip_address(VIP).packed,))
    assert VIP not in world.bgpd()
    served.change(added=(ip_address(VIP).packed,))
    assert world.part.loop.stop(DEADLINE_S)
    proxy = threading.Thread(target=served.withdraw, args=((ip_address(VIP).packed,),))
    proxy.start()
    proxy.join(DEADLINE_S)
    assert not proxy.is_alive()


def test_a_password_comes_from_a_secret_of_the_own_namespace() -> None:
    peers = PEERS + "  passwordsecretref: {name: bgp, key: password}\n"
    world = World(peers=peers)
    assert world.part.loop.turn_if_due()
    assert set(world.asked) == {"/api/v1/namespaces/kube-system/secrets/bgp"}
    assert "neighbor 203.0.113.1 password hush" in world.bgpd()


@pytest.mark.parametrize("is_wanted", [True, False])
def test_an_instance_of_aws_has_its_check_switched_off(
    monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(routing_part, "Once", lambda: SimpleNamespace(follow=seen.append))
    provider = "aws:///eu-central-1a/i-0abc"
    World(f"--disable-source-dest-check={str(is_wanted).lower()}", provider_id=provider)
    assert seen == [provider] * is_wanted
