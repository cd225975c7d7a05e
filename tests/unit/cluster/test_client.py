import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import Client, FencedError, RefusedError, connect
from kube_router_py.cluster.credentials import Credentials
from kube_router_py.cluster.objects import Service
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.errors import ApiError, ConfigurationError

PKI = Path(__file__).parent / "pki"

Connect = Callable[..., Client]


@pytest.fixture
def connect_to() -> Iterator[Connect]:
    made: list[Client] = []

    def make(
        master: str = "", kubeconfig: str = "", account: object = "/nonexistent", **environ: str
    ) -> Client:
        options = SimpleNamespace(master=master, kubeconfig=str(kubeconfig))
        client = connect(options, environ, service_account=str(account))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A ServiceAccount as a pod has it."""
    directory = tmp_path / "account"
    directory.mkdir()
    (directory / "token").write_text("first\n")
    (directory / "ca.crt").write_bytes((PKI / "ca.crt").read_bytes())
    return directory


@pytest.fixture
def tls_api(new_api: Any) -> Any:
    """A server that wants TLS, and takes client certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PKI / "server.crt", PKI / "server.key")
    context.load_verify_locations(PKI / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    api = new_api()
    api.start(context)
    return api


def kubeconfig(path: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "test", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def accept_only(token: str) -> Callable[[Any, Any], bool]:
    def check(handler: Any, request: Any) -> bool:
        if request.headers.get("Authorization", "").lower() == f"bearer {token}":
            return False
        handler.reply(401, handler.status(401, "Unauthorized"))
        return True

    return check


# --- addresses ------------------------------------------------------------------------------------


def addresses(master: str = "", kubeconfig: str = "", account: str = "", **env: str) -> Any:
    options = SimpleNamespace(master=master, kubeconfig=kubeconfig)
    return Credentials(options, env, account).addresses


def test_master_addresses_in_turn(account: Path) -> None:
    found = addresses("https://192.0.2.1:6443/, 192.0.2.2:6443,fd00::1", account=str(account))
    assert found == ("https://192.0.2.1:6443", "https://192.0.2.2:6443", "https://[fd00::1]")


def test_without_flags_the_environment_tells(account: Path) -> None:
    def found(host: str) -> Any:
        env = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"}
        return addresses(account=str(account), **env)

    assert found("192.0.2.1") == ("https://192.0.2.1:6443",)
    assert found("192.0.2.1, fd00::1") == ("https://192.0.2.1:6443", "https://[fd00::1]:6443")
    assert found("[fd00::1],api.example") == ("https://[fd00::1]:6443", "https://api.example:6443")


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("https://192.0.2.1", "6443", "KUBERNETES_SERVICE_HOST"),
        ("192.0.2.1:6443", "6443", "KUBERNETES_SERVICE_HOST"),
        ("192.0.2.1/path", "6443", "KUBERNETES_SERVICE_HOST"),
        ("192.0.2.1 192.0.2.2", "6443", "KUBERNETES_SERVICE_HOST"),
        ("192.0.2.1", "https", "KUBERNETES_SERVICE_PORT"),
        ("192.0.2.1", "65536", "KUBERNETES_SERVICE_PORT"),
    ],
)
def test_an_environment_that_makes_no_address_is_refused(
    account: Path, host: str, port: str, named: str
) -> None:
    env = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    with pytest.raises(ConfigurationError, match=f"{named}.*write"):
        addresses(account=str(account), **env)


@pytest.mark.parametrize("server", ["", "192.0.2.1:6443", "ftp://192.0.2.1"])
def test_a_kubeconfig_without_a_usable_server_is_refused(server: str, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", server, {"token": "t"})
    with pytest.raises(ConfigurationError, match="server of the current context"):
        addresses(kubeconfig=str(path))


def test_master_alone_replaces_the_host_of_the_environment(account: Path) -> None:
    env = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    assert addresses("https://192.0.2.1", account=str(account), **env) == ("https://192.0.2.1",)


def test_the_kubeconfig_comes_first(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "https://192.0.2.9:6443/", {"token": "t"})
    found = addresses("https://192.0.2.1,https://192.0.2.9:6443", str(path))
    assert found == ("https://192.0.2.9:6443", "https://192.0.2.1")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "--kubeconfig or --master"),
        ({"KUBERNETES_SERVICE_HOST": "192.0.2.1"}, "KUBERNETES_SERVICE_PORT"),
        ({"KUBERNETES_SERVICE_HOST": "", "KUBERNETES_SERVICE_PORT": "6443"}, "api-host"),
        ({"master": "https://192.0.2.1"}, "/nonexistent/token"),
        ({"master": "ftp://192.0.2.1"}, "--master"),
        ({"master": "https://192.0.2.1:port"}, "--master"),
        ({"master": "https://"}, "--master"),
        ({"kubeconfig": "/nonexistent/config"}, "--kubeconfig /nonexistent/config"),
    ],
)
def test_what_does_not_add_up_is_refused_with_a_remedy(options: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named.replace("/", "\\/")):
        addresses(account="/nonexistent", **options)


