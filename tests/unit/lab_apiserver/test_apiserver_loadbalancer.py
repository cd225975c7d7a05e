"""What those who give and announce load balancer addresses ask of an API server, and may."""

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

Cluster = Any  # conftest.Cluster, which importlib mode does not let tests import
Kubectl = Any  # conftest.Kubectl

SYSTEM = "/api/v1/namespaces/kube-system"
SERVICES = "/api/v1/namespaces/default/services"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ONE_NAME = "fieldSelector=metadata.name%3Dpools"


class Client:
    def __init__(self, cluster: Cluster, token: str) -> None:
        self._port, self._token = cluster.port, token
        self._tls = ssl.create_default_context(cafile=str(cluster.server.certificates.ca))

    @contextlib.contextmanager
    def open(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, context=self._tls, timeout=60
        )
        with contextlib.closing(connection):
            connection.request(method, path, body and json.dumps(body), headers)
            with connection.getresponse() as response:
                yield response

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with self.open(method, path, body) as response:
            return response.status, json.loads(response.read())


@pytest.fixture
def admin(cluster: Cluster) -> Client:
    return Client(cluster, cluster.server.tokens.admin)


@pytest.fixture
def agent(cluster: Cluster, admin: Client) -> Client:
    """May write the status of Services and its own Leases, and read one ConfigMap, one Secret."""
    rules = {
        "clusterroles": [
            {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
        ],
        "namespaces/kube-system/roles": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": ["pools"],
                "verbs": ["list", "watch"],
            },
            {
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": ["heartbeat"],
                "verbs": ["get"],
            },
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["create", "get", "patch"],
            },
        ],
    }
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": "kube-system"}
    for path, found in rules.items():
        body: dict[str, Any] = {"metadata": {"name": "agent"}, "rules": found}
        assert admin.ask("POST", f"{RBAC}/{path}", body)[0] == 201
        kind = "Role" if path.startswith("namespaces") else "ClusterRole"
        body = {
            "metadata": {"name": "agent"},
            "roleRef": {"kind": kind, "name": "agent"},
            "subjects": [subject],
        }
        bindings = path.replace("roles", "rolebindings")
        assert admin.ask("POST", f"{RBAC}/{bindings}", body)[0] == 201
    token = cluster.call(cluster.server.issue_token, "kube-system", "agent")
    return Client(cluster, token)


def balancer(name: str = "web") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}


def status(address: str, revision: str) -> dict[str, Any]:
    ingress = [{"ip": address, "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]}]
    return {
        "metadata": {"resourceVersion": revision},
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def test_a_status_is_written_once_for_each_revision_and_nothing_else_is(
    admin: Client, agent: Client
) -> None:
    _, service = admin.ask("POST", SERVICES, balancer())
    revision = service["metadata"]["resourceVersion"]
    code, changed = agent.ask("PATCH", f"{SERVICES}/web/status", status("10.0.0.1", revision))
    assert (code, changed["spec"]) == (200, service["spec"])
    assert changed["metadata"]["resourceVersion"] != revision
    code, refusal = agent.ask("PATCH", f"{SERVICES}/web/status", status("10.0.0.2", revision))
    assert (code, refusal["reason"]) == (409, "Conflict")
    (entry,) = admin.ask("GET", f"{SERVICES}/web")[1]["status"]["loadBalancer"]["ingress"]
    assert entry == {"ip": "10.0.0.1", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]}
    assert agent.ask("PATCH", f"{SERVICES}/web", {"metadata": {"labels": {"a": "b"}}})[0] == 403
    current = changed["metadata"]["resourceVersion"]
    wrong = {**status("10.0.0.3", current), "spec": {"type": "ClusterIP"}}
    code, changed = agent.ask("PATCH", f"{SERVICES}/web/status", wrong)
    assert (code, changed["spec"]["type"]) == (200, "LoadBalancer"), "a status alone is written"


def test_of_two_who_want_a_lease_one_gets_it(agent: Client) -> None:
    body = {"metadata": {"name": "lballoc"}, "spec": {"holderIdentity": "a"}}
    code, lease = agent.ask("POST", LEASES, body)
    assert code == 201
    assert agent.ask("POST", LEASES, body)[0] == 409
    revision = lease["metadata"]["resourceVersion"]
    answers = [
        agent.ask(
            "PATCH",
            f"{LEASES}/lballoc",
            {"metadata": {"resourceVersion": revision}, "spec": {"holderIdentity": name}},
        )[0]
        for name in "bc"
    ]
    assert answers == [200, 409]
    assert agent.ask("GET", f"{LEASES}/lballoc")[1]["spec"]["holderIdentity"] == "b"


def test_one_config_map_is_followed_by_its_name_alone(admin: Client, agent: Client) -> None:
    path = f"{SYSTEM}/configmaps"
    for name in ("other", "pools"):
        assert admin.ask("POST", path, {"metadata": {"name": name}})[0] == 201
    code, found = agent.ask("GET", f"{path}?{ONE_NAME}")
    assert code == 200
    assert [each["metadata"]["name"] for each in found["items"]] == ["pools"]
    revision = found["metadata"]["resourceVersion"]
    watch = f"{path}?{ONE_NAME}&watch=1&resourceVersion={revision}"
    with agent.open("GET", watch) as stream:
        assert stream.status == 200
        for name in ("other", "pools"):
            admin.ask("PATCH", f"{path}/{name}", {"data": {"a": "b"}})
        event = json.loads(stream.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("MODIFIED", "pools")
        admin.ask("DELETE", f"{path}/pools")
        assert json.loads(stream.readline())["type"] == "DELETED"
    for query in ("", "?fieldSelector=metadata.name%3Dother", "?fieldSelector=metadata.name!%3Da"):
        assert agent.ask("GET", path + query)[0] == 403, query


def test_one_secret_is_read(admin: Client, agent: Client) -> None:
    for name in ("heartbeat", "other"):
        secret = {"metadata": {"name": name}, "data": {"key": "c2VjcmV0"}}
        assert admin.ask("POST", f"{SYSTEM}/secrets", secret)[0] == 201
    code, found = agent.ask("GET", f"{SYSTEM}/secrets/heartbeat")
    assert (code, found["data"]) == (200, {"key": "c2VjcmV0"})
    assert agent.ask("GET", f"{SYSTEM}/secrets/other")[0] == 403
    assert agent.ask("GET", f"{SYSTEM}/secrets")[0] == 403


def test_kubectl_shows_the_addresses(admin: Client, agent: Client, kubectl: Kubectl) -> None:
    _, service = admin.ask("POST", SERVICES, balancer())
    assert kubectl("get", "svc", "web").splitlines()[1].split()[3] == "<pending>"
    revision = service["metadata"]["resourceVersion"]
    agent.ask("PATCH", f"{SERVICES}/web/status", status("10.0.0.1", revision))
    header, line = kubectl("get", "svc", "web").splitlines()
    assert header.split()[3] == "EXTERNAL-IP"
    assert line.split()[3] == "10.0.0.1"
    patch = '{"status":{"loadBalancer":{"ingress":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}}'
    kubectl("patch", "svc", "web", "--subresource=status", "--type=merge", "-p", patch)
    assert kubectl("get", "svc", "web").splitlines()[1].split()[3] == "10.0.0.1,fd00::1"
