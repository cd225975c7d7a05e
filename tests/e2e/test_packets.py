"""Who answers, and which source address it sees: every kind of client, over real packets."""

from typing import Any

import pytest

pytestmark = pytest.mark.e2e

PORTS = {"TCP": (80, 30180), "UDP": (53, 30153)}
# Where a packet of each client is load-balanced when it asks for a ClusterIP.
ENTRIES = {"e2e/client1": "node1", "e2e/client2": "node2", "node1": "node1", "node2": "node2"}
ENOUGH = 40


def client_address(cluster: Any, client: str, family: int) -> str:
    if "/" not in client:
        return str(cluster.address(client, family))
    name = client.partition("/")[2]
    pod = cluster.api.get(f"/api/v1/namespaces/e2e/pods/{name}")
    ips = [each["ip"] for each in pod["status"]["podIPs"]]
    return str(next(ip for ip in ips if (":" in ip) == (family == 6)))


def expected_source(cluster: Any, client: str, entry: str, backend: str, family: int) -> str:
    """The client's own address, unless a reply of the backend would go past the entry node."""
    is_here = ENTRIES.get(client) == entry or backend == entry
    return client_address(cluster, client, family) if is_here else cluster.address(entry, family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("client", [*ENTRIES, "client"])
def test_every_client_reaches_every_backend_and_keeps_its_address_where_it_can(
    cluster: Any, client: str, protocol: str, family: int
) -> None:
    service = cluster.api.get("/api/v1/namespaces/e2e/services/echo")
    port, node_port = PORTS[protocol]
    places = [(cluster.address(node, family), node_port, node) for node in ("node1", "node2")]
    if client in ENTRIES:
        ips = service["spec"]["clusterIPs"]
        cluster_ip = next(ip for ip in ips if (":" in ip) == (family == 6))
        places.append((cluster_ip, port, ENTRIES[client]))
    for address, number, entry in places:
        seen: dict[str, set[str]] = {}
        for _ in range(ENOUGH):
            answer = cluster.ask(client, address, number, protocol)
            assert answer["protocol"] == protocol
            seen.setdefault(answer["node"], set()).add(answer["client"])
            if len(seen) == 2:
                break
        assert seen == {
            backend: {expected_source(cluster, client, entry, backend, family)}
            for backend in ("node1", "node2")
        }, f"{client} asked {address}:{number}"


@pytest.mark.parametrize("family", [4, 6])
def test_session_affinity_keeps_a_client_on_one_backend(cluster: Any, family: int) -> None:
    service = cluster.api.get("/api/v1/namespaces/e2e/services/sticky")
    address = next(ip for ip in service["spec"]["clusterIPs"] if (":" in ip) == (family == 6))
    answers = {cluster.ask("e2e/client1", address, 80)["pod"] for _ in range(8)}
    assert len(answers) == 1
    # The control: without affinity the same number of requests reaches both.
    plain = cluster.api.get("/api/v1/namespaces/e2e/services/echo")["spec"]["clusterIPs"]
    other = next(ip for ip in plain if (":" in ip) == (family == 6))
    assert len({cluster.ask("e2e/client1", other, 80)["pod"] for _ in range(8)}) == 2


def test_an_address_without_a_service_is_not_answered(cluster: Any) -> None:
    address = cluster.address("node1", 4)
    with pytest.raises(OSError, match=r"refused|timed out"):
        cluster.ask("client", address, 30999, timeout_s=3)


def test_ipvs_holds_the_pods_that_the_api_lists(cluster: Any) -> None:
    service = cluster.api.get("/api/v1/namespaces/e2e/services/echo")
    slices = cluster.api.get("/apis/discovery.k8s.io/v1/namespaces/e2e/endpointslices")["items"]
    addresses = {
        endpoint["addresses"][0]
        for each in slices
        if each["metadata"]["labels"]["kubernetes.io/service-name"] == "echo"
        for endpoint in each["endpoints"]
    }
    assert len(addresses) == 4  # two pods, two families
    for node in ("node1", "node2"):
        table = cluster.ipvs(node)
        for ip in service["spec"]["clusterIPs"]:
            text = f"[{ip}]" if ":" in ip else ip
            expected = sorted(
                (f"[{address}]:8080 1" if ":" in address else f"{address}:8080 1")
                for address in addresses
                if (":" in address) == (":" in ip)
            )
            assert sorted(table[f"TCP {text}:80"]) == expected
