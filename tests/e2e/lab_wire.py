"""The fabric's wire: who answers for an address by ARP or NDP, and cables that are pulled.

    fabric: br0 --- node1, node2, ..., desk      each port is named after the host at its other end

One packet socket hears every frame that comes in at any port, so that an answer is heard whoever
it is for, and from whom is known by the port and not by what it says of itself.
"""

import contextlib
import ctypes
import fcntl
import ipaddress
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0806, 0x86DD
PACKET_OUTGOING = 4
NEXT_HEADER_ICMPV6 = 58
NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT = 135, 136
SO_ATTACH_FILTER = 26
SIOCGIFINDEX, SIOCBRADDIF, SIOCBRDELIF = 0x8933, 0x89A2, 0x89A3
BRIDGE = "br0"
BROADCAST = b"\xff" * 6

# Frames that come in at a port and are ARP, or ICMPv6 of one of the two types. Offsets are from
# the start of the Ethernet header; -4096 + 4 is the packet's type (SKF_AD_OFF + SKF_AD_PKTTYPE).
_FILTER = (
    (0x20, 0, 0, 0xFFFFF004),
    (0x15, 8, 0, PACKET_OUTGOING),
    (0x28, 0, 0, 12),
    (0x15, 5, 0, ETH_P_ARP),
    (0x15, 0, 5, ETH_P_IPV6),
    (0x30, 0, 0, 20),
    (0x15, 0, 3, NEXT_HEADER_ICMPV6),
    (0x30, 0, 0, 54),
    (0x15, 0, 1, NEIGHBOR_ADVERTISEMENT),
    (0x06, 0, 0, 0x40000),
    (0x06, 0, 0, 0),
)


class Claim(NamedTuple):
    """Somebody at a port says that an address is at a MAC; ``when`` as time.monotonic().

    ``kind``: ``reply``, ``gratuitous`` (to all, for nobody asked) or ``request`` (an ARP request
    names its sender, too).
    """

    when: float
    port: str
    address: str
    mac: str
    kind: str


class Wire:
    """``with Wire(cluster) as wire:`` hears all claims from then on; ``claims`` grows."""

    def __init__(self, cluster: Any) -> None:
        self.claims: list[Claim] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._capture = cluster.inside("fabric", _capture)
        self._desk = cluster.inside("desk", lambda: _packets("eth0"))
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "Wire":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._capture.close()
        self._desk.close()

    def of(self, address: str, since: float = 0.0) -> list[Claim]:
        return [each for each in self.claims if each.address == address and each.when >= since]

    def ask(self, address: str) -> float:
        """Broadcast from the desk: who has it? Returns when."""
        mac = self._desk.getsockname()[4]
        source = self._cluster.address("desk", 6 if ":" in address else 4)
        compose = solicitation if ":" in address else arp_request
        frame = compose(mac, source, address)
        when = time.monotonic()
        self._desk.send(frame)
        return when

    def answers(self, address: str, deadline_s: float, settle_s: float = 0.2) -> list[Claim]:
        """What comes of asking once: claims until ``settle_s`` after the first, or none in time."""
        asked = self.ask(address)
        end = asked + deadline_s
        while not (found := self.of(address, asked)) and time.monotonic() < end:
            time.sleep(0.01)
        if found:
            end = found[0].when + settle_s
            while time.monotonic() < end:
                time.sleep(0.01)
        return self.of(address, asked)

    def owner(self, address: str, deadline_s: float = 60.0) -> str:
        """The port that the next answer comes from; asks until there is one."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if found := self.answers(address, 2.0, settle_s=0.0):
                return found[-1].port
        raise AssertionError(f"nobody has answered for {address} within {deadline_s:.0f} s")

    def ports(self, address: str, since: float) -> Counter[str]:
        return Counter(each.port for each in self.of(address, since))

    @contextlib.contextmanager
    def pulled(self, port: str) -> Iterator[float]:
        """The cable of a host is out, which it does not see; gives the time of it."""
        self._bridge(SIOCBRDELIF, port)
        try:
            yield time.monotonic()
        finally:
            self._bridge(SIOCBRADDIF, port)

    def _bridge(self, request: int, port: str) -> None:
        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                answer = fcntl.ioctl(
                    control, SIOCGIFINDEX, struct.pack("16si20x", port.encode(), 0)
                )
                (index,) = struct.unpack_from("16xi", answer)
                fcntl.ioctl(control, request, struct.pack("16si20x", BRIDGE.encode(), index))

        self._cluster.inside("fabric", work)

    def _work(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._capture], [], [], 0.2)[0]:
                continue
            frame, place = self._capture.recvfrom(2048)
            when = time.monotonic()
            # What is for all comes in a second time, at the bridge itself.
            if place[0] != BRIDGE and (claim := read_claim(frame)):
                address, mac, kind = claim
                self.claims.append(Claim(when, place[0], address, mac, kind))


def _capture() -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _FILTER))
    handle = struct.pack("H6xP", len(_FILTER), ctypes.addressof(program))
    found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, handle)
    return found


def _packets(link: str) -> socket.socket:
    """For sending only."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.bind((link, 0))
    return found


