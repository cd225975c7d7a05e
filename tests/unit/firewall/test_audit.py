"""Policies that only say what they would refuse: rules, counters, annotations that change."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from kube_router_py.firewall import names
from kube_router_py.firewall.counters import PodCounters, pod_counters
from kube_router_py.firewall.model import Direction
from kube_router_py.firewall.names import pod_chain
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.policy_audit import AUDIT_ANNOTATION
from kube_router_py.render_firewall import text_of_firewall

X_A, X_C, OUTSIDE = "10.244.1.10", "10.244.1.12", "203.0.113.10"
INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
ONLY_A = {"matchLabels": {"pod": "a"}}
FROM_Y = [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]
FROM_Z = [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]}]
MISTYPED = ["True", "TRUE", "yes", "1", "t", "", " true", "audit"]


def spec(ingress: Any = (), **more: Any) -> dict[str, Any]:
    return {"podSelector": ONLY_A, "ingress": list(ingress), **more}


def packet(tracer: Any, src: str, dst: str, hook: str = "FORWARD", **more: Any) -> Any:
    return tracer.Packet(hook, ip_address(src), ip_address(dst), 6, 40000, 80, **more)


# --- which policies decide, and which only tell ---

# Policies of x/a by name: what they admit, and their annotation; then the annotation of x; then
# whether y, z and others are admitted; and of whom it is told that they would not be.
TABLE: dict[str, tuple[dict[str, tuple[Any, str | None]], str | None, str, str]] = {
    "one that is audited": ({"p": (FROM_Y, "true")}, None, "yzx", "zx"),
    "one that is not": ({"p": (FROM_Y, None)}, None, "y", ""),
    "the namespace says so": ({"p": (FROM_Y, None)}, "true", "yzx", "zx"),
    "the namespace says no": ({"p": (FROM_Y, None)}, "false", "y", ""),
    "one that is exempt from its namespace's": ({"p": (FROM_Y, "false")}, "true", "y", ""),
    "one that is, in a namespace that is not": ({"p": (FROM_Y, "true")}, "false", "yzx", "zx"),
    "two that are audited": ({"p": (FROM_Y, "true"), "q": (FROM_Z, "true")}, None, "yzx", "x"),
    "what an audited one admits counts": (
        {"p": (FROM_Y, None), "q": (FROM_Z, "true")},
        None,
        "yz",
        "",
    ),
    "an exempt one makes all of a namespace count": (
        {"p": (FROM_Y, "false"), "q": (FROM_Z, None)},
        "true",
        "yz",
        "",
    ),
    **{
        f"{text!r} of a policy is no annotation": ({"p": (FROM_Y, text)}, "true", "y", "")
        for text in MISTYPED
    },
    **{
        f"{text!r} of a namespace is none": ({"p": (FROM_Y, None)}, text, "y", "")
        for text in MISTYPED
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_who_is_admitted_and_of_whom_it_is_told(name: str, clusters: Any) -> None:
    policies, of_space, admitted, told = TABLE[name]
    objects = clusters.replaced(
        clusters.canonical(),
        clusters.namespace("x", audit=of_space),
        *(
            clusters.policy(f"x/{key}", spec(ingress), audit=audit)
            for key, (ingress, audit) in policies.items()
        ),
    )
    cluster = clusters.Cluster(objects)
    chains = {pod_chain("x/a", INGRESS) + " ingress audit "}
    for space in "xyz":
        for flow in cluster.flows(f"{space}/b > x/a tcp 80"):
            verdict, way = cluster.trace(flow)
            assert verdict == (space in admitted), clusters.told(verdict, way)
            if verdict:
                logs = {log for hop in way for log in hop.trace.logs}
                assert logs == (chains if space in told else set())


def test_each_direction_is_audited_by_itself(clusters: Any) -> None:
    objects = [
        *clusters.canonical(),
        clusters.policy("x/in", spec(policyTypes=["Ingress"]), audit="true"),
        clusters.policy("x/out", spec(policyTypes=["Egress"])),
    ]
    cluster = clusters.Cluster(objects)
    assert not cluster.wrong("y/b > x/a tcp 80", True)
    assert not cluster.wrong("x/a > y/b tcp 80", False)


@pytest.mark.parametrize("order", ["de", "ed"])
@pytest.mark.parametrize("text", ["INVALID", "NEW"])
def test_an_audited_pod_opens_nothing_for_another_of_its_address(
    clusters: Any, tracer: Any, order: str, text: str
) -> None:
    """Whichever of their chains comes first: the other's refusal counts, and is counted once."""
    strict, audited = (f"x/{name}" for name in order)
    objects = clusters.canonical()
    for key, audit in ((strict, None), (audited, "true")):
        objects.append(clusters.pod(key, "node1", ["10.244.1.99"]))
        selector = {"podSelector": {"matchLabels": {"pod": key[-1]}}}
        objects.append(clusters.policy(key, selector | {"ingress": FROM_Y}, audit=audit))
        if audit is None:
            continue
        # All that the audited pod's own policies admit.
        objects.append(clusters.policy("x/all", selector | {"ingress": [{}]}, audit=audit))
    firewall = clusters.Cluster(objects).firewalls["node1"]
    trace = firewall.walk(packet(tracer, OUTSIDE, "10.244.1.99", state=text))
    assert trace.verdict == ("REJECT" if text == "NEW" else "DROP")
    assert trace.mark == 0
    passing = firewall.walk(packet(tracer, "10.244.1.20", "10.244.1.99", state="NEW"))
    assert passing.verdict == "ACCEPT"
    for chain in (pod_chain(strict, INGRESS), pod_chain(audited, INGRESS)):
        entered = [each for each in passing.path if each.endswith(f"-j {chain}")]
        assert len(entered) == 1, passing.path


