"""Addresses of load balancers with real packets: given by the agents, announced by ARP, NDP, BGP.

    client ---- router ----+---- node1, node2, node3
                           +---- desk        (outside, on the nodes' own wire)

What the desk reaches it reaches by ARP and NDP alone: the addresses are of the wire's own network,
and nobody has told it of a route. ``wire`` hears who answers, whoever asked. Requests that count
are datagrams: a connection cannot go on at another node.
"""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.loadbalancer

NODES = ("node1", "node2", "node3")
NEAR = ("node1", "node2")
NAMESPACE = "/api/v1/namespaces/e2e"
SERVICES = f"{NAMESPACE}/services"
POOLS = "/api/v1/namespaces/kube-system/configmaps/kube-router-address-pools"
DRAIN = "kube-router.io/drain"
FREE = {4: "10.10.0.219", 6: "fd10:10::21f"}
ASKED = 10
REQUESTS = 24
# An agent that starts under emulation may take more than a minute.
DEADLINE_S = 300.0
GIVEN_BACK_S = 90.0
# Under emulation an agent may have no processor for longer than others wait for a word of it: then
# it has lost its addresses for a while, and what is looked at here says nothing.
TRIES = 3
# On an idle machine three seconds are the aim; under emulation everything takes ten times as long.
OUTAGE_S = 30.0


@pytest.fixture(scope="module")
def lab_wire(beside: Callable[[str], ModuleType]) -> Any:
    return beside("e2e/lab_wire")


@pytest.fixture(scope="module")
def wire(cluster: Any, lab_wire: Any) -> Iterator[Any]:
    with lab_wire.Wire(cluster) as wire:
        yield wire


@pytest.fixture(scope="module", autouse=True)
def _ready(cluster: Any, wire: Any, beside: Callable[[str], ModuleType]) -> None:
    """Every Service has its addresses, and they are announced both ways."""
    services = {
        name: cluster.eventually(lambda name=name: balancers(cluster, name), f"{name}: addresses")
        for name in ("web", "near", "quiet")
    }
    stand_in = beside("e2e/lab_stand_in")
    if stand_in.is_needed(cluster):
        stand_in.lay(cluster, NODES, services)
    for name, found in services.items():
        assert sorted(found) == [4, 6]
        nodes = NEAR if name == "near" else NODES
        cluster.eventually(
            lambda found=found, nodes=nodes: all(
                ways(cluster, each) == set(nodes) for each in found.values()
            ),
            f"the router has learned of {name}",
        )
    for name in ("web", "near"):
        for address in balancers(cluster, name).values():
            settled(cluster, wire, address)


# --- asking ---------------------------------------------------------------------------------------


def ingress(cluster: Any, name: str) -> list[dict[str, Any]]:
    service = cluster.api.get(f"{SERVICES}/{name}")
    return list(service["status"].get("loadBalancer", {}).get("ingress") or ())


def balancers(cluster: Any, name: str) -> dict[int, str]:
    """By family: the addresses in a Service's status."""
    return {6 if ":" in each["ip"] else 4: each["ip"] for each in ingress(cluster, name)}


_links: dict[str, str] = {}


def links(cluster: Any) -> dict[str, str]:
    """By address (also link-local): the node that has it on a link of its own."""
    if not _links:
        for node in NODES:
            for link in json.loads(cluster.run(node, "ip", "-j", "address", "show")):
                own = link["addr_info"] if link["ifname"] in ("eth0", "kube-bridge") else ()
                _links.update((address["local"], node) for address in own)
    return _links


def ways(cluster: Any, address: str) -> set[str]:
    """The nodes to which the router sends what goes to ``address``."""
    family = "-6" if ":" in address else "-4"
    text = cluster.run("router", "ip", "-j", family, "route", "show", address)
    return {
        links(cluster)[way["gateway"]]
        for route in json.loads(text)
        for way in route.get("nexthops") or [route]
    }


def settled(cluster: Any, wire: Any, address: str, *, among: tuple[str, ...] = NODES) -> str:
    """The node that answers for an address once three questions have one answer each, the same."""
    found: list[str] = []

    def is_settled() -> bool:
        ports = [each.port for each in wire.answers(address, 2.0)]
        if len(ports) != 1 or ports[0] not in among:
            found.clear()
            return False
        found.append(ports[0])
        return len(found) >= 3 and set(found[-3:]) == set(ports)

    what = f"one of {', '.join(among)} answers for {address}"
    cluster.eventually(is_settled, what, DEADLINE_S)
    return found[-1]


