"""Packets through tunnels between nodes of two subnets: vxlan here, ipip and fou in the VM.

    pod1 --- node1 (192.0.2.1) --- router --- node2 (198.51.100.2) --- pod2

Every box is a network namespace. The router knows nothing of pods.
"""

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from kube_router_py.cluster.node import NodeView
from kube_router_py.kernel.links import NetlinkLinks
from kube_router_py.kernel.overlay_links import NetlinkOverlayLinks
from kube_router_py.kernel.overlay_ports import OverlayPorts
from kube_router_py.kernel.overlay_routes import NetlinkOverlayRoutes
from kube_router_py.routing.mtu import pod_mtu
from kube_router_py.routing.overlay import compile_overlay, node_links
from kube_router_py.routing.overlay_apply import apply_overlay
from kube_router_py.routing.settings import RoutingSettings

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TIMEOUT_S = 60.0

NODES = {1: {4: "192.0.2.1", 6: "2001:db8::1"}, 2: {4: "198.51.100.2", 6: "2001:db8:1::2"}}
GATEWAYS = {
    1: {4: "192.0.2.254", 6: "2001:db8::fe"},
    2: {4: "198.51.100.254", 6: "2001:db8:1::fe"},
}
PODS = {
    1: {4: "10.244.1.5", 6: "fd00:10:1::5"},
    2: {4: "10.244.2.5", 6: "fd00:10:2::5"},
}


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


