"""The firewall from the watch event to the kernel, in network namespaces of its own.

    python tests/bench/bench_firewall.py [--pods N] [--policies N] [--local N] [--variants V,...]

Needs root, iptables and ipset. Every table comes from a fresh process with fresh namespaces, once
for each variant of iptables: a cold start split into its parts, restart, verification, changes of
one object from the line of the watch until the kernel has it, a storm of 500 pods in a second, what
iptables costs by itself at 1,000 chains, and the size of a node in a larger cluster. A time counts
only if a full comparison with the kernel afterwards finds nothing to write. Only ratios compare
between machines.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench_ipvs import enter_new_namespace
from bench_proxy import measure, rss_mib
from firewall_world import Cluster, Node
from synthetic_cluster import pod, policy

VARIANTS = ("iptables-nft", "iptables-legacy")
ROUNDS = 60
ATTEMPTS = 3
# A changed chain costs what iptables makes of it: how much of a whole table, at most.
ONE_CHAIN = {"iptables-nft": 1 / 11, "iptables-legacy": 1 / 3}
STORM = 500
CHAINS, RULES, SETS = 1000, 10, 100


@contextlib.contextmanager
def programs() -> Iterator[Counter[str]]:
    """Counts the programs that are run meanwhile, by name."""
    from kube_router_py.kernel import ipset, iptables, program

    found: Counter[str] = Counter()

    def run(command: Any, *arguments: Any, **options: Any) -> Any:
        found[command[0].rpartition("/")[2]] += 1
        return program.run(command, *arguments, **options)

    with patch.object(ipset, "run", run), patch.object(iptables, "run", run):
        yield found


# What changes, kind, event of the watch, object.
Change = tuple[str, str, str, dict[str, Any]]


def changes(cluster: Cluster) -> list[tuple[Change, Change]]:
    """Changes of one object, there and back."""
    # In the namespace of a local pod of app-5, which app-6 may ask; not local itself.
    one = next(
        number
        for number in range(5 + cluster.namespaces, cluster.pods, cluster.namespaces)
        if number >= cluster.local and cluster.pod(number)["metadata"]["labels"]["app"] == "app-8"
    )
    remote, changed = cluster.pod(one), cluster.pod(one, app="app-6", tier="frontend")
    local, rule = cluster.pod(5), 5 * cluster.namespaces + 5
    ports = [policy(rule, cluster.namespaces, port) for port in (9090, 8080)]
    labels, port = "labels of a pod elsewhere", "port of a policy"
    return [
        ((labels, "Pod", "MODIFIED", changed), (labels, "Pod", "MODIFIED", remote)),
        (
            ("a pod elsewhere goes", "Pod", "DELETED", remote),
            ("a pod elsewhere comes", "Pod", "ADDED", remote),
        ),
        (
            (port, "NetworkPolicy", "MODIFIED", ports[0]),
            (port, "NetworkPolicy", "MODIFIED", ports[1]),
        ),
        (("a pod here goes", "Pod", "DELETED", local), ("a pod here comes", "Pod", "ADDED", local)),
    ]


class Row:
    """One kind of change."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.writes = self.programs = 0

    def of(self, fraction: float) -> float:
        return sorted(self.walls)[int(len(self.walls) * fraction)]

    def per_change(self, what: int) -> float:
        return what / len(self.walls)


def measure_changes(cluster: Cluster, node: Node) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for pair in changes(cluster):
        for what, kind, verb, value in pair * ROUNDS:
            row, line = rows.setdefault(what, Row()), cluster.line(verb, value)
            with programs() as run:
                begun = time.perf_counter()
                cluster.tell(kind, line)
                turn = node.turn()
                row.walls.append(time.perf_counter() - begun)
            assert turn.writes, what
            row.writes += turn.writes
            row.programs += run.total()
    return rows


def on_kernel(variant: str, pods: int, policies: int, local: int, result: Any) -> None:
    cluster = Cluster(pods, policies, local)

    def rebuild() -> tuple[Node, SimpleNamespace]:
        enter_new_namespace()
        node = Node(cluster, variant)
        return node, node.turn(full=True)

    # Of a few the fastest: others use the machine, too.
    rebuilds = [rebuild() for _ in range(ATTEMPTS)]
    cold = min((turn for _, turn in rebuilds), key=wall)
    node = rebuilds[-1][0]
    verify = min((node.turn(full=True) for _ in range(ATTEMPTS)), key=wall)
    node = Node(cluster, variant)
    restart = node.turn(full=True)
    assert not verify.writes, "a second look finds nothing to write"
    assert not restart.writes, "a restart writes nothing"
    rows = measure_changes(cluster, node)
    assert not node.turn(full=True).writes, "after all changes the kernel has what is wanted"
    load = min(full_load(node, variant) for _ in range(ATTEMPTS))
    result.put(
        (SimpleNamespace(cold=cold, verify=verify, restart=restart), rows, node.size(), load)
    )