def test_nothing_is_refused_to_an_audited_pod_by_other_rules(clusters: Any, tracer: Any) -> None:
    """Neither what conntrack does not know, nor direct server return."""
    policy = spec(policyTypes=["Ingress", "Egress"])
    audited = [*clusters.canonical(), clusters.policy("x/p", policy, audit="true")]
    enforced = [*clusters.canonical(), clusters.policy("x/p", policy)]
    invalid = packet(tracer, OUTSIDE, X_A, state="INVALID")
    tunnelled = packet(tracer, X_A, "10.96.0.1", "INPUT", mark=0x7D000001, dst_local=True)
    for objects, verdicts in ((audited, ("ACCEPT", "ACCEPT")), (enforced, ("DROP", "REJECT"))):
        firewall = clusters.Cluster(objects).firewalls["node1"]
        traces = [firewall.walk(each) for each in (invalid, tunnelled)]
        assert tuple(each.verdict for each in traces) == verdicts
        if objects is audited:
            assert traces[0].logs == ["ingress audit-invalid "]
            (counted,) = (each for each in traces[0].path if "would be refused" in each)
            assert "limit" not in counted


# --- what counts ---


def path_of(trace: Any, chain: str) -> list[int]:
    """The rules of a chain that matched, from 0."""
    found = (each.partition(":")[0].split() for each in trace.path)
    return [int(number) - 1 for name, number in found if name == chain]


def test_the_rules_that_count(clusters: Any, tracer: Any) -> None:
    objects = [
        *clusters.canonical(),
        clusters.policy("x/p", spec(FROM_Y), audit="true"),
        clusters.policy("x/q", spec(FROM_Z), audit="true"),
    ]
    cluster = clusters.Cluster(objects)
    chain = pod_chain("x/a", INGRESS)
    text = cluster.documents["node1"]["iptables"]["ipv4"]["filter"]
    rules = [line.partition(f"-A {chain} ")[2] for line in text.splitlines()]
    counters = pod_counters([each for each in rules if each])
    assert counters is not None
    assert counters.is_audited
    first, second = counters.policies.values()
    for src, passed in (("y/b", [first]), ("z/b", [first, second]), ("x/b", [first, second])):
        (flow,) = cluster.flows(f"{src} > x/a tcp 80 v4")
        _, way = cluster.trace(flow)
        matched = path_of(way[-1].trace, chain)
        assert [each for each in matched if each in (first, second)] == passed
        assert (counters.refused in matched) is (src == "x/b")


