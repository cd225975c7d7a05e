"""Who gets what, as FRR's route-maps and prefix-lists. Pure.

Every prefix of ours carries the tag of its class (route-map ``krp-class-…``, named at its
``network`` line), and routes learned from nodes carry another one. What a neighbor is told is a
short list of tags and what is set with each (route-map ``krp-out-…``): no prefix is compared,
however many there are. FRR hands tags to no neighbor. Route-maps are named by what they say, so
that none is ever edited: another one is referred to, and all changes in one step.

What comes in is first compared with the neighbor's own short list (``krp-accept-…``), then by the
route-map of its side (``krp-from-…``), which knows ``krp-refuse``. FRR 8.4 goes through all
route-maps and lists for each line about any of them, and through all entries of a list for each of
its entries: there have to be few. Lists that a route-map asks (``krp-refuse``, ``krp-from-crowd``)
are edited entry by entry; the number of an entry is made of what it says.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from msgspec import Struct

from kube_router_py.routing.frr_sections import Path
from kube_router_py.routing.model import (
    PREPEND_MAX,
    Announcement,
    Community,
    Kind,
    Network,
    PrefixRange,
    Role,
    RouterConfig,
    Session,
    Version,
)
from kube_router_py.routing.prefixes import collapse, range_order

REFUSE = "krp-refuse"
CROWD = "krp-from-crowd"
FROM = {Role.NODE: "krp-from-nodes", Role.EXTERNAL: "krp-from-outside"}

# Tags: of Pod CIDRs and Services of which nothing more is said, and of what nodes have taught us.
# Others are made of what is said.
PODS, LEARNED, SERVICES = 1, 2, 3
_FIRST_HASHED = 16
_TAGS = 2**32

# Up to so many different lists of one version, each node may announce its own prefixes only;
# beyond, each may announce those of all (see _crowd). 100 lists of both versions are read in 0.3 s.
DISTINCT_LISTS = 100

_DEFAULTS = (ip_network("0.0.0.0/0"), ip_network("::/0"))
VERSIONS: tuple[Version, ...] = (4, 6)
_KEYWORD: dict[int, str] = {4: "ip", 6: "ipv6"}

# As FRR 8.4 names them (bgp_community.c); it writes all others as two numbers.
_NAMED = {
    (0, 0): "internet",
    (65535, 0): "graceful-shutdown",
    (65535, 1): "accept-own",
    (65535, 2): "route-filter-translated-v4",
    (65535, 3): "route-filter-v4",
    (65535, 4): "route-filter-translated-v6",
    (65535, 5): "route-filter-v6",
    (65535, 6): "llgr-stale",
    (65535, 7): "no-llgr",
    (65535, 8): "accept-own-nexthop",
    (65535, 666): "blackhole",
    (65535, 65281): "no-export",
    (65535, 65282): "no-advertise",
    (65535, 65283): "local-AS",
    (65535, 65284): "no-peer",
}


class Class(Struct, frozen=True):
    """What prefixes have in common that FRR treats alike."""

    kind: Kind
    communities: tuple[Community, ...] = ()
    local_preference: int | None = None
    peers: tuple[str, ...] | None = None


class Policy(Struct, frozen=True):
    """The route-maps and lists that a router needs, and the names under which they stand.

    ``classes``: the route-map of the prefixes of a class; ``out``: that towards each neighbor or
    range, by its key; ``accept``: its prefix-list, by key and version (none: it may announce
    anything that its route-map lets in); ``crowd``: those that come in by the route-map ``CROWD``.
    """

    lines: dict[Path, list[str]]
    classes: dict[Class, str]
    out: dict[str, str]
    accept: dict[tuple[str, Version], str]
    crowd: frozenset[tuple[str, Version]]

    def from_(self, key: str, version: Version, role: Role) -> str:
        """The route-map by which a neighbor's routes come in."""
        return CROWD if (key, version) in self.crowd else FROM[role]


def classify(announcements: Iterable[Announcement]) -> list[Class]:
    """The class of each. Of thousands of prefixes there are few classes: each is made once."""
    made: dict[tuple[object, ...], Class] = {}
    found: list[Class] = []
    for each in announcements:
        key = each.kind, each.communities, each.local_preference, each.peers
        if key not in made:
            peers = None if each.peers is None else tuple(sorted(set(each.peers)))
            communities = _ordered(each.communities)
            made[key] = Class(each.kind, communities, each.local_preference, peers)
        found.append(made[key])
    return found


