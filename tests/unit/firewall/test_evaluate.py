"""Verdicts of ``evaluate``, against a table written down by hand, and what it says of them."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.cluster.decode import ObjectDecoder
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.evaluate import Decision, Evaluator, Flow, FlowError, Verdict
from kube_router_py.firewall.evaluate_rules import ReadPolicy
from kube_router_py.manifests import Manifests

SEMANTICS = Path(__file__).parents[2] / "golden" / "policies" / "semantics.yaml"
CASES = {case["name"]: case for case in yaml.safe_load(SEMANTICS.read_text())}

X_A, X_C, Y_A = "10.244.1.10", "10.244.1.12", "10.244.1.20"
OUTSIDE = "203.0.113.10"


KINDS = (Pod, Namespace, NetworkPolicy, Node, Service)


def evaluator(objects: list[Any], **settings: Any) -> Evaluator:
    """Of objects as manifests give them, with an API server's defaults."""
    manifests = Manifests()
    for each in objects:
        manifests.add(each, "object", "IPv4")
    return Evaluator(*map(manifests.list, KINDS), **settings)


def bare_evaluator(objects: list[Any]) -> Evaluator:
    """Of objects as they are written."""
    found: dict[str, list[Any]] = {kind.__name__: [] for kind in KINDS}
    for each in objects:
        kind = next(kind for kind in KINDS if kind.__name__ == each["kind"])
        item = ObjectDecoder(kind).item(json.dumps(each).encode())
        assert item.object is not None
        found[each["kind"]].append(item.object)
    return Evaluator(*found.values())


def flow(text: str) -> Flow:
    """``x/a > y/b TCP 80``, and perhaps ``IPv6``."""
    source, _, target, protocol, port, *family = text.split()
    return Flow(source, target, protocol, int(port), *family)


# --- the table -----------------------------------------------------------------------------------


def in_families(clusters: Any, line: str) -> Iterator[Flow]:
    """A line of the table as flows in each family that it may be about."""
    source, _, target, protocol, port, *wanted = line.split()
    for version in (4, 6):
        if wanted and wanted[0] != f"v{version}":
            continue
        end = clusters.NODE_ADDRESSES.get(target, (target, target))[0 if version == 4 else 1]
        start = f"node/{source}" if source in clusters.NODE_ADDRESSES else source
        yield Flow(start, end, protocol.upper(), int(port), f"IPv{version}")


def judged(rules: Evaluator, clusters: Any, line: str) -> list[Verdict]:
    found = []
    for each in in_families(clusters, line):
        try:
            found.append(rules.evaluate(each))
        except FlowError as error:
            assert "has no IPv" in str(error)  # noqa: PT017 - one family only, as the line means
    assert found, line
    return found


@pytest.mark.parametrize("read", [evaluator, bare_evaluator])
@pytest.mark.parametrize("name", CASES)
def test_semantics(name: str, read: Callable[[list[Any]], Evaluator], clusters: Any) -> None:
    case = CASES[name]
    rules = read(clusters.of_case(case))
    wrong = []
    for word, allowed in (("allowed", True), ("denied", False)):
        for line in case.get(word, "").strip().splitlines():
            for verdict in judged(rules, clusters, line):
                assert verdict.allowed == (verdict.egress.allowed and verdict.ingress.allowed)
                if verdict.allowed != allowed:
                    wrong.append(f"{line}: {verdict.reason}")
    assert not wrong, "\n".join(wrong)


# --- what the table cannot say -------------------------------------------------------------------

DENY = "{podSelector: {}, policyTypes: [Ingress]}"
NO_KEY = "{matchExpressions: [{operator: DoesNotExist}]}"
DENY_BOTH = "{podSelector: {}, policyTypes: [Ingress, Egress]}"


def ingress(rules: str, pod: str = "a") -> str:
    return f"{{podSelector: {{matchLabels: {{pod: {pod}}}}}, ingress: {rules}}}"


