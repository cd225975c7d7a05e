"""Which nodes live, and whether this one may answer by ARP and NDP. Pure: time is an argument.

Each node tells every other one, a few times per second, that it lives, whom it hears, and whether
the other one counts for it. All decide alone; that they decide alike comes from a few rules:

- A node lives for another as long as its packets come and echo recent packets of the other one:
  where only one direction works, neither hears the other. A node that somebody else, who is heard,
  hears goes on counting: what is wrong between two of them is no death.
- A node says itself when it counts (standing RUNNING), to all at once. One that starts, that was
  cut off or asleep is JOINING: it waits until the others have heard it for a while, so that a
  flapping node does not make addresses flap; unless they have not given it up meanwhile.
- RESTARTING holds its place for a grace, and the new process takes it. Who begins meanwhile learns
  from the others for whom a place is held. Whoever stays away has gone with a word, as by DRAINING:
  that is no cut.
- Whoever hears fewer than half of the nodes that it has known to live (itself among them) is on the
  wrong side of a cut and answers for nothing; the others do. Of two, either may be left alone.
- A process whose own clock has jumped was asleep: it begins anew.

Times are seconds of a clock that never goes back and counts a suspended host's sleep.
"""

from collections import deque
from collections.abc import Iterable
from math import inf

from msgspec import structs

from kube_router_py.loadbalancer.heartbeat import (
    NOTHING_HEARD,
    Heartbeat,
    Standing,
    node_id,
    node_mark,
)
from kube_router_py.loadbalancer.peer_values import Round, Timing, View, heartbeat_timing

# Longer ones are a mistake, or another version's.
_GRACE_MAX_S = 3600.0
_URGENT_GAP_S = 0.05
_LEAVING = (Standing.RESTARTING, Standing.DRAINING)
# How often a stop is told: packets get lost, and nothing is told after it.
_LAST_WORDS = 4
_LAST_WORDS_GAP_S = 0.1


