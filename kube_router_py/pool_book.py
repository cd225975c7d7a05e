"""The address pools that hold at the moment, for all parts of the agent."""

import logging
import threading
from collections.abc import Callable

from msgspec import Struct

from kube_router_py.address_pool_config import PoolSettings, compile_pools
from kube_router_py.address_pools import AddressPools
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)


class _Page(Struct, frozen=True):
    """All that the book says at a moment."""

    pools: AddressPools
    accepted: str | None
    problems: tuple[Problem, ...]
    unreadable: tuple[Problem, ...] = ()
    is_known: bool = True


class PoolBook:
    """Holds the pools; for any thread.

    Before anything is known of the ConfigMap the pools are those of the flags. Subscribers are
    called in the thread of whoever changes something, under no lock of the book's, and find there
    what is new: when it becomes known, and whenever pools, Problems or the accepted text are others
    than before.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._changing = threading.Lock()  # who reads does without
        begun = compile_pools(settings, None)
        self._page = _Page(begun.pools, None, begun.problems, is_known=False)
        self._subscribers: list[Callable[[], None]] = []

    @property
    def pools(self) -> AddressPools:
        """The pools to use."""
        return self._page.pools

    @property
    def is_known(self) -> bool:
        """Whether the ConfigMap has been read, or was not to be had for long enough."""
        return self._page.is_known

    @property
    def accepted_text(self) -> str | None:
        """The last text of the ConfigMap without a mistake, ``""`` where there is no ConfigMap;
        None: there was none since the start. Whoever leads the allocation keeps it for those who
        start."""
        return self._page.accepted

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with flags and ConfigMap, or with the way to it."""
        page = self._page
        return (*page.problems, *page.unreadable)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever something is new from now on."""
        with self._changing:
            self._subscribers.append(callback)

    def put_config(
        self,
        text: str | None,
        last_good: str | None = None,
        mistakes: tuple[Problem, ...] = (),
    ) -> None:
        """The ConfigMap says this; None: it is not there. ``last_good`` is what was accepted before
        the agent started, which counts while nothing has been since. ``mistakes`` are those that
        the ConfigMap has beside the text."""
        with self._changing:
            before = self._page
            last_good = last_good if before.accepted is None else before.accepted
            compiled = compile_pools(self.settings, text, last_good, mistakes)
            self._page = _Page(compiled.pools, compiled.accepted, compiled.problems)
            is_news = self._page != before
        if is_news:
            self._tell()

    def put_unreadable(self, problem: Problem) -> None:
        """The ConfigMap cannot be read, for this reason: what holds goes on to hold."""
        with self._changing:
            before = self._page
            self._page = _Page(before.pools, before.accepted, before.problems, (problem,))
            is_news = self._page != before
        if is_news:
            self._tell()

    def _tell(self) -> None:
        with self._changing:
            subscribers = tuple(self._subscribers)
        for notify in subscribers:
            try:
                notify()
            except Exception:  # noqa: BLE001 - one subscriber's bug must not keep others ignorant
                _log.exception("a subscriber of the address pools failed")
