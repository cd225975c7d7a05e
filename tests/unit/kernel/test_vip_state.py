"""How what stands for a VIP is reported, and what is sent to make it right."""

import errno
import socket
from collections.abc import Iterable

import pytest

from kube_router_py.errors import StateUnknownError
from kube_router_py.kernel import links as module
from kube_router_py.kernel import vip_messages as rt
from kube_router_py.kernel.links import NetlinkLinks
from kube_router_py.kernel.netlink import HEADER
from kube_router_py.kernel.vip_state import Standing
from kube_router_py.proxy.model import Vip

VIP = Vip(socket.AF_INET, bytes((10, 96, 0, 10)))
OTHER = Vip(socket.AF_INET, bytes((10, 96, 0, 11)))
VIP6 = Vip(socket.AF_INET6, bytes((0xFD, *[0] * 14, 1)))
NODE = bytes((192, 0, 2, 1))
INDEX = 7


@pytest.mark.parametrize(
    ("standing", "mode", "value"),
    [
        (Standing(source=NODE), "route", NODE),
        (Standing(source=b""), "route", b""),
        (Standing(source=NODE, address=True), "route", VIP.address),
        (Standing(source=NODE, kernel_route=True), "route", VIP.address),
        (Standing(kernel_route=True), "route", VIP.address),
        (Standing(address=True, source=NODE), "address", NODE),
        (Standing(address=True, source=VIP.address), "address", b""),
        (Standing(address=True, kernel_route=True), "address", b""),
        (Standing(address=True, source=NODE, kernel_route=True), "address", b""),
        (Standing(address=True), "address", VIP.address),
        (Standing(source=NODE), "address", VIP.address),
        (Standing(kernel_route=True), "address", VIP.address),
    ],
)
def test_values(standing: Standing, mode: str, value: bytes) -> None:
    assert standing.value(VIP, mode) == value


@pytest.mark.parametrize("vip", [VIP, VIP6])
@pytest.mark.parametrize("source", [b"", NODE])
def test_a_route_is_decoded_as_encoded(vip: Vip, source: bytes) -> None:
    payload = rt.put_route(vip, INDEX, source)
    # A dump repeats the table as an attribute; requests need not.
    dumped = payload + rt.attribute(15, (255).to_bytes(4, "little"))
    assert rt.decode_route(dumped, INDEX) == rt.LocalRoute(vip, 75, source)
    assert rt.decode_route(dumped, INDEX + 1) is None
    assert rt.decode_route(rt.delete_route(vip, INDEX, 2), INDEX) is None


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_an_address_is_decoded_as_encoded(vip: Vip) -> None:
    entry = rt.decode_address(rt.put_address(vip, INDEX))
    assert entry == rt.AddressEntry(vip.family, vip.address, len(vip.address) * 8, INDEX)


class Socket:
    """In the place of NetlinkSocket: answers dumps from lists, refuses what it is told to."""

    def __init__(self, *_: object, **__: object) -> None:
        self.routes: list[bytes] = []
        self.sent: list[list[tuple[int, bytes]]] = []
        self.refused: dict[int, int] = {}
        self.dumps = 0
        self.lost = False

    def reserve(self, count: int) -> int:
        return 1

    def dump(self, kind: int, payload: bytes = b"") -> list[bytes]:
        self.dumps += 1
        return self.routes if kind == rt.RTM_GETROUTE else []

    def batch(self, messages: Iterable[bytes]) -> dict[int, int]:
        if self.lost:
            raise StateUnknownError("no answer in time", errno.EAGAIN)
        kinds = [(HEADER.unpack_from(each)[1], each[HEADER.size :]) for each in messages]
        self.sent.append(kinds)
        refused = {
            1 + place: self.refused[kind]
            for place, (kind, _) in enumerate(kinds)
            if kind in self.refused
        }
        return refused

    def close(self) -> None: ...


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> NetlinkLinks:
    monkeypatch.setattr(module, "NetlinkSocket", Socket)
    monkeypatch.setattr(socket, "if_nametoindex", lambda _: INDEX)
    return NetlinkLinks()


def fake_socket(links: NetlinkLinks) -> Socket:
    found = links._socket
    assert isinstance(found, Socket)
    return found


def test_a_change_of_one_vip_is_one_message(links: NetlinkLinks) -> None:
    links.read_vips()
    fake = fake_socket(links)
    dumps = fake.dumps
    assert links.apply_vips({VIP: NODE}, [OTHER]) == []
    assert [[kind for kind, _ in batch] for batch in fake.sent if batch] == [[rt.RTM_NEWROUTE]]
    assert links.writes == 1
    links.apply_vips({}, [VIP])
    assert links.writes == 2
    assert fake.dumps == dumps


def test_after_lost_answers_the_kernel_is_read_again(links: NetlinkLinks) -> None:
    links.read_vips()
    fake = fake_socket(links)
    fake.lost = True
    with pytest.raises(StateUnknownError):
        links.apply_vips({VIP: NODE}, ())
    fake.lost = False
    dumps = fake.dumps
    assert links.apply_vips({VIP: NODE}, ()) == []
    assert fake.dumps > dumps


def test_what_a_failed_put_would_have_replaced_is_kept(links: NetlinkLinks) -> None:
    fake = fake_socket(links)
    table = rt.attribute(15, (255).to_bytes(4, "little"))
    fake.routes = [rt.delete_route(VIP, INDEX, rt.KERNEL_PROTOCOL) + table]
    assert links.read_vips() == {VIP: VIP.address}
    fake.refused = {rt.RTM_NEWROUTE: errno.EINVAL}
    (failure,) = links.apply_vips({VIP: NODE}, ())
    assert (failure.vip, failure.errno) == (VIP, errno.EINVAL)
    assert "preferred source" in failure.message
    assert rt.RTM_DELROUTE not in [kind for batch in fake.sent for kind, _ in batch]


def test_what_is_gone_already_is_no_failure(links: NetlinkLinks) -> None:
    links.read_vips()
    links.apply_vips({VIP: NODE}, ())
    fake_socket(links).refused = {rt.RTM_DELROUTE: errno.ESRCH}
    assert links.apply_vips({}, [VIP]) == []


def test_only_known_modes() -> None:
    with pytest.raises(ValueError, match="mode"):
        NetlinkLinks("adress")
