"""What a change costs, as counts: the same in a small cluster and in one a hundred times as large.

The clusters are those of the benchmarks; ten pods of namespace ns0 are on this node.
"""

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod
from kube_router_py.firewall.chains import DIRECTION_CHAINS, DISPATCH_CHAINS
from kube_router_py.firewall.controller import KINDS, Firewall
from kube_router_py.firewall.settings import FirewallOptions
from kube_router_py.kernel import fake_host
from kube_router_py.kernel.host import NoIpvs
from kube_router_py.kernel.ports import HostPorts
from kube_router_py.loop_model import Outcome

LOCAL = 10
SMALL, LARGE = (100, 10), (10_000, 1_000)
# Chances of hashing and of memory; the work of one more pod in a hundred would be twice as much.
SLACK = 1.3


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / f"{name}.py"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


bench = load("synthetic_cluster")


class World:
    """The firewall of node1 on fakes, in a cluster of this many pods and policies."""

    def __init__(self, pods: int, policies: int, local: int = LOCAL) -> None:
        self.spaces = max(1, policies // bench.POLICIES_PER_NAMESPACE)
        self.local = local
        self._revisions = count(1)
        self.cache = Cache(KINDS)
        self.sets, self.rules = fake_host.FakeIpsets(), fake_host.FakeIptables()
        fake_host.connect(self.sets.kernel, self.rules.kernel)
        self.ports = HostPorts(
            NoIpvs(), fake_host.FakeLinks(), self.sets, self.rules, fake_host.FakeSysctls()
        )
        self.dirty: set[Any] = set()
        options = FirewallOptions(families=("inet", "inet6"))
        self.firewall = Firewall(self.cache, options, "node1", lambda: self.ports)
        loop: Any = SimpleNamespace(mark=self.dirty.update)
        self.firewall.subscribe(self.cache, loop)
        self.put(Node, bench.NODE)
        for number in range(self.spaces):
            self.put(Namespace, bench.namespace(number))
        for number in range(pods):
            self.put(Pod, self.pod(number))
        for number in range(policies):
            self.put(NetworkPolicy, self.policy(number))
        self.firewall.open()
        self.turn(full=True)

    def put(self, kind: type, given: dict[str, Any]) -> None:
        given["metadata"]["resourceVersion"] = str(next(self._revisions))
        self.cache.put(kind, msgspec.convert(given, kind))

    def delete(self, kind: type, given: dict[str, Any]) -> None:
        meta = given["metadata"]
        self.cache.delete(kind, f"{meta['namespace']}/{meta['name']}")

    def pod(self, number: int, **labels: str) -> dict[str, Any]:
        is_local = number % self.spaces == 0 and number // self.spaces < self.local
        found: dict[str, Any] = bench.pod(number, self.spaces, local=is_local, **labels)
        return found

    def here(self, index: int, **labels: str) -> dict[str, Any]:
        """A pod of ns0, in which the first are on this node; of app ``index % 10``."""
        return self.pod(index * self.spaces, **labels)

    def policy(self, number: int, port: int = 8080) -> dict[str, Any]:
        found: dict[str, Any] = bench.policy(number, self.spaces, port)
        return found

    def turn(self, *, full: bool = False) -> Outcome:
        keys = frozenset(self.dirty)
        self.dirty.clear()
        outcome = self.firewall.reconcile(keys, full)
        assert not outcome.failed, outcome.problems
        return outcome

    def size(self) -> tuple[int, int, int]:
        """Chains and their rules, without the dispatch by address; sets."""
        dispatch = (*DISPATCH_CHAINS.values(), *DIRECTION_CHAINS.values())
        chains = [
            rules
            for table in self.rules.kernel.tables.values()
            for name, rules in table.items()
            if not name.startswith(dispatch)
        ]
        return len(chains), sum(map(len, chains)), len(self.sets.kernel.sets)


@pytest.fixture(scope="module")
def small() -> World:
    return World(*SMALL)


@pytest.fixture(scope="module")
def large() -> World:
    return World(*LARGE)


Change = Callable[[World], None]


def to_and_fro(kind: type, given: Callable[[World], Any], other: Callable[[World], Any]) -> Any:
    return (lambda w: w.put(kind, other(w))), (lambda w: w.put(kind, given(w)))


def away_and_back(kind: type, given: Callable[[World], Any]) -> Any:
    return (lambda w: w.delete(kind, given(w))), (lambda w: w.put(kind, given(w)))


def in_another_team(world: World) -> dict[str, Any]:
    found: dict[str, Any] = bench.namespace(0)
    found["metadata"]["labels"]["team"] = "none"
    return found


def audited(each: dict[str, Any]) -> dict[str, Any]:
    each["metadata"]["annotations"] = {"kube-router.io/audit": "true"}
    return each


CHANGES: dict[str, tuple[Change, Change]] = {
    "labels of a pod elsewhere": to_and_fro(
        Pod, lambda w: w.here(48), lambda w: w.here(48, app="app-6", tier="frontend")
    ),
    "a pod elsewhere": away_and_back(Pod, lambda w: w.here(48)),
    "labels of a pod here": to_and_fro(
        Pod, lambda w: w.here(5), lambda w: w.here(5, app="app-6", tier="frontend")
    ),
    "a pod here": away_and_back(Pod, lambda w: w.here(5)),
    "the port of a policy": to_and_fro(
        NetworkPolicy, lambda w: w.policy(5 * w.spaces), lambda w: w.policy(5 * w.spaces, 9090)
    ),
    "a policy": away_and_back(NetworkPolicy, lambda w: w.policy(5 * w.spaces)),
    "labels of a namespace": to_and_fro(Namespace, lambda w: bench.namespace(0), in_another_team),
    "the audit of a namespace": to_and_fro(
        Namespace, lambda w: bench.namespace(0), lambda w: audited(bench.namespace(0))
    ),
}
# Entries of sets, and chains of both families, that these write: there and back.
WRITTEN = {
    "labels of a pod elsewhere": [(6, 0), (6, 0)],
    "a pod elsewhere": [(4, 0), (4, 0)],
    "the port of a policy": [(0, 2), (0, 2)],
}


class Steps:
    """Counts the steps of the interpreter in a block of code, loops of all kinds included."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Steps":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        # What the fakes do stands for the kernel's work, not for ours.
        if "fake_" in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self._trace


class Cost(Struct):
    """Entries and chains written, programs run for them, and steps taken."""

    entries: int
    chains: int
    ipset_runs: int
    commits: int
    steps: int = 0


def cost(world: World, change: Change) -> Cost:
    runs, commits = len(world.sets.kernel.runs), len(world.rules.kernel.commits)
    entries, chains = world.sets.writes, world.rules.writes
    change(world)
    with Steps() as steps:
        world.turn()
    return Cost(
        world.sets.writes - entries,
        world.rules.writes - chains,
        len(world.sets.kernel.runs) - runs,
        len(world.rules.kernel.commits) - commits,
        steps.count,
    )


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_costs_the_same_in_a_large_cluster(small: World, large: World, what: str) -> None:
    # What is done for the first time may fill memories of texts.
    for change in CHANGES[what]:
        cost(small, change)
        cost(large, change)
    few = [cost(small, change) for change in CHANGES[what]]
    many = [cost(large, change) for change in CHANGES[what]]
    for one, other in zip(few, many, strict=True):
        assert one.entries or one.chains
        assert other.entries == one.entries
        # The pods' addresses differ: where they share the chains of dispatch, these stay.
        assert other.chains <= one.chains
        assert (other.ipset_runs, other.commits) == (one.ipset_runs, one.commits)
        assert other.steps <= SLACK * one.steps
    if what in WRITTEN:
        assert [(each.entries, each.chains) for each in many] == WRITTEN[what]


def test_what_nobody_here_asks_about_is_not_written(large: World) -> None:
    """Pods and policies of namespaces without pods here; pods that no policy here admits."""
    for kind, given, other in (
        (Pod, large.pod(77), large.pod(77, app="app-0")),
        (NetworkPolicy, large.policy(577), large.policy(577, 9090)),
    ):
        for value in (other, given):
            writes = large.ports.writes
            large.put(kind, value)
            large.turn()
            assert large.ports.writes == writes


def test_rules_and_sets_grow_with_the_pods_of_the_node_alone(small: World, large: World) -> None:
    assert large.size() == small.size()
    frame, twice = World(0, 0), World(*SMALL, local=2 * LOCAL)
    assert World(*LARGE, local=0).size() == frame.size()
    for none, some, more in zip(frame.size(), small.size(), twice.size(), strict=True):
        assert more - none <= 2 * (some - none)


def test_many_pods_that_change_together_take_no_more_steps(large: World) -> None:
    """As after a storm: in one turn, each program is run as often as the order of things needs."""

    def rollout(count: int) -> tuple[Change, Change]:
        def change(world: World) -> None:
            for index in range(count):
                world.put(Pod, world.here(50 + index % 50, app="app-6", rollout=f"{index}"))
                world.delete(Pod, world.here(index % LOCAL))

        def change_back(world: World) -> None:
            for index in range(count):
                world.put(Pod, world.here(50 + index % 50))
                world.put(Pod, world.here(index % LOCAL))

        return change, change_back

    little = [cost(large, change) for change in rollout(1)]
    much = [cost(large, change) for change in rollout(250)]
    assert much[0].entries > little[0].entries
    for each in (*little, *much):
        # Of each family one, or two where everything has to take effect at once.
        assert each.commits <= 4
        assert each.ipset_runs <= 9


def test_a_second_look_writes_nothing(large: World) -> None:
    before = (large.ports.writes, len(large.rules.kernel.commits))
    large.turn(full=True)
    large.firewall.open()  # a restart
    large.turn(full=True)
    assert (large.ports.writes, len(large.rules.kernel.commits)) == before
