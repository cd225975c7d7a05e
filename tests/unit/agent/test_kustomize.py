"""A cluster's own kustomization on top of the manifests: components, another namespace, flags."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.options import parse

REPOSITORY = Path(__file__).parents[3]
MANIFESTS = REPOSITORY / "manifests"
DIRECTORIES = ["base", *(f"overlays/{path.name}" for path in (MANIFESTS / "overlays").iterdir())]

Object = dict[str, Any]


def built(directory: Path, kubectl: str) -> list[Object]:
    """What kustomize itself makes of it."""
    done = subprocess.run(
        [kubectl, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kustomization(directory: Path, overlay: str, **fields: Any) -> Path:
    """One of that overlay, as docs/install.md has it. Kustomize takes relative paths alone."""
    content = {"resources": [os.path.relpath(MANIFESTS / overlay, directory)], **fields}
    (directory / "kustomization.yaml").write_text(json.dumps(content))
    return directory


def with_metrics(directory: Path, overlay: str) -> Path:
    component = os.path.relpath(MANIFESTS / "components/metrics", directory)
    return kustomization(directory, overlay, components=[component])


def pod_of(objects: list[Object]) -> Object:
    (found,) = [obj for obj in objects if obj["kind"] == "DaemonSet"]
    spec: Object = found["spec"]["template"]["spec"]
    return spec


def agent_of(objects: list[Object]) -> Object:
    (container,) = pod_of(objects)["containers"]
    found: Object = container
    return found


@pytest.mark.parametrize("overlay", DIRECTORIES)
def test_with_the_component_any_overlay_serves_metrics_where_the_podmonitor_looks(
    overlay: str, tmp_path: Path
) -> None:
    agent = agent_of(render_kustomization(with_metrics(tmp_path, overlay)))
    usual = agent_of(render_kustomization(MANIFESTS / overlay))
    options = parse(agent["args"], {})
    (port,) = agent.pop("ports")
    assert port["containerPort"] == options.metrics_port != 0
    assert agent.pop("args")[:-1] == usual.pop("args")
    assert agent == usual, "nothing else changes"
    monitor, _ = render_kustomization(MANIFESTS / "monitoring/prometheus-operator")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], options.metrics_path)
    # Left alone, the address is the pod's, of either family, with that port.
    assert "__address__" not in str(endpoint)


@pytest.mark.parametrize("overlay", DIRECTORIES)
def test_kustomize_makes_the_same_of_the_component(
    overlay: str, tmp_path: Path, recent_kubectl: str
) -> None:
    directory = with_metrics(tmp_path, overlay)
    theirs, ours = built(directory, recent_kubectl), render_kustomization(directory)
    assert len(theirs) == len(ours)
    for key in ("args", "ports", "securityContext", "resources"):
        assert agent_of(theirs)[key] == agent_of(ours)[key]


@pytest.mark.parametrize("overlay", DIRECTORIES)
def test_all_of_an_overlay_moves_to_a_namespace_of_its_own(
    overlay: str, tmp_path: Path, recent_kubectl: str
) -> None:
    objects = built(kustomization(tmp_path, overlay, namespace="own"), recent_kubectl)
    assert "kube-system" not in json.dumps(objects)
    subjects = [each for obj in objects for each in obj.get("subjects", ())]
    assert {each["namespace"] for each in subjects} == {"own"}


@pytest.mark.parametrize("name", ["cluster", "k3s"])
def test_the_examples_change_agent_and_doctor_alike(name: str, recent_kubectl: str) -> None:
    found = built(REPOSITORY / "docs/examples" / name, recent_kubectl)
    objects = {(obj["kind"], obj["metadata"]["name"]): obj for obj in found}
    assert objects["ConfigMap", "kube-router-py"]["data"]["api-host"] == "192.0.2.10"
    spec, agent = pod_of(found), agent_of(found)
    install, doctor = spec["initContainers"]
    assert doctor["args"] == ["doctor", "--preflight", *agent["args"]]
    assert install["args"][0] == "install-cni"
    usual = parse(agent_of(render_kustomization(MANIFESTS / "overlays/all"))["args"], {})
    changed = parse(agent["args"], {})
    assert changed != usual
    paths = {
        each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each
    }
    if name == "k3s":
        assert paths["cni-bin"].startswith("/var/lib/rancher/k3s/")
        assert paths["cni-conf"].startswith("/var/lib/rancher/k3s/")
        assert changed.service_cluster_ip_range != usual.service_cluster_ip_range
