"""Run a command in a throw-away VM whose kernel has IPVS, on this machine's own file system.

It has the host's root file system, and what it writes there goes to memory and vanishes, so a
command finds every program where it is on the host. Used by the lab and the tests where the host's
kernel lacks ip_vs or the caller is not root. User-mode Linux if there is one (see ``uml``), or QEMU
(see ``qemu``).

    python -m kube_router_py.lab.vm [--rw DIR]... [--verbose] -- COMMAND [ARG...]
"""

import argparse
import compileall
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from kube_router_py.errors import PreflightError
from kube_router_py.lab import qemu, uml

MEMORY = "4G"
BOOT_DEADLINE_S = 300.0
# How long the command may go on after nobody reads what it prints.
UNREAD_GRACE_S = 30.0
BROKEN_PIPE = 128 + signal.SIGPIPE
# Should we be killed outright, nobody else would end the VM: this shell, first of the VM's process
# group, sees its pipe close.
GUARD = """\
trap '' TERM INT HUP
read -r _
kill -TERM 0
sleep 1
rm -rf -- "$1"
kill -KILL 0
"""
# These paths go through a shell and the kernel's command line.
SHAREABLE = re.compile(r"[A-Za-z0-9/._+-]+")
# bash refuses to set these.
READ_ONLY = {"BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"}


def has_ip_vs() -> bool:
    """Whether this kernel has IPVS, loading its module if that is allowed."""
    if Path("/proc/net/ip_vs").exists():
        return True
    if os.geteuid() != 0 or shutil.which("modprobe") is None:
        return False
    subprocess.run(["modprobe", "-q", "ip_vs"], check=False, timeout=30)
    return Path("/proc/net/ip_vs").exists()


