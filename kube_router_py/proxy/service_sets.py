"""The thin hand that keeps the sets of ``packet_sets`` in step with Services.

What virtual servers and addresses give the sets follows from those that stand; only guards and
hairpins are remembered. So a turn that changes endpoints alone costs the sets nothing. In a full
turn, and after a failure, the sets are read back and made to agree.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct, structs

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import Ipsets
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import (
    Guard,
    Hairpin,
    IpvsTable,
    RealServerKey,
    Verb,
    Vip,
    VirtualServerKey,
)
from kube_router_py.proxy.packet_sets import (
    SETS,
    Entries,
    guard_entries,
    hairpin_entry,
    port_entry,
    put_entries,
    vip_entry,
)
from kube_router_py.proxy.plan import Plan


class SetChanges(Struct):
    """Entries to add before IPVS changes, and to remove after it has.

    ``guarded``: the virtual servers from which what is added keeps somebody.
    """

    add: Entries
    remove: Entries
    guarded: set[VirtualServerKey]


class ServiceSets:
    """Used by the service proxy's loop, in its thread.

    Within a turn, ``before`` comes before IPVS and addresses change, ``after`` behind that.
    ``withheld`` are virtual servers that were left as they are, because those who are to be kept
    from them could not be. ``problems`` tell what failed; the next turn reads the sets back.
    """

    def __init__(self, node_name: str, families: Iterable[int]) -> None:
        self._node_name = node_name
        self._sets = [SETS[family] for family in families]
        self._guards: dict[VirtualServerKey, Guard] = {}
        self._hairpins: dict[str, frozenset[Hairpin]] = {}
        # Two Services may have the same endpoint.
        self._users: Counter[Hairpin] = Counter()
        self._is_known = False
        self._remove: Entries = {}
        self.problems: tuple[Problem, ...] = ()
        self.withheld: frozenset[VirtualServerKey] = frozenset()

    def doubt(self) -> None:
        """Read the sets back in the next turn."""
        self._is_known = False

    def hairpins(self) -> Iterator[RealServerKey]:
        """The endpoints that may reach themselves."""
        return (each.real_server for each in self._users)

    def before(
        self,
        ipsets: Ipsets,
        planned: Plan,
        desired: Desired,
        changes: Changes,
        servers: IpvsTable,
        vips: Collection[Vip],
        *,
        full: bool,
        only_grow: bool,
    ) -> Plan:
        """Add what the plan needs; returns what of the plan may be done.

        ``changes`` is what may differ from the last turn, ``servers`` and ``vips`` what stands
        before this one. ``full``: read the sets back. ``only_grow``: an entry that nothing asks
        for may be needed by something that is not known yet, and stays.
        """
        self.problems, self.withheld = (), frozenset()
        full = full or not self._is_known
        if full:
            changes = Changes(
                frozenset({*desired.servers(), *self._guards}),
                frozenset(),
                frozenset({*desired.services(), *self._hairpins}),
            )
        found = SetChanges({}, {}, set())
        _follow_plan(found, planned, vips)
        self._follow_guards(found, desired, changes.servers)
        self._follow_hairpins(found, desired, changes.services)
        self._remove = found.remove
        try:
            if full:
                wanted = self._wanted(planned, servers, vips)
                found.add, self._remove = self._compare(ipsets, wanted)
                self._is_known = True
                if only_grow:
                    self._remove = {}
            self._add(ipsets, found.add)
        except KernelError as error:
            self._failed(error)
            self.withheld = frozenset(found.guarded)
        return _without(planned, self.withheld, vips) if self.withheld else planned

    def after(self, ipsets: Ipsets) -> None:
        """Remove what this turn made superfluous."""
        remove, self._remove = self._remove, {}
        try:
            for sets in self._sets:
                for spec in reversed(sets.of_services()):
                    if entries := remove.get(spec):
                        ipsets.change(spec, frozenset(), frozenset(entries))
        except KernelError as error:
            self._failed(error)

    def _failed(self, error: KernelError) -> None:
        self._is_known = False
        problem = Problem(f"Node {self._node_name}", "", f"service rules: {error}")
        self.problems = (*self.problems, problem)

    def _add(self, ipsets: Ipsets, entries: Entries) -> None:
        for sets in self._sets:
            for spec in sets.of_services():
                if not (added := entries.get(spec)):
                    continue
                try:
                    ipsets.change(spec, frozenset(added), frozenset())
                except KernelError:
                    # No room is left, or others have removed it: ensure makes a larger one.
                    ipsets.ensure(spec, (ipsets.read(spec.name) or frozenset()) | added)
                    self._is_known = False

    def _follow_guards(
        self, found: SetChanges, desired: Desired, keys: Iterable[VirtualServerKey]
    ) -> None:
        for key in keys:
            if key.fwmark:
                continue  # direct servers are guarded where they are marked
            old, new = self._guards.get(key), desired.guard(key)
            if old == new:
                continue
            before, after = set(guard_entries(key, old)), set(guard_entries(key, new))
            put_entries(found.add, after - before)
            put_entries(found.remove, before - after)
            if after - before:
                found.guarded.add(key)
            if new is None:
                del self._guards[key]
            else:
                self._guards[key] = new

    def _follow_hairpins(
        self, found: SetChanges, desired: Desired, services: Iterable[str]
    ) -> None:
        for name in services:
            compiled = desired.compiled(name)
            old = self._hairpins.pop(name, frozenset())
            new = compiled.hairpins if compiled else frozenset()
            if new:
                self._hairpins[name] = new
            for each in new - old:
                self._users[each] += 1
                put_entries(found.add, [hairpin_entry(each)])
            for each in old - new:
                self._users[each] -= 1
                if not self._users[each]:
                    del self._users[each]
                    put_entries(found.remove, [hairpin_entry(each)])

    def _wanted(self, planned: Plan, servers: IpvsTable, vips: Collection[Vip]) -> Entries:
        """All entries of all sets, once the plan is carried out."""
        found: Entries = {}
        gone = {each.key for each in planned.shrink if each.verb is Verb.DELETE_VIRTUAL_SERVER}
        put_entries(
            found, (port_entry(key) for key in servers if not key.fwmark and key not in gone)
        )
        put_entries(found, (vip_entry(vip) for vip in {*vips}.difference(planned.remove_vips)))
        for key, guard in self._guards.items():
            put_entries(found, guard_entries(key, guard))
        put_entries(found, map(hairpin_entry, self._users))
        added = SetChanges({}, {}, set())
        _follow_plan(added, planned, vips)
        for spec, entries in added.add.items():
            found.setdefault(spec, set()).update(entries)
        return found

    def _compare(self, ipsets: Ipsets, wanted: Entries) -> tuple[Entries, Entries]:
        """What is missing in the sets, and what is too much; a set that is not there is made."""
        add: Entries = {}
        remove: Entries = {}
        for sets in self._sets:
            for spec in sets.of_services():
                entries = wanted.get(spec, set())
                standing = ipsets.read(spec.name)
                if standing is None:
                    ipsets.ensure(spec, frozenset(entries))
                    continue
                add[spec], remove[spec] = entries - standing, set(standing - entries)
        return add, remove


def _follow_plan(found: SetChanges, planned: Plan, vips: Collection[Vip]) -> None:
    """What the virtual servers and addresses of a plan change in the sets."""
    for operations, verb, entries in (
        (planned.grow, Verb.ADD_VIRTUAL_SERVER, found.add),
        (planned.shrink, Verb.DELETE_VIRTUAL_SERVER, found.remove),
    ):
        put_entries(
            entries,
            (
                port_entry(each.key)
                for each in operations
                if each.verb is verb and not each.key.fwmark
            ),
        )
    put_entries(found.add, (vip_entry(vip) for vip in planned.put_vips if vip not in vips))
    put_entries(found.remove, map(vip_entry, planned.remove_vips))


def _without(planned: Plan, withheld: Collection[VirtualServerKey], vips: Collection[Vip]) -> Plan:
    """A plan that leaves some virtual servers as they are, and their addresses unexposed."""
    theirs = {Vip(key.family, key.address) for key in withheld}.difference(vips)
    return structs.replace(
        planned,
        grow=tuple(each for each in planned.grow if each.key not in withheld),
        shrink=tuple(each for each in planned.shrink if each.key not in withheld),
        put_vips={vip: source for vip, source in planned.put_vips.items() if vip not in theirs},
    )