class Box:
    """A network namespace; jobs run one after the other in its one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, initializer=_new_namespace)
        self.path = f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net"
        self.run(sh, "ip link set lo up")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(call, *arguments).result(_TIMEOUT_S * 2)

    def join(self, link: str, other: "Box", other_link: str) -> None:
        """Connect this box to another one."""
        self.run(
            sh,
            f"ip link add {link} type veth peer name {other_link} netns {other.path}",
            f"ip link set {link} up",
        )
        other.run(sh, f"ip link set {other_link} up")

    def address(self, link: str, *addresses: str) -> None:
        for each in addresses:
            dad = " nodad" if ":" in each else ""
            self.run(sh, f"ip addr add {each} dev {link}{dad}")

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _new_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


def forward() -> None:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write("1")


def strict() -> None:
    """As distributions have it: packets must come from where their source is reached."""
    for name in ("all", "default", "eth0"):
        with open(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "w") as file:
            file.write("1")


def view(number: int) -> NodeView:
    ipv4, ipv6 = IPv4Address(NODES[number][4]), IPv6Address(NODES[number][6])
    return NodeView(
        name=f"node{number}",
        address=ipv4,
        ipv4=ipv4,
        ipv6=ipv6,
        addresses=(ipv4, ipv6),
        pod_cidrs_ipv4=(IPv4Network(f"10.244.{number}.0/24"),),
        pod_cidrs_ipv6=(IPv6Network(f"fd00:10:{number}::/64"),),
        zone="",
        annotations={},
    )


class Agent:
    """What the agent does for the overlay, on one node."""

    def __init__(self, number: int, box: Box, settings: RoutingSettings) -> None:
        self._number, self._box, self._settings = number, box, settings
        self._ports = box.run(lambda: OverlayPorts(NetlinkOverlayLinks(), NetlinkOverlayRoutes()))
        self.mtu = 0

    def turn(self) -> None:
        problems = self._box.run(self._turn)
        assert problems == (), problems

    def _turn(self) -> Any:
        own = view(self._number)
        with closing(NetlinkLinks()) as links:
            found = node_links(own, links.node_addresses(), self._ports.links.mtus())
        others = [view(each) for each in NODES]
        desired, problems = compile_overlay(own, others, self._settings, found)
        mtu, wrong = pod_mtu(found.mtu_by_version(own), self._settings, own.name)
        assert mtu is not None
        self.mtu = mtu
        return problems + wrong + apply_overlay(self._ports, desired, own.name)

    def close(self) -> None:
        self._box.run(self._ports.close)


@pytest.fixture(
    params=[
        pytest.param("vxlan", marks=pytest.mark.netfilter),
        pytest.param("ipip", marks=pytest.mark.kernel),
        pytest.param("fou", marks=pytest.mark.kernel),
    ]
)
def settings(request: pytest.FixtureRequest) -> RoutingSettings:
    return RoutingSettings(ipv6=True, overlay_encap=request.param)


@pytest.fixture
def boxes(new_namespace: object) -> Iterator[dict[str, Box]]:
    """The boxes of the picture, wired and with addresses, without anything of the overlay."""
    with ExitStack() as stack:
        names = ("router", "node1", "node2", "pod1", "pod2")
        found = {name: stack.enter_context(closing(Box())) for name in names}
        router = found["router"]
        router.run(forward)
        for number in (1, 2):
            node, pod = found[f"node{number}"], found[f"pod{number}"]
            node.run(forward)
            node.join("eth0", router, f"lan{number}")
            node.run(strict)
            node.address("eth0", f"{NODES[number][4]}/24", f"{NODES[number][6]}/64")
            router.address(f"lan{number}", f"{GATEWAYS[number][4]}/24", f"{GATEWAYS[number][6]}/64")
            node.join("pods", pod, "eth0")
            node.address("pods", f"10.244.{number}.1/24", f"fd00:10:{number}::1/64")
            pod.address("eth0", f"{PODS[number][4]}/24", f"{PODS[number][6]}/64")
            for version, option in ((4, ""), (6, "-6 ")):
                default = f"ip {option}route add default via"
                node.run(sh, f"{default} {GATEWAYS[number][version]}")
                own = f"10.244.{number}.1" if version == 4 else f"fd00:10:{number}::1"
                pod.run(sh, f"{default} {own}")
        yield found


def listen(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family)


def connect(address: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((address, port), 5.0)
        except OSError:
            if time.monotonic() > deadline:
                raise


def talk(client: Box, server: Box, address: str) -> str:
    """Send 200 kB from one box to another and back; returns the client's address as seen there."""
    listener = server.run(listen, address)
    port = listener.getsockname()[1]
    listener.settimeout(_TIMEOUT_S)
    found: list[str] = []

    def serve() -> None:
        connection, peer = listener.accept()
        with connection:
            found.append(peer[0])
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(read_all(connection))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    data = os.urandom(200_000)
    with closing(listener):
        with client.run(connect, address, port, time.monotonic() + _TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == data
        thread.join(_TIMEOUT_S)
    return found[0]


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(1 << 16):
        found += part
    return found


@pytest.fixture
def agents(boxes: dict[str, Box], settings: RoutingSettings) -> Iterator[dict[int, Agent]]:
    with ExitStack() as stack:
        yield {
            number: stack.enter_context(closing(Agent(number, boxes[f"node{number}"], settings)))
            for number in NODES
        }


@pytest.mark.parametrize("version", [4, 6])
def test_pods_and_nodes_reach_each_other(
    boxes: dict[str, Box], agents: dict[int, Agent], version: int
) -> None:
    for agent in agents.values():
        agent.turn()
    one, two = PODS[1][version], PODS[2][version]
    assert talk(boxes["pod1"], boxes["pod2"], two) == one
    assert talk(boxes["pod2"], boxes["pod1"], one) == two
    # A node reaches the pods of the other one from its own address, ...
    assert talk(boxes["node1"], boxes["pod2"], two) == NODES[1][version]
    # ... and pods reach the other node with theirs, which the router would not know.
    assert talk(boxes["pod1"], boxes["node2"], NODES[2][version]) == one
    # Nodes talk as before.
    assert talk(boxes["node1"], boxes["node2"], NODES[2][version]) == NODES[1][version]


_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PROBE = 3  # never fragment, whatever is known of the path (ip(7), ipv6(7))


def send(address: str, port: int, size: int) -> bool:
    """Send a datagram in one piece; whether the first link takes it."""
    version = 6 if ":" in address else 4
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(*_MTU_DISCOVER[version], _PROBE)
        try:
            sock.sendto(bytes(size - 8 - (40 if version == 6 else 20)), (address, port))
        except OSError:
            return False
        return True


def fits(client: Box, server: Box, address: str, size: int, wait_s: float = _TIMEOUT_S) -> bool:
    """Whether a packet of so many bytes, headers included, arrives in one piece."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiver = server.run(socket.socket, family, socket.SOCK_DGRAM)
    with closing(receiver):
        receiver.bind((address, 0))
        receiver.settimeout(1.0)
        deadline = time.monotonic() + wait_s
        while True:
            client.run(send, address, receiver.getsockname()[1], size)
            try:
                receiver.recv(1 << 16)
                return True
            except TimeoutError:
                if time.monotonic() > deadline:
                    return False


@pytest.mark.parametrize("version", [4, 6])
def test_the_mtu_of_pods_is_what_fits(
    boxes: dict[str, Box], agents: dict[int, Agent], version: int
) -> None:
    """The largest packet of a pod goes through the tunnel in one piece."""
    for agent in agents.values():
        agent.turn()
    target = PODS[2][version]
    talk(boxes["pod1"], boxes["pod2"], target)  # the way is open
    links = boxes["node1"].run(_tunnel_mtus)
    assert agents[1].mtu == min(links)
    boxes["pod1"].run(sh, "ip link set eth0 mtu 9000")
    most = max(links) if version == 4 else min(links)
    for box in ("node1", "pod2", "node2"):
        link = "eth0" if box == "pod2" else "pods"
        boxes[box].run(sh, f"ip link set {link} mtu 9000")

    pods = boxes["pod1"], boxes["pod2"]
    assert fits(*pods, target, agents[1].mtu)
    assert fits(*pods, target, most)
    assert not fits(*pods, target, most + 1, 2.0)


def _tunnel_mtus() -> list[int]:
    with closing(NetlinkOverlayLinks()) as links:
        return sorted(each.mtu for each in links.read().values() if each is not None)


def test_packets_are_wrapped_between_the_nodes(
    boxes: dict[str, Box], agents: dict[int, Agent]
) -> None:
    """The router, which knows no pods, never sees their addresses outside."""
    for agent in agents.values():
        agent.turn()
    boxes["router"].run(
        sh,
        "ip route add blackhole 10.244.0.0/16",
        "ip -6 route add blackhole fd00:10::/32",
    )
    for version in (4, 6):
        target = PODS[2][version]
        assert talk(boxes["pod1"], boxes["pod2"], target) == PODS[1][version]
    # Beyond a tunnel that is down there is no other way.
    boxes["node1"].run(_down)
    assert not fits(boxes["pod1"], boxes["pod2"], PODS[2][4], 500, 2.0)
    agents[1].turn()
    assert talk(boxes["pod1"], boxes["pod2"], PODS[2][4]) == PODS[1][4]


def _down() -> None:
    with closing(NetlinkOverlayLinks()) as links:
        for name in links.read():
            sh(f"ip link set {name} down")
