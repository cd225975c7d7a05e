"""Entries of sets as text, in the one spelling in which ipset(8) prints them."""

import ipaddress
from collections.abc import Iterable
from itertools import pairwise

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


def parse_save(text: str, name: str) -> tuple[dict[str, str], list[str]]:
    """What ``ipset save NAME`` printed: the header (``type``, ``family``, ...) and the entries."""
    header: dict[str, str] = {}
    entries: list[str] = []
    prefix = f"add {name} "
    for line in text.splitlines():
        if line.startswith(prefix):
            entries.append(_without_options(line[len(prefix) :]))
        elif line.startswith(f"create {name} "):
            words = line.split()[2:]
            header["type"] = words[0]
            # Flags without a value (counters, comment) shift the pairs: look values up by name.
            header |= {word: value for word, value in pairwise(words) if word in _HEADER}
    if "type" not in header:
        raise ValueError(f"ipset save printed no header of set {name}")
    return header, entries


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
