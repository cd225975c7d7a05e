"""The command line: the agent by default, and its subcommands.

Each imports what it needs when it runs: ``--version``, ``--help``, ``render`` and ``explain`` start
at once and need neither kernel nor cluster libraries.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from kube_router_py.commands.arguments import FAILED, MISTAKE, OK, print_version
from kube_router_py.errors import ConfigurationError, KubeRouterError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_agent = not arguments or arguments[0].startswith("-")
    try:
        if not is_agent:
            return _subcommand(arguments[0], arguments[1:])
        return _agent(arguments, os.environ)
    except ConfigurationError as error:
        _complain(error.messages, arguments, is_agent=is_agent)
        return MISTAKE
    except KubeRouterError as error:
        _complain((str(error),), arguments, is_agent=is_agent)
        return FAILED
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _complain(messages: Iterable[str], arguments: Sequence[str], *, is_agent: bool) -> None:
    """Say why there is nothing more to do; that of the agent is looked for in the journal, too."""
    from kube_router_py.observe import log_targets

    is_off = "--log-journal=off" in arguments or os.environ.get("KUBE_ROUTER_LOG_JOURNAL") == "off"
    log_targets.complain(messages, os.environ, journal=is_agent and not is_off)


def _subcommand(name: str, arguments: list[str]) -> int:
    command = COMMANDS.get(name)
    if command is not None:
        return command(arguments)
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(COMMANDS))}"
    raise ConfigurationError(f"{name!r} is not a subcommand; {remedy} (see kube-router-py --help)")


def _agent(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    from kube_router_py.options import parse, scan

    asked = scan(arguments).asked
    if asked == "version":
        return print_version()
    if asked == "help":
        from kube_router_py.option_help import help_text

        print(help_text(), end="")
        return OK
    options = parse(arguments, environ, files=True)
    if options.cleanup_config:
        from kube_router_py.commands import cleanup

        return cleanup.main(arguments)

    from kube_router_py import agent

    return agent.run(options, environ)


def _lab(arguments: list[str]) -> int:
    from kube_router_py.lab import command

    return command.main(arguments)


def _version(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print("Usage: kube-router-py version\n\nShows the version, as kube-router-py --version.")
        return OK
    if arguments:
        raise ConfigurationError(f"version takes no arguments, but has {arguments[0]!r}")
    return print_version()


def _command(name: str) -> Callable[[list[str]], int]:
    """That of the module of this name in ``commands``, which is not imported before it runs."""

    def run(arguments: list[str]) -> int:
        module = importlib.import_module(f"kube_router_py.commands.{name.replace('-', '_')}")
        return int(module.main(arguments))

    return run


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **{
        name: _command(name)
        for name in (
            *("cleanup", "doctor", "drops", "explain"),
            *("install-cni", "render", "status"),
        )
    },
    "lab": _lab,
    "version": _version,
}


if __name__ == "__main__":
    sys.exit(main())
