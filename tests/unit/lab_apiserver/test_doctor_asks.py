"""What doctor asks of an API server, against the lab's: reachability, clock, each permission."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_router_py.cluster import listing
from kube_router_py.cluster.client import Client
from kube_router_py.cluster.credentials import Credentials
from kube_router_py.doctor import facts_api
from kube_router_py.doctor.permissions import Permission, needed
from kube_router_py.options import Options, parse

OVERLAYS = Path(__file__).parents[3] / "manifests/overlays"
NAMESPACE = "kube-system"
PLURALS = {
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
}


def built(overlay: str, kubectl: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [kubectl, "kustomize", str(OVERLAYS / overlay)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture
def credentials(cluster: Any, tmp_path: Path) -> Credentials:
    """Those of the agent's ServiceAccount."""
    token = cluster.call(cluster.server.issue_token, NAMESPACE, "kube-router-py")
    file = tmp_path / "agent.conf"
    cluster.server.write_kubeconfig(file, cluster.url, token)
    return Credentials(Options(kubeconfig=str(file)), {})


@pytest.fixture
def client(credentials: Credentials) -> Iterator[Client]:
    found = Client(credentials)
    yield found
    found.close()


def grant(cluster: Any, objects: list[dict[str, Any]]) -> None:
    for each in objects:
        if plural := PLURALS.get(each["kind"]):
            namespace = each["metadata"].get("namespace", "")
            cluster.call(cluster.store.create, plural, each, namespace=namespace)


@pytest.mark.parametrize("overlay", sorted(each.name for each in OVERLAYS.iterdir()))
def test_the_roles_of_an_overlay_are_enough(
    cluster: Any, client: Client, overlay: str, recent_kubectl: str
) -> None:
    objects = built(overlay, recent_kubectl)
    (daemon_set,) = [each for each in objects if each["kind"] == "DaemonSet"]
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    asked = needed(parse(container["args"], {}))
    assert set(facts_api.refused(client, asked, NAMESPACE)) == set(asked)
    grant(cluster, objects)
    assert list(facts_api.refused(client, asked, NAMESPACE)) == []


def test_each_permission_that_is_taken_away_is_told_and_no_other(
    cluster: Any, client: Client, recent_kubectl: str
) -> None:
    objects = built("load-balancer", recent_kubectl)
    (role,) = [each for each in objects if each["kind"] == "ClusterRole"]
    for rule in role["rules"]:
        if "services/status" in rule["resources"]:
            rule["verbs"] = ["get"]
        if "endpointslices" in rule["resources"]:
            rule["verbs"].remove("watch")
    grant(cluster, objects)
    flags = ["--run-loadbalancer"]
    found = facts_api.refused(client, needed(parse(flags, {})), NAMESPACE)
    assert {str(each) for each in found} == {
        "patch services/status",
        "watch endpointslices.discovery.k8s.io",
    }


def test_a_permission_in_one_namespace_is_none_in_another(
    cluster: Any, client: Client, recent_kubectl: str
) -> None:
    grant(cluster, built("service-proxy", recent_kubectl))
    lease = Permission("coordination.k8s.io", "leases", "patch", is_own=True)
    assert list(facts_api.refused(client, [lease], NAMESPACE)) == []
    assert list(facts_api.refused(client, [lease], "default")) == [lease]


def test_a_server_answers_and_its_clock_is_ours(credentials: Credentials) -> None:
    (answer,) = facts_api.answers(credentials)
    assert (answer.status, answer.error) == (200, "")
    assert answer.skew_s is not None
    assert abs(answer.skew_s) <= 1


def test_a_server_that_is_away_does_not_answer(cluster: Any, credentials: Credentials) -> None:
    cluster.stop()
    (answer,) = facts_api.answers(credentials)
    assert answer.status == 0
    assert "refused" in answer.error


def test_credentials_that_are_not_accepted(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "other.conf"
    cluster.server.write_kubeconfig(file, cluster.url, "no-such-token")
    (answer,) = facts_api.answers(Credentials(Options(kubeconfig=str(file)), {}))
    assert answer.status == 401


def test_the_difference_of_clocks_is_never_told_larger_than_it_is() -> None:
    date = "Sat, 21 Nov 2026 12:00:00 GMT"
    told = 1795262400.0
    assert facts_api.clock_difference(date, told - 0.1, told + 0.9) == 0
    assert facts_api.clock_difference(date, told + 30, told + 31) == pytest.approx(-29)
    assert facts_api.clock_difference(date, told - 31, told - 30) == pytest.approx(30)
    assert facts_api.clock_difference("nonsense", 0, 1) is None


def test_all_objects_come_however_many_there_are(
    cluster: Any, client: Client, recent_kubectl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant(cluster, built("service-proxy", recent_kubectl))
    monkeypatch.setattr(listing, "_CHUNK", 2)
    for number in range(5):
        cluster.call(cluster.store.create, "nodes", {"metadata": {"name": f"n{number}"}})
    assert set(facts_api.nodes(client).objects) == {f"n{number}" for number in range(5)}
    assert list(facts_api.services(client).objects) == ["default/kubernetes"]
