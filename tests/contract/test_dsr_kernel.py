"""Direct server return on a real kernel: packets, and the reply that bypasses the balancer.

    client --- (lan0: a bridge) --- node1, the balancer, with pod A
                    |
                    +-------------- node2, with pod B

Every box is a network namespace; pods are processes in cgroups named after pod UIDs.
"""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Lease, Node, Pod, Service
from kube_router_py.kernel.dsr_adapters import open_dsr
from kube_router_py.kernel.host import open_host
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.dirty_keys import KINDS
from kube_router_py.proxy.dsr_host import Dsr
from kube_router_py.proxy.dsr_ready import ANNOTATION, LeaseReady, write_ready
from kube_router_py.proxy.settings import ProxyOptions

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TIMEOUT_S = 60.0
_ETH_P_ALL = 3

UIDS = {
    "a": "6b1d2c3e-0000-4000-8000-00000000000a",
    "b": "6b1d2c3e-0000-4000-8000-00000000000b",
}
VIPS = {4: "203.0.113.10", 6: "2001:db8:5::10"}
NODES = {1: {4: "192.168.9.1", 6: "fd00:9::1"}, 2: {4: "192.168.9.2", 6: "fd00:9::2"}}
CLIENT = {4: "192.168.9.7", 6: "fd00:9::7"}
PODS = {
    "a": {4: "10.244.1.5", 6: "fd00:10:1::5"},
    "b": {4: "10.244.2.5", 6: "fd00:10:2::5"},
}
NODE_OF = {"a": 1, "b": 2}


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


def make(kind: type, value: dict[str, Any]) -> Any:
    return msgspec.convert(value, kind)


class Box:
    """A network namespace; jobs run one after the other in its one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_new_namespace)
        self.path = f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net"
        self.run(sh, "ip link set lo up")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(call, *arguments).result(_TIMEOUT_S * 4)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _new_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


_POD = """
import socket, sys, threading
def tcp(family):
    listener = socket.create_server(("::" if family == 6 else "", 80), family=
        socket.AF_INET6 if family == 6 else socket.AF_INET, backlog=64)
    while True:
        connection, peer = listener.accept()
        with connection:
            connection.sendall(f"{sys.argv[1]} {peer[0]}".encode())
def udp(family):
    # The reply has to come from the address that was asked: a socket per address learns it.
    import struct
    six = family == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    sock.bind(("::" if six else "", 80))
    while True:
        data, control, flags, peer = sock.recvmsg(2048, 256)
        answer = f"{sys.argv[1]} {peer[0]}".encode()
        level, kind, info = control[0]
        if six:
            info = info[:16] + bytes(4)
        else:
            info = bytes(4) + info[8:12] + bytes(4)
        sock.sendmsg([answer], [(level, kind, info)], 0, peer)
for work in (tcp, udp):
    for family in (4, 6):
        threading.Thread(target=work, args=(family,)).start()
