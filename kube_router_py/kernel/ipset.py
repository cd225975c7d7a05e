"""Named sets through the ``ipset`` program: one ``ipset restore`` per change of a set.

A set is changed by adding what is missing and deleting what is too much. Where that would be most
of the set, where the new entries would not fit beside the old ones, or where the set was created
too small, a second set is filled and swapped in, which rules that refer to the set see as one step.

Creating, swapping and destroying go through the same program: in one ``restore`` with the entries
they cost nothing, and the reply to a failure is a sentence rather than a number above 4096.
"""

import errno
import hashlib
import logging
from collections.abc import Iterable

from msgspec import Struct

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ipset_text import canonical_entries, parse_save
from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.kernel.program import Finished, run

log = logging.getLogger(__name__)

NAME_BYTES_MAX = 31
MAXELEM_DEFAULT = 65536
"""What the kernel allows in a set when the creator names no limit."""

_TIMEOUT_S = 60.0
# Below this many changes a delta is always cheaper than a second set.
_SWAP_CHANGES_MIN = 1024
# The kernel's own default of 1024 buckets costs 16 KiB a set; tables grow by themselves.
_HASHSIZE_MIN = 64
_ABSENT = "does not exist"


class SetState(Struct, frozen=True):
    """What the kernel holds under a name."""

    spec: IpsetSpec
    maxelem: int
    entries: frozenset[str]


