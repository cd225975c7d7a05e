"""How often something may be told. Pure: the time is an argument, in seconds."""

from collections.abc import Hashable


class Bucket:
    """``burst`` at once, and ``per_s`` more each second."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be told."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Repeats:
    """Of what is the same the first is news, and after ``every_s`` one again; ``room`` are kept."""

    def __init__(self, every_s: float, room: int) -> None:
        self._every_s, self._room = every_s, room
        self._told: dict[Hashable, tuple[float, int]] = {}

    def news(self, key: Hashable, now: float) -> int:
        """0: not to be told now. Otherwise how often it came since it was last told, with this; it
        stays news until ``told``."""
        at, since = self._told.get(key, (now - self._every_s, 0))
        if now - at < self._every_s:
            self._told[key] = (at, since + 1)
            return 0
        return since + 1

    def told(self, key: Hashable, now: float) -> None:
        self._told.pop(key, None)  # to the end: the oldest are first
        if len(self._told) >= self._room:
            del self._told[next(iter(self._told))]
        self._told[key] = (now, 0)
