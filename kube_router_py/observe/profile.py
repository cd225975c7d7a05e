"""What the agent's threads are doing, and where its memory goes: ``--enable-pprof``.

At paths that begin as those of Go's net/http/pprof do; what they give is text for people and for
flame graphs (collapsed stacks, as flamegraph.pl reads them). One question at a time, each within a
minute. A sample of all threads costs about 20 microseconds a thread; nothing is there without a
question.
"""

import sys
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from types import FrameType

from kube_router_py.observe.serve import Answer, Asking

_INTERVAL_S = 0.01
_MOST_S = 60.0
_DEFAULT_S = 10.0
_DEEPEST = 100
_LINES_OF_HEAP = 50

Wait = Callable[[float], None]


class Profiler:
    """``pages`` are for an ``HttpServer``; ``wait`` sleeps so many seconds."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait: Wait = time.sleep
    ) -> None:
        self._clock, self._wait = clock, wait
        self._busy = threading.Lock()

    def pages(self) -> dict[str, Asking]:
        return {
            "/debug/pprof/profile": Asking(lambda query: self._alone(self._profile, query)),
            "/debug/pprof/threads": Asking(lambda query: _text(threads())),
            "/debug/pprof/heap": Asking(lambda query: self._alone(self._heap, query)),
        }

    def _alone(self, work: Callable[[float], str], query: Mapping[str, str]) -> Answer:
        try:
            seconds = float(query.get("seconds", _DEFAULT_S))
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= _MOST_S:
            return _text(f"seconds is a number up to {_MOST_S:g}\n", 400)
        if not self._busy.acquire(blocking=False):
            return _text("somebody else is being answered; try again later\n", 503)
        try:
            return _text(work(seconds))
        finally:
            self._busy.release()

    def _profile(self, seconds: float) -> str:
        """Stacks of all threads but this one, the outermost call first, and how often each was
        seen: ``thread;module.function;module.function COUNT``."""
        seen: Counter[str] = Counter()
        until = self._clock() + seconds
        while self._clock() < until:
            names = {each.ident: each.name for each in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident != threading.get_ident():
                    seen[_collapsed(names.get(ident, str(ident)), frame)] += 1
            self._wait(_INTERVAL_S)
        return "".join(f"{stack} {count}\n" for stack, count in sorted(seen.items()))

    def _heap(self, seconds: float) -> str:
        """Lines of code by the memory that they took meanwhile and still have."""
        if tracemalloc.is_tracing():  # somebody's PYTHONTRACEMALLOC: since the start, then
            return _heap_text("since tracing began")
        tracemalloc.start()
        try:
            self._wait(seconds)
            return _heap_text(f"in {seconds:g} s")
        finally:
            tracemalloc.stop()


def threads() -> str:
    """Where each thread is."""
    names = {each.ident: each.name for each in threading.enumerate()}
    found = []
    for ident, frame in sorted(sys._current_frames().items()):
        stack = "".join(traceback.format_stack(frame, limit=_DEEPEST))
        found.append(f"thread {names.get(ident, '?')} ({ident})\n{stack}")
    return "\n".join(found)


def _collapsed(thread: str, frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < _DEEPEST:
        module = frame.f_globals.get("__name__", "?")
        names.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    # Both characters have a meaning in the format.
    parts = (each.replace(";", ",").replace(" ", "_") for each in (thread, *reversed(names)))
    return ";".join(parts)


def _heap_text(when: str) -> str:
    snapshot = tracemalloc.take_snapshot().filter_traces(
        (tracemalloc.Filter(False, tracemalloc.__file__),)
    )
    statistics = snapshot.statistics("lineno")
    total = sum(each.size for each in statistics)
    lines = [f"allocated {when} and not freed: {total / 1024:.1f} KiB\n"]
    for each in statistics[:_LINES_OF_HEAP]:
        place = each.traceback[0]
        kib = each.size / 1024
        lines.append(f"{kib:12.1f} KiB {each.count:8} blocks  {place.filename}:{place.lineno}\n")
    return "".join(lines)


def _text(text: str, status: int = 200) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", text.encode())
