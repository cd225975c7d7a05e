"""ports.Ipvs: what NetlinkIpvs on a real kernel does, FakeIpvs does."""

import errno
import socket
from collections.abc import Iterator

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake import FakeIpvs
from kube_router_py.kernel.ipvs import NetlinkIpvs
from kube_router_py.proxy.model import (
    Connections,
    Flag,
    Forward,
    IpvsOperation,
    RealServer,
    RealServerKey,
    TunnelType,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)

INET, INET6 = socket.AF_INET.value, socket.AF_INET6.value
TCP, UDP, SCTP = 6, 17, 132
Ipvs = FakeIpvs | NetlinkIpvs


def ip(text: str) -> bytes:
    return socket.inet_pton(INET6 if ":" in text else INET, text)


def server(text: str, port: int = 80, protocol: int = TCP) -> VirtualServerKey:
    return VirtualServerKey(INET6 if ":" in text else INET, protocol, ip(text), port)


def marked(fwmark: int, family: int = INET) -> VirtualServerKey:
    return VirtualServerKey(family, 0, b"", 0, fwmark)


def real(text: str, port: int = 8080) -> RealServerKey:
    return RealServerKey(INET6 if ":" in text else INET, ip(text), port)


def add(key: VirtualServerKey, config: VirtualServer | None = None) -> IpvsOperation:
    return IpvsOperation(Verb.ADD_VIRTUAL_SERVER, key, config or VirtualServer())


def change(key: VirtualServerKey, config: VirtualServer) -> IpvsOperation:
    return IpvsOperation(Verb.SET_VIRTUAL_SERVER, key, config)


def delete(key: VirtualServerKey) -> IpvsOperation:
    return IpvsOperation(Verb.DELETE_VIRTUAL_SERVER, key)


def add_real(
    key: VirtualServerKey, name: RealServerKey, value: RealServer | None = None
) -> IpvsOperation:
    return IpvsOperation(Verb.ADD_REAL_SERVER, key, real_server=name, real=value or RealServer())


def change_real(key: VirtualServerKey, name: RealServerKey, value: RealServer) -> IpvsOperation:
    return IpvsOperation(Verb.SET_REAL_SERVER, key, real_server=name, real=value)


def delete_real(key: VirtualServerKey, name: RealServerKey) -> IpvsOperation:
    return IpvsOperation(Verb.DELETE_REAL_SERVER, key, real_server=name)


WEB = server("10.96.0.10")
WEB6 = server("fd00::10")
POD = real("10.244.1.2")
POD6 = real("fd01::2")
GUE = RealServer(1, Forward.TUNNEL, tunnel_type=TunnelType.GUE, tunnel_port=5555)
MIXED = RealServer(1, Forward.TUNNEL)


@pytest.fixture
def ipvs(world: str) -> Iterator[Ipvs]:
    """An adapter on an empty table."""
    adapter: Ipvs = FakeIpvs() if world == "fake" else NetlinkIpvs()
    yield adapter
    adapter.close()


def done(adapter: Ipvs, *operations: IpvsOperation) -> None:
    """Carry out operations that must all succeed."""
    assert adapter.apply(operations) == []


def test_a_new_table_is_empty(ipvs: Ipvs) -> None:
    assert ipvs.read() == {}
    assert ipvs.writes == 0


