"""Every object of the manifests is what Kubernetes' OpenAPI schemas say, with no field besides."""

import copy
import json
import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from kube_router_py.lab.manifests import render_kustomization

REPOSITORY = Path(__file__).parents[3]
MANIFESTS = REPOSITORY / "manifests"
# Oldest and newest Kubernetes for which the schemas are held against.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
DIRECTORIES = [
    "base",
    *sorted(f"overlays/{path.name}" for path in (MANIFESTS / "overlays").iterdir()),
]
# Their schemas are the Prometheus operator's: tests/unit/observe looks at these.
FOREIGN = {"PodMonitor", "PrometheusRule", "ServiceMonitor"}


def validate(obj, version=VERSIONS[-1]):
    kubernetes_validate.validate(obj, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_overlays_are_valid(directory, version):
    found = render_kustomization(MANIFESTS / directory)
    assert len(found) >= 7
    for obj in found:
        validate(obj, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_components_make_of_them_is_valid(version, tmp_path):
    above = os.path.relpath(MANIFESTS, tmp_path)
    components = sorted(path.name for path in (MANIFESTS / "components").iterdir())
    assert components
    content = {
        "resources": [f"{above}/overlays/all"],
        "components": [f"{above}/components/{name}" for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(content))
    for obj in render_kustomization(tmp_path):
        validate(obj, version)


def others():
    """All further objects in files of this repository, patched where a kustomization says so."""
    files = sorted([*MANIFESTS.glob("monitoring/**/*.yaml"), *REPOSITORY.glob("docs/**/*.yaml")])
    rendered = [file.parent for file in files if file.name == "kustomization.yaml"]
    found = [(each.name, render_kustomization(each)) for each in rendered]
    found += [
        (file.stem, yaml.safe_load_all(file.read_text()))
        for file in files
        if file.parent not in rendered
    ]
    for name, objects in found:
        for obj in objects:
            if isinstance(obj, dict) and {"kind", "apiVersion", "metadata"} <= obj.keys():
                yield pytest.param(obj, id=f"{name}-{obj['kind']}-{obj['metadata']['name']}")


@pytest.mark.parametrize("obj", list(others()))
def test_examples_are_valid(obj):
    if obj["kind"] in FOREIGN:
        with pytest.raises(kubernetes_validate.SchemaNotFoundError):
            validate(obj)
    else:
        validate(obj)


def daemon_set():
    (found,) = [
        obj
        for obj in render_kustomization(MANIFESTS / "overlays/all")
        if obj["kind"] == "DaemonSet"
    ]
    return copy.deepcopy(found)


def misspell(obj, path, name, wrong):
    for step in path:
        obj = obj[step]
    obj[wrong] = obj.pop(name)


@pytest.mark.parametrize(
    ("path", "name", "wrong"),
    [
        (("spec", "template", "spec"), "hostNetwork", "hostnetwork"),
        (("spec", "template", "spec", "containers", 0), "livenessProbe", "livenesProbe"),
        (("spec", "template", "spec", "containers", 0, "securityContext"), "capabilities", "caps"),
        (("spec", "template", "spec", "initContainers", 0), "volumeMounts", "volumemounts"),
        (("spec",), "updateStrategy", "strategy"),
        (("metadata",), "labels", "label"),
    ],
)
def test_a_misspelt_field_is_found(path, name, wrong):
    broken = daemon_set()
    validate(broken)
    misspell(broken, path, name, wrong)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


def test_a_value_of_another_type_is_found():
    broken = daemon_set()
    broken["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "30"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)
