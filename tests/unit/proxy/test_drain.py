"""Draining: what stays at weight 0, how long, and what ends it."""

from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.objects import ObjectMeta, Pod, PodStatus
from kube_router_py.proxy.drain import Draining
from kube_router_py.proxy.model import Connections, RealServer, VirtualServer, VirtualServerState
from kube_router_py.proxy.pod_deadline import seconds_to_live


def state(make: Any, **weights: int) -> VirtualServerState:
    """``a=1`` stands for 10.244.1.1 at weight 1, ``b`` for .2 and so on."""
    reals = {
        make.real(f"10.244.1.{'abcd'.index(name) + 1}"): RealServer(weight=weight)
        for name, weight in weights.items()
    }
    return VirtualServerState(VirtualServer(), reals)


def quiet(_key: Any) -> dict[Any, Connections]:
    return {}


def test_a_vanished_endpoint_goes_to_weight_0_and_then_away(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, actual, wanted = make.key("10.96.0.10"), state(make, a=1, b=1), state(make, a=1)
    held = drain.target(key, wanted, actual, frozenset(), 100.0)
    assert held == state(make, a=1, b=0)
    assert drain.count() == 1
    busy = {make.real("10.244.1.2"): Connections(active=1, inactive=0)}
    assert drain.wake_after_s(100.0) == 1.0
    assert drain.poll(lambda _: busy, 101.0) == frozenset()
    assert drain.target(key, wanted, held, frozenset(), 101.0) == held
    assert drain.poll(quiet, 102.5) == {key}
    assert drain.target(key, wanted, held, frozenset(), 102.5) == wanted
    assert drain.wake_after_s(102.5) is None


def test_inactive_connections_count_and_templates_do_not(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, real = make.key("10.96.0.10"), make.real("10.244.1.2")
    drain.target(key, state(make, a=1), state(make, a=1, b=1), frozenset(), 0.0)
    assert drain.poll(lambda _: {real: Connections(0, 2)}, 1.0) == frozenset()
    assert drain.poll(lambda _: {real: Connections(0, 0, persistent=4)}, 2.0) == {key}


def test_the_deadline_ends_it_with_connections_left(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 0.0)
    busy = {make.real("10.244.1.2"): Connections(1, 0)}
    # Other changes of the Service meanwhile do not restart the clock.
    assert drain.target(key, wanted, held, frozenset(), 20.0) == held
    assert drain.poll(lambda _: busy, 29.0) == frozenset()
    assert drain.poll(lambda _: busy, 30.0) == {key}
    assert drain.target(key, wanted, held, frozenset(), 30.0) == wanted


def test_the_endpoints_return_cancels_it(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key = make.key("10.96.0.10")
    both = state(make, a=1, b=1)
    held = drain.target(key, state(make, a=1), both, frozenset(), 0.0)
    assert drain.target(key, both, held, frozenset(), 5.0) == both
    assert drain.count() == 0


def test_a_paused_endpoint_has_no_deadline_until_it_leaves(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    paused = frozenset({make.real("10.244.1.2")})
    held = drain.target(key, wanted, state(make, a=1, b=1), paused, 0.0)
    assert held == state(make, a=1, b=0)
    assert drain.wake_after_s(0.0) is None
    assert drain.target(key, wanted, held, paused, 1000.0) == held
    assert drain.target(key, wanted, held, frozenset(), 1000.0) == held
    assert drain.poll(quiet, 1001.0) == {key}


def test_what_the_kernel_does_not_have_is_never_added_to_drain(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    paused = frozenset({make.real("10.244.1.2")})
    assert drain.target(key, wanted, None, paused, 0.0) == wanted
    assert drain.target(key, wanted, state(make, a=1), paused, 0.0) == wanted


def test_udp_and_switched_off_draining_delete_at_once(make: Any) -> None:
    wanted, actual = state(make, a=1), state(make, a=1, b=1)
    udp = make.key("10.96.0.10", 53, "UDP")
    on = Draining(enabled=True, grace_s=30)
    assert on.target(udp, wanted, actual, frozenset(), 0.0) == wanted
    off = Draining(enabled=False, grace_s=30)
    assert off.target(make.key("10.96.0.10"), wanted, actual, frozenset(), 0.0) == wanted


def test_a_removed_virtual_server_takes_its_draining_with_it(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key = make.key("10.96.0.10")
    held = drain.target(key, state(make, a=1), state(make, a=1, b=1), frozenset(), 0.0)
    assert drain.target(key, None, held, frozenset(), 1.0) is None
    assert drain.wake_after_s(1.0) is None


def test_nothing_drains_where_one_real_server_has_all_clients(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    wanted, actual = (
        structs.replace(each, config=VirtualServer("dh"))
        for each in (state(make, a=1), state(make, a=1, b=1))
    )
    assert drain.target(make.key("10.96.0.10"), wanted, actual, frozenset(), 0.0) == wanted
    assert drain.wake_after_s(0.0) is None


def test_the_deadline_is_that_of_the_pod_where_it_is_known(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    busy = {make.real("10.244.1.2"): Connections(1, 0)}
    # Word of the deletion comes after that of the endpoint's end: the clock is set anew.
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 0.0)
    assert drain.servers() == {key}
    assert drain.target(key, wanted, held, frozenset(), 20.0, lambda _: 600.0) == held
    assert drain.poll(lambda _: busy, 599.0) == frozenset()
    assert drain.poll(lambda _: busy, 601.0) == {key}
    assert drain.target(key, wanted, held, frozenset(), 601.0, lambda _: 600.0) == wanted
    # And what has ended has ended, however long its pod may live.
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 700.0, lambda _: 900.0)
    assert drain.poll(quiet, 702.0) == {key}
    assert drain.target(key, wanted, held, frozenset(), 702.0, lambda _: 900.0) == wanted


def test_a_clock_that_is_ahead_puts_no_deadline_off(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    busy = {make.real("10.244.1.2"): Connections(1, 0)}
    # The pod has 60 s left at every look, as it seems.
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 0.0, lambda _: 60.0)
    assert drain.target(key, wanted, held, frozenset(), 40.0, lambda _: 100.0) == held
    assert drain.poll(lambda _: busy, 61.0) == {key}
    assert drain.target(key, wanted, held, frozenset(), 61.0, lambda _: 121.0) == wanted
    # Deleting at once what was being deleted takes time off.
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 200.0, lambda _: 260.0)
    assert drain.target(key, wanted, held, frozenset(), 201.0, lambda _: 201.0) == wanted


def test_a_pod_that_has_gone_leaves_its_deadline_behind(make: Any) -> None:
    drain = Draining(enabled=True, grace_s=30)
    key, wanted = make.key("10.96.0.10"), state(make, a=1)
    held = drain.target(key, wanted, state(make, a=1, b=1), frozenset(), 0.0, lambda _: 600.0)
    assert drain.target(key, wanted, held, frozenset(), 599.0) == held
    assert drain.target(key, wanted, held, frozenset(), 600.0) == wanted


NOON = "2026-03-01T12:00:00Z"
NOON_S = 1772366400.0


@pytest.mark.parametrize(
    ("pods", "seconds"),
    [
        ([], None),
        ([(None, None)], None),
        ([(NOON, 60)], 20.0),
        ([(NOON, None)], 20.0),
        ([(NOON, 5)], 5.0),  # a server whose clock is ahead of ours
        ([("2026-03-01T11:00:00Z", 60)], 0.0),
        ([(NOON, 60), ("2026-03-01T12:00:10Z", 60)], 30.0),
        ([(NOON, 60), (None, None)], None),  # its address is another pod's by now
        ([("soon", 60)], None),
    ],
)
def test_what_is_left_to_a_pod(
    pods: list[tuple[str | None, int | None]], seconds: float | None
) -> None:
    found = [
        Pod(ObjectMeta(deletion_timestamp=when, deletion_grace_period_seconds=grace))
        for when, grace in pods
    ]
    assert seconds_to_live(found, NOON_S - 20) == seconds


def test_a_finished_pod_has_lost_its_address_to_the_one_that_leaves() -> None:
    leaving = Pod(ObjectMeta(deletion_timestamp=NOON, deletion_grace_period_seconds=60))
    finished = Pod(status=PodStatus("Succeeded"))
    assert seconds_to_live([finished, leaving], NOON_S - 20) == 20.0
    assert seconds_to_live([finished], NOON_S - 20) is None
