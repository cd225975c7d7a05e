"""``explain``: may this flow pass, and which policy says so, from manifests alone.

The verdicts are those of ``firewall.evaluate``: what the policies mean, not what some kernel holds.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.errors import ConfigurationError
from kube_router_py.firewall.evaluate import Evaluator, Flow, FlowError, Side, Verdict
from kube_router_py.manifests import ManifestError, Manifests, load_manifests
from kube_router_py.options import Options

_STDIN = "-"
_FAMILIES = {"ipv4": "IPv4", "4": "IPv4", "ipv6": "IPv6", "6": "IPv6"}


class FlowFile(Struct, frozen=True):
    """A file with a JSON array of flows; ``-`` is stdin."""

    name: str


class _Answer(Struct, frozen=True):
    """``asked`` is the flow in words; either ``verdict`` or ``error`` is set."""

    asked: str
    verdict: Verdict | None
    error: str | None


def main(
    files: Sequence[str],
    asked: FlowFile | Flow,
    options: Options,
    output: str,
    stdin: IO[str],
    stdout: IO[str],
) -> int:
    """Judge flows and print the verdicts; ``output`` is ``json`` or ``text``. Returns the exit
    code.

    A flow of a file that cannot be judged has its error in its answer and leaves exit code 0.
    """
    try:
        manifests = load_manifests(files, stdin)
        entries = _load_flows(asked.name, stdin) if isinstance(asked, FlowFile) else [asked]
    except ManifestError as error:
        print(f"kube-router-py explain: {error}", file=sys.stderr)
        return 1
    evaluator = _evaluator(manifests, options)
    answers = [_answer(evaluator, each) for each in entries]
    for note in _notes(manifests, options, answers):
        print(f"kube-router-py explain: note: {note}", file=sys.stderr)
    if output == "json":
        document = [_json(each) for each in answers]
        stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        stdout.writelines(f"{line}\n" for line in _text(answers))
    return 1 if isinstance(asked, Flow) and answers[0].error is not None else 0


def _evaluator(manifests: Manifests, options: Options) -> Evaluator:
    return Evaluator(
        manifests.list(Pod),
        manifests.list(Namespace),
        manifests.list(NetworkPolicy),
        manifests.list(Node),
        manifests.list(Service),
        allow_own_node=options.netpol_allow_own_node,
    )


def _notes(manifests: Manifests, options: Options, answers: Iterable[_Answer]) -> Iterator[str]:
    for problem in manifests.problems:
        yield str(problem)
    known = {each.metadata.name for each in manifests.list(Namespace)}
    used = {each.metadata.namespace for each in manifests.list(Pod)}
    if missing := sorted(used - known):
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        yield f"Namespaces are not among the objects ({names}): no namespaceSelector selects them"
    if not options.run_firewall:
        yield "an agent with --run-firewall=false enforces none of this"
    judged = {":" in each.verdict.source for each in answers if each.verdict}
    for is_ipv6, is_enabled in ((False, options.enable_ipv4), (True, options.enable_ipv6)):
        if is_ipv6 in judged and not is_enabled:
            family = "IPv6" if is_ipv6 else "IPv4"
            flag = f"--enable-{family.lower()}"
            yield f"an agent without {flag} does not enforce policies for {family}"


# --- flows ---------------------------------------------------------------------------------------


def flow_of_words(words: Sequence[str], family: str = "") -> Flow:
    """The flow SRC DST PORT[/PROTOCOL]. Raises ConfigurationError for words that are none."""
    if len(words) != 3:
        raise ConfigurationError(
            f"a flow is three words, SRC DST PORT/PROTO; there are {len(words)}: {' '.join(words)}"
        )
    port, slash, protocol = words[2].partition("/")
    if not (port.isascii() and port.isdigit() and len(port) < 6) or (slash and not protocol):
        raise ConfigurationError(f"{words[2]!r} is no PORT/PROTO; write 80/TCP, or 80")
    found = _FAMILIES.get(family.lower(), "")
    if family and not found:
        raise ConfigurationError(f"--family {family!r} is unknown; choose IPv4 or IPv6")
    return Flow(words[0], words[1], protocol.upper() or "TCP", int(port), found)


def _load_flows(name: str, stdin: IO[str]) -> list[Any]:
    """Raises ManifestError where there is no JSON array."""
    where = "standard input" if name == _STDIN else name
    try:
        text = stdin.read() if name == _STDIN else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{where} cannot be read: {reason}") from error
    try:
        flows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is no JSON: {error}") from error
    if not isinstance(flows, list):
        raise ManifestError(f"{where} is no JSON array of flows")
    return flows


def _flow(entry: Any) -> Flow:
    """Raises FlowError for what is no flow."""
    if not isinstance(entry, dict):
        raise FlowError('a flow is an object like {"from": "x/a", "to": "y/b", "port": 80}')
    for field in ("from", "to", "port"):
        if entry.get(field) is None:
            raise FlowError(f"{field} is missing")
    port = entry["port"]
    if not isinstance(port, int) or isinstance(port, bool):
        raise FlowError(f"port {_shown(port)} is no whole number")
    protocol = entry.get("protocol")
    family = entry.get("family")
    return Flow(
        _string(entry, "from"),
        _string(entry, "to"),
        "TCP" if protocol is None else _string(entry, "protocol").upper(),
        port,
        "" if family is None else _family(family),
    )


def _string(entry: Mapping[str, Any], field: str) -> str:
    value = entry[field]
    if not isinstance(value, str):
        raise FlowError(f"{field} {_shown(value)} is no text")
    return value


def _family(value: Any) -> str:
    found = _FAMILIES.get(str(value).lower())
    if found is None:
        raise FlowError(f"family {_shown(value)} is neither IPv4 nor IPv6")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 50 else f"{text[:47]}..."


def _answer(evaluator: Evaluator, entry: Any) -> _Answer:
    asked = "" if isinstance(entry, Flow) else _shown(entry)
    try:
        flow = entry if isinstance(entry, Flow) else _flow(entry)
        asked = f"{flow.source} -> {flow.destination} {flow.protocol} {flow.port}"
        return _Answer(asked, evaluator.evaluate(flow), None)
    except FlowError as error:
        return _Answer(asked, None, str(error))


# --- answers -------------------------------------------------------------------------------------


def _json(answer: _Answer) -> dict[str, Any]:
    verdict = answer.verdict
    nothing = Side(allowed=False)
    return {
        "allowed": verdict is not None and verdict.allowed,
        "egress": _json_side(verdict.egress if verdict else nothing),
        "ingress": _json_side(verdict.ingress if verdict else nothing),
        "reason": verdict.reason if verdict else f"cannot be judged: {answer.error}",
        "error": answer.error,
    }


def _json_side(side: Side) -> dict[str, Any]:
    decision = side.decided_by
    return {
        "isolated": side.isolated,
        "allowed": side.allowed,
        "policies": list(side.policies),
        "decided_by": {"policy": decision.policy, "rule": decision.rule} if decision else None,
    }


def _text(answers: Iterable[_Answer]) -> Iterator[str]:
    for answer in answers:
        verdict = answer.verdict
        if verdict is None:
            yield f"cannot be judged: {answer.asked}"
            yield f"  {answer.error}"
            continue
        word = "allowed" if verdict.allowed else "denied"
        yield f"{word}: {answer.asked} ({verdict.source} -> {verdict.destination})"
        for part in verdict.reasons:
            yield f"  {part}"
