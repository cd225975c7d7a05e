"""The configuration of an FRR daemon as its control socket edits it, without FRR.

What it knows is what this project writes: routers with address families, route-maps, prefix- and
community-lists, BFD profiles, zebra's few lines. It refuses what FRR 8.4 refuses of these (unknown
commands, neighbors that nobody has introduced, networks that are not there), replaces what FRR
replaces, and leaves out of what it shows what FRR leaves out. Contract tests hold it to that.
"""

import re
from collections.abc import Iterator

from kube_router_py.kernel.ports_frr import CommandResult

_DONE, _UNKNOWN, _REFUSED = 0, 2, 13

# Headings, and where they may stand; "" is the top.
_HEADINGS = (
    ("", re.compile(r"router bgp \d+"), "router"),
    ("router", re.compile(r"address-family ipv[46] unicast"), "family"),
    ("", re.compile(r"route-map \S+ (permit|deny) \d+"), "map"),
    ("", re.compile(r"bfd"), "bfd"),
    ("bfd", re.compile(r"profile \S+"), "profile"),
)
_PARENT = {"family": "router", "profile": "bfd", "router": "", "map": "", "bfd": ""}
# How lines of each place begin.
_LINES = {
    "": re.compile(
        r"bgp (route-map delay-timer|community-list|large-community-list) |ip(v6)? prefix-list "
        r"|ip(v6)? protocol |ip(v6)? nht |ip(v6)? forwarding|zebra (nexthop|route-map) |frr "
        r"|hostname |log "
    ),
    "router": re.compile(r"bgp |coalesce-time |neighbor |timers "),
    "family": re.compile(r"network |aggregate-address |maximum-paths |neighbor |redistribute "),
    "map": re.compile(r"match |set |on-match |call |continue|description "),
    "bfd": re.compile(r"(?!)"),
    "profile": re.compile(
        r"(transmit-interval|receive-interval|detect-multiplier|minimum-ttl|description) "
        r"|passive-mode|echo-mode"
    ),
}
# Of a neighbor's lines, these stand in an address family, the others in the router.
_OF_FAMILY = re.compile(
    "activate|route-map|prefix-list|next-hop-self|route-reflector-client|soft-reconfiguration"
    "|maximum-prefix|allowas-in|send-community|addpath-tx-all-paths"
)
# What makes a neighbor or a group known.
_INTRODUCTIONS = frozenset(("remote-as", "peer-group", "interface"))
# On unless said otherwise: FRR shows them only with "no" before.
_DEFAULT_ON = frozenset(
    {
        "bgp default ipv4-unicast",
        "bgp network import-check",
        "zebra nexthop kernel enable",
        "ip forwarding",
        "ipv6 forwarding",
    }
)
# Values that FRR does not show, being those it has anyhow.
_DEFAULTS = frozenset(
    {"transmit-interval 300", "receive-interval 300", "detect-multiplier 3"}
    | {"frr defaults datacenter"}
)
_SHOWN_FIRST = "frr version 8.4.4\nfrr defaults datacenter\n!\nhostname fake\n!\n"


