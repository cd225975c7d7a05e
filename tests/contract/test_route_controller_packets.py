"""The route controller on three nodes of two subnets, with real FRR and real packets.

    pod1 -- node1 (192.0.2.1) --+            +-- node3 (198.51.100.3) -- pod3
                                +-- router --+
    pod2 -- node2 (192.0.2.2) --+            |
                              client (203.0.113.7)

Pods of nodes 1 and 2 reach each other by routes that FRR learns, those of node 3 through a tunnel.
The router runs FRR, too: it is the router outside, and learns which node Service addresses lead to.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.cni_file import CniFile
from kube_router_py.kernel.frr import ManagedFrr
from kube_router_py.kernel.host import open_host
from kube_router_py.kernel.iptables_variant import variant_of
from kube_router_py.kernel.kube_router import leftovers_of_router
from kube_router_py.kernel.overlay_links import NetlinkOverlayLinks
from kube_router_py.kernel.overlay_ports import OverlayPorts
from kube_router_py.kernel.overlay_routes import NetlinkOverlayRoutes
from kube_router_py.kernel.ports_frr import Boot
from kube_router_py.router_takeover import RouterTakeover
from kube_router_py.routing.controller import DAEMONS, RouteController, RoutingPorts
from kube_router_py.routing.model import Bfd, GracefulRestart
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings

pytestmark = [pytest.mark.frr, pytest.mark.timeout(600)]

NODES = {1: "192.0.2.1", 2: "192.0.2.2", 3: "198.51.100.3"}
ROUTER_AS, CLIENT = 65000, "203.0.113.7"
VIP, OTHER_VIP = "10.96.0.10", "10.96.0.11"

ROUTER_FILE = """\
frr defaults datacenter
router bgp 65000
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp bestpath as-path multipath-relax
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 graceful-restart-helper
 neighbor 192.0.2.1 timers 10 30
 neighbor 192.0.2.2 remote-as 64512
 neighbor 192.0.2.2 graceful-restart-helper
 neighbor 192.0.2.2 timers 10 30
 address-family ipv4 unicast
  network 0.0.0.0/0
  network 203.0.113.0/24
  neighbor 192.0.2.1 activate
  neighbor 192.0.2.2 activate
 exit-address-family
