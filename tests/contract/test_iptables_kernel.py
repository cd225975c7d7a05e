"""iptables beside other writers: their rules, their counters, their haste, their chains."""

import subprocess
import threading
from pathlib import Path

import pytest

from kube_router_py.kernel.iptables import IptablesProgram, choose_variant
from kube_router_py.kernel.ports import Jump, TableRules

VARIANTS = ("iptables-nft", "iptables-legacy")

pytestmark = [
    pytest.mark.netfilter,
    pytest.mark.parametrize("world", ["real"], indirect=True),
    pytest.mark.parametrize("variant", VARIANTS),
]

CHAIN = "KUBE-ROUTER-TEST"
JUMP = Jump("INPUT", f"-j {CHAIN}")


def rules(number: int) -> TableRules:
    return TableRules({CHAIN: (f"-s 10.0.0.{number}/32 -j RETURN",)}, (JUMP,))


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def saved(variant: str, *options: str) -> list[str]:
    return run(f"{variant}-save", "-t", "filter", *options).splitlines()


def test_counters_of_foreign_rules_stay(world: str, variant: str) -> None:
    foreign = "[12:345] -A INPUT -s 192.0.2.1/32 -j ACCEPT"
    run(f"{variant}-restore", "--counters", stdin=f"*filter\n{foreign}\nCOMMIT\n")
    iptables = IptablesProgram(variant)
    for number in (1, 2):
        assert iptables.ensure("inet", "filter", rules(number))
    run(variant, "-I", "INPUT", "1", "-s", "192.0.2.2/32", "-j", "ACCEPT")
    assert iptables.ensure("inet", "filter", rules(2))
    assert foreign in saved(variant, "--counters")
    iptables.remove("inet", "filter", [CHAIN])
    assert foreign in saved(variant, "--counters")


def test_a_busy_foreign_writer_loses_nothing_and_stops_nothing(world: str, variant: str) -> None:
    iptables = IptablesProgram(variant)
    iptables.ensure("inet", "filter", rules(1))
    stop = threading.Event()
    trouble: list[str] = []
    written: list[str] = []

    def write() -> None:
        # One rule comes and goes before ours, one more stays each time.
        number = 0
        while not stop.is_set() and number < 250:
            number += 1
            kept = ["-s", f"192.0.2.{number}/32", "-j", "ACCEPT"]
            for verb, rule in (
                (["-I", "INPUT", "1"], ["-p", "udp", "-j", "ACCEPT"]),
                (["-A", "INPUT"], kept),
                (["-D", "INPUT"], ["-p", "udp", "-j", "ACCEPT"]),
            ):
                command = [variant, "-w", "20", *verb, *rule]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=60, check=False
                )
                if done.returncode != 0:
                    trouble.append(f"{command}: {done.stderr}")
            written.append(" ".join(kept))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(2, 27):
            iptables.ensure("inet", "filter", rules(number))
    finally:
        stop.set()
        writer.join(60)
    assert trouble == []
    iptables.ensure("inet", "filter", rules(26))
    expected = [f"-A INPUT {JUMP.rule}", *(f"-A INPUT {rule}" for rule in written)]
    lines = saved(variant)
    assert [line for line in lines if line.startswith("-A INPUT")] == expected
    assert [line for line in lines if line.startswith(f"-A {CHAIN}")] == [
        f"-A {CHAIN} -s 10.0.0.26/32 -j RETURN"
    ]


def test_the_variant_with_the_kubelets_chains_is_chosen(world: str, variant: str) -> None:
    assert choose_variant() == "iptables"
    run(variant, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert choose_variant() == variant


def test_choosing_a_variant_makes_no_legacy_tables(world: str, variant: str) -> None:
    choose_variant()
    names = Path("/proc/thread-self/net/ip_tables_names")
    assert not names.exists() or names.read_text() == ""
    assert run(f"{variant}-save", "-t", "filter").count("-A") == 0


def test_a_jump_from_an_own_chain_of_another_loop_stays(world: str, variant: str) -> None:
    iptables = IptablesProgram(variant)
    iptables.ensure("inet", "filter", rules(1))
    caller = TableRules({"KUBE-ROUTER-CALLER": (f"-j {CHAIN}",)})
    iptables.ensure("inet", "filter", caller)
    assert iptables.ensure("inet", "filter", rules(1)) == ()
    assert iptables.ensure("inet", "filter", caller) == ()


@pytest.mark.kernel  # xt_ipvs
def test_a_rule_that_matches_ipvs_stands_as_written(world: str, variant: str) -> None:
    match = "-m ipvs --vdir ORIGINAL --vmethod MASQ"
    chains = {"KUBE-ROUTER-NAT": (f"{match} -j MASQUERADE --random-fully",)}
    nat = TableRules(chains, (Jump("POSTROUTING", f"{match} -j KUBE-ROUTER-NAT"),))
    iptables = IptablesProgram(variant)
    assert len(iptables.ensure("inet", "nat", nat)) == 2
    assert iptables.ensure("inet", "nat", nat) == ()
    assert iptables.ensure("inet6", "nat", nat) != ()
    assert iptables.ensure("inet6", "nat", nat) == ()
