"""Verdicts while something changes: policies, the agents themselves, the pods.

New connections are tried all the while. Each verdict has to be that of the state before a change or
after it until the change is known to be applied, and that of the new state from then on. So what
both states agree about never wavers.
"""

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

NODES = ("node1", "node2")
REPLACEMENTS = 100
TIME_FOR_REPLACEMENTS_S = 150.0
TURNS_OF_THE_GUEST = 8
SILENCE_DEADLINE_S = 90.0


def from_namespace(name: str, *ports: dict[str, Any]) -> dict[str, Any]:
    """Everybody in a namespace reaches all pods, on some ports or all."""
    peers = [{"namespaceSelector": {"matchLabels": {"ns": name}}}]
    return {"podSelector": {}, "ingress": [{"from": peers, "ports": [*ports]}]}


def from_pods(name: str) -> dict[str, Any]:
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": name}}}]
    return {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": peers}]}


def to_blocks(*cidrs: str) -> dict[str, Any]:
    peers = [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]
    return {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": peers}]}


TO_PODS = to_blocks("10.244.0.0/16", "fd10:244::/32")
SOME_PORTS = from_namespace("y", {"port": 79, "endPort": 80}, {"port": "dns", "protocol": "UDP"})
# One replaces the other, over and over, each by a single write: what is in between is one or the
# other. In all of them y/a reaches x on TCP 80, and z/c does not.
CYCLE: list[dict[str, Any]] = [
    {"x/in": from_namespace("y")},
    {"x/in": from_pods("a")},
    {"x/in": from_pods("a"), "y/out": TO_PODS},
    {"x/in": SOME_PORTS, "y/out": TO_PODS},
    {"x/in": SOME_PORTS, "y/out": to_blocks("0.0.0.0/0", "::/0")},
    {"x/in": SOME_PORTS},
]


def watched_flows(policies: Any) -> list[Any]:
    """To a pod of each node, from both nodes, straight and through Services."""
    sources = {"x/a": ("y/a", "y/b", "z/c", "node2"), "x/b": ("y/a", "z/c", "x/a", "node1")}
    return [
        check
        for check in policies.checks
        if check.probe.source in sources.get(check.flow.destination, ())
        and (check.flow.protocol == "TCP" or check.flow.family == "IPv4")
        and check.flow.port == 80
    ]


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}", end="")


@contextlib.contextmanager
def stream(policies: Any, source: str, target: str) -> Iterator[Any]:
    """A connection on which the pod sends a line ten times a second; yields how many have come."""
    address = policies.addresses[target][0]
    with policies.cluster.socket(source, 4, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect((address, 80))
        sock.sendall(b"GET /stream?interval=0.1 HTTP/1.1\r\nHost: lab\r\n\r\n")
        with sock.makefile("rb") as lines:
            while lines.readline().strip():
                pass

            def still_sends() -> int:
                """How many lines have come up to now; what was not there yet is waited for."""
                count = fresh = 0
                while fresh < 5:
                    asked = time.monotonic()
                    line = json.loads(lines.readline())
                    assert f"{line['namespace']}/{line['pod']}" == target
                    count += 1
                    fresh += time.monotonic() - asked > 0.02
                return count

            yield still_sends


def test_policies_are_replaced(policies: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One by one and in bursts, with connections that outlive all of it."""
    checks = watched_flows(policies)
    expected = []
    for specs in CYCLE:
        policies.set(policies.state(specs, {}))
        expected.append(policies.expected(checks))
    always = {probe for probe in expected[0] if all(each[probe] for each in expected)}
    never = {probe for probe in expected[0] if not any(each[probe] for each in expected)}
    assert always
    assert never
    assert len(always | never) < len(expected[0])
    policies.set(policies.state(CYCLE[-1], {}))
    policies.cluster.wait()
    done, lines = 0, 0
    with policies.watched(checks) as history, stream(policies, "y/a", "x/a") as still_sends:
        history.changing(expected[-1])
        history.settled()
        end = time.monotonic() + TIME_FOR_REPLACEMENTS_S
        for burst in itertools.cycle((1, 1, 6)):
            for _ in range(burst):
                number = done % len(CYCLE)
                history.changing(expected[number])
                policies.set(policies.state(CYCLE[number], {}))
                done += 1
            policies.cluster.wait()
            history.settled()
            rounds = history.rounds
            policies.cluster.eventually(lambda r=rounds: history.rounds >= r + 2, "asked twice")
            if done >= REPLACEMENTS or time.monotonic() > end:
                break
        lines = still_sends()
    judgement = history.judge()
    tell(
        capsys,
        f"{done} replacements: {judgement}; {len(always)} flows were open in all states, "
        f"{len(never)} in none; one connection had {lines} lines all along",
    )
    assert done >= 8
    assert judgement.wrong == ()
    assert min(judgement.steady["open"], judgement.steady["refused"]) > 100
    assert judgement.during.total() > 100
    assert lines > 10


def test_agents_are_killed_and_come_back(policies: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing wavers, nothing is written; what changed meanwhile is made up for."""
    checks = watched_flows(policies)
    policies.set(policies.state(CYCLE[3], {}))
    policies.cluster.wait()
    before = policies.expected(checks)
    with policies.watched(checks) as history, stream(policies, "y/a", "x/a") as still_sends:
        history.changing(before)
        # The test before has asked from the same ports: for a moment the kernel may take a
        # connection for one that it knew, and that was allowed.
        rounds = history.rounds
        policies.cluster.eventually(lambda: history.rounds >= rounds + 3, "asked three times")
        history.settled()
        for node in NODES:
            policies.cluster.agent(node, "kill")
        rounds = history.rounds
        policies.cluster.eventually(lambda: history.rounds >= rounds + 2, "asked twice")
        for node in NODES:
            policies.cluster.agent(node, "start")
        policies.cluster.wait()
        for node in NODES:
            writes = policies.cluster.metric(node, "kube_router_kernel_writes_total")
            assert writes == 0, f"the agent of {node} has written what was there"
        # While the one of node1 is away, a policy is replaced.
        policies.cluster.agent("node1", "kill")
        after = {**CYCLE[3], "x/in": from_pods("a")}
        began = time.monotonic()
        policies.set(policies.state(after, {}))
        history.changing(policies.expected(checks), began)
        rounds = history.rounds
        policies.cluster.eventually(lambda: history.rounds >= rounds + 2, "asked twice")
        policies.cluster.agent("node1", "start")
        policies.cluster.wait()
        history.settled()
        rounds = history.rounds
        policies.cluster.eventually(lambda: history.rounds >= rounds + 2, "asked twice")
        lines = still_sends()
    judgement = history.judge()
    report = policies.compare()
    tell(
        capsys,
        f"agents killed: {judgement}; one connection had {lines} lines all along; then "
        f"{len(report.wrong)} of {report.flows} flows wrong",
    )
    assert judgement.wrong == ()
    assert min(judgement.steady["open"], judgement.steady["refused"]) > 100
    assert report.wrong == ()
    assert lines > 10


GUEST_POLICIES = {
    # Friends reach x/a, and nobody reaches foes.
    "x/friends": {
        "podSelector": {},
        "ingress": [
            {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"is": "friend"}}}]}
        ],
    },
    "z/foes": {"podSelector": {"matchLabels": {"is": "foe"}}, "policyTypes": ["Ingress"]},
}
PODS = "/api/v1/namespaces/z/pods"


