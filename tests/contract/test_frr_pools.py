"""Edits of address pools reach a router by the same session: real FRR on both sides.

    node 10.99.0.1 --- router 10.99.0.9, outside the cluster and of the same AS

The router tells what it hears: which addresses, with which communities and local preference.
"""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from kube_router_py.adapters import routing_opener
from kube_router_py.address_pool_config import pool_settings
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_vty import VtyClient
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.options import parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.routing_part import RoutingPart

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

PODS, ONE, TWO, ANNOTATED = (
    "10.244.1.0/24",
    "198.51.100.1/32",
    "203.0.113.1/32",
    "198.51.100.2/32",
)


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    found = beside("frr_lab")
    found.require()
    return found


def node(rack: str) -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": "node1", "labels": {"rack": rack}},
            "spec": {"podCIDRs": [PODS]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.99.0.1"}]},
        },
        Node,
    )


def service(name: str, ip: str, *lb_ips: str, **annotations: str) -> Service:
    named = {f"kube-router.io/service.bgp.{key}": text for key, text in annotations.items()}
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "default", "annotations": named},
            "spec": {"type": "LoadBalancer", "clusterIPs": [ip], "ports": [{"port": 80}]},
            "status": {
                "loadBalancer": {"ingress": [{"ip": each.removesuffix("/32")} for each in lb_ips]}
            },
        },
        Service,
    )


def pools(first: str = "", second: str = "") -> str:
    """Two pools, and how each is announced (as YAML)."""
    return (
        f"- {{name: one, addresses: [198.51.100.0/28], announce: {{{first}}}}}\n"
        f"- {{name: two, addresses: [203.0.113.0-203.0.113.9], announce: {{{second}}}}}\n"
    )


class World:
    def __init__(self, lab: Any, stack: ExitStack) -> None:
        self.lab = lab
        self._pair = pair = lab.Pair(stack)
        layout = stack.enter_context(lab.run_directory())
        far = ManagedFrr(layout, lambda: None)
        stack.callback(pair.router.run, far.close)
        files = {
            "zebra": lab.ZEBRA_FILE,
            "bgpd": lab.bgpd_file(lab.ROUTER, lab.NODE_AS, lab.NODE, lab.NODE_AS, lab.OUTSIDE),
        }
        pair.router.run(far.open, Boot(files=files))
        self._far = far
        self._vty = VtyClient(layout.path("bgpd", "vty"), 60.0)
        stack.callback(self._vty.close)
        password = base64.b64encode(b"k8s!md5#1").decode()
        options = parse(
            [
                *("--run-service-proxy=false", "--run-firewall=false", "--run-loadbalancer"),
                *("--loadbalancer-ip-range=192.0.2.0/24", "--enable-cni=false"),
                *("--enable-overlay=false", f"--frr-dir={pair.layout.run_dir}"),
                *(f"--peer-router-ips={lab.ROUTER}", f"--peer-router-asns={lab.NODE_AS}"),
                f"--peer-router-passwords={password}",
            ],
            {},
        )
        self.cache = Cache((Node, Service, EndpointSlice))
        services = [
            service("both", "10.96.0.1", ONE, TWO),
            service("annotated", "10.96.0.2", ANNOTATED, communities="65000:99"),
        ]
        for kind, found in ((Service, services), (EndpointSlice, []), (Node, [node("a")])):
            self.cache.replace(kind, found, "1")
        self.book = PoolBook(pool_settings(options, "kube-system"))
        self.part = RoutingPart(
            options,
            self.cache,
            SimpleNamespace(get=None, post=lambda path, body: b"{}"),  # type: ignore[arg-type]
            "node1",
            "kube-system",
            routing_opener(options),
            served=None,
            on_turn=lambda turn: None,
            on_dead=lambda loop, reason: None,
            book=self.book,
        )
        stack.callback(self.part.stop)
        stack.callback(self.part.loop.stop, 60.0)

    def start(self) -> None:
        self._pair.node.run(self.part.loop.start)

    def counts(self) -> tuple[int, int]:
        """How often the session has come up, and gone down."""
        (found,) = (e for e in self._pair.router.run(self._far.summary).sessions if e.version == 4)
        return found.established, found.dropped

    def _heard(self) -> dict[str, tuple[str, int]]:
        """Communities and local preference by prefix."""
        found: dict[str, tuple[str, int]] = {}
        for prefix in self._show("show bgp ipv4 unicast").get("routes", {}):
            for path in self._show(f"show bgp ipv4 unicast {prefix}").get("paths", ()):
                if path["peer"]["peerId"] != "0.0.0.0":
                    communities = path.get("community", {}).get("string", "")
                    found[prefix] = communities, path.get("locPrf")
        return found

    def _show(self, command: str) -> Any:
        return json.loads(self._vty.show(f"{command} json").text or "{}")

    def until_heard(self, expected: dict[str, tuple[str, int]]) -> None:
        """Beside the pods."""
        expected = {PODS: ("", 100), **expected}
        found: dict[str, tuple[str, int]] = {}

        def is_heard() -> bool:
            found.clear()
            found.update(self._heard())
            return found == expected

        try:
            self.lab.until(is_heard, "")
        except AssertionError:
            raise AssertionError(f"heard is {found}, not {expected}") from None


@pytest.fixture
def world(lab: Any) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(lab, stack)


def test_edits_of_pools_reach_a_router_without_a_reset(world: World) -> None:
    world.start()
    world.book.put_config(pools("bgp: true, communities: '65000:7', localPreference: 50"))
    # The second pool leaves it to the flag, which is not set.
    world.until_heard({ONE: ("65000:7", 50), ANNOTATED: ("65000:99", 50)})
    before = world.counts()

    world.book.put_config(pools("bgp: true", "bgp: true, localPreference: 300"))
    world.until_heard({ONE: ("", 100), ANNOTATED: ("65000:99", 100), TWO: ("", 300)})

    world.book.put_config(pools("bgp: false", "bgp: true, communities: 'no-export, 65000:8'"))
    world.until_heard({TWO: ("65000:8 no-export", 100)})

    # An edit with a mistake in it changes nothing; the next one shows that it was read.
    world.book.put_config(pools("bgp: maybe"))
    rack_b = "bgp: true, nodeSelector: {matchLabels: {rack: b}}"
    world.book.put_config(pools(rack_b, "bgp: true"))
    world.until_heard({TWO: ("", 100)})
    world.cache.put(Node, node("b"))
    world.until_heard({ONE: ("", 100), ANNOTATED: ("65000:99", 100), TWO: ("", 100)})

    # What an edit takes away is announced as before, until its Service gives it up.
    world.book.put_config(None)
    world.cache.put(Service, service("both", "10.96.0.1"))
    world.until_heard({ANNOTATED: ("65000:99", 100)})
    assert world.counts() == before