VERDICTS = [
    pytest.param(
        f"x/p: {ingress('[{from: [{ipBlock: {cidr: 203.0.113.0/255.255.255.0}}]}]')}",
        "",
        f"{OUTSIDE} > x/a TCP 80",
        id="rule 53: a mask in place of a length is no CIDR",
    ),
    pytest.param(
        f"x/p: {ingress('[{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [wrong]}}]}]')}",
        "",
        f"{OUTSIDE} > x/a TCP 80",
        id="rule 53: an except that is no CIDR leaves nobody",
    ),
    pytest.param(
        f"x/p: {ingress('[{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [0.0.0.0/0]}}]}]')}",
        "",
        f"{OUTSIDE} > x/a TCP 80",
        id="rule 54: an except beyond its block empties it",
    ),
    pytest.param(
        f"x/p: {ingress(f'[{{from: [{{podSelector: {NO_KEY}}}]}}]')}",
        "",
        "x/b > x/a TCP 80",
        id="rule 53: a requirement without a key selects nobody",
    ),
    pytest.param(
        f"x/p: {ingress('[{ports: [{port: 0, endPort: 90}, {port: 90, endPort: 65536}]}]')}",
        "",
        "x/b > x/a TCP 80\nx/b > x/a TCP 90",
        id="rule 52: a range that begins or ends nowhere",
    ),
    pytest.param(
        f"x/p: {ingress('[{from: [5], ports: [{port: [1]}, {port: 80}]}, {ports: [{port: 81}]}]')}",
        "x/b > x/a TCP 81",
        "x/b > x/a TCP 80\nx/b > x/a TCP 1",
        id="rule 56: what does not even decode matches nothing",
    ),
    pytest.param(
        "x/p: {podSelector: {matchLabels: 5}, ingress: []}\nx/q: " + ingress("[]", "b"),
        "y/a > x/a TCP 80",
        "y/a > x/b TCP 80",
        id="rule 55: a selector that does not decode selects nothing",
    ),
    pytest.param(
        f"x/p: {DENY_BOTH}",
        f"x/a > 127.0.0.1 TCP 80\nx/a > {X_A} TCP 80\n{X_A} > x/a TCP 80",
        f"x/a > {X_C} TCP 80",
        id="rules 30 and 37: inside of a pod nothing is filtered",
    ),
    pytest.param(
        f"x/p: {DENY}",
        "node/node1 > x/a TCP 80\nnode/node1 > x/a UDP 1",
        "192.168.1.1 > x/a TCP 80\nnode/node2 > x/a TCP 80\nnode/node1 > x/b TCP 80",
        id="rules 31 and 36: a process of the own node, not what has its address",
    ),
    pytest.param(
        f"x/p: {ingress('[{from: [{ipBlock: {cidr: 192.168.1.1/32}}]}]', 'b')}",
        "192.168.1.1 > x/b TCP 80\nnode/node1 > x/b TCP 80",
        f"{OUTSIDE} > x/b TCP 80",
        id="rule 33: another node is a block's matter",
    ),
    pytest.param(
        "x/p: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}]}",
        "x/a > 10.96.0.9 TCP 80",
        "x/a > y/a TCP 80",
        id="rule 35: the address of a Service is judged as it stands",
    ),
]


@pytest.mark.parametrize(("policies", "allowed", "denied"), VERDICTS)
def test_verdicts(policies: str, allowed: str, denied: str, clusters: Any) -> None:
    rules = evaluator(clusters.canonical() + clusters.policies(policies))
    for text, expected in ((allowed, True), (denied, False)):
        for line in text.splitlines():
            verdict = rules.evaluate(flow(line))
            assert verdict.allowed == expected, f"{line}: {verdict.reason}"


def test_the_verdict_names_policies_and_the_rule_that_decides(clusters: Any) -> None:
    policies = clusters.policies(
        """
        x/deny: {podSelector: {}, policyTypes: [Ingress]}
        x/open: {podSelector: {},
                 ingress: [{ports: [{port: 1}]}, {from: [{namespaceSelector: {}}]}]}
        x/zero: {podSelector: {}, ingress: [{}]}
        x/other: {podSelector: {matchLabels: {pod: b}}, ingress: [{}]}
        y/out: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}
        """
    )
    rules = evaluator(clusters.canonical() + policies)
    verdict = rules.evaluate(flow("y/a > x/a TCP 80"))
    assert (verdict.source, verdict.destination) == (Y_A, X_A)
    assert verdict.ingress.policies == ("x/deny", "x/open", "x/zero")
    assert verdict.ingress.decided_by == Decision("x/open", 1)
    assert (verdict.egress.isolated, verdict.egress.policies) == (True, ("y/out",))
    assert verdict.egress.decided_by == Decision("y/out", 0)
    assert verdict.reason == (
        "egress of y/a: isolated by y/out, rule 0 of y/out admits x/a on TCP 80; "
        "ingress of x/a: isolated by x/deny, x/open, x/zero, "
        "rule 1 of x/open admits y/a on TCP 80"
    )
    assert rules.evaluate(flow("y/a > x/a 47 0")).reason.endswith("admits x/a on protocol 47")
    refused = rules.evaluate(flow("y/a > x/a TCP 81"))
    assert (refused.allowed, refused.ingress.allowed) == (False, True)
    assert (refused.egress.isolated, refused.egress.allowed) == (True, False)
    assert refused.egress.decided_by is None
    assert refused.reason == "egress of y/a: isolated by y/out, no rule admits x/a on TCP 81"


