"""The pods' server and the load generator, over the loopback."""

import argparse
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kube_router_py.lab import load, pod_server

BARE = [sys.executable, "-I", "-S"]
PATIENT = ("--timeout", "60")


class Running:
    def __init__(self, port: int, *ports: str) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [*BARE, str(pod_server.__file__), "shop-1", "default", "node1", *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(free_port: Callable[[], int]) -> Iterator[Running]:
    port = free_port()
    running = Running(port, f"{port}/TCP", f"{port}/UDP")
    yield running
    running.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_it_says_who_answered_whom(server: Running, protocol: str, address: str) -> None:
    answer = load.ask(address, server.port, protocol, 10.0)
    client_port = answer.pop("client_port")
    assert client_port > 0
    assert answer == {
        "pod": "shop-1",
        "namespace": "default",
        "node": "node1",
        "client": address,
        "protocol": protocol.upper(),
        "port": server.port,
    }


def test_one_connection_carries_many_requests_even_in_one_segment(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbo")
        sock.sendall(b"dy")
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"Connection: keep-alive") == 2


@contextmanager
def open_stream(port: int) -> Iterator[Iterator[bytes]]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /stream?interval=0.02 HTTP/1.1\r\nHost: x\r\n\r\n")
        with sock.makefile("rb") as file:
            while file.readline().strip():
                pass
            yield iter(file)


def test_a_stream_goes_on_and_others_are_served_meanwhile(server: Running) -> None:
    with open_stream(server.port) as lines:
        assert json.loads(next(lines))["pod"] == "shop-1"
        assert load.ask("127.0.0.1", server.port, "tcp", 10.0)["pod"] == "shop-1"
        assert json.loads(next(lines))["pod"] == "shop-1"


def test_after_sigterm_it_serves_on_until_nobody_asks(server: Running) -> None:
    with open_stream(server.port) as lines:
        server.process.send_signal(signal.SIGTERM)
        asked_until = time.monotonic() + pod_server.IDLE_S * 1.5
        while time.monotonic() < asked_until:
            assert next(lines)
        assert server.process.poll() is None
        assert load.ask("127.0.0.1", server.port, "tcp", 10.0)["pod"] == "shop-1"
    assert server.process.wait(timeout=30) == 0


@contextmanager
def held_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Callable[[], threading.Thread], socket.socket]]:
    """A server that was told to end and then had no turn for long: a call that starts its loop, and
    a connection from before."""
    monkeypatch.setattr(pod_server, "IDLE_S", 0.0)
    server = pod_server.Server("shop-1", "default", "node1")
    server.listen(port, "TCP")
    server.terminate()
    server._last_request -= 3600.0
    loop = threading.Thread(target=server.run, daemon=True)

    def start() -> threading.Thread:
        loop.start()
        return loop

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            yield start, sock
        loop.join(60)
        assert not loop.is_alive()
    finally:
        for key in [*server._selector.get_map().values()]:
            key.fileobj.close()  # type: ignore[union-attr]
        server._selector.close()


def test_what_came_while_it_was_held_up_is_served_before_it_ends(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with held_up(port, monkeypatch) as (start, sock):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        start()
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 200 OK")


def test_a_stream_keeps_it_however_seldom_it_says_something(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with held_up(port, monkeypatch) as (start, sock):
        sock.sendall(b"GET /stream?interval=3600 HTTP/1.1\r\nHost: x\r\n\r\n")
        loop = start()
        with sock.makefile("rb") as file:
            while file.readline().strip():
                pass
            assert json.loads(file.readline())["pod"] == "shop-1"
        for _ in range(3):
            assert load.ask("127.0.0.1", port, "tcp", 60.0)["pod"] == "shop-1"
        assert loop.is_alive()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        argv = [*BARE, str(pod_server.__file__), "p", "n", "node1", f"{port}/TCP"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"cannot serve {port}/TCP" in done.stderr


def run_load(*arguments: str) -> dict[str, object]:
    argv = [*BARE, str(Path(load.__file__)), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_the_load_generator_counts_answers(server: Running) -> None:
    found = run_load("127.0.0.1", str(server.port), "--count", "20", "--concurrency", "4", *PATIENT)
    assert (found["attempts"], found["failures"]) == (20, 0)
    assert found["pods"] == {"shop-1": 20}
    assert found["clients"] == {"127.0.0.1": 20}


def test_the_load_generator_counts_failures(free_port: Callable[[], int]) -> None:
    found = run_load("127.0.0.1", str(free_port()), "--count", "5", "--timeout", "1")
    assert (found["attempts"], found["failures"], found["pods"]) == (5, 5, {})
    assert "ConnectionRefusedError" in str(found["errors"])


def test_the_load_generator_goes_on_to_its_minimum_when_told_to_end(server: Running) -> None:
    given = argparse.Namespace(
        address="127.0.0.1",
        port=server.port,
        protocol="tcp",
        count=1000,
        seconds=60.0,
        rate=200.0,
        concurrency=4,
        timeout=10.0,
        minimum=30,
    )
    running = load.Load(given)
    running.stop.set()
    assert running.run()["attempts"] == 30


def test_a_stream_that_breaks_is_a_failure(server: Running) -> None:
    argv = [*BARE, str(Path(load.__file__)), "127.0.0.1", str(server.port)]
    argv += ["--stream", "0.02", *PATIENT]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["local_port"] > 0
    server.process.kill()
    out, _ = process.communicate(timeout=30)
    assert json.loads(out)["failures"] == 1