class Section:
    """A heading with its lines and the headings below it, in the order of their coming."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.lines: dict[tuple[str, ...], str] = {}
        self.below: dict[str, Section] = {}

    def shown(self, depth: int) -> Iterator[str]:
        for line in self.lines.values():
            if line not in _DEFAULTS:
                yield " " * depth + line
        for heading in sorted(self.below):
            yield " " * depth + heading
            yield from self.below[heading].shown(depth + 1)
            is_family = heading.startswith("address-family ")
            yield " " * depth + ("exit-address-family" if is_family else "exit")
            yield "!"


class FakeConfig:
    """One daemon's configuration."""

    def __init__(self, file: str = "") -> None:
        self.top = Section("")
        self._open = [self.top]
        for line in file.splitlines():
            if line.strip() and not line.lstrip().startswith("!"):
                self.run(line.strip())  # what it does not know it skips, as the daemons do
        self._open = [self.top]

    def text(self) -> str:
        """As ``show running-config`` prints it."""
        return _SHOWN_FIRST + "\n".join(self.top.shown(0)) + "\n!\n"

    def configure(self, commands: tuple[str, ...]) -> tuple[CommandResult, ...]:
        """A batch from the top on."""
        self._open = [self.top]
        return tuple(self.run(each) for each in commands)

    def neighbors(self) -> Iterator[tuple[str, int, int]]:
        """Neighbors that are activated: key, version, AS number (0: not given as one)."""
        for router in self._routers():
            numbers = {
                slot[1]: line.split()[-1]
                for slot, line in router.lines.items()
                if "remote-as" in slot
            }
            for heading, family in router.below.items():
                version = 6 if "ipv6" in heading else 4
                for slot in family.lines:
                    if slot[0] == "neighbor" and slot[2:] == ("activate",):
                        number = numbers.get(slot[1], "")
                        yield slot[1], version, int(number) if number.isdecimal() else 0

    def run(self, command: str) -> CommandResult:
        """One command where the last one has left off."""
        words = command.split()
        if words[0] in ("exit", "exit-address-family", "end"):
            self._open = self._open[:1] if words[0] == "end" else self._open[:-1] or [self.top]
            return _result(command, _DONE)
        is_no = words[0] == "no"
        line = " ".join(words[1:] if is_no else words)
        if is_no and words[1] == "route-map" and len(words) == 3:  # all its entries
            self._open = self._open[:1]
            for entry in [each for each in self.top.below if each.startswith(f"{line} ")]:
                del self.top.below[entry]
            return _result(command, _DONE)
        for depth in range(len(self._open), 0, -1):  # a place that does not know it asks the outer
            section = self._open[depth - 1]
            heading = self._heading(section, line)
            if heading is not None or _takes(section.place, line):
                del self._open[depth:]
                if heading is not None:
                    return self._enter(section, heading, command, line, is_no=is_no)
                return self._edit(section, command, line, is_no=is_no)
        return _result(command, _UNKNOWN, f"% [BGP] Unknown command: {command}\n")

    def _heading(self, section: Section, line: str) -> str | None:
        for parent, pattern, place in _HEADINGS:
            if parent == section.place and pattern.fullmatch(line):
                return place
        return None

    def _enter(
        self, section: Section, place: str, command: str, line: str, *, is_no: bool
    ) -> CommandResult:
        if is_no:
            if section.below.pop(line, None) is None and place == "router":
                return _result(command, _REFUSED, "% Can't find BGP instance\n")
            return _result(command, _DONE)
        if place == "router" and line not in section.below and any(self._routers()):
            return _result(command, _REFUSED, "BGP is already running\n")
        self._open.append(section.below.setdefault(line, Section(place)))
        return _result(command, _DONE)

    def _edit(self, section: Section, command: str, line: str, *, is_no: bool) -> CommandResult:
        words = tuple(line.split())
        complaint = self._complaint(words)
        if complaint:
            return _result(command, _REFUSED, complaint)
        if line in _DEFAULT_ON:
            section.lines.pop(("no", *words), None)
            if is_no:
                section.lines[("no", *words)] = f"no {line}"
            return _result(command, _DONE)
        if not is_no:
            section.lines[_slot(words)] = line
            return _result(command, _DONE)
        if words[0] == "neighbor" and (len(words) == 2 or words[2] in _INTRODUCTIONS):
            self._forget(words[1])
            return _result(command, _DONE)
        gone = [
            slot
            for slot, each in section.lines.items()
            if each == line or each.startswith(f"{line} ") or slot == _slot(words)
        ]
        for slot in gone:
            del section.lines[slot]
        if not gone and words[0] == "network":
            return _result(command, _REFUSED, "% Can't find static route specified\n")
        return _result(command, _DONE)

    def _complaint(self, words: tuple[str, ...]) -> str:
        """Why a neighbor's line is refused."""
        if words[0] != "neighbor" or (len(words) > 2 and words[2] in _INTRODUCTIONS):
            return ""
        known = {
            slot[1] for each in self._routers() for slot in each.lines if slot[0] == "neighbor"
        }
        if words[1] in known:
            return ""
        return "% Specify remote-as or peer-group commands first\n"

    def _forget(self, neighbor: str) -> None:
        """A neighbor, or a group, goes with all that was said of it."""
        for router in self._routers():
            for section in (router, *router.below.values()):
                for slot in [each for each in section.lines if each[:2] == ("neighbor", neighbor)]:
                    del section.lines[slot]

    def _routers(self) -> Iterator[Section]:
        return (each for each in self.top.below.values() if each.place == "router")


def _takes(place: str, line: str) -> bool:
    if not _LINES[place].match(line):
        return False
    words = line.split()
    if words[0] == "neighbor" and len(words) > 2:
        return bool(_OF_FAMILY.fullmatch(words[2])) == (place == "family")
    return True


def _slot(words: tuple[str, ...]) -> tuple[str, ...]:
    """What of a line says what it is about: another line with the same replaces it."""
    if words[0] == "neighbor":
        if len(words) > 2 and words[2] in ("route-map", "prefix-list"):
            return (*words[:3], words[-1])
        if len(words) > 3 and words[2] in ("timers", "bfd"):
            return (*words[:3], words[3] if words[3] in ("connect", "profile") else "")
        if len(words) > 2 and words[2].startswith("graceful-restart"):
            return (*words[:2], "graceful-restart")
        return words[:3]
    if words[0] in ("network", "aggregate-address"):
        return words[:2]
    if words[0] == "set":
        return words[: 3 if words[1] in ("ip", "ipv6", "as-path") else 2]
    if words[1:2] == ("prefix-list",) or words[1:2] == ("protocol",):
        return words[:5] if words[1] == "prefix-list" else words[:3]
    if len(words) > 1 and words[-1][0].isdigit() and words[:3] != ("bgp", "listen", "range"):
        return words[:-1]
    return words


def _result(command: str, code: int, text: str = "") -> CommandResult:
    return CommandResult(command, code, text)