def test_reasons_for_what_is_open_or_not_subject_to_policies(clusters: Any) -> None:
    host = clusters.pod("x/h", "node1", clusters.NODE_ADDRESSES["node1"], host_network=True)
    rules = evaluator([*clusters.canonical(), host, *clusters.policies(f"x/p: {DENY}")])

    def reason(text: str) -> str:
        return rules.evaluate(flow(text)).reason

    assert (
        reason("y/a > z/b TCP 80")
        == "egress of y/a is not isolated; ingress of z/b is not isolated"
    )
    assert reason(f"y/a > {OUTSIDE} TCP 80") == (
        f"egress of y/a is not isolated; "
        f"ingress of {OUTSIDE} is not subject to policies: it is no pod"
    )
    assert reason("node/node1 > x/a TCP 80") == (
        "egress of node/node1 (192.168.1.1) is not subject to policies; ingress of x/a: "
        "isolated by x/p, but node/node1 (192.168.1.1) is exempt on its own node"
    )
    assert reason("y/a > x/h TCP 80") == (
        "egress of y/a is not isolated; "
        "ingress of x/h is not subject to policies: it is in the host network"
    )
    assert "x/p, but what stays inside of a pod is never filtered" in reason("x/a > x/a TCP 80")
    assert reason(f"{X_C} > {X_A} TCP 80").startswith(
        f"ingress of x/a ({X_A}): isolated by x/p, no"
    )
    assert reason(f"{X_C} > {X_A} TCP 80").endswith(f"no rule admits x/c ({X_C}) on TCP 80")


def test_a_literal_address_is_its_pod(clusters: Any) -> None:
    policies = clusters.policies(f"x/p: {ingress('[{from: [{podSelector: {}}]}]')}")
    rules = evaluator(clusters.canonical() + policies)
    named, literal = (
        rules.evaluate(flow(each)) for each in ("x/c > x/a TCP 80", f"{X_C} > {X_A} TCP 80")
    )
    assert (literal.ingress, literal.egress) == (named.ingress, named.egress)
    assert literal.allowed
    assert not rules.evaluate(flow(f"{Y_A} > {X_A} TCP 80")).allowed


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"clusterIP": "10.96.0.9"}, "ClusterIP"),
        ({"clusterIP": "10.96.0.1", "externalIPs": ["10.96.0.9"]}, "external IP"),
    ],
)
def test_a_service_is_judged_as_it_stands_and_the_reason_says_so(
    spec: Any, field: str, clusters: Any
) -> None:
    service = clusters.service("y/web", ["10.96.0.1"], 80, 8080)
    service["spec"] = {"ports": [{"port": 80}], **spec}
    rules = evaluator([*clusters.canonical(), service])
    verdict = rules.evaluate(flow("x/a > 10.96.0.9 TCP 80"))
    assert verdict.reasons[-1] == (
        f"10.96.0.9 is the {field} of y/web and is judged as it stands, "
        "policies apply to the pods behind it"
    )


def test_the_address_of_a_node_is_no_process_of_it_and_the_reason_says_so(clusters: Any) -> None:
    rules = evaluator(clusters.canonical())
    verdict = rules.evaluate(flow("192.168.1.1 > x/a TCP 80"))
    assert verdict.reasons[-1] == (
        "192.168.1.1 is an address of node node1, judged like any other "
        "(a process there is node/node1)"
    )
    assert len(rules.evaluate(flow("node/node1 > x/a TCP 80")).reasons) == 2


