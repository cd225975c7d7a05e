"""Logs, the HTTP server of the probes, what they answer, and telling systemd."""

import contextlib
import gzip
import io
import json
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Node, ObjectMeta, Service
from kube_router_py.errors import ConfigurationError
from kube_router_py.loop_model import LoopStatus
from kube_router_py.observe import log, log_targets
from kube_router_py.observe import serve as serve_module
from kube_router_py.observe.health import Health
from kube_router_py.observe.serve import Answer, HttpServer
from kube_router_py.observe.supervisor import notify
from kube_router_py.problem import Problem


def record(level, message, *arguments, name="kube_router_py.proxy.controller", error=None):
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord(name, level, "file.py", 1, message, arguments, info)


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)],
)
def test_a_line_for_the_journal_begins_with_its_priority(level, number):
    line = log.LineFormatter(prefix=log.Prefix.PRIORITY, tracebacks=False).format(
        record(level, "a=%s", 1)
    )
    assert line == f"<{number}>{logging.getLevelName(level)} proxy: a=1"


def test_elsewhere_a_line_begins_with_its_time():
    line = log.LineFormatter(prefix=log.Prefix.TIME, tracebacks=False).format(
        record(logging.INFO, "it")
    )
    stamp, rest = line.split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == "INFO proxy: it"


def raised():
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        return error


def test_an_event_is_one_line_even_with_an_exception():
    error = raised()
    line = log.LineFormatter(prefix=log.Prefix.PRIORITY, tracebacks=False).format(
        record(logging.ERROR, "failed error=%s", error, error=error)
    )
    assert "\n" not in line
    assert "test_observe.py" in line
    assert "raised" in line


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\u2069", "\u200f", "\u061c"])
def test_what_strangers_write_is_shown_in_the_order_in_which_it_is_written(mark):
    assert log.harmless(f"a{mark}b") == f"a\\u{ord(mark):04x}b"


def test_what_strangers_write_can_neither_forge_a_line_nor_move_the_cursor():
    evil = "web\n<0>CRITICAL all: is lost\r\x1b[2J\x9b1m\x00\u2028next"
    line = log.LineFormatter(prefix=log.Prefix.PRIORITY, tracebacks=True).format(
        record(logging.WARNING, "problem %s", evil)
    )
    assert line.isprintable()
    assert line.splitlines() == [line]
    assert "web <0>CRITICAL" in line
    assert "\\x1b[2J" in line


def test_every_line_of_a_traceback_carries_the_priority():
    text = log.LineFormatter(prefix=log.Prefix.PRIORITY, tracebacks=True).format(
        record(logging.ERROR, "failed", error=raised())
    )
    lines = text.split("\n")
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_the_journal_is_recognised_by_what_stderr_is(tmp_path):
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        there = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert log_targets.is_journal(stream, there)
        assert not log_targets.is_journal(stream, {"JOURNAL_STREAM": "1:2"})
        assert not log_targets.is_journal(stream, {"JOURNAL_STREAM": "nonsense"})
        assert not log_targets.is_journal(stream, {})
    assert not log_targets.is_journal(io.StringIO(), there)


@pytest.fixture
def restored_logging():
    root, package = logging.getLogger(), logging.getLogger("kube_router_py")
    before = (root.handlers[:], root.level, package.level, logging.raiseExceptions)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, package.level = before[0], before[1], before[2]
    logging.raiseExceptions = before[3]
    root.manager._clear_cache()


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("verbosity", "seen"), [(0, ["INFO"]), (1, ["INFO", "DEBUG"])])
def test_verbosity_decides_what_is_told(verbosity, seen):
    stream = io.StringIO()
    log_targets.configure(verbosity, stream, {})
    logging.getLogger("kube_router_py.loop").info("told")
    logging.getLogger("kube_router_py.loop").debug("detail")
    logging.getLogger("urllib3").info("chatter of a library")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == seen


# --- HTTP -----------------------------------------------------------------------------------------


@pytest.fixture
def serve():
    running = []

    def start(pages, address="127.0.0.1"):
        server = HttpServer(address, 0, pages, "health-port")
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


