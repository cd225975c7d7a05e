"""Distribution, replacement under load, addresses that change, health checks, Events."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

SERVICES = "/api/v1/namespaces/e2e/services"
DEPLOYMENTS = "/apis/apps/v1/namespaces/e2e/deployments"
WEIGHT = "kube-router.io/backend-weight"
SCHEDULER = "kube-router.io/service.scheduler"


def test_replacing_every_backend_fails_no_request(cluster: Any, echo_ip: str) -> None:
    node2 = cluster.address("node2", 4)
    with (
        cluster.traffic("e2e/client1", echo_ip, 80) as inside,
        cluster.traffic("client", node2, 30180) as outside,
    ):
        cluster.eventually(lambda: len(inside.answers) == len(outside.answers) == 2, "both pods")
        before = set(inside.answers)
        template = {"metadata": {"annotations": {"lab/restarted": "1"}}}
        cluster.api.merge(f"{DEPLOYMENTS}/echo", {"spec": {"template": template}})

        def replaced() -> bool:
            listed = cluster.api.get("/api/v1/namespaces/e2e/pods")["items"]
            names = {each["metadata"]["name"] for each in listed}
            fresh = set(inside.answers) & set(outside.answers) & names - before
            return len(fresh) == 2 and not names & before

        cluster.eventually(replaced, "two other pods", deadline_s=300)
    assert (inside.failures, outside.failures) == ([], [])


@pytest.fixture
def heavy_node(cluster: Any) -> Iterator[str]:
    """A node whose endpoints have three times the weight of others."""
    path = "/api/v1/nodes/node2"
    cluster.api.merge(path, {"metadata": {"annotations": {WEIGHT: "3"}}})
    cluster.wait()
    yield "node2"
    cluster.api.merge(path, {"metadata": {"annotations": {WEIGHT: None}}})
    cluster.wait()


def distribution(cluster: Any, client: str, address: str, requests: int) -> dict[str, int]:
    return dict(Counter(cluster.ask(client, address, 80)["node"] for _ in range(requests)))


def test_a_heavier_node_gets_more_of_every_client(
    cluster: Any, echo_ip: str, heavy_node: str
) -> None:
    assert distribution(cluster, "e2e/client1", echo_ip, 16) == {"node1": 4, heavy_node: 12}
    assert distribution(cluster, "node1", echo_ip, 16) == {"node1": 4, heavy_node: 12}


def test_schedulers_do_what_they_are_called(cluster: Any, echo_ip: str) -> None:
    assert distribution(cluster, "e2e/client1", echo_ip, 12) == {"node1": 6, "node2": 6}
    path = f"{SERVICES}/echo"
    for scheduler in ("sh", "mh"):
        cluster.api.merge(path, {"metadata": {"annotations": {SCHEDULER: scheduler}}})
        cluster.wait()
        assert len(distribution(cluster, "e2e/client1", echo_ip, 6)) == 1, scheduler
    cluster.api.merge(path, {"metadata": {"annotations": {SCHEDULER: "no-such"}}})
    cluster.wait()
    assert distribution(cluster, "e2e/client1", echo_ip, 4) == {"node1": 2, "node2": 2}
    problems = cluster.ready("node1")["loops"]["service-proxy"]["problems"]
    assert any("no-such" in problem["reason"] for problem in problems)
    cluster.api.merge(path, {"metadata": {"annotations": {SCHEDULER: None}}})
    cluster.wait()


def test_topology_hints_keep_requests_in_the_zone(cluster: Any, echo_ip: str) -> None:
    """The lab's nodes are in zones of their own, and its controller writes the hints."""
    path, nodes = f"{SERVICES}/echo", ("node1", "node2")

    def in_use(node: str) -> int:
        servers = cluster.ipvs(node)[f"TCP {echo_ip}:80"]
        return sum(not each.endswith(" 0") for each in servers)

    cluster.api.merge(path, {"spec": {"trafficDistribution": "PreferClose"}})
    cluster.eventually(lambda: [in_use(node) for node in nodes] == [1, 1], "one endpoint each")
    for number, node in enumerate(nodes, start=1):
        assert distribution(cluster, f"e2e/client{number}", echo_ip, 4) == {node: 4}
        assert cluster.ask("client", cluster.address(node, 4), 30180)["node"] == node
    cluster.api.merge(path, {"spec": {"trafficDistribution": None}})
    cluster.eventually(lambda: [in_use(node) for node in nodes] == [2, 2], "both endpoints again")