def test_pods_in_the_host_network_send_as_their_node(clusters: Any) -> None:
    host = clusters.pod("y/h", "node1", clusters.NODE_ADDRESSES["node1"], host_network=True)
    objects = [*clusters.canonical(), host]
    objects += clusters.policies(f"x/p: {DENY}\ny/p: {DENY_BOTH}")
    rules = evaluator(objects)
    assert rules.evaluate(flow("y/h > x/a TCP 80")).allowed
    assert not rules.evaluate(flow("y/h > x/b TCP 80")).allowed
    assert rules.evaluate(flow("z/a > y/h TCP 80")).allowed


def test_rule_32_the_own_node_is_exempt_where_asked_for(clusters: Any) -> None:
    policies = clusters.policies("x/p: {podSelector: {}, policyTypes: [Egress]}")
    strict = evaluator(clusters.canonical() + policies)
    kind = evaluator(clusters.canonical() + policies, allow_own_node=True)
    own, other = flow("x/a > 192.168.1.1 TCP 22"), flow("x/a > 192.168.1.2 TCP 22")
    assert not strict.evaluate(own).allowed
    assert kind.evaluate(own).reason.startswith(
        "egress of x/a: isolated by x/p, but 192.168.1.1 is its own node"
    )
    assert not kind.evaluate(other).allowed


# --- addresses that several pods claim -----------------------------------------------------------


def claimed(clusters: Any, node: str, policies: str) -> Evaluator:
    """z/d has the addresses of x/a, on a node."""
    second = clusters.pod("z/d", node, clusters.addresses("node1", 10), {"app": "d"})
    return evaluator([*clusters.canonical(), second, *clusters.policies(policies)])


def test_a_peer_is_met_if_any_claimant_meets_it(clusters: Any) -> None:
    peers = "[{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]"
    rules = claimed(clusters, "node1", f"y/p: {ingress(peers)}")
    assert rules.evaluate(flow("x/a > y/a TCP 80")).allowed
    assert not rules.evaluate(flow("x/c > y/a TCP 80")).allowed


def test_all_claimants_of_an_address_have_to_admit_where_the_flow_is(clusters: Any) -> None:
    policies = f"z/p: {DENY}\nx/p: {ingress('[{}]')}"
    verdict = claimed(clusters, "node1", policies).evaluate(flow("y/c > x/a TCP 80"))
    assert not verdict.allowed
    assert verdict.ingress.policies == ("x/p", "z/p")
    # From and to node1: what node2 holds against the address is asked nowhere.
    far = claimed(clusters, "node2", policies)
    assert far.evaluate(flow("y/c > x/a TCP 80")).allowed
    assert not far.evaluate(flow("y/b > x/a TCP 80")).allowed
    # Where a mere address is cannot be said: all have to admit.
    assert not far.evaluate(flow(f"y/c > {X_A} TCP 80")).allowed


def test_a_name_is_the_port_of_any_claimant_that_is_met(clusters: Any) -> None:
    port = {"name": "web", "containerPort": 8080}
    second = clusters.pod("z/d", "node1", clusters.addresses("node1", 10), {}, [port])
    third = clusters.pod("x/a", "node1", clusters.addresses("node1", 10), None, [])
    policies = clusters.policies(
        """
        y/p: {podSelector: {}, egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}],
              policyTypes: [Egress]}
        z/p: {podSelector: {}, policyTypes: [Egress],
              egress: [{to: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: web}]}]}
        """
    )
    rules = evaluator(clusters.replaced(clusters.canonical(), second, third) + policies)
    assert rules.evaluate(flow("y/b > x/a TCP 8080")).allowed
    # Only z/d declares it, and z/d is no peer here, though x/a is.
    assert not rules.evaluate(flow("z/b > x/a TCP 8080")).allowed


def test_a_name_is_no_port_of_a_claimant_that_the_policy_is_not_about(clusters: Any) -> None:
    port = {"name": "web", "containerPort": 8080}
    # The labels would do, the namespace does not.
    second = clusters.pod("z/d", "node1", clusters.addresses("node1", 10), {"pod": "a"}, [port])
    policies = clusters.policies(f"x/p: {ingress('[{ports: [{port: web}]}]')}")
    rules = evaluator([*clusters.canonical(), second, *policies])
    assert not rules.evaluate(flow("y/a > x/a TCP 8080")).allowed


