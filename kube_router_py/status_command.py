"""``status``: what the agent of this node says of itself, asked on its socket."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from msgspec import json

from kube_router_py.agent_client import ask
from kube_router_py.cluster.namespace import own_namespace
from kube_router_py.observe.log import harmless
from kube_router_py.option_types import show_duration
from kube_router_py.options import Options
from kube_router_py.tables import shown, table, words

USAGE = """\
Usage: kube-router-py status [--output text|json] [--agent-socket PATH]
       kube-router-py status --cluster [--output text|json] [--kubeconfig FILE]

Shows what the agent of this node says of itself: its loops and what each has programmed and
repaired, which of its lists of objects are behind, BGP sessions, pools of addresses and who has
none, the addresses that are announced by ARP and NDP and by which node, and what is wrong, with
object and remedy. Run it as root on the node, or in the agent's container.

      --cluster             one table of all nodes, from the summaries that their agents write into
                            Leases (--cluster-status-interval) in namespace POD_NAMESPACE, or
                            kube-system. A node is ready, not ready, silent (its summary is old), or
                            has its clock ahead (a summary from the future), or no summary; a star:
                            the Node is gone. Needs --kubeconfig, KUBECONFIG or the ServiceAccount
                            of a pod, and may be run anywhere
  -o, --output=FORMAT       text (default) or json
      --agent-socket=PATH   where the agent listens (/run/kube-router-py/agent.sock)
  -h, --help                show this text

Exit codes: 0 the agent is (all nodes are) ready; 1 not, or there is no answer; 2 a mistake in the
flags.
"""

_OK, _FAILED = 0, 1


def main(options: Options, output: str, stdout: TextIO) -> int:
    """Ask and print; returns the exit code. Raises ConfigurationError and ApiError."""
    report = ask(options.agent_socket, "status")
    if output == "json":
        stdout.write(json.format(json.encode(report), indent=1).decode() + "\n")
    else:
        stdout.writelines(f"{harmless(line)}\n" for line in lines(report))
    return _OK if report.get("ready") else _FAILED


def of_cluster(options: Options, environ: Mapping[str, str], output: str, stdout: TextIO) -> int:
    """The same for all nodes. Raises ConfigurationError and ApiError."""
    from kube_router_py.cluster.client import connect
    from kube_router_py.cluster_status import read_rows

    client = connect(options, environ)
    try:
        rows = read_rows(client, own_namespace(environ), datetime.now(UTC))
    finally:
        client.close()
    if output == "json":
        stdout.write(json.format(json.encode(rows), indent=1).decode() + "\n")
    else:
        stdout.writelines(f"{harmless(line)}\n" for line in table(rows))
    is_well = bool(rows) and all(row["state"] == "ready" for row in rows)
    return _OK if is_well else _FAILED


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as text: facts first, then a table for each list of things."""
    rest = dict(report)
    is_ready, reason = rest.pop("ready", False), rest.pop("reason", "")
    node, version, up_s = rest.pop("node", "?"), rest.pop("version", "?"), rest.pop("up_s", 0)
    rest.pop("problem_count", None)
    yield f"node {node}, kube-router-py {version}, up {show_duration(float(up_s))}"
    yield "ready" if is_ready else f"not ready: {reason}"
    problems = rest.pop("problems", ())
    for name, value in rest.items():
        yield from _section(name, value)
    yield from _section("problems", problems)


def _section(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping | list | tuple):
        yield f"{words(name)}: {shown(value)}"
        return
    yield ""
    if not value:
        yield f"{words(name)}: none"
        return
    yield f"{words(name)}:"
    if isinstance(value, Mapping) and not all(isinstance(row, Mapping) for row in value.values()):
        for key, inner in value.items():
            yield from (f"  {line}" if line else "" for line in _section(key, inner))
        return
    yield from (f"  {line}" for line in table(_rows(value)))


def _rows(value: Mapping[str, Any] | Sequence[Any]) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        return [{"name": name, **row} for name, row in value.items()]
    return [dict(row) if isinstance(row, Mapping) else {"": row} for row in value]
