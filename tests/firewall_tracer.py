"""Walks packets through what ``render`` prints: restore text and set entries, nothing else.

Shares no code with the agent. What iptables-restore(8), ipset(8) or the kernel would refuse, and
whatever is not known here, raises TracerError: a verdict is never a guess. Sources: iptables(8),
iptables-extensions(8), ipset(8), net/ipv4/netfilter/ip_tables.c (goto and return).
"""

import ipaddress
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HOOKS = ("INPUT", "FORWARD", "OUTPUT")
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58}
WITH_PORTS = (6, 17, 132)
# The kernel's limits, without the terminating zero.
CHAIN_NAME_MAX, SET_NAME_MAX, PREFIX_MAX, COMMENT_MAX = 28, 31, 63, 255


class TracerError(Exception):
    """The text or the sets would be refused, or are beyond what is understood here."""


def need(condition: object, complaint: str) -> None:
    if not condition:
        raise TracerError(complaint)


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection where a hook sees it. ``sport``/``dport`` are read for TCP,
    UDP and SCTP, ``icmp`` (type, code) for ICMP; ``src_local``: an address of this node."""

    hook: str
    src: Address
    dst: Address
    protocol: int
    sport: int = 0
    dport: int = 0
    icmp: tuple[int, int] = (0, 0)
    state: str = "NEW"
    mark: int = 0
    src_local: bool = False
    dst_local: bool = False
    bridged: bool = False


@dataclass
class Trace:
    """``verdict`` is ACCEPT, DROP or REJECT; ``path`` the rules that matched; ``logs`` the NFLOG
    prefixes on the way; ``visited`` how many rules were looked at."""

    verdict: str = ""
    path: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    mark: int = 0
    visited: int = 0


Match = Callable[[Packet], bool]


class Set:
    """One set as ipset(8) would hold it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.name, self.type = str(document["name"]), str(document["type"])
        self.family, entries = str(document["family"]), list(document["entries"])
        need(0 < len(self.name) <= SET_NAME_MAX, f"set name {self.name!r} is too long")
        need(self.family in ("inet", "inet6"), f"set {self.name}: family {self.family}")
        need(len(entries) <= int(document["maxelem"]), f"set {self.name} is full")
        need(len(set(entries)) == len(entries), f"set {self.name} has an entry twice")
        self.bits = 32 if self.family == "inet" else 128
        self.hosts: set[Address] = set()
        self.places: set[tuple[Address, int, int]] = set()
        self.nets: dict[tuple[int, int, int], dict[int, bool]] = {}
        add = {
            "hash:ip": self._host,
            "hash:ip,port": self._place,
            "hash:net": self._net,
            "hash:net,port": self._net_place,
        }
        need(self.type in add, f"set {self.name}: type {self.type}")
        for entry in entries:
            add[self.type](entry)
        self.dimension = 2 if self.type.endswith(",port") else 1

    def _address(self, text: str) -> Address:
        try:
            found = ipaddress.ip_address(text)
        except ValueError as error:
            raise TracerError(f"set {self.name}: {error}") from error
        need(found.max_prefixlen == self.bits, f"set {self.name}: {text} is of the other family")
        need(int(found) != 0, f"set {self.name}: the null address cannot be stored")
        return found

    def _host(self, entry: str) -> None:
        self.hosts.add(self._address(entry))

    def _split(self, entry: str) -> tuple[str, int, int]:
        address, comma, rest = entry.partition(",")
        protocol, colon, port = rest.partition(":")
        need(comma and colon and port.isdigit(), f"set {self.name}: entry {entry!r}")
        need(protocol in ("tcp", "udp", "sctp"), f"set {self.name}: protocol of {entry!r}")
        need(0 <= int(port) <= 65535, f"set {self.name}: port of {entry!r}")
        return address, PROTOCOLS[protocol], int(port)

    def _place(self, entry: str) -> None:
        address, protocol, port = self._split(entry)
        self.places.add((self._address(address), protocol, port))

    def _net_place(self, entry: str) -> None:
        self._net(*self._split(entry))

    def _net(self, entry: str, protocol: int = 0, port: int = 0) -> None:
        entry, _, flag = entry.partition(" ")
        need(flag in ("", "nomatch"), f"set {self.name}: flag {flag!r} of {entry}")
        try:
            found = ipaddress.ip_network(entry)  # strict: ipset prints no host bits
        except ValueError as error:
            raise TracerError(f"set {self.name}: {error}") from error
        need(found.max_prefixlen == self.bits, f"set {self.name}: {entry} is of the other family")
        need(found.prefixlen > 0, f"set {self.name}: {self.type} takes no /0")
        key = (found.prefixlen, protocol, port)
        of_length, value = self.nets.setdefault(key, {}), int(found.network_address)
        need(value not in of_length, f"set {self.name} has {entry} twice")
        of_length[value] = not flag

    def holds(self, packet: Packet, directions: list[str]) -> bool:
        address = packet.src if directions[0] == "src" else packet.dst
        if self.type == "hash:ip":
            return address in self.hosts
        place = (0, 0)
        if self.dimension == 2:
            place = packet.protocol, packet.sport if directions[1] == "src" else packet.dport
        if self.type == "hash:ip,port":
            return (address, *place) in self.places
        value = int(address)
        for (length, *where), found in sorted(self.nets.items(), reverse=True):
            network = value >> self.bits - length << self.bits - length
            if tuple(where) == place and network in found:
                return found[network]  # the longest prefix decides
        return False


