"""Many BGP peers in one process, which tell when they saw a prefix come or go.

Each has an address of its own and one session with the same speaker (RFC 4271; IPv4 unicast of RFC
4760; no other capability). They dial until they are let in, and once a session has been lost they
say so and leave it. Times are of the monotonic clock, which all processes share.

    sink = Sink()                              a process in a new network namespace, sink.pid
    sink.ask("address", "10.1.0.0/16", [...])  on eth0, which somebody has put there
    sink.ask("dial", "10.1.0.1", 65000, ...)
"""

import ipaddress
import multiprocessing
import selectors
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from bench_ipvs import enter_new_namespace

_OPEN, _UPDATE, _NOTIFICATION, _KEEPALIVE = 1, 2, 3, 4
_HEADER = struct.Struct(">16sHB")
_MARKER = b"\xff" * 16
_HOLD_S = 240
# The lower of both hold times counts, and nodes want 30 s.
_KEEPALIVE_S = 5
_AGAIN_S = 0.02

# First and last time, and number of sessions.
Seen = tuple[float, float, int]


def _message(kind: int, body: bytes = b"") -> bytes:
    return _HEADER.pack(_MARKER, _HEADER.size + len(body), kind) + body


def _open(asn: int, address: str) -> bytes:
    ipv4_unicast = bytes((1, 4, 0, 1, 0, 1))
    optional = bytes((2, len(ipv4_unicast))) + ipv4_unicast
    head = struct.pack(">BHH4sB", 4, asn, _HOLD_S, socket.inet_aton(address), len(optional))
    return _message(_OPEN, head + optional)


def _announcement(prefix: str, next_hop: str) -> bytes:
    """To a speaker of the same AS."""
    attributes = bytes.fromhex("400101 00 400200".replace(" ", ""))
    attributes += b"\x40\x03\x04" + socket.inet_aton(next_hop)
    attributes += b"\x40\x05\x04" + struct.pack(">I", 100)
    body = struct.pack(">HH", 0, len(attributes)) + attributes + packed(prefix)
    return _message(_UPDATE, body)


