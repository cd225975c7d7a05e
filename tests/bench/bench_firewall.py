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
import json
import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench_ipvs import enter_new_namespace
from bench_proxy import measure, rss_mib
from synthetic_cluster import NODE, POLICIES_PER_NAMESPACE, namespace, pod, policy

VARIANTS = ("iptables-nft", "iptables-legacy")
ROUNDS = 60
STORM = 500
CHAINS, RULES, SETS = 1000, 10, 100


class Cluster:
    """The cache of a cluster: 10 policies a namespace; ``local`` pods are on this node."""

    def __init__(self, pods: int, policies: int, local: int) -> None:
        logging.disable(logging.CRITICAL)
        from kube_router_py.cluster import objects
        from kube_router_py.cluster.cache import Cache
        from kube_router_py.cluster.reflector import Reflector
        from kube_router_py.firewall.controller import KINDS

        self.pods, self.local = pods, local
        self.namespaces = max(1, policies // POLICIES_PER_NAMESPACE)
        self.cache = Cache(KINDS)
        self._revisions = count(2)
        client: Any = SimpleNamespace()  # nothing is asked of it
        self._watches = {kind: Reflector(client, self.cache, kind)._apply for kind in KINDS}
        self._put(objects.Node, NODE)
        for number in range(self.namespaces):
            self._put(objects.Namespace, namespace(number))
        for number in range(pods):
            self._put(objects.Pod, self.pod(number))
        for number in range(policies):
            self._put(objects.NetworkPolicy, policy(number, self.namespaces))

    def _put(self, kind: type, value: dict[str, Any]) -> None:
        import msgspec

        self.cache.put(kind, msgspec.convert(value, kind))

    def pod(self, number: int, **labels: str) -> dict[str, Any]:
        return pod(number, self.namespaces, local=number < self.local, **labels)

    def line(self, verb: str, value: dict[str, Any]) -> bytes:
        """A line of a watch."""
        value["metadata"]["resourceVersion"] = str(next(self._revisions))
        return json.dumps({"type": verb, "object": value}).encode()

    def tell(self, kind: str, line: bytes) -> None:
        """What a reflector does with a line of its watch."""
        from kube_router_py.cluster import objects

        self._watches[getattr(objects, kind)](line)


class Node:
    """An agent's firewall. ``variant`` of iptables in a namespace of its own; ``""``: on fakes."""

    def __init__(self, cluster: Cluster, variant: str) -> None:
        from kube_router_py.firewall.controller import Firewall
        from kube_router_py.firewall.settings import FirewallOptions
        from kube_router_py.kernel.host import open_host

        def open_ports() -> Any:
            if variant:
                return open_host(iptables_variant=variant, needs_ipvs=False)
            return fake_ports()

        self.cluster = cluster
        self.dirty: set[Any] = set()
        self.firewall = Firewall(cluster.cache, FirewallOptions(), "node1", open_ports)
        self.firewall.subscribe(cluster.cache, SimpleNamespace(mark=self.dirty.update))  # type: ignore[arg-type]
        self.firewall.open()
        self.kernel_s = 0.0
        apply = self.firewall._applier.apply

        def timed(*arguments: Any, **options: Any) -> None:
            begun = time.perf_counter()
            apply(*arguments, **options)
            self.kernel_s = time.perf_counter() - begun

        self.firewall._applier.apply = timed  # type: ignore[method-assign]

    @property
    def writes(self) -> int:
        assert self.firewall.ports is not None
        return self.firewall.ports.writes

    def turn(self, *, full: bool = False) -> SimpleNamespace:
        keys = frozenset(self.dirty)
        self.dirty.clear()
        writes, begun = self.writes, time.perf_counter()
        outcome = self.firewall.reconcile(keys, full)
        wall = time.perf_counter() - begun
        assert not outcome.failed, outcome.problems
        return SimpleNamespace(
            wall=wall,
            kernel=self.kernel_s,
            compile=wall - self.kernel_s,
            writes=self.writes - writes,
        )

    def size(self) -> SimpleNamespace:
        desired = self.firewall._desired
        chains = desired.chains["inet"]
        specs = list(desired.sets.specs())
        return SimpleNamespace(
            chains=len(chains),
            rules=sum(map(len, chains.values())),
            sets=len(specs),
            entries=sum(len(desired.sets[spec]) for spec in specs),
        )


def fake_ports() -> Any:
    from kube_router_py.kernel import fake_host
    from kube_router_py.kernel.host import NoIpvs
    from kube_router_py.kernel.ports import HostPorts

    sets, rules = fake_host.FakeIpsets(), fake_host.FakeIptables()
    fake_host.connect(sets.kernel, rules.kernel)
    return HostPorts(NoIpvs(), fake_host.FakeLinks(), sets, rules, fake_host.FakeSysctls())


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


def changes(cluster: Cluster) -> dict[str, Iterable[tuple[str, bytes]]]:
    """Lines of watches, by what they change. Each list ends as it began."""
    # In the namespace of a local pod of app-5, which app-6 may ask; not local itself.
    one = next(
        number
        for number in range(5 + cluster.namespaces, cluster.pods, cluster.namespaces)
        if number >= cluster.local and cluster.pod(number)["metadata"]["labels"]["app"] == "app-8"
    )
    here, rule = 5, 5 * cluster.namespaces + 5
    remote, changed = cluster.pod(one), cluster.pod(one, app="app-6", tier="frontend")
    local = cluster.pod(here)

    def lines(kind: str, *given: tuple[str, dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
        for _ in range(ROUNDS):
            for verb, value in given:
                yield kind, cluster.line(verb, value)

    return {
        "pod elsewhere, labels": lines("Pod", ("MODIFIED", changed), ("MODIFIED", remote)),
        "pod elsewhere, gone and back": lines("Pod", ("DELETED", remote), ("ADDED", remote)),
        "port of a policy": lines(
            "NetworkPolicy",
            ("MODIFIED", policy(rule, cluster.namespaces, 9090)),
            ("MODIFIED", policy(rule, cluster.namespaces)),
        ),
        "pod here, gone and back": lines("Pod", ("DELETED", local), ("ADDED", local)),
    }


def on_kernel(variant: str, pods: int, policies: int, local: int, result: Any) -> None:
    enter_new_namespace()
    cluster = Cluster(pods, policies, local)
    before = rss_mib()
    node = Node(cluster, variant)
    cold = node.turn(full=True)
    rss = rss_mib()
    verify = min((node.turn(full=True) for _ in range(3)), key=lambda each: each.wall)
    node = Node(cluster, variant)
    restart = node.turn(full=True)
    assert not verify.writes, "a second look finds nothing to write"
    assert not restart.writes, "a restart writes nothing"
    rows = []
    for what, lines in changes(cluster).items():
        walls, writes = [], node.writes
        with programs() as run:
            for kind, line in lines:
                begun = time.perf_counter()
                cluster.tell(kind, line)
                found = node.turn()
                walls.append(time.perf_counter() - begun)
                assert found.writes, what
        walls.sort()
        rows.append(
            SimpleNamespace(
                what=what,
                p50=statistics.median(walls),
                p99=walls[len(walls) * 99 // 100],
                writes=(node.writes - writes) / len(walls),
                programs=run.total() / len(walls),
            )
        )
    assert not node.turn(full=True).writes, "after all changes the kernel has what is wanted"
    result.put(
        SimpleNamespace(
            cold=cold,
            verify=verify,
            restart=restart,
            rows=rows,
            size=node.size(),
            load=full_load(node, variant),
            rss=rss,
            gained=rss - before,
        )
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--local", type=int, default=110)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    options = parser.parse_args()
    cluster = (options.pods, options.policies, options.local)
    rows: list[tuple[str, float, float]] = []
    for variant in options.variants.split(","):
        rows += of_variant(variant, cluster)
    rows += of_size(cluster)
    print(f"{'':52}{'found':>9}{'at most':>9}")
    for what, value, target in rows:
        word = "kept" if value <= target else "MISSED"
        print(f"{what:52}{value:9.3f}{target:9.3f}  {word}")


Row = tuple[str, float, float]


def of_variant(variant: str, cluster: tuple[int, int, int]) -> list[Row]:
    pods, policies, local = cluster
    found = measure(on_kernel, variant, *cluster)
    size = found.size
    print(f"{variant}: {pods} pods, {policies} policies, {local} pods on the node: {size.chains}")
    print(f"chains, {size.rules} rules, {size.sets} sets, {size.entries} entries; milliseconds")
    for what in ("cold", "verify", "restart"):
        part = getattr(found, what)
        wall, compiled, kernel = (each * 1000 for each in (part.wall, part.compile, part.kernel))
        print(f"  {what:10}{wall:7.0f} (compiling {compiled:.0f}, kernel {kernel:.0f})", end="")
        print(f", {part.writes} writes")
    cold = found.cold.wall
    print(f"  {'iptables alone, all chains':32}{found.load * 1000:7.1f}")
    for row in found.rows:
        print(f"  {row.what:32}{row.p50 * 1000:7.1f} p50{row.p99 * 1000:7.1f} p99, ", end="")
        print(f"{row.writes:.1f} writes by {row.programs:.1f} programs; cold / p50 ", end="")
        print(f"{cold / row.p50:.0f}")
    alone = measure(iptables_alone, variant)
    print(f"  {CHAINS} chains of {RULES} rules: all {alone.load * 1000:.0f}, one", end="")
    print(f" {alone.one * 1000:.1f}, a look {alone.look * 1000:.0f}")
    wild = measure(storm, variant, *cluster)
    print(f"  {STORM} pods in {wild.took:.2f} s: {wild.turns} turns of at most", end="")
    print(f" {wild.most * 1000:.0f} ms, {dict(wild.run)};")
    print(f"  in the kernel {wild.behind * 1000:.0f} ms after the last event", flush=True)
    labels, gone, _, here = found.rows
    return [
        (f"{variant}: set-only change / rebuild", max(labels.p50, gone.p50) / cold, 1 / 20),
        (f"{variant}: pod on this node / rebuild", here.p50 / cold, 1 / 5),
        (f"{variant}: one of {CHAINS} chains / all", alone.one / alone.load, 1 / 3),
        (f"{variant}: writes, set-only change", max(labels.writes, gone.writes), 5),
        (f"{variant}: behind after a storm, s", wild.behind, 1),
        (f"{variant}: longest turn of a storm, s", wild.most, 1),
    ]


def of_size(cluster: tuple[int, int, int]) -> list[Row]:
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
