"""Flow -> verdict and reason, straight from the semantics of NetworkPolicy. Pure.

A flow is the first packet of a connection, as it is behind any translation of its destination. Its
client's egress verdict and its server's ingress verdict must both allow it. Shares no code with the
compiler of chains, so that each can be held against the other.

What the API leaves open, as the firewall of this agent has it:

- A process of a node (and a pod in its host network, which is one) reaches the pods of this node
  whatever their policies say. For pods elsewhere it is an address outside, and so is the mere
  address of a node. A pod's way to its own node is subject to its egress policies, unless
  ``allow_own_node``.
- Only live pods are targets or peers: with an address, not in the host network, not finished.
- Where several live pods claim an address for a moment, a peer is met if any of them meets it, and
  all of them (on the nodes where the flow begins and ends) have to admit the flow.
- Traffic that stays inside a pod, to its own or a loopback address, is never judged.
- Policies may be audited (annotation ``kube-router.io/audit`` of the policy or of its Namespace).
  Where all that isolate a pod in a direction are, nothing is refused, and it is said what would
  be; beside one that is enforced they admit like any other.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct, structs

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.evaluate_places import Place, Places
from kube_router_py.firewall.evaluate_rules import (
    PROTOCOLS,
    ReadPeer,
    ReadPolicy,
    ReadPort,
    ReadRule,
    declared_ports,
    is_inside,
    read_audit,
    read_policy,
    selects,
)

_ICMP = ("ICMP", "ICMPV6", "1", "58")
# By number, and without ports: 47 is GRE.
_OTHER_PROTOCOLS = frozenset(map(str, range(256))) - {"6", "17", "132"}


class FlowError(ValueError):
    """A flow that cannot be judged: an end is unknown, or it makes no sense."""


class Flow(Struct, frozen=True):
    """``source``: ``namespace/pod``, an IP address or ``node/NAME``; ``destination``:
    ``namespace/pod`` or an IP address. ``family``: ``IPv4``, ``IPv6`` or ``""``: that of a literal
    address, else the first of the two that both ends have. ``protocol``: ``TCP``, ``UDP`` or
    ``SCTP``, or the number of another, which has no ports."""

    source: str
    destination: str
    protocol: str
    port: int
    family: str = ""


class Decision(Struct, frozen=True):
    """The rule of a policy (its position in ``ingress`` or ``egress``) that admits."""

    policy: str
    rule: int


class Side(Struct, frozen=True):
    """The verdict of one direction. ``policies`` are those that isolate the pod in it, sorted, and
    audited ones; ``decided_by`` is None where no rule was needed, or none admits.

    ``audited``: only audited policies hold the pod (of several with one address, one of them).
    ``would_refuse``: and none of them admits the flow, so that it would be refused.
    """

    isolated: bool = False
    allowed: bool = True
    policies: tuple[str, ...] = ()
    decided_by: Decision | None = None
    audited: bool = False
    would_refuse: bool = False


class Verdict(Struct, frozen=True):
    """``reasons``: what decides (both directions where the flow is allowed, else those that do not
    allow it), then what a reader might have expected otherwise. ``source`` and ``destination`` are
    the addresses that were judged."""

    allowed: bool
    egress: Side
    ingress: Side
    reasons: tuple[str, ...]
    source: str
    destination: str

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


class Evaluator:
    """Judges flows through one state of a cluster; what it reads of a policy or pod is kept."""

    def __init__(
        self,
        pods: Iterable[Pod],
        namespaces: Iterable[Namespace],
        policies: Iterable[NetworkPolicy],
        nodes: Iterable[Node] = (),
        services: Iterable[Service] = (),
        *,
        allow_own_node: bool = False,
    ) -> None:
        self._places = Places(pods, nodes, services)
        spaces = {each.metadata.name: each.metadata for each in namespaces}
        self._labels = {name: meta.labels for name, meta in spaces.items()}
        self._audits = {name for name, meta in spaces.items() if read_audit(meta.annotations)}
        self._policies: dict[str, list[ReadPolicy]] = {}
        for policy in sorted(policies, key=lambda each: each.metadata.key):
            self._policies.setdefault(policy.metadata.namespace, []).append(read_policy(policy))
        self._allow_own_node = allow_own_node
        self._isolating: dict[str, tuple[ReadPolicy, ...]] = {}
        self._ports: dict[str, dict[tuple[str, str], int]] = {}

    def evaluate(self, flow: Flow) -> Verdict:
        """Raises FlowError for a flow that cannot be judged."""
        _check(flow)
        try:
            source, target = self._places.ends(flow.source, flow.destination, flow.family)
        except ValueError as error:
            raise FlowError(str(error)) from None
        judge = _Judge(self, flow, source, target)
        egress, egress_reason = judge.egress()
        ingress, ingress_reason = judge.ingress()
        allowed = egress.allowed and ingress.allowed
        parts = [
            reason
            for side, reason in ((egress, egress_reason), (ingress, ingress_reason))
            if allowed or not side.allowed
        ]
        notes = self._places.notes(flow.source, source, target)
        return Verdict(
            allowed,
            egress,
            ingress,
            (*parts, *notes),
            str(source.address),
            str(target.address),
        )

    def isolating(self, pod: Pod, *, is_ingress: bool) -> list[ReadPolicy]:
        """The policies that isolate a live pod in one direction, by key."""
        key = pod.metadata.key
        found = self._isolating.get(key)
        if found is None:
            candidates = self._policies.get(pod.metadata.namespace, ())
            found = self._isolating[key] = tuple(each for each in candidates if each.is_about(pod))
        return [each for each in found if (each.ingress if is_ingress else each.egress) is not None]

    def is_audited(self, policy: ReadPolicy) -> bool:
        return policy.namespace in self._audits if policy.audited is None else policy.audited

    def is_member(self, pod: Pod, peer: ReadPeer, namespace: str) -> bool:
        """Whether a live pod is a peer of a policy in ``namespace``."""
        if peer.namespaces is None:
            if pod.metadata.namespace != namespace:
                return False
        elif peer.namespaces.match_labels or peer.namespaces.match_expressions:
            # What is not known yet (or not among the files) meets no condition on its labels.
            space = pod.metadata.namespace
            if space not in self._labels or not selects(peer.namespaces, self._labels[space]):
                return False
        return peer.pods is None or selects(peer.pods, pod.metadata.labels)

    def is_own_node(self, pod: Pod, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether egress to this address is exempt, as one of the pod's own node."""
        if not self._allow_own_node:
            return False
        return address in self._places.addresses_of_node(pod.spec.node_name or "")

    def ports_of(self, pod: Pod) -> dict[tuple[str, str], int]:
        key = pod.metadata.key
        found = self._ports.get(key)
        if found is None:
            found = self._ports[key] = declared_ports(pod)
        return found


