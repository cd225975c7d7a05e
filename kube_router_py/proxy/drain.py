"""Draining: a TCP real server that is no longer wanted ends its connections before it goes.

    wanted -> not wanted            weight 0; deadline: when its pod will be killed, where that is
                                    known, else the grace period from now
    listed but not ready            weight 0, no deadline (a readiness blip cuts nothing)
    no connections, or deadline     deleted
    wanted again                    back to its weight

With the scheduler dh nothing drains: it would refuse every client of the address meanwhile.

What drains is read from the kernel (there, not wanted), so a restart forgets only the clock. UDP
and SCTP real servers are deleted at once: with expire_nodest_conn their flows move on.
"""

from collections.abc import Callable, Mapping

from msgspec import Struct

from kube_router_py.proxy.model import (
    Connections,
    RealServer,
    RealServerKey,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.scheduling import WITHOUT_DRAINING

_POLL_S = 1.0
# One look costs about 0.2 ms a virtual server: a mass roll-out must not keep the loop busy.
_POLL_S_PER_SERVER = 0.002


class _Clock(Struct, frozen=True):
    """When a real server has to go, and whether its pod said so."""

    deadline_s: float
    by_pod: bool = False


# Its connections have ended already.
_ENDED = _Clock(float("-inf"))


class Draining:
    """The deadlines of draining real servers, in seconds of the caller's clock."""

    def __init__(self, *, enabled: bool, grace_s: float) -> None:
        self._enabled = enabled
        self._grace_s = grace_s
        self._clocks: dict[VirtualServerKey, dict[RealServerKey, _Clock]] = {}
        self._next_poll_s = 0.0

    def target(
        self,
        key: VirtualServerKey,
        wanted: VirtualServerState | None,
        actual: VirtualServerState | None,
        paused: frozenset[RealServerKey],
        now_s: float,
        killed_s: Callable[[RealServerKey], float | None] = lambda _: None,
    ) -> VirtualServerState | None:
        """What should stand in the kernel: ``wanted``, and what still drains at weight 0.

        ``killed_s`` tells when a real server's pod will be killed, None where nobody knows.
        """
        known = self._clocks.pop(key, {})
        if wanted is None or actual is None or not key.is_tcp or not self._enabled:
            return wanted
        if wanted.config.scheduler == WITHOUT_DRAINING:
            return wanted
        leaving = actual.real_servers.keys() - wanted.real_servers.keys()
        if not leaving:
            return wanted
        held: dict[RealServerKey, RealServer] = {}
        clocks: dict[RealServerKey, _Clock] = {}
        for real in sorted(leaving):
            if real not in paused:
                clock = self._clock(known.get(real), killed_s(real), now_s)
                if clock.deadline_s <= now_s:
                    continue
                clocks[real] = clock
            held[real] = _at_weight_0(actual.real_servers[real])
        if clocks:
            if not self._clocks:
                self._next_poll_s = now_s + _POLL_S
            self._clocks[key] = clocks
        return VirtualServerState(wanted.config, {**wanted.real_servers, **held})

    def _clock(self, known: _Clock | None, killed_s: float | None, now_s: float) -> _Clock:
        """Word of the pod's deletion may come after that of its endpoint's, and then replaces the
        grace period. A deletion is hastened at times but never put off: what looks like that is
        an API server whose clock is ahead of ours."""
        if known == _ENDED:
            return _ENDED
        if killed_s is not None:
            if known and known.by_pod:
                killed_s = min(killed_s, known.deadline_s)
            return _Clock(killed_s, by_pod=True)
        return known or _Clock(now_s + self._grace_s)

    def poll(
        self,
        read: Callable[[VirtualServerKey], Mapping[RealServerKey, Connections]],
        now_s: float,
    ) -> frozenset[VirtualServerKey]:
        """Look at the connections; returns the virtual servers in which something has ended.

        Their real servers are past their deadline from here on, so that ``target`` lets them go.
        """
        if not self._clocks or now_s < self._next_poll_s:
            return frozenset()
        ended: set[VirtualServerKey] = set()
        for key, clocks in self._clocks.items():
            connections = read(key)
            for real, clock in clocks.items():
                count = connections.get(real)
                # Persistence templates are no connections: expire_quiescent_template drops them.
                if count is None or count.active + count.inactive == 0:
                    clocks[real] = _ENDED
                    ended.add(key)
                elif clock.deadline_s <= now_s:
                    ended.add(key)
        self._next_poll_s = now_s + max(_POLL_S, _POLL_S_PER_SERVER * len(self._clocks))
        return frozenset(ended)

    def wake_after_s(self, now_s: float) -> float | None:
        """Seconds until the next look is due, None while nothing drains."""
        return max(0.0, self._next_poll_s - now_s) if self._clocks else None

    def servers(self) -> frozenset[VirtualServerKey]:
        """Virtual servers in which real servers drain against a deadline."""
        return frozenset(self._clocks)

    def count(self) -> int:
        """How many real servers are draining against a deadline."""
        return sum(map(len, self._clocks.values()))


def _at_weight_0(real: RealServer) -> RealServer:
    return RealServer(
        weight=0,
        forward=real.forward,
        upper_threshold=real.upper_threshold,
        lower_threshold=real.lower_threshold,
        tunnel_type=real.tunnel_type,
        tunnel_port=real.tunnel_port,
        tunnel_flags=real.tunnel_flags,
    )