@pytest.mark.parametrize("content", ["", "{", "clusters: 5", "kind: Config\ncurrent-context: x"])
def test_a_broken_kubeconfig_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="--kubeconfig"):
        addresses(kubeconfig=str(path))


# --- requests -------------------------------------------------------------------------------------


def test_requests_carry_method_query_and_body(api: Any, connect_to: Connect) -> None:
    client = connect_to(api.url)
    patch = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    client.patch("/api/v1/namespaces/ns/services/a/status", patch)
    client.post("/api/v1/namespaces/ns/events", {"kind": "Event"}, {"fieldManager": "a b"})
    client.put("/apis/coordination.k8s.io/v1/namespaces/ns/leases/x", {"kind": "Lease"})
    seen = [(r.method, r.path, r.headers["Content-Type"], json.loads(r.body)) for r in api.requests]
    assert seen == [
        (
            "PATCH",
            "/api/v1/namespaces/ns/services/a/status",
            "application/merge-patch+json",
            patch,
        ),
        ("POST", "/api/v1/namespaces/ns/events", "application/json", {"kind": "Event"}),
        (
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/ns/leases/x",
            "application/json",
            {"kind": "Lease"},
        ),
    ]
    assert api.requests[1].query == {"fieldManager": "a b"}
    assert api.requests[0].headers["User-Agent"].startswith("kube-router-py/")


