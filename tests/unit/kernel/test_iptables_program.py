"""How the iptables adapter takes what the programs answer: locks, refusals, races, silence."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.kernel import iptables as module
from kube_router_py.kernel import iptables_counters
from kube_router_py.kernel.host import check_programs
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.iptables_variant import check_masks, variant_of
from kube_router_py.kernel.ports import TableRules
from kube_router_py.kernel.program import Finished
from kube_router_py.kernel.program import run as run_program
from kube_router_py.kernel.rule_text import Rule

RULES = TableRules({"KUBE-ROUTER-X": ("-j RETURN",)})
EMPTY = "echo '*nat'; echo ':POSTROUTING ACCEPT [0:0]'; echo COMMIT"

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a shell script in the place of a program; it runs in a directory of its own."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)

    def write(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    write("iptables-save", EMPTY)
    write("iptables-restore", "cat > sent")
    return write


def test_what_is_sent(install: Install) -> None:
    changes = IptablesProgram().ensure("inet", "nat", RULES)
    assert changes == ("chain KUBE-ROUTER-X created",)
    expected = "*nat\n:KUBE-ROUTER-X - [0:0]\n-A KUBE-ROUTER-X -j RETURN\nCOMMIT\n"
    assert Path("sent").read_text() == expected


def test_whoever_looks_on_is_told_how_long_programs_took(install: Install) -> None:
    install("ip6tables-save", EMPTY)
    install("ip6tables-restore", "sleep 0.05; cat > sent6")
    seen: list[tuple[str, float]] = []
    iptables = IptablesProgram()
    iptables.observe = lambda what, seconds: seen.append((what, seconds))
    iptables.ensure("inet", "nat", RULES)
    iptables.ensure("inet6", "nat", RULES)
    assert [what for what, _ in seen] == [
        *("iptables_v4_save", "iptables_v4_restore"),
        *("iptables_v6_save", "iptables_v6_restore"),
    ]
    assert all(seconds > 0 for _, seconds in seen)
    assert seen[-1][1] >= 0.05
    iptables.random_fully()
    assert len(seen) == 4, "a trial writes nothing"


def test_a_lock_held_is_tried_again(install: Install) -> None:
    install("iptables-restore", "test -e once && exit 0; touch once; echo lock held >&2; exit 4")
    iptables = IptablesProgram()
    assert iptables.ensure("inet", "nat", RULES)
    assert iptables.writes == 2


def test_a_lock_held_for_good_is_an_error(install: Install) -> None:
    install("iptables-restore", "echo try >> tries; echo lock held >&2; exit 4")
    with pytest.raises(KernelError, match="lock held"):
        IptablesProgram().ensure("inet", "nat", RULES)
    assert Path("tries").read_text().count("try") == 3


def test_a_refusal_is_not_tried_again_and_names_the_line(install: Install) -> None:
    install("iptables-restore", "echo try >> tries; echo 'Error occurred at line: 3' >&2; exit 2")
    with pytest.raises(KernelError, match="-A KUBE-ROUTER-X -j RETURN"):
        IptablesProgram().ensure("inet", "nat", RULES)
    assert Path("tries").read_text().count("try") == 1


def test_a_table_changed_meanwhile_is_planned_again(install: Install) -> None:
    install(
        "iptables-restore",
        "test -e once && exit 0; touch once\n"
        'printf \'#!/bin/sh\\necho "*nat"; echo ":NEW - [0:0]"; echo COMMIT\' > iptables-save\n'
        "echo line 3 failed >&2; exit 1",
    )
    assert IptablesProgram().ensure("inet", "nat", RULES)


def test_a_program_that_hangs_is_killed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = ["iptables-restore"]

    def run(command: list[str], *given: str, timeout_s: float, **how: bool) -> Finished:
        # The program that works has all its time.
        timeout_s = 0.2 if command[0] == hanging[0] else timeout_s
        return run_program(command, *given, timeout_s=timeout_s, **how)

    monkeypatch.setattr(module, "run", run)
    install("iptables-restore", "exec sleep 60")
    with pytest.raises(StateUnknownError, match="iptables-restore"):
        IptablesProgram().ensure("inet", "nat", RULES)
    hanging[0] = "iptables-save"
    install("iptables-save", "exec sleep 60")
    with pytest.raises(KernelError, match="iptables-save") as caught:
        IptablesProgram().ensure("inet", "nat", RULES)
    assert caught.value.errno == errno.ETIMEDOUT
    assert not isinstance(caught.value, StateUnknownError)


def test_a_table_of_a_newer_program_is_not_written_over(install: Install) -> None:
    install("iptables-save", "echo \"# Table \\`nat' is incompatible, use 'nft' tool.\"")
    with pytest.raises(KernelError, match="cannot read"):
        IptablesProgram().ensure("inet", "nat", RULES)
    assert not Path("sent").exists()


def test_warnings_on_stderr_are_no_errors(install: Install) -> None:
    install("iptables-save", f"echo '# Warning: legacy tables present' >&2; {EMPTY}")
    assert IptablesProgram().ensure("inet", "nat", RULES)


def test_an_old_program_does_not_know_random_fully(install: Install) -> None:
    install("iptables-restore", "echo 'unknown option \"--random-fully\"' >&2; exit 2")
    assert IptablesProgram().random_fully() is False
    install("iptables-restore", "echo lock >&2; exit 4")
    with pytest.raises(KernelError, match="lock"):
        IptablesProgram().random_fully()


def test_a_change_looks_at_nothing_and_is_tried_again(install: Install) -> None:
    install("iptables-save", "echo looked > looked; exit 1")
    install("iptables-restore", "cat > sent; test -e once && exit 0; touch once; exit 4")
    iptables = IptablesProgram()
    iptables.change("inet", "nat", {"KUBE-A": ("-j KUBE-B",), "KUBE-B": ()}, ["KUBE-C"])
    assert Path("sent").read_text() == (
        "*nat\n:KUBE-A - [0:0]\n:KUBE-B - [0:0]\n:KUBE-C - [0:0]\n-A KUBE-A -j KUBE-B\n"
        "-X KUBE-C\nCOMMIT\n"
    )
    assert iptables.writes == 6
    assert not Path("looked").exists()


def test_a_refused_change_is_not_tried_again(install: Install) -> None:
    install("iptables-restore", "echo try >> tries; echo 'Error occurred at line: 3' >&2; exit 2")
    with pytest.raises(KernelError, match="-A KUBE-A -j KUBE-B"):
        IptablesProgram().change("inet", "nat", {"KUBE-A": ("-j KUBE-B",)})
    assert Path("tries").read_text().count("try") == 1


def test_rules_once_found_equal_are_not_understood_again(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(rule: str) -> None:
        script = f"echo '*nat'; echo ':KUBE-A - [0:0]'; echo '-A KUBE-A {rule}'; echo COMMIT"
        install("iptables-save", script)

    save("-p tcp -m tcp --dport 80 -j RETURN")
    install("iptables-restore", "touch restored")
    iptables, rules = IptablesProgram(), TableRules({"KUBE-A": ("-p tcp --dport 80 -j RETURN",)})
    looked_at: list[str] = []
    original = module.canonical

    def counting(rule: str) -> Rule:
        looked_at.append(rule)
        return original(rule)

    monkeypatch.setattr(module, "canonical", counting)
    assert iptables.ensure("inet", "nat", rules) == ()
    assert len(looked_at) == 2
    assert iptables.ensure("inet", "nat", rules) == ()
    assert len(looked_at) == 2
    save("-p tcp -m tcp --dport 81 -j RETURN")
    install("iptables", "exit 1")
    assert iptables.ensure("inet", "nat", rules)
    assert len(looked_at) > 2
    assert Path("restored").exists()
    # What is gone is forgotten: a chain of that name may be another one.
    install("iptables-save", EMPTY)
    assert iptables.ensure("inet", "nat", rules) == ("chain KUBE-A created",)
    assert iptables._known["inet", "nat"] == {}


@pytest.mark.parametrize(
    ("version", "counters"),
    [("iptables v1.8.9 (nf_tables)", "saved"), ("iptables v1.8.9 (legacy)", "read"),
     ("iptables v1.6.1", "read")],
)  # fmt: skip
def test_counters_come_from_the_library_on_legacy_hosts(
    install: Install, monkeypatch: pytest.MonkeyPatch, version: str, counters: str
) -> None:
    install("iptables", f"echo '{version}'")
    install("iptables-save", "echo '*nat'; echo ':A - [0:0]'; echo '[7:70] -A A -j B'; echo COMMIT")
    monkeypatch.setattr(iptables_counters, "library", lambda: "the library")
    monkeypatch.setattr(
        iptables_counters, "read_counters", lambda iptc, family, table, chains: {"A": ((1, 10),)}
    )
    expected = {"saved": ((7, 70),), "read": ((1, 10),)}[counters]
    assert IptablesProgram().counters("inet", "nat", ["A", "C"]) == {"A": expected}

    def refuse(*arguments: object) -> None:
        raise KernelError("no such table yet")

    with monkeypatch.context() as patch:
        patch.setattr(iptables_counters, "read_counters", refuse)
        assert IptablesProgram().counters("inet", "nat", iter("AC")) == {"A": ((7, 70),)}
    monkeypatch.setattr(iptables_counters, "library", lambda: None)
    assert IptablesProgram().counters("inet", "nat", ["A", "C"]) == {"A": ((7, 70),)}


def test_a_library_that_cannot_be_loaded_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    iptables_counters.library.cache_clear()
    assert iptables_counters.library() is None
    iptables_counters.library.cache_clear()


def test_counters_are_read_from_the_right_table() -> None:
    text = (
        "*nat\n:A - [0:0]\n[1:2] -A A -j B\nCOMMIT\n"
        '*filter\n:INPUT ACCEPT [9:9]\n:A - [0:0]\n:B - [0:0]\n[3:4] -A A -m comment --comment "x '
        '[5:6] -A A" -j B\n[7:8] -A INPUT -j A\n[18446744073709551615:0] -A A\nCOMMIT\n'
    )
    assert iptables_counters.parse_counters(text, "filter", ["A", "B", "C"]) == {
        "A": ((3, 4), (18446744073709551615, 0)),
        "B": (),
    }


@pytest.mark.parametrize(
    ("version", "is_fit"),
    [
        ("iptables v1.8.7 (nf_tables)", False),
        ("iptables v1.8.7-1+deb (nf_tables)", False),
        ("iptables v1.8.7 (legacy)", True),
        ("iptables v1.8.8 (nf_tables)", True),
        ("iptables v1.8.11 (nf_tables)", True),
        ("iptables v1.8.2 (nf_tables)", True),
        ("iptables v1.6.1", True),
    ],
)
def test_a_version_that_cannot_match_masks_with_holes_is_refused(
    install: Install, version: str, is_fit: bool
) -> None:
    install("iptables", f"echo '{version}'")
    if is_fit:
        check_masks("iptables")
    else:
        with pytest.raises(PreflightError, match="iptables-backend"):
            check_masks("iptables")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_backend_is_used_whatever_the_kubelet_does(install: Install, backend: str) -> None:
    install("iptables-nft-save", "echo ':KUBE-IPTABLES-HINT - [0:0]'")
    assert variant_of(backend) == f"iptables-{backend}"
    assert variant_of("auto") == "iptables-nft"
    install("iptables-nft-save", "exit 1")
    assert variant_of("auto") == "iptables"


def test_missing_programs_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreflightError, match=r"ipset.*ip6tables-nft-restore.*install"):
        check_programs("iptables-nft", ["inet", "inet6"])
    with pytest.raises(KernelError, match="not installed"):
        IptablesProgram("iptables-nft").ensure("inet", "nat", RULES)


def test_only_known_variants() -> None:
    with pytest.raises(ValueError, match="variant"):
        IptablesProgram("nft")