def packed(prefix: str) -> bytes:
    """A prefix as UPDATE messages have it."""
    network = ipaddress.IPv4Network(prefix)
    return (
        bytes((network.prefixlen,)) + network.network_address.packed[: (network.prefixlen + 7) // 8]
    )


def _prefixes(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + 1 + (data[at] + 7) // 8
        yield data[at:end]
        at = end


class _Session:
    def __init__(self, speaker: str, asn: int, address: str, announced: str) -> None:
        self.speaker, self.asn, self.address, self.announced = speaker, asn, address, announced
        self.socket: socket.socket | None = None
        self.data = b""
        self.up_at = 0.0
        self.again_at = 0.0
        self.is_lost = False
        self.why = b""
        self.announcements = 0

    def dial(self) -> None:
        self.socket = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.data = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((self.address, 0))
        # On one bridge this takes no time, and an answer that does not come is an error.
        sock.settimeout(2)
        sock.connect((self.speaker, 179))
        sock.sendall(_open(self.asn, self.address))

    def hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None
        self.is_lost = self.up_at > 0
        self.again_at = time.monotonic() + _AGAIN_S

    def messages(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self.data += data
        while len(self.data) >= _HEADER.size:
            _, length, kind = _HEADER.unpack_from(self.data)
            if len(self.data) < length:
                return
            body, self.data = self.data[_HEADER.size : length], self.data[length:]
            yield kind, body


class _Peers:
    """What runs in the process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._sessions: list[_Session] = []
        self._seen: dict[tuple[bytes, bool], Seen] = {}
        self._question: Callable[[], Any] | None = None
        self._spoken = time.monotonic()

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select(_AGAIN_S):
                if key.data is not None:
                    self._read(key.data)
                elif not self._hear():
                    return
            now = time.monotonic()
            for each in self._sessions:
                if each.socket is None and not each.is_lost and now >= each.again_at:
                    self._dial(each)
            if now > self._spoken + _KEEPALIVE_S:
                self._spoken = now
                for each in self._sessions:
                    if each.socket is not None and each.up_at:
                        each.socket.sendall(_message(_KEEPALIVE))
            self._answer()

    def _hear(self) -> bool:
        try:
            name, *arguments = self._pipe.recv()
        except EOFError:
            return False
        getattr(self, f"ask_{name}")(*arguments)
        return True

    def _answer(self) -> None:
        if self._question is not None and (found := self._question()) is not None:
            self._question = None
            self._pipe.send(found)

    # --- what can be asked; the answer comes when there is one -------------------------------

    def ask_address(self, subnet: str, addresses: list[str]) -> None:
        length = subnet.partition("/")[2]
        batch = [f"addr add {each}/{length} dev eth0\n" for each in addresses]
        subprocess.run(
            ["ip", "-batch", "-"],
            input="".join(["link set eth0 up\n", *batch]),
            text=True,
            check=True,
        )
        self._question = lambda: True

    def ask_dial(self, speaker: str, asn: int, addresses: list[str], announced: str) -> None:
        """Begin; ``announced`` is a prefix that each announces, or empty."""
        self._sessions += [_Session(speaker, asn, each, announced) for each in addresses]
        self._question = lambda: True

    def ask_up(self, addresses: list[str]) -> None:
        """When the last of these sessions came up."""
        those = [each for each in self._sessions if each.address in addresses]

        def question() -> float | None:
            return max(it.up_at for it in those) if all(it.up_at for it in those) else None

        self._question = question

    def ask_load(self, asn: int, announcements: int) -> None:
        """When every session of that AS has had so many prefixes announced."""

        def question() -> float | None:
            those = [each.announcements for each in self._sessions if each.asn == asn]
            return time.monotonic() if min(those) >= announcements else None

        self._question = question

    def ask_seen(self, prefix: str, is_there: bool, sessions: int) -> None:
        """When the first and the last of so many sessions saw a prefix come or go."""
        key = packed(prefix), is_there

        def question() -> Seen | None:
            found = self._seen.get(key)
            return found if found is not None and found[2] >= sessions else None

        self._question = question

    def ask_lost(self) -> None:
        """The addresses of sessions that were lost, and why: a NOTIFICATION's body."""
        self._question = lambda: [
            (each.address, each.why.hex()) for each in self._sessions if each.is_lost
        ]

    # --- sessions ----------------------------------------------------------------------------

    def _dial(self, session: _Session) -> None:
        try:
            session.dial()
        except OSError:
            session.hang_up()
            return
        assert session.socket is not None
        self._selector.register(session.socket, selectors.EVENT_READ, session)

    def _read(self, session: _Session) -> None:
        sock = session.socket
        assert sock is not None
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        now = time.monotonic()
        for kind, body in session.messages(data):
            if kind == _OPEN:
                sock.sendall(_message(_KEEPALIVE))
            elif kind == _KEEPALIVE and not session.up_at:
                session.up_at = now
                if session.announced:
                    sock.sendall(_announcement(session.announced, session.address))
                sock.sendall(_message(_UPDATE, bytes(4)))  # end of RIB (RFC 4724)
            elif kind == _UPDATE:
                self._note(session, body, now)
            elif kind == _NOTIFICATION:
                session.why, data = body, b""
        if not data:
            self._selector.unregister(sock)
            session.hang_up()

    def _note(self, session: _Session, body: bytes, now: float) -> None:
        gone = 2 + int.from_bytes(body[:2], "big")
        here = gone + 2 + int.from_bytes(body[gone : gone + 2], "big")
        for data, is_there in ((body[2:gone], False), (body[here:], True)):
            for prefix in _prefixes(data):
                first, _, count = self._seen.get((prefix, is_there), (now, now, 0))
                self._seen[prefix, is_there] = first, now, count + 1
                session.announcements += is_there


def _run(pipe: Connection) -> None:
    enter_new_namespace()
    pipe.send(None)
    _Peers(pipe).run()


class Sink:
    """See the module docstring. One question at a time."""

    def __init__(self, timeout_s: float = 120) -> None:
        self._timeout_s = timeout_s
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_run, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._hear("start")

    @property
    def pid(self) -> int:
        found = self._process.pid
        assert found is not None
        return found

    def ask(self, *question: Any) -> Any:
        """Ask (see ``_Peers.ask_...``) and wait for the answer."""
        self._pipe.send(question)
        return self._hear(question)

    def _hear(self, question: Any) -> Any:
        if not self._pipe.poll(self._timeout_s):
            raise SystemExit(f"no answer from the peers to {question}")
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
