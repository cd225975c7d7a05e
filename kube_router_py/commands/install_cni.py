"""``install-cni``: its arguments."""

import json
from dataclasses import asdict
from pathlib import Path

from kube_router_py.cni_plugins import USUAL, install
from kube_router_py.commands.arguments import FAILED, OK, answered, output_format, take
from kube_router_py.errors import ConfigurationError, KubeRouterError
from kube_router_py.tables import table

FROM, TO = "/usr/lib/cni", "/opt/cni/bin"

USAGE = f"""\
Usage: kube-router-py install-cni [--from DIR] [--to DIR] [--replace] [PLUGIN...]

Copies CNI plugins to where the container runtime looks for them. Those that are there stay as they
are. A plugin appears whole or not at all. It says what became of each; it needs no API server.

  PLUGIN            Default: {", ".join(USUAL)}
  --from DIR        Where they are; default {FROM}
  --to DIR          Where they are needed; default {TO}. It is made if it is not there
  --replace         Replaces those that differ
  -o, --output      text (default) or json

Exit codes: 0 all are there; 1 some are not; 2 a mistake in the arguments.
"""


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    flags = {"--from": ("from", True), "--to": ("to", True), "--replace": ("replace", False)}
    own, rest, plugins, mistakes = take(arguments, flags)
    if answered(own, USAGE):
        return OK
    output = output_format(own, mistakes)
    mistakes += [f"{flag} is no flag of install-cni" for flag in rest if flag.startswith("-")]
    mistakes += [
        f"{plugin!r} is no name of a plugin"
        for plugin in plugins
        if "/" in plugin or plugin.startswith(".") or not plugin
    ]
    if mistakes:
        raise ConfigurationError(*mistakes)
    source, target = (
        Path(own.get(name, [usual])[-1]) for name, usual in (("from", FROM), ("to", TO))
    )
    wanted = tuple(dict.fromkeys(plugins)) or USUAL
    try:
        outcomes = install(source, target, wanted, replace="replace" in own)
    except OSError as error:
        raise KubeRouterError(f"{error.filename or target}: {error.strerror}") from error
    rows = [asdict(outcome) for outcome in outcomes]
    if output == "json":
        print(json.dumps({"from": str(source), "to": str(target), "plugins": rows}, indent=2))
    else:
        print("\n".join(table(rows)))
    return FAILED if any(outcome.action == "failed" for outcome in outcomes) else OK
