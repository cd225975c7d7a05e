"""The service proxy on a real kernel: rules as the kernel prints them, restarts, and packets."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.host import open_host
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.settings import ProxyOptions

pytestmark = pytest.mark.kernel

_TIMEOUT_S = 30.0

# Backends of the services, and the node ports that lead to each.
POD, ELSEWHERE, HOST = "10.244.1.2", "10.244.2.2", "192.168.1.1"
SERVICES = {POD: ("10.96.0.1", 30001), ELSEWHERE: ("10.96.0.2", 30002), HOST: ("10.96.0.3", 30003)}


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


@pytest.fixture
def cache() -> Cache:
    found = Cache((Service, EndpointSlice, Node))
    addresses = [{"type": "InternalIP", "address": ip} for ip in ("192.168.1.1", "fd00:1::1")]
    node = {
        "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "status": {"addresses": addresses},
    }
    other = {"metadata": {"name": "node2"}, "spec": {"podCIDRs": ["10.244.2.0/24"]}}
    found.replace(Node, [make(Node, node), make(Node, other)], "1")
    services, slices = [], []
    for number, (backend, (cluster_ip, node_port)) in enumerate(SERVICES.items()):
        name = f"s{number}"
        metadata = {"name": name, "namespace": "default"}
        spec = {
            "type": "NodePort",
            "clusterIPs": [cluster_ip, f"fd00:96::{number + 1}"],
            "ports": [{"port": 80, "nodePort": node_port}],
        }
        services.append(make(Service, {"metadata": metadata, "spec": spec}))
        slices.append(slice_of(name, backend))
    found.replace(Service, services, "1")
    found.replace(EndpointSlice, slices, "1")
    return found


def slice_of(service: str, *addresses: str) -> EndpointSlice:
    found: EndpointSlice = make(
        EndpointSlice,
        {
            "metadata": {
                "name": service,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "ports": [{"port": 8080}],
            "endpoints": [{"addresses": [address]} for address in addresses],
        },
    )
    return found


def table(vip: str) -> set[str]:
    """The real servers of a ClusterIP's port 80, as ipvsadm prints them."""
    lines = (line.split() for line in sh("ipvsadm -Sn").splitlines())
    return {words[4] for words in lines if words[:3] == ["-a", "-t", f"{vip}:80"]}


