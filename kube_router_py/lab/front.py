"""The process in front: what the user started. It runs the server behind it and COMMAND beside it.

    front (the caller's namespaces) --- COMMAND, shell or tour
      `- keeper (new mount and PID namespaces)
           `- init: reaps orphans; when it ends, the kernel ends every process of the lab
                `- server: API server, controllers, kubelets; parent of agents and pods

The pipe from front to server is the life line: when front ends, however it ends, the server sees
the pipe close and takes everything down. If the server itself is killed, init ends and the kernel
does it. Mounts and network namespaces live in the keeper's mount namespace and go with it.
"""

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kube_router_py.lab import sandbox, state
from kube_router_py.lab.errors import LabError

STOP_DEADLINE_S = 60.0
COMMAND_GRACE_S = 10.0
PROJECT = Path(__file__).resolve().parent.parent.parent

Report = Callable[[dict[str, Any]], None]
Serve = Callable[[Path, Report, int], None]


class Backstage:
    """The server behind: ``start`` returns when the lab is up, ``stop`` when nothing is left."""

    def __init__(self, serve: Serve, nodes: Sequence[str], progress: Callable[[str], None]) -> None:
        self._serve = serve
        self._nodes = tuple(nodes)
        self._progress = progress
        self._keeper = 0
        self._life_line = -1
        self._pid_namespace = ""
        self.directory = state.BASE / secrets.token_hex(3)
        self.environment: dict[str, str] = {}

    def start(self) -> None:
        """Raises LabError with the server's reason when it cannot come up."""
        state.sweep()
        load_bridge_netfilter()
        state.make_directory(self.directory)
        for name in ("logs", "nodes", "bin"):
            (self.directory / name).mkdir()
        _write_program(self.directory / "bin" / "kube-router-py")
        news, report = os.pipe()
        life, self._life_line = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.close(news)
            os.close(self._life_line)
            _keep(lambda: self._become_server(report, life))
        os.close(report)
        os.close(life)
        started = state.start_time(self._keeper)
        self.state = state.LabState(self.directory, self._keeper, started or 0, self._nodes)
        self.state.write()
        try:
            self._wait_ready(news)
        finally:
            os.close(news)

    def _become_server(self, report: int, life: int) -> None:
        with os.fdopen(report, "w") as pipe:

            def tell(message: dict[str, Any]) -> None:
                try:
                    pipe.write(json.dumps(message) + "\n")
                    pipe.flush()
                except BrokenPipeError:
                    pass  # front has heard "ready" and no longer listens, or has gone

            self._serve(self.directory, tell, life)

    def _wait_ready(self, news: int) -> None:
        with os.fdopen(os.dup(news)) as pipe:
            for line in pipe:
                message = json.loads(line)
                if "progress" in message:
                    self._progress(message["progress"])
                if "failed" in message:
                    raise LabError(message["failed"])
                if "ready" in message:
                    self.environment = message["ready"]
                    children = f"/proc/{self._keeper}/ns/pid_for_children"
                    self._pid_namespace = os.readlink(children)
                    return
        raise LabError(f"the lab's server ended before it was ready\n{self.last_words()}")

    def leftovers(self) -> list[str]:
        """What is still there of the lab: processes, its directory. Empty after ``stop``.

        Namespaces and mounts need no look of their own: only processes in there keep them.
        """
        found = [str(self.directory)] if self.directory.exists() else []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns" / "pid") == self._pid_namespace:
                    found.append(f"process {entry.name}")
            except OSError:
                continue  # ended meanwhile
        return found

    def last_words(self) -> str:
        """The end of the server's log."""
        try:
            lines = (self.directory / "logs" / "lab.log").read_text().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-20:])

    def stop(self) -> None:
        """Take everything down; safe to call at any time and more than once."""
        if self._keeper > 0 and self._pid_namespace:
            self.state.end_visitors()
        if self._life_line >= 0:
            os.close(self._life_line)
            self._life_line = -1
        if self._keeper > 0:
            _reap(self._keeper, STOP_DEADLINE_S)
            self._keeper = 0
        state.remove_directory(self.directory)


def load_bridge_netfilter() -> None:
    """Load br_netfilter, which every Kubernetes node needs: bridged replies must pass IPVS.

    Loading it switches filtering on in every namespace; where it was not loaded before, the
    machine's own bridges go on as they were.
    """
    settings = Path("/proc/sys/net/bridge")
    if settings.exists() or shutil.which("modprobe") is None:
        return
    subprocess.run(["modprobe", "-q", "br_netfilter"], check=False, timeout=30)
    for setting in settings.glob("bridge-nf-call-*"):
        setting.write_text("0")


def _write_program(path: Path) -> None:
    """``kube-router-py`` of this very checkout and interpreter, for COMMAND's PATH and agents."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "from kube_router_py.cli import main\n"
        "sys.exit(main())\n"
    )
    path.chmod(0o755)


def _reap(pid: int, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    descriptor = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped already
    finally:
        os.close(descriptor)


def _keep(become_server: Callable[[], None]) -> None:
    """In the forked child: build the namespaces, run init in them, wait. Never returns."""
    code = 1
    try:
        # Not the terminal's ^C, not COMMAND's job control: only the life line ends the server.
        os.setsid()
        sandbox.unshare(sandbox.CLONE_NEWNS | sandbox.CLONE_NEWPID)
        sandbox.mount("none", "/", flags=sandbox.MS_REC | sandbox.MS_PRIVATE)
        sandbox.mount("tmpfs", str(state.NETNS_DIRECTORY), "tmpfs", data="mode=755")
        init = os.fork()
        if init == 0:
            # Should the keeper be killed, nobody would be left to collect init: end with it.
            _be_init(become_server)
        _, status = os.waitpid(init, 0)
        code = os.waitstatus_to_exitcode(status)
    except OSError as error:
        print(f"lab: {error}", file=sys.stderr)
    finally:
        os._exit(code if code >= 0 else 1)


def _be_init(become_server: Callable[[], None]) -> None:
    code = 1
    try:
        flags = sandbox.MS_NOSUID | sandbox.MS_NODEV | sandbox.MS_NOEXEC
        sandbox.mount("proc", "/proc", "proc", flags)
        server = os.fork()
        if server == 0:
            try:
                become_server()
                code = 0
            finally:
                os._exit(code)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == server:
                code = os.waitstatus_to_exitcode(status)
                break
    finally:
        os._exit(code if code >= 0 else 1)


def run_command(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run COMMAND with our standard streams; its exit code as a shell would give it.

    ^C reaches COMMAND through the terminal, SIGTERM is passed on; both leave it some time to end.
    """
    try:
        process = subprocess.Popen(argv, env=dict(environ))
    except OSError as error:
        raise LabError(f"cannot run {argv[0]}: {error.strerror}") from error
    asked = 0

    def pass_on(number: int, _frame: object) -> None:
        nonlocal asked
        asked = number
        if number != signal.SIGINT or not sys.stdin.isatty():
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        while True:
            try:
                code = process.wait(timeout=0.5 if not asked else COMMAND_GRACE_S)
            except subprocess.TimeoutExpired:
                # An interactive program may live on after ^C; one told to end may not.
                if asked and not (asked == signal.SIGINT and sys.stdin.isatty()):
                    process.kill()
                continue
            return code if code >= 0 else 128 - code
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)
