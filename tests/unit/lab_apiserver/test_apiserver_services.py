"""Services: defaults, addresses, node ports and what is refused."""

from typing import Any

import pytest

from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import Store


def make(store: Store, name: str = "web", **spec: Any) -> dict[str, Any]:
    spec.setdefault("ports", [{"port": 80}])
    created: dict[str, Any] = store.create("services", {"metadata": {"name": name}, "spec": spec})
    return created["spec"]  # type: ignore[no-any-return]


def change(store: Store, spec: dict[str, Any], form: str = "merge") -> dict[str, Any]:
    changed = store.patch("services", "web", {"spec": spec}, namespace="default", form=form)
    return changed["spec"]  # type: ignore[no-any-return]


def causes(store: Store, **spec: Any) -> list[str]:
    with pytest.raises(StatusError) as caught:
        make(store, **spec)
    assert caught.value.code == 422
    return [f"{c['field']}: {c['message']}" for c in caught.value.details["causes"]]


def test_defaults(store: Store) -> None:
    spec = make(store, sessionAffinity="ClientIP")
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    assert spec["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in spec
    assert spec["ipFamilies"] == ["IPv4"]
    assert spec["ipFamilyPolicy"] == "SingleStack"
    assert spec["clusterIPs"] == [spec["clusterIP"]]


@pytest.mark.parametrize(
    ("asked", "families"),
    [
        ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"]),
        ({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, ["IPv6", "IPv4"]),
        ({"ipFamilies": ["IPv6"]}, ["IPv6"]),
    ],
)
def test_families(store: Store, asked: dict[str, Any], families: list[str]) -> None:
    spec = make(store, **asked)
    assert spec["ipFamilies"] == families
    assert [("IPv6" if ":" in ip else "IPv4") for ip in spec["clusterIPs"]] == families


def test_a_second_family_can_be_added_and_keeps_the_first_address(store: Store) -> None:
    before = make(store)
    after = change(store, {"ipFamilyPolicy": "PreferDualStack"})
    assert after["clusterIPs"][0] == before["clusterIP"]
    assert after["ipFamilies"] == ["IPv4", "IPv6"]


def test_addresses_are_the_same_in_every_run_and_differ_by_service(store: Store) -> None:
    names = [f"s{number}" for number in range(200)]
    first = {name: make(store, name)["clusterIP"] for name in names}
    assert len(set(first.values())) == len(names)
    other = Store(("10.96.0.0/16",))
    other.create("namespaces", {"metadata": {"name": "default"}})
    assert {name: make(other, name)["clusterIP"] for name in names} == first


def test_a_requested_address_is_honoured_or_refused(store: Store) -> None:
    assert make(store, clusterIP="10.96.7.7")["clusterIP"] == "10.96.7.7"
    (taken,) = causes(store, name="b", clusterIP="10.96.7.7")
    assert taken.startswith("spec.clusterIPs[0]: Invalid value")
    assert "already allocated" in taken
    (outside,) = causes(store, name="c", clusterIP="192.0.2.1")
    assert "not in the valid range" in outside
    store.delete("services", "web", "default")
    assert make(store, name="d", clusterIP="10.96.7.7")["clusterIP"] == "10.96.7.7"


def test_headless_and_external_name(store: Store) -> None:
    spec = make(store, clusterIP="None", selector={"a": "b"})
    assert spec["clusterIPs"] == ["None"]
    assert spec["ipFamilies"] == ["IPv4"]
    spec = make(store, "ext", type="ExternalName", externalName="example.org")
    assert "clusterIP" not in spec


def test_node_ports(store: Store) -> None:
    dns = [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]
    spec = make(store, type="NodePort", ports=dns)
    first, second = (port["nodePort"] for port in spec["ports"])
    assert first == second, "one number for both protocols"
    assert 30086 <= first <= 32767
    (taken,) = causes(store, name="b", type="NodePort", ports=[{"port": 1, "nodePort": first}])
    assert taken.startswith("spec.ports[0].nodePort: Invalid value")
    (outside,) = causes(store, name="b", type="NodePort", ports=[{"port": 1, "nodePort": 80}])
    assert "30000-32767" in outside
    make(store, "fixed", type="NodePort", ports=[{"port": 1, "nodePort": 30080}])
    store.delete("services", "fixed", "default")
    make(store, "again", type="NodePort", ports=[{"port": 1, "nodePort": 30080}])


def test_health_check_port_belongs_to_local_load_balancers(store: Store) -> None:
    spec = make(store, type="LoadBalancer", externalTrafficPolicy="Local")
    assert spec["healthCheckNodePort"] != spec["ports"][0]["nodePort"]
    assert "healthCheckNodePort" not in change(store, {"externalTrafficPolicy": "Cluster"})


def test_allocated_values_survive_an_update_that_leaves_them_out(store: Store) -> None:
    before = make(store, type="NodePort")
    store.update(
        "services",
        {"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}},
    )
    after = store.get("services", "web", "default")["spec"]
    assert after["clusterIP"] == before["clusterIP"]
    assert after["ports"] == before["ports"]


def test_a_service_that_stops_being_exposed_gives_its_ports_back(store: Store) -> None:
    port = make(store, type="NodePort")["ports"][0]["nodePort"]
    after = change(store, {"type": "ClusterIP"})
    assert "nodePort" not in after["ports"][0]
    assert "externalTrafficPolicy" not in after
    make(store, "other", type="NodePort", ports=[{"port": 1, "nodePort": port}])


def test_the_cluster_ip_cannot_change(store: Store) -> None:
    make(store)
    with pytest.raises(StatusError, match="may not change once set"):
        change(store, {"clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9"]})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"ports": [{"port": 70000}]},
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        ({"ports": []}, "spec.ports: Required value"),
        ({"ports": [{"port": 1}, {"port": 2, "name": "b"}]}, "spec.ports[0].name: Required value"),
        (
            {"ports": [{"port": 1, "protocol": "ICMP"}]},
            'spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", '
            '"UDP"',
        ),
        (
            {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]},
            'spec.ports[1].name: Duplicate value: "a"',
        ),
        ({"type": "Odd"}, 'spec.type: Unsupported value: "Odd"'),
        ({"externalIPs": ["one"]}, 'spec.externalIPs[0]: Invalid value: "one"'),
        ({"sessionAffinity": "Cookie"}, 'spec.sessionAffinity: Unsupported value: "Cookie"'),
        ({"clusterIP": "10.96.0"}, 'spec.clusterIPs[0]: Invalid value: "10.96.0"'),
        ({"type": "NodePort", "clusterIP": "None"}, "spec.clusterIPs[0]: Invalid value"),
        ({"loadBalancerSourceRanges": ["10.0.0.0"]}, "spec.LoadBalancerSourceRanges[0]: Invalid"),
        ({"name": "1x"}, 'metadata.name: Invalid value: "1x": a DNS-1035 label'),
        ({"selector": {"a": "b c"}}, 'spec.selector: Invalid value: "b c"'),
    ],
)
def test_what_is_refused(store: Store, spec: dict[str, Any], expected: str) -> None:
    assert any(cause.startswith(expected) for cause in causes(store, **spec))