def test_a_refusal_says_what_the_server_said(api: Any, connect_to: Connect) -> None:
    body = b'{"kind":"Status","code":403,"reason":"Forbidden","message":"not you"}'
    api.faults.append(api.answer(403, body, Retry_After="7"))
    with pytest.raises(RefusedError, match="HTTP 403: not you") as raised:
        connect_to(api.url).get("/api/v1/services")
    assert (raised.value.status, raised.value.reason) == (403, "Forbidden")
    assert raised.value.retry_after_s == 7


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message":5}', b"x" * 1_000_000])
def test_a_refusal_without_a_status_is_one_all_the_same(
    body: bytes, api: Any, connect_to: Connect
) -> None:
    api.faults.append(api.answer(500, body, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"))
    with pytest.raises(RefusedError) as raised:
        connect_to(api.url).get("/api/v1/services")
    assert (raised.value.status, raised.value.reason) == (500, "")


def test_a_redirect_is_not_followed(api: Any, connect_to: Connect) -> None:
    api.faults.append(api.answer(302, b"", Location="http://192.0.2.1/"))
    with pytest.raises(RefusedError, match="302"):
        connect_to(api.url).get("/api/v1/services")


# --- several servers ------------------------------------------------------------------------------


@pytest.fixture
def absent(free_port: Callable[[], int]) -> str:
    """An address on which nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def test_servers_are_tried_in_turn_and_the_good_one_kept(
    api: Any, absent: str, connect_to: Connect
) -> None:
    client = connect_to(f"{absent},{api.url}")
    assert client.address == absent
    client.get("/api/v1/services")
    assert client.address == api.url
    client.post("/api/v1/namespaces/ns/events", {})


def test_no_server_at_all_is_one_error_with_all_reasons(absent: str, connect_to: Connect) -> None:
    other = absent.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(ApiError) as raised:
        connect_to(f"{absent},{other}").get("/api/v1/services")
    assert raised.value.status == 0
    assert absent in str(raised.value)
    assert other in str(raised.value)


def test_whoever_looks_on_is_told_of_each_request(
    api: Any, absent: str, connect_to: Connect
) -> None:
    seen: list[tuple[str, str]] = []

    def observe(method: str, code: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        seen.append((method, code))

    client = connect_to(api.url)
    client.observe = observe
    client.get("/api/v1/services")
    client.post("/api/v1/namespaces/ns/events", {})
    api.faults.append(api.answer(409, b""))
    with pytest.raises(RefusedError):
        client.put("/api/v1/namespaces/ns/services/a", {})
    nobody = connect_to(absent)
    nobody.observe = observe
    with pytest.raises(ApiError):
        nobody.get("/api/v1/services")
    assert seen == [("GET", "200"), ("POST", "200"), ("PUT", "409"), ("GET", "none")]


def test_a_gateway_error_leads_to_the_next_server_for_reads_only(
    api: Any, new_api: Any, connect_to: Connect
) -> None:
    other = new_api()
    other.start()
    client = connect_to(f"{api.url},{other.url}")
    api.faults.append(api.answer(503))
    with pytest.raises(RefusedError, match="503"):
        client.post("/api/v1/namespaces/ns/events", {})
    api.faults.append(api.answer(503))
    client.get("/api/v1/services")
    assert client.address == other.url


def test_servers_that_all_refuse_are_not_told_as_a_change_each_time(
    api: Any, new_api: Any, connect_to: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_api()
    other.start()
    client = connect_to(f"{api.url},{other.url}")
    for _ in range(2):
        api.faults.append(api.answer(503))
        other.faults.append(other.answer(503))
        with pytest.raises(RefusedError, match="503"):
            client.get("/api/v1/services")
    assert client.address == api.url
    assert "API server changed" not in caplog.text


def test_a_write_that_may_have_arrived_is_not_sent_twice(
    api: Any, new_api: Any, connect_to: Connect
) -> None:
    other = new_api()
    other.start()

    def vanish(handler: Any, request: Any) -> bool:
        handler.drop()
        return True

    client = connect_to(f"{api.url},{other.url}")
    api.faults.append(vanish)
    with pytest.raises(ApiError, match="no API server answers"):
        client.post("/api/v1/namespaces/ns/events", {})
    assert other.requests == []


def test_a_request_with_a_limit_gives_up_in_time_whatever_the_server_does(
    api: Any, connect_to: Connect
) -> None:
    release = threading.Event()

    def hang(handler: Any, request: Any) -> bool:
        release.wait(60)
        handler.drop()
        return True

    client = connect_to(api.url)
    api.intercept = hang
    for ask in (client.patch, client.post):
        with pytest.raises(ApiError, match="no API server answers"):
            ask("/api/v1/namespaces/ns/events", {}, timeout_s=0.2)
    with pytest.raises(ApiError, match="no API server answers"):
        client.list("/api/v1/services", timeout_s=0.2)
    with pytest.raises(ApiError, match="no time is left"):
        client.list("/api/v1/services", timeout_s=0)
    api.intercept = None
    release.set()
    client.list("/api/v1/services", timeout_s=30)


def test_a_write_is_let_go_only_while_the_fence_says_so(api: Any, connect_to: Connect) -> None:
    client = connect_to(api.url)
    path, body = "/api/v1/namespaces/ns/services/a/status", {"status": {"a": "b" * 5000}}
    client.patch(path, body, timeout_s=30, fence=lambda: True)
    with pytest.raises(FencedError):
        client.patch(path, body, timeout_s=30, fence=lambda: False)
    client.patch(path, {}, fence=lambda: True)
    # A server sees the beginning of what is not sent, and never all of it.
    assert [json.loads(each.body) for each in api.requests if each.body] == [body, {}]


# --- credentials ----------------------------------------------------------------------------------


def test_a_rotated_service_account_token_is_picked_up(
    api: Any, account: Path, connect_to: Connect
) -> None:
    client = connect_to(api.url, account=account)
    api.intercept = accept_only("first")
    client.get("/api/v1/services")
    (account / "token").write_text("second")
    api.intercept = accept_only("second")
    client.get("/api/v1/services")
    assert [r.headers["Authorization"][7:] for r in api.requests] == ["first", "first", "second"]
    assert api.requests[-1].path == "/api/v1/services"


def test_a_rotated_token_file_of_a_kubeconfig_is_picked_up(
    api: Any, tmp_path: Path, connect_to: Connect
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    client = connect_to(
        kubeconfig=kubeconfig(tmp_path / "config", api.url, {"tokenFile": str(token)})
    )
    api.intercept = accept_only("first")
    client.get("/api/v1/services")
    token.write_text("second")
    api.intercept = accept_only("second")
    client.get("/api/v1/services")


def test_a_token_that_is_refused_for_good_is_an_error_after_one_more_try(
    api: Any, account: Path
) -> None:
    options = SimpleNamespace(master=api.url, kubeconfig="")
    client = Client(Credentials(options, {}, str(account)), clock=lambda: 0.0)
    api.intercept = accept_only("other")
    with pytest.raises(RefusedError, match="401"):
        client.get("/api/v1/services")
    assert len(api.requests) == 2
    with pytest.raises(RefusedError, match="401"):
        client.get("/api/v1/services")
    assert len(api.requests) == 3  # the credentials were read a moment ago
    client.close()


def test_vanished_credentials_are_an_error_and_nothing_else(
    api: Any, account: Path, connect_to: Connect
) -> None:
    client = connect_to(api.url, account=account)
    (account / "token").write_text("")
    api.intercept = accept_only("second")
    with pytest.raises(RefusedError, match="401"):
        client.get("/api/v1/services")


def test_credentials_that_stay_away_are_told_once_and_once_more_after_a_recovery(
    api: Any, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = SimpleNamespace(master=api.url, kubeconfig="")
    now = [0.0]
    client = Client(Credentials(options, {}, str(account)), clock=lambda: now[0])
    token = (account / "token").read_text()

    def ask(token: str) -> None:
        (account / "token").write_text(token)
        now[0] += 60
        with pytest.raises(RefusedError, match="401"):
            client.get("/api/v1/services")

    api.intercept = accept_only("second")
    for content, lines in (("", 1), ("", 1), (token, 1), ("", 2)):
        ask(content)
        assert caplog.text.count("credentials not renewed") == lines
    client.close()


def test_the_token_goes_to_every_address_and_the_host_stays(
    api: Any, absent: str, account: Path, connect_to: Connect
) -> None:
    """The package's refresh hook resets the host of the configuration that it is given."""
    client = connect_to(f"{absent},{api.url}", account=account)
    api.intercept = accept_only("first")
    for _ in range(3):
        client.get("/api/v1/services")


def test_an_exec_plugin_provides_tokens_and_is_asked_again(
    api: Any, tmp_path: Path, connect_to: Connect
) -> None:
    counter = tmp_path / "counter"
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f"#!/bin/sh\necho x >> {counter}\n"
        'echo "{\\"apiVersion\\":\\"client.authentication.k8s.io/v1\\",'
        '\\"kind\\":\\"ExecCredential\\",\\"status\\":{'
        '\\"expirationTimestamp\\":\\"2020-01-01T00:00:00Z\\",'
        f'\\"token\\":\\"token-$(wc -l < {counter})\\"}}}}"\n'
    )
    plugin.chmod(0o755)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    client = connect_to(kubeconfig=kubeconfig(tmp_path / "config", api.url, user))
    client.get("/api/v1/services")
    client.get("/api/v1/services")
    tokens = [r.headers["Authorization"] for r in api.requests]
    assert tokens[0] != tokens[1]
    assert all(token.startswith("Bearer token-") for token in tokens)


def test_a_plugin_that_hangs_is_given_up(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    plugin.write_text(f"#!/bin/sh\nread line < {fifo}\nexit 1\n")
    plugin.chmod(0o755)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)},
    }
    monkeypatch.setattr("kube_router_py.cluster.credentials._PLUGIN_TIMEOUT_S", 0.2)
    path = kubeconfig(tmp_path / "config", api.url, user)
    with pytest.raises(ConfigurationError, match="did not end within"):
        addresses(kubeconfig=str(path))
    with fifo.open("w") as release:
        release.write("go\n")


