"""The command line: the agent by default, and its subcommands.

Each imports what it needs when it runs: ``--version``, ``--help``, ``render`` and ``explain`` start
at once and need neither kernel nor cluster libraries.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kube_router_py import __version__
from kube_router_py.errors import ConfigurationError, KubeRouterError

if TYPE_CHECKING:
    from kube_router_py.options import Options

OK, FAILED, MISTAKE = 0, 1, 2

RENDER_USAGE = """\
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

EXPLAIN_USAGE = """\
Usage: kube-router-py explain -f FILE|DIR|- [-f ...] SRC DST PORT/PROTO [FLAG...]
       kube-router-py explain -f FILE|DIR|- [-f ...] --flows FILE|- [--output text|json] [FLAG...]

Says whether a connection may pass by the NetworkPolicies in these manifests (YAML or JSON, one or
several documents, Lists), and which policy and rule decides; no cluster and no root needed. The
answers go to stdout, in the order of the flows; what of the manifests could not be read to stderr.

SRC is namespace/pod, an IP address or node/NAME (a process of that node), DST namespace/pod or an
IP address. The address of a Service is judged as it stands: policies apply to the pods behind it.

  -f, --filename=FILE   a manifest, a directory of manifests, or - for stdin; may be repeated
      --flows=FILE      a JSON array of flows, or - for stdin:
                        [{"from": "x/a", "to": "y/b", "protocol": "TCP", "port": 80}]
                        protocol (TCP) and family (that of a literal address, else the first of
                        IPv4 and IPv6 that both ends have) may be left out
      --family=FAMILY   IPv4 or IPv6, for the flow on the command line
  -o, --output=FORMAT   text (default) or json: an array with, for each flow, allowed, egress,
                        ingress (isolated, allowed, policies, decided_by), reason and error
  -h, --help            show this text

Exit codes: 0 judged, be it allowed or denied (of --flows, each that cannot be judged has an error
in its answer); 1 a file cannot be read or has broken syntax, or the one flow of the command line
cannot be judged; 2 a mistake in the flags.
"""

CLEANUP_USAGE = """\
Usage: kube-router-py cleanup [--kube-proxy-leftovers] [FLAG...]

Removes what the agent left on this node: FRR's daemons, whose neighbors drop their routes at once
(those of --frr-mode=external stay as they are), tunnels and routes into them, its IPVS virtual
servers (all outside of --excluded-cidrs), its iptables chains and ipsets, the link kube-dummy-if
with its routes, marks and policy routing of direct server return. The bridge of pods and the CNI
file stay. Run it as root, with the agent stopped: for one that runs it waits half a minute, then
refuses. It says what it did.
The same as kube-router-py --cleanup-config.

  --kube-proxy-leftovers   Remove what kube-proxy left instead, and nothing of the agent's: chains
                           KUBE-SERVICES and the like (not the kubelet's), its ipsets, the link
                           kube-ipvs0, the nftables tables kube-proxy. kube-proxy must not run.

Exit codes: 0 all removed; 1 something stayed; 2 a mistake in the flags.
"""


KUBE_PROXY_LEFTOVERS = "--kube-proxy-leftovers"
# As long as an agent waits for the one before it.
_LOCK_WAIT_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-"):
            return _subcommand(arguments[0], arguments[1:])
        return _agent(arguments, os.environ)
    except ConfigurationError as error:
        _complain(*error.messages)
        return MISTAKE
    except KubeRouterError as error:
        _complain(str(error))
        return FAILED
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _complain(*messages: str) -> None:
    """Say why there is nothing more to do, one line each; in the journal as an error."""
    import logging

    from kube_router_py.observe import log

    in_journal = log.is_journal(sys.stderr, os.environ)
    prefix = f"<{log.priority(logging.ERROR)}>" if in_journal else ""
    for message in messages:
        print(f"{prefix}kube-router-py: {' '.join(message.splitlines())}", file=sys.stderr)


def _subcommand(name: str, arguments: list[str]) -> int:
    command = _COMMANDS.get(name)
    if command is not None:
        return command(arguments)
    near = difflib.get_close_matches(name, _COMMANDS, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_COMMANDS))}"
    raise ConfigurationError(f"{name!r} is not a subcommand; {remedy} (see kube-router-py --help)")