def fetch(port, path, host="127.0.0.1", method="GET"):
    request = urllib.request.Request(f"http://{host}:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def broken():
    raise RuntimeError("boom")


def test_pages_are_served_and_others_are_not(serve):
    server = serve({"/ok": lambda: Answer(200, "text/plain", b"fine"), "/broken": broken})
    assert fetch(server.port, "/ok") == (200, b"fine")
    assert fetch(server.port, "/ok?verbose=1") == (200, b"fine")
    assert fetch(server.port, "/ok", method="HEAD") == (200, b"")
    assert fetch(server.port, "/other")[0] == 404
    assert fetch(server.port, "/broken")[0] == 500
    assert fetch(server.port, "/ok", method="POST")[0] == 501


@pytest.mark.parametrize(
    ("accepted", "is_taken"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("identity;q=1, gzip; q=0", False),
        ("gzip;q=0.000", False),
        ("x-gzipped", False),
        ("", False),
    ],
)
def test_long_pages_are_compressed_for_whom_that_suits(serve, accepted, is_taken):
    """A slow scraper of 10,000 virtual servers would not have 13 MB in time."""
    long = b'kube_router_service_cps{service_name="web"} 0\n' * 10_000
    pages = {"/long": long, "/short": b"fine"}
    server = serve(
        {path: lambda body=body: Answer(200, "text/plain", body) for path, body in pages.items()}
    )
    for path, body in pages.items():
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}{path}", headers={"Accept-Encoding": accepted}
        )
        with urllib.request.urlopen(request, timeout=10) as found:
            sent = found.read()
            assert int(found.headers["Content-Length"]) == len(sent)
            is_packed = found.headers["Content-Encoding"] == "gzip"
        assert is_packed is (is_taken and path == "/long")
        assert (gzip.decompress(sent) if is_packed else sent) == body
        assert len(sent) * 20 < len(body) or not is_packed


def test_no_address_means_every_address_of_both_families(serve):
    server = serve({"/ok": lambda: Answer(200, "text/plain", b"fine")}, address="")
    assert fetch(server.port, "/ok") == (200, b"fine")
    if socket.has_dualstack_ipv6():
        assert fetch(server.port, "/ok", host="[::1]") == (200, b"fine")


def test_silent_clients_do_not_keep_others_away(serve, monkeypatch):
    """Whoever holds connections to a probe's port must not get the agent restarted by it."""
    monkeypatch.setattr(serve_module, "_CLIENT_TIMEOUT_S", 600.0)  # none goes by itself
    before = {*threading.enumerate()}
    server = serve({"/ok": lambda: Answer(200, "text/plain", b"fine")})
    with contextlib.ExitStack() as opened:
        silent = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(40)
        ]
        for _ in range(5):
            assert fetch(server.port, "/ok") == (200, b"fine")
        # Room is made by turning the oldest away: their connections end at once.
        silent[0].settimeout(30)
        assert silent[0].recv(1) == b""
        deadline = time.monotonic() + 60
        while len({*threading.enumerate()} - before) >= 20:  # some are just ending
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_taken_port_names_flag_and_remedy(serve):
    server = serve({})
    with pytest.raises(ConfigurationError) as caught:
        HttpServer("127.0.0.1", server.port, {}, "health-port")
    assert f"--health-port {server.port}" in str(caught.value)
    assert "--health-port=0" in str(caught.value)


# --- what the probes say --------------------------------------------------------------------------


class FixedLoop:
    def __init__(self):
        self.values = {
            "name": "service-proxy",
            "turning": True,
            "ready": True,
            "reason": "",
            "dirty": 0,
            "busy": False,
            "settled": True,
            "last_turn_s": 0.123,
            "last_success_s": 1.25,
            "turns": 3,
            "successes": 3,
            "restarts": 0,
            "problems": (),
        }

    def status(self):
        return LoopStatus(**self.values)


def make_health():
    cache = Cache((Service, Node))
    loop = FixedLoop()
    return cache, loop, Health(node="node1", version="1.2.3", cache=cache, loops=[loop])


NODE1 = Node(metadata=ObjectMeta(name="node1", resource_version="9"))


def sync(cache):
    cache.replace(Service, [], "10")
    cache.replace(Node, [NODE1], "10")


def answer(page):
    found = page()
    return found.status, json.loads(found.body)