@dataclass
class Rule:
    text: str
    matches: list[Match] = field(default_factory=list)
    target: str = ""
    goto: bool = False
    limited: bool = False
    prefix: str = ""
    mark: tuple[int, int] = (0, 0)


class RuleParser:
    """One rule, option by option, as iptables reads it."""

    def __init__(self, words: list[str], bits: int, sets: Mapping[str, Set]) -> None:
        self.words, self.bits, self.sets = words, bits, sets
        self.rule = Rule(shlex.join(words))
        self.loaded: set[str] = set()
        self.protocol: int | None = None

    def parse(self) -> Rule:
        while self.words:
            negated = self.words[0] == "!"
            if negated:
                self.pop()
            option = self.pop()
            known = {
                "-s": self.address, "-d": self.address, "-p": self.on_protocol, "-m": self.module,
                "--sport": self.ports, "--dport": self.ports, "--match-set": self.match_set,
                "--ctstate": self.states, "--mark": self.on_mark, "--src-type": self.local,
                "--dst-type": self.local, "--physdev-is-bridged": self.physdev,
                "--icmp-type": self.icmp, "--icmpv6-type": self.icmp,
            }  # fmt: skip
            plain = {
                "-j": self.jump, "-g": self.jump, "--limit": self.limit,
                "--limit-burst": self.limit, "--comment": self.comment,
                "--reject-with": self.reject, "--nflog-group": self.nflog,
                "--nflog-prefix": self.nflog, "--set-xmark": self.set_mark,
            }  # fmt: skip
            if option in known:
                match = known[option](option)
                if match is not None:
                    self.rule.matches.append(_inverted(match) if negated else match)
                    continue
            else:
                need(option in plain, f"option {option} is not known: {self.rule.text}")
                plain[option](option)
            need(not negated, f"{option} cannot be negated: {self.rule.text}")
        rule = self.rule
        needs = {"NFLOG": rule.prefix, "MARK": rule.mark != (0, 0)}.get(rule.target, True)
        need(needs, f"{rule.target} lacks its options: {rule.text}")
        # What a limit lets through depends on the past; no verdict may.
        harmless = not rule.limited or rule.target == "NFLOG"
        need(harmless, f"a limit decides a verdict: {rule.text}")
        return rule

    def pop(self) -> str:
        need(self.words, f"the rule ends too early: {self.rule.text}")
        return self.words.pop(0)

    def needs(self, *modules: str) -> None:
        need(self.loaded & set(modules), f"none of {modules} is loaded: {self.rule.text}")

    def address(self, option: str) -> Match:
        text, slash, mask_text = self.pop().partition("/")
        full = (1 << self.bits) - 1
        value = self._number(text)
        if not slash:
            mask = full
        elif mask_text.isdigit():
            need(int(mask_text) <= self.bits, f"mask of {self.rule.text}")
            mask = full >> (self.bits - int(mask_text)) << (self.bits - int(mask_text))
        else:
            mask = self._number(mask_text)
        if option == "-s":
            return lambda packet: int(packet.src) & mask == value & mask
        return lambda packet: int(packet.dst) & mask == value & mask

    def _number(self, text: str) -> int:
        try:
            found = ipaddress.ip_address(text)
        except ValueError as error:
            raise TracerError(f"{error}: {self.rule.text}") from error
        need(found.max_prefixlen == self.bits, f"the other family: {self.rule.text}")
        return int(found)

    def on_protocol(self, _: str) -> Match:
        text = self.pop()
        number = int(text) if text.isdigit() else PROTOCOLS.get(text, 0)
        need(0 < number < 256, f"protocol {text}: {self.rule.text}")
        need((number == 58) <= (self.bits == 128), f"ICMPv6 in IPv4: {self.rule.text}")
        need((number == 1) <= (self.bits == 32), f"ICMP in IPv6: {self.rule.text}")
        self.protocol = number
        return lambda packet: packet.protocol == number

    def module(self, _: str) -> None:
        name = self.pop()
        protocols = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58}
        others = {"set", "conntrack", "mark", "addrtype", "limit", "physdev", "comment"}
        if name in protocols:
            need(self.protocol == protocols[name], f"-m {name} without -p: {self.rule.text}")
        else:
            need(name in others, f"module {name} is not known: {self.rule.text}")
        self.loaded.add(name)

    def ports(self, option: str) -> Match:
        # With -p, iptables loads the module of that name by itself.
        need(self.protocol in WITH_PORTS, f"ports without protocol: {self.rule.text}")
        low_text, colon, high_text = self.pop().partition(":")
        need(low_text.isdigit() and (not colon or high_text.isdigit()), self.rule.text)
        low, high = int(low_text), int(high_text or low_text)
        need(0 <= low <= high <= 65535, f"port range: {self.rule.text}")
        if option == "--sport":
            return lambda packet: low <= packet.sport <= high
        return lambda packet: low <= packet.dport <= high

    def match_set(self, _: str) -> Match:
        self.needs("set")
        name, directions = self.pop(), self.pop().split(",")
        found = self.sets.get(name)
        if found is None:
            raise TracerError(f"there is no set {name}: {self.rule.text}")
        need(found.bits == self.bits, f"set of the other family: {self.rule.text}")
        need(len(directions) == found.dimension, f"dimensions: {self.rule.text}")
        need(set(directions) <= {"src", "dst"}, f"directions: {self.rule.text}")
        return lambda packet: found.holds(packet, directions)

    def states(self, _: str) -> Match:
        self.needs("conntrack")
        names = set(self.pop().split(","))
        need(names <= {"NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"}, self.rule.text)
        return lambda packet: packet.state in names

    def on_mark(self, _: str) -> Match:
        self.needs("mark")
        value, mask = _value_and_mask(self.pop())
        return lambda packet: packet.mark & mask == value

    def local(self, option: str) -> Match:
        self.needs("addrtype")
        need(self.pop() == "LOCAL", f"only LOCAL is known: {self.rule.text}")
        if option == "--src-type":
            return lambda packet: packet.src_local
        return lambda packet: packet.dst_local

    def physdev(self, _: str) -> Match:
        self.needs("physdev")
        return lambda packet: packet.bridged

    def icmp(self, option: str) -> Match:
        wanted = 1 if option == "--icmp-type" else 58
        need(self.protocol == wanted, f"{option} without its protocol: {self.rule.text}")
        kind, slash, code = self.pop().partition("/")
        need(kind.isdigit() and (not slash or code.isdigit()), f"ICMP type: {self.rule.text}")
        return lambda packet: (
            packet.icmp[0] == int(kind) and (not slash or packet.icmp[1] == int(code))
        )

    def limit(self, _: str) -> None:
        self.needs("limit")
        self.pop()
        self.rule.limited = True

    def comment(self, _: str) -> None:
        self.needs("comment")
        need(len(self.pop().encode()) <= COMMENT_MAX, f"comment too long: {self.rule.text}")

    def jump(self, option: str) -> None:
        need(not self.rule.target, f"two targets: {self.rule.text}")
        self.rule.target, self.rule.goto = self.pop(), option == "-g"

    def reject(self, _: str) -> None:
        need(self.rule.target == "REJECT", self.rule.text)
        answer = self.pop()
        prefix = "icmp6-" if self.bits == 128 else "icmp-"
        known = {prefix + "port-unreachable", prefix + "adm-prohibited"}
        need(answer in known | {"icmp-admin-prohibited"}, f"{answer}: {self.rule.text}")
        need(answer.startswith(prefix), f"answer of the other family: {self.rule.text}")

    def nflog(self, option: str) -> None:
        need(self.rule.target == "NFLOG", self.rule.text)
        value = self.pop()
        if option == "--nflog-prefix":
            need(0 < len(value.encode()) <= PREFIX_MAX, f"prefix too long: {self.rule.text}")
            self.rule.prefix = value
        else:
            need(value.isdigit() and int(value) <= 65535, self.rule.text)

    def set_mark(self, _: str) -> None:
        need(self.rule.target == "MARK", self.rule.text)
        value, mask = _value_and_mask(self.pop())
        self.rule.mark = (value, mask)


