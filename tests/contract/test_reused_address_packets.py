"""A pod's address goes to the next pod while the kernel remembers a connection of the first: the
firewall with the adapters that the agent gives it, in a network namespace."""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

from kube_router_py.adapters import firewall_opener
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Pod
from kube_router_py.firewall.controller import KINDS, Firewall
from kube_router_py.firewall.settings import firewall_options
from kube_router_py.kernel.sysctl import ProcSysctls
from kube_router_py.manifests import Manifests
from kube_router_py.options import parse

pytestmark = [
    pytest.mark.netfilter,
    pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"]),
    pytest.mark.parametrize("version", [4, 6]),
]

POD = {4: "10.244.1.10", 6: "fd00:10:244:1::10"}
CLIENT = {4: "192.168.1.2", 6: "fd00:1::2"}
NODE = {4: "192.168.1.1", 6: "fd00:1::1"}
GATEWAY = {4: "10.244.1.1", 6: "fd00:10:244:1::1"}
BITS = {4: 24, 6: 64}
SERVER_PORT, CLIENT_PORT = 80, 4711
_DEADLINE_S = 60.0
# Pods of app "open" admit everybody, those of "shut" nobody; both are isolated.
POLICIES = {
    "x/open": {"podSelector": {"matchLabels": {"app": "open"}}, "ingress": [{}]},
    "x/shut": {"podSelector": {"matchLabels": {"app": "shut"}}},
}


def bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, socket.SOCK_DGRAM)
    found.bind((address, port))
    found.settimeout(30.0)
    return found


def exchange(rig: Any) -> bool:
    """Whether the pod answers the client, or (False) the client is refused, from the same port to
    the same port each time."""
    client = rig.client.run(bound, rig.client_address, CLIENT_PORT)
    server = rig.pod.run(bound, rig.pod_address, SERVER_PORT)
    deadline = time.monotonic() + _DEADLINE_S
    with client, server:
        client.connect((rig.pod_address, SERVER_PORT))
        server.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                client.send(b"?")
                data, peer = server.recvfrom(16)
            except OSError as error:
                # A refusal may be told by the next call; whatever else is told is no verdict.
                told = (error.errno, client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                if errno.ECONNREFUSED in told:
                    return False
                continue
            server.sendto(data, peer)
            assert client.recv(16) == data
            return True
    raise AssertionError("neither an answer nor a refusal")


@pytest.fixture
def rig(
    new_namespace: Callable[[], AbstractContextManager[None]],
    request: pytest.FixtureRequest,
    clusters: Any,
    variant: str,
    version: int,
) -> Iterator[Any]:
    with new_namespace():
        sysctls = ProcSysctls()
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            sysctls.write(name, "1")
        sysctls.write("net/ipv4/icmp_ratemask", "0")
        sysctls.write("net/ipv6/icmp/ratelimit", "0")
        peer = request.getfixturevalue("peer")
        places = []
        for link, near, far in (("pod0", GATEWAY, POD), ("eth0", NODE, CLIENT)):
            nodad = "" if version == 4 else " nodad"
            bits = BITS[version]
            places.append(
                peer(link, f"{near[version]}/{bits}{nodad}", f"{far[version]}/{bits}{nodad}")
            )
        cache = Cache(KINDS)
        flags = [f"--iptables-backend={variant.removeprefix('iptables-')}", "--enable-ipv6"]
        options = parse([*flags, "--run-service-proxy=false"], {})
        firewall = Firewall(cache, firewall_options(options), "node1", firewall_opener(options))
        firewall.open()
        found = SimpleNamespace(
            pod=places[0],
            client=places[1],
            pod_address=POD[version],
            client_address=CLIENT[version],
            cache=cache,
            writes=lambda: firewall.ports.conntrack.writes if firewall.ports else None,
            turn=lambda: firewall.reconcile(frozenset(), True),
        )

        def put(*documents: Any) -> None:
            for each in documents:
                manifests = Manifests()
                manifests.add(each, "", "IPv4")
                for kind in KINDS:
                    for thing in manifests.list(kind):
                        cache.put(kind, thing)

        found.put = put
        put(clusters.node("node1"), clusters.namespace("x"))
        put(*(clusters.policy(key, spec) for key, spec in POLICIES.items()))
        found.pod_named = lambda name, app: clusters.pod(
            f"x/{name}", "node1", (POD[version],), labels={"app": app}
        )
        yield found
        firewall.close()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_new_pod_does_not_inherit_the_connections_of_the_old(rig: Any, at_once: bool) -> None:
    """``at_once``: the new one comes in the turn in which the old one goes."""
    rig.put(rig.pod_named("first", "open"))
    assert not rig.turn().failed
    assert exchange(rig)
    rig.cache.delete(Pod, "x/first")
    if not at_once:
        assert not rig.turn().failed
    rig.put(rig.pod_named("second", "shut"))
    outcome = rig.turn()
    assert not outcome.failed, outcome.problems
    assert not exchange(rig)


def test_the_same_pod_keeps_its_connections_when_policies_change(rig: Any) -> None:
    rig.put(rig.pod_named("first", "open"))
    rig.turn()
    assert exchange(rig)
    rig.put(rig.pod_named("first", "shut"))
    rig.turn()
    assert exchange(rig)
    assert rig.writes() == 0
