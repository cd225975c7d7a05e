"""The client of FRR's control sockets, against a daemon that answers as it is told."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.kernel.frr_vty import (
    UnsafeCommandError,
    VtyClient,
    VtyLostError,
    VtyUnavailableError,
    masked,
)
from kube_router_py.kernel.ports_frr import CommandResult

_DEADLINE_S = 60.0

# What is to be answered to a command: text and code, nothing at all, or the end of the connection.
Answer = tuple[str, int] | None | type[EOFError]


class Daemon:
    """Takes connections one after the other and answers commands in the order of their coming."""

    def __init__(
        self, path: Path, answer: Callable[[str], Answer], *, chunk: int = 1 << 16
    ) -> None:
        self.commands: list[str] = []
        self.connections = 0
        self._answer = answer
        self._chunk = chunk
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._connection = connection
            try:
                with connection:
                    self._serve(connection)
            except OSError:
                pass  # the client has gone

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        while True:
            data = connection.recv(self._chunk)
            if not data:
                return
            buffer += data
            *whole, buffer = buffer.split(b"\0")
            for command in whole:
                self.commands.append(command.decode())
                answer = self._answer(command.decode())
                if isinstance(answer, type):
                    return
                if answer is not None:
                    wire = answer[0].encode() + bytes(3) + bytes([answer[1]])
                    for at in range(0, len(wire), self._chunk):
                        connection.sendall(wire[at : at + self._chunk])

    def hang_up(self) -> None:
        assert self._connection is not None
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended by itself
        self._thread.join(_DEADLINE_S)
        self._listener.close()


Serve = Callable[..., tuple[Daemon, VtyClient]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A daemon and a client of it: ``serve(answer, timeout_s=..., chunk=...)``."""
    path = tmp_path / "bgpd.vty"
    with ExitStack() as stack:

        def make(
            answer: Callable[[str], Answer], timeout_s: float = _DEADLINE_S, chunk: int = 1 << 16
        ) -> tuple[Daemon, VtyClient]:
            path.unlink(missing_ok=True)
            daemon = stack.enter_context(closing(Daemon(path, answer, chunk=chunk)))
            return daemon, stack.enter_context(closing(VtyClient(str(path), timeout_s)))

        yield make


def echo(command: str) -> Answer:
    return f"{command}!\n", 0


def test_a_batch_is_framed_and_has_a_result_for_each_command(serve: Serve) -> None:
    codes = {"b": ("% Unknown command\n", 2), "c": ("% Failed to edit configuration", 0)}
    daemon, client = serve(lambda command: codes.get(command, ("", 0)))
    results = client.configure(["a", "b", "c"])
    assert daemon.commands == ["enable", "configure terminal", "a", "b", "c", "end"]
    assert [(each.command, each.code) for each in results] == [("a", 0), ("b", 2), ("c", 0)]
    assert [each.is_failed for each in results] == [False, True, True]
    assert [each.complaint for each in results[1:]] == [
        "Unknown command",
        "Failed to edit configuration",
    ]
    assert client.configure([]) == ()
    assert client.show("show version") == CommandResult("show version", 0, "")
    assert daemon.commands[-2:] == ["end", "show version"]
    assert daemon.connections == 1


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
def test_replies_come_in_any_pieces(serve: Serve, chunk: int) -> None:
    _, client = serve(echo, chunk=chunk)
    commands = [f"command {at}" for at in range(20)]
    assert [each.text for each in client.run(commands)] == [f"{each}!\n" for each in commands]


def test_long_commands_and_long_replies_do_not_wait_for_each_other(serve: Serve) -> None:
    # Neither side's socket buffer holds any of it: whoever only writes would stand still.
    _, client = serve(lambda command: (command * 2, 0))
    commands = [f"{at} " + "x" * 20_000 for at in range(200)]
    assert [each.text for each in client.run(commands)] == [each * 2 for each in commands]