def given_back(cluster: Any, wire: Any, address: str, old: str) -> str:
    """The node that answers for an address once it is ``old``, or in the end."""
    cluster.state.ask({"op": "wait", "timeout_s": DEADLINE_S})
    end = time.monotonic() + GIVEN_BACK_S
    while (found := settled(cluster, wire, address)) != old and time.monotonic() < end:
        pass
    return found


def taken_over(cluster: Any, wire: Any, address: str, old: str, since: float) -> float:
    """How long after ``since`` another node has first said that it has the address; seconds."""

    def others() -> list[Any]:
        return [each for each in wire.of(address, since) if each.port != old]

    found = cluster.eventually(others, f"another node than {old} takes over {address}")
    return float(found[0].when) - since


def report(text: str) -> None:
    print(f"    {text}", flush=True)


@contextmanager
def drained(cluster: Any, node: str) -> Iterator[None]:
    path = f"/api/v1/nodes/{node}"
    cluster.api.merge(path, {"metadata": {"annotations": {DRAIN: "true"}}})
    try:
        yield
    finally:
        cluster.api.merge(path, {"metadata": {"annotations": {DRAIN: None}}})


@pytest.fixture
def hammer(cluster: Any, probes: Any) -> Iterator[Any]:
    """Asks the probes it is aimed at ten times a second, whatever became of the last tries."""
    prober = probes.Prober(
        lambda name: cluster.state.netns_path(cluster.state.resolve(name)), probes.HAMMER_PORTS
    )
    with probes.Hammer(prober) as hammer:
        yield hammer
    prober.close()


def echoes(probes: Any, cluster: Any, name: str, source: str = "desk") -> list[Any]:
    return [
        probes.Probe(source, "UDP", address, 53) for address in balancers(cluster, name).values()
    ]


def outages(cluster: Any, hammer: Any, wanted: list[Any], since: float) -> dict[str, float]:
    """By address: seconds from ``since`` to the first answer to what was asked after it."""

    def all_answered() -> dict[Any, float]:
        first: dict[Any, float] = {}
        for probe, answer in list(hammer.answers):
            if answer.outcome == "open" and answer.began > since:
                first.setdefault(probe, answer.ended)
        return first if set(first) == set(wanted) else {}

    found = cluster.eventually(all_answered, "requests are answered again")
    return {probe.address: ended - since for probe, ended in found.items()}


def believed(cluster: Any, node: str, address: str) -> tuple[str | None, bool]:
    """Whom a node's status names as the one that announces an address, and whether itself does."""
    status = cluster.asked(node, "status")
    (found,) = [each for each in status["layer2"]["addresses"] if each["address"] == address]
    return found["owner"], found["answered_here"]


def shown(times: dict[str, float]) -> str:
    return ", ".join(f"{address} {seconds:.2f} s" for address, seconds in times.items())


# --- reached --------------------------------------------------------------------------------------


