"""``install-cni``: what is missing is copied, what is there stays, half a plugin never shows."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from kube_router_py.cli import main
from kube_router_py.cni_plugins import USUAL, Outcome, install
from kube_router_py.lab.manifests import render_kustomization

REPOSITORY = Path(__file__).parents[3]
SOMEBODY = 997


def program(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in USUAL:
        program(tmp_path / "from" / name, f"#!/bin/sh\necho {name}\n")
    return tmp_path / "from"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "to" / "bin"


def of(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.plugin: outcome.action for outcome in outcomes}


def test_what_is_missing_is_copied_into_a_directory_that_is_made(
    source: Path, target: Path
) -> None:
    mask = os.umask(0o077)
    try:
        assert of(install(source, target)) == dict.fromkeys(USUAL, "installed")
    finally:
        os.umask(mask)
    assert sorted(os.listdir(target)) == sorted(USUAL)
    for name in USUAL:
        assert (target / name).read_bytes() == (source / name).read_bytes()
        assert (target / name).stat().st_mode & 0o7777 == 0o755
    assert of(install(source, target)) == dict.fromkeys(USUAL, "kept")


def test_one_that_is_there_stays_until_it_is_to_be_replaced(source: Path, target: Path) -> None:
    other = program(target / "bridge", "another")
    before = other.stat().st_ino
    kept = Outcome("bridge", "kept", "another one is there")
    assert install(source, target, ["bridge", "loopback"]) == [
        kept,
        Outcome("loopback", "installed"),
    ]
    assert (other.read_text(), other.stat().st_ino) == ("another", before)
    assert of(install(source, target, ["bridge", "loopback"], replace=True)) == {
        "bridge": "replaced",
        "loopback": "kept",
    }
    assert other.read_bytes() == (source / "bridge").read_bytes()
    assert other.stat().st_ino != before, "a program that runs is not written into"


@pytest.mark.parametrize("broken", ["empty", "not executable", "dangling"])
def test_what_cannot_be_run_counts_as_missing(source: Path, target: Path, broken: str) -> None:
    target.mkdir(parents=True)
    if broken == "dangling":
        (target / "bridge").symlink_to("/nonexistent/bridge")
    else:
        program(target / "bridge", *(("",) if broken == "empty" else ("text", 0o644)))
    assert of(install(source, target, ["bridge"])) == {"bridge": "installed"}
    assert (target / "bridge").read_bytes() == (source / "bridge").read_bytes()
    assert not (target / "bridge").is_symlink()


def test_a_link_to_another_program_is_one_that_is_there(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    other = program(target.parent / "multi-call")
    (target / "bridge").symlink_to(other)
    assert of(install(source, target, ["bridge"])) == {"bridge": "kept"}
    assert (target / "bridge").is_symlink()


def test_one_that_fails_does_not_keep_the_others(source: Path, target: Path) -> None:
    (target / "portmap").mkdir(parents=True)
    found = install(source, target, ["nosuch", "portmap", "bridge"])
    assert of(found) == {"nosuch": "failed", "portmap": "failed", "bridge": "installed"}
    assert found[0].reason == f"{source}/nosuch is no program"
    assert found[1].reason == f"{target}/portmap is a directory"


def test_a_disk_that_is_full_leaves_what_was_there(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(target / "bridge", "another")

    def full(_from: BinaryIO, to: BinaryIO, _size: int) -> None:
        to.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    (found,) = install(source, target, ["bridge"], replace=True)
    assert found == Outcome("bridge", "failed", f"{target}/bridge: No space left on device")
    assert os.listdir(target) == ["bridge"]
    assert (target / "bridge").read_text() == "another"


def test_the_plugin_appears_whole(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    copy = shutil.copyfileobj

    def looked_at(given: BinaryIO, taken: BinaryIO, size: int) -> None:
        copy(given, taken, size)
        seen.append(sorted(name for name in os.listdir(target) if not name.startswith(".")))

    monkeypatch.setattr(shutil, "copyfileobj", looked_at)
    install(source, target, ["bridge", "portmap"])
    assert seen == [[], ["bridge"]]


def test_what_a_killed_run_left_is_removed(source: Path, target: Path) -> None:
    program(target / ".kube-router-py.bridge", "half of it")
    program(target / ".somebody-elses", "text")
    install(source, target, ["bridge"])
    assert sorted(os.listdir(target)) == [".somebody-elses", "bridge"]


def test_two_at_a_time_take_turns(source: Path, target: Path) -> None:
    found: list[list[Outcome]] = []
    runs = [threading.Thread(target=lambda: found.append(install(source, target))) for _ in "abcd"]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    actions = [outcome.action for outcomes in found for outcome in outcomes]
    assert sorted(actions) == ["installed"] * 4 + ["kept"] * 12


# --- the command --------------------------------------------------------------------------------


def test_it_says_what_became_of_each(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(target / "bridge", "another")
    arguments = ["install-cni", "--from", str(source), f"--to={target}"]
    assert main([*arguments, "bridge", "portmap", "bridge"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PLUGIN   ACTION     REASON",
        "bridge   kept       another one is there",
        "portmap  installed  -",
    ]
    assert main([*arguments, "--replace", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["from"], found["to"]) == (str(source), str(target))
    assert [(each["plugin"], each["action"]) for each in found["plugins"]] == [
        ("bridge", "replaced"),
        ("host-local", "installed"),
        ("loopback", "installed"),
        ("portmap", "kept"),
    ]


def test_exit_codes(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["install-cni", "--from", str(source), "--to", str(target)]
    assert main([*arguments, "nosuch", "bridge"]) == 1
    assert "nosuch is no program" in capsys.readouterr().out
    blocked = program(target.parent / "file")
    assert main(["install-cni", "--from", str(source), "--to", str(blocked)]) == 1
    assert f"{blocked}: File exists" in capsys.readouterr().err
    assert main([*arguments, "../bridge", "--verbose", "--output=yaml"]) == 2
    said = capsys.readouterr().err
    for mistake in ("'../bridge' is no name of a plugin", "--verbose is no flag", "'yaml'"):
        assert mistake in said
    assert main(["install-cni", "--help"]) == 0
    assert "--replace" in capsys.readouterr().out


def given_capabilities() -> list[str]:
    """Those of the init container, by the names of setpriv(1)."""
    (daemon_set,) = [
        each
        for each in render_kustomization(REPOSITORY / "manifests/overlays/all")
        if each["kind"] == "DaemonSet"
    ]
    (container,) = [
        each
        for each in daemon_set["spec"]["template"]["spec"]["initContainers"]
        if each["name"] == "install-cni"
    ]
    return [f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="missing capability: root")
def test_the_init_container_may_write_where_the_directory_is_another_users(
    source: Path, target: Path
) -> None:
    """As installers of clusters leave it; a plugin that only its owner may read is there, too."""
    other = program(target / "bridge", "another", 0o700)
    for path in (other, target):
        os.chown(path, SOMEBODY, SOMEBODY)
    bounding = ",".join(["-all", *given_capabilities()])
    done = subprocess.run(
        [
            *("setpriv", "--no-new-privs", f"--bounding-set={bounding}", f"--inh-caps={bounding}"),
            *(sys.executable, "-m", "kube_router_py", "install-cni"),
            *(f"--from={source}", f"--to={target}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert other.read_text() == "another"
    assert sorted(os.listdir(target)) == sorted(USUAL)
