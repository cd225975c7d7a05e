"""The firewall's controller on a node of fakes, and what that node's kernel does to packets."""

import ipaddress
import re
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.cluster.cache import Cache, Event
from kube_router_py.firewall.controller import KINDS, POOLS, Firewall
from kube_router_py.firewall.desired import Desired
from kube_router_py.firewall.frame import JUMPS, is_own_chain, is_own_set
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel import ports
from kube_router_py.kernel.fake import (
    FakeConntrack,
    FakeIpsets,
    FakeIptables,
    FakeIpvs,
    FakeLinks,
    FakeSysctls,
)
from kube_router_py.kernel.fake_conntrack import FakeConntrackKernel
from kube_router_py.kernel.fake_host import (
    FakeIpsetKernel,
    FakeIptablesKernel,
    FakeLinkKernel,
    connect,
)
from kube_router_py.loop import Outcome
from kube_router_py.manifests import Manifests
from kube_router_py.object_key import Key
from kube_router_py.render_firewall import compile_firewall

OPTIONS = FirewallOptions(families=("inet", "inet6"))
_KINDS = {each.__name__: each for each in KINDS}
_BITS = {"inet": 32, "inet6": 128}
_BRIDGED = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


class FirewallNode:
    """A node that outlives its agents: ``restart`` gives another one on the same kernel.

    ``change`` takes manifests, ``remove`` identities (kind, namespace, name); ``turn`` has the
    agent follow them.
    """

    name = "node1"

    def __init__(self, clusters: Any, options: FirewallOptions = OPTIONS) -> None:
        self._clusters = clusters
        self.options = options
        self.objects: dict[tuple[str, str, str], Any] = {}
        self.cache = Cache(KINDS)
        self.sets, self.rules = FakeIpsetKernel(), FakeIptablesKernel()
        connect(self.sets, self.rules)
        self.links = FakeLinkKernel()
        self.conntrack = FakeConntrackKernel()
        self.sysctls = dict.fromkeys(_BRIDGED, "1")
        self.now_s = 0.0
        self.dirty: set[Hashable] = set()
        self.pools = AddressPools()
        self.cache.subscribe(KINDS, self._notify)
        self.opened: list[ports.HostPorts] = []
        for each in clusters.NODE_ADDRESSES:
            self.change(clusters.node(each))
        self.restart()

    def _notify(self, event: Event) -> None:
        self.dirty.add(Key(event.kind.__name__, event.key))

    def _open(self) -> ports.HostPorts:
        sysctls = FakeSysctls()
        sysctls.values = self.sysctls
        self.opened.append(
            ports.HostPorts(
                FakeIpvs(),
                FakeLinks(kernel=self.links),
                FakeIpsets(self.sets),
                FakeIptables(self.rules),
                sysctls,
                FakeConntrack(self.conntrack),
            )
        )
        return self.opened[-1]

    def restart(self) -> None:
        """A new agent: it knows nothing yet, and ``turn`` is full."""
        self.firewall = Firewall(
            self.cache,
            self.options,
            self.name,
            self._open,
            clock=lambda: self.now_s,
            pools=lambda: self.pools,
        )
        self.firewall.open()
        self._is_new = True

    def change(self, *documents: Any) -> None:
        for each in documents:
            kind, space, name = identity = self._clusters.identity(each)
            manifests = Manifests()
            manifests.add(each, name, "IPv4")
            key = f"{space}/{name}" if space else name
            found = manifests.get(_KINDS[kind], key)
            assert found is not None, manifests.problems
            self.objects[identity] = each
            self.cache.put(_KINDS[kind], found)

    def remove(self, *identities: tuple[str, str, str]) -> None:
        for kind, space, name in identities:
            del self.objects[kind, space, name]
            self.cache.delete(_KINDS[kind], f"{space}/{name}" if space else name)

    def change_pools(self, pools: AddressPools) -> None:
        self.pools = pools
        self.dirty.add(POOLS)

    def turn(self, *, full: bool = False) -> Outcome:
        """One turn; the first of an agent is full."""
        full, self._is_new = full or self._is_new, False
        dirty, self.dirty = frozenset(self.dirty), set()
        return self.firewall.reconcile(dirty, full)

    @property
    def writes(self) -> int:
        """Of the agent at work."""
        return self.opened[-1].writes

    def chains(self, family: str = "inet") -> dict[str, tuple[str, ...]]:
        """The firewall's chains that stand."""
        standing = self.rules.chains(family, "filter")
        return {name: tuple(rules) for name, rules in standing.items() if is_own_chain(name)}

    def own_sets(self) -> dict[str, frozenset[str]]:
        """The firewall's sets that stand."""
        found = self.sets.sets.items()
        return {name: entries for name, (_, entries) in found if is_own_set(name)}

    def desired(self) -> Desired:
        """What should stand, from scratch."""
        manifests = Manifests()
        for each in self.objects.values():
            manifests.add(each, "", "IPv4")
        ranges = load_balancer_ranges(self.options.load_balancer_ranges, self.pools)
        options = structs.replace(self.options, load_balancer_ranges=ranges)
        return compile_firewall(manifests, self.name, options)

    def differences(self) -> list[str]:
        """How the kernel differs from what should stand, from scratch."""
        wanted = self.desired()
        found: list[str] = []
        for family in self.options.families:
            found += _differ(f"{family} chain", wanted.chains[family], self.chains(family))
            standing = self.rules.chains(family, "filter")
            for jump in JUMPS:
                times = standing[jump.parent].count(jump.rule)
                if times != 1:
                    found.append(f"{family} jump in {jump.parent} stands {times} times")
        sets = {spec.name: frozenset(wanted.sets[spec]) for spec in wanted.sets.specs()}
        return found + _differ("set", sets, self.own_sets())

    def each_step(self, look: Callable[[], None] | None) -> None:
        """Have something called after every single step of the kernel."""
        self.sets.after_step = self.rules.after_step = look


