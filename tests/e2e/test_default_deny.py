"""A pod's first moments: with ``--netpol-default-deny`` nobody gets in before its policies do.

Connections to addresses are tried all the while, from before a pod has them until it is gone.
"""

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

pytestmark = pytest.mark.families

NODES = ("node1", "node2")
FLAG = "--netpol-default-deny"
# Guests of y have no policy; nobody reaches those of z, but for their own node.
POLICIES = {"z/deny": {"podSelector": {}, "policyTypes": ["Ingress"]}}
GUESTS = {"y": "free", "z": "caged"}
TURNS = 10
TURNS_OF_THE_CONTROL = 2
EACH = 2  # of each kind at once
# The same bridge, the other node's, that node itself, the outside.
OTHERS = ("x/a", "x/b", "node2", "apiserver")
OWN_NODE = "node1"
FIRST_ADDRESS = 100  # in node1's pod CIDRs; those of policies.yaml are lower
# Verdicts of each source once a guest is known to be programmed.
AFTERWARDS = 3


@dataclass
class Guests:
    """What came of pods that nobody had seen before; times in seconds of time.monotonic()."""

    verdicts: int = 0
    # To caged pods: opened by others; verdicts between "its node has an answer" and "programmed".
    openings: list[str] = field(default_factory=list)
    in_between: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    # Of free pods: from Running, as a watch has it, and from the first answer to its own node.
    from_running_ms: list[float] = field(default_factory=list)
    from_answer_ms: list[float] = field(default_factory=list)


@contextlib.contextmanager
def addresses_left(cluster: Any, node: str, first: int, last: int) -> Iterator[list[str]]:
    """The CNI plugin of a node has these of each family to give away; yields all of them."""
    directory = cluster.state.directory / "nodes" / node / "root/etc/cni/net.d"
    (file,) = directory.glob("*.conflist")
    original = file.read_text()
    network = json.loads(original)
    found = []
    for ranges in network["plugins"][0]["ipam"]["ranges"]:
        for each in ranges:
            subnet = ip_network(each["subnet"])
            each.update(rangeStart=str(subnet[first]), rangeEnd=str(subnet[last]))
            found += [str(subnet[number]) for number in range(first, last + 1)]
    file.write_text(json.dumps(network))
    try:
        yield found
    finally:
        file.write_text(original)


@contextlib.contextmanager
def with_flag(cluster: Any) -> Iterator[None]:
    """The agents are killed and come back with the flag; at the end, without it."""

    def restart(*arguments: str) -> None:
        for node in NODES:
            cluster.agent(node, "kill")
            cluster.agent(node, "start", *arguments)
        cluster.wait()

    restart(FLAG)
    try:
        yield
    finally:
        restart()


def pod(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": OWN_NODE,
            "containers": [{"name": "server", "image": "server", "ports": [{"containerPort": 80}]}],
        },
    }


def path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/pods{name and '/'}{name}"


