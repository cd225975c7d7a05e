"""Plans for iptables-restore, judged by what they make of any table."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.kernel.fake_host import FakeIptables, FakeIptablesKernel
from kube_router_py.kernel.iptables_plan import OWN_PREFIX, displaced, plan_ensure, plan_remove
from kube_router_py.kernel.ports import Jump, TableRules

OWN = tuple(f"{OWN_PREFIX}{letter}" for letter in "ABC")
FOREIGN = ("-s 192.0.2.1/32 -j ACCEPT", "-p udp -j DROP", "-j FOREIGN")
BODIES = ("-j RETURN", "-s 10.0.0.1/32 -j ACCEPT", "-j MARK --set-xmark 0x1/0x1")

parents = st.sampled_from(["INPUT", "FORWARD", "FOREIGN"])
standing_rules = st.lists(st.sampled_from([*FOREIGN, *(f"-j {name}" for name in OWN)]), max_size=8)


@st.composite
def wanted(draw: st.DrawFn) -> TableRules:
    chains = {
        name: tuple(draw(st.lists(st.sampled_from(BODIES), max_size=3)))
        for name in draw(st.lists(st.sampled_from(OWN), unique=True, min_size=1))
    }
    places = draw(st.lists(st.tuples(parents, st.sampled_from(list(chains))), unique=True))
    jumps = [
        Jump(parent, f"-j {name}", draw(st.sampled_from(["first", "last"])))
        for parent, name in places
    ]
    return TableRules(chains, tuple(jumps))


@st.composite
def kernels(draw: st.DrawFn) -> FakeIptablesKernel:
    """Any table in which own chains exist in any state, with jumps anywhere and foreign rules."""
    kernel = FakeIptablesKernel()
    chains = kernel.chains("inet", "filter")
    for name in OWN:
        chains[name] = draw(st.lists(st.sampled_from(BODIES), max_size=3))
    chains["FOREIGN"] = [rule for rule in draw(standing_rules) if rule != "-j FOREIGN"]
    for parent in ("INPUT", "FORWARD"):
        chains[parent] = draw(standing_rules)
    return kernel


def foreign(rules: list[str]) -> list[str]:
    return [rule for rule in rules if OWN_PREFIX not in rule]


@settings(max_examples=150)
@given(kernels(), wanted())
def test_a_plan_makes_any_table_as_wanted_and_spares_the_rest(
    kernel: FakeIptablesKernel, rules: TableRules
) -> None:
    before = {name: list(each) for name, each in kernel.chains("inet", "filter").items()}
    FakeIptables(kernel).ensure("inet", "filter", rules)
    after = kernel.chains("inet", "filter")
    for name in before:
        if name in rules.chains:
            assert after[name] == list(rules.chains[name])
        elif name in OWN:
            assert after[name] == before[name]
        else:
            assert foreign(after[name]) == foreign(before[name])
    targets = {f"-j {name}" for name in rules.chains}
    for parent in ("INPUT", "FORWARD", "FOREIGN"):
        jumps = [jump for jump in rules.jumps if jump.parent == parent]
        first = [jump.rule for jump in jumps if jump.position == "first"]
        last = [jump.rule for jump in jumps if jump.position == "last"]
        assert [rule for rule in after[parent] if rule in targets] == first + last
        places = [index for index, rule in enumerate(after[parent]) if OWN_PREFIX not in rule]
        if places:
            assert all(after[parent].index(rule) < places[0] for rule in first)
            assert all(after[parent].index(rule) > places[-1] for rule in last)
    assert not plan_ensure(after, rules).lines


@settings(max_examples=150)
@given(kernels(), wanted(), st.sets(st.sampled_from(OWN)))
def test_what_is_pruned_goes_with_every_jump_and_nothing_else_does(
    kernel: FakeIptablesKernel, rules: TableRules, doomed: set[str]
) -> None:
    plain = FakeIptablesKernel({key: {**chains} for key, chains in kernel.tables.items()})
    FakeIptables(kernel).ensure("inet", "filter", rules, doomed.__contains__)
    assert len(kernel.commits) <= 1
    FakeIptables(plain).ensure("inet", "filter", rules)
    FakeIptables(plain).remove("inet", "filter", doomed - rules.chains.keys())
    assert kernel == plain
    assert not plan_ensure(kernel.chains("inet", "filter"), rules, prune=doomed.__contains__).lines


@settings(max_examples=150)
@given(kernels(), wanted())
def test_a_jump_that_is_left_stands_once_at_least_and_no_foreign_rule_moves(
    kernel: FakeIptablesKernel, rules: TableRules
) -> None:
    leave = {"INPUT", "FORWARD", "FOREIGN"}
    before = {name: list(each) for name, each in kernel.chains("inet", "filter").items()}
    changes = FakeIptables(kernel).ensure("inet", "filter", rules, leave=leave)
    assert not displaced(changes)
    after = kernel.chains("inet", "filter")
    for parent in leave:
        wanted_here = {jump.rule for jump in rules.jumps if jump.parent == parent}
        targets = {f"-j {name}" for name in rules.chains}
        assert {rule for rule in after[parent] if rule in targets} == wanted_here
        assert foreign(after[parent]) == foreign(before[parent])
        if wanted_here <= set(before[parent]):
            kept = [rule for rule in before[parent] if rule not in targets - wanted_here]
            assert after[parent] == kept
    assert not plan_ensure(after, rules, leave=leave).lines


def test_jumps_between_chains_of_pods_and_policies_are_their_loops_business() -> None:
    standing = {
        "FORWARD": ("-j KUBE-NWPLCY-A",),
        "KUBE-POD-FW-A": ("-j KUBE-NWPLCY-A",),
        "KUBE-NWPLCY-A": (),
    }
    rules = TableRules({"KUBE-NWPLCY-A": ()})
    assert plan_ensure(standing, rules).lines == ("-D FORWARD -j KUBE-NWPLCY-A",)
    assert plan_ensure(standing, TableRules({}), prune="KUBE-NWPLCY-A".__eq__).lines == (
        ":KUBE-NWPLCY-A - [0:0]",
        "-D FORWARD -j KUBE-NWPLCY-A",
        "-D KUBE-POD-FW-A -j KUBE-NWPLCY-A",
        "-X KUBE-NWPLCY-A",
    )


def test_only_words_of_jumps_that_were_moved_tell_of_it() -> None:
    changes = (
        "chain KUBE-ROUTER-A rewritten",
        "jump in INPUT restored: -j KUBE-ROUTER-A",
        "jump in FORWARD put back in its place: -j KUBE-ROUTER-A",
        "jump in X deleted",
    )
    assert displaced(changes) == {"FORWARD"}


@settings(max_examples=50)
@given(kernels(), st.sets(st.sampled_from(OWN)))
def test_removing_leaves_no_jump(kernel: FakeIptablesKernel, names: set[str]) -> None:
    FakeIptables(kernel).remove("inet", "filter", names)
    after = kernel.chains("inet", "filter")
    assert not names & after.keys()
    assert not {f"-j {name}" for name in names} & {
        rule for rules in after.values() for rule in rules
    }
    assert not plan_remove(after, names).lines


def test_an_unchanged_jump_beside_a_changed_chain_is_not_touched() -> None:
    standing = {"INPUT": ("-j KUBE-ROUTER-A",), "KUBE-ROUTER-A": ("-j RETURN",)}
    rules = TableRules({"KUBE-ROUTER-A": ("-j ACCEPT",)}, (Jump("INPUT", "-j KUBE-ROUTER-A"),))
    assert plan_ensure(standing, rules).lines == (
        ":KUBE-ROUTER-A - [0:0]",
        "-A KUBE-ROUTER-A -j ACCEPT",
    )
