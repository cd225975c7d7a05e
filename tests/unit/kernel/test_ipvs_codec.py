"""IPVS messages, against a second, slow and obvious encoder."""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipvs_decode import (
    Traffic,
    decode_connections,
    decode_real_server,
    decode_timeouts,
    decode_traffic,
    decode_version,
    decode_virtual_server,
)
from kube_router_py.kernel.ipvs_encode import encode, real_servers_request, timeouts_request
from kube_router_py.kernel.ipvs_rules import Refused, check_operation
from kube_router_py.proxy.model import (
    Connections,
    IpvsOperation,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
)

FAMILY = 0x1D
COMMAND = {1: 1, 2: 5, 3: 2, 4: 6, 5: 7, 6: 3}  # verb to command


def attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def nest(kind: int, *members: bytes) -> bytes:
    return attr(kind | 0x8000, b"".join(members))


def key_attrs(key: VirtualServerKey) -> bytes:
    out = attr(1, struct.pack("=H", key.family))
    if key.fwmark:
        return out + attr(5, struct.pack("=I", key.fwmark))
    out += attr(2, struct.pack("=H", key.protocol))
    out += attr(3, key.address.ljust(16, b"\0"))
    return out + attr(4, struct.pack(">H", key.port))


def server_attrs(key: VirtualServerKey, config: VirtualServer) -> bytes:
    flags = config.flags | (1 if config.persistence_s else 0)
    if key.family == socket.AF_INET6:
        netmask = struct.pack("=I", config.prefix_length or 128)
    else:
        prefix = config.prefix_length or 32
        netmask = int("1" * prefix + "0" * (32 - prefix), 2).to_bytes(4, "big")
    out = attr(6, config.scheduler.encode() + b"\0")
    out += attr(7, struct.pack("=II", flags, 0x3D))
    out += attr(8, struct.pack("=I", config.persistence_s))
    return out + attr(9, netmask)


def real_key_attrs(key: RealServerKey) -> bytes:
    out = attr(1, key.address.ljust(16, b"\0")) + attr(2, struct.pack(">H", key.port))
    return out + attr(11, struct.pack("=H", key.family))


def real_attrs(real: RealServer) -> bytes:
    out = b""
    numbers = (real.forward, real.weight, real.upper_threshold, real.lower_threshold)
    for kind, number in zip((3, 4, 5, 6), numbers, strict=True):
        out += attr(kind, struct.pack("=I", number))
    if real.tunnel_type or real.tunnel_port or real.tunnel_flags:
        out += attr(13, struct.pack("=B", real.tunnel_type))
        out += attr(14, struct.pack(">H", real.tunnel_port))
        out += attr(15, struct.pack("=H", real.tunnel_flags))
    return out


def reference(operation: IpvsOperation, seq: int) -> bytes:
    service = key_attrs(operation.key)
    if operation.config is not None:
        service += server_attrs(operation.key, operation.config)
    body = nest(1, service)
    if operation.real_server is not None:
        dest = real_key_attrs(operation.real_server)
        if operation.real is not None:
            dest += real_attrs(operation.real)
        body += nest(2, dest)
    body = struct.pack("=BBH", COMMAND[operation.verb], 1, 0) + body
    return struct.pack("=IHHII", 16 + len(body), FAMILY, 1, seq, 0) + body


def endpoints(family: int) -> st.SearchStrategy[bytes]:
    size = 4 if family == socket.AF_INET else 16
    return st.binary(min_size=size, max_size=size)


