"""What pools had before: addresses that Services keep after an edit took them out. Pure.

Whoever leads the allocation has the Lease carry them, since an agent that starts has not seen the
edit: a list of pools as in the ConfigMap (in JSON, which is YAML), with the addresses that are kept
and how they were announced. The pool of --loadbalancer-ip-range is there as a whole, or nobody who
starts with another flag knew of it:

    [{"name":"gold","addresses":["192.0.2.7","192.0.2.9-192.0.2.12"],"announce":{"bgp":true}}]
"""

import json
from collections.abc import Iterable
from typing import Any

from kube_router_py.address_pools import (
    DEFAULT_POOL,
    Address,
    AddressPools,
    AddressRange,
    Announcing,
    Pool,
)
from kube_router_py.address_ranges import remaining

LONGEST = 64 << 10
"""Bytes of the text. The API server takes 256 KiB of annotations together."""


class KeptAddresses:
    """What Services keep, by their keys. For one thread."""

    def __init__(self) -> None:
        self._kept: dict[str, frozenset[Address]] = {}
        self._pools = AddressPools()
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

    def text(self, pools: AddressPools) -> str:
        """All of them, as these pools know them; what is beyond the longest text is left out."""
        if self._text is None or self._pools is not pools:
            every = frozenset[Address]().union(*self._kept.values())
            self._text, self._pools = _text(pools, every), pools
        return self._text


def _text(pools: AddressPools, kept: Iterable[Address]) -> str:
    parts: dict[tuple[str, Announcing], list[AddressRange]] = {}
    for address in kept:
        if (pool := pools.retired_of(address.packed)) is not None:
            own = parts.setdefault((pool.name, pool.announcing), [])
            own.append(AddressRange(address, address))
    found = [(each, each.ranges) for each in pools.pools if each.name == DEFAULT_POOL]
    found += (
        (pool, remaining(parts[pool.name, pool.announcing]))
        for pool in pools.retired
        if (pool.name, pool.announcing) in parts
    )
    items: list[str] = []
    left = LONGEST - len("[]")
    for pool, ranges in found:
        addresses: list[str] = []
        left -= len(_item(pool, [])) + len(",")
        for each in ranges:
            text = str(each.first) if each.size == 1 else f"{each.first}-{each.last}"
            left -= len(f'"{text}",')
            if left < 0:
                break
            addresses.append(text)
        if addresses:
            items.append(_item(pool, addresses))
    return f"[{','.join(items)}]" if items else ""


def _item(pool: Pool, addresses: list[str]) -> str:
    item: dict[str, Any] = {"name": pool.name, "addresses": addresses}
    if announce := _announce(pool.announcing):
        item["announce"] = announce
    return json.dumps(item, separators=(",", ":"))


def _announce(said: Announcing) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if said.bgp is not None:
        found["bgp"] = said.bgp
    if said.layer2:
        found["layer2"] = True
        if said.interfaces:
            found["interfaces"] = said.interfaces
    if requirements := said.nodes.requirements:
        found["nodeSelector"] = {
            "matchExpressions": [
                {"key": each.key, "operator": each.operator}
                | ({"values": each.values} if each.values else {})
                for each in requirements
            ]
        }
    if said.communities:
        found["communities"] = said.communities.split(",")
    if said.local_preference is not None:
        found["localPreference"] = said.local_preference
    return found
