"""Records for systemd's journal: their fields, their bytes, and a journal that is not there."""

import contextlib
import fcntl
import io
import logging
import os
import socket
import struct
import sys
import threading

import pytest

from kube_router_py.observe import log_targets
from kube_router_py.observe.journal import JournalHandler, JournalSocket, Sent, encode
from kube_router_py.observe.log_fields import fields, placeholders, values

POLICIES = [
    ("OBJECT", "a/x"),
    ("KIND", "NetworkPolicy"),
    ("NAMESPACE", "a"),
    ("OBJECT", "a/y"),
]
KEYS = [
    ("OBJECT", "a/b"),
    ("KIND", "Service"),
    ("NAMESPACE", "a"),
    ("OBJECT", "n"),
    ("KIND", "Node"),
]


def named(template, *arguments):
    return list(fields(values(template, arguments)))


def decoded(payload):
    """As journald reads a datagram."""
    found = []
    while payload:
        line, _, rest = payload.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found.append((name.decode(), value.decode()))
        payload = rest
    return found


def test_each_placeholder_with_a_key_becomes_a_field():
    assert named("adopted servers=%d after_s=%.1f what=%r", 3, 0.25, "a b") == [
        ("KRP_SERVERS", "3"),
        ("KRP_AFTER_S", "0.2"),
        ("KRP_WHAT", "a b"),
    ]


@pytest.mark.parametrize(
    ("template", "argument", "expected"),
    [
        (
            "removed service=%s",
            "default/website",
            [("OBJECT", "default/website"), ("KIND", "Service"), ("NAMESPACE", "default")],
        ),
        (
            "problem object=%r",
            "NetworkPolicy shop/deny-all",
            [("OBJECT", "shop/deny-all"), ("KIND", "NetworkPolicy"), ("NAMESPACE", "shop")],
        ),
        ("problem object=%r", "Node node1", [("OBJECT", "node1"), ("KIND", "Node")]),
        ("as node=%s", "node1", [("OBJECT", "node1"), ("KIND", "Node")]),
        (
            "namespace=%s",
            "shop",
            [("OBJECT", "shop"), ("KIND", "Namespace"), ("NAMESPACE", "shop")],
        ),
        ("failed (reason=%r)", "no route", [("REASON", "no route")]),
        ("by policy policies=%s", "a/x,a/y", POLICIES),
        ("drop pod=%s", "-", []),
        ("failed keys=%r", "Service a/b, Node n and 3 more", KEYS),
        ("failed keys=%r", "default/web", [("OBJECT", "default/web"), ("NAMESPACE", "default")]),
        ("problem object=%r", "Flag --router-id", []),
        ("failed reason=%s", "gone", [("REASON", "gone")]),
        ("problem object=%r", "IPVS", []),
        ("problem object=%r", "something else entirely", []),
        ("service=%s", "", []),
    ],
)
def test_what_names_an_object_is_found_by_its_name(template, argument, expected):
    kube = [each for each in named(template, argument) if each[0].startswith("KUBE_")]
    assert kube == [(f"KUBE_{name}", value) for name, value in expected]


def test_a_line_about_several_services_is_found_by_each():
    found = named("refused services=%s", "default/a, shop/b, and 3 more")
    assert [value for name, value in found if name == "KUBE_OBJECT"] == ["default/a", "shop/b"]
    assert [value for name, value in found if name == "KUBE_KIND"] == ["Service"]


def test_a_line_about_two_objects_is_found_by_both():
    found = named("tunnel pod=%s service=%s", "default/p", "default/s")
    assert [value for name, value in found if name == "KUBE_OBJECT"] == ["default/p", "default/s"]
    assert [value for name, value in found if name == "KUBE_NAMESPACE"] == ["default"]


def test_the_only_argument_may_be_a_mapping():
    record = logging.LogRecord("x", 20, "f", 1, "stopped writes=%r", ({"ipvs": 1},), None)
    assert values(record.msg, record.args) == [("writes", "{'ipvs': 1}")]


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        ("plain %s, 100%% of it", ("words",)),
        ("not a_key =%s", (1,)),
        ("Upper=%s", (1,)),
        ("a=%s b=%s", (1,)),
        ("a=%*d", (5, 1)),
        ("a=%(name)s", ({"name": 1},)),
        ("no placeholders", ()),
        (object(), ()),
    ],
)
def test_what_has_no_key_or_does_not_fit_gives_no_field(template, arguments):
    assert values(template, arguments) == []


