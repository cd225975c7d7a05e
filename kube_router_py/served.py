"""Addresses that this node's service proxy serves, told from its thread to the route controller's.

The proxy tells what has come to stand, and asks for what is about to go to be withdrawn; the route
controller takes what has changed since it last asked, or everything when it begins anew, and says
when it has passed that on.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_log = logging.getLogger(__name__)

_WITHDRAWAL_S = 2.0
# bgpd takes a withdrawal at once and sends it 50 ms later (work queue, bgp_route.c).
_SENDING_S = 0.1


class Served:
    """For any thread; ``on_change`` is called in the thread of whoever changes something.

    ``is_known``: the proxy has told what it serves; before that nothing can be said of any address.
    """

    def __init__(
        self, withdrawal_s: float = _WITHDRAWAL_S, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self._withdrawal_s, self._pause = withdrawal_s, pause
        self._changed = threading.Condition()  # guards everything below
        self._standing: set[bytes] = set()
        self._touched: set[bytes] = set()
        # Counts changes: made, taken by the route controller, passed on by it.
        self._made = self._taken = self._passed_on = 0
        self._has_reader = False
        # When FRR was last told of anything.
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
        with self._changed:
            if not self._change(set(), set(addresses)):
                return
            made = self._made
        self.on_change()
        with self._changed:
            is_in_time = self._is_late or self._changed.wait_for(
                lambda: self._passed_on >= made or not self._has_reader, self._withdrawal_s
            )
            self._is_late |= not is_in_time
            sent_in_s = self._told_at_s + _SENDING_S - time.monotonic()
        if is_in_time:
            if sent_in_s > 0:
                self._pause(sent_in_s)
            return
        _log.warning(
            "addresses are removed although neighbors may still be sending to them after_s=%g",
            self._withdrawal_s,
        )

    def _change(self, added: set[bytes], removed: set[bytes]) -> bool:
        touched = (added - self._standing) | ((removed - added) & self._standing)
        self._standing |= added
        self._standing -= removed - added
        if self._has_reader:  # else it begins with all that stands
            self._touched |= touched
        self._made += bool(touched)
        return bool(touched)

    # --- the route controller's side -----------------------------------------------------------

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
        """FRR knows of everything that was taken, as far as that is possible; ``has_told``: there
        was anything to tell it."""
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
