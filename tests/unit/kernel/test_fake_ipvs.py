"""The knobs of FakeIpvs; what it shares with the kernel is in the contract suite."""

import errno
import socket

import pytest

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.kernel.fake import FakeIpvs
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

KEY = VirtualServerKey(socket.AF_INET, 6, b"\x0a\x60\x00\x0a", 80)
POD = RealServerKey(socket.AF_INET, b"\x0a\xf4\x01\x02", 8080)
STATE = VirtualServerState(VirtualServer(), {POD: RealServer()})
DELETE = IpvsOperation(Verb.DELETE_REAL_SERVER, KEY, real_server=POD)


def test_foreign_edits_are_no_writes() -> None:
    fake = FakeIpvs({KEY: STATE})
    assert fake.read() == {KEY: STATE}
    fake.drop(KEY, POD)
    assert fake.read()[KEY].real_servers == {}
    fake.drop(KEY)
    assert fake.read() == {}
    assert fake.writes == 0


def test_a_read_table_does_not_follow_later_changes() -> None:
    fake = FakeIpvs({KEY: STATE})
    before = fake.read()
    assert fake.apply([DELETE]) == []
    assert before == {KEY: STATE}
    assert STATE.real_servers == {POD: RealServer()}


def test_injected_failures_hit_matching_operations_until_healed() -> None:
    fake = FakeIpvs({KEY: STATE})
    fake.inject(errno.ENOMEM, lambda operation: operation.verb == Verb.DELETE_REAL_SERVER)
    (failure,) = fake.apply([DELETE])
    assert failure.errno == errno.ENOMEM
    assert fake.read() == {KEY: STATE}
    fake.heal()
    assert fake.apply([DELETE]) == []
    assert fake.writes == 2
    assert fake.operations == [DELETE, DELETE]


def test_a_broken_call_does_nothing_once() -> None:
    fake = FakeIpvs({KEY: STATE})
    fake.break_next(StateUnknownError("lost", errno.ENOBUFS))
    with pytest.raises(StateUnknownError):
        fake.apply([DELETE])
    assert fake.read() == {KEY: STATE}


def test_connections_last_as_long_as_the_real_server() -> None:
    fake = FakeIpvs({KEY: STATE})
    fake.set_connections(KEY, POD, Connections(3, 1))
    assert fake.read_connections(KEY) == {POD: Connections(3, 1)}
    assert fake.apply([DELETE]) == []
    assert fake.read_connections(KEY) == {}
    add = IpvsOperation(Verb.ADD_REAL_SERVER, KEY, real_server=POD, real=RealServer())
    assert fake.apply([add]) == []
    assert fake.read_connections(KEY) == {POD: Connections(0, 0)}


def test_a_closed_fake_fails() -> None:
    fake = FakeIpvs()
    fake.close()
    with pytest.raises(KernelError):
        fake.read()