def _check(flow: Flow) -> None:
    if flow.protocol in PROTOCOLS:
        if not 1 <= flow.port <= 65535:
            raise FlowError(f"port {flow.port} is not in 1..65535")
    elif flow.protocol in _ICMP:
        raise FlowError("ICMP is mostly exempt, by its type; policies have no word for it")
    elif flow.protocol not in _OTHER_PROTOCOLS:
        names = ", ".join(PROTOCOLS)
        raise FlowError(f"protocol {flow.protocol!r} is none of {names}, and no other's number")


class _Judge:
    """Both directions of one flow."""

    def __init__(self, rules: Evaluator, flow: Flow, source: Place, target: Place) -> None:
        self._rules = rules
        self._protocol = flow.protocol
        self._port = flow.port
        has_ports = flow.protocol in PROTOCOLS
        self._what = f"{flow.protocol} {flow.port}" if has_ports else f"protocol {flow.protocol}"
        self._source = source
        self._target = target
        self._nodes = source.nodes | target.nodes
        self._stays_inside = source.address == target.address or (
            source.address.is_loopback or target.address.is_loopback
        )

    def egress(self) -> tuple[Side, str]:
        if self._source.process_of is not None:
            return Side(), f"egress of {self._source.name} is not subject to policies"
        return self._side(
            self._source,
            is_ingress=False,
            is_exempt=lambda pod: self._rules.is_own_node(pod, self._target.address),
            exemption=f"{self._target.name} is its own node",
        )

    def ingress(self) -> tuple[Side, str]:
        node = self._source.process_of
        return self._side(
            self._target,
            is_ingress=True,
            is_exempt=lambda pod: node is not None and pod.spec.node_name == node,
            exemption=f"{self._source.name} is exempt on its own node",
        )

    def _side(
        self,
        place: Place,
        *,
        is_ingress: bool,
        is_exempt: Callable[[Pod], bool],
        exemption: str,
    ) -> tuple[Side, str]:
        words = f"{'ingress' if is_ingress else 'egress'} of {place.name}"
        judged = [
            (pod, policies)
            for pod in place.owners
            if (pod.spec.node_name or "") in self._nodes
            and (policies := self._rules.isolating(pod, is_ingress=is_ingress))
        ]
        if not judged:
            what = "is not isolated" if place.owners else "is not subject to policies: it is no pod"
            if place.in_host_network:
                what = "is not subject to policies: it is in the host network"
            return Side(), f"{words} {what}"
        side, by = self._held([policies for _, policies in judged])
        if self._stays_inside:
            return side, f"{words}: {by}, but what stays inside of a pod is never filtered"
        other = self._source if is_ingress else self._target
        decision: Decision | None = None
        refusing: set[str] = set()
        for pod, policies in judged:
            if is_exempt(pod):
                continue
            admitted = self._first(policies, is_ingress)
            decision = decision or admitted
            if admitted is not None:
                continue
            if not all(map(self._rules.is_audited, policies)):
                what = f"no rule admits {other.name} on {self._what}"
                return structs.replace(side, allowed=False), f"{words}: {by}, {what}"
            refusing.update(policy.key for policy in policies)
        if refusing:
            side = structs.replace(side, would_refuse=True)
            names = ", ".join(sorted(refusing))
            what = f"no rule of {names} admits {other.name} on {self._what}, it would be refused"
        elif decision is None:
            what = f"but {exemption}"
        else:
            rule = f"rule {decision.rule} of {decision.policy}"
            what = f"{rule} admits {other.name} on {self._what}"
        return structs.replace(side, decided_by=decision), f"{words}: {by}, {what}"

    def _held(self, judged: Sequence[Sequence[ReadPolicy]]) -> tuple[Side, str]:
        """The side as long as nothing is refused, and by what it is held in words; ``judged`` are
        the policies of each pod with the address."""
        found = {policy.key: policy for policies in judged for policy in policies}
        keys = tuple(sorted(found))
        audits = [key for key in keys if self._rules.is_audited(found[key])]
        by = [
            f"{word} by {', '.join(some)}"
            for word, some in (
                ("isolated", [key for key in keys if key not in audits]),
                ("audited", audits),
            )
            if some
        ]
        side = Side(
            isolated=len(audits) < len(keys),
            policies=keys,
            audited=any(all(map(self._rules.is_audited, policies)) for policies in judged),
        )
        return side, " and ".join(by)

    def _first(self, policies: Sequence[ReadPolicy], is_ingress: bool) -> Decision | None:
        for policy in policies:
            rules = policy.ingress if is_ingress else policy.egress
            for index, rule in enumerate(rules or ()):
                if self._admits(policy, rule, is_ingress):
                    return Decision(policy.key, index)
        return None

    def _admits(self, policy: ReadPolicy, rule: ReadRule, is_ingress: bool) -> bool:
        other = self._source if is_ingress else self._target
        for peer in (None,) if rule.peers is None else rule.peers:
            owners = other.owners
            if peer is not None and peer.cidr is not None:
                if not is_inside(other.address, peer):
                    continue
            elif peer is not None:
                owners = tuple(
                    pod for pod in owners if self._rules.is_member(pod, peer, policy.namespace)
                )
                if not owners:
                    continue
            # A name is the destination's: of the pod with the policy, or of the peer that is met.
            named = filter(policy.is_about, self._target.owners) if is_ingress else owners
            if rule.ports is None or self._is_one_of(rule.ports, named):
                return True
        return False

    def _is_one_of(self, ports: Iterable[ReadPort], named: Iterable[Pod]) -> bool:
        """Whether the flow's port is one of these; ``named`` are the pods whose names count."""
        for port in ports:
            if port.protocol != self._protocol:
                continue
            if port.name is None:
                if port.first <= self._port <= port.last:
                    return True
                continue
            named = tuple(named)
            what = (port.protocol, port.name)
            if any(self._rules.ports_of(pod).get(what) == self._port for pod in named):
                return True
        return False
