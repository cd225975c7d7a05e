"""What a responder knows and does on its links, for one thread, with time as an argument.

Level-triggered: whatever changes (addresses, links, an error on a link), the links in use and what
is answered on each are worked out anew, and the differences carried out. An address that is new on
a link is announced.
"""

import ipaddress
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Protocol

from kube_router_py.kernel import neighbor_packets as packets
from kube_router_py.kernel.neighbor_links import SegmentLink, choose
from kube_router_py.kernel.neighbor_ports import NUMBERS, Address, OnClaim

_log = logging.getLogger(__name__)

ANSWERS_PER_S: Final = 1000
"""On one link; what is asked beyond that in the same second gets no answer."""
OLD_S: Final = 1.0
"""Questions that waited for longer are not answered: they are asked again every second (RFC 4861,
10; Linux does so for ARP), and whoever was frozen does not know yet whether he still has the
address."""
REPEATS: Final = 2
REPEAT_S: Final = 1.0
_REOPEN_S: Final = 1.0

Wanted = Mapping[Address, tuple[str, ...]]


class Port(Protocol):
    """What is open on a link: see ``neighbor_sockets.LinkSockets``."""

    def send(self, frame: bytes) -> None: ...
    def join(self, groups: Collection[bytes]) -> None: ...
    def close(self) -> None: ...


