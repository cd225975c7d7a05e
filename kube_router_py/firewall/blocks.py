"""ipBlocks as disjoint networks: ``cidr`` minus ``except``, in the fewest prefixes. Pure.

A set of type hash:net could hold the exceptions itself (nomatch), but the longest prefix of the
whole set decides there: one block's exception would take from another block. And it refuses /0.
"""

import ipaddress
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
    """``whole`` without ``holes``, as disjoint networks in order."""
    inside = [hole for hole in holes if hole.version == whole.version and hole.overlaps(whole)]
    return _subtract(whole, inside)


def _subtract(network: Network, holes: list[Network]) -> list[Network]:
    if not holes:
        return [network]
    if any(hole.prefixlen <= network.prefixlen for hole in holes):
        return []  # they overlap, so the larger one covers it
    found: list[Network] = []
    for half in network.subnets():
        found += _subtract(half, [hole for hole in holes if hole.overlaps(half)])
    return found


def _network(text: str, field: str) -> Network:
    try:
        if not isinstance(text, str) or "/" not in text:
            raise ValueError
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{field}: {text!r} is no CIDR") from None
