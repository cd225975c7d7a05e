"""Read communities as operators write them. Pure.

Sources: RFC 1997 (communities), RFC 8092 (large ones), IANA's registry of well-known communities.
"""

import re

from kube_router_py.routing.model import Community
from kube_router_py.routing.texts import shown

# By the names that FRR knows and those that GoBGP, and so kube-router, knows.
WELL_KNOWN = {
    "internet": Community((0, 0)),
    "graceful-shutdown": Community((65535, 0)),  # RFC 8326
    "planned-shut": Community((65535, 0)),
    "accept-own": Community((65535, 1)),  # RFC 7611
    "route-filter-translated-v4": Community((65535, 2)),
    "route-filter-v4": Community((65535, 3)),
    "route-filter-translated-v6": Community((65535, 4)),
    "route-filter-v6": Community((65535, 5)),
    "llgr-stale": Community((65535, 6)),  # RFC 9494
    "no-llgr": Community((65535, 7)),
    "blackhole": Community((65535, 666)),  # RFC 7999
    "no-export": Community((65535, 65281)),
    "no-advertise": Community((65535, 65282)),
    "local-as": Community((65535, 65283)),
    "no-export-subconfed": Community((65535, 65283)),
    "no-peer": Community((65535, 65284)),  # RFC 3765
}

# FRR takes some 250 words in a line; the router's own come on top of a Service's.
MOST = 64

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_HALF, _WHOLE = 2**16 - 1, 2**32 - 1


def parse_community(text: str) -> Community:
    """A number of 32 bits, ``N:N`` of 16 bits each, ``N:N:N`` of 32 bits each, or a known name.

    Raises ValueError, whose text says what is wrong with it.
    """
    known = WELL_KNOWN.get(text.lower())
    if known is not None:
        return known
    parts = text.split(":")
    if len(parts) <= 3 and all(_NUMBER.fullmatch(part) for part in parts):
        numbers = [int(part) for part in parts]
        if len(numbers) == 1 and numbers[0] <= _WHOLE:
            return Community((numbers[0] >> 16, numbers[0] & _HALF))
        if len(numbers) == 2 and max(numbers) <= _HALF:
            return Community((numbers[0], numbers[1]))
        if len(numbers) == 3 and max(numbers) <= _WHOLE:
            return Community((numbers[0], numbers[1], numbers[2]))
    raise ValueError(
        f"{shown(text)} is no community; write it like 65000:100, 65000:1:2 or no-export"
    )


def parse_communities(text: str) -> tuple[tuple[Community, ...], list[str]]:
    """A list with commas between: those that can be understood, sorted and each once, and what is
    wrong with the others."""
    found: set[Community] = set()
    mistakes: list[str] = []
    items = text.split(",")
    if len(items) > MOST:
        mistakes.append(f"there are {len(items)} communities; the first {MOST} count")
    for item in items[:MOST]:
        try:
            found.add(parse_community(item.strip()))
        except ValueError as error:
            mistakes.append(str(error))
    return tuple(sorted(found, key=lambda each: (len(each.parts), each.parts))), mistakes
