"""Routes with real packets: agents that route, and a BGP router between client and nodes.

    client ---- router ----+--- node1, node2
                           +--- node3        (another subnet: its pods are behind tunnels)

The router runs FRR and takes all ways to an address side by side. It sends connections on by their
ports; when the set of ways changes it may send one that stands to another node. So what must lose
nothing while ways change asks by UDP: each request is one datagram, which no way is too old for.
"""

import json
import os
import shlex
from typing import Any

import pytest

from kube_router_py.lab.ipvs_table import parse_connections

pytestmark = pytest.mark.routing

NODES = ("node1", "node2", "node3")
VIP = "10.96.7.7"
REQUESTS = 40
SERVICES = "/api/v1/namespaces/e2e/services"
DRAIN = "kube-router.io/drain"


def pod_ip(cluster: Any, number: int) -> str:
    pod = cluster.api.get(f"/api/v1/namespaces/e2e/pods/web{number}")
    return str(pod["status"]["podIP"])


def routes(cluster: Any, target: str, *words: str) -> dict[str, list[dict[str, Any]]]:
    """By destination: the ways there, each with ``dev`` and mostly ``gateway``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for route in json.loads(cluster.run(target, "ip", "-j", "-4", "route", "show", *words)):
        found.setdefault(route["dst"], []).extend(route.get("nexthops") or [route])
    return found


def ways(cluster: Any, address: str) -> set[str]:
    """The nodes to which the router sends what goes to ``address``."""
    names = {cluster.address(node, 4): node for node in NODES}
    return {names[way["gateway"]] for way in routes(cluster, "router").get(address, [])}


def entered(cluster: Any, port: int) -> dict[str, set[str]]:
    """By node: the client's connections to the Service's port that its IPVS knows."""
    return {
        node: {
            entry.client
            for entry in parse_connections(cluster.run(node, "cat", "/proc/net/ip_vs_conn"))
            if entry.virtual_server == f"{VIP}:{port}"
        }
        for node in NODES
    }


def passed_tunnels(cluster: Any, node: str) -> tuple[int, int]:
    """Packets that the node's ipip links have received and sent."""
    links = json.loads(cluster.run(node, "ip", "-j", "-s", "link", "show", "type", "ipip"))
    stats = [link["stats64"] for link in links if link["ifname"].startswith("tun-")]
    return sum(each["rx"]["packets"] for each in stats), sum(
        each["tx"]["packets"] for each in stats
    )


def sessions(cluster: Any) -> dict[str, tuple[str, int]]:
    """What the router says of its neighbors: state, and how often a session was lost."""
    show = shlex.split(os.environ["LAB_ROUTER_SHOW"])
    text = cluster.run("router", *show[:-1], "show bgp neighbors json")
    return {
        address: (found["bgpState"], found["connectionsDropped"])
        for address, found in json.loads(text).items()
        if isinstance(found, dict) and "bgpState" in found
    }


@pytest.fixture(scope="module", autouse=True)
def _ready(cluster: Any) -> None:
    """Every node has learned of the others, and the router of the Service by all of them."""

    def has_all() -> bool:
        learned = [set(routes(cluster, node, "proto", "bgp")) for node in NODES[:2]]
        return (
            "10.244.2.0/24" in learned[0]
            and "10.244.1.0/24" in learned[1]
            and ways(cluster, VIP) == set(NODES)
        )

    cluster.eventually(has_all, "routes are learned")


def test_pods_of_one_subnet_reach_each_other_by_a_route_that_bgp_has_brought(cluster: Any) -> None:
    (way,) = routes(cluster, "node1", "proto", "bgp")["10.244.2.0/24"]
    assert (way["gateway"], way["dev"]) == (cluster.address("node2", 4), "eth0")
    before = passed_tunnels(cluster, "node1")
    answer = cluster.ask("e2e/web1", pod_ip(cluster, 2), 8080)
    assert (answer["pod"], answer["client"]) == ("web2", pod_ip(cluster, 1))
    assert passed_tunnels(cluster, "node1") == before