def test_addresses_are_given_and_shown(cluster: Any) -> None:
    for name in ("web", "near"):
        for entry in ingress(cluster, name):
            assert entry["ipMode"] == "VIP"
            assert entry["ports"] == [
                {"port": 80, "protocol": "TCP"},
                {"port": 53, "protocol": "UDP"},
            ]
    given = [
        each for name in ("web", "near", "quiet") for each in balancers(cluster, name).values()
    ]
    assert len(set(given)) == 6
    done = subprocess.run(
        ["kubectl", "-n", "e2e", "get", "services"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    report(done.stdout)
    assert ",".join(entry["ip"] for entry in ingress(cluster, "web")) in done.stdout


@pytest.mark.parametrize("family", [4, 6])
def test_the_desk_reaches_a_service_by_arp_and_ndp(cluster: Any, wire: Any, family: int) -> None:
    address = balancers(cluster, "web")[family]
    owner = settled(cluster, wire, address)
    cluster.run("desk", "ip", "neigh", "flush", "to", address)
    began = time.monotonic()
    answers = Counter(cluster.ask("desk", address, 80)["pod"] for _ in range(REQUESTS))
    took = time.monotonic() - began
    assert sorted(answers) == ["web1", "web2", "web3"]
    (entry,) = json.loads(cluster.run("desk", "ip", "-j", "neigh", "show", "to", address))
    (link,) = json.loads(cluster.run(owner, "ip", "-j", "link", "show", "dev", "eth0"))
    assert entry["lladdr"] == link["address"]
    assert set(wire.ports(address, began)) == {owner}
    report(
        f"desk -> {address}: {REQUESTS} requests, 0 failures, {REQUESTS / took:.0f}/s, by {owner}"
    )


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_not_announced_is_not_answered_for(cluster: Any, wire: Any, family: int) -> None:
    """The control: a pool of BGP alone, on the same wire, and an address of no Service."""
    quiet = balancers(cluster, "quiet")[family]
    assert cluster.ask("client", quiet, 80)["pod"], "by BGP it is reached"
    for address in (quiet, FREE[family]):
        began = time.monotonic()
        for _ in range(3):
            assert wire.answers(address, 0.5) == []
        with pytest.raises(OSError, match=r"No route|timed out|unreachable"):
            cluster.ask("desk", address, 80, timeout_s=10)
        assert wire.of(address, began) == []
        report(f"desk: who has {address}? asked 3 times, no answer")


def test_one_node_answers_and_it_alone(cluster: Any, wire: Any) -> None:
    """Everything that is said on the wire, whoever it is for, while all addresses are asked for."""
    for name in ("web", "near"):
        for address in balancers(cluster, name).values():
            owner = settled(cluster, wire, address)
            began = time.monotonic()
            for _ in range(ASKED):
                assert len(wire.answers(address, 10.0)) == 1
            claims = wire.of(address, began)
            assert {each.port for each in claims} == {owner}
            assert len({each.mac for each in claims}) == 1
            for node in NODES:
                assert believed(cluster, node, address) == (owner, node == owner)
            said = f"{address} is announced from node {owner} "
            cluster.eventually(
                lambda name=name, said=said: any(
                    reason == "nodeAssigned" and message.startswith(said)
                    for reason, message in told(cluster, "Service", name)
                ),
                f"an Event: {said}",
            )
            report(f"{address}: asked {ASKED} times, {len(claims)} answers, all by {owner}")


@pytest.mark.parametrize("family", [4, 6])
def test_the_same_service_is_reached_by_bgp_over_all_nodes(cluster: Any, family: int) -> None:
    address = balancers(cluster, "web")[family]
    assert ways(cluster, address) == set(NODES)
    began = time.monotonic()
    # A node masquerades what it sends on to another one.
    answers = [cluster.ask("client", address, 80) for _ in range(REQUESTS)]
    took = time.monotonic() - began
    came = Counter(links(cluster).get(each["client"], each["node"]) for each in answers)
    assert set(came) == set(NODES), "the router uses every way"
    report(
        f"client -> {address}: {REQUESTS} requests, 0 failures, {REQUESTS / took:.0f}/s, by "
        + ", ".join(f"{node} {count}" for node, count in sorted(came.items()))
    )


def test_local_policy_leaves_out_a_node_without_endpoints(cluster: Any, wire: Any) -> None:
    addresses = balancers(cluster, "near")
    owners = {each: settled(cluster, wire, each, among=NEAR) for each in addresses.values()}
    gone = owners[addresses[4]]
    other = next(node for node in NEAR if node != gone)
    pod = f"{NAMESPACE}/pods/web{gone.removeprefix('node')}"
    cluster.api.merge(pod, {"metadata": {"labels": {"near": None}}})
    for address in addresses.values():
        cluster.eventually(
            lambda address=address: ways(cluster, address) == {other}, f"{gone} has withdrawn"
        )
        assert settled(cluster, wire, address, among=(other,)) == other
        for source in ("client", "desk"):
            assert cluster.ask(source, address, 80)["node"] == other
    cluster.api.merge(pod, {"metadata": {"labels": {"near": "yes"}}})
    for address, owner in owners.items():
        cluster.eventually(
            lambda address=address: ways(cluster, address) == set(NEAR), f"{gone} is back"
        )
        assert settled(cluster, wire, address, among=(owner,)) == owner
    report(f"{gone} without endpoints: {', '.join(addresses.values())} by {other} alone")


# --- moved ----------------------------------------------------------------------------------------


def test_a_drain_moves_it_without_a_failed_request(
    cluster: Any, wire: Any, hammer: Any, probes: Any
) -> None:
    addresses = balancers(cluster, "web").values()
    before = {each: settled(cluster, wire, each) for each in addresses}
    node = before[next(iter(addresses))]
    others = tuple(each for each in NODES if each != node)
    hammer.aim(echoes(probes, cluster, "web"))
    cluster.eventually(lambda: len(hammer.first_open) == 2, "requests are answered")
    began = time.monotonic()
    with drained(cluster, node):
        for address in addresses:
            owner = settled(cluster, wire, address, among=others)
            assert owner == before[address] or before[address] == node
    for address in addresses:
        settled(cluster, wire, address, among=(before[address],))

    def asked_often() -> bool:
        asked = hammer.asked_since(began)
        return all(asked[probe] >= 20 for probe in hammer.probes)

    cluster.eventually(asked_often, "every address is asked 20 times")
    asked = hammer.asked_since(began)
    outcomes = Counter(answer.outcome for _, answer in hammer.take())
    took = time.monotonic() - began
    report(
        f"{node} drained and back: {asked.total()} requests, {asked.total() / took:.0f}/s, "
        f"{dict(outcomes)}"
    )
    assert set(outcomes) == {"open"}


def test_a_restart_of_the_agent_moves_nothing(cluster: Any, wire: Any) -> None:
    addresses = balancers(cluster, "web").values()
    others: set[str] = set()
    for _ in range(TRIES):
        before = {each: settled(cluster, wire, each) for each in addresses}
        node = before[next(iter(addresses))]
        began = time.monotonic()
        with cluster.traffic("desk", next(iter(addresses)), 80) as traffic:
            cluster.agent(node, "stop")
            cluster.agent(node, "start")
            cluster.state.ask({"op": "wait", "timeout_s": DEADLINE_S})
            took = time.monotonic() - began
            after = {each: settled(cluster, wire, each) for each in addresses}
        own = [address for address in addresses if before[address] == node]
        others = {port for each in own for port in wire.ports(each, began)} - {node}
        if after == before and not others:
            break
    assert (after, others) == (before, set())
    report(
        f"agent of {node} stopped and started ({took:.0f} s): owners are the same, no other node "
        f"has answered; {traffic.attempts} requests, {len(traffic.failures)} failures"
    )


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_an_agent_that_dies_or_hangs_is_taken_over(
    cluster: Any, wire: Any, hammer: Any, probes: Any, how: str
) -> None:
    address = balancers(cluster, "web")[4]
    back = ""
    for _ in range(TRIES):
        old = settled(cluster, wire, address)
        hammer.aim(echoes(probes, cluster, "web"))
        cluster.eventually(lambda: len(hammer.first_open) == 2, "requests are answered")
        since = time.monotonic()
        cluster.agent(old, how)
        seconds = taken_over(cluster, wire, address, old, since)
        new = settled(cluster, wire, address, among=tuple(each for each in NODES if each != old))
        outcomes = Counter(answer.outcome for _, answer in hammer.take())
        hammer.aim(())
        cluster.agent(old, "start" if how == "kill" else "thaw")
        back = given_back(cluster, wire, address, old)
        if back == old:
            break
    assert back == old
    report(
        f"agent of {old}: {how}: {new} has {address} after {seconds:.2f} s; "
        f"requests meanwhile: {dict(outcomes)}"
    )
    assert seconds < OUTAGE_S


def test_a_node_that_is_cut_off_is_taken_over(
    cluster: Any, wire: Any, hammer: Any, probes: Any
) -> None:
    """It does not see that its cable is out; the address has backends on the other node."""
    addresses = balancers(cluster, "near")
    before = {each: settled(cluster, wire, each, among=NEAR) for each in addresses.values()}
    old = before[addresses[4]]
    other = next(node for node in NEAR if node != old)
    wanted = echoes(probes, cluster, "near")
    hammer.aim(wanted)
    cluster.eventually(lambda: len(hammer.first_open) == 2, "requests are answered")
    with wire.pulled(old) as since:
        times = outages(cluster, hammer, wanted, since)
        for address in addresses.values():
            assert settled(cluster, wire, address, among=(other,)) == other
    for address, owner in before.items():
        assert settled(cluster, wire, address, among=(owner,)) == owner
    asked = hammer.asked_since(since)
    failed = sum(answer.outcome != "open" for _, answer in hammer.take())
    report(
        f"{old} cut off: outage {shown(times)} (now {other}), and back: "
        f"{asked.total()} requests, {failed} failures"
    )
    moved = [address for address, owner in before.items() if owner == old]
    assert max(times[address] for address in moved) < OUTAGE_S


# --- mistakes -------------------------------------------------------------------------------------


def told(cluster: Any, kind: str, name: str, namespace: str = "e2e") -> list[tuple[str, str]]:
    """Reasons and messages of the Events about an object."""
    return [
        (event["reason"], event["message"])
        for event in cluster.api.get(f"/api/v1/namespaces/{namespace}/events")["items"]
        if (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == (kind, name)
    ]


def balancer(name: str, **annotations: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "annotations": {
                f"kube-router.io/{key.replace('_', '-')}": text for key, text in annotations.items()
            },
        },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    }


def test_what_cannot_be_given_is_told_and_disturbs_nobody(cluster: Any) -> None:
    web = balancers(cluster, "web")
    bad = {
        "in-use": (balancer("in-use", load_balancer_ips=web[4]), "AddressInUse"),
        "wrong-family": (
            balancer("wrong-family", load_balancer_ips=FREE[6]),
            "WrongAddressFamily",
        ),
        "not-in-pool": (balancer("not-in-pool", load_balancer_ips="192.0.2.1"), "AddressNotInPool"),
    }
    shared = {"load_balancer_ips": "10.10.0.210", "allow_shared_ip": "key"}
    with cluster.traffic("desk", web[4], 53, "UDP") as traffic:
        cluster.api.create(SERVICES, balancer("first", **shared))
        cluster.eventually(lambda: balancers(cluster, "first"), "first has its address")
        bad["second"] = (balancer("second", **shared), "AddressNotShareable")
        for body, _ in bad.values():
            cluster.api.create(SERVICES, body)
        for name, (_, reason) in bad.items():
            messages = cluster.eventually(
                lambda name=name, reason=reason: [
                    message for why, message in told(cluster, "Service", name) if why == reason
                ],
                f"{name}: an Event {reason}",
            )
            assert ingress(cluster, name) == []
            report(f"{name}: {reason}: {messages[0]}")
        assert balancers(cluster, "first") == {4: "10.10.0.210"}
        for name in ("first", *bad):
            cluster.api.delete(f"{SERVICES}/{name}")
        asked = traffic.attempts
        cluster.eventually(lambda: traffic.attempts > asked + 5, "requests go on")
    assert traffic.failures == []
    assert balancers(cluster, "web") == web


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("- name: broken\n  addresses: [10.60.0.0/33]\n", "10.60.0.0/33"),
        ("- name: double\n  addresses: [10.10.0.210-10.10.0.211]\n", "overlap"),
    ],
    ids=["broken", "overlapping"],
)
def test_a_bad_edit_of_pools_is_told_and_changes_nothing(
    cluster: Any, wire: Any, mistake: str, said: str
) -> None:
    web = balancers(cluster, "web")
    good = cluster.api.get(POOLS)["data"]["pools"]
    cluster.api.merge(POOLS, {"data": {"pools": good + mistake}})
    try:
        messages = cluster.eventually(
            lambda: [
                message
                for _, message in told(
                    cluster, "ConfigMap", "kube-router-address-pools", "kube-system"
                )
                if said in message
            ],
            "an Event of the ConfigMap",
        )
        report(messages[0])
        cluster.api.create(SERVICES, balancer("beside"))
        found = cluster.eventually(lambda: balancers(cluster, "beside"), "pools go on being used")
        assert settled(cluster, wire, found[4])
        for address in web.values():
            assert cluster.ask("desk", address, 80)["pod"]
    finally:
        cluster.api.merge(POOLS, {"data": {"pools": good}})
        cluster.api.delete(f"{SERVICES}/beside")
    assert balancers(cluster, "web") == web
