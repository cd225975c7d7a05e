"""PodSides: what is made in which pod, and what is removed from it."""

import socket
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import PodTunnel
from kube_router_py.proxy.dsr_pods import PodSides
from kube_router_py.proxy.model import Vip

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
ADDRESS = {V4: b"\x0a\xf4\x01\x05", V6: bytes(15) + b"\x05"}
VIPS = {
    V4: [bytes((203, 0, 113, n)) for n in range(4)],
    V6: [bytes(15) + bytes((n,)) for n in (1, 2)],
}


class Pods:
    """``PodTunnels`` with pods that can be missing, and may refuse."""

    def __init__(self, *uids: str) -> None:
        self.writes = 0
        self.pods: dict[str, dict[int, PodTunnel]] = {uid: {} for uid in uids}
        self.mtu = dict.fromkeys(uids, 1500)
        self.visits: list[str] = []

    def _of(self, uid: str) -> dict[int, PodTunnel]:
        self.visits.append(uid)
        if uid not in self.pods:
            raise KernelError(f"no pod {uid}")
        return self.pods[uid]

    def ensure(self, pod_uid: str, tunnel: PodTunnel, *, only: bool = False) -> int:
        tunnels = self._of(pod_uid)
        old = tunnels.get(tunnel.family)
        keep = old.vips if old and old.address == tunnel.address and not only else frozenset()
        tunnels[tunnel.family] = PodTunnel(tunnel.family, tunnel.address, tunnel.vips | keep)
        return self.mtu[pod_uid]

    def remove(self, pod_uid: str, families: Iterable[int]) -> None:
        tunnels = self._of(pod_uid)
        for family in families:
            tunnels.pop(family, None)

    def close(self) -> None:
        """Nothing is open."""

    def vips(self, uid: str, family: int = V4) -> frozenset[bytes]:
        found = self.pods[uid].get(family)
        return found.vips if found else frozenset()


def vip(number: int, family: int = V4) -> Vip:
    return Vip(family, VIPS[family][number])


def test_a_pod_is_visited_once_for_a_vip_until_there_is_doubt() -> None:
    port, sides = Pods("a"), PodSides()
    for _ in range(3):
        sides.ensure(port, "a", ADDRESS[V4], vip(0))
    assert port.visits == ["a"]
    sides.ensure(port, "a", ADDRESS[V4], vip(1))
    assert port.vips("a") == {VIPS[V4][0], VIPS[V4][1]}
    sides.doubt()
    port.pods["a"].clear()  # a sandbox made anew
    sides.ensure(port, "a", ADDRESS[V4], vip(0))
    assert port.vips("a") == {VIPS[V4][0], VIPS[V4][1]}


def test_another_address_of_the_pod_starts_over() -> None:
    port, sides = Pods("a"), PodSides()
    sides.ensure(port, "a", ADDRESS[V4], vip(0))
    sides.ensure(port, "a", b"\x0a\xf4\x01\x09", vip(1))
    assert port.pods["a"][V4] == PodTunnel(V4, b"\x0a\xf4\x01\x09", frozenset({VIPS[V4][1]}))


def test_a_missing_pod_is_not_ready_and_others_are() -> None:
    port, sides = Pods("a"), PodSides()
    with pytest.raises(KernelError):
        sides.ensure(port, "gone", ADDRESS[V4], vip(0))
    sides.ensure(port, "a", ADDRESS[V4], vip(0))
    assert sides.ready() == {"a": [str(vip(0))]}


def test_a_pod_that_stops_answering_is_not_ready_any_more() -> None:
    port, sides = Pods("a"), PodSides()
    sides.ensure(port, "a", ADDRESS[V4], vip(0))
    sides.ensure(port, "a", ADDRESS[V6], vip(0, V6))
    del port.pods["a"]
    sides.doubt()
    with pytest.raises(KernelError):
        sides.ensure(port, "a", ADDRESS[V4], vip(0))
    assert sides.ready() == {"a": [str(vip(0, V6))]}
    assert sides.uid_at(V4, ADDRESS[V4]) is None


def test_the_smallest_mtu_counts() -> None:
    port, sides = Pods("a", "b"), PodSides()
    port.mtu["b"] = 1400
    sides.ensure(port, "a", ADDRESS[V4], vip(0))
    sides.ensure(port, "a", ADDRESS[V4], vip(1))
    sides.ensure(port, "b", b"\x0a\xf4\x01\x06", vip(0))
    assert sides.mtu() == {vip(0): 1400, vip(1): 1500}


def test_pods_of_before_the_start_are_spared_while_connections_end_and_then_cleared() -> None:
    port, sides = Pods("a", "b"), PodSides()
    for uid in ("a", "b"):
        port.ensure(uid, PodTunnel(V4, ADDRESS[V4], frozenset(VIPS[V4])))
    sides.adopt(["a", "b", "gone"])
    sides.ensure(port, "b", ADDRESS[V4], vip(0))
    needed = {("b", V4): frozenset({VIPS[V4][0]})}
    sides.prune(port, needed, everything=True, spare_adopted=True)
    assert port.vips("a") == frozenset(VIPS[V4])
    assert port.vips("b") == {VIPS[V4][0]}, "unknown VIPs of a known pod go"
    sides.prune(port, needed, everything=True)
    assert port.pods["a"] == {}
    assert sides.ready() == {"b": [str(vip(0))]}
    sides.prune(port, {}, everything=False)
    assert port.pods["b"] == {}
    assert not sides


PLACES = st.tuples(st.sampled_from(["a", "b", "gone"]), st.sampled_from([V4, V6]))
WANTED = st.dictionaries(PLACES, st.frozensets(st.integers(0, 1), min_size=1), max_size=6)


@given(st.lists(st.tuples(WANTED, st.booleans()), min_size=1, max_size=5))
def test_pods_hold_exactly_what_is_needed_after_every_turn(
    turns: list[tuple[dict[tuple[str, int], frozenset[int]], bool]],
) -> None:
    port, sides = Pods("a", "b"), PodSides()
    for wanted, full in turns:
        if full:
            sides.doubt()
        for (uid, family), numbers in wanted.items():
            for number in numbers:
                try:
                    sides.ensure(port, uid, ADDRESS[family], vip(number, family))
                except KernelError:
                    assert uid == "gone"
        needed = {
            (uid, family): frozenset(VIPS[family][number] for number in numbers)
            for (uid, family), numbers in wanted.items()
        }
        sides.prune(port, needed, everything=full)
        for uid in ("a", "b"):
            for family in (V4, V6):
                assert port.vips(uid, family) == needed.get((uid, family), frozenset())
        told = {uid for uid, vips in sides.ready().items() if vips}
        assert told == {uid for uid, _ in needed} - {"gone"}