ports = st.integers(0, 65535)
families = st.sampled_from([socket.AF_INET.value, socket.AF_INET6.value])
keys = families.flatmap(
    lambda family: st.one_of(
        st.builds(
            VirtualServerKey,
            st.just(family),
            st.sampled_from([6, 17, 132]),
            endpoints(family),
            ports,
        ),
        st.builds(
            VirtualServerKey,
            st.just(family),
            st.just(0),
            st.just(b""),
            st.just(0),
            st.integers(1, 2**32 - 1),
        ),
    )
)
configs = st.builds(
    VirtualServer,
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15),
    st.sampled_from(range(0, 0x40, 4)),
    st.integers(0, 4294967),
    st.integers(0, 31),
)
names = families.flatmap(
    lambda family: st.builds(RealServerKey, st.just(family), endpoints(family), ports)
)
numbers = st.integers(0, 2**31 - 1)
reals = st.builds(
    RealServer, numbers, st.integers(0, 3), numbers, st.just(0), st.sampled_from([0, 2]), ports
) | st.builds(
    RealServer,
    numbers,
    st.just(2),
    st.just(2**31 - 1),
    numbers,
    st.just(1),
    st.integers(1, 65535),
    st.integers(0, 3),
)
sound = st.one_of(
    st.builds(IpvsOperation, st.sampled_from([Verb(1), Verb(3)]), keys, config=configs),
    st.builds(IpvsOperation, st.just(Verb.DELETE_VIRTUAL_SERVER), keys),
    st.builds(
        IpvsOperation, st.sampled_from([Verb(2), Verb(4)]), keys, real_server=names, real=reals
    ),
    st.builds(IpvsOperation, st.just(Verb.DELETE_REAL_SERVER), keys, real_server=names),
)


@given(st.lists(sound), st.integers(1, 2**31))
def test_every_sound_operation_is_encoded_as_the_kernel_wants_it(
    operations: list[IpvsOperation], seq: int
) -> None:
    refused: dict[int, Refused] = {}
    messages = list(encode(FAMILY, operations, seq, refused))
    assert messages == [reference(operation, seq + n) for n, operation in enumerate(operations)]
    assert refused == {}


wild_numbers = st.sampled_from([-(2**40), -1, 0, 1, 2, 3, 9, 32, 129, 65536, 2**31, 2**32, 2**40])
wild_bytes = st.sampled_from([b"", b"\1" * 4, b"\1" * 16, b"\1" * 5])
wild_families = families | wild_numbers
wild_keys = st.builds(
    VirtualServerKey,
    wild_families,
    st.just(6) | wild_numbers,
    wild_bytes,
    wild_numbers,
    st.just(0) | wild_numbers,
)
wild = st.builds(
    IpvsOperation,
    st.sampled_from(Verb),
    keys | wild_keys,
    st.none() | configs | st.builds(VirtualServer, st.text(max_size=20), *[wild_numbers] * 3),
    st.none() | names | st.builds(RealServerKey, wild_families, wild_bytes, wild_numbers),
    st.none() | reals | st.builds(RealServer, *[wild_numbers] * 7),
)


@given(st.lists(wild))
def test_an_operation_is_either_encoded_or_refused_by_the_rules(
    operations: list[IpvsOperation],
) -> None:
    refused: dict[int, Refused] = {}
    messages = list(encode(FAMILY, operations, 1, refused))
    encoded = [struct.unpack_from("=IHHII", message)[3] for message in messages]
    expected = {}
    for number, operation in enumerate(operations, 1):
        try:
            check_operation(operation)
        except Refused as error:
            expected[number] = (error.errno, error.reason)
    assert {number: (error.errno, error.reason) for number, error in refused.items()} == expected
    assert encoded == [n for n in range(1, len(operations) + 1) if n not in expected]


def dumped_server(key: VirtualServerKey, config: VirtualServer, hashed: bool = True) -> bytes:
    flags = config.flags | (1 if config.persistence_s else 0) | (2 if hashed else 0)
    body = key_attrs(key) + server_attrs(key, config)
    body = body.replace(attr(7, struct.pack("=II", flags & ~2, 0x3D)), b"", 1)
    body += attr(7, struct.pack("=II", flags, 0xFFFFFFFF))
    body += nest(12, *(attr(n, struct.pack("=Q", n * 10**10)) for n in range(1, 6)))
    return struct.pack("=BBH", 1, 1, 0) + nest(1, body)


