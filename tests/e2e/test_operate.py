"""A lab of all parts: nothing is wrong with it, and what its kernel may lack is told."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.operate

NODES = ("node1", "node2", "node3")


def doctor(cluster: Any, node: str, *words: str) -> dict[str, str]:
    """Code of every finding, with its object."""
    command = ["kube-router-py", "doctor", "--output=json", *words]
    done = subprocess.run(
        cluster.state.enter(node, command),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise AssertionError(done.stdout + done.stderr) from None
    return {each["code"]: f"{each['object']}: {each['what']}" for each in report["findings"]}


def finds(cluster: Any, *codes: str, flags: tuple[str, ...] = ()) -> dict[str, str]:
    """What doctor says on node1, which in the end is exactly these findings."""
    found: dict[str, str] = {}

    def same() -> bool:
        nonlocal found
        found = doctor(cluster, "node1", *flags)
        return {*found} == {*codes}

    cluster.eventually(same, f"exactly {codes} is found")
    return found


@pytest.mark.parametrize("node", NODES)
def test_nothing_is_wrong(cluster: Any, node: str) -> None:
    cluster.eventually(lambda: not doctor(cluster, node), f"{node}: nothing is found")


def test_every_node_is_in_the_table(cluster: Any) -> None:
    def states() -> dict[str, str]:
        words = ["kube-router-py", "status", "--cluster", "--output=json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        return {row["node"]: row["state"] for row in json.loads(done.stdout or "[]")}

    wanted = dict.fromkeys(NODES, "ready")
    cluster.eventually(lambda: states() == wanted, "all agents have said that they are ready")


def sysctl(*words: str) -> str:
    done = subprocess.run(["sysctl", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def parameter(name: str, value: str) -> Iterator[None]:
    """A kernel parameter with another value."""
    before = sysctl("-n", name)
    sysctl("-w", f"{name}={value}")
    try:
        yield
    finally:
        sysctl("-w", f"{name}={before}")


def test_the_table_of_connections_is_small(cluster: Any) -> None:
    with parameter("net.netfilter.nf_conntrack_max", "5000"):
        found = finds(cluster, "conntrack-small")
        assert "5000" in found["conntrack-small"]
    finds(cluster)


def test_a_module_is_missing(cluster: Any, tmp_path: Path) -> None:
    """Foo-over-UDP, which this lab does without, and which no kernel loads by itself."""
    config = yaml.safe_load(cluster.state.kubeconfig.read_text())
    server = f"https://{cluster.address('apiserver', 4)}:6443"
    config["clusters"][0]["cluster"]["server"] = server
    (tmp_path / "config").write_text(json.dumps(config))
    # The nodes share a subnet: without "full" none of them would need a tunnel.
    tunnels = ("--overlay-type=full", "--overlay-encap=fou")
    flags = ("--preflight", "--hostname-override=node1", f"--kubeconfig={tmp_path / 'config'}")
    subprocess.run(["modprobe", "fou"], check=True)
    finds(cluster, flags=(*flags, *tunnels))
    subprocess.run(["modprobe", "-r", "fou"], check=True)
    found = finds(cluster, "kernel-module-missing", flags=(*flags, *tunnels))
    assert "fou" in found["kernel-module-missing"]
