"""UDP sockets and their thread, over loopback."""

import queue
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.kernel.heartbeat_socket import HeartbeatSocket

DEADLINE_S = 60.0
HERE, THERE = ip_address("127.0.0.21"), ip_address("127.0.0.22")


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.01)


class Node:
    def __init__(self, port: int) -> None:
        self.heard: queue.Queue[bytes] = queue.Queue()
        self.ticks = 0
        self.to_send: list[tuple[Any, bytes]] = []
        self.error: Exception | None = None
        self.socket = HeartbeatSocket(port, self._hear, self._tick)

    def _hear(self, packet: bytes) -> None:
        if packet == b"bad":
            raise RuntimeError("a bug")
        self.heard.put(packet)

    def _tick(self) -> float:
        self.ticks += 1
        if self.error is not None:
            raise self.error
        while self.to_send:
            self.socket.send(*self.to_send.pop(0))
        return 0.05


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def pair(port: int) -> Iterator[tuple[Node, Node]]:
    found = Node(port), Node(port)
    for node, address in zip(found, (HERE, THERE), strict=True):
        node.socket.listen((address,))
        node.socket.start()
    until(lambda: all(node.ticks for node in found), "both ticked")
    yield found
    for node in found:
        node.socket.stop(DEADLINE_S)


def test_packets_go_from_the_nodes_address_and_exceptions_end_nothing(
    pair: tuple[Node, Node],
) -> None:
    first, second = pair
    first.to_send += [(THERE, b"bad"), (THERE, b"good")]
    assert second.heard.get(timeout=DEADLINE_S) == b"good"
    first.error = RuntimeError("another bug")
    before = first.ticks
    until(lambda: first.ticks >= before + 2, "it went on ticking")
    first.error = None
    first.to_send.append((THERE, b"again"))
    assert second.heard.get(timeout=DEADLINE_S) == b"again"


def test_what_cannot_be_sent_is_counted(pair: tuple[Node, Node]) -> None:
    first, second = pair
    first.to_send.append((ip_address("::1"), b"no socket of that family"))
    until(lambda: first.socket.failures == 1, "it was counted")
    first.to_send.append((THERE, b"good"))
    assert second.heard.get(timeout=DEADLINE_S) == b"good"


def test_a_port_in_use_is_told_and_taken_as_soon_as_it_is_free(port: int) -> None:
    node = Node(port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(HERE), port))
        node.socket.listen((HERE,))
        node.socket.start()
        until(lambda: "another program" in node.socket.problem, "it was told")
        assert str(port) in node.socket.problem
    until(lambda: not node.socket.problem, "the port was taken")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"hello", (str(HERE), port))
    assert node.heard.get(timeout=DEADLINE_S) == b"hello"
    node.socket.stop(DEADLINE_S)


def test_an_address_that_is_not_there_is_told_until_it_is_not_meant_any_more(port: int) -> None:
    node = Node(port)
    node.socket.listen((ip_address("192.0.2.77"), HERE))
    node.socket.start()
    until(lambda: "192.0.2.77" in node.socket.problem, "it was told")
    until(lambda: node.socket.is_open, "the other one was bound")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(b"hello", (str(HERE), port))
    assert node.heard.get(timeout=DEADLINE_S) == b"hello"
    node.socket.listen((HERE,))
    until(lambda: not node.socket.problem, "it was over")
    node.socket.stop(DEADLINE_S)
