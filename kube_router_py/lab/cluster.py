"""The lab's server process: everything composed, started in order, taken down in reverse.

    fabric and certificates -> API server -> kubelets, controllers, agents (which retry) -> -f files
    -> pods ready -> agents have applied the API's revision -> "ready" to the process in front

All parts share one asyncio loop; blocking steps run in the namespace threads.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kube_router_py.lab import agents as lab_agents
from kube_router_py.lab import fabric, state
from kube_router_py.lab.agents import Agent, Agents
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import Store, load
from kube_router_py.lab.cni import Wiring, render_network
from kube_router_py.lab.control import ControlServer
from kube_router_py.lab.controllers import Controllers
from kube_router_py.lab.endpoints import is_pod_ready
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.kubelet import Kubelet
from kube_router_py.lab.manifests import read_files
from kube_router_py.lab.netns import Namespaces
from kube_router_py.lab.pod_status import READY_ANNOTATION
from kube_router_py.lab.scheduler import Scheduler

if TYPE_CHECKING:
    from kube_router_py.lab.apiserver.server import ApiServer

Object = dict[str, Any]

API_PORT = 6443
# Generous: under software emulation everything takes ten to twenty times as long.
START_DEADLINE_S = 300.0
WAIT_DEADLINE_S = 120.0
BOOKMARK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class LabOptions:
    """What the user asked for; ``files`` are absolute. ``with_agents`` is off in unit tests."""

    files: tuple[Path, ...] = ()
    nodes: int = 2
    ip_family: str = "ipv4"
    agent_args: tuple[str, ...] = ()
    with_agents: bool = True


class Lab:
    """One cluster. ``start`` raises KubeRouterError; ``close`` may follow at any moment."""

    def __init__(self, options: LabOptions, directory: Path, progress: Callable[[str], None]):
        self.options = options
        self.directory = directory
        self.topology = fabric.compile_topology(options.nodes, options.ip_family)
        self.namespaces = Namespaces(state.NETNS_DIRECTORY)
        self.store = Store(self.topology.service_cidrs)
        self.kubelets: list[Kubelet] = []
        self.agents = Agents([])
        self._progress = progress
        self._logs = directory / "logs"
        self._server: ApiServer | None = None
        self._sockets: list[socket.socket] = []
        self._loopback_port = 0
        self._controllers: Controllers | None = None
        self._scheduler: Scheduler | None = None
        self._control = ControlServer(directory / "control.sock", self._answer)

    # --- start ------------------------------------------------------------------------------

    async def start(self) -> None:
        files = read_files(self.options.files)
        deployment = lab_agents.Deployment.read() if self.options.with_agents else None
        host = self.topology.host(fabric.APISERVER)
        addresses = [a for family in self.topology.families if (a := host.address(family))]
        building = asyncio.ensure_future(self.namespaces.call(self._build_fabric))
        await asyncio.sleep(0)
        server = await self.namespaces.call(lambda: self._make_server(addresses))
        await building
        if self.options.with_agents:
            await self._check_ipvs_is_empty()
        self._server = server
        await self._open_api(addresses)
        url = f"https://127.0.0.1:{self._loopback_port}"
        server.write_kubeconfig(self.directory / "kubeconfig", url)
        self._progress(f"API server listens at {url} and at {addresses[0]}:{API_PORT}")
        self._controllers = Controllers(self.store)
        self._scheduler = Scheduler(self.store)
        for node in self.topology.nodes:
            self.kubelets.append(self._kubelet(node))
            self.kubelets[-1].open()
        if deployment is not None:
            load(self.store, deployment.objects)
            self._compile_agents(deployment, addresses[0], server)
            await self.agents.start(self.namespaces)
            self._progress("agents started")
        await self._control.open()
        try:
            load(self.store, files)
        except StatusError as error:
            raise LabError(f"a manifest was refused: {error.message}") from error
        deadline = time.monotonic() + START_DEADLINE_S
        await self._wait_pods(deadline)
        if self.store.list("pods"):
            self._progress(f"{len(self.store.list('pods'))} pods are ready")
        if deployment is not None:
            await self._wait_applied(deadline)
            self._progress(f"every agent has applied revision {self.store.revision}")
            self._publish_daemon_set(deployment.daemon_set)

    def _make_server(self, addresses: list[str]) -> ApiServer:
        # Slow to import under emulation, so it happens here, while the fabric is being built.
        from kube_router_py.lab.apiserver.server import ApiServer

        return ApiServer(self.store, self.directory / "pki", addresses, API_PORT)

    def _build_fabric(self) -> None:
        began = time.monotonic()
        fabric.build(self.namespaces, self.topology)
        self._progress(
            f"{len(self.topology.nodes)} nodes, router and client wired "
            f"in {time.monotonic() - began:.1f} s"
        )

    async def _check_ipvs_is_empty(self) -> None:
        """The agents must come up without IPVS; a lab that cannot show that is no proof."""
        for node in self.topology.nodes:
            table = await self.namespaces.call(
                lambda name=node.name: self.namespaces.inside(  # type: ignore[misc]
                    name, lambda: Path("/proc/thread-self/net/ip_vs").read_text()
                )
            )
            entries = table.splitlines()[3:]
            if entries:
                raise LabError(f"IPVS on {node.name} is not empty before the start: {entries}")
        names = ", ".join(node.name for node in self.topology.nodes)
        self._progress(f"IPVS is empty on {names}: the agents start without any virtual server")

    def _publish_daemon_set(self, daemon_set: Object) -> None:
        """The DaemonSet's status, for ``kubectl get``: the lab has no controller of its kind."""
        count = len(self.topology.nodes)
        fields = ("desired", "current", "updated")
        status = {f"{field}NumberScheduled": count for field in fields}
        status |= {"numberReady": count, "numberAvailable": count, "observedGeneration": 1}
        metadata = daemon_set["metadata"]
        stored = self.store.get("daemonsets", metadata["name"], metadata["namespace"])
        self.store.update("daemonsets", {**stored, "status": status}, subresource="status")

    def _kubelet(self, node: fabric.LabNode) -> Kubelet:
        directory = self.directory / "nodes" / node.name
        configuration = directory / "root" / "etc" / "cni" / "net.d"
        configuration.mkdir(parents=True)
        network = render_network(node.pod_cidrs, directory / "cni-data")
        (configuration / "10-kuberouter.conflist").write_text(_to_json(network))
        wiring = Wiring(self.namespaces, node.name, configuration)
        return Kubelet(self.store, node, self.namespaces, wiring, self._logs)

    def _compile_agents(
        self, deployment: lab_agents.Deployment, api_host: str, server: ApiServer
    ) -> None:
        family = self.store.allocator.families[0]
        certificate = server.certificates.ca.read_text()
        found = []
        for node in self.topology.nodes:
            directory = self.directory / "nodes" / node.name
            token = server.issue_token(deployment.namespace, deployment.account)
            spec = lab_agents.compile_agent(
                deployment,
                node,
                directory=directory,
                entry_point=[str(self.directory / "bin" / "kube-router-py")],
                api_host=api_host,
                api_port=API_PORT,
                service_host=str(self.store.allocator.first_address(family)),
                credentials=(token, certificate),
                extra_args=(*self.topology.agent_args(), *self.options.agent_args),
            )
            log = self._logs / f"agent-{node.name}.log"
            found.append(Agent(node, spec, directory, self.namespaces, log))
        self.agents = Agents(found)

    # --- the API server's sockets -----------------------------------------------------------

    async def _open_api(self, addresses: list[str]) -> None:
        """Listen where nodes reach us and, for kubectl, on the caller's loopback."""
        assert self._server is not None
        for old in self._sockets:
            old.close()
        self._sockets = [
            await self.namespaces.call(lambda a=address: self._listen(a))  # type: ignore[misc]
            for address in addresses
        ]
        loopback = socket.socket(socket.AF_INET)
        self._sockets.append(loopback)
        loopback.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        loopback.bind(("127.0.0.1", self._loopback_port))
        self._loopback_port = loopback.getsockname()[1]
        await self._server.start(self._sockets)

    def _listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.namespaces.socket(fabric.APISERVER, family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, API_PORT))
        return sock

    # --- waiting ----------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """The controllers have reacted to everything and no pod is on its way up."""
        return (
            self._controllers is not None
            and self._scheduler is not None
            and self._controllers.is_idle
            and self._scheduler.queue.is_idle
            and all(kubelet.is_idle for kubelet in self.kubelets)
        )

    async def _wait_settled(self, deadline: float) -> None:
        while not self.is_settled:
            if time.monotonic() > deadline:
                raise LabError(f"the lab's controllers do not settle; see {self._logs}")
            await asyncio.sleep(0.02)

    async def _wait_pods(self, deadline: float) -> None:
        while True:
            await self._wait_settled(deadline)
            waiting = [
                f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                for pod in self.store.list("pods")
                if not is_pod_ready(pod)
                and (pod["metadata"].get("annotations") or {}).get(READY_ANNOTATION) != "false"
            ]
            if not waiting:
                return
            if time.monotonic() > deadline:
                log = lab_agents.tail(self._logs / "lab.log")
                raise LabError(f"not ready: {', '.join(waiting)}\n{log}")
            await asyncio.sleep(0.1)

    async def _wait_applied(self, deadline: float) -> None:
        """Every agent has applied what the API holds now; bookmarks tell agents what that is."""
        assert self._server is not None
        server = self._server

        async def push() -> None:
            while True:  # a watch that has just been opened anew missed the one before
                server.push_bookmarks()
                await asyncio.sleep(BOOKMARK_INTERVAL_S)

        pushing = asyncio.create_task(push())
        try:
            await self.agents.wait_applied(self.store.revision, deadline)
        finally:
            pushing.cancel()

    # --- control requests -------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "wait":
            deadline = time.monotonic() + float(request.get("timeout_s") or WAIT_DEADLINE_S)
            await self._wait_settled(deadline)
            revision = self.store.revision
            await self._wait_applied(deadline)
            return {"revision": revision}
        if operation == "resolve":
            return {"netns": self._netns_of(request["pod"])}
        if operation == "agent":
            return await self._steer_agent(request["node"], request["verb"])
        if operation == "apiserver":
            return await self._steer_api(request)
        raise LabError(f"unknown request {operation!r}")

    def _netns_of(self, pod: str) -> str:
        namespace, _, name = pod.partition("/")
        for kubelet in self.kubelets:
            if found := kubelet.netns_of(namespace, name):
                return found
        raise LabError(f"no pod {pod} runs in the lab")

    async def _steer_agent(self, node: str, verb: str) -> dict[str, Any]:
        agent = self.agents.get(node)
        if verb == "stop":
            await agent.stop()
        elif verb == "kill":
            await agent.stop(grace_s=0.0)
        elif verb == "start":
            await self.namespaces.call(agent.start)
        elif verb != "logs":
            raise LabError(f"unknown verb {verb!r}: stop, kill, start or logs")
        return {"log": str(agent.log), "running": agent.is_running, "exit_code": agent.exit_code}

    async def _steer_api(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server is not None
        verb = request["verb"]
        if verb == "stop":
            await self._server.stop()
        elif verb == "start":
            if request.get("compact"):
                self.store.compact()
            host = self.topology.host(fabric.APISERVER)
            await self._open_api([a for f in self.topology.families if (a := host.address(f))])
        elif verb == "inject":
            line = str(request["line"]).encode() + b"\n"
            return {"watches": self._server.inject_watch_line(request["resource"], line)}
        elif verb == "hang-up":
            return {"watches": self._server.end_watches(request.get("resource") or "")}
        elif verb == "requests":
            return {"requests": self._server.requests}
        else:
            raise LabError(f"unknown verb {verb!r}")
        return {"revision": self.store.revision}

    # --- end --------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop everything that runs; mounts and namespaces go with the process's namespaces."""
        await self._control.close()
        await self.agents.close()
        if self._controllers is not None:
            self._controllers.close()
        if self._scheduler is not None:
            self._scheduler.close()
        await asyncio.gather(*(kubelet.close() for kubelet in self.kubelets))
        if self._server is not None:
            await self._server.stop()
        self.namespaces.close()

    def environment(self) -> dict[str, str]:
        """What COMMAND gets to know."""
        return {
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "KUBECACHEDIR": str(self.directory / "kubectl-cache"),
            state.VARIABLE: str(self.directory),
            "LAB_LOGS": str(self._logs),
            **self.topology.environment(),
        }


def _to_json(value: Object) -> str:
    return json.dumps(value, indent=1)
