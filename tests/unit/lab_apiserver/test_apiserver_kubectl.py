"""kubectl is the judge: the verbs of a working day, against the lab's API server."""

import json
from typing import Any

import pytest

Cluster = Any  # conftest.Cluster, which importlib mode does not let tests import
Kubectl = Any  # conftest.Kubectl

WEBSITE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1", ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {}}]
    ports: [{port: 8080, protocol: TCP}]
"""


def finish_rollout(cluster: Cluster, name: str = "web") -> None:
    """What the Deployment's controller would report at the end."""
    deployment = cluster.store.get("deployments", name, "default")
    count = deployment["spec"]["replicas"]
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    available = {"type": "Available", "status": "True"}
    status = {
        **dict.fromkeys(counts, count),
        "observedGeneration": deployment["metadata"]["generation"],
        "conditions": [available],
    }
    cluster.call(
        cluster.store.patch,
        "deployments",
        name,
        {"status": status},
        namespace="default",
        subresource="status",
    )


def run_pod(cluster: Cluster, name: str = "p", **labels: str) -> None:
    """A pod that a scheduler and a kubelet have started."""
    store = cluster.store
    container = {"name": "c", "image": "x:1"}
    pod = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}
    cluster.call(store.create, "pods", pod, namespace="default")
    spec, status = {"nodeName": "node1"}, {"phase": "Running", "podIP": "10.244.0.5"}
    status["podIPs"] = [{"ip": "10.244.0.5"}]  # type: ignore[assignment]
    status["containerStatuses"] = [  # type: ignore[assignment]
        {"name": "c", "ready": True, "restartCount": 0, "state": {"running": {}}}
    ]
    cluster.call(store.patch, "pods", name, {"spec": spec}, namespace="default")
    cluster.call(
        store.patch, "pods", name, {"status": status}, namespace="default", subresource="status"
    )


def test_version_and_api_resources(kubectl: Kubectl) -> None:
    assert "Server Version: v1.32" in kubectl("version")
    names = kubectl("api-resources", "-o", "name").split()
    assert {"services", "deployments.apps", "networkpolicies.networking.k8s.io"} <= set(names)


def test_apply_again_with_changes_and_delete(kubectl: Kubectl) -> None:
    done = kubectl("apply", "-f", "-", stdin=WEBSITE).splitlines()
    assert [line.split()[-1] for line in done] == ["created"] * 3
    done = kubectl("apply", "-f", "-", stdin=WEBSITE).splitlines()
    assert [line.split()[-1] for line in done] == ["unchanged"] * 3
    kubectl("scale", "deployment", "web", "--replicas=7")
    changed = WEBSITE.replace("web:1", "web:2").replace("  replicas: 3\n", "")
    changed = changed.replace("port: 80,", "port: 81,").replace(
        "labels: {app: web}}\nspec", "}\nspec"
    )
    done = kubectl("apply", "-f", "-", stdin=changed).splitlines()
    assert [line.split()[-1] for line in done] == ["configured", "configured", "unchanged"]
    deployment = kubectl.json("deployment", "web")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "web:2"
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    assert deployment["spec"]["replicas"] == 1, "dropped from the manifest: back to the default"
    assert "labels" not in deployment["metadata"], "dropped from the manifest: removed"
    service = kubectl.json("svc", "web")
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["nodePort"]) == (81, 30080)
    done = kubectl("delete", "-f", "-", stdin=WEBSITE).splitlines()
    assert len(done) == 3
    assert kubectl.run("get", "deployment", "web").returncode == 1


def test_diff_free_dry_run(cluster: Cluster, kubectl: Kubectl) -> None:
    revision = cluster.store.revision
    shown = kubectl("apply", "-f", "-", "--dry-run=server", "-o", "name", stdin=WEBSITE)
    assert "service/web" in shown
    assert cluster.store.revision == revision


