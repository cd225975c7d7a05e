"""The server over HTTPS: authentication, watches, chunks, and how it fails on purpose."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab.apiserver.server import ApiServer
from kube_router_py.lab.apiserver.targets import target_of

Cluster = Any  # conftest.Cluster, which importlib mode does not let tests import
PODS = "/api/v1/namespaces/default/pods"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


class Client:
    """One connection per request, as simple as HTTP gets."""

    def __init__(self, cluster: Cluster, token: str = "") -> None:
        self.cluster = cluster
        self.token = token or cluster.server.tokens.admin
        self.tls = ssl.create_default_context(cafile=str(cluster.server.certificates.ca))

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.cluster.port, context=self.tls, timeout=60
        )
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            connection.request(method, path, data, {**sent, **(headers or {})})
            with connection.getresponse() as response:
                yield response

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        with self.open(method, path, body, headers) as response:
            return response.status, json.loads(response.read())

    def get(self, path: str) -> Any:
        code, answer = self.ask("GET", path)
        assert code == 200, answer
        return answer


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return Client(cluster)


def config(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": data}, "data": data}


def event(stream: http.client.HTTPResponse) -> tuple[str, Any]:
    line = json.loads(stream.readline())
    return line["type"], line["object"]


def names(items: Any) -> list[str]:
    return [item["metadata"]["name"] for item in items]


def test_a_fresh_cluster(client: Client) -> None:
    service = client.get("/api/v1/namespaces/default/services/kubernetes")
    assert service["spec"]["clusterIP"] == "10.96.0.1"
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    (slice_,) = client.get(slices)["items"]
    assert slice_["metadata"]["labels"] == {"kubernetes.io/service-name": "kubernetes"}
    assert slice_["endpoints"][0]["addresses"] == ["127.0.0.1"]
    assert slice_["ports"][0]["port"] == client.cluster.port
    assert {"default", "kube-system"} <= set(names(client.get("/api/v1/namespaces")["items"]))


def test_who_may_ask(cluster: Cluster, client: Client) -> None:
    assert Client(cluster, "wrong").ask("GET", PODS)[0] == 401
    with Client(cluster, "wrong").open("GET", "/readyz") as response:
        assert (response.status, response.read()) == (200, b"ok")
    token = cluster.call(cluster.server.issue_token, "default", "agent")
    agent = Client(cluster, token)
    code, answer = agent.ask("GET", "/api/v1/pods")
    assert (code, answer["reason"]) == (403, "Forbidden")
    assert answer["message"] == (
        'pods is forbidden: User "system:serviceaccount:default:agent" cannot list resource '
        '"pods" in API group "" at the cluster scope'
    )
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"], "resourceNames": ["n1"]},
    ]
    reference = {"kind": "ClusterRole", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": "default"}
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    made = {"metadata": {"name": "reader"}, "rules": rules}
    assert client.ask("POST", f"{rbac}/clusterroles", made)[0] == 201
    binding = {"metadata": {"name": "r"}, "roleRef": reference, "subjects": [subject]}
    assert client.ask("POST", f"{rbac}/clusterrolebindings", binding)[0] == 201
    assert agent.ask("GET", "/api/v1/pods")[0] == 200
    assert agent.ask("POST", PODS, {})[0] == 403
    assert agent.ask("GET", "/api/v1/nodes/n1")[0] == 404, "allowed, and not there"
    assert agent.ask("GET", "/api/v1/nodes/n2")[0] == 403
    assert agent.ask("PATCH", "/api/v1/nodes/n2", {})[0] == 403
    assert agent.ask("GET", "/apis")[0] == 200
    assert agent.ask("GET", "/metrics")[0] == 403
    cluster.call(cluster.server.tokens.revoke, token)
    assert agent.ask("GET", "/api/v1/pods")[0] == 401


def test_a_role_binding_reaches_its_namespace_only(cluster: Cluster, client: Client) -> None:
    agent = Client(cluster, cluster.call(cluster.server.issue_token, "default", "agent"))
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
    rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    client.ask("POST", f"{rbac}/roles", {"metadata": {"name": "all"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "all"},
        "roleRef": {"kind": "Role", "name": "all"},
        "subjects": [{"kind": "Group", "name": "system:serviceaccounts:default"}],
    }
    client.ask("POST", f"{rbac}/rolebindings", binding)
    assert agent.ask("GET", "/api/v1/namespaces/kube-system/pods")[0] == 200
    assert agent.ask("GET", PODS)[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/apis/batch/v1/jobs", 404),
        ("GET", "/api/v1/widgets", 404),
        ("GET", "/openapi/v2", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/namespaces/default/pods/web/attach", 404),
        ("POST", "/api/v1/namespaces/default/pods/web", 405),
        ("PUT", PODS, 405),
        ("GET", PODS + "/web", 404),
        ("GET", PODS + "/web/log", 501),
        ("GET", PODS + "?fieldSelector=spec.color%3Dred", 400),
        ("GET", PODS + "?limit=many", 400),
        ("GET", PODS + "?continue=x", 400),
        ("GET", PODS + "?resourceVersion=999999", 504),
    ],
)
def test_what_does_not_work(client: Client, method: str, path: str, code: int) -> None:
    got, status = client.ask(method, path)
    assert (got, status["kind"], status["code"]) == (code, "Status", code)


def test_bodies(client: Client) -> None:
    yaml = b"metadata: {name: y}\ndata: {when: 2026-01-01T00:00:00Z}\n"
    code, made = client.ask("POST", CONFIG_MAPS, yaml, {"Content-Type": "application/yaml"})
    assert (code, made["data"]) == (201, {"when": "2026-01-01T00:00:00Z"})
    protobuf = {"Content-Type": "application/vnd.kubernetes.protobuf"}
    code, status = client.ask("POST", CONFIG_MAPS, b"k8s\x00\x0a\x02\x0a\x00", protobuf)
    assert code == 415
    assert "kubectl apply -f -" in status["message"]
    large = config("large", k="x" * (2 << 20))
    del large["metadata"]["labels"]
    assert client.ask("POST", CONFIG_MAPS, large)[0] == 201
    large["data"]["k"] *= 2
    assert client.ask("PUT", f"{CONFIG_MAPS}/large", large)[0] == 413
    assert client.ask("POST", CONFIG_MAPS, b"{")[0] == 400
    assert client.ask("POST", CONFIG_MAPS, b"[]")[0] == 400
    assert client.ask("PATCH", f"{CONFIG_MAPS}/y", {})[0] == 415, "JSON is no kind of patch"
    assert client.ask("PUT", f"{CONFIG_MAPS}/y", config("other"))[0] == 400
    assert client.ask("POST", CONFIG_MAPS, {"kind": "Pod", "metadata": {"name": "p"}})[0] == 400


def test_chunks_are_one_consistent_list(cluster: Cluster, client: Client) -> None:
    for number in range(5):
        client.ask("POST", CONFIG_MAPS, config(f"c{number}"))
    first = client.get(f"{CONFIG_MAPS}?limit=2")
    assert names(first["items"]) == ["c0", "c1"]
    assert first["metadata"]["remainingItemCount"] == 3
    client.ask("DELETE", f"{CONFIG_MAPS}/c2")
    client.ask("POST", CONFIG_MAPS, config("c9"))
    token = first["metadata"]["continue"]
    second = client.get(f"{CONFIG_MAPS}?limit=2&continue={token}")
    assert names(second["items"]) == ["c2", "c3"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    last = client.get(f"{CONFIG_MAPS}?limit=2&continue={second['metadata']['continue']}")
    assert names(last["items"]) == ["c4"]
    assert "continue" not in last["metadata"]
    cluster.call(cluster.store.compact)
    code, status = client.ask("GET", f"{CONFIG_MAPS}?limit=2&continue={token}")
    assert (code, status["reason"]) == (410, "Expired")


def test_a_watch_resumes_and_follows_its_selector(client: Client) -> None:
    client.ask("POST", CONFIG_MAPS, config("a", tier="web"))
    revision = client.get(CONFIG_MAPS)["metadata"]["resourceVersion"]
    client.ask("POST", CONFIG_MAPS, config("b", tier="db"))
    client.ask("PUT", f"{CONFIG_MAPS}/b", config("b", tier="web"))
    client.ask("PUT", f"{CONFIG_MAPS}/a", config("a", tier="db"))
    path = f"{CONFIG_MAPS}?watch=true&resourceVersion={revision}"
    with client.open("GET", path) as stream:
        assert [event(stream)[0] for _ in range(3)] == ["ADDED", "MODIFIED", "MODIFIED"]
    with client.open("GET", f"{path}&labelSelector=tier%3Dweb") as stream:
        assert [(type_, obj["metadata"]["name"]) for type_, obj in (event(stream), event(stream))] \
            == [("ADDED", "b"), ("DELETED", "a")]  # fmt: skip
        client.ask("DELETE", f"{CONFIG_MAPS}/b")
        type_, obj = event(stream)
        assert (type_, obj["metadata"]["name"]) == ("DELETED", "b")
    with client.open("GET", f"/api/v1/pods?watch=true&resourceVersion={revision}") as stream:
        client.ask("POST", CONFIG_MAPS, config("c"))
        pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
        client.ask("POST", PODS, pod)
        assert event(stream)[1]["kind"] == "Pod"


def test_a_watch_starts_with_what_exists(client: Client) -> None:
    client.ask("POST", CONFIG_MAPS, config("a"))
    for start in ("", "&resourceVersion=0"):
        with client.open("GET", f"{CONFIG_MAPS}?watch=1{start}") as stream:
            type_, obj = event(stream)
            assert (type_, obj["metadata"]["name"]) == ("ADDED", "a")
    path = (
        f"{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        "&allowWatchBookmarks=true"
    )
    with client.open("GET", path) as stream:
        assert event(stream)[0] == "ADDED"
        type_, obj = event(stream)
        assert type_ == "BOOKMARK"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_bookmarks_on_demand_tell_the_current_revision(cluster: Cluster, client: Client) -> None:
    revision = client.get(PODS)["metadata"]["resourceVersion"]
    path = f"{PODS}?watch=1&resourceVersion={revision}"
    with (
        client.open("GET", f"{path}&allowWatchBookmarks=true") as stream,
        client.open("GET", path) as plain,
    ):
        client.ask("POST", CONFIG_MAPS, config("a"))
        current = cluster.store.revision
        cluster.call(cluster.server.push_bookmarks)
        type_, obj = event(stream)
        assert (type_, obj["metadata"]["resourceVersion"]) == ("BOOKMARK", str(current))
        assert obj["kind"] == "Pod"
        cluster.call(cluster.server.end_watches)
        assert plain.read() == b"", "who did not ask for bookmarks gets none"


def test_a_watch_ends_after_its_timeout_with_a_bookmark(
    cluster: Cluster, client: Client, until: Any
) -> None:
    revision = client.get(PODS)["metadata"]["resourceVersion"]
    path = f"{PODS}?watch=1&resourceVersion={revision}&timeoutSeconds=1&allowWatchBookmarks=1"
    with client.open("GET", path) as stream:
        (line,) = stream.read().splitlines()
    assert json.loads(line)["type"] == "BOOKMARK"
    until(lambda: cluster.server.open_watches() == 0, "the server forgets the stream")


def test_watches_are_counted_while_others_begin(cluster: Cluster) -> None:
    class Stream:
        """One during whose count another one begins."""

        @property
        def resource(self) -> Any:
            cluster.server._streams.add(Stream())  # type: ignore[arg-type]
            return target_of(PODS).resource  # type: ignore[union-attr]

    cluster.server._streams.add(Stream())  # type: ignore[arg-type]
    assert [cluster.server.open_watches("pods") for _ in range(3)] == [1, 2, 4]


def test_a_compacted_revision_is_gone(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    revision = client.get(CONFIG_MAPS)["metadata"]["resourceVersion"]
    client.ask("POST", CONFIG_MAPS, config("a"))
    cluster.call(cluster.store.compact)
    path = f"{CONFIG_MAPS}?watch=1&resourceVersion={revision}"
    with client.open("GET", path) as stream:
        type_, status = event(stream)
        assert (stream.status, type_, status["code"]) == (200, "ERROR", 410)
        assert status["message"].startswith("too old resource version")
        assert stream.read() == b"", "the stream ends"
    cluster.server.expired_watch_is_http = True
    assert client.ask("GET", path)[0] == 410
    now = client.get(CONFIG_MAPS)["metadata"]["resourceVersion"]
    with client.open("GET", f"{CONFIG_MAPS}?watch=1&resourceVersion={now}") as stream:
        client.ask("POST", CONFIG_MAPS, config("b"))
        assert event(stream)[0] == "ADDED"


def test_bad_objects_and_garbage_reach_watchers_on_request(
    cluster: Cluster, client: Client, until: Any
) -> None:
    services = "/api/v1/namespaces/default/services"
    bad = {"metadata": {"name": "bad"}, "spec": {"ports": [{"port": 99999}], "clusterIP": 7}}
    code, status = client.ask("POST", services, bad)
    assert code == 422
    assert "spec.ports[0].port: Invalid value: 99999" in status["message"]
    revision = client.get(services)["metadata"]["resourceVersion"]
    with client.open("GET", f"{services}?watch=1&resourceVersion={revision}") as stream:
        until(cluster.server.open_watches, "the watch is open")
        assert client.ask("POST", f"{services}?labValidation=off", bad)[0] == 201
        assert event(stream)[1]["spec"] == bad["spec"]
        assert cluster.call(cluster.server.inject_watch_line, "services", b'{"type": "ADD') == 1
        assert stream.readline() == b'{"type": "ADD\n'
        header = {"X-Lab-Validation": "off"}
        worse = {"metadata": {"name": "bad"}, "spec": None}
        assert client.ask("PUT", f"{services}/bad", worse, header)[0] == 200
        assert event(stream)[1]["spec"] is None
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    code, shown = client.ask("GET", services, headers=table)
    assert code == 200
    assert [row["cells"][0] for row in shown["rows"]] == ["bad", "kubernetes"]
    assert client.ask("DELETE", f"{services}/bad")[0] == 200


def test_a_stopped_server_resets_refuses_and_comes_back(cluster: Cluster, client: Client) -> None:
    client.ask("POST", CONFIG_MAPS, config("a"))
    revision = client.get(CONFIG_MAPS)["metadata"]["resourceVersion"]
    path = f"{CONFIG_MAPS}?watch=1&resourceVersion={revision}"
    with client.open("GET", path) as stream:
        ended = threading.Event()

        def read_on() -> None:
            try:
                stream.read()
            except (OSError, http.client.HTTPException):
                ended.set()

        reader = threading.Thread(target=read_on)
        reader.start()
        cluster.stop()
        reader.join(60)
        assert ended.is_set(), "an open watch breaks"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", cluster.port), timeout=10)
    cluster.call(cluster.store.create, "configmaps", config("b"), namespace="default")
    cluster.start(compact=True)
    assert names(client.get(CONFIG_MAPS)["items"]) == ["a", "b"]
    with client.open("GET", path) as again:
        assert event(again)[0] == "ERROR"


def test_tables(client: Client) -> None:
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    _, shown = client.ask("GET", "/api/v1/services", headers=table)
    assert shown["kind"] == "Table"
    assert [c["name"] for c in shown["columnDefinitions"] if not c["priority"]] == [
        "Name",
        "Type",
        "Cluster-IP",
        "External-IP",
        "Port(s)",
        "Age",
    ]
    (row,) = shown["rows"]
    assert row["cells"][:5] == ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    with client.open("GET", "/api/v1/services?watch=1", headers=table) as stream:
        type_, shown = event(stream)
        assert (type_, shown["kind"], len(shown["rows"])) == ("ADDED", "Table", 1)


def test_events_have_two_views(client: Client) -> None:
    given = {
        "metadata": {"name": "e"},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "note": "hello",
        "reason": "Tested",
        "reportingController": "test",
    }
    new = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert client.ask("POST", new, given)[0] == 201
    core = client.get("/api/v1/namespaces/default/events/e")
    assert (core["apiVersion"], core["message"]) == ("v1", "hello")
    assert core["involvedObject"]["name"] == "p"
    found = client.get("/api/v1/events?fieldSelector=involvedObject.name%3Dp")["items"]
    assert names(found) == ["e"]
    assert client.get(f"{new}/e")["note"] == "hello"


def test_delete_collection_and_dry_run(client: Client) -> None:
    for name, tier in (("a", "x"), ("b", "y")):
        client.ask("POST", CONFIG_MAPS, config(name, tier=tier))
    assert client.ask("DELETE", f"{CONFIG_MAPS}?labelSelector=tier%3Dx&dryRun=All")[0] == 200
    assert names(client.get(CONFIG_MAPS)["items"]) == ["a", "b"]
    assert client.ask("DELETE", f"{CONFIG_MAPS}?labelSelector=tier%3Dx")[0] == 200
    assert names(client.get(CONFIG_MAPS)["items"]) == ["b"]
    assert client.ask("POST", f"{CONFIG_MAPS}?dryRun=All", config("c"))[0] == 201
    assert names(client.get(CONFIG_MAPS)["items"]) == ["b"]


def test_requests_are_counted(cluster: Cluster, client: Client) -> None:
    before = cluster.server.requests.get("list pods", 0)
    client.get(PODS)
    assert cluster.server.requests["list pods"] == before + 1


def test_ipv6_only(tmp_path: Path) -> None:
    from kube_router_py.lab.apiserver.store import Store

    store = Store(("fd00:96::/112",))
    ApiServer(store, tmp_path, ["fd00::1"], 6443)
    service = store.get("services", "kubernetes", "default")
    assert service["spec"]["clusterIPs"] == ["fd00:96::1"]
    (slice_,) = store.list("endpointslices")
    assert slice_["addressType"] == "IPv6"
