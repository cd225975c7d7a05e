"""The real agent in every node's namespace, as the DaemonSet of ``manifests/`` says.

Arguments, environment, volumes, capabilities and ServiceAccount all come from the rendered
manifests; what the lab adds is what a kubelet and an administrator would: the node's facts, the
API server's node-reachable address, and ``--agent-arg``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kube_router_py.lab import container, processes
from kube_router_py.lab.container import ContainerSpec, PodContainers, Volume
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.fabric import LabNode
from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.lab.netns import Namespaces

Object = dict[str, Any]
_log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent.parent
OVERLAY = Path("manifests/overlays/service-proxy-firewall")
ROUTING = Path("manifests/overlays/load-balancer")
# What its administrator edits before: in a lab, whoever wants pools brings them.
EXAMPLE_POOLS = "kube-router-address-pools"
DOCTOR = "doctor"
HEALTH_PORT = 20244
STOP_GRACE_S = 30.0
PROBE_TIMEOUT_S = 5.0
SANDBOX = Path(__file__).with_name("sandbox.py")


class Deployment:
    """The rendered manifests: what is applied to the API, and the pod that runs on each node."""

    def __init__(self, objects: Sequence[Object]) -> None:
        self.objects = list(objects)
        daemon_sets = [obj for obj in objects if obj["kind"] == "DaemonSet"]
        if len(daemon_sets) != 1:
            raise LabError(f"the manifests hold {len(daemon_sets)} DaemonSets; the lab runs one")
        self.daemon_set = daemon_sets[0]
        self.pod_spec: Object = self.daemon_set["spec"]["template"]["spec"]
        self.namespace: str = self.daemon_set["metadata"].get("namespace", "default")
        self.account: str = self.pod_spec.get("serviceAccountName", "default")
        self.config_maps: dict[str, dict[str, str]] = {
            obj["metadata"]["name"]: dict(obj.get("data") or {})
            for obj in objects
            if obj["kind"] == "ConfigMap"
        }

    @classmethod
    def read(cls, overlay: Path) -> Deployment:
        """From this checkout's manifests. Raises LabError."""
        directory = PROJECT / overlay
        if not directory.is_dir():
            raise LabError(
                f"{directory} not found: the lab runs the agent as the manifests of a source "
                "checkout describe it; start it from one"
            )
        objects = render_kustomization(directory)
        return cls([each for each in objects if each["metadata"]["name"] != EXAMPLE_POOLS])


class Agent:
    """One node's agent: its files, its process, its health."""

    def __init__(
        self,
        node: LabNode,
        pod: PodContainers,
        directory: Path,
        namespaces: Namespaces,
        log: Path,
        image_root: Path | None = None,
    ) -> None:
        """``image_root``: where an image is unpacked; None: the machine itself is the image."""
        self.node = node
        self.log = log
        self._pod = pod
        self._image_root = image_root
        self._directory = directory
        self._namespaces = namespaces
        self._process: subprocess.Popen[bytes] | None = None
        self.is_wanted = False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def prepare(self) -> None:
        """Create volumes and the sandbox's specification. Blocking."""
        (self._directory / "rootfs").mkdir(exist_ok=True)
        for spec in (*self._pod.init, self._pod.agent):
            for volume in spec.volumes:
                _create(volume)
        self._specify(())

    def _specify(self, extra_args: Sequence[str]) -> None:
        documents = [self._document(spec) for spec in (*self._pod.init, self._pod.agent)]
        documents[-1]["argv"] = [*documents[-1]["argv"], *extra_args]
        (self._directory / "agent.json").write_text(json.dumps(documents, indent=1))

    def _document(self, spec: ContainerSpec) -> Object:
        return {
            "name": spec.name,
            "root": str(self._directory / "rootfs"),
            "image": "/" if self._image_root is None else str(self._image_root),
            "netns": str(self._namespaces.path(self.node.name)),
            "argv": spec.argv,
            "env": dict(spec.env),
            "mounts": [
                {"source": str(v.source), "target": v.target, "read_only": v.read_only}
                for v in spec.volumes
            ],
            "keep": _kept_paths(spec.argv[0]) if self._image_root is None else [],
            "capabilities": spec.capabilities,
            "read_only_sysctl": spec.read_only_sysctl,
            "no_new_privileges": spec.no_new_privileges,
        }

    def start(self, extra_args: Sequence[str] = ()) -> None:
        """Start the process, this time with ``extra_args``; it enters its namespaces by itself.
        Blocking but short.

        Init containers come before the first start: afterwards it is a container that ended and is
        started again in its pod.
        """
        self.is_wanted = True
        if self.is_running:
            return
        self._specify(extra_args)
        again = [] if self._process is None else ["again"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(SANDBOX)),
                    *(str(self._directory / "agent.json"), *again),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """As a kubelet ends a container: SIGTERM, then SIGKILL; 0 kills at once."""
        self.is_wanted = False
        if self._process is not None:
            await processes.end(self._process, grace_s)

    def freeze(self) -> None:
        """SIGSTOP: it runs and does nothing, as on a node that hangs."""
        processes.send(self._process, signal.SIGSTOP)

    def thaw(self) -> None:
        processes.send(self._process, signal.SIGCONT)

    async def read_health(self) -> Object | None:
        """``/readyz`` as the agent answers it (ready or not); None while it does not answer."""
        family = socket.AF_INET6 if ":" in self.node.addresses[0] else socket.AF_INET
        target = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        name = self.node.name
        sock = await self._namespaces.call(lambda: self._namespaces.socket(name, family))
        try:
            return await asyncio.wait_for(_get_readyz(sock, target), PROBE_TIMEOUT_S)
        except (OSError, ValueError, TimeoutError):
            return None
        finally:
            sock.close()


