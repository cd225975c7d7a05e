"""Addresses that the proxy serves, on their way to those who announce them."""

import threading
import time
from ipaddress import IPv4Address, ip_address

import pytest

from kube_router_py import served as served_module
from kube_router_py.served import Served, ServedToAll

A, B = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def test_what_comes_and_goes_is_told_once() -> None:
    served = Served()
    served.begin()
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
    served.begin()
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


def test_a_withdrawal_waits_until_it_is_passed_on() -> None:
    served = Served(withdrawal_s=60.0)
    served.change(added=(A.packed, B.packed))
    served.begin()
    asked, seen = threading.Event(), []

    def remove() -> None:
        served.withdraw((A.packed,))
        seen.append("removed")

    served.on_change = asked.set
    proxy = threading.Thread(target=remove)
    proxy.start()
    assert asked.wait(60)
    served.pass_on()  # of a turn that had begun before
    assert served.take() == (frozenset(), {A})
    assert seen == []
    seen.append("told")
    served.pass_on()
    proxy.join(60)
    assert seen == ["told", "removed"]


def test_a_withdrawal_does_not_wait_for_nobody() -> None:
    served = Served(withdrawal_s=60.0)
    served.change(added=(A.packed, B.packed))
    served.withdraw((A.packed,))  # no route controller has begun
    assert served.begin() == {B}
    asked = threading.Event()
    served.on_change = asked.set
    proxy = threading.Thread(target=served.withdraw, args=((B.packed,),))
    proxy.start()
    assert asked.wait(60)
    served.end()
    proxy.join(60)
    assert not proxy.is_alive()


