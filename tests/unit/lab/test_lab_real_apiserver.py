"""``--apiserver real`` against stand-ins that speak the same command lines: the lab's parts as
clients of a server in another process, which is killed and started again."""

import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab import command
from kube_router_py.lab.apiserver.mirror import Mirror
from kube_router_py.lab.apiserver.storage import Event
from kube_router_py.lab.cluster import LabOptions
from kube_router_py.lab.cni import plugin_directory
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.front import Backstage
from kube_router_py.lab.relay import Relay
from kube_router_py.lab.server import serve
from kube_router_py.lab.tour_api import Api

Object = dict[str, Any]

PROJECT = Path(__file__).resolve().parents[3]
EXAMPLE = PROJECT / "docs" / "examples" / "website.yaml"
STAND_INS = {"etcd": "etcd.py", "kube-apiserver": "kube_apiserver.py"}
DEADLINE_S = 90.0


def _has_plugins() -> bool:
    try:
        plugin_directory()
    except LabError:
        return False
    return True


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not _has_plugins(), reason="needs root and containernetworking-plugins"
)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KUBEBUILDER_ASSETS directory with the stand-ins under the programs' names."""
    directory = tmp_path / "assets"
    directory.mkdir()
    for program, script in STAND_INS.items():
        file = directory / program
        source = Path(__file__).parent / "stand_in" / script
        file.write_text(
            f"#!{sys.executable}\nimport runpy, sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
            f"runpy.run_path({str(source)!r}, run_name='__main__')\n"
        )
        file.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(directory))
    return directory


@contextmanager
def lab(family: str = "ipv4", *files: Path) -> Iterator[Backstage]:
    options = LabOptions(files=files, ip_family=family, with_agents=False, apiserver="real")
    backstage = Backstage(
        lambda *rest: serve(options, *rest), ["node1", "node2"], lambda line: None
    )
    try:
        backstage.start()
        yield backstage
    except BaseException:
        print(backstage.last_words())  # pytest shows it with the failure
        raise
    finally:
        backstage.stop()


def eventually(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def endpoints(api: Api) -> set[str]:
    slices = api.list_all("endpointslices", "kubernetes.io/service-name=website")
    found = [e for s in slices for e in s["endpoints"] or []]
    return {a for e in found if e["conditions"]["ready"] for a in e["addresses"]}


@needs_namespaces
@pytest.mark.parametrize("family", ["ipv4", "ipv6", "dual"])
def test_a_deployment_lives_and_dies_through_a_restart(family: str, assets: Path) -> None:
    with lab(family, EXAMPLE) as backstage:
        api, ask = Api(backstage.state.kubeconfig), backstage.state.ask
        pods = api.list_all("pods")
        assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["node1", "node1", "node2"]
        assert endpoints(api) == {pod["status"]["podIP"] for pod in pods}
        assert len(endpoints(api)) == 3
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        assert api.call("GET", account)["metadata"]["name"] == "default"

        api.scale("website", 5)
        eventually(lambda: len(endpoints(api)) == 5)  # a pod may need a second attempt

        ask({"op": "apiserver", "verb": "stop"})
        with pytest.raises(LabError):
            api.list_all("pods")
        ask({"op": "apiserver", "verb": "start", "compact": True})
        api.scale("website", 1)
        eventually(lambda: len(api.list_all("pods")) == 1)
        ask({"op": "wait"})
        assert len(endpoints(api)) == 1
        assert api.get("deployments", "website")["status"]["availableReplicas"] == 1

        api.delete("deployments", "website")
        eventually(lambda: api.list_all("pods") == [])
        ask({"op": "wait"})
        assert endpoints(api) == set()


@needs_namespaces
def test_what_happens_while_the_server_is_away_is_written_when_it_is_back(assets: Path) -> None:
    with lab("ipv4", EXAMPLE) as backstage:
        api, ask = Api(backstage.state.kubeconfig), backstage.state.ask
        victim = api.list_all("pods")[0]["metadata"]["name"]
        netns = ask({"op": "resolve", "pod": f"default/{victim}"})["netns"]
        before = _processes_in(backstage, netns)
        ask({"op": "apiserver", "verb": "stop"})
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: set(_processes_in(backstage, netns)) - set(before))
        ask({"op": "apiserver", "verb": "start"})

        def restarts() -> int:
            pod = api.get("pods", victim)
            return int(pod["status"]["containerStatuses"][0]["restartCount"])

        eventually(lambda: restarts() == 1)
        ask({"op": "wait"})
        assert len(endpoints(api)) == 3


