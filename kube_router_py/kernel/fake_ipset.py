"""A stateful fake of named sets: the adapter is the real one, the program it runs is not.

``FakeIpsetKernel`` does what ``ipset`` does with the few commands the adapter gives, and refuses
what the kernel refuses. Each line of a ``restore`` is a step by itself, as on a real node.
"""

import ipaddress
from collections.abc import Callable, Iterable

from msgspec import Struct, field

from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.ipset_plan import MAXELEM_DEFAULT
from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.kernel.program import Finished

_ABSENT = "The set with the given name does not exist"
_NOMATCH = "nomatch"


class FakeIpsetKernel(Struct, eq=False):
    """Sets of one fake namespace. Two are equal if their sets are.

    ``in_use`` names sets that a rule refers to, beside those that ``references`` gives (see
    ``fake_iptables.connect``). Any change of the content of a set in ``refused`` fails, as does
    adding an entry in ``refused_entries``. There are at most ``most`` sets.
    ``after_step`` is called after each line carried out.
    """

    sets: dict[str, tuple[IpsetSpec, frozenset[str]]] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    maxelem: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    refused_entries: set[str] = field(default_factory=set)
    most: int = 65534
    references: Callable[[], set[str]] = set
    after_step: Callable[[], None] | None = None
    runs: list[str] = field(default_factory=list)
    """The commands given so far."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FakeIpsetKernel) and self.sets == other.sets

    __hash__ = None  # type: ignore[assignment]

    def run(self, arguments: list[str], stdin: str) -> Finished:
        """What the program would print, and its exit code."""
        self.runs.append(" ".join(arguments))
        verb, *rest = arguments
        if verb == "restore":
            return self._restore(stdin.splitlines())
        if verb == "destroy":
            complaint = self._destroy(rest[0])
            return Finished(1, "", f"ipset v7: {complaint}") if complaint else Finished(0, "", "")
        names = [word for word in rest if not word.startswith("-")] or list(self.sets)
        if not set(names) <= self.sets.keys():
            return Finished(1, "", f"ipset v7: {_ABSENT}")
        if verb == "save":
            return Finished(0, "".join(map(self._saved, names)), "")
        if rest[0] == "-name":
            return Finished(0, "".join(f"{name}\n" for name in names), "")
        return Finished(0, "\n".join(map(self._listed, names)), "")

    def held(self) -> set[str]:
        """Names of the sets that a rule refers to."""
        return self.in_use | self.references()

    def _header(self, name: str) -> str:
        spec = self.sets[name][0]
        maxelem = self.maxelem.get(name, MAXELEM_DEFAULT)
        return f"family {spec.family} hashsize 64 maxelem {maxelem}"

    def _saved(self, name: str) -> str:
        spec, entries = self.sets[name]
        lines = "".join(f"add {name} {entry}\n" for entry in entries)
        return f"create {name} {spec.type} {self._header(name)}\n{lines}"

    def _listed(self, name: str) -> str:
        kind = self.sets[name][0].type
        return f"Name: {name}\nType: {kind}\nHeader: {self._header(name)}\n"

    def _restore(self, lines: list[str]) -> Finished:
        open_set: _OpenSet | None = None
        for number, line in enumerate(lines, 1):
            verb, name, *words = line.split(" ")
            if open_set is None or open_set.name != name:
                if open_set is not None:
                    open_set.close()
                open_set = _OpenSet(self, name)
            if verb in ("add", "del"):
                complaint = open_set.edit(verb, " ".join(w for w in words if w != "-exist"))
                if self.after_step is not None:
                    open_set.close()
            else:
                open_set.close()
                open_set = None
                complaint = self._command(verb, name, words)
            if complaint:
                if open_set is not None:
                    open_set.close()
                return Finished(1, "", f"ipset v7: Error in line {number}: {complaint}")
            if self.after_step is not None:
                self.after_step()
        if open_set is not None:
            open_set.close()
        return Finished(0, "", "")

    def _command(self, verb: str, name: str, words: list[str]) -> str:
        if verb == "create":
            return self._create(name, words)
        if verb == "destroy":
            return self._destroy(name)
        if name not in self.sets:
            return _ABSENT
        spec, entries = self.sets[name]
        if verb == "flush":
            self.sets[name] = (spec, frozenset())
            return ""
        other = words[0]
        if other not in self.sets:
            return "Sets cannot be swapped: the second set does not exist"
        if name in self.refused or other in self.refused:
            return "Kernel error received: refused by the test"
        found, held = self.sets[other]
        if (found.type, found.family) != (spec.type, spec.family):
            return "The sets cannot be swapped: their type does not match"
        self.sets[name] = (spec, held)
        self.sets[other] = (found, entries)
        limits = [self.maxelem.get(each, MAXELEM_DEFAULT) for each in (other, name)]
        self.maxelem[name], self.maxelem[other] = limits
        return ""

    def _create(self, name: str, words: list[str]) -> str:
        options = dict(zip(words[1::2], words[2::2], strict=False))
        spec = IpsetSpec(name, words[0], options.get("family", "inet"))
        limit = int(options.get("maxelem", MAXELEM_DEFAULT))
        if name in self.refused:
            return "Kernel error received: refused by the test"
        if name in self.sets:
            if self.sets[name][0] == spec and self.maxelem.get(name) == limit:
                return ""
            return "Set cannot be created: set with the same name already exists"
        if len(self.sets) >= self.most:
            return "Kernel error received: maximal number of sets reached, cannot create more."
        self.sets[name] = (spec, frozenset())
        self.maxelem[name] = limit
        return ""

    def _destroy(self, name: str) -> str:
        if name not in self.sets:
            return _ABSENT
        if name in self.held():
            return "Set cannot be destroyed: it is in use by a kernel component"
        del self.sets[name]
        self.maxelem.pop(name, None)
        return ""


class _OpenSet:
    """A set while consecutive lines change it: copied once, not for each entry."""

    def __init__(self, kernel: FakeIpsetKernel, name: str) -> None:
        self.name = name
        self._kernel = kernel
        found = kernel.sets.get(name)
        self._spec = found[0] if found else None
        self._entries = set(found[1]) if found else set()
        self._limit = kernel.maxelem.setdefault(name, MAXELEM_DEFAULT) if self._spec else 0
        self._changed = False

    def edit(self, verb: str, entry: str) -> str:
        if self._spec is None:
            return _ABSENT
        if self.name in self._kernel.refused:
            return "Kernel error received: refused by the test"
        element, _, flag = entry.partition(" ")
        # An element is in a set once, with a flag or without.
        other = element if flag else f"{element} {_NOMATCH}"
        if verb == "del":
            if flag:
                return f"Unknown argument: `{flag}'"
            self._changed |= not self._entries.isdisjoint((entry, other))
            self._entries -= {entry, other}
            return ""
        if entry in self._kernel.refused_entries or not _is_parsable(self._spec, entry):
            return f"Syntax error: cannot parse {entry}"
        if entry not in self._entries:
            self._entries.discard(other)
            if len(self._entries) >= self._limit:
                return "Hash is full, cannot add more elements"
            self._changed = True
            self._entries.add(entry)
        return ""

    def close(self) -> None:
        if self._spec is not None and self._changed:
            self._kernel.sets[self.name] = (self._spec, frozenset(self._entries))
            self._changed = False


def _is_parsable(spec: IpsetSpec, entry: str) -> bool:
    kinds = spec.type.partition(":")[2].split(",")
    parts = entry.split(" ")[0].split(",")
    try:
        return all(_is_address(spec.family, part) for part in _addresses(kinds, parts))
    except ValueError:
        return False


def _addresses(kinds: Iterable[str], parts: Iterable[str]) -> list[str]:
    pairs = zip(kinds, parts, strict=True)
    return [part for kind, part in pairs if kind in ("ip", "net")]


def _is_address(family: str, text: str) -> bool:
    network = ipaddress.ip_network(text)
    return network.version == (4 if family == "inet" else 6)


class FakeIpsets(IpsetProgram):
    """A stateful ``ports.Ipsets``."""

    release_pauses_s = ()

    def __init__(self, kernel: FakeIpsetKernel | None = None) -> None:
        super().__init__()
        self.closed = False
        self.kernel = kernel or FakeIpsetKernel()

    def close(self) -> None:
        self.closed = True

    def _run(self, arguments: list[str], stdin: str = "", *, writes: bool = False) -> Finished:
        del writes
        return self.kernel.run(arguments, stdin)
