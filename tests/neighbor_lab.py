"""Nodes and a client on one segment: fake, and of network namespaces at a bridge.

In the real one, whether somebody does *not* answer is known without waiting for nothing: each node
answers for an address of its own, too, which is asked for last. A responder works off questions in
their order, so that its other answers have come by then.
"""

import ctypes
import ipaddress
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar
from unittest import mock

from kube_router_py.kernel import neighbor_answering, neighbor_responder
from kube_router_py.kernel.fake_neighbors import FakeResponder, FakeSegment
from kube_router_py.kernel.neighbor_ports import Address, Responder
from kube_router_py.kernel.neighbor_responder import NeighborResponder

DEADLINE_S = 60.0
CLIENT_MAC = "02:00:00:00:00:fe"
CLIENT = {4: ipaddress.ip_address("10.0.0.250"), 6: ipaddress.ip_address("fd00::250")}
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_T = TypeVar("_T")


def sh(*commands: str) -> str:
    """Run commands one after the other; what the last one printed."""
    out = ""
    for command in commands:
        done = subprocess.run(command.split(), check=True, timeout=60, capture_output=True)
        out = done.stdout.decode()
    return out


def wait_until(condition: Callable[[], _T], what: str) -> _T:
    """What a condition returns as soon as that is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain waited until {what}"
        time.sleep(0.02)
    return found


class Node:
    """A node with a responder; ``claims`` is what that one told, as (address, link, mac)."""

    def __init__(self, name: str, mac: str, marker: Address) -> None:
        self.name, self.mac, self.marker = name, mac, marker
        self.claims: list[tuple[Address, str, str]] = []
        self.is_open = True
        self.responder: Responder

    def note(self, address: Address, link: str, mac: str) -> None:
        self.claims.append((address, link, mac))

    def put(self, *addresses: Address, links: tuple[str, ...] = ()) -> None:
        self.responder.put({**dict.fromkeys(addresses, links), self.marker: ()})

    def watch(self, *addresses: Address) -> None:
        self.responder.watch(dict.fromkeys(addresses, ()))

    def close(self) -> None:
        self.is_open = False
        self.responder.close()


class Segment(Protocol):
    """A segment with a client on it."""

    def node(self, name: str) -> Node: ...

    def who_has(self, address: Address) -> list[str]:
        """The names of the nodes that answer the client, one for each answer, sorted."""

    def told(self, address: Address) -> list[str]:
        """Which nodes, in order, told of an address unasked, so far."""

    def claim(self, address: Address) -> None:
        """Let the client say that an address is his."""

    def settle(self) -> None:
        """Wait until each node has worked off what it was sent before."""

    def close(self) -> None: ...


class FakeWorld:
    def __init__(self) -> None:
        self._segment = FakeSegment()
        self._names: dict[str, str] = {}

    def node(self, name: str) -> Node:
        node = Node(name, "", ipaddress.ip_address(f"10.0.9.{len(self._names) + 1}"))
        responder = FakeResponder(name, node.note, {"eth0": self._segment})
        node.responder, node.mac = responder, responder.mac("eth0")
        self._names[node.mac] = name
        return node

    def who_has(self, address: Address) -> list[str]:
        return sorted(self._names[mac] for mac in self._segment.who_has(address))

    def told(self, address: Address) -> list[str]:
        told = [each.mac for each in self._segment.told if each.address == address]
        return [self._names[mac] for mac in told if mac in self._names]

    def claim(self, address: Address) -> None:
        self._segment.claim(address, CLIENT_MAC)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


class Host:
    """A network namespace of its own; jobs run in its one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, initializer=self._enter)
        self.path = f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net"
        self.run(sh, "ip link set lo up")

    @staticmethod
    def _enter() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(call, *arguments).result(DEADLINE_S)

    def sh(self, *commands: str) -> str:
        return str(self.run(sh, *commands))

    def close(self) -> None:
        self._pool.shutdown()


class Capture:
    """What a host sends and hears at a link, from now on."""

    def __init__(self, link: str) -> None:
        self.frames: list[bytes] = []
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self.socket.bind((link, _ETH_P_ALL))
        self.socket.settimeout(0.2)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self.frames.append(self.socket.recv(2048))
            except (TimeoutError, OSError):  # the link may go down in between
                continue

    def close(self) -> None:
        self._is_closing = True
        self._thread.join(DEADLINE_S)
        self.socket.close()


