"""--withdraw-on-exit with real FRR, whose daemons end with the agent, as in a container."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from kube_router_py.adapters import routing_opener
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.options import parse
from kube_router_py.routing_part import RoutingPart

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

VIP = "10.96.0.10"
# The password is that of frr_lab's router.
PEERS = "- {remoteip: 10.99.0.9, remoteasn: 65000, password: azhzIW1kNSMx}"
OBJECTS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (
        Node,
        {
            "metadata": {"name": "node1", "annotations": {"kube-router.io/peers": PEERS}},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.1"}]},
        },
    ),
    (
        Service,
        {
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "ClusterIP", "clusterIPs": [VIP], "ports": [{"port": 80}]},
        },
    ),
)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    found = beside("frr_lab")
    found.require()
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def test_a_container_that_ends_leaves_no_service_at_its_routers(lab: Any, stack: ExitStack) -> None:
    pair = lab.Pair(stack)
    pair.open_router()
    cache = Cache((Node, Service, EndpointSlice))
    cache.replace(EndpointSlice, [], "1")
    for kind, content in OBJECTS:
        cache.replace(kind, [msgspec.convert(content, kind)], "1")
    options = parse(
        [
            *("--run-router", "--run-service-proxy=false", "--run-firewall=false"),
            *("--enable-cni=false", "--enable-overlay=false", "--cluster-asn=64512"),
            *(
                "--advertise-cluster-ip",
                "--bgp-graceful-restart",
                f"--frr-dir={pair.layout.run_dir}",
            ),
            *("--withdraw-on-exit", "--drain-delay=10ms"),
        ],
        {},
    )
    client: Any = SimpleNamespace(post=lambda path, body: b"{}")
    part = RoutingPart(
        *(options, cache, client, "node1", "kube-system", routing_opener(options), None),
        *(lambda turn: None, lambda loop, reason: None),
    )
    stack.callback(part.stop)
    stack.callback(part.loop.stop, lab.DEADLINE_S)
    pair.node.run(part.loop.start)
    both = {f"{VIP}", "10.244.1.0/24"}
    lab.until(lambda: both <= pair.learned(pair.router), "all is announced")
    part.before_loops_stop()
    part.loop.stop(lab.DEADLINE_S)
    for daemon in ("zebra", "bgpd"):
        os.kill(lab.pid_of(pair.layout, daemon), signal.SIGKILL)
    lab.until(
        lambda: not any(each.is_established for each in pair.router.run(pair.far.summary).sessions),
        "the router has noticed",
    )
    # What it keeps for a restart (of 90 s) is what it had been told by then.
    lab.until(
        lambda: pair.learned(pair.router) == {"10.244.1.0/24"},
        "the pods' route stays, the Service's is gone",
        60.0,
    )
