"""What the links adapter does to a real kernel: whose routes it touches, what packets then do."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.links import VIP_LINK, NetlinkLinks
from kube_router_py.kernel.vip_messages import KEEPER
from kube_router_py.proxy.model import Vip

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("world", ["real"], indirect=True),
]


def vip(text: str) -> Vip:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return Vip(family, socket.inet_pton(family, text))


VIP4, VIP6 = vip("10.96.0.10"), vip("fd00:10:96::a")
NODE4, NODE6 = vip("192.0.2.1").address, vip("2001:db8::1").address
WANTED = {VIP4: NODE4, VIP6: NODE6}


def ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def local_routes(address: str) -> list[dict[str, Any]]:
    family = "-6" if ":" in address else "-4"
    text = ip("-json", family, "route", "show", "table", "local", address)
    return [route for route in json.loads(text or "[]") if route["dst"] == address]


@pytest.fixture
def node(world: str) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", "eth0", "type", "dummy")
    ip("link", "set", "eth0", "up")
    ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    ip("address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")


@pytest.fixture(params=["route", "address"])
def links(node: None, request: pytest.FixtureRequest) -> Iterator[NetlinkLinks]:
    opened = NetlinkLinks(request.param)
    opened.ensure_vip_link()
    yield opened
    opened.close()


def answers(server_address: str, family: int) -> str:
    """Connect to a listener on all addresses by ``server_address``; returns the source seen."""
    with socket.create_server(("", 0), family=family) as server:
        server.settimeout(30)
        port = server.getsockname()[1]
        with socket.create_connection((server_address, port), timeout=30):
            connection, peer = server.accept()
            connection.close()
            return str(peer[0])


def test_the_node_reaches_a_vip_from_its_own_address(links: NetlinkLinks) -> None:
    links.apply_vips(WANTED, ())
    assert answers("10.96.0.10", socket.AF_INET) == "192.0.2.1"
    assert answers("fd00:10:96::a", socket.AF_INET6) == "2001:db8::1"


def test_our_routes_carry_our_protocol(links: NetlinkLinks) -> None:
    links.apply_vips(WANTED, ())
    for address, source in (("10.96.0.10", "192.0.2.1"), ("fd00:10:96::a", "2001:db8::1")):
        (route,) = local_routes(address)
        assert route["protocol"] == "75"
        assert route["dev"] == VIP_LINK
        assert route["prefsrc"] == source


@pytest.mark.parametrize(("mode", "expected"), [("route", []), ("address", [VIP4, VIP6])])
def test_addresses_only_in_mode_address(node: None, mode: str, expected: list[Vip]) -> None:
    links = NetlinkLinks(mode)
    links.ensure_vip_link()
    links.apply_vips(WANTED, ())
    (link,) = json.loads(ip("-json", "address", "show", "dev", VIP_LINK))
    found = [vip(each["local"]) for each in link["addr_info"] if each["local"][:4] != "fe80"]
    assert found == [KEEPER, *expected]
    links.close()


def test_foreign_routes_are_left_alone(links: NetlinkLinks) -> None:
    ip("route", "add", "local", "10.96.0.10", "dev", "eth0", "proto", "static", "metric", "9")
    ip("route", "add", "local", "10.96.0.99", "dev", VIP_LINK, "proto", "static")
    ip("-6", "route", "add", "local", "fd00:10:96::a", "dev", "eth0", "proto", "static")
    ip("address", "add", "10.96.0.10/32", "dev", "eth0")
    foreign = [local_routes(a) for a in ("10.96.0.10", "10.96.0.99", "fd00:10:96::a")]
    assert vip("10.96.0.99") not in links.read_vips()
    links.apply_vips(WANTED, ())
    assert set(links.read_vips()) == set(WANTED)
    links.apply_vips({VIP4: b"", VIP6: b""}, [vip("10.96.0.99")])
    links.apply_vips({}, WANTED)
    assert [local_routes(a) for a in ("10.96.0.10", "10.96.0.99", "fd00:10:96::a")] == foreign


def test_what_kube_router_left_is_taken_over(links: NetlinkLinks) -> None:
    ip("address", "add", "10.96.0.10/32", "dev", VIP_LINK, "scope", "link")
    ip("address", "add", "fd00:10:96::a/128", "dev", VIP_LINK, "nodad")
    route = ("table", "local", "proto", "kernel", "scope", "host", "src", "192.0.2.1")
    ip("route", "replace", "local", "10.96.0.10", "dev", VIP_LINK, *route)
    ip("route", "add", "local", "10.96.0.11", "dev", VIP_LINK, *route)
    standing = links.read_vips()
    assert set(standing) == {*WANTED, vip("10.96.0.11")}
    assert all(standing[each] != source for each, source in WANTED.items())
    assert links.apply_vips(WANTED, [vip("10.96.0.11")]) == []
    assert links.read_vips() == WANTED
    assert local_routes("10.96.0.11") == []
    assert [len(local_routes(a)) for a in ("10.96.0.10", "fd00:10:96::a")] == [1, 1]
    links.apply_vips({}, WANTED)
    assert links.read_vips() == {}
    assert [local_routes(a) for a in ("10.96.0.10", "fd00:10:96::a")] == [[], []]


class RouteMonitor:
    """What the kernel tells of route changes, while it is entered."""

    def __enter__(self) -> "RouteMonitor":
        self._lines: list[str] = []
        command = ["ip", "-oneline", "monitor", "route"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.settle("198.51.100.0/24")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._reader.join(30)
        self._process.wait(30)

    def settle(self, prefix: str) -> list[str]:
        """Change an unrelated route until that is told: by then, all changes before it are.

        It comes and goes each time, for putting what stands already is not told.
        """
        for _ in range(100):
            ip("route", "replace", "blackhole", prefix)
            ip("route", "delete", "blackhole", prefix)
            told = list(self._lines)
            if any(prefix in line for line in told):
                return told
        raise AssertionError("ip monitor tells nothing")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._lines.append(line)


@pytest.mark.parametrize("modes", [("route", "address"), ("address", "route")])
def test_a_conversion_never_leaves_a_vip_without_a_route(
    node: None, modes: tuple[str, str]
) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(closing(NetlinkLinks(mode))) for mode in modes)
        first.ensure_vip_link()
        first.apply_vips(WANTED, ())
        assert second.read_vips() != WANTED
        texts = ("10.96.0.10", "fd00:10:96::a")
        standing = {text: {route["protocol"] for route in local_routes(text)} for text in texts}
        monitor = stack.enter_context(RouteMonitor())
        assert second.apply_vips(WANTED, ()) == []
        changes = [line for line in monitor.settle("203.0.113.0/24") if VIP_LINK in line]
        assert changes
        for line in changes:
            words = line.split()
            for text in texts:
                if text in words:
                    protocol = words[words.index("proto") + 1]
                    change = set.discard if "Deleted" in words else set.add
                    change(standing[text], protocol)
                    assert standing[text], changes
        assert standing == {text: {"75"} for text in texts}, changes
        assert second.read_vips() == WANTED


def test_ten_thousand_vips_in_one_call(node: None) -> None:
    links = NetlinkLinks()
    links.ensure_vip_link()
    many = {Vip(socket.AF_INET, bytes((10, 100, n >> 8, n & 255))): NODE4 for n in range(10_000)}
    assert links.apply_vips(many, ()) == []
    assert links.read_vips() == many
    assert links.apply_vips({}, many) == []
    assert links.read_vips() == {}
    links.close()


def test_a_link_of_another_kind_is_not_taken(node: None) -> None:
    ip("link", "add", VIP_LINK, "type", "bridge")
    links = NetlinkLinks()
    with pytest.raises(KernelError, match="bridge"):
        links.ensure_vip_link()
    links.remove_vip_link()
    assert VIP_LINK in ip("link", "show")
    assert links.writes == 0
    links.close()


def test_the_link_of_kube_router_is_not_removed(node: None) -> None:
    ip("link", "add", VIP_LINK, "type", "dummy")
    links = NetlinkLinks()
    assert not links.owns_vip_link()
    links.remove_vip_link()
    assert VIP_LINK in ip("link", "show")
    links.ensure_vip_link()
    assert links.owns_vip_link()
    links.remove_vip_link()
    assert VIP_LINK not in ip("link", "show")
    links.close()


def test_a_link_replaced_behind_our_back_is_noticed(links: NetlinkLinks) -> None:
    links.apply_vips(WANTED, ())
    ip("link", "delete", VIP_LINK)
    assert links.read_vips() == {}
    links.ensure_vip_link()
    assert links.apply_vips(WANTED, ()) == []
    assert links.read_vips() == WANTED


def test_routes_outlive_a_foreign_address_on_the_link(links: NetlinkLinks) -> None:
    links.apply_vips(WANTED, ())
    ip("address", "add", "198.51.100.7/32", "dev", VIP_LINK)
    assert vip("198.51.100.7") in links.read_vips()
    ip("address", "delete", "198.51.100.7/32", "dev", VIP_LINK)
    assert links.read_vips() == WANTED