@pytest.mark.parametrize(
    "key",
    [
        server("10.96.0.10", 80, TCP),
        server("10.96.0.10", 53, UDP),
        server("10.96.0.10", 9, SCTP),
        server("fd00::10", 80, TCP),
        server("fd00::10", 53, UDP),
        server("fd00::10", 9, SCTP),
        server("0.0.0.0", 65535),
        marked(1),
        marked(0xFFFFFFFF),
        marked(7, INET6),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "config",
    [
        VirtualServer(),
        VirtualServer("wlc"),
        VirtualServer("mh", Flag.SCHED1 | Flag.SCHED2),
        VirtualServer("sh", Flag.SCHED3 | Flag.ONEPACKET),
        VirtualServer("rr", persistence_s=10800),
        VirtualServer("rr", persistence_s=60, prefix_length=24),
        VirtualServer("none"),
    ],
    ids=lambda config: f"{config.scheduler}-{config.flags}-{config.persistence_s}",
)
def test_virtual_servers_are_read_as_written(
    ipvs: Ipvs, key: VirtualServerKey, config: VirtualServer
) -> None:
    done(ipvs, add(key, config))
    assert ipvs.read() == {key: VirtualServerState(config, {})}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (WEB, POD),
        (WEB6, POD6),
        (marked(5), POD),
        (marked(5, INET6), POD6),
        (WEB, real("10.0.0.1", 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "value",
    [
        RealServer(),
        RealServer(weight=0),
        RealServer(weight=2**31 - 1),
        RealServer(7, Forward.ROUTE),
        RealServer(7, Forward.LOCAL),
        RealServer(1, upper_threshold=100, lower_threshold=50),
        RealServer(1, Forward.TUNNEL),
        GUE,
        RealServer(1, Forward.TUNNEL, tunnel_type=TunnelType.GRE, tunnel_flags=1),
    ],
    ids=str,
)
def test_real_servers_are_read_as_written(
    ipvs: Ipvs, key: VirtualServerKey, name: RealServerKey, value: RealServer
) -> None:
    done(ipvs, add(key), add_real(key, name, value))
    assert ipvs.read() == {key: VirtualServerState(VirtualServer(), {name: value})}


@pytest.mark.parametrize(("key", "full"), [(WEB, 32), (WEB6, 128)], ids=str)
def test_the_full_prefix_length_is_read_as_zero(
    ipvs: Ipvs, key: VirtualServerKey, full: int
) -> None:
    done(ipvs, add(key, VirtualServer(persistence_s=9, prefix_length=full)))
    assert ipvs.read()[key].config == VirtualServer(persistence_s=9)


def test_a_tunnel_may_lead_to_the_other_family(ipvs: Ipvs) -> None:
    done(ipvs, add(WEB), add(WEB6), add_real(WEB, POD6, MIXED), add_real(WEB6, POD, MIXED))
    assert ipvs.read() == {
        WEB: VirtualServerState(VirtualServer(), {POD6: MIXED}),
        WEB6: VirtualServerState(VirtualServer(), {POD: MIXED}),
    }
    done(ipvs, delete_real(WEB, POD6))
    assert ipvs.read()[WEB].real_servers == {}


def test_both_families_may_share_a_fwmark(ipvs: Ipvs) -> None:
    done(ipvs, add(marked(3)), add(marked(3, INET6)), add_real(marked(3, INET6), POD6))
    done(ipvs, delete(marked(3)))
    assert set(ipvs.read()) == {marked(3, INET6)}


def test_changes_happen_in_place_and_replace_all_parameters(ipvs: Ipvs) -> None:
    before = VirtualServer("sh", Flag.SCHED1 | Flag.SCHED2, 300, 24)
    after = VirtualServer("wrr", Flag.SCHED2)
    done(ipvs, add(WEB, before), add_real(WEB, POD, GUE))
    done(ipvs, change(WEB, after), change_real(WEB, POD, RealServer(0)))
    assert ipvs.read() == {WEB: VirtualServerState(after, {POD: RealServer(0)})}
    done(ipvs, change(WEB, before), change_real(WEB, POD, GUE))
    assert ipvs.read() == {WEB: VirtualServerState(before, {POD: GUE})}


def test_a_deleted_virtual_server_takes_its_real_servers_along(ipvs: Ipvs) -> None:
    done(ipvs, add(WEB), add_real(WEB, POD), delete(WEB), add(WEB))
    assert ipvs.read() == {WEB: VirtualServerState(VirtualServer(), {})}


def test_a_real_server_can_come_back_with_other_parameters(ipvs: Ipvs) -> None:
    done(ipvs, add(WEB), add_real(WEB, POD, GUE), delete_real(WEB, POD))
    done(ipvs, add_real(WEB, POD, RealServer(3)))
    assert ipvs.read()[WEB].real_servers == {POD: RealServer(3)}


@pytest.mark.parametrize(
    ("operation", "code", "words"),
    [
        (add(WEB), errno.EEXIST, "there already"),
        (change(server("10.96.0.11"), VirtualServer()), errno.ESRCH, "no such virtual server"),
        (delete(server("10.96.0.11")), errno.ESRCH, "no such virtual server"),
        (delete(server("10.96.0.10", 80, UDP)), errno.ESRCH, "no such virtual server"),
        (delete(marked(1)), errno.ESRCH, "fwmark 1 (IPv4)"),
        (add(marked(1), VirtualServer("foo")), errno.ENOENT, "load module ip_vs_foo"),
        (change(WEB, VirtualServer("foo")), errno.ENOENT, "unknown scheduler 'foo'"),
        (add(WEB, VirtualServer("foo")), errno.EEXIST, "there already"),
        (add_real(WEB, POD), errno.EEXIST, "TCP 10.96.0.10:80 -> 10.244.1.2:8080"),
        (add_real(server("10.96.0.11"), POD), errno.ESRCH, "no such virtual server"),
        (change_real(WEB, real("10.244.1.3"), RealServer()), errno.ENOENT, "no such real server"),
        (delete_real(WEB, real("10.244.1.3")), errno.ENOENT, "no such real server"),
        (delete_real(server("10.96.0.11"), POD), errno.ESRCH, "no such virtual server"),
        (add_real(WEB, POD6), errno.EINVAL, "other address family needs tunnel"),
        (change_real(WEB, POD6, RealServer()), errno.EINVAL, "other address family"),
        (delete_real(WEB, POD6), errno.ENOENT, "no such real server"),
        (add_real(WEB, real("255.255.255.255")), errno.EINVAL, "unicast"),
        (add_real(WEB, real("224.0.0.1")), errno.EINVAL, "unicast"),
        (add_real(WEB, real("0.0.0.0")), errno.EINVAL, "unicast"),
        (add_real(WEB6, real("ff02::1")), errno.EINVAL, "unicast"),
        (add_real(WEB6, real("fe80::1")), errno.EINVAL, "unicast"),
        (add_real(WEB6, real("::")), errno.EINVAL, "unicast"),
        (add_real(WEB6, real("::ffff:10.0.0.1")), errno.EINVAL, "unicast"),
        (change_real(WEB, real("224.0.0.1"), RealServer()), errno.ENOENT, "no such real server"),
    ],
    ids=lambda value: str(value) if isinstance(value, IpvsOperation) else "",
)
def test_what_does_not_fit_the_table_is_refused(
    ipvs: Ipvs, operation: IpvsOperation, code: int, words: str
) -> None:
    done(ipvs, add(WEB), add(WEB6), add_real(WEB, POD))
    before = ipvs.read()
    (failure,) = ipvs.apply([operation])
    assert failure.operation == operation
    assert failure.errno == code, failure
    assert words in failure.message
    assert ipvs.read() == before
    assert ipvs.writes == 4


def bad_real(**values: int) -> IpvsOperation:
    return change_real(WEB, POD, RealServer(**values))


@pytest.mark.parametrize(
    ("operation", "code", "words"),
    [
        (add(marked(1 << 32)), errno.EINVAL, "fwmark"),
        (add(VirtualServerKey(INET, TCP, ip("10.0.0.1"), 80, 4)), errno.EINVAL, "excludes"),
        (add(VirtualServerKey(INET, 0, b"", 0, 0)), errno.EINVAL, "0 bytes"),
        (add(VirtualServerKey(INET, 1, ip("10.0.0.1"), 0)), errno.EINVAL, "protocol 1"),
        (delete(VirtualServerKey(INET, 300, ip("10.0.0.1"), 0)), errno.EINVAL, "protocol 300"),
        (add(VirtualServerKey(INET, TCP, ip("fd00::1"), 80)), errno.EINVAL, "16 bytes"),
        (add(VirtualServerKey(INET6, TCP, ip("10.0.0.1"), 80)), errno.EINVAL, "4 bytes"),
        (add(VirtualServerKey(99, TCP, ip("10.0.0.1"), 80)), errno.EINVAL, "family 99"),
        (add(server("10.0.0.1", 65536)), errno.EINVAL, "port 65536"),
        (add(server("10.0.0.1", -1)), errno.EINVAL, "port -1"),
        (add(marked(1), VirtualServer("")), errno.EINVAL, "scheduler ''"),
        (add(marked(1), VirtualServer("s" * 16)), errno.EINVAL, "1 to 15"),
        (add(marked(1), VirtualServer("rr\0x")), errno.EINVAL, "scheduler"),
        (change(WEB, VirtualServer(flags=1)), errno.EINVAL, "flags 0x1"),
        (change(WEB, VirtualServer(flags=2)), errno.EINVAL, "flags 0x2"),
        (change(WEB, VirtualServer(persistence_s=-1)), errno.EINVAL, "persistence"),
        (change(WEB, VirtualServer(persistence_s=2**32 // 1000 + 1)), errno.EINVAL, "persistence"),
        (change(WEB, VirtualServer(prefix_length=33)), errno.EINVAL, "0..32"),
        (change(WEB6, VirtualServer(prefix_length=129)), errno.EINVAL, "0..128"),
        (IpvsOperation(Verb.SET_VIRTUAL_SERVER, WEB), errno.EINVAL, "incomplete"),
        (IpvsOperation(Verb.SET_REAL_SERVER, WEB, None, POD), errno.EINVAL, "incomplete"),
        (IpvsOperation(Verb.DELETE_REAL_SERVER, WEB), errno.EINVAL, "incomplete"),
        (add_real(WEB, RealServerKey(INET, ip("fd00::1"), 80)), errno.EINVAL, "16 bytes"),
        (add_real(WEB, RealServerKey(99, ip("fd00::1"), 80)), errno.EINVAL, "family 99"),
        (add_real(WEB, real("10.0.0.1", 70000)), errno.EINVAL, "port 70000"),
        (bad_real(weight=-1), errno.ERANGE, "weight -1"),
        (bad_real(weight=2**31), errno.ERANGE, "weight 2147483648"),
        (bad_real(upper_threshold=1, lower_threshold=2), errno.ERANGE, "lower threshold 2"),
        (bad_real(forward=4), errno.EINVAL, "forwarding method 4"),
        (bad_real(forward=Forward.TUNNEL, tunnel_type=9), errno.EINVAL, "tunnel type 9"),
        (bad_real(forward=Forward.TUNNEL, tunnel_type=1), errno.EINVAL, "GUE tunnel needs a port"),
        (bad_real(forward=Forward.TUNNEL, tunnel_port=65536), errno.EINVAL, "tunnel port 65536"),
        (bad_real(forward=Forward.TUNNEL, tunnel_flags=4), errno.EINVAL, "tunnel flags 0x4"),
    ],
    ids=lambda value: "" if isinstance(value, int) else str(value)[:60].replace("\0", "0"),
)
def test_what_fits_no_table_is_never_sent(
    ipvs: Ipvs, operation: IpvsOperation, code: int, words: str
) -> None:
    done(ipvs, add(WEB), add(WEB6), add_real(WEB, POD))
    before = ipvs.read()
    (failure,) = ipvs.apply([operation])
    assert (failure.operation, failure.errno) == (operation, code), failure
    assert words in failure.message
    assert ipvs.read() == before
    assert ipvs.writes == 3


def test_a_failure_stops_nothing_and_is_told_of_the_right_operation(ipvs: Ipvs) -> None:
    keys = [server(f"10.97.{n >> 8}.{n & 255}") for n in range(700)]
    done(ipvs, *(add(key) for key in keys[::2]))
    odd = add(VirtualServerKey(INET, 1, ip("10.0.0.1"), 0))
    operations = [add(key) for key in keys]
    operations.insert(333, odd)
    failures = ipvs.apply(operations)
    expected = [operation for operation in operations if operation.key in {odd.key, *keys[::2]}]
    assert [failure.operation for failure in failures] == expected
    assert {failure.errno for failure in failures if failure.operation != odd} == {errno.EEXIST}
    assert set(ipvs.read()) == set(keys)
    assert ipvs.writes == 350 + 700


def test_nothing_to_do_writes_nothing(ipvs: Ipvs) -> None:
    assert ipvs.apply([]) == []
    assert ipvs.read_connections(WEB) == {}
    assert ipvs.writes == 0


def test_new_real_servers_have_no_connections(ipvs: Ipvs) -> None:
    done(
        ipvs, add(WEB), add_real(WEB, POD), add(marked(2, INET6)), add_real(marked(2, INET6), POD6)
    )
    assert ipvs.read_connections(WEB) == {POD: Connections(0, 0, 0)}
    assert ipvs.read_connections(marked(2, INET6)) == {POD6: Connections(0, 0, 0)}


def test_timeouts_are_written_only_where_they_differ(ipvs: Ipvs) -> None:
    assert ipvs.read_timeouts() == (900, 120, 300)
    ipvs.set_timeouts(0, 0, 0)
    ipvs.set_timeouts(900, 0, 300)
    assert ipvs.writes == 0
    ipvs.set_timeouts(0, 30, 0)
    assert ipvs.read_timeouts() == (900, 30, 300)
    ipvs.set_timeouts(1800, 60, 90)
    assert ipvs.read_timeouts() == (1800, 60, 90)
    assert ipvs.writes == 2


@pytest.mark.parametrize("seconds", [-1, 2**31 // 1000 + 1])
def test_impossible_timeouts_are_refused(ipvs: Ipvs, seconds: int) -> None:
    with pytest.raises(KernelError, match="UDP timeout") as caught:
        ipvs.set_timeouts(0, 0, seconds)
    assert caught.value.errno == errno.EINVAL
    assert ipvs.writes == 0