def test_beside_a_plugin_that_hangs_no_other_is_started(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, starts, hangs = tmp_path / "plugin", tmp_path / "starts", tmp_path / "hangs"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    said = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "token"},
    }
    plugin.write_text(
        f"#!/bin/sh\necho >> {starts}\n"
        f"if [ -e {hangs} ]; then read line < {fifo}; fi\necho '{json.dumps(said)}'\n"
    )
    plugin.chmod(0o755)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)},
    }
    path = kubeconfig(tmp_path / "config", api.url, user)
    credentials = Credentials(SimpleNamespace(master="", kubeconfig=str(path)), {})
    (configuration,) = credentials.configurations()
    before = len(starts.read_text())
    hangs.touch()
    with monkeypatch.context() as patched:
        patched.setattr("kube_router_py.cluster.credentials._PLUGIN_TIMEOUT_S", 0.2)
        with pytest.raises(ApiError, match="did not end within"):
            credentials.reload()
    with pytest.raises(ApiError, match="waits for a plugin that hangs"):
        credentials.reload()
    # The token of before is used on: the server may still take it.
    configuration.refresh_api_key_hook(configuration)
    assert set(configuration.api_key.values()) == {"Bearer token"}
    with fifo.open("w") as release:  # waits until it is read
        hangs.unlink()
        release.write("go\n")
    for thread in threading.enumerate():
        if thread.name == "credentials":
            thread.join(60)
    credentials.reload()
    assert len(starts.read_text()) == before + 2


