"""From a pod spec to what the sandbox needs: arguments, environment, mounts, capabilities. Pure.

Only what our own manifests use is known; everything else is refused by name, so that a manifest
never runs in the lab with less than it asks for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kube_router_py.lab.errors import LabError

Object = dict[str, Any]

ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
PROGRAM = "kube-router-py"
# As the Dockerfile sets it.
IMAGE_PATH = "/opt/kube-router-py/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# These are the machine's own in every container, not per node: one kernel serves all nodes.
SHARED_HOST_PATHS = ("/lib/modules", "/sys", "/proc", "/dev", "/usr", "/etc/ssl")

# What container runtimes grant without being asked.
_GRANTED = (
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP"
    " SETGID SETPCAP SETUID SYS_CHROOT"
)
DEFAULT_CAPABILITIES = frozenset(_GRANTED.split())


@dataclass(frozen=True)
class Volume:
    """One mount: ``source`` on the machine at ``target`` in the container.

    ``kind`` says how the source comes to be: a hostPath type ("" for none), ``emptyDir``, or
    ``files`` with their content in ``files``.
    """

    source: Path
    target: str
    read_only: bool
    kind: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ContainerSpec:
    """Everything the sandbox needs to become this container; ``capabilities`` None means all."""

    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    volumes: tuple[Volume, ...]
    capabilities: tuple[str, ...] | None
    read_only_sysctl: bool
    no_new_privileges: bool


@dataclass(frozen=True)
class PodContainers:
    """The containers of the agent's pod: ``init`` in their order, each to succeed before the next,
    and then the agent."""

    init: tuple[ContainerSpec, ...]
    agent: ContainerSpec


def compile_pod(
    pod_spec: Object,
    *,
    facts: Mapping[str, str],
    directory: Path,
    entry_point: Sequence[str],
    injected: Mapping[str, str],
    config_maps: Mapping[str, Mapping[str, str]],
) -> PodContainers:
    """The containers of ``pod_spec``, one beside its init containers; raises LabError for what it
    does not know.

    ``facts``: values of fieldRef paths. ``directory``: where this node's host paths live.
    ``injected``: what a kubelet sets itself (KUBERNETES_SERVICE_HOST, ...); ``env`` overrides it.
    """
    containers = pod_spec.get("containers") or []
    if len(containers) != 1 or not pod_spec.get("hostNetwork"):
        raise LabError("the agent's pod must have one container and hostNetwork")

    def compiled(container: Object) -> ContainerSpec:
        security = container.get("securityContext") or {}
        privileged = bool(security.get("privileged"))
        env = _environment(container, facts, injected, config_maps)
        command = [_expand(word, env) for word in container.get("command") or []]
        if command and Path(command[0]).name == PROGRAM:
            command[:1] = entry_point
        arguments = [_expand(word, env) for word in container.get("args") or []]
        return ContainerSpec(
            name=str(container["name"]),
            argv=(*(command or entry_point), *arguments),
            env=tuple(sorted(env.items())),
            volumes=tuple(_volumes(pod_spec, container, directory, config_maps)),
            capabilities=None if privileged else _capabilities(security),
            read_only_sysctl=not privileged,
            no_new_privileges=security.get("allowPrivilegeEscalation") is False and not privileged,
        )

    first = pod_spec.get("initContainers") or []
    for container in first:
        if "restartPolicy" in container:
            raise LabError(f"init container {container['name']}: restartPolicy is not known")
    return PodContainers(tuple(map(compiled, first)), compiled(containers[0]))


def _environment(
    container: Object,
    facts: Mapping[str, str],
    injected: Mapping[str, str],
    config_maps: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    env = {"PATH": IMAGE_PATH, "HOME": "/root", **injected}
    for source in container.get("envFrom") or []:
        if set(source) - {"configMapRef"}:
            raise LabError(f"envFrom {sorted(source)} is not known to the lab")
        reference = source["configMapRef"]
        if reference["name"] in config_maps:
            env.update(config_maps[reference["name"]])
        elif not reference.get("optional"):
            raise LabError(f"the manifests lack ConfigMap {reference['name']}")
    for variable in container.get("env") or []:
        source = variable.get("valueFrom")
        if source is None:
            env[variable["name"]] = _expand(str(variable.get("value") or ""), env)
        elif "fieldRef" in source:
            path = source["fieldRef"]["fieldPath"]
            if path not in facts:
                raise LabError(f"env {variable['name']}: fieldRef {path} is not known to the lab")
            env[variable["name"]] = facts[path]
        elif "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            value = config_maps.get(reference["name"], {}).get(reference["key"])
            if value is not None:
                env[variable["name"]] = value
            elif not reference.get("optional"):
                raise LabError(
                    f"env {variable['name']}: the manifests lack ConfigMap {reference['name']} "
                    f"with key {reference['key']}"
                )
        else:
            raise LabError(f"env {variable['name']}: {sorted(source)} is not known to the lab")
    return env


def _expand(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` as Kubernetes expands it: unknown names stay, ``$$`` escapes."""

    def replace(found: re.Match[str]) -> str:
        if found.group(0) == "$$":
            return "$"
        return env.get(found.group(1), found.group(0))

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", replace, text)


def _capabilities(security: Object) -> tuple[str, ...]:
    wanted = security.get("capabilities") or {}
    drop = {str(name).removeprefix("CAP_") for name in wanted.get("drop") or []}
    add = {str(name).removeprefix("CAP_") for name in wanted.get("add") or []}
    granted = set() if "ALL" in drop else set(DEFAULT_CAPABILITIES) - drop
    return tuple(sorted(granted | add))


def host_path(path: str, directory: Path) -> Path:
    """Where a node's ``path`` is: below its ``directory`` unless all nodes share it."""
    if any(path == shared or path.startswith(f"{shared}/") for shared in SHARED_HOST_PATHS):
        return Path(path)
    return directory / "root" / path.lstrip("/")


def _volumes(
    pod_spec: Object,
    container: Object,
    directory: Path,
    config_maps: Mapping[str, Mapping[str, str]],
) -> list[Volume]:
    volumes = {volume["name"]: volume for volume in pod_spec.get("volumes") or []}
    mounts = []
    for wanted in container.get("volumeMounts") or []:
        name, target = wanted["name"], wanted["mountPath"]
        read_only = bool(wanted.get("readOnly"))
        if wanted.get("subPath") or wanted.get("subPathExpr"):
            raise LabError(f"volume {name}: subPath is not known to the lab")
        volume = volumes.get(name)
        if volume is None:
            raise LabError(f"volume {name} is mounted but not declared")
        if "hostPath" in volume:
            given = volume["hostPath"]
            source = host_path(given["path"], directory)
            mounts.append(Volume(source, target, read_only, given.get("type") or ""))
        elif "emptyDir" in volume:
            source = directory / "volumes" / name
            mounts.append(Volume(source, target, read_only, "emptyDir"))
        elif "configMap" in volume:
            given = volume["configMap"]
            content = config_maps.get(given["name"])
            if content is None and not given.get("optional"):
                raise LabError(f"the manifests lack ConfigMap {given['name']}")
            items = {item["key"]: item["path"] for item in given.get("items") or []}
            files = tuple(
                (items.get(key, key), text)
                for key, text in (content or {}).items()
                if not items or key in items
            )
            source = directory / "volumes" / name
            mounts.append(Volume(source, target, True, "files", files))
        else:
            kinds = sorted(set(volume) - {"name"})
            raise LabError(f"volume {name}: {', '.join(kinds)} is not known to the lab")
    return mounts
