"""Named sets through the ``ipset`` program: many changes in one ``ipset restore``.

Creating, swapping and destroying go through the same program: in one ``restore`` with the entries
they cost nothing, and the reply to a failure is a sentence rather than a number above 4096.
"""

import errno
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kube_router_py.errors import KernelError
from kube_router_py.kernel import ipset_plan as plan
from kube_router_py.kernel.ipset_plan import Block
from kube_router_py.kernel.ipset_text import canonical_entries, parse_list, parse_save
from kube_router_py.kernel.ports import (
    IpsetSpec,
    Observe,
    SetChange,
    SetFailure,
    SetState,
    unobserved,
)
from kube_router_py.kernel.program import Finished, run

log = logging.getLogger(__name__)

NAME_BYTES_MAX = 31

_TIMEOUT_S = 60.0
# Some kernels wait for all packets in flight in each swap (RCU grace period).
_SWAP_TIMEOUT_S = 0.1
_ABSENT = "does not exist"
_FULL = "is full"
_IN_USE = "in use"
_NO_ROOM = "maximal number of sets reached"  # 65,534 of them in a network namespace
# Entries of one set that may be refused one by one, and sets of one call, before it is given up.
_REFUSALS_MAX = 32
_LINE = re.compile(r"Error in line (\d+)")

Remedy = Callable[[int, str], str | None]
"""Called with the number of the block that failed and why; returns what could not be done."""


