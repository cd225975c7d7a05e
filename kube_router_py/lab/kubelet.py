"""One node's kubelet: pods into namespaces and processes, and their state back into the API.

The order of a pod's end is the real one: SIGTERM at the very moment its deletion is written (the
same write marks its endpoints terminating), SIGKILL when the grace period is over, then the network
goes, then the object. Nothing here waits for an agent.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kube_router_py.lab import processes
from kube_router_py.lab.apiserver.status import StatusError
from kube_router_py.lab.cni import Wiring
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.fabric import LabNode
from kube_router_py.lab.netns import Namespaces
from kube_router_py.lab.pod_status import compile_status, node_object
from kube_router_py.lab.workqueue import WorkQueue

if TYPE_CHECKING:
    from kube_router_py.lab.apiserver.interface import ObjectStore
    from kube_router_py.lab.apiserver.storage import Event

Object = dict[str, Any]
_log = logging.getLogger(__name__)

POD_SERVER = Path(__file__).with_name("pod_server.py")
RESTART_S = 1.0
NETWORK_POLL_S = 0.2


class PodRun:
    """What the node knows about one pod it runs."""

    def __init__(self, pod: Object) -> None:
        metadata = pod["metadata"]
        self.pod = pod
        self.name: str = metadata["name"]
        self.namespace: str = metadata["namespace"]
        self.uid: str = metadata["uid"]
        self.netns = f"pod-{self.uid}"
        self.uses_host_network = bool(pod["spec"].get("hostNetwork"))
        self.addresses: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.is_serving = False
        self.is_starting = True
        self.restarts = 0
        self.ending = asyncio.Event()
        self.removed = False

    @property
    def ports(self) -> list[str]:
        """``number/protocol`` of every declared container port."""
        return [
            f"{port['containerPort']}/{port.get('protocol') or 'TCP'}"
            for container in self.pod["spec"].get("containers") or []
            for port in container.get("ports") or []
        ]

    @property
    def host_ports(self) -> list[Object]:
        return [
            {
                "hostPort": port["hostPort"],
                "containerPort": port["containerPort"],
                "protocol": (port.get("protocol") or "TCP").lower(),
                **({"hostIP": port["hostIP"]} if port.get("hostIP") else {}),
            }
            for container in self.pod["spec"].get("containers") or []
            for port in container.get("ports") or []
            if port.get("hostPort") and not self.uses_host_network
        ]


class Kubelet:
    """Runs the pods bound to one node. ``open`` registers the node, ``close`` ends all pods."""

    def __init__(
        self,
        store: ObjectStore,
        node: LabNode,
        namespaces: Namespaces,
        wiring: Wiring,
        logs: Path,
    ) -> None:
        self._store = store
        self._node = node
        self._namespaces = namespaces
        self._wiring = wiring
        self._logs = logs
        self._runs: dict[str, PodRun] = {}
        self._finished: dict[str, PodRun] = {}
        # Writes wait here: an API server that is away must not cost a pod its status or its end.
        self._writes = WorkQueue(f"kubelet of {node.name}", self._write)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsubscribe: Callable[[], None] = lambda: None
        self._closed = False

    @property
    def is_idle(self) -> bool:
        """No pod is on its way up (pods that end take as long as their clients like)."""
        starting = any(run.is_starting and not run.ending.is_set() for run in self._runs.values())
        return not starting and self._writes.is_idle

    def netns_of(self, namespace: str, name: str) -> str | None:
        """The namespace of a pod that runs here."""
        for run in self._runs.values():
            if (run.namespace, run.name) == (namespace, name):
                return self._node.name if run.uses_host_network else run.netns
        return None

    def open(self) -> None:
        self._store.create("nodes", node_object(self._node))
        self._unsubscribe = self._store.subscribe(self._notice, "pods")

    async def close(self) -> None:
        """Kill the pods; their objects stay, as when a node loses power."""
        self._closed = True
        self._unsubscribe()
        self._writes.close()
        for run in self._runs.values():
            processes.send(run.process, signal.SIGKILL)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _notice(self, event: Event) -> None:
        pod = event.object
        if pod["spec"].get("nodeName") != self._node.name:
            return
        uid = pod["metadata"]["uid"]
        run = self._runs.get(uid)
        if event.type == "DELETED":
            if run is not None:
                run.removed = True
                self._end(run, 0)
            return
        if run is None:
            if pod["metadata"].get("deletionTimestamp"):
                return
            run = self._runs[uid] = PodRun(pod)
            task = asyncio.get_running_loop().create_task(self._live(run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        annotations_changed = _annotations(run.pod) != _annotations(pod)
        run.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._end(run, int(pod["metadata"].get("deletionGracePeriodSeconds") or 0))
        elif annotations_changed:
            self._writes.mark(uid)

    def _end(self, run: PodRun, grace_s: int) -> None:
        """SIGTERM now, SIGKILL later; a shorter grace period than before is honoured, too."""
        if not run.ending.is_set():
            processes.send(run.process, signal.SIGTERM)
        run.ending.set()
        loop = asyncio.get_running_loop()
        loop.call_later(grace_s, processes.send, run.process, signal.SIGKILL)

    async def _live(self, run: PodRun) -> None:
        """A pod's whole life, from the namespace to the final deletion of its object."""
        while not run.ending.is_set():
            try:
                if not run.addresses:
                    await self._await_network(run)
                    await self._wire(run)
                await self._serve(run)
            except (LabError, OSError) as error:
                _log.warning("pod %s/%s: %s", run.namespace, run.name, error)
            run.is_serving = run.is_starting = False
            if not run.ending.is_set():
                run.restarts += 1
                self._writes.mark(run.uid)
                try:
                    await asyncio.wait_for(run.ending.wait(), RESTART_S)
                except TimeoutError:
                    continue
        try:
            await self._unwire(run)
        except (LabError, OSError) as error:
            _log.warning("pod %s/%s: %s", run.namespace, run.name, error)
        del self._runs[run.uid]
        if not run.removed:
            self._finished[run.uid] = run
            self._writes.mark(run.uid)

    async def _serve(self, run: PodRun) -> None:
        """Start the server, publish it, and stay until it ends."""
        netns = self._node.name if run.uses_host_network else run.netns
        log = self._logs / f"{run.namespace}_{run.name}.log"
        argv = [sys.executable, "-I", "-S", str(POD_SERVER)]
        argv += [run.name, run.namespace, self._node.name, *run.ports]

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as errors:
                return self._namespaces.popen(
                    netns,
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
                )

        if run.ending.is_set():
            return
        run.process = process = await self._namespaces.call(start)
        try:
            if run.ending.is_set() or self._closed:
                processes.send(process, signal.SIGKILL)
            run.is_serving = (await processes.read_line(process)).startswith(b"ready")
            if run.is_serving and not run.ending.is_set():
                run.is_starting = False
                self._writes.mark(run.uid)
            code = await processes.wait_exit(process)
        finally:
            processes.send(process, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.close()
        if not run.ending.is_set():
            said = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise LabError(f"its server ended with code {code}: {said}")

    async def _await_network(self, run: PodRun) -> None:
        """As a kubelet whose runtime has no CNI configuration yet (NetworkNotReady)."""
        while not (run.uses_host_network or self._wiring.is_configured or run.ending.is_set()):
            await asyncio.sleep(NETWORK_POLL_S)

    async def _wire(self, run: PodRun) -> None:
        if run.ending.is_set():
            return
        if run.uses_host_network:
            run.addresses = list(self._node.addresses)
            return

        def wire() -> list[str]:
            path = self._namespaces.path(run.netns)
            if not path.exists():
                self._namespaces.create(run.netns)
            try:
                return self._wiring.add(run.uid, path, run.host_ports)
            except LabError:
                # As a runtime does: what a failed ADD leaves behind would fail the next one, too.
                self._drop_network(run)
                raise

        run.addresses = await self._namespaces.call(wire)

    async def _unwire(self, run: PodRun) -> None:
        if not run.uses_host_network:
            await self._namespaces.call(lambda: self._drop_network(run))

    def _drop_network(self, run: PodRun) -> None:
        path = self._namespaces.path(run.netns)
        if path.exists():
            try:
                self._wiring.delete(run.uid, path, run.host_ports)
            finally:
                self._namespaces.delete(run.netns)

    def _write(self, uid: str) -> None:
        """Tell the API what has become of a pod; called again until that succeeds."""
        if run := self._finished.get(uid):
            self._remove(run)
        elif run := self._runs.get(uid):
            self._publish(run)

    def _remove(self, run: PodRun) -> None:
        """The final deletion, of this very pod and not of a later one of its name."""
        try:
            self._store.delete("pods", run.name, run.namespace, grace_period_s=0, uid=run.uid)
        except StatusError as error:
            if error.code not in (404, 409):
                raise
        del self._finished[run.uid]

    def _publish(self, run: PodRun) -> None:
        """Write the pod's status if it says something new."""
        pod = self._store.find("pods", run.name, run.namespace)
        if pod is None or pod["metadata"]["uid"] != run.uid or self._closed:
            return
        status = compile_status(
            pod,
            node_addresses=self._node.addresses,
            addresses=run.addresses,
            is_serving=run.is_serving,
            restarts=run.restarts,
        )
        if status != pod.get("status"):
            self._store.update("pods", {**pod, "status": status}, subresource="status")


def _annotations(pod: Object) -> Object:
    return pod["metadata"].get("annotations") or {}


def idle(kubelets: Sequence[Kubelet]) -> bool:
    return all(kubelet.is_idle for kubelet in kubelets)