exit
"""


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> Any:
    return beside("frr_lab")


def node(number: int, **annotations: str) -> Node:
    found: Node = msgspec.convert(
        {
            "metadata": {"name": f"node{number}", "annotations": annotations},
            "spec": {"podCIDRs": [f"10.244.{number}.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": NODES[number]}]},
        },
        Node,
    )
    return found


def service(name: str, ip: str, **annotations: str) -> Service:
    found: Service = msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"type": "ClusterIP", "clusterIPs": [ip], "ports": [{"port": 80}]},
        },
        Service,
    )
    return found


def _write(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


class World:
    def __init__(self, lab: Any, stack: ExitStack) -> None:
        self._lab, self._stack = lab, stack
        self.router = self._box("router")
        for name, address in (
            ("near", "192.0.2.254"),
            ("far", "198.51.100.254"),
            ("out", "203.0.113.254"),
        ):
            self.router.run(
                lab.sh,
                f"ip link add {name} type bridge",
                f"ip link set {name} up",
                f"ip addr add {address}/24 dev {name}",
            )
        self.router.run(_write, "net/ipv4/ip_forward", "1")
        self.nodes = {number: self._box(f"node{number}") for number in NODES}
        self.pods = {number: self._box(f"pod{number}") for number in NODES}
        for number, box in self.nodes.items():
            side = "far" if number == 3 else "near"
            self._plug(box, side, NODES[number])
            # As host-local and the plugin bridge would have it.
            box.run(
                lab.sh,
                "ip link add kube-bridge type bridge",
                "ip link set kube-bridge up",
                f"ip addr add 10.244.{number}.1/24 dev kube-bridge",
                f"ip link add veth type veth peer name eth0 netns {self.pods[number].path}",
                "ip link set veth master kube-bridge up",
            )
            self.pods[number].run(
                lab.sh,
                "ip link set eth0 up",
                f"ip addr add 10.244.{number}.5/24 dev eth0",
                f"ip route add default via 10.244.{number}.1",
            )
        self.client = self._box("client")
        self._plug(self.client, "out", CLIENT)
        self.outside = ManagedFrr(stack.enter_context(lab.run_directory()), lambda: None)
        self.router.run(self.outside.open, Boot({"zebra": "", "bgpd": ROUTER_FILE}))
        stack.callback(self.router.run, self.outside.close)
        self.directories = {each: stack.enter_context(lab.run_directory()) for each in NODES}
        self.agents = {number: self.agent(number) for number in NODES}

    def _box(self, name: str) -> Any:
        return self._stack.enter_context(closing(self._lab.Box(name)))

    def _plug(self, box: Any, side: str, address: str) -> None:
        self.router.run(
            self._lab.sh,
            f"ip link add to-{box.name} type veth peer name eth0 netns {box.path}",
            f"ip link set to-{box.name} master {side} up",
        )
        gateway = address.rpartition(".")[0] + ".254"
        box.run(
            self._lab.sh,
            "ip link set eth0 up",
            f"ip addr add {address}/24 dev eth0",
            f"ip route add default via {gateway}",
        )

    def agent(self, number: int) -> "Agent":
        return self._stack.enter_context(
            closing(Agent(self.nodes[number], number, self.directories[number]))
        )

    def turn(self) -> None:
        for agent in self.agents.values():
            agent.turn()

    def learned(self, box: Any, protocol: str = "bgp") -> dict[str, list[str]]:
        """Routes of FRR in main: by destination, the gateways."""
        found: dict[str, list[str]] = {}
        destination = ""
        for line in box.run(self._lab.sh, f"ip route show proto {protocol}").splitlines():
            words = line.split()
            if words[0] != "nexthop":
                destination = words[0]
            gateways = found.setdefault(destination, [])
            if "via" in words:
                gateways.append(words[words.index("via") + 1])
        return {each: sorted(gateways) for each, gateways in found.items()}

    def pings(self, source: int, target: str) -> bool:
        """Whether a pod is answered by an address: one datagram there and back."""
        return bool(self.pods[source].run(_answers, target))


class Agent:
    """The route controller of one node, in the thread of its namespace."""

    def __init__(self, box: Any, number: int, layout: Any) -> None:
        self._box, self._name = box, f"node{number}"
        self.cache = Cache((Node, Service, EndpointSlice))
        self.dirty: set[Any] = set()
        outside = number != 3
        self.settings = RoutingSettings(
            graceful_restart=GracefulRestart(),
            graceful_restart_outside=True,
            has_proxy=False,
            advertise_cluster_ip=True,
            peer_addresses=(ip_address("192.0.2.254"),) if outside else (),
            peer_asns=(ROUTER_AS,) if outside else (),
            node_bfd=True,
            # Not so fast that a machine busy with other things loses a session.
            bfd=Bfd(5, 1000, 1000),
            overlay_encap="vxlan",
            overlay_encap_port=5556,
            cni_conf_file=f"{layout.run_dir}/10-kuberouter.conflist",
        )
        self.frr = ManagedFrr(layout, lambda: self.dirty.add(DAEMONS))
        self.controller = RouteController(
            self.cache,
            self.settings,
            self._name,
            self._open,
            lambda: PodNetwork(self.settings, self._name, has_firewall=False),
            PasswordSources(self.settings, self._name),
            after_full=RouterTakeover(lambda: leftovers_of_router(variant_of("nft"))).follow,
        )
        self.controller.subscribe(self.cache, self)  # type: ignore[arg-type]
        for each in NODES:
            self.cache.put(Node, node(each))
        self._is_first = True
        box.run(self.controller.open)

    def mark(self, keys: Any) -> None:
        self.dirty.update(keys)

    def _open(self) -> RoutingPorts:
        return RoutingPorts(
            open_host(needs_ipvs=False),
            OverlayPorts(NetlinkOverlayLinks(), NetlinkOverlayRoutes()),
            self.frr,
            CniFile(self.settings.cni_conf_file),
        )

    def turn(self, *, full: bool = False) -> Any:
        dirty, self.dirty = frozenset(self.dirty), set()
        full, self._is_first = full or self._is_first, False
        outcome = self._box.run(self.controller.reconcile, dirty, full)
        assert outcome.failed == frozenset(), outcome
        return outcome

    def is_whole(self) -> bool:
        """Whether all sessions are up, those of BFD between nodes as well."""
        found = self._box.run(self.frr.summary)
        return all(each.is_established for each in found.sessions) and [
            each.state for each in found.bfd
        ] == ["up", "up"]

    def close(self) -> None:
        self._box.run(self.controller.close)


@pytest.fixture
def world(lab: Any) -> Iterator[World]:
    lab.require()
    with ExitStack() as stack:
        yield World(lab, stack)


def _echo(box: Any, stack: ExitStack) -> None:
    """Answer datagrams in a box until the stack unwinds."""

    def listen() -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind(("0.0.0.0", 7))
        return found

    sock = box.run(listen)

    def serve() -> None:
        while True:
            try:
                data, peer = sock.recvfrom(2048)
                if data == b"end":
                    return
                sock.sendto(f"{peer[0]}".encode(), peer)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def end() -> None:
        def knock() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", ("127.0.0.1", 7))

        box.run(knock)
        thread.join(30)
        sock.close()

    stack.callback(end)


def _answers(target: str, timeout_s: float = 1.0) -> str:
    """The address by which the other side knows us; empty: no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((target, 7))
        try:
            sock.send(b"who")
            return sock.recv(2048).decode()
        except OSError:
            return ""


