"""What an API server would fill in."""

import msgspec
import pytest

from kube_router_py.cluster.defaults import with_defaults
from kube_router_py.cluster.objects import EndpointSlice, NetworkPolicy, Node, Pod, Service


def defaulted(kind: type, text: str, primary: str = "IPv4") -> object:
    result = with_defaults(msgspec.json.decode(text, type=kind), primary)
    return msgspec.json.decode(msgspec.json.encode(result))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            '{"ports":[{"port":80}]}',
            {
                "type": "ClusterIP",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                "sessionAffinity": "None",
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
            },
        ),
        (
            '{"type":"NodePort","clusterIP":"fd00::1","sessionAffinity":"ClientIP",'
            '"ports":[{"port":53,"protocol":"UDP","targetPort":"dns"}]}',
            {
                "type": "NodePort",
                "clusterIP": "fd00::1",
                "clusterIPs": ["fd00::1"],
                "ports": [{"port": 53, "protocol": "UDP", "targetPort": "dns"}],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "ipFamilies": ["IPv6"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Cluster",
            },
        ),
        (
            '{"ipFamilyPolicy":"PreferDualStack","externalIPs":["1.2.3.4"],'
            '"externalTrafficPolicy":"Local"}',
            {
                "type": "ClusterIP",
                "externalIPs": ["1.2.3.4"],
                "sessionAffinity": "None",
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "PreferDualStack",
                "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Local",
            },
        ),
        ('{"type":"ExternalName"}', {"type": "ExternalName"}),
    ],
)
def test_service(spec: str, expected: object) -> None:
    found = defaulted(Service, f'{{"metadata":{{"name":"a"}},"spec":{spec}}}')
    assert isinstance(found, dict)
    assert found["spec"] == expected


def test_the_primary_family_decides_where_nothing_else_does() -> None:
    found = defaulted(Service, '{"spec":{}}', "IPv6")
    assert isinstance(found, dict)
    assert found["spec"]["ipFamilies"] == ["IPv6"]


def test_a_given_affinity_timeout_stays() -> None:
    config = (
        '{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":9}}}'
    )
    found = defaulted(Service, f'{{"spec":{config}}}')
    assert isinstance(found, dict)
    assert found["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 9}}


def test_endpoint_slice_and_node() -> None:
    assert defaulted(EndpointSlice, '{"ports":[{"port":80}]}') == {
        "ports": [{"name": "", "protocol": "TCP", "port": 80}]
    }
    assert defaulted(Node, '{"spec":{"podCIDR":"10.0.0.0/24"}}') == {
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}
    }


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ("{}", ["Ingress"]),
        ('{"egress":[{}]}', ["Ingress", "Egress"]),
        ('{"egress":[]}', ["Ingress"]),
        ('{"policyTypes":["Egress"]}', ["Egress"]),
    ],
)
def test_policy_types(spec: str, types: list[str]) -> None:
    found = defaulted(NetworkPolicy, f'{{"spec":{spec}}}')
    assert isinstance(found, dict)
    assert found["spec"]["policyTypes"] == types


def test_policy_protocols_and_absent_ports() -> None:
    text = '{"spec":{"ingress":[{"ports":[{"port":80}]},{}],"egress":[{"ports":[]}]}}'
    found = defaulted(NetworkPolicy, text)
    assert isinstance(found, dict)
    assert found["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 80}]}, {}]
    assert found["spec"]["egress"] == [{"ports": []}]


def test_pod() -> None:
    text = (
        '{"spec":{"containers":[{"name":"c","ports":[{"containerPort":80}]},{"name":"d"}]},'
        '"status":{"podIP":"10.0.0.1"}}'
    )
    found = defaulted(Pod, text)
    assert found == {
        "spec": {
            "containers": [
                {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                {"name": "d"},
            ],
            "terminationGracePeriodSeconds": 30,
        },
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    }
