"""What surrounds User-mode Linux, with a shell in its place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kube_router_py.lab import uml

KERNEL = """\
#!/bin/sh
echo 'Linux says something'
for word; do case $word in init=*) control=${word#init=}; control=${control%/*} ;; esac; done
"""


def launched(tmp_path: Path, kernel: str) -> "subprocess.CompletedProcess[str]":
    linux = tmp_path / "linux"
    linux.write_text(KERNEL + kernel)
    linux.chmod(0o755)
    control = tmp_path / "control"
    control.mkdir()
    argv = uml.command(linux, control / "run.sh", [control, tmp_path / "kept here"], "1G")
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_streams_and_exit_code_are_those_of_the_script(tmp_path: Path) -> None:
    done = launched(tmp_path, 'echo out >&3; echo error >&4; echo 37 >"$control/code"; exit 1')
    assert (done.returncode, done.stdout, done.stderr) == (37, "out\n", "error\n")


def test_without_an_exit_code_the_kernels_own_words_are_shown(tmp_path: Path) -> None:
    done = launched(tmp_path, "echo 'Kernel panic - not syncing'; exit 0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Linux says something\nKernel panic - not syncing\n"


def test_the_first_process_is_a_script_that_bash_can_read(tmp_path: Path) -> None:
    launched(tmp_path, "exit 0")
    init = tmp_path / "control/init"
    assert os.access(init, os.X_OK)
    subprocess.run(["bash", "-n", str(init)], check=True, timeout=60)
    # In there: the rest of it, which is quoted.
    (rest,) = (line for line in init.read_text().splitlines() if line.startswith("exec chroot"))
    assert rest.startswith("exec chroot . /bin/bash -c 'umount -l /mnt")
    assert f"'{tmp_path}/kept here'" in init.read_text()


def test_it_is_taken_if_it_was_built_unless_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.delenv("LAB_VM", raising=False)
    assert uml.kernel() is None
    linux = tmp_path / "uml/linux"
    linux.parent.mkdir()
    linux.write_text("")
    assert uml.kernel() is None
    linux.chmod(0o755)
    assert uml.kernel() == linux
    monkeypatch.setenv("LAB_VM", "qemu")
    assert uml.kernel() is None
