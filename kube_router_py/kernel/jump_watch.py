"""How often jumps are put back in their place when somebody else keeps moving them.

Another agent that always wants its own rules first would otherwise make a fight of it, with a
commit of each side for every turn of the other. A jump that is gone altogether is no matter of
this: that one is always put back. Pure; whoever asks says what time it is.
"""

from collections.abc import Iterable

from kube_router_py.kernel.iptables_plan import displaced
from kube_router_py.problem import Problem

Place = tuple[str, str, str]
"""Family, table and parent chain."""

_PROGRAMS = {"inet": "iptables", "inet6": "ip6tables"}


class JumpWatch:
    """Allows jumps of one parent to be put back ``allowed`` times within any ``window_s`` seconds.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self, allowed: int = 3, window_s: float = 600.0) -> None:
        self._allowed = allowed
        self._window_s = window_s
        self._times: dict[Place, list[float]] = {}

    def note(self, family: str, table: str, changes: Iterable[str], now_s: float) -> None:
        """Take account of what ``Iptables.ensure`` says that it changed."""
        for parent in displaced(changes):
            place = (family, table, parent)
            self._times[place] = [*self._recent(place, now_s), now_s]

    def leave(self, family: str, table: str, now_s: float) -> frozenset[str]:
        """Parents whose jumps are to be left where they are: ``leave`` of ``Iptables.ensure``."""
        places = self.waits(now_s)
        return frozenset(parent for each, name, parent in places if (each, name) == (family, table))

    def waits(self, now_s: float) -> dict[Place, float]:
        """For how many seconds the jumps of which parents are still to be left alone."""
        recent = {place: self._recent(place, now_s) for place in self._times}
        self._times = {place: times for place, times in recent.items() if times}
        return {
            place: times[-self._allowed] + self._window_s - now_s
            for place, times in self._times.items()
            if len(times) >= self._allowed
        }

    def problems(self, now_s: float) -> tuple[Problem, ...]:
        """One for each parent that is left alone, in words that do not change meanwhile."""
        return tuple(
            Problem(
                f"{_PROGRAMS[family]} {table}/{parent}",
                "",
                f"another program keeps putting its rules before the agent's jump, or moves it; it "
                f"was put back {self._allowed} times within {self._window_s:g} s and stays where "
                "it is for as long; rules before it are not subject to network policies: have the "
                "other program append its rules",
            )
            for family, table, parent in sorted(self.waits(now_s))
        )

    def _recent(self, place: Place, now_s: float) -> list[float]:
        return [time for time in self._times.get(place, ()) if now_s - time < self._window_s]