@pytest.fixture
def node(new_namespace: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    sh("modprobe br_netfilter")
    with new_namespace():
        sh("ip link set lo up")
        yield


def start(
    cache: Cache, mode: str = "route", variant: str | None = None, *, masquerade_all: bool = False
) -> ServiceProxy:
    proxy = ServiceProxy(
        cache,
        ProxyOptions(ipv6=True, masquerade_all=masquerade_all),
        "node1",
        lambda: open_host(vip_mode=mode, iptables_variant=variant, families=("inet", "inet6")),
    )
    proxy.open()
    outcome = proxy.reconcile(frozenset(), True)
    assert (outcome.failed, outcome.problems) == (frozenset(), ())
    return proxy


def writes(proxy: ServiceProxy) -> int:
    assert proxy.ports is not None
    return proxy.ports.writes


@pytest.mark.parametrize("mode", ["route", "address"])
@pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"])
@pytest.mark.usefixtures("node")
def test_a_restart_with_nothing_to_change_writes_nothing(
    cache: Cache, mode: str, variant: str
) -> None:
    sh("ip link add eth0 type dummy", "ip link set eth0 up", "ip addr add 192.168.1.1/24 dev eth0")
    sh("ip -6 addr add fd00:1::1/64 dev eth0 nodad")
    with closing(start(cache, mode, variant)) as first:
        assert writes(first) > 0
    with closing(start(cache, mode, variant)) as second:
        assert writes(second) == 0
    local, to_masq = "kube-router-local-cidrs", "-m ipvs --vdir ORIGINAL --vmethod MASQ -j"
    rules = [each for each in sh(f"{variant}-save -t nat").splitlines() if each.startswith("-A")]
    assert rules[:2] + rules[3:4] == [
        f"-A POSTROUTING {to_masq} KUBE-ROUTER-HAIRPIN",
        f"-A POSTROUTING {to_masq} KUBE-ROUTER-MASQ",
        f"-A KUBE-ROUTER-MASQ -m set ! --match-set {local} src -m set ! --match-set {local} dst "
        "-j SNAT --to-source 192.168.1.1 --random-fully",
    ]


@pytest.mark.usefixtures("node")
def test_a_refused_endpoint_and_foreign_deletes_hold_nothing_else_up(cache: Cache) -> None:
    """The kernel takes no broadcast address of a link for a real server: it refuses that alone."""
    sh("ip link add eth0 type dummy", "ip link set eth0 up", "ip addr add 192.168.1.1/24 dev eth0")
    sh("ip -6 addr add fd00:1::1/64 dev eth0 nodad")
    cache.put(EndpointSlice, slice_of("s0", "192.168.1.255", "192.168.1.8"))
    proxy = ServiceProxy(
        cache, ProxyOptions(ipv6=True), "node1", lambda: open_host(families=("inet", "inet6"))
    )
    proxy.open()
    with closing(proxy):
        assert proxy.reconcile(frozenset(), True).failed == {"default/s0"}
        vip = "10.96.0.1"
        assert table(vip) == {"192.168.1.8:8080"}
        assert f"local {vip} dev kube-dummy-if" in sh("ip route show table local")
        # The mistake is mended: nothing waits for a retry.
        cache.put(EndpointSlice, slice_of("s0", "192.168.1.7", "192.168.1.8"))
        assert proxy.reconcile(frozenset({"default/s0"}), False).failed == frozenset()
        assert table(vip) == {"192.168.1.7:8080", "192.168.1.8:8080"}
        # Somebody empties the table; the next change of one Service meets that.
        before = sh("ipvsadm -Sn")
        sh("ipvsadm -C")
        cache.put(EndpointSlice, slice_of("s0", "192.168.1.7", "192.168.1.8", "192.168.1.9"))
        assert proxy.reconcile(frozenset({"default/s0"}), False).failed == {"default/s0"}
        assert proxy.reconcile(frozenset({"default/s0"}), True).failed == frozenset()
        assert len(table(vip)) == 3
        assert len(sh("ipvsadm -Sn").splitlines()) == len(before.splitlines()) + 2


def serve(address: str) -> socket.socket:
    """Answer every connection to port 8080 with the address it came from."""
    listener = socket.create_server((address, 8080))

    def answer() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:  # closed: the test is over
                return
            with connection:
                connection.sendall(peer[0].encode())

    threading.Thread(target=answer, daemon=True).start()
    return listener


def ask(address: str, port: int) -> str:
    """Connect, and return the source address that the backend saw."""
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        return connection.recv(64).decode()


@pytest.mark.usefixtures("node")
def test_who_is_seen_by_the_backend(cache: Cache, peer: Any) -> None:
    with ExitStack() as stack:
        pod = peer("pod0", "10.244.1.1/24", f"{POD}/24")
        client = peer("out0", "203.0.113.1/24", "203.0.113.7/24")
        elsewhere = peer("eth0", "192.168.1.1/24", "192.168.1.2/24")
        elsewhere.run(sh, f"ip addr add {ELSEWHERE}/32 dev lo")
        sh("ip route add 10.244.2.0/24 via 192.168.1.2")
        sh("ip -6 addr add fd00:1::1/64 dev eth0 nodad")
        for place, address in ((pod, POD), (elsewhere, ELSEWHERE)):
            stack.enter_context(closing(place.run(serve, address)))
        stack.enter_context(closing(serve(HOST)))
        stack.enter_context(closing(start(cache)))

        by_node_port = {
            backend: client.run(ask, HOST, port) for backend, (_, port) in SERVICES.items()
        }
        assert by_node_port == {POD: "203.0.113.7", ELSEWHERE: HOST, HOST: "203.0.113.7"}
        from_a_pod = {
            backend: pod.run(ask, cluster_ip, 80)
            for backend, (cluster_ip, _) in SERVICES.items()
            if backend != POD
        }
        assert from_a_pod == {ELSEWHERE: POD, HOST: POD}
        from_the_node = {
            backend: ask(cluster_ip, 80) for backend, (cluster_ip, _) in SERVICES.items()
        }
        assert from_the_node == dict.fromkeys(SERVICES, HOST)


def answer_datagrams(address: str) -> socket.socket:
    """Answer every datagram to port 8080 with the own address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((address, 8080))

    def answer() -> None:
        while True:
            try:
                _, peer = listener.recvfrom(64)
                listener.sendto(address.encode(), peer)
            except OSError:  # closed: the test is over
                return

    threading.Thread(target=answer, daemon=True).start()
    return listener


class Flow:
    """A UDP flow: one socket, one source port."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((address, port))

    def ask(self, timeout_s: float = _TIMEOUT_S) -> str:
        """Who answers the next datagram; nobody: an empty string."""
        self._socket.settimeout(timeout_s)
        try:
            self._socket.send(b"?")
            return self._socket.recv(64).decode()
        except (TimeoutError, ConnectionRefusedError, PermissionError):  # the last: a drop here
            return ""

    def ask_again(self) -> str:
        """Who answers first, of some datagrams: those may be lost that come before a timer of the
        kernel has taken the old entry away. On the node itself they are refused at once."""
        deadline = time.monotonic() + 60.0
        while not (found := self.ask(5.0)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.mark.usefixtures("node")
def test_udp_flows_of_a_removed_endpoint_move_at_once_and_no_others(
    cache: Cache, peer: Any
) -> None:
    """With conntrack on and every source rewritten; flows from outside, and the node's own."""
    with ExitStack() as stack:
        client = peer("out0", "203.0.113.1/24", "203.0.113.7/24")
        places = {
            POD: peer("pod0", "10.244.1.1/24", f"{POD}/24"),
            "10.244.1.9": peer("pod1", "10.244.1.8/32", "10.244.1.9/24"),
        }
        sh("ip route add 10.244.1.9/32 dev pod1")
        places["10.244.1.9"].run(sh, "ip route add 10.244.1.8/32 dev veth0")
        places["10.244.1.9"].run(sh, "ip route replace default via 10.244.1.8 dev veth0")
        sh("ip link add eth0 type dummy", "ip link set eth0 up", f"ip addr add {HOST}/24 dev eth0")
        sh("ip -6 addr add fd00:1::1/64 dev eth0 nodad")
        for address, place in places.items():
            stack.enter_context(closing(place.run(answer_datagrams, address)))
        metadata = {"name": "udp", "namespace": "default"}
        spec = {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.9",
            "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 53, "protocol": "UDP"}],
        }
        cache.put(Service, make(Service, {"metadata": metadata, "spec": spec}))

        def slices(*addresses: str) -> None:
            found = slice_of("udp", *addresses)
            ports = (structs.replace((found.ports or ())[0], protocol="UDP"),)
            cache.put(EndpointSlice, structs.replace(found, ports=ports))

        slices(*places)
        proxy = stack.enter_context(closing(start(cache, masquerade_all=True)))
        assert Path("/proc/sys/net/ipv4/vs/conntrack").read_text().strip() == "1"

        def outside(call: Callable[..., Any], *given: Any) -> Any:
            return client.run(call, *given)

        def on_the_node(call: Callable[..., Any], *given: Any) -> Any:
            return call(*given)

        for run in (outside, on_the_node):
            flows = [stack.enter_context(closing(run(Flow, "10.96.0.9", 53))) for _ in range(6)]
            served = {flow: run(flow.ask_again) for flow in flows}
            assert set(served.values()) == set(places)
            slices("10.244.1.9")
            assert proxy.reconcile(frozenset({"default/udp"}), False).failed == frozenset()
            for flow, address in served.items():
                if address == "10.244.1.9":
                    # Nothing happened to this one: not a single datagram is lost.
                    assert run(flow.ask) == "10.244.1.9"
                else:
                    # The kernel gives the entry up with the next datagram, and that datagram with
                    # it; left alone, the entry would live for 300 s.
                    assert run(flow.ask_again) == "10.244.1.9"
            slices(*places)
            assert proxy.reconcile(frozenset({"default/udp"}), False).failed == frozenset()