def test_percent_signs_of_the_text_take_no_argument():
    assert values("100%% of a=%s at b=%d%%", ("x", 5)) == [("a", "x"), ("b", "5")]


def test_a_format_string_is_read_once():
    text = "never seen before key=%s other=%d"
    assert placeholders(text) is placeholders(text)


def test_what_a_value_says_stays_in_its_field():
    evil = "x\nKUBE_OBJECT=kube-system/forged\nPRIORITY=0\n"
    assert decoded(encode([("KRP_NAME", evil), ("KUBE_NODE", "n")])) == [
        ("KRP_NAME", evil),
        ("KUBE_NODE", "n"),
    ]
    assert encode([("A", "b=c \udc80")]) == b"A=b=c \\udc80\n"


@pytest.fixture
def journald(tmp_path):
    """A socket as journald's, and the path that it is bound to."""
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:

        def listen(buffer=0):
            path.unlink(missing_ok=True)
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            if buffer:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            server.settimeout(30)
            server.bind(str(path))
            return server

        yield path, listen


@pytest.fixture
def handler(journald):
    made = JournalHandler(JournalSocket(journald[0]), node="node1", tracebacks=False)
    yield made
    made.close()


def record(text, *arguments, level=logging.INFO, info=None):
    return logging.LogRecord(
        "kube_router_py.proxy.controller", level, "/a/file.py", 7, text, arguments, info, "turn"
    )


def test_a_record_has_the_fields_of_the_journal_and_ours(journald, handler):
    server = journald[1]()
    handler.handle(record("removed service=%s", "default/web", level=logging.WARNING))
    assert decoded(server.recv(65536)) == [
        ("MESSAGE", "WARNING proxy: removed service=default/web"),
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "kube-router-py"),
        ("SYSLOG_PID", str(os.getpid())),
        ("CODE_FILE", "/a/file.py"),
        ("CODE_LINE", "7"),
        ("CODE_FUNC", "turn"),
        ("LOGGER", "kube_router_py.proxy.controller"),
        ("THREAD", "MainThread"),
        ("KUBE_NODE", "node1"),
        ("KRP_SERVICE", "default/web"),
        ("KUBE_OBJECT", "default/web"),
        ("KUBE_KIND", "Service"),
        ("KUBE_NAMESPACE", "default"),
    ]


def test_an_exception_is_there_as_a_whole_whatever_the_line_shows(journald, handler):
    server = journald[1]()
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    handler.handle(record("failed", level=logging.ERROR, info=info))
    found = dict(decoded(server.recv(65536)))
    assert found["EXCEPTION"] == "ValueError"
    assert found["TRACEBACK"].startswith("Traceback (most recent call last):\n")
    assert found["TRACEBACK"].endswith("ValueError: two\nlines\n")
    assert "\n" not in found["MESSAGE"]


