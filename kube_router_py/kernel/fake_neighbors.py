"""A stateful fake of a segment and of responders on it, for tests: nothing waits, nothing runs.

A client on the segment remembers who last told it of an address, as real ones do, so that a test
can ask where packets would go, and who would answer if it asked anew.
"""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from threading import RLock

from msgspec import Struct

from kube_router_py.errors import KernelError
from kube_router_py.kernel.neighbor_ports import NUMBERS, Address, OnClaim


class Told(Struct, frozen=True):
    """Something said unasked on the segment: ``mac`` has ``address``."""

    address: Address
    mac: str


class FakeSegment:
    """A broadcast domain. ``told`` is all that was said unasked, in order; ``cache`` is what a
    client has learned. Those in ``cut`` (hardware addresses) neither hear nor are heard."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.told: list[Told] = []
        self.cache: dict[Address, str] = {}
        self.cut: set[str] = set()
        self._on_it: list[tuple[FakeResponder, str]] = []

    def join(self, responder: "FakeResponder", link: str) -> None:
        """Put a responder's link on the segment."""
        with self.lock:
            self._on_it.append((responder, link))

    def who_has(self, address: Address) -> tuple[str, ...]:
        """Ask all: the hardware addresses that answer, each once. The client takes the last."""
        with self.lock:
            heard = [(who, link) for who, link in self._on_it if who.mac(link) not in self.cut]
            macs = tuple(who.mac(link) for who, link in heard if who.answers(address, link))
            if macs:
                self.cache[address] = macs[-1]
            return macs

    def claim(self, address: Address, mac: str) -> None:
        """Let somebody say, unasked, that he has an address: a late answer, or a conflict."""
        with self.lock:
            if mac in self.cut:
                return
            self.told.append(Told(address, mac))
            self.cache[address] = mac
            others = [(who, link) for who, link in self._on_it if who.mac(link) != mac]
            for who, link in others:
                if who.mac(link) not in self.cut:
                    who.hear(address, link, mac)


class FakeResponder:
    """A stateful ``neighbor_ports.Responder`` with a link on each of these segments.

    ``name`` (of the node) makes its hardware addresses. ``default_links`` are those of no pattern.
    ``error`` is what ``put`` ends with, once it is set. Announcements are made once.
    """

    def __init__(
        self,
        name: str,
        on_claim: OnClaim,
        segments: Mapping[str, FakeSegment],
        default_links: Collection[str] = ("eth0",),
    ) -> None:
        self._name, self._on_claim, self._segments = name, on_claim, dict(segments)
        self._default_links = frozenset(default_links)
        self._numbers = dict.fromkeys(NUMBERS, 0.0)
        self._wanted: dict[Address, tuple[str, ...]] = {}
        self._watched: dict[Address, tuple[str, ...]] = {}
        self.error: KernelError | None = None
        self.is_closed = False
        for link, segment in self._segments.items():
            segment.join(self, link)

    def mac(self, link: str) -> str:
        """The hardware address of a link."""
        return f"{self._name}/{link}"

    def put(self, wanted: Mapping[Address, tuple[str, ...]]) -> None:
        if self.is_closed:
            raise KernelError("the responder is closed")
        if self.error is not None:
            raise self.error
        before = self._places()
        self._wanted = dict(wanted)
        self._tell(place for place in self._places() if place not in before)

    def watch(self, watched: Mapping[Address, tuple[str, ...]]) -> None:
        self._watched = dict(watched)

    def announce(self) -> None:
        self._tell(self._places())

    def links(self) -> dict[Address, tuple[str, ...]]:
        return {address: self._links_of(address) for address in self._wanted}

    def numbers(self) -> dict[str, float]:
        used = {link for links in self.links().values() for link in links}
        return {**self._numbers, "links": float(len(used))}

    def close(self) -> None:
        self.is_closed = True
        self._wanted, self._watched = {}, {}

    def answers(self, address: Address, link: str) -> bool:
        """Whether it answers a request that comes in by a link (and counts the answer)."""
        is_answered = link in self._links_of(address)
        self._numbers["answers"] += is_answered
        return is_answered

    def hear(self, address: Address, link: str, mac: str) -> None:
        """Take note of what somebody else says on a link."""
        is_own = mac in map(self.mac, self._segments)
        is_of_interest = link in self._links_of(address) or (
            address in self._watched and link in self._matching(self._watched[address])
        )
        if is_of_interest and not is_own:
            self._numbers["claims"] += 1
            self._on_claim(address, link, mac)

    def _links_of(self, address: Address) -> tuple[str, ...]:
        patterns = self._wanted.get(address)
        return () if patterns is None else self._matching(patterns)

    def _matching(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            link
            for link in sorted(self._segments)
            if any(fnmatchcase(link, each) for each in patterns)
            or (not patterns and link in self._default_links)
        )

    def _places(self) -> tuple[tuple[Address, str], ...]:
        return tuple((each, link) for each in self._wanted for link in self._links_of(each))

    def _tell(self, places: Iterable[tuple[Address, str]]) -> None:
        for address, link in list(places):
            self._numbers["announcements"] += 1
            self._segments[link].claim(address, self.mac(link))