print("ready", flush=True)
"""


class World:
    """The boxes of the picture above."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.lan = self._box("lan")
        self.lan.run(sh, "ip link add lan0 type bridge", "ip link set lan0 up")
        self.client = self._box("client")
        self._join(self.client, CLIENT)
        self.nodes = {number: self._box(f"node{number}") for number in NODES}
        for number, box in self.nodes.items():
            self._join(box, NODES[number])
            box.run(_write, "net/ipv4/ip_forward", "1")
            box.run(_write, "net/ipv6/conf/all/forwarding", "1")
        self.pods: dict[str, Box] = {}
        for name, number in NODE_OF.items():
            self._add_pod(name, self.nodes[number])
        self._route()

    def _box(self, name: str) -> Box:
        return self._stack.enter_context(closing(Box(name)))

    def _join(self, box: Box, addresses: dict[int, str]) -> None:
        box.run(
            sh,
            "ip link add eth0 type veth peer name peer",
            f"ip link set peer netns {self.lan.path}",
            "ip link set eth0 up",
            f"ip addr add {addresses[4]}/24 dev eth0",
            f"ip addr add {addresses[6]}/64 dev eth0 nodad",
        )
        self.lan.run(
            sh,
            f"ip link set peer name to-{box.name}",
            f"ip link set to-{box.name} master lan0 up",
        )

    def _add_pod(self, name: str, node: Box) -> None:
        box = self.pods[name] = self._box(f"pod-{name}")
        node.run(
            sh,
            f"ip link add pod-{name} type veth peer name eth7",
            f"ip link set eth7 netns {box.path}",
            f"ip link set pod-{name} up",
            f"ip addr add 169.254.1.1/32 dev pod-{name}",
            f"ip route add {PODS[name][4]}/32 dev pod-{name}",
            f"ip -6 addr add fe80::1/64 dev pod-{name} nodad",
            f"ip -6 route add {PODS[name][6]}/128 dev pod-{name}",
        )
        # What a distribution may have set, and a reply from a VIP must survive.
        node.run(_write, f"net/ipv4/conf/pod-{name}/rp_filter", "1")
        box.run(
            sh,
            "ip link set eth7 up",
            f"ip addr add {PODS[name][4]}/32 dev eth7",
            f"ip addr add {PODS[name][6]}/128 dev eth7 nodad",
            "ip route add 169.254.1.1 dev eth7",
            "ip route add default via 169.254.1.1",
            "ip -6 route add default via fe80::1 dev eth7",
        )
        box.run(_write, "net/ipv4/conf/all/rp_filter", "1")
        uid = UIDS[name].replace("-", "_")
        group = Path(f"/sys/fs/cgroup/kubepods.slice/kubepods-pod{uid}.slice")
        group.mkdir(parents=True)
        process = box.run(
            lambda: subprocess.Popen(
                [sys.executable, "-c", _POD, name], stdout=subprocess.PIPE, text=True
            )
        )
        self._stack.callback(_end, process, group)
        (group / "cgroup.procs").write_text(str(process.pid))
        assert process.stdout.readline() == "ready\n"

    def _route(self) -> None:
        """Client and nodes know the way; the VIP leads to node1, and nobody routes it to pods."""
        for version, flag in ((4, ""), (6, "-6 ")):
            self.client.run(sh, f"ip {flag}route add {VIPS[version]} via {NODES[1][version]}")
            for name, number in NODE_OF.items():
                for other, box in self.nodes.items():
                    if other != number:
                        pod, via = PODS[name][version], NODES[number][version]
                        box.run(sh, f"ip {flag}route add {pod} via {via}")
        for box in self.nodes.values():
            # Loose reverse path filtering wants some way to every source.
            box.run(sh, f"ip route add default via {CLIENT[4]}")
            box.run(sh, f"ip -6 route add default via {CLIENT[6]}")