def test_server_side_apply(kubectl: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    done = kubectl(*apply, stdin=WEBSITE).splitlines()
    assert [line.split()[-1] for line in done] == ["serverside-applied"] * 3
    kubectl("scale", "deployment", "web", "--replicas=7")
    refused = kubectl.run(*apply, stdin=WEBSITE)
    assert refused.returncode == 1
    assert "conflict" in refused.stderr
    assert ".spec.replicas" in refused.stderr
    kubectl(*apply, "--force-conflicts", stdin=WEBSITE)
    assert kubectl.json("deployment", "web")["spec"]["replicas"] == 3
    kubectl(*apply, stdin=WEBSITE.replace("labels: {app: web}}\nspec", "}\nspec"))
    assert not kubectl.json("deployment", "web")["metadata"].get("labels")
    kubectl(*apply, "--field-manager=other", stdin=WEBSITE)


def test_from_client_side_to_server_side_apply(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEBSITE)
    kubectl("apply", "--server-side", "-f", "-", stdin=WEBSITE.replace("web:1", "web:2"))
    path = "{.spec.template.spec.containers[0].image}"
    assert kubectl("get", "deployment", "web", "-o", f"jsonpath={path}") == "web:2"


def test_create_replace_and_conflict(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=WEBSITE)
    again = kubectl.run("create", "-f", "-", stdin=WEBSITE)
    assert again.returncode == 1
    assert 'services "web" already exists' in again.stderr
    read = kubectl("get", "deployment", "web", "-o", "yaml")
    kubectl("label", "deployment", "web", "x=y")
    edited = read.replace("image: web:1", "image: web:3")
    stale = kubectl.run("replace", "-f", "-", stdin=edited)
    assert stale.returncode == 1
    assert "the object has been modified" in stale.stderr
    fresh = kubectl("get", "deployment", "web", "-o", "yaml").replace("web:1", "web:3")
    kubectl("replace", "-f", "-", stdin=fresh)
    assert "web:3" in kubectl("get", "deployment", "web", "-o", "wide")


def test_typed_creates(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", "shop")
    assert "Active" in kubectl("get", "ns", "shop")
    kubectl("create", "deployment", "web", "--image=web:1", "--replicas=2", "--port=80")
    spec = kubectl.json("deployment", "web")["spec"]
    assert (spec["replicas"], spec["selector"]) == (2, {"matchLabels": {"app": "web"}})
    kubectl("create", "service", "nodeport", "web", "--tcp=80:http", "--node-port=30001")
    (port,) = kubectl.json("svc", "web")["spec"]["ports"]
    assert (port["port"], port["targetPort"], port["nodePort"]) == (80, "http", 30001)
    kubectl("create", "configmap", "c", "--from-literal=a=b")
    assert kubectl.json("cm", "c")["data"] == {"a": "b"}
    kubectl("create", "serviceaccount", "agent")
    refused = kubectl.run("create", "role", "r", "--verb=get", "--resource=pods")
    assert refused.returncode == 1
    assert "--dry-run=client -o yaml" in refused.stderr
    manifest = kubectl(
        "create", "role", "r", "--verb=get", "--resource=pods", "--dry-run=client", "-o", "yaml"
    )
    kubectl("apply", "-f", "-", stdin=manifest)
    kubectl("delete", "namespace", "shop")
    assert kubectl.run("get", "ns", "shop").returncode == 1


def test_run_expose_label_annotate_set_image(kubectl: Kubectl) -> None:
    kubectl("run", "shell", "--image=x:1", "--port=80")
    kubectl("expose", "pod", "shell", "--port=8080", "--target-port=80")
    service = kubectl.json("svc", "shell")
    assert service["spec"]["selector"] == {"run": "shell"}
    kubectl("label", "svc", "shell", "tier=front")
    kubectl("label", "svc", "shell", "tier=back", "--overwrite")
    kubectl("annotate", "svc", "shell", "note=hello")
    assert kubectl("get", "svc", "-l", "tier in (back)", "-o", "name") == "service/shell\n"
    kubectl("label", "svc", "shell", "tier-")
    assert kubectl("get", "svc", "-l", "tier", "-o", "name") == ""
    kubectl("set", "image", "pod/shell", "shell=x:2")
    assert kubectl.json("pod", "shell")["spec"]["containers"][0]["image"] == "x:2"


@pytest.mark.parametrize(
    ("form", "patch"),
    [
        ("strategic", {"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "web:9"}]}}}}),
        ("merge", {"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "web:9", "ports": [{"containerPort": 8080}]}]}}}}),
        ("json", [{"op": "replace", "path": "/spec/template/spec/containers/0/image",
                   "value": "web:9"}]),
    ],
)  # fmt: skip
def test_patch(kubectl: Kubectl, form: str, patch: Any) -> None:
    kubectl("apply", "-f", "-", stdin=WEBSITE)
    kubectl("patch", "deployment", "web", f"--type={form}", "-p", json.dumps(patch))
    (container,) = kubectl.json("deployment", "web")["spec"]["template"]["spec"]["containers"]
    assert (container["name"], container["image"]) == ("web", "web:9")
    assert container["ports"][0]["containerPort"] == 8080


def test_validation_errors_read_like_kubernetes(kubectl: Kubectl) -> None:
    bad = WEBSITE.replace("port: 80,", "port: 80000,")
    done = kubectl.run("apply", "-f", "-", stdin=bad)
    assert done.returncode == 1
    assert (
        'The Service "web" is invalid: spec.ports[0].port: Invalid value: 80000: must be between '
        "1 and 65535, inclusive" in done.stderr
    )
    assert "deployment.apps/web created" in done.stdout, "the others are applied"


def test_get_in_every_form(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEBSITE)
    run_pod(cluster, app="web")
    finish_rollout(cluster)
    lines = kubectl("get", "svc,deploy", "--no-headers").splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "service/kubernetes",
        "service/web",
        "deployment.apps/web",
    ]
    assert kubectl("get", "pods").split()[:8] == [
        "NAME", "READY", "STATUS", "RESTARTS", "AGE", "p", "1/1", "Running",
    ]  # fmt: skip
    wide = kubectl("get", "po", "-o", "wide")
    assert "10.244.0.5" in wide
    assert "node1" in wide
    assert "3/3" in kubectl("get", "deploy", "web")
    assert "80:30080/TCP" in kubectl("get", "svc", "web")
    assert "app=web" in kubectl("get", "netpol")
    assert kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[0].nodePort}") == "30080"
    assert "nodePort: 30080" in kubectl("get", "svc", "web", "-o", "yaml")
    assert "kubernetes" in kubectl("get", "endpointslices")
    name = "custom-columns=N:.metadata.name"
    assert kubectl("get", "pods", "-o", name).split() == ["N", "p"]
    assert kubectl("get", "pods", "--field-selector", "spec.nodeName=node2", "-o", "name") == ""
    assert kubectl("get", "pods", "--field-selector", "status.phase=Running", "-o", "name")
    assert "NAMESPACE" in kubectl("get", "all", "-A")
    assert "kube-system" in kubectl("get", "ns", "--sort-by=.metadata.name")
    missing = kubectl.run("get", "pod", "nothing")
    assert 'pods "nothing" not found' in missing.stderr


def test_describe(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=WEBSITE)
    run_pod(cluster, app="web")
    uid = cluster.store.get("pods", "p", "default")["metadata"]["uid"]
    about = {"kind": "Pod", "name": "p", "namespace": "default", "uid": uid}
    event = {
        "metadata": {"name": "p.1"},
        "involvedObject": about,
        "reason": "Started",
        "message": "it runs",
        "type": "Normal",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "firstTimestamp": "2026-01-01T00:00:00Z",
    }
    cluster.call(cluster.store.create, "events", event, namespace="default")
    described = kubectl("describe", "pod", "p")
    assert "10.244.0.5" in described
    assert "it runs" in described
    assert "it runs" in kubectl("get", "events")
    assert "30080/TCP" in kubectl("describe", "svc", "web")
    assert "web:1" in kubectl("describe", "deploy", "web")
    assert "Allowing ingress traffic" in kubectl("describe", "netpol", "web")
    cluster.call(cluster.store.create, "nodes", {"metadata": {"name": "node1"}})
    assert "default" in kubectl("describe", "node", "node1")
    kubectl("cordon", "node1")
    assert "SchedulingDisabled" in kubectl("get", "nodes")


def test_rollout_and_wait(cluster: Cluster, kubectl: Kubectl, until: Any) -> None:
    kubectl("apply", "-f", "-", stdin=WEBSITE)
    with kubectl.popen("rollout", "status", "deployment/web") as waiting:
        until(lambda: cluster.server.open_watches("deployments"), "kubectl watches")
        finish_rollout(cluster)
        output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, output
    assert "successfully rolled out" in output
    kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
    kubectl("rollout", "restart", "deployment/web")
    deployment = kubectl.json("deployment", "web")
    assert (
        "kubectl.kubernetes.io/restartedAt"
        in (deployment["spec"]["template"]["metadata"]["annotations"])
    )
    late = kubectl.run("wait", "--for=condition=Nothing", "deployment/web", "--timeout=1s")
    assert "timed out" in late.stderr


def test_a_watching_get(cluster: Cluster, kubectl: Kubectl, until: Any) -> None:
    with kubectl.popen("get", "pods", "-w") as watching:
        until(lambda: cluster.server.open_watches("pods"), "kubectl watches")
        run_pod(cluster)
        cluster.call(cluster.store.delete, "pods", "p", "default")
        lines = []
        assert watching.stdout is not None
        for line in watching.stdout:
            lines.append(line.split())
            if "Terminating" in line:
                break
        watching.terminate()
    assert lines[0][:3] == ["NAME", "READY", "STATUS"]
    assert [line[2] for line in lines[1:]] == ["Pending", "Pending", "Running", "Terminating"]


def test_delete_waits_for_the_kubelet(cluster: Cluster, kubectl: Kubectl, until: Any) -> None:
    run_pod(cluster)
    with kubectl.popen("delete", "pod", "p") as deleting:
        until(lambda: cluster.server.open_watches("pods"), "kubectl waits for the pod to go")
        marked = cluster.store.get("pods", "p", "default")["metadata"]
        assert marked["deletionGracePeriodSeconds"] == 30
        cluster.call(cluster.store.delete, "pods", "p", "default", grace_period_s=0)
        output, _ = deleting.communicate(timeout=60)
    assert deleting.returncode == 0, output
    run_pod(cluster)
    kubectl("delete", "pod", "p", "--grace-period=0", "--force")
    assert cluster.store.find("pods", "p", "default") is None
    run_pod(cluster, "q", app="web")
    kubectl("delete", "pods", "-l", "app=web", "--now", "--wait=false")
    meta = cluster.store.get("pods", "q", "default")["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 1


def test_auth_can_i(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "pods") == "yes\n"
    agent = ("--as", "system:serviceaccount:default:agent")
    assert kubectl.run("auth", "can-i", "list", "pods", *agent).stdout == "no\n"
    refused = kubectl.run("get", "pods", *agent)
    assert 'cannot list resource "pods"' in refused.stderr
    manifest = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: admin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: agent, namespace: default}]
"""
    kubectl("apply", "-f", "-", stdin=manifest)
    assert kubectl("auth", "can-i", "list", "pods", *agent) == "yes\n"
    elsewhere = kubectl.run("auth", "can-i", "list", "pods", "-n", "kube-system", *agent)
    assert elsewhere.stdout == "no\n"


def test_logs_name_the_remedy(cluster: Cluster, kubectl: Kubectl) -> None:
    run_pod(cluster)
    refused = kubectl.run("logs", "p")
    assert "kube-router-py lab exec default/p" in refused.stderr
