"""Contract of ports.Ipsets, on the fake and through ipset(8) in a fresh network namespace."""

import subprocess
from collections.abc import Callable

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_host import FakeIpsetKernel, FakeIpsets
from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.ipset_plan import spare_name
from kube_router_py.kernel.ports import Ipsets, IpsetSpec, SetChange

pytestmark = pytest.mark.parametrize(
    "world", ["fake", pytest.param("real", marks=pytest.mark.netfilter)], indirect=True
)

LOCAL = IpsetSpec("kube-router-local-cidrs", "hash:net", "inet")
LOCAL6 = IpsetSpec("inet6:kube-router-local-cidrs", "hash:net", "inet6")


class Namespace:
    """One network namespace, fake or real: opens adapters and acts behind their back."""

    def __init__(self, world: str) -> None:
        self._kernel = FakeIpsetKernel() if world == "fake" else None

    def open(self) -> Ipsets:
        return IpsetProgram() if self._kernel is None else FakeIpsets(self._kernel)

    def refer_to(self, name: str) -> None:
        """Let a rule use the set."""
        if self._kernel is None:
            match = ["-m", "set", "--match-set", name, "src"]
            subprocess.run(["iptables", "-A", "INPUT", *match], check=True, timeout=30)
        else:
            self._kernel.in_use.add(name)

    def create(self, name: str, set_type: str = "hash:ip", maxelem: int = 65536) -> None:
        """Make a set as another program might have done."""
        if self._kernel is not None:
            self._kernel.sets[name] = (IpsetSpec(name, set_type, "inet"), frozenset())
            self._kernel.maxelem[name] = maxelem
            return
        options = ["family", "inet", "maxelem", str(maxelem)]
        subprocess.run(["ipset", "create", name, set_type, *options], check=True, timeout=30)

    def edit(self, name: str, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        if self._kernel is not None:
            spec, entries = self._kernel.sets[name]
            self._kernel.sets[name] = (spec, change(entries))
            return
        standing = self.open().read(name) or frozenset()
        after = change(standing)
        lines = [f"add {name} {entry}" for entry in after - standing]
        lines += [f"del {name} {entry.split()[0]}" for entry in standing - after]
        subprocess.run(
            ["ipset", "restore"], input="\n".join(lines) + "\n", text=True, check=True, timeout=30
        )


@pytest.fixture
def namespace(world: str) -> Namespace:
    return Namespace(world)


@pytest.fixture
def ipsets(namespace: Namespace) -> Ipsets:
    return namespace.open()


def test_a_missing_set_reads_as_none(ipsets: Ipsets) -> None:
    assert ipsets.read("no-such-set") is None


def test_a_set_is_created_and_read_back(ipsets: Ipsets) -> None:
    entries = frozenset({"10.244.0.0/24", "10.1.2.3"})
    assert ipsets.ensure(LOCAL, entries) == 3
    assert ipsets.read(LOCAL.name) == entries
    assert ipsets.writes == 3


def test_an_empty_set_exists(ipsets: Ipsets) -> None:
    assert ipsets.ensure(LOCAL, frozenset()) == 1
    assert ipsets.read(LOCAL.name) == frozenset()


def test_the_second_family_is_separate(ipsets: Ipsets) -> None:
    ipsets.ensure(LOCAL, frozenset({"10.244.0.0/24"}))
    ipsets.ensure(LOCAL6, frozenset({"fd00:10:244::/64", "fd00::1"}))
    assert ipsets.read(LOCAL.name) == {"10.244.0.0/24"}
    assert ipsets.read(LOCAL6.name) == {"fd00:10:244::/64", "fd00::1"}


def test_only_differences_are_changes(ipsets: Ipsets) -> None:
    ipsets.ensure(LOCAL, frozenset({"10.0.0.1", "10.0.0.2", "10.0.0.3"}))
    assert ipsets.ensure(LOCAL, frozenset({"10.0.0.2", "10.0.0.3", "10.0.0.4"})) == 2
    assert ipsets.read(LOCAL.name) == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}


def test_a_restart_with_the_same_entries_writes_nothing(namespace: Namespace) -> None:
    entries = frozenset({"10.244.0.0/24", "10.1.2.3"})
    namespace.open().ensure(LOCAL, entries)
    restarted = namespace.open()
    assert restarted.ensure(LOCAL, entries) == 0
    assert restarted.writes == 0