def test_a_withdrawal_that_nobody_passes_on_ends(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(withdrawal_s=0.01)
    served.change(added=(A.packed,))
    served.begin()
    served.withdraw((A.packed,))
    assert "neighbors may still be sending" in caplog.text


def test_nothing_is_known_before_the_proxy_has_spoken() -> None:
    served = Served()
    told: list[bool] = []
    served.on_change = lambda: told.append(served.is_known)
    assert not served.is_known
    served.change()
    assert told == [True]


def test_a_route_controller_that_is_stuck_is_waited_for_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = Served(withdrawal_s=0.01)
    served.change(added=(A.packed, B.packed))
    served.begin()
    served.withdraw((A.packed,))  # in vain: FRR starts, say, and that takes a minute
    assert caplog.text.count("neighbors may still be sending") == 1
    served.withdraw((B.packed,))
    assert caplog.text.count("neighbors may still be sending") == 1
    assert served.take() == (frozenset(), {A, B})
    served.pass_on()
    served.change(added=(A.packed,))
    served.withdraw((A.packed,))
    assert caplog.text.count("neighbors may still be sending") == 2


def test_what_nobody_reads_is_not_kept() -> None:
    served = Served()
    for number in range(1000):
        served.change(added=(number.to_bytes(4, "big"),))
        served.change(removed=(number.to_bytes(4, "big"),))
    assert served.take() == (frozenset(), frozenset())


@pytest.mark.parametrize("has_told", [True, False])
def test_what_frr_was_told_takes_a_moment_to_be_sent(
    monkeypatch: pytest.MonkeyPatch, has_told: bool
) -> None:
    monkeypatch.setattr(served_module, "_SENDING_S", 600.0)
    pauses: list[float] = []
    served = Served(pause=pauses.append)
    served.change(added=(A.packed,))
    served.begin()
    served.on_change = lambda: (served.take(), served.pass_on(has_told=has_told))
    served.withdraw((A.packed,))
    assert [pause > 0 for pause in pauses] == [True] * has_told


def test_whoever_sends_at_once_is_not_given_time_for_it() -> None:
    pauses: list[float] = []
    served = Served(pause=pauses.append, sending_s=0.0)
    served.change(added=(A.packed,))
    served.begin()
    served.on_change = lambda: (served.take(), served.pass_on())
    served.withdraw((A.packed,))
    assert pauses == []


# --- several readers -----------------------------------------------------------------------------


def test_all_readers_are_told() -> None:
    one, other = Served(), Served()
    all_of_them = ServedToAll((one, other))
    told: list[str] = []
    one.on_change = lambda: told.append("one")
    other.on_change = lambda: told.append("other")
    one.begin()
    all_of_them.change(iter((A.packed, B.packed)))
    assert (one.is_known, other.is_known) == (True, True)
    assert told == ["one", "other"]
    assert one.take() == (frozenset({A, B}), frozenset())
    assert other.begin() == {A, B}
    all_of_them.change(removed=(B.packed,))
    assert one.take() == other.take() == (frozenset(), frozenset({B}))


def test_a_withdrawal_waits_for_every_reader() -> None:
    readers = (Served(withdrawal_s=600.0, sending_s=0.0), Served(withdrawal_s=600.0, sending_s=0.0))
    all_of_them = ServedToAll(readers)
    all_of_them.change((A.packed,))
    asked = [threading.Event(), threading.Event()]
    for reader, event in zip(readers, asked, strict=True):
        reader.begin()
        reader.on_change = event.set
    seen: list[str] = []

    def remove() -> None:
        all_of_them.withdraw(iter((A.packed,)))
        seen.append("removed")

    proxy = threading.Thread(target=remove)
    proxy.start()
    # Both are asked before either has answered; and the last to answer decides.
    assert all(event.wait(60) for event in asked)
    assert [each.take() for each in readers] == [(frozenset(), frozenset({A}))] * 2
    readers[1].pass_on()
    assert seen == []
    seen.append("told")
    readers[0].pass_on()
    proxy.join(60)
    assert seen == ["told", "removed"]


def test_several_readers_that_are_stuck_are_waited_for_together_and_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # One after the other, they would take twenty times as long as is waited for here.
    bound_s = 2.0
    readers = [Served(withdrawal_s=bound_s) for _ in range(20)]
    all_of_them = ServedToAll(readers)
    all_of_them.change((A.packed, B.packed))
    for each in readers:
        each.begin()
    began = time.monotonic()
    all_of_them.withdraw((A.packed,))
    assert bound_s <= time.monotonic() - began < bound_s * 15
    assert caplog.text.count("neighbors may still be sending") == 1
    all_of_them.withdraw((B.packed,))
    assert caplog.text.count("neighbors may still be sending") == 1


def test_a_reader_that_is_stuck_does_not_keep_another_from_being_waited_for() -> None:
    stuck, lively = Served(withdrawal_s=0.01), Served(withdrawal_s=600.0, sending_s=0.0)
    all_of_them = ServedToAll((stuck, lively))
    all_of_them.change((A.packed, B.packed))
    stuck.begin()
    lively.begin()
    passed: list[object] = []

    def answer() -> None:
        passed.append(lively.take())
        lively.pass_on()

    lively.on_change = lambda: threading.Timer(0.05, answer).start()
    all_of_them.withdraw((A.packed,))
    assert passed == [(frozenset(), frozenset({A}))]
    all_of_them.withdraw((B.packed,))  # nobody waits for the first one again, but for this one
    assert passed[1:] == [(frozenset(), frozenset({B}))]


def test_the_pause_is_that_of_the_slowest_sender() -> None:
    pauses: list[float] = []
    slow, quick = Served(sending_s=600.0), Served(sending_s=0.0)
    all_of_them = ServedToAll((slow, quick), pause=pauses.append)
    all_of_them.change((A.packed, B.packed))
    for each in (slow, quick):
        each.begin()
    slow.on_change = lambda: (slow.take(), slow.pass_on())
    quick.on_change = lambda: (quick.take(), quick.pass_on())
    all_of_them.withdraw((A.packed,))
    (pause,) = pauses
    assert 0 < pause <= 600


def test_a_withdrawal_of_what_is_not_served_asks_nobody() -> None:
    served = Served()
    served.begin()
    told: list[int] = []
    served.on_change = lambda: told.append(1)
    ServedToAll((served,)).withdraw((A.packed,))
    assert told == []
