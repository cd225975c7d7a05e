"""The fakes of sets and rules refuse what the kernel refuses, and show every step."""

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_host import (
    FakeIpsetKernel,
    FakeIpsets,
    FakeIptables,
    FakeIptablesKernel,
    connect,
)
from kube_router_py.kernel.ports import IpsetSpec, SetChange, TableRules

A, B, C = (IpsetSpec(name, "hash:ip", "inet") for name in ("A", "B", "C"))


def test_an_address_that_moves_is_in_one_set_at_every_step() -> None:
    kernel = FakeIpsetKernel()
    ipsets = FakeIpsets(kernel)
    ipsets.put_all({A: ["10.0.0.1", "10.0.0.2"], B: [], C: []})
    states: list[tuple[frozenset[str], ...]] = []
    kernel.after_step = lambda: states.append(tuple(kernel.sets[each.name][1] for each in (A, B)))
    moving = frozenset({"10.0.0.1", "10.0.0.2"})
    changes = [SetChange(A, (), remove=moving), SetChange(B, moving, moving)]
    assert ipsets.change_all(changes) == []
    assert len(states) == 4
    assert all(moving <= a | b for a, b in states)
    assert states[-1] == (frozenset(), moving)


@pytest.mark.parametrize("count", [10, 3000])
def test_nothing_leaves_a_set_too_early_when_sets_are_swapped_or_fail(count: int) -> None:
    kernel = FakeIpsetKernel()
    ipsets = FakeIpsets(kernel)
    moving = frozenset(f"10.0.{n >> 8}.{n & 255}" for n in range(count))
    ipsets.put_all({A: moving, B: [], C: ["10.9.9.9"]})
    kernel.maxelem["B"] = 8  # unknown to the adapter: it is full before all have moved
    kernel.refused_entries.add("10.9.9.10")
    missing: list[frozenset[str]] = []

    def look() -> None:
        a, b = kernel.sets["A"][1], kernel.sets["B"][1]
        missing.append(moving - a - b)

    kernel.after_step = look
    more = frozenset({"10.9.9.10", "10.9.9.11"})
    failures = ipsets.change_all(
        [
            SetChange(A, (), remove=moving),
            SetChange(C, more, more, frozenset({"10.9.9.9"})),
            SetChange(B, moving, moving),
        ]
    )
    assert [failure.name for failure in failures] == ["C"]
    assert not any(missing)
    assert kernel.sets["A"][1] == frozenset()
    assert kernel.sets["B"][1] == moving
    assert kernel.sets["C"][1] == {"10.9.9.11"}
    assert kernel.maxelem["B"] > 8


def test_few_programs_are_run_for_many_sets() -> None:
    kernel = FakeIpsetKernel()
    ipsets = FakeIpsets(kernel)
    specs = [IpsetSpec(f"set-{number}", "hash:ip", "inet") for number in range(500)]
    ipsets.put_all({spec: ["10.0.0.1"] for spec in specs})
    assert kernel.runs == ["list -terse", "restore"]
    kernel.runs.clear()
    content = frozenset({"10.0.0.2"})
    gone = frozenset({"10.0.0.1"})
    assert ipsets.change_all([SetChange(spec, content, content, gone) for spec in specs]) == []
    assert kernel.runs == ["restore"]
    kernel.runs.clear()
    assert ipsets.put_all({spec: ["10.0.0.3"] for spec in specs}) == []
    assert kernel.runs == ["list -terse", "restore"]
    kernel.runs.clear()
    ipsets.read_all(lambda _: True)
    ipsets.destroy(spec.name for spec in specs)
    assert kernel.runs == ["save", "list -name", "restore"]
    assert kernel.sets == {}


def test_a_failure_costs_few_programs_more_and_many_are_not_tried_for_ever() -> None:
    kernel = FakeIpsetKernel()
    ipsets = FakeIpsets(kernel)
    specs = [IpsetSpec(f"set-{number}", "hash:ip", "inet") for number in range(500)]
    ipsets.put_all({spec: ["10.0.0.1"] for spec in specs})
    kernel.runs.clear()
    kernel.refused.add("set-250")
    content = frozenset({"10.0.0.2"})
    changes = [SetChange(spec, content, content) for spec in specs]
    assert [failure.name for failure in ipsets.change_all(changes)] == ["set-250"]
    assert len(kernel.runs) < 50
    kernel.refused |= {spec.name for spec in specs}
    kernel.runs.clear()
    failed = {failure.name for failure in ipsets.change_all(changes)}
    assert failed == {spec.name for spec in specs}
    assert len(kernel.runs) < 200


def test_a_set_that_fails_keeps_what_it_has_and_can_be_put_later() -> None:
    kernel = FakeIpsetKernel(refused={"A"})
    ipsets = FakeIpsets(kernel)
    assert [each.name for each in ipsets.put_all({A: ["10.0.0.1"], B: ["10.0.0.1"]})] == ["A"]
    assert kernel.sets.keys() == {"B"}
    kernel.refused.clear()
    assert ipsets.put_all({A: ["10.0.0.1"]}) == []
    kernel.refused.add("A")
    assert [each.name for each in ipsets.put_all({A: ["10.0.0.2"]})] == ["A"]
    assert kernel.sets.keys() == {"A", "B"}  # and no spare
    assert kernel.sets["A"][1] == {"10.0.0.1"}


def test_what_a_rule_matches_is_held_and_has_to_exist() -> None:
    sets, rules = FakeIpsetKernel(), FakeIptablesKernel()
    connect(sets, rules)
    ipsets, iptables = FakeIpsets(sets), FakeIptables(rules)
    chains = {"KUBE-X": ("-m set --match-set A src -j RETURN",)}
    with pytest.raises(KernelError, match="A doesn't exist"):
        iptables.change("inet", "filter", chains)
    ipsets.put_all({A: []})
    iptables.change("inet", "filter", chains)
    with pytest.raises(KernelError, match="in use"):
        ipsets.destroy(["A"])
    iptables.change("inet", "filter", {}, ["KUBE-X"])
    ipsets.destroy(["A"])
    assert sets.sets == {}


def test_a_chain_that_fails_fails_the_whole_commit() -> None:
    kernel = FakeIptablesKernel(refused={"KUBE-X"})
    steps: list[int] = []
    kernel.after_step = lambda: steps.append(len(kernel.commits))
    iptables = FakeIptables(kernel)
    with pytest.raises(KernelError, match="KUBE-X"):
        iptables.change("inet", "filter", {"KUBE-Y": (), "KUBE-X": ("-j RETURN",)})
    assert "KUBE-Y" not in kernel.chains("inet", "filter")
    assert steps == []
    kernel.refused.clear()
    iptables.ensure("inet", "filter", TableRules({"KUBE-Y": (), "KUBE-X": ("-j RETURN",)}))
    assert steps == [1]


def test_counters_can_be_given() -> None:
    kernel = FakeIptablesKernel()
    iptables = FakeIptables(kernel)
    iptables.change("inet", "filter", {"KUBE-X": ("-j RETURN", "-j DROP")})
    kernel.counted["inet", "filter", "KUBE-X"] = ((1, 2), (3, 4))
    assert iptables.counters("inet", "filter", ["KUBE-X"]) == {"KUBE-X": ((1, 2), (3, 4))}
