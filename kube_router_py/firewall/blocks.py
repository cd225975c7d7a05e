"""ipBlocks as disjoint networks: ``cidr`` minus ``except``, in the fewest prefixes. Pure.

A set of type hash:net could hold the exceptions itself (nomatch), but the longest prefix of the
whole set decides there: one block's exception would take from another block. And it refuses /0.
"""

import ipaddress
import re
from collections.abc import Iterable

from kube_router_py.cluster.objects import IPBlock
from kube_router_py.firewall.model import Block

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FAMILIES = {4: "inet", 6: "inet6"}


def compile_block(block: IPBlock) -> Block:
    """Raises ValueError, naming the field, for what is no CIDR: such a peer matches nobody.

    Host bits are masked. An exception outside of the block, or of the other family, has no effect.
    """
    whole = _network(block.cidr, "cidr")
    holes: list[Network] = []
    for index, text in enumerate(block.except_ or ()):
        holes.append(_network(text, f"except[{index}]"))
    networks = subtract(whole, holes)
    text = str(whole) + "".join(f" except {hole}" for hole in sorted(set(map(str, holes))))
    return Block(_FAMILIES[whole.version], tuple(map(str, networks)), text)


def subtract(whole: Network, holes: Iterable[Network]) -> list[Network]:
    """``whole`` without ``holes``, as disjoint networks in order, the fewest there are."""
    start, end = _range(whole)
    # As numbers: policies have many blocks, and a network object takes its time at everything.
    ranges = sorted(_range(hole) for hole in holes if hole.version == whole.version)
    found: list[Network] = []
    for first, behind in (*ranges, (end, end)):
        while start < min(first, end):
            # The largest network that begins here and ends before the hole.
            aligned = start & -start or 1 << whole.max_prefixlen
            size = min(aligned, 1 << ((min(first, end) - start).bit_length() - 1))
            found.append(type(whole)((start, whole.max_prefixlen + 1 - size.bit_length())))
            start += size
        start = max(start, behind)
    return found


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