# --- what a changed annotation changes ---


@pytest.fixture
def node(firewall_node: Callable[..., Any], clusters: Any) -> Any:
    found = firewall_node()
    found.change(*clusters.canonical())
    found.change(
        clusters.policy("x/p", spec(FROM_Y)),
        clusters.policy("x/exempt", {"podSelector": {"matchLabels": {"pod": "c"}}}, audit="false"),
        clusters.policy("y/p", spec(FROM_Y)),
        clusters.policy("z/p", spec(FROM_Y), audit="true"),
    )
    assert not found.turn().failed
    return found


def counters_of(node: Any, pod: str) -> PodCounters | None:
    return pod_counters(node.chains().get(pod_chain(pod, INGRESS), ()))


def is_audited(node: Any, pod: str) -> bool:
    """By its chain and by the sets, which must say the same."""
    counters = counters_of(node, pod)
    assert counters is not None
    sets = node.own_sets()
    (address,) = (
        each["status"]["podIPs"][0]["ip"]
        for identity, each in node.objects.items()
        if identity == ("Pod", *pod.split("/"))
    )
    among = [address in sets[f"kube-router-{name}-in"] for name in ("audited", "pods")]
    assert among == [counters.is_audited, not counters.is_audited]
    return counters.is_audited


def turned(node: Any) -> tuple[set[str], set[str]]:
    """One turn: the chains of IPv4 and the sets that are others by then."""
    chains, sets = node.chains(), node.own_sets()
    assert not node.turn().failed
    assert not node.differences()
    now, sets_now = node.chains(), node.own_sets()
    return (
        {name for name in chains | now if chains.get(name) != now.get(name)},
        {name for name in sets | sets_now if sets.get(name) != sets_now.get(name)},
    )


FLIPPED = {f"{six}kube-router-{name}-in" for six in ("", "inet6:") for name in ("audited", "pods")}


@pytest.mark.parametrize("level", ["policy", "namespace"])
def test_an_annotation_is_followed_both_ways(node: Any, clusters: Any, level: str) -> None:
    def flip(audit: str | None) -> None:
        if level == "policy":
            node.change(clusters.policy("x/p", spec(FROM_Y), audit=audit))
        else:
            node.change(clusters.namespace("x", audit=audit))

    assert not is_audited(node, "x/a")
    assert node.firewall.numbers["firewall_audited_pods"] == 1  # z/a
    flip("true")
    # Nothing else: the pod that an exempt policy isolates, and other namespaces, stay as they are.
    assert turned(node) == ({pod_chain("x/a", INGRESS)}, FLIPPED)
    assert is_audited(node, "x/a")
    assert not is_audited(node, "x/c")
    assert not is_audited(node, "y/a")
    assert node.firewall.numbers["firewall_audited_pods"] == 2
    for audit in (None, "true", "false", "true", "yes"):
        flip(audit)
        assert turned(node) == ({pod_chain("x/a", INGRESS)}, FLIPPED)
        assert is_audited(node, "x/a") is (audit == "true")
    node.restart()
    assert not node.turn().failed
    assert node.writes == 0


def test_what_decides_nothing_changes_nothing(node: Any, clusters: Any) -> None:
    """An audited policy beside one that is enforced; a namespace whose policies have their own."""
    node.change(clusters.policy("x/q", spec(FROM_Z), audit="true"))
    turned(node)
    assert not is_audited(node, "x/a")
    node.change(clusters.policy("x/q", spec(FROM_Z)))
    assert turned(node) == (set(), set())
    node.change(clusters.namespace("z", audit="true"))
    assert turned(node) == (set(), set())
    node.change(clusters.policy("z/p", spec(FROM_Y)))
    assert turned(node) == (set(), set())
    # Now it hangs on the namespace.
    node.change(clusters.namespace("z"))
    assert turned(node) == ({pod_chain("z/a", INGRESS)}, FLIPPED)


