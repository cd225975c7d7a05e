"""Plans for iptables-restore, judged by what they make of any table."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.kernel.fake_host import FakeIptables, FakeIptablesKernel
from kube_router_py.kernel.iptables_plan import OWN_PREFIX, plan_ensure, plan_remove
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