def test_a_node_that_is_dialled_asks_its_claimants(clusters: Any) -> None:
    rules = claimed(clusters, "node2", "z/p: {podSelector: {}, policyTypes: [Egress]}")
    assert rules.evaluate(flow("x/a > 192.168.1.1 TCP 80")).allowed
    assert not rules.evaluate(flow("x/a > 192.168.1.2 TCP 80")).allowed


# --- objects that lack something -----------------------------------------------------------------


def test_rule_25_names_of_containers_that_have_ended_do_not_count(clusters: Any) -> None:
    pod = clusters.pod("x/a", "node1", clusters.addresses("node1", 10))
    ports = [{"name": "web", "containerPort": 80}, {"name": "web", "containerPort": 53}]
    ports[1]["protocol"] = "UDP"
    started = {"name": "i", "ports": [{"name": "init", "containerPort": 81}]}
    pod["spec"] = {**pod["spec"], "initContainers": [started]}
    pod["spec"]["containers"][0]["ports"] = ports
    policies = clusters.policies(
        f"x/p: {ingress('[{ports: [{port: init}, {port: web}, {port: web, protocol: UDP}]}]')}"
    )
    rules = evaluator(clusters.replaced(clusters.canonical(), pod) + policies)
    for text, allowed in (
        ("TCP 80", 1),
        ("UDP 53", 1),
        ("TCP 53", 0),
        ("UDP 80", 0),
        ("TCP 81", 0),
    ):
        assert rules.evaluate(flow(f"y/a > x/a {text}")).allowed == bool(allowed), text


def test_a_namespace_that_is_not_known_is_selected_by_no_selector(clusters: Any) -> None:
    objects = [each for each in clusters.canonical() if each["metadata"]["name"] != "y"]
    rule = "[{from: [{namespaceSelector: {matchExpressions: [{key: q, operator: DoesNotExist}]}}]}]"
    rules = evaluator(objects + clusters.policies(f"x/p: {ingress(rule)}"))
    assert rules.evaluate(flow("z/a > x/a TCP 80")).allowed
    assert not rules.evaluate(flow("y/a > x/a TCP 80")).allowed


def test_a_pod_without_a_node_is_nobodys_neighbour(clusters: Any) -> None:
    lost = clusters.pod("x/d", "", ["10.244.1.40"])
    del lost["spec"]["nodeName"]
    rules = evaluator([*clusters.canonical(), lost, *clusters.policies(f"x/p: {DENY}")])
    assert not rules.evaluate(flow(f"{OUTSIDE} > x/d TCP 80")).allowed
    assert not rules.evaluate(flow("node/node1 > x/d TCP 80")).allowed


def test_rule_50_an_address_may_stand_in_one_field_only(clusters: Any) -> None:
    alone = clusters.pod("x/a", "node1", [X_A])
    del alone["status"]["podIPs"]
    listed = clusters.pod("x/c", "node1", [X_C])
    del listed["status"]["podIP"]
    objects = clusters.replaced(clusters.canonical(), alone, listed)
    rules = bare_evaluator(objects + clusters.policies(f"x/p: {DENY}"))
    assert not rules.evaluate(flow(f"{Y_A} > {X_A} TCP 80")).allowed
    assert not rules.evaluate(flow(f"{Y_A} > {X_C} TCP 80")).allowed


