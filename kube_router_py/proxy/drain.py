"""Draining: a TCP real server that is no longer wanted ends its connections before it goes.

    wanted -> not wanted            weight 0; deadline: when its pod will be killed, where that is
                                    known, else the grace period from now
    listed but not ready            weight 0, no deadline (a readiness blip cuts nothing)
    no connections, or deadline     deleted
    wanted again                    back to its weight

What drains is read from the kernel (there, not wanted), so a restart forgets only the clock. UDP
and SCTP real servers are deleted at once: with expire_nodest_conn their flows move on.
"""

from collections.abc import Callable, Mapping

from kube_router_py.proxy.model import (
    Connections,
    RealServer,
    RealServerKey,
    VirtualServerKey,
    VirtualServerState,
)

_POLL_S = 1.0
# One look costs about 0.2 ms a virtual server: a mass roll-out must not keep the loop busy.
_POLL_S_PER_SERVER = 0.002
_ENDED = float("-inf")


class Draining:
    """The deadlines of draining real servers, in seconds of the caller's clock."""

    def __init__(self, *, enabled: bool, grace_s: float) -> None:
        self._enabled = enabled
        self._grace_s = grace_s
        # When each has to go; _ENDED where its connections have ended already.
        self._deadlines: dict[VirtualServerKey, dict[RealServerKey, float]] = {}
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
        deadlines = self._deadlines.pop(key, {})
        if wanted is None or actual is None or not key.is_tcp or not self._enabled:
            return wanted
        leaving = actual.real_servers.keys() - wanted.real_servers.keys()
        if not leaving:
            return wanted
        held: dict[RealServerKey, RealServer] = {}
        clocks: dict[RealServerKey, float] = {}
        for real in sorted(leaving):
            if real not in paused:
                clock_s = deadlines.get(real)
                if clock_s != _ENDED:
                    # Word of the pod's deletion may come after that of its endpoint's.
                    killed = killed_s(real)
                    if killed is not None:
                        clock_s = killed
                    elif clock_s is None:
                        clock_s = now_s + self._grace_s
                if clock_s <= now_s:
                    continue
                clocks[real] = clock_s
            held[real] = _at_weight_0(actual.real_servers[real])
        if clocks:
            if not self._deadlines:
                self._next_poll_s = now_s + _POLL_S
            self._deadlines[key] = clocks
        return VirtualServerState(wanted.config, {**wanted.real_servers, **held})

    def poll(
        self,
        read: Callable[[VirtualServerKey], Mapping[RealServerKey, Connections]],
        now_s: float,
    ) -> frozenset[VirtualServerKey]:
        """Look at the connections; returns the virtual servers in which something has ended.

        Their real servers are past their deadline from here on, so that ``target`` lets them go.
        """
        if not self._deadlines or now_s < self._next_poll_s:
            return frozenset()
        ended: set[VirtualServerKey] = set()
        for key, deadlines in self._deadlines.items():
            connections = read(key)
            for real, deadline_s in deadlines.items():
                count = connections.get(real)
                # Persistence templates are no connections: expire_quiescent_template drops them.
                if count is None or count.active + count.inactive == 0:
                    deadlines[real] = _ENDED
                    ended.add(key)
                elif deadline_s <= now_s:
                    ended.add(key)
        self._next_poll_s = now_s + max(_POLL_S, _POLL_S_PER_SERVER * len(self._deadlines))
        return frozenset(ended)

    def wake_after_s(self, now_s: float) -> float | None:
        """Seconds until the next look is due, None while nothing drains."""
        return max(0.0, self._next_poll_s - now_s) if self._deadlines else None

    def servers(self) -> frozenset[VirtualServerKey]:
        """Virtual servers in which real servers drain against a deadline."""
        return frozenset(self._deadlines)

    def count(self) -> int:
        """How many real servers are draining against a deadline."""
        return sum(len(deadlines) for deadlines in self._deadlines.values())


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