def test_a_client_certificate_and_the_authority_of_a_kubeconfig(
    tls_api: Any, tmp_path: Path, connect_to: Connect
) -> None:
    def data(name: str) -> str:
        return base64.b64encode((PKI / name).read_bytes()).decode()

    seen = []

    def look(handler: Any, request: Any) -> bool:
        seen.append(handler.connection.getpeercert())
        return False

    tls_api.intercept = look
    user = {"client-certificate-data": data("client.crt"), "client-key-data": data("client.key")}
    path = kubeconfig(
        tmp_path / "c", tls_api.url, user, **{"certificate-authority-data": data("ca.crt")}
    )
    connect_to(kubeconfig=path).get("/api/v1/services")
    assert seen[0]["subject"] == ((("commonName", "test-client"),),)


def test_a_server_of_another_authority_is_refused(
    tls_api: Any, account: Path, connect_to: Connect
) -> None:
    # A certificate that signed nothing: the client's own.
    (account / "ca.crt").write_bytes((PKI / "client.crt").read_bytes())
    with pytest.raises(ApiError, match="certificate verify failed"):
        connect_to(tls_api.url, account=account).get("/api/v1/services")


def test_a_blocked_watch_over_tls_stops_at_once(
    tls_api: Any, account: Path, connect_to: Connect, until: Any
) -> None:
    cache = Cache([Service])
    client = connect_to(tls_api.url, account=account)
    reflector = Reflector(client, cache, Service)
    reflector.start()
    until(lambda: tls_api.watching["Service"] and cache.is_synced())
    tls_api.put("Service", "ns/a")
    until(lambda: cache.get(Service, "ns/a"))
    assert reflector.stop(30)
    assert {r.headers["Authorization"] for r in tls_api.requests} == {"bearer first"}


def test_the_kubernetes_package_is_imported_only_when_connecting() -> None:
    code = (
        "import sys, kube_router_py.cluster.reflector, kube_router_py.cluster.client;"
        "print('kubernetes' in sys.modules, 'urllib3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["False", "False"]


def test_lines_of_a_watch_come_whole_or_not_at_all(api: Any, connect_to: Connect) -> None:
    client = connect_to(api.url)
    api.faults.append(api.answer(200, b'{"a":1}\n\n{"b":2}\n{"c":'))
    stream = client.watch("/api/v1/services", {}, idle_timeout_s=30)
    lines = stream.lines()
    assert [next(lines), next(lines)] == [b'{"a":1}', b'{"b":2}']
    with pytest.raises(ApiError, match="middle of a line"):
        next(lines)
    stream.close()
    stream.stop()  # nobody is blocked any more: nothing happens


def test_a_line_without_end_is_given_up(
    api: Any, connect_to: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kube_router_py.cluster.client._LONGEST_LINE", 100_000)
    api.faults.append(api.answer(200, b"x" * 300_000))
    stream = connect_to(api.url).watch("/api/v1/services", idle_timeout_s=30)
    with pytest.raises(ApiError, match="longer than"):
        list(stream.lines())
    stream.close()


def test_an_answer_that_trickles_for_ever_is_given_up(api: Any) -> None:
    now = iter(range(0, 10_000, 100))
    options = SimpleNamespace(master=api.url, kubeconfig="")
    credentials = Credentials(options, {}, "/nonexistent")
    client = Client(credentials, clock=lambda: float(next(now)))
    api.faults.append(api.answer(200, b"x" * 300_000))
    with pytest.raises(ApiError, match="took longer than"):
        client.get("/api/v1/services")
    client.close()
