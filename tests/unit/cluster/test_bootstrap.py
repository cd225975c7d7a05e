from ipaddress import ip_network

import pytest

from kube_router_py.cluster.bootstrap import check_api_addresses
from kube_router_py.cluster.objects import ObjectMeta, Service, ServiceSpec
from kube_router_py.errors import ConfigurationError

RANGES = (ip_network("10.96.0.0/12"), ip_network("fd00:96::/112"))
KUBERNETES = Service(
    ObjectMeta("kubernetes", "default"),
    ServiceSpec(cluster_ip="172.20.0.1", cluster_ips=("172.20.0.1", "fd99::1")),
)


@pytest.mark.parametrize(
    "url",
    [
        "https://10.96.0.1:443",
        "https://10.96.0.1",
        "https://[fd00:96::1]:443",
        "https://[FD00:96:0::01]",
        "10.96.0.1:443",
        "https://kubernetes.default.svc",
        "https://kubernetes.default.svc.cluster.local.:443",
        "https://kubernetes:443",
        "https://172.20.0.1:443",
        "https://[fd99::1]:443",
    ],
)
def test_a_cluster_ip_is_refused_and_the_remedy_named(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_api_addresses([url, "https://192.0.2.1:6443"], RANGES, KUBERNETES)
    (message,) = raised.value.messages
    assert url in message
    assert "KUBERNETES_SERVICE_HOST" in message
    assert "--master" in message


@pytest.mark.parametrize(
    "url",
    [
        "https://192.0.2.1:6443",
        "https://[fd00:97::1]:6443",
        "https://api.example.org:6443",
        "https://kubernetes.example.org",
        "http://127.0.0.1:8080",
    ],
)
def test_an_address_that_nodes_reach_passes(url: str) -> None:
    check_api_addresses([url], RANGES, KUBERNETES)
    check_api_addresses([url], RANGES)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_api_addresses(["https://10.96.0.1", "https://10.97.0.1"], RANGES)
    assert len(raised.value.messages) == 2


def test_outside_the_range_only_the_service_tells() -> None:
    check_api_addresses(["https://172.20.0.1"], RANGES)
    headless = Service(ObjectMeta("kubernetes", "default"), ServiceSpec(cluster_ip="None"))
    check_api_addresses(["https://172.20.0.1"], RANGES, headless)