def _agent(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    from kube_router_py.options import parse, scan

    asked = scan(arguments).asked
    if asked == "version":
        return _version([])
    if asked == "help":
        from kube_router_py.option_help import help_text

        print(help_text(), end="")
        return OK
    options = parse(arguments, environ, files=True)
    if options.cleanup_config:
        return _clean_up(arguments)

    from kube_router_py import agent

    return agent.run(options, environ)


def _version(arguments: list[str]) -> int:
    if arguments:
        raise ConfigurationError(f"version takes no arguments, but has {arguments[0]!r}")
    print(f"kube-router-py {__version__}")
    return OK


def _clean_up(arguments: Sequence[str]) -> int:
    from kube_router_py.options import parse, scan

    asked = scan(arguments).asked
    if asked == "version":
        return _version([])
    if asked == "help":
        print(CLEANUP_USAGE, end="")
        return OK
    of_kube_proxy = KUBE_PROXY_LEFTOVERS in arguments
    arguments = [each for each in arguments if each != KUBE_PROXY_LEFTOVERS]
    options = parse(arguments, os.environ)
    from kube_router_py.adapters import check_capabilities, dsr_opener, opener, routing_opener
    from kube_router_py.cleanup import clean_up, clean_up_kube_proxy
    from kube_router_py.kernel.agent_lock import AgentLock

    check_capabilities()
    if of_kube_proxy:
        return OK if clean_up_kube_proxy(print) else FAILED
    # An agent that runs would make anew what is removed; the kernel frees the lock with us.
    AgentLock().take(_LOCK_WAIT_S)
    ports = opener(options, needs_ipvs=False)()
    try:
        steps = (dsr_opener(options), routing_opener(options))
        return OK if clean_up(options, ports, *steps, print) else FAILED
    finally:
        ports.close()


def _render(arguments: list[str]) -> int:
    own, rest, words, mistakes = _take(arguments, _RENDER_FLAGS)
    if "help" in own:
        print(RENDER_USAGE, end="")
        return OK
    if "version" in own:
        return _version([])
    files, output = _files_and_output(own, mistakes)
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
    options = _checked([*rest, *words], mistakes)
    given = render_bgp.Given(
        links=tuple(links),
        link_mtu=int(mtu),
        namespace=os.environ.get("POD_NAMESPACE", "").strip() or "kube-system",
        show_secrets="show-secrets" in own,
    )
    return render.main(files, node, options, output, given, sys.stdin, sys.stdout)


def _explain(arguments: list[str]) -> int:
    own, rest, words, mistakes = _take(arguments, _EXPLAIN_FLAGS)
    if "help" in own:
        print(EXPLAIN_USAGE, end="")
        return OK
    if "version" in own:
        return _version([])
    files, output = _files_and_output(own, mistakes)
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
    if flows and "family" in own:
        mistakes.append("--family is for a flow on the command line; in --flows each has its own")

    from kube_router_py import explain

    flow = None
    if words and not flows:
        try:
            flow = explain.flow_of_words(words, own.get("family", [""])[-1])
        except ConfigurationError as error:
            mistakes += error.messages
    options = _checked(rest, mistakes)
    asked = flow or explain.FlowFile(flows)
    return explain.main(files, asked, options, output, sys.stdin, sys.stdout)


def _status(arguments: list[str]) -> int:
    own, rest, words, mistakes = _take(arguments, _COMMON_FLAGS)
    from kube_router_py import status_command

    if "help" in own:
        print(status_command.USAGE, end="")
        return OK
    if "version" in own:
        return _version([])
    if "filename" in own:
        mistakes.append("-f is for render and explain; status asks the agent of this node")
    output = _output(own, mistakes)
    return status_command.main(_checked([*rest, *words], mistakes), output, sys.stdout)


def _files_and_output(own: Mapping[str, list[str]], mistakes: list[str]) -> tuple[list[str], str]:
    files = own.get("filename", [])
    if not files:
        mistakes.append("-f is missing: name a manifest, a directory or - for stdin")
    return files, _output(own, mistakes)


def _output(own: Mapping[str, list[str]], mistakes: list[str]) -> str:
    output = own.get("output", ["text"])[-1]
    if output not in ("text", "json"):
        mistakes.append(f"--output {output!r} is unknown; choose text or json")
    return output


def _checked(arguments: list[str], mistakes: list[str]) -> "Options":
    """The agent's options; all mistakes are told at once."""
    from kube_router_py.options import parse

    try:
        options = parse(arguments, os.environ)
    except ConfigurationError as error:
        raise ConfigurationError(*mistakes, *error.messages) from None
    if mistakes:
        raise ConfigurationError(*mistakes)
    return options


# Names of a subcommand's own flags; True: takes a value.
_COMMON_FLAGS = {
    "-f": ("filename", True),
    "--filename": ("filename", True),
    "-o": ("output", True),
    "--output": ("output", True),
    "-h": ("help", False),
    "--help": ("help", False),
    "-V": ("version", False),
    "--version": ("version", False),
}
_RENDER_FLAGS = {
    **_COMMON_FLAGS,
    "--node": ("node", True),
    "--link": ("link", True),
    "--link-mtu": ("link-mtu", True),
    "--show-secrets": ("show-secrets", False),
}
_EXPLAIN_FLAGS = {**_COMMON_FLAGS, "--flows": ("flows", True), "--family": ("family", True)}


def _take(
    arguments: list[str], flags: Mapping[str, tuple[str, bool]]
) -> tuple[dict[str, list[str]], list[str], list[str], list[str]]:
    """Sort arguments into a subcommand's own flags, the agent's flags, words, and mistakes."""
    from kube_router_py.options import takes_next

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


def _lab(arguments: list[str]) -> int:
    from kube_router_py.lab import command

    return command.main(arguments)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "cleanup": _clean_up,
    "explain": _explain,
    "lab": _lab,
    "render": _render,
    "status": _status,
    "version": _version,
}


if __name__ == "__main__":
    sys.exit(main())
