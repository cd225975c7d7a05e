"""Rules of nf_tables that are not iptables', as ``nft list ruleset`` prints them (nft(8)). Pure.

Only what refuses packets, or sends them elsewhere, is looked for, in chains that a hook leads to.
What a rule asks beside addresses, protocols, ports, links and new connections is not to be told,
nor what a map or a concatenation leads to. Behind a rule that may have let the packet pass or leave
a chain nothing is sure.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from kube_router_py.flow.rule_match import Packet, Verdict, all_of, is_inside, is_protocol

_TABLE = re.compile(r"table (\S+) (\S+) \{")
_CHAIN = re.compile(r"chain (\S+) \{")
_HOOK = re.compile(r"type \S+ hook (\w+) .*?policy (\w+);|type \S+ hook (\w+) ")
_TAKES = re.compile(
    r"(?:^| )(drop|reject|queue|dnat|redirect|tproxy|synproxy|snat|masquerade)(?=[ ,]|$)"
)
# Whether another program has translated the packet before is not told here.
_SOURCES = ("snat", "masquerade")
_LEADS = re.compile(r"(?:^| )(jump|goto) ([^\s,;]+)")
_LEAVES = re.compile(r"(?:^| )(accept|return)(?=[ ,]|$)")
_QUOTED = re.compile(r'(?:comment|prefix) "(?:[^"\\]|\\.)*"')
_COMMENT = re.compile(r'comment "(?:[^"\\]|\\.)*"')
# Statements that change nothing for the question whether a rule matches.
_NEUTRAL = re.compile(
    r"counter packets \d+ bytes \d+|counter|log(?: level \w+| group \d+| flags \w+)*"
    r"|# handle \d+|(?:to|num) \S+"
)
_WITH = re.compile(r"reject with \w+(?: type)? \S+")
_VALUE = r"(!= )?(\{[^}]*\}|\S+)"
_ADDRESS = re.compile(rf"(ip6?) (saddr|daddr) {_VALUE}")
_PORT = re.compile(rf"(tcp|udp|sctp|th) (dport|sport) {_VALUE}")
_PROTOCOL = re.compile(rf"(?:meta l4proto|ip protocol|ip6 nexthdr) {_VALUE}")
_LINK = re.compile(rf"(iif|oif)(?:name)? {_VALUE}")
_STATE = re.compile(rf"ct state {_VALUE}")
_STATE_MAP = re.compile(r"ct state vmap \{([^}]*)\}")
# Its values are called like statements.
_STATUS = re.compile(r"ct status (?:!= )?(?:\{[^}]*\}|\S+)")
# Of these a part looks like another match.
_LOOKS_UP = re.compile(r"(?:^| )(?:fib |\S+ vmap |\. )")
_NFPROTO = re.compile(rf"meta nfproto {_VALUE}")
_ICMP = re.compile(r"icmp(?:v6)? \S+ \S+")
_FAMILIES = {"ip": "inet", "ip6": "inet6"}
# Of other layers: frames, of which those between ports of one bridge may be the packet's.
_NO_PACKETS = ("arp", "netdev")
_BRIDGE = "bridge"
_MOST_RULES = 5_000
_DEEPEST = 32


class NftChain(Struct):
    """A chain with its rules as printed; ``hook`` and ``policy`` are empty in one without."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = ""
    rules: list[str] = field(default_factory=list)


class NftRule(Struct, frozen=True):
    """A rule that takes a packet; ``is_sure`` is False where it may."""

    where: str
    is_sure: bool


def parse_ruleset(text: str) -> list[NftChain]:
    """All chains of a ruleset."""
    found: list[NftChain] = []
    table: tuple[str, str] | None = None
    chain: NftChain | None = None
    for line in text.splitlines():
        words = line.strip()
        if (match := _TABLE.match(line)) is not None:
            table, chain = (match[1], match[2]), None
        elif table is None or not words or words.startswith("#"):
            continue
        elif (match := _CHAIN.match(words)) is not None:
            chain = NftChain(*table, match[1])
            found.append(chain)
        elif words == "}":
            chain = None
        elif chain is not None and (match := _HOOK.match(words)) is not None:
            chain.hook, chain.policy = match[1] or match[3], match[2] or "accept"
        elif chain is not None and not _COMMENT.fullmatch(words):
            chain.rules.append(words)
    return found


def refusing(
    chains: Sequence[NftChain], hook: str, packet: Packet, skip: frozenset[tuple[str, str]]
) -> Iterator[NftRule]:
    """What may take a packet at a hook (``forward``); tables of ``skip`` (family, name) are read
    elsewhere. Chains of all tables at one hook have a say, whatever another one accepts."""
    for base in chains:
        if base.hook != hook or (base.family, base.table) in skip:
            continue
        if _FAMILIES.get(base.family, packet.family) != packet.family:
            continue
        if base.family in _NO_PACKETS:
            continue
        by_name = {
            each.name: each
            for each in chains
            if (each.family, each.table) == (base.family, base.table)
        }
        yield from _Walk(by_name, packet).base(base)


