"""Addresses that this node's service proxy serves, told from its thread to those who announce them.

The proxy tells what has come to stand, and asks for what is about to go to be withdrawn; a reader
(the route controller, the announcer on the node's links) takes what has changed since it last
asked, or everything when it begins anew, and says when it has passed that on. Each reader has a
``Served`` of its own; ``ServedToAll`` tells several.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_log = logging.getLogger(__name__)

_WITHDRAWAL_S = 2.0
# bgpd takes a withdrawal at once and sends it 50 ms later (work queue, bgp_route.c).
_SENDING_S = 0.1


class Served:
    """For any thread; ``on_change`` is called in the thread of whoever changes something.

    ``is_known``: the proxy has told what it serves; before that nothing can be said of any address.
    ``withdrawal_s``: how long a withdrawal waits for the reader at most. ``sending_s``: how long
    after the reader has passed on what it took neighbors know it; None: as long as bgpd takes.
    """

    def __init__(
        self,
        withdrawal_s: float = _WITHDRAWAL_S,
        pause: Callable[[float], None] = time.sleep,
        *,
        sending_s: float | None = None,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self._withdrawal_s, self._pause = withdrawal_s, pause
        self._sending_s = _SENDING_S if sending_s is None else sending_s
        self._changed = threading.Condition()  # guards everything below
        self._standing: set[bytes] = set()
        self._touched: set[bytes] = set()
        # Counts changes: made, taken by the reader, passed on by it.
        self._made = self._taken = self._passed_on = 0
        self._has_reader = False
        # When the reader last told anybody anything.
        self._told_at_s = float("-inf")
        # It did not pass on in time: nobody waits again before it does.
        self._is_late = False

    def change(self, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> None:
        """These packed addresses are served from now on, or are not any more."""
        with self._changed:
            was_known, self.is_known = self.is_known, True
            has_changed = self._change(set(added), set(removed))
        if has_changed or not was_known:
            self.on_change()

    def withdraw(self, addresses: Iterable[bytes]) -> None:
        """These will not be served any more: returns when neighbors have been told, or after a
        while if that cannot be done; nobody waits again where that was in vain."""
        _withdraw((self,), addresses, self._pause)

    def ask(self, addresses: Iterable[bytes]) -> int | None:
        """The first half of ``withdraw``: the number to give to ``wait``; None: nothing to do."""
        with self._changed:
            if not self._change(set(), set(addresses)):
                return None
            made = self._made
        self.on_change()
        return made

    def wait(self, made: int, since_s: float) -> float | None:
        """The second half: wait until that is passed on, at most as long as a ``withdraw`` that
        began at ``since_s`` may. Returns when neighbors know it (of time.monotonic); None: it was
        not passed on in time."""
        with self._changed:
            left_s = max(0.0, since_s + self._withdrawal_s - time.monotonic())
            is_in_time = self._is_late or self._changed.wait_for(
                lambda: self._passed_on >= made or not self._has_reader, left_s
            )
            self._is_late |= not is_in_time
            return self._told_at_s + self._sending_s if is_in_time else None

    def _change(self, added: set[bytes], removed: set[bytes]) -> bool:
        touched = (added - self._standing) | ((removed - added) & self._standing)
        self._standing |= added
        self._standing -= removed - added
        if self._has_reader:  # else it begins with all that stands
            self._touched |= touched
        self._made += bool(touched)
        return bool(touched)

    # --- the reader's side -----------------------------------------------------------------------

    def begin(self) -> frozenset[Address]:
        """All that are served; ``take`` starts from here."""
        with self._changed:
            self._has_reader, self._is_late = True, False
            self._touched.clear()
            self._taken = self._made
            return frozenset(map(ipaddress.ip_address, self._standing))

    def take(self) -> tuple[frozenset[Address], frozenset[Address]]:
        """Those that are served and those that are not, of the ones told of since the last call."""
        with self._changed:
            touched, self._touched = self._touched, set()
            self._taken = self._made
            added = touched & self._standing
        return (
            frozenset(map(ipaddress.ip_address, added)),
            frozenset(map(ipaddress.ip_address, touched - added)),
        )

    def pass_on(self, *, has_told: bool = True) -> None:
        """Everything that was taken has been passed on, as far as that is possible; ``has_told``:
        there was anything to tell anybody."""
        with self._changed:
            if has_told:
                self._told_at_s = time.monotonic()
            self._passed_on, self._is_late = self._taken, False
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody reads any more: there is nothing to wait for."""
        with self._changed:
            self._has_reader = False
            self._touched.clear()
            self._changed.notify_all()


class ServedToAll:
    """Tells several readers, each through its ``Served``, in the thread of whoever calls. A reader
    that is slow or stuck holds up neither the others nor, longer than its own limit, a withdrawal.
    """

    def __init__(
        self, readers: Sequence[Served], pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._readers, self._pause = tuple(readers), pause

    def change(self, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> None:
        """See ``Served.change``."""
        added, removed = frozenset(added), frozenset(removed)
        for each in self._readers:
            each.change(added, removed)

    def withdraw(self, addresses: Iterable[bytes]) -> None:
        """See ``Served.withdraw``: all are asked first, and then waited for together."""
        _withdraw(self._readers, addresses, self._pause)


def _withdraw(
    readers: Sequence[Served], addresses: Iterable[bytes], pause: Callable[[float], None]
) -> None:
    going = frozenset(addresses)
    since_s = time.monotonic()
    asked = [(each, made) for each in readers if (made := each.ask(going)) is not None]
    # One after the other, but all from the same moment on: the longest limit is the whole one.
    found = [each.wait(made, since_s) for each, made in asked]
    known_at_s = [each for each in found if each is not None]
    now_s = time.monotonic()
    if len(known_at_s) < len(found):
        _log.warning(
            "addresses are removed although neighbors may still be sending to them after_s=%.3g",
            now_s - since_s,
        )
    if known_at_s and (left_s := max(known_at_s) - now_s) > 0:
        pause(left_s)
