"""What the firewall asks of iptables and ipset, in the kernel: rules of every kind it writes,
other writers in the same table, counters, and the change from one variant to the other."""

import socket
import subprocess
import threading
from itertools import count, pairwise
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel import iptables_counters
from kube_router_py.kernel.host import open_host
from kube_router_py.kernel.ipset import IpsetProgram
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.iptables_variant import check_masks, program_name, variant_of
from kube_router_py.kernel.other_variant import remove_from_other_variant
from kube_router_py.kernel.ports import IpsetSpec, Jump, TableRules
from kube_router_py.kernel.rule_counters import read_packets

VARIANTS = ("iptables-nft", "iptables-legacy")

pytestmark = [
    pytest.mark.netfilter,
    pytest.mark.parametrize("world", ["real"], indirect=True),
    pytest.mark.parametrize("variant", VARIANTS),
]

CHAIN, OTHER = "KUBE-POD-FW-A", "KUBE-NWPLCY-B"
FOREIGN = "[12:345] -A INPUT -s 192.0.2.1/32 -j ACCEPT"


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def saved(variant: str, *options: str, family: str = "inet", table: str = "filter") -> list[str]:
    return run(f"{program_name(variant, family)}-save", "-t", table, *options).splitlines()


def is_own(name: str) -> bool:
    return name.startswith("KUBE-")


