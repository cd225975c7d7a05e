"""The pod spec of the manifests, as the sandbox gets it."""

from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab.container import (
    DEFAULT_CAPABILITIES,
    ContainerSpec,
    PodContainers,
    compile_pod,
)
from kube_router_py.lab.errors import LabError

Object = dict[str, Any]
DIRECTORY = Path("/run/lab/nodes/node1")


def compile_with(container: Object, **pod: Any) -> ContainerSpec:
    return compile_all(container, **pod).agent


def compile_all(container: Object, **pod: Any) -> PodContainers:
    spec = {"hostNetwork": True, "containers": [{"name": "c", **container}], **pod}
    return compile_pod(
        spec,
        facts={"spec.nodeName": "node1", "status.podIP": "10.10.0.11"},
        directory=DIRECTORY,
        entry_point=["/bin/kube-router-py"],
        injected={"KUBERNETES_SERVICE_HOST": "10.96.0.1"},
        config_maps={"settings": {"host": "10.10.0.2", "NAME": "value"}},
    )


def env_of(container: Object) -> dict[str, str]:
    return dict(compile_with(container).env)


def test_arguments_follow_the_entry_point_and_see_the_environment() -> None:
    container = {
        "args": ["--node=$(NODE)", "--literal=$$(NODE)", "--unknown=$(NO)"],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    }
    assert compile_with(container).argv == (
        "/bin/kube-router-py",
        "--node=node1",
        "--literal=$(NODE)",
        "--unknown=$(NO)",
    )
    command = {"command": ["kube-router-py", "cleanup"], "args": ["-v"]}
    assert compile_with(command).argv == ("/bin/kube-router-py", "cleanup", "-v")


def test_where_variables_come_from() -> None:
    assert env_of({})["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    reference = {"configMapKeyRef": {"name": "settings", "key": "host"}}
    named = {"env": [{"name": "KUBERNETES_SERVICE_HOST", "valueFrom": reference}]}
    assert env_of(named)["KUBERNETES_SERVICE_HOST"] == "10.10.0.2"
    assert env_of({"envFrom": [{"configMapRef": {"name": "settings"}}]})["NAME"] == "value"


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        ({}, DEFAULT_CAPABILITIES),
        ({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, {"NET_ADMIN"}),
        ({"capabilities": {"drop": ["CHOWN"]}}, DEFAULT_CAPABILITIES - {"CHOWN"}),
        ({"privileged": True}, None),
    ],
)
def test_capabilities(security: Object, expected: set[str] | None) -> None:
    found = compile_with({"securityContext": security})
    assert (None if found.capabilities is None else set(found.capabilities)) == expected
    assert found.read_only_sysctl is not bool(security.get("privileged"))


def test_volumes_are_per_node_but_for_what_one_kernel_shares() -> None:
    mounts = [
        {"name": name, "mountPath": f"/in/{name}"} for name in ("lock", "modules", "tmp", "conf")
    ]
    volumes = [
        {"name": "lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
        {"name": "modules", "hostPath": {"path": "/lib/modules"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "conf", "configMap": {"name": "settings"}},
    ]
    found = compile_with({"volumeMounts": mounts}, volumes=volumes).volumes
    assert [(str(v.source), v.target, v.kind) for v in found] == [
        (f"{DIRECTORY}/root/run/xtables.lock", "/in/lock", "FileOrCreate"),
        ("/lib/modules", "/in/modules", ""),
        (f"{DIRECTORY}/volumes/tmp", "/in/tmp", "emptyDir"),
        (f"{DIRECTORY}/volumes/conf", "/in/conf", "files"),
    ]
    assert ("host", "10.10.0.2") in found[3].files


@pytest.mark.parametrize(
    ("container", "pod", "named"),
    [
        ({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {}, "not declared"),
        (
            {"volumeMounts": [{"name": "x", "mountPath": "/x"}]},
            {"volumes": [{"name": "x", "secret": {}}]},
            "secret",
        ),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}, {}, "secretKeyRef"),
        ({"envFrom": [{"configMapRef": {"name": "missing"}}]}, {}, "missing"),
        ({}, {"hostNetwork": False}, "hostNetwork"),
        ({}, {"initContainers": [{"name": "side", "restartPolicy": "Always"}]}, "restartPolicy"),
        (
            {},
            {"initContainers": [{"name": "i", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]},
            "not declared",
        ),
    ],
)
def test_what_it_does_not_know_is_refused_by_name(
    container: Object, pod: Object, named: str
) -> None:
    with pytest.raises(LabError, match=named):
        compile_with(container, **pod)


def test_init_containers_are_containers_of_their_own() -> None:
    first = {
        "name": "install-cni",
        "args": ["install-cni", "--to=/host/opt/cni/bin"],
        "securityContext": {"capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "cni-bin", "mountPath": "/host/opt/cni/bin"}],
    }
    volumes = [{"name": "cni-bin", "hostPath": {"path": "/opt/cni/bin"}}]
    second = {"name": "second", "args": ["doctor"]}
    found = compile_all({"args": ["-v=0"]}, initContainers=[first, second], volumes=volumes)
    assert [spec.name for spec in (*found.init, found.agent)] == ["install-cni", "second", "c"]
    assert found.init[0].argv == ("/bin/kube-router-py", "install-cni", "--to=/host/opt/cni/bin")
    assert found.init[0].capabilities == ()
    assert [volume.target for volume in found.init[0].volumes] == ["/host/opt/cni/bin"]
    assert found.init[1].volumes == found.agent.volumes == ()
    assert found.init[1].argv == ("/bin/kube-router-py", "doctor")