async def _get_readyz(sock: socket.socket, target: str) -> Object:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_connect(sock, (target, HEALTH_PORT))
    await loop.sock_sendall(sock, b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    answer = b""
    while data := await loop.sock_recv(sock, 65536):
        answer += data
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    if not isinstance(found, dict):
        raise ValueError("readyz is no JSON object")
    return found


def _kept_paths(program: str) -> list[str]:
    """Whatever the agent is started from must stay visible below any mount."""
    paths = [sys.prefix, sys.base_prefix, str(PROJECT), os.path.dirname(program)]
    paths += [path for path in sys.path if path]
    return [
        path for path in dict.fromkeys(os.path.realpath(p) for p in paths) if Path(path).is_dir()
    ]


def _create(volume: Volume) -> None:
    """Make a volume's source as the kubelet would; an emptyDir keeps its content on a restart."""
    source = volume.source
    if volume.kind == "files":
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        for name, text in volume.files:
            (source / name).write_text(text)
    elif volume.kind in ("FileOrCreate", "File"):
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
    elif not source.exists():
        source.mkdir(parents=True, exist_ok=True)


class Agents:
    """All nodes' agents."""

    def __init__(self, agents: Iterable[Agent]) -> None:
        self.by_node = {agent.node.name: agent for agent in agents}

    def get(self, node: str) -> Agent:
        if node not in self.by_node:
            raise LabError(f"no agent on {node!r}: there are {', '.join(sorted(self.by_node))}")
        return self.by_node[node]

    async def start(self, namespaces: Namespaces) -> None:
        def start_all() -> None:
            for agent in self.by_node.values():
                agent.prepare()
                agent.start()

        await namespaces.call(start_all)

    async def close(self) -> None:
        await asyncio.gather(*(agent.stop(grace_s=0.0) for agent in self.by_node.values()))

    async def wait_applied(self, revision: int, deadline: float) -> None:
        """Until every agent is ready and has applied ``revision``; raises LabError.

        Agents that were stopped on purpose do not count.

        ``deadline`` is in seconds of ``time.monotonic()``.
        """
        await asyncio.gather(
            *(
                _wait_applied(agent, revision, deadline)
                for agent in self.by_node.values()
                if agent.is_wanted
            )
        )


async def _wait_applied(agent: Agent, revision: int, deadline: float) -> None:
    pause_s = 0.05
    while True:
        health = await agent.read_health()
        if health and health.get("ready") and int(health.get("applied_revision") or 0) >= revision:
            return
        name = agent.node.name
        if not agent.is_running:
            raise LabError(
                f"the agent on {name} ended with code {agent.exit_code}:\n{tail(agent.log)}"
            )
        if time.monotonic() > deadline:
            said = json.dumps(health) if health else "its health port does not answer"
            raise LabError(
                f"the agent on {name} has not applied revision {revision}: {said}\n"
                f"{tail(agent.log)}"
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.5)


def tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def account_volume(directory: Path, token: str, certificate: str, namespace: str) -> Volume:
    """The ServiceAccount's credentials where client libraries look for them."""
    files = (("token", token), ("ca.crt", certificate), ("namespace", namespace))
    source = directory / "volumes" / "serviceaccount"
    return Volume(source, container.ACCOUNT_DIRECTORY, True, "files", files)


def compile_agent(
    deployment: Deployment,
    node: LabNode,
    *,
    directory: Path,
    entry_point: Sequence[str],
    api_host: str,
    api_port: int,
    service_host: str,
    credentials: tuple[str, str],
    extra_args: Sequence[str],
) -> PodContainers:
    """The agent's pod on ``node``; ``credentials`` are the token and the CA certificate."""
    token, certificate = credentials
    # The administrator's part: the placeholders become this cluster's API server.
    edited = {"api-host": api_host, "api-port": str(api_port)}
    config_maps = {
        name: {key: edited.get(key, value) for key, value in data.items()}
        for name, data in deployment.config_maps.items()
    }
    pod = container.compile_pod(
        deployment.pod_spec,
        facts={
            "spec.nodeName": node.name,
            "spec.serviceAccountName": deployment.account,
            "status.podIP": node.addresses[0],
            "status.hostIP": node.addresses[0],
            "metadata.name": f"{deployment.daemon_set['metadata']['name']}-{node.name}",
            "metadata.namespace": deployment.namespace,
        },
        directory=directory,
        entry_point=entry_point,
        # What a kubelet puts into every container: the ClusterIP, which the agent must not use.
        injected={"KUBERNETES_SERVICE_HOST": service_host, "KUBERNETES_SERVICE_PORT": "443"},
        config_maps=config_maps,
    )
    account = account_volume(directory, token, certificate, deployment.namespace)

    def edited_by_administrator(spec: ContainerSpec) -> ContainerSpec:
        # Whoever changes flags of the agent tells doctor of it, too.
        has_flags = spec is pod.agent or DOCTOR in spec.argv
        argv = (*spec.argv, *extra_args) if has_flags else spec.argv
        return replace(spec, argv=argv, volumes=(*spec.volumes, account))

    init = tuple(edited_by_administrator(spec) for spec in pod.init)
    return PodContainers(init, edited_by_administrator(pod.agent))
