"""What somebody takes away from the overlay, as a real kernel tells of it."""

import queue
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address, ip_network

import pytest

from kube_router_py.kernel.overlay_monitor import OverlayMonitor

pytestmark = pytest.mark.netfilter

_DEADLINE_S = 60.0
_MARK = ip_address("203.0.113.0")
# What one call was made for: the messages of which each is a change.
Told = queue.Queue[tuple[bytes, ...]]


class Noting(OverlayMonitor):
    """A monitor that says what it calls for."""

    def __init__(self, told: Told) -> None:
        super().__init__(self._tell)
        self._told = told
        self._noted: list[bytes] = []

    def note(self, kind: int, data: bytes, start: int, end: int) -> bool:
        is_change = super().note(kind, data, start, end)
        if is_change:
            self._noted.append(data[start:end])
        return is_change

    def _tell(self) -> None:
        self._told.put(tuple(self._noted))
        self._noted.clear()


def sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, timeout=60)


@pytest.fixture
def told(new_namespace: Callable[[], AbstractContextManager[None]]) -> Iterator[Told]:
    """What a monitor tells, for a namespace with eth0 (watched), pod0 and vxlan devices, routes,
    rules and neighbours as the agent makes them."""
    found: Told = queue.Queue()
    with new_namespace():
        sh(
            "ip link add eth0 type veth peer name beyond",
            "ip link set beyond up",
            "ip link set eth0 up",
            "ip addr add 192.0.2.1/24 dev eth0",
            "ip addr add 2001:db8::1/64 dev eth0 nodad",
            "ip link add pod0 type veth peer name pod1",
        )
        for name, local, there, pods in (
            ("tun-vxlan", "192.0.2.1", "198.51.100.2", "10.244.2.0/24"),
            ("tun-vxlan6", "2001:db8::1", "2001:db8:1::2", "fd00:10:2::/64"),
        ):
            option = "-6" if ":" in local else "-4"
            metric = "metric 1" if ":" in local else ""
            sh(
                f"ip link add {name} type vxlan id 77 local {local} dstport 5555 nolearning",
                f"ip link set {name} up",
                f"ip neigh add {there} lladdr 02:00:00:00:00:01 dev {name} nud permanent",
                f"bridge fdb append 02:00:00:00:00:01 dev {name} dst {there}",
                f"ip {option} route add {pods} via {there} dev {name} onlink proto 75 {metric}",
                f"ip {option} route add {there} dev {name} proto 75 table 77 {metric}",
                f"ip {option} rule add from {pods} lookup 77 priority 32763 protocol 75",
            )
        monitor = Noting(found)
        monitor.watch(["eth0"], [ip_network("10.244.2.0/24"), ip_network("fd00:10:2::/64")])
        monitor.start()
        # It remembers links from the first word about them.
        for name in ("eth0", "tun-vxlan", "tun-vxlan6"):
            sh(f"ip link set {name} mtu 1480", f"ip link set {name} mtu 1490")
        quiet(found)
        yield found
        monitor.stop(_DEADLINE_S)


def mark() -> None:
    """A change that is told; what comes before it is told before, or with it."""
    sh(f"ip route add {_MARK}/24 dev eth0 proto 75", f"ip route del {_MARK}/24 proto 75")


def quiet(told: Told) -> None:
    """Wait until what happened so far has been told, and forget all of it."""
    mark()
    while not any(_MARK.packed in each for each in told.get(timeout=_DEADLINE_S)):
        pass


@pytest.mark.parametrize(
    "command",
    [
        "ip link set eth0 down",
        "ip link set tun-vxlan down",
        "ip link set tun-vxlan6 mtu 1400",
        "ip link del tun-vxlan",
        "ip route flush proto 75",
        "ip -6 route flush proto 75",
        "ip route flush table 77",
        "ip rule del priority 32763",
        "ip -6 rule del priority 32763",
        "ip neigh del 198.51.100.2 dev tun-vxlan",
        "bridge fdb del 02:00:00:00:00:01 dev tun-vxlan6 dst 2001:db8:1::2",
        "ip route replace 10.244.2.0/24 via 192.0.2.9",
        "ip -6 route replace fd00:10:2::/64 via 2001:db8::9 metric 1",
    ],
)
def test_what_is_taken_away_is_told(told: Told, command: str) -> None:
    sh(command)
    told.get(timeout=_DEADLINE_S)


def test_the_rest_is_not_told(told: Told) -> None:
    sh(
        "ip link set pod0 up",
        "ip link set pod1 up",
        "ip link set eth0 txqueuelen 500",
        "ip link add tun-foreign type vxlan id 9 dstport 4789 dev eth0",
        "ip link del tun-foreign",
        "ip route add 10.99.0.0/16 via 192.0.2.9",
        "ip route del 10.99.0.0/16",
        "ip route add 10.244.2.0/24 via 192.0.2.9 proto bgp metric 20",
        "ip route del 10.244.2.0/24 proto bgp",
        "ip rule add from 10.9.0.0/16 lookup 77",
        "ip rule del from 10.9.0.0/16 lookup 77",
        "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0",
        "ip neigh del 192.0.2.9 dev eth0",
    )
    # Whatever came before this was not told, if this is all there is.
    mark()
    (change,) = told.get(timeout=_DEADLINE_S)
    assert _MARK.packed in change
