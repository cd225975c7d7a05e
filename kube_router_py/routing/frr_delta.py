"""From one configuration of FRR to another: commands in an order that harms nobody. Pure.

FRR has no transactions. A route-map that is deleted while somebody refers to it denies everything,
and a neighbor that loses its route-map is told everything. So in bgpd:

    1. lists and route-maps that are new are defined; what is changed by hand is put right
    2. neighbors and listen ranges that go, or are another sort of neighbor now, are removed
    3. neighbors: their parameters, then their policy, at last ``activate``
    4. prefixes: a neighbor's route-map knows a new class of prefixes before there is one
    5. listen ranges that are new: whoever comes finds everything in place
    6. lists and route-maps that nobody refers to any more are deleted

BFD profiles are defined before step 1 and deleted after step 6. Only what a neighbor itself is told
anew resets its session: another AS or sort of neighbor (it is removed and created), versions,
password, port, local address, hops, being a reflector's client.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from kube_router_py.routing.frr_sections import (
    LIST,
    MAP,
    ROUTER,
    FrrConfig,
    Path,
    Section,
)

OWN = "krp-"

# A line that takes the place of another with the same beginning.
_SLOT = re.compile(
    r"((?:no )?(?:"
    r"neighbor \S+ (?:description|password|port|ebgp-multihop|ttl-security|update-source"
    r"|timers connect|timers|bfd profile)(?= )"
    r"|neighbor \S+ graceful-restart"
    r"|network \S+"
    r"|maximum-paths ibgp|maximum-paths|coalesce-time"
    r"|bgp (?:router-id|cluster-id|listen limit|route-map delay-timer"
    r"|graceful-restart restart-time|graceful-restart select-defer-time)"
    r"|zebra route-map delay-timer|ip(?:v6)? protocol \S+"
    r"|(?:detect-multiplier|transmit-interval|receive-interval|minimum-ttl)"
    r")).*",
    re.ASCII,
)
_POLICY_SLOT = re.compile(r"(neighbor \S+ (?:route-map|prefix-list)) \S+ (in|out)", re.ASCII)
_IDENTITY = re.compile(r"neighbor (\S+) (?:interface|remote-as|peer-group)\b.*", re.ASCII)
_NEIGHBOR = re.compile(r"neighbor (\S+) .*", re.ASCII)
_RANGE = re.compile(r"bgp listen range \S+ peer-group (\S+)", re.ASCII)
# What every router of ours says at the top, whoever else says something there.
_TOP = re.compile(r"bgp route-map delay-timer .*|ip(v6)? protocol bgp route-map .*", re.ASCII)

Lines = dict[Path, tuple[str, ...]]


class Batch(Struct, frozen=True):
    """Commands for one daemon, from the top of the configuration on; in order, in one go."""

    daemon: str
    commands: tuple[str, ...]


def needs_restart(applied: FrrConfig, wanted: FrrConfig) -> bool:
    """Whether bgpd has to be started anew, under graceful restart.

    Another AS number needs another router; another router id would reset all sessions; where bgpd
    listens is known to it from its start only.
    """
    if (applied.listen, applied.port) != (wanted.listen, wanted.port):
        return True
    if applied.asn is None:
        return False
    return (applied.asn, applied.router_id) != (wanted.asn, wanted.router_id)


def plan(applied: FrrConfig, wanted: FrrConfig) -> tuple[Batch, ...]:
    """What turns ``applied`` into ``wanted``, in the order in which it is to be sent.

    ``applied`` may be what was read back: what differs is put right, except for route-maps, lists
    and profiles whose names are not ours and sections that we know nothing of. Nothing: no batch.
    Raises ValueError where it takes a restart.
    """
    if needs_restart(applied, wanted):
        raise ValueError("another AS number, router id or listener takes a restart")
    old_bfd, new_bfd = _lines(applied.bfdd), _lines(wanted.bfdd)
    found = (
        Batch("bfdd", tuple(_profiles(old_bfd, new_bfd))),
        Batch("zebra", tuple(_zebra(_lines(applied.zebra), _lines(wanted.zebra)))),
        Batch("bgpd", tuple(_bgpd(_lines(applied.bgpd), _lines(wanted.bgpd)))),
        Batch("bfdd", tuple(_profiles_gone(old_bfd, new_bfd))),
    )
    return tuple(each for each in found if each.commands)


def _lines(sections: Iterable[Section]) -> Lines:
    return {each.path: each.lines for each in sections}


def _zebra(old: Lines, new: Lines) -> Iterator[str]:
    # Its references to route-maps are lines of the top.
    yield from _maps(old, new)
    yield from _top(old.get((), ()), new.get((), ()))
    yield from _unreferred(old, new)


def _bgpd(old: Lines, new: Lines) -> Iterator[str]:
    yield from _top(old.get((), ()), new.get((), ()))
    yield from _maps(old, new)
    for path in new:
        if len(path) == 1 and ROUTER.fullmatch(path[0]):
            yield from _router(path[0], old, new)
    yield from _unreferred(old, new)


# --- lists, route-maps, profiles ------------------------------------------------------------


def _top(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Lines below no heading; of lists only what is to come, or is in the way of that."""
    added = _added(old, new)
    entries = {_entry(line) for line in added}
    slots = {_slot(line) for line in added}
    wanted = frozenset(new)
    for line in old:
        if line not in wanted:
            entry = _entry(line)
            is_left_over = _TOP.fullmatch(line) and _slot(line) not in slots
            if (entry in entries) if entry is not None else is_left_over:
                yield _undone(line)
    yield from added


def _entry(line: str) -> tuple[str, str, str] | None:
    found = LIST.fullmatch(line)
    return (found[1], found[2], found[3]) if found is not None else None