class Meter:
    """So many in each second, which begins with the first after the last one was over."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start, self._count = float("-inf"), 0

    def take(self, now: float) -> bool:
        """Whether there is room for one more."""
        if now >= self._start + 1.0:
            self._start, self._count = now, 0
        self._count += 1
        return self._count <= self._limit


class _Place:
    """A link in use: by packed address, what is answered there and what is watched."""

    def __init__(self, link: SegmentLink, port: Port) -> None:
        self.link, self.port = link, port
        self.answered: frozenset[bytes] = frozenset()
        self.watched: frozenset[bytes] = frozenset()
        self.meter = Meter(ANSWERS_PER_S)


class Answering:
    """``open_port`` opens a link or raises OSError. ``node_addresses`` are the Node's own;
    ``default_patterns`` stand for the links that carry them where there are any."""

    def __init__(
        self,
        open_port: Callable[[SegmentLink], Port],
        node_addresses: Callable[[], Collection[Address]],
        on_claim: OnClaim,
        default_patterns: tuple[str, ...] = (),
    ) -> None:
        self._open_port, self._node_addresses = open_port, node_addresses
        self._on_claim, self._default_patterns = on_claim, default_patterns
        self._silent_until = float("-inf")
        self._links: tuple[SegmentLink, ...] = ()
        self._own_macs: frozenset[bytes] = frozenset()
        self._wanted: Wanted = {}
        self._watched: Wanted = {}
        self._places: dict[int, _Place] = {}
        # When it is due, link, addresses, and how many times it is repeated after that.
        self._repeats: deque[tuple[float, int, frozenset[bytes], int]] = deque()
        self._reopen_at: float | None = None
        self._unopened: dict[int, str] = {}
        self.count = dict.fromkeys(NUMBERS, 0)
        self.links: dict[Address, tuple[str, ...]] = {}

    def put(self, wanted: Wanted, now: float) -> None:
        """Answer for exactly these from now on."""
        self._wanted = wanted
        self._settle(now)

    def watch(self, watched: Wanted, now: float) -> None:
        self._watched = watched
        self._settle(now)

    def see(self, links: tuple[SegmentLink, ...], now: float) -> None:
        """Take note of the links as they are now."""
        self._links = links
        self._own_macs = frozenset(each.mac for each in links)
        self._settle(now)

    def fail(self, index: int, error: OSError, now: float) -> None:
        """A link reported an error (it went down, or away): it is closed, and opened again as soon
        as it can be."""
        place = self._places.get(index)
        if place is None:
            return
        _log.info("link fails, no answers there link=%s reason=%r", *_said(place.link, error))
        self.count["failures"] += 1
        self._close(index)
        self._reopen_at = now + _REOPEN_S
        self._sum_up()

    def rest(self, until: float) -> None:
        """Answer nothing for a while: this process was asleep, and whoever decides what is answered
        for has to look around first."""
        self._silent_until = until

    def hear(self, index: int, frame: bytes, now: float, age_s: float = 0.0) -> None:
        """Do what a frame asks for that has waited for so long."""
        place, heard = self._places.get(index), packets.read(frame)
        if place is None or heard is None or heard.sender in self._own_macs:
            return
        if heard.claim is not None:
            self._hear_claim(place, heard.claim)
        question = heard.question
        if question is None or question.target not in place.answered:
            return
        if question.mac in self._own_macs:
            return
        is_late = age_s > OLD_S or now < self._silent_until
        if is_late or not place.meter.take(now):
            self.count["dropped"] += 1
            return
        reply = packets.arp_reply if len(question.target) == 4 else packets.ndp_reply
        self.count["answers"] += self._send(place, reply(place.link.mac, question))

    def announce(self) -> None:
        """Say once who has all the addresses."""
        for place in list(self._places.values()):
            self._tell(place, place.answered)

    def work(self, now: float) -> float | None:
        """Do what is due; returns in how many seconds something will be, if anything."""
        if self._reopen_at is not None and now >= self._reopen_at:
            self._settle(now)
        while self._repeats and self._repeats[0][0] <= now:
            _, index, addresses, left = self._repeats.popleft()
            place = self._places.get(index)
            if place is not None:
                self._tell(place, addresses & place.answered)
                if left:
                    self._repeats.append((now + REPEAT_S, index, addresses, left - 1))
        due = [self._repeats[0][0]] if self._repeats else []
        if self._reopen_at is not None:
            due.append(self._reopen_at)
        return max(0.0, min(due) - now) if due else None

    def close(self) -> None:
        for index in list(self._places):
            self._close(index)
        self._sum_up()

    def _settle(self, now: float) -> None:
        self._reopen_at = None
        answered, watched = self._spread(self._wanted), self._spread(self._watched)
        used = {index for spread in (answered, watched) for index, each in spread.items() if each}
        links = {each.index: each for each in self._links}
        for index, place in list(self._places.items()):
            link = links.get(index)
            if link is None or link.mac != place.link.mac or index not in used:
                self._close(index)
            else:
                place.link = link
        # Before anything is said anywhere: what is not wanted is answered no more.
        for index, place in self._places.items():
            place.answered &= answered.get(index, frozenset())
        for index in sorted(used):
            place_or_none = self._places.get(index) or self._open(links[index], now)
            if place_or_none is not None:
                self._fill(
                    place_or_none,
                    answered.get(index, frozenset()),
                    watched.get(index, frozenset()),
                    now,
                )
        self._sum_up()

    def _spread(self, wanted: Wanted) -> dict[int, frozenset[bytes]]:
        """The addresses by link: many have the same patterns, which are looked at once. For what
        a link itself carries, the kernel answers there."""
        by_patterns: dict[tuple[str, ...], set[bytes]] = {}
        for address, patterns in wanted.items():
            patterns = patterns or self._default_patterns
            by_patterns.setdefault(patterns, set()).add(address.packed)
        node_addresses = self._node_addresses()
        found: dict[int, frozenset[bytes]] = {}
        for patterns, addresses in by_patterns.items():
            for link in choose(self._links, patterns, node_addresses):
                carried = {each.packed for each in link.addresses}
                found[link.index] = found.get(link.index, frozenset()) | addresses - carried
        return found

    def _open(self, link: SegmentLink, now: float) -> _Place | None:
        try:
            port = self._open_port(link)
        except OSError as error:
            self.count["failures"] += 1
            if self._unopened.get(link.index) != str(error):
                self._unopened[link.index] = str(error)
                _log.warning("cannot answer on a link link=%s reason=%r", *_said(link, error))
            self._reopen_at = now + _REOPEN_S
            return None
        self._unopened.pop(link.index, None)
        _log.info("ARP and NDP are answered for addresses of Services link=%s", link.name)
        place = self._places[link.index] = _Place(link, port)
        return place

    def _fill(
        self, place: _Place, answered: frozenset[bytes], watched: frozenset[bytes], now: float
    ) -> None:
        new = answered - place.answered
        place.answered, place.watched = answered, watched
        groups = {packets.solicited_node(each) for each in answered if len(each) == 16}
        if any(len(each) == 16 for each in answered | watched):
            groups.add(packets.ALL_NODES)  # where claims of others are said
        place.port.join(groups)
        if new:
            self._tell(place, new)
            self._repeats.append((now + REPEAT_S, place.link.index, new, REPEATS - 1))

    def _close(self, index: int) -> None:
        self._places.pop(index).port.close()

    def _hear_claim(self, place: _Place, claim: packets.Claim) -> None:
        is_of_interest = claim.address in place.answered or claim.address in place.watched
        if not is_of_interest or claim.mac in self._own_macs:
            return
        self.count["claims"] += 1
        address = ipaddress.ip_address(claim.address)
        try:
            self._on_claim(address, place.link.name, claim.mac.hex(":"))
        except Exception:  # noqa: BLE001 - whoever is told does not stop the answers
            _log.exception("a claim could not be told address=%s", address)

    def _tell(self, place: _Place, addresses: Iterable[bytes]) -> None:
        mac = place.link.mac
        for address in sorted(addresses):
            frames: tuple[bytes, ...]
            if len(address) == 4:
                frames = packets.arp_announcements(mac, address)
            else:
                frames = (packets.ndp_announcement(mac, address),)
            sent = [self._send(place, frame) for frame in frames]
            self.count["announcements"] += all(sent)

    def _send(self, place: _Place, frame: bytes) -> bool:
        try:
            place.port.send(frame)
        except OSError as error:  # no room, or the link is gone: that is told by itself
            self.count["failures"] += 1
            _log.debug("cannot send link=%s reason=%r", *_said(place.link, error))
            return False
        return True

    def _sum_up(self) -> None:
        places = sorted(self._places.values(), key=lambda each: each.link.name)
        self.links = {
            each: tuple(place.link.name for place in places if each.packed in place.answered)
            for each in self._wanted
        }
        self.count["links"] = len(places)


def _said(link: SegmentLink, error: OSError) -> tuple[str, str]:
    return link.name, error.strerror or str(error)