def _differ(what: str, wanted: Any, found: Any) -> list[str]:
    return [
        f"{what} {name}: wanted {wanted.get(name)}, found {found.get(name)}"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]


# The hooks of a direction by itself, made up of the rules that KUBE-ROUTER-FORWARD has for it.
EGRESS, INGRESS = "egress by itself", "ingress by itself"
_LEADS = {
    EGRESS: re.compile("-j (KUBE-ROUTER-EGRESS|KUBE-NWPLCY-TAIL-OUT)$"),
    INGRESS: re.compile("-j (KUBE-ROUTER-INGRESS|KUBE-NWPLCY-TAIL-IN)$"),
}


class Live:
    """What a kernel does to packets at the moment; ``tracer`` is the module.

    A rule is parsed once: sets are told what is in them by then.
    """

    def __init__(self, tracer: Any, node: FirewallNode) -> None:
        self._tracer, self._node = tracer, node
        self._sets: dict[str, Any] = {}
        self._entries: dict[str, frozenset[str]] = {}
        self._rules: dict[tuple[str, str], Any] = {}
        self._texts: dict[str, Any] = {}
        self._tables: dict[str, Any] = {}
        self._matched: set[str] = set()

    def look(self) -> tuple[set[str], set[str]]:
        """Follow the kernel; returns the entries that came to or went from sets that are looked
        into, and the families whose rules are others now."""
        moved: set[str] = set()
        standing = self._node.sets.sets
        for name in self._sets.keys() - standing.keys():
            del self._sets[name], self._entries[name]
            # Made anew, it is another set.
            self._rules = {
                key: rule for key, rule in self._rules.items() if f" {name} " not in f" {key[1]} "
            }
        for name, (spec, entries) in standing.items():
            if self._entries.get(name) == entries:
                continue
            if name in self._matched:
                moved |= entries ^ self._entries[name]
            document = {
                "name": name,
                "type": spec.type,
                "family": spec.family,
                "entries": entries,
                "maxelem": len(entries),
            }
            if name in self._sets:
                self._sets[name].__init__(document)
            else:
                self._sets[name] = self._tracer.Set(document)
            self._entries[name] = entries
        changed = set()
        for family, bits in _BITS.items():
            chains = self._node.rules.chains(family, "filter")
            text = {name: tuple(rules) for name, rules in chains.items()}
            if self._texts.get(family) != text:
                self._texts[family] = text
                self._tables[family] = self._table(bits, family, text)
                changed.add(family)
        if changed:
            self._matched = self._node.rules.matched_sets()
        return moved, changed

    def _table(self, bits: int, family: str, text: dict[str, tuple[str, ...]]) -> Any:
        table = self._tracer.Filter("", bits, {})
        forward = text.get("KUBE-ROUTER-FORWARD", ())
        alone = {
            hook: tuple(rule for rule in forward if leads.search(rule))
            for hook, leads in _LEADS.items()
        }
        table.chains = {
            name: [self._rule(bits, family, rule) for rule in rules]
            for name, rules in (text | alone).items()
        }
        table._check()
        return table

    def _rule(self, bits: int, family: str, text: str) -> Any:
        key = (family, text)
        if key not in self._rules:
            words = self._tracer.shlex.split(text)
            self._rules[key] = self._tracer.RuleParser(words, bits, self._sets).parse()
        return self._rules[key]

    def walk(self, packet: Any) -> Any:
        """As the tracer's firewall does."""
        return self._tables["inet" if packet.src.version == 4 else "inet6"].walk(packet)

    def verdict(self, flow: Any) -> tuple[bool, bool, bool]:
        """Whether a flow passes egress of its sender, ingress of its receiver, each by itself, and
        all hooks of this node."""
        src, dst = ipaddress.ip_address(flow.src), ipaddress.ip_address(flow.dst)
        alone = (
            self.walk(self._tracer.Packet(hook, src, dst, flow.protocol, 40000, flow.dport)).verdict
            == "ACCEPT"
            for hook in (EGRESS, INGRESS)
        )
        whole, _ = self._tracer.flow_verdict({self._node.name: self}, flow)
        return (*alone, whole)


@pytest.fixture(scope="session")
def firewall_node(clusters: Any) -> Callable[..., FirewallNode]:
    """Makes a FirewallNode of options."""
    return lambda *options: FirewallNode(clusters, *options)


@pytest.fixture(scope="session")
def live(tracer: ModuleType) -> Callable[[FirewallNode], Live]:
    """Makes a Live of a FirewallNode."""
    return lambda node: Live(tracer, node)