def _write(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


def _end(process: "subprocess.Popen[str]", group: Path) -> None:
    with process:
        process.send_signal(signal.SIGKILL)
    with suppress(OSError):
        group.rmdir()


@pytest.fixture
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("missing capability: root, to create network namespaces")
    sh("modprobe ip_vs", "modprobe ipip", "modprobe ip6_tunnel", "modprobe br_netfilter")
    if not Path("/sys/fs/cgroup/cgroup.procs").exists():
        sh("mount -t cgroup2 none /sys/fs/cgroup")
    with ExitStack() as stack:
        yield World(stack)


def service(annotations: dict[str, str] | None = None, **spec: Any) -> Service:
    found: Service = make(
        Service,
        {
            "metadata": {
                "name": "web",
                "namespace": "default",
                "annotations": annotations
                if annotations is not None
                else {"kube-router.io/service.dsr": "tunnel"},
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                "externalIPs": [*VIPS.values()],
                "ports": [
                    {"name": "tcp", "port": 80},
                    {"name": "udp", "port": 80, "protocol": "UDP"},
                ],
                **spec,
            },
        },
    )
    return found


def slices(*pods: str) -> list[EndpointSlice]:
    return [
        make(
            EndpointSlice,
            {
                "metadata": {
                    "name": f"web-{version}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": f"IPv{version}",
                "ports": [
                    {"name": "tcp", "port": 80},
                    {"name": "udp", "port": 80, "protocol": "UDP"},
                ],
                "endpoints": [
                    {
                        "addresses": [PODS[name][version]],
                        "nodeName": f"node{NODE_OF[name]}",
                        "targetRef": {
                            "kind": "Pod",
                            "name": name,
                            "namespace": "default",
                            "uid": UIDS[name],
                        },
                    }
                    for name in pods
                ],
            },
        )
        for version in (4, 6)
    ]


def lease(node: int, ready: dict[str, list[str]]) -> Lease:
    metadata = {
        "name": f"kube-router-py-node{node}",
        "namespace": "kube-system",
        "annotations": {ANNOTATION: write_ready(ready)},
    }
    found: Lease = make(Lease, {"metadata": metadata})
    return found


class Leases:
    """What a client writes goes into the caches of all nodes, as the API server would have it."""

    def __init__(self, caches: list[Cache]) -> None:
        self._caches = caches
        self.written: list[dict[str, Any]] = []

    def patch(self, path: str, body: Any) -> bytes:
        self._store(path.rpartition("/")[2], body)
        return b""

    def _store(self, name: str, body: Any) -> None:
        metadata = {**body["metadata"], "name": name, "namespace": "kube-system"}
        for cache in self._caches:
            cache.put(Lease, make(Lease, {"metadata": metadata}))
        self.written.append(body)


class Agent:
    """The service proxy of one node, in the node's namespace."""

    def __init__(self, number: int, box: Box, cache: Cache, leases: Any) -> None:
        self.cache, self._box = cache, box
        name = f"node{number}"
        self.ready = LeaseReady(cache, cache, leases, name, "kube-system")
        self.dsr = Dsr(name, open_dsr, self.ready)
        self.proxy = ServiceProxy(
            cache,
            ProxyOptions(ipv6=True, strict_external_ips=False),
            name,
            lambda: open_host(families=("inet", "inet6")),
            dsr=self.dsr,
        )
        box.run(self.proxy.open)

    def turn(self) -> Any:
        return self._box.run(self.proxy.reconcile, frozenset(), True)

    def close(self) -> None:
        self.ready.stop(_TIMEOUT_S)
        self._box.run(self.proxy.close)


def cache_of(number: int) -> Cache:
    found = Cache((*KINDS, Pod, Lease))
    addresses = [{"type": "InternalIP", "address": ip} for ip in NODES[number].values()]
    node = {
        "metadata": {"name": f"node{number}"},
        "spec": {"podCIDRs": [f"10.244.{number}.0/24", f"fd00:10:{number}::/64"]},
        "status": {"addresses": addresses},
    }
    found.replace(Node, [make(Node, node)], "1")
    return found


def ask(address: str, kind: int) -> str:
    """What the backend answers: its name and the client's address as it sees it."""
    deadline = time.monotonic() + _TIMEOUT_S
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        try:
            with socket.socket(family, kind) as sock:
                sock.settimeout(2.0)
                sock.connect((address, 80))
                if kind == socket.SOCK_DGRAM:
                    sock.send(b"?")
                return sock.recv(200).decode()
        except OSError:
            if time.monotonic() > deadline:
                raise


class Capture:
    """Every packet on one link, told apart by its source and destination."""

    def __init__(self, box: Box, link: str) -> None:
        self._socket = box.run(self._open, link)
        self.seen: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @staticmethod
    def _open(link: str) -> socket.socket:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        found.bind((link, _ETH_P_ALL))
        found.settimeout(0.2)
        return found

    def _read(self) -> None:
        while True:
            try:
                self.seen.append(self._socket.recv(2048))
            except TimeoutError:
                continue
            except OSError:
                return

    def from_vip(self) -> list[bytes]:
        """Frames whose (outer) source is a VIP."""
        found = []
        for frame in list(self.seen):
            (kind,) = struct.unpack_from("!H", frame, 12)
            source = {0x0800: frame[26:30], 0x86DD: frame[22:38]}.get(kind, b"")
            if source in {
                socket.inet_pton(socket.AF_INET, VIPS[4]),
                socket.inet_pton(socket.AF_INET6, VIPS[6]),
            }:
                found.append(frame)
        return found

    def close(self) -> None:
        self._socket.close()
        self._thread.join(_TIMEOUT_S)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.05)


@contextmanager
def agents(world: World, *pods: str, **spec: Any) -> Iterator[dict[int, Agent]]:
    caches = {number: cache_of(number) for number in NODES}
    leases = Leases([*caches.values()])
    for cache in caches.values():
        cache.replace(Service, [service(**spec)], "1")
        cache.replace(EndpointSlice, slices(*pods), "1")
        cache.replace(Lease, [], "1")
    with ExitStack() as stack:
        yield {
            number: stack.enter_context(
                closing(Agent(number, world.nodes[number], caches[number], leases))
            )
            for number in NODES
        }


def marked(box: Box) -> str:
    found: str = box.run(sh, "iptables-save -t mangle")
    return found


def test_a_pod_on_the_balancing_node_answers_the_client_itself(world: World) -> None:
    with agents(world, "a") as found:
        outcome = found[1].turn()
        assert (outcome.failed, outcome.problems) == (frozenset(), ())
        for version, vip in VIPS.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                assert world.client.run(ask, vip, kind) == f"a {CLIENT[version]}"


def test_the_reply_of_a_pod_elsewhere_bypasses_the_balancer(world: World) -> None:
    with agents(world, "b") as found, ExitStack() as stack:
        outcome = found[1].turn()
        assert not outcome.failed  # nothing to try again: the other node's word will come
        assert all("has not said yet" in each.reason for each in outcome.problems)
        assert len(outcome.problems) == 2
        assert not found[2].turn().problems
        key = "kube-system/kube-router-py-node2"
        wait_for(lambda: found[1].cache.get(Lease, key) is not None, "the Lease of node2")
        assert found[1].turn().problems == ()
        balancer = stack.enter_context(closing(Capture(world.nodes[1], "eth0")))
        other = stack.enter_context(closing(Capture(world.nodes[2], "eth0")))
        for version, vip in VIPS.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                assert world.client.run(ask, vip, kind) == f"b {CLIENT[version]}"
        wait_for(lambda: len(other.from_vip()) >= 2, "replies on node2's link")
        assert balancer.from_vip() == []


def both_turn(found: dict[int, Agent]) -> None:
    """node2 makes its pod sides and tells; node1 hears it."""
    assert not found[2].turn().failed
    key = "kube-system/kube-router-py-node2"
    wait_for(lambda: found[1].cache.get(Lease, key) is not None, "the Lease of node2")
    assert found[1].turn().problems == ()


def marks(box: Box) -> list[str]:
    return [line for line in marked(box).splitlines() if "MARK --set" in line]


def devices(pod: Box) -> str:
    found: str = pod.run(sh, "ip -o addr show")
    return found


def test_a_restart_changes_nothing_and_finds_the_same_marks(world: World) -> None:
    with agents(world, "a") as found:
        found[1].turn()
        before = marks(world.nodes[1])
        assert len(before) == 3  # TCP, UDP and ICMP
        table = world.nodes[1].run(sh, "ipvsadm -Sn")
    with agents(world, "a") as found:
        assert found[1].turn().problems == ()
        assert found[1].proxy.ports is not None
        assert found[1].dsr.ports is not None
        assert found[1].proxy.ports.writes + found[1].dsr.ports.writes == 0
        assert marks(world.nodes[1]) == before
        assert world.nodes[1].run(sh, "ipvsadm -Sn") == table


def test_what_is_not_needed_any_more_is_removed_and_nothing_else(world: World) -> None:
    node, pod = world.nodes[1], world.pods["a"]
    foreign = "ip rule add fwmark 0x99 lookup 78 priority 32764"
    node.run(sh, foreign, "iptables -t mangle -A PREROUTING -d 192.0.2.99 -j MARK --set-mark 5")
    before = pod.run(sh, "ip -o link show")
    with agents(world, "a") as found:
        found[1].turn()
        assert "kube-tunnel-if" in devices(pod)
        assert "kube-tunnel-v6" in devices(pod)
        assert "lookup 78 proto 75" in node.run(sh, "ip -N rule")
        two = [*VIPS.values(), "203.0.113.11"]
        found[1].cache.put(Service, service(externalIPs=two))
        found[1].turn()
        assert "203.0.113.11/32" in devices(pod)
        found[1].cache.put(Service, service(externalIPs=[VIPS[6]]))
        found[1].turn()
        assert "kube-tunnel-if" not in devices(pod)
        assert VIPS[6] in devices(pod)
        found[1].cache.put(Service, service({}))
        assert found[1].turn().problems == ()
        # What the module gives every namespace (tunl0, ip6tnl0) is not ours.
        after = pod.run(sh, "ip -o link show")
        assert "kube-tunnel" not in after
        assert len(after.splitlines()) >= len(before.splitlines())
        assert "DSR" not in marked(node)
        assert "192.0.2.99" in marked(node)
        rules = node.run(sh, "ip -N rule")
        assert "fwmark 0x99 lookup 78" in rules
        assert "0x7d000000" not in rules
        assert "0x7d000000" not in node.run(sh, "ip -6 rule")
        assert node.run(sh, "ip -6 route show table 78") == ""
        # And it is an ordinary Service again.
        assert f"local {VIPS[4]} dev kube-dummy-if" in node.run(sh, "ip route show table local")
        assert world.client.run(ask, VIPS[4], socket.SOCK_STREAM).startswith("a ")


def test_pods_that_stopped_being_needed_while_the_agent_was_away(world: World) -> None:
    ready = {UIDS["a"]: [VIPS[4], VIPS[6]]}
    with agents(world, "a") as found:
        found[1].turn()
    with agents(world, "b") as found:
        found[1].cache.put(Lease, lease(1, ready))

        def is_gone() -> bool:
            """Once no connection is left, which the agent looks for every now and then."""
            found[1].turn()
            return "kube-tunnel" not in devices(world.pods["a"])

        wait_for(is_gone, "the end of draining")


def test_a_pod_that_is_missing_is_told_and_tried_again(world: World) -> None:
    with agents(world, "a") as found:
        gone = UIDS["a"][:-1] + "f"
        for each in slices("a"):
            endpoint = msgspec.to_builtins(each.endpoints)[0]
            family = each.address_type
            address = "10.244.1.6" if family == "IPv4" else "fd00:10:1::6"
            endpoint["addresses"] = [address]
            endpoint["targetRef"] = {**endpoint["targetRef"], "name": "gone", "uid": gone}
            wire = msgspec.to_builtins(each)
            wire["endpoints"] = [*msgspec.to_builtins(each.endpoints), endpoint]
            found[1].cache.put(EndpointSlice, make(EndpointSlice, wire))
        outcome = found[1].turn()
        assert outcome.failed == {"default/web"}
        assert {each.object for each in outcome.problems} == {"Service default/web"}
        assert all("default/gone" in each.reason for each in outcome.problems)
        assert "hostPID" in outcome.problems[0].reason
        for version, vip in VIPS.items():
            assert world.client.run(ask, vip, socket.SOCK_STREAM) == f"a {CLIENT[version]}"


def test_segments_of_the_client_leave_room_for_the_tunnel(world: World) -> None:
    with agents(world, "b") as found, ExitStack() as stack:
        both_turn(found)
        for version, vip in VIPS.items():
            capture = stack.enter_context(closing(Capture(world.client, "eth0")))
            world.client.run(ask, vip, socket.SOCK_STREAM)
            wait_for(partial(_has_answered, capture), "a SYN-ACK")
            assert segment_sizes(capture) == {1500 - (60 if version == 4 else 100)}


def _has_answered(capture: Capture) -> bool:
    return bool(segment_sizes(capture))


def segment_sizes(capture: Capture) -> set[int]:
    """The MSS options of SYN-ACKs from a VIP."""
    found = set()
    for frame in capture.from_vip():
        start = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
        if frame[start + 13] & 0x12 == 0x12 and frame[start + 20] == 2:
            found.add(struct.unpack_from("!H", frame, start + 22)[0])
    return found


def test_nobody_answers_arp_for_the_vip(world: World) -> None:
    with agents(world, "a") as found:
        found[1].turn()
        node = world.nodes[1]
        node.run(sh, "ip neigh flush dev pod-a", f"ip route replace {VIPS[4]}/32 dev pod-a")
        assert not node.run(_connects, VIPS[4], 81)
        neighbour = node.run(sh, f"ip neigh show {VIPS[4]} dev pod-a")
        assert "lladdr" not in neighbour


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), 5.0):
            return True
    except OSError:
        return False


