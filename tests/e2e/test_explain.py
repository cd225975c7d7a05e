"""``explain`` on a node, asked of its agent: it says what real packets do, and what is wrong with a
node's kernel where somebody has changed it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

NODES = ("node1", "node2")
IPTABLES = {4: "iptables", 6: "ip6tables"}
SERVICES = "/api/v1/namespaces/x/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/x/endpointslices"
BALANCED = {4: "198.51.100.80", 6: "2001:db8:80::80"}
POLICIES = {
    # By namespace, and by the name of a port: 81 of y/a and y/c, 80 of y/b.
    "y/from-x": {
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"namespaceSelector": {"matchLabels": {"ns": "x"}}}],
                "ports": [{"port": "web"}],
            }
        ],
    },
    "z/to-x": {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"ns": "x"}}}]}],
    },
}
# Source, what is connected to (a pod, or a Service by its kind of address), port and protocol.
FLOWS = (
    ("x/a", "pod y/a", 80, "TCP"),
    ("x/a", "pod y/a", 81, "TCP"),
    ("x/b", "pod y/a", 80, "UDP"),
    ("x/c", "pod y/b", 80, "TCP"),
    ("z/a", "pod x/b", 80, "TCP"),
    ("z/b", "pod y/b", 80, "TCP"),
    ("node1", "pod y/a", 81, "TCP"),
    ("node2", "pod y/a", 80, "TCP"),
    ("apiserver", "pod x/b", 81, "TCP"),
    ("z/b", "ip x/front", 8080, "TCP"),
    ("z/a", "ip y/front", 8080, "TCP"),
    ("x/b", "ip y/front", 8080, "TCP"),
    ("node1", "ip x/front", 8053, "UDP"),
    ("client", "port node2", 30480, "TCP"),
    ("client", "port node1", 30580, "TCP"),
    ("x/c", "lb", 8080, "TCP"),
    ("z/b", "lb", 8080, "TCP"),
    # Of z's pods the policy allows neither; IPVS hands the first one over on its own node.
    ("z/a", "ip x/own", 8090, "TCP"),
    ("z/b", "ip x/own", 8090, "TCP"),
    ("z/a", "node node1", 20245, "TCP"),
)
# The port of the agents' metrics, on all addresses of each node.
METRICS_PORT = 20245


@pytest.fixture(scope="module")
def world(policies: Any) -> Iterator[Any]:
    """The cluster of policies.yaml under POLICIES, with two more Services: of a load balancer, and
    of what listens on node1 itself."""
    families = policies.cluster.families
    own = {
        "metadata": {"name": "own"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": 8090, "targetPort": METRICS_PORT}],
        },
    }
    policies.api.create(SERVICES, own)
    for family in families:
        endpoints = {
            "metadata": {
                "name": f"own-{family}",
                "labels": {"kubernetes.io/service-name": "own"},
            },
            "addressType": f"IPv{family}",
            "endpoints": [{"addresses": [policies.cluster.address("node1", family)]}],
            "ports": [{"name": "", "port": METRICS_PORT, "protocol": "TCP"}],
        }
        policies.api.create(SLICES, endpoints)
    body = {
        "metadata": {"name": "balanced"},
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"pod": "a"},
            "ports": [{"port": 8080, "targetPort": 80}],
        },
    }
    policies.api.create(SERVICES, body)
    ingress = [{"ip": BALANCED[family]} for family in families]
    status = {"status": {"loadBalancer": {"ingress": ingress}}}
    policies.api.merge(f"{SERVICES}/balanced/status", status)
    policies.set(policies.state(POLICIES, {}))
    policies.cluster.wait()
    try:
        yield policies
    finally:
        for name in ("balanced", "own"):
            policies.api.delete(f"{SERVICES}/{name}")
        for family in families:
            policies.api.delete(f"{SLICES}/own-{family}")


def address_of(world: Any, target: str, family: int) -> str:
    kind, _, name = target.partition(" ")
    if kind == "lb":
        return BALANCED[family]
    if kind == "ip":
        namespace, _, service_name = name.partition("/")
        service = world.api.get(f"/api/v1/namespaces/{namespace}/services/{service_name}")
        found = service["spec"]["clusterIPs"]
    elif kind == "node":
        found = [world.cluster.address(name, family)]
    else:
        found = world.addresses[name]
    return str(next(each for each in found if (":" in each) == (family == 6)))


def asked(world: Any, node: str, source: str, address: str, port: int, protocol: str) -> Any:
    """What the node's agent says of a flow."""
    word = source
    if source in NODES:
        word = f"node/{source}"
    elif "/" not in source:
        word = world.address(source, address)
    question = {"source": word, "destination": address, "port": port, "protocol": protocol}
    return world.cluster.asked(node, "explain", question)


def wrong(answer: Any) -> list[str]:
    """The checks that do not agree, each on a line; and why there are none."""
    assert not answer["error"], answer
    assert not answer["missing"], answer
    return [
        f"{each['what']}: expected {each['expected']}; found {each['found']}"
        for each in answer["kernel"]["checks"]
        if each["agrees"] is False
    ]