def test_ready_when_everything_is():
    cache, _, health = make_health()
    cache.replace(Service, [], "12")
    cache.replace(Node, [NODE1], "10")
    status, body = answer(health.ready)
    assert status == 200
    assert (body["ready"], body["node"], body["version"]) == (True, "node1", "1.2.3")
    assert body["applied_revision"] == 10
    assert body["caches"]["Service"]["revision"] == "12"
    assert body["caches"]["Service"]["failing"] == ""
    assert body["loops"]["service-proxy"]["last_success_s"] == 1.2


def test_not_ready_before_the_caches_are_synced_and_says_which():
    cache, _, health = make_health()
    cache.replace(Service, [], "12")
    status, body = answer(health.ready)
    assert (status, body["ready"]) == (503, False)
    assert body["reason"] == "waiting for the first list of Node"
    assert body["applied_revision"] is None
    assert answer(health.live)[0] == 200


def test_each_kind_shows_why_it_is_failing():
    cache, _, health = make_health()
    sync(cache)
    cache.failed(Node, "refused", "HTTP 403: nodes is forbidden")
    status, body = answer(health.ready)
    assert status == 200, "what the kernel has goes on serving"
    assert body["caches"]["Node"]["failing"] == "HTTP 403: nodes is forbidden"
    cache.connected(Node)
    assert answer(health.ready)[1]["caches"]["Node"]["failing"] == ""


def test_not_ready_under_a_name_that_no_node_has():
    cache, _, health = make_health()
    sync(cache)
    cache.delete(Node, "node1", "11")
    status, body = answer(health.ready)
    assert status == 503
    assert "there is no Node 'node1'" in body["reason"]
    assert "--hostname-override" in body["reason"]
    assert answer(health.live)[0] == 200


def test_not_ready_where_a_loop_is_not_and_shows_its_problems():
    cache, loop, health = make_health()
    sync(cache)
    problem = Problem("Service default/web", "spec", "is bad")
    loop.values.update(ready=False, reason="failing: default/web", problems=(problem,))
    status, body = answer(health.ready)
    assert status == 503
    assert body["reason"] == "service-proxy: failing: default/web"
    assert body["loops"]["service-proxy"]["problems"] == [
        {"object": "Service default/web", "field": "spec", "reason": "is bad"}
    ]
    assert answer(health.live)[0] == 200


def test_readyz_names_a_hundred_problems_and_another_page_all():
    cache, loop, health = make_health()
    sync(cache)
    found = tuple(Problem(f"Service default/s{n:03}", "spec", "is\nbad") for n in range(150))
    loop.values.update(problems=found)
    listed = answer(health.ready)[1]["loops"]["service-proxy"]["problems"]
    assert len(listed) == 101
    assert listed[-1]["reason"] == "and 50 more; /problems shows all"
    page = health.pages()["/problems"]()
    lines = page.body.decode().splitlines()
    assert (page.status, len(lines), lines[149]) == (200, 150, "Service default/s149 spec: is bad")


def test_a_loop_that_does_not_turn_fails_the_liveness_probe():
    _, loop, health = make_health()
    loop.values.update(turning=False, reason="no turn ended for 200 s")
    status, body = answer(health.live)
    assert status == 500
    assert body["stuck"] == {"service-proxy": "no turn ended for 200 s"}


def test_the_applied_revision_stands_still_while_work_goes_on():
    cache, loop, health = make_health()
    sync(cache)
    assert health.report()["applied_revision"] == 10
    loop.values["settled"] = False
    cache.put(Service, Service(metadata=ObjectMeta(name="a", resource_version="20")))
    cache.bookmark(Node, "20")
    assert health.report()["applied_revision"] == 10
    loop.values["settled"] = True
    assert health.report()["applied_revision"] == 20


# --- systemd --------------------------------------------------------------------------------------


def test_systemd_is_told_on_the_socket_it_names(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        assert notify({"NOTIFY_SOCKET": path}, "READY=1", "STATUS=fine")
        assert listener.recv(100) == b"READY=1\nSTATUS=fine"


def test_nobody_is_told_where_nobody_listens(tmp_path):
    assert not notify({}, "READY=1")
    assert not notify({"NOTIFY_SOCKET": "vsock:2:1"}, "READY=1")
    assert not notify({"NOTIFY_SOCKET": str(tmp_path / "gone")}, "READY=1")
