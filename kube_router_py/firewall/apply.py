"""The thin hand of the firewall: changes of the desired state, and repairs, to the kernel.

Order, in each turn: sets are created and grow; then chains, of a family in one commit; then sets
shrink, and what nothing refers to any more is destroyed. With ``local_pods`` it is the other way
round: an address is in there only while all that concerns it stands. Where this order is not enough
(``Changes.entangled``), and where it is not known what stood before, sets of policies are changed
under an overlay.

Where a step fails, what depends on it waits, and the next turn compares everything with the kernel.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.firewall.bridges import filter_bridges
from kube_router_py.firewall.contents import InBetween, SetDelta
from kube_router_py.firewall.desired import Changes, Desired, Rules
from kube_router_py.firewall.frame import (
    JUMPS,
    audited_pods,
    frame_sets,
    is_own_chain,
    is_own_set,
    isolated_pods,
    local_pods,
)
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.overlay import Overlay
from kube_router_py.firewall.refused import refused_rules, told, without
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel.jump_watch import JumpWatch
from kube_router_py.kernel.ports import HostPorts, IpsetSpec, SetChange, SetFailure, TableRules
from kube_router_py.problem import Problem

_log = logging.getLogger(__name__)

_TABLE = "filter"


class Applier:
    """Used by the firewall's loop, in its thread.

    ``problems``: what went wrong in the last turn. ``is_settled``: nothing of it is left to do.
    ``drift``: how many sets, chains and jumps others had changed, and were put right.
    """

    def __init__(
        self,
        node_name: str,
        options: FirewallOptions,
        desired: Desired,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._node = f"Node {node_name}"
        self._options = options
        self._desired = desired
        # Whether the kernel is known to hold what was desired when changes were last taken.
        self._is_known = False
        self._has_failed = False
        self._failures: list[Problem] = []
        # Rules of policies that the kernel does not take, with its complaint, by family.
        self._refused: dict[str, dict[str, str]] = {}
        # Families in which it could not be told who is isolated.
        self._unguarded: set[str] = set()
        self._jumps = JumpWatch()
        # What iptables does not see here, since this was last looked at.
        self._unseen: list[Problem] = []
        self.drift = 0

    @property
    def problems(self) -> list[Problem]:
        refused = (
            Problem(self._node, "", f"policies: {what}")
            for rules in self._refused.values()
            for what in told(rules)
        )
        return [*self._failures, *self._unseen, *refused, *self._jumps.problems(self._clock())]

    @property
    def is_settled(self) -> bool:
        return self._is_known and not self._has_failed and not self._unseen

    @property
    def stands(self) -> bool:
        """Whether all that the kernel takes of what is desired is in it."""
        return self._is_known

    def doubt(self) -> None:
        """Compare everything with the kernel in the next turn."""
        self._is_known = False

    def apply(self, ports: HostPorts, changes: Changes, *, full: bool) -> None:
        """Carry out changes; with ``full``, or in doubt, compare with the kernel and repair.

        Raises KernelError where the kernel cannot be asked.
        """
        self._failures, self._has_failed = [], False
        if self._is_known and changes:
            self._change(ports, changes)
        if not self._is_known or full:
            self._verify(ports)

    # --- what changed --------------------------------------------------------------------------

    def _change(self, ports: HostPorts, changes: Changes) -> None:
        created = {spec: self._desired.sets[spec] for spec in changes.created}
        overlay = self._lay_over(ports, changes.changed, changes.entangled)
        changed = {s: delta for s, delta in changes.changed.items() if s not in overlay.deltas}
        held = self._grow(ports, created, changed)
        for family in self._options.families:
            chains, gone = changes.chains.get(family, {}), changes.gone.get(family, set())
            chains = {**chains, **self._looking_into(overlay, family)}
            if not chains and not gone:
                continue
            try:
                chains = self._under(overlay, family, self._without(chains, held))
                self._commit(ports, family, chains, gone)
            except KernelError as error:
                held |= self._fail(family, error)
        self._lift(ports, overlay, held)
        dropped = {each.name for each in changes.dropped} | overlay.names()
        self._shrink(ports, changed, dropped, held)
        self._is_known = not self._has_failed
        _log.debug(
            "programmed sets_created=%d sets_changed=%d sets_dropped=%d chains=%d chains_gone=%d",
            len(changes.created),
            len(changes.changed),
            len(changes.dropped),
            sum(map(len, changes.chains.values())),
            sum(map(len, changes.gone.values())),
        )

    # --- what differs --------------------------------------------------------------------------

    def _verify(self, ports: HostPorts) -> None:
        was_known, self._is_known = self._is_known, False
        self._refused.clear()
        told = filter_bridges(ports, self._options.families)
        self._unseen = [Problem(self._node, "", f"policies: {each}") for each in told]
        standing = ports.ipsets.read_all(is_own_set)
        sets = self._desired.sets
        created: dict[IpsetSpec, Collection[str]] = {}
        changed: dict[IpsetSpec, SetDelta] = {}
        for spec in sets.specs():
            found = standing.pop(spec.name, None)
            if found is None or found.spec != spec:
                created[spec] = sets[spec]
                continue
            delta = SetDelta(
                sets[spec].keys() - found.entries, {*found.entries - sets[spec].keys()}
            )
            if delta.add or delta.remove:
                changed[spec] = delta
        # What others have changed is put right as it comes.
        families = () if was_known else self._options.families
        overlay = self._lay_over(ports, changed, families)
        apart = {spec: delta for spec, delta in changed.items() if spec not in overlay.deltas}
        held = self._grow(ports, created, apart)
        held |= self._give_up(ports, standing)
        words: list[str] = []
        for family in self._options.families:
            if held.intersection(each.name for each in frame_sets(family)):
                held.add(family)  # rules without these would let pass what must not
                continue
            chains = self._without(self._desired.chains[family], held)
            try:
                words += self._ensure(ports, family, self._under(overlay, family, chains))
            except KernelError as error:
                held |= self._fail(family, error)
        self._lift(ports, overlay, held)
        self._shrink(ports, apart, {*standing, *overlay.names()}, held)
        self._is_known = not self._has_failed
        self._tell(was_known, [*created, *changed], words)

    def _give_up(self, ports: HostPorts, standing: Iterable[str]) -> set[str]:
        """Remove the rules of families that are switched off now, of which sets stand: they would
        go on deciding by sets that nobody fills. Returns the families of which they stay."""
        held: set[str] = set()
        for family in {*map(_family, standing)}.difference(self._options.families):
            try:
                ports.iptables.ensure(family, _TABLE, TableRules({}), is_own_chain)
            except KernelError as error:
                held |= self._fail(family, error)
        return held

    def _tell(self, was_known: bool, sets: list[IpsetSpec], words: list[str]) -> None:
        if not sets and not words:
            return
        if not was_known:
            _log.info("programmed sets=%d rules=%d", len(sets), len(words))
            return
        self.drift += len(sets) + len(words)
        what = [*(f"set {spec.name}" for spec in sets), *words]
        _log.warning(
            "repaired what others had changed count=%d what=%r", len(what), "; ".join(what[:10])
        )

    # --- chains --------------------------------------------------------------------------------

    def _commit(
        self, ports: HostPorts, family: str, chains: Mapping[str, Rules], gone: Iterable[str]
    ) -> None:
        def change(chains: dict[str, Rules]) -> tuple[str, ...]:
            ports.iptables.change(family, _TABLE, chains, gone)
            return ()

        known = len(self._refused.get(family, ()))
        self._try(ports, family, chains, change)
        if len(self._refused.get(family, ())) > known:
            # For want of a set, perhaps, which others have destroyed: that can be put right.
            self._has_failed = True

    def _ensure(
        self, ports: HostPorts, family: str, chains: Mapping[str, Rules]
    ) -> tuple[str, ...]:
        now_s = self._clock()
        leave = self._jumps.leave(family, _TABLE, now_s)

        def ensure(chains: dict[str, Rules]) -> tuple[str, ...]:
            rules = TableRules(chains, JUMPS)
            return ports.iptables.ensure(family, _TABLE, rules, is_own_chain, leave=leave)

        words = self._try(ports, family, chains, ensure)
        self._jumps.note(family, _TABLE, words, now_s)
        return words

    def _try(
        self,
        ports: HostPorts,
        family: str,
        chains: Mapping[str, Rules],
        write: Callable[[dict[str, Rules]], tuple[str, ...]],
    ) -> tuple[str, ...]:
        """Write chains; where the kernel refuses some rules of policies, write the others."""
        refused = self._refused.get(family, {})
        try:
            return write({name: without(rules, refused) for name, rules in chains.items()})
        except StateUnknownError:
            raise
        except KernelError:
            more = refused_rules(ports.iptables, family, chains)
            if not more.keys() - refused.keys():
                raise
            refused = self._refused[family] = {**refused, **more}
            return write({name: without(rules, refused) for name, rules in chains.items()})

    # --- all in one step -----------------------------------------------------------------------

    def _lay_over(
        self, ports: HostPorts, changed: Mapping[IpsetSpec, SetDelta], families: Collection[str]
    ) -> Overlay:
        """Make what stands beside the sets of policies in these families, while they change."""
        frame = {spec for family in families for spec in frame_sets(family)}
        overlay = Overlay(
            {
                spec: delta
                for spec, delta in changed.items()
                if spec.family in families and spec not in frame
            }
        )
        failures = ports.ipsets.put_all(overlay.sets) if overlay.sets else []
        self._fail_sets(failures)
        # Without it things go their way one by one.
        return Overlay({}) if failures else overlay

    def _looking_into(self, overlay: Overlay, family: str) -> dict[str, Rules]:
        names = self._desired.chains_with(overlay.specs(family))
        chains = self._desired.chains[family]
        return {name: chains[name] for name in names if name in chains}

    def _under(
        self, overlay: Overlay, family: str, chains: Mapping[str, Rules]
    ) -> dict[str, Rules]:
        refused = self._refused.get(family, {})
        return {name: overlay.over(without(rules, refused)) for name, rules in chains.items()}

    def _lift(self, ports: HostPorts, overlay: Overlay, held: set[str]) -> None:
        """Bring the sets to where the rules see them already, then have rules see them alone."""
        moving = [
            SetChange(spec, self._desired.sets[spec], frozenset(d.add), frozenset(d.remove))
            for spec, d in overlay.deltas.items()
            if spec.family not in held
        ]
        if not moving:
            return
        failures = ports.ipsets.change_all(moving)
        self._fail_sets(failures)
        held.update(_family(each.name) for each in failures)
        for family in {change.spec.family for change in moving} - held:
            # What was refused under the overlay is tried as it is.
            refused = self._refused.get(family, {})
            for rule in [r for r in refused if not overlay.names().isdisjoint(r.split())]:
                del refused[rule]
            try:
                chains = self._without(self._looking_into(overlay, family), held)
                self._commit(ports, family, chains, ())
            except KernelError as error:
                held |= self._fail(family, error)

    # --- sets ----------------------------------------------------------------------------------

    def _grow(
        self,
        ports: HostPorts,
        created: Mapping[IpsetSpec, Collection[str]],
        changed: Mapping[IpsetSpec, SetDelta],
    ) -> set[str]:
        """Returns the names of sets that are not as the chains need them."""
        going: list[SetChange] = []
        growing: list[SetChange] = []
        for spec, delta in changed.items():
            entries = self._desired.sets[spec]
            if _is_last(spec):
                if delta.remove:
                    content = InBetween(entries, less=delta.add)
                    going.append(SetChange(spec, content, remove=frozenset(delta.remove)))
            elif delta.add:
                content = InBetween(entries, more=delta.remove)
                growing.append(SetChange(spec, content, add=frozenset(delta.add)))
        created = {spec: created[spec] for spec in sorted(created, key=self._desired.by_need)}
        failures = ports.ipsets.put_all(created) if created else []
        for batch in self._in_order(going, growing):
            failures += ports.ipsets.change_all(batch)
        self._fail_sets(failures)
        failed = {each.name for each in failures}
        self._unguarded = {
            family
            for family in self._options.families
            if any(isolated_pods(each, family).name in failed for each in Direction)
        }
        # One of a policy that stood before still stands; it lacks an entry, which admits less.
        return failed & {spec.name for spec in created}

    def _shrink(
        self,
        ports: HostPorts,
        changed: Mapping[IpsetSpec, SetDelta],
        dropped: Iterable[str],
        held: set[str],
    ) -> None:
        """``held``: names of sets, and families, that have to stay as they are."""
        shrinking: list[SetChange] = []
        coming: list[SetChange] = []
        # By these, what was audited gets to its chain, which may refuse by now.
        staying = {audited_pods(each, family) for family in self._unguarded for each in Direction}
        for spec, delta in changed.items():
            if spec.family in held or spec in staying:
                continue
            add, remove = frozenset(delta.add), frozenset(delta.remove)
            if _is_last(spec) and add and spec.family not in self._unguarded:
                coming.append(SetChange(spec, self._desired.sets[spec], add=add))
            elif not _is_last(spec) and remove:
                shrinking.append(SetChange(spec, self._desired.sets[spec], remove=remove))
        for batch in self._in_order(shrinking, coming):
            self._fail_sets(ports.ipsets.change_all(batch))
        doomed = [name for name in dropped if _family(name) not in held]
        if not doomed:
            return
        try:
            ports.ipsets.destroy(doomed)
        except KernelError as error:
            self._fail("", error)

    def _in_order(self, *batches: list[SetChange]) -> list[list[SetChange]]:
        """Only with --netpol-default-deny is anything refused for not being in ``local_pods``."""
        if not self._options.default_deny:
            batches = ([change for batch in batches for change in batch],)
        return [batch for batch in batches if batch]

    def _without(self, chains: Mapping[str, Rules], held: set[str]) -> dict[str, Rules]:
        """Chains without the rules that refer to sets which could not be made: they admit less."""
        if not held:
            return dict(chains)
        return {
            name: tuple(rule for rule in rules if not held.intersection(rule.split()))
            for name, rules in chains.items()
        }

    def _fail(self, family: str, error: KernelError) -> set[str]:
        self._has_failed = True
        self._failures.append(Problem(self._node, "", f"policies: {error}"))
        return {family}

    def _fail_sets(self, failures: Iterable[SetFailure]) -> None:
        for each in failures:
            self._has_failed = True
            reason = f"policies: set {each.name}: {each.message}"
            self._failures.append(Problem(self._node, "", reason))


def _is_last(spec: IpsetSpec) -> bool:
    return spec == local_pods(spec.family)


def _family(name: str) -> str:
    return "inet6" if name.startswith("inet6:") else "inet"