def _maps(old: Lines, new: Lines) -> Iterator[str]:
    """Entries that are new or differ; within the delay timer nobody sees what is in between."""
    names = {_map_name(path) for path in new} - {None}
    for path in old:
        if _map_name(path) in names and old[path] != new.get(path):
            yield f"no {path[0]}"
    for path, lines in new.items():
        if _map_name(path) is not None and old.get(path) != lines:
            yield from (path[0], *lines, "exit")


def _unreferred(old: Lines, new: Lines) -> Iterator[str]:
    """Delete route-maps and entries of lists that are left over, whole ones by their name."""
    kept = {_map_name(path) for path in new}
    gone = [_map_name(path) for path in old]
    for name in dict.fromkeys(gone):
        if name is not None and name.startswith(OWN) and name not in kept:
            yield f"no route-map {name}"
    wanted = frozenset(new.get((), ()))
    entries = {entry for line in wanted if (entry := _entry(line)) is not None}
    lists = {entry[:2] for entry in entries}
    deleted: set[tuple[str, str]] = set()
    for line in old.get((), ()):
        entry = _entry(line)
        if entry is None or line in wanted or not entry[1].startswith(OWN):
            continue
        if entry[:2] not in lists:
            if entry[:2] not in deleted:
                deleted.add(entry[:2])
                yield f"no {entry[0]} prefix-list {entry[1]}"
        elif entry not in entries:
            yield f"no {line}"


def _map_name(path: Path) -> str | None:
    found = MAP.fullmatch(path[0]) if len(path) == 1 else None
    return found[1] if found is not None else None


def _profiles(old: Lines, new: Lines) -> Iterator[str]:
    for path, lines in new.items():
        if old.get(path) != lines:
            # FRR has no command for "as by default" inside of a profile that somebody has changed.
            again = (f"no {path[1]}",) if path in old else ()
            yield from (path[0], *again, path[1], *lines, "exit", "exit")


def _profiles_gone(old: Lines, new: Lines) -> Iterator[str]:
    for path in old:
        if path not in new and path[-1].startswith(f"profile {OWN}"):
            yield from (path[0], f"no {path[1]}", "exit")


# --- the router -----------------------------------------------------------------------------


def _router(heading: str, old: Lines, new: Lines) -> Iterator[str]:
    known, wanted = old.get((heading,), ()), new[heading,]
    before, after = _identities(known), _identities(wanted)
    # Whoever is to be of another sort is removed, too, and comes as somebody new.
    gone = {name for name in before if before[name] != after.get(name)}
    left = tuple(line for line in known if not _is_of(line, gone))
    parameters = [
        *_ranges_gone(known, wanted, gone),
        *(f"no neighbor {name}" for name in before if name in gone),
        *(line for line in _removed(left, wanted) if not line.startswith("no bgp listen range ")),
        *(line for line in _added(left, wanted) if not _RANGE.fullmatch(line)),
    ]
    ranges = [line for line in _added(left, wanted) if _RANGE.fullmatch(line)]
    families: list[str] = []
    for path in dict.fromkeys((*old, *new)):
        if len(path) == 2 and path[0] == heading:
            there = tuple(line for line in old.get(path, ()) if not _is_of(line, gone))
            commands = _family(there, new.get(path, ()))
            if commands:
                families += (path[1], *commands, "exit-address-family")
    if parameters or families or ranges:
        yield from (heading, *parameters, *families, *ranges, "exit")


def _family(old: tuple[str, ...], new: tuple[str, ...]) -> list[str]:
    """Lines of an address family: neighbors before prefixes, ``activate`` at their end."""
    # A neighbor that leaves does so before its policy does.
    removed = sorted(_removed(old, new), key=lambda line: not line.endswith(" activate"))
    return [*removed, *sorted(_added(old, new), key=_family_order)]


def _family_order(line: str) -> int:
    if line.startswith("neighbor "):
        return 1 if line.endswith(" activate") else 0
    return 2


def _ranges_gone(old: Sequence[str], new: Sequence[str], gone: set[str]) -> Iterator[str]:
    for line in old:
        found = _RANGE.fullmatch(line)
        if found is not None and (found[1] in gone or line not in new):
            yield f"no {line}"


def _identities(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What makes a neighbor or a peer-group what it is, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        match = _IDENTITY.fullmatch(line)
        if match is not None:
            found[match[1]] = (*found.get(match[1], ()), line)
    return found


def _is_of(line: str, names: set[str]) -> bool:
    """Whether a line goes when these neighbors and groups do."""
    match = _NEIGHBOR.fullmatch(line) or _RANGE.fullmatch(line)
    return match is not None and match[1] in names


# --- lines ----------------------------------------------------------------------------------


def _removed(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The commands that undo lines which no new one takes the place of, the last line first.

    ``no neighbor X bfd profile P`` after ``no neighbor X bfd`` would bring BFD back.
    """
    wanted, slots = frozenset(new), {_slot(line) for line in _added(old, new)}
    gone = [line for line in old if line not in wanted and _slot(line) not in slots]
    return [_undone(line) for line in reversed(gone)]


def _added(old: Sequence[str], new: Sequence[str]) -> list[str]:
    known = frozenset(old)
    return [line for line in new if line not in known]


def _slot(line: str) -> str:
    found = _POLICY_SLOT.fullmatch(line)
    if found is not None:
        return f"{found[1]} {found[2]}"
    found = _SLOT.fullmatch(line)
    return found[1] if found is not None else line


def _undone(line: str) -> str:
    return line.removeprefix("no ") if line.startswith("no ") else f"no {line}"
