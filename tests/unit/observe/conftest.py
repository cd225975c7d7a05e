"""An agent with all its parts, on fakes, that has seen a small cluster and made its turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from socket import AF_INET, inet_aton
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from msgspec import convert, structs

from kube_router_py import proxy_part
from kube_router_py.agent import Agent
from kube_router_py.cluster import objects
from kube_router_py.cluster.client import Client
from kube_router_py.kernel import rule_counters
from kube_router_py.kernel.connection_tables import IpvsConnections, ServerConnections
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeIpsets, FakeIptables, FakeLinks, FakeSysctls
from kube_router_py.kernel.fake_ipvs import FakeIpvs
from kube_router_py.kernel.fake_neighbors import FakeResponder, FakeSegment
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ipvs_decode import Traffic
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.kernel.ports_frr import BfdState, SessionState, Summary
from kube_router_py.loadbalancer.decisions import Occupancy
from kube_router_py.observe.bgp import BgpPage
from kube_router_py.observe.connections import ConnectionsPage
from kube_router_py.options import parse
from kube_router_py.proxy.model import VirtualServerKey
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.sysctls import sysctls
from kube_router_py.routing.controller import RoutingPorts

_CLUSTER = """
- kind: Node
  metadata: {name: node1}
  spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
- {kind: Namespace, metadata: {name: default}}
- kind: Pod
  metadata: {name: web, namespace: default, uid: u1, labels: {app: web}}
  spec: {nodeName: node1}
  status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}
- kind: Service
  metadata: {name: web, namespace: default}
  spec:
    type: ClusterIP
    clusterIP: 10.96.0.10
    clusterIPs: [10.96.0.10]
    ipFamilies: [IPv4]
    ports: [{protocol: TCP, port: 80, targetPort: 8080}]
- kind: Service
  metadata: {name: wrong, namespace: default}
  spec: {type: ClusterIP, clusterIP: no address, clusterIPs: [no address]}
- kind: EndpointSlice
  metadata:
    {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.1.2], conditions: {ready: true}}]
  ports: [{protocol: TCP, port: 8080}]
- kind: NetworkPolicy
  metadata: {name: closed, namespace: default}
  spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: []}
"""
_FLAGS = (
    *("--run-service-proxy=true", "--run-firewall=true", "--run-router=true"),
    *("--run-loadbalancer=true", "--loadbalancer-ip-range=198.51.100.0/24"),
    *("--health-port=0", "--healthz-bind-address=", "--metrics-addr=127.0.0.1"),
)
_PARAMETERS = [each.name for each in sysctls(ProxyOptions(ipv4=True, ipv6=True), ("eth0",), (6, 1))]
_WEB = VirtualServerKey(AF_INET, 6, inet_aton("10.96.0.10"), 80)
_SESSIONS = Summary(
    (SessionState("192.0.2.1", 4, 65000, "Established", 1.0, 1, 1, 1, 0),),
    (BfdState("192.0.2.1", "up", 1.0),),
    {4: 2},
    {"192.0.2.1": 3},
)


class _NoCredentials:
    addresses = ("http://192.0.2.1:6443",)

    def configurations(self) -> tuple[Any, ...]:
        return ()

    def reload(self) -> None: ...


class _CniFile:
    path = "/etc/cni/net.d/10-kuberouter.conflist"

    def read(self) -> str | None:
        return None

    def write(self, text: str) -> None: ...

    def comes_before(self) -> tuple[str, ...]:
        return ()


class _OneServer:
    def read_traffic(self) -> Mapping[VirtualServerKey, Traffic]:
        return {_WEB: Traffic(1, 2, 3, 4, 5)}

    def close(self) -> None: ...


def _host() -> HostPorts:
    return HostPorts(
        *(FakeIpvs(), FakeLinks(), FakeIpsets(), FakeIptables()),
        FakeSysctls(dict.fromkeys((*_PARAMETERS, "net/ipv4/ip_forward"), "0")),
    )


def _routing(down: Callable[[], None]) -> RoutingPorts:
    return RoutingPorts(_host(), fake_overlay(), FakeFrr(FakeDaemons(), down), _CniFile())


def _feed(agent: Agent) -> None:
    """As reflectors would."""
    found: dict[type, list[Any]] = {kind: [] for kind in agent.cache.kinds}
    for manifest in yaml.safe_load(_CLUSTER):
        kind = getattr(objects, manifest.pop("kind"))
        found[kind].append(convert(manifest, kind))
    for kind, items in found.items():
        agent.cache.replace(kind, items, "1")
    assert agent.proxy is not None
    agent.proxy.leases.replace(objects.Lease, [], "1")


def _stand_in(agent: Agent, patch: pytest.MonkeyPatch) -> None:
    """For what scrapes ask of the kernel, FRR and the API server."""

    def packets(variant: str, family: str, chains: Sequence[str]) -> Mapping[str, list[int]]:
        del variant, family
        return {name: [0] * 5 for name in chains}

    patch.setattr(rule_counters, "read_packets", packets)
    patch.setattr(proxy_part, "open_ipvs", _OneServer)
    assert agent.proxy is not None
    assert agent.routing is not None
    controller = agent.routing.controller
    connections = IpvsConnections(4096, {_WEB: ServerConnections(1, 2)})
    patch.setattr(
        agent.proxy,
        "_connections",
        ConnectionsPage(lambda key: ("default/web", key), lambda: connections),
    )
    patch.setattr(
        agent.routing, "_page", BgpPage(lambda: _SESSIONS, lambda: controller.neighborhood)
    )
    allocation = agent._parts.allocation
    assert allocation is not None
    # As if this agent led.
    report = structs.replace(
        allocation.controller.report, occupancy=(Occupancy("default", 4, 256, 1, 255),)
    )
    patch.setattr(allocation.controller, "report", report)


@pytest.fixture
def full_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> Iterator[SimpleNamespace]:
    """``agent``, and ``scrape``, which asks it for its metrics."""
    port = free_port()
    segment = FakeSegment()
    agent = Agent(
        parse([*_FLAGS, f"--metrics-port={port}", f"--frr-dir={tmp_path}"], {}),
        {"NODE_NAME": "node1"},
        _host,
        client=Client(_NoCredentials()),  # type: ignore[arg-type]
        routing_ports=_routing,
        open_responder=lambda claim, own: FakeResponder("node1", claim, {"eth0": segment}),
    )
    book = agent._parts.book
    assert book is not None
    book.put_config(None)
    _feed(agent)
    for loop in agent.loops:
        loop.turn_if_due()
    _stand_in(agent, monkeypatch)
    agent.client.observe("GET", "200", 0.01)
    agent.cache.failed(objects.Node, "refused", "HTTP 403")
    (server,) = agent.servers
    server.start()

    def scrape() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    yield SimpleNamespace(agent=agent, scrape=scrape)
    server.stop()
    for loop in agent.loops:
        loop.stop(0)
        loop._close()  # as its thread does
    agent._parts.stop()