def _processes_in(backstage: Backstage, netns: str) -> list[int]:
    """The processes of a network namespace of the lab, as the caller numbers them."""
    inode = os.stat(backstage.state.netns_path(netns)).st_ino
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(entry / "ns" / "net").st_ino == inode:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@needs_namespaces
def test_wait_moves_every_watch_an_agent_has_beyond_the_revision(assets: Path) -> None:
    """No bookmark in sight, and the last write concerned none of the three kinds."""
    paths = {
        "/api/v1/services": "",
        "/apis/discovery.k8s.io/v1/endpointslices": "",
        "/api/v1/nodes": "",
    }
    with lab("ipv4") as backstage:
        api = Api(backstage.state.kubeconfig)
        watches = []
        for path, selector in paths.items():
            revision = api.call("GET", path)["metadata"]["resourceVersion"]
            connection = http.client.HTTPSConnection(
                "127.0.0.1", api._server.port, context=api._context, timeout=DEADLINE_S
            )
            query = f"?watch=1&resourceVersion={revision}{selector}"
            headers = {"Authorization": f"Bearer {api._token}"}
            connection.request("GET", path + query, headers=headers)
            watches.append((connection, connection.getresponse()))
        config = {"metadata": {"name": "last"}}
        made = api.call(
            "POST",
            "/api/v1/namespaces/default/configmaps",
            config,
            content_type="application/json",
        )
        waited_for = int(backstage.state.ask({"op": "wait"})["revision"])
        assert waited_for >= int(made["metadata"]["resourceVersion"])
        for connection, answer in watches:
            event = json.loads(answer.readline())
            assert event["type"] == "MODIFIED"
            assert int(event["object"]["metadata"]["resourceVersion"]) > waited_for
            connection.close()


@needs_namespaces
def test_a_namespace_is_emptied_and_a_cascade_ends(assets: Path, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    text = EXAMPLE.read_text().split("---")[0]
    file.write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n"
        + text.replace("  name: website\n", "  name: website\n  namespace: shop\n", 1)
    )
    with lab("ipv4", file, EXAMPLE) as backstage:
        api = Api(backstage.state.kubeconfig)

        def names(path: str) -> list[str]:
            return [item["metadata"]["name"] for item in api.call("GET", path)["items"]]

        assert len(names("/api/v1/namespaces/shop/pods")) == 3
        api.call("DELETE", "/api/v1/namespaces/shop")
        eventually(lambda: "shop" not in names("/api/v1/namespaces"))
        assert names("/api/v1/namespaces/shop/pods") == []
        assert names("/api/v1/namespaces/shop/serviceaccounts") == []

        deployments = "/apis/apps/v1/namespaces/default/deployments"
        replica_sets = "/apis/apps/v1/namespaces/default/replicasets"
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"}
        api.call("DELETE", f"{deployments}/website", options, content_type="application/json")
        eventually(lambda: names(deployments) == [])
        (left,) = api.call("GET", replica_sets)["items"]
        assert not left["metadata"].get("ownerReferences")
        options["propagationPolicy"] = "Foreground"
        path = f"{replica_sets}/{left['metadata']['name']}"
        api.call("DELETE", path, options, content_type="application/json")
        eventually(lambda: names("/api/v1/namespaces/default/pods") == [])
        assert names(replica_sets) == []


@needs_namespaces
def test_switches_of_the_own_server_are_refused_and_nothing_is_left(assets: Path) -> None:
    with lab("ipv4") as backstage:
        for verb in ("inject", "hang-up", "requests"):
            with pytest.raises(LabError, match=f"`lab apiserver {verb}` is a switch of the lab's"):
                backstage.state.ask({"op": "apiserver", "verb": verb})
        backstage.stop()
        assert backstage.leftovers() == []


