"""Watching over the VM's processes, with shells in their place."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kube_router_py.lab import vm

DEADLINE_S = 60.0
SUPERVISE = """\
import sys
from pathlib import Path
from kube_router_py.lab import vm
code = vm._supervise(
    ["sh", "-c", sys.argv[2]], Path(sys.argv[1]), sys.argv[3] == "terminal", lambda line: None
)
sys.exit(code)
"""


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def front(control: Path, script: str, kind: str = "pipes") -> list[str]:
    (control / "started").touch()
    return [sys.executable, "-c", SUPERVISE, str(control), script, kind]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    directory = tmp_path / "control"
    directory.mkdir()
    return directory


def test_streams_and_exit_code_are_passed_on(control: Path) -> None:
    argv = front(control, "echo out; echo error >&2; exit 37")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (37, "out\n", "error\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_however_it_ends_nothing_goes_on(control: Path, number: signal.Signals) -> None:
    # The grandchild ignores what its parent dies of, like an emulator whose starter was signalled.
    script = f"(trap '' TERM; echo $$ > {control}/a; exec sleep 1000) & echo $!; wait"
    process = subprocess.Popen(front(control, script), stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    process.send_signal(number)
    code = process.wait(timeout=DEADLINE_S)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    eventually(lambda: not is_alive(grandchild))
    if number == signal.SIGKILL:
        eventually(lambda: not control.exists())
    process.stdout.close()


def test_a_reader_that_leaves_early_blocks_nothing(control: Path) -> None:
    script = f"head -c 1000000 /dev/zero; echo done > {control}/said; exit 5"
    process = subprocess.Popen(front(control, script), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_S) == 5
    assert (control / "said").read_text() == "done\n"


def test_what_prints_for_ever_ends_when_nobody_reads_it(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = SUPERVISE.replace("code =", "vm.UNREAD_GRACE_S = 0.1\ncode =")
    argv = [*front(control, "exec yes")]
    argv[2] = code
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_S) == vm.BROKEN_PIPE


def test_a_terminal_is_lent_and_comes_back(control: Path) -> None:
    raw = "stty -a | tr ';' '\\n' | grep -q -- -icanon"
    # Raw only after it was lent, which flushes what was typed before.
    script = f"until {raw}; do sleep 0.02; done; echo ready; read -r line; echo got $line; exit 9"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, front(control, script, "terminal"))
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"hello\n")
    while b"got hello" not in said:
        said += os.read(terminal, 4096)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 9
