"""The socket by which commands ask the agent of their node."""

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.agent_client import NoAgentError, ask, follow
from kube_router_py.errors import ApiError, ConfigurationError, KernelError
from kube_router_py.observe import agent_socket
from kube_router_py.observe.agent_socket import AgentSocket, Question

LONG_S = 60.0


class Drip:
    """A stream of numbers, with empty lines after them; tells when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def lines(self, asked: Any) -> Iterator[Any]:
        if asked.get("fail"):
            raise KernelError("group 100 is taken")
        try:
            for number in range(asked["count"]):
                yield {"number": number}
            while not asked.get("once"):
                yield None
        finally:
            self.closed.set()


def refuse(asked: Any) -> Any:
    raise ConfigurationError("there is no pod x/y", "and no Service")


def fail(asked: Any) -> Any:
    raise KernelError("nothing was read")


def crash(asked: Any) -> Any:
    raise ZeroDivisionError


def break_off(asked: Any) -> Iterator[Any]:
    yield {"number": 0}
    raise ZeroDivisionError


@pytest.fixture
def drip() -> Drip:
    return Drip()


@pytest.fixture
def path(tmp_path: Path, drip: Drip) -> Iterator[str]:
    place = tmp_path / "run" / "agent.sock"
    questions: dict[str, Question] = {"echo": dict, "refuse": refuse, "fail": fail, "crash": crash}
    questions["odd"] = lambda asked: {"no text": "\udc80"}
    streams = {"drip": drip.lines, "break-off": break_off, "refusing": refuse, "crashing": crash}
    server = AgentSocket(str(place), questions, streams)
    server.start()
    yield str(place)
    server.stop()
    assert not place.exists()


def test_questions_are_answered(path: str) -> None:
    assert ask(path, "echo", {"a": [1, "two"]}) == {"a": [1, "two"]}
    assert ask(path, "echo") == {}


def test_only_the_owner_may_open_it(path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_other_users_are_not_answered(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody made the file accessible: the kernel says who is there."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(agent_socket, "_ROOT", 4712)
    with pytest.raises(ApiError):
        ask(path, "echo")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("refuse", ConfigurationError, "there is no pod x/y; and no Service"),
        ("fail", ApiError, "nothing was read"),
        ("crash", ApiError, "its log says why"),
        ("odd", ApiError, "its log says why"),
        ("nothing", ApiError, "does not know 'nothing', but break-off, crash, crashing, drip"),
    ],
)
def test_errors_come_back_as_what_they_are(
    path: str, name: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        ask(path, name)


def test_a_stream_goes_on_until_either_end_is_through(path: str, drip: Drip) -> None:
    assert [*follow(path, "drip", {"count": 3, "once": True})] == [
        {"number": number} for number in range(3)
    ]
    assert drip.closed.wait(LONG_S)
    drip.closed.clear()
    lines = follow(path, "drip", {"count": 1})
    assert next(lines) == {"number": 0}
    lines.close()  # type: ignore[attr-defined]
    assert drip.closed.wait(LONG_S)


def test_a_stream_that_cannot_begin_says_why(path: str) -> None:
    with pytest.raises(ApiError, match="group 100 is taken"):
        next(follow(path, "drip", {"fail": True}))


def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    place = str(tmp_path / "agent.sock")
    first = AgentSocket(place, {"who": lambda asked: {"is": "first"}}, {})
    first.start()
    second = AgentSocket(place, {"who": lambda asked: {"is": "second"}}, {})
    second.start()
    assert ask(place, "who") == {"is": "second"}
    first.stop()  # which must not take the place of the second away
    assert ask(place, "who") == {"is": "second"}
    second.stop()
    with pytest.raises(NoAgentError, match="is it running"):
        ask(place, "who")


def test_where_it_cannot_listen_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    server = AgentSocket(str(tmp_path / "file" / "agent.sock"), {}, {})
    server.start()
    server.stop()
    assert "--agent-socket names another place" in caplog.text


def test_a_stream_is_refused_as_a_question_is(path: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no pod x/y"):
        next(follow(path, "refusing"))
    with pytest.raises(ApiError, match="its log says why"):
        next(follow(path, "crashing"))


def test_a_stream_that_breaks_does_not_look_like_one_that_is_over(path: str) -> None:
    lines = follow(path, "break-off")
    assert next(lines) == {"number": 0}
    with pytest.raises(ApiError, match="its log says why"):
        next(lines)


def test_streams_leave_room_for_questions(path: str) -> None:
    streams = [follow(path, "drip", {"count": 1}) for _ in range(agent_socket._MOST_STREAMS)]
    for each in streams:
        assert next(each) == {"number": 0}
    with pytest.raises(ApiError, match="too many ask this agent at once"):
        next(follow(path, "drip", {"count": 1}))
    assert ask(path, "echo", {"a": 1}) == {"a": 1}
    for each in streams:
        each.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 900_000])
def test_whoever_finds_no_room_is_told_so(
    path: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Though the agent reads nothing of what is asked."""
    monkeypatch.setattr(agent_socket, "_ASKING_S", LONG_S)
    served, setup = threading.Semaphore(0), agent_socket._Handler.setup

    def set_up(handler: agent_socket._Handler) -> None:
        served.release()
        setup(handler)

    monkeypatch.setattr(agent_socket._Handler, "setup", set_up)
    with contextlib.ExitStack() as idle:
        for _ in range(agent_socket._MOST_CLIENTS):
            client = idle.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(path)
            client.sendall(b"POST /ec")
            assert served.acquire(timeout=LONG_S)  # it has its room
        for _ in range(20):
            with pytest.raises(ApiError, match="too many ask this agent at once"):
                ask(path, "echo", {"a": "x" * size})


