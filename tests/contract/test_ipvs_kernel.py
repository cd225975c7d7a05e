"""IPVS of the real kernel: the fake is like it, and what only a kernel can show."""

import socket
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kube_router_py.kernel.fake import FakeIpvs
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.kernel.netlink import (
    NETLINK_GENERIC,
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NetlinkSocket,
    attribute,
    family_id,
    nested,
)
from kube_router_py.proxy.model import (
    Connections,
    IpvsOperation,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)

pytestmark = pytest.mark.kernel

INET, INET6 = socket.AF_INET.value, socket.AF_INET6.value
RTM_NEWADDR = 20
NewNamespace = Callable[[], AbstractContextManager[None]]


def ip(text: str) -> bytes:
    return socket.inet_pton(INET6 if ":" in text else INET, text)


def server(text: str, port: int, protocol: int) -> VirtualServerKey:
    return VirtualServerKey(INET6 if ":" in text else INET, protocol, ip(text), port)


def real(text: str, port: int = 8080) -> RealServerKey:
    return RealServerKey(INET6 if ":" in text else INET, ip(text), port)


def add(key: VirtualServerKey) -> IpvsOperation:
    return IpvsOperation(Verb.ADD_VIRTUAL_SERVER, key, VirtualServer())


def add_real(key: VirtualServerKey, name: RealServerKey) -> IpvsOperation:
    return IpvsOperation(Verb.ADD_REAL_SERVER, key, real_server=name, real=RealServer())


WEB = server("10.96.0.10", 80, 6)
ICMP = server("10.9.9.9", 0, 1)


# Small pools, so that random operations meet; nothing that depends on the addresses of links.
_keys = st.sampled_from(
    [WEB, server("10.96.0.10", 80, 17), server("fd00::10", 80, 6), ICMP]
    + [VirtualServerKey(family, 0, b"", 0, 1) for family in (INET, INET6)]
)
_configs = st.builds(
    VirtualServer,
    st.sampled_from(["rr", "wrr", "sh", "mh", "foo", "x" * 16]),
    st.sampled_from([0, 4, 8, 0x18, 0x38, 1]),
    st.sampled_from([0, 1, 10800]),
    st.sampled_from([0, 16, 32, 64, 128]),
)
_addresses = ("10.244.1.2", "10.244.1.3", "fd01::2", "fd01::3")
_unusable = ("224.0.0.1", "255.255.255.255", "fe80::1", "::")
_names = st.sampled_from([real("10.244.1.2", 81), *map(real, _addresses + _unusable)])
_values = st.builds(
    RealServer,
    st.sampled_from([1, 0, 100, -1]),
    st.sampled_from([0, 2, 2, 3, 5]),
    st.sampled_from([0, 10]),
    st.sampled_from([0, 5, 11]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 5555]),
    st.sampled_from([0, 1]),
)
_server_verbs = st.sampled_from(
    [Verb.ADD_VIRTUAL_SERVER, Verb.SET_VIRTUAL_SERVER, Verb.DELETE_VIRTUAL_SERVER]
)
_real_verbs = st.sampled_from([Verb.ADD_REAL_SERVER, Verb.SET_REAL_SERVER, Verb.DELETE_REAL_SERVER])
_operations = st.one_of(
    st.builds(IpvsOperation, _server_verbs, _keys, config=_configs),
    st.builds(add, _keys),
    st.builds(IpvsOperation, _real_verbs, _keys, real_server=_names, real=_values),
    st.builds(add_real, _keys, _names),
)


# No shrinking: where this runs, Python is emulated and a minute each step.
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])
@given(batches=st.lists(st.lists(_operations, max_size=25), max_size=4))
def test_any_operations_have_the_same_effect_on_the_fake(
    new_namespace: NewNamespace, batches: list[list[IpvsOperation]]
) -> None:
    with new_namespace(), closing(NetlinkIpvs()) as kernel:
        fake = FakeIpvs()
        for batch in batches:
            assert fake.apply(batch) == kernel.apply(batch)
            assert fake.read() == kernel.read()
        assert fake.writes == kernel.writes


def test_connections_and_traffic_are_counted_by_the_kernel(new_namespace: NewNamespace) -> None:
    vip, pod = "10.96.0.10", "127.0.0.1"
    with new_namespace(), closing(NetlinkIpvs()) as adapter, ExitStack() as stack:
        route = stack.enter_context(closing(NetlinkSocket(NETLINK_ROUTE)))
        address = struct.pack("=BBBBI", INET, 32, 0, 254, socket.if_nametoindex("lo"))
        route.request(RTM_NEWADDR, address + attribute(2, ip(vip)), NLM_F_CREATE)
        listener = stack.enter_context(socket.create_server((pod, 0)))
        name = real(pod, listener.getsockname()[1])
        assert adapter.apply([add(WEB), add_real(WEB, name)]) == []
        assert adapter.version.version.startswith("1.2.")
        assert adapter.version.table_size >= 256
        stack.enter_context(socket.create_connection((vip, 80), timeout=30))
        assert adapter.read_connections(WEB) == {name: Connections(1, 0, 0)}
        deadline = time.monotonic() + 60  # the kernel sums the counters up every 2 s
        while (traffic := adapter.read_traffic()[WEB]).connections == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert traffic.connections == 1
        assert traffic.packets_in >= 2
        assert traffic.bytes_in >= 80


def test_what_another_program_made_wrongly_is_read_and_can_be_deleted(
    new_namespace: NewNamespace,
) -> None:
    service = nested(
        1,
        attribute(1, struct.pack("=H", INET)),
        attribute(2, struct.pack("=H", 1)),  # ICMP: the kernel does not mind
        attribute(3, ICMP.address + bytes(12)),
        attribute(4, bytes(2)),
        attribute(6, b"rr\0"),
        attribute(7, struct.pack("=II", 1, 1)),  # persistent, for 0 s
        attribute(8, bytes(4)),
        attribute(9, b"\xff" * 4),
    )
    with new_namespace(), closing(NetlinkIpvs()) as adapter:
        with closing(NetlinkSocket(NETLINK_GENERIC)) as raw:
            raw.request(family_id(raw, "IPVS"), b"\1\1\0\0" + service)
        assert adapter.read() == {ICMP: VirtualServerState(VirtualServer(flags=1), {})}
        assert adapter.apply([IpvsOperation(Verb.DELETE_VIRTUAL_SERVER, ICMP)]) == []
        assert adapter.read() == {}