def test_policies_that_come_and_go_count_anew(node: Any, clusters: Any) -> None:
    node.change(clusters.policy("z/strict", spec(FROM_Z)))
    turned(node)
    assert not is_audited(node, "z/a")
    node.remove(("NetworkPolicy", "z", "strict"))
    turned(node)
    assert is_audited(node, "z/a")
    node.remove(("NetworkPolicy", "z", "p"))
    turned(node)
    assert counters_of(node, "z/a") is None
    assert node.firewall.numbers["firewall_audited_pods"] == 0
    assert not node.own_sets()["kube-router-audited-in"]


def test_a_namespace_forgets_policies_that_are_gone(node: Any, clusters: Any) -> None:
    node.remove(("NetworkPolicy", "x", "p"))
    turned(node)
    node.change(clusters.namespace("x", audit="true"))
    assert turned(node) == (set(), set())
    assert not node.turn(full=True).problems


def test_a_namespace_that_goes_audits_nothing(node: Any, clusters: Any) -> None:
    """And one that is not known: policies may be heard of before it."""
    node.change(clusters.namespace("x", audit="true"))
    turned(node)
    assert is_audited(node, "x/a")
    node.remove(("Namespace", "", "x"))
    turned(node)
    assert not is_audited(node, "x/a")
    node.change(clusters.namespace("x", audit="true"))
    turned(node)
    assert is_audited(node, "x/a")


@pytest.mark.parametrize("text", MISTYPED)
@pytest.mark.parametrize("kind", ["NetworkPolicy", "Namespace"])
def test_what_is_mistyped_is_told(node: Any, clusters: Any, kind: str, text: str) -> None:
    def put(audit: str | None) -> list[Any]:
        if kind == "Namespace":
            node.change(clusters.namespace("x", audit=audit))
        else:
            node.change(clusters.policy("x/p", spec(FROM_Y), audit=audit))
        return [*node.turn().problems]

    (problem,) = put(text)
    assert problem.object == ("Namespace x" if kind == "Namespace" else "NetworkPolicy x/p")
    assert problem.field == f"metadata.annotations[{AUDIT_ANNOTATION}]"
    assert problem.reason.startswith(repr(text))
    assert "'true' nor 'false'" in problem.reason
    assert not is_audited(node, "x/a")
    assert put("true") == []


def test_a_long_annotation_is_quoted_in_part(node: Any, clusters: Any) -> None:
    node.change(clusters.policy("x/p", spec(FROM_Y), audit="x" * 100_000))
    (problem,) = node.turn().problems
    assert len(problem.reason) < 200


def test_a_flip_takes_one_commit_and_no_set_of_policies(node: Any, clusters: Any) -> None:
    commits = len(node.rules.commits)
    node.change(clusters.namespace("x", audit="true"))
    turned(node)
    assert len(node.rules.commits) - commits == 2  # one in each family


def test_connections_of_an_audited_pod_go_with_it(node: Any, clusters: Any) -> None:
    """Its address may be that of a pod which is isolated."""
    node.remove(("Pod", "z", "a"))
    node.change(clusters.pod("x/new", "node1", clusters.addresses("node1", 30), {"pod": "a"}))
    turned(node)
    assert node.conntrack.asked == [frozenset(clusters.addresses("node1", 30))]
    assert not is_audited(node, "x/new")


# --- where something fails ---


def test_with_default_deny_an_audited_pod_is_programmed_as_open(
    firewall_node: Callable[..., Any], clusters: Any, tracer: Any, live: Any
) -> None:
    node = firewall_node(FirewallOptions(families=("inet", "inet6"), default_deny=True))
    closed = spec(policyTypes=["Ingress", "Egress"])
    node.change(clusters.namespace("x"), clusters.policy("x/p", closed, audit="true"))
    assert not node.turn().failed
    node.change(clusters.pod("x/a", "node1", clusters.addresses("node1", 10), {"pod": "a"}))
    now = live(node)
    now.look()
    assert now.walk(packet(tracer, OUTSIDE, X_A)).verdict == "REJECT"
    assert not node.turn().failed
    now.look()
    assert now.walk(packet(tracer, OUTSIDE, X_A)).verdict == "ACCEPT"
    assert now.walk(packet(tracer, X_A, OUTSIDE)).verdict == "ACCEPT"
    assert X_A in node.own_sets()["kube-router-local-pods"]