class IpsetProgram:
    """``ports.Ipsets`` of the calling thread's network namespace."""

    # The nft variant of iptables lets go of a set some milliseconds after its last rule went.
    release_pauses_s: tuple[float, ...] = (0.02, 0.06, 0.12, 0.3)

    def __init__(self, program: str = "ipset") -> None:
        self.writes = 0
        self.observe: Observe = unobserved
        self._program = program
        # How many entries fit in the sets seen so far, by name.
        self._limits: dict[str, int] = {}
        # Sets that stayed in use though they were waited for: not waited for again.
        self._held: frozenset[str] = frozenset()

    def read(self, name: str) -> frozenset[str] | None:
        """Entries of a set in canonical form, or None if there is no such set."""
        state = self._read_state(name)
        return None if state is None else state.entries

    def read_all(self, is_own: Callable[[str], bool]) -> dict[str, SetState]:
        """All sets whose name is own, by name; spare sets left by a crash are none."""
        done = self._run(["save"])
        if done.code != 0:
            raise KernelError(f"ipset save: {done.complaint}")
        states = parse_save(
            done.stdout, lambda name: not name.startswith(plan.SPARE_PREFIX) and is_own(name)
        )
        self._limits |= {name: state.maxelem for name, state in states.items()}
        return states

    def ensure(self, spec: IpsetSpec, entries: frozenset[str]) -> int:
        """Make the set exist with exactly these entries; returns the number of changes.

        A changed entry counts one, a created (or replaced) set one more. Raises KernelError for
        an entry the kernel refuses, and for an existing set of another type or family that a rule
        still refers to.
        """
        if complaint := _name_complaint(spec.name):
            raise KernelError(f"ipset {spec.name}: {complaint}", errno.ENAMETOOLONG)
        wanted = canonical_entries(spec.type, entries)
        state = self._read_state(spec.name)
        if state is None:
            self.writes += 1 + len(wanted)
            self._limits[spec.name] = plan.room_for(len(wanted))
            self._restore_one(plan.create(spec, wanted))
            return 1 + len(wanted)
        if state.spec != spec:
            return self._replace(spec, wanted, state.spec)
        added, removed = wanted - state.entries, state.entries - wanted
        changes = len(added) + len(removed)
        if not changes:
            return 0
        self.writes += changes
        if len(state.entries) + len(added) > state.maxelem or plan.is_large(changes, len(wanted)):
            self._destroy_spare(spec.name)
            self._limits[spec.name] = plan.room_for(len(wanted), state.maxelem)
            self._restore_one(plan.swap(spec, wanted, state.maxelem))
        else:
            self._restore_one(Block(spec, plan.delta(spec.name, added, removed)))
        return changes

    def put_all(self, sets: Mapping[IpsetSpec, Collection[str]]) -> list[SetFailure]:
        """Create sets with these entries, or replace all that they hold, each in one step.

        One ``ipset restore`` does it, and more only where something is refused.
        """
        return self._put(sets, self._standing()) if sets else []

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
            self._restore_one(Block(spec, plan.delta(spec.name, added, removed)))
        return changes

    def change_all(self, changes: Sequence[SetChange]) -> list[SetFailure]:
        """Carry out the additions of all changes, then the removals, without reading the sets.

        One ``ipset restore`` does it, and more only where something is refused.
        """
        self.writes += sum(len(change.add) + len(change.remove) for change in changes)
        planned = plan.plan_changes(changes, self._limits)
        return self._restore(
            [block for _, block in planned],
            lambda number, _: self._change_alone(*planned[number]),
        )

    def destroy(self, names: Iterable[str]) -> None:
        """Destroy sets by name; a missing one is no error.

        All are tried; KernelError then names those that could not be destroyed (because a rule
        or another set refers to them).
        """
        wanted = [each for name in names for each in (name, plan.spare_name(name))]
        standing = self._names()
        doomed = [name for name in wanted if name in standing]
        self.writes += len(doomed)
        failed = self._destroy(doomed)
        for pause_s in self.release_pauses_s:
            held = [name for name, complaint in failed.items() if _IN_USE in complaint]
            if self._held.issuperset(held):
                break
            time.sleep(pause_s)
            again = self._destroy(held)
            failed = {
                name: why for name, why in failed.items() if name in again or name not in held
            }
        for name in doomed:
            if name not in failed:
                self._limits.pop(name, None)
        self._held = (self._held - set(wanted)) | failed.keys()
        if failed:
            causes = (f"{name}: {complaint}" for name, complaint in failed.items())
            raise KernelError("ipset destroy: " + "; ".join(causes), errno.EBUSY)

    def close(self) -> None:
        """Nothing to release: every call runs a program of its own."""

    def _read_state(self, name: str) -> SetState | None:
        done = self._run(["save", name])
        if done.code != 0:
            if _ABSENT in done.stderr:
                return None
            raise KernelError(f"ipset save {name}: {done.complaint}")
        state = parse_save(done.stdout, name.__eq__)[name]
        self._limits[name] = state.maxelem
        return state

    def _names(self) -> frozenset[str]:
        done = self._run(["list", "-name"])
        if done.code != 0:
            raise KernelError(f"ipset list: {done.complaint}")
        return frozenset(done.stdout.split())

    def _standing(self, *names: str) -> dict[str, IpsetSpec]:
        """The sets that stand; with ``names``, none or the one of that name."""
        done = self._run(["list", "-terse", *names])
        if done.code != 0:
            if names and _ABSENT in done.stderr:
                return {}
            raise KernelError(f"ipset list: {done.complaint}")
        return parse_list(done.stdout)

    def _replace(self, spec: IpsetSpec, wanted: frozenset[str], found: IpsetSpec) -> int:
        log.warning("replacing a set reason=%r", _difference(found, spec))
        self.writes += 1 + len(wanted)
        done = self._run(["destroy", spec.name], writes=True)
        if done.code != 0 and _ABSENT not in done.stderr:
            raise KernelError(f"ipset {_difference(found, spec)}{_HELD}", errno.EBUSY)
        self._restore_one(plan.create(spec, wanted))
        return 1 + len(wanted)

    def _put(
        self, sets: Mapping[IpsetSpec, Collection[str]], standing: Mapping[str, IpsetSpec]
    ) -> list[SetFailure]:
        refused = [
            SetFailure(spec.name, complaint)
            for spec in sets
            if (complaint := _name_complaint(spec.name))
        ]
        names = {failure.name for failure in refused}
        blocks = plan.plan_put(
            {spec: entries for spec, entries in sets.items() if spec.name not in names},
            standing,
            self._limits,
        )
        self.writes += sum(1 + len(sets[block.spec]) for block in blocks)

        def put_alone(number: int, complaint: str) -> str | None:
            block = blocks[number]
            found = standing.get(block.spec.name, block.spec)
            if found != block.spec and _IN_USE in complaint:
                return f"{_difference(found, block.spec)}{_HELD}"
            return self._alone(block)

        return refused + self._restore(blocks, put_alone)

    def _change_alone(self, change: SetChange, block: Block) -> str | None:
        """Do for one set what was refused in the batch: create it, enlarge it, or leave out."""
        spec = change.spec
        standing = self._standing(spec.name)
        if standing.get(spec.name) != spec:
            failures = self._put({spec: change.content}, standing)
            return failures[0].message if failures else None

        def enlarged() -> Block:
            wanted = canonical_entries(spec.type, change.content)
            wanted |= canonical_entries(spec.type, change.remove)
            self._limits[spec.name] = plan.room_for(len(wanted))
            return plan.swap(spec, wanted)

        return self._alone(block, enlarged)

    def _alone(self, block: Block, enlarged: Callable[[], Block] | None = None) -> str | None:
        """Carry out a block without the entries that are refused; says what was left out.

        ``enlarged`` makes the block that takes its place when the set is full.
        """
        lines = list(block.lines)
        refused: list[str] = []
        while len(refused) < _REFUSALS_MAX:
            if block.spare:
                self._destroy_spare(block.spec.name)
            done = self._run(["restore"], _text(lines), writes=True)
            if done.code == 0:
                return "; ".join(refused) or None
            if enlarged is not None and _FULL in done.complaint:
                block, enlarged = enlarged(), None
                lines, refused = list(block.lines), []
                continue
            number = _failed_line(done)
            refused.append(_plain(done.complaint))
            if not 0 <= number < len(lines) or not lines[number].startswith(("add ", "del ")):
                break
            refused[-1] += f" ({lines.pop(number).removesuffix(' -exist')})"
        if block.spare:
            self._destroy_spare(block.spec.name)
        return "; ".join(refused)

    def _restore(self, blocks: Sequence[Block], remedy: Remedy) -> list[SetFailure]:
        """Carry out blocks in order; where one is refused, the remedy does its work instead."""
        failures: dict[str, str] = {}
        pending = list(enumerate(blocks))
        refusals = 0
        while pending:
            lines = [line for _, block in pending for line in block.lines]
            began = time.monotonic()
            done = self._run(["restore"], _text(lines), writes=True)
            self._tell(pending, time.monotonic() - began)
            if done.code == 0:
                break
            if _NO_ROOM in done.complaint:
                # The others of which there is none would be refused, too, one by one.
                found = self._names()
                kept = [each for each in pending if found.issuperset(_made(each[1]))]
                if len(kept) < len(pending):
                    stays = {index for index, _ in kept}
                    left = [block for index, block in pending if index not in stays]
                    failures |= {each.spec.name: _plain(done.complaint) for each in left}
                    pending = kept
                    continue
            number = _failed_line(done)
            if not 0 <= number < len(lines) or refusals == _REFUSALS_MAX:
                rest = {block.spec.name: done.complaint for _, block in pending}
                failures = {**rest, **failures}
                break
            refusals += 1
            position = 0
            while number >= len(pending[position][1].lines):
                number -= len(pending[position][1].lines)
                position += 1
            index, block = pending.pop(position)
            # What went before the refused line may be lost, and all that a block does can be done
            # twice. A spare is made anew: it may be there by now, with other options.
            if (message := remedy(index, done.complaint)) is not None:
                failures.setdefault(block.spec.name, message)
            standing = self._names() if any(other.spare for _, other in pending) else frozenset()
            for _, other in pending:
                if other.spare and plan.spare_name(other.spec.name) in standing:
                    self._destroy_spare(other.spec.name)
        return [SetFailure(name, message) for name, message in failures.items()]

    def _tell(self, blocks: Iterable[tuple[int, Block]], seconds: float) -> None:
        for family in {block.spec.family for _, block in blocks}:
            self.observe(f"ipset_{'v4' if family == 'inet' else 'v6'}_restore", seconds)

    def _restore_one(self, block: Block) -> None:
        done = self._run(["restore"], _text(block.lines), writes=True)
        if done.code != 0:
            raise KernelError(f"ipset {block.spec.name}: {done.complaint}")

    def _destroy(self, names: Sequence[str]) -> dict[str, str]:
        """Destroy sets; returns why not, by name."""
        failed: dict[str, str] = {}
        pending = list(names)
        while pending:
            done = self._run(["restore"], _text(f"destroy {n}" for n in pending), writes=True)
            if done.code == 0:
                break
            number = _failed_line(done)
            if not 0 <= number < len(pending):
                raise KernelError(f"ipset destroy: {done.complaint}")
            if _ABSENT not in done.stderr:
                failed[pending[number]] = _plain(done.complaint)
            del pending[: number + 1]
        return failed

    def _destroy_spare(self, name: str) -> None:
        """Left by a crash or a failure; absent otherwise, which is no error."""
        self._run(["destroy", plan.spare_name(name)], writes=True)

    def _run(self, arguments: list[str], stdin: str = "", *, writes: bool = False) -> Finished:
        timeout_s = _TIMEOUT_S + _SWAP_TIMEOUT_S * stdin.count("\nswap ")
        return run([self._program, *arguments], stdin, timeout_s=timeout_s, writes=writes)


_HELD = " and is in use; delete the rules that refer to it (iptables-save shows them)"


def _difference(found: IpsetSpec, wanted: IpsetSpec) -> str:
    return (
        f"{wanted.name} exists as {found.type} {found.family} instead of "
        f"{wanted.type} {wanted.family}"
    )


def _name_complaint(name: str) -> str:
    return "name longer than 31 bytes" if len(name.encode()) > NAME_BYTES_MAX else ""


def _made(block: Block) -> set[str]:
    """The sets that a block creates where they are not there."""
    return {line.split(" ")[1] for line in block.lines[:2] if line.startswith("create ")}


def _text(lines: Iterable[str]) -> str:
    return "\n".join((*lines, ""))


def _failed_line(done: Finished) -> int:
    """Index of the line that was refused, or -1."""
    found = _LINE.search(done.stderr)
    return int(found.group(1)) - 1 if found else -1


def _plain(complaint: str) -> str:
    """A complaint without the program's version and the line's number."""
    return re.sub(r"^ipset v[\d.]+: |Error in line \d+: ", "", complaint)
