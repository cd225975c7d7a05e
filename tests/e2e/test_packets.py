"""Affinity, silence, and the table itself; who answers whom is in test_matrix."""

from typing import Any

import pytest

pytestmark = pytest.mark.e2e


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
