"""Contract of ports.Links, on the fake and through rtnetlink in a fresh network namespace."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_host import FakeLinkKernel, FakeLinks
from kube_router_py.kernel.links import VIP_LINK, NetlinkLinks
from kube_router_py.kernel.ports import Links, NodeAddress
from kube_router_py.proxy.model import Vip


def vip(text: str) -> Vip:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return Vip(family, socket.inet_pton(family, text))


NODE4, NODE6 = vip("192.0.2.1").address, vip("2001:db8::1").address
OTHER4, OTHER6 = vip("192.0.2.2").address, vip("2001:db8::2").address
ADDRESSES = (
    NodeAddress(socket.AF_INET, NODE4, 24, "eth0"),
    NodeAddress(socket.AF_INET, OTHER4, 24, "eth0"),
    NodeAddress(socket.AF_INET6, NODE6, 64, "eth0"),
    NodeAddress(socket.AF_INET6, OTHER6, 64, "eth0"),
)
VIP4, VIP6 = vip("10.96.0.10"), vip("fd00:10:96::a")
WANTED = {VIP4: NODE4, VIP6: NODE6}


def ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Namespace:
    """One network namespace, fake or real, whose node has ADDRESSES on eth0."""

    def __init__(self, world: str) -> None:
        self._kernel: FakeLinkKernel | None = None
        if world == "fake":
            self._kernel = FakeLinkKernel()
            self._kernel.addresses += ADDRESSES
            return
        ip("link", "set", "lo", "up")
        ip("link", "add", "eth0", "type", "dummy")
        ip("link", "set", "eth0", "up")
        for each in ADDRESSES:
            text = f"{socket.inet_ntop(each.family, each.address)}/{each.prefix_length}"
            nodad = ["nodad"] if each.family == socket.AF_INET6 else []
            ip("address", "add", text, "dev", "eth0", *nodad)

    def open(self, mode: str) -> Links:
        return NetlinkLinks(mode) if self._kernel is None else FakeLinks(mode, self._kernel)

    def set_down(self) -> None:
        if self._kernel is None:
            ip("link", "set", VIP_LINK, "down")
        else:
            self._kernel.set_down()


@pytest.fixture
def namespace(world: str) -> Namespace:
    return Namespace(world)


@pytest.fixture(params=["route", "address"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def links(namespace: Namespace, mode: str) -> Iterator[Links]:
    opened = namespace.open(mode)
    opened.ensure_vip_link()
    yield opened
    opened.close()


def test_the_vip_link_is_made_once(namespace: Namespace, mode: str) -> None:
    links = namespace.open(mode)
    assert links.read_vips() == {}
    links.ensure_vip_link()
    assert links.writes > 0
    restarted = namespace.open(mode)
    restarted.ensure_vip_link()
    assert restarted.writes == 0
    links.close()
    restarted.close()


def test_vips_need_the_link(namespace: Namespace, mode: str) -> None:
    links = namespace.open(mode)
    with pytest.raises(KernelError):
        links.apply_vips(WANTED, ())
    links.close()


def test_vips_are_put_and_read_back(links: Links) -> None:
    assert links.apply_vips(WANTED, ()) == []
    assert links.read_vips() == WANTED


def test_vips_without_a_source(links: Links) -> None:
    wanted = {VIP4: b"", VIP6: b""}
    assert links.apply_vips(wanted, ()) == []
    assert links.read_vips() == wanted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (WANTED, {VIP4: OTHER4, VIP6: OTHER6}),
        (WANTED, {VIP4: b"", VIP6: b""}),
        ({VIP4: b"", VIP6: b""}, WANTED),
    ],
)
def test_the_source_changes(
    links: Links, before: dict[Vip, bytes], after: dict[Vip, bytes]
) -> None:
    links.apply_vips(before, ())
    assert links.apply_vips(after, ()) == []
    assert links.read_vips() == after


def test_vips_are_removed(links: Links) -> None:
    links.apply_vips({**WANTED, vip("10.96.0.11"): b""}, ())
    assert links.apply_vips({vip("10.96.0.12"): NODE4}, [VIP4, vip("10.96.0.11")]) == []
    assert links.read_vips() == {VIP6: NODE6, vip("10.96.0.12"): NODE4}
    assert links.apply_vips({}, [VIP6, vip("10.96.0.12")]) == []
    assert links.read_vips() == {}


def test_putting_and_removing_twice_is_no_failure(links: Links) -> None:
    assert links.apply_vips(WANTED, ()) == []
    assert links.apply_vips(WANTED, ()) == []
    assert links.read_vips() == WANTED
    assert links.apply_vips({}, WANTED) == []
    assert links.apply_vips({}, WANTED) == []
    assert links.read_vips() == {}


def test_a_restart_finds_what_stands_without_writing(
    namespace: Namespace, links: Links, mode: str
) -> None:
    links.apply_vips(WANTED, ())
    restarted = namespace.open(mode)
    restarted.ensure_vip_link()
    assert restarted.read_vips() == WANTED
    assert restarted.apply_vips({}, ()) == []
    assert restarted.writes == 0
    assert restarted.apply_vips({}, [VIP4]) == []
    assert restarted.read_vips() == {VIP6: NODE6}
    restarted.close()


def test_one_failure_leaves_the_others(links: Links) -> None:
    nowhere = vip("203.0.113.9").address
    failures = links.apply_vips({VIP4: nowhere, VIP6: NODE6, vip("10.96.0.11"): NODE4}, ())
    assert [(failure.vip, failure.errno) for failure in failures] == [(VIP4, 22)]
    standing = links.read_vips()
    assert standing[VIP6] == NODE6
    assert standing[vip("10.96.0.11")] == NODE4
    assert standing.get(VIP4) != nowhere
    assert links.apply_vips(WANTED, ()) == []
    assert links.read_vips() == {**WANTED, vip("10.96.0.11"): NODE4}


def test_a_failed_change_leaves_the_vip_as_it_was(links: Links) -> None:
    links.apply_vips(WANTED, ())
    assert len(links.apply_vips({VIP4: vip("203.0.113.9").address}, ())) == 1
    assert links.read_vips() == WANTED


@pytest.mark.parametrize("sources", [WANTED, {VIP4: b"", VIP6: b""}])
def test_the_other_mode_takes_over(
    namespace: Namespace, links: Links, mode: str, sources: dict[Vip, bytes]
) -> None:
    links.apply_vips(sources, ())
    other = namespace.open("address" if mode == "route" else "route")
    standing = other.read_vips()
    assert standing.keys() == sources.keys()
    assert all(standing[each] != sources[each] for each in sources)
    assert other.apply_vips(sources, ()) == []
    assert other.read_vips() == sources
    assert all(links.read_vips()[each] != sources[each] for each in sources)
    assert links.apply_vips(sources, ()) == []
    assert links.read_vips() == sources
    other.close()


def test_the_other_modes_vips_can_be_removed(namespace: Namespace, links: Links, mode: str) -> None:
    links.apply_vips(WANTED, ())
    other = namespace.open("address" if mode == "route" else "route")
    assert other.apply_vips({}, other.read_vips()) == []
    assert other.read_vips() == {}
    assert links.read_vips() == {}
    other.close()


def test_what_a_link_down_lost_is_put_again(namespace: Namespace, links: Links) -> None:
    links.apply_vips(WANTED, ())
    namespace.set_down()
    links.ensure_vip_link()
    standing = links.read_vips()
    missing = {each: source for each, source in WANTED.items() if standing.get(each) != source}
    assert VIP6 in missing  # the local routes of IPv4 survive
    assert links.apply_vips(missing, ()) == []
    assert links.read_vips() == WANTED


def test_node_addresses_are_those_of_the_other_links(links: Links) -> None:
    links.apply_vips(WANTED, ())
    found = links.node_addresses()
    assert set(ADDRESSES) <= set(found)
    assert {(each.link, each.address) for each in found if each.link == "lo"} == {
        ("lo", vip("127.0.0.1").address),
        ("lo", vip("::1").address),
    }
    assert not {each.address for each in found} & {VIP4.address, VIP6.address}
    assert {each.link for each in found} == {"lo", "eth0"}


def test_removing_the_link_removes_the_vips(links: Links) -> None:
    links.apply_vips(WANTED, ())
    links.remove_vip_link()
    assert links.read_vips() == {}
    before = links.writes
    links.remove_vip_link()
    assert links.writes == before
    links.ensure_vip_link()
    assert links.apply_vips(WANTED, ()) == []
    assert links.read_vips() == WANTED
