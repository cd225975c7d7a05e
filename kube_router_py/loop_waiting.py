"""Since when keys have been waiting for a turn to succeed with them. Pure."""

from collections.abc import Collection, Hashable, Iterable


class Waiting:
    """Times are those of the loop's clock, in seconds. The loop's lock guards it."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def mark(self, keys: Iterable[Hashable], now: float) -> None:
        """These wait from now on, unless they do already."""
        for key in keys:
            self._since.setdefault(key, now)

    def take(self, keys: Iterable[Hashable]) -> dict[Hashable, float]:
        """These are in a turn: what is marked meanwhile waits anew."""
        return {key: self._since.pop(key) for key in keys if key in self._since}

    def settle(
        self, taken: dict[Hashable, float], failing: Collection[Hashable], now: float
    ) -> tuple[float, ...]:
        """A turn with the keys of ``taken`` has ended, and ``failing`` are to be tried again.
        Returns how long those had waited that it succeeded with."""
        for key in failing:
            since = taken.pop(key, now)
            self._since[key] = min(since, self._since.get(key, since))
        return tuple(now - since for since in taken.values())

    def oldest_s(self, now: float) -> float:
        """For how long the oldest has been waiting; 0 without any."""
        return now - min(self._since.values(), default=now)