@pytest.mark.parametrize(
    ("spec", "given", "printed"),
    [
        (LOCAL, {"10.0.0.1/32", "10.1.1.7/24"}, {"10.0.0.1", "10.1.1.0/24"}),
        (LOCAL, {"0.0.0.0/0"}, {"0.0.0.0/1", "128.0.0.0/1"}),
        (LOCAL6, {"FD00:0:0:0::1/128", "fd00:0:0:1:0:0:0:9/64"}, {"fd00::1", "fd00:0:0:1::/64"}),
        (LOCAL6, {"::/0", "::ffff:1.2.3.4"}, {"::/1", "8000::/1", "::ffff:1.2.3.4"}),
        (
            IpsetSpec("ports", "hash:ip,port", "inet"),
            {"10.0.0.1,80", "10.0.0.1,SCTP:80", "10.0.0.1,17:53"},
            {"10.0.0.1,tcp:80", "10.0.0.1,sctp:80", "10.0.0.1,udp:53"},
        ),
    ],
)
def test_spellings_of_an_entry_are_one(
    ipsets: Ipsets, spec: IpsetSpec, given: set[str], printed: set[str]
) -> None:
    ipsets.ensure(spec, frozenset(given))
    assert ipsets.read(spec.name) == printed
    assert ipsets.ensure(spec, frozenset(given)) == 0


def test_drift_is_repaired(namespace: Namespace, ipsets: Ipsets) -> None:
    entries = frozenset({"10.0.0.1", "10.0.0.2"})
    ipsets.ensure(LOCAL, entries)
    namespace.edit(LOCAL.name, lambda standing: (standing - {"10.0.0.1"}) | {"10.9.9.9"})
    assert ipsets.ensure(LOCAL, entries) == 2
    assert ipsets.read(LOCAL.name) == entries


@pytest.mark.parametrize("how", ["ensure", "change_all", "put_all"])
def test_what_others_have_made_match_or_not_is_repaired(
    how: str, namespace: Namespace, ipsets: Ipsets
) -> None:
    """``del`` takes no flags, and an element is in a set once, with the flag or without."""
    entries = frozenset(
        {"10.1.0.0/16", "10.2.0.0/16", "10.1.1.0/24 nomatch", "10.2.2.0/24 nomatch"}
    )
    ipsets.ensure(LOCAL, entries)
    namespace.edit(LOCAL.name, lambda standing: standing - {"10.1.0.0/16", "10.1.1.0/24 nomatch"})
    strange = {"10.1.0.0/16 nomatch", "10.1.1.0/24", "10.3.0.0/16 nomatch"}
    namespace.edit(LOCAL.name, lambda standing: standing | strange)
    standing = ipsets.read(LOCAL.name) or frozenset()
    assert strange < standing
    if how == "ensure":
        ipsets.ensure(LOCAL, entries)
    elif how == "put_all":
        assert not ipsets.put_all({LOCAL: entries})
    else:
        change = SetChange(LOCAL, entries, entries - standing, standing - entries)
        assert not ipsets.change_all([change])
    assert ipsets.read(LOCAL.name) == entries


