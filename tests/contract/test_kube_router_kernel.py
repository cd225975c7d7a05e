"""A node that kube-router served, taken over with packets on it, and given back."""

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

from kube_router_py.adapters import dsr_opener, routing_opener
from kube_router_py.cleanup import clean_up
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel.host import open_host
from kube_router_py.options import parse
from kube_router_py.proxy.controller import ServiceProxy
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.takeover import Takeover

pytestmark = pytest.mark.kernel

_TIMEOUT_S = 60.0

NODE, VIP, DSR_VIP, BACKEND = "192.168.1.1", "10.96.0.1", "10.96.0.9", "10.244.2.2"

# What a firewall and a router of kube-router that stay would have, beside an administrator's rule.
_OF_OTHERS = {
    "filter": ("-N KUBE-ROUTER-INPUT", "-N KUBE-POD-FW-X", "-I INPUT -j KUBE-ROUTER-INPUT"),
    "nat": ("-A POSTROUTING -s 10.9.0.0/16 -j SNAT --to-source 192.168.1.1",),
    "mangle": ("-A PREROUTING -d 10.96.0.8 -p tcp --dport 80 -j MARK --set-mark 0x99",),
}
_MASQUERADED = "-m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ"
_DSR = f"-d {DSR_VIP} -p tcp --dport 80 -j MARK --set-mark 0x2a7b"
_RULES = {
    "nat": (
        f"-A POSTROUTING {_MASQUERADED} ! -s 10.244.1.0/24 ! -d 10.244.1.0/24 "
        f"-j SNAT --to-source {NODE} --random-fully",
        "-N KUBE-ROUTER-HAIRPIN",
        "-A POSTROUTING -m ipvs --ipvs --vdir ORIGINAL -j KUBE-ROUTER-HAIRPIN",
        f"-A KUBE-ROUTER-HAIRPIN -s {BACKEND} -d {BACKEND} -m ipvs --vaddr {VIP} --vport 80 "
        f"-j SNAT --to-source {VIP}",
    ),
    "filter": (
        "-N KUBE-ROUTER-SERVICES",
        "-A KUBE-ROUTER-SERVICES -m set --match-set kube-router-svip-prt dst,dst -j ACCEPT",
        "-A KUBE-ROUTER-SERVICES -m set ! --match-set kube-router-local-ips dst -j REJECT",
        "-I INPUT -m set --match-set kube-router-svip dst -j KUBE-ROUTER-SERVICES",
    ),
    "mangle": (f"-A PREROUTING {_DSR}", f"-A OUTPUT {_DSR}"),
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


def iptables(tables: dict[str, tuple[str, ...]]) -> None:
    for table, rules in tables.items():
        sh(*(f"iptables -t {table} {rule}" for rule in rules))


def kube_router_was_here() -> None:
    """What kube-router leaves of a Service, and of one with direct server return."""
    sh(
        "ip link add kube-dummy-if type dummy",
        "ip link set kube-dummy-if up",
        f"ip addr add {VIP}/32 dev kube-dummy-if scope link",
        f"ip route replace local {VIP} dev kube-dummy-if table local proto kernel scope host "
        f"src {NODE}",
        f"ipvsadm -A -t {VIP}:80 -s rr",
        f"ipvsadm -a -t {VIP}:80 -r {BACKEND}:8080 -m",
        "ipset create kube-router-local-ips hash:ip timeout 0",
        f"ipset add kube-router-local-ips {NODE}",
        "ipset create kube-router-svip hash:ip timeout 0",
        f"ipset add kube-router-svip {VIP}",
        "ipset add kube-router-svip 10.96.0.77",
        "ipset create kube-router-svip-prt hash:ip,port timeout 0",
        f"ipset add kube-router-svip-prt {VIP},tcp:80",
        "ip rule add fwmark 0x2a7b table 78 priority 32764",
        "ip rule add table 79 priority 32765",
        "ip route add local default dev lo table 78",
        "ipvsadm -A -f 10875 -s rr",
        f"ipvsadm -a -f 10875 -r {BACKEND} -i",
    )
    iptables(_RULES)


def others_are_here() -> None:
    sh("ip rule add from 10.244.1.0/24 table 77 priority 32700")
    iptables(_OF_OTHERS)


def state() -> str:
    """What there is in this namespace, as an administrator sees it; policies and counters left
    out."""
    tables = "".join(sh(f"iptables-save -t {table}") for table in _OF_OTHERS)
    rules = [line for line in tables.splitlines() if not line.startswith(("#", ":INPUT"))]
    kept = [line.split(" [")[0] for line in rules]
    return "\n".join((*kept, sh("ip -N rule show"), sh("ipset list -name"), sh("ipvsadm -Ln")))


def answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, peer = listener.accept()
        except OSError:  # closed: the test is over
            return
        with connection:
            connection.sendall(peer[0].encode())


def serve() -> socket.socket:
    listener = socket.create_server((BACKEND, 8080))
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
    return listener


def ask() -> str:
    """The source address that the backend saw, or what went wrong."""
    try:
        with socket.create_connection((VIP, 80), _TIMEOUT_S) as connection:
            return connection.recv(64).decode()
    except OSError as error:
        return repr(error)


@pytest.fixture
def client(
    new_namespace: Callable[[], AbstractContextManager[None]], request: pytest.FixtureRequest
) -> Iterator[Any]:
    """A client outside of a node; the backend is on another one."""
    sh("modprobe -a br_netfilter ip_vs")
    with new_namespace(), ExitStack() as stack:
        sh("ip link set lo up")
        peer = request.getfixturevalue("peer")
        outside = peer("out0", "203.0.113.1/24", "203.0.113.7/24")
        elsewhere = peer("eth0", f"{NODE}/24", "192.168.1.2/24")
        elsewhere.run(sh, f"ip addr add {BACKEND}/32 dev lo")
        stack.enter_context(closing(elsewhere.run(serve)))
        sh("ip route add 10.244.2.0/24 via 192.168.1.2")
        for name in ("ip_forward", "vs/conntrack"):
            Path("/proc/sys/net/ipv4", name).write_text("1")
        yield outside


@pytest.fixture
def cache() -> Cache:
    found = Cache((Service, EndpointSlice, Node))
    metadata = {"name": "web", "namespace": "default"}
    service = {"clusterIP": VIP, "clusterIPs": [VIP], "ports": [{"port": 80}]}
    slice_ = {
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [BACKEND], "nodeName": "node2"}],
    }
    node = {
        "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }
    wanted = msgspec.convert({"metadata": metadata, "spec": service}, Service)
    found.replace(Service, [wanted], "1")
    found.replace(EndpointSlice, [msgspec.convert(slice_, EndpointSlice)], "1")
    found.replace(Node, [msgspec.convert(node, Node)], "1")
    return found


@pytest.mark.parametrize("mode", ["route", "address"])
def test_a_node_is_taken_over_from_kube_router_and_given_back(
    client: Any, cache: Cache, mode: str
) -> None:
    others_are_here()
    before = state()
    kube_router_was_here()
    answers: list[str] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            answers.append(client.run(ask))

    def wait_for(number: int) -> None:
        wanted, deadline = len(answers) + number, time.monotonic() + _TIMEOUT_S
        while len(answers) < wanted:
            assert time.monotonic() < deadline, "no answers"
            time.sleep(0.05)

    proxy = ServiceProxy(
        cache,
        ProxyOptions(ipv6=False),
        "node1",
        lambda: open_host(vip_mode=mode),
        followers=[Takeover("node1", lambda: None)],
    )
    traffic = threading.Thread(target=work)
    traffic.start()
    with closing(proxy):
        try:
            wait_for(3)
            proxy.open()
            outcome = proxy.reconcile(frozenset(), True)
            wait_for(5)
            assert (outcome.failed, outcome.problems) == (frozenset(), ())
            assert proxy.reconcile(frozenset(), True).problems == ()
            wait_for(3)
        finally:
            over.set()
            traffic.join()
    assert set(answers) == {NODE}

    nat = sh("iptables-save -t nat")
    assert "! -s 10.244.1.0/24" not in nat
    assert f"--vaddr {VIP}" not in nat
    assert "10.96.0.77" not in sh("ipset list kube-router-svip")
    assert "0x2a7b" not in sh("iptables-save -t mangle", "ip rule show")
    assert "FWM" not in sh("ipvsadm -Ln")
    assert (VIP in sh("ip addr show dev kube-dummy-if")) is (mode == "address")
    stays = state()
    for rule in ("KUBE-ROUTER-INPUT", "KUBE-POD-FW-X", "0x99/0xffffffff", "lookup 77", "10.9.0.0"):
        assert rule in stays

    options = parse(["--enable-ipv6=false"], {})
    for _ in range(2):
        ports, said = open_host(needs_ipvs=False), []  # type: ignore[var-annotated]
        with closing(ports):
            openers = (dsr_opener(options), routing_opener(options))
            assert clean_up(options, ports, *openers, said.append), said
    assert state() == before
    assert "kube-dummy-if" not in sh("ip link show")
    # It has the node back.
    kube_router_was_here()
    assert client.run(ask) == NODE