@pytest.mark.parametrize("full", [False, True])
def test_a_pod_is_refused_though_it_is_not_told_among_the_isolated(
    node: Any, clusters: Any, tracer: Any, live: Any, full: bool
) -> None:
    """The set that has it as an audited one leads its packets to its chain until then."""
    now = live(node)
    node.sets.refused.add("kube-router-pods-in")
    node.change(clusters.policy("z/p", spec(FROM_Y)))
    for _ in range(2):
        assert node.turn(full=full).failed
        now.look()
        assert now.walk(packet(tracer, OUTSIDE, "10.244.1.30")).verdict == "REJECT"
    node.sets.refused.clear()
    assert not node.turn(full=True).failed
    assert not node.differences()
    now.look()
    assert now.walk(packet(tracer, OUTSIDE, "10.244.1.30")).verdict == "REJECT"


@pytest.fixture
def one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chains of pods have one name."""
    real = names._hash

    def tiny(*parts: str) -> str:
        return "A" * 16 if parts[0] == "pod" else real(*parts)

    monkeypatch.setattr(names, "_hash", tiny)


def finish(node: Any) -> list[str]:
    for _ in range(8):
        outcome = node.turn()
        if not outcome.failed:
            return [str(each) for each in outcome.problems]
    raise AssertionError(f"never done: {outcome.problems}")


@pytest.mark.usefixtures("one_name")
def test_an_audited_pod_without_its_chain_stays_open(
    firewall_node: Callable[..., Any], clusters: Any, tracer: Any, live: Any
) -> None:
    node = firewall_node()
    node.change(*clusters.canonical(), clusters.policy("x/p", spec()))
    finish(node)
    node.change(clusters.policy("z/p", spec(), audit="true"))
    (told,) = finish(node)
    assert told.startswith("Pod z/a: ")
    assert "ingress of this pod is not audited until that one goes" in told
    now = live(node)

    def verdict() -> str:
        now.look()
        found: str = now.walk(packet(tracer, OUTSIDE, "10.244.1.30")).verdict
        return found

    assert verdict() == "ACCEPT"
    node.change(clusters.policy("z/p", spec()))
    assert any("ingress of this pod is refused" in each for each in finish(node))
    assert verdict() == "DROP"
    node.change(clusters.policy("z/p", spec(), audit="true"))
    finish(node)
    assert verdict() == "ACCEPT"
    node.remove(("NetworkPolicy", "x", "p"))
    assert not finish(node)
    now.look()
    assert now.walk(packet(tracer, OUTSIDE, "10.244.1.30")).logs == [
        f"{pod_chain('z/a', INGRESS)} ingress audit "
    ]


# --- what render says ---


def test_render_says_what_is_audited(clusters: Any) -> None:
    objects = [
        *clusters.canonical(),
        clusters.policy("x/p", spec(), audit="true"),
        clusters.policy("x/q", spec(), audit="false"),
    ]
    document = clusters.Cluster(objects).documents["node1"]
    first, second = document["policies"]
    assert (first["isolates"], first["audits"]) == ({}, {"ingress": ["x/a"]})
    assert (second["isolates"], second["audits"]) == ({"ingress": ["x/a"]}, {})

    def lines() -> Iterator[str]:
        for line in text_of_firewall(document):
            if line.startswith("iptables"):
                return
            yield line

    assert [*lines()] == [
        "NetworkPolicy x/p (ingress)",
        "    audits ingress: x/a",
        "NetworkPolicy x/q (ingress)",
        "    isolates for ingress: x/a",
    ]
