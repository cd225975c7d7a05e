"""The help text and the reference of all flags, both made from their declarations."""

import textwrap

from kube_router_py.option_flag import GROUPS, Flag
from kube_router_py.option_table import FLAGS

USAGE = """\
kube-router-py: one agent per Kubernetes node

Usage:
  kube-router-py [FLAG...]              run the agent on this node (as root)
  kube-router-py render -f FILE ...     show what a node would do with these manifests; no cluster,
                                        no root (render --help)
  kube-router-py explain SRC DST PORT/PROTO
                                        follow a flow: who decides, where it goes, and whether the
                                        kernel agrees (explain --help)
  kube-router-py drops [--follow]       what policies refuse on this node, with names (drops --help)
  kube-router-py status [--cluster]     what the agent of this node, or of each, says of itself
                                        (status --help)
  kube-router-py doctor                 what is wrong with this node, and the remedy (doctor --help)
  kube-router-py lab ...                try it: a cluster on this machine (lab --help)
  kube-router-py cleanup [FLAG...]      remove what the agent left in this node's kernel
                                        (cleanup --help)
  kube-router-py install-cni            copy CNI plugins that the node lacks (install-cni --help)
  kube-router-py --version

A flag is written --flag=value or --flag value, a boolean --flag or --flag=false. Lists take commas
and may be repeated. Durations are numbers with units: 500ms, 30s, 1m30s, 2h. In place of a flag,
its environment variable in brackets may give the value; a flag beats it.
"""

_ENDING = """\
Exit codes: 0 asked to stop, or nothing to run; 1 the node lacks something, or a part of the agent
could not be kept running; 2 a mistake in flags, environment or a file they name.

On a running node: curl -s localhost:20244/readyz says what each part does and what is wrong;
journalctl -u kube-router-py -p warning shows what deserves a look. See docs/debugging.md.
"""


def _value_word(flag: Flag) -> str:
    return "" if flag.kind.is_switch else f"={flag.kind.word}"


def _default(flag: Flag) -> str:
    shown = flag.default_text or ("none" if flag.kind.is_list else "empty")
    return f"{shown} {flag.unit}".rstrip()


def help_text() -> str:
    """What ``--help`` prints."""
    parts = [USAGE]
    for group in GROUPS:
        parts.append(f"{group}:")
        for flag in FLAGS:
            if flag.group == group:
                short = f"-{flag.short}, " if flag.short else ""
                parts.append(f"  {short}--{flag.name}{_value_word(flag)}")
                facts = f"Default: {_default(flag)}. [{flag.environment}]"
                parts += textwrap.wrap(
                    f"{flag.help} {facts}",
                    width=98,
                    initial_indent=" " * 6,
                    subsequent_indent=" " * 6,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        parts.append("")
    parts.append("  -h, --help      show this text\n  -V, --version   show the version\n")
    return "\n".join(parts) + "\n" + _ENDING


def markdown() -> str:
    """docs/flags.md."""
    lines = [
        "# Flags",
        "",
        "<!-- Made by: python -m kube_router_py.option_help > docs/flags.md -->",
        "",
        "A flag is written `--flag=value` or `--flag value`, a boolean `--flag` or `--flag=false`.",
        "Lists take commas and may be repeated. Durations are numbers with units: `500ms`, `30s`,",
        "`1m30s`, `2h`. A flag's environment variable is its name in capitals, with underscores,",
        "after `KUBE_ROUTER_`; a flag beats it, an empty variable counts as unset, and variables",
        "that are no flag's are ignored. All mistakes are told at once, with exit code 2.",
        "",
        "The agent also reads `NODE_NAME` (where `--hostname-override` is not given), and",
        "`KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` (where neither `--kubeconfig` nor",
        "`--master` is given).",
    ]
    for group in GROUPS:
        lines += [
            "",
            f"## {group}",
            "",
            "| flag | value | default | meaning |",
            "|---|---|---|---|",
        ]
        for flag in FLAGS:
            if flag.group == group:
                names = f"`-{flag.short}`, `--{flag.name}`" if flag.short else f"`--{flag.name}`"
                word = flag.kind.word.replace("|", "\\|")
                unit = f" ({flag.unit})" if flag.unit else ""
                shown = f"`{flag.default_text}`" if flag.default_text else ""
                lines.append(f"| {names} | {word}{unit} | {shown} | {flag.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
