"""Ports that nobody has, for tests that name a port before somebody listens on it.

Not from where the kernel takes a port that may be any (``ip_local_port_range``, ip(7)): there it
may be given to somebody else before it is used.
"""

import os
import socket
from collections.abc import Iterator

_FIRST, _LAST = 20_000, 29_999
_ADDRESSES = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))


def _ports() -> Iterator[int]:
    """Each once; two processes begin far from each other."""
    number = _LAST - _FIRST + 1
    begin = os.getpid() * 617 % number
    yield from (_FIRST + (begin + each) % number for each in range(number))


_coming = _ports()


def free_port() -> int:
    """A port that is free for TCP and UDP at all addresses, and is given to nobody else here."""
    return next(filter(_is_free, _coming))


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family, address in _ADDRESSES:
            with socket.socket(family, kind) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind((address, port))
                except OSError:
                    return False
    return True
