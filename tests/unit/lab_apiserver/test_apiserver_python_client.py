"""The kubernetes package's typed client is the second judge."""

from collections.abc import Iterator
from typing import Any

import pytest

kubernetes = pytest.importorskip("kubernetes")

Cluster = Any  # conftest.Cluster, which importlib mode does not let tests import


@pytest.fixture
def api(cluster: Cluster) -> Iterator[Any]:
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(str(cluster.kubeconfig), client_configuration=settings)
    made = client.ApiClient(settings)
    yield made
    made.rest_client.pool_manager.clear()
    made.close()


def deployment() -> Any:
    from kubernetes.client import (
        V1Container,
        V1ContainerPort,
        V1Deployment,
        V1DeploymentSpec,
        V1LabelSelector,
        V1ObjectMeta,
        V1PodSpec,
        V1PodTemplateSpec,
    )

    container = V1Container(name="c", image="x:1", ports=[V1ContainerPort(container_port=80)])
    template = V1PodTemplateSpec(
        metadata=V1ObjectMeta(labels={"app": "web"}), spec=V1PodSpec(containers=[container])
    )
    selector = V1LabelSelector(match_labels={"app": "web"})
    spec = V1DeploymentSpec(replicas=2, selector=selector, template=template)
    return V1Deployment(metadata=V1ObjectMeta(name="web"), spec=spec)


def test_create_read_patch_scale_delete(api: Any) -> None:
    from kubernetes.client import AppsV1Api

    apps = AppsV1Api(api)
    made = apps.create_namespaced_deployment("default", deployment())
    assert made.spec.strategy.rolling_update.max_surge == "25%"
    assert made.metadata.generation == 1
    patched = apps.patch_namespaced_deployment("web", "default", {"spec": {"replicas": 5}})
    assert patched.spec.replicas == 5
    operations = [{"op": "replace", "path": "/spec/replicas", "value": 4}]
    patched = apps.patch_namespaced_deployment("web", "default", operations)
    assert patched.spec.replicas == 4
    scale = apps.read_namespaced_deployment_scale("web", "default")
    assert (scale.spec.replicas, scale.status.selector) == (4, "app=web")
    scale.spec.replicas = 1
    apps.replace_namespaced_deployment_scale("web", "default", scale)
    status = {"status": {"readyReplicas": 1}}
    patched = apps.patch_namespaced_deployment_status("web", "default", status)
    assert (patched.status.ready_replicas, patched.spec.replicas) == (1, 1)
    assert [d.metadata.name for d in apps.list_deployment_for_all_namespaces().items] == ["web"]
    done = apps.delete_namespaced_deployment("web", "default")
    # A V1Status or, in newer clients, a dict.
    assert api.sanitize_for_serialization(done)["status"] == "Success"


def test_services_and_errors(api: Any) -> None:
    from kubernetes.client import ApiException, CoreV1Api

    core = CoreV1Api(api)
    manifest = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    made = core.create_namespaced_service("default", manifest)
    assert made.spec.cluster_ip.startswith("10.96.")
    with pytest.raises(ApiException) as caught:
        core.create_namespaced_service("default", manifest)
    assert (caught.value.status, caught.value.reason) == (409, "Conflict")
    made.metadata.labels = {"a": "b"}
    replaced = core.replace_namespaced_service("s", "default", made)
    with pytest.raises(ApiException) as caught:
        core.replace_namespaced_service("s", "default", made)
    assert caught.value.status == 409
    assert replaced.metadata.labels == {"a": "b"}
    assert core.delete_namespaced_service("s", "default").metadata.name == "s"


def test_watch_and_chunks(cluster: Cluster, api: Any) -> None:
    from kubernetes.client import CoreV1Api
    from kubernetes.watch import Watch

    core = CoreV1Api(api)
    for name in "abc":
        core.create_namespaced_config_map("default", {"metadata": {"name": name}})
    first = core.list_namespaced_config_map("default", limit=2)
    rest = core.list_namespaced_config_map("default", limit=2, _continue=first.metadata._continue)
    assert [c.metadata.name for c in (*first.items, *rest.items)] == ["a", "b", "c"]
    revision = rest.metadata.resource_version
    core.patch_namespaced_config_map("a", "default", {"data": {"k": "v"}})
    core.delete_namespaced_config_map("b", "default")
    seen = []
    watch = Watch()
    for event in watch.stream(
        core.list_namespaced_config_map, "default", resource_version=revision, timeout_seconds=60
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 2:
            watch.stop()
    assert seen == [("MODIFIED", "a"), ("DELETED", "b")]


def test_leases_for_leader_election(api: Any) -> None:
    from kubernetes.client import ApiException, CoordinationV1Api

    leases = CoordinationV1Api(api)
    body = {"metadata": {"name": "leader"}, "spec": {"holderIdentity": "node1"}}
    held = leases.create_namespaced_lease("kube-system", body)
    held.spec.holder_identity = "node2"
    leases.replace_namespaced_lease("leader", "kube-system", held)
    with pytest.raises(ApiException) as caught:
        leases.replace_namespaced_lease("leader", "kube-system", held)
    assert caught.value.status == 409


def test_node_status(cluster: Cluster, api: Any) -> None:
    from kubernetes.client import CoreV1Api

    core = CoreV1Api(api)
    address = {"type": "InternalIP", "address": "10.0.0.1"}
    node = {"metadata": {"name": "n"}, "status": {"addresses": [address]}}
    assert core.create_node(node).status.addresses[0].address == "10.0.0.1"
    condition = {"type": "NetworkUnavailable", "status": "False"}
    patched = core.patch_node_status("n", {"status": {"conditions": [condition]}})
    assert patched.status.conditions[0].type == "NetworkUnavailable"
    assert patched.status.addresses[0].address == "10.0.0.1"