def send(*addresses: str) -> None:
    """A UDP packet to each address; whatever becomes of it."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"x", (address, 9))
            except PermissionError:  # dropped on its way out
                pass


# Comments of all kinds, targets with their defaults spelt out and left out, masks with holes.
BOTH_FAMILIES = (
    "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
    "-m conntrack --ctstate INVALID -j DROP",
    "-m addrtype --src-type LOCAL -j RETURN",
    '-m comment --comment "egress of pod x/y; rule 0 [a=b, c in (d)]" -j MARK --set-xmark '
    "0x0/0x10000",
    r'-m comment --comment "it \"says\" it\'s \\ 100%" -j RETURN'.replace(r"\'", "'"),
    "-m comment --comment word -j RETURN",
    "-m comment --comment x/policy -p tcp -m tcp --dport 80 -j RETURN",
    f"-p tcp --dport 8000:9000 -m comment --comment a -g {OTHER}",
    f"-p sctp -m sctp --dport 80 -g {OTHER}",
    f"-p udp -m udp --dport 65535 -g {OTHER}",
    "-j MARK --set-xmark 0x10000/0x10000",
    f"-m mark ! --mark 0x10000/0x10000 -j {OTHER}",
    f"-m mark ! --mark 0x10000/0x10000 -m comment --comment default/p -j {OTHER}",
    "-m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG "
    '--nflog-prefix "KUBE-POD-FW-ABCDEFGH ingress policy " --nflog-group 100',
    "-m limit --limit 10/minute --limit-burst 5 -j NFLOG --nflog-prefix x --nflog-group 0",
)
ONE_FAMILY = {
    "inet": (
        "-s 10.244.1.5/32 -d 10.244.1.5/32 -j RETURN",
        *(f"-d 0.0.0.{n}/0.0.0.15 -g {OTHER}" for n in range(16)),
        f"-s 0.0.0.160/0.0.0.240 -j {OTHER}",
        f"-d 0.10.0.0/0.15.0.0 -j {OTHER}",
        f"-d 0.0.0.165/255.0.0.255 -j {OTHER}",
        "-p icmp -m icmp --icmp-type 3 -j RETURN",
        "-p icmp -m icmp --icmp-type 8 -j RETURN",
        "-p icmp -m icmp --icmp-type 11 -j RETURN",
        "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable",
        "-j REJECT",
        "-p tcp -j REJECT --reject-with tcp-reset",
        f"-m set --match-set KUBE-SRC-A src -m comment --comment a -g {OTHER}",
        f"-p tcp -m tcp --dport 1:1023 -m set --match-set KUBE-SRC-A dst -g {OTHER}",
        f"-m set --match-set KUBE-DST-A dst,dst -m set --match-set KUBE-SRC-A src -g {OTHER}",
        f"-m set ! --match-set KUBE-SRC-A src -j {OTHER}",
    ),
    "inet6": (
        "-s fd00:10:244:1::5/128 -d fd00:10:244:1::5/128 -j RETURN",
        *(f"-d ::{n:x}/::f -g {OTHER}" for n in range(16)),
        f"-s ::a0/::f0 -j {OTHER}",
        f"-d 0:0:0:5::/0:0:0:f:: -j {OTHER}",
        f"-d ::a5/ff00::ff -j {OTHER}",
        *(
            f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN"
            for kind in (1, 2, 3, 4, 128, 129, 133, 134, 135, 136, 137)
        ),
        "-m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp6-port-unreachable",
        "-j REJECT",
        f"-m set --match-set inet6:KUBE-SRC-A src -m comment --comment a -g {OTHER}",
        f"-m set --match-set inet6:KUBE-DST-A dst,dst -g {OTHER}",
    ),
}


@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_rules_of_the_firewall_are_not_written_twice(world: str, variant: str, family: str) -> None:
    prefix = "" if family == "inet" else "inet6:"
    sets = {
        IpsetSpec(f"{prefix}KUBE-SRC-A", "hash:ip", family): (),
        IpsetSpec(f"{prefix}KUBE-DST-A", "hash:ip,port", family): (),
    }
    assert IpsetProgram().put_all(sets) == []
    rules = (*BOTH_FAMILIES, *ONE_FAMILY[family])
    wanted = TableRules({CHAIN: rules, OTHER: ()}, (Jump("FORWARD", f"-j {CHAIN}"),))
    iptables = IptablesProgram(variant)
    assert len(iptables.ensure(family, "filter", wanted, is_own)) == 3
    assert iptables.ensure(family, "filter", wanted, is_own) == ()
    assert IptablesProgram(variant).ensure(family, "filter", wanted, is_own) == ()
    # One by one: a rule may be like another, but not in another's place.
    for before, after in pairwise(rules):
        chains = {CHAIN: (before, after, "-j RETURN")}
        iptables.change(family, "filter", chains)
        assert iptables.ensure(family, "filter", TableRules(chains, wanted.jumps)) == ()
        chains = {CHAIN: (after, before, "-j RETURN")}
        assert iptables.ensure(family, "filter", TableRules(chains, wanted.jumps)) != ()


def test_masks_with_holes_match_what_they_say(world: str, variant: str) -> None:
    iptables = IptablesProgram(variant)
    digits = (
        "-d 0.0.0.5/0.0.0.15 -j RETURN", "-d 0.0.0.0/0.0.0.15 -j RETURN",
        "-d 127.0.0.6/255.0.0.15 -j RETURN", "-d 0.16.0.0/0.240.0.0 -j RETURN", "-j RETURN",
    )  # fmt: skip
    wanted = TableRules({CHAIN: digits}, (Jump("OUTPUT", f"-p udp -j {CHAIN}"),))
    iptables.ensure("inet", "filter", wanted)
    send("127.0.0.5", "127.0.1.21", "127.0.0.16", "127.0.0.22", "127.16.0.1", "127.0.0.7")
    counted = iptables.counters("inet", "filter", [CHAIN])[CHAIN]
    assert [packets for packets, _ in counted] == [2, 1, 1, 1, 1]

    run("ip", "addr", "add", "fd00::a5/128", "dev", "lo", "nodad")
    digits = ("-d ::4/::f -j RETURN", "-d ::a0/::f0 -j RETURN", "-d ::5/::f -j RETURN")
    wanted = TableRules({CHAIN: digits}, (Jump("OUTPUT", f"-p udp -j {CHAIN}"),))
    iptables.ensure("inet6", "filter", wanted)
    send("fd00::a5", "fd00::a5")
    counted = iptables.counters("inet6", "filter", [CHAIN])[CHAIN]
    assert [packets for packets, _ in counted] == [0, 2, 0]


@pytest.mark.timeout(400)
def test_100_changes_beside_a_busy_writer_lose_none_of_its_rules(world: str, variant: str) -> None:
    run(f"{variant}-restore", "--counters", stdin=f"*filter\n:X - [0:0]\n{FOREIGN}\nCOMMIT\n")
    iptables = IptablesProgram(variant)
    jump = Jump("INPUT", f"-j {CHAIN}")
    iptables.ensure("inet", "filter", TableRules({CHAIN: (), OTHER: ()}, (jump,)), is_own)
    stop = threading.Event()
    trouble: list[str] = []
    written: list[str] = []

    def attempt(*words: str) -> None:
        command = [variant, "-w", "60", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            trouble.append(f"{command}: {done.stderr}")

    def write() -> None:
        # One rule comes and goes, one more stays each time, in a chain of ours and one of theirs.
        while not stop.is_set() and len(written) < 2000:
            kept = ("-s", f"192.0.{2 + len(written) // 250}.{len(written) % 250}/32", "-j", "DROP")
            attempt("-I", "INPUT", "1", "-p", "udp", "-j", "ACCEPT")
            attempt("-A", "X", *kept)
            attempt("-D", "INPUT", "-p", "udp", "-j", "ACCEPT")
            written.append(" ".join(kept))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in count():
            if number >= 100 and (len(written) >= 100 or not writer.is_alive()):
                break
            rules = (f"-s 10.0.{number >> 8}.{number & 255}/32 -j {OTHER}",)
            own = {CHAIN: rules, OTHER: (), f"{OTHER}-{number}": ()}
            if number % 10:
                iptables.change("inet", "filter", own, [f"{OTHER}-{number - 1}"])
            else:
                iptables.ensure("inet", "filter", TableRules(own, (jump,)), is_own)
    finally:
        stop.set()
        writer.join(120)
    assert trouble == []
    assert len(written) >= 100
    assert not writer.is_alive()
    lines = saved(variant)
    assert [line for line in lines if line.startswith("-A X")] == [f"-A X {r}" for r in written]
    assert [line for line in lines if line.startswith(f"-A {CHAIN}")] == [f"-A {CHAIN} {rules[0]}"]
    names = {line.split()[0][1:] for line in lines if line.startswith(":KUBE-")}
    assert names == own.keys()
    iptables.ensure("inet", "filter", TableRules({CHAIN: (), OTHER: ()}, (jump,)), is_own)
    assert [line for line in saved(variant) if line.startswith("-A INPUT")] == [
        f"-A INPUT -j {CHAIN}",
        "-A INPUT -s 192.0.2.1/32 -j ACCEPT",
    ]
    assert FOREIGN in saved(variant, "--counters")


def test_a_set_can_go_as_soon_as_its_rules_are_gone(world: str, variant: str) -> None:
    iptables, ipsets = IptablesProgram(variant), IpsetProgram()
    spec = IpsetSpec("KUBE-SRC-A", "hash:ip", "inet")
    for number in range(8):
        ipsets.put_all({spec: [f"10.0.0.{number}"]})
        rules = ("-m set --match-set KUBE-SRC-A src -j RETURN",)
        iptables.change("inet", "filter", {CHAIN: rules})
        with pytest.raises(KernelError, match=r"KUBE-SRC-A.*in use"):
            ipsets.destroy([spec.name])
        iptables.change("inet", "filter", {}, [CHAIN])
        ipsets.destroy([spec.name])
        assert ipsets.read(spec.name) is None


def test_a_rule_with_a_set_that_is_not_there_is_named(world: str, variant: str) -> None:
    iptables = IptablesProgram(variant)
    iptables.change("inet", "filter", {CHAIN: ("-j RETURN",)})
    rules = ("-j DROP", "-m set --match-set KUBE-SRC-A src -j RETURN")
    with pytest.raises(KernelError, match="KUBE-SRC-A"):
        iptables.change("inet", "filter", {CHAIN: rules})
    assert f"-A {CHAIN} -j RETURN" in saved(variant)
    assert f"-A {CHAIN} -j DROP" not in saved(variant)


def test_counters_are_what_iptables_save_prints(
    world: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    iptables = IptablesProgram(variant)
    run("ip", "addr", "add", "fd00::5/128", "dev", "lo", "nodad")
    to = {
        "inet": ("-d 127.0.0.2/32", "-d 127.0.0.3/32"),
        "inet6": ("-d fd00::5/128", "-d fd00::6/128"),
    }
    names = ["OUTPUT", CHAIN, OTHER, "KUBE-NOT-THERE"]
    for family, (first, second) in to.items():
        chains = {
            CHAIN: (f"-p udp {first} -g {OTHER}", f"{second} -m comment --comment x -j DROP"),
            OTHER: ('-m comment --comment "a b" -j RETURN', "-j RETURN"),
        }
        iptables.ensure(family, "filter", TableRules(chains, (Jump("OUTPUT", f"-j {CHAIN}"),)))
    send("127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.4", "fd00::5", "fd00::5")
    for family in to:
        counted = iptables.counters(family, "filter", names)
        text = "\n".join(saved(variant, "-c", family=family))
        assert counted == iptables_counters.parse_counters(text, "filter", names)
        assert counted.keys() == {"OUTPUT", CHAIN, OTHER}
        # As those get it who ask from other threads than the loop's.
        assert read_packets(variant, family, names) == {
            name: [packets for packets, _ in each] for name, each in counted.items()
        }
        assert [packets for packets, _ in counted[OTHER]] == [2, 0]
        # Read anew each time, with or without the library.
        assert iptables.counters(family, "filter", names) == counted
        with monkeypatch.context() as patch:
            patch.setattr(iptables_counters, "library", lambda: None)
            assert IptablesProgram(variant).counters(family, "filter", names) == counted
    send("127.0.0.2")
    assert iptables.counters("inet", "filter", names)[OTHER][0][0] == 3


def test_counters_on_a_legacy_host_are_read_by_python_iptables(world: str, variant: str) -> None:
    assert iptables_counters.library() is not None
    iptables = IptablesProgram(variant)
    iptables.ensure("inet", "mangle", TableRules({CHAIN: ("-j RETURN",)}))
    # A table of another network namespace, or of another time, is not remembered.
    assert iptables.counters("inet", "mangle", [CHAIN]) == {CHAIN: ((0, 0),)}
    iptables.remove("inet", "mangle", [CHAIN])
    assert iptables.counters("inet", "mangle", [CHAIN]) == {}


def test_own_chains_of_the_other_variant_go(world: str, variant: str) -> None:
    (other,) = set(VARIANTS) - {variant}
    foreign = f"*filter\n:X - [0:0]\n{FOREIGN}\n-A X -j RETURN\nCOMMIT\n"
    for each in VARIANTS:
        run(f"{each}-restore", "--counters", stdin=foreign)
        adapter = IptablesProgram(each)
        for family in ("inet", "inet6"):
            for table, parent in (("filter", "FORWARD"), ("nat", "OUTPUT"), ("mangle", "INPUT")):
                rules = TableRules(
                    {CHAIN: (f"-j {OTHER}",), OTHER: ()}, (Jump(parent, f"-j {CHAIN}"),)
                )
                adapter.ensure(family, table, rules)
        run(each, "-A", "X", "-j", CHAIN)
    before = {family: saved(variant, family=family) for family in ("inet", "inet6")}

    assert remove_from_other_variant(variant, ["inet"], lambda name: False) == ()
    removed = remove_from_other_variant(variant, ["inet", "inet6"], is_own)
    assert len(removed) == 12
    assert any("ip6tables" in line and CHAIN in line for line in removed)
    assert remove_from_other_variant(variant, ["inet", "inet6"], is_own) == ()
    for family in ("inet", "inet6"):
        for table in ("filter", "nat", "mangle"):
            assert "KUBE-" not in "".join(saved(other, family=family, table=table))
    lines = saved(other, "--counters")
    assert FOREIGN in lines
    assert "[0:0] -A X -j RETURN" in lines
    for family, lines in before.items():
        standing = [line for line in saved(variant, family=family) if line[:1] in "-:"]
        assert standing == [line for line in lines if line[:1] in "-:"]


def test_tables_of_the_other_variant_without_a_marker_are_left(world: str, variant: str) -> None:
    (other,) = set(VARIANTS) - {variant}
    for table in ("filter", "mangle"):
        IptablesProgram(other).ensure("inet", table, TableRules({CHAIN: ()}))
    IptablesProgram(other).ensure("inet", "mangle", TableRules({OTHER: ()}))
    assert len(remove_from_other_variant(variant, ["inet", "inet6"], is_own, [OTHER])) == 2
    assert f":{CHAIN} - [0:0]" in saved(other, table="filter")
    assert "KUBE-" not in "".join(saved(other, table="mangle"))


def test_looking_at_the_other_variant_creates_nothing(world: str, variant: str) -> None:
    assert remove_from_other_variant(variant, ["inet", "inet6"], is_own) == ()
    for name in ("ip_tables_names", "ip6_tables_names"):
        names = Path("/proc/thread-self/net", name)
        assert not names.exists() or names.read_text() == ""


def test_rules_of_nft_in_the_other_variant_stop_nothing(world: str, variant: str) -> None:
    if variant == "iptables-legacy":
        run("nft", "add table ip filter; add chain ip filter x; add rule ip filter x meta cpu 1")
    adapter = IptablesProgram("iptables-nft" if variant == "iptables-legacy" else "iptables-legacy")
    adapter.ensure("inet6", "filter", TableRules({CHAIN: ()}))
    adapter.ensure("inet", "nat", TableRules({CHAIN: ()}))
    removed = remove_from_other_variant(variant, ["inet", "inet6"], is_own)
    assert len(removed) == 2


def test_a_backend_is_a_variant(world: str, variant: str) -> None:
    assert variant_of(variant.removeprefix("iptables-")) == variant
    (other,) = set(VARIANTS) - {variant}
    run(variant, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert variant_of("auto") == variant
    for backend, expected in (("auto", variant), (other.removeprefix("iptables-"), other)):
        ports = open_host(iptables_backend=backend, families=("inet", "inet6"), needs_ipvs=False)
        try:
            ports.iptables.change("inet6", "filter", {CHAIN: ("-j RETURN",)})
        finally:
            ports.close()
        assert ports.iptables.variant == expected
        assert f"-A {CHAIN} -j RETURN" in saved(expected, family="inet6")
    check_masks(variant)
