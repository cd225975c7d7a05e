"""Random clusters, programmed by the firewall's own loop: whatever flow is explained, the kernel
agrees with what is expected of it, and the rules' verdict with the policies'."""

import os
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kube_router_py.explain_sources import cluster_objects
from kube_router_py.firewall.evaluate import FlowError
from kube_router_py.firewall.frame import JUMPS
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.flow.compare import compare
from kube_router_py.flow.compare_rules import Remedies
from kube_router_py.flow.expectations import NodeState, expectations
from kube_router_py.flow.firewall_state import firewall_of
from kube_router_py.flow.model import Question
from kube_router_py.flow.objects import flow_settings
from kube_router_py.flow.trace import Tracer
from kube_router_py.kernel.fake import FakeIpsets, FakeIptables
from kube_router_py.kernel.fake_host import FakeIpsetKernel, FakeIptablesKernel
from kube_router_py.kernel.fake_reading import FakeReading
from kube_router_py.kernel.ports import TableRules
from kube_router_py.manifests import Manifests
from kube_router_py.options import parse
from kube_router_py.render_firewall import compile_firewall

PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}
OPTIONS = FirewallOptions(families=("inet", "inet6"))
FLAGS = ("--enable-ipv6", "--run-service-proxy=false", "--run-router=false")


@settings(
    max_examples=60 if os.environ.get("KRP_EXPLORE") else 5,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_is_compiled_agrees_with_what_is_expected(
    data: st.DataObject, clusters: Any, random_clusters: Any
) -> None:
    documents = data.draw(random_clusters.objects())
    manifests = Manifests()
    for document in (*map(clusters.node, clusters.NODE_ADDRESSES), *documents):
        manifests.add(document, "", "IPv4")
    objects = cluster_objects(manifests)
    tracer = Tracer(objects, flow_settings(parse(list(FLAGS), {})))
    readings = {name: programmed(manifests, name) for name in clusters.NODE_ADDRESSES}
    for flow in list(random_clusters.flows(documents))[:20]:
        if flow.protocol not in PROTOCOLS or flow.service:
            continue
        question = Question(flow.src, flow.dst, flow.dport, PROTOCOLS[flow.protocol])
        try:
            trace = tracer.trace(question)
        except FlowError:
            continue
        if trace.service is not None:
            continue
        for name, reading in readings.items():
            own = frozenset(map(str, objects.views[name].addresses))
            firewall = firewall_of(objects, name, OPTIONS, trace)
            state = NodeState(name, own, firewall)
            found = compare(name, expectations(trace, state), reading, Remedies())
            wrong = [
                each
                for each in found.checks
                if each.agrees is False and not each.what.startswith("route to ")
            ]
            assert wrong == [], (question, name)


def programmed(manifests: Manifests, name: str) -> FakeReading:
    """A node's kernel with all that is compiled for it."""
    desired = compile_firewall(manifests, name, OPTIONS)
    sets, rules = FakeIpsetKernel(), FakeIptablesKernel()
    ipsets, iptables = FakeIpsets(sets), FakeIptables(rules)
    for spec in desired.sets.specs():
        ipsets.ensure(spec, frozenset(desired.sets[spec]))
    for family, chains in desired.chains.items():
        iptables.ensure(family, "filter", TableRules(dict(chains), JUMPS))
    return FakeReading(rules, sets)
