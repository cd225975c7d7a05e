"""How the iptables adapter takes what the programs answer: locks, refusals, races, silence."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError, PreflightError, StateUnknownError
from kube_router_py.kernel import iptables as module
from kube_router_py.kernel.host import check_programs
from kube_router_py.kernel.iptables import IptablesProgram
from kube_router_py.kernel.ports import TableRules

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
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    install("iptables-restore", "exec sleep 60")
    with pytest.raises(StateUnknownError, match="iptables-restore"):
        IptablesProgram().ensure("inet", "nat", RULES)
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


def test_missing_programs_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreflightError, match=r"ipset.*ip6tables-nft-restore.*install"):
        check_programs("iptables-nft", ["inet", "inet6"])
    with pytest.raises(KernelError, match="not installed"):
        IptablesProgram("iptables-nft").ensure("inet", "nat", RULES)


def test_only_known_variants() -> None:
    with pytest.raises(ValueError, match="variant"):
        IptablesProgram("nft")
