"""What a responder does on links that change, with a clock of the test's own."""

import ipaddress
from collections.abc import Callable, Collection
from types import ModuleType

import pytest
from msgspec import structs

from kube_router_py.kernel import neighbor_packets as packets
from kube_router_py.kernel.neighbor_answering import ANSWERS_PER_S, Answering, Meter
from kube_router_py.kernel.neighbor_links import SegmentLink, choose
from kube_router_py.kernel.neighbor_ports import Address

NODE, VIP, OTHER = map(ipaddress.ip_address, ("192.0.2.1", "10.0.0.100", "10.0.0.101"))
V6 = ipaddress.ip_address("fd00::12:3456")
CLIENT, CLIENT_MAC = ipaddress.ip_address("10.0.0.250"), "02:00:00:00:00:fe"
ETH0 = SegmentLink(2, "eth0", bytes.fromhex("020000000001"), True, frozenset({NODE}))
ETH1 = SegmentLink(3, "eth1", bytes.fromhex("020000000002"), True)
DEFAULT: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("neighbor_lab")


class FakePort:
    """A link's sockets: what was sent, which groups are joined."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.groups: set[bytes] = set()
        self.is_open = True
        self.error: OSError | None = None

    def send(self, frame: bytes) -> None:
        assert self.is_open
        if self.error is not None:
            raise self.error
        self.sent.append(frame)

    def join(self, groups: Collection[bytes]) -> None:
        assert self.is_open
        self.groups = set(groups)

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


class World:
    """Answering, and the ports it opened, by name of the link and in their order."""

    def __init__(self, *links: SegmentLink, patterns: tuple[str, ...] = ()) -> None:
        self.opened: list[tuple[str, FakePort]] = []
        self.refused: dict[str, OSError] = {}
        self.claims: list[tuple[Address, str, str]] = []
        self.node_addresses = {NODE}
        self.answering = Answering(self._open, lambda: self.node_addresses, self._note, patterns)
        self.answering.see(links, 0.0)

    def _open(self, link: SegmentLink) -> FakePort:
        if link.name in self.refused:
            raise self.refused[link.name]
        port = FakePort()
        self.opened.append((link.name, port))
        return port

    def _note(self, *claim: object) -> None:
        self.claims.append(claim)  # type: ignore[arg-type]

    def port(self, name: str) -> FakePort:
        """The one that is open at a link."""
        (found,) = [port for link, port in self.opened if link == name and port.is_open]
        return found

    def sent(self, name: str) -> list[bytes]:
        """What was sent on a link since the last call."""
        port = self.port(name)
        sent, port.sent = port.sent, []
        return sent


def told(link: SegmentLink, *addresses: Address) -> list[bytes]:
    return [
        frame
        for each in addresses
        for frame in (
            packets.arp_announcements(link.mac, each.packed)
            if each.version == 4
            else (packets.ndp_announcement(link.mac, each.packed),)
        )
    ]


def test_a_new_address_is_told_three_times() -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    assert world.sent("eth0") == told(ETH0, VIP)
    assert world.answering.work(0.4) == pytest.approx(0.6)
    assert world.sent("eth0") == []
    for now in (1.0, 2.0):
        world.answering.work(now)
        assert world.sent("eth0") == told(ETH0, VIP)
    assert world.answering.work(3.0) is None
    assert world.sent("eth0") == []
    assert world.answering.count["announcements"] == 3


def test_only_what_is_new_is_told_and_only_what_is_still_wanted_again() -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    world.sent("eth0")
    world.answering.put({VIP: DEFAULT, V6: DEFAULT}, 0.5)
    assert world.sent("eth0") == told(ETH0, V6)
    world.answering.put({V6: DEFAULT}, 0.7)
    world.answering.work(1.2)
    assert world.sent("eth0") == []
    world.answering.work(1.5)
    assert world.sent("eth0") == told(ETH0, V6)
    world.answering.announce()
    assert world.sent("eth0") == told(ETH0, V6)


def test_the_group_of_each_address_is_joined_and_left() -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT, V6: DEFAULT}, 0.0)
    assert world.port("eth0").groups == {packets.solicited_node(V6.packed), packets.ALL_NODES}
    world.answering.put({VIP: DEFAULT}, 0.0)
    assert world.port("eth0").groups == set()
    world.answering.watch({V6: DEFAULT}, 0.0)
    assert world.port("eth0").groups == {packets.ALL_NODES}


def test_links_come_and_go_and_come_back(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: ("eth*",), OTHER: ("eth1",)}, 0.0)
    assert world.answering.links == {VIP: ("eth0",), OTHER: ()}
    world.answering.see((ETH0, ETH1), 5.0)
    assert world.answering.links == {VIP: ("eth0", "eth1"), OTHER: ("eth1",)}
    assert world.sent("eth1") == told(ETH1, VIP, OTHER)
    world.sent("eth0")
    first = world.port("eth1")
    down = structs.replace(ETH1, is_fit=False)
    world.answering.see((ETH0, down), 6.0)
    assert not first.is_open
    assert world.answering.links == {VIP: ("eth0",), OTHER: ()}
    assert world.answering.count["links"] == 1
    world.answering.hear(ETH1.index, lab.question(VIP, CLIENT_MAC, CLIENT), 6.0)
    world.answering.see((ETH0, ETH1), 7.0)
    assert world.sent("eth1") == told(ETH1, VIP, OTHER)
    assert world.sent("eth0") == []


def test_another_hardware_address_is_told_of_and_another_name_is_not() -> None:
    world = World(ETH0)
    world.answering.put({VIP: ("eth*", "wan")}, 0.0)
    world.answering.see((structs.replace(ETH0, name="wan"),), 0.0)
    assert [name for name, _ in world.opened] == ["eth0"]
    assert world.answering.links == {VIP: ("wan",)}
    other = structs.replace(ETH0, mac=bytes.fromhex("0200000000aa"))
    world.answering.see((other,), 0.0)
    assert world.sent("eth0") == told(other, VIP)
    world.answering.see((structs.replace(other, name="lan"),), 0.0)
    assert world.answering.links == {VIP: ()}


def test_without_patterns_the_links_of_the_nodes_addresses_are_meant() -> None:
    world = World(ETH0, ETH1)
    world.answering.put({VIP: DEFAULT}, 0.0)
    assert world.answering.links == {VIP: ("eth0",)}
    world.node_addresses = {CLIENT}
    world.answering.put({VIP: DEFAULT}, 0.0)
    assert world.answering.links == {VIP: ()}


def test_other_links_may_be_meant_without_patterns() -> None:
    world = World(ETH0, ETH1, patterns=("eth1",))
    world.answering.put({VIP: DEFAULT, OTHER: ("eth0",)}, 0.0)
    assert world.answering.links == {VIP: ("eth1",), OTHER: ("eth0",)}


def test_what_a_link_carries_is_left_to_the_kernel() -> None:
    world = World(structs.replace(ETH0, addresses=frozenset({NODE, VIP})), ETH1)
    world.answering.put({VIP: ("eth*",)}, 0.0)
    assert world.answering.links == {VIP: ("eth1",)}


def test_a_link_that_cannot_be_opened_is_tried_again_and_others_are_used() -> None:
    world = World(ETH0, ETH1)
    world.refused["eth0"] = OSError(12, "Cannot allocate memory")
    world.answering.put({VIP: ("eth*",)}, 0.0)
    assert world.answering.links == {VIP: ("eth1",)}
    assert world.answering.count["failures"] == 1
    del world.refused["eth0"]
    wait = world.answering.work(0.5)
    assert wait is not None
    world.answering.work(0.5 + wait)
    assert world.answering.links == {VIP: ("eth0", "eth1")}
    assert world.sent("eth0") == told(ETH0, VIP)


def test_a_link_with_an_error_is_opened_anew_and_told_again(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    for now in (1.0, 2.0):
        world.answering.work(now)
    world.answering.fail(ETH0.index, OSError(100, "Network is down"), 10.0)
    world.answering.fail(ETH0.index, OSError(100, "Network is down"), 10.0)
    assert world.answering.links == {VIP: ()}
    world.answering.hear(ETH0.index, lab.question(VIP, CLIENT_MAC, CLIENT), 10.0)
    world.answering.work(11.0)
    assert world.answering.links == {VIP: ("eth0",)}
    assert world.sent("eth0") == told(ETH0, VIP)


def test_what_cannot_be_sent_stops_nothing(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    world.sent("eth0")
    world.port("eth0").error = OSError(105, "No buffer space available")
    question = lab.question(VIP, CLIENT_MAC, CLIENT)
    world.answering.hear(ETH0.index, question, 0.0)
    world.answering.announce()
    # The answer, and both forms of what is told.
    assert (world.answering.count["failures"], world.answering.count["answers"]) == (3, 0)
    world.port("eth0").error = None
    world.answering.hear(ETH0.index, question, 0.0)
    assert len(world.sent("eth0")) == 1


def test_a_flood_of_questions_is_answered_up_to_a_limit_in_each_second(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    question = lab.question(VIP, CLIENT_MAC, CLIENT)
    world.sent("eth0")
    for _ in range(ANSWERS_PER_S + 7):
        world.answering.hear(ETH0.index, question, 0.5)
    assert len(world.sent("eth0")) == world.answering.count["answers"] == ANSWERS_PER_S
    assert world.answering.count["dropped"] == 7
    world.answering.hear(ETH0.index, question, 1.5)
    assert len(world.sent("eth0")) == 1


def test_old_questions_are_not_answered_but_old_claims_are_told(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    world.sent("eth0")
    question = lab.question(VIP, CLIENT_MAC, CLIENT)
    world.answering.hear(ETH0.index, question, 9.0, 1.5)
    world.answering.hear(ETH0.index, lab.announcement(VIP, CLIENT_MAC), 9.0, 1.5)
    assert (world.sent("eth0"), world.answering.count["dropped"]) == ([], 1)
    assert world.claims == [(VIP, "eth0", CLIENT_MAC)]
    world.answering.hear(ETH0.index, question, 9.0, 0.5)
    assert len(world.sent("eth0")) == 1


def test_who_was_asleep_answers_nothing_for_a_while(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    world.sent("eth0")
    world.answering.rest(10.0)
    question = lab.question(VIP, CLIENT_MAC, CLIENT)
    for now, wanted in ((9.0, 0), (9.9, 0), (10.0, 1)):
        world.answering.hear(ETH0.index, question, now)
        assert len(world.sent("eth0")) == wanted


def test_the_host_itself_neither_asks_nor_claims(lab: ModuleType) -> None:
    """Its links see each other's frames where both are on one segment."""
    world = World(ETH0, ETH1)
    world.answering.put({VIP: ("eth*",)}, 0.0)
    world.sent("eth0")
    own = ETH1.mac.hex(":")
    world.answering.hear(ETH0.index, lab.announcement(VIP, own), 0.0)
    world.answering.hear(ETH0.index, lab.question(VIP, own, CLIENT), 0.0)
    assert (world.sent("eth0"), world.claims) == ([], [])