class RealWorld:
    """In the namespace of the calling thread: a bridge, to which every host has a link eth0."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        # Each question is asked once: a thread that the machine holds up answers it nevertheless.
        for module, name in ((neighbor_answering, "OLD_S"), (neighbor_responder, "ASLEEP_S")):
            self._stack.enter_context(mock.patch.object(module, name, DEADLINE_S))
        self._nodes: list[Node] = []
        self._hosts: dict[str, Host] = {}
        self._ports = 0
        sh("ip link add br0 type bridge", "ip link set br0 up")
        self.client = self.host("client", *CLIENT.values(), mac=CLIENT_MAC)
        self.capture: Capture = self.client.run(Capture, "eth0")
        self._stack.callback(self.capture.close)

    def host(self, name: str, *addresses: Address, mac: str) -> Host:
        host = self._hosts[name] = Host()
        self._stack.callback(host.close)
        self.plug(host, "eth0", mac)
        for each in addresses:
            length, how = (24, "") if each.version == 4 else (64, "nodad")
            host.sh(f"ip addr add {each}/{length} dev eth0 {how}")
        return host

    def plug(self, host: Host, link: str, mac: str) -> str:
        """Give a host one more link at the bridge; the name of the bridge's port."""
        self._ports += 1
        port = f"port{self._ports}"
        sh(
            f"ip link add {port} type veth peer name {link} netns {host.path}",
            f"ip link set {port} master br0 up",
        )
        host.sh(f"ip link set {link} address {mac} up")
        # A carrier is noticed some time after both ends are up; what is sent before is lost.
        wait_until(
            lambda: (
                "state forwarding" in sh(f"ip -d link show {port}")
                and "state UP" in host.sh(f"ip link show {link}")
            ),
            f"{port} was joined",
        )
        return port

    def node(self, name: str) -> Node:
        number = len(self._nodes) + 1
        mac = f"02:00:00:00:00:{number:02x}"
        own = [ipaddress.ip_address(f"10.0.0.{number}"), ipaddress.ip_address(f"fd00::{number}")]
        host = self.host(name, *own, mac=mac)
        for sysctl in ("arp_ignore=1", "arp_announce=2"):
            host.sh(f"sysctl -qw net.ipv4.conf.all.{sysctl}")
        node = Node(name, mac, ipaddress.ip_address(f"10.0.9.{number}"))
        node.responder = host.run(NeighborResponder, node.note, lambda: own)
        self._stack.callback(node.responder.close)
        self._nodes.append(node)
        node.put()
        wait_until(lambda: node.responder.links()[node.marker], f"{name} answered")
        return node

    def of(self, node: Node) -> Host:
        return self._hosts[node.name]

    def who_has(self, address: Address) -> list[str]:
        return sorted(name for name, _ in self.answers(address))

    def answers(self, address: Address) -> list[tuple[str, bytes]]:
        """Who answered the client, and how; unknown ones by their hardware address."""
        start = len(self.capture.frames)
        self.ask(address)
        self.settle(start)
        names = {each.mac: each.name for each in self._nodes}
        return [
            (names.get(mac, mac), frame)
            for frame in self.capture.frames[start:]
            for kind, found, mac in [said(frame)]
            if kind == "answer" and found == address
        ]

    def settle(self, start: int | None = None) -> None:
        """Wait until each node has worked off what it was sent before."""
        start = len(self.capture.frames) if start is None else start
        markers = {each.marker for each in self._nodes if each.is_open}
        for marker in markers:
            self.ask(marker)
        wait_until(
            lambda: (
                markers
                <= {a for k, a, _ in map(said, self.capture.frames[start:]) if k == "answer"}
            ),
            f"all of {markers} had answered",
        )

    def ask(self, address: Address) -> None:
        self.capture.socket.send(question(address, CLIENT_MAC, CLIENT[address.version]))

    def told(self, address: Address) -> list[str]:
        names = {each.mac: each.name for each in self._nodes}
        return [
            names[mac]
            for kind, found, mac in map(said, list(self.capture.frames))
            if kind == "told" and found == address and mac in names
        ]

    def claim(self, address: Address) -> None:
        self.capture.socket.send(announcement(address, CLIENT_MAC))

    def close(self) -> None:
        self._stack.close()


def said(frame: bytes) -> tuple[str, Address | None, str]:
    """What a frame is ("answer" to one, "told" to all, or ""), of which address, at which mac."""
    mac = frame[6:12].hex(":")
    if frame[12:14] == b"\x08\x06":
        operation, address = frame[21], ipaddress.ip_address(frame[28:32])
        if frame[28:32] == frame[38:42]:
            # Announced in two forms, of which one is counted.
            return ("told" if operation == 1 else ""), address, mac
        return ("answer" if operation == 2 else ""), address, mac
    if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136:
        kind = "answer" if frame[58] & 0x40 else "told"
        return kind, ipaddress.ip_address(frame[62:78]), mac
    return "", None, mac


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def arp(to: str, sender: str, *, operation: int, source: Address, target: Address) -> bytes:
    return (
        struct.pack("!6s6sH", _mac(to), _mac(sender), 0x0806)
        + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + struct.pack("!6s4s6s4s", _mac(sender), source.packed, bytes(6), target.packed)
    )


def ndp(
    to: str, sender: str, kind: int, source: Address, destination: Address, body: bytes
) -> bytes:
    """NDP with its flags, target and options in ``body``."""
    pseudo = source.packed + destination.packed + struct.pack("!II", 4 + len(body), 58)
    message = struct.pack("!BBH", kind, 0, 0) + body
    data = pseudo + message + bytes(len(message) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = struct.pack("!BBH", kind, 0, 0xFFFF ^ total) + body
    return (
        struct.pack("!6s6sH", _mac(to), _mac(sender), 0x86DD)
        + struct.pack("!IHBB", 6 << 28, len(message), 58, 255)
        + source.packed
        + destination.packed
        + message
    )


def question(address: Address, sender: str, source: Address) -> bytes:
    """Who has an address? The unspecified address as source: is it free?"""
    if address.version == 4:
        return arp("ff:ff:ff:ff:ff:ff", sender, operation=1, source=source, target=address)
    end = address.packed[-3:]
    group = ipaddress.IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + end)
    option = b"" if source.is_unspecified else b"\x01\x01" + _mac(sender)
    body = bytes(4) + address.packed + option
    return ndp(f"33:33:ff:{end.hex(':')}", sender, 135, source, group, body)


def announcement(address: Address, sender: str) -> bytes:
    """Somebody says to all that he has an address."""
    if address.version == 4:
        return arp("ff:ff:ff:ff:ff:ff", sender, operation=1, source=address, target=address)
    body = b"\x20\0\0\0" + address.packed + b"\x02\x01" + _mac(sender)
    return ndp("33:33:00:00:00:01", sender, 136, address, ipaddress.ip_address("ff02::1"), body)


WORLDS: Mapping[str, Callable[[], Segment]] = {"fake": FakeWorld, "real": RealWorld}
