"""The firewall's loop: NetworkPolicies, Pods and Namespaces to iptables chains and ipsets.

Packet path. Packets from and to isolated pods of this node pass the chains of ``chains``: an egress
verdict of the sender, an ingress verdict of the receiver; both must admit the first packet of a
connection, and conntrack lets the others pass. A pod that no policy selects costs a look into four
sets. One that only audited policies select passes chains that refuse nothing.

Kernel objects owned: the chains of table filter that ``frame.is_own_chain`` names, with their
jumps; the sets that ``frame.is_own_set`` names. Everything else is left alone, its counters too.

Start: nothing is written before the caches have synced. Then the kernel is read and only what
differs is written; names follow from contents, so that a restart finds its own. What was deleted
while the agent was down goes.
Crash, stop: the kernel keeps everything; what is there goes on deciding.

What happens in a turn: dirty objects -> ``desired`` -> sets are created and grow -> chains, all of
a family in one commit -> sets shrink and go. A pod counts as programmed (``local_pods``) last. In
between, a flow's verdict is that of the old or of the new state: an address that moves from one set
to another is in both for a moment, and admission is a matter of any set. Where that could admit
what both states refuse, all takes effect in one commit (``entangled``, ``overlay``). Last, where
an address of a pod of this node has changed hands, its connections are forgotten (``reused``).
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator

from msgspec import structs

from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.errors import KernelError
from kube_router_py.firewall.apply import Applier
from kube_router_py.firewall.counted import CountedChain, counted_chains
from kube_router_py.firewall.desired import Desired
from kube_router_py.firewall.model import PodFacts
from kube_router_py.firewall.pods import pod_facts
from kube_router_py.firewall.policy import compile_namespace, compile_policy
from kube_router_py.firewall.reused import ReusedAddresses
from kube_router_py.firewall.service_addresses import node_ports, service_ports
from kube_router_py.firewall.settings import FirewallOptions, node_facts
from kube_router_py.firewall.telling import tell_policies
from kube_router_py.kernel.ports import HostPorts, Observe, unobserved
from kube_router_py.loop import Loop, Outcome
from kube_router_py.object_key import Key
from kube_router_py.problem import Problem
from kube_router_py.services import load_balanced

_log = logging.getLogger(__name__)

KINDS = (NetworkPolicy, Pod, Namespace, Service, Node)

POOLS = "pools of addresses"
"""Marked when they have changed."""


class Firewall:
    """See the module docstring. Everything but ``subscribe`` runs in the loop's thread."""

    name = "firewall"

    def __init__(
        self,
        cache: Cache,
        options: FirewallOptions,
        node_name: str,
        ports: Callable[[], HostPorts],
        on_settled: Callable[[str], None] = lambda variant: None,
        clock: Callable[[], float] = time.monotonic,
        pools: Callable[[], AddressPools] = AddressPools,
    ) -> None:
        self._cache, self._pools = cache, pools
        self._clock = clock
        self._options = options
        self._node_name = node_name
        self._make_ports = ports
        # Told the variant of iptables after each turn that leaves nothing to be done.
        self._on_settled = on_settled
        self.ports: HostPorts | None = None
        # Told how long things took.
        self.observe: Observe = unobserved
        self._forget()

    def _forget(self) -> None:
        # With the ranges of pools; the flags alone before the first turn.
        self._service_options = self._options
        self._desired = Desired(self._options)
        self._applier = Applier(self._node_name, self._options, self._desired, self._clock)
        self._reused = ReusedAddresses(self._node_name)
        self._known: set[Key] = set()
        self._broken: dict[Key, Problem] = {}

    def subscribe(self, cache: Cache, loop: Loop) -> None:
        """Have every event mark what it changes."""

        def notify(event: Event) -> None:
            if event.kind is not Node or event.key == self._node_name:
                loop.mark((Key(event.kind.__name__, event.key),))

        cache.subscribe(KINDS, notify)

    @property
    def numbers(self) -> dict[str, float]:
        """For the metrics, by name without the prefix. For any thread."""
        return {
            "controller_policy_chains": self._desired.policy_chains,
            "controller_policy_ipsets": self._desired.policy_sets,
            "controller_policy_drift_total": self._applier.drift,
            "firewall_audited_pods": self._desired.audited_pods,
        }

    def counted(self) -> Iterator[CountedChain]:
        """The chains of this node's pods that count what is admitted and refused, as they should
        stand. For any thread."""
        desired = self._desired
        pods = [
            each.metadata.key
            for each in self._cache.list(Pod)
            if each.spec.node_name == self._node_name
        ]
        chains = {family: each.copy() for family, each in desired.chains.copy().items()}
        yield from counted_chains(pods, desired.isolation, chains)

    def open(self) -> None:
        """Create the adapters; called again after a crash, and then nothing is trusted."""
        self.close()
        self._forget()
        self.ports = self._make_ports()

    def close(self) -> None:
        """Close the adapters; the kernel keeps everything."""
        ports, self.ports = self.ports, None
        if ports is not None:
            ports.close()

    def reconcile(self, dirty: frozenset[Hashable], full: bool) -> Outcome:
        """One turn, over the dirty keys or (``full``) over everything, compared with the kernel."""
        if self.ports is None:
            raise RuntimeError("reconcile before open")
        keys = self._all_keys() if full else {key for key in dirty if isinstance(key, Key)}
        if full or POOLS in dirty:
            keys |= self._follow_pools()
        for key in sorted(keys):
            self._follow(key)
        changes = self._desired.settle()
        began = self._clock()
        try:
            self._applier.apply(self.ports, changes, full=full)
        except KernelError as error:
            self._applier.doubt()
            problem = Problem(f"Node {self._node_name}", "", str(error))
            return Outcome(dirty | {self._own_node()}, (problem, *self._problems()))
        self.observe("policy_chains_sync", self._clock() - began)
        self._reused.forget(self.ports.conntrack, stands=self._applier.stands)
        if not full:
            tell_policies(keys - self._broken.keys(), self._known)
        failed: set[Hashable] = {*self._broken}
        if not self._applier.is_settled or self._desired.is_unfinished:
            failed.add(self._own_node())
        if not failed:
            self._on_settled(self.ports.iptables.variant)
        if not self._reused.is_settled:
            failed.add(self._own_node())
        return Outcome(frozenset(failed), tuple(self._problems()))

    def _own_node(self) -> Key:
        return Key("Node", self._node_name)

    def _all_keys(self) -> set[Key]:
        found = {self._own_node(), *self._known}
        found.update(Key("NetworkPolicy", x.metadata.key) for x in self._cache.list(NetworkPolicy))
        found.update(Key("Pod", x.metadata.key) for x in self._cache.list(Pod))
        found.update(Key("Namespace", x.metadata.key) for x in self._cache.list(Namespace))
        found.update(Key("Service", x.metadata.key) for x in self._cache.list(Service))
        return found

    def _follow(self, key: Key) -> None:
        """Bring the desired state up to date with one object of the cache."""
        self._broken.pop(key, None)
        try:
            if _FOLLOW[key.kind](self, key.name):
                self._known.add(key)
            else:
                self._known.discard(key)
        except Exception as error:  # noqa: BLE001 - one object must not stop the others
            _log.exception("cannot compile object=%r", str(key))
            reason = f"cannot be compiled ({error!r}); what it was before still counts"
            self._broken[key] = Problem(str(key), "", reason)

    def _follow_pools(self) -> set[Key]:
        """Take the pools as they are now; returns the Services that may have other addresses."""
        ranges = load_balancer_ranges(self._options.load_balancer_ranges, self._pools())
        if ranges == self._service_options.load_balancer_ranges:
            return set()
        self._service_options = structs.replace(self._options, load_balancer_ranges=ranges)
        return {Key("Service", each) for each in load_balanced(self._cache.list(Service))}

    def _follow_policy(self, name: str) -> bool:
        found = self._cache.get(NetworkPolicy, name)
        self._desired.put_policy(name, compile_policy(found) if found else None)
        return found is not None

    def _follow_pod(self, name: str) -> bool:
        found = self._cache.get(Pod, name)
        facts = pod_facts(found, self._node_name) if found else None
        self._desired.put_pod(name, facts)
        uid = found.metadata.uid if found else ""
        self._reused.owners.put(name, uid, self._own_addresses(facts))
        return found is not None

    def _own_addresses(self, facts: PodFacts | None) -> Iterator[str]:
        """Those of a pod of this node, in families in which policies are enforced."""
        if facts is not None and facts.is_local:
            for family in self._options.families:
                yield from facts.addresses.get(family, ())

    def _follow_namespace(self, name: str) -> bool:
        found = self._cache.get(Namespace, name)
        self._desired.put_namespace(name, compile_namespace(found) if found else None)
        return found is not None

    def _follow_service(self, name: str) -> bool:
        found = self._cache.get(Service, name)
        if found is None:
            self._desired.put_service(name, {}, {})
            return False
        ports = service_ports(found, self._service_options)
        self._desired.put_service(name, ports, node_ports(found, self._options))
        return True

    def _follow_node(self, name: str) -> bool:
        """A Node that is away for a moment keeps what it said: nothing depends on it but the
        networks of its pods."""
        found = self._cache.get(Node, name)
        if found is not None and name == self._node_name:
            self._desired.put_node(node_facts(node_view(found)[0]))
        return name == self._node_name

    def _problems(self) -> Iterator[Problem]:
        found: set[Problem] = {*self._broken.values(), *self._desired.problems()}
        found.update(self._applier.problems, self._reused.problems)
        if self._options.default_deny:
            found.update(self._without_networks())
        yield from sorted(found)

    def _without_networks(self) -> Iterator[Problem]:
        node = self._cache.get(Node, self._node_name)
        if node is None:
            return
        facts = node_facts(node_view(node)[0])
        for family in self._options.families:
            if not facts.pod_networks.get(family):
                yield Problem(
                    f"Node {self._node_name}",
                    "spec.podCIDRs",
                    f"names no network of family {family}: --netpol-default-deny cannot tell "
                    "which addresses are those of pods",
                )


_FOLLOW: dict[str, Callable[[Firewall, str], bool]] = {
    "NetworkPolicy": Firewall._follow_policy,
    "Pod": Firewall._follow_pod,
    "Namespace": Firewall._follow_namespace,
    "Service": Firewall._follow_service,
    "Node": Firewall._follow_node,
}