def compile_policy(
    config: RouterConfig, classes: Iterable[Class], sessions: Sequence[tuple[str, Session]]
) -> Policy:
    """``classes`` are those of all prefixes, ``sessions`` come with the key of their neighbor."""
    lines: dict[Path, list[str]] = {(): []}
    tags = class_tags(classes)
    names = {each: _define(lines, "class", [[f"set tag {tags[each]}"]]) for each in tags}
    is_reflector = config.cluster_id is not None or any(s.reflector_client for _, s in sessions)
    out: dict[str, str] = {}
    for key, session in sessions:
        entries = _outlet(config, key, session, tags, is_reflector=is_reflector)
        out[key] = _define(lines, "out", entries)
    crowd = _crowd(lines, sessions)
    accept = _accept(lines[()], sessions, crowd)
    refused = {*config.refuse, *(PrefixRange(each, 0, 0) for each in _DEFAULTS)}
    for version in VERSIONS:
        _numbered(lines[()], version, REFUSE, refused)
    for role in {session.role for _, session in sessions}:
        # What nodes taught us is what a reflector passes on.
        _inlet(lines, FROM[role], [[f"set tag {LEARNED}"] if role is Role.NODE else []])
    return Policy(lines, names, out, accept, crowd)


def class_tags(classes: Iterable[Class]) -> dict[Class, int]:
    """A tag for each class, the same whichever others there are; the plain ones are always there.

    Two that would get the same one are told apart: no class may stand for another.
    """
    found = {Class(Kind.PODS): PODS, Class(Kind.SERVICE): SERVICES}
    taken: set[int] = set()
    for each in sorted(set(classes) - found.keys(), key=_text):
        tag = _number(_FIRST_HASHED, _text(each))
        while tag in taken:
            tag = tag + 1 if tag + 1 < _TAGS else _FIRST_HASHED
        taken.add(tag)
        found[each] = tag
    return found


def is_internal(session: Session, asn: int) -> bool:
    """Whether a session is one inside our AS (iBGP)."""
    return session.remote_as in ("internal", asn)


def _text(each: Class) -> str:
    parts = [one.parts for one in each.communities]
    return f"{each.kind} {parts} {each.local_preference} {each.peers}"


# --- what goes out --------------------------------------------------------------------------


def _outlet(
    config: RouterConfig,
    key: str,
    session: Session,
    tags: dict[Class, int],
    *,
    is_reflector: bool,
) -> list[list[str]]:
    """The entries of the route-map towards a neighbor. What none of them matches stays here."""
    is_ours = is_internal(session, config.asn)
    entries: dict[int, list[str]] = {}
    for each, tag in tags.items():
        if session.role is Role.NODE:
            # Between nodes there is nothing to prefer and nobody to tell: reached is all.
            if each.kind is Kind.PODS:
                entries[tag] = []
        elif (each.kind is Kind.SERVICE or config.announce_pods_outside) and (
            each.peers is None or key in each.peers
        ):
            entries[tag] = _actions(config, each, is_ours=is_ours)
    if session.role is Role.NODE and is_reflector:
        entries[LEARNED] = []
    return [[f"match tag {tag}", *entries[tag]] for tag in sorted(entries)]


def _actions(config: RouterConfig, each: Class, *, is_ours: bool) -> list[str]:
    """What is set at last: FRR keeps to itself what it already knows as ``no-export``.

    Communities are added: in a drain there is one already, that of graceful shutdown.
    """
    lines: list[str] = []
    if is_ours:
        if each.local_preference is not None:
            lines.append(f"set local-preference {each.local_preference}")
    elif config.prepend is not None:
        # Inside our AS nobody takes a path that already has our number in it.
        times = min(config.prepend.times, PREPEND_MAX)
        if times > 0:
            lines.append(f"set as-path prepend{f' {config.prepend.asn}' * times}")
    communities = _ordered((*config.communities, *each.communities))
    small = [_community(one) for one in communities if not one.is_large]
    large = [":".join(map(str, one.parts)) for one in communities if one.is_large]
    if small:
        lines.append(f"set community {' '.join(small)} additive")
    if large:
        lines.append(f"set large-community {' '.join(large)} additive")
    return lines


def _ordered(communities: Iterable[Community]) -> tuple[Community, ...]:
    """As FRR orders them, each once."""
    return tuple(sorted(set(communities), key=lambda each: (len(each.parts), each.parts)))


def _community(community: Community) -> str:
    high, low = community.parts[0], community.parts[1]
    return _NAMED.get((high, low), f"{high}:{low}")


# --- what comes in --------------------------------------------------------------------------


def _inlet(lines: dict[Path, list[str]], name: str, permits: list[list[str]]) -> None:
    lines[f"route-map {name} deny 10",] = [f"match ip address prefix-list {REFUSE}"]
    lines[f"route-map {name} deny 20",] = [f"match ipv6 address prefix-list {REFUSE}"]
    for index, each in enumerate(permits, 3):
        lines[f"route-map {name} permit {10 * index}",] = each


