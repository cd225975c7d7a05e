"""This node as the service proxy follows it, and what it needs of it beside IPVS: kernel
parameters, the VIP link, and the rules with those sets that follow nodes and pods."""

import logging
import os
from collections.abc import Hashable, Iterable

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.node import node_view
from kube_router_py.cluster.objects import Node, Pod
from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts, NodeAddress, Sysctls
from kube_router_py.problem import Problem
from kube_router_py.proxy.dirty_keys import CLUSTER_NODES, LOCAL_PODS, OWN_NODE
from kube_router_py.proxy.hairpin_ports import BRIDGE_FILTERS, hairpin_problems
from kube_router_py.proxy.model import KUBE_PROXY_LINK, RealServerKey
from kube_router_py.proxy.service_rules import FamilyRules, compile_rules
from kube_router_py.proxy.settings import (
    ProxyOptions,
    ThisNode,
    backend_weights,
    node_port_problems,
    this_node,
)
from kube_router_py.proxy.surroundings import (
    Surroundings,
    cluster_networks,
    link_addresses,
    pod_addresses,
)
from kube_router_py.proxy.sysctls import Sysctl, sysctls

_log = logging.getLogger(__name__)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel; (0, 0) if its release cannot be read."""
    numbers = (release or os.uname().release).replace("-", ".").split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        return 0, 0


def settle_sysctls(
    port: Sysctls, wanted: Iterable[Sysctl], node_name: str
) -> tuple[list[Problem], list[Problem]]:
    """Set what differs; returns what the kernel lacks or refuses, and what it had better have."""
    problems: list[Problem] = []
    advice: list[Problem] = []
    for sysctl in wanted:
        try:
            found = port.read(sysctl.name)
            if found is None:
                if sysctl.advice:
                    advice.append(Problem(f"Node {node_name}", sysctl.name, sysctl.advice))
                elif not sysctl.is_optional:
                    reason = "the kernel has no such parameter; is its module loaded?"
                    problems.append(Problem(f"Node {node_name}", sysctl.name, reason))
            elif _is_wrong(sysctl, found):
                port.write(sysctl.name, sysctl.value)
                _log.info("set sysctl=%s from=%s to=%s", sysctl.name, found, sysctl.value)
        except KernelError as error:
            if sysctl.is_tuning:
                _log.info("not tuned sysctl=%s reason=%r", sysctl.name, str(error))
            else:
                problems.append(Problem(f"Node {node_name}", sysctl.name, str(error)))
    return problems, advice


def _is_wrong(sysctl: Sysctl, found: str) -> bool:
    if sysctl.is_minimum and found.isdigit() and int(found) >= int(sysctl.value):
        return False
    return found != sysctl.value and sysctl.only_from in (None, found)


class ThisHost:
    """Used by the service proxy's loop, in its thread: ``follow`` as a turn begins,
    ``settle_rules`` when the sets of Services are filled, before what the rules guard is exposed.

    ``node`` is what the compiler sees, ``addresses`` (packed) are those on the node's links.
    ``is_settled`` tells whether all that is in our hands stands.
    """

    def __init__(self, node_name: str, cache: Cache, options: ProxyOptions) -> None:
        self._cache = cache
        self._options = options
        self.node = ThisNode(node_name)
        self.addresses: frozenset[bytes] = frozenset()
        self._around = Surroundings()
        self._object_problems: tuple[Problem, ...] = ()
        self._kernel_problems: tuple[Problem, ...] = ()
        self._rule_problems: tuple[Problem, ...] = ()
        self._hairpin_problems: tuple[Problem, ...] = ()
        self._sysctls_are_set = False
        self._rules_stand = False

    @property
    def is_settled(self) -> bool:
        return self._sysctls_are_set and self._rules_stand

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the Node object, the kernel's parameters, rules, and bridges."""
        return (
            *(*self._object_problems, *self._kernel_problems),
            *(*self._rule_problems, *self._hairpin_problems),
        )

    def follow(self, ports: HostPorts, dirty: frozenset[Hashable], *, full: bool) -> bool:
        """Take over what has changed about this node and around it; True if ``node`` did."""
        if not full and OWN_NODE not in dirty:
            return False
        ports.links.ensure_vip_link()
        has_moved = self._follow_node(ports)
        self._settle_sysctls(ports)
        return has_moved

    def look_at_links(self, ports: HostPorts) -> None:
        """Bring ``addresses`` up to date."""
        self.addresses = frozenset(each.address for each in _own_addresses(ports))

    def check_hairpins(self, ports: HostPorts, endpoints: Iterable[RealServerKey]) -> None:
        """Tell whether bridges let these endpoints reach themselves."""
        found = [*endpoints]
        self._hairpin_problems = ()
        # Without these the NAT is undone behind the bridge, which then has no say in it.
        if found and any(ports.sysctls.read(name) == "1" for name in BRIDGE_FILTERS):
            self._hairpin_problems = hairpin_problems(
                found, ports.links.node_addresses(), ports.links.bridge_ports(), self.node.name
            )

    def settle_rules(self, ports: HostPorts, dirty: frozenset[Hashable], *, full: bool) -> bool:
        """Make rules and the sets of nodes and pods stand, where they may not; False if that was
        tried and failed: a set that they refer to may be gone."""
        own = full or OWN_NODE in dirty
        knows_pods = not self._options.own_pod_network and (
            Pod in self._cache.kinds and self._cache.is_synced((Pod,))
        )
        if not (own or CLUSTER_NODES in dirty or (knows_pods and LOCAL_PODS in dirty)):
            return True
        if not self.node.addresses:
            # The Node is not there yet, or says nothing: rules from before the start are kept.
            self._rules_stand = True
            return True
        pods = pod_addresses(self._cache.list(Pod), self.node.name) if knows_pods else None
        self._around = Surroundings(
            cluster_networks(self._cache.list(Node)),
            pods,
            link_addresses(_own_addresses(ports)),
        )
        try:
            random_fully = ports.iptables.random_fully()
        except KernelError as error:
            self._refused("", error)
            return False
        wanted, self._rule_problems = compile_rules(
            self.node, self._around, self._options, random_fully=random_fully
        )
        self._rules_stand = True
        for family in wanted:
            try:
                _settle_family(ports, family, rules=own)
            except KernelError as error:
                self._refused(f" ({family.family})", error)
        return self._rules_stand

    def _refused(self, family: str, error: KernelError) -> None:
        self._rules_stand = False
        problem = Problem(f"Node {self.node.name}", "", f"service rules{family}: {error}")
        self._rule_problems = (*self._rule_problems, problem)

    def _follow_node(self, ports: HostPorts) -> bool:
        """A Node that vanished from the API changes nothing: nobody's connections should end for
        it."""
        name = self.node.name
        node = self._cache.get(Node, name)
        if node is None:
            reason = "there is no such Node; is the name right (--hostname-override, NODE_NAME)?"
            self._object_problems = (Problem(f"Node {name}", "", reason),)
            return False
        view, problems = node_view(node)
        weights, weight_problems = backend_weights(self._cache.list(Node))
        before, found = self.node, this_node(view, self._options, self._live(ports), weights)
        port_problems = node_port_problems(found, self._options)
        self._object_problems = (*problems, *weight_problems, *port_problems)
        if before.addresses and not found.addresses:
            return False  # a moment without any, as cloud providers know it, changes nothing either
        self.node = found
        return before != found

    def _live(self, ports: HostPorts) -> list[tuple[str, bytes]]:
        """The node's addresses as the kernel has them, where NodePorts go by them."""
        options = self._options
        if not options.node_ports_everywhere and not options.node_port_ranges:
            return []
        return [(each.link, each.address) for each in ports.links.node_addresses()]

    def _settle_sysctls(self, ports: HostPorts) -> None:
        own = set(self.node.addresses.values())
        links = {each.link for each in ports.links.node_addresses() if each.address in own}
        wanted = sysctls(self._options, links, kernel_version(), os.cpu_count() or 1)
        problems, advice = settle_sysctls(ports.sysctls, wanted, self.node.name)
        self._kernel_problems = (*problems, *advice)
        self._sysctls_are_set = not problems


def _own_addresses(ports: HostPorts) -> list[NodeAddress]:
    """The node's addresses; not those of kube-proxy's link, which goes when kube-proxy has gone,
    and must not have been all that made a service address local."""
    return [each for each in ports.links.node_addresses() if each.link != KUBE_PROXY_LINK]


def _settle_family(ports: HostPorts, wanted: FamilyRules, *, rules: bool) -> None:
    """The sets before the rules that name them."""
    for spec, entries in wanted.entries.items():
        ports.ipsets.ensure(spec, entries)
    if rules:
        for table, each in wanted.tables.items():
            for change in ports.iptables.ensure(wanted.family, table, each):
                _log.info("rules family=%s table=%s change=%r", wanted.family, table, change)
