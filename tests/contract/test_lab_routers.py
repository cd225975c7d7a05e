"""The lab's routers outside, each kind as itself: what nodes announce is where their kernel leads.

The nodes here have no agents: bgpd runs on each as an agent would have it, of three nodes in two
subnets, with a prefix that all of them announce.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest

from kube_router_py.lab.cluster import LabOptions
from kube_router_py.lab.front import Backstage
from kube_router_py.lab.router import KINDS
from kube_router_py.lab.server import serve

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

NODES = {"node1": "10.10.0.11", "node2": "10.10.0.12", "node3": "10.11.0.13"}
GATEWAYS = {"node1": "10.10.0.1", "node2": "10.10.0.1", "node3": "10.11.0.1"}
PROGRAMS = {"frr": "/usr/lib/frr/bgpd", "gobgp": "gobgpd", "bird": "bird"}
VIP, CLIENTS = "10.96.0.10", "10.20.0.0/24"
LONGER = "route-map LONGER permit 10\n set as-path prepend 64512\nexit\n"


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


def speaker_file(node: str) -> str:
    gateway = GATEWAYS[node]
    return (
        "frr defaults datacenter\n"
        f"{LONGER}"
        "router bgp 64512\n"
        f" bgp router-id {NODES[node]}\n"
        " no bgp ebgp-requires-policy\n"
        " no bgp network import-check\n"
        f" neighbor {gateway} remote-as 65000\n"
        f" neighbor {gateway} timers connect 1\n"
        " address-family ipv4 unicast\n"
        f"  network {VIP}/32\n"
        f"  network 10.244.{node[-1]}.0/24\n"
        " exit-address-family\n"
        "exit\n"
    )


class World:
    def __init__(self, kind: str, stack: ExitStack) -> None:
        options = LabOptions(nodes=3, with_agents=False, router=kind, subnets=2)
        self._backstage = Backstage(
            lambda *rest: serve(options, *rest), list(NODES), lambda line: None
        )
        stack.callback(self._backstage.stop)
        self._backstage.start()
        self._directories: dict[str, str] = {}
        for node in NODES:
            self._speak(node, stack)

    def _run(self, target: str, *argv: str) -> str:
        done = subprocess.run(
            self._backstage.state.enter(target, argv),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def _speak(self, node: str, stack: ExitStack) -> None:
        where = stack.enter_context(tempfile.TemporaryDirectory(prefix="krp-speaker-"))
        self._directories[node] = where
        files = {"zebra": "", "bgpd": speaker_file(node)}
        for daemon, text in files.items():
            with open(f"{where}/{daemon}.conf", "w") as file:
                file.write(text)
        shutil.chown(where, "frr", "frr")
        for daemon in files:
            argv = [f"/usr/lib/frr/{daemon}", "-f", f"{where}/{daemon}.conf"]
            argv += ["-i", f"{where}/{daemon}.pid", "--vty_socket", where, "-P", "0"]
            argv += ["-z", f"{where}/zserv.api"]
            process = subprocess.Popen(
                self._backstage.state.enter(node, argv),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

    def tell(self, node: str, *commands: str) -> None:
        """Have a node's bgpd change its announcements."""
        lines = ["configure terminal", "router bgp 64512", "address-family ipv4 unicast", *commands]
        words = [word for line in lines for word in ("-c", line)]
        self._run(node, "vtysh", "--vty_socket", self._directories[node], *words)

    def ways(self, destination: str, target: str = "router") -> set[str]:
        """Where the kernel sends what goes there: the nodes, or addresses of others."""
        names = {address: node for node, address in NODES.items()}
        return {
            names.get(way["gateway"], way["gateway"])
            for route in json.loads(self._run(target, "ip", "-j", "-4", "route", "show"))
            if route["dst"] == destination
            for way in route.get("nexthops") or [route]
        }


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, lab: Any) -> Iterator[World]:
    lab.require()
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    if shutil.which(PROGRAMS[request.param], path=path) is None:
        pytest.skip(f"missing capability: {PROGRAMS[request.param]} (.ci/setup installs it)")
    with contextlib.ExitStack() as stack:
        yield World(request.param, stack)


def test_it_takes_all_equal_ways_and_follows_what_is_announced(lab: Any, world: World) -> None:
    lab.until(lambda: world.ways(VIP) == set(NODES), "all ways are used side by side")
    for node, gateway in GATEWAYS.items():
        cidr = f"10.244.{node[-1]}.0/24"
        lab.until(lambda cidr=cidr, node=node: world.ways(cidr) == {node}, f"{node}'s pods")
        lab.until(
            lambda gateway=gateway, node=node: world.ways(CLIENTS, node) == {gateway},
            f"{node} is told of the clients",
        )
    world.tell("node1", f"no network {VIP}/32")
    lab.until(lambda: world.ways(VIP) == {"node2", "node3"}, "one way is withdrawn")
    world.tell("node2", f"network {VIP}/32 route-map LONGER")
    lab.until(lambda: world.ways(VIP) == {"node3"}, "a longer way is no equal one")
    world.tell("node2", f"no network {VIP}/32")
    world.tell("node3", f"no network {VIP}/32")
    lab.until(lambda: not world.ways(VIP), "the last way is withdrawn")
