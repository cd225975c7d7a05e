"""``status``: its arguments."""

import os
import sys

from kube_router_py import status_command
from kube_router_py.commands.arguments import (
    OK,
    answered,
    as_administrator,
    checked,
    output_format,
    take,
)


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    own, rest, words, mistakes = take(arguments, {"--cluster": ("cluster", False)})
    if answered(own, status_command.USAGE):
        return OK
    output = output_format(own, mistakes)
    options = checked([*rest, *words], mistakes)
    if "cluster" not in own:
        return status_command.main(options, output, sys.stdout)
    options = as_administrator(options, os.environ)
    return status_command.of_cluster(options, os.environ, output, sys.stdout)
