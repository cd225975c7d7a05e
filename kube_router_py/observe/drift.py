"""What periodic comparisons with the kernel put right."""

from collections.abc import Callable, Mapping

from kube_router_py.loop_model import Turn

Repairs = dict[tuple[str, str], int]
"""Changes by loop and adapter."""


class DriftRepairs:
    """Changes sent to the kernel in turns that compared everything though nothing was dirty, and
    that followed a turn that had succeeded: nobody but others can have caused them.

    ``writes`` tells how many changes each loop has sent so far, by adapter.
    """

    def __init__(self, writes: Mapping[str, Callable[[], Mapping[str, int]]]) -> None:
        self._writes = writes
        self._before: dict[str, Mapping[str, int]] = {}
        self._succeeded: set[str] = set()
        self._repairs: Repairs = {}

    def follow(self, turn: Turn) -> None:
        """A turn has ended. In the loop's thread."""
        writes = self._writes.get(turn.loop)
        if writes is None:
            return
        before, now = self._before.get(turn.loop, {}), writes()
        self._before[turn.loop] = now
        is_alone = turn.full and not turn.keys and turn.loop in self._succeeded
        for adapter, count in now.items():
            grown = count - before.get(adapter, 0) if is_alone else 0
            place = turn.loop, adapter
            self._repairs[place] = self._repairs.get(place, 0) + grown
        if turn.failed or turn.error:
            self._succeeded.discard(turn.loop)
        else:
            self._succeeded.add(turn.loop)

    def repairs(self) -> Repairs:
        """So far. For any thread."""
        return self._repairs.copy()
