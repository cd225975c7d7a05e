"""Addresses that come and go, as a real kernel tells of them."""

import queue
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kube_router_py.kernel.address_monitor import AddressMonitor

pytestmark = pytest.mark.netfilter

_DEADLINE_S = 60.0


def sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, timeout=60)


@pytest.fixture
def told(new_namespace: Callable[[], AbstractContextManager[None]]) -> Iterator[queue.Queue[str]]:
    """What a monitor tells, for a namespace with the links eth0 and vips; vips is ignored."""
    found: queue.Queue[str] = queue.Queue()
    with new_namespace():
        sh(
            "ip link add eth0 type veth peer name vips",
            "ip link set eth0 up",
            "ip link set vips up",
        )
        monitor = AddressMonitor(lambda: found.put("changed"), ("vips",))
        monitor.start()
        yield found
        monitor.stop(_DEADLINE_S)


def quiet(told: "queue.Queue[str]") -> None:
    """Wait until what happened so far has been told: a last address is, and forget all of it."""
    sh("ip addr add 198.51.100.99/32 dev lo")
    told.get(timeout=_DEADLINE_S)
    sh("ip addr del 198.51.100.99/32 dev lo")
    told.get(timeout=_DEADLINE_S)
    while not told.empty():
        told.get()


@pytest.mark.parametrize("address", ["192.0.2.1/24", "2001:db8::1/64"])
def test_an_address_comes_and_goes(told: "queue.Queue[str]", address: str) -> None:
    sh(f"ip addr add {address} dev eth0")
    told.get(timeout=_DEADLINE_S)
    quiet(told)
    sh(f"ip addr del {address} dev eth0")
    told.get(timeout=_DEADLINE_S)


def test_what_is_said_again_and_what_is_ignored_is_not_told(told: "queue.Queue[str]") -> None:
    sh("ip addr add 192.0.2.1/24 dev eth0")
    told.get(timeout=_DEADLINE_S)
    quiet(told)
    for _ in range(3):
        sh("ip addr replace 192.0.2.1/24 dev eth0 valid_lft 3600 preferred_lft 3600")
    sh("ip addr add 10.96.0.1/32 dev vips", "ip addr del 10.96.0.1/32 dev vips")
    sh("ip addr add fe80::77/64 dev eth0 nodad", "ip addr del fe80::77/64 dev eth0")
    sh("ip addr add 198.51.100.99/32 dev lo")
    told.get(timeout=_DEADLINE_S)
    assert told.empty()
