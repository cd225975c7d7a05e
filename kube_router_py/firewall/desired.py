"""What the firewall wants of the kernel, kept up to date by what changes. Pure.

Facts go in (``put_*``); ``settle`` carries them through, in this order: policies and local pods say
who is isolated by what (``holding``); that says which policies need chains here; their chains say
which sets are needed; the pods of the cluster fill these. The cost is that of what the change
touches.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from msgspec import Struct

from kube_router_py.firewall.chains import SetSource, pod_rules, policy_rules
from kube_router_py.firewall.claims import Names
from kube_router_py.firewall.contents import Contents, SetDelta
from kube_router_py.firewall.dispatch import Dispatch
from kube_router_py.firewall.entangled import Entanglement, Place
from kube_router_py.firewall.frame import (
    audited_pods,
    frame_chains,
    frame_sets,
    isolated_pods,
    local_pods,
    node_ports,
    services,
)
from kube_router_py.firewall.holding import Holding, Isolation
from kube_router_py.firewall.membership import Membership
from kube_router_py.firewall.model import Direction, NamespaceFacts, PodFacts, Policy, Selection
from kube_router_py.firewall.names import pod_chain, policy_chain
from kube_router_py.firewall.settings import FirewallOptions, NodeFacts
from kube_router_py.kernel.ports import IpsetSpec
from kube_router_py.problem import Problem

Rules = tuple[str, ...]
K = TypeVar("K")
V = TypeVar("V")


class Changes(Struct):
    """What is different since the last ``settle``, as the kernel has to be told.

    ``created`` and ``changed``: sets; ``dropped``: those that nothing refers to any more.
    ``chains`` by family and name, with all rules; ``gone``: those to delete, by family.
    ``entangled``: families in which all this has to happen in one step (see ``overlay``).
    """

    created: set[IpsetSpec]
    changed: dict[IpsetSpec, SetDelta]
    dropped: set[IpsetSpec]
    chains: dict[str, dict[str, Rules]]
    gone: dict[str, set[str]]
    entangled: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.created or self.changed or self.dropped or self.chains or self.gone)


class Desired:
    """See the module docstring. Not thread-safe."""

    def __init__(self, options: FirewallOptions) -> None:
        self._options = options
        self._families = options.families
        self._problems: dict[tuple[str, str], tuple[Problem, ...]] = {}
        # Of targets only this node's pods matter, of peers all.
        self._holding, self._peers = Holding(), Membership()
        self._queued: dict[str, PodFacts | None] = {}
        self._dirty_policies: set[str] = set()
        # What of a local pod is programmed: the facts, and by which policies it is isolated.
        self._programmed: dict[str, tuple[PodFacts, Isolation]] = {}
        self._audited: set[str] = set()
        # Pods that need a policy's chain, and the sets that the chain refers to.
        self._users: dict[Place, set[str]] = {}
        self._sources: dict[Place, tuple[SetSource, ...]] = {}
        self._set_users: dict[IpsetSpec, set[Place]] = {}
        self._of_selection: dict[Selection, set[SetSource]] = {}
        # Names that policies lack, as others have them.
        self._lacking: dict[Place, set[str]] = {}
        self._names = Names()
        self._ways = Dispatch(self._families)
        self._entanglement = Entanglement(options.families)
        self._services: dict[str, dict[IpsetSpec, frozenset[str]]] = {}
        self.sets = Contents()
        self.chains: dict[str, dict[str, Rules]] = {family: {} for family in self._families}
        self._touched: dict[str, dict[str, Rules | None]] = {f: {} for f in self._families}
        for family in self._families:
            for spec in frame_sets(family):
                self.sets.create(spec)
        for family, name, rules in self._ways.start():
            self._put_chain(family, name, rules)
        self.put_node(NodeFacts())

    # --- facts ---------------------------------------------------------------------------------

    def put_node(self, node: NodeFacts) -> None:
        for family in self._families:
            for name, rules in frame_chains(family, node, self._options).items():
                self._put_chain(family, name, rules)

    def put_namespace(self, name: str, facts: NamespaceFacts | None) -> None:
        self._peers.put_namespace(name, facts.labels if facts else None)
        self._holding.put_namespace(name, is_audited=facts is not None and facts.is_audited)
        _put(self._problems, ("Namespace", name), (facts and facts.problems) or None)

    def put_pod(self, key: str, pod: PodFacts | None) -> None:
        self._holding.put_pod(key, pod if pod is not None and pod.is_local else None)
        self._queued[key] = pod

    def put_policy(self, key: str, policy: Policy | None) -> None:
        if self._holding.put_policy(key, policy):
            _put(self._problems, ("NetworkPolicy", key), (policy and policy.problems) or None)
            self._dirty_policies.add(key)

    def put_service(
        self, key: str, ports: Mapping[str, frozenset[str]], nodes: Mapping[str, frozenset[str]]
    ) -> None:
        """``ports`` and ``nodes`` as ``service_addresses`` gives them; empty: there is none."""
        new = {services(family): entries for family, entries in ports.items()}
        new |= {node_ports(family): entries for family, entries in nodes.items()}
        old = self._services.get(key, {})
        _put(self._services, key, new or None)
        for spec in {*old, *new}:
            before, after = old.get(spec, frozenset()), new.get(spec, frozenset())
            self.sets.add(spec, after - before)
            self.sets.discard(spec, before - after)

    # --- what follows --------------------------------------------------------------------------

    def settle(self) -> Changes:
        """Carry through what was put since the last time; returns what the kernel has to learn."""
        self._follow_moves()  # of namespaces, before selections come and go
        freed = {key for key, _ in self._names.pods.take_freed()}
        needed = self._names.sets.take_freed()
        for place in self._names.policies.take_freed():
            freed |= self._users.get(place, set())
        for key in sorted(self._holding.take_dirty() | freed):
            needed |= self._put_local_pod(key, is_forced=key in freed)
        policies, self._dirty_policies = self._dirty_policies, set()
        needed.update((key, direction) for key in policies for direction in Direction)
        released: list[tuple[SetSource, Place]] = []
        for place in sorted(needed):
            released += ((source, place) for source in self._put_policy_chain(*place))
        # Last: a set that passes from one policy to another stays, and changes as others do.
        for source, place in released:
            self._release(source, place)
        for family, name, rules in self._ways.take():
            self._put_chain(family, name, rules)
        self._fill_sets()
        return self._take_changes()

    @property
    def is_unfinished(self) -> bool:
        """Whether another ``settle`` brings more: names are free that some waited for."""
        return self._names.have_freed

    @property
    def policy_chains(self) -> int:
        """How many policies have a chain on this node, each direction counted."""
        return len(self._sources)

    @property
    def policy_sets(self) -> int:
        """How many sets the rules of policies refer to."""
        return len(self._set_users)

    def chains_with(self, sets: Iterable[IpsetSpec]) -> set[str]:
        """The policies' chains whose rules look into these sets."""
        places = (place for spec in sets for place in self._set_users.get(spec, ()))
        return {policy_chain(key, direction) for key, direction in places}

    def by_need(self, spec: IpsetSpec) -> tuple[int, IpsetSpec]:
        """Sorts first what policies with few sets look into: room ends with one that has many."""
        users = self._set_users.get(spec, ())
        return min((len(self._sources[place]) for place in users), default=0), spec

    @property
    def audited_pods(self) -> int:
        """How many pods of this node are audited, in a direction at least."""
        return len(self._audited)

    def isolation(self, pod: str) -> Isolation:
        """The policies by which a local pod is isolated or audited, by direction."""
        found = self._programmed.get(pod)  # once: not only the loop asks
        return found[1] if found else {}

    def is_audited(self, policy: str) -> bool:
        """Whether a policy that there is only says what it would refuse."""
        return self._holding.is_audited(policy)

    def problems(self) -> list[Problem]:
        told = [problem for found in self._problems.values() for problem in found]
        return [*told, *self._names.problems(self._is_audited)]

    def _is_audited(self, place: Place) -> bool:
        pod, direction = place
        return self._programmed[pod][1][direction].is_audited

    def _put_local_pod(self, key: str, *, is_forced: bool) -> set[Place]:
        """Program a pod anew where it changed; returns the policy chains with other users."""
        pod = self._holding.pod(key)
        isolation = self._holding.isolation(pod) if pod else {}
        old = self._programmed.get(key)
        new = (pod, isolation) if pod else None
        if old == new and not is_forced:
            return set()
        _put(self._programmed, key, new)
        is_audited = any(hold.is_audited for hold in isolation.values())
        (self._audited.add if is_audited else self._audited.discard)(key)
        needed: set[Place] = set()
        for is_new, state in ((False, old), (True, new)):
            if state is None:
                continue
            facts, isolated = state
            change = self.sets.add if is_new else self.sets.discard
            for family in self._families:
                addresses = facts.addresses.get(family, ())
                change(local_pods(family), addresses)
                for direction, hold in isolated.items():
                    held = audited_pods if hold.is_audited else isolated_pods
                    change(held(direction, family), addresses)
            for direction, hold in isolated.items():
                if is_new:
                    self._names.pods.seek(pod_chain(key, direction), (key, direction))
                for policy in hold.policies:
                    users = self._users.setdefault((policy, direction), set())
                    (users.add if is_new else users.discard)(key)
                    needed.add((policy, direction))
                    if is_new:
                        place = (policy, direction)
                        self._names.policies.seek(policy_chain(*place), place)
            self._dispatch(facts, isolated, is_new=is_new)
        self._put_pod_chains(key, old, new)
        self._entanglement.note_pod(old, new)
        return needed

    def _put_pod_chains(
        self,
        key: str,
        old: tuple[PodFacts, Isolation] | None,
        new: tuple[PodFacts, Isolation] | None,
    ) -> None:
        for family in self._families:
            for direction in Direction:
                name = pod_chain(key, direction)
                if not self._names.pods.holds(name, (key, direction)):
                    continue
                if new and direction in new[1] and (addresses := new[0].addresses.get(family)):
                    hold = new[1][direction]
                    policies = [
                        policy
                        for policy in hold.policies
                        if self._names.policies.holds(
                            policy_chain(policy, direction), (policy, direction)
                        )
                    ]
                    named = (key, direction, family, addresses, policies)
                    rules = pod_rules(*named, is_audited=hold.is_audited)
                    self._put_chain(family, name, rules)
                elif old and direction in old[1]:
                    self._put_chain(family, name, None)
        for direction in Direction:
            if not new or direction not in new[1]:
                self._names.pods.give_up(pod_chain(key, direction), (key, direction))

    def _dispatch(self, pod: PodFacts, isolation: Isolation, *, is_new: bool) -> None:
        for direction, hold in isolation.items():
            chain = pod_chain(pod.key, direction)
            target = chain if self._names.pods.holds(chain, (pod.key, direction)) else "DROP"
            if hold.is_audited and target != chain:
                continue
            for family in self._families:
                for address in pod.addresses.get(family, ()):
                    place = (direction, family, address)
                    self._ways.note(*place, pod.key, target, is_new=is_new)

    def _put_policy_chain(self, key: str, direction: Direction) -> set[SetSource]:
        """Returns what its rules look into no longer."""
        place = (key, direction)
        policy = self._holding.policy(key)
        name = policy_chain(key, direction)
        for lacking in self._lacking.pop(place, ()):
            self._names.sets.forget(lacking, place)
        if not self._users.get(place):
            self._users.pop(place, None)
            self._names.policies.give_up(name, place)
            if place not in self._sources:
                return set()  # of most policies no pod is here
            policy = None
        elif not self._names.policies.holds(name, place):
            return set()
        sources: list[SetSource] = []
        for family in self._families:
            rules = None
            if policy is not None and direction in policy.rules:
                rules, used = policy_rules(policy, direction, family)
                taken = self._names.sets.contested((each.spec.name, each) for each in used)
                if taken:
                    self._lacking.setdefault(place, set()).update(taken)
                    rules = tuple(each for each in rules if taken.isdisjoint(each.split()))
                sources += (each for each in used if each.spec.name not in taken)
            if rules is not None and self.chains[family].get(name, rules) != rules:
                self._entanglement.note_rules(family)
            self._put_chain(family, name, rules)
        for lacking in self._lacking.get(place, ()):
            self._names.sets.wait(lacking, place)
        for source in sources:
            self._use(source, place)
        old = set(self._sources.get(place, ()))
        _put(self._sources, place, tuple(sources) if policy is not None else None)
        return old.difference(sources)

    def _use(self, source: SetSource, place: Place) -> None:
        users = self._set_users.setdefault(source.spec, set())
        is_new = not users
        users.add(place)
        if not is_new:
            return
        self._names.sets.claim(source.spec.name, source)
        self.sets.create(source.spec)
        self.sets.add(source.spec, source.networks)
        if source.selection is not None:
            self._peers.add(source.selection)
            self._of_selection.setdefault(source.selection, set()).add(source)
            for pod in self._peers.members(source.selection).values():
                self.sets.add(source.spec, source.entries(pod))

    def _release(self, source: SetSource, place: Place) -> None:
        users = self._set_users[source.spec]
        users.discard(place)
        if users:
            return
        del self._set_users[source.spec]
        self._names.sets.release(source.spec.name, source)
        self.sets.drop(source.spec)
        if source.selection is not None:
            self._peers.remove(source.selection)
            of_selection = self._of_selection[source.selection]
            of_selection.discard(source)
            if not of_selection:
                del self._of_selection[source.selection]

    def _fill_sets(self) -> None:
        """Last: by now it is known which selections matter, and each pod is looked at once."""
        queued, self._queued = self._queued, {}
        for key, pod in queued.items():
            self._peers.put_pod(key, pod)
        self._follow_moves()

    def _follow_moves(self) -> None:
        for move in self._peers.take_moves():
            for source in self._of_selection.get(move.selection, ()):
                if move.new is not None:
                    self.sets.add(source.spec, source.entries(move.new))
                if move.old is not None:
                    self.sets.discard(source.spec, source.entries(move.old))

    # --- changes -------------------------------------------------------------------------------

    def _put_chain(self, family: str, name: str, rules: Rules | None) -> None:
        chains = self.chains[family]
        old = chains.get(name)
        if old == rules:
            return
        self._touched[family].setdefault(name, old)
        _put(chains, name, rules)

    def _take_changes(self) -> Changes:
        created, changed, dropped = self.sets.take()
        changes = Changes(created, changed, dropped, {}, {})
        for family, touched in self._touched.items():
            for name, old in touched.items():
                rules = self.chains[family].get(name)
                if rules == old:
                    continue
                if rules is None:
                    changes.gone.setdefault(family, set()).add(name)
                else:
                    changes.chains.setdefault(family, {})[name] = rules
            touched.clear()
        changes.entangled = self._entanglement.take(changed, self._set_users, self.sets)
        return changes


def _put(mapping: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
