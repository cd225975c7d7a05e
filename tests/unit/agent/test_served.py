"""Addresses that the proxy serves, on their way to the route controller."""

from ipaddress import IPv4Address, ip_address

from kube_router_py.served import Served

A, B = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_what_comes_and_goes_is_told_once() -> None:
    served = Served()
    told: list[int] = []
    served.on_change = lambda: told.append(1)
    served.change(added=(A.packed, B.packed))
    assert len(told) == 1
    assert served.take() == ({A, B}, frozenset())
    assert served.take() == (frozenset(), frozenset())
    served.change(added=(A.packed,), removed=(IPv4Address("192.0.2.9").packed,))
    assert len(told) == 1  # nothing new
    served.change(removed=(B.packed,))
    assert served.take() == (frozenset(), {B})


def test_an_address_that_came_and_went_is_not_served() -> None:
    served = Served()
    served.change(added=(A.packed,))
    served.change(removed=(A.packed,))
    assert served.take() == (frozenset(), {A})


def test_whoever_begins_is_told_everything_and_then_what_is_new() -> None:
    served = Served()
    served.change(added=(A.packed,))
    assert served.begin() == {A}
    assert served.take() == (frozenset(), frozenset())
    served.change(added=(B.packed,))
    assert served.take() == ({B}, frozenset())