@given(keys, configs)
def test_dumped_virtual_servers_are_decoded(key: VirtualServerKey, config: VirtualServer) -> None:
    payload = dumped_server(key, config)
    assert decode_virtual_server(payload) == (key, config)
    traffic = Traffic(10**10, 2 * 10**10, 3 * 10**10, 4 * 10**10, 5 * 10**10)
    assert decode_traffic(payload) == (key, traffic)


def dumped_dest(
    key: RealServerKey, real: RealServer, counters: tuple[int, int, int], scrambled: bool
) -> bytes:
    members = [
        attr(1, key.address.ljust(16, b"\0")),
        attr(2, struct.pack(">H", key.port)),
        attr(3, struct.pack("=I", real.forward)),
        attr(4, struct.pack("=i", real.weight)),
        attr(13, struct.pack("=B", real.tunnel_type)),
        attr(14, struct.pack(">H", real.tunnel_port)),
        attr(15, struct.pack("=H", real.tunnel_flags)),
        attr(5, struct.pack("=I", real.upper_threshold)),
        attr(6, struct.pack("=I", real.lower_threshold)),
        *(attr(kind, struct.pack("=I", n)) for kind, n in zip((7, 8, 9), counters, strict=True)),
        attr(11, struct.pack("=H", key.family)),
        nest(10, attr(1, b"stat")),
    ]
    if scrambled:
        members = [attr(99, b"new"), *reversed(members)]
    return struct.pack("=BBH", 5, 1, 0) + nest(2, *members)


@given(
    names,
    reals,
    st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    st.booleans(),
)
def test_dumped_real_servers_are_decoded_in_any_order_of_attributes(
    key: RealServerKey, real: RealServer, counters: tuple[int, int, int], scrambled: bool
) -> None:
    payload = dumped_dest(key, real, counters, scrambled)
    assert decode_real_server(payload) == (key, real)
    assert decode_connections(payload) == Connections(*counters)


def test_persistence_of_zero_seconds_shows_as_a_flag() -> None:
    key = VirtualServerKey(socket.AF_INET, 6, b"\1\2\3\4", 80)
    payload = dumped_server(key, VirtualServer(flags=1))
    assert decode_virtual_server(payload)[1] == VirtualServer(flags=1)


@pytest.mark.parametrize(
    ("family", "full"), [(socket.AF_INET.value, 32), (socket.AF_INET6.value, 128)]
)
def test_the_full_prefix_length_is_zero(family: int, full: int) -> None:
    key = VirtualServerKey(family, 0, b"", 0, 1)
    config = VirtualServer("rr", 0, 60, full)
    assert decode_virtual_server(dumped_server(key, config))[1].prefix_length == 0


def test_a_reply_without_its_nest_is_an_error() -> None:
    with pytest.raises(KernelError) as caught:
        decode_virtual_server(struct.pack("=BBH", 1, 1, 0) + attr(9, b"nest"))
    assert caught.value.errno == errno.EBADMSG


def test_requests_and_replies_about_the_whole_table() -> None:
    key = VirtualServerKey(socket.AF_INET, 1, b"\1\2\3\4", 0)  # another program's, unsound
    assert real_servers_request(key) == b"\x08\x01\0\0" + nest(1, key_attrs(key))
    body = b"".join(attr(kind, struct.pack("=I", kind * 100)) for kind in (4, 5, 6))
    assert timeouts_request((400, 500, 600)) == b"\x0c\x01\0\0" + body
    assert decode_timeouts(b"\x0c\x01\0\0" + body) == (400, 500, 600)
    version = attr(1, struct.pack("=I", 0x010201)) + attr(2, struct.pack("=I", 4096))
    assert decode_version(b"\x0e\x01\0\0" + version) == ("1.2.1", 4096)
