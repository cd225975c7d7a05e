"""``status``: what the agent of this node says of itself, asked on the port of its probes."""

import http.client
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from msgspec import DecodeError, json

from kube_router_py.errors import ApiError, ConfigurationError
from kube_router_py.observe.log import harmless
from kube_router_py.options import Options

USAGE = """\
Usage: kube-router-py status [--output text|json] [--health-addr ADDRESS] [--health-port PORT]

Shows what the agent of this node says of itself: its loops, which of its lists of objects are
behind, pools of addresses and who has none, the addresses that are announced by ARP and NDP and by
which node, and what is wrong, with object and remedy. It asks on the port of the agent's probes
(127.0.0.1 and --health-port, unless --health-addr says otherwise), path /status.

  -o, --output=FORMAT   text (default) or json
  -h, --help            show this text

Exit codes: 0 the agent is ready; 1 it is not, or does not answer; 2 a mistake in the flags.
"""

_TIMEOUT_S = 10.0
_MOST_BYTES = 64 << 20
_OK, _FAILED = 0, 1


def main(options: Options, output: str, stdout: TextIO) -> int:
    """Ask and print; returns the exit code. Raises ConfigurationError and ApiError."""
    body = fetch(options)
    try:
        report = json.decode(body, type=dict[str, Any])
    except DecodeError as error:
        raise ApiError(f"what answers on --health-port is no agent of this version: {error}") from (
            error
        )
    if output == "json":
        stdout.write(json.format(body, indent=1).decode() + "\n")
    else:
        stdout.writelines(f"{harmless(line)}\n" for line in lines(report))
    return _OK if report.get("ready") else _FAILED


def fetch(options: Options) -> bytes:
    """The agent's answer. Raises ConfigurationError where it has no port, ApiError where there is
    no answer."""
    if not options.health_port:
        raise ConfigurationError("--health-port is 0: the agent cannot be asked for its status")
    host, port = options.health_addr or "127.0.0.1", options.health_port
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(
            f"no agent answers at {host} port {port} ({error}); is it running, and is "
            "--health-port the same as the agent's?"
        ) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ApiError(f"{host} port {port} answers HTTP {answer.status} for /status")
    return body


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report as text: facts first, then a table for each list of things."""
    rest = dict(report)
    is_ready, reason = rest.pop("ready", False), rest.pop("reason", "")
    yield f"node {rest.pop('node', '?')}, kube-router-py {rest.pop('version', '?')}"
    yield "ready" if is_ready else f"not ready: {reason}"
    problems = rest.pop("problems", ())
    for name, value in rest.items():
        yield from _section(name, value)
    yield from _section("problems", problems)


def _section(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping | list | tuple):
        yield f"{_words(name)}: {_shown(value)}"
        return
    yield ""
    if not value:
        yield f"{_words(name)}: none"
        return
    yield f"{_words(name)}:"
    if isinstance(value, Mapping) and not all(isinstance(row, Mapping) for row in value.values()):
        for key, inner in value.items():
            yield from (f"  {line}" if line else "" for line in _section(key, inner))
        return
    yield from (f"  {line}" for line in _table(_rows(value)))


def _rows(value: Mapping[str, Any] | Sequence[Any]) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        return [{"name": name, **row} for name, row in value.items()]
    return [dict(row) if isinstance(row, Mapping) else {"": row} for row in value]


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_words(column).upper() for column in columns]] if columns != [""] else []
    cells += [[_shown(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ") + (" (s)" if name.endswith("_s") else "")


def _shown(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    return str(value)
