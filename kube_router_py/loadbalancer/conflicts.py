"""Other hosts that claim addresses of ours: what is done about it, and when it is told. Pure.

A single claim is a node's that was away and did not know it yet: the owner tells all again, at most
once a second. Who goes on claiming for longer than any takeover lasts is another host with that
address, or a node that hears nobody: that is told until it has been quiet for a while.
"""

from collections.abc import Callable

from msgspec import Struct

from kube_router_py.address_pools import Address
from kube_router_py.problem import Problem

ANSWER_S = 1.0
_SLOW_ANSWER_S = 30.0
_LASTING_S = 10.0
_OVER_S = 60.0
# Whoever can claim can do so with any number of hardware addresses.
_SEEN_MAX = 256


class Claim(Struct, frozen=True):
    """Another host's, as ``neighbor_ports.OnClaim`` tells of it."""

    address: Address
    link: str
    mac: str


class _Seen(Struct):
    first_at: float
    last_at: float


class Conflicts:
    """Times are seconds of a clock that never goes back."""

    def __init__(self, node: str, port: int) -> None:
        self._node, self._port = node, port
        self._seen: dict[Claim, _Seen] = {}
        self._answered_at = float("-inf")
        self._is_due = False
        # Not all that is to be answered has been claimed for long: others are not to wait for it.
        self._is_news = False

    def note(self, claim: Claim, now: float) -> None:
        """Somebody claims an address that is this node's."""
        self._is_due = True
        seen = self._seen.get(claim)
        self._is_news |= seen is None or not _is_lasting(seen)
        if seen is not None and now - seen.last_at <= _LASTING_S:
            seen.last_at = now
        elif seen is not None or len(self._seen) < _SEEN_MAX:
            self._seen[claim] = _Seen(now, now)

    def answer(self, now: float) -> tuple[bool, float | None]:
        """Whether to tell all again now, and in how many seconds to ask again."""
        self._seen = {
            each: seen for each, seen in self._seen.items() if now - seen.last_at < _OVER_S
        }
        lasting = bool(self._lasting())
        again_s = _OVER_S if lasting else None
        if not self._is_due:
            return False, again_s
        pause_s = ANSWER_S if self._is_news or not lasting else _SLOW_ANSWER_S
        wait_s = self._answered_at + pause_s - now
        if wait_s > 0:
            return False, wait_s
        self._answered_at, self._is_due, self._is_news = now, False, False
        return True, again_s

    def problems(self, services_of: Callable[[Address], tuple[str, ...]]) -> tuple[Problem, ...]:
        """With each Service of an address that is claimed for long."""
        return tuple(
            Problem(
                f"Service {key}",
                "status.loadBalancer.ingress",
                f"{claim.address} is claimed by {claim.mac} on {claim.link} of node {self._node}, "
                "too: another host has this address, or the agents do not hear each other's "
                f"heartbeats (UDP port {self._port})",
            )
            for claim in sorted(self._lasting(), key=str)
            for key in services_of(claim.address)
        )

    def _lasting(self) -> list[Claim]:
        return [claim for claim, seen in self._seen.items() if _is_lasting(seen)]


def _is_lasting(seen: _Seen) -> bool:
    return seen.last_at - seen.first_at >= _LASTING_S
