"""EndpointSlices as the real controller writes them."""

from typing import Any

from kube_router_py.lab.endpoints import MAX_ENDPOINTS, compile_slices

Object = dict[str, Any]


def service(**spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]
    return {
        "metadata": {"name": "shop", "namespace": "default", "uid": "s-1"},
        "spec": {"selector": {"app": "shop"}, "ports": ports, "ipFamilies": ["IPv4"], **spec},
    }


def pod(name: str, *ips: str, ready: bool = True, port: int = 8080, **metadata: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"p-{name}",
            "labels": {"app": "shop"},
            **metadata,
        },
        "spec": {
            "nodeName": "node1",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


NODES = {"node1": {"metadata": {"labels": {"topology.kubernetes.io/zone": "zone-a"}}}}


def conditions(obj: Object) -> dict[str, tuple[bool, bool, bool]]:
    return {
        endpoint["targetRef"]["name"]: (
            endpoint["conditions"]["ready"],
            endpoint["conditions"]["serving"],
            endpoint["conditions"]["terminating"],
        )
        for endpoint in obj["endpoints"]
    }


def test_ready_serving_and_terminating_follow_the_pod() -> None:
    ending = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    pods = [
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2", ready=False),
        pod("c", "10.0.0.3", **ending),
        pod("d", "10.0.0.4", ready=False, **ending),
    ]
    (found,) = compile_slices(service(), pods, NODES)
    assert conditions(found) == {
        "a": (True, True, False),
        "b": (False, False, False),
        "c": (False, True, True),
        "d": (False, False, True),
    }
    (published,) = compile_slices(service(publishNotReadyAddresses=True), pods, NODES)
    assert [flags[0] for flags in conditions(published).values()] == [True] * 4


def test_an_endpoint_says_where_it_is() -> None:
    (found,) = compile_slices(service(), [pod("a", "10.0.0.1")], NODES)
    assert found["addressType"] == "IPv4"
    assert found["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    (endpoint,) = found["endpoints"]
    assert endpoint["addresses"] == ["10.0.0.1"]
    assert (endpoint["nodeName"], endpoint["zone"]) == ("node1", "zone-a")
    assert endpoint["targetRef"]["uid"] == "p-a"
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "shop"
    assert found["metadata"]["ownerReferences"][0]["uid"] == "s-1"


def test_named_ports_that_differ_make_several_slices() -> None:
    pods = [pod("a", "10.0.0.1", port=8080), pod("b", "10.0.0.2", port=9090)]
    found = compile_slices(service(), pods, NODES)
    assert [(s["ports"][0]["port"], list(conditions(s))) for s in found] == [
        (8080, ["a"]),
        (9090, ["b"]),
    ]


def test_a_named_port_that_no_container_has_is_left_out() -> None:
    ports = [{"name": "x", "port": 80, "protocol": "TCP", "targetPort": "nowhere"}]
    (found,) = compile_slices(service(ports=ports), [pod("a", "10.0.0.1")], NODES)
    assert found["ports"] == []
    assert list(conditions(found)) == ["a"]


def test_one_slice_per_family_and_an_empty_one_without_endpoints() -> None:
    both = service(ipFamilies=["IPv4", "IPv6"])
    found = compile_slices(both, [pod("a", "10.0.0.1", "fd00::1")], NODES)
    assert [(s["addressType"], s["endpoints"][0]["addresses"]) for s in found] == [
        ("IPv4", ["10.0.0.1"]),
        ("IPv6", ["fd00::1"]),
    ]
    empty = compile_slices(both, [], NODES)
    assert [(s["addressType"], s["endpoints"], s["ports"]) for s in empty] == [
        ("IPv4", [], []),
        ("IPv6", [], []),
    ]


def test_what_has_no_slices() -> None:
    pods = [pod("a", "10.0.0.1")]
    assert compile_slices(service(selector=None), pods, NODES) == []
    assert compile_slices(service(type="ExternalName"), pods, NODES) == []


def test_finished_unscheduled_and_unselected_pods_are_no_endpoints() -> None:
    finished, unscheduled, other = pod("a", "10.0.0.1"), pod("b"), pod("c", "10.0.0.3")
    finished["status"]["phase"] = "Succeeded"
    del unscheduled["spec"]["nodeName"]
    other["metadata"]["labels"] = {"app": "other"}
    (found,) = compile_slices(service(), [finished, unscheduled, other], NODES)
    assert found["endpoints"] == []


def test_a_slice_holds_at_most_a_hundred() -> None:
    pods = [pod(f"p{n:03}", f"10.0.{n // 250}.{n % 250 + 1}") for n in range(MAX_ENDPOINTS + 5)]
    found = compile_slices(service(), pods, NODES)
    assert [len(s["endpoints"]) for s in found] == [MAX_ENDPOINTS, 5]


def test_traffic_distribution_becomes_hints() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False)]
    (found,) = compile_slices(service(trafficDistribution="PreferSameNode"), pods, NODES)
    ready, unready = found["endpoints"]
    assert ready["hints"] == {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node1"}]}
    assert "hints" not in unready