def read_claim(frame: bytes) -> tuple[str, str, str] | None:
    """Address, MAC and kind that an Ethernet frame claims, if it is ARP (RFC 826) or an NA."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    if kind == ETH_P_ARP and len(frame) >= 42:
        operation, mac, packed, target = struct.unpack_from("!6xH6s4s6x4s", frame, 14)
        if not any(packed):
            return None  # a probe (RFC 5227) asks whether anybody has it
        is_to_all = frame[:6] == BROADCAST
        said = "request" if operation == 1 else "gratuitous" if is_to_all else "reply"
        if packed == target:
            said = "gratuitous"
        return str(ipaddress.IPv4Address(packed)), _text(mac), said
    if kind == ETH_P_IPV6 and frame[20] == NEXT_HEADER_ICMPV6 and len(frame) >= 78:
        if frame[54] != NEIGHBOR_ADVERTISEMENT:
            return None
        (flags,) = struct.unpack_from("!I", frame, 58)
        # The option of the target's link-layer address is the first there is.
        mac = frame[80:86] if len(frame) >= 86 and frame[78] == 2 else frame[6:12]
        said = "reply" if flags & 0x40000000 else "gratuitous"
        return str(ipaddress.IPv6Address(frame[62:78])), _text(mac), said
    return None


def arp_request(mac: bytes, source: str, target: str) -> bytes:
    """RFC 826: who has ``target``, to all."""
    body = struct.pack(
        "!HHBBH6s4s6s4s",
        *(1, 0x0800, 6, 4, 1),
        mac,
        ipaddress.IPv4Address(source).packed,
        bytes(6),
        ipaddress.IPv4Address(target).packed,
    )
    return BROADCAST + mac + struct.pack("!H", ETH_P_ARP) + body


def solicitation(mac: bytes, source: str, target: str) -> bytes:
    """RFC 4861, 4.3: a Neighbor Solicitation to the solicited-node multicast address."""
    wanted = ipaddress.IPv6Address(target).packed
    group = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + wanted[13:]
    own = ipaddress.IPv6Address(source).packed
    body = struct.pack("!BBHI16sBB6s", NEIGHBOR_SOLICITATION, 0, 0, 0, wanted, 1, 1, mac)
    pseudo = own + group + struct.pack("!I3xB", len(body), NEXT_HEADER_ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    head = struct.pack("!IHBB16s16s", 6 << 28, len(body), NEXT_HEADER_ICMPV6, 255, own, group)
    to = b"\x33\x33" + group[12:]
    return to + mac + struct.pack("!H", ETH_P_IPV6) + head + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _text(mac: bytes) -> str:
    return mac.hex(":")
