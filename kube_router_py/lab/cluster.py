"""The lab's server process: everything composed, started in order, taken down in reverse.

    fabric and certificates -> API server -> kubelets, controllers, agents (which retry) -> -f files
    -> pods ready -> agents have applied the API's revision -> "ready" to the process in front

All parts share one asyncio loop; blocking steps run in the namespace threads.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from kube_router_py.lab import agents as lab_agents
from kube_router_py.lab import fabric, state
from kube_router_py.lab.agents import Agent, Agents
from kube_router_py.lab.apiserver.interface import ObjectStore
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.apiserver.store import load
from kube_router_py.lab.backends import API_PORT, Backend, OwnBackend, RealBackend
from kube_router_py.lab.cni import Wiring, render_network
from kube_router_py.lab.container import PROGRAM
from kube_router_py.lab.control import ControlServer
from kube_router_py.lab.controllers import Controllers
from kube_router_py.lab.endpoints import is_pod_ready
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.kubelet import Kubelet
from kube_router_py.lab.manifests import read_files
from kube_router_py.lab.netns import Namespaces
from kube_router_py.lab.pod_status import READY_ANNOTATION
from kube_router_py.lab.router import Router, check_programs
from kube_router_py.lab.scheduler import Scheduler

Object = dict[str, Any]

# Generous: under software emulation everything takes ten to twenty times as long.
START_DEADLINE_S = 600.0
WAIT_DEADLINE_S = 300.0


@dataclass(frozen=True)
class LabOptions:
    """What the user asked for; ``files`` are absolute. ``with_agents`` is off in unit tests.

    ``apiserver``: lab or real. ``router``: frr, gobgp, bird, or none: then nobody speaks BGP, and
    the lab itself lays the routes to pods. ``image_root``: an unpacked image, in which the
    agents run.
    """

    files: tuple[Path, ...] = ()
    nodes: int = 2
    ip_family: str = "ipv4"
    agent_args: tuple[str, ...] = ()
    with_agents: bool = True
    image_root: Path | None = None
    has_init: bool = True
    apiserver: str = "lab"
    router: str = "none"
    subnets: int = 1


class Lab:
    """One cluster. ``start`` raises KubeRouterError; ``close`` may follow at any moment."""

    def __init__(self, options: LabOptions, directory: Path, progress: Callable[[str], None]):
        self.options = options
        self.directory = directory
        self.topology = fabric.compile_topology(
            options.nodes,
            options.ip_family,
            subnets=options.subnets,
            has_bgp=options.router != "none",
        )
        self.namespaces = Namespaces(state.NETNS_DIRECTORY)
        self._router: Router | None = None
        self._following: asyncio.Task[None] | None = None
        self.kubelets: list[Kubelet] = []
        self.agents = Agents([])
        self._progress = progress
        self._logs = directory / "logs"
        self._backend: Backend | None = None
        self._controllers: Controllers | None = None
        self._scheduler: Scheduler | None = None
        self._control = ControlServer(directory / "control.sock", self._answer)

    @property
    def backend(self) -> Backend:
        """The API server; there is one from early in ``start`` on."""
        if self._backend is None:
            raise LabError("the lab has no API server yet")
        return self._backend

    @property
    def store(self) -> ObjectStore:
        return self.backend.store

    # --- start ------------------------------------------------------------------------------

    async def start(self) -> None:
        files = read_files(self.options.files)
        overlay = lab_agents.ROUTING if self.topology.has_bgp else lab_agents.OVERLAY
        deployment = lab_agents.Deployment.read(overlay) if self.options.with_agents else None
        address = self.topology.host(fabric.APISERVER).address(self.topology.families[0])
        assert address is not None
        building = asyncio.ensure_future(self.namespaces.call(self._build_fabric))
        await asyncio.sleep(0)
        backend = await self.namespaces.call(lambda: self._make_backend(deployment))
        await building
        if self.options.with_agents:
            await self._check_ipvs_is_empty()
        if self.topology.has_bgp:
            await self.namespaces.call(self._start_router)
            assert self._router is not None
            self._following = asyncio.create_task(self._router.follow())
        self._backend = backend
        url = await backend.open(time.monotonic() + START_DEADLINE_S)
        backend.write_kubeconfig(self.directory / "kubeconfig")
        self._progress(f"API server listens at {url} and at {address}:{API_PORT}")
        self._controllers = Controllers(self.store)
        self._scheduler = Scheduler(self.store)
        for node in self.topology.nodes:
            self.kubelets.append(self._kubelet(node))
            self.kubelets[-1].open()
        if deployment is not None:
            load(self.store, deployment.objects)
            self._compile_agents(deployment, address, backend)
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
            revision = await backend.wait_applied(self.agents, deadline)
            self._progress(f"every agent has applied revision {revision}")
            await self._wait_learned(deadline)
            self._publish_daemon_set(deployment.daemon_set)

    def _make_backend(self, deployment: lab_agents.Deployment | None) -> Backend:
        if self.options.apiserver == "real":
            accounts = [(deployment.namespace, deployment.account)] if deployment else []
            return RealBackend(self.topology, self.namespaces, self.directory, accounts)
        return OwnBackend(self.topology, self.namespaces, self.directory)

    def _build_fabric(self) -> None:
        began = time.monotonic()
        fabric.build(self.namespaces, self.topology)
        self._progress(
            f"{len(self.topology.nodes)} nodes, router and client wired "
            f"in {time.monotonic() - began:.1f} s"
        )

    def _start_router(self) -> None:
        kind = self.options.router
        check_programs(kind)
        self._router = Router(
            kind, self.topology, self.namespaces, self.directory / "router", self._logs
        )
        self._router.start()
        self._progress(f"the router outside runs {kind}")

    async def _wait_learned(self, deadline: float) -> None:
        """Until the router has been told of every node's pods."""
        router = self._router
        if router is None:
            return
        wanted = {cidr for node in self.topology.nodes for cidr in node.pod_cidrs}
        while missing := wanted - await self.namespaces.call(router.learned):
            if time.monotonic() > deadline:
                raise LabError(f"the router has not learned of {', '.join(sorted(missing))}")
            await asyncio.sleep(0.2)
        self._progress(f"the router has learned of the pods of {len(self.topology.nodes)} nodes")

    async def _check_ipvs_is_empty(self) -> None:
        """The agents must come up without IPVS; a lab that cannot show that is no proof."""
        if not Path("/proc/net/ip_vs").exists():
            return  # the kernel has none: agents that need it say so
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
        if not self.topology.has_bgp:  # else the agent writes it
            network = render_network(node.pod_cidrs)
            (configuration / "10-kuberouter.conflist").write_text(_to_json(network))
        wiring = Wiring(self.namespaces, node.name, configuration, directory / "cni-data")
        return Kubelet(self.store, node, self.namespaces, wiring, self._logs)

    def _compile_agents(
        self, deployment: lab_agents.Deployment, api_host: str, backend: Backend
    ) -> None:
        certificate = backend.ca.read_text()
        image = self.options.image_root
        entry_point = PROGRAM if image else str(self.directory / "bin" / PROGRAM)
        found = []
        for node in self.topology.nodes:
            directory = self.directory / "nodes" / node.name
            token = backend.issue_token((deployment.namespace, deployment.account))
            pod = lab_agents.compile_agent(
                deployment,
                node,
                directory=directory,
                entry_point=[entry_point],
                api_host=api_host,
                api_port=API_PORT,
                service_host=str(ip_network(self.topology.service_cidrs[0])[1]),
                credentials=(token, certificate),
                extra_args=(*self.topology.agent_args(node), *self.options.agent_args),
            )
            if not self.options.has_init:
                pod = replace(pod, init=())
            log = self._logs / f"agent-{node.name}.log"
            found.append(Agent(node, pod, directory, self.namespaces, log, image))
        self.agents = Agents(found)

    # --- waiting ----------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """The controllers have reacted to everything and no pod is on its way up."""
        return (
            self._controllers is not None
            and self._scheduler is not None
            and self._controllers.is_idle
            and self._scheduler.queue.is_idle
            and self.backend.is_idle
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

    # --- control requests -------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "wait":
            deadline = time.monotonic() + float(request.get("timeout_s") or WAIT_DEADLINE_S)
            self.backend.refresh()
            await self._wait_settled(deadline)
            return {"revision": await self.backend.wait_applied(self.agents, deadline)}
        if operation == "resolve":
            return {"netns": self._netns_of(request["pod"])}
        if operation == "agent":
            return await self._steer_agent(
                request["node"], request["verb"], request.get("agent_args", ())
            )
        if operation == "apiserver":
            return await self.backend.steer(request)
        raise LabError(f"unknown request {operation!r}")

    def _netns_of(self, pod: str) -> str:
        namespace, _, name = pod.partition("/")
        for kubelet in self.kubelets:
            if found := kubelet.netns_of(namespace, name):
                return found
        raise LabError(f"no pod {pod} runs in the lab")

    async def _steer_agent(self, node: str, verb: str, agent_args: Sequence[str]) -> dict[str, Any]:
        agent = self.agents.get(node)
        if verb == "stop":
            await agent.stop()
        elif verb == "kill":
            await agent.stop(grace_s=0.0)
        elif verb == "start":
            await self.namespaces.call(lambda: agent.start(agent_args))
        elif verb == "freeze":
            agent.freeze()
        elif verb == "thaw":
            agent.thaw()
        elif verb != "logs":
            known = "stop, kill, start, freeze, thaw or logs"
            raise LabError(f"unknown verb {verb!r}: {known}")
        return {"log": str(agent.log), "running": agent.is_running, "exit_code": agent.exit_code}

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
        if self._backend is not None:
            await self._backend.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._router is not None:
            self._router.close()
        self.namespaces.close()

    def environment(self) -> dict[str, str]:
        """What COMMAND gets to know."""
        return {
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "KUBECACHEDIR": str(self.directory / "kubectl-cache"),
            state.VARIABLE: str(self.directory),
            "LAB_LOGS": str(self._logs),
            "LAB_ROUTER": self.options.router,
            **(
                {}
                if self._router is None
                else {"LAB_ROUTER_SHOW": shlex.join(self._router.plan.show)}
            ),
            **self.topology.environment(),
        }


def _to_json(value: Object) -> str:
    return json.dumps(value, indent=1)
