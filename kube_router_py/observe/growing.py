"""Counters that go on where those they are made of start anew, in bounded number. No I/O."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Source = TypeVar("Source", bound=Hashable)
Series = TypeVar("Series", bound=Hashable)

SERIES_MAX = 2000
GONE_AFTER_S = 300.0


class Increases(Generic[Source]):
    """How much the counters of a source have grown since they were looked at last.

    A source is some counters that restart together, from zero. The sources that stand at the first
    look are where counting begins, even if they are read later (with ``from_zero`` not even they);
    those that come later began at zero.
    """

    def __init__(self, *, from_zero: bool = False) -> None:
        self._seen: dict[Source, Sequence[int]] | None = {} if from_zero else None
        self._unread: set[Source] = set()  # they stood at the first look

    def take(
        self, now: Mapping[Source, Sequence[int]], standing: Collection[Source]
    ) -> dict[Source, tuple[int, ...]]:
        """The growth of each source of ``now``. Sources that are not ``standing`` any more are
        forgotten; one that stands and was not read this time counts on from where it was."""
        if self._seen is None:
            self._seen = dict(now)
            self._unread = set(standing) - now.keys()
            return {}
        grown: dict[Source, tuple[int, ...]] = {}
        for source, values in now.items():
            if source in self._unread:
                continue
            before: Sequence[int] = self._seen.get(source, ())
            if len(before) != len(values) or any(
                new < old for new, old in zip(values, before, strict=True)
            ):
                before = [0] * len(values)
            grown[source] = tuple(new - old for new, old in zip(values, before, strict=True))
        kept = {source: values for source, values in self._seen.items() if source in standing}
        self._seen = {**kept, **now}
        self._unread = {each for each in self._unread if each in standing and each not in now}
        return grown


class Totals(Generic[Series]):
    """Sums by series, at most ``limit`` of them: what further ones bring is added to the series
    that ``other`` names for each. One that nobody needs ends after ``GONE_AFTER_S``."""

    def __init__(self, other: Callable[[Series], Series], limit: int = SERIES_MAX) -> None:
        self._other, self._limit = other, limit
        self._values: dict[Series, int] = {}
        self._needed_at: dict[Series, float] = {}
        self._others: dict[Series, int] = {}
        self.left_out = 0

    def need(self, series: Collection[Series], now_s: float) -> None:
        """These exist now, whether or not they ever grow."""
        for each in series:
            if each in self._values or len(self._values) < self._limit:
                self._values.setdefault(each, 0)
                self._needed_at[each] = now_s
        for each, at in [*self._needed_at.items()]:
            if now_s - at > GONE_AFTER_S:
                del self._needed_at[each], self._values[each]
        self.left_out = sum(each not in self._values for each in series)

    def add(self, series: Series, growth: int) -> None:
        if series in self._values:
            self._values[series] += growth
        else:
            other = self._other(series)
            self._others[other] = self._others.get(other, 0) + growth

    def values(self) -> dict[Series, int]:
        return {**self._values, **self._others}
