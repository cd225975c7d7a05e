"""A group of the kernel's packet log: one reader at a time, packets at once, losses counted.

On the fake and on the real kernel; below, what only real packets can show: both backends of
iptables, both families, several protocols.
"""

import errno
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_nflog import FakeNflog
from kube_router_py.kernel.nflog import NflogSocket, who_reads
from kube_router_py.kernel.nflog_packets import Packet
from kube_router_py.kernel.nflog_ports import GroupTakenError, PacketLog

GROUP = 100
PREFIX = "KUBE-POD-FW-ABCDEFGHIJKLMNOP ingress policy "
PORT = 9
_TIMEOUT_S = 60.0
Namespace = Callable[[], AbstractContextManager[None]]


class World:
    """A group that can be opened, and packets that go into it."""

    def __init__(self, open_log: Callable[[], PacketLog], send: Callable[[], object]) -> None:
        self.open, self.send = open_log, send


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.netfilter)])
def group(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        fake = FakeNflog()
        packet = Packet(prefix=PREFIX, family=4, protocol="udp", destination_port=PORT)
        yield World(fake.open, lambda: fake.log(packet))
        return
    with request.getfixturevalue("new_namespace")(), ExitStack() as stack:
        log_packets("iptables", f"-p udp --dport {PORT}")
        sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        yield World(NflogSocket, lambda: sender.sendto(b"x", ("127.0.0.1", PORT)))


def log_packets(program: str, match: str, chain: str = "OUTPUT") -> None:
    subprocess.run(
        [
            *(program, "-w", "-A", chain, *match.split(), "-j", "NFLOG"),
            *("--nflog-prefix", PREFIX, "--nflog-group", str(GROUP)),
        ],
        check=True,
        timeout=_TIMEOUT_S,
    )


def read(log: PacketLog, number: int = 1) -> list[Packet]:
    """So many packets, or what came of them in time."""
    found: list[Packet] = []
    deadline = time.monotonic() + _TIMEOUT_S
    while len(found) < number and time.monotonic() < deadline:
        found += log.read(1.0)
    return found


def test_packets_come_in_order_and_one_at_a_time(group: World) -> None:
    with closing(group.open()) as log:
        group.send()
        (packet,) = read(log)
        assert (packet.prefix, packet.family) == (PREFIX, 4)
        assert (packet.protocol, packet.destination_port) == ("udp", PORT)
        for _ in range(5):
            group.send()
        assert len(read(log, 5)) == 5
        assert log.lost == 0


def test_silence_is_no_packet(group: World) -> None:
    with closing(group.open()) as log:
        assert log.read(0.0) == []
        assert log.read(0.05) == []


def test_what_was_logged_before_is_not_told(group: World) -> None:
    group.send()
    with closing(group.open()) as log:
        assert log.read(0.2) == []


def test_a_group_has_one_reader(group: World) -> None:
    with closing(group.open()) as log:
        with pytest.raises(GroupTakenError) as raised:
            group.open()
        assert raised.value.errno == errno.EPERM
        assert str(GROUP) in str(raised.value)
        group.send()
        assert len(read(log)) == 1  # and goes on having it


def test_a_closed_log_gives_its_group_back(group: World) -> None:
    group.open().close()
    with closing(group.open()) as log:
        group.send()
        assert len(read(log)) == 1


def test_it_may_be_closed_twice(group: World) -> None:
    log = group.open()
    log.close()
    log.close()
    group.open().close()


# --- the real kernel -----------------------------------------------------------------------------


def _send(family: int, kind: int, protocol: int, address: str) -> None:
    with socket.socket(family, kind, protocol) as sender:
        sender.setblocking(False)
        if kind == socket.SOCK_DGRAM:
            sender.sendto(b"x" * 600, (address, PORT))
        else:
            sender.connect_ex((address, PORT))


@pytest.mark.netfilter
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_packets_of_every_kind(new_namespace: Namespace, peer: Any, variant: str) -> None:
    """What another host sends on, as the firewall's rules see it."""
    with new_namespace():
        other = peer("veth1", "192.0.2.1/24", "192.0.2.2/24")
        add = ["ip", "addr", "add", "2001:db8::1/64", "dev", "veth1", "nodad"]
        subprocess.run(add, check=True, timeout=_TIMEOUT_S)
        other.run(subprocess.run, ["ip", "addr", "add", "2001:db8::2/64", "dev", "veth0", "nodad"])
        for program in (f"iptables-{variant}", f"ip6tables-{variant}"):
            for protocol in ("tcp", "udp"):
                log_packets(program, f"-p {protocol} --dport {PORT}", "INPUT")
        with closing(NflogSocket()) as log:
            for family, address in (
                (socket.AF_INET, "192.0.2.1"),
                (socket.AF_INET6, "2001:db8::1"),
            ):
                for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
                    other.run(_send, family, kind, 0, address)
                    packet = read(log)[0]
                    assert packet.prefix == PREFIX
                    assert packet.protocol == name
                    assert packet.destination == address
                    assert packet.source == address[:-1] + "2"
                    assert packet.destination_port == PORT
                    assert packet.source_port


@pytest.mark.netfilter
def test_who_has_the_group_is_told(new_namespace: Namespace) -> None:
    """Another process, which the message names; when it is gone the group is free."""
    program = (
        "from kube_router_py.kernel.nflog import NflogSocket as S\n"
        "log = S(); print('open', flush=True); input()"
    )
    with new_namespace():
        assert who_reads(GROUP) == ""
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"
            with pytest.raises(GroupTakenError, match=rf"\(process {holder.pid}\) reads NFLOG"):
                NflogSocket()
            holder.communicate(b"\n", timeout=_TIMEOUT_S)
        assert who_reads(GROUP) == ""
        NflogSocket().close()


@pytest.mark.netfilter
def test_packets_without_room_are_counted(new_namespace: Namespace) -> None:
    """All that were sent are read or lost."""
    sent = 20_000
    with new_namespace():
        log_packets("iptables", f"-p udp --dport {PORT}")
        with (
            closing(NflogSocket()) as log,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            for _ in range(sent):
                sender.sendto(b"x" * 300, ("127.0.0.1", PORT))
            found = 0
            while packets := log.read(0.5):
                found += len(packets)
            sender.sendto(b"x", ("127.0.0.1", PORT))  # shows the last gap
            found += len(read(log))
            assert 0 < found < sent
            assert found + log.lost == sent + 1


@pytest.mark.netfilter
def test_groups_are_apart(new_namespace: Namespace) -> None:
    with new_namespace(), closing(NflogSocket(GROUP)), closing(NflogSocket(GROUP + 1)) as other:
        log_packets("iptables", f"-p udp --dport {PORT}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", PORT))
        assert other.read(0.2) == []


@pytest.mark.netfilter
def test_without_the_right_to_it_the_message_says_so(new_namespace: Namespace) -> None:
    program = (
        "import os\nfrom kube_router_py.kernel.nflog import NflogSocket\n"
        "os.setuid(65534)\n"
        "try: NflogSocket()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with new_namespace():
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    assert done.stdout.startswith(KernelError.__name__), done
    assert "CAP_NET_ADMIN" in done.stdout
