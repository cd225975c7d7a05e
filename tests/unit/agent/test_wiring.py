"""Who in the agent tells whom: events of the cluster, of other nodes and of the kernel."""

from collections.abc import Hashable
from typing import Any

import pytest

from kube_router_py import proxy_part
from kube_router_py.agent import Agent
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.objects import EndpointSlice, Lease, ObjectMeta, Service, ServiceSpec
from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.options import parse
from kube_router_py.proxy.compile import compile_service
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.dirty_keys import OWN_NODE
from kube_router_py.proxy.dsr import DSR_ANNOTATION
from kube_router_py.proxy.dsr_host import OTHER_NODES, Dsr
from kube_router_py.proxy.settings import ProxyOptions, ThisNode


class NoCredentials:
    addresses = ("http://192.0.2.1:6443",)

    def configurations(self) -> tuple[Any, ...]:
        return ()

    def reload(self) -> None: ...


def no_host() -> HostPorts:
    raise KernelError("no host here")


@pytest.fixture
def agent() -> Agent:
    """One that is not started."""
    options = parse(["--health-port=0", "--healthz-bind-address="], {})
    return Agent(options, {"NODE_NAME": "node1"}, no_host, client=Client(NoCredentials()))  # type: ignore[arg-type]


@pytest.fixture
def marked(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> set[Hashable]:
    """The keys that the proxy's loop is told are dirty."""
    found: set[Hashable] = set()
    monkeypatch.setattr(agent.loops[0], "mark", found.update)
    return found


def test_events_of_the_cluster_are_for_the_proxy(agent: Agent, marked: set[Hashable]) -> None:
    agent.cache.put(Service, Service(ObjectMeta("web", "default")))
    assert marked == {"default/web"}


def test_word_of_other_nodes_is_for_the_proxy(agent: Agent, marked: set[Hashable]) -> None:
    assert agent.proxy is not None
    agent.proxy.leases.put(Lease, Lease(ObjectMeta("kube-router-py-node2", "kube-system")))
    assert marked == {OTHER_NODES}


def test_a_change_of_addresses_is_for_the_proxy(
    agent: Agent, marked: set[Hashable], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Monitor:
        def __init__(self, changed: Any, ignored: Any) -> None:
            assert ignored == ("kube-dummy-if",)
            self.start = changed

    monkeypatch.setattr(proxy_part, "AddressMonitor", Monitor)
    assert agent.proxy is not None
    agent.proxy.watch_addresses()
    assert marked == {OWN_NODE}


def test_word_of_other_nodes_concerns_services_of_direct_return() -> None:
    cache, dsr, node = Cache((Service, EndpointSlice)), Dsr("node1"), ThisNode("node1")
    for name, annotations in (("direct", {DSR_ANNOTATION: "tunnel"}), ("other", None)):
        spec = ServiceSpec("ClusterIP", "10.96.0.1", external_ips=("203.0.113.1",))
        service = Service(ObjectMeta(name, "default", annotations=annotations), spec)
        compiled = compile_service(service, (), node, ProxyOptions(strict_external_ips=False))
        dsr.adapt(service, cache, compiled, node, Desired())
    assert dsr.begin(frozenset({OTHER_NODES, "default/a"}), full=False) == {
        "default/a",
        "default/direct",
    }
