"""``kube-router-py lab``: start a lab, and the commands that act on a running one."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kube_router_py.errors import KubeRouterError
from kube_router_py.lab import front, state, vm
from kube_router_py.lab.errors import LabError
from kube_router_py.lab.fabric import FAMILIES, MAX_NODES
from kube_router_py.lab.router import KINDS as ROUTERS

PROGRAM = "kube-router-py lab"
INSIDE_VM = "KUBE_ROUTER_LAB_VM"
WITHOUT_PROXY = "--run-service-proxy=false"

DESCRIPTION = """\
A cluster on this machine: nodes in network namespaces, a small API server, pods wired by CNI
plugins, and the real agent on every node. COMMAND runs with KUBECONFIG set; without COMMAND it is a
shell on a terminal, or else the guided tour.
"""
EPILOG = """\
with a running lab:
  lab exec node1|client|desk|router|NAMESPACE/POD -- COMMAND...   run a command there
  lab wait                                    until every agent has applied the API's revision
  lab agent NODE stop|kill|start|freeze|thaw|logs
                                              the agent of a node; start takes --agent-arg, too
  lab apiserver stop|start [--compact]        the API server; --compact forgets its history
"""


def main(argv: Sequence[str]) -> int:
    """The exit code: COMMAND's own, 1 when the lab fails, 2 for wrong arguments."""
    actions: dict[str, Callable[[Sequence[str]], int]] = {
        "exec": _exec,
        "wait": _wait,
        "agent": _agent,
        "apiserver": _apiserver,
    }
    try:
        if argv and argv[0] in actions:
            return actions[argv[0]](argv[1:])
        return _start(argv)
    except KubeRouterError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Our own words and COMMAND, which is None without ``--``."""
    words = list(argv)
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


# --- starting a lab -------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [OPTION]... [-- COMMAND...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-f",
        dest="files",
        action="append",
        default=[],
        type=Path,
        metavar="FILE|DIR",
        help="manifests to apply before COMMAND starts; may be repeated",
    )
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="nodes (default: 2)")
    parser.add_argument(
        "--router",
        choices=("none", *ROUTERS),
        default="none",
        help="have the agents route, with a BGP router outside; none: the lab lays the routes",
    )
    parser.add_argument(
        "--subnets",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: some nodes are behind the router (with --router; default: 1)",
    )
    parser.add_argument(
        "--ip-family",
        choices=sorted(FAMILIES),
        default="ipv4",
        help="of nodes, pods and Services, for the agents, too (default: ipv4)",
    )
    parser.add_argument(
        "--agent-arg",
        action="append",
        default=[],
        metavar="--FLAG=VALUE",
        help="an argument for every agent, as --agent-arg=--v=2; may be repeated",
    )
    parser.add_argument(
        "--no-init",
        action="store_true",
        help="start the agents without the init containers of their pods: sooner, in a slow VM",
    )
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="where the agent's image is unpacked, for the agents to run in; default: they run "
        "from this checkout, with this machine's programs",
    )
    parser.add_argument(
        "--vm",
        choices=("auto", "always", "never"),
        default="auto",
        help="run in a VM; auto: without root, or where the kernel lacks ip_vs (which agents with "
        f"{WITHOUT_PROXY} do not need)",
    )
    parser.add_argument(
        "--apiserver",
        choices=("lab", "real"),
        default="lab",
        help="real: the kube-apiserver and etcd below $KUBEBUILDER_ASSETS",
    )
    parser.add_argument("--tour", action="store_true", help="the guided tour, also on a terminal")
    parser.add_argument("--verbose", action="store_true", help="say on stderr what is happening")
    return parser


def _start(argv: Sequence[str]) -> int:
    words, command = split_command(argv)
    parser = _parser()
    given = parser.parse_args(words)
    if not 1 <= given.nodes <= MAX_NODES:
        parser.error(f"--nodes {given.nodes}: the lab has 1 to {MAX_NODES} nodes")
    if given.subnets > 1 and given.router == "none":
        parser.error("--subnets 2: without --router nodes of two subnets have no routes")
    if given.subnets > given.nodes:
        parser.error(f"--subnets {given.subnets}: there is no node for each of them")
    if command == []:
        parser.error("nothing follows --: give a command, or leave the -- away")
    if given.apiserver == "real":
        from kube_router_py.lab.apiserver.real import find_programs

        find_programs(os.environ)
    for file in given.files:
        if not file.exists():
            raise LabError(f"cannot read {file}: there is no such file or directory")
    if given.image_root and not (given.image_root / "opt/kube-router-py/bin").is_dir():
        raise LabError(f"{given.image_root} has no opt/kube-router-py: it is no root of an image")
    mode = _mode(given, command)

    def progress(line: str) -> None:
        if given.verbose or mode != "command":
            print(f"lab: {line}", file=sys.stderr, flush=True)

    needs_vm = _needs_vm(given.vm, given.agent_arg)
    if needs_vm:
        _check_manifests(given.files)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    out, is_own_out = _out_directory()
    try:
        if needs_vm:
            extra = ["--vm=never", *(["--tour"] if mode == "tour" else [])]
            tail = [] if command is None else ["--", *command]
            return vm.run_in_vm(
                [sys.executable, "-c", _REENTER, "lab", *words, *extra, *tail],
                env={**os.environ, "LAB_OUT": str(out), INSIDE_VM: "1"},
                read_write=[out],
                progress=progress,
            )
        return _run(given, command, mode, progress, out)
    finally:
        if is_own_out:
            _leave(out, progress)


def _interrupted(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _check_manifests(files: Sequence[Path]) -> None:
    """Raises LabError now rather than after a VM has booted for nothing."""
    from kube_router_py.lab.manifests import read_files

    for file in files:
        if not (file.is_file() or file.is_dir()):
            raise LabError(f"{file} is neither a file nor a directory: a VM cannot read it")
    read_files(files)


_REENTER = (
    f"import sys; sys.path.insert(0, {str(front.PROJECT)!r}); "
    "from kube_router_py.cli import main; sys.exit(main())"
)


def _mode(given: argparse.Namespace, command: list[str] | None) -> str:
    if command is not None:
        return "command"
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return "shell" if on_terminal and not given.tour else "tour"


def _needs_vm(wanted: str, agent_args: Sequence[str] = ()) -> bool:
    """Raises LabError when the lab cannot run here and must not use a VM."""
    if wanted == "always":
        return True
    is_root, has_ip_vs = os.geteuid() == 0, WITHOUT_PROXY in agent_args or vm.has_ip_vs()
    if is_root and has_ip_vs:
        return False
    if wanted == "auto":
        return True
    if not is_root:
        raise LabError("the lab needs root here: use sudo, or --vm auto to run it in a VM")
    raise LabError(
        "this kernel has no ip_vs (modprobe ip_vs fails): use --vm auto to run the lab in a VM"
    )


def _out_directory() -> tuple[Path, bool]:
    """$LAB_OUT, or a new directory that goes away again if COMMAND leaves it empty."""
    named = os.environ.get("LAB_OUT")
    if named:
        out = Path(named).resolve()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"LAB_OUT={named} is no directory to write to: {error}") from error
        return out, False
    return Path(tempfile.mkdtemp(prefix="kube-router-lab-out-")), True


def _leave(out: Path, progress: Callable[[str], None]) -> None:
    try:
        out.rmdir()
    except OSError:
        progress(f"files left for you in {out}")


def _run(
    given: argparse.Namespace,
    command: list[str] | None,
    mode: str,
    progress: Callable[[str], None],
    out: Path,
) -> int:
    from kube_router_py.lab.cluster import LabOptions
    from kube_router_py.lab.server import serve

    options = LabOptions(
        files=tuple(file.resolve() for file in given.files),
        nodes=given.nodes,
        ip_family=given.ip_family,
        agent_args=tuple(given.agent_arg),
        image_root=given.image_root and given.image_root.absolute(),
        has_init=not given.no_init,
        apiserver=given.apiserver,
        router=given.router,
        subnets=given.subnets,
    )
    names = [f"node{number}" for number in range(1, given.nodes + 1)]
    if mode == "tour" and not options.files:
        from kube_router_py.lab.tour import EXAMPLE

        options = replace(options, files=(EXAMPLE,))

    began = time.monotonic()
    backstage = front.Backstage(lambda *rest: serve(options, *rest), names, progress)
    try:
        try:
            backstage.start()
        except LabError as error:
            saved = _save_logs(backstage.directory, out)
            raise LabError(f"{error}\nall logs: {saved}") from error
        progress(f"up after {time.monotonic() - began:.1f} s")
        environ = {
            **os.environ,
            **backstage.environment,
            "LAB_OUT": str(out),
            "PATH": f"{backstage.directory / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        }
        if mode == "tour":
            from kube_router_py.lab.tour import farewell
            from kube_router_py.lab.tour_balancer import tour

            code = tour(backstage.state, environ, began)
            if code != 0:
                progress(f"all logs: {_save_logs(backstage.directory, out)}")
                return code
            return farewell(backstage, began)
        if command is None:
            shell = os.environ.get("SHELL") or "/bin/sh"
            print("lab: a shell with KUBECONFIG set; `exit` takes the lab down", file=sys.stderr)
            return front.run_command([shell], environ)
        return front.run_command(command, environ)
    finally:
        # A second ^C must not leave half a lab behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        backstage.stop()


def _save_logs(directory: Path, out: Path) -> Path:
    target = out / "lab-logs"
    shutil.copytree(directory / "logs", target, dirs_exist_ok=True)
    return target


# --- with a running lab ---------------------------------------------------------------------------


def _exec(argv: Sequence[str]) -> int:
    words, command = split_command(argv)
    if len(words) != 1 or not command:
        print(
            f"usage: {PROGRAM} exec node1|client|desk|router|NAMESPACE/POD -- COMMAND...",
            file=sys.stderr,
        )
        return 2
    state.require_root()
    inside = state.attach(os.environ).enter(words[0], command)
    try:
        os.execvp(inside[0], inside)
    except OSError as error:
        raise LabError(f"cannot run {inside[0]}: {error.strerror}") from error


def _wait(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} wait")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    given = parser.parse_args(argv)
    state.attach(os.environ).ask({"op": "wait", "timeout_s": given.timeout})
    return 0


def _agent(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} agent")
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("verb", choices=("stop", "kill", "start", "freeze", "thaw", "logs"))
    parser.add_argument(
        "--agent-arg",
        action="append",
        default=[],
        metavar="--FLAG=VALUE",
        help="of start: a further argument for this run of the agent; may be repeated",
    )
    given = parser.parse_args(argv)
    lab = state.attach(os.environ)
    answer = lab.ask(
        {"op": "agent", "node": given.node, "verb": given.verb, "agent_args": given.agent_arg}
    )
    if given.verb == "logs":
        sys.stdout.write(Path(answer["log"]).read_text(errors="replace"))
    return 0


def _apiserver(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} apiserver")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("stop", help="vanish: connections are reset")
    start = verbs.add_parser("start", help="listen again")
    start.add_argument("--compact", action="store_true", help="forget all history first")
    inject = verbs.add_parser("inject", help="send a line on every open watch of RESOURCE")
    inject.add_argument("resource", metavar="RESOURCE")
    inject.add_argument("line", metavar="LINE")
    hang_up = verbs.add_parser("hang-up", help="end the open watches")
    hang_up.add_argument("resource", nargs="?", default="", metavar="RESOURCE")
    verbs.add_parser("requests", help="how many requests of each kind were answered, as JSON")
    given = vars(parser.parse_args(argv))
    answer = state.attach(os.environ).ask({"op": "apiserver", **given})
    if given["verb"] == "requests":
        import json

        print(json.dumps(answer["requests"], indent=1, sort_keys=True))
    return 0
