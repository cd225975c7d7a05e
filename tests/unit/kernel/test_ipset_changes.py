"""Changes of many sets at once, judged by every state that packets could meet on the way."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kube_router_py.kernel import ipset_plan
from kube_router_py.kernel.fake_host import FakeIpsetKernel, FakeIpsets
from kube_router_py.kernel.ports import IpsetSpec, SetChange

ENTRIES = tuple(f"10.0.0.{number}" for number in range(12))
NAMES = ("A", "B", "C")

contents = st.frozensets(st.sampled_from(ENTRIES))


def spec(name: str) -> IpsetSpec:
    return IpsetSpec(name, "hash:ip", "inet")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[FakeIpsetKernel, list[SetChange]]:
    """Sets of any content and size, known to the adapter or not, and changes of some of them."""
    kernel = FakeIpsetKernel()
    changes: list[SetChange] = []
    for name in NAMES:
        old, content = draw(contents), draw(contents)
        if draw(st.booleans()):
            kernel.sets[name] = (spec(name), old)
            kernel.maxelem[name] = max(len(old), draw(st.sampled_from([1, 4, 16, 64])))
        if draw(st.booleans()):
            kernel.sets[ipset_plan.spare_name(name)] = (spec(name), draw(contents))
        if draw(st.booleans()):
            kernel.in_use.add(name)
        changes.append(SetChange(spec(name), content, content - old, old - content))
    return kernel, changes


@settings(max_examples=300)
@given(worlds(), st.booleans(), st.integers(0, 8))
def test_every_state_on_the_way_is_between_the_old_and_the_new(
    world: tuple[FakeIpsetKernel, list[SetChange]], is_known: bool, swaps_from: int
) -> None:
    kernel, changes = world
    ipsets = FakeIpsets(kernel)
    if is_known:
        ipsets.read_all(lambda _: True)
    before = {name: kernel.sets[name][1] for name in NAMES if name in kernel.sets}
    wanted = {change.spec.name: frozenset(change.content) for change in changes}
    added = {change.spec.name: change.add for change in changes}

    def look() -> None:
        standing = {name: kernel.sets[name][1] for name in NAMES if name in kernel.sets}
        for name, old in before.items():
            assert old & wanted[name] <= standing[name] <= old | wanted[name]
        if any(old - standing[name] for name, old in before.items()):
            # Something is gone already: whatever was to come has come.
            assert all(added[name] <= standing[name] for name in before)

    kernel.after_step = look
    threshold = ipset_plan._SWAP_CHANGES_MIN
    try:
        ipset_plan._SWAP_CHANGES_MIN = swaps_from  # so that few changes are a large one
        assert ipsets.change_all(changes) == []
    finally:
        ipset_plan._SWAP_CHANGES_MIN = threshold
    for name in NAMES:
        if name in before or added[name]:
            assert kernel.sets[name][1] == wanted[name]
    look()


@given(worlds(), st.sets(st.sampled_from(ENTRIES)), st.sets(st.sampled_from(NAMES)))
def test_what_is_refused_spoils_nothing_else(
    world: tuple[FakeIpsetKernel, list[SetChange]], entries: set[str], names: set[str]
) -> None:
    kernel, changes = world
    ipsets = FakeIpsets(kernel)
    before = {name: kernel.sets[name][1] for name in NAMES if name in kernel.sets}
    kernel.refused_entries |= entries
    kernel.refused |= names
    failed = {failure.name for failure in ipsets.change_all(changes)}
    for change in changes:
        name, content = change.spec.name, frozenset(change.content)
        held = kernel.sets[name][1] if name in kernel.sets else None
        if name in names:
            assert held in (before.get(name), None) or held == frozenset()
            assert name in failed or not (change.add or change.remove)
            continue
        if name not in before:
            continue
        missing = content - (held or frozenset())
        assert missing <= entries
        assert bool(missing) <= (name in failed)
        assert (held or frozenset()) <= content
    # The next time, when nothing is refused any more, the rest is done.
    kernel.refused_entries.clear()
    kernel.refused.clear()
    assert ipsets.put_all({change.spec: change.content for change in changes}) == []
    assert {n: kernel.sets[n][1] for n in NAMES} == {c.spec.name: c.content for c in changes}
    assert kernel.sets.keys() <= {*NAMES, *map(ipset_plan.spare_name, NAMES)}


def test_whoever_looks_on_is_told_how_long_restores_took_by_family() -> None:
    seen: list[tuple[str, float]] = []
    sets = FakeIpsets()
    sets.observe = lambda what, seconds: seen.append((what, seconds))
    four = IpsetSpec("four", "hash:ip", "inet")
    six = IpsetSpec("inet6:six", "hash:ip", "inet6")
    assert sets.put_all({four: {"192.0.2.1"}}) == []
    assert [what for what, _ in seen] == ["ipset_v4_restore"]
    assert sets.put_all({six: {"2001:db8::1"}}) == []
    assert [what for what, _ in seen[1:]] == ["ipset_v6_restore"]
    changes = [
        SetChange(four, {"192.0.2.2"}, frozenset({"192.0.2.2"}), frozenset({"192.0.2.1"})),
        SetChange(six, {"2001:db8::2"}, frozenset({"2001:db8::2"})),
    ]
    assert sets.change_all(changes) == []
    assert {what for what, _ in seen[2:]} == {"ipset_v4_restore", "ipset_v6_restore"}
    assert all(seconds >= 0 for _, seconds in seen)


def test_sets_for_which_there_is_no_room_are_refused_at_once_and_stop_no_other() -> None:
    kernel = FakeIpsetKernel(most=61)
    old = IpsetSpec("old", "hash:ip", "inet")
    kernel.sets["old"] = (old, frozenset())
    wanted = {spec(f"S{number:03}"): frozenset(ENTRIES[:3]) for number in range(200)}
    kernel.runs.clear()
    failures = FakeIpsets(kernel).put_all(wanted)
    assert [each.name for each in failures] == [f"S{number:03}" for number in range(60, 200)]
    assert all("maximal number of sets" in each.message for each in failures)
    made = {name: entries for name, (_, entries) in kernel.sets.items() if name != "old"}
    assert made == {f"S{number:03}": frozenset(ENTRIES[:3]) for number in range(60)}
    assert kernel.runs.count("restore") <= 3
    # A set that stands still grows.
    changes = [SetChange(each, {*ENTRIES}, frozenset(ENTRIES[3:])) for each in list(wanted)[:60]]
    assert FakeIpsets(kernel).change_all(changes) == []
    assert kernel.sets["S000"][1] == frozenset(ENTRIES)
