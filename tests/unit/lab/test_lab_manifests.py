"""Manifest files and the kustomization subset."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.manifests import read_files, render_kustomization

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
OVERLAYS = ["base", *(f"overlays/{path.name}" for path in (MANIFESTS / "overlays").iterdir())]


def by_key(objects: list[Any]) -> dict[tuple[str, str], Any]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}


def without_order(value: Any) -> Any:
    """Lists of named things sorted: kustomize puts what a patch adds first, an API server last."""
    if isinstance(value, dict):
        return {key: without_order(each) for key, each in value.items()}
    if isinstance(value, list):
        found = [without_order(each) for each in value]
        is_named = all(isinstance(each, dict) and "name" in each for each in found)
        return sorted(found, key=lambda each: each["name"]) if is_named else found
    return value


@pytest.mark.parametrize("name", OVERLAYS)
def test_rendering_equals_kubectl_kustomize(name: str, recent_kubectl: str) -> None:
    done = subprocess.run(
        [recent_kubectl, "kustomize", str(MANIFESTS / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = by_key(list(yaml.safe_load_all(done.stdout)))
    rendered = by_key(render_kustomization(MANIFESTS / name))
    assert without_order(rendered) == without_order(expected)
    assert init_containers(rendered) == init_containers(expected)


def init_containers(objects: dict[tuple[str, str], Any]) -> list[str]:
    """Their names in the order in which they run."""
    (daemon_set,) = [obj for (kind, _), obj in objects.items() if kind == "DaemonSet"]
    found = daemon_set["spec"]["template"]["spec"].get("initContainers") or []
    return [each["name"] for each in found]


KUSTOMIZATION = {
    "resources": ["objects.yaml"],
    "namespace": "elsewhere",
    "patches": [
        {"path": "patch.yaml"},
        {
            "target": {"kind": "ConfigMap", "name": "settings"},
            "patch": '[{"op": "replace", "path": "/data/a", "value": "2"}]',
        },
        {
            "target": {"kind": "ServiceAccount"},
            "patch": "kind: any\nmetadata:\n  name: any\n  labels:\n    added: 'yes'\n",
        },
    ],
}
OBJECTS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: here}
data: {a: "1", b: "1"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: here}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}
subjects: [{kind: ServiceAccount, name: agent, namespace: here}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: here}
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec:
      containers:
      - {name: one, image: x, args: [a], env: [{name: A, value: "1"}]}
      - {name: two, image: y}
"""
PATCH = """\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: here}
spec:
  template:
    spec:
      containers:
      - {name: one, args: [b, c], env: [{name: A, value: "2"}]}
      - {name: two, $patch: delete}
"""


def write(directory: Path, kustomization: Any) -> Path:
    (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
    (directory / "objects.yaml").write_text(OBJECTS)
    (directory / "patch.yaml").write_text(PATCH)
    return directory


def test_patches_and_namespace(tmp_path: Path) -> None:
    found = by_key(render_kustomization(write(tmp_path, KUSTOMIZATION)))
    assert found["ConfigMap", "settings"]["data"] == {"a": "2", "b": "1"}
    assert found["ServiceAccount", "agent"]["metadata"] == {
        "name": "agent",
        "namespace": "elsewhere",
        "labels": {"added": "yes"},
    }
    assert "namespace" not in found["ClusterRoleBinding", "agent"]["metadata"]
    assert found["ClusterRoleBinding", "agent"]["subjects"][0]["namespace"] == "elsewhere"
    (container,) = found["DaemonSet", "agent"]["spec"]["template"]["spec"]["containers"]
    assert (container["args"], container["env"]) == (["b", "c"], [{"name": "A", "value": "2"}])


COMPONENT = {
    "apiVersion": "kustomize.config.k8s.io/v1alpha1",
    "kind": "Component",
    "resources": ["more.yaml"],
    "patches": [
        {
            "target": {"kind": "DaemonSet"},
            "patch": '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-",'
            ' "value": "of the component"}]',
        }
    ],
}
MORE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}


def with_component(directory: Path) -> Path:
    """A kustomization that uses a component beside it."""
    component, user = directory / "component", directory / "user"
    component.mkdir()
    user.mkdir()
    (component / "kustomization.yaml").write_text(json.dumps(COMPONENT))
    (component / "more.yaml").write_text(json.dumps(MORE))
    return write(user, {**KUSTOMIZATION, "components": ["../component"]})


def test_a_component_changes_what_is_there_before_the_patches_do(tmp_path: Path) -> None:
    found = by_key(render_kustomization(with_component(tmp_path)))
    assert found["ConfigMap", "more"]["metadata"]["namespace"] == "elsewhere"
    (container,) = found["DaemonSet", "agent"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["b", "c"]
    user = tmp_path / "user"
    (user / "kustomization.yaml").write_text(
        json.dumps({"resources": ["objects.yaml"], "components": ["../component"]})
    )
    found = by_key(render_kustomization(user))
    first, _ = found["DaemonSet", "agent"]["spec"]["template"]["spec"]["containers"]
    assert first["args"] == ["a", "of the component"]


def test_components_as_kubectl_kustomize(tmp_path: Path, recent_kubectl: str) -> None:
    directory = with_component(tmp_path)
    done = subprocess.run(
        [recent_kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=True
    )
    expected = by_key(list(yaml.safe_load_all(done.stdout)))
    assert by_key(render_kustomization(directory)) == expected


def test_a_component_is_no_resource_and_a_kustomization_no_component(tmp_path: Path) -> None:
    user = with_component(tmp_path)
    for field, path in (("resources", "../component"), ("components", "../other")):
        (user / "kustomization.yaml").write_text(json.dumps({field: [path]}))
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/kustomization.yaml").write_text('{"kind": "Kustomization"}')
        with pytest.raises(LabError, match="of kind"):
            render_kustomization(user)


def test_patches_as_kubectl_kustomize(tmp_path: Path, recent_kubectl: str) -> None:
    directory = write(tmp_path, KUSTOMIZATION)
    done = subprocess.run(
        [recent_kubectl, "kustomize", str(directory)], capture_output=True, text=True, check=True
    )
    expected = by_key(list(yaml.safe_load_all(done.stdout)))
    assert by_key(render_kustomization(directory)) == expected


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": [{"name": "x"}]}, "images"),
        ({"patches": [{"path": "patch.yaml", "options": {}}]}, "options"),
        ({"patches": [{"target": {"labelSelector": "a=b"}, "patch": "a: b"}]}, "labelSelector"),
        ({"resources": ["missing.yaml"]}, "missing.yaml"),
        ({"patches": [{"target": {"kind": "Secret"}, "patch": "a: b"}]}, "Secret"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(tmp_path: Path, changed: Any, named: str) -> None:
    directory = write(tmp_path, {**KUSTOMIZATION, **changed})
    with pytest.raises(LabError, match=named):
        render_kustomization(directory)


def test_files_directories_and_lists(tmp_path: Path) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}
    (tmp_path / "list.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [service]})
    )
    (tmp_path / "two.yaml").write_text("kind: A\n---\n---\nkind: B\n")
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert [obj["kind"] for obj in read_files([tmp_path])] == ["Service", "A", "B"]
    assert [obj["kind"] for obj in read_files([tmp_path / "two.yaml"])] == ["A", "B"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "metadata: {}\n"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(LabError, match=r"broken\.yaml"):
        read_files([file])