def test_pods_of_three_nodes_reach_each_other_and_the_router_finds_services(
    world: World, lab: Any
) -> None:
    with ExitStack() as stack:
        for box in (*world.pods.values(), world.client):
            _echo(box, stack)
        assert not world.pings(1, "10.244.2.5")
        assert not world.pings(1, "10.244.3.5")
        for agent in world.agents.values():
            agent.cache.put(Service, service("web", VIP))
        world.turn()
        lab.until(
            lambda: world.learned(world.nodes[1]).get("10.244.2.0/24") == [NODES[2]],
            "node1 has the route to the pods of node2",
        )
        # Pods keep their addresses on the way to pods, by route and by tunnel alike.
        for source in NODES:
            for target in NODES:
                lab.until(
                    lambda s=source, t=target: (
                        world.pods[s].run(_answers, f"10.244.{t}.5") == f"10.244.{s}.5"
                    ),
                    f"pod{source} reaches pod{target}",
                )
        # Out of the cluster they have the node's.
        lab.until(lambda: world.pods[1].run(_answers, CLIENT) == NODES[1], "pod1 to the client")
        # What the router learns: both nodes for the Service, and the pods of each.
        lab.until(
            lambda: world.learned(world.router).get(VIP) == [NODES[1], NODES[2]],
            "the router sends what is for the Service to both nodes",
        )
        lab.until(
            lambda: world.learned(world.router).get("10.244.1.0/24") == [NODES[1]],
            "the router learns the pods of node1",
        )
        # What nodes do not learn: a default route, Services of others.
        assert {"default", VIP} & set(world.learned(world.nodes[1])) == set()
        lab.until(
            lambda: world.learned(world.nodes[1]).get("203.0.113.0/24") == ["192.0.2.254"],
            "node1 learns what the router announces",
        )
        # The tunnel's route wins over the one that FRR learned of the far node.
        assert "10.244.3.0/24" in world.learned(world.nodes[1], "75")


def test_changes_reach_the_router_and_reset_no_session(world: World, lab: Any) -> None:
    agent = world.agents[1]
    world.turn()

    def peer() -> Any:
        sessions = world.router.run(world.outside.summary).sessions
        return next(each for each in sessions if each.neighbor == NODES[1])

    lab.until(lambda: peer().is_established, "the session with the router")
    before = peer().established
    agent.cache.put(Service, service("web", VIP))
    agent.turn()
    lab.until(lambda: VIP in world.learned(world.router), "the Service at the router")
    agent.cache.put(
        Service, service("web", VIP, **{"kube-router.io/service.bgp.communities": "65000:7"})
    )
    agent.cache.put(Service, service("other", OTHER_VIP))
    agent.turn()
    lab.until(lambda: OTHER_VIP in world.learned(world.router), "another Service at the router")
    agent.cache.delete(Service, "default/web")
    agent.turn()
    lab.until(lambda: VIP not in world.learned(world.router), "the Service gone")
    agent.cache.put(Node, node(1, **{"kube-router.io/drain": "true"}))
    agent.turn()
    agent.cache.put(Node, node(1))
    agent.turn()
    agent.turn(full=True)
    assert (peer().established, peer().dropped) == (before, 0)