@needs_namespaces
def test_a_server_that_ends_at_once_is_the_reason(assets: Path) -> None:
    (assets / "kube-apiserver").write_text("#!/bin/sh\necho unknown flag: --secure-port\nexit 1\n")
    with pytest.raises(LabError, match="kube-apiserver: unknown flag: --secure-port"), lab():
        pass


def test_real_needs_the_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert command.main(["--apiserver", "real", "--", "true"]) == 1
    assert f"missing: {tmp_path}/etcd, {tmp_path}/kube-apiserver" in capsys.readouterr().err


# --- the mirror -----------------------------------------------------------------------------------


def pod(name: str, uid: str, revision: int) -> Object:
    metadata = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(revision)}
    return {"metadata": metadata}


def told(mirror: Mirror) -> list[tuple[str, str, int]]:
    heard: list[tuple[str, str, int]] = []

    def note(event: Event) -> None:
        heard.append((event.type, event.object["metadata"]["uid"], event.revision))

    mirror.subscribe(note)
    return heard


def test_a_watch_repeats_what_a_list_or_a_write_has_told() -> None:
    mirror = Mirror(["pods"])
    heard = told(mirror)
    mirror.replace("pods", [pod("a", "1", 5)], 7)
    mirror.receive("pods", "DELETED", pod("b", "0", 6))
    mirror.receive("pods", "ADDED", pod("a", "1", 5))
    mirror.put("pods", pod("a", "1", 9))
    mirror.receive("pods", "MODIFIED", pod("a", "1", 8))
    mirror.receive("pods", "MODIFIED", pod("a", "1", 9))
    assert heard == [("ADDED", "1", 5), ("MODIFIED", "1", 9)]


def test_an_answered_deletion_is_not_undone_by_older_news() -> None:
    mirror = Mirror(["pods"])
    heard = told(mirror)
    mirror.put("pods", pod("a", "1", 5))
    mirror.forget("pods", pod("a", "1", 5))
    mirror.receive("pods", "MODIFIED", pod("a", "1", 6))
    assert mirror.list("pods") == []
    mirror.receive("pods", "DELETED", pod("a", "1", 7))
    mirror.receive("pods", "ADDED", pod("a", "2", 8))
    assert heard == [("ADDED", "1", 5), ("DELETED", "1", 5), ("ADDED", "2", 8)]


def test_a_list_tells_what_no_watch_told() -> None:
    mirror = Mirror(["pods"])
    mirror.put("pods", pod("a", "1", 5))
    mirror.put("pods", pod("b", "2", 6))
    heard = told(mirror)
    mirror.replace("pods", [pod("a", "3", 8)], 9)
    assert heard == [("DELETED", "2", 9), ("DELETED", "1", 8), ("ADDED", "3", 8)]


def test_a_subscriber_that_writes_is_told_in_order() -> None:
    mirror = Mirror(["pods"])
    heard = []

    def write(event: Event) -> None:
        if event.revision == 5:
            mirror.put("pods", pod("b", "2", 6))

    mirror.subscribe(write, "pods")
    mirror.subscribe(lambda event: heard.append(event.revision), "pods")
    mirror.put("pods", pod("a", "1", 5))
    assert heard == [5, 6]


# --- the relay ------------------------------------------------------------------------------------


def test_the_relay_passes_bytes_and_resets_where_nobody_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(DEADLINE_S)
        relay = Relay(socket.socket, server.getsockname())
        relay.open()
        try:
            near = socket.create_connection(("127.0.0.1", relay.port), DEADLINE_S)
            far, _ = server.accept()
            far.settimeout(DEADLINE_S)
            with near, far:
                near.sendall(b"there")
                assert far.recv(10) == b"there"
                far.sendall(b"back")
                assert near.recv(10) == b"back"
            server.close()
            with socket.create_connection(("127.0.0.1", relay.port), DEADLINE_S) as lost:
                try:
                    assert lost.recv(10) == b""
                except ConnectionResetError:
                    pass
        finally:
            relay.close()
