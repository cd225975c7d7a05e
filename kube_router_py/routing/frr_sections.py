"""FRR's configuration as lines in sections: its text, and how it is read back. Pure.

A line is written as FRR 8.4 echoes it in ``show running-config``: defaults left out, numbers and
lists in FRR's own form and order. What FRR keeps in the order in which it was entered is sorted, so
that equal configurations are equal values, however they came about.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from msgspec import Struct

from kube_router_py.routing.model import Address

DAEMONS = ("zebra", "bfdd", "bgpd")
PROFILE = "frr defaults datacenter"

Path = tuple[str, ...]

# Of the host or the command line, or what we must not have a say in: ``no ip forwarding`` in a
# file turns forwarding off for the whole node.
_NOT_OURS = re.compile(
    r"!.*|Building configuration.*|Current configuration:.*|frr (version|defaults) .*"
    r"|(hostname|domainname|log|service|debug) .*|(no )?ip(v6)? forwarding|end",
    re.ASCII,
)
_CLOSING = frozenset({"exit", "exit-address-family"})
# A section with nothing in it that means something nevertheless.
_MEANINGFUL = re.compile(r"route-map \S+ (?:permit|deny) \d+|profile \S+", re.ASCII)
ROUTER = re.compile(r"router bgp \d+", re.ASCII)
LIST = re.compile(r"(ip|ipv6) prefix-list (\S+) seq (\d+) .*", re.ASCII)
MAP = re.compile(r"route-map (\S+) (?:permit|deny) (\d+)", re.ASCII)
# These name a route-map of the same file, which is to stand before it is asked.
REFERENCE = re.compile(r"ip(v6)? protocol ", re.ASCII)
_SECRET = re.compile(r"^(\s*neighbor \S+ password ).*$", re.ASCII | re.MULTILINE)


class Section(Struct, frozen=True):
    """Lines that stand below the same headings; ``path`` is empty for those below none."""

    path: Path
    lines: tuple[str, ...]


class FrrConfig(Struct, frozen=True, kw_only=True):
    """What each daemon is told, as sections in one fixed order.

    ``listen`` and ``port`` are no lines: bgpd is started with them.
    """

    zebra: tuple[Section, ...]
    bfdd: tuple[Section, ...]
    bgpd: tuple[Section, ...]
    listen: tuple[Address, ...] = ()
    port: int = 179

    @property
    def has_bfd(self) -> bool:
        """Whether bfdd is needed."""
        return bool(self.bfdd)

    @property
    def asn(self) -> int | None:
        """The AS number of the router; None: there is no router."""
        router = self._router()
        return int(router.path[0].split()[2]) if router is not None else None

    @property
    def router_id(self) -> IPv4Address | None:
        """As configured; None: FRR chooses one, or there is no router."""
        router = self._router()
        for line in router.lines if router is not None else ():
            if line.startswith("bgp router-id "):
                return IPv4Address(line.split()[2])
        return None

    def _router(self) -> Section | None:
        return next(
            (s for s in self.bgpd if len(s.path) == 1 and ROUTER.fullmatch(s.path[0])), None
        )

    def sections(self, daemon: str) -> tuple[Section, ...]:
        return {"zebra": self.zebra, "bfdd": self.bfdd, "bgpd": self.bgpd}[daemon]

    def text(self, daemon: str) -> str:
        """The file that the daemon is started with; what is referred to stands before."""
        return _text(self.sections(daemon))

    def masked(self, daemon: str) -> str:
        """As ``text``, for people: passwords are hidden."""
        return _SECRET.sub(r"\1<masked>", self.text(daemon))


def canonical(lines: Mapping[Path, Iterable[str]]) -> tuple[Section, ...]:
    """Sections in their order; inside of one, lines stay as they are, but for those of the top."""
    found = [
        Section(path, tuple(sorted(each, key=_top_order)) if not path else tuple(each))
        for path, each in lines.items()
    ]
    kept = [
        each for each in found if each.lines or (each.path and _MEANINGFUL.fullmatch(each.path[-1]))
    ]
    return tuple(sorted(kept, key=lambda each: _section_order(each.path)))


def parse_running(
    texts: Mapping[str, str], listen: tuple[Address, ...] = (), port: int = 179
) -> FrrConfig:
    """What the daemons showed as their running configuration, by the name of the daemon.

    Reads back what ``FrrConfig.text`` wrote. Lines that are not ours to set are left out; those
    that somebody else added are there.
    """
    read = {daemon: _sections(texts.get(daemon, "")) for daemon in DAEMONS}
    return FrrConfig(
        zebra=read["zebra"], bfdd=read["bfdd"], bgpd=read["bgpd"], listen=listen, port=port
    )


def _sections(text: str) -> tuple[Section, ...]:
    lines: dict[Path, list[str]] = {(): []}
    # The headings that are open, with their indentation; what is indented more is below them.
    headings: list[tuple[int, str]] = []
    last: tuple[int, str] | None = None
    for raw in text.split("\n"):
        line = raw.strip(" ")
        indent = len(raw) - len(raw.lstrip(" "))
        if not line or _NOT_OURS.fullmatch(line):
            continue
        is_closing = line in _CLOSING
        if last is not None and (indent > last[0] or (is_closing and indent == last[0])):
            _below(lines, headings).pop()
            headings.append(last)
            _below(lines, headings)
        last = None
        while headings and headings[-1][0] >= indent:
            headings.pop()
        if not is_closing:
            _below(lines, headings).append(line)
            last = indent, line
    return canonical(lines)


def _below(lines: dict[Path, list[str]], headings: list[tuple[int, str]]) -> list[str]:
    return lines.setdefault(tuple(text for _, text in headings), [])


def _text(sections: tuple[Section, ...]) -> str:
    if not sections:
        return f"{PROFILE}\n"
    lines = [PROFILE]
    late: list[str] = []
    opened: Path = ()
    for section in sections:
        shared = _shared(opened, section.path)
        lines += _closed(opened, shared)
        for depth in range(shared, len(section.path)):
            lines.append(" " * depth + section.path[depth])
        opened = section.path
        for line in section.lines:
            if not section.path and REFERENCE.match(line):
                late.append(line)
            else:
                lines.append(" " * len(section.path) + line)
    lines += [*_closed(opened, 0), *late]
    return "\n".join(lines) + "\n"


def _shared(one: Path, other: Path) -> int:
    depth = 0
    while depth < min(len(one), len(other)) and one[depth] == other[depth]:
        depth += 1
    return depth


def _closed(opened: Path, depth: int) -> list[str]:
    """The lines that close headings until so many are left, the innermost first."""
    return [
        " " * each
        + ("exit-address-family" if opened[each].startswith("address-family ") else "exit")
        for each in reversed(range(depth, len(opened)))
    ]


def _top_order(line: str) -> tuple[int, str, str, int, str]:
    """Prefix-lists by name and entry, behind everything else."""
    found = LIST.fullmatch(line)
    if found is None:
        return 0, "", "", 0, line
    return 1, found[1], found[2], int(found[3]), line


def _section_order(path: Path) -> tuple[int, str, int, Path]:
    """What others refer to comes first."""
    if not path:
        return 0, "", 0, path
    entry = MAP.fullmatch(path[0])
    if entry is not None:
        return 1, entry[1], int(entry[2]), path
    return 2, "", 0, path