class IpsetProgram:
    """``ports.Ipsets`` of the calling thread's network namespace."""

    def __init__(self, program: str = "ipset") -> None:
        self.writes = 0
        self._program = program

    def read(self, name: str) -> frozenset[str] | None:
        """Entries of a set in canonical form, or None if there is no such set."""
        state = self._read_state(name)
        return None if state is None else state.entries

    def ensure(self, spec: IpsetSpec, entries: frozenset[str]) -> int:
        """Make the set exist with exactly these entries; returns the number of changes.

        A changed entry counts one, a created (or replaced) set one more. Raises KernelError for
        an entry the kernel refuses, and for an existing set of another type or family that a rule
        still refers to.
        """
        if len(spec.name.encode()) > NAME_BYTES_MAX:
            raise KernelError(f"ipset {spec.name}: name longer than 31 bytes", errno.ENAMETOOLONG)
        wanted = canonical_entries(spec.type, entries)
        state = self._read_state(spec.name)
        if state is None:
            self.writes += 1 + len(wanted)
            self._restore(spec.name, _create(spec.name, spec, wanted, MAXELEM_DEFAULT))
            return 1 + len(wanted)
        if state.spec != spec:
            return self._replace(spec, wanted, state)
        added, removed = wanted - state.entries, state.entries - wanted
        changes = len(added) + len(removed)
        if not changes:
            return 0
        self.writes += changes
        if len(state.entries) + len(added) > state.maxelem or (
            changes >= _SWAP_CHANGES_MIN and changes * 2 > len(wanted)
        ):
            self._swap(spec, wanted, state.maxelem)
        else:
            self._restore(spec.name, _delta(spec.name, added, removed))
        return changes

    def change(self, spec: IpsetSpec, add: frozenset[str], remove: frozenset[str]) -> int:
        """Add, then remove entries of a set that stands, without reading it; returns their number.

        What is there already, or gone already, is no error. Raises KernelError where there is no
        such set or no room in it: ``ensure`` is the remedy for both.
        """
        added = canonical_entries(spec.type, add)
        removed = canonical_entries(spec.type, remove) - added
        changes = len(added) + len(removed)
        if changes:
            self.writes += changes
            self._restore(spec.name, _delta(spec.name, added, removed))
        return changes

    def destroy(self, names: Iterable[str]) -> None:
        """Destroy sets by name; a missing one is no error.

        All are tried; KernelError then names those that could not be destroyed (because a rule
        or another set refers to them).
        """
        standing = self._names()
        failed: list[str] = []
        for name in names:
            for each in (name, _spare_name(name)):
                if each not in standing:
                    continue
                self.writes += 1
                done = self._run(["destroy", each], writes=True)
                if done.code != 0 and _ABSENT not in done.stderr:
                    failed.append(f"{each}: {done.complaint}")
        if failed:
            raise KernelError("ipset destroy: " + "; ".join(failed), errno.EBUSY)

    def close(self) -> None:
        """Nothing to release: every call runs a program of its own."""

    def _read_state(self, name: str) -> SetState | None:
        done = self._run(["save", name])
        if done.code != 0:
            if _ABSENT in done.stderr:
                return None
            raise KernelError(f"ipset save {name}: {done.complaint}")
        header, entries = parse_save(done.stdout, name)
        spec = IpsetSpec(name, header["type"], header.get("family", "inet"))
        # Sets without a limit (bitmap, list:set) print none.
        maxelem = int(header.get("maxelem", "0")) or 1 << 32
        return SetState(spec, maxelem, canonical_entries(spec.type, entries))

    def _names(self) -> frozenset[str]:
        done = self._run(["list", "-name"])
        if done.code != 0:
            raise KernelError(f"ipset list: {done.complaint}")
        return frozenset(done.stdout.split())

    def _replace(self, spec: IpsetSpec, wanted: frozenset[str], state: SetState) -> int:
        """Another type or family: the kernel refuses to swap these, so the old set has to go."""
        log.warning(
            "ipset %s is %s %s, not %s %s: replacing it",
            *(spec.name, state.spec.type, state.spec.family, spec.type, spec.family),
        )
        self.writes += 1 + len(wanted)
        done = self._run(["destroy", spec.name], writes=True)
        if done.code != 0 and _ABSENT not in done.stderr:
            raise KernelError(
                f"ipset {spec.name} exists as {state.spec.type} {state.spec.family} instead of "
                f"{spec.type} {spec.family} and is in use; delete the rules that refer to it "
                f"(iptables-save | grep {spec.name})",
                errno.EBUSY,
            )
        self._restore(spec.name, _create(spec.name, spec, wanted, MAXELEM_DEFAULT))
        return 1 + len(wanted)

    def _swap(self, spec: IpsetSpec, wanted: frozenset[str], maxelem: int) -> None:
        spare = _spare_name(spec.name)
        self._run(["destroy", spare], writes=True)  # left by a crash; absent otherwise
        lines = _create(spare, spec, wanted, min(maxelem, 1 << 31))
        lines += [f"swap {spare} {spec.name}", f"destroy {spare}"]
        self._restore(spec.name, lines)

    def _restore(self, name: str, lines: list[str]) -> None:
        done = self._run(["restore"], "\n".join(lines) + "\n", writes=True)
        if done.code != 0:
            raise KernelError(f"ipset {name}: {done.complaint}")

    def _run(self, arguments: list[str], stdin: str = "", *, writes: bool = False) -> Finished:
        return run([self._program, *arguments], stdin, timeout_s=_TIMEOUT_S, writes=writes)


def _spare_name(name: str) -> str:
    """The name of the set that is filled beside set ``name`` and swapped with it."""
    return "kube-router-spare-" + hashlib.sha256(name.encode()).hexdigest()[:12]


def _delta(name: str, added: Iterable[str], removed: Iterable[str]) -> list[str]:
    """Lines for ``ipset restore``. Additions first: what moves is never in neither place."""
    return [
        *(f"add {name} {entry} -exist" for entry in sorted(added)),
        *(f"del {name} {entry} -exist" for entry in sorted(removed)),
    ]


def _create(name: str, spec: IpsetSpec, entries: frozenset[str], maxelem: int) -> list[str]:
    """Lines for ``ipset restore``: a new set with room for twice these entries, filled."""
    options = ""
    if spec.type.startswith("hash:"):
        buckets = _HASHSIZE_MIN
        while buckets < len(entries) // 2:
            buckets *= 2
        while maxelem < 2 * len(entries):
            maxelem *= 2
        options = f" family {spec.family} hashsize {buckets} maxelem {maxelem}"
    return [
        f"create {name} {spec.type}{options}",
        *(f"add {name} {entry} -exist" for entry in sorted(entries)),
    ]