def guest(name: str, role: str, node: str) -> dict[str, Any]:
    ports = [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "z", "labels": {"is": role}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "server", "image": "server", "ports": ports}],
        },
    }


@contextlib.contextmanager
def one_address_left(policies: Any, node: str) -> Iterator[None]:
    """From now on the CNI plugin of a node has one address of each family to give away."""
    directory = policies.cluster.state.directory / "nodes" / node / "root/etc/cni/net.d"
    (file,) = directory.glob("*.conflist")
    original = file.read_text()
    network = json.loads(original)
    for ranges in network["plugins"][0]["ipam"]["ranges"]:
        for each in ranges:
            base = each["subnet"].partition("/")[0]
            only = f"{base}200" if ":" in base else base.removesuffix("0") + "200"
            each.update(rangeStart=only, rangeEnd=only)
    file.write_text(json.dumps(network))
    try:
        yield
    finally:
        file.write_text(original)


def addresses(policies: Any, name: str) -> list[str]:
    """Those of a pod that is ready, else none."""
    status = policies.api.get(f"{PODS}/{name}").get("status", {})
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())
    )
    return [each["ip"] for each in status.get("podIPs", ())] if ready else []


def guest_flows(policies: Any, probes: Any, check: Any, flow: Any, name: str) -> list[Any]:
    """Between the guest and others on its own node and the other one."""
    found = []
    for address in addresses(policies, name):
        family = "IPv6" if ":" in address else "IPv4"
        for protocol in ("TCP", "UDP"):
            for target in ("x/a", "x/b", "y/a"):
                there = policies.address(target, address)
                probe = probes.Probe(f"z/{name}", protocol, there, 80)
                found.append(check(probe, flow(f"z/{name}", target, protocol, 80, family)))
            for source, end in (("y/a", "y/a"), ("y/b", "y/b"), ("node2", "node/node2")):
                probe = probes.Probe(source, protocol, address, 80)
                found.append(check(probe, flow(end, f"z/{name}", protocol, 80, family)))
    return found


