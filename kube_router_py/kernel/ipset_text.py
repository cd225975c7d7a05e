"""Entries of sets as text, in the one spelling in which ipset(8) prints them."""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise

from kube_router_py.kernel.ports import IpsetSpec, SetState

# Options that may follow an entry, with the number of words each takes. They are no part of what
# the entry is; a set taken over from elsewhere may have been created with them.
_OPTIONS = {"timeout": 1, "packets": 1, "bytes": 1, "skbmark": 1, "skbprio": 1, "skbqueue": 1}
_HEADER = ("family", "maxelem")
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}


def canonical_entries(set_type: str, entries: Iterable[str]) -> frozenset[str]:
    """Entries as the kernel prints them, so that equal sets compare equal.

    The empty prefix (``0.0.0.0/0``), which sets of type ``hash:net`` refuse, becomes two halves.
    What is not understood (host names, ranges) is left as it is.
    """
    found: set[str] = set()
    for entry in entries:
        found.update(_canonical(set_type, entry))
    return frozenset(found)


def parse_save(text: str, is_wanted: Callable[[str], bool]) -> dict[str, SetState]:
    """What ``ipset save`` printed of those sets that are wanted, by name."""
    headers: dict[str, tuple[IpsetSpec, int]] = {}
    entries: dict[str, list[str]] = {}
    for line in text.splitlines():
        verb, _, words = line.partition(" ")
        name, _, rest = words.partition(" ")
        if verb == "add":
            if name in entries:
                entries[name].append(_without_options(rest) if " " in rest else rest)
        elif verb == "create" and is_wanted(name):
            headers[name] = _header(name, *rest.split())
            entries[name] = []
    return {
        name: SetState(spec, maxelem, _saved_entries(spec, entries[name]))
        for name, (spec, maxelem) in headers.items()
    }


def parse_list(text: str) -> dict[str, IpsetSpec]:
    """What ``ipset list -terse`` printed: the sets that stand, by name."""
    found: dict[str, IpsetSpec] = {}
    name = set_type = ""
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == "Name":
            name = value
        elif key == "Type":
            set_type = value
        elif key == "Header":
            found[name] = _header(name, set_type, *value.split())[0]
    return found


def _header(name: str, set_type: str, *words: str) -> tuple[IpsetSpec, int]:
    # Flags without a value (counters, comment) shift the pairs: look values up by name.
    options = {word: value for word, value in pairwise(words) if word in _HEADER}
    # Sets without a limit (bitmap, list:set) print none.
    maxelem = int(options.get("maxelem", "0")) or 1 << 32
    return IpsetSpec(name, set_type, options.get("family", "inet")), maxelem


def _saved_entries(spec: IpsetSpec, entries: Iterable[str]) -> frozenset[str]:
    # IPv4 has but one spelling, the one that is printed; of large sets this saves the most time.
    return frozenset(entries) if spec.family == "inet" else canonical_entries(spec.type, entries)


def _without_options(text: str) -> str:
    words = text.split(" ")
    kept = words[:1]
    position = 1
    while position < len(words):
        word = words[position]
        if word == "comment":
            break  # quoted, may hold anything, and is printed last but for skb options
        if word in _OPTIONS:
            position += 1 + _OPTIONS[word]
            continue
        kept.append(word)
        position += 1
    return " ".join(kept)


@lru_cache(maxsize=16384)
def _canonical(set_type: str, entry: str) -> tuple[str, ...]:
    element, _, flags = entry.strip().partition(" ")
    kinds = set_type.partition(":")[2].split(",")
    parts = element.split(",")
    if not set_type.startswith("hash:") or len(parts) != len(kinds):
        return (entry.strip(),)
    spellings: list[tuple[str, ...]] = []
    for kind, part in zip(kinds, parts, strict=True):
        if kind in ("ip", "net"):
            spellings.append(_addresses(kind, part))
        elif kind == "port":
            spellings.append((_port(part),))
        else:
            spellings.append((part,))
    found = [""]
    for alternatives in spellings:
        found = [f"{head},{tail}" if head else tail for head in found for tail in alternatives]
    suffix = f" {flags.strip()}" if flags.strip() else ""
    return tuple(text + suffix for text in found)


def _addresses(kind: str, text: str) -> tuple[str, ...]:
    try:
        return (socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text)),)
    except OSError:  # all but plain IPv4, which is the most frequent by far
        pass
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return (text,)
    if kind == "net" and network.prefixlen == 0:
        return tuple(str(half) for half in network.subnets())
    if network.prefixlen == network.max_prefixlen:
        return (_address_text(network.network_address),)
    return (f"{_address_text(network.network_address)}/{network.prefixlen}",)


def _address_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"  # as inet_ntop(3); ipaddress prints hexadecimal
    return str(address)


def _port(text: str) -> str:
    protocol, colon, port = text.partition(":")
    if not colon:
        return f"tcp:{text}"
    protocol = protocol.lower()
    return f"{_PROTOCOLS.get(protocol, protocol)}:{port}"
