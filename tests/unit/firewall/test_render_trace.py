"""What the rendered rules do to packets, against verdicts written down by hand."""

import json
import random
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

SEMANTICS = Path(__file__).parents[2] / "golden" / "policies" / "semantics.yaml"
CASES = {case["name"]: case for case in yaml.safe_load(SEMANTICS.read_text())}

DENY_ALL = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
X_A, X_B, X_C, Y_A = "10.244.1.10", "10.244.2.11", "10.244.1.12", "10.244.1.20"
X_A6, X_C6 = "fd00:10:244:1::10", "fd00:10:244:1::12"
OUTSIDE = "203.0.113.10"
MARK = 0x10000


@pytest.mark.parametrize("name", CASES)
def test_semantics(name: str, clusters: Any) -> None:
    case = CASES[name]
    cluster = clusters.Cluster(clusters.of_case(case))
    wrong = cluster.wrong(case.get("allowed", ""), True) + cluster.wrong(
        case.get("denied", ""), False
    )
    assert not wrong, "\n".join(wrong)
    expected = case.get("problems", 0)
    reported = {each["object"] for each in cluster.problems}
    assert expected == "any" or len(reported) == expected, cluster.problems


def with_policies(clusters: Any, text: str, *more: Any, flags: tuple[str, ...] = ()) -> Any:
    objects = clusters.canonical() + clusters.policies(text)
    return clusters.Cluster(clusters.replaced(objects, *more), *flags)


def packet(tracer: Any, hook: str, src: str, dst: str, protocol: int = 6, **more: Any) -> Any:
    return tracer.Packet(hook, ip_address(src), ip_address(dst), protocol, 40000, 80, **more)


