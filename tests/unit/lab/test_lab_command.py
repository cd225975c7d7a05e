"""The command line: what is refused, and how a running lab is found."""

import json
import os
import signal
from pathlib import Path

import pytest

from kube_router_py.lab import command, qemu, state, vm
from kube_router_py.lab.errors import LabError


def test_command_follows_the_first_double_dash() -> None:
    assert command.split_command(["-f", "x"]) == (["-f", "x"], None)
    assert command.split_command(["--", "a", "--", "b"]) == ([], ["a", "--", "b"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nodes", "0"], "1 to"),
        (["--ip-family", "ipx"], "ipx"),
        (["--"], "nothing follows"),
        (["--unknown"], "unknown"),
        (["--router", "cisco"], "cisco"),
        (["--router", "frr", "--subnets", "3"], "3"),
        (["--subnets", "2"], "without --router"),
        (["--router", "frr", "--subnets", "2", "--nodes", "1"], "no node"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(argv)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["-f", "/nowhere.yaml", "--", "true"]) == 1
    assert "/nowhere.yaml" in capsys.readouterr().err


def test_broken_manifests_boot_no_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def boot(*_: object, **__: object) -> int:
        raise AssertionError("a VM was started")

    monkeypatch.setattr(vm, "run_in_vm", boot)
    broken = tmp_path / "broken.yaml"
    broken.write_text("kind: [\n")
    assert command.main(["--vm=always", "-f", str(broken), "--", "true"]) == 1
    assert f"{broken} is no valid YAML" in capsys.readouterr().err
    assert command.main(["--vm=always", "-f", "/dev/null", "--", "true"]) == 1
    assert "neither a file nor a directory" in capsys.readouterr().err


def test_an_impossible_lab_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("LAB_OUT", str(file))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert command.main(["--vm=always", "--", "true"]) == 1
    assert str(file) in capsys.readouterr().err
    blanks = tmp_path / "two words"
    monkeypatch.setenv("LAB_OUT", str(blanks))
    monkeypatch.setattr(qemu, "guest_kernel", lambda: "6.1.0")
    monkeypatch.setattr(qemu, "missing_programs", list)
    assert command.main(["--vm=always", "--", "true"]) == 1
    assert "blanks" in capsys.readouterr().err


def test_a_kernel_without_ip_vs_needs_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "has_ip_vs", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert command._needs_vm("auto")
    with pytest.raises(LabError, match="no ip_vs"):
        command._needs_vm("never")
    assert not command._needs_vm("auto", ["--run-service-proxy=false"]), "who else needs IPVS?"
    monkeypatch.setattr(vm, "has_ip_vs", lambda: True)
    assert not command._needs_vm("auto")
    assert command._needs_vm("always")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command._needs_vm("auto")
    with pytest.raises(LabError, match="root"):
        command._needs_vm("never")


def make_lab(directory: Path, pid: int, started: int | None) -> Path:
    directory.mkdir(parents=True)
    state.LabState(directory, pid, started or 0, ("node1",)).write()
    return directory


def test_the_only_running_lab_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "BASE", tmp_path)
    with pytest.raises(LabError, match="no lab is running"):
        state.attach({})
    own = state.start_time(os.getpid())
    first = make_lab(tmp_path / "a", os.getpid(), own)
    make_lab(tmp_path / "dead", os.getpid(), (own or 0) + 1)
    assert state.attach({}).directory == first
    second = make_lab(tmp_path / "b", os.getpid(), own)
    with pytest.raises(LabError, match="several labs"):
        state.attach({})
    assert state.attach({state.VARIABLE: str(second)}).directory == second
    state.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_targets_of_exec(tmp_path: Path) -> None:
    lab = state.LabState(tmp_path, os.getpid(), 0, ("node1",))
    assert lab.enter("node1", ["ip", "a"]) == [
        "nsenter",
        f"--net=/proc/{os.getpid()}/root/run/netns/node1",
        "--",
        "env",
        f"KUBE_ROUTER_AGENT_SOCKET={tmp_path}/nodes/node1/root/run/kube-router-py/agent.sock",
        "ip",
        "a",
    ]
    with pytest.raises(LabError, match="node1, router, client"):
        lab.resolve("node9")
    with pytest.raises(LabError, match="does not answer"):
        lab.resolve("default/pod")


def test_lab_json_is_plain(tmp_path: Path) -> None:
    directory = make_lab(tmp_path / "lab", 1, 2)
    assert json.loads((directory / "lab.json").read_text())["nodes"] == ["node1"]
    assert state.read(directory).nodes == ("node1",)


def test_what_labs_share_goes_with_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, netns = tmp_path / "labs", tmp_path / "netns"
    monkeypatch.setattr(state, "BASE", base)
    monkeypatch.setattr(state, "NETNS_DIRECTORY", netns)
    state.make_directory(base / "a")
    state.make_directory(base / "b")
    state.remove_directory(base / "a")
    assert netns.is_dir(), "the other lab's mounts are there"
    state.remove_directory(base / "b")
    assert list(tmp_path.iterdir()) == []
    netns.mkdir()
    state.make_directory(base / "c")
    state.remove_directory(base / "c")
    assert list(tmp_path.iterdir()) == [netns], "it was there before any lab"
