"""Whether a rule of iptables matches a packet: yes, no, or not to be told from here. Pure.

The packet is the first of a connection. What depends on more than that (rates, owners, payloads,
hardware addresses) is not to be told. Options as iptables-extensions(8) has them.
"""

import ipaddress
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from kube_router_py.kernel.ports import SetState
from kube_router_py.kernel.rule_text import Group, Rule

Verdict = bool | None
SetOf = Callable[[str], SetState | None]
"""Gives a set by its name; None where there is none."""

_STATES = {"--ctstate", "--state"}
_PORT_OPTIONS = {"--dport", "--dports", "--sport", "--sports", "--ports"}
_FLAGS = frozenset(("FIN", "SYN", "RST", "PSH", "ACK", "URG"))
# As protocols(5) and iptables-save call them; the packet's are numbers where they have no ports.
_NUMBERS = {
    "igmp": "2",
    "ipencap": "4",
    "ipv4": "4",
    "dccp": "33",
    "ipv6": "41",
    "gre": "47",
    "esp": "50",
    "ah": "51",
    "ospf": "89",
    "ipip": "94",
    "pim": "103",
    "vrrp": "112",
    "mh": "135",
    "ipv6-mh": "135",
    "udplite": "136",
}
_KNOWN = ("tcp", "udp", "sctp", "icmp", "ipv6-icmp")
# What a match adds without deciding anything.
_ALWAYS = ("comment",)
_OF_IPVS = (("--ipvs", ""), ("--vdir", "ORIGINAL"), ("--vmethod", "MASQ"))


class Packet(Struct, frozen=True):
    """A packet as a hook sees it. ``family``: ``inet``, ``inet6``; ``protocol``: ``tcp``, ``udp``,
    ``sctp``, or the number of another; links are ``""`` where there is none or it is not known
    (``*_known`` tells).

    ``is_local_source``, ``is_local_target``: whether an address is one of this node's own.
    ``by_ipvs``: IPVS has chosen the destination.
    """

    family: str
    protocol: str
    source: str
    destination: str
    port: int
    in_link: str = ""
    out_link: str = ""
    is_in_known: bool = True
    is_out_known: bool = True
    is_local_source: Verdict = None
    is_local_target: Verdict = None
    by_ipvs: bool = False

    def __str__(self) -> str:
        host = f"[{self.destination}]" if ":" in self.destination else self.destination
        return f"{self.source} -> {host}:{self.port}/{self.protocol.upper()}"


def all_of(verdicts: Iterator[Verdict]) -> Verdict:
    """No if one says no, else unknown if one is, else yes."""
    found: Verdict = True
    for verdict in verdicts:
        if verdict is False:
            return False
        if verdict is None:
            found = None
    return found


def matches(rule: Rule, packet: Packet, mark: int, set_of: SetOf) -> Verdict:
    """``rule`` in canonical form (see ``kernel.rule_text``); what it leads to is not looked at."""
    return all_of(_group(group, packet, mark, set_of) for group in rule)


def _group(group: Group, packet: Packet, mark: int, set_of: SetOf) -> Verdict:
    is_not = group[0] == "!"
    name, *arguments = group[1:] if is_not else group
    if name in ("-j", "-g"):
        return True
    if name == "-m":
        if not arguments:
            return None
        options = _options(arguments[1:])
        return all_of(
            _negated(_option(arguments[0], option, values, packet, mark, set_of), is_inverted)
            for is_inverted, option, values in options
        )
    return _negated(_general(name, arguments[0] if arguments else "", packet), is_not)


def _negated(verdict: Verdict, is_not: bool) -> Verdict:
    return verdict if verdict is None or not is_not else not verdict


def _general(name: str, value: str, packet: Packet) -> Verdict:
    if name == "-p":
        return True if value in ("all", "0") else is_protocol(packet.protocol, value)
    if name == "-s":
        return is_inside(packet.source, value)
    if name == "-d":
        return is_inside(packet.destination, value)
    if name == "-i":
        return _link(value, packet.in_link) if packet.is_in_known else None
    if name == "-o":
        return _link(value, packet.out_link) if packet.is_out_known else None
    return False if name == "-f" else None


def is_protocol(protocol: str, name: str) -> Verdict:
    """Whether the protocol of a packet is what a rule calls it, by name or number."""
    if protocol == name or name in _KNOWN or not protocol.isdigit():
        return protocol == name
    if name.isdigit():
        return int(name) == int(protocol)
    return _NUMBERS[name] == protocol if name in _NUMBERS else None


def is_inside(address: str, where: str) -> Verdict:
    """Whether an address is in a network, which may have any mask (``0.0.0.3/0.0.0.15``)."""
    text, _, mask = where.partition("/")
    try:
        found, network = ipaddress.ip_address(address), ipaddress.ip_address(text)
        if found.version != network.version:
            return False
        if "." in mask or ":" in mask:
            bits = int(ipaddress.ip_address(mask))
        else:
            length = int(mask) if mask else found.max_prefixlen
            bits = ((1 << length) - 1) << (found.max_prefixlen - length)
    except ValueError:
        return None
    return int(found) & bits == int(network) & bits


