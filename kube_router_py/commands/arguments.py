"""What subcommands have in common: exit codes, and how their arguments are read."""

import dataclasses
import os
from collections.abc import Container, Mapping

from kube_router_py import __version__
from kube_router_py.errors import ConfigurationError
from kube_router_py.options import Options, parse, takes_next

OK, FAILED, MISTAKE = 0, 1, 2

# Names of a subcommand's own flags; True: takes a value.
FILES = {"-f": ("filename", True), "--filename": ("filename", True)}
COMMON = {
    "-o": ("output", True),
    "--output": ("output", True),
    "-h": ("help", False),
    "--help": ("help", False),
    "-V": ("version", False),
    "--version": ("version", False),
}


def print_version() -> int:
    """What ``--version`` prints, of whatever command."""
    print(f"kube-router-py {__version__}")
    return OK


def answered(own: Container[str], usage: str) -> bool:
    """Whether only help or version was asked for, which are printed."""
    if "help" in own:
        print(usage, end="")
    elif "version" in own:
        print_version()
    else:
        return False
    return True


def take(
    arguments: list[str], flags: Mapping[str, tuple[str, bool]]
) -> tuple[dict[str, list[str]], list[str], list[str], list[str]]:
    """Sort arguments into a subcommand's own flags (``flags``: its names, and ``COMMON``), the
    agent's flags, words, and mistakes."""
    flags = {**COMMON, **flags}
    own: dict[str, list[str]] = {}
    rest: list[str] = []
    words: list[str] = []
    mistakes: list[str] = []
    left = list(reversed(arguments))
    while left:
        argument = left.pop()
        name, has_value, value = argument.partition("=")
        if name not in flags:
            if not argument.startswith("-"):
                words.append(argument)
                continue
            rest.append(argument)
            if left and takes_next(argument):
                rest.append(left.pop())
            continue
        field, takes_value = flags[name]
        if not takes_value and has_value:
            mistakes.append(f"{name} takes no value, but has {value!r}")
        elif takes_value and not has_value:
            if not left:
                mistakes.append(f"{name} needs a value")
                continue
            value = left.pop()
        own.setdefault(field, []).append(value)
    return own, rest, words, mistakes


def files_and_output(own: Mapping[str, list[str]], mistakes: list[str]) -> tuple[list[str], str]:
    files = own.get("filename", [])
    if not files:
        mistakes.append("-f is missing: name a manifest, a directory or - for stdin")
    return files, output_format(own, mistakes)


def as_administrator(options: Options, environ: Mapping[str, str]) -> Options:
    """With the kubeconfig of whoever sits at the terminal, where no flag says which cluster."""
    if options.kubeconfig or options.master or not environ.get("KUBECONFIG"):
        return options
    return dataclasses.replace(options, kubeconfig=environ["KUBECONFIG"])


def output_format(own: Mapping[str, list[str]], mistakes: list[str]) -> str:
    output = own.get("output", ["text"])[-1]
    if output not in ("text", "json"):
        mistakes.append(f"--output {output!r} is unknown; choose text or json")
    return output


def checked(arguments: list[str], mistakes: list[str]) -> Options:
    """The agent's options; all mistakes are told at once."""
    try:
        options = parse(arguments, os.environ)
    except ConfigurationError as error:
        raise ConfigurationError(*mistakes, *error.messages) from None
    if mistakes:
        raise ConfigurationError(*mistakes)
    return options
