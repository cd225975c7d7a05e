"""The rules of the service proxy with packets: who gets to a Service, and who does not."""

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.host import open_host
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.takeover import Takeover

pytestmark = pytest.mark.kernel

_TIMEOUT_S = 60.0
# How long a connection waits that ought to be dropped; the rule's counter says that it was.
_DROPPED_S = 4.0

NODE = {4: "192.168.1.1", 6: "fd00:1::1"}
POD = {4: "10.244.1.2", 6: "fd00:10:244:1::2"}
ELSEWHERE = {4: "10.244.2.2", 6: "fd00:10:244:2::2"}
CLIENT = {4: "203.0.113.7", 6: "fd00:203::7"}
CLUSTER_IP = {4: "10.96.0.1", 6: "fd00:96::1"}
BALANCER = {4: "192.0.2.10", 6: "fd00:192::10"}
NODE_PORT = 30080


def sh(*commands: str) -> str:
    out = ""
    for command in commands:
        done = subprocess.run(
            command.split(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        out += done.stdout
    return out


def serve(host: str, port: int = 8080) -> socket.socket:
    """Answer every connection with the address it came from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)

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


def ask(address: str, port: int, timeout_s: float = _TIMEOUT_S) -> str:
    """The source address that the backend saw, or ``refused``, or ``nothing``."""
    try:
        with socket.create_connection((address, port), timeout_s) as connection:
            return connection.recv(64).decode()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "nothing"


def ask_from(address: str, port: int) -> tuple[int, str]:
    """The client's own port, and the source address that the backend saw."""
    with socket.create_connection((address, port), _TIMEOUT_S) as connection:
        return connection.getsockname()[1], connection.recv(64).decode()


def ping(address: str) -> bool:
    """Whether an echo request (RFC 792, RFC 4443) is answered from its destination."""
    is_ipv6 = ":" in address
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    request, reply = (128, 129) if is_ipv6 else (8, 0)
    # The kernel fills in the checksum of ICMPv6; this is that of the four words of ICMP.
    checksum = 0 if is_ipv6 else ~(request * 256 + 0x4242 + 1) & 0xFFFF
    packet = bytes((request, 0)) + checksum.to_bytes(2, "big") + b"\x42\x42\0\1"
    protocol = socket.IPPROTO_ICMPV6 if is_ipv6 else socket.IPPROTO_ICMP
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.sendto(packet, (address, 0))
        while True:
            found, source = sock.recvfrom(256)
            answer = found if is_ipv6 else found[20:]
            if source[0] == address and answer[0] == reply and answer[4:6] == b"\x42\x42":
                return True


class Rig:
    """One node with a pod on a bridge, a node elsewhere, and a client outside; both families."""

    def __init__(self, peer: Any, stack: Any) -> None:
        self.pod = peer("pod0", "10.244.1.3/32", f"{POD[4]}/24")
        self.elsewhere = peer("eth0", f"{NODE[4]}/24", "192.168.1.2/24")
        self.client = peer("out0", "203.0.113.1/24", f"{CLIENT[4]}/24")
        # A bridge as CNI plugins make it, the hairpin flag of its port off.
        sh(
            "ip link add kube-bridge type bridge",
            "ip addr flush dev pod0",
            "ip link set pod0 master kube-bridge",
            "ip addr add 10.244.1.1/24 dev kube-bridge",
            "ip link set kube-bridge up",
            "ip -6 addr add fd00:10:244:1::1/64 dev kube-bridge nodad",
            f"ip -6 addr add {NODE[6]}/64 dev eth0 nodad",
            "ip -6 addr add fd00:203::1/64 dev out0 nodad",
            "ip route add 10.244.2.0/24 via 192.168.1.2",
            "ip -6 route add fd00:10:244:2::/64 via fd00:1::2",
        )
        for place, address, gateway in (
            (self.pod, f"{POD[6]}/64", "fd00:10:244:1::1"),
            (self.elsewhere, "fd00:1::2/64", NODE[6]),
            (self.client, f"{CLIENT[6]}/64", "fd00:203::1"),
        ):
            place.run(sh, f"ip -6 addr add {address} dev veth0 nodad")
            place.run(sh, f"ip -6 route add default via {gateway}")
        self.pod.run(sh, "ip route replace default via 10.244.1.1")
        for version in (4, 6):
            # What is tentative, be it on lo, nobody can bind to.
            flag, how = ("-6 ", " nodad") if version == 6 else ("", "")
            self.elsewhere.run(sh, f"ip {flag}addr add {ELSEWHERE[version]} dev lo{how}")
        for place, addresses in ((self.pod, POD), (self.elsewhere, ELSEWHERE)):
            for address in addresses.values():
                stack.enter_context(closing(place.run(serve, address)))
        self.cache = Cache((Service, EndpointSlice, Node))
        self.cache.replace(Service, (), "1")
        self.cache.replace(EndpointSlice, (), "1")
        nodes = [
            self._node("node1", NODE.values(), "10.244.1.0/24", "fd00:10:244:1::/64"),
            self._node(
                "node2", ("192.168.1.2", "fd00:1::2"), "10.244.2.0/24", "fd00:10:244:2::/64"
            ),
        ]
        self.cache.replace(Node, nodes, "1")
        self.proxy: ServiceProxy | None = None

    @staticmethod
    def _node(name: str, addresses: Iterable[str], *cidrs: str) -> Node:
        listed = [{"type": "InternalIP", "address": address} for address in addresses]
        value = {
            "metadata": {"name": name},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": listed},
        }
        found: Node = msgspec.convert(value, Node)
        return found

    def put(self, *backends: dict[int, str], **spec: Any) -> None:
        """The Service with these backends."""
        annotations = spec.pop("annotations", {})
        metadata: dict[str, Any] = {"name": "web", "namespace": "default"}
        service = {
            "metadata": {**metadata, "annotations": annotations},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": CLUSTER_IP[4],
                "clusterIPs": list(CLUSTER_IP.values()),
                "ports": [{"port": 80, "nodePort": NODE_PORT}],
                **spec,
            },
            "status": {"loadBalancer": {"ingress": [{"ip": ip} for ip in BALANCER.values()]}},
        }
        self.cache.put(Service, msgspec.convert(service, Service))
        for version in (4, 6):
            endpoints = [
                {"addresses": [each[version]], "nodeName": "node1" if each is POD else "node2"}
                for each in backends
            ]
            found = {
                "metadata": {
                    "name": f"web-{version}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": f"IPv{version}",
                "ports": [{"port": 8080}],
                "endpoints": endpoints,
            }
            self.cache.put(EndpointSlice, msgspec.convert(found, EndpointSlice))

    def turn(self, *, full: bool = False, followers: Iterable[Any] = ()) -> Any:
        if self.proxy is None:
            self.proxy = ServiceProxy(
                self.cache,
                ProxyOptions(ipv6=True, strict_external_ips=False),
                "node1",
                lambda: open_host(families=("inet", "inet6")),
                followers=followers,
            )
            self.proxy.open()
        full = full or not self.proxy.virtual_servers
        outcome = self.proxy.reconcile(frozenset({"default/web"}), full)
        assert outcome.failed == frozenset()
        return outcome

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.close()


@pytest.fixture
def rig(
    new_namespace: Callable[[], AbstractContextManager[None]], request: pytest.FixtureRequest
) -> Iterator[Rig]:
    sh("modprobe br_netfilter")
    with new_namespace():
        sh("ip link set lo up")
        peer = request.getfixturevalue("peer")
        with ExitStack() as stack, closing(Rig(peer, stack)) as found:
            yield found


def program(version: int) -> str:
    return "ip6tables" if version == 6 else "iptables"


def dropped(version: int, chain: str, table: str = "filter") -> int:
    """How many packets the rules of a chain have dropped."""
    lines = sh(f"{program(version)} -t {table} -nvxL {chain}").splitlines()
    return sum(int(line.split()[0]) for line in lines if re.search(r"\bDROP\b", line))


@pytest.mark.parametrize("version", [4, 6])
def test_a_vip_answers_on_its_ports_only(rig: Rig, version: int) -> None:
    rig.put(POD)
    rig.turn()
    vip, client = BALANCER[version], CLIENT[version]
    everywhere = "::" if version == 6 else "0.0.0.0"
    with closing(serve(everywhere, 9999)):
        assert rig.client.run(ask, vip, 80) == client
        # Whoever listens on the host does so at the node's addresses, not at those of Services.
        assert rig.client.run(ask, NODE[version], 9999) == client
        assert rig.client.run(ask, vip, 9999) == "refused"
        assert rig.pod.run(ask, CLUSTER_IP[version], 9999) == "refused"
        assert ask(CLUSTER_IP[version], 9999) == "refused"
        assert rig.client.run(ping, vip)
        # An address that came to a link of the node by other hands is that link's.
        flag, rest = ("-6 ", "/128 dev lo nodad") if version == 6 else ("", "/32 dev lo")
        sh(f"ip {flag}addr add {vip}{rest}")
        assert rig.proxy is not None
        assert rig.proxy.reconcile(frozenset(), True).problems == ()
        assert rig.client.run(ask, vip, 9999) == client
        assert rig.client.run(ask, vip, 80) == client


@pytest.mark.parametrize("version", [4, 6])
def test_administrators_rules_come_before_what_is_accepted(rig: Rig, version: int) -> None:
    iptables, icmp = program(version), "ipv6-icmp" if version == 6 else "icmp"
    # Neighbour discovery is theirs to allow; connections and pings to Services are not cut.
    sh(f"{iptables} -A INPUT -i eth0 -j ACCEPT", f"{iptables} -A INPUT -i kube-bridge -j ACCEPT")
    sh(f"{iptables} -A INPUT -s {CLIENT[version]} -p tcp --dport 30081 -j ACCEPT")
    if version == 6:
        sh(f"{iptables} -A INPUT -p {icmp} --icmpv6-type 135 -j ACCEPT")
        sh(f"{iptables} -A INPUT -p {icmp} --icmpv6-type 136 -j ACCEPT")
    sh(f"{iptables} -P INPUT DROP")
    rig.put(POD)
    rig.turn()
    assert rig.client.run(ask, BALANCER[version], 80) == CLIENT[version]
    assert rig.client.run(ask, NODE[version], NODE_PORT) == CLIENT[version]
    assert rig.client.run(ping, BALANCER[version])
    sh(f"{iptables} -I INPUT 3 -s {CLIENT[version]} -d {BALANCER[version]} -j DROP")
    assert rig.client.run(ask, BALANCER[version], 80, _DROPPED_S) == "nothing"
    assert rig.client.run(ask, NODE[version], NODE_PORT) == CLIENT[version]


@pytest.mark.parametrize("version", [4, 6])
def test_source_ranges_hold_for_new_connections(rig: Rig, version: int) -> None:
    rig.put(POD, loadBalancerSourceRanges=[f"{CLIENT[4]}/32", f"{CLIENT[6]}/128"])
    rig.turn()
    vip = BALANCER[version]
    assert rig.client.run(ask, vip, 80) == CLIENT[version]
    before = dropped(version, "KUBE-ROUTER-GUARD")
    assert rig.pod.run(ask, vip, 80, _DROPPED_S) == "nothing"
    assert dropped(version, "KUBE-ROUTER-GUARD") > before
    before = dropped(version, "KUBE-ROUTER-GUARD-OUT", "mangle")
    assert ask(vip, 80, _DROPPED_S) == "nothing"
    assert dropped(version, "KUBE-ROUTER-GUARD-OUT", "mangle") > before
    # The other addresses of the Service are not limited.
    assert rig.client.run(ask, NODE[version], NODE_PORT) == CLIENT[version]
    # IPv4 ranges alone leave nobody of IPv6.
    rig.put(POD, loadBalancerSourceRanges=["198.51.100.0/24"])
    rig.turn()
    assert rig.client.run(ask, vip, 80, _DROPPED_S) == "nothing"
    rig.put(POD)
    rig.turn()
    assert rig.client.run(ask, vip, 80) == CLIENT[version]
    assert ask(vip, 80) == NODE[version]


@pytest.mark.parametrize("version", [4, 6])
def test_without_a_local_endpoint_the_cluster_still_gets_through(rig: Rig, version: int) -> None:
    rig.put(ELSEWHERE, externalTrafficPolicy="Local")
    rig.turn()
    vip = BALANCER[version]
    for address, port in ((vip, 80), (NODE[version], NODE_PORT)):
        before = dropped(version, "KUBE-ROUTER-GUARD")
        assert rig.client.run(ask, address, port, _DROPPED_S) == "nothing"
        assert dropped(version, "KUBE-ROUTER-GUARD") > before
        assert rig.pod.run(ask, address, port) == POD[version]
        assert ask(address, port) == NODE[version]
    assert rig.client.run(ask, CLUSTER_IP[version], 80) == NODE[version]
    rig.put(POD, ELSEWHERE, externalTrafficPolicy="Local")
    rig.turn()
    assert rig.client.run(ask, vip, 80) == CLIENT[version]
    # For those inside: no local endpoint, no connection, and nothing that says so.
    rig.put(ELSEWHERE, internalTrafficPolicy="Local")
    rig.turn()
    assert rig.pod.run(ask, CLUSTER_IP[version], 80, _DROPPED_S) == "nothing"
    assert ask(CLUSTER_IP[version], 80, _DROPPED_S) == "nothing"


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_itself_through_its_service(rig: Rig, version: int) -> None:
    hairpin = {"kube-router.io/service.hairpin": ""}
    rig.put(POD, annotations=hairpin)
    # The bridge has a word in it, too: its port has to be in hairpin mode, and that is told.
    (problem,) = rig.turn().problems
    assert "bridge link set dev pod0 hairpin on" in problem.reason
    sh("bridge link set dev pod0 hairpin on")
    assert rig.turn(full=True).problems == ()
    for address, port in (
        (CLUSTER_IP[version], 80),
        (BALANCER[version], 80),
        (NODE[version], NODE_PORT),
    ):
        assert rig.pod.run(ask, address, port) == NODE[version]
    rig.put(POD)
    rig.turn()
    assert rig.pod.run(ask, CLUSTER_IP[version], 80, _DROPPED_S) == "nothing"


def ask_in_detail(address: str, port: int) -> str:
    """As ``ask``, but an answer that did not come says why."""
    try:
        with socket.create_connection((address, port), _TIMEOUT_S) as connection:
            return connection.recv(64).decode() or "closed"
    except OSError as error:
        return repr(error)


class Traffic:
    """Requests of a client, one after the other, until told to stop."""

    def __init__(self, place: Any, address: str) -> None:
        self.answers: list[str] = []
        self._stop = threading.Event()
        self._place, self._address = place, address
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._place.run(ask_in_detail, self._address, 80))

    def wait_for(self, number: int) -> None:
        """Until so many more answers have come."""
        wanted = len(self.answers) + number
        deadline = time.monotonic() + _TIMEOUT_S
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, "no answers"
            time.sleep(0.05)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def kube_proxy_was_here(mode: str) -> None:
    """What kube-proxy leaves of one Service, mode iptables or ipvs."""
    vip = CLUSTER_IP[4]
    if mode == "ipvs":
        sh(
            "ip link add kube-ipvs0 type dummy",
            f"ip addr add {vip}/32 dev kube-ipvs0",
            "ip link set kube-ipvs0 up",
            f"ipvsadm -A -t {vip}:80 -s rr",
            f"ipvsadm -a -t {vip}:80 -r {POD[4]}:8080 -m",
            "ipset create KUBE-CLUSTER-IP hash:ip,port",
        )
        # As kube-proxy sets it: connections that IPVS began without conntrack are none of its.
        Path("/proc/sys/net/ipv4/vs/conntrack").write_text("1")
        match = "-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"
        # It is by this rule that conntrack sees packets in a namespace at all. Where that begins
        # in the middle of a connection, what IPVS and conntrack know of it differ.
        sh(
            "iptables -t nat -N KUBE-POSTROUTING",
            "iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING",
            "iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE",
        )
    else:
        match = f"-d {vip}/32 -p tcp --dport 80 -j DNAT --to-destination {POD[4]}:8080"
    sh(
        "iptables -t nat -N KUBE-SERVICES",
        "iptables -t nat -A PREROUTING -j KUBE-SERVICES",
        "iptables -t nat -A OUTPUT -j KUBE-SERVICES",
        f"iptables -t nat -A KUBE-SERVICES {match}",
    )


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_a_node_is_taken_over_from_kube_proxy_without_a_failed_request(rig: Rig, mode: str) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    kube_proxy_was_here(mode)
    with Traffic(rig.client, CLUSTER_IP[4]) as traffic:
        traffic.wait_for(3)
        rig.put(POD)
        rig.turn(followers=[Takeover("node1", lambda: None)])
        traffic.wait_for(5)
    assert set(traffic.answers) == {CLIENT[4]}
    assert not re.search("KUBE-(SERVICES|POSTROUTING)", sh("iptables-save -t nat"))
    assert "kube-ipvs0" not in sh("ip link show")
    assert "KUBE-" not in sh("ipset list -name")
    # It is ours that answers now.
    port, answer = rig.client.run(ask_from, CLUSTER_IP[4], 80)
    assert answer == CLIENT[4]
    assert f"{CLIENT[4]}:{port} " in sh("ipvsadm -Lnc")