def run_in_vm(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    read_write: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Run ``argv`` as root in a VM; returns its exit code.

    Standard streams are the caller's; with a terminal on standard input the command gets one too.
    ``read_write`` directories keep what the command writes there, everything else is forgotten.
    Raises PreflightError when the VM cannot be started.
    """
    cwd = (cwd or Path.cwd()).resolve()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    linux = None if interactive or qemu.kvm_works() else uml.kernel()
    kernel = "" if linux else qemu.guest_kernel()
    if not linux and (missing := qemu.missing_programs()):
        raise PreflightError(f"{' and '.join(missing)} not found; {qemu.REMEDY}")
    for path in read_write:
        if not SHAREABLE.fullmatch(str(path.resolve())):
            raise PreflightError(
                f"{path}: a VM cannot share a directory with blanks or special characters in its "
                "name; choose another"
            )
    # The guest cannot write byte code back; compiling under emulation at each start is slow.
    compileall.compile_dir(str(Path(__file__).parent.parent), quiet=2, workers=0)

    with tempfile.TemporaryDirectory(prefix="krp-vm-", ignore_cleanup_errors=True) as name:
        control = Path(name)
        script = control / "run.sh"
        prologue = uml.prologue(control) if linux else qemu.prologue(control)
        script.write_text(prologue + _guest_script(argv, cwd, env, control, interactive))
        shared = [control, *(path.resolve() for path in read_write)]
        if linux:
            command = uml.command(linux, script, shared, MEMORY)
            progress(f"booting User-mode Linux, {linux}")
        else:
            command = qemu.command(kernel, script, shared, MEMORY)
            kind = (
                "KVM"
                if qemu.kvm_works()
                else "software emulation: Python runs 10 to 20 times slower"
            )
            progress(f"booting Linux {kernel} in QEMU ({kind})")
        return _supervise(command, control, interactive, progress)


def _guest_script(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None, control: Path, terminal: bool
) -> str:
    variables = {
        **(os.environ if env is None else env),
        "HOME": "/run/home",
        "PATH": qemu.search_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": "/tmp",
    }
    command = shlex.join(argv)
    if terminal:
        size = shutil.get_terminal_size()
        resize = f"stty rows {size.lines} cols {size.columns}"
        command = f"script -qefc {shlex.quote(f'{resize}; {command}')} /dev/null"
    # A file on standard input is handed over; a pipe might never end and is not waited for.
    redirect = ""
    if not terminal and sys.stdin is not None and stat.S_ISREG(os.fstat(0).st_mode):
        (control / "stdin").write_bytes(sys.stdin.buffer.read())
        redirect = f" < {shlex.quote(str(control / 'stdin'))}"
    lines = [
        *(
            f"export {name}={shlex.quote(value)}"
            for name, value in variables.items()
            if name.isidentifier() and name not in READ_ONLY
        ),
        f"cd {shlex.quote(str(cwd))} || exit 1",
        f"exec {command}{redirect}",
    ]
    return "\n".join(lines) + "\n"


def _supervise(
    command: Sequence[str], control: Path, interactive: bool, progress: Callable[[str], None]
) -> int:
    """Wait for the VM; end it if it does not come up, or when we are told to end."""
    began = time.monotonic()
    arrived, armed = 0, False

    def stop(number: int, _frame: object) -> None:
        nonlocal arrived
        arrived = number
        if armed:
            raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in numbers}
    # A process group of their own, so that one signal ends vng, virtme-run and QEMU together.
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, "sh", str(control)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    # QEMU opens its standard output anew by path, which in a file would start over at offset 0:
    # hand it pipes and copy.
    process = subprocess.Popen(
        command,
        stdin=None if interactive else subprocess.DEVNULL,
        stdout=None if interactive else subprocess.PIPE,
        stderr=None if interactive else subprocess.PIPE,
        env={**os.environ, "PATH": qemu.search_path()},
        process_group=guard.pid,
    )
    unread = threading.Event()
    copies = [
        threading.Thread(target=_copy, args=(source, target, unread), daemon=True)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        if source is not None
    ]
    for copy in copies:
        copy.start()
    try:
        armed = True
        if arrived:
            raise SystemExit(128 + arrived)
        with _lent_terminal(guard.pid if interactive else 0):
            return _wait(process, control, began, unread, progress)
    finally:
        for number in numbers:  # a second ^C must not leave the VM behind
            signal.signal(number, signal.SIG_IGN)
        _end(process, guard)
        for copy in copies:
            copy.join(timeout=10)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(
    process: subprocess.Popen[bytes],
    control: Path,
    began: float,
    unread: threading.Event,
    progress: Callable[[str], None],
) -> int:
    started, unread_since = False, 0.0
    while True:
        try:
            return process.wait(timeout=0.5 if started else 0.2)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if unread.is_set():
                unread_since = unread_since or now
                if now - unread_since > UNREAD_GRACE_S:
                    return BROKEN_PIPE
            if not started and (control / "started").exists():
                started = True
                progress(f"VM is up after {now - began:.0f} s")
            elif not started and now - began > BOOT_DEADLINE_S:
                raise PreflightError(
                    f"the VM did not start within {BOOT_DEADLINE_S:.0f} s; "
                    "try again with `--verbose`, or on a machine whose kernel has ip_vs"
                ) from None


@contextmanager
def _lent_terminal(group: int) -> Iterator[None]:
    """Standard input, a terminal, belongs to process group ``group`` meanwhile and is raw."""
    if not group:
        yield
        return
    terminal = sys.stdin.fileno()
    saved = termios.tcgetattr(terminal)
    try:
        owner = os.tcgetpgrp(terminal)
    except OSError:
        owner = 0  # not the terminal that controls us: nobody is in its foreground
    # Out of the foreground, changing the terminal would stop us.
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        if owner:
            os.tcsetpgrp(terminal, group)
        tty.setraw(terminal)
        yield
    finally:
        try:
            if owner:
                os.tcsetpgrp(terminal, owner)
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
        except (OSError, termios.error):
            pass  # the terminal has gone
        signal.signal(signal.SIGTTOU, before)


def _copy(source: IO[bytes], target: TextIO, unread: threading.Event) -> None:
    while data := os.read(source.fileno(), 65536):
        if unread.is_set():
            continue  # our reader has gone; the command's exit code still counts
        try:
            target.buffer.write(data)
            target.buffer.flush()
        except (OSError, ValueError):
            unread.set()


def _end(process: subprocess.Popen[bytes], guard: subprocess.Popen[bytes]) -> None:
    """End the whole process group; the VM has nothing that needs time to end."""
    if process.poll() is None:
        os.killpg(guard.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
    os.killpg(guard.pid, signal.SIGKILL)
    process.wait()
    guard.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kube_router_py.lab.vm", description=__doc__)
    parser.add_argument("--rw", action="append", type=Path, default=[], metavar="DIR")
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is happening")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    def progress(line: str) -> None:
        if args.verbose:
            print(f"vm: {line}", file=sys.stderr, flush=True)

    try:
        return run_in_vm(args.command, read_write=args.rw, progress=progress)
    except PreflightError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