def ways(*ends: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Each pair of source and destination at the hooks where it can come by, if a pod is in it."""
    return [
        (hook, src, dst)
        for src, dst in ends
        for hook in ("INPUT", "FORWARD", "OUTPUT")
        if hook != "INPUT" or dst in (OUTSIDE, "fe80::1")  # what is for a pod is forwarded
    ]


def verdict(cluster: Any, found: Any, node: str = "node1") -> str:
    answer: str = cluster.firewalls[node].walk(found).verdict
    return answer


# --- 28, 38, 39: what passes whatever the policies say ---


@pytest.mark.parametrize("state", ["ESTABLISHED", "RELATED"])
def test_28_established_and_related_packets_pass(state: str, clusters: Any, tracer: Any) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}")
    for hook, src, dst in ways((X_A, OUTSIDE), (OUTSIDE, X_A), (X_A, X_C), (X_A6, X_C6)):
        assert verdict(cluster, packet(tracer, hook, src, dst)) == "REJECT", (hook, src, dst)
        trace = cluster.firewalls["node1"].walk(packet(tracer, hook, src, dst, state=state))
        assert trace.verdict == "ACCEPT"
        # Before any look at a pod: the first rule of our chain decides.
        assert trace.visited <= 6, trace.path


def test_28_invalid_packets_of_isolated_pods_are_dropped_and_of_no_others(
    clusters: Any, tracer: Any
) -> None:
    cluster = with_policies(clusters, "{x/p: {podSelector: {}, ingress: [{}]}}")
    to_pod = packet(tracer, "FORWARD", OUTSIDE, X_A, state="INVALID")
    assert verdict(cluster, to_pod) == "DROP"
    for src, dst in ((OUTSIDE, "198.51.100.1"), ("192.168.1.1", "192.168.1.2")):
        for hook in tracer.HOOKS:
            found = packet(tracer, hook, src, dst, state="INVALID")
            assert verdict(cluster, found) == "ACCEPT"


@pytest.mark.parametrize(
    ("protocol", "kinds"), [(1, (3, 8, 11)), (58, (1, 2, 3, 4, 128, 129, 133, 134, 135, 136, 137))]
)
def test_38_39_icmp_and_neighbour_discovery_pass_isolated_pods(
    protocol: int, kinds: tuple[int, ...], clusters: Any, tracer: Any
) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}")
    ends = ((X_A, OUTSIDE), (OUTSIDE, X_A)) if protocol == 1 else ((X_A6, X_C6), (X_C6, "fe80::1"))
    for hook, src, dst in ways(*ends):
        for kind in kinds:
            found = packet(tracer, hook, src, dst, protocol, icmp=(kind, 0))
            assert verdict(cluster, found) == "ACCEPT", (hook, kind)
        # A kind beyond these is no exception.
        odd = packet(tracer, hook, src, dst, protocol, icmp=(17 if protocol == 1 else 139, 0))
        assert verdict(cluster, odd) == "REJECT"


def test_37_loopback_is_never_touched(clusters: Any, tracer: Any) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}", flags=("--netpol-default-deny",))
    for address in ("127.0.0.1", "::1"):
        for hook in ("INPUT", "OUTPUT"):
            found = packet(tracer, hook, address, address, src_local=True, dst_local=True)
            assert verdict(cluster, found) == "ACCEPT"


def test_40_bridged_packets_are_judged_as_routed_ones(clusters: Any, tracer: Any) -> None:
    cluster = with_policies(
        clusters, "{x/p: {podSelector: {matchLabels: {pod: c}}, ingress: [{ports: [{port: 80}]}]}}"
    )
    for address_a, address_c in ((X_A, X_C), (X_A6, X_C6)):
        found = packet(tracer, "FORWARD", address_a, address_c, bridged=True)
        assert verdict(cluster, found) == "ACCEPT"
        assert verdict(cluster, replace(found, dport=81)) == "REJECT"


# --- 31, 36: what comes from the node, and what only looks so ---


def test_36_an_address_of_the_node_is_no_bypass(clusters: Any, tracer: Any) -> None:
    cluster = with_policies(clusters, "{x/p: {podSelector: {}}}")
    own = packet(tracer, "OUTPUT", "192.168.1.1", X_A, src_local=True)
    assert verdict(cluster, own) == "ACCEPT"
    # Masqueraded before it came here, or forwarded by IPVS for a client outside.
    assert verdict(cluster, replace(own, hook="FORWARD")) == "REJECT"
    client = replace(own, src=ip_address(OUTSIDE), src_local=False)
    assert verdict(cluster, client) == "REJECT"


# --- 23, 35: Services ---


WEB = ("10.96.0.10", "fd00:96::10")


def dial(cluster: Any, tracer: Any, src: str, backend: str, port: int = 8080) -> bool:
    """A pod of node1 opens a connection to the Service; IPVS chooses that backend, port 80."""
    flow = tracer.Flow(
        src,
        backend,
        dport=80,
        src_node="node1",
        dst_node=f"node{backend.split('.')[2] if '.' in backend else backend.split(':')[3]}",
        service=(WEB[":" in src], port),
    )
    found: bool = cluster.trace(flow)[0]
    return found


def test_23_35_a_service_is_judged_at_its_backend(clusters: Any, tracer: Any) -> None:
    service = clusters.service("y/web", WEB, 8080, 80)
    policies = """
    x/p:
      podSelector: {matchLabels: {pod: a}}
      policyTypes: [Egress]
      egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]
    x/q:
      podSelector: {matchLabels: {pod: c}}
      policyTypes: [Egress]
      egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 8080}]}]
    y/p: {podSelector: {matchLabels: {pod: c}}, ingress: [{from: [{podSelector: {}}]}]}
    """
    cluster = with_policies(clusters, policies, service)
    assert dial(cluster, tracer, X_A, Y_A)
    assert dial(cluster, tracer, X_A, "10.244.2.21")
    assert dial(cluster, tracer, X_A6, "fd00:10:244:2::21")
    assert not dial(cluster, tracer, X_A, "10.244.1.30")  # another namespace
    assert not dial(cluster, tracer, X_A, "10.244.1.22")  # y/c does not take it
    assert not dial(cluster, tracer, X_C, Y_A)  # the Service's port means nothing
    assert not dial(cluster, tracer, X_C, "10.244.2.21")


def test_35_what_is_no_service_port_of_the_address_is_judged_as_it_stands(
    clusters: Any, tracer: Any
) -> None:
    policies = f"{{x/p: {DENY_ALL}}}"
    cluster = with_policies(clusters, policies, clusters.service("y/web", WEB, 8080, 80))
    for src, dst in zip((X_A, X_A6), WEB, strict=True):
        to_service = packet(tracer, "INPUT", src, dst, dst_local=True)
        assert verdict(cluster, replace(to_service, dport=8080)) == "ACCEPT"
        assert verdict(cluster, replace(to_service, dport=8081)) == "REJECT"
        assert verdict(cluster, replace(to_service, dport=8080, protocol=17)) == "REJECT"
    dns = clusters.service("y/dns", WEB, 8080, 80, "UDP")
    udp = with_policies(clusters, policies, dns)
    found = packet(tracer, "INPUT", X_A, WEB[0], 17, dst_local=True)
    assert verdict(udp, replace(found, dport=8080)) == "ACCEPT"
    assert verdict(udp, replace(found, dport=8080, protocol=6)) == "REJECT"
    gone = with_policies(clusters, policies)
    found = packet(tracer, "INPUT", X_A, WEB[0], dst_local=True)
    assert verdict(gone, replace(found, dport=8080)) == "REJECT"


PROXY = "--run-service-proxy=true"
OWN, OTHER = ("192.168.1.1", "fd00:1::1"), ("192.168.7.1", "fd00:7::1")  # primary, another


@pytest.mark.parametrize(
    ("flags", "served"),
    [
        ((PROXY,), {OWN[0], OWN[1]}),
        ((PROXY, "--nodeport-bindon-all-ip"), {*OWN, *OTHER}),
        ((PROXY, "--nodeport-addresses=192.168.7.0/24"), {OTHER[0], OWN[1]}),
        ((PROXY, "--nodeport-addresses=0.0.0.0/0,fd00:7::/64"), {OWN[0], *OTHER}),
        # The flags of the proxy that runs instead are not known.
        ((), {*OWN, *OTHER}),
    ],
)
def test_35_node_ports_are_judged_behind_the_service_only_where_they_are_served(
    clusters: Any, tracer: Any, flags: tuple[str, ...], served: set[str]
) -> None:
    web = clusters.service("y/web", WEB, 8080, 80)
    web["spec"]["type"] = "NodePort"
    web["spec"]["ports"][0]["nodePort"] = 30080
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}", web, flags=flags)
    passed = set()
    for address in (*OWN, *OTHER):
        source = X_A6 if ":" in address else X_A
        found = replace(packet(tracer, "INPUT", source, address, dst_local=True), dport=30080)
        if verdict(cluster, found) == "ACCEPT":
            passed.add(address)
        assert verdict(cluster, replace(found, dport=30081)) == "REJECT"
    assert passed == served


# --- 41 to 46: change ---


def kinds_of_sets(cluster: Any) -> dict[str, tuple[str, str]]:
    return {
        each["name"]: (each["type"], each["family"])
        for document in cluster.documents.values()
        for each in document["ipsets"]
    }


def test_41_a_policy_of_the_same_name_never_turns_a_set_into_another_type(clusters: Any) -> None:
    specs = (
        "ingress: [{from: [{podSelector: {}}]}]",
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]",
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/9}}, {podSelector: {}}]}]",
        "policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: web}]}]",
    )
    seen: dict[str, tuple[str, str]] = {}
    web = clusters.pod("x/b", "node2", (X_B,), ports=[{"name": "web", "containerPort": 80}])
    for spec in specs:
        for name, kind in kinds_of_sets(
            with_policies(clusters, f"{{x/p: {{podSelector: {{}}, {spec}}}}}", web)
        ).items():
            assert seen.setdefault(name, kind) == kind


def test_42_to_46_each_state_is_judged_as_it_is(clusters: Any) -> None:
    deny = "x/deny: {podSelector: {}}"
    allow = "x/allow: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {r: c}}}]}]}"
    team = """
    x/team:
      podSelector: {}
      ingress: [{from: [{namespaceSelector: {matchExpressions: [
        {key: team, operator: NotIn, values: [red]}, {key: ns, operator: In, values: [y]}]}}]}]
    """
    both = f"{deny}\n{allow}"
    caged = clusters.pod("x/b", "node2", (X_B,), {"r": "c"})
    assert not with_policies(clusters, both).wrong("x/b > x/a tcp 80 v4", False)
    assert not with_policies(clusters, both, caged).wrong("x/b > x/a tcp 80 v4", True)
    assert not with_policies(clusters, deny, caged).wrong("x/b > x/a tcp 80 v4", False)
    red = clusters.namespace("y", {"ns": "y", "team": "red"})
    assert not with_policies(clusters, team).wrong("y/a > x/a tcp 80", True)
    assert not with_policies(clusters, team, red).wrong("y/a > x/a tcp 80", False)
    # x/b is gone and z/d has its address: nothing is inherited.
    finished = clusters.pod("x/b", "node2", (X_B,), {"r": "c"}, phase="Failed")
    heir = clusters.pod("z/d", "node2", (X_B,))
    reused = with_policies(clusters, both, finished, heir)
    assert not reused.wrong("z/d > x/a tcp 80", False)
    assert not reused.wrong("y/a > z/d tcp 80 v4", True)


# --- 49: default deny ---


def test_49_default_deny_holds_addresses_that_are_not_programmed_yet(
    clusters: Any, tracer: Any
) -> None:
    cluster = with_policies(clusters, "{x/p: {podSelector: {}}}", flags=("--netpol-default-deny",))
    assert not cluster.wrong(
        """
        203.0.113.10 > 10.244.1.99 tcp 80
        2001:db8::1 > fd00:10:244:1::99 tcp 80
        y/a > 10.244.1.99 tcp 80
        y/b > x/a tcp 80
        """,
        False,
    )
    for hook in ("INPUT", "FORWARD", "OUTPUT"):
        for src, dst in (("10.244.1.99", OUTSIDE), ("fd00:10:244:1::99", "2001:db8::1")):
            if hook != "OUTPUT":
                assert verdict(cluster, packet(tracer, hook, src, dst)) == "REJECT", hook
            back = packet(tracer, hook, dst, src, state="ESTABLISHED")
            assert verdict(cluster, back) == "ACCEPT"
    assert not cluster.wrong(
        """
        x/a > y/a tcp 80
        x/a > y/b tcp 80
        y/a > z/b tcp 80
        y/a > 203.0.113.10 tcp 80
        203.0.113.10 > y/a tcp 80
        node1 > x/a tcp 80
        """,
        True,
    )
    open_cluster = with_policies(clusters, "{x/p: {podSelector: {}}}")
    assert not open_cluster.wrong("203.0.113.10 > 10.244.1.99 tcp 80", True)


def test_49_finished_pods_are_not_programmed(clusters: Any) -> None:
    finished = clusters.pod("y/a", "node1", (Y_A,), phase="Succeeded")
    cluster = with_policies(clusters, "{}", finished, flags=("--netpol-default-deny",))
    assert not cluster.wrong("x/b > 10.244.1.20 tcp 80", False)


# --- families, marks, log ---


def test_a_family_that_is_off_is_not_enforced(clusters: Any) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}", flags=("--enable-ipv6=false",))
    assert "ipv6" not in cluster.documents["node1"]["iptables"]
    assert not cluster.wrong("y/a > x/a tcp 80 v4", False)
    assert not cluster.wrong("y/a > x/a tcp 80 v6", True)


def test_what_concerns_local_pods_is_accepted_last_and_nothing_else_is(
    clusters: Any, tracer: Any
) -> None:
    """Behind the rules of administrators, and also where the policy of FORWARD is DROP."""
    cluster = with_policies(clusters, "{x/p: {podSelector: {}, ingress: [{}]}}")
    for src, dst, is_ours in (
        (OUTSIDE, X_A, True),
        (Y_A, OUTSIDE, True),
        ("2001:db8::1", X_A6, True),
        (OUTSIDE, X_B, False),
        (OUTSIDE, "10.244.1.99", False),
        ("198.51.100.1", OUTSIDE, False),
    ):
        for state in ("NEW", "ESTABLISHED", "RELATED"):
            trace = cluster.firewalls["node1"].walk(
                packet(tracer, "FORWARD", src, dst, state=state)
            )
            assert trace.verdict == "ACCEPT"
            assert trace.path[-1].endswith("-j ACCEPT") == is_ours, trace.path
    for table in cluster.firewalls["node1"].tables.values():
        jumps = table.chains["FORWARD"]
        accepting = [rule for rule in table.chains[jumps[-1].target] if rule.target == "ACCEPT"]
        assert len(jumps) == 2
        assert len(accepting) == 2
        others = [name for name in table.chains if name != jumps[-1].target]
        assert not [r for name in others for r in table.chains[name] if r.target == "ACCEPT"]


@pytest.mark.parametrize("mark", [0, 0x4000, 0x20000, 0xFFFE_FFFF])
def test_marks_of_others_change_nothing_and_survive(mark: int, clusters: Any, tracer: Any) -> None:
    policies = """
    x/p: {podSelector: {}, policyTypes: [Ingress, Egress],
          ingress: [{ports: [{port: 80}]}], egress: [{ports: [{port: 80}]}]}
    """
    cluster = with_policies(clusters, policies)
    found = packet(tracer, "FORWARD", X_A, X_C, mark=mark)
    trace = cluster.firewalls["node1"].walk(found)
    assert (trace.verdict, trace.mark) == ("ACCEPT", mark)
    assert verdict(cluster, replace(found, dport=81)) == "REJECT"


def test_an_own_mark_that_a_packet_brings_opens_nothing(clusters: Any, tracer: Any) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}")
    for hook, src, dst in ways((X_A, OUTSIDE), (OUTSIDE, X_A)):
        assert verdict(cluster, packet(tracer, hook, src, dst, mark=MARK)) == "REJECT", hook


def test_the_log_says_which_direction_refused(clusters: Any, tracer: Any) -> None:
    cluster = with_policies(clusters, f"{{x/p: {DENY_ALL}}}", flags=("--netpol-default-deny",))
    walk = cluster.firewalls["node1"].walk
    out = walk(packet(tracer, "FORWARD", X_A, OUTSIDE)).logs
    into = walk(packet(tracer, "FORWARD", OUTSIDE, X_A)).logs
    new = walk(packet(tracer, "FORWARD", OUTSIDE, "10.244.1.99")).logs
    assert [len(each) for each in (out, into, new)] == [1, 1, 1]
    assert len({out[0], into[0], new[0]}) == 3
    assert not walk(packet(tracer, "FORWARD", OUTSIDE, Y_A)).logs


# --- form ---


def all_policies() -> dict[str, Any]:
    """Those of all cases that have nothing wrong with them, under names of their own."""
    found: dict[str, Any] = {}
    for number, case in enumerate(CASES.values()):
        for key, spec in case["policies"].items() if "policies" in case else ():
            found[f"{key}-{number}"] = spec
    return found


def test_documents_do_not_depend_on_the_order_of_objects(clusters: Any) -> None:
    web = clusters.pod("x/b", "node2", (X_B,), ports=[{"name": "web", "containerPort": 80}])
    objects = clusters.replaced(clusters.canonical(), web)
    objects += [clusters.policy(key, spec) for key, spec in all_policies().items()]
    first = clusters.Cluster(objects).documents
    for seed in range(3):
        random.Random(seed).shuffle(objects)
        again = clusters.Cluster(objects).documents
        for each in again["node1"]["problems"] + first["node1"]["problems"]:
            assert each["object"]
        assert json.dumps(again["node1"]["iptables"]) == json.dumps(first["node1"]["iptables"])
        assert again["node1"]["ipsets"] == first["node1"]["ipsets"]


def test_every_chain_is_reached_and_every_set_matched(clusters: Any) -> None:
    objects = clusters.canonical()
    objects += [clusters.policy(key, spec) for key, spec in all_policies().items()]
    for flags in ((), ("--netpol-default-deny",)):
        cluster = clusters.Cluster(objects, *flags)
        for document, firewall in zip(
            cluster.documents.values(), cluster.firewalls.values(), strict=True
        ):
            text = json.dumps(document["iptables"])
            for table in firewall.tables.values():
                assert set(table.chains) - table.reachable() == set()
            assert [name for name in firewall.sets if f" {name} " not in text] == []


def crowd(clusters: Any, pods: int, policies: int) -> Any:
    """x/a and y/a of node1 with a crowd around them; y is without policy."""
    found = clusters.canonical()
    for number in range(pods):
        ips = (f"10.244.1.{100 + number}", f"fd00:10:244:1::1:{number:x}")
        found.append(clusters.pod(f"z/crowd-{number}", "node1", ips, {"crowd": str(number % 5)}))
    for number in range(policies):
        spec = {
            "podSelector": {"matchLabels": {"crowd": str(number % 5)}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"n": str(number)}}}]}],
        }
        found.append(clusters.policy(f"z/crowd-{number}", spec))
    spec = {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}
    return clusters.Cluster([*found, clusters.policy("x/p", spec)])


def test_the_cost_of_a_packet_does_not_grow_with_pods_and_policies(
    clusters: Any, tracer: Any
) -> None:
    few, many = crowd(clusters, 1, 1), crowd(clusters, 120, 100)
    for src, dst in ((OUTSIDE, Y_A), (Y_A, OUTSIDE), ("192.168.1.1", "192.168.1.2")):
        for hook in tracer.HOOKS:
            found = packet(tracer, hook, src, dst)
            looked = [each.firewalls["node1"].walk(found).visited for each in (few, many)]
            assert looked[0] == looked[1], (hook, src, dst)
            assert looked[0] < 12
    for src, dst in ((OUTSIDE, X_A), (Y_A, X_A)):
        visited = many.firewalls["node1"].walk(packet(tracer, "FORWARD", src, dst)).visited
        # Two levels of at most 16 ways each, and what 120 pods have to share a way.
        assert visited < 70