def _inverted(match: Match) -> Match:
    return lambda packet: not match(packet)


def _value_and_mask(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else 0xFFFFFFFF


TARGETS = frozenset({"", "ACCEPT", "DROP", "REJECT", "RETURN", "NFLOG", "MARK"})


class Filter:
    """Table ``filter`` of one family after loading a text into an empty namespace."""

    def __init__(self, text: str, bits: int, sets: Mapping[str, Set]) -> None:
        self.bits = bits
        self.chains: dict[str, list[Rule]] = {hook: [] for hook in HOOKS}
        self._load(text.splitlines(), sets)
        self._check()

    def _load(self, lines: Iterable[str], sets: Mapping[str, Set]) -> None:
        inside = False
        for line in lines:
            if not line or line.startswith("#"):
                continue
            if not inside:
                need(line == "*filter", f"no rule of table filter: {line}")
                inside = True
            elif line == "COMMIT":
                inside = False
            elif line.startswith(":"):
                name = line[1:].split(" ")[0]
                need(name not in self.chains, f"not an own chain, or declared twice: {line}")
                need(line == f":{name} - [0:0]", f"an own chain has no policy: {line}")
                need(0 < len(name) <= CHAIN_NAME_MAX, f"chain name: {line}")
                self.chains[name] = []
            else:
                self._rule(shlex.split(line), sets)
        need(not inside, "the text ends without COMMIT")

    def _rule(self, words: list[str], sets: Mapping[str, Set]) -> None:
        need(len(words) > 1, f"no rule: {words}")
        command, chain, rest = words[0], words[1], words[2:]
        need(chain in self.chains, f"chain {chain} is not declared: {words}")
        rules = self.chains[chain]
        if command == "-I":
            place = int(rest.pop(0)) if rest and rest[0].isdigit() else 1
            need(1 <= place <= len(rules) + 1, f"position: {words}")
            rules.insert(place - 1, RuleParser(rest, self.bits, sets).parse())
        else:
            need(command == "-A", f"command {command} is not known")
            rules.append(RuleParser(rest, self.bits, sets).parse())

    def _check(self) -> None:
        for name, rules in self.chains.items():
            for rule in rules:
                known = rule.target in TARGETS or rule.target in self.chains
                need(known, f"{name} leads to a chain that is not there: {rule.text}")
                need(rule.target not in HOOKS, f"{name} leads to a built-in chain: {rule.text}")
                need(not rule.goto or rule.target in self.chains, f"-g to a target: {rule.text}")
                foreign = name in HOOKS and rule.target not in self.chains
                need(not foreign, f"a rule in {name} that is no jump: {rule.text}")
        done: set[str] = set()
        for name in self.chains:
            self._no_loop(name, (), done)

    def _no_loop(self, name: str, above: tuple[str, ...], done: set[str]) -> None:
        need(name not in above, f"chains form a loop: {above}")
        if name not in done:
            for rule in self.chains[name]:
                if rule.target in self.chains:
                    self._no_loop(rule.target, (*above, name), done)
            done.add(name)

    def reachable(self) -> frozenset[str]:
        """The chains that a packet can get to."""
        found: set[str] = set()
        pending = list(HOOKS)
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += [r.target for r in self.chains[name] if r.target in self.chains]
        return frozenset(found)

    def walk(self, packet: Packet) -> Trace:
        """The packet's way to a verdict; the policy of the built-in chains is ACCEPT."""
        need(packet.src.max_prefixlen == packet.dst.max_prefixlen == self.bits, "family")
        trace = Trace(mark=packet.mark)
        chain, index, back = packet.hook, 0, list[tuple[str, int]]()
        while not trace.verdict:
            rules = self.chains[chain]
            target, rule = "RETURN", None
            if index < len(rules):
                rule, index = rules[index], index + 1
                trace.visited += 1
                if not all(match(packet) for match in rule.matches):
                    continue
                trace.path.append(f"{chain} {index}: {rule.text}")
                target = rule.target
            if target == "RETURN":
                if back:
                    chain, index = back.pop()
                else:
                    trace.verdict = "ACCEPT"
            elif target in self.chains and rule is not None:
                if not rule.goto:
                    back.append((chain, index))
                chain, index = target, 0
            elif target == "NFLOG" and rule is not None:
                trace.logs.append(rule.prefix)
            elif target == "MARK" and rule is not None:
                value, mask = rule.mark
                trace.mark = trace.mark & ~mask & 0xFFFFFFFF ^ value
                packet = replace(packet, mark=trace.mark)
            elif target:
                trace.verdict = target
        return trace


class Firewall:
    """What a node's document enforces, once loaded into an empty namespace."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        found = [Set(each) for each in document["ipsets"]]
        self.sets = {each.name: each for each in found}
        need(len(self.sets) == len(found), "two sets have one name")
        self.tables = {
            bits: Filter(document["iptables"][family]["filter"], bits, self.sets)
            for family, bits in (("ipv4", 32), ("ipv6", 128))
            if "filter" in document["iptables"].get(family, {})
        }

    def walk(self, packet: Packet) -> Trace:
        """A family without a table filters nothing."""
        table = self.tables.get(packet.src.max_prefixlen)
        return table.walk(packet) if table else Trace("ACCEPT", mark=packet.mark)


@dataclass(frozen=True)
class Flow:
    """A connection's first packet. ``src_node``: where the source pod or process runs, empty for an
    external source; ``src_process``: a process of that node, not a pod; ``dst_node`` likewise, with
    ``dst_process`` for an address of the node itself. ``service`` is the virtual address and port
    that the client dials; ``dst`` and ``dport`` are the backend's then."""

    src: str
    dst: str
    protocol: int = 6
    dport: int = 80
    src_node: str = ""
    src_process: bool = False
    dst_node: str = ""
    dst_process: bool = False
    service: tuple[str, int] | None = None
    bridged: bool = False


@dataclass(frozen=True)
class Hop:
    node: str
    packet: Packet
    trace: Trace


def hops(flow: Flow) -> Iterator[tuple[str, Packet]]:
    """The filter hooks that a first packet passes, node by node."""
    first = Packet(
        "FORWARD",
        ipaddress.ip_address(flow.src),
        ipaddress.ip_address(flow.dst),
        flow.protocol,
        40000,
        flow.dport,
        bridged=flow.bridged,
    )
    if flow.src_process:
        yield flow.src_node, replace(first, hook="OUTPUT", src_local=True)
        if flow.dst_process and flow.dst_node == flow.src_node:
            return
    elif flow.src_node and flow.service:
        # IPVS takes the packet in LOCAL_IN behind this hook and sends it through OUTPUT.
        address, port = flow.service
        to_service = replace(first, dst=ipaddress.ip_address(address), dport=port)
        yield flow.src_node, replace(to_service, hook="INPUT", dst_local=True)
        yield flow.src_node, replace(first, hook="OUTPUT")
    elif flow.src_node and not (flow.dst_process and flow.dst_node == flow.src_node):
        yield flow.src_node, first
    if flow.dst_process:
        yield flow.dst_node, replace(first, hook="INPUT", dst_local=True)
    elif flow.dst_node and flow.dst_node != flow.src_node:
        yield flow.dst_node, first


def flow_verdict(firewalls: Mapping[str, Firewall], flow: Flow) -> tuple[bool, list[Hop]]:
    """Whether a flow passes every hook on every node, and what happened on the way. Nodes without
    a firewall filter nothing."""
    done: list[Hop] = []
    for node, packet in hops(flow):
        if node in firewalls:
            done.append(Hop(node, packet, firewalls[node].walk(packet)))
            if done[-1].trace.verdict != "ACCEPT":
                return False, done
    return True, done
