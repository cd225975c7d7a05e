"""Contract of ports_conntrack.Conntrack, on the fake and in a fresh network namespace, whose table
the tests fill and look at by netlink."""

import socket
from collections.abc import Iterator
from contextlib import closing
from struct import pack
from typing import Protocol

import pytest

from kube_router_py.errors import PreflightError
from kube_router_py.kernel import conntrack as adapter
from kube_router_py.kernel.conntrack import NetlinkConntrack
from kube_router_py.kernel.fake import FakeConntrack
from kube_router_py.kernel.fake_conntrack import FakeConntrackKernel, FakeFlow
from kube_router_py.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkSocket,
    attribute,
    attributes,
    message,
    nested,
)
from kube_router_py.kernel.ports_conntrack import Conntrack

pytestmark = pytest.mark.parametrize(
    "world", ["fake", pytest.param("real", marks=pytest.mark.netfilter)], indirect=True
)

NEW, GET = 0x100, 0x101
ORIG, REPLY, TIMEOUT, ZONE = 1, 2, 7, 18
IP, PROTO = 1, 2

POD, OTHER, SERVICE, NODE = "10.244.1.10", "10.244.1.11", "10.96.0.1", "192.168.1.1"
POD6, OTHER6 = "fd00:10:244:1::a", "fd00:10:244:1::b"
FAR = "203.0.113.10"


def direct(client: str, server: str, port: int = 40000) -> FakeFlow:
    return FakeFlow(client, server, server, client, port)


class Table(Protocol):
    """The connections of a namespace."""

    def add(self, *flows: FakeFlow, zone: int = 0) -> None: ...
    def flows(self) -> set[FakeFlow]: ...


class FakeTable:
    def __init__(self, kernel: FakeConntrackKernel) -> None:
        self._kernel = kernel

    def add(self, *flows: FakeFlow, zone: int = 0) -> None:
        self._kernel.flows |= {*flows}

    def flows(self) -> set[FakeFlow]:
        return set(self._kernel.flows)


class RealTable:
    def __init__(self, sock: NetlinkSocket) -> None:
        self._sock = sock

    def add(self, *flows: FakeFlow, zone: int = 0) -> None:
        first = self._sock.reserve(len(flows))
        refused = self._sock.batch(
            message(NEW, NLM_F_CREATE | NLM_F_EXCL, first + number, _entry(flow, zone))
            for number, flow in enumerate(flows)
        )
        assert not refused

    def flows(self) -> set[FakeFlow]:
        return {_flow(each) for each in self._sock.dump(GET, bytes(4))}


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _tuple(kind: int, src: str, dst: str, sport: int, dport: int) -> bytes:
    first = 3 if ":" in src else 1
    addresses = (attribute(first, _packed(src)), attribute(first + 1, _packed(dst)))
    ports = (attribute(2, pack("!H", sport)), attribute(3, pack("!H", dport)))
    number = attribute(1, bytes([socket.IPPROTO_UDP]))
    return nested(kind, nested(IP, *addresses), nested(PROTO, number, *ports))


def _entry(flow: FakeFlow, zone: int) -> bytes:
    family = socket.AF_INET6 if ":" in flow.client else socket.AF_INET
    return (
        bytes((family, 0, 0, 0))
        + _tuple(ORIG, flow.client, flow.server, flow.client_port, 53)
        + _tuple(REPLY, flow.answers_from, flow.answers_to, 53, flow.client_port)
        + attribute(TIMEOUT, pack("!I", 600))
        + (attribute(ZONE, pack("!H", zone)) if zone else b"")
    )


def _flow(payload: bytes) -> FakeFlow:
    found = dict(attributes(payload, 4))
    ends = []
    for kind in (ORIG, REPLY):
        for _, value in attributes(dict(attributes(found[kind]))[IP]):
            family = socket.AF_INET6 if len(value) == 16 else socket.AF_INET
            ends.append(socket.inet_ntop(family, value))
    ports = dict(attributes(dict(attributes(found[ORIG]))[PROTO]))
    return FakeFlow(ends[0], ends[1], ends[2], ends[3], int.from_bytes(ports[2], "big"))