@pytest.mark.parametrize("does_drip", [False, True])
def test_who_connects_and_does_not_ask_makes_room(
    path: str, monkeypatch: pytest.MonkeyPatch, does_drip: bool
) -> None:
    monkeypatch.setattr(agent_socket, "_ASKING_S", 0.5)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        client.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 1000\r\n\r\n")
        client.settimeout(0.05)
        until = time.monotonic() + LONG_S
        told: bytes | None = None
        while told is None and time.monotonic() < until:
            try:
                if does_drip:
                    client.sendall(b" ")
                told = client.recv(4096)
            except TimeoutError:
                pass
            except ConnectionError:
                told = b""
    assert told is not None
    assert told == b"" or told.startswith(b"HTTP/1.0 400 ")


def test_a_stream_outlasts_the_time_for_asking(
    path: str, monkeypatch: pytest.MonkeyPatch, drip: Drip
) -> None:
    monkeypatch.setattr(agent_socket, "_ASKING_S", 5.0)
    lines = follow(path, "drip", {"count": 1})
    assert next(lines) == {"number": 0}
    assert not drip.closed.wait(6.0)
    lines.close()  # type: ignore[attr-defined]
    assert drip.closed.wait(LONG_S)


def test_many_may_come_at_once(tmp_path: Path) -> None:
    """Also while the agent is busy with something else: nobody accepts here."""
    place = tmp_path / "agent.sock"
    server = agent_socket._Server(str(place), lambda *_: None)
    with server, contextlib.ExitStack() as waiting:
        for _ in range(100):
            client = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(LONG_S)
            client.connect(str(place))


def test_a_queue_that_is_full_is_no_agent_that_does_not_run(tmp_path: Path) -> None:
    place = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.bind(place)
        hanging.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(place)
            with pytest.raises(NoAgentError, match="it is slow or hangs"):
                ask(place, "echo")


def test_a_question_that_is_too_long_is_told_so(path: str) -> None:
    with pytest.raises(ConfigurationError, match="of 1 MiB at most"):
        ask(path, "echo", {"a": "x" * (5 << 20)})


def test_a_question_that_is_too_deep_is_told_so(path: str) -> None:
    asked = b'{"a":' * 100_000
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LONG_S)
        client.connect(path)
        client.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked)
        assert client.recv(100).startswith(b"HTTP/1.0 400 ")


@pytest.mark.parametrize("told", [b"", b'{"a":'])
def test_half_an_answer_is_no_agent_of_another_version(tmp_path: Path, told: bytes) -> None:
    place = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ending:
        ending.bind(place)
        ending.listen()

        def answer() -> None:
            with ending.accept()[0] as client:
                asked = b""  # head and body are sent apart; what is not read resets the connection
                while not asked.endswith(b"{}") and (more := client.recv(1 << 16)):
                    asked += more
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n" + told)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ApiError, match="broke off"):
            ask(place, "echo")
        thread.join(LONG_S)


def test_half_a_question_is_none(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LONG_S)
        client.connect(path)
        client.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 10\r\n\r\n{}")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.0 400 ")


@pytest.mark.parametrize("kind", ["directory", "link", "file"])
def test_what_is_no_socket_stays_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    place = tmp_path / "agent.sock"
    if kind == "directory":
        place.mkdir()
    elif kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("mine")
    before = place.lstat()
    server = AgentSocket(str(place), {"echo": dict}, {})
    server.start()
    server.stop()
    assert "something that is no socket is in its place" in caplog.text
    assert [*tmp_path.iterdir()] == [place]
    assert place.lstat().st_ino == before.st_ino


def test_a_path_that_no_socket_may_have_is_told_by_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path / ("x" * 120))
    server = AgentSocket(place, {}, {})
    server.start()
    server.stop()
    assert "path too long" in caplog.text
    with pytest.raises(NoAgentError, match="path too long"):
        ask(place, "echo")
