"""ipBlocks as disjoint networks: ``cidr`` minus ``except``, in the fewest prefixes. Pure.

One exception can leave more than a hundred networks, so that a policy of 100 KiB would fill memory.
A block that leaves too many holds its exceptions themselves, as what does not match: the longest
prefix decides then, and sets are not shared between blocks, so that none takes from another.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from kube_router_py.cluster.objects import IPBlock
from kube_router_py.firewall.model import Block

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FAMILIES = {4: "inet", 6: "inet6"}
# As many disjoint networks a block may be.
_DISJOINT_MOST = 1024


def compile_block(block: IPBlock) -> Block:
    """Raises ValueError, naming the field, for what is no CIDR: such a peer matches nobody.

    Host bits are masked. An exception outside of the block, or of the other family, has no effect.
    """
    whole = _network(block.cidr, "cidr")
    holes: list[Network] = []
    for index, text in enumerate(block.except_ or ()):
        holes.append(_network(text, f"except[{index}]"))
    networks = tuple(map(str, islice(subtract(whole, holes), _DISJOINT_MOST + 1)))
    if len(networks) > _DISJOINT_MOST:
        networks = tuple(_with_exceptions(whole, holes))
    text = str(whole) + "".join(f" except {hole}" for hole in sorted(set(map(str, holes))))
    return Block(_FAMILIES[whole.version], networks, text)


def _with_exceptions(whole: Network, holes: Iterable[Network]) -> Iterator[str]:
    """``whole`` and ``holes``, of which the set says that they do not match. It takes no /0."""
    inside = {hole for hole in holes if hole.version == whole.version}
    # A hole that is one of the halves leaves the other one.
    kept = {*(whole.subnets() if whole.prefixlen == 0 else (whole,))} - inside
    yield from sorted(map(str, kept))
    yield from sorted(f"{hole} nomatch" for hole in inside if any(map(hole.subnet_of, kept)))


def subtract(whole: Network, holes: Iterable[Network]) -> Iterator[Network]:
    """``whole`` without ``holes``, as disjoint networks in order, the fewest there are."""
    start, end = _range(whole)
    # As numbers: policies have many blocks, and a network object takes its time at everything.
    ranges = sorted(_range(hole) for hole in holes if hole.version == whole.version)
    for first, behind in (*ranges, (end, end)):
        while start < min(first, end):
            # The largest network that begins here and ends before the hole.
            aligned = start & -start or 1 << whole.max_prefixlen
            size = min(aligned, 1 << ((min(first, end) - start).bit_length() - 1))
            yield type(whole)((start, whole.max_prefixlen + 1 - size.bit_length()))
            start += size
        start = max(start, behind)


def _range(network: Network) -> tuple[int, int]:
    """Its first address and the one behind its last, as numbers."""
    first = int(network.network_address)
    return first, first + (1 << network.max_prefixlen - network.prefixlen)


def _network(text: str, field: str) -> Network:
    address, _, length = text.partition("/")
    try:
        # As Go reads them: a mask in place of the length is none, and neither is a zone.
        if "%" in address or not re.fullmatch("[0-9]{1,3}", length):
            raise ValueError
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{field}: {text!r} is no CIDR") from None