def _link(pattern: str, link: str) -> bool:
    return link.startswith(pattern[:-1]) if pattern.endswith("+") else link == pattern


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """The options of a match: whether inverted, the name, the values."""
    name, values, is_not, is_next_not = "", list[str](), False, False
    for word in words:
        if word == "!":
            is_next_not = True
        elif word.startswith("--"):
            if name:
                yield is_not, name, values
            name, values, is_not, is_next_not = word, [], is_next_not, False
        elif is_next_not:  # the old place of the word
            values.append(word)
            is_not, is_next_not = True, False
        else:
            values.append(word)
    if name:
        yield is_not, name, values


def _option(
    match: str, option: str, values: list[str], packet: Packet, mark: int, set_of: SetOf
) -> Verdict:
    value = values[0] if values else ""
    if match in _ALWAYS:
        return True
    if option in _PORT_OPTIONS:
        return _ports(option, value, packet)
    if option in _STATES:
        return "NEW" in value.split(",")
    if match == "mark" and option == "--mark":
        return _mark(value, mark)
    if match == "set" and option == "--match-set" and len(values) > 1:
        return _member(value, values[1], packet, set_of)
    if match == "addrtype" and option in ("--dst-type", "--src-type"):
        is_local = packet.is_local_target if option == "--dst-type" else packet.is_local_source
        return _address_type(value, is_local)
    if match == "iprange" and option in ("--src-range", "--dst-range"):
        return _range(packet.source if option == "--src-range" else packet.destination, value)
    if match in ("icmp", "icmp6"):
        return False
    if match == "ipvs" and not packet.by_ipvs:
        return False
    if match == "ipvs" and (option, value) in _OF_IPVS:
        return True
    if option == "--tcp-flags" and len(values) > 1:
        return packet.protocol == "tcp" and _flags(values[0]) & {"SYN"} == _flags(values[1])
    return None


def _flags(text: str) -> frozenset[str]:
    return _FLAGS if text == "ALL" else frozenset(text.split(",")) - {"NONE"}


def _ports(option: str, value: str, packet: Packet) -> Verdict:
    if option in ("--sport", "--sports"):
        return None  # whatever the client takes
    found = any(_in_range(packet.port, each) for each in value.split(","))
    return None if option == "--ports" and not found else found


def _in_range(port: int, text: str) -> bool:
    first, colon, last = text.partition(":")
    try:
        low = int(first or 0)
        return low <= port <= (int(last or 65535) if colon else low)
    except ValueError:  # a name of /etc/services: iptables-save prints numbers
        return False


def _mark(value: str, mark: int) -> Verdict:
    wanted, _, mask = value.partition("/")
    try:
        bits = int(mask, 0) if mask else 0xFFFFFFFF
        return mark & bits == int(wanted, 0) & bits
    except ValueError:
        return None


def _address_type(value: str, is_local: Verdict) -> Verdict:
    kinds = value.split(",")
    if is_local is None:
        return None
    if is_local:
        return "LOCAL" in kinds
    # Ends of a flow are no multicast or broadcast addresses.
    return "UNICAST" in kinds


def _range(address: str, value: str) -> Verdict:
    first, _, last = value.partition("-")
    try:
        low, found, high = map(ipaddress.ip_address, (first, address, last or first))
    except ValueError:
        return None
    return low.version == found.version and int(low) <= int(found) <= int(high)


def _member(name: str, sides: str, packet: Packet, set_of: SetOf) -> Verdict:
    state = set_of(name)
    return None if state is None else member(state, sides, packet)


def member(state: SetState, sides: str, packet: Packet) -> Verdict:
    """Whether a set matches a packet; ``sides`` as of ``--match-set``: ``dst,dst``."""
    kinds = state.spec.type.partition(":")[2].split(",")
    directions = sides.split(",")
    if not state.spec.type.startswith("hash:") or len(directions) < len(kinds):
        return None
    if any(kind == "port" and side != "dst" for kind, side in zip(kinds, directions, strict=False)):
        return None
    parts = [_part(kind, side, packet) for kind, side in zip(kinds, directions, strict=False)]
    return contains(state, parts)


def _part(kind: str, side: str, packet: Packet) -> str:
    if kind == "port":
        return f"{packet.protocol}:{packet.port}"
    return packet.source if side == "src" else packet.destination


def contains(state: SetState, parts: Sequence[str]) -> Verdict:
    """Whether a set has these (addresses, ``tcp:80``), one for each of the dimensions of its type.

    Of several networks the longest that matches decides, as in the kernel: it may be ``nomatch``.
    """
    kinds = state.spec.type.partition(":")[2].split(",")
    if any(kind not in ("ip", "net", "port") for kind in kinds):
        return None
    if "net" not in kinds:
        return ",".join(parts) in state.entries
    best, found = -1, False
    for entry in state.entries:
        element, _, flags = entry.partition(" ")
        length = _matched(element.split(","), kinds, parts)
        if length > best:
            best, found = length, "nomatch" not in flags.split()
    return found


def _matched(element: Sequence[str], kinds: Sequence[str], parts: Sequence[str]) -> int:
    """How many bits of networks match; -1 where the entry does not."""
    if len(element) != len(parts):
        return -1
    bits = 0
    for text, kind, part in zip(element, kinds, parts, strict=True):
        if kind != "net":
            if text != part:
                return -1
            continue
        if not is_inside(part, text):
            return -1
        bits += int(text.partition("/")[2] or 128)
    return bits