class _Walk:
    def __init__(self, chains: dict[str, NftChain], packet: Packet) -> None:
        self._chains, self._packet = chains, packet
        self._left = _MOST_RULES
        self._found: list[NftRule] = []
        # A rule that may match may have accepted the packet.
        self._is_doubtful = False

    def base(self, chain: NftChain) -> list[NftRule]:
        ended = self._enter(chain, is_sure=chain.family != _BRIDGE, depth=0)
        if not ended and chain.policy == "drop":
            where = f"the policy of {_name(chain)} is drop"
            is_sure = chain.family != _BRIDGE and not self._is_doubtful
            self._found.append(NftRule(where, is_sure=is_sure))
        return self._found

    def _enter(self, chain: NftChain, *, is_sure: bool, depth: int) -> bool:
        """Whether a packet that gets here is accepted for good."""
        may_have_left = False
        for number, text in enumerate(chain.rules, 1):
            self._left -= 1
            if self._left < 0 or depth > _DEEPEST:
                return False
            rule = _STATUS.sub("ct status", _QUOTED.sub("", text))
            verdict = rule_matches(rule, self._packet)
            if verdict is False:
                continue
            where = f"rule {number} of {_name(chain)}: {text}"
            said = self._do(where, rule, verdict, depth, is_sure=is_sure and not may_have_left)
            if verdict is True:
                self._is_doubtful |= "accept" in said and may_have_left
                if said:
                    return "accept" in said and not may_have_left
            self._is_doubtful |= "accept" in said
            may_have_left |= "return" in said
        return False

    def _do(
        self, where: str, rule: str, verdict: Verdict, depth: int, *, is_sure: bool
    ) -> set[str]:
        """What a rule may come to, beside what takes the packet: ``accept``, ``return``."""
        is_sure = is_sure and verdict is True
        if (takes := _TAKES.search(rule)) is not None:
            is_sure = is_sure and takes[1] not in _SOURCES and not self._is_doubtful
            self._found.append(NftRule(where, is_sure=is_sure))
        said = {each[1] for each in _LEAVES.finditer(rule)}
        for leads in _LEADS.finditer(rule):
            target = self._chains.get(leads[2])
            if target is not None and self._enter(target, is_sure=is_sure, depth=depth + 1):
                said.add("accept")
            elif leads[1] == "goto":
                said.add("return")
        return said


def _name(chain: NftChain) -> str:
    return f"chain {chain.name} in nft table {chain.family} {chain.table}"


def rule_matches(rule: str, packet: Packet) -> Verdict:
    """Whether a rule, without quoted texts of its own, matches."""
    verdicts: list[Verdict] = []

    def take(pattern: re.Pattern[str], text: str) -> str:
        verdicts.extend(_verdict(pattern, each, packet) for each in pattern.finditer(text))
        return pattern.sub(" ", text)

    left = _WITH.sub("reject", rule)
    for states in _STATE_MAP.findall(left):
        if "new" not in (each.partition(":")[0].strip() for each in states.split(",")):
            return False
    if (found := _LOOKS_UP.search(left)) is not None:
        left = left[: found.start()]
        verdicts.append(None)
    for pattern in (_ICMP, _ADDRESS, _PORT, _PROTOCOL, _LINK, _STATE, _NFPROTO):
        left = take(pattern, left)
    left = _NEUTRAL.sub(" ", left)
    for pattern in (_TAKES, _LEADS, _LEAVES):
        left = pattern.sub(" ", left)
    if left.split():
        verdicts.append(None)
    return all_of(iter(verdicts))


def _verdict(pattern: re.Pattern[str], match: re.Match[str], packet: Packet) -> Verdict:
    if pattern is _ICMP:
        return False
    is_not, values = match[match.lastindex - 1 if match.lastindex else 0], _values(match)
    if pattern is _ADDRESS:
        if _FAMILIES[match[1]] != packet.family:
            return False
        address = packet.source if match[2] == "saddr" else packet.destination
        found = _any(_address(address, each) for each in values)
    elif pattern is _PORT:
        if match[1] not in ("th", packet.protocol):
            return False
        found = None if match[2] == "sport" else _any(_port(packet.port, each) for each in values)
    elif pattern is _PROTOCOL:
        found = _any(
            None if each.startswith("@") else is_protocol(packet.protocol, each) for each in values
        )
    elif pattern is _LINK:
        is_in = match[1] == "iif"
        link, is_known = (
            (packet.in_link, packet.is_in_known)
            if is_in
            else (packet.out_link, packet.is_out_known)
        )
        found = _any(_link(link, each) for each in values) if is_known else None
    elif pattern is _STATE:
        found = None if "vmap" in match[0] or ":" in match[0] else "new" in values
    else:
        found = ("ipv4" if packet.family == "inet" else "ipv6") in values
    return found if found is None or not is_not else not found


def _values(match: re.Match[str]) -> list[str]:
    text = match[match.lastindex or 0]
    return [each.strip().strip('"') for each in text.strip("{}").split(",")]


def _any(verdicts: Iterator[Verdict]) -> Verdict:
    found: Verdict = False
    for verdict in verdicts:
        if verdict:
            return True
        if verdict is None:
            found = None
    return found


def _address(address: str, value: str) -> Verdict:
    return None if value.startswith("@") or "-" in value else is_inside(address, value)


def _port(port: int, value: str) -> Verdict:
    first, _, last = value.partition("-")
    try:
        return int(first) <= port <= int(last or first)
    except ValueError:  # a set, or a name
        return None


def _link(link: str, value: str) -> Verdict:
    if value.startswith("@"):
        return None
    return link.startswith(value[:-1]) if value.endswith("*") else link == value
