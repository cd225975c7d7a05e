"""Answering ARP and NDP for addresses that no link of this node carries: the contract.

The addresses of Services are local routes, and the kernel answers only for what a link carries
(arp_ignore=1, and NDP in any case). Whoever is to receive their packets on a segment without a
router says so himself: he answers requests, and tells of himself unasked when he takes over.

This is for any thread, unlike the adapters of ``ports``: what happens on a link happens in a thread
of the responder's own.
"""

import ipaddress
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

OnClaim = Callable[[Address, str, str], None]
"""Called with (address, link, hardware address as ``02:00:00:00:00:01``) when another host claims
an address on a link where it is answered for here, or watched: once for each frame that says so.
It runs in the responder's thread: it has to return soon, and may not call the responder."""


class Responder(Protocol):
    """Answers for addresses on the links of one network namespace.

    Links are chosen by patterns of their names (``*``, ``?``, ``[ab]`` as in file names); no
    pattern stands for the links that carry an address of this Node, or that the operator named.
    Links that come later are taken then; one that is down is left out as long as it is. On each,
    the answer is the hardware address of that very link.
    """

    def put(self, wanted: Mapping[Address, tuple[str, ...]]) -> None:
        """Answer for exactly these addresses from now on, each on the links of its patterns.

        When this returns, no others are answered for any more. New ones, and those that came to
        another link, are announced at once and two more times, a second apart. Raises KernelError
        if the responder does not take it over in time, or not at all; it may be repeated.
        """

    def watch(self, watched: Mapping[Address, tuple[str, ...]]) -> None:
        """Replace the addresses that are not answered for, but whose claims are to be told, each
        on the links of its patterns. Those that are answered for need not be among them."""

    def announce(self) -> None:
        """Tell all segments again who has the addresses, once and without waiting: some switches
        forget a hardware address that only receives."""

    def links(self) -> dict[Address, tuple[str, ...]]:
        """The links on which each address is answered for now; none where no link is fit."""

    def numbers(self) -> dict[str, float]:
        """Since the start: ``answers`` sent to requests, ``announcements`` sent unasked, ``claims``
        of others, requests ``dropped`` (too many in a second, or too old), ``failures`` to
        send or to open a link; and the number of ``links`` in use now."""

    def close(self) -> None:
        """End the thread; nothing is answered when this has returned. May be repeated."""


OpenResponder = Callable[[OnClaim, Callable[[], Collection[Address]]], Responder]
"""Opens a responder; is given whom to tell of claims, and how the Node's addresses are learned."""

NUMBERS = ("answers", "announcements", "claims", "dropped", "failures", "links")
"""The keys of ``Responder.numbers``."""
