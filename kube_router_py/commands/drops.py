"""``drops``: its arguments, and how refused packets are shown."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from msgspec import ValidationError, convert, json

from kube_router_py.agent_client import broken_off, follow
from kube_router_py.colours import Painter
from kube_router_py.commands.arguments import OK, answered, checked, output_format, take
from kube_router_py.drops.record import AUDITED, DEFAULT_DENY, DSR, POLICY, DropRecord, End
from kube_router_py.errors import ApiError
from kube_router_py.observe.log import harmless
from kube_router_py.option_types import parse_duration

USAGE = """\
Usage: kube-router-py drops [--follow] [--namespace NS] [--for 10s] [--output text|json]
                            [--agent-socket PATH]

Shows what NetworkPolicies refuse on this node, packet by packet: from which pod to which pod and
Service, port and protocol, and the policies that isolate the pod that refuses. Run it as root, on
the node where the pod is whose policy refuses: for ingress that of the destination, for egress that
of the source. It shows what the agent remembers, then what comes within ten seconds; start it, and
try again what does not work.

  -F, --follow              go on until ^C
  -n, --namespace=NS        only what comes from, goes to or was meant for this namespace
      --for=DURATION        how long to wait without --follow (10s; 0s: only what is remembered)
  -o, --output=FORMAT       text (default), or json: one object per line
      --agent-socket=PATH   where the agent listens (/run/kube-router-py/agent.sock)
  -h, --help                show this text

  VERDICT   refused; or audited: it went through, and would be refused without audit mode
  SERVICE   what was meant; where the kernel does not tell, those with this endpoint
  BECAUSE   the policies that isolate the pod; none of them allows the packet. Or: "invalid", it
            belongs to no connection that is known here (a reply that came another way, an idle
            connection that was forgotten); "not programmed yet", with --netpol-default-deny;
            "direct server return", which a pod that is isolated for egress cannot use

Which rule would allow it, and why none does: kube-router-py explain SRC DST PORT/PROTO.

Not all packets are seen. The kernel logs ten a minute for each pod and direction, after a burst of
ten; the metric kube_router_policy_drops_total counts all but what BECAUSE calls "invalid", "not
programmed yet" or "direct server return". Nobody else may read NFLOG group 100 meanwhile, nor can
tcpdump -i nflog:100 while this runs. The agent remembers (the last 1000) only while it reads: while
somebody follows, or always with its flag --policy-drop-log=log.

