"""``explain``: its arguments."""

import os
import sys

from kube_router_py.commands.arguments import (
    FILES,
    OK,
    answered,
    as_administrator,
    checked,
    output_format,
    take,
)
from kube_router_py.errors import ConfigurationError

USAGE = """\
Usage: kube-router-py explain SRC DST PORT/PROTO [FLAG...]
       kube-router-py explain -f FILE|DIR|- [-f ...] SRC DST PORT/PROTO [FLAG...]
       kube-router-py explain --cluster SRC DST PORT/PROTO [FLAG...]
       ... --flows FILE|- [--output text|json] in place of SRC DST PORT/PROTO

Follows a connection: who is meant, which Service and backends and why not the others, which
policies and rules decide at both ends, what becomes of its source, which way its packets take.

On a node, as root, it asks the agent there, which looks at what it knows and holds it against what
the node's kernel has. With -f it reads manifests (YAML or JSON, one or several documents, Lists)
and nothing else; with --cluster, or --kubeconfig or --master, the objects that the API server has.
For these two give the agent's flags, too, where they matter. Answers go to stdout, in the order of
the flows; what could not be read to stderr.

SRC is namespace/pod, an IP address or node/NAME (a process of that node). DST is namespace/pod, an
IP address, service/NAMESPACE/NAME (or svc/..., NAME.NAMESPACE.svc, or NAMESPACE/NAME where no pod
is called so), or node/NAME for its NodePorts.

  -f, --filename=FILE   a manifest, a directory of manifests, or - for stdin; may be repeated
      --cluster         list the objects from the API server of --kubeconfig, --master or KUBECONFIG
      --flows=FILE      a JSON array of flows, or - for stdin:
                        [{"from": "x/a", "to": "y/b", "protocol": "TCP", "port": 80}]
                        protocol (TCP), family (that of a literal address, else the first of
                        IPv4 and IPv6 that both ends have) and node may be left out
      --family=FAMILY   IPv4 or IPv6, for the flow on the command line
      --node=NAME       where a client from outside comes in, if its destination does not say
      --exit-code       exit with 3 unless every flow is allowed, and the kernel agrees
  -o, --output=FORMAT   text (default) or json: an array with, for each flow, allowed, egress,
                        ingress (isolated, allowed, policies, decided_by), reason, error, trace
                        (all that is known) and kernel (what was compared)
  -h, --help            show this text

Exit codes: 0 judged, be it allowed or denied (of --flows, each that cannot be judged has an error
in its answer); 1 a file cannot be read or has broken syntax, nobody answers, or the one flow of the
command line cannot be judged; 2 a mistake in the flags; 3 with --exit-code, a flow is not allowed,
or the kernel differs.
"""

_FLAGS = {
    **FILES,
    "--flows": ("flows", True),
    "--family": ("family", True),
    "--node": ("node", True),
    "--cluster": ("cluster", False),
    "--exit-code": ("exit_code", False),
}
_CLUSTER_FLAGS = ("--kubeconfig", "--master")


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    own, rest, words, mistakes = take(arguments, _FLAGS)
    if answered(own, USAGE):
        return OK
    files = own.get("filename", [])
    output = output_format(own, mistakes)
    is_cluster = "cluster" in own or any(each.partition("=")[0] in _CLUSTER_FLAGS for each in rest)
    if files and "cluster" in own:
        mistakes.append("-f and --cluster exclude each other: the objects are from one place")
    flows = own.get("flows", [""])[-1]
    if "flows" in own and not flows:
        mistakes.append("--flows is empty: name a file of flows or - for stdin")
    elif flows and words:
        mistakes.append(
            f"--flows and a flow on the command line ({words[0]} ...) exclude each other"
        )
    elif not flows and not words:
        mistakes.append("there is no flow: give SRC DST PORT/PROTO, or --flows")
    if flows == "-" and "-" in files:
        mistakes.append("-f - and --flows - cannot both read stdin")
    if flows:
        mistakes += [
            f"--{each} is for a flow on the command line; in --flows each has its own"
            for each in ("family", "node")
            if each in own
        ]

    from kube_router_py import explain
    from kube_router_py.cluster.namespace import own_namespace

    flow = None
    if words and not flows:
        try:
            flow = explain.flow_of_words(
                words, own.get("family", [""])[-1], own.get("node", [""])[-1]
            )
        except ConfigurationError as error:
            mistakes += error.messages
    options = checked(rest, mistakes)
    if is_cluster and not files:
        options = as_administrator(options, os.environ)
    asked = explain.Asked(
        flows=flow or explain.FlowFile(flows),
        files=tuple(files),
        is_cluster=is_cluster,
        namespace=own_namespace(os.environ),
        output=output,
        with_exit_code="exit_code" in own,
    )
    return explain.main(asked, options, sys.stdin, sys.stdout)