def test_explain_says_what_packets_do(
    world: Any, probes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every flow, one in this family and the next in that, asked on both nodes; no kernel
    differs."""
    families = world.cluster.families
    flows = {
        probes.Probe(source, protocol, address_of(world, target, family), port)
        for number, (source, target, port, protocol) in enumerate(FLOWS)
        for family in families[number % len(families) :][:1]
    }
    real = world.prober.ask(flows)
    began = time.monotonic()
    mistakes: list[str] = []
    unknown: set[str] = set()
    number = 0
    for probe in sorted(flows):
        told: dict[str, str] = {}
        for node in NODES:
            answer = asked(world, node, *_words(probe))
            told[node] = answer["trace"]["outcome"] if answer["trace"] else answer["error"]
            mistakes += [f"{probe} on {node}: {each}" for each in wrong(answer)]
            checks = answer["kernel"]["checks"]
            number += len(checks)
            unknown |= {each["found"] for each in checks if each["agrees"] is None}
        is_open = real[probe].outcome == probes.OPEN
        for node, outcome in told.items():
            if (outcome == "allowed") != is_open:
                mistakes.append(f"{probe} is {real[probe].outcome}, and {outcome} on {node}")
    outcomes = [each.outcome for each in real.values()]
    with capsys.disabled():
        print(
            f"\n  {len(flows)} flows, {outcomes.count(probes.OPEN)} open; {number} checks of "
            f"kernels in {time.monotonic() - began:.1f} s",
            end="",
        )
    assert mistakes == []
    assert 0 < outcomes.count(probes.OPEN) < len(flows)
    # What is not told is told to be elsewhere, and nothing else.
    assert all(each.startswith("not compared here: runs on") for each in unknown), unknown


def _words(probe: Any) -> tuple[str, str, int, str]:
    return probe.source, probe.address, probe.port, probe.protocol


# --- faults --------------------------------------------------------------------------------------


def differs(world: Any, inject: Callable[[], object], flow: Any, expected: str) -> list[str]:
    """What explain says once a fault is there; the agent may repair it at any time, then it comes
    once more."""

    def look() -> list[str]:
        with contextlib.suppress(Exception):  # it is there still
            inject()
        return wrong(asked(world, "node1", *flow))

    found: list[str] = []

    def seen() -> bool:
        found[:] = look()
        return any(expected in each for each in found)

    world.cluster.eventually(seen, f"explain tells: {expected}; it told {found}")
    return found


def agrees(world: Any, flow: Any, what: str) -> None:
    world.cluster.eventually(lambda: not wrong(asked(world, "node1", *flow)), what)


def test_explain_names_what_somebody_has_changed(world: Any, probes: Any) -> None:
    def run(*argv: str) -> str:
        return str(world.cluster.run("node1", *argv))

    family = world.cluster.families[0]
    iptables = IPTABLES[family]
    source = world.address("x/b", address_of(world, "pod y/a", family))
    target = address_of(world, "pod y/a", family)
    flow = ("x/b", target, 81, "TCP")
    probe = probes.Probe("x/b", "TCP", target, 81)
    assert world.prober.ask([probe])[probe].outcome == probes.OPEN
    checks = asked(world, "node1", *flow)["kernel"]["checks"]
    agrees(world, flow, "nothing differs before")

    # A rule of others, behind the agent's first one: named as it stands.
    rule = ("FORWARD", "-d", target, "-p", "tcp", "-m", "tcp", "--dport", "81", "-j", "DROP")
    run(iptables, "-w", "-I", *rule[:1], "2", *rule[1:])
    (found,) = wrong(asked(world, "node1", *flow))
    assert found.startswith("rules of others for ")
    assert "takes it: rule 2 of FORWARD in table filter: " in found
    assert "-p tcp -m tcp --dport 81 -j DROP" in found
    assert world.prober.ask([probe], again=False)[probe].outcome == probes.SILENT
    run(iptables, "-w", "-D", *rule)
    agrees(world, flow, "the rule of others has gone")

    # The peer has gone from the policy's set.
    name = next(
        each["expected"].split()[1]
        for each in checks
        if each["expected"].startswith(("set KUBE-SRC-", "set inet6:KUBE-SRC-"))
        and f"has {source}" in each["expected"]
    )
    told = differs(world, lambda: run("ipset", "del", name, source), flow, name)
    assert {each.partition(" of ")[0].partition(" for ")[0] for each in told} == {
        "peers or ports",
        "the agent's rules",
    }
    assert any(f"it is not in {name}" in each for each in told)
    assert world.prober.ask([probe])[probe].outcome == probes.REFUSED

    # The rule of the pod's chain that leads to its policy has gone, too.
    chain = next(
        each["expected"].split()[-1]
        for each in checks
        if each["what"] == "address of pod y/a leads to its ingress chain"
    )
    number = next(
        index
        for index, line in enumerate(run(iptables, "-w", "-S", chain).splitlines())
        if "-j KUBE-NWPLCY-" in line
    )
    run(iptables, "-w", "-D", chain, str(number))
    told = wrong(asked(world, "node1", *flow))
    assert any(
        each.startswith("ingress chain of pod y/a: ") and f"missing in {chain}: " in each
        for each in told
    ), told

    # A real server has gone; this the agent finds out by itself, every 15 s here.
    vip = address_of(world, "ip x/front", family)
    backend = world.address("x/a", vip)
    service, real = (
        (f"[{vip}]:8080", f"[{backend}]:80") if family == 6 else (f"{vip}:8080", f"{backend}:80")
    )
    through = ("x/c", vip, 8080, "TCP")
    told = differs(
        world,
        lambda: run("ipvsadm", "-d", "-t", service, "-r", real),
        through,
        f"missing: {real}",
    )
    assert [each.partition(":")[0] for each in told] == ["virtual server of Service x/front"]
    agrees(world, through, "the agent has put its real server back")

    # The full sync at its start mends the rest.
    world.cluster.agent("node1", "stop")
    world.cluster.agent("node1", "start")
    world.cluster.wait()
    agrees(world, flow, "the agent has repaired its rules and sets")
    assert world.prober.ask([probe])[probe].outcome == probes.OPEN
