"""``render``: its arguments."""

import os
import re
import sys

from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.commands.arguments import (
    FILES,
    OK,
    answered,
    checked,
    files_and_output,
    take,
)

USAGE = """\
Usage: kube-router-py render -f FILE|DIR|- [-f ...] --node NAME [--output text|json] [FLAG...]

Shows what the agent of node NAME would program for these manifests (YAML or JSON, one or several
documents, Lists), with these agent flags; no cluster and no root needed. The output goes to stdout;
objects with mistakes are listed as problems in it.

  -f, --filename=FILE   a manifest, a directory of manifests, or - for stdin; may be repeated
      --node=NAME       the node; its Node object gives addresses and pod CIDRs
      --link=ADDRESS    an address of the node's links with the length of its network
                        (10.0.0.11/24): which nodes are near decides on tunnels; may be repeated.
                        Otherwise the addresses of the Node, in networks of /24 or /64
      --link-mtu=BYTES  the MTU of these links (1500)
  -o, --output=FORMAT   text (default) or json
      --show-secrets    show the passwords of BGP sessions, which are masked otherwise, and read
                        those in Secrets among the manifests (of namespace POD_NAMESPACE, or
                        kube-system) and in the file --peer-router-passwords-file
  -h, --help            show this text

Exit codes: 0 rendered; 1 a file cannot be read or has broken syntax; 2 a mistake in the flags.
"""

_FLAGS = {
    **FILES,
    "--node": ("node", True),
    "--link": ("link", True),
    "--link-mtu": ("link-mtu", True),
    "--show-secrets": ("show-secrets", False),
}


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises ConfigurationError for mistakes in the arguments."""
    own, rest, words, mistakes = take(arguments, _FLAGS)
    if answered(own, USAGE):
        return OK
    files, output = files_and_output(own, mistakes)
    node = own.get("node", [""])[-1]
    if not node:
        mistakes.append("--node is missing: name the node to render for")

    from kube_router_py import render, render_bgp, render_routing

    links = []
    for text in own.get("link", []):
        try:
            links.append(render_routing.parse_link(text))
        except ValueError as error:
            mistakes.append(f"--link {text!r} {error}")
    mtu = own.get("link-mtu", [str(render_bgp.LINK_MTU)])[-1]
    if not re.fullmatch(r"[1-9][0-9]{2,4}", mtu, re.ASCII):
        mistakes.append(f"--link-mtu {mtu!r} is no number of bytes, such as 1500")
    options = checked([*rest, *words], mistakes)
    given = render_bgp.Given(
        links=tuple(links),
        link_mtu=int(mtu),
        namespace=own_namespace(os.environ),
        show_secrets="show-secrets" in own,
    )
    return render.main(files, node, options, output, given, sys.stdin, sys.stdout)
