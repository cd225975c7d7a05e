"""What to send to ``ipset restore`` so that sets stand as wanted. Pure.

Lines are in blocks, one block for one set. Each can be sent twice without harm: when the kernel
refuses a line, what went before it may or may not have been carried out, and all is sent again.

A set is changed by adding what is missing and deleting what is too much. Where that would be most
of the set, or where there is little room left in it, a second set, the spare, is filled and swapped
in, which rules that refer to the set see as one step.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence

from msgspec import Struct

from kube_router_py.kernel.ipset_text import canonical_entries
from kube_router_py.kernel.ports import IpsetSpec, SetChange

MAXELEM_DEFAULT = 65536
"""What the kernel allows in a set when the creator names no limit."""

SPARE_PREFIX = "kube-router-spare-"

# Below this many changes a delta is always cheaper than a second set.
_SWAP_CHANGES_MIN = 1024
# The kernel's own default of 1024 buckets costs 16 KiB a set; tables grow by themselves.
_HASHSIZE_MIN = 64
_MAXELEM_MAX = 1 << 31


class Block(Struct, frozen=True):
    """Lines about one set. ``spare``: they fill one, which an earlier failure may have left."""

    spec: IpsetSpec
    lines: tuple[str, ...]
    spare: bool = False


def spare_name(name: str) -> str:
    """The name of the set that is filled beside set ``name`` and swapped with it."""
    return SPARE_PREFIX + hashlib.sha256(name.encode()).hexdigest()[:12]


def room_for(entries: int, maxelem: int = MAXELEM_DEFAULT) -> int:
    """The limit of a new set: at least ``maxelem``, and room for twice its entries."""
    maxelem = min(maxelem, _MAXELEM_MAX)
    while maxelem < 2 * entries:
        maxelem *= 2
    return maxelem


def is_large(changes: int, entries: int) -> bool:
    """Whether so many changes to a set cost more than making it anew with ``entries``."""
    return changes >= _SWAP_CHANGES_MIN and changes * 2 > entries


def delta(name: str, added: Iterable[str], removed: Iterable[str] = ()) -> tuple[str, ...]:
    """Additions first: what moves is never in neither place."""
    gone = _elements(removed) - _elements(added)
    return (
        *(f"add {name} {entry} -exist" for entry in sorted(added)),
        *(f"del {name} {entry} -exist" for entry in sorted(gone)),
    )


def _elements(entries: Iterable[str]) -> set[str]:
    """Entries without flags (nomatch), which ``add`` changes and ``del`` does not take."""
    return {entry.partition(" ")[0] for entry in entries}


def create(spec: IpsetSpec, entries: Collection[str], maxelem: int = MAXELEM_DEFAULT) -> Block:
    """A new set, filled with (canonical) entries."""
    return Block(spec, _create(spec.name, spec, entries, maxelem))


def replace(spec: IpsetSpec, entries: Collection[str]) -> Block:
    """Another type or family: the kernel refuses to swap these, so the old set has to go."""
    return Block(
        spec,
        (f"destroy {spec.name}", *_create(spec.name, spec, entries, MAXELEM_DEFAULT)),
    )


def swap(spec: IpsetSpec, entries: Collection[str], maxelem: int = MAXELEM_DEFAULT) -> Block:
    """A spare filled with (canonical) entries takes the place of the set."""
    spare = spare_name(spec.name)
    head, *rest = _create(spare, spec, entries, maxelem)
    lines = (head, f"flush {spare}", *rest, f"swap {spare} {spec.name}", f"destroy {spare}")
    return Block(spec, lines, spare=True)


def plan_changes(
    changes: Sequence[SetChange], limits: MutableMapping[str, int]
) -> list[tuple[SetChange, Block]]:
    """Blocks for changes of sets that stand: additions of all of them, then removals.

    ``limits`` is how many entries fit in a set as far as known, and is brought up to date.
    """
    first: list[tuple[SetChange, Block]] = []
    then: list[tuple[SetChange, Block]] = []
    for change in changes:
        spec, name = change.spec, change.spec.name
        added = canonical_entries(spec.type, change.add)
        removed = canonical_entries(spec.type, change.remove)
        removed = frozenset(_elements(removed) - _elements(added))
        limit = limits.get(name, MAXELEM_DEFAULT)
        # Between additions and removals it holds both.
        is_tight = bool(added) and (len(change.content) + len(removed)) * 10 >= limit * 9
        if is_tight or is_large(len(added) + len(removed), len(change.content)):
            wanted = canonical_entries(spec.type, change.content)
            if added:
                wanted |= removed
            limits[name] = room_for(len(wanted), limit)
            (first if added else then).append((change, swap(spec, wanted, limit)))
            if not added:
                continue
        elif added:
            first.append((change, Block(spec, delta(name, added))))
        if removed:
            then.append((change, Block(spec, delta(name, (), removed))))
    return first + then


def plan_put(
    sets: Mapping[IpsetSpec, Collection[str]],
    standing: Mapping[str, IpsetSpec],
    limits: MutableMapping[str, int],
) -> list[Block]:
    """Blocks by which sets come to hold exactly these entries."""
    blocks: list[Block] = []
    for spec, entries in sets.items():
        wanted = canonical_entries(spec.type, entries)
        limits[spec.name] = room_for(len(wanted))
        found = standing.get(spec.name)
        if found is None:
            blocks.append(create(spec, wanted))
        elif found == spec:
            blocks.append(swap(spec, wanted))
        else:
            blocks.append(replace(spec, wanted))
    return blocks


def _create(name: str, spec: IpsetSpec, entries: Collection[str], maxelem: int) -> tuple[str, ...]:
    options = ""
    if spec.type.startswith("hash:"):
        buckets = _HASHSIZE_MIN
        while buckets < len(entries) // 2:
            buckets *= 2
        limit = room_for(len(entries), maxelem)
        options = f" family {spec.family} hashsize {buckets} maxelem {limit}"
    return (f"create {name} {spec.type}{options} -exist", *delta(name, entries))