def test_an_agent_killed_and_started_again_takes_nothing_away(world: World, lab: Any) -> None:
    world.turn()
    lab.until(lambda: "10.244.2.0/24" in world.learned(world.nodes[1]), "the route to node2")
    with ExitStack() as stack:
        monitor = stack.enter_context(closing(lab.RouteMonitor(world.nodes[1])))
        # As after a kill -9: nobody said good-bye, the daemons run on.
        world.agents[1].close()
        world.agents[1] = again = world.agent(1)
        again.turn()
        assert again.frr.writes == 0
        assert monitor.deleted() == []
    assert world.learned(world.nodes[1])["10.244.2.0/24"] == [NODES[2]]


@contextmanager
def _asking(box: Any, target: str) -> Iterator[list[bool]]:
    """Ask an address again and again, from a thread; an answer that is late is no lost one."""
    answers: list[bool] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.01):
            answers.append(bool(_answers(target, 30.0)))

    thread = threading.Thread(target=box.run, args=(ask,))
    thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("daemon", ["bgpd", "zebra", "bfdd"])
def test_a_killed_daemon_costs_neither_routes_nor_packets(
    world: World, lab: Any, daemon: str
) -> None:
    with ExitStack() as stack:
        _echo(world.pods[2], stack)
        for agent in world.agents.values():
            agent.cache.put(Service, service("web", VIP))
        world.turn()
        lab.until(lambda: world.pings(1, "10.244.2.5"), "pod1 reaches pod2")
        lab.until(
            lambda: world.learned(world.router).get(VIP) == [NODES[1], NODES[2]], "the Service"
        )
        own = world.agents[1]
        lab.until(lambda: own.is_whole(), "all sessions stand, with BFD between nodes")
        here = stack.enter_context(closing(lab.RouteMonitor(world.nodes[1])))
        there = stack.enter_context(closing(lab.RouteMonitor(world.router)))
        answers = stack.enter_context(_asking(world.pods[1], "10.244.2.5"))
        os.kill(lab.pid_of(world.directories[1], daemon), 9)
        lab.until(lambda: DAEMONS in own.dirty, "the agent knows")
        own.turn()
        lab.until(lambda: own.is_whole(), "all is back")
        before = len(answers)
        lab.until(lambda: len(answers) > before + 20, "packets afterwards")
        assert all(answers)
        assert here.deleted() == []
        assert there.deleted() == []


def _kube_router_was_here(lab: Any, near: str, pods: str) -> None:
    sets = ("kube-router-pod-subnets", "hash:net"), ("kube-router-node-ips", "hash:ip")
    for name, kind in sets:
        lab.sh(f"ipset create {name} {kind} family inet timeout 0")
    lab.sh(
        "ipset add kube-router-pod-subnets 10.244.0.0/16 timeout 0",
        "iptables-nft -t nat -A POSTROUTING -m set --match-set kube-router-pod-subnets src"
        " -m set ! --match-set kube-router-pod-subnets dst"
        " -m set ! --match-set kube-router-node-ips dst -j MASQUERADE",
        "iptables-nft -t nat -A POSTROUTING -s 172.31.0.0/16 -j MASQUERADE",
        f"ip route add {pods} via {near} proto 17",
        f"ip route add 172.31.0.0/16 via {near} proto 17",
    )


def test_what_kube_router_left_goes_when_its_successor_stands(world: World, lab: Any) -> None:
    own = world.agents[1]
    world.nodes[1].run(_kube_router_was_here, lab, NODES[2], "10.244.2.0/24")
    with ExitStack() as stack:
        _echo(world.pods[2], stack)
        _echo(world.client, stack)
        own.turn()
        left = world.learned(world.nodes[1], "17")
        assert left["10.244.2.0/24"] == [NODES[2]]  # node2 has not spoken yet
        world.turn()

        def is_taken_over() -> bool:
            own.turn(full=True)
            is_learned = world.learned(world.nodes[1]).get("10.244.2.0/24") == [NODES[2]]
            return is_learned and "10.244.2.0/24" not in world.learned(world.nodes[1], "17")

        lab.until(is_taken_over, "FRR has the route, kube-router's is gone")
        assert world.learned(world.nodes[1], "17") == {"172.31.0.0/16": [NODES[2]]}
        lab.until(
            lambda: world.pods[1].run(_answers, "10.244.2.5") == "10.244.1.5", "pod1 reaches pod2"
        )
        lab.until(lambda: world.pods[1].run(_answers, CLIENT) == NODES[1], "pod1 to the client")
    rules = world.nodes[1].run(lab.sh, "iptables-nft-save -t nat")
    assert "-A POSTROUTING -s 172.31.0.0/16 -j MASQUERADE" in rules
    assert "-A POSTROUTING -m set" not in rules