@pytest.fixture
def both(world: str) -> Iterator[tuple[Conntrack, Table]]:
    if world == "fake":
        kernel = FakeConntrackKernel()
        yield FakeConntrack(kernel), FakeTable(kernel)
        return
    with closing(NetlinkSocket(NETLINK_NETFILTER)) as sock:
        yield NetlinkConntrack(), RealTable(sock)


# The address is the original source or destination, or only one of the reply's.
OF_POD = [
    direct(POD, FAR),
    direct(FAR, POD),
    FakeFlow(POD, FAR, FAR, NODE, 40001),
    FakeFlow(FAR, SERVICE, POD, FAR, 40004),
    FakeFlow(FAR, SERVICE, POD, NODE, 40001),
    FakeFlow(OTHER, SERVICE, FAR, POD, 40003),
]
OF_OTHERS = [
    direct(OTHER, FAR),
    direct(FAR, "10.244.1.1"),
    direct("10.244.1.100", FAR),
    FakeFlow(FAR, SERVICE, OTHER, NODE, 40002),
    direct(OTHER6, POD6),
    # Its ports have the bytes of the address.
    direct("10.244.0.0", "10.244.0.1", 0x0AF4),
]


def test_every_entry_with_an_address_goes_and_no_other(both: tuple[Conntrack, Table]) -> None:
    conntrack, table = both
    table.add(*OF_POD, *OF_OTHERS)
    assert table.flows() == {*OF_POD, *OF_OTHERS}
    assert conntrack.forget([POD]) == []
    assert table.flows() == {*OF_OTHERS}
    assert conntrack.writes == len(OF_POD)


def test_addresses_of_both_families_go_together(both: tuple[Conntrack, Table]) -> None:
    conntrack, table = both
    table.add(direct(POD, FAR), direct(POD6, OTHER6), direct(OTHER6, POD6, 1), direct(OTHER, FAR))
    assert conntrack.forget({POD, POD6}) == []
    assert table.flows() == {direct(OTHER, FAR)}


def test_an_address_of_ipv6_alone(both: tuple[Conntrack, Table]) -> None:
    conntrack, table = both
    left = direct(OTHER6, "fd00:10:244:1::aa"), direct(POD, FAR)
    table.add(direct(POD6, OTHER6), *left)
    assert conntrack.forget([POD6]) == []
    assert table.flows() == {*left}


def test_what_is_not_there_is_no_failure(both: tuple[Conntrack, Table]) -> None:
    conntrack, table = both
    assert conntrack.forget([POD, POD6]) == []
    table.add(*OF_OTHERS)
    assert conntrack.forget([POD]) == []
    assert conntrack.forget([]) == []
    assert (table.flows(), conntrack.writes) == ({*OF_OTHERS}, 0)


def test_an_entry_in_a_zone_of_its_own_goes_too(both: tuple[Conntrack, Table]) -> None:
    conntrack, table = both
    table.add(direct(POD, FAR), direct(OTHER, FAR), zone=7)
    assert conntrack.forget([POD]) == []
    assert table.flows() == {direct(OTHER, FAR)}


def test_many_entries_and_many_addresses(both: tuple[Conntrack, Table]) -> None:
    """More than one send and one reply can hold."""
    conntrack, table = both
    pods = [f"10.244.1.{number}" for number in range(1, 101)]
    table.add(*(direct(pod, FAR, 1024 + port) for pod in pods for port in range(30)))
    assert conntrack.forget(pods[:60]) == []
    assert len(table.flows()) == 40 * 30
    assert conntrack.writes == 60 * 30


def test_a_kernel_that_does_not_tell_is_named(
    both: tuple[Conntrack, Table], world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conntrack, _ = both
    if world == "real":
        # A subsystem that no kernel has: what nfnetlink says where the module is missing.
        monkeypatch.setattr(adapter, "_GET", 0xFE << 8 | 1)
    else:
        assert isinstance(conntrack, FakeConntrack)
        conntrack.kernel.error = PreflightError("load the module nf_conntrack_netlink")
    with pytest.raises(PreflightError, match="nf_conntrack_netlink"):
        conntrack.forget([POD])
