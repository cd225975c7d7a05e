"""Addresses that Services keep after an edit took them out of the pools, as a text. Pure.

Whoever leads the allocation has the Lease carry the text, since an agent that starts has not seen
the edit: ``192.0.2.7,192.0.2.9-192.0.2.12,2001:db8::1``.
"""

from collections.abc import Iterable

from kube_router_py.address_pools import Address, AddressRange
from kube_router_py.address_ranges import parse_range, remaining, usable_parts
from kube_router_py.services import Network

LONGEST = 64 << 10
"""Bytes of the text. The API server takes 256 KiB of annotations together."""

# No cluster has as many Services with addresses side by side.
_WIDEST = 1 << 16


class KeptAddresses:
    """What Services keep, by their keys. For one thread."""

    def __init__(self) -> None:
        self._kept: dict[str, frozenset[Address]] = {}
        self._text: str | None = ""

    def put(self, key: str, addresses: Iterable[Address]) -> None:
        """That is all that this Service keeps."""
        after = frozenset(addresses)
        if after == self._kept.get(key, frozenset()):
            return
        self._text = None
        if after:
            self._kept[key] = after
        else:
            del self._kept[key]

    @property
    def text(self) -> str:
        """All of them; what is beyond the longest text is left out."""
        if self._text is None:
            every = frozenset[Address]().union(*self._kept.values())
            self._text = _text(remaining(AddressRange(each, each) for each in every))
        return self._text


def _text(ranges: Iterable[AddressRange]) -> str:
    text = ",".join(
        str(each.first) if each.size == 1 else f"{each.first}-{each.last}" for each in ranges
    )
    return _cut(text)


def _cut(text: str) -> str:
    """As many whole items as fit."""
    return text if len(text) <= LONGEST else text[: LONGEST + 1].rpartition(",")[0]


def parse_kept(text: str, cluster_ranges: Iterable[Network]) -> tuple[AddressRange, ...]:
    """The addresses that such a text names. What is none, or could be in no pool (ClusterIPs, for
    instance), is left out."""
    taken = tuple(cluster_ranges)
    found: list[AddressRange] = []
    for item in _cut(text).split(","):
        try:
            each = parse_range(item)
        except ValueError:
            continue
        if each.size <= _WIDEST:
            found += usable_parts(each, taken)
    return remaining(found)
