"""How often a jump that others move is put back."""

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.kernel.fake_host import FakeIptables
from kube_router_py.kernel.jump_watch import JumpWatch
from kube_router_py.kernel.ports import Jump, TableRules

MOVED = ("jump in FORWARD put back in its place: -j KUBE-ROUTER-FORWARD",)
OTHERS = (
    "chain KUBE-ROUTER-FORWARD rewritten",
    "jump in FORWARD restored: -j KUBE-ROUTER-FORWARD",
    "jump in FORWARD deleted",
)
RULES = TableRules(
    {"KUBE-ROUTER-FORWARD": ("-j RETURN",)},
    (Jump("FORWARD", '-m comment --comment "a jump" -j KUBE-ROUTER-FORWARD'),),
)


def test_three_times_in_ten_minutes_and_no_more() -> None:
    watch = JumpWatch()
    for now in (0.0, 100.0, 200.0):
        assert watch.leave("inet", "filter", now) == frozenset()
        assert watch.problems(now) == ()
        watch.note("inet", "filter", MOVED, now)
    assert watch.leave("inet", "filter", 200.0) == {"FORWARD"}
    assert watch.waits(200.0) == {("inet", "filter", "FORWARD"): 400.0}
    (problem,) = watch.problems(200.0)
    assert problem == watch.problems(599.0)[0]
    assert problem.object == "iptables filter/FORWARD"
    assert "3 times within 600 s" in problem.reason
    assert watch.leave("inet", "filter", 600.0) == frozenset()
    assert watch.problems(600.0) == ()
    watch.note("inet", "filter", MOVED, 600.0)
    assert watch.waits(600.0) == {("inet", "filter", "FORWARD"): 100.0}


def test_other_changes_do_not_count() -> None:
    watch = JumpWatch()
    for _ in range(9):
        watch.note("inet", "filter", OTHERS, 0.0)
    assert watch.waits(0.0) == {}


def test_parents_tables_and_families_are_counted_apart() -> None:
    watch = JumpWatch(allowed=2, window_s=10.0)
    watch.note("inet", "filter", MOVED, 0.0)
    watch.note("inet6", "filter", MOVED, 0.0)
    watch.note("inet", "nat", MOVED, 0.0)
    watch.note("inet", "filter", ("jump in INPUT put back in its place: -j X",), 0.0)
    assert watch.waits(0.0) == {}
    watch.note("inet6", "filter", MOVED, 1.0)
    assert watch.leave("inet", "filter", 1.0) == frozenset()
    assert watch.leave("inet6", "nat", 1.0) == frozenset()
    assert watch.leave("inet6", "filter", 1.0) == {"FORWARD"}
    assert watch.problems(1.0)[0].object == "ip6tables filter/FORWARD"


@given(st.lists(st.floats(0.0, 900.0), max_size=60))
def test_a_fight_is_bounded_and_ends_in_the_right_place(turns: list[float]) -> None:
    """Someone inserts before the jump again and again; the agent looks at any times."""
    watch, iptables = JumpWatch(), FakeIptables()
    iptables.ensure("inet", "filter", RULES)
    put_back: list[float] = []
    for now in sorted(turns):
        forward = iptables.kernel.chains("inet", "filter")["FORWARD"]
        forward.insert(0, "-s 192.0.2.1/32 -j ACCEPT")
        leave = watch.leave("inet", "filter", now)
        changes = iptables.ensure("inet", "filter", RULES, leave=leave)
        watch.note("inet", "filter", changes, now)
        if changes:
            put_back.append(now)
        standing = iptables.kernel.chains("inet", "filter")["FORWARD"]
        assert standing.count(RULES.jumps[0].rule) == 1
        assert leave or standing[0] == RULES.jumps[0].rule
    assert all(later - first >= 600.0 for first, later in zip(put_back, put_back[3:], strict=False))
    iptables.ensure("inet", "filter", RULES, leave=watch.leave("inet", "filter", 2000.0))
    assert iptables.kernel.chains("inet", "filter")["FORWARD"][0] == RULES.jumps[0].rule