class _Peer:
    """Another node. ``counts``: it does, or did when it was last looked at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = node_id(name)
        self.mark = node_mark(self.id)
        self.incarnation = NOTHING_HEARD
        # The last that was heard, and the last of these that proved something.
        self.sequence = self.taken = 0
        self.newcomer: tuple[bytes, int] | None = None
        self.last: Heartbeat | None = None
        self.heard_at = self.proof_at = self.hold_until = -inf
        self.is_direct = self.counts = False

    @property
    def standing(self) -> Standing | None:
        return self.last.standing if self.last is not None else None

    def is_held(self, now: float) -> bool:
        return self.counts and self.standing is Standing.RESTARTING and now < self.hold_until

    def forget(self) -> None:
        self.last = None
        self.heard_at = self.proof_at = self.hold_until = -inf
        self.is_direct = self.counts = False


class Peers:
    """The state machine. Of one thread, or behind a lock; ``view`` may be read by any.

    ``incarnation``: 16 random bytes of this process. ``grace_s``: how long a node that restarts, or
    did so without a word, keeps its place.
    """

    def __init__(self, name: str, incarnation: bytes, grace_s: float, now: float) -> None:
        self._name, self._id = name, node_id(name)
        self._incarnation, self._grace_s = incarnation, grace_s
        self._timing = Timing()
        self._peers: dict[str, _Peer] = {}
        self._by_id: dict[bytes, _Peer] = {}
        self._sequence = 0
        self._sent: deque[tuple[int, float]] = deque()
        self._sent_at: dict[int, float] = {}
        self._last_tick = self._quiet_since = now
        self._last_round = -inf
        self._is_urgent = True
        self._last_words = 0
        self._answers_from = now
        self._hearing_since: float | None = None
        self._served_since: float | None = None
        self._is_ready = self._is_deaf = self._is_running = False
        self._restarts_until: float | None = None
        self._is_draining = False
        self._is_fenced = False
        self.view = View()

    # --- what it is told ------------------------------------------------------------------------

    def follow_members(self, names: Iterable[str], timing: Timing | None = None) -> None:
        """Replace the other nodes that there are. Their number sets the pace, unless it is given
        (``LEASE_TIMING``)."""
        wanted = set(names) - {self._name}
        for gone in self._peers.keys() - wanted:
            del self._by_id[self._peers.pop(gone).id]
        for name in wanted - self._peers.keys():
            peer = self._peers[name] = _Peer(name)
            self._by_id[peer.id] = peer
            self._is_urgent = True
            # Nobody could be heard before: a node that has others to hear is not alone yet.
            self._quiet_since = self._last_tick
        self._timing = timing or heartbeat_timing(len(wanted) + 1)

    def follow_ready(self, *, is_ready: bool, is_deaf: bool = False) -> None:
        """Whether this node knows what it serves, and may: before that it does not begin, and it
        does not go on. ``is_deaf``: others could not be heard, so that silence says nothing."""
        self._is_ready, self._is_deaf = is_ready, is_deaf

    def follow_drain(self, *, is_draining: bool) -> None:
        """Whether this node is to hand over what it has."""
        if is_draining and not self._is_draining:
            self._last_words = _LAST_WORDS
        self._is_urgent |= is_draining != self._is_draining
        self._is_draining = is_draining

    def restart(self, now: float) -> None:
        """This process ends, and another one is to come. ``view`` says so at once, and nothing
        else anew: there may be no tick any more, and what it would find is not known here."""
        self._restarts_until = now + self._grace_s
        self._last_words = _LAST_WORDS
        self.view = structs.replace(self.view, standing=self._standing(now))

    @property
    def has_said_all(self) -> bool:
        """Whether a stop has been told as often as it is."""
        return not self._last_words

    def hear(self, heartbeat: Heartbeat, now: float) -> bool:
        """Take in a packet; False where it says nothing: of a stranger, or late."""
        self._notice_sleep(now)
        peer = self._by_id.get(heartbeat.sender)
        if peer is None:
            return False
        proof_at = None
        if heartbeat.echo_incarnation == self._incarnation:
            proof_at = self._sent_at.get(heartbeat.echo_sequence)
        if heartbeat.incarnation != peer.incarnation:
            if proof_at is None:
                self._note_newcomer(peer, heartbeat)
                return True
            peer.incarnation, peer.newcomer = heartbeat.incarnation, None
            peer.sequence = peer.taken = 0
            if peer.counts and not peer.is_held(now):
                peer.hold_until = now + self._grace_s
        elif heartbeat.sequence <= (peer.sequence if proof_at is None else peer.taken):
            return False
        # One that proves nothing may be a copy of what it sent to somebody else at the same time.
        peer.sequence = max(peer.sequence, heartbeat.sequence)
        if proof_at is not None:
            peer.taken = heartbeat.sequence
            self._take(peer, heartbeat, proof_at, now)
        return True

    def hear_lease(self, name: str, standing: Standing, grace_s: float, now: float) -> None:
        """Another node's Lease was renewed."""
        self._notice_sleep(now)
        if (peer := self._peers.get(name)) is not None:
            said = Heartbeat(
                peer.id, peer.id, 0, standing=standing, grace_s=int(grace_s), counts_you=True
            )
            self._take(peer, said, now, now)

    def excuse(self, now: float) -> None:
        """Silence since the last tick is nobody's fault: the API server could not be asked."""
        for peer in self._peers.values():
            if peer.is_direct:
                peer.heard_at = peer.proof_at = now

    def _note_newcomer(self, peer: _Peer, heartbeat: Heartbeat) -> None:
        """Its packet may be an old one: it shows when what is sent back is echoed."""
        known = peer.newcomer
        if known is None or known[0] != heartbeat.incarnation:
            self._is_urgent |= not peer.is_direct
        elif heartbeat.sequence <= known[1]:
            return
        peer.newcomer = heartbeat.incarnation, heartbeat.sequence

    def _take(self, peer: _Peer, said: Heartbeat, proof_at: float, now: float) -> None:
        before = peer.standing
        if said.standing is Standing.RESTARTING and before is not Standing.RESTARTING:
            peer.hold_until = now + min(said.grace_s, _GRACE_MAX_S)
        elif said.standing is Standing.JOINING and before is Standing.RUNNING:
            # It was asleep, or cut off: it has this long to find out that it still counts.
            peer.hold_until = max(peer.hold_until, now + self._timing.silence_s)
        peer.last = said
        peer.heard_at, peer.proof_at = now, max(proof_at, peer.proof_at)

    # --- as time goes by ------------------------------------------------------------------------

    def tick(self, now: float) -> Round:
        """Bring ``view`` up to date, and say what is to be sent."""
        self._notice_sleep(now)
        self._last_tick = now
        self._follow_peers(now)
        self._follow_self(now)
        self.view = self._view(now)
        gap_s = _LAST_WORDS_GAP_S if self._last_words else _URGENT_GAP_S
        is_hurried = self._is_urgent or self._last_words > 0
        due = self._last_round + (gap_s if is_hurried else self._timing.interval_s)
        if now < due:
            return Round((), min(due - now, self._timing.interval_s / 5))
        heartbeats = self._heartbeats(now)
        return Round(heartbeats, gap_s if self._last_words else self._timing.interval_s / 5)

    def _notice_sleep(self, now: float) -> None:
        if now - self._last_tick <= max(self._timing.slept_s, 2 * self._timing.interval_s / 5):
            return
        self._last_tick = self._quiet_since = now
        self._is_running = False
        self._hearing_since = None
        self._sent.clear()
        self._sent_at.clear()
        for peer in self._peers.values():
            if not peer.is_held(now):
                peer.heard_at = peer.proof_at = -inf
                peer.counts = peer.is_direct = False
        self.view = self._view(now)
        self._is_urgent = True

    def _follow_peers(self, now: float) -> None:
        timing = self._timing
        for peer in self._peers.values():
            is_direct = (
                now - peer.heard_at <= timing.silence_s and now - peer.proof_at <= timing.proof_s
            )
            self._is_urgent |= is_direct != peer.is_direct
            peer.is_direct = is_direct
        heard = [peer.last for peer in self._peers.values() if peer.is_direct and peer.last]
        vouched = {mark for each in heard for mark in each.heard}
        holding = {mark for each in heard for mark in each.holding}
        for peer in self._peers.values():
            is_alive = peer.is_direct or (peer.counts and peer.mark in vouched)
            match peer.standing:
                case Standing.RUNNING:
                    counts = is_alive
                case Standing.JOINING:
                    counts = peer.counts and is_alive and now < peer.hold_until
                case Standing.RESTARTING:
                    counts = peer.is_held(now)
                case Standing.DRAINING:
                    counts = is_alive
                case _:
                    counts = peer.mark in holding
            peer.counts = counts
            if peer.standing in _LEAVING and not counts and not is_alive:
                peer.forget()  # it went with a word: nobody misses it

    def _follow_self(self, now: float) -> None:
        """Whether this node counts."""
        heard = [peer.last for peer in self._peers.values() if peer.is_direct and peer.last]
        self._is_fenced = self._is_cut_off(heard, now)
        if heard and not self._is_fenced:
            self._quiet_since = now
            if self._hearing_since is None:
                self._hearing_since = now
        else:
            self._hearing_since = None
            if self._is_deaf and self._peers:
                self._quiet_since = now
        before = self._is_running
        if self._is_running:
            self._is_running = self._is_ready and not self._is_fenced
        else:
            self._is_running = (
                self._is_ready and not self._is_fenced and self._may_begin(heard, now)
            )
        if before != self._is_running:
            self._is_urgent = True
            self._answers_from = now + (self._timing.head_start_s if heard else 0.0)

    def _is_cut_off(self, heard: list[Heartbeat], now: float) -> bool:
        there = sum(p.counts or p.is_direct or p.is_held(now) for p in self._peers.values())
        # Others may have known more, or not know yet of Nodes that were deleted.
        told = min(max((each.members for each in heard), default=0), 1 + len(self._peers))
        members = max(self._members(), told)
        return 2 * (there + 1) < members

    def _members(self) -> int:
        return 1 + sum(peer.last is not None for peer in self._peers.values())

    def _may_begin(self, heard: list[Heartbeat], now: float) -> bool:
        timing = self._timing
        if self._hearing_since is None:
            self._served_since = None
            quiet_s = timing.lonely_s if self._peers else timing.alone_s
            return now - self._quiet_since >= quiet_s
        serving = [
            each for each in heard if each.standing in (Standing.RUNNING, Standing.RESTARTING)
        ]
        counting = sum(each.counts_you for each in serving)
        if serving and 2 * counting >= len(serving):
            return True
        if not serving:
            return now - self._hearing_since >= timing.settle_s
        if self._served_since is None:
            self._served_since = now
        # Those that start together begin together, with the first that has settled.
        is_first = self._served_since - self._hearing_since > timing.interval_s
        return is_first or now - self._hearing_since >= timing.damping_s

    def _standing(self, now: float) -> Standing:
        if self._is_draining:  # also of one that ends: it is not to get anything back
            return Standing.DRAINING
        if self._restarts_until is not None and now < self._restarts_until:
            return Standing.RESTARTING
        return Standing.RUNNING if self._is_running else Standing.JOINING

    def _view(self, now: float) -> View:
        peers = self._peers.values()
        candidates = {p.name for p in peers if p.counts and p.standing is not Standing.DRAINING}
        if self._is_running and not self._is_draining:
            candidates.add(self._name)
        return View(
            candidates=frozenset(candidates),
            may_answer=self._is_running and now >= self._answers_from,
            is_fenced=self._is_fenced,
            standing=self._standing(now),
            alive=frozenset(peer.name for peer in peers if peer.is_direct),
            held=frozenset(p.name for p in peers if p.is_held(now) or (p.counts and not p.last)),
            unheard=frozenset(peer.name for peer in peers if peer.last is None),
            members=self._members(),
        )

    # --- what it says ---------------------------------------------------------------------------

    def _heartbeats(self, now: float) -> tuple[tuple[str, Heartbeat], ...]:
        self._sequence += 1
        self._last_round, self._is_urgent = now, False
        self._last_words = max(0, self._last_words - 1)
        self._sent.append((self._sequence, now))
        self._sent_at[self._sequence] = now
        while self._sent and now - self._sent[0][1] > self._timing.proof_s:
            del self._sent_at[self._sent.popleft()[0]]
        standing = self._standing(now)
        heard = frozenset(peer.mark for peer in self._peers.values() if peer.is_direct)
        holding = frozenset(peer.mark for peer in self._peers.values() if peer.is_held(now))
        left_s = self._restarts_until - now if self._restarts_until is not None else 0.0
        said = Heartbeat(
            sender=self._id,
            incarnation=self._incarnation,
            sequence=self._sequence,
            standing=standing,
            grace_s=max(0, round(left_s)),
            members=self._members(),
            is_fenced=self._is_fenced,
            heard=heard,
            holding=holding,
        )
        return tuple((peer.name, self._to(peer, said, now)) for peer in self._peers.values())

    def _to(self, peer: _Peer, said: Heartbeat, now: float) -> Heartbeat:
        """With what concerns the receiver. A process that was heard until a moment ago is echoed
        even if packets of another one come: those may be old ones, which somebody repeats."""
        echo = peer.incarnation, peer.sequence
        is_quiet = now - peer.heard_at > 2.2 * self._timing.interval_s
        if peer.newcomer is not None and is_quiet:
            echo = peer.newcomer
        return structs.replace(
            said, echo_incarnation=echo[0], echo_sequence=echo[1], counts_you=peer.counts
        )
