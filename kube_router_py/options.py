"""From arguments and environment to checked ``Options``; all mistakes are told at once.

Spellings are those of Go's pflag: ``--flag value`` and ``--flag=value``; a boolean stands alone or
with ``=`` (``--flag false`` would leave ``false`` as a positional argument, which is refused);
lists take commas and may be repeated; ``-v 2``, ``-v=2`` and ``-v2`` are the same.

``KUBE_ROUTER_<FLAG>`` (capitals, underscores) gives a value where no flag does. Kubernetes puts
variables for Services into containers, and those of a Service called kube-router look alike
(KUBE_ROUTER_SERVICE_HOST, KUBE_ROUTER_METRICS_PORT=tcp://10.96.0.9:80): unknown names are ignored,
and so are the values of that form, which no flag takes. An empty variable counts as unset.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kube_router_py.errors import ConfigurationError
from kube_router_py.option_checks import check, check_files
from kube_router_py.option_flag import Flag
from kube_router_py.option_table import FLAGS, Options

__all__ = ["FLAGS", "Flag", "Options", "Request", "given_text", "parse", "scan", "takes_next"]

_BY_NAME = {flag.name: flag for flag in FLAGS}
_BY_SHORT = {flag.short: flag for flag in FLAGS if flag.short}
_REQUESTS = {"--help": "help", "-h": "help", "--version": "version", "-V": "version"}
_REQUESTS |= {f"{name}=true": asked for name, asked in _REQUESTS.items() if name[:2] == "--"}
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


@dataclasses.dataclass
class Request:
    """What the arguments say, not yet as values.

    ``texts`` holds every text given to a flag, in order; ``asked`` is ``help`` or ``version`` where
    that was asked for.
    """

    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)
    asked: str = ""


def scan(argv: Sequence[str]) -> Request:
    """Split arguments into flags and their texts. Reading stops at ``--help`` or ``--version``."""
    request = Request()
    rest = list(reversed(argv))
    while rest:
        argument = rest.pop()
        if argument in _REQUESTS:
            request.asked = _REQUESTS[argument]
            return request
        if argument.startswith("--") and argument != "--":
            name, has_value, value = argument[2:].partition("=")
            found = _BY_NAME.get(name)
        elif argument.startswith("-") and len(argument) > 1 and argument[1] in _BY_SHORT:
            found = _BY_SHORT[argument[1]]
            name, value = found.name, argument[2:].removeprefix("=")
            has_value = argument[2:]
        else:
            request.errors.append(_not_a_flag(argument))
            continue
        if found is None:
            request.errors.append(_unknown(name))
            # Its value, had it been known, must not be reported as a second mistake.
            if not has_value and rest and not rest[-1].startswith("-"):
                rest.pop()
            continue
        if not has_value:
            if found.kind.is_switch:
                value = "true"
            elif not rest or rest[-1].startswith("--"):
                request.errors.append(f"--{name} needs a value: --{name}={found.kind.word}")
                continue
            else:
                value = rest.pop()
        request.texts.setdefault(name, []).append(value)
    return request


def takes_next(argument: str) -> bool:
    """Whether this argument is a flag of the agent whose value is the next argument."""
    flag = _BY_NAME.get(argument.removeprefix("--")) or _BY_SHORT.get(argument.removeprefix("-"))
    return argument.startswith("-") and flag is not None and not flag.kind.is_switch


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    remedy = f"did you mean --{near[0]}?" if near else "see kube-router-py --help"
    return f"--{name} is not a flag; {remedy}"


def _not_a_flag(argument: str) -> str:
    name = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and name in _BY_NAME:
        return f"{argument!r} needs two dashes: --{name}"
    if argument.startswith("-") and argument != "--":
        return f"{argument!r} is not a flag; see kube-router-py --help"
    return (
        f"{argument!r} is a positional argument, and the agent takes none; "
        "a boolean flag is written with an equals sign: --flag=false"
    )


def parse(argv: Sequence[str], environ: Mapping[str, str], *, files: bool = False) -> Options:
    """Checked options. Raises ConfigurationError with one message for each mistake.

    ``files``: the files that flags name are looked at, too; the agent needs them, others do not.
    """
    request = scan(argv)
    errors = list(request.errors)
    values: dict[str, Any] = {}
    for flag in FLAGS:
        source = ""
        if flag.name in request.texts:
            texts = request.texts[flag.name]
            # As in pflag: lists add up, otherwise the last one counts.
            text = ",".join(filter(None, texts)) if flag.kind.is_list else texts[-1]
        elif _in_environment(flag, environ):
            text = environ[flag.environment]
            source = f" (from {flag.environment})"
        else:
            continue
        try:
            values[flag.field] = flag.kind.parse(text)
        except ValueError as error:
            shown = "(hidden)" if flag.is_secret else repr(text)
            errors.append(f"--{flag.name} {shown}{source} {error}")
    options = Options(**values)
    if "service_cluster_ip_range" not in values:
        # The default names IPv4 only; it must not stand in the way of a cluster without IPv4.
        options = dataclasses.replace(
            options,
            service_cluster_ip_range=tuple(
                network for network in options.service_cluster_ip_range if options.enable_ipv4
            ),
        )
    errors += check(options)
    if files:
        errors += check_files(options)
    if errors:
        raise ConfigurationError(*errors)
    return options


def _in_environment(flag: Flag, environ: Mapping[str, str]) -> bool:
    text = environ.get(flag.environment, "")
    return bool(text) and not _SERVICE_LINK.match(text)


def given_text(options: Options) -> dict[str, str]:
    """Flags that differ from their default, as text for the log; secrets are hidden."""
    return {
        flag.name: "(hidden)" if flag.is_secret else flag.kind.show(value)
        for flag in FLAGS
        if (value := getattr(options, flag.field)) != flag.default
    }