@pytest.mark.parametrize("bad", ["a\0no b", "a\nno b", "a\rb", "a\tb", "a\x1b", "a\x7f", "a\udc80"])
def test_what_is_not_one_command_is_not_sent(serve: Serve, bad: str) -> None:
    daemon, client = serve(echo)
    with pytest.raises(UnsafeCommandError):
        client.configure(["first", bad])
    assert daemon.commands == []
    assert daemon.connections == 0


def test_other_characters_pass(serve: Serve) -> None:
    _, client = serve(echo)
    text = 'neighbor a password !#"$|?\\ü'
    assert client.show(text).text == f"{text}!\n"


def test_without_a_daemon_nothing_was_sent(tmp_path: Path) -> None:
    client = VtyClient(str(tmp_path / "bgpd.vty"), 1.0)
    with pytest.raises(VtyUnavailableError) as caught:
        client.show("show version")
    assert not isinstance(caught.value, StateUnknownError)


def test_a_restarted_daemon_is_connected_to_anew(serve: Serve) -> None:
    first, client = serve(echo)
    assert client.show("a").text == "a!\n"
    first.close()
    second, _ = serve(lambda command: (f"{command}?", 0))
    assert client.show("b").text == "b?"
    assert second.commands == ["enable", "b"]


def test_a_connection_that_was_closed_is_made_anew(serve: Serve) -> None:
    daemon, client = serve(echo)
    client.show("a")
    daemon.hang_up()
    assert client.show("b").text == "b!\n"
    assert daemon.commands == ["enable", "a", "enable", "b"]


def test_an_end_in_the_middle_leaves_the_state_unknown(serve: Serve) -> None:
    daemon, client = serve(lambda command: EOFError if command == "b" else ("", 0))
    with pytest.raises(VtyLostError, match="'b'"):
        client.configure(["a", "b", "c"])
    assert client.show("d") == CommandResult("d", 0, "")
    assert daemon.commands[-2:] == ["enable", "d"]


def test_an_answer_that_does_not_come_is_given_up_and_not_mixed_up(serve: Serve) -> None:
    is_slow = threading.Event()
    go_on = threading.Event()

    def answer(command: str) -> Answer:
        if command == "slow":
            is_slow.set()
            go_on.wait(_DEADLINE_S)
        return command, 0

    _, client = serve(answer)
    client.show("first")  # so that "slow" is all that is left to do, whoever gives up meanwhile
    with pytest.raises(VtyLostError, match="did not answer in time: 'slow'"):
        client.show("slow", 1.0)
    assert is_slow.wait(_DEADLINE_S)
    go_on.set()
    assert client.show("fast", _DEADLINE_S).text == "fast"


def test_a_daemon_that_cannot_be_configured_is_an_error(serve: Serve) -> None:
    _, client = serve(lambda command: ("% locked", 1) if command.startswith("conf") else ("", 0))
    with pytest.raises(KernelError, match="cannot be configured: locked"):
        client.configure(["a"])


def test_errors_tell_no_keys(serve: Serve) -> None:
    _, client = serve(lambda command: EOFError if "password" in command else ("", 0))
    with pytest.raises(VtyLostError) as lost:
        client.configure(["neighbor 10.0.0.1 password hush"])
    with pytest.raises(UnsafeCommandError) as unsafe:
        client.configure(["neighbor 10.0.0.1 password hush\nx"])
    assert "hush" not in f"{lost.value}{unsafe.value}"
    assert masked("x\n neighbor a password a b\n y") == "x\n neighbor a password ***\n y"


def test_who_may_not_connect_is_told_what_to_do(serve: Serve, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may open anything: a directory in the way is refused to root as well.
        client = VtyClient(str(tmp_path), 1.0)
        with pytest.raises(VtyUnavailableError, match="refused"):
            client.show("a")
        return
    serve(echo)
    path = tmp_path / "bgpd.vty"
    path.chmod(0)
    with pytest.raises(VtyUnavailableError, match="frrvty"):
        VtyClient(str(path), 1.0).show("a")
