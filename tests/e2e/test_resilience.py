"""What must not disturb traffic: drift, restarts, a lost API server, broken objects."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

SERVICES = "/api/v1/namespaces/e2e/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/e2e/endpointslices"
CONFIG_MAPS = "/api/v1/namespaces/e2e/configmaps"
UNCHECKED = "?labValidation=off"


@contextmanager
def stream(cluster: Any, client: str, address: str) -> Iterator[Any]:
    """A connection on which the pod sends a line ten times a second."""
    with cluster.socket(client, 4, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect((address, 80))
        sock.sendall(b"GET /stream?interval=0.1 HTTP/1.1\r\nHost: lab\r\n\r\n")
        with sock.makefile("rb") as lines:
            while lines.readline().strip():
                pass
            yield sock, lines


def connection_entries(cluster: Any, node: str, port: int) -> list[list[str]]:
    """IPVS connection entries of a client port, without the timer that counts down."""
    rows = (line.split() for line in cluster.run(node, "ipvsadm", "-Lnc").splitlines()[2:])
    return [row[:1] + row[2:] for row in rows if row[3].endswith(f":{port}")]


def test_foreign_changes_are_repaired_and_told_and_excluded_networks_left_alone(
    cluster: Any, echo_ip: str
) -> None:
    foreign = "10.99.1.1:80"
    cluster.run("node1", "ipvsadm", "-A", "-t", foreign, "-s", "rr")
    cluster.run("node1", "ipvsadm", "-A", "-t", "10.98.7.7:80", "-s", "rr")
    cluster.run("node1", "ipvsadm", "-D", "-t", f"{echo_ip}:80")
    table = cluster.eventually(
        lambda: (t := cluster.ipvs("node1")) and f"TCP {echo_ip}:80" in t and t,
        "the deleted virtual server is back",
    )
    assert len(table[f"TCP {echo_ip}:80"]) == 2
    cluster.eventually(
        lambda: f"what='add virtual server TCP {echo_ip}:80" in cluster.agent_log("node1"),
        "the repair is logged",
    )
    cluster.eventually(
        lambda: "TCP 10.98.7.7:80" not in cluster.ipvs("node1"), "the stray one is removed"
    )
    stray = "removed what no Service asked for since the start what='TCP 10.98.7.7:80"
    assert stray in cluster.agent_log("node1")
    assert f"TCP {foreign}" in cluster.ipvs("node1")
    cluster.run("node1", "ipvsadm", "-D", "-t", foreign)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_keeps_streams_and_writes_nothing(cluster: Any, echo_ip: str, how: str) -> None:
    with (
        stream(cluster, "e2e/client1", echo_ip) as (sock, lines),
        cluster.traffic("e2e/client1", echo_ip, 80) as traffic,
    ):
        assert json.loads(lines.readline())
        port = sock.getsockname()[1]
        before = connection_entries(cluster, "node1", port)
        assert len(before) == 1
        cluster.agent("node1", how)
        cluster.agent("node1", "start")
        cluster.wait()
        assert connection_entries(cluster, "node1", port) == before
        assert cluster.metric("node1", "kube_router_kernel_writes_total") == 0
        for _ in range(20):
            assert json.loads(lines.readline())
    assert traffic.attempts > 20
    assert traffic.failures == []


def test_a_lost_api_server_costs_no_request_and_no_work(cluster: Any, echo_ip: str) -> None:
    """30 s without it, and then one that has forgotten its history: every watch lists anew."""
    cluster.wait()
    writes = {node: cluster.metric(node, WRITES) for node in ("node1", "node2")}
    relists = cluster.metric("node1", "kube_router_cache_relists_total")
    with cluster.traffic("e2e/client1", echo_ip, 80) as traffic:
        # A revision that no watch of the agent's tells: compaction leaves them all behind it.
        cluster.api.create(CONFIG_MAPS, {"metadata": {"name": "unwatched"}})
        cluster.state.ask({"op": "apiserver", "verb": "stop"})
        cluster.eventually(
            lambda: all(
                cache["stale_s"] > 30 for cache in cluster.ready("node1")["caches"].values()
            ),
            "the agent has heard nothing for 30 s",
        )
        assert cluster.ready("node1")["ready"], "what serves is ready, API server or not"
        cluster.state.ask({"op": "apiserver", "verb": "start", "compact": True})
        cluster.wait()
    assert traffic.attempts > 100
    assert traffic.failures == []
    assert cluster.metric("node1", "kube_router_cache_relists_total") > relists
    assert {node: cluster.metric(node, WRITES) for node in writes} == writes
    # The cache is right again: a change made now arrives.
    cluster.api.merge(f"{SERVICES}/echo", {"metadata": {"annotations": SCHEDULER_LC}})
    cluster.wait()
    assert " lc" in cluster.run("node1", "ipvsadm", "-Ln", "-t", f"{echo_ip}:80")
    cluster.api.merge(f"{SERVICES}/echo", {"metadata": {"annotations": SCHEDULER_NONE}})
    cluster.wait()


WRITES = "kube_router_kernel_writes_total"
SCHEDULER_LC = {"kube-router.io/service.scheduler": "lc"}
SCHEDULER_NONE = {"kube-router.io/service.scheduler": None}


def service(name: str, ip: str, port: object) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "e2e"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "web", "protocol": "TCP", "port": port, "targetPort": 8080}],
        },
    }


def endpoint_slice(name: str, ports: object, endpoints: object) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "e2e",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }


def test_broken_objects_are_told_and_disturb_nobody(cluster: Any, echo_ip: str) -> None:
    bad = [
        (SERVICES, service("bad-port", "10.96.200.1", 70000)),
        (SERVICES, service("bad-type", "10.96.200.2", "eighty")),
        (SERVICES, service("nil-ports", "10.96.200.3", 80)),
        (SLICES, endpoint_slice("nil-ports", None, [{"addresses": ["10.244.1.9"]}])),
        (SERVICES, service("bad-address", "10.96.200.4", 80)),
        (
            SLICES,
            endpoint_slice(
                "bad-address",
                [{"name": "web", "protocol": "TCP", "port": 8080}],
                [{"addresses": ["not-an-address"]}, {"addresses": ["10.244.1.10"]}],
            ),
        ),
    ]
    for path, body in bad:
        cluster.api.create(path + UNCHECKED, body)
    # And in the middle of a watch, a line that is no JSON.
    cluster.state.ask({"op": "apiserver", "verb": "inject", "resource": "services", "line": "{no"})
    good = service("good", "10.96.200.5", 80)
    cluster.api.create(SERVICES, good)
    cluster.api.create(
        SLICES,
        endpoint_slice(
            "good",
            [{"name": "web", "protocol": "TCP", "port": 8080}],
            [{"addresses": ["10.244.1.11"], "conditions": {"ready": True}}],
        ),
    )
    cluster.wait()
    table = cluster.ipvs("node1")
    assert table["TCP 10.96.200.5:80"] == ["10.244.1.11:8080 1"]
    assert table["TCP 10.96.200.4:80"] == ["10.244.1.10:8080 1"]
    assert table["TCP 10.96.200.3:80"] == []
    assert not any("10.96.200.1:" in key or "10.96.200.2:" in key for key in table)
    assert cluster.ask("e2e/client1", echo_ip, 80)["pod"]
    report = cluster.ready("node1")
    problems = report["problems"] + report["loops"]["service-proxy"]["problems"]
    told = {problem["object"] for problem in problems}
    assert {"Service e2e/bad-port", "Service e2e/bad-type"} <= told
    assert "EndpointSlice e2e/bad-address-1" in told
    errors = cluster.metric("node1", "kube_router_cache_errors_total")
    assert errors >= 1, "the garbage line was counted"
    for name in ("bad-port", "bad-type", "nil-ports", "bad-address", "good"):
        cluster.api.delete(f"{SERVICES}/{name}")
    for name in ("nil-ports", "bad-address", "good"):
        cluster.api.delete(f"{SLICES}/{name}-1")
    cluster.wait()
    assert not any("10.96.200." in key for key in cluster.ipvs("node1"))


def test_an_external_ip_that_is_a_node_address_gets_ipvs_entries_only(cluster: Any) -> None:
    """Were it made a VIP, the other nodes could no longer reach the node that has it."""
    address = cluster.address("node2", 4)
    routes = cluster.run("node2", "ip", "route", "show", "table", "local", address)
    cluster.api.merge(f"{SERVICES}/echo", {"spec": {"externalIPs": [address]}})
    cluster.wait()
    assert len(cluster.ipvs("node2")[f"TCP {address}:80"]) == 2
    assert cluster.run("node2", "ip", "route", "show", "table", "local", address) == routes
    assert cluster.ask("client", address, 80)["pod"]
    assert cluster.ask("client", address, 30180)["pod"]
    cluster.api.merge(f"{SERVICES}/echo", {"spec": {"externalIPs": None}})
    cluster.wait()
    assert f"TCP {address}:80" not in cluster.ipvs("node2")
    assert cluster.run("node2", "ip", "route", "show", "table", "local", address) == routes


def test_links_rules_sets_and_routes_of_others_are_left_alone(cluster: Any) -> None:
    run = cluster.run
    run("node1", "ipset", "create", "foreign", "hash:ip")
    run("node1", "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "RETURN")
    run("node1", "ip", "route", "add", "local", "192.0.2.7", "dev", "kube-dummy-if")
    cluster.agent("node1", "stop")
    cluster.agent("node1", "start")
    cluster.wait()
    assert "foreign" in run("node1", "ipset", "list", "-n").split()
    assert "-s 192.0.2.1/32 -j RETURN" in run("node1", "iptables", "-t", "nat", "-S")
    assert "192.0.2.7" in run("node1", "ip", "route", "show", "table", "local")
    assert cluster.ipvs("node1"), "the agent did its work meanwhile"
    run("node1", "ipset", "destroy", "foreign")
    run("node1", "iptables", "-t", "nat", "-D", "POSTROUTING", "-s", "192.0.2.1", "-j", "RETURN")
    run("node1", "ip", "route", "del", "local", "192.0.2.7", "dev", "kube-dummy-if")


def test_kubectl_and_lab_exec_show_the_same_service() -> None:
    """What the README tells a newcomer to type."""
    script = (
        "kubectl -n e2e get svc,endpointslices,pods -o wide && "
        "kube-router-py lab exec node1 -- ipvsadm -Ln"
    )
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    ip = next(line for line in done.stdout.splitlines() if "service/echo" in line).split()[2]
    assert f"TCP  {ip}:80 rr" in done.stdout