def _numbered(lines: list[str], version: Version, name: str, ranges: Iterable[PrefixRange]) -> None:
    """A list of which each entry has a number of its own, whichever others there are."""
    numbers: dict[int, str] = {}
    for each in _collapsed(ranges, version):
        text = _range_text(each)
        number = _number(1, text)
        while number in numbers:
            number = number + 1 if number + 1 < _TAGS else 1
        numbers[number] = text
    lines += [_entry(version, name, *each) for each in numbers.items()]


def _crowd(
    lines: dict[Path, list[str]], sessions: Sequence[tuple[str, Session]]
) -> frozenset[tuple[str, Version]]:
    """Nodes that are too many for a list each: one list for all, looked at by their route-map.

    A node more is then some entries more, and no word to any neighbor.
    """
    found: set[tuple[str, Version]] = set()
    permits: list[list[str]] = []
    for version in VERSIONS:
        own = {
            key: session.accept
            for key, session in sessions
            if session.role is Role.NODE
            and session.accept is not None
            and version in session.versions
        }
        if len(set(own.values())) > DISTINCT_LISTS:
            found |= {(key, version) for key in own}
            _numbered(lines[()], version, CROWD, {each for some in own.values() for each in some})
            matched = f"match {_KEYWORD[version]} address prefix-list {CROWD}"
            permits.append([matched, f"set tag {LEARNED}"])
    if found:
        _inlet(lines, CROWD, permits)
    return frozenset(found)


def _accept(
    lines: list[str],
    sessions: Sequence[tuple[str, Session]],
    crowd: frozenset[tuple[str, Version]],
) -> dict[tuple[str, Version], str]:
    found: dict[tuple[str, Version], str] = {}
    for version in VERSIONS:
        names: dict[tuple[PrefixRange, ...], str] = {}
        for key, session in sessions:
            is_listed = session.accept is not None and (key, version) not in crowd
            if is_listed and version in session.versions:
                ranges = _collapsed(session.accept or (), version)
                if ranges not in names:
                    names[ranges] = _accept_list(lines, version, ranges)
                found[key, version] = names[ranges]
    return found


def _accept_list(lines: list[str], version: Version, ranges: tuple[PrefixRange, ...]) -> str:
    """FRR does not ask the neighbor again when a list is edited that it names itself: such a list
    is named by what it says."""
    texts = [_range_text(each) for each in ranges]
    name = f"krp-accept-{_digest(*texts)}"
    for index, text in enumerate(texts, 1):
        lines.append(_entry(version, name, 5 * index, text))
    if not texts:
        default = _DEFAULTS[0 if version == 4 else 1]
        nothing = _range_text(PrefixRange(default, 0, default.max_prefixlen))
        lines.append(_entry(version, name, 5, nothing, "deny"))
    return name


def _entry(version: int, name: str, number: int, text: str, action: str = "permit") -> str:
    return f"{_KEYWORD[version]} prefix-list {name} seq {number} {action} {text}"


def _range_text(prefixes: PrefixRange) -> str:
    network, longest = prefixes.network, prefixes.longest
    shortest = max(prefixes.shortest, network.prefixlen)
    text = str(network)
    if shortest > network.prefixlen:
        text += f" ge {shortest}"
    return text if longest == network.prefixlen else f"{text} le {longest}"


def _collapsed(ranges: Iterable[PrefixRange], version: Version) -> tuple[PrefixRange, ...]:
    """Neighboring ranges of the same lengths as one, which admits neither more nor less."""
    by_length: dict[tuple[int, int], set[Network]] = defaultdict(set)
    for each in ranges:
        shortest = max(each.shortest, each.network.prefixlen)
        longest = min(each.longest, each.network.max_prefixlen)
        if each.network.version == version and shortest <= longest:
            by_length[shortest, longest].add(each.network)
    found = [
        PrefixRange(network, shortest, longest)
        for (shortest, longest), networks in by_length.items()
        for network in collapse(networks, version)
    ]
    return tuple(sorted(found, key=range_order))


# --- names ----------------------------------------------------------------------------------


def _define(lines: dict[Path, list[str]], what: str, entries: list[list[str]]) -> str:
    """A route-map that permits by these entries, named by them."""
    name = f"krp-{what}-{_digest(*map(repr, entries))}"
    for index, each in enumerate(entries, 1):
        lines[f"route-map {name} permit {10 * index}",] = each
    return name


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _number(first: int, *parts: str) -> int:
    """A number from ``first`` to 2**32 - 1 made of the parts."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return first + int.from_bytes(digest[:8], "big") % (_TAGS - first)