Exit codes: 0 shown, be it nothing; 1 the agent does not answer, ends meanwhile, or cannot read what
is refused; 2 a mistake in the flags.
"""

_FLAGS = {
    "-F": ("follow", False),
    "--follow": ("follow", False),
    "-n": ("namespace", True),
    "--namespace": ("namespace", True),
    "--for": ("for", True),
}
_MOST_S = 24 * 3600.0
# Columns grow with what is in them, but not beyond this: one long name moves its own line only.
# (60: an address behind the name of a Deployment's pod.)
_WIDEST = 60
_COLUMNS = ("TIME", "DIRECTION", "VERDICT", "FROM", "TO", "PORT", "SERVICE", "BECAUSE")
# What BECAUSE calls causes that are no missing rule; the others go by their own names.
_CAUSES = {DEFAULT_DENY: "not programmed yet", DSR: "direct server return"}
_LEAST = (13, 9, 7, 28, 28, 8, 12, 0)


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    own, rest, words, mistakes = take(arguments, _FLAGS)
    if answered(own, USAGE):
        return OK
    output = output_format(own, mistakes)
    follows = "follow" in own
    for_s = _seconds(own, mistakes)
    if follows and "for" in own:
        mistakes.append("--follow and --for exclude each other")
    namespace = own.get("namespace", [""])[-1]
    if "namespace" in own and not namespace:
        mistakes.append("--namespace is empty; leave it out for all namespaces")
    if not namespace.isprintable():
        mistakes.append(f"--namespace {namespace!r} is no name of a namespace")
    mistakes += [f"{word!r} is not wanted: drops takes flags only" for word in words]
    options = checked(rest, mistakes)
    asked = {"namespace": namespace, "follow": follows, "for_s": for_s}
    lines = _whole(follow(options.agent_socket, "drops", asked), options.agent_socket)
    with contextlib.suppress(KeyboardInterrupt):
        if output == "json":
            _print_json(lines, sys.stdout)
        else:
            _print_text(lines, sys.stdout, sys.stderr, None if follows else for_s)
    return OK


def _seconds(own: Mapping[str, list[str]], mistakes: list[str]) -> float:
    text = own.get("for", ["10s"])[-1]
    try:
        seconds = parse_duration(text)
        if not 0 <= seconds <= _MOST_S:
            raise ValueError("is out of range; it must be 0s to 24h")
    except ValueError as error:
        mistakes.append(f"--for {text!r} {error}")
        return 0.0
    return seconds


def _whole(lines: Iterable[Mapping[str, Any]], path: str) -> Iterator[Mapping[str, Any]]:
    """Lines up to the last one. An agent that was killed must not look as if nothing more came."""
    for line in lines:
        if "end" in line:
            return
        yield line
    raise broken_off(path)


def _print_json(lines: Iterable[Mapping[str, Any]], stdout: TextIO) -> None:
    for line in lines:
        found = line.get("drop") or ({"lost": line["lost"]} if "lost" in line else None)
        if found is not None:
            stdout.write(json.encode(found).decode() + "\n")
            stdout.flush()


def _print_text(
    lines: Iterable[Mapping[str, Any]], stdout: TextIO, stderr: TextIO, for_s: float | None
) -> None:
    painter, columns, node, shown = Painter(stdout), Columns(), "this node", 0
    for line in lines:
        if "node" in line:
            node = str(line["node"])
            until = f"for {for_s:g} s" if for_s else "so far" if for_s == 0 else "until ^C"
            stderr.write(f"what policies refuse on {harmless(node)}, {until}:\n")
            stderr.flush()
        elif "lost" in line:
            stdout.write(painter.yellow(f"... {line['lost']} are missing here") + "\n")
        elif "drop" in line:
            record = _record(line["drop"])
            text = harmless(columns.row(cells(record)))
            if not shown:
                stdout.write(painter.bold(columns.row(_COLUMNS)) + "\n")
            shown += 1
            stdout.write((painter.yellow if record.verdict == AUDITED else str)(text) + "\n")
        stdout.flush()
    if not shown:
        stderr.write(
            f"nothing was seen on {harmless(node)}; the pod whose policy refuses may be on another "
            "node, or what refuses is no policy (see kube-router-py explain)\n"
        )


def _record(told: Any) -> DropRecord:
    try:
        return convert(told, DropRecord)
    except ValidationError as error:
        raise ApiError(f"the agent is of another version than this command: {error}") from error


class Columns:
    """Pads cells; a column is as wide as what it has had so far."""

    def __init__(self) -> None:
        self._widths = list(_LEAST)

    def row(self, cells: Iterable[str]) -> str:
        found = list(cells)
        for index, cell in enumerate(found):
            self._widths[index] = max(self._widths[index], min(len(cell), _WIDEST))
        return "  ".join(map(str.ljust, found, self._widths)).rstrip()


def cells(record: DropRecord) -> Iterator[str]:
    """What a line says of a record, in the order of the columns."""
    yield record.time.partition("T")[2]
    yield record.direction
    yield record.verdict
    yield _end(record.source)
    yield _end(record.destination)
    yield record.port_text
    yield ",".join(record.services) or "-"
    yield _because(record)


def _because(record: DropRecord) -> str:
    named = ",".join(record.policies)
    if record.cause == POLICY:
        return named or "pod or policies that are gone"
    cause = _CAUSES.get(record.cause, record.cause)
    return f"{cause} ({named})" if named else cause


def _end(end: End) -> str:
    if end.is_in_pod_range and not end.pod:
        return f"{end.address} (range of {end.node})"
    name = end.pod or (f"node/{end.node}" if end.node else "")
    return f"{name} ({end.address})" if name and end.address else name or end.address or "-"