def test_source_ranges_are_kept_where_packets_are_marked(world: World) -> None:
    balancer = {"status": {"loadBalancer": {"ingress": [{"ip": VIPS[4]}]}}}
    with agents(world, "a") as found:
        for ranges, works in ((["198.51.100.0/24"], False), ([f"{CLIENT[4]}/32"], True)):
            wire = msgspec.to_builtins(
                service(type="LoadBalancer", externalIPs=[], loadBalancerSourceRanges=ranges)
            )
            found[1].cache.put(Service, make(Service, {**wire, **balancer}))
            found[1].turn()
            if works:
                assert world.client.run(ask, VIPS[4], socket.SOCK_STREAM) == f"a {CLIENT[4]}"
            else:
                assert not world.client.run(_connects, VIPS[4], 80)


def test_a_vip_that_another_service_uses_without_dsr_is_served_without(world: World) -> None:
    other = {
        "metadata": {"name": "other", "namespace": "default"},
        "spec": {
            "clusterIPs": ["10.96.0.2"],
            "externalIPs": [VIPS[4]],
            "ports": [{"name": "tcp", "port": 8080}],
        },
    }
    with agents(world, "a") as found:
        found[1].turn()
        found[1].cache.put(Service, make(Service, other))
        outcome = found[1].turn()
        assert ["without DSR" in each.reason for each in outcome.problems] == [True]
        assert len([line for line in marks(world.nodes[1]) if VIPS[4] in line]) == 0
        assert world.client.run(ask, VIPS[4], socket.SOCK_STREAM).startswith("a ")
        assert world.client.run(ask, VIPS[6], socket.SOCK_STREAM) == f"a {CLIENT[6]}"
        found[1].cache.delete(Service, "default/other")
        assert found[1].turn().problems == ()
        assert world.client.run(ask, VIPS[4], socket.SOCK_STREAM) == f"a {CLIENT[4]}"


def test_over_an_overlay_between_the_nodes(world: World) -> None:
    """As routers build it: pods of other nodes are reached through ipip between node addresses."""
    for here, there, pod in ((1, 2, "b"), (2, 1, "a")):
        mine, theirs = NODES[here][4], NODES[there][4]
        world.nodes[here].run(
            sh,
            f"ip link add tun-peer type ipip local {mine} remote {theirs}",
            "ip link set tun-peer up",
            f"ip route replace {PODS[pod][4]}/32 dev tun-peer src {mine}",
        )
    with agents(world, "b") as found, closing(Capture(world.nodes[1], "eth0")) as balancer:
        both_turn(found)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            assert world.client.run(ask, VIPS[4], kind) == f"b {CLIENT[4]}"
        assert balancer.from_vip() == []


def test_the_node_itself_and_a_pod_are_clients_too(world: World) -> None:
    with agents(world, "a", "b") as found:
        both_turn(found)
        for version, vip in VIPS.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                names = {world.nodes[1].run(ask, vip, kind) for _ in range(4)}
                assert names == {f"{each} {NODES[1][version]}" for each in "ab"}
                # To the pod the VIP is its own address: it answers itself.
                assert world.pods["a"].run(ask, vip, kind).startswith("a ")
