"""Contract of ports.Iptables, on the fake and on both variants in a fresh network namespace."""

import subprocess

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel.fake_host import FakeIptables, FakeIptablesKernel
from kube_router_py.kernel.iptables import IptablesProgram, program_name
from kube_router_py.kernel.iptables_plan import displaced
from kube_router_py.kernel.ports import Iptables, Jump, TableRules
from kube_router_py.kernel.rule_text import parse_table

pytestmark = pytest.mark.parametrize(
    ("world", "variant"),
    [
        ("fake", "fake"),
        pytest.param("real", "iptables-nft", marks=pytest.mark.netfilter),
        pytest.param("real", "iptables-legacy", marks=pytest.mark.netfilter),
    ],
    indirect=["world"],
)

MASQ = "KUBE-ROUTER-MASQ"
JUMP = Jump("POSTROUTING", f"-m comment --comment kube-router -j {MASQ}")
RULES = TableRules(
    {
        MASQ: (
            "-s 10.244.1.0/24 ! -d 10.244.0.0/16 -j RETURN",
            '-m comment --comment "pod \\"to\\" outside" -j MASQUERADE --random-fully',
        )
    },
    (JUMP,),
)
FOREIGN = "-s 192.0.2.1/32 -j ACCEPT"


class Namespace:
    """One network namespace, fake or real: opens adapters, and edits rules behind their back."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self._kernel = FakeIptablesKernel() if variant == "fake" else None

    def open(self) -> Iptables:
        return IptablesProgram(self.variant) if self._kernel is None else FakeIptables(self._kernel)

    def restore(self, *lines: str, family: str = "inet", table: str = "nat") -> None:
        if self._kernel is not None:
            self._kernel.restore(family, table, lines)
            return
        command = [f"{program_name(self.variant, family)}-restore", "--noflush", "-w", "5"]
        text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
        subprocess.run(command, input=text, text=True, check=True, timeout=30)

    def chains(self, family: str = "inet", table: str = "nat") -> dict[str, list[str]]:
        if self._kernel is not None:
            return self._kernel.chains(family, table)
        saved = parse_table(self.save(family, table), table)
        return {name: list(rules) for name, rules in saved.items()}

    def save(self, family: str, table: str, *options: str) -> str:
        command = [f"{program_name(self.variant, family)}-save", "-t", table, *options]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout


@pytest.fixture
def namespace(world: str, variant: str) -> Namespace:
    return Namespace(variant)


@pytest.fixture
def iptables(namespace: Namespace) -> Iptables:
    return namespace.open()


def test_chains_and_jumps_are_made(namespace: Namespace, iptables: Iptables) -> None:
    changes = iptables.ensure("inet", "nat", RULES)
    assert len(changes) == 2 == iptables.writes
    assert any(MASQ in change for change in changes)
    chains = namespace.chains()
    assert chains[MASQ] == list(RULES.chains[MASQ])
    assert chains["POSTROUTING"] == [JUMP.rule]


def test_the_families_are_separate(namespace: Namespace, iptables: Iptables) -> None:
    rules = TableRules({MASQ: ("-s fd00:10:244::/56 -j MASQUERADE",)}, (JUMP,))
    iptables.ensure("inet6", "nat", rules)
    assert namespace.chains("inet6")[MASQ] == list(rules.chains[MASQ])
    assert MASQ not in namespace.chains("inet")
    assert iptables.ensure("inet6", "nat", rules) == ()


def test_the_second_time_writes_nothing_after_a_restart_neither(
    namespace: Namespace, iptables: Iptables
) -> None:
    iptables.ensure("inet", "nat", RULES)
    before = iptables.writes
    assert iptables.ensure("inet", "nat", RULES) == ()
    assert iptables.writes == before
    restarted = namespace.open()
    assert restarted.ensure("inet", "nat", RULES) == ()
    assert restarted.writes == 0


def test_only_the_chain_that_differs_is_rewritten(namespace: Namespace, iptables: Iptables) -> None:
    other = "KUBE-ROUTER-OTHER"
    chains = {**RULES.chains, other: ("-j RETURN",)}
    iptables.ensure("inet", "nat", TableRules(chains, (JUMP,)))
    chains[other] = ("-s 10.0.0.1/32 -j RETURN", "-j RETURN")
    (change,) = iptables.ensure("inet", "nat", TableRules(chains, (JUMP,)))
    assert other in change
    assert namespace.chains()[other] == list(chains[other])


def test_an_empty_chain_stands(namespace: Namespace, iptables: Iptables) -> None:
    rules = TableRules({MASQ: ()}, (JUMP,))
    iptables.ensure("inet", "nat", rules)
    assert namespace.chains()[MASQ] == []
    assert iptables.ensure("inet", "nat", rules) == ()


@pytest.mark.parametrize(
    "drift",
    [
        (f"-A {MASQ} -j RETURN",),
        (f"-D {MASQ} -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j RETURN",),
        (
            f"-D {MASQ} -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j RETURN",
            f"-A {MASQ} -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j RETURN",
        ),
        (f"-D POSTROUTING {JUMP.rule}", f":{MASQ} - [0:0]", f"-X {MASQ}"),
        (f"-A POSTROUTING {JUMP.rule}",),
        (f"-A POSTROUTING -s 10.0.0.1/32 -j {MASQ}",),
        (":FOREIGN - [0:0]", f"-A FOREIGN -j {MASQ}"),
        (f"-I POSTROUTING 1 {FOREIGN}",),
        (f"-D POSTROUTING {JUMP.rule}", f"-A POSTROUTING {JUMP.rule}", f"-A POSTROUTING {FOREIGN}"),
    ],
)
def test_drift_is_repaired(
    namespace: Namespace, iptables: Iptables, drift: tuple[str, ...]
) -> None:
    iptables.ensure("inet", "nat", RULES)
    namespace.restore(*drift)
    foreign = [rule for rule in namespace.chains()["POSTROUTING"] if MASQ not in rule]
    iptables.ensure("inet", "nat", RULES)
    assert namespace.chains()[MASQ] == list(RULES.chains[MASQ])
    assert namespace.chains()["POSTROUTING"] == [JUMP.rule, *foreign]
    assert not namespace.chains().get("FOREIGN")
    assert iptables.ensure("inet", "nat", RULES) == ()


def test_a_last_jump_stays_behind_foreign_rules(namespace: Namespace, iptables: Iptables) -> None:
    last = Jump("POSTROUTING", f"-j {MASQ}", "last")
    rules = TableRules({MASQ: ()}, (last,))
    iptables.ensure("inet", "nat", rules)
    namespace.restore(f"-A POSTROUTING {FOREIGN}")
    iptables.ensure("inet", "nat", rules)
    assert namespace.chains()["POSTROUTING"] == [FOREIGN, last.rule]
    assert iptables.ensure("inet", "nat", rules) == ()


def test_jumps_keep_their_order(namespace: Namespace, iptables: Iptables) -> None:
    other = "KUBE-ROUTER-OTHER"
    jumps = (
        JUMP,
        Jump("POSTROUTING", f"-j {other}"),
        Jump("POSTROUTING", f"-p udp -j {other}", "last"),
    )
    rules = TableRules({MASQ: (), other: ()}, jumps)
    namespace.restore(f"-A POSTROUTING {FOREIGN}")
    iptables.ensure("inet", "nat", rules)
    expected = [jumps[0].rule, jumps[1].rule, FOREIGN, jumps[2].rule]
    assert namespace.chains()["POSTROUTING"] == expected
    assert iptables.ensure("inet", "nat", rules) == ()


def test_two_loops_may_both_be_first(namespace: Namespace, iptables: Iptables) -> None:
    second = TableRules({"KUBE-ROUTER-B": ()}, (Jump("POSTROUTING", "-j KUBE-ROUTER-B"),))
    namespace.restore(f"-A POSTROUTING {FOREIGN}")
    iptables.ensure("inet", "nat", RULES)
    iptables.ensure("inet", "nat", second)
    assert iptables.ensure("inet", "nat", RULES) == ()
    assert iptables.ensure("inet", "nat", second) == ()
    assert namespace.chains()["POSTROUTING"][2:] == [FOREIGN]


def test_a_refused_rule_changes_nothing_and_is_named(
    namespace: Namespace, iptables: Iptables
) -> None:
    iptables.ensure("inet", "nat", RULES)
    broken = TableRules({MASQ: ("-j RETURN", "-j NO-SUCH-CHAIN")}, (JUMP,))
    with pytest.raises(KernelError, match="NO-SUCH-CHAIN"):
        iptables.ensure("inet", "nat", broken)
    assert namespace.chains()[MASQ] == list(RULES.chains[MASQ])


def test_remove_takes_own_chains_with_every_jump(namespace: Namespace, iptables: Iptables) -> None:
    other = "KUBE-ROUTER-OTHER"
    iptables.ensure("inet", "nat", TableRules({**RULES.chains, other: (f"-j {MASQ}",)}, (JUMP,)))
    namespace.restore(":FOREIGN - [0:0]", f"-A FOREIGN -j {MASQ}")
    namespace.restore(f"-A POSTROUTING {FOREIGN}", f"-A POSTROUTING {JUMP.rule}")
    iptables.remove("inet", "nat", [MASQ, other, "KUBE-ROUTER-NEVER-MADE"])
    chains = namespace.chains()
    assert MASQ not in chains
    assert other not in chains
    assert chains["POSTROUTING"] == [FOREIGN]
    assert chains["FOREIGN"] == []
    before = iptables.writes
    iptables.remove("inet", "nat", [MASQ, other])
    assert iptables.writes == before


def test_random_fully_is_known_and_leaves_nothing(namespace: Namespace, iptables: Iptables) -> None:
    before = namespace.chains()
    assert iptables.random_fully()
    assert namespace.chains() == before
    assert iptables.writes == 0


@pytest.mark.parametrize(
    "rule",
    [
        "-s 10.0.0.1 -p tcp --dport 80 -j ACCEPT",
        "--source 10.0.0.0/255.255.255.0 --protocol udp -m udp --dport 53 --jump RETURN",
        "-j RETURN -m comment --comment x",
        r'-m comment --comment "it \"quoted\" \\ -j DROP" -m mark --mark 0x10 -j ACCEPT',
        r"-m comment --comment it\x -j ACCEPT",
        "-m mark ! --mark 16/0xff -j MARK --set-mark 32",
        "-j MARK --set-mark 0x1/0x3",
        "-j MARK --or-mark 0x4000",
        "-j MARK --and-mark 0xff",
        "-j CONNMARK --set-mark 0x1",
        "-m conntrack --ctstate RELATED,ESTABLISHED,NEW ! -d 10.0.0.0/8 -j RETURN",
        "-p icmp -m icmp --icmp-type echo-request -j ACCEPT",
        "-p 6 -m tcp ! --syn -j ACCEPT",
        "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400",
        "-p tcp -m tcp -j ACCEPT",
        "-m limit --limit 5/minute --limit-burst 5 -j NFLOG --nflog-group 100",
        '-m limit --limit 10/second -j LOG --log-prefix "drop: " --log-level 4',
        "-p tcp -m multiport --dports 443,80,8000:8010 -j ACCEPT",
        "-m addrtype --dst-type LOCAL -m statistic --mode random --probability 0.5 -j ACCEPT",
        "-i eth0 -o eth+ -m physdev --physdev-is-bridged -j ACCEPT",
        "-s 0.0.0.0/0 -d 0.0.0.0/0 -j ACCEPT",
        "-m connmark --mark 0x2/0x2 -g KUBE-ROUTER-X",
        "-p sctp -m sctp --dport 9 -j ACCEPT",
        "-m owner --uid-owner 0 -j ACCEPT",
        "-p tcp -m tcp --dport 1:1024 -m comment --comment a -m conntrack --ctdir ORIGINAL",
    ],
)
def test_spellings_of_a_rule_are_one(iptables: Iptables, namespace: Namespace, rule: str) -> None:
    rules = TableRules({"KUBE-ROUTER-X": (), MASQ: ("-s 10.1.1.1/32 -j RETURN", rule)})
    iptables.ensure("inet", "mangle", rules)
    assert iptables.ensure("inet", "mangle", rules) == ()
    assert namespace.open().ensure("inet", "mangle", rules) == ()


A, B, C = "KUBE-POD-FW-A", "KUBE-POD-FW-B", "KUBE-NWPLCY-C"


def own_chains(namespace: Namespace, table: str = "filter") -> dict[str, list[str]]:
    chains = namespace.chains(table=table)
    return {name: rules for name, rules in chains.items() if name.startswith("KUBE-")}


def test_chains_are_changed_without_a_look(namespace: Namespace, iptables: Iptables) -> None:
    iptables.change("inet", "filter", {A: (f"-j {C}",), B: (f"-g {C}",), C: ("-j RETURN",)})
    assert own_chains(namespace) == {A: [f"-j {C}"], B: [f"-g {C}"], C: ["-j RETURN"]}
    before = iptables.writes
    # In one step a chain loses its last references and goes.
    iptables.change("inet", "filter", {A: (), B: ("-j RETURN",)}, [C, "KUBE-NEVER-MADE", C])
    assert own_chains(namespace) == {A: [], B: ["-j RETURN"]}
    assert iptables.writes == before + 4
    iptables.change("inet", "filter", {})
    assert iptables.writes == before + 4
    iptables.change("inet", "filter", {}, [A, B])
    assert own_chains(namespace) == {}


def test_a_change_leaves_all_other_chains_alone(namespace: Namespace, iptables: Iptables) -> None:
    namespace.restore(f":{A} - [0:0]", f"-A INPUT {FOREIGN}", ":X - [0:0]", table="filter")
    namespace.restore("-A X -j RETURN", f"-A INPUT -j {A}", table="filter")
    before = namespace.chains(table="filter")
    iptables.change("inet", "filter", {A: ("-j DROP",)})
    assert namespace.chains(table="filter") == {**before, A: ["-j DROP"]}


@pytest.mark.parametrize(
    ("chains", "delete"),
    [
        ({B: ("-j RETURN",), A: ("-j NO-SUCH-CHAIN",)}, [C]),
        ({B: ("-j RETURN",)}, [A]),  # a jump leads there
    ],
)
def test_a_refused_change_changes_nothing(
    namespace: Namespace, iptables: Iptables, chains: dict[str, tuple[str, ...]], delete: list[str]
) -> None:
    iptables.change("inet", "filter", {A: ("-j RETURN",), B: ("-j DROP",), C: ()})
    namespace.restore(f"-A INPUT -j {A}", table="filter")
    before = namespace.chains(table="filter")
    with pytest.raises(KernelError, match=f"NO-SUCH-CHAIN|{A}"):
        iptables.change("inet", "filter", chains, delete)
    assert namespace.chains(table="filter") == before


def test_what_is_no_longer_wanted_is_pruned_in_the_same_step(
    namespace: Namespace, iptables: Iptables
) -> None:
    jumps = (Jump("INPUT", f"-j {A}"), Jump("FORWARD", f"-j {B}"))
    chains = {A: (f"-j {C}",), B: (f"-j {A}", f"-j {C}"), C: ("-j RETURN",)}
    iptables.ensure("inet", "filter", TableRules(chains, jumps))
    foreign = [":X - [0:0]", f"-A X -j {B}", f"-A X {FOREIGN}", ":KUBE-ROUTER-Y - [0:0]"]
    namespace.restore(*foreign, f"-A KUBE-ROUTER-Y -j {C}", table="filter")

    def prune(name: str) -> bool:
        return name in (A, B, C, "KUBE-NOT-THERE")

    wanted = TableRules({A: ("-j RETURN",)}, jumps[:1])
    changes = iptables.ensure("inet", "filter", wanted, prune)
    assert sum("deleted" in change for change in changes) == 5
    assert own_chains(namespace) == {A: ["-j RETURN"], "KUBE-ROUTER-Y": []}
    after = namespace.chains(table="filter")
    assert after["INPUT"] == [f"-j {A}"]
    assert after["FORWARD"] == []
    assert after["X"] == [FOREIGN]
    assert iptables.ensure("inet", "filter", wanted, prune) == ()


def test_nothing_is_pruned_unasked(namespace: Namespace, iptables: Iptables) -> None:
    iptables.ensure("inet", "filter", TableRules({A: (), B: (f"-j {A}",)}))
    assert iptables.ensure("inet", "filter", TableRules({A: ()})) == ()
    assert own_chains(namespace) == {A: [], B: [f"-j {A}"]}


def test_a_jump_is_left_where_it_is_on_request(namespace: Namespace, iptables: Iptables) -> None:
    last = Jump("FORWARD", f"-j {B}", "last")
    rules = TableRules({A: (), B: ()}, (Jump("FORWARD", f"-j {A}"), last))
    iptables.ensure("inet", "filter", rules)
    namespace.restore(
        f"-I FORWARD 1 {FOREIGN}", "-A FORWARD -p udp -j DROP", f"-A FORWARD -s 10.0.0.1/32 -j {A}",
        table="filter",
    )  # fmt: skip
    moved = [FOREIGN, f"-j {A}", f"-j {B}", "-p udp -j DROP"]
    stale = iptables.ensure("inet", "filter", rules, leave={"FORWARD"})
    assert stale == ("jump in FORWARD deleted",)
    assert namespace.chains(table="filter")["FORWARD"] == moved
    assert displaced(stale) == frozenset()
    assert iptables.ensure("inet", "filter", rules, leave={"FORWARD"}) == ()
    # One that is gone is put back all the same,
    namespace.restore(f"-D FORWARD -j {A}", table="filter")
    changes = iptables.ensure("inet", "filter", rules, leave={"FORWARD"})
    in_place = [f"-j {A}", FOREIGN, "-p udp -j DROP", f"-j {B}"]
    assert namespace.chains(table="filter")["FORWARD"] == in_place
    assert displaced(changes) == frozenset()
    # and without the request all is put in its place, which is said.
    namespace.restore(f"-I FORWARD 1 {FOREIGN}", table="filter")
    changes = iptables.ensure("inet", "filter", rules)
    assert displaced(changes) == {"FORWARD"}
    assert namespace.chains(table="filter")["FORWARD"][0] == f"-j {A}"


def test_counters_are_those_of_the_chains_asked_for(
    namespace: Namespace, iptables: Iptables
) -> None:
    iptables.change("inet", "filter", {A: ("-j RETURN", "-p udp -j DROP"), B: (), C: ("-j DROP",)})
    assert iptables.counters("inet", "filter", [A, B, "KUBE-NOT-THERE"]) == {
        A: ((0, 0), (0, 0)),
        B: (),
    }
    assert iptables.counters("inet6", "filter", [A]) == {}
    assert iptables.counters("inet", "filter", []) == {}