def test_pods_of_another_subnet_are_reached_through_a_tunnel(cluster: Any) -> None:
    (way,) = routes(cluster, "node1", "proto", "75")["10.244.3.0/24"]
    assert way["dev"].startswith("tun-")
    near, far = passed_tunnels(cluster, "node1"), passed_tunnels(cluster, "node3")
    answer = cluster.ask("e2e/web1", pod_ip(cluster, 3), 8080)
    assert (answer["pod"], answer["client"]) == ("web3", pod_ip(cluster, 1))
    # Three packets at the least make a connection, and an answer.
    assert passed_tunnels(cluster, "node1")[0] >= near[0] + 3
    assert passed_tunnels(cluster, "node1")[1] >= near[1] + 3
    assert passed_tunnels(cluster, "node3")[0] >= far[0] + 3


def test_a_service_is_reached_from_outside_by_all_nodes(cluster: Any) -> None:
    assert ways(cluster, VIP) == set(NODES)
    before = entered(cluster, 80)
    assert {cluster.ask("client", VIP, 80)["pod"] for _ in range(REQUESTS)} == {
        "web1",
        "web2",
        "web3",
    }
    after = entered(cluster, 80)
    came = {node: len(after[node] - before[node]) for node in NODES}
    assert sum(came.values()) == REQUESTS
    assert all(came.values()), f"the router has not used every way: {came}"


def test_an_address_is_withdrawn_when_its_service_goes(cluster: Any) -> None:
    address = "10.96.7.8"
    spec = {"clusterIP": address, "selector": {"app": "web"}, "ports": [{"port": 80}]}
    assert ways(cluster, address) == set()
    cluster.api.create(SERVICES, {"metadata": {"name": "passing"}, "spec": spec})
    cluster.eventually(lambda: ways(cluster, address) == set(NODES), "the new address is learned")
    cluster.api.delete(f"{SERVICES}/passing")
    cluster.eventually(lambda: not ways(cluster, address), "the address is withdrawn")
    assert ways(cluster, VIP) == set(NODES)


def test_a_node_that_drains_gets_no_more_connections_and_loses_no_request(cluster: Any) -> None:
    node = "/api/v1/nodes/node1"
    with cluster.traffic("client", VIP, 53, "UDP") as traffic:
        cluster.api.merge(node, {"metadata": {"annotations": {DRAIN: "true"}}})
        cluster.eventually(lambda: ways(cluster, VIP) == {"node2", "node3"}, "node1 is drained")
        before = entered(cluster, 53)
        asked = traffic.attempts
        cluster.eventually(lambda: traffic.attempts >= asked + REQUESTS, "requests meanwhile")
        after = entered(cluster, 53)
        came = {node: len(after[node] - before[node]) for node in NODES}
        assert came["node1"] <= 1, "but for one that was on its way"
        assert came["node2"] > 1
        assert came["node3"] > 1
        assert ways(cluster, "10.244.1.0/24") == {"node1"}, "its pods are still there"
        cluster.api.merge(node, {"metadata": {"annotations": {DRAIN: None}}})
        cluster.eventually(lambda: ways(cluster, VIP) == set(NODES), "node1 is back")
    assert traffic.failures == []


def test_an_agent_that_is_killed_and_started_again_loses_nothing(cluster: Any) -> None:
    before = sessions(cluster)
    assert {state for state, _ in before.values()} == {"Established"}
    with (
        cluster.traffic("client", VIP, 80) as outside,
        cluster.traffic("e2e/web1", pod_ip(cluster, 2), 8080) as beside,
        cluster.traffic("e2e/web1", pod_ip(cluster, 3), 8080) as through,
    ):
        loads = (outside, beside, through)

        def go_on() -> None:
            asked = [load.attempts for load in loads]
            cluster.eventually(
                lambda: all(
                    load.attempts >= since + 20 for load, since in zip(loads, asked, strict=True)
                ),
                "requests go on",
            )

        cluster.agent("node1", "kill")
        go_on()
        cluster.agent("node1", "start")
        cluster.wait()
        go_on()
    assert [load.failures for load in loads] == [[], [], []]
    assert sessions(cluster) == before, "FRR has gone on, and was adopted"
    assert "FRR adopted" in cluster.agent_log("node1")
