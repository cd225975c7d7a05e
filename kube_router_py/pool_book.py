"""The address pools that hold at the moment, for all parts of the agent."""

import logging
import threading
from collections.abc import Callable

from msgspec import Struct, structs

from kube_router_py.address_pool_config import PoolSettings, compile_pools
from kube_router_py.address_pools import AddressPools
from kube_router_py.problem import Problem
from kube_router_py.retired_pools import read_past, retire

_log = logging.getLogger(__name__)


class Past(Struct, frozen=True):
    """What the allocator's Lease says of the time before the agent started: the text of the
    ConfigMap that was ``accepted`` last, and what Services ``kept`` (see ``kept_addresses``)."""

    accepted: str | None = None
    kept: str = ""


class _Page(Struct, frozen=True):
    """All that the book says at a moment."""

    pools: AddressPools
    accepted: str | None
    problems: tuple[Problem, ...]
    unreadable: tuple[Problem, ...] = ()
    is_known: bool = True
    knows_past: bool = False


class PoolBook:
    """Holds the pools; for any thread.

    Before anything is known of the ConfigMap the pools are those of the flags. What an edit takes
    away from the pools is retired (see ``AddressPools``) until the agent ends: Services have it
    still. What they had when it started, ``put_past`` says. Subscribers are called in the thread of
    whoever changes something, under no lock of the book's, and find there what is new: when it
    becomes known, and whenever pools, Problems or the accepted text are others than before.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._changing = threading.Lock()  # who reads does without
        begun = compile_pools(settings, None)
        self._page = _Page(begun.pools, None, begun.problems, is_known=False)
        self._subscribers: list[Callable[[], None]] = []

    @property
    def pools(self) -> AddressPools:
        """The pools to use, and what was taken away from them."""
        return self._page.pools

    @property
    def knows_past(self) -> bool:
        """Whether it is known what was retired before the agent started."""
        return self._page.knows_past

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
            pools = retire(compiled.pools, before.pools.pools, before.pools.retired)
            page = _Page(pools, compiled.accepted, compiled.problems, knows_past=before.knows_past)
            is_news = page != before
            if is_news:
                self._page = page
        if is_news:
            self._tell()

    def put_unreadable(self, problem: Problem) -> None:
        """The ConfigMap cannot be read, for this reason: what holds goes on to hold."""
        with self._changing:
            before = self._page
            self._page = structs.replace(before, unreadable=(problem,), is_known=True)
            is_news = self._page != before
        if is_news:
            self._tell()

    def put_past(self, past: Past) -> None:
        """What went while no agent ran here is retired, as if this one had seen it go. To be told
        before the ConfigMap, or an address may not be served for a while."""
        taken = self.settings.cluster_ranges
        accepted, kept = read_past(past.accepted or "", taken), read_past(past.kept, taken)
        with self._changing:
            before = self._page
            pools = retire(before.pools, before.pools.retired, accepted, kept)
            self._page = structs.replace(before, pools=pools, knows_past=True)
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
