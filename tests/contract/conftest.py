"""One suite, two worlds: every contract test runs on the fake and on the real kernel.

``world`` is ``"fake"`` or ``"real"``. In the real one (marker ``kernel``, or ``netfilter`` where a
kernel without IPVS will do) the test's thread is in
a fresh network namespace of its own, and so are the adapters and child processes it makes.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put the calling thread into a new network namespace with ``lo`` up, and back afterwards.

    Without any address the kernel has no local routing table and takes every IPv4 address for a
    broadcast one, so that IPVS refuses all real servers.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"unshare(CLONE_NEWNET): {os.strerror(code)}")
        try:
            _bring_up_loopback()
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                os._exit(70)  # every later test would run in the wrong namespace
    finally:
        os.close(home)


@pytest.fixture(scope="session")
def new_namespace() -> Callable[[], AbstractContextManager[None]]:
    """``with new_namespace(): ...`` runs the block in a fresh network namespace."""
    if os.geteuid() != 0:
        pytest.skip("missing capability: root, to create network namespaces")
    return network_namespace


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which implementation the test is to use."""
    if request.param == "fake":
        yield "fake"
        return
    with request.getfixturevalue("new_namespace")():
        yield "real"


def _sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, timeout=60)


class Peer:
    """A network namespace beside the node's, joined by a veth pair; jobs run in its one thread."""

    def __init__(self, link: str, node_address: str, address: str) -> None:
        self._pool = ThreadPoolExecutor(1, initializer=self._enter)
        # "self" of a path means the process that opens it, which will be ip(8).
        here = f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net"
        _sh(
            f"ip link add {link} type veth peer name veth0",
            f"ip link set veth0 netns {here}",
            f"ip addr add {node_address} dev {link}",
            f"ip link set {link} up",
        )
        self.run(
            _sh,
            "ip link set lo up",
            "ip link set veth0 up",
            f"ip addr add {address} dev veth0",
            f"ip route add default via {node_address.partition('/')[0]}",
        )

    @staticmethod
    def _enter() -> None:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(call, *arguments).result(60.0)

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def peer() -> Iterator[Callable[[str, str, str], Peer]]:
    """Makes Peers of the calling thread's namespace: ``peer(link, node_address, address)``."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(closing(Peer(*arguments)))
