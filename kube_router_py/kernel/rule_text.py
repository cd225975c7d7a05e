"""iptables rules as text: reading what iptables-save prints, and telling equal rules apart.

The kernel stores a rule as structures and iptables-save spells it anew: long options become short,
addresses get their prefix length, matches that a protocol implies are named, defaults are dropped
or added. ``canonical`` brings both spellings to one, as a tuple of groups: general options, then
each match with its options, then the target. The order of matches is not compared, for the variants
of iptables-save differ in it and all matches of a rule have to hold anyway.

Only for comparing; a rule is sent to the kernel in its author's words.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Group = tuple[str, ...]
Rule = tuple[Group, ...]

_SHORT = {
    "--protocol": "-p",
    "--proto": "-p",
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--match": "-m",
    "--jump": "-j",
    "--goto": "-g",
    "--fragment": "-f",
    "--destination-port": "--dport",
    "--source-port": "--sport",
    "--destination-ports": "--dports",
    "--source-ports": "--sports",
}
_GENERAL = ("-s", "-d", "-i", "-o", "-p", "-f")
_PROTOCOLS = {
    "6": "tcp",
    "17": "udp",
    "1": "icmp",
    "132": "sctp",
    "58": "ipv6-icmp",
    "icmpv6": "ipv6-icmp",
}
# The match that carries a protocol's options, where it is not named like the protocol.
_PROTOCOL_MATCH = {"ipv6-icmp": "icmp6"}
_PROTOCOL_MATCHES = ("-m tcp", "-m udp", "-m sctp", "-m icmp", "-m icmp6")
_UNITS = {"/second": "/sec", "/s": "/sec", "/minute": "/min", "/m": "/min", "/h": "/hour"}
_ICMP_TYPES = {
    "echo-reply": "0",
    "pong": "0",
    "destination-unreachable": "3",
    "echo-request": "8",
    "ping": "8",
    "time-exceeded": "11",
    "ttl-exceeded": "11",
}
_ICMPV6_TYPES = {
    "destination-unreachable": "1",
    "packet-too-big": "2",
    "time-exceeded": "3",
    "ttl-exceeded": "3",
    "echo-request": "128",
    "ping": "128",
    "echo-reply": "129",
    "pong": "129",
    "router-solicitation": "133",
    "router-advertisement": "134",
    "neighbour-solicitation": "135",
    "neighbor-solicitation": "135",
    "neighbour-advertisement": "136",
    "neighbor-advertisement": "136",
}
_UNORDERED = ("--ctstate", "--state", "--tcp-flags", "--dports", "--sports", "--ports")
_DEFAULTS = {
    "-m limit": {("--limit-burst", "5"), ("--limit", "3/hour")},
    "-j LOG": {("--log-level", "4")},
    "-j NFLOG": {("--nflog-group", "0")},
    "-j REJECT": {
        ("--reject-with", "icmp-port-unreachable"),
        ("--reject-with", "icmp6-port-unreachable"),
    },
}


def parse_table(text: str, table: str) -> dict[str, tuple[str, ...]]:
    """The chains of one table in the output of iptables-save, with their rules as printed.

    Empty where the output does not hold the table.
    """
    chains: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("*"):
            inside = line[1:].strip() == table
        elif not inside or line.startswith("#"):
            continue
        elif line.startswith(":"):
            chains.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            _, chain, *rest = line.split(" ", 2)
            chains.setdefault(chain, []).append(rest[0] if rest else "")
    return {name: tuple(rules) for name, rules in chains.items()}


def words(text: str) -> list[str]:
    """A rule split as iptables-restore splits it: by double quotes and backslashes inside them."""
    found: list[str] = []
    current: list[str] = []
    quoted = started = escaped = False
    for character in text:
        if escaped:
            current.append(character)
            escaped = False
        elif character == "\\" and quoted:
            escaped = True
        elif character == '"':
            quoted, started = not quoted, True
        elif character.isspace() and not quoted:
            if started:
                found.append("".join(current))
                current, started = [], False
        else:
            current.append(character)
            started = True
    if started:
        found.append("".join(current))
    return found


def target(rule: Rule) -> str:
    """The target or chain a rule leads to, or an empty string."""
    last = rule[-1] if rule else ()
    return last[1] if len(last) > 1 and last[0] in ("-j", "-g") else ""


@lru_cache(maxsize=16384)
def canonical(text: str) -> Rule:
    """A rule (text after ``-A CHAIN ``) in the form in which equal rules are equal."""
    general, matches, goal = _groups(_options(words(text)))
    protocol = next((option[-1] for option in general if "-p" in option[:2]), "")
    ordered = sorted(general, key=lambda option: _GENERAL.index(option[option[0] == "!"]))
    result: list[Group] = [option for option in ordered if option[1:] not in _ANYWHERE]
    # A match on a protocol that asks for nothing more says no more than -p.
    result += sorted(
        _finish(name, options, protocol)
        for name, options in matches
        if options or name not in _PROTOCOL_MATCHES
    )
    if goal:
        result.append(_finish(goal[0], goal[1], protocol))
    return tuple(result)


_ANYWHERE = (("0.0.0.0/0",), ("::/0",))
_Matches = list[tuple[str, list[Group]]]


def _options(tokens: Iterable[str]) -> list[Group]:
    """Each option with its arguments, and with the ``!`` before it, if any."""
    found: list[list[str]] = []
    negated = False
    for token in tokens:
        if token == "!":
            negated = True
        elif token.startswith("-") and len(token) > 1 and not token[1:].isdigit():
            name, equals, value = token.partition("=")
            name = _SHORT.get(name, name)
            found.append(["!", name] if negated else [name])
            negated = False
            if equals and token.startswith("--"):
                found[-1].append(value)
        elif found:
            found[-1].append(token)
        else:
            found.append([token])
    return [tuple(option) for option in found]


def _groups(options: list[Group]) -> tuple[list[Group], _Matches, tuple[str, list[Group]] | None]:
    general: list[Group] = []
    matches: _Matches = []
    goal: tuple[str, list[Group]] | None = None
    current: list[Group] | None = None
    protocol = ""
    for option in options:
        name = option[option[0] == "!" and len(option) > 1]
        if name in _GENERAL:
            general.append(_general(option))
            if name == "-p":
                protocol = general[-1][-1]
        elif name == "-m" and len(option) > 1:
            match = _PROTOCOL_MATCH.get(_PROTOCOLS.get(option[1], option[1]), option[1])
            current = []
            matches.append((f"-m {match}", current))
        elif name in ("-j", "-g") and len(option) > 1:
            current = []
            goal = (f"{name} {option[1]}", current)
        else:
            if current is None:  # an option of the match that the protocol implies
                current = []
                matches.append((f"-m {_PROTOCOL_MATCH.get(protocol, protocol)}", current))
            current.append(option)
    return general, matches, goal


def _general(option: Group) -> Group:
    name = option[option[0] == "!"]
    value = option[-1]
    if name in ("-s", "-d"):
        return (*option[:-1], _masked(value))
    if name == "-p":
        return (*option[:-1], _PROTOCOLS.get(value.lower(), value.lower()))
    return option


def _masked(text: str) -> str:
    """An address with its mask, as a prefix length where the mask is one (ip_network would take
    0.0.0.15 for a host mask, which iptables does not know)."""
    address, _, mask = text.partition("/")
    try:
        if "." not in mask and ":" not in mask:
            return str(ipaddress.ip_network(text, strict=False))
        bits = int(ipaddress.ip_address(mask))
        found = ipaddress.ip_address(address)
        kept = type(found)(int(found) & bits)
    except ValueError:
        return text
    inverted = ~bits & ((1 << found.max_prefixlen) - 1)
    if inverted & (inverted + 1):
        return f"{kept}/{type(found)(bits)}"
    return f"{kept}/{found.max_prefixlen - inverted.bit_length()}"


def _finish(name: str, options: list[Group], protocol: str) -> Group:
    """One match or target with its options, spelt out and sorted, as a flat tuple."""
    dropped = _DEFAULTS.get(name, set())
    kept = sorted(spelt for spelt in map(_option, options) if spelt not in dropped)
    if protocol == "ipv6-icmp" or name == "-m icmp6":
        kept = [_icmp(option, _ICMPV6_TYPES) for option in kept]
    else:
        kept = [_icmp(option, _ICMP_TYPES) for option in kept]
    return (*name.split(" ", 1), *(word for option in kept for word in option))


def _icmp(option: Group, types: dict[str, str]) -> Group:
    if option[-2:-1] in (("--icmp-type",), ("--icmpv6-type",)):
        return (*option[:-1], types.get(option[-1], option[-1]))
    return option


def _option(option: Group) -> Group:
    name = option[option[0] == "!" and len(option) > 1]
    value = option[-1]
    if name in _UNORDERED:
        start = option.index(name) + 1
        return (*option[:start], *(",".join(sorted(v.split(","))) for v in option[start:]))
    if name == "--limit":
        for long, short in _UNITS.items():
            if value.endswith(long):
                return (*option[:-1], value.removesuffix(long) + short)
    if name in ("--mark", "--set-mark", "--set-xmark", "--or-mark", "--and-mark", "--xor-mark"):
        return _mark(option, name, value)
    return option


def _mark(option: Group, name: str, text: str) -> Group:
    """Marks in hexadecimal with a mask; those that are set, by their one general operation."""
    first, _, second = text.partition("/")
    try:
        value = int(first, 0)
        mask = int(second, 0) if second else 0xFFFFFFFF
    except ValueError:
        return option
    if name == "--set-mark":
        mask |= value
    elif name == "--or-mark":
        mask = value
    elif name == "--xor-mark":
        mask = 0
    elif name == "--and-mark":
        value, mask = 0, ~value & 0xFFFFFFFF
    if name != "--mark":
        name = "--set-xmark"
    return (*(("!",) if option[0] == "!" else ()), name, f"{value:#x}/{mask:#x}")