def test_whoever_asks_with_our_address_claims_it_and_is_answered(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT, OTHER: DEFAULT}, 0.0)
    world.sent("eth0")
    world.answering.hear(ETH0.index, lab.question(OTHER, CLIENT_MAC, VIP), 0.0)
    assert world.claims == [(VIP, "eth0", CLIENT_MAC)]
    assert len(world.sent("eth0")) == 1


def test_who_cannot_be_told_of_a_claim_stops_nothing(lab: ModuleType) -> None:
    world = World(ETH0)
    world.answering.put({VIP: DEFAULT}, 0.0)
    world.claims = None  # type: ignore[assignment]
    world.answering.hear(ETH0.index, lab.announcement(VIP, CLIENT_MAC), 0.0)
    world.sent("eth0")
    world.answering.hear(ETH0.index, lab.question(VIP, CLIENT_MAC, CLIENT), 0.0)
    assert len(world.sent("eth0")) == 1
    assert world.answering.count["claims"] == 1


def test_all_links_are_closed_in_the_end() -> None:
    world = World(ETH0, ETH1)
    world.answering.put({VIP: ("eth*",)}, 0.0)
    world.answering.close()
    assert [port.is_open for _, port in world.opened] == [False, False]
    assert world.answering.links == {VIP: ()}


def test_patterns_are_those_of_file_names() -> None:
    links = (ETH0, ETH1, structs.replace(ETH1, index=4, name="bond0.100"))
    for patterns, wanted in (
        (["eth?"], ["eth0", "eth1"]),
        (["bond0.*"], ["bond0.100"]),
        (["eth[12]", "nothing"], ["eth1"]),
        (["ETH0"], []),
    ):
        assert [each.name for each in choose(links, patterns, ())] == wanted


def test_a_meter_counts_by_the_second() -> None:
    meter = Meter(2)
    assert [meter.take(now) for now in (0.0, 0.1, 0.9, 1.0, 1.5, 1.9, 9.0)] == [
        *(True, True, False),
        *(True, True, False),
        True,
    ]
