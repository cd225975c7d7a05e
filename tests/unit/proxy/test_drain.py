"""Draining: what stays at weight 0, how long, and what ends it."""

from typing import Any

from kube_router_py.proxy.drain import Draining
from kube_router_py.proxy.model import Connections, RealServer, VirtualServer, VirtualServerState


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