def test_affinity_ends_with_its_timeout(cluster: Any) -> None:
    """With UDP: a closed connection would hold on to its affinity for two minutes."""
    timeout_s = 2
    body = {
        "metadata": {"name": "brief"},
        "spec": {
            "selector": {"app": "echo"},
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout_s}},
            "ports": [{"port": 53, "targetPort": "dns", "protocol": "UDP"}],
        },
    }
    address = cluster.api.create(SERVICES, body)["spec"]["clusterIP"]
    # How long a flow is remembered; the affinity it belongs to lasts at least as long.
    before = cluster.run("node1", "ipvsadm", "-L", "--timeout").split()[-3:]
    cluster.run("node1", "ipvsadm", "--set", "0", "0", "1")
    cluster.wait()
    answers: set[str] = set()

    def both_have_answered() -> bool:
        answers.add(cluster.ask("e2e/client1", address, 53, "UDP")["pod"])
        # The time that the test is about.
        time.sleep(timeout_s + 1)
        return len(answers) == 2

    cluster.eventually(both_have_answered, "an answer of each backend")
    cluster.run("node1", "ipvsadm", "--set", *before)
    cluster.api.delete(f"{SERVICES}/brief")
    cluster.wait()


def test_node_ports_follow_the_nodes_addresses(cluster: Any) -> None:
    """The lab's agents serve them in --nodeport-addresses, of which one comes and goes."""
    key = "TCP 198.18.0.1:30180"
    assert key not in cluster.ipvs("node1")
    cluster.run("node1", "ip", "addr", "add", "198.18.0.1/32", "dev", "eth0")
    cluster.eventually(lambda: key in cluster.ipvs("node1"), "a virtual server at the address")
    node1 = cluster.address("node1", 4)
    cluster.run("router", "ip", "route", "replace", "198.18.0.1", "via", node1)
    assert cluster.ask("client", "198.18.0.1", 30180)["pod"]
    cluster.run("node1", "ip", "addr", "del", "198.18.0.1/32", "dev", "eth0")
    cluster.eventually(lambda: key not in cluster.ipvs("node1"), "its end")
    cluster.run("router", "ip", "route", "del", "198.18.0.1")


def probe(cluster: Any, node: str, port: int, path: str = "/healthz") -> tuple[int, Any]:
    """What a load balancer outside hears from a node."""
    address = cluster.address(node, 4)

    def ask() -> tuple[int, Any]:
        connection = http.client.HTTPConnection(address, port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    found: tuple[int, Any] = cluster.inside("client", ask)
    return found


def test_load_balancers_are_told_where_endpoints_are(cluster: Any) -> None:
    body = {
        "metadata": {"name": "checked"},
        "spec": {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 32123,
            "selector": {"app": "solo"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    }
    cluster.api.create(SERVICES, body)
    cluster.wait()
    status, found = probe(cluster, "node1", 32123)
    assert (status, found["localEndpoints"]) == (200, 1)
    assert found["service"] == {"namespace": "e2e", "name": "checked"}
    status, found = probe(cluster, "node2", 32123)
    assert (status, found["localEndpoints"]) == (503, 0)
    assert found["serviceProxyHealthy"] is True
    cluster.api.delete(f"{SERVICES}/checked")
    cluster.wait()


def test_load_balancers_are_told_which_nodes_are_leaving(cluster: Any) -> None:
    assert probe(cluster, "node2", 10256)[0] == 200
    path = "/api/v1/nodes/node2"
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    cluster.api.merge(path, {"spec": {"taints": [taint]}})
    cluster.eventually(lambda: probe(cluster, "node2", 10256)[0] == 503, "the node's refusal")
    assert probe(cluster, "node2", 10256, "/livez")[0] == 200
    assert probe(cluster, "node2", 10256)[1]["nodeEligible"] is False
    cluster.api.merge(path, {"spec": {"taints": None}})
    cluster.eventually(lambda: probe(cluster, "node2", 10256)[0] == 200, "the node's return")


def test_a_refused_address_gives_one_event_of_all_nodes(cluster: Any) -> None:
    """Refused whatever the flags say: it lies where the cluster takes its own addresses from."""
    body = {
        "metadata": {"name": "refused"},
        "spec": {
            "selector": {"app": "echo"},
            "ports": [{"port": 80}],
            "externalIPs": ["10.96.0.77"],
        },
    }
    cluster.api.create(SERVICES, body)

    def events() -> list[Any]:
        listed = cluster.api.get("/api/v1/namespaces/e2e/events")["items"]
        return [each for each in listed if each["involvedObject"]["name"] == "refused"]

    cluster.eventually(events, "an Event")
    cluster.wait()
    (event,) = events()
    assert (event["type"], event["reason"]) == ("Warning", "AddressRefused")
    assert "10.96.0.77" in event["message"]
    cluster.api.delete(f"{SERVICES}/refused")
    cluster.wait()


def test_traffic_is_counted_per_service(cluster: Any, echo_ip: str) -> None:
    cluster.ask("e2e/client1", echo_ip, 80)
    text = cluster.page("node1", 20245, "/metrics")
    lines = [
        line
        for line in text.splitlines()
        if line.startswith("kube_router_service_total_connections{") and f'"{echo_ip}"' in line
    ]
    assert any('service_name="echo"' in line and 'port="80"' in line for line in lines)
    assert "kube_router_network_programming_duration_seconds_bucket" in text
