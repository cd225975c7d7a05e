"""Addresses that this node's service proxy serves, told from its thread to the route controller's.

The proxy tells what has come to stand and what is about to go; the route controller takes what has
changed since it last asked, or everything when it begins anew.
"""

import ipaddress
import threading
from collections.abc import Callable, Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Served:
    """For any thread; ``on_change`` is called in the thread of whoever changes something."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._standing: set[bytes] = set()
        self._touched: set[bytes] = set()

    def change(self, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> None:
        """These packed addresses are served from now on, or are not any more."""
        with self._lock:
            before = len(self._touched)
            for packed in removed:
                if packed in self._standing:
                    self._standing.discard(packed)
                    self._touched.add(packed)
            for packed in added:
                if packed not in self._standing:
                    self._standing.add(packed)
                    self._touched.add(packed)
            is_news = len(self._touched) > before
        if is_news:
            self.on_change()

    def begin(self) -> frozenset[Address]:
        """All that are served; ``take`` starts from here."""
        with self._lock:
            self._touched.clear()
            return frozenset(map(ipaddress.ip_address, self._standing))

    def take(self) -> tuple[frozenset[Address], frozenset[Address]]:
        """Those that are served and those that are not, of the ones told of since the last call."""
        with self._lock:
            touched, self._touched = self._touched, set()
            added = {packed for packed in touched if packed in self._standing}
        return (
            frozenset(map(ipaddress.ip_address, added)),
            frozenset(map(ipaddress.ip_address, touched - added)),
        )
