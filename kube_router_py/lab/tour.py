"""The guided tour: shows a working node and checks every line it prints.

Each claim comes with how often and how fast it was tried; a claim that does not hold ends the tour
with exit code 1.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.front import Backstage
from kube_router_py.lab.ipvs_table import Connection, parse_connections, parse_table
from kube_router_py.lab.state import LabState
from kube_router_py.lab.tour_api import Api

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "docs" / "examples" / "website.yaml"
LOAD = Path(__file__).with_name("load.py")
DEPLOYMENT, SERVICE, STICKY = "website", "website", "website-sticky"
NODE_PORT = 30080
REQUESTS = 30
RATE = 20
CONCURRENCY = 4
STREAM_INTERVAL_S = 0.1
LINGER_S = 3.0
# How many requests of each source must cross a change before its zero failures mean something.
CROSSING = 100
DEADLINE_S = 120.0

Object = dict[str, Any]


class Load:
    """A load generator running in the background; ``finish`` returns what it counted."""

    def __init__(self, lab: LabState, target: str, address: str, port: int, *options: str) -> None:
        argv = [sys.executable, "-I", "-S", str(LOAD), address, str(port), *options]
        self._process = subprocess.Popen(
            lab.enter(target, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def first_line(self) -> Object:
        """What a stream says when it has begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the stream did not begin: {self._process.communicate()[1].strip()}")
        return dict(json.loads(line))

    def finish(self, *, stop: bool = True) -> Object:
        if stop:
            self._process.terminate()
        out, errors = self._process.communicate(timeout=DEADLINE_S)
        if self._process.returncode != 0:
            raise LabError(f"the load generator failed: {errors.strip()}")
        return dict(json.loads(out))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Tour:
    """The steps, in order; each raises LabError when something is not as it says."""

    def __init__(self, lab: LabState, environ: Mapping[str, str], began: float) -> None:
        self._lab = lab
        self._environ = environ
        self._began = began
        self._api = Api(lab.kubeconfig)
        self._step = 0
        self._loads: list[Load] = []
        self._vip = str(self._api.get("services", SERVICE)["spec"]["clusterIP"])
        self._sticky_vip = str(self._api.get("services", STICKY)["spec"]["clusterIP"])

    def _steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self._show_cluster,
            self._show_ipvs,
            self._distribute,
            *self._more_steps(),
            self._stick,
            self._negative_control,
            self._scale,
            self._restart_agent,
            self._delete,
        )

    def _more_steps(self) -> tuple[Callable[[], None], ...]:
        """What there is to see besides, once there is a pod on every node that asks others."""
        return ()

    def run(self) -> None:
        try:
            for step in self._steps():
                step()
        finally:
            for load in self._loads:
                load.kill()

    # --- printing and asking ----------------------------------------------------------------

    def _title(self, text: str) -> None:
        self._step += 1
        seconds = time.monotonic() - self._began
        print(f"\n[{self._step}] {text}   ({seconds:.0f} s)", flush=True)

    def _check(self, holds: bool, claim: str, otherwise: str = "") -> None:
        if not holds:
            raise LabError(f"not true: {claim}{f' ({otherwise})' if otherwise else ''}")
        print(f"    ok: {claim}", flush=True)

    def _block(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(f"    | {line}".rstrip(), flush=True)

    def _inside(self, target: str, *argv: str) -> str:
        done = subprocess.run(
            self._lab.enter(target, argv), capture_output=True, text=True, timeout=DEADLINE_S
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)} in {target} failed: {done.stderr.strip()}")
        return done.stdout

    def _table(self, node: str) -> dict[str, dict[str, int]]:
        return parse_table(self._inside(node, "cat", "/proc/net/ip_vs"))

    def _load(self, target: str, address: str, port: int, *options: str) -> Load:
        load = Load(self._lab, target, address, port, *options)
        self._loads.append(load)
        return load

    def _finish(self, load: Load, *, stop: bool = True) -> Object:
        found = load.finish(stop=stop)
        self._loads.remove(load)
        return found

    def _node_address(self, node: str) -> str:
        name = f"LAB_{node.upper()}_IP"
        return self._environ.get(f"{name}4") or self._environ[f"{name}6"]

    def _pods(self) -> list[Object]:
        return self._api.list_all("pods", "app=website")

    def _visitors(self) -> list[Object]:
        return self._api.list_all("pods", "app=visitor")

    def _running_pods(self) -> list[Object]:
        return [pod for pod in self._pods() if not pod["metadata"].get("deletionTimestamp")]

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"{what} did not happen within {DEADLINE_S:.0f} s")
            time.sleep(0.3)
        self._lab.ask({"op": "wait"})

    # --- steps ------------------------------------------------------------------------------

    def _show_cluster(self) -> None:
        self._title("A cluster with a Deployment, a NodePort Service and a sticky Service")
        command, text = self._api.show(["services", "endpointslices", "pods"], self._environ)
        print(f"    $ {command}")
        self._block(text)
        pods = self._running_pods()
        nodes = sorted({pod["spec"]["nodeName"] for pod in pods})
        self._check(len(pods) == 3, f"3 pods run, on {', '.join(nodes)}")
        said = f"IPVS is empty on {', '.join(self._lab.nodes)}"
        log = (self._lab.logs / "lab.log").read_text()
        self._check(said in log, "IPVS was empty on every node when the agents started")

    def _show_ipvs(self) -> None:
        self._title("What the agents wrote into each node's kernel")
        wanted = {endpoint(pod["status"]["podIP"], 8080): 1 for pod in self._running_pods()}
        for node in self._lab.nodes:
            if shutil.which("ipvsadm"):
                print(f"    $ kube-router-py lab exec {node} -- ipvsadm -Ln")
                self._block(self._inside(node, "ipvsadm", "-Ln"))
            table = self._table(node)
            servers = (
                endpoint(self._vip, 80),
                endpoint(self._node_address(node), NODE_PORT),
                endpoint(self._sticky_vip, 80),
            )
            for server in servers:
                found = table.get(f"TCP {server}")
                self._check(
                    found == wanted,
                    f"{node}: virtual server {server} has the {len(wanted)} pods",
                    f"it has {found}",
                )

    def _distribute(self) -> None:
        self._title(f"{REQUESTS} requests each: from a pod of each node, and from outside")
        pods = self._running_pods()
        for node in self._lab.nodes:
            self._api.create("pods", _visitor(node))
        self._wait("the visitors' start", lambda: all(map(_is_ready, self._visitors())))
        sources = [
            (f"pod on {node}", f"default/visitor-{node}", self._vip, 80) for node in self._lab.nodes
        ]
        first = self._lab.nodes[0]
        sources.append(("outside client", "client", self._node_address(first), NODE_PORT))
        for who, target, address, port in sources:
            options = ("--count", str(REQUESTS), "--rate", str(RATE))
            found = self._finish(self._load(target, address, port, *options), stop=False)
            shares = ", ".join(f"{pod.split('-')[-1]} {n}" for pod, n in found["pods"].items())
            self._check(
                found["failures"] == 0 and found["attempts"] == REQUESTS,
                f"{who} -> {endpoint(address, port)}: {found['attempts']} requests, "
                f"{found['failures']} failures, {found['rate']}/s",
                str(found["errors"]),
            )
            self._check(len(found["pods"]) == len(pods), f"all {len(pods)} pods answered: {shares}")

    def _stick(self) -> None:
        self._title("Session affinity")
        options = ("--count", "10", "--rate", str(RATE))
        for node in self._lab.nodes:
            found = self._finish(self._load(node, self._sticky_vip, 80, *options), stop=False)
            self._check(
                found["failures"] == 0 and len(found["pods"]) == 1,
                f"{node} -> {endpoint(self._sticky_vip, 80)}: {found['attempts']} requests, "
                f"{found['failures']} failures, all answered by {', '.join(found['pods'])}",
                str(found),
            )

    def _negative_control(self) -> None:
        self._title("Negative control: what is not served must not answer")
        options = ("--count", "5", "--rate", "10", "--concurrency", "5", "--timeout", "2")
        first = self._lab.nodes[0]
        for who, target, address, port in (
            (f"{first}", first, self._vip, 81),
            ("outside client", "client", self._node_address(first), NODE_PORT + 1),
        ):
            found = self._finish(self._load(target, address, port, *options), stop=False)
            why = ", ".join(found["errors"])
            self._check(
                found["failures"] == found["attempts"] == 5,
                f"{who} -> {endpoint(address, port)}: {found['attempts']} requests, "
                f"{found['failures']} failures, as it must be ({why})",
                str(found),
            )

    def _background(self) -> dict[str, Load]:
        """Continuous requests from outside to the NodePort and from a node to the ClusterIP."""
        options = (
            *("--rate", str(RATE / 2), "--concurrency", str(CONCURRENCY)),
            *("--seconds", "300", "--minimum", str(CROSSING)),
        )
        first, last = self._lab.nodes[0], self._lab.nodes[-1]
        address = self._node_address(first)
        return {
            f"outside client -> {endpoint(address, NODE_PORT)}": self._load(
                "client", address, NODE_PORT, *options
            ),
            f"{last} -> {endpoint(self._vip, 80)}": self._load(last, self._vip, 80, *options),
        }

    def _check_background(self, loads: dict[str, Load], meanwhile: str) -> None:
        for who, load in loads.items():
            found = self._finish(load)
            self._check(
                found["failures"] == 0 and found["attempts"] >= CROSSING,
                f"{who} {meanwhile}: {found['attempts']} requests at {found['rate']}/s, "
                f"concurrency {found['concurrency']}, {found['failures']} failures, "
                f"slowest {found['slowest_s']} s",
                str(found),
            )

    def _scale(self) -> None:
        self._title("Scaling 3 -> 1 -> 4 under continuous requests")
        loads = self._background()
        for replicas in (1, 4):
            self._api.scale(DEPLOYMENT, replicas)

            def is_done(wanted: int = replicas) -> bool:
                pods = self._pods()
                return len(pods) == wanted and all(_is_ready(pod) for pod in pods)

            self._wait(f"scaling to {replicas}", is_done)
            found = self._table(self._lab.nodes[0]).get(f"TCP {endpoint(self._vip, 80)}") or {}
            self._check(
                sum(1 for weight in found.values() if weight) == replicas,
                f"scaled to {replicas}: {self._lab.nodes[0]} balances over {replicas} pods",
                str(found),
            )
            time.sleep(LINGER_S)  # requests must reach the new set, too
        self._check_background(loads, "while scaling")

    def _restart_agent(self) -> None:
        node = self._lab.nodes[0]
        self._title(f"kill -9 of the agent on {node} under traffic, then its restart")
        address = self._node_address(node)
        loads = self._background()
        stream = self._load(
            "client", address, NODE_PORT, "--stream", str(STREAM_INTERVAL_S), "--seconds", "300"
        )
        local = stream.first_line()
        client = endpoint(local["local"], local["local_port"])
        before = self._entry(node, client)
        self._lab.ask({"op": "agent", "node": node, "verb": "kill"})
        time.sleep(LINGER_S)
        self._lab.ask({"op": "agent", "node": node, "verb": "start"})
        self._lab.ask({"op": "wait"})
        time.sleep(LINGER_S)
        after = self._entry(node, client)
        self._check(
            before == after,
            f"the stream's IPVS entry is the same: {before.client} -> {before.virtual_server} "
            f"-> {before.real_server} {before.state}",
            f"{before} became {after}",
        )
        found = self._finish(stream)
        self._check(
            found["failures"] == 0 and found["lines"] > 0,
            f"the stream of {found['seconds']} s went on: {found['lines']} lines, longest pause "
            f"{found['longest_gap_s']} s",
            str(found),
        )
        self._check_background(loads, "meanwhile")

    def _entry(self, node: str, client: str) -> Connection:
        text = self._inside(node, "cat", "/proc/net/ip_vs_conn")
        entries = [entry for entry in parse_connections(text) if entry.client == client]
        if len(entries) != 1:
            raise LabError(f"{len(entries)} IPVS entries for the stream of {client} on {node}")
        return entries[0]

    def _delete(self) -> None:
        self._title("Clean-up: the website, then the lab")
        self._api.delete("deployments", DEPLOYMENT)
        for service in (SERVICE, STICKY):
            self._api.delete("services", service)
        for visitor in self._visitors():
            self._api.delete("pods", visitor["metadata"]["name"])
        self._wait("the end of all pods", lambda: not self._pods() and not self._visitors())
        for node in self._lab.nodes:
            vips = (self._vip, self._sticky_vip)
            left = [name for name in self._table(node) if any(vip in name for vip in vips)]
            left += [name for name in self._table(node) if name.endswith(f":{NODE_PORT}")]
            self._check(not left, f"{node}: no virtual server of the website is left", str(left))


def _visitor(node: str) -> Object:
    """A pod that asks others, and answers itself; no Service leads to it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"visitor-{node}", "labels": {"app": "visitor"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "visitor", "image": "any", "ports": [{"containerPort": 8080}]}],
        },
    }


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def farewell(backstage: Backstage, began: float) -> int:
    """Take the lab down and look whether it is gone; 0 when nothing is left."""
    before = len(backstage.leftovers()) - 1
    backstage.stop()
    left = backstage.leftovers()
    if left:
        print(f"    FAILED: still there after the end: {', '.join(left)}", flush=True)
        return 1
    print(f"    ok: the lab is down: of its {before} processes and its files nothing is left")
    print(
        f"\nEvery line marked ok was checked. The tour took {time.monotonic() - began:.0f} s.",
        flush=True,
    )
    return 0
