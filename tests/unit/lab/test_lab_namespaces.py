"""A whole lab but for the agents, on this kernel: pods, exec, and that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab import load, state
from kube_router_py.lab.cluster import LabOptions
from kube_router_py.lab.cni import plugin_directory, render_network
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.front import Backstage
from kube_router_py.lab.router import check_programs
from kube_router_py.lab.server import serve
from kube_router_py.lab.tour_api import Api

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "website.yaml"
DEADLINE_S = 90.0
PATIENT = ("--timeout", "60")
PODS = "/api/v1/namespaces/default/pods"


def _has_plugins() -> bool:
    try:
        plugin_directory()
    except LabError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
    pytest.mark.skipif(not _has_plugins(), reason="containernetworking-plugins are not installed"),
]


def lab(family: str) -> AbstractContextManager[Backstage]:
    return running(LabOptions(files=(EXAMPLE,), ip_family=family, with_agents=False))


@contextmanager
def running(options: LabOptions) -> Iterator[Backstage]:
    backstage = Backstage(
        lambda *rest: serve(options, *rest), ["node1", "node2"], lambda line: None
    )
    try:
        backstage.start()
        yield backstage
    finally:
        backstage.stop()


def inside(backstage: Backstage, target: str, *argv: str) -> str:
    done = subprocess.run(
        backstage.state.enter(target, argv), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_pods_answer_across_nodes_and_nothing_is_left(family: str) -> None:
    mounts, links = Path("/proc/self/mounts").read_text(), os.listdir("/sys/class/net")
    with lab(family) as backstage:
        directory = backstage.directory
        api = Api(backstage.state.kubeconfig)
        pods = api.list_all("pods")
        assert len(pods) == 3
        source = f"default/{pods[0]['metadata']['name']}"
        target = next(p for p in pods if p["spec"]["nodeName"] != pods[0]["spec"]["nodeName"])
        for address in target["status"]["podIPs"]:
            for where in (source, "node1", "node2"):
                argv = [sys.executable, "-I", "-S", load.__file__, address["ip"], "8080"]
                found = json.loads(inside(backstage, where, *argv, "--count", "2", *PATIENT))
                assert found["pods"] == {target["metadata"]["name"]: 2}
        slices = api.list_all("endpointslices", "kubernetes.io/service-name=website")
        addresses = {a for s in slices for e in s["endpoints"] for a in e["addresses"]}
        assert len(addresses) == 3
    assert not directory.exists()
    assert Path("/proc/self/mounts").read_text() == mounts
    assert sorted(os.listdir("/sys/class/net")) == sorted(links)


def test_a_pod_that_nobody_asks_ends_long_before_its_grace_period() -> None:
    with lab("ipv4") as backstage:
        api = Api(backstage.state.kubeconfig)
        api.scale("website", 1)
        eventually(lambda: len(api.list_all("pods")) == 1)
        slices = api.list_all("endpointslices", "kubernetes.io/service-name=website")
        assert sum(len(s["endpoints"]) for s in slices) == 1


def test_a_pod_that_found_no_address_gets_the_next_one_that_is_free() -> None:
    with lab("ipv4") as backstage:
        api = Api(backstage.state.kubeconfig)
        (file,) = (backstage.directory / "nodes/node1/root/etc/cni/net.d").glob("*.conflist")
        network = json.loads(file.read_text())
        only = {"rangeStart": "10.244.1.200", "rangeEnd": "10.244.1.200"}
        network["plugins"][0]["ipam"]["ranges"][0][0].update(only)
        file.write_text(json.dumps(network))

        def create(name: str) -> None:
            spec = {"nodeName": "node1", "containers": [{"name": "c", "image": "c"}]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            api.call("POST", PODS, pod, content_type="application/json")

        def status(name: str) -> dict[str, Any]:
            return dict(api.call("GET", f"{PODS}/{name}").get("status", {}))

        def attempts(name: str) -> int:
            return sum(each["restartCount"] for each in status(name).get("containerStatuses", ()))

        create("first")
        eventually(lambda: status("first").get("podIP") == "10.244.1.200")
        create("second")
        eventually(lambda: attempts("second") >= 2)
        api.call("DELETE", f"{PODS}/first?gracePeriodSeconds=0")
        eventually(lambda: status("second").get("podIP") == "10.244.1.200")


def test_a_pod_waits_for_the_network_that_its_nodes_agent_writes() -> None:
    try:
        check_programs("frr")
    except LabError as error:
        pytest.skip(f"missing capability: {error}")
    with running(LabOptions(with_agents=False, router="frr")) as backstage:
        api = Api(backstage.state.kubeconfig)

        def create(number: int) -> None:
            spec = {"nodeName": f"node{number}", "containers": [{"name": "c", "image": "c"}]}
            metadata = {"name": f"pod{number}"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            api.call("POST", PODS, pod, content_type="application/json")

        def configure(number: int) -> None:
            directory = backstage.directory / f"nodes/node{number}/root/etc/cni/net.d"
            assert list(directory.iterdir()) == []
            beside = directory / ".beside"
            beside.write_text(json.dumps(render_network([f"10.244.{number}.0/24"])))
            beside.rename(directory / "10-kuberouter.conflist")

        def status(number: int) -> dict[str, Any]:
            return dict(api.call("GET", f"{PODS}/pod{number}").get("status", {}))

        create(1)
        configure(2)
        create(2)
        # What was created before this one has had its turn, too.
        eventually(lambda: status(2).get("podIP", "").startswith("10.244.2."))
        assert "podIP" not in status(1)
        configure(1)
        eventually(lambda: status(1).get("podIP", "").startswith("10.244.1."))
        assert status(1)["containerStatuses"][0]["restartCount"] == 0


def test_stop_takes_every_process_down() -> None:
    with lab("ipv4") as backstage:
        assert len(backstage.leftovers()) >= 6  # init, server, three pods, the directory
        backstage.stop()
        assert backstage.leftovers() == []


KILLED = """\
import sys, time
from kube_router_py.lab.cluster import LabOptions
from kube_router_py.lab.front import Backstage
from kube_router_py.lab.router import check_programs
from kube_router_py.lab.server import serve
options = LabOptions(with_agents=False)
backstage = Backstage(lambda *rest: serve(options, *rest), ["node1", "node2"], lambda line: None)
backstage.start()
print(backstage.directory, backstage.state.pid, flush=True)
time.sleep(600)
"""


def test_what_was_left_running_in_a_namespace_ends_with_the_lab() -> None:
    with lab("ipv4") as backstage:
        argv = backstage.state.enter("node1", ["sh", "-c", "echo in; exec sleep 1000"])
        visitor = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert visitor.stdout is not None
        assert visitor.stdout.readline() == b"in\n"
    visitor.stdout.close()
    assert visitor.wait(timeout=60) == -signal.SIGTERM


def test_killing_the_front_takes_everything_down_and_the_next_lab_sweeps() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    directory, keeper = process.stdout.readline().split()
    process.kill()
    process.communicate()
    eventually(lambda: not Path("/proc", keeper).exists())
    assert Path(directory).exists()
    state.sweep()
    assert not Path(directory).exists()


def test_a_refused_manifest_is_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: []}\n")
    options = LabOptions(files=(file,), with_agents=False)
    backstage = Backstage(lambda *rest: serve(options, *rest), ["node1"], lambda line: None)
    try:
        with pytest.raises(LabError, match="Service"):
            backstage.start()
    finally:
        backstage.stop()
    assert not backstage.directory.exists()
