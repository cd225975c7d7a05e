"""The route controller from the event to its BGP peers, on real FRR in network namespaces.

    python tests/bench/bench_routing.py [--peers N] [--services N] [--rounds N] [--nodes N]

Needs root, FRR and iptables. A node with the controller in its loop, many routers outside
(``bgp_sink``), all Services announced to each, and another node that runs FRR, too:

    node 10.1.0.1 (controller, FRR) --+-- bridge --+-- 10.1.1.0 and up: the peers, in one process
                                                   +-- 10.1.0.2: far, FRR with BFD

A Service that comes and goes, until the last peer has been told; the same by frr-reload.py (Debian
package frr-pythontools; left out where it is not), which is given the whole file; Nodes that come,
until there is a route to their pods; a full turn; and far cut off, where only BFD can tell, until
its route has left the kernel. At the end no session may have been lost. Then, without a kernel, how
long the overlay of many nodes takes to compile, whole and for one of them. Only ratios compare
between machines.
"""

import argparse
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from bench_ipvs import enter_new_namespace
from bench_proxy import measure
from bgp_sink import Sink
from frr_lab import Box, pid_of, run_directory, sh

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.node import NodeView, node_view
from kube_router_py.cluster.objects import Node, Service
from kube_router_py.kernel.cni_file import CniFile
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.frr_process import Layout
from kube_router_py.kernel.host import open_host
from kube_router_py.kernel.overlay_links import NetlinkOverlayLinks
from kube_router_py.kernel.overlay_ports import OverlayPorts
from kube_router_py.kernel.overlay_routes import NetlinkOverlayRoutes
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.loop import Loop
from kube_router_py.problem import Problem
from kube_router_py.routing.controller import KINDS, RouteController, RoutingPorts
from kube_router_py.routing.frr_sections import parse_running
from kube_router_py.routing.model import Bfd
from kube_router_py.routing.overlay import NodeLinks, compile_overlay
from kube_router_py.routing.overlay_nodes import OverlayNodes
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import DEFAULT_ASN, RoutingSettings

OWN, FAR, SUBNET = "10.1.0.1", "10.1.0.2", "10.1.0.0/16"
FAR_PODS = "10.244.1.0/24"
OUTSIDE_AS = 65000
BFD_MS, BFD_MULTIPLIER = 300, 3
RELOADER = Path("/usr/lib/frr/frr-reload.py")
DEADLINE_S = 120.0
RELOADS, CUTS = 10, 10
# So long after a turn the next one does not have to wait.
IDLE_S = 0.15

FAR_FILE = f"""\
frr defaults datacenter
router bgp {DEFAULT_ASN}
 bgp router-id {FAR}
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 neighbor {OWN} remote-as {DEFAULT_ASN}
 neighbor {OWN} timers 30 90
 neighbor {OWN} timers connect 1
 neighbor {OWN} bfd profile fast
 address-family ipv4 unicast
  network {FAR_PODS}
  neighbor {OWN} activate
 exit-address-family
exit
"""
FAR_BFD_FILE = f"""\
bfd
 profile fast
  detect-multiplier {BFD_MULTIPLIER}
  transmit-interval {BFD_MS}
  receive-interval {BFD_MS}
 exit
exit
"""


def peer(number: int) -> str:
    return f"10.1.{1 + number // 200}.{1 + number % 200}"


def later(number: int) -> tuple[str, str]:
    """The address of a node that comes later, and its pods."""
    return f"10.1.200.{1 + number}", f"10.245.{number}.0/24"


def vip(number: int) -> str:
    return f"10.96.{number // 250}.{1 + number % 250}"


def node(name: str, address: str, pods: str) -> Node:
    value = {
        "metadata": {"name": name},
        "spec": {"podCIDRs": [pods]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }
    return msgspec.convert(value, Node)


def service(number: int) -> Service:
    value = {
        "metadata": {"name": f"web-{number}", "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIPs": [vip(number)], "ports": [{"port": 80}]},
    }
    return msgspec.convert(value, Service)


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"never: {what}")
        time.sleep(0.002)
    return found