def test_a_large_record_goes_as_a_sealed_file(journald):
    server = journald[1]()
    to = JournalSocket(journald[0])
    payload = encode([("MESSAGE", "x" * 16 * 1024 * 1024)])
    assert to.send(payload) is Sent.TAKEN
    data, (file,), _, _ = socket.recv_fds(server, 10, 1)
    with open(file, "rb") as sent:
        seals = fcntl.fcntl(sent, fcntl.F_GET_SEALS)
        sent.seek(0)  # journald maps it
        assert sent.read() == payload
    assert data == b""
    assert seals == (
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    to.close()


def test_a_journal_that_is_restarted_is_found_and_told_what_it_missed(journald, handler):
    path, listen = journald
    listen()
    handler.handle(record("one"))
    path.unlink()
    handler.handle(record("lost"))
    handler.handle(record("lost, too"))
    assert handler.dropped == 2
    server = listen()
    handler.handle(record("three"))
    assert dict(decoded(server.recv(65536)))["MESSAGE"] == "INFO proxy: three"
    told = dict(decoded(server.recv(65536)))
    assert told["KRP_COUNT"] == "2"
    assert told["PRIORITY"] == "4"
    handler.handle(record("four"))
    assert dict(decoded(server.recv(65536)))["MESSAGE"] == "INFO proxy: four"


def test_a_journal_that_hangs_holds_nobody_up(journald, handler):
    """Nobody reads from this socket: the call would wait for ever if it were one that waits."""
    journald[1]()
    sent = 0
    while not handler.dropped:
        handler.handle(record("text=%s", "x" * 1000))
        sent += 1
        assert sent < 100_000
    handler.handle(record("another"))
    assert handler.dropped == 2


def test_a_node_without_a_journal_loses_nothing(handler):
    handler.handle(record("told on stderr"))
    assert handler.dropped == 0


def test_a_journal_that_was_asked_for_is_missed(journald):
    made = JournalHandler(JournalSocket(journald[0]), node="", tracebacks=False, is_wanted=True)
    made.handle(record("told on stderr"))
    assert made.dropped == 1
    made.close()


def test_an_argument_that_cannot_be_written_stops_nothing(journald, handler):
    class Broken:
        def __str__(self):
            raise RuntimeError

    server = journald[1]()
    handler.handle(record("a=%s", Broken()))
    handler.handle(record("too few a=%s b=%s", 1))
    handler.handle(record("fine"))
    assert dict(decoded(server.recv(65536)))["MESSAGE"] == "INFO proxy: fine"
    assert handler.dropped == 2


# --- where the log goes ---------------------------------------------------------------------------


@pytest.fixture
def logs(journald):
    """``configure`` with what is restored after it; returns a stream as stderr."""
    root, package = logging.getLogger(), logging.getLogger("kube_router_py")
    before = (root.handlers[:], root.level, package.level, logging.raiseExceptions)

    def configure(mode, stream, environ):
        log_targets.configure(0, stream, environ, node="node1", journal=mode, path=journald[0])
        return logging.getLogger("kube_router_py.proxy")

    yield configure
    for each in root.handlers:
        each.close()
    logging.captureWarnings(False)
    root.handlers[:], level, package_level, logging.raiseExceptions = before
    root.setLevel(level)
    package.setLevel(package_level)


def test_a_container_tells_both(journald, logs):
    server, stream = journald[1](), io.StringIO()
    logs("auto", stream, {}).info("it service=%s", "default/web")
    assert stream.getvalue().endswith("Z INFO proxy: it service=default/web\n")
    assert dict(decoded(server.recv(65536)))["KUBE_OBJECT"] == "default/web"
    assert log_targets.dropped() == 0


def test_off_does_not_look_for_a_journal(journald, logs):
    server, stream = journald[1](), io.StringIO()
    logs("off", stream, {}).info("it")
    assert stream.getvalue().endswith("it\n")
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)


def under_systemd(stream):
    status = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def test_under_systemd_nothing_is_told_twice(journald, logs, tmp_path):
    server = journald[1]()
    with (tmp_path / "stderr").open("w+") as stream:
        logs("auto", stream, under_systemd(stream)).info("it")
        assert dict(decoded(server.recv(65536)))["MESSAGE"] == "INFO proxy: it"
        assert (tmp_path / "stderr").read_text() == ""


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_under_systemd_lines_go_to_stderr_while_the_socket_is_away(logs, tmp_path, mode):
    with (tmp_path / "stderr").open("w+") as stream:
        logs(mode, stream, under_systemd(stream)).warning("it")
        assert (tmp_path / "stderr").read_text() == "<4>WARNING proxy: it\n"
    assert log_targets.dropped() == 0


def test_what_escapes_moves_no_cursor_either(logs, monkeypatch, capsys):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    logs("off", stream, {})
    try:
        raise ValueError("Service \x1b[2J\x9b1m of a stranger")
    except ValueError as error:
        found = (ValueError, error, error.__traceback__)
    sys.excepthook(*found)
    threading.excepthook(threading.ExceptHookArgs((*found, None)))
    shown = capsys.readouterr().err
    for told in (shown, stream.getvalue()):
        assert all(line.isprintable() for line in told.splitlines())
    assert shown.count("ValueError: Service \\x1b[2J\\x9b1m of a stranger\n") == 2
    assert shown.count("Traceback (most recent call last):\n") == 2
    assert "CRITICAL agent: an exception ended a thread" in stream.getvalue()


def test_a_start_that_is_refused_is_in_the_journal_too(journald, monkeypatch, capsys):
    server = journald[1]()
    at = JournalSocket.__init__
    monkeypatch.setattr(JournalSocket, "__init__", lambda self: at(self, journald[0]))
    log_targets.complain(("--bad is unknown\nreally",), {"NODE_NAME": "node1"}, journal=True)
    found = dict(decoded(server.recv(65536)))
    assert found["KUBE_REASON"] == "--bad is unknown really"
    assert (found["KUBE_NODE"], found["PRIORITY"]) == ("node1", "3")
    log_targets.complain(("a mistake of\x1bwhoever types",), {}, journal=False)
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    assert capsys.readouterr().err == (
        "kube-router-py: --bad is unknown really\nkube-router-py: a mistake of\\x1bwhoever types\n"
    )