# --- flows that cannot be judged, and families ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x/q > x/a TCP 80", "from: there is no pod x/q"),
        ("x/a > x/q TCP 80", "to: there is no pod x/q"),
        ("node/node3 > x/a TCP 80", "from: there is no Node 'node3'"),
        (
            "x/a > node/node1 TCP 80",
            "to: there is no pod node/node1; for the node, give its address",
        ),
        (
            "web > x/a TCP 80",
            "from: 'web' is neither namespace/pod, node/NAME nor an IP address",
        ),
        ("x/a > a/b/c TCP 80", "to: 'a/b/c' is neither namespace/pod nor an IP address"),
        ("x/a > / TCP 80", "to: '/' is neither namespace/pod nor an IP address"),
        ("x/a > 10.0.0.256 TCP 80", "to: '10.0.0.256' is neither namespace/pod nor an IP address"),
        ("x/a > x/c TPC 80", "protocol 'TPC' is none of TCP, UDP, SCTP, and no other's number"),
        ("x/a > x/c 6 80", "protocol '6' is none of TCP, UDP, SCTP, and no other's number"),
        ("x/a > x/c 58 0", "ICMP is mostly exempt, by its type; policies have no word for it"),
        ("x/a > x/c TCP 0", "port 0 is not in 1..65535"),
        ("x/a > x/c TCP 65536", "port 65536 is not in 1..65535"),
        ("x/a > x/c TCP 80 IPv5", "family 'IPv5' is none of IPv4, IPv6"),
        ("x/a > 10.0.0.1 TCP 80 IPv6", "10.0.0.1 has no IPv6 address"),
        ("x/four > x/six TCP 80", "x/four and x/six have no address family in common"),
        ("10.0.0.1 > fd00::1 TCP 80", "10.0.0.1 and fd00::1 have no address family in common"),
        ("x/done > x/a TCP 80", "from: pod x/done is finished (Succeeded) and has no address"),
        ("x/a > x/new TCP 80", "to: pod x/new has no address"),
    ],
)
def test_a_flow_that_cannot_be_judged(text: str, complaint: str, clusters: Any) -> None:
    more = [
        clusters.pod("x/four", "node1", ["10.244.1.40"]),
        clusters.pod("x/six", "node1", ["fd00:10:244:1::41"]),
        clusters.pod("x/done", "node1", ["10.244.1.42"], phase="Succeeded"),
        clusters.pod("x/new", "node1", [], phase="Pending"),
    ]
    with pytest.raises(FlowError) as caught:
        evaluator(clusters.canonical() + more).evaluate(flow(text))
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("x/a > y/a TCP 80", X_A),
        ("x/a > y/a TCP 80 IPv6", "fd00:10:244:1::10"),
        ("x/a > fd00:10:244:1::20 TCP 80", "fd00:10:244:1::10"),
        ("x/six > x/a TCP 80", "fd00:10:244:1::41"),
        ("x/turned > x/a TCP 80", "10.244.1.42"),
        ("node/node1 > x/a TCP 80 IPv6", "fd00:1::1"),
    ],
)
def test_the_family_of_a_flow(text: str, source: str, clusters: Any) -> None:
    more = [
        clusters.pod("x/six", "node1", ["fd00:10:244:1::41"]),
        clusters.pod("x/turned", "node1", ["fd00:10:244:1::42", "10.244.1.42"]),
    ]
    assert evaluator(clusters.canonical() + more).evaluate(flow(text)).source == source


def test_a_pod_in_a_namespace_called_node_can_be_asked_for(clusters: Any) -> None:
    more = [clusters.namespace("node"), clusters.pod("node/web", "node1", ["10.244.1.40"])]
    verdict = evaluator(clusters.canonical() + more).evaluate(flow("node/web > x/a TCP 80"))
    assert verdict.source == "10.244.1.40"


