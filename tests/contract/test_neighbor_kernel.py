"""The responder among real kernels: those of clients believe it, and no other host gets by it."""

import ipaddress
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from kube_router_py.adapters import responder_opener
from kube_router_py.errors import KernelError
from kube_router_py.kernel import neighbor_answering, neighbor_responder
from kube_router_py.kernel.neighbor_answering import OLD_S
from kube_router_py.kernel.neighbor_ports import Address
from kube_router_py.kernel.neighbor_responder import ASLEEP_S, REST_S, NeighborResponder
from kube_router_py.kernel.neighbor_sockets import LinkSockets
from kube_router_py.options import Options

if TYPE_CHECKING:
    from tests.neighbor_lab import Host, Node, RealWorld

pytestmark = pytest.mark.netfilter

VIPS = [ipaddress.ip_address("10.0.0.100"), ipaddress.ip_address("fd00::100")]
FREE = {4: ipaddress.ip_address("10.0.0.200"), 6: ipaddress.ip_address("fd00::200")}
NOBODY = {4: ipaddress.ip_address("0.0.0.0"), 6: ipaddress.ip_address("::")}
SECOND_MAC, THIRD_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"


@pytest.fixture(scope="module")
def lab(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("neighbor_lab")


@pytest.fixture
def segment(
    lab: ModuleType, new_namespace: Callable[[], AbstractContextManager[None]]
) -> "Iterator[RealWorld]":
    with new_namespace(), closing(lab.RealWorld()) as made:
        yield made


@pytest.fixture(params=VIPS, ids=str)
def vip(request: pytest.FixtureRequest) -> Address:
    address: Address = request.param
    return address


def make_local(host: "Host", *vips: Address) -> None:
    """As the service proxy does: packets to them are taken in, and no link carries them."""
    for each in vips:
        host.sh(f"ip route add local {each} dev lo")


def serve(host: "Host") -> socket.socket:
    """A server at all addresses of a host; its kernel accepts connections."""
    made: socket.socket = host.run(
        lambda: socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    return made


def connect(vip: Address) -> None:
    socket.create_connection((str(vip), 8080), timeout=30).close()


def neighbor(host: "Host", vip: Address) -> str:
    """What a host's kernel believes of an address: the hardware address and the state."""
    words = host.sh(f"ip neigh show {vip} dev eth0").split()
    return " ".join(words[words.index("lladdr") + 1 :] if "lladdr" in words else words[1:])


def questions(segment: "RealWorld", lab: ModuleType, vip: Address) -> int:
    """How many times the client's kernel has asked for an address."""
    mac = bytes.fromhex(lab.CLIENT_MAC.replace(":", ""))
    kind, at = (b"\x08\x06", 38) if vip.version == 4 else (b"\x86\xdd", 62)
    return sum(
        frame[6:12] == mac
        and frame[12:14] == kind
        and frame[at:].startswith(vip.packed)
        and (frame[21] == 1 if vip.version == 4 else frame[54] == 135)
        for frame in list(segment.capture.frames)
    )


def has_told(lab: ModuleType, node: "Node", addresses: int) -> None:
    """Wait until a node has told three times of so many new addresses, and of its own."""
    wanted = 3 * (addresses + 1)
    lab.wait_until(
        lambda: node.responder.numbers()["announcements"] >= wanted, "all were told of thrice"
    )


def test_a_client_reaches_an_address_that_no_link_carries(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    host = segment.of(node)
    make_local(host, vip)
    with closing(serve(host)):
        # The kernel by itself answers for no local route: this is why there is a responder.
        with pytest.raises(OSError, match="No route to host"):
            segment.client.run(connect, vip)
        node.put(vip)
        segment.client.sh(f"ip neigh flush to {vip} dev eth0")
        before = questions(segment, lab, vip)
        segment.client.run(connect, vip)
        assert neighbor(segment.client, vip).startswith(node.mac)
        asked = lab.wait_until(
            lambda: questions(segment, lab, vip) - before, "the question was captured"
        )
        segment.settle()
        answers = [lab.said(each)[:2] for each in list(segment.capture.frames)]
        # One to each question; the client's kernel may have asked once more in between.
        asked_since = questions(segment, lab, vip) - before
        assert asked <= answers.count(("answer", vip)) <= asked_since


def test_a_client_follows_whoever_takes_over_without_asking(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    first, second = segment.node("first"), segment.node("second")
    for node in (first, second):
        make_local(segment.of(node), vip)
    first.put(vip)
    with closing(serve(segment.of(first))):
        segment.client.run(connect, vip)
    assert neighbor(segment.client, vip).startswith(first.mac)
    first.put()
    segment.settle()
    asked = questions(segment, lab, vip)
    second.put(vip)
    lab.wait_until(
        lambda: (
            questions(segment, lab, vip) > asked
            or neighbor(segment.client, vip).startswith(second.mac)
        ),
        "the client has followed, or asked",
    )
    assert questions(segment, lab, vip) == asked
    assert neighbor(segment.client, vip).startswith(second.mac)


def test_an_address_that_is_answered_for_is_a_duplicate_elsewhere(
    segment: "RealWorld", lab: ModuleType
) -> None:
    vip = VIPS[1]
    node = segment.node("first")
    node.put(vip)
    has_told(lab, node, 1)  # so that it is an answer by which the other learns it
    other = segment.host("other", mac=SECOND_MAC)
    tries = "sysctl -qw net.ipv6.conf.eth0.dad_transmits"
    other.sh(f"{tries}=10", f"ip addr add {vip}/64 dev eth0")

    def state(address: Address) -> str:
        lines = other.sh("ip -6 -o addr show dev eth0").splitlines()
        (line,) = [each for each in lines if f" {address}/64 " in each]
        return line

    lab.wait_until(lambda: "dadfailed" in state(vip), "the duplicate was found")
    other.sh(f"{tries}=1", f"ip addr add {FREE[6]}/64 dev eth0")
    lab.wait_until(lambda: "tentative" not in state(FREE[6]), "the free one could be used")


def test_who_tries_whether_it_is_free_is_told(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    node.put(vip)
    wanted = "answer" if vip.version == 4 else "told"

    def heard() -> int:
        return len([1 for f in list(segment.capture.frames) if lab.said(f)[:2] == (wanted, vip)])

    has_told(lab, node, 1)
    segment.settle()
    before = heard()
    for _ in range(4):
        segment.capture.socket.send(lab.question(vip, lab.CLIENT_MAC, NOBODY[vip.version]))
    segment.settle()
    assert heard() == before + 4
    assert node.claims == []


def test_a_host_that_has_the_address_too_is_heard(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    node.put(vip)
    other = segment.host("other", mac=SECOND_MAC)
    other.sh(
        "sysctl -qw net.ipv4.conf.eth0.arp_notify=1",
        "sysctl -qw net.ipv6.conf.eth0.ndisc_notify=1",
        f"ip addr add {vip}/24 dev eth0" + (" nodad" if vip.version == 6 else ""),
        f"ip link set eth0 address {THIRD_MAC}",
    )
    lab.wait_until(lambda: node.claims, "the other was heard")
    assert node.claims[-1] in [(vip, "eth0", mac) for mac in (SECOND_MAC, THIRD_MAC)]


def test_links_that_come_later_change_and_go(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    host = segment.of(node)
    node.put(vip, links=("lan?",))
    assert node.responder.links()[vip] == ()

    def used() -> tuple[str, ...]:
        return node.responder.links()[vip]

    def answering() -> set[str]:
        return {name for name, _ in segment.answers(vip)}

    segment.plug(host, "lan0", SECOND_MAC)
    lab.wait_until(lambda: used() == ("lan0",), "the new link was used")
    lab.wait_until(lambda: answering() == {SECOND_MAC}, "it was answered there")
    host.sh(f"ip link set lan0 address {THIRD_MAC}")
    lab.wait_until(lambda: answering() == {THIRD_MAC}, "the new hardware address was told")
    host.sh("ip link set lan0 down")
    lab.wait_until(lambda: used() == (), "the link that is down was left")
    assert answering() == set()
    host.sh("ip link set lan0 name lan1", "ip link set lan1 up")
    lab.wait_until(lambda: used() == ("lan1",), "it was used by its other name")
    lab.wait_until(lambda: answering() == {THIRD_MAC}, "it was answered there again")
    host.sh("ip link set lan1 down", "ip link set lan1 name wan1", "ip link set wan1 up")
    lab.wait_until(lambda: used() == (), "a link of another name was left")
    host.sh("ip link set wan1 down", "ip link set wan1 name lan1", "ip link set lan1 up")
    lab.wait_until(lambda: used() == ("lan1",), "it was used again")
    host.sh("ip link del lan1")
    lab.wait_until(lambda: used() == (), "the link that went was left")
    segment.settle()


def test_a_link_that_was_down_for_a_moment_is_answered_at(
    segment: "RealWorld", lab: ModuleType
) -> None:
    vip = VIPS[0]
    node = segment.node("first")
    node.put(vip)
    for _ in range(3):
        segment.of(node).sh("ip link set eth0 down", "ip link set eth0 up")

    def is_answered() -> bool:
        segment.ask(vip)
        return any(lab.said(each)[:2] == ("answer", vip) for each in segment.capture.frames)

    lab.wait_until(is_answered, "it was answered again")


def test_a_port_of_a_bridge_is_none_and_the_bridge_is_one(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    host = segment.of(node)
    host.sh("ip link add br9 type bridge", "ip link set br9 up")
    segment.plug(host, "lan0", SECOND_MAC)
    host.sh("ip link set lan0 master br9")
    node.put(vip, links=("lan0", "br9"))
    lab.wait_until(lambda: node.responder.links()[vip] == ("br9",), "the bridge alone was used")
    mac = host.sh("ip -br link show br9").split()[2]
    lab.wait_until(lambda: {name for name, _ in segment.answers(vip)} == {mac}, "it answered")


def test_the_bridge_of_the_pods_is_never_one(segment: "RealWorld", lab: ModuleType) -> None:
    node, vip = segment.node("first"), VIPS[0]
    host = segment.of(node)
    for bridge, port in (("kube-bridge", "lan0"), ("br9", "lan1")):
        host.sh(f"ip link add {bridge} type bridge", f"ip link set {bridge} up")
        segment.plug(host, port, SECOND_MAC)
        host.sh(f"ip link set {port} master {bridge}")
    host.sh("ip link add kube-dummy-if type veth peer name tun-1", "ip link set tun-1 up")
    host.sh("ip link set kube-dummy-if up")
    node.put(vip, links=("*",))
    # The other bridge came last.
    lab.wait_until(lambda: "br9" in node.responder.links()[vip], "the other bridge was used")
    lab.wait_until(lambda: node.responder.links()[vip] == ("br9", "eth0"), "these alone were")


def test_questions_of_other_vlans_and_to_other_hosts_are_not_answered(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    segment.of(node).sh("ip link set eth0 promisc on")
    node.put(vip)
    question = lab.question(vip, lab.CLIENT_MAC, lab.CLIENT[vip.version])
    before = node.responder.numbers()["answers"]
    for frame in (
        question[:12] + b"\x81\x00\x00\x05" + question[12:],
        bytes.fromhex("020000000077") + question[6:],
    ):
        segment.capture.socket.send(frame)
    segment.settle()
    # The last question of settle may be counted only after it was heard; others are not.
    lab.wait_until(lambda: node.responder.numbers()["answers"] > before, "it was counted")
    assert node.responder.numbers()["answers"] == before + 1
    segment.capture.socket.send(question[:12] + b"\x81\x00\x00\x00" + question[12:])
    lab.wait_until(lambda: node.responder.numbers()["answers"] > before + 1, "it was answered")


def test_a_flood_does_not_stop_it(segment: "RealWorld", lab: ModuleType) -> None:
    node = segment.node("first")
    node.put(*VIPS)
    garbage = [
        lab.question(FREE[4], lab.CLIENT_MAC, lab.CLIENT[4]),
        lab.question(VIPS[0], lab.CLIENT_MAC, lab.CLIENT[4])[:30] + bytes(12),
        lab.question(FREE[6], lab.CLIENT_MAC, lab.CLIENT[6]),
        lab.question(VIPS[1], lab.CLIENT_MAC, lab.CLIENT[6])[:-1] + b"\0",
        bytes(60),
    ]
    for _ in range(3000):
        for frame in garbage:
            segment.capture.socket.send(frame)
    for vip in VIPS:
        start = len(segment.capture.frames)

        def is_answered(vip: Address = vip, start: int = start) -> bool:
            segment.ask(vip)
            new = segment.capture.frames[start:]
            return any(lab.said(each)[:2] == ("answer", vip) for each in new)

        lab.wait_until(is_answered, f"{vip} was answered for after the flood")
    assert node.claims == []


def test_a_process_that_was_asleep_is_silent_for_a_moment(
    segment: "RealWorld", lab: ModuleType
) -> None:
    node, vip, now = segment.node("first"), VIPS[0], [100.0]

    def start() -> NeighborResponder:
        return NeighborResponder(node.note, lambda: [lab.CLIENT[4]], ("eth0",), lambda: now[0])

    with (
        mock.patch.object(neighbor_responder, "ASLEEP_S", ASLEEP_S),
        closing(segment.of(node).run(start)) as responder,
    ):

        def grows(number: str, since: float) -> bool:
            segment.ask(vip)
            return bool(responder.numbers()[number] > since)

        responder.put({vip: ()})
        now[0] += ASLEEP_S + 1.0
        for since in (0.0, 1.0, 2.0):
            lab.wait_until(lambda since=since: grows("dropped", since), "it was silent")
        assert responder.numbers()["answers"] == 0
        now[0] += REST_S
        lab.wait_until(lambda: grows("answers", 0.0), "it answered again")


def test_what_fails_unexpectedly_is_begun_anew(
    segment: "RealWorld", lab: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    node, vip = segment.node("first"), VIPS[0]
    own = [ipaddress.ip_address("10.0.0.1")]
    known = [own]
    with closing(segment.of(node).run(NeighborResponder, node.note, lambda: known[0])) as responder:
        responder.put({vip: ()})
        known.clear()
        with pytest.raises(KernelError, match="could not take it over"):
            responder.put({vip: (), FREE[4]: ()})
        lab.wait_until(lambda: responder.links()[vip] == (), "all was closed")
        known.append(own)
        lab.wait_until(lambda: responder.links().get(FREE[4]) == ("eth0",), "it was answered")
        assert responder.links()[vip] == ("eth0",)
    assert "IndexError" in caplog.text


def test_questions_that_have_waited_for_long_are_not_answered(
    segment: "RealWorld", lab: ModuleType
) -> None:
    node, vip, may_go_on = segment.node("first"), VIPS[0], threading.Event()
    is_held = threading.Event()

    def hold(*_: object) -> None:
        is_held.set()
        may_go_on.wait(lab.DEADLINE_S)

    own = [ipaddress.ip_address("10.0.0.1")]
    responder = segment.of(node).run(NeighborResponder, hold, lambda: own)
    with mock.patch.object(neighbor_answering, "OLD_S", OLD_S), closing(responder):
        responder.put({vip: ()})
        segment.claim(vip)
        assert is_held.wait(lab.DEADLINE_S)
        segment.ask(vip)
        time.sleep(OLD_S + 0.5)  # the time that this takes is what is tested
        may_go_on.set()
        lab.wait_until(lambda: responder.numbers()["dropped"] == 1, "it was dropped")
        assert responder.numbers()["answers"] == 0


def test_the_kernel_hands_over_nothing_but_what_is_about_neighbours(
    segment: "RealWorld", lab: ModuleType
) -> None:
    """Not even to be thrown away: a node's link carries much more."""
    host = segment.host("other", mac=SECOND_MAC)
    index = int(host.sh("ip -o link show eth0").split(":")[0])
    arp, ndp = (lab.question(each, lab.CLIENT_MAC, lab.CLIENT[each.version]) for each in VIPS)
    udp = lab.ndp(SECOND_MAC, lab.CLIENT_MAC, 135, VIPS[1], VIPS[1], bytes(20))
    others = [
        udp[:20] + b"\x11" + udp[21:],
        lab.ndp(SECOND_MAC, lab.CLIENT_MAC, 128, VIPS[1], VIPS[1], bytes(4)),
        bytes.fromhex(SECOND_MAC.replace(":", "")) + arp[6:12] + b"\x08\x00" + bytes(46),
        arp[:21] + b"\x03" + arp[22:],
    ]
    heard: list[bytes] = []

    def hears(frame: bytes, fileno: int) -> bool:
        """Whether it has come; the kernels of the segment ask, too."""
        while (received := sockets.receive(fileno)) is not None:
            heard.append(received[0])
            assert 0 <= received[1] < lab.DEADLINE_S
        return frame in heard

    with closing(host.run(LinkSockets, index, "eth0")) as sockets:
        for frame in others * 100 + [arp, ndp]:
            segment.capture.socket.send(frame)
        for frame, fileno in zip((arp, ndp), sockets.filenos(), strict=True):
            lab.wait_until(partial(hears, frame, fileno), "it was heard")
        assert not set(others) & set(heard)


def test_a_thousand_addresses_are_listened_for(
    segment: "RealWorld", lab: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    node = segment.node("first")
    host = segment.of(node)
    many = [ipaddress.ip_address(f"fd00::5:{number:x}") for number in range(1000)]
    node.put(*many)

    def joined() -> int:
        lines = host.sh("ip -6 maddr show dev eth0").splitlines()
        return len([1 for each in lines if "ff02::1:ff05:" in each])

    assert joined() == 1000
    for each in (many[0], many[500], many[999]):
        assert segment.who_has(each) == ["first"]
    node.put()
    assert joined() == 0
    assert [each.message for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_where_groups_cannot_be_joined_all_are_let_in(
    segment: "RealWorld", lab: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    node = segment.node("first")
    # Below 1280 bytes the kernel has no IPv6 on a link, and no groups of it.
    segment.of(node).sh("ip link set eth0 mtu 1000")
    node.put(VIPS[1], links=("eth0",))
    assert segment.who_has(VIPS[1]) == ["first"]
    assert "all are let in instead link=eth0" in caplog.text
    assert "allmulti 1" in segment.of(node).sh("ip -d link show dev eth0")


def test_the_agent_opens_it_for_the_links_that_the_operator_names(
    segment: "RealWorld", lab: ModuleType, vip: Address
) -> None:
    node = segment.node("first")
    host = segment.of(node)
    segment.plug(host, "lan0", SECOND_MAC)
    options = Options(loadbalancer_layer2_interfaces=("lan*",))
    node_address = ipaddress.ip_address("10.0.0.1")
    opened = host.run(responder_opener(options), node.note, lambda: [node_address])
    with closing(opened) as responder:
        responder.put({vip: ()})
        lab.wait_until(lambda: responder.links()[vip] == ("lan0",), "the link was used")
        lab.wait_until(lambda: segment.who_has(vip) == [SECOND_MAC], "it was answered there")


def test_without_the_capability_the_remedy_is_said() -> None:
    code = "from kube_router_py.kernel.neighbor_sockets import check_allowed as c; c()"
    allowed = [sys.executable, "-c", code]
    dropped = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *allowed]
    root = {"cwd": os.getcwd(), "capture_output": True, "timeout": 120, "text": True}
    assert subprocess.run(allowed, **root).returncode == 0  # type: ignore[call-overload]
    done = subprocess.run(dropped, **root)  # type: ignore[call-overload]
    assert "PreflightError: cannot answer ARP and NDP" in done.stderr
    assert "CAP_NET_RAW is needed" in done.stderr