def test_other_kinds_are_checked_too(store: Store) -> None:
    def refusals(resource: str, obj: dict[str, Any]) -> str:
        with pytest.raises(StatusError) as caught:
            store.create(resource, {"metadata": {"name": "x"}, **obj})
        return caught.value.message

    container = {"name": "c", "image": "x", "ports": [{"containerPort": 99999}]}
    assert "spec.containers[0].ports[0].containerPort" in refusals(
        "pods", {"spec": {"containers": [container]}}
    )
    template = {
        "metadata": {"labels": {"a": "c"}},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
    }
    workload = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    assert "`selector` does not match template `labels`" in refusals(
        "deployments", {"spec": workload}
    )
    rule = {"from": [{"ipBlock": {"cidr": "10.0.0.0"}}, {}], "ports": [{"port": 5, "endPort": 3}]}
    text = refusals("networkpolicies", {"spec": {"podSelector": {}, "ingress": [rule]}})
    assert "spec.ingress[0].from[0].ipBlock.cidr: Invalid value" in text
    assert "spec.ingress[0].from[1]: Required value: must specify a peer" in text
    assert "spec.ingress[0].ports[0].endPort: Invalid value" in text
    assert "addressType: Unsupported value" in refusals("endpointslices", {"endpoints": []})


def test_network_policy_types(store: Store) -> None:
    def types(name: str, spec: dict[str, Any]) -> Any:
        made = store.create("networkpolicies", {"metadata": {"name": name}, "spec": spec})
        return made["spec"]["policyTypes"]

    assert types("a", {"podSelector": {}}) == ["Ingress"]
    assert types("b", {"podSelector": {}, "egress": [{}]}) == ["Ingress", "Egress"]
    assert types("c", {"podSelector": {}, "policyTypes": ["Egress"]}) == ["Egress"]


