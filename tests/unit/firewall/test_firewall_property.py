"""Random clusters: piece by piece as from scratch, and the rules do what the semantics say."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.desired import Changes, Desired
from kube_router_py.firewall.evaluate import Evaluator, Flow, Verdict
from kube_router_py.firewall.pods import pod_facts
from kube_router_py.firewall.policy import compile_namespace, compile_policy
from kube_router_py.firewall.service_addresses import node_ports, service_ports
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.manifests import Manifests

OPTIONS = FirewallOptions(families=("inet", "inet6"))
KINDS = {each.__name__: each for each in (Namespace, NetworkPolicy, Pod, Service)}


def put(desired: Desired, kind: str, key: str, given: Any) -> None:
    """Tell of an object (a manifest, or None: it is gone), decoded as from an API server."""
    manifests = Manifests()
    manifests.add(given, key, "IPv4")
    found: Any = manifests.get(KINDS[kind], key)
    match kind:
        case "Namespace":
            desired.put_namespace(key, None if found is None else compile_namespace(found))
        case "NetworkPolicy":
            desired.put_policy(key, None if found is None else compile_policy(found))
        case "Pod":
            desired.put_pod(key, None if found is None else pod_facts(found, "node1"))
        case "Service" if found is None:
            desired.put_service(key, {}, {})
        case "Service":
            desired.put_service(key, service_ports(found, OPTIONS), node_ports(found, OPTIONS))


class Mirror:
    """What a kernel holds that is told of changes and of nothing else."""

    def __init__(self) -> None:
        self.sets: dict[Any, set[str]] = {}
        self.chains: dict[str, dict[str, tuple[str, ...]]] = {"inet": {}, "inet6": {}}

    def apply(self, changes: Changes, desired: Desired) -> None:
        for spec in changes.dropped:
            del self.sets[spec]
        for spec in changes.created:
            self.sets[spec] = set(desired.sets[spec])
        for spec, delta in changes.changed.items():
            assert not delta.add & self.sets[spec]
            assert delta.remove <= self.sets[spec]
            self.sets[spec] = (self.sets[spec] | delta.add) - delta.remove
        for family, chains in changes.chains.items():
            self.chains[family].update(chains)
        for family, names in changes.gone.items():
            for name in names:
                del self.chains[family][name]

    def state(self) -> tuple[Any, Any]:
        return self.sets, self.chains


def machine(clusters: Any, random_clusters: Any) -> type[RuleBasedStateMachine]:
    objects = st.one_of(
        random_clusters.NAMESPACES,
        random_clusters.PODS,
        random_clusters.PODS,
        random_clusters.POLICIES,
        random_clusters.POLICIES,
        random_clusters.SERVICES,
    )

    class Machine(RuleBasedStateMachine):
        @initialize(some=random_clusters.objects())
        def start(self, some: list[Any]) -> None:
            self.objects: dict[tuple[str, str], Any] = {}
            self.desired = Desired(OPTIONS)
            self.mirror = Mirror()
            self.settle()
            self.change(some)

        @rule(some=st.lists(objects, min_size=1, max_size=4))
        def change(self, some: list[Any]) -> None:
            for each in some:
                kind, space, name = clusters.identity(each)
                key = f"{space}/{name}" if space else name
                self.objects[kind, key] = each
                put(self.desired, kind, key, each)
            self.settle()

        @rule(kind=st.sampled_from(["NetworkPolicy", "Pod", "Namespace", ""]), data=st.data())
        def remove(self, kind: str, data: st.DataObject) -> None:
            known = [each for each in sorted(self.objects) if kind in ("", each[0])]
            if not known:
                return
            some = st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True)
            for each in data.draw(some):
                del self.objects[each]
                put(self.desired, *each, None)
            self.settle()

        @rule(data=st.data())
        def replace(self, data: st.DataObject) -> None:
            """Gone, and there again as another, between two looks at it."""
            if not self.objects:
                return
            kind, key = data.draw(st.sampled_from(sorted(self.objects)))
            put(self.desired, kind, key, None)
            put(self.desired, kind, key, self.objects[kind, key])
            self.settle()

        def settle(self) -> None:
            self.mirror.apply(self.desired.settle(), self.desired)
            again = Desired(OPTIONS)
            for (kind, key), each in sorted(self.objects.items(), reverse=True):
                put(again, kind, key, each)
            mirror = Mirror()
            mirror.apply(again.settle(), again)
            assert self.mirror.state() == mirror.state()
            assert sorted(self.desired.problems()) == sorted(again.problems())
            assert not self.desired.settle()

    return Machine


def test_incremental_equals_from_scratch(clusters: Any, random_clusters: Any) -> None:
    run_state_machine_as_test(
        machine(clusters, random_clusters),
        settings=settings(max_examples=60, stateful_step_count=12),
    )


# --- two ways to one verdict ---


DEFAULT_DENY, OWN_NODE = "--netpol-default-deny", "--netpol-allow-own-node"


def evaluator(cluster: Any, *, allow_own_node: bool = False) -> Evaluator:
    kinds = (Pod, Namespace, NetworkPolicy, Node, Service)
    found = (cluster.manifests.list(kind) for kind in kinds)
    return Evaluator(*found, allow_own_node=allow_own_node)


def judged(rules: Evaluator, flow: Any, protocols: dict[int, str]) -> Verdict:
    """A flow's verdict by the semantics; ``flow`` is the tracer's."""
    source = f"node/{flow.src_node}" if flow.src_process else flow.src
    family = "IPv6" if ":" in flow.src else "IPv4"
    asked = Flow(source, flow.dst, protocols[flow.protocol], flow.dport, family)
    return rules.evaluate(asked)


def audits(verdict: Verdict) -> set[str]:
    """The directions in which an audited pod would refuse."""
    sides = {"ingress": verdict.ingress, "egress": verdict.egress}
    return {direction for direction, side in sides.items() if side.would_refuse}


def dialled(cluster: Any, flow: Any) -> bool:
    """Whether there is a Service where the flow dials."""
    place = (flow.service[0], flow.service[1], {6: "TCP", 17: "UDP"}.get(flow.protocol))
    return any(
        place == (ip, port.port, port.protocol or "TCP")
        for service in cluster.manifests.list(Service)
        for ip in service.spec.cluster_ips or ()
        for port in service.spec.ports or ()
    )


def awaited(objects: list[Any], flow: Any) -> bool:
    """Whether an end has an address that a pod may get, and that no live pod of its node has."""
    live = {
        (each["spec"]["nodeName"], ip["ip"])
        for each in objects
        if each["kind"] == "Pod"
        and each["status"]["phase"] not in ("Succeeded", "Failed")
        and not each["spec"].get("hostNetwork")
        for ip in each["status"].get("podIPs", ())
    }
    is_source = flow.src_node and not flow.src_process and (flow.src_node, flow.src) not in live
    # What a node's own processes send to its pods is exempt from all.
    is_exempt = flow.dst_process or (flow.src_process and flow.src_node == flow.dst_node)
    is_target = flow.dst_node and not is_exempt and (flow.dst_node, flow.dst) not in live
    return bool(is_source or is_target)


@pytest.mark.timeout(600)  # to find the smallest cluster on which they do not
def test_rules_and_semantics_agree(clusters: Any, random_clusters: Any, tracer: Any) -> None:
    protocols = {number: name.upper() for name, number in clusters.PROTOCOLS.items()}

    @settings(max_examples=200)
    @given(
        random_clusters.objects(),
        st.booleans(),
        st.sampled_from([(), (), (DEFAULT_DENY,), (OWN_NODE,)]),
    )
    def agree(objects: list[Any], is_raw: bool, flags: tuple[str, ...]) -> None:
        nodes = map(clusters.node, clusters.NODE_ADDRESSES)
        cluster = clusters.Cluster([*nodes, *objects], *flags, is_raw=is_raw)
        rules = evaluator(cluster, allow_own_node=OWN_NODE in flags)
        for flow in random_clusters.flows(objects):
            if flow.service and not dialled(cluster, flow):
                if OWN_NODE in flags:
                    continue  # what is on the node is open then, and this is on no node
                # Nothing takes it there: it is for an address of the node, and judged as that.
                address, port = flow.service
                flow = tracer.Flow(
                    flow.src,
                    address,
                    flow.protocol,
                    port,
                    flow.src_node,
                    dst_node=flow.src_node,
                    dst_process=True,
                )
            meant = judged(rules, flow, protocols)
            said = meant.allowed
            if DEFAULT_DENY in flags and awaited(objects, flow):
                said = False
            verdict, way = cluster.trace(flow)
            told = clusters.told(verdict, way)
            assert said == verdict, f"{flow}\nevaluate: {said}, rules: {told}"
            if verdict:
                logs = [log.split() for hop in way for log in hop.trace.logs]
                assert {each[1] for each in logs} == audits(meant), f"{flow}\nevaluate: {told}"
                assert {each[2] for each in logs} <= {"audit"}
            # Nothing is left behind for the next chain, or the next table.
            assert all(hop.trace.mark == 0 for hop in way if hop.trace.verdict == "ACCEPT")

    agree()