class RouteTimes:
    """When routes of FRR came to the kernel of this namespace, and when they went."""

    def __init__(self) -> None:
        self.told: list[tuple[float, str]] = []
        self._process = subprocess.Popen(
            ["ip", "-4", "-o", "monitor", "route"], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

        def is_heard() -> bool:
            sh("ip route replace blackhole 192.0.2.1", "ip route del 192.0.2.1")
            return bool(self.told)

        until(is_heard, "ip monitor")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append((time.monotonic(), line))

    def after(self, begun: float, words: str) -> float | None:
        """When a line with these words at its beginning was first told, after some time."""
        # The latest are few; what is older stays where it is.
        for at, line in self.told[-500:]:
            if at >= begun and line.startswith(words):
                return at
        return None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


class World:
    """The picture; this namespace is the node's."""

    def __init__(self, stack: ExitStack, peers: int, services: int) -> None:
        self.peers = peers
        self.sink = stack.enter_context(closing(Sink(DEADLINE_S)))
        self.switch, self.far = (
            stack.enter_context(closing(Box(name))) for name in ("switch", "far")
        )
        self.switch.run(sh, "ip link add bridge type bridge", "ip link set bridge up")
        here = f"/proc/{threading.get_native_id()}/ns/net"
        for name, namespace in (
            ("node", here),
            ("far", self.far.path),
            ("peers", f"/proc/{self.sink.pid}/ns/net"),
        ):
            self.switch.run(
                sh,
                f"ip link add to-{name} type veth peer name eth0 netns {namespace}",
                f"ip link set to-{name} master bridge up",
            )
        sh("ip link set eth0 up", f"ip addr add {OWN}/16 dev eth0")
        self.far.run(sh, "ip link set eth0 up", f"ip addr add {FAR}/16 dev eth0")
        self.sink.ask("address", SUBNET, [peer(each) for each in range(peers)])
        self.routes = stack.enter_context(closing(RouteTimes()))
        self.other = ManagedFrr(stack.enter_context(run_directory()), lambda: None)
        stack.callback(self.far.run, self.other.close)
        self.far.run(self.other.open, Boot({"zebra": "", "bgpd": FAR_FILE, "bfdd": FAR_BFD_FILE}))
        self.layout = stack.enter_context(run_directory())
        self.agent = Agent(self.layout, peers, services)
        stack.callback(self.agent.close)

    def connect(self) -> None:
        addresses = [peer(each) for each in range(self.peers)]
        self.sink.ask("dial", OWN, OUTSIDE_AS, addresses, "")
        self.sink.ask("up", addresses)
        # The own pods' network, too.
        self.sink.ask("load", OUTSIDE_AS, self.agent.services + 1)
        until(self.is_far_there, "the other node")

    def is_far_there(self) -> bool:
        bfd = self.agent.frr.summary().bfd
        return any(each.neighbor == FAR and each.state == "up" for each in bfd) and bool(
            sh(f"ip route show {FAR_PODS} proto bgp")
        )

    def seen(self, prefix: str, is_there: bool) -> tuple[float, float]:
        first, last, _ = self.sink.ask("seen", prefix, is_there, self.peers)
        return first, last


class Agent:
    """The controller in its loop, and what its turns took."""

    def __init__(self, layout: Layout, peers: int, services: int) -> None:
        self.services = services
        self.settings = RoutingSettings(
            has_proxy=False,
            cluster_ranges=(ip_network("10.96.0.0/16"),),
            advertise_cluster_ip=True,
            peer_addresses=tuple(ip_address(peer(each)) for each in range(peers)),
            peer_asns=(OUTSIDE_AS,) * peers,
            node_bfd=True,
            bfd=Bfd(BFD_MULTIPLIER, BFD_MS, BFD_MS),
            overlay_encap="vxlan",
            overlay_encap_port=5556,
            cni_conf_file=f"{layout.run_dir}/10-kuberouter.conflist",
        )
        self.cache = Cache(KINDS)
        for each in (node("node", OWN, "10.244.0.0/24"), node("far", FAR, FAR_PODS)):
            self.cache.put(Node, each)
        for number in range(services):
            self.cache.put(Service, service(number))
        self.frr = ManagedFrr(layout, lambda: None)
        self.controller = RouteController(
            self.cache,
            self.settings,
            "node",
            self._open,
            lambda: PodNetwork(self.settings, "node", has_firewall=False),
            PasswordSources(self.settings, "node"),
        )
        self.turns: list[SimpleNamespace] = []
        self._problems: tuple[Problem, ...] = ()
        self._apply_s = 0.0
        self._time()
        self.loop = Loop(self.controller, ready=lambda: True, resync_interval_s=3600)
        self.controller.subscribe(self.cache, self.loop)
        self.loop.start()
        self.settle()

    def _open(self) -> RoutingPorts:
        return RoutingPorts(
            open_host(needs_ipvs=False),
            OverlayPorts(NetlinkOverlayLinks(), NetlinkOverlayRoutes()),
            self.frr,
            CniFile(self.settings.cni_conf_file),
        )

    def _time(self) -> None:
        """Note what turns take, and of that what FRR takes from the commands to its replies."""
        reconcile, apply = self.controller.reconcile, self.frr.apply

        def timed_apply(commands: Any) -> Any:
            begun = time.monotonic()
            found = apply(commands)
            self._apply_s += time.monotonic() - begun
            return found

        def timed(dirty: Any, full: bool) -> Any:
            self._apply_s, begun = 0.0, time.monotonic()
            outcome = reconcile(dirty, full)
            wall = time.monotonic() - begun
            self._problems = outcome.problems
            self.turns.append(SimpleNamespace(wall=wall, apply=self._apply_s, full=full))
            return outcome

        self.frr.apply = timed_apply  # type: ignore[method-assign]
        self.controller.reconcile = timed  # type: ignore[method-assign]

    def settle(self) -> None:
        until(lambda: self._problems or self.loop.status().settled, "the loop settles")
        if self._problems:
            raise SystemExit(f"problems: {self._problems[:5]}")

    def idle(self) -> None:
        self.settle()
        time.sleep(IDLE_S)

    def close(self) -> None:
        self.loop.stop(DEADLINE_S)
        self.controller.close()


class Times:
    """What one thing took, in seconds."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def note(self, seconds: float) -> None:
        self.all.append(seconds)

    def of(self, fraction: float) -> float:
        return sorted(self.all)[int(len(self.all) * fraction)]


Rows = dict[str, Times]

COMES_LAST = "Service comes: last peer knows"
APPLY = "  FRR takes the commands"
RELOAD = "by frr-reload.py: last peer knows"
NODE = "Node comes: FRR has its session"
LOST = "peer lost (BFD): its route has gone"


def services(world: World, rounds: int, rows: Rows) -> None:
    agent = world.agent
    for number in range(agent.services, agent.services + rounds):
        for is_there, what in ((True, "comes"), (False, "goes")):
            agent.idle()
            agent.turns.clear()
            begun = time.monotonic()
            if is_there:
                agent.cache.put(Service, service(number))
            else:
                agent.cache.delete(Service, f"default/web-{number}")
            first, last = world.seen(f"{vip(number)}/32", is_there)
            agent.settle()
            (turn,) = agent.turns
            note(rows, f"Service {what}: first peer knows", first - begun)
            note(rows, f"Service {what}: last peer knows", last - begun)
            note(rows, APPLY, turn.apply)
            note(rows, "  the rest of the turn (compiling)", turn.wall - turn.apply)


def reloads(world: World, rows: Rows) -> None:
    agent = world.agent
    agent.idle()
    before = agent.frr.running()["bgpd"]
    (line,) = (it for it in before.splitlines(keepends=True) if f"network {vip(0)}/32 " in it)
    path = Path(world.layout.run_dir, "whole.conf")
    (Path(world.layout.run_dir) / "vtysh.conf").touch()
    for number in range(RELOADS):
        address = f"10.97.0.{number}"
        for is_there in (True, False):
            more = line.replace(f"{vip(0)}/32", f"{address}/32")
            text = before.replace(line, more + line) if is_there else before
            begun = time.monotonic()
            path.write_text(text)
            reload(world.layout.run_dir, path)
            done = time.monotonic()
            _, last = world.seen(f"{address}/32", is_there)
            if is_there:
                note(rows, RELOAD, last - begun)
                note(rows, "  the program has ended", done - begun)


def reload(directory: str, path: Path) -> None:
    command = [str(RELOADER), "--reload", "--stdout", "--daemon", "bgpd"]
    for flag in ("confdir", "rundir", "vty_socket"):
        command += [f"--{flag}", directory]
    done = subprocess.run(
        [sys.executable, *command, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout}{done.stderr}")


def nodes(world: World, rounds: int, rows: Rows) -> None:
    agent = world.agent
    world.sink.ask("address", SUBNET, [later(each)[0] for each in range(rounds)])
    for number in range(rounds):
        address, pods = later(number)
        agent.idle()
        agent.turns.clear()
        begun = time.monotonic()
        agent.cache.put(Node, node(f"later-{number}", address, pods))
        world.sink.ask("dial", OWN, DEFAULT_ASN, [address], pods)
        agent.settle()
        done = time.monotonic()
        up = world.sink.ask("up", [address])
        there = until(partial(world.routes.after, begun, pods), f"the route to {pods}")
        (turn,) = agent.turns
        note(rows, NODE, done - begun)
        note(rows, "  FRR takes the commands of a Node", turn.apply)
        note(rows, "Node comes: session established", up - begun)
        note(rows, "Node comes: route in the kernel", there - begun)


def full_turns(world: World, rows: Rows) -> None:
    agent = world.agent
    agent.idle()
    for _ in range(10):
        agent.turns.clear()
        # In this thread: the loop has nothing to do meanwhile.
        agent.controller.reconcile(frozenset(), True)
        assert not agent.turns[0].apply, "nothing differs"
        note(rows, "full turn, nothing differs", agent.turns[0].wall)
        begun = time.monotonic()
        texts = agent.frr.running()
        read = time.monotonic()
        parse_running(texts)
        note(rows, "  configuration read back", read - begun)
        note(rows, "  and parsed", time.monotonic() - read)


def cuts(world: World, rows: Rows) -> None:
    for number in range(CUTS):
        until(world.is_far_there, "the other node")
        # BFD leaves its first slow second; then at different times between two packets.
        time.sleep(1 + number / CUTS * BFD_MS / 1000)
        begun = time.monotonic()
        # Both ends keep their carrier.
        world.switch.run(sh, "ip link set to-far nomaster")
        gone = until(partial(world.routes.after, begun, f"Deleted {FAR_PODS}"), "the route goes")
        note(rows, LOST, gone - begun)
        world.switch.run(sh, "ip link set to-far master bridge")
    until(world.is_far_there, "the other node")


def note(rows: Rows, what: str, seconds: float) -> None:
    rows.setdefault(what, Times()).note(seconds)


def on_frr(options: argparse.Namespace, result: Any) -> None:
    logging.disable(logging.CRITICAL)
    enter_new_namespace()
    rows: Rows = {}
    with ExitStack() as stack:
        world = World(stack, options.peers, options.services)
        world.connect()
        memory = resident_mib(pid_of(world.layout, "bgpd"))
        services(world, options.rounds, rows)
        if RELOADER.exists():
            reloads(world, rows)
        full_turns(world, rows)
        cuts(world, rows)
        nodes(world, options.rounds, rows)
        full_turns(world, {})
        lost = world.sink.ask("lost")
        if lost:
            raise SystemExit(f"sessions were lost: {lost}")
    result.put((rows, memory))


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} is gone")


def overlay(encap: str, count: int, rounds: int, result: Any) -> None:
    """Nodes of which each is in a subnet of its own."""
    settings = RoutingSettings(overlay_encap=encap)

    def view(number: int) -> NodeView:
        pods = f"100.{64 + number // 256}.{number % 256}.0/24"
        address = f"10.{2 + number // 250}.{number % 250}.1"
        return node_view(node(f"node-{number}", address, pods))[0]

    own = node_view(node("node", OWN, "10.244.0.0/24"))[0]
    mtu = {ip_address(OWN): 1500}
    links = NodeLinks({ip_address(OWN): ip_network("10.1.0.0/24")}, mtu)
    views = [view(number) for number in range(count)]
    rows: Rows = {}
    nodes = OverlayNodes(settings)
    for each in views:
        nodes.put(each)
    nodes.compile(own, links)
    for number in range(rounds):
        chosen = views[number * 7919 % count]
        begun = time.monotonic()
        whole = compile_overlay(own, views, settings, links)
        done = time.monotonic()
        nodes.remove(chosen.name)
        nodes.compile(own, links)
        note(rows, "whole", done - begun)
        note(rows, "one", time.monotonic() - done)
        nodes.put(chosen)
        assert nodes.compile(own, links) == whole
    result.put(rows)


# What, found, at most.
Target = tuple[str, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--services", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--nodes", type=int, default=5000)
    options = parser.parse_args()
    rows, memory = measure(on_frr, options)
    print(f"{options.peers} peers, {options.services} Services announced to each;", end="")
    print(f" bgpd has {memory:.0f} MiB; milliseconds")
    print(f"{'':44}{'p50':>8}{'p99':>8}{'times':>8}")
    for what, times in rows.items():
        p50, p99 = (times.of(fraction) * 1000 for fraction in (0.5, 0.99))
        print(f"  {what:42}{p50:8.1f}{p99:8.1f}{len(times.all):8}")
    come = rows[COMES_LAST].of(0.5)
    targets: list[Target] = [
        ("a Service comes until the last peer knows, p50 s", come, 0.1),
        ("FRR takes the commands of a Service, p50 s", rows[APPLY].of(0.5), 0.005),
        ("a Node comes until FRR has its session, p50 s", rows[NODE].of(0.5), 0.1),
        ("a peer is lost until its route has gone, most s", max(rows[LOST].all), 1),
    ]
    for encap in ("vxlan", "ipip"):
        found = measure(overlay, encap, options.nodes, options.rounds)
        one, whole = (found[name].of(0.5) for name in ("one", "whole"))
        print(f"overlay of {options.nodes} nodes, {encap}: {whole * 1000:.0f} ms,", end="")
        print(f" for one node of them {one * 1000:.1f}")
        targets.append((f"overlay ({encap}), one node / whole, p50", one / whole, 1 / 4))
    if RELOAD in rows:
        ratio = come / rows[RELOAD].of(0.5)
        targets.append(("a Service comes / the same by frr-reload.py, p50", ratio, 1 / 2))
    print(f"{'':52}{'found':>9}{'at most':>9}")
    for what, value, target in targets:
        word = "kept" if value <= target else "MISSED"
        print(f"{what:52}{value:9.4f}{target:9.4f}  {word}")


if __name__ == "__main__":
    main()