def wrong_verdicts(policies: Any, probes: Any, expected: dict[Any, bool]) -> tuple[list[str], int]:
    """Those at the first look, and how many got no answer then and were asked until they had one.

    Others may still know the hardware address of the pod before: no answer is no verdict.
    """
    verdicts = (probes.OPEN, probes.REFUSED)
    answers = policies.prober.ask(expected)
    differing = policies.differing(expected, answers)
    wrong = [f"{p} was {answers[p].outcome}" for p in differing if answers[p].outcome in verdicts]
    silent = [probe for probe in differing if answers[probe].outcome not in verdicts]
    late = len(silent)
    end = time.monotonic() + SILENCE_DEADLINE_S
    while silent and time.monotonic() < end:
        answers |= policies.prober.ask(silent)
        silent = [probe for probe in silent if answers[probe].outcome != probes.OPEN]
    return [*wrong, *(f"{probe} stays {answers[probe].outcome}" for probe in silent)], late


def test_pods_come_and_go_with_one_address(
    policies: Any, probes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A friend's address is a foe's next, and the other way round; nothing is inherited."""
    policies.set(policies.state(GUEST_POLICIES, {}))
    roles = ["friend", "foe"] * (TURNS_OF_THE_GUEST // 2)
    used: set[tuple[str, ...]] = set()
    early = wrong_at_first = late = flows = 0
    wrong: list[str] = []
    with one_address_left(policies, "node1"):
        for number, role in enumerate(roles):
            name = f"guest{number}"
            policies.api.create(PODS, guest(name, role, "node1"))
            ips = policies.cluster.eventually(
                lambda n=name: addresses(policies, n), f"{name} is ready"
            )
            used.add(tuple(ips))
            checks = guest_flows(policies, probes, policies.check, policies.flow, name)
            expected = policies.expected(checks)
            # Any verdict will do as long as the agents may not know yet.
            answers = policies.prober.ask(expected)
            early += len(answers)
            wrong_at_first += len(policies.differing(expected, answers))
            policies.cluster.wait()
            found, unheard = wrong_verdicts(policies, probes, expected)
            flows += len(expected)
            late += unheard
            wrong += [f"{role}: {each}" for each in found]
            policies.prober.forget(f"z/{name}")
            policies.api.delete(f"{PODS}/{name}?gracePeriodSeconds=0")
    tell(
        capsys,
        f"{len(roles)} pods, one after the other, with {len(used)} pair of addresses: {flows} "
        f"flows known to be programmed, {len(wrong)} wrong ({late} were silent at first); "
        f"before that, {early} flows, {wrong_at_first} as for the pod before",
    )
    assert len(used) == 1
    assert wrong == []


def test_an_address_with_two_claimants(
    policies: Any, probes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod that has finished owns no address; while two live ones claim it, each is a peer, and
    both have to admit."""
    policies.set(policies.state(GUEST_POLICIES, {}))
    policies.api.create(PODS, guest("foe", "foe", "node1"))
    policies.api.create(PODS, guest("ghost", "friend", "node9"))  # a node that is not there
    ips = policies.cluster.eventually(lambda: addresses(policies, "foe"), "the foe is ready")
    checks = guest_flows(policies, probes, policies.check, policies.flow, "foe")
    told = []
    for phase in ("Pending", "Succeeded", "Running", "Failed", "Running", "gone"):
        if phase == "gone":
            policies.api.delete(f"{PODS}/ghost?gracePeriodSeconds=0")
        else:
            status = {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]}
            policies.api.merge(f"{PODS}/ghost/status", {"status": status})
        policies.cluster.wait()
        expected = policies.expected(checks)
        wrong, _ = wrong_verdicts(policies, probes, expected)
        told.append(f"{phase} {sum(expected.values())} of {len(expected)} open")
        assert wrong == [], f"while the other one is {phase}"
    policies.prober.forget("z/foe")
    policies.api.delete(f"{PODS}/foe?gracePeriodSeconds=0")
    tell(capsys, f"a foe with the address of a friend that is: {', '.join(told)}")
    assert len({each.split(" ", 1)[1] for each in told}) > 1, "the other claimant changes something"