def test_policies_are_matched_with_a_pod_once_however_many_flows_it_has(
    clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    is_about = ReadPolicy.is_about

    def counting(policy: ReadPolicy, pod: Pod) -> bool:
        looks.append(pod.metadata.key)
        return is_about(policy, pod)

    monkeypatch.setattr(ReadPolicy, "is_about", counting)
    spec = yaml.safe_load(ingress("[{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}]"))
    here = [clusters.policy(f"x/p{number}", spec) for number in range(20)]
    elsewhere = [clusters.policy(f"z/p{number}", spec) for number in range(20)]
    rules = evaluator(clusters.canonical() + here + elsewhere)
    for port in range(1, 101):
        rules.evaluate(flow(f"y/a > x/a TCP {port}"))
    assert looks == ["x/a"] * 20


# --- what is audited ----------------------------------------------------------------------------

AUDIT_CASES = {
    # Policies of x/a with their annotation; a flow; the side's fields; what is said.
    "nothing admits it": (
        {"x/p": ("ingress: []", "true")},
        "y/a > x/a TCP 80",
        (False, True, True, True),
        "ingress of x/a: audited by x/p, no rule of x/p admits y/a on TCP 80, it would be refused",
    ),
    "one admits it": (
        {"x/p": ("ingress: []", "true"), "x/q": ("ingress: [{}]", "true")},
        "y/a > x/a TCP 80",
        (False, True, True, False),
        "ingress of x/a: audited by x/p, x/q, rule 0 of x/q admits y/a on TCP 80",
    ),
    "an audited one admits what an enforced one does not": (
        {"x/p": ("ingress: []", None), "x/q": ("ingress: [{}]", "true")},
        "y/a > x/a TCP 80",
        (True, True, False, False),
        "ingress of x/a: isolated by x/p and audited by x/q, rule 0 of x/q admits y/a on TCP 80",
    ),
    "neither of them admits it": (
        {"x/p": ("ingress: []", "false"), "x/q": ("ingress: []", "true")},
        "y/a > x/a TCP 80",
        (True, False, False, False),
        "ingress of x/a: isolated by x/p and audited by x/q, no rule admits y/a on TCP 80",
    ),
    "what stays inside": (
        {"x/p": ("ingress: []", "true")},
        "x/a > x/a TCP 80",
        (False, True, True, False),
        "ingress of x/a: audited by x/p, but what stays inside of a pod is never filtered",
    ),
    "the node itself": (
        {"x/p": ("ingress: []", "true")},
        "node/node1 > x/a TCP 80",
        (False, True, True, False),
        "ingress of x/a: audited by x/p, but node/node1 (192.168.1.1) is exempt on its own node",
    ),
}


@pytest.mark.parametrize("of_namespace", [False, True])
@pytest.mark.parametrize("name", AUDIT_CASES)
def test_what_is_audited_is_allowed_and_said(name: str, of_namespace: bool, clusters: Any) -> None:
    given, asked, fields, said = AUDIT_CASES[name]
    objects = clusters.canonical()
    for key, (rules, audit) in given.items():
        spec = yaml.safe_load(f"{{podSelector: {{matchLabels: {{pod: a}}}}, {rules}}}")
        if of_namespace:
            audit = {"true": None, None: "false"}.get(audit, audit)
        objects.append(clusters.policy(key, spec, audit=audit))
    if of_namespace:
        objects = clusters.replaced(objects, clusters.namespace("x", audit="true"))
    verdict = evaluator(objects).evaluate(flow(asked))
    side = verdict.ingress
    assert (side.isolated, side.allowed, side.audited, side.would_refuse) == fields
    assert side.policies == tuple(given)
    assert verdict.allowed is side.allowed
    assert said in verdict.reasons


@pytest.mark.parametrize("text", ["True", "yes", "1", "", "false"])
def test_only_true_is_an_audit(text: str, clusters: Any) -> None:
    spec = yaml.safe_load("{podSelector: {}, ingress: []}")
    by_policy = [*clusters.canonical(), clusters.policy("x/p", spec, audit=text)]
    by_namespace = [
        *clusters.replaced(clusters.canonical(), clusters.namespace("x", audit=text)),
        clusters.policy("x/p", spec),
    ]
    for objects in (by_policy, by_namespace):
        assert not evaluator(objects).evaluate(flow("y/a > x/a TCP 80")).allowed


# --- what does not decode opens nothing ----------------------------------------------------------

JUNK = (None, 5, 1.5, True, "90", [], [1], [None], {}, {"a": 1}, {"a": None})


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(each, (*path, key))


def test_no_junk_in_a_policy_opens_anything(clusters: Any, random_clusters: Any) -> None:
    canonical = clusters.canonical()
    flows = [
        Flow(source, target, protocol, port)
        for source, target in (("x/a", "x/b"), ("x/b", "x/a"), ("y/a", "x/a"), ("x/a", OUTSIDE))
        for protocol, port in (("TCP", 80), ("TCP", 81), ("UDP", 53), ("SCTP", 65535))
    ]
    told = 0

    @given(random_clusters.SPECS, st.data())
    @settings(max_examples=300)
    def check(spec: Any, data: st.DataObject) -> None:
        nonlocal told
        before = evaluator([*canonical, clusters.policy("x/p", spec)])
        place = data.draw(st.sampled_from(list(parts(spec))[1:] or [("ingress",)]))
        broken = deepcopy(spec)
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = deepcopy(data.draw(st.sampled_from(JUNK)))
        item = ObjectDecoder(NetworkPolicy).item(
            json.dumps(clusters.policy("x/p", broken)).encode()
        )
        assert item.object is not None, "the policy is gone, and with it the isolation"
        if not item.flaws or item.flaws[0].field.startswith("spec.podSelector"):
            return
        told += 1
        after = evaluator([*canonical, clusters.policy("x/p", broken)])
        for each in flows:
            if after.evaluate(each).allowed:
                assert before.evaluate(each).allowed, f"{each}: {item.flaws}"

    check()
    assert told > 20