def wall(turn: SimpleNamespace) -> float:
    found: float = turn.wall
    return found


def full_load(node: Node, variant: str) -> float:
    """Seconds that iptables takes for all chains of a node, in another namespace."""
    from kube_router_py.firewall.frame import JUMPS, is_own_chain
    from kube_router_py.kernel.ipset import IpsetProgram
    from kube_router_py.kernel.iptables import IptablesProgram
    from kube_router_py.kernel.ports import TableRules

    enter_new_namespace()
    desired = node.firewall._desired
    IpsetProgram().put_all({spec: desired.sets[spec] for spec in desired.sets.specs()})
    rules = TableRules(desired.chains["inet"], JUMPS)
    return seconds(lambda: IptablesProgram(variant).ensure("inet", "filter", rules, is_own_chain))


def storm(variant: str, pods: int, policies: int, local: int, result: Any) -> None:
    """Four of five pods are elsewhere and get other labels; the others are here, and are replaced
    by some with other addresses."""
    from kube_router_py.firewall_part import _MIN_INTERVAL_S
    from kube_router_py.loop import Loop

    enter_new_namespace()
    cluster = Cluster(pods, policies, local)
    node = Node(cluster, variant)
    turns: list[Any] = []
    loop = Loop(
        node.firewall,
        ready=lambda: True,
        resync_interval_s=3600,
        min_interval_s=_MIN_INTERVAL_S,
        on_turn=turns.append,
    )
    node.firewall.subscribe(cluster.cache, loop)
    lines = []
    for number in range(STORM):
        if number % 5:
            changed = cluster.pod(local + number, app="app-6", tier="frontend")
            lines.append(cluster.line("MODIFIED", changed))
        elif number % 10:
            lines.append(cluster.line("DELETED", cluster.pod(number // 10)))
        else:
            fresh = pod(pods + number, cluster.namespaces, local=True)
            lines.append(cluster.line("ADDED", fresh))
    loop.start()
    settle(loop)
    turns.clear()
    with programs() as run:
        begun = time.perf_counter()
        for number, line in enumerate(lines):
            while time.perf_counter() < begun + number / STORM:
                time.sleep(0.001)
            cluster.tell("Pod", line)
        told = time.perf_counter()
        settle(loop)
        done = time.perf_counter()
    assert loop.stop(60)
    fresh_node = Node(cluster, variant)
    assert not fresh_node.turn(full=True).writes, "after the storm the kernel has what is wanted"
    result.put(
        SimpleNamespace(
            took=told - begun,
            behind=done - told,
            turns=len(turns),
            run=run,
            most=max(turn.duration_s for turn in turns),
        )
    )


def settle(loop: Any) -> None:
    while not loop.status().settled:
        time.sleep(0.001)


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def iptables_alone(variant: str, result: Any) -> None:
    """A table of 1,000 chains: all of it, one chain of it, nothing but a look."""
    from kube_router_py.kernel.ipset import IpsetProgram
    from kube_router_py.kernel.iptables import IptablesProgram
    from kube_router_py.kernel.ports import IpsetSpec

    enter_new_namespace()
    iptables = IptablesProgram(variant)
    sets = {IpsetSpec(f"KUBE-SRC-{number:03}", "hash:ip", "inet"): () for number in range(SETS)}
    assert not IpsetProgram().put_all(sets)
    # As the firewall writes them: looking up a set is what takes most of the time.
    chains = {
        f"KUBE-NWPLCY-{number:04}": tuple(
            f"-p tcp -m tcp --dport {80 + rule} -m set --match-set "
            f"KUBE-SRC-{(number + rule) % SETS:03} src "
            f'-m comment --comment "ns/policy-{number} ingress rule {rule}" -j RETURN'
            for rule in range(RULES)
        )
        for number in range(CHAINS)
    }
    load = seconds(lambda: iptables.change("inet", "filter", chains))
    one = []
    for name, rules in list(chains.items())[:20]:
        change = partial(iptables.change, "inet", "filter", {name: rules[1:]})
        one.append(seconds(change))
    look = [seconds(lambda: iptables.chains("inet", "filter")) for _ in range(5)]
    result.put(SimpleNamespace(load=load, one=statistics.median(one), look=statistics.median(look)))


def large(pods: int, policies: int, local: int, result: Any) -> None:
    cluster = Cluster(pods, policies, local)
    before = rss_mib()
    node = Node(cluster, "")
    compiled = node.turn(full=True).compile
    result.put(SimpleNamespace(size=node.size(), compile=compiled, cache=before, rss=rss_mib()))


# What, found, at most.
Target = tuple[str, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--local", type=int, default=110)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    options = parser.parse_args()
    cluster = (options.pods, options.policies, options.local)
    rows: list[Target] = []
    for variant in options.variants.split(","):
        rows += of_variant(variant, cluster)
    rows += of_size(cluster)
    print(f"{'':52}{'found':>9}{'at most':>9}")
    for what, value, target in rows:
        word = "kept" if value <= target else "MISSED"
        print(f"{what:52}{value:9.3f}{target:9.3f}  {word}")


def of_variant(variant: str, cluster: tuple[int, int, int]) -> list[Target]:
    pods, policies, local = cluster
    turns, found, size, load = measure(on_kernel, variant, *cluster)
    print(f"{variant}: {pods} pods, {policies} policies, {local} pods on the node: {size.chains}")
    print(f"chains, {size.rules} rules, {size.sets} sets, {size.entries} entries; milliseconds")
    for what, turn in vars(turns).items():
        each = [1000 * getattr(turn, part) for part in ("wall", "compile", "kernel")]
        print(f"  {what:26}{each[0]:7.0f}: compiling {each[1]:.0f}, kernel {each[2]:.0f}", end="")
        print(f" for {turn.writes} writes")
    cold = turns.cold.wall
    print(f"  {'iptables, all chains':26}{load * 1000:7.1f}")
    for what, row in found.items():
        p50, p99 = row.of(0.5), row.of(0.99)
        print(f"  {what:26}{p50 * 1000:7.1f} p50{p99 * 1000:7.1f} p99, ", end="")
        print(
            f"{row.per_change(row.writes):.1f} writes by {row.per_change(row.programs):.1f}", end=""
        )
        print(f" programs, 1/{cold / p50:.0f} of a cold start")
    alone = measure(iptables_alone, variant)
    print(f"  {CHAINS} chains of {RULES} rules: all {alone.load * 1000:.0f}, one", end="")
    print(f" {alone.one * 1000:.1f}, a look {alone.look * 1000:.0f}")
    wild = measure(storm, variant, *cluster)
    print(f"  {STORM} pods in {wild.took:.2f} s: {wild.turns} turns of at most", end="")
    print(f" {wild.most * 1000:.0f} ms, {dict(wild.run)};")
    print(f"  in the kernel {wild.behind * 1000:.0f} ms after the last event", flush=True)
    sets = [found[what] for what in found if "elsewhere" in what]
    slowest = max(row.of(0.5) for row in sets)
    most = max(row.per_change(row.writes) for row in sets)
    return [
        (f"{variant}: change of sets alone / rebuild", slowest / cold, 1 / 20),
        (f"{variant}: change of sets alone, writes", most, 6),
        (
            f"{variant}: change of a chain / rebuild",
            found["port of a policy"].of(0.5) / cold,
            ONE_CHAIN[variant],
        ),
        (f"{variant}: one of {CHAINS} chains / all", alone.one / alone.load, ONE_CHAIN[variant]),
        (f"{variant}: a new pod on this node, p50 s", found["a pod here comes"].of(0.5), 0.1),
        (f"{variant}: behind after a storm, s", wild.behind, 1),
        (f"{variant}: longest turn of a storm, s", wild.most, 1),
    ]


def of_size(cluster: tuple[int, int, int]) -> list[Target]:
    pods, policies, local = cluster
    small = measure(large, *cluster)
    wide = measure(large, 2 * pods, 10 * policies, local)
    full = measure(large, 2 * pods, 10 * policies, 2 * local)
    print("pods, policies, of these pods on the node: chains, rules, sets, entries; compiling; MiB")
    for each, found in (
        (cluster, small),
        ((2 * pods, 10 * policies, local), wide),
        ((2 * pods, 10 * policies, 2 * local), full),
    ):
        size = found.size
        print(f"  {each[0]:6} {each[1]:6} {each[2]:4}: {size.chains:5} {size.rules:6}", end="")
        print(f" {size.sets:5} {size.entries:6}; {found.compile:.2f} s;", end="")
        print(f" {found.cache:.0f}, then {found.rss:.0f}", flush=True)
    return [
        ("rules, ten times the policies / before", wide.size.rules / small.size.rules, 1.2),
        ("rules, twice the pods on the node / before", full.size.rules / wide.size.rules, 2),
        (f"memory, {2 * pods} pods, {10 * policies} policies, MiB", full.rss, 400),
    ]


if __name__ == "__main__":
    main()