def test_a_running_pod_changes_its_image_only(store: Store) -> None:
    spec = {"containers": [{"name": "c", "image": "x"}]}
    store.create("pods", {"metadata": {"name": "p"}, "spec": spec})
    store.patch("pods", "p", {"spec": {"nodeName": "node1"}}, namespace="default")
    image = {"spec": {"containers": [{"name": "c", "image": "y"}]}}
    store.patch("pods", "p", image, namespace="default", form="strategic")
    with pytest.raises(StatusError, match="pod updates may not change fields"):
        store.patch("pods", "p", {"spec": {"nodeName": "node2"}}, namespace="default")


# --- status --------------------------------------------------------------------------------------


def write_status(store: Store, *ingress: dict[str, Any], **metadata: str) -> list[dict[str, Any]]:
    """As an allocator does it: a merge patch of the status; what is stored then."""
    patch: dict[str, Any] = {"status": {"loadBalancer": {"ingress": list(ingress)}}}
    if metadata:
        patch["metadata"] = metadata
    changed = store.patch("services", "web", patch, namespace="default", subresource="status")
    found: list[dict[str, Any]] = changed["status"]["loadBalancer"]["ingress"]
    return found


def test_a_balancer_gets_addresses_by_its_status_and_loses_them_with_its_type(
    store: Store,
) -> None:
    make(store, type="LoadBalancer")
    ports = [{"port": 80, "protocol": "TCP"}]
    assert write_status(store, {"ip": "10.0.0.1", "ports": ports}, {"hostname": "a.example"}) == [
        {"ip": "10.0.0.1", "ipMode": "VIP", "ports": ports},
        {"hostname": "a.example"},
    ]
    assert write_status(store, {"ip": "10.0.0.1", "ipMode": "Proxy"})[0]["ipMode"] == "Proxy"
    change(store, {"loadBalancerIP": "10.0.0.9"})
    kept = store.get("services", "web", "default")
    assert kept["status"]["loadBalancer"]["ingress"] == [{"ip": "10.0.0.1", "ipMode": "Proxy"}]
    change(store, {"type": "ClusterIP", "loadBalancerIP": None})
    assert store.get("services", "web", "default")["status"]["loadBalancer"] == {}


def test_a_status_of_an_old_revision_conflicts(store: Store) -> None:
    make(store, type="LoadBalancer")
    revision = store.get("services", "web", "default")["metadata"]["resourceVersion"]
    write_status(store, {"ip": "10.0.0.1"}, resourceVersion=revision)
    with pytest.raises(StatusError) as caught:
        write_status(store, {"ip": "10.0.0.2"}, resourceVersion=revision)
    assert (caught.value.code, caught.value.reason) == (409, "Conflict")
    status = store.get("services", "web", "default")["status"]
    assert status["loadBalancer"]["ingress"][0]["ip"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ({"ip": "10.0.0"}, "ip: Invalid value"),
        ({"ip": "10.0.0.1", "ipMode": "Other"}, 'supported values: "Proxy", "VIP"'),
        ({"hostname": "a", "ipMode": "VIP"}, "ipMode: Forbidden: may not be specified when `ip`"),
        ({"hostname": "10.0.0.1"}, "hostname: Invalid value"),
        ({"ip": "10.0.0.1", "ports": {"port": 80}}, "ports: Invalid value"),
        ({"ip": "10.0.0.1", "ports": [{"port": "80", "protocol": "TCP"}]}, "ports[0].port"),
        ({"ip": "10.0.0.1", "ports": [{"port": 80}]}, "ports[0].protocol: Unsupported value"),
    ],
)
def test_wrong_ingress_is_refused(store: Store, entry: dict[str, Any], cause: str) -> None:
    make(store, type="LoadBalancer")
    with pytest.raises(StatusError) as caught:
        write_status(store, entry)
    assert caught.value.code == 422
    assert "status.loadBalancer.ingress[0]." in caught.value.message
    assert cause in caught.value.message


def test_other_services_have_no_ingress(store: Store) -> None:
    make(store)
    with pytest.raises(StatusError, match=r"may only be used when `spec.type` is 'LoadBalancer'"):
        write_status(store, {"ip": "10.0.0.1"})
