"""What every responder does on a segment, the fake and the real one."""

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.neighbor_ports import NUMBERS, Address

if TYPE_CHECKING:
    from tests.neighbor_lab import Segment

VIPS = [ipaddress.ip_address("10.0.0.100"), ipaddress.ip_address("fd00::100")]
OTHERS = {4: ipaddress.ip_address("10.0.0.101"), 6: ipaddress.ip_address("fd00::101")}


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("neighbor_lab")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.netfilter)])
def segment(request: pytest.FixtureRequest, lab: ModuleType) -> Iterator["Segment"]:
    with ExitStack() as stack:
        if request.param == "real":
            new_namespace: Callable[[], AbstractContextManager[None]]
            new_namespace = request.getfixturevalue("new_namespace")
            stack.enter_context(new_namespace())
        made: Segment = lab.WORLDS[request.param]()
        stack.callback(made.close)
        yield made


@pytest.fixture(params=VIPS, ids=str)
def vip(request: pytest.FixtureRequest) -> Address:
    address: Address = request.param
    return address


def test_who_puts_an_address_answers_for_it_and_nobody_else(
    segment: "Segment", vip: Address
) -> None:
    first = segment.node("first")
    segment.node("second")
    assert segment.who_has(vip) == []
    first.put(vip)
    assert segment.who_has(vip) == ["first"]
    assert segment.who_has(OTHERS[vip.version]) == []
    assert first.responder.links()[vip] == ("eth0",)
    first.put(OTHERS[vip.version])
    assert segment.who_has(vip) == []
    assert segment.who_has(OTHERS[vip.version]) == ["first"]


def test_two_that_put_an_address_both_answer(segment: "Segment", vip: Address) -> None:
    for name in ("first", "second"):
        segment.node(name).put(vip)
    assert segment.who_has(vip) == ["first", "second"]


def test_whoever_takes_an_address_over_tells_of_it(
    segment: "Segment", lab: ModuleType, vip: Address
) -> None:
    first, second = segment.node("first"), segment.node("second")
    first.put(vip)
    lab.wait_until(lambda: "first" in segment.told(vip), "the first told of it")
    first.put()
    segment.settle()
    second.put(vip)
    lab.wait_until(lambda: "second" in segment.told(vip), "the second told of it")
    assert segment.told(vip)[-1] == "second"
    assert second.responder.numbers()["announcements"] > 0


def test_all_is_told_again_on_demand(segment: "Segment", lab: ModuleType, vip: Address) -> None:
    node = segment.node("first")
    node.put(vip)
    # Thrice at most when it was new: the rest has been asked for.
    for _ in range(4):
        node.responder.announce()
    lab.wait_until(lambda: len(segment.told(vip)) >= 4, "it was told often enough")


def test_claims_of_others_are_told(segment: "Segment", lab: ModuleType, vip: Address) -> None:
    node, other = segment.node("first"), OTHERS[vip.version]
    segment.claim(vip)
    segment.settle()
    node.put(vip)
    node.watch(other)
    segment.claim(vip)
    segment.claim(other)
    wanted = [(each, "eth0", lab.CLIENT_MAC) for each in (vip, other)]
    lab.wait_until(lambda: len(node.claims) >= 2, "both were told")
    assert node.claims == wanted
    assert node.responder.numbers()["claims"] == 2


def test_what_a_node_tells_is_a_claim_to_others_and_not_to_itself(
    segment: "Segment", lab: ModuleType, vip: Address
) -> None:
    first, second = segment.node("first"), segment.node("second")
    second.watch(vip)
    first.put(vip)
    lab.wait_until(lambda: second.claims, "the second was told")
    assert set(second.claims) == {(vip, "eth0", first.mac)}
    assert segment.who_has(vip) == ["first"]
    assert first.claims == []


def test_what_is_not_watched_any_more_is_not_told(
    segment: "Segment", lab: ModuleType, vip: Address
) -> None:
    node, other = segment.node("first"), OTHERS[vip.version]
    node.watch(vip, other)
    node.watch(other)
    segment.claim(vip)
    segment.claim(other)
    lab.wait_until(lambda: node.claims, "the other was told")
    assert node.claims == [(other, "eth0", lab.CLIENT_MAC)]


@pytest.mark.parametrize(
    ("patterns", "answers"),
    [(("eth0",), True), (("wlan*", "eth?"), True), (("eth1",), False), (("lo",), False)],
)
def test_links_are_chosen_by_patterns(
    segment: "Segment", vip: Address, patterns: tuple[str, ...], answers: bool
) -> None:
    node = segment.node("first")
    node.put(vip, links=patterns)
    assert segment.who_has(vip) == ["first"] * answers
    assert node.responder.links()[vip] == ("eth0",) * answers


def test_answers_are_counted(segment: "Segment", vip: Address) -> None:
    node = segment.node("first")
    node.put(vip)
    before = node.responder.numbers()
    assert segment.who_has(vip) == ["first"]
    after = node.responder.numbers()
    assert set(after) == set(NUMBERS)
    assert after["answers"] > before["answers"]
    assert (after["links"], after["failures"], after["dropped"]) == (1, 0, 0)


def test_a_closed_one_is_silent_and_takes_nothing_over(segment: "Segment", vip: Address) -> None:
    first, second = segment.node("first"), segment.node("second")
    for node in (first, second):
        node.put(vip)
    first.close()
    first.close()
    assert segment.who_has(vip) == ["second"]
    with pytest.raises(KernelError, match=r"closed|ended"):
        first.responder.put({vip: ()})