def test_a_large_change_arrives_while_a_rule_refers_to_the_set(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    old = frozenset(f"10.0.{n // 256}.{n % 256}" for n in range(1500))
    new = frozenset(f"10.1.{n // 256}.{n % 256}" for n in range(1500))
    ipsets.ensure(LOCAL, old)
    namespace.refer_to(LOCAL.name)
    assert ipsets.ensure(LOCAL, new) == 3000
    assert ipsets.read(LOCAL.name) == new
    assert ipsets.ensure(LOCAL, new) == 0


def test_a_set_grows_beyond_the_kernels_default_limit(namespace: Namespace, ipsets: Ipsets) -> None:
    few = frozenset({"10.0.0.1"})
    many = frozenset(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(66000))
    ipsets.ensure(LOCAL, few)
    namespace.refer_to(LOCAL.name)
    ipsets.ensure(LOCAL, many)
    assert ipsets.read(LOCAL.name) == many


def test_a_change_adds_and_removes_without_a_look(namespace: Namespace, ipsets: Ipsets) -> None:
    ports = IpsetSpec("ports", "hash:ip,port", "inet")
    ipsets.ensure(ports, frozenset({"10.0.0.1,tcp:80", "10.0.0.2,tcp:80"}))
    namespace.refer_to("ports")
    add, remove = frozenset({"10.0.0.3,6:80", "10.0.0.1,tcp:80"}), frozenset({"10.0.0.2,80"})
    before = ipsets.writes
    assert ipsets.change(ports, add, remove) == 3
    assert ipsets.writes == before + 3
    assert ipsets.read("ports") == {"10.0.0.1,tcp:80", "10.0.0.3,tcp:80"}
    # What is there, or gone, already is no error; what is in both stays.
    assert ipsets.change(ports, add, remove | {"10.0.0.3,tcp:80"}) == 3
    assert ipsets.read("ports") == {"10.0.0.1,tcp:80", "10.0.0.3,tcp:80"}


def test_a_change_of_nothing_does_nothing(ipsets: Ipsets) -> None:
    assert ipsets.change(LOCAL, frozenset(), frozenset()) == 0
    assert ipsets.writes == 0


def test_a_set_that_is_not_there_cannot_be_changed(ipsets: Ipsets) -> None:
    with pytest.raises(KernelError, match=LOCAL.name):
        ipsets.change(LOCAL, frozenset({"10.0.0.1"}), frozenset())
    assert ipsets.read(LOCAL.name) is None


def test_another_type_is_replaced(ipsets: Ipsets) -> None:
    ipsets.ensure(IpsetSpec("set", "hash:ip", "inet"), frozenset({"10.0.0.1"}))
    assert ipsets.ensure(IpsetSpec("set", "hash:net", "inet6"), frozenset({"fd00::/8"})) == 2
    assert ipsets.read("set") == {"fd00::/8"}


def test_another_type_in_use_is_refused_and_left(namespace: Namespace, ipsets: Ipsets) -> None:
    ipsets.ensure(IpsetSpec("set", "hash:ip", "inet"), frozenset({"10.0.0.1"}))
    namespace.refer_to("set")
    with pytest.raises(KernelError, match="in use"):
        ipsets.ensure(IpsetSpec("set", "hash:net", "inet"), frozenset({"10.0.0.0/8"}))
    assert ipsets.read("set") == {"10.0.0.1"}


def test_a_name_too_long_is_refused(ipsets: Ipsets) -> None:
    with pytest.raises(KernelError, match="31 bytes"):
        ipsets.ensure(IpsetSpec("x" * 32, "hash:ip", "inet"), frozenset())
    assert ipsets.writes == 0


def test_destroy_takes_what_is_there(ipsets: Ipsets) -> None:
    ipsets.ensure(LOCAL, frozenset({"10.0.0.1"}))
    ipsets.ensure(LOCAL6, frozenset())
    before = ipsets.writes
    ipsets.destroy([LOCAL.name, "no-such-set"])
    assert ipsets.read(LOCAL.name) is None
    assert ipsets.read(LOCAL6.name) == frozenset()
    assert ipsets.writes == before + 1
    ipsets.destroy([LOCAL.name])
    assert ipsets.writes == before + 1


def test_destroy_goes_on_behind_a_set_in_use(namespace: Namespace, ipsets: Ipsets) -> None:
    ipsets.ensure(LOCAL, frozenset({"10.0.0.1"}))
    ipsets.ensure(LOCAL6, frozenset())
    namespace.refer_to(LOCAL.name)
    with pytest.raises(KernelError, match=LOCAL.name):
        ipsets.destroy([LOCAL.name, LOCAL6.name])
    assert ipsets.read(LOCAL.name) == {"10.0.0.1"}
    assert ipsets.read(LOCAL6.name) is None


def spec(name: str, set_type: str = "hash:ip", family: str = "inet") -> IpsetSpec:
    return IpsetSpec(name, set_type, family)


def contents(ipsets: Ipsets) -> dict[str, frozenset[str]]:
    return {name: state.entries for name, state in ipsets.read_all(lambda _: True).items()}


def addresses(count: int, network: int = 1) -> frozenset[str]:
    return frozenset(f"10.{network + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(count))


def test_many_sets_are_put_and_read_at_once(ipsets: Ipsets) -> None:
    ports = spec("KUBE-DST-B", "hash:ip,port")
    sets = {
        spec("KUBE-SRC-A"): ["10.0.0.1", "10.0.0.2/32"],
        ports: ["10.0.0.1,6:80"],
        LOCAL: frozenset({"0.0.0.0/0"}),
        LOCAL6: (),
    }
    assert ipsets.put_all(sets) == []
    assert contents(ipsets) == {
        "KUBE-SRC-A": {"10.0.0.1", "10.0.0.2"},
        "KUBE-DST-B": {"10.0.0.1,tcp:80"},
        LOCAL.name: {"0.0.0.0/1", "128.0.0.0/1"},
        LOCAL6.name: frozenset(),
    }
    own = ipsets.read_all(lambda name: name.startswith("KUBE-"))
    assert own.keys() == {"KUBE-SRC-A", "KUBE-DST-B"}
    assert own["KUBE-DST-B"].spec == ports
    assert own["KUBE-DST-B"].maxelem == 65536
    assert ipsets.put_all({}) == []


def test_putting_replaces_what_is_there_though_a_rule_refers_to_it(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    ipsets.put_all({spec("a"): ["10.0.0.1", "10.0.0.2"], spec("b"): ["10.0.0.3"]})
    namespace.refer_to("a")
    assert namespace.open().put_all({spec("a"): ["10.0.0.2", "10.0.0.9"]}) == []
    assert contents(ipsets) == {"a": {"10.0.0.2", "10.0.0.9"}, "b": {"10.0.0.3"}}


def test_one_set_that_cannot_be_put_does_not_stop_the_others(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    for name in ("held", "free"):
        namespace.create(name, "hash:net")
    namespace.refer_to("held")
    sets = {
        spec("a"): ["10.0.0.1"],
        spec("held"): ["10.0.0.2"],
        spec("free"): ["10.0.0.3"],
        spec("x" * 32): ["10.0.0.4"],
        spec("typo"): ["10.0.0.5", "10.0.0.999", "10.0.0.6"],
        spec("z"): ["10.0.0.7"],
    }
    failures = {each.name: each.message for each in ipsets.put_all(sets)}
    assert failures.keys() == {"held", "x" * 32, "typo"}
    assert "hash:net" in failures["held"]
    assert "in use" in failures["held"]
    assert "10.0.0.999" in failures["typo"]
    assert contents(ipsets) == {
        "a": {"10.0.0.1"},
        "held": frozenset(),
        "free": {"10.0.0.3"},
        "typo": {"10.0.0.5", "10.0.0.6"},
        "z": {"10.0.0.7"},
    }


def test_a_refused_entry_does_not_keep_the_rest_from_being_swapped_in(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    ipsets.put_all({spec("a"): ["10.0.0.1"], spec("b"): ["10.0.0.1"]})
    namespace.refer_to("a")
    (failure,) = ipsets.put_all({spec("a"): ["10.0.0.2", "::1"], spec("b"): ["10.0.0.2"]})
    assert failure.name == "a"
    assert contents(ipsets) == {"a": {"10.0.0.2"}, "b": {"10.0.0.2"}}


def test_changes_of_many_sets(namespace: Namespace, ipsets: Ipsets) -> None:
    names = [f"set-{number}" for number in range(100)]
    ipsets.put_all({spec(name): ["10.0.0.1", "10.0.0.2"] for name in names})
    namespace.refer_to("set-7")
    content = frozenset({"10.0.0.2", "10.0.0.3"})
    changes = [
        SetChange(spec(name), content, frozenset({"10.0.0.3/32"}), frozenset({"10.0.0.1"}))
        for name in names
    ]
    before = ipsets.writes
    assert ipsets.change_all(changes) == []
    assert ipsets.writes == before + 200
    assert contents(ipsets) == dict.fromkeys(names, content)
    # What is there, or gone, already is no error; nor is nothing at all.
    assert ipsets.change_all(changes) == []
    assert ipsets.change_all([SetChange(spec("set-0"), content)]) == []
    assert ipsets.change_all([]) == []
    assert contents(ipsets) == dict.fromkeys(names, content)


def test_a_change_makes_a_missing_set_anew(ipsets: Ipsets) -> None:
    ipsets.put_all({spec(name): ["10.0.0.1"] for name in ("a", "b")})
    ipsets.destroy(["a"])
    add, remove = frozenset({"10.0.0.3"}), frozenset({"10.0.0.1"})
    content = {"10.0.0.2", "10.0.0.3"}
    changes = [SetChange(spec(name), content, add, remove) for name in ("a", "b", "c")]
    assert ipsets.change_all(changes) == []
    assert contents(ipsets) == {"a": content, "b": {"10.0.0.3"}, "c": content}


def test_a_change_that_fails_for_one_set_is_done_to_the_others(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    ipsets.put_all({spec(name): ["10.0.0.1"] for name in ("a", "typo", "z")})
    namespace.create("held", "hash:ip,port")
    namespace.refer_to("held")
    add, remove = frozenset({"10.0.0.2"}), frozenset({"10.0.0.1"})
    changes = [
        SetChange(spec("a"), add, add, remove),
        SetChange(spec("held"), add, add, remove),
        SetChange(spec("typo"), add, add | {"fd00::1", "10.0.0.300"}, remove),
        SetChange(spec("z"), add, add, remove),
    ]
    failures = {each.name: each.message for each in ipsets.change_all(changes)}
    assert failures.keys() == {"held", "typo"}
    assert "fd00::1" in failures["typo"]
    assert "10.0.0.300" in failures["typo"]
    assert contents(ipsets) == {"a": add, "typo": add, "z": add, "held": frozenset()}


def test_a_set_grows_before_it_is_full(namespace: Namespace, ipsets: Ipsets) -> None:
    namespace.create("small", maxelem=64)
    namespace.refer_to("small")
    ipsets.read_all(lambda _: True)
    old = addresses(57)
    assert ipsets.change_all([SetChange(spec("small"), old, old)]) == []
    assert ipsets.read_all(lambda _: True)["small"].maxelem == 64
    # One more is within a tenth of the limit; the one that goes is gone when all is done.
    new = old - {"10.1.0.0"} | {"10.9.9.9", "10.9.9.8"}
    change = SetChange(
        spec("small"), new, frozenset({"10.9.9.9", "10.9.9.8"}), frozenset({"10.1.0.0"})
    )
    assert ipsets.change_all([change]) == []
    state = ipsets.read_all(lambda _: True)["small"]
    assert state.entries == new
    assert state.maxelem >= 2 * len(new)


def test_a_set_of_unknown_size_that_is_full_grows(namespace: Namespace, ipsets: Ipsets) -> None:
    namespace.create("small", maxelem=4)
    namespace.refer_to("small")
    ipsets.put_all({spec("other"): ["10.0.0.1"]})
    many, one = addresses(40), frozenset({"10.9.9.9"})
    changes = [SetChange(spec("small"), many, many), SetChange(spec("other"), one, one)]
    assert ipsets.change_all(changes) == []
    assert contents(ipsets) == {"small": many, "other": {"10.0.0.1", "10.9.9.9"}}
    assert ipsets.read_all(lambda _: True)["small"].maxelem >= 80


def test_a_refused_entry_does_not_keep_a_full_set_from_growing(
    namespace: Namespace, ipsets: Ipsets
) -> None:
    namespace.create("small", maxelem=4)
    namespace.refer_to("small")
    many = addresses(40)
    change = SetChange(spec("small"), many | {"fd00::1"}, many | {"fd00::1"})
    (failure,) = ipsets.change_all([change])
    assert "fd00::1" in failure.message
    assert contents(ipsets) == {"small": many}


def test_a_large_change_of_many_is_swapped_in(namespace: Namespace, ipsets: Ipsets) -> None:
    old, new = addresses(1500), addresses(1500, 2)
    ipsets.put_all({spec("a"): old, spec("b"): old})
    for name in ("a", "b"):
        namespace.refer_to(name)
    changes = [
        SetChange(spec("a"), new, new, old),
        SetChange(spec("b"), {"10.1.0.0"}, frozenset(), old - {"10.1.0.0"}),
    ]
    assert ipsets.change_all(changes) == []
    assert contents(ipsets) == {"a": new, "b": {"10.1.0.0"}}


def test_a_spare_left_by_a_crash_is_in_nobodys_way(namespace: Namespace, ipsets: Ipsets) -> None:
    ipsets.put_all({spec("a"): ["10.0.0.1"], spec("b"): ["10.0.0.1"]})
    for name in ("a", "b"):
        namespace.create(spare_name(name), "hash:net", maxelem=8)
    assert contents(ipsets).keys() == {"a", "b"}
    assert ipsets.put_all({spec("a"): ["10.0.0.2"]}) == []
    new = addresses(1500)
    assert ipsets.change_all([SetChange(spec("b"), new, new, frozenset({"10.0.0.1"}))]) == []
    assert contents(ipsets) == {"a": {"10.0.0.2"}, "b": new}
    namespace.create(spare_name("a"))
    ipsets.destroy(["a", "b"])
    namespace.create(spare_name("a"))  # or else it would exist


def test_many_sets_are_destroyed_but_for_those_in_use(namespace: Namespace, ipsets: Ipsets) -> None:
    names = [f"set-{number}" for number in range(300)]
    ipsets.put_all({spec(name): ["10.0.0.1"] for name in names})
    held = {"set-3", "set-150"}
    for name in held:
        namespace.refer_to(name)
    with pytest.raises(KernelError) as caught:
        ipsets.destroy([*names, "no-such-set"])
    assert all(name in str(caught.value) for name in held)
    assert contents(ipsets).keys() == held