def one_turn(cluster: Any, probes: Any, hammer: Any, number: int, found: Guests) -> None:
    """Free pods and caged ones, from before they are there until they are gone."""
    api = cluster.api
    names = {(space, f"guest{number}-{each}") for space in GUESTS for each in range(EACH)}
    first = FIRST_ADDRESS + len(names) * number
    with addresses_left(cluster, OWN_NODE, first, first + len(names) - 1) as coming:
        began = time.monotonic()
        hammer.aim(
            probes.Probe(source, "TCP", address, 80)
            for source in (*OTHERS, OWN_NODE)
            for address in coming
        )
        # A refusal or an address that does not answer: each takes its time.
        cluster.eventually(
            lambda: hammer.asked_since(began).keys() >= {*hammer.probes}, "nobody is there"
        )
        version = api.get("/api/v1/pods")["metadata"]["resourceVersion"]
        running: dict[tuple[str, str], tuple[float, list[str]]] = {}
        with api.watch(f"/api/v1/pods?watch=1&resourceVersion={version}") as events:
            for space, name in sorted(names):
                api.create(path(space), pod(space, name))
            for event in events:
                meta, status = event["object"]["metadata"], event["object"].get("status", {})
                key = (meta["namespace"], meta["name"])
                if key in names and status.get("phase") == "Running":
                    ips = [each["ip"] for each in status["podIPs"]]
                    running.setdefault(key, (time.monotonic(), ips))
                if len(running) == len(names):
                    break
    assert sorted(ip for _, ips in running.values() for ip in ips) == sorted(coming)

    def to(space: str, *sources: str) -> list[Any]:
        return [
            probes.Probe(source, "TCP", address, 80)
            for source in sources
            for key, (_, ips) in running.items()
            for address in ips
            if key[0] == space
        ]

    free, caged, own = to("y", *OTHERS), set(to("z", *OTHERS)), to("z", OWN_NODE)
    opened = hammer.first_open
    cluster.eventually(lambda: all(p in opened for p in (*free, *own)), "who may, gets in")
    cluster.wait()
    programmed = time.monotonic()
    cluster.eventually(
        lambda: all(hammer.asked_since(programmed)[p] >= AFTERWARDS for p in caged), "all ask again"
    )
    for space, name in names:
        api.delete(f"{path(space, name)}?gracePeriodSeconds=0")

    answered = {p.address: opened[p] for p in own}
    for probe, answer in hammer.take():
        if probe in caged:
            found.verdicts += 1
            found.outcomes[answer.outcome] += 1
            found.in_between += answered[probe.address] < answer.ended < programmed
            if answer.outcome == probes.OPEN:
                since = 1000 * (answer.ended - answered[probe.address])
                found.openings.append(f"{probe}, {since:.0f} ms after its node had an answer")
    since_running = {ip: at for at, ips in running.values() for ip in ips}
    for probe in to("y", "x/b"):
        found.from_running_ms.append(1000 * (opened[probe] - since_running[probe.address]))
        at_home = opened[probe._replace(source=OWN_NODE)]
        found.from_answer_ms.append(1000 * (opened[probe] - at_home))


def churn(policies: Any, probes: Any, numbers: range) -> Guests:
    found = Guests()
    prober = probes.Prober(policies.network, probes.HAMMER_PORTS)
    try:
        with probes.Hammer(prober) as hammer:
            for number in numbers:
                one_turn(policies.cluster, probes, hammer, number, found)
    finally:
        prober.close()
    return found


def flows_that_exist(policies: Any) -> list[Any]:
    """Between pods that were there before, on one node and across, straight and through Services;
    some of them are denied."""
    return [
        check
        for check in policies.checks
        if check.flow.destination in ("x/a", "x/b", "z/a")
        and check.probe.source in ("x/c", "y/b", "node2")
        and (check.flow.protocol, check.flow.port) == ("TCP", 80)
    ]


def quantiles(values: list[float]) -> str:
    """p50 and p99, the latter of a few values the largest one."""
    return f"{statistics.median(values):.0f} and {sorted(values)[-1 - len(values) // 100]:.0f} ms"


def test_new_pods_are_never_open_too_early(
    policies: Any, probes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    policies.set(policies.state(POLICIES, {}))
    policies.cluster.wait()
    without = churn(policies, probes, range(TURNS_OF_THE_CONTROL))
    checks = flows_that_exist(policies)
    expected = policies.expected(checks)
    with policies.watched(checks) as history:
        history.changing(expected)
        history.settled()
        with with_flag(policies.cluster):
            numbers = range(TURNS_OF_THE_CONTROL, TURNS_OF_THE_CONTROL + TURNS)
            strict = churn(policies, probes, numbers)
        rounds = history.rounds
        policies.cluster.eventually(lambda: history.rounds >= rounds + 2, "asked twice")
    judgement = history.judge()
    with capsys.disabled():
        print(
            f"\n  {EACH * TURNS} caged pods with {FLAG}: {strict.verdicts} verdicts "
            f"{dict(strict.outcomes)}, {strict.in_between} of them between an answer to the pod's "
            f"node and word that it was programmed; {len(strict.openings)} open"
            f"\n  {EACH * TURNS_OF_THE_CONTROL} caged pods without: {without.verdicts} verdicts "
            f"{dict(without.outcomes)}, {without.in_between} in between; {len(without.openings)} "
            f"open {without.openings[-1:]}"
            f"\n  {EACH * TURNS} free pods with {FLAG}: reachable from the other node after "
            f"Running (p50 and p99) {quantiles(strict.from_running_ms)}, after the first answer to "
            f"its own node {quantiles(strict.from_answer_ms)}; without the flag "
            f"{quantiles(without.from_running_ms)} and {quantiles(without.from_answer_ms)}"
            f"\n  pods that were there before, agents restarted: {judgement}",
            end="",
        )
    assert strict.openings == []
    assert judgement.wrong == ()
    assert judgement.steady["open"] > 100
    assert judgement.steady["refused"] > 50
