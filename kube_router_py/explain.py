"""``explain``: where does this flow go, may it pass, and why.

From manifests or an API server: what the objects ask for. From the agent of this node, over its
socket: the same of what the agent knows, held against what the node's kernel has.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from msgspec import Struct, ValidationError, convert, to_builtins

from kube_router_py.agent_client import ask
from kube_router_py.cluster.objects import Namespace, Pod
from kube_router_py.colours import Painter
from kube_router_py.errors import ApiError, ConfigurationError
from kube_router_py.explain_sources import cluster_objects, read_cluster
from kube_router_py.firewall.evaluate import FlowError, Side
from kube_router_py.flow.flag_notes import flag_notes
from kube_router_py.flow.model import Answer, Question, Trace
from kube_router_py.flow.objects import FlowSettings, flow_settings
from kube_router_py.flow.text import story
from kube_router_py.flow.trace import Tracer
from kube_router_py.manifests import ManifestError, Manifests, load_manifests
from kube_router_py.observe.log import harmless
from kube_router_py.options import Options
from kube_router_py.render_pools import with_pools

QUESTION = "explain"
OK, FAILED, DENIED = 0, 1, 3

_STDIN = "-"
_FAMILIES = {"ipv4": "IPv4", "4": "IPv4", "ipv6": "IPv6", "6": "IPv6"}
_VERDICT = re.compile(r"^(allowed|denied|partly|unreachable|cannot be judged)(?=: )")
_DIFFERS = re.compile(r"^  (but the kernel of node \S+|kernel   ) DIFFERS")
_LABEL = re.compile(r"^  ([a-z]+(?: [a-z]+)?)(?=  )")


class FlowFile(Struct, frozen=True):
    """A file with a JSON array of flows; ``-`` is stdin."""

    name: str


class Asked(Struct, frozen=True):
    """What is wanted. ``files``: manifests; without any, ``is_cluster`` says whether the API server
    is asked, or the agent of this node. ``namespace``: the agent's own."""

    flows: FlowFile | Question
    files: tuple[str, ...] = ()
    is_cluster: bool = False
    namespace: str = "kube-system"
    output: str = "text"
    with_exit_code: bool = False


class _Told(Struct, frozen=True):
    """``asked`` is the flow in words."""

    asked: str
    answer: Answer


def main(asked: Asked, options: Options, stdin: IO[str], stdout: IO[str]) -> int:
    """Judge flows and print the answers. Returns the exit code. Raises ConfigurationError and
    ApiError where there is nobody to ask.

    A flow of a file that cannot be judged has its error in its answer and leaves exit code 0.
    """
    try:
        entries = _entries(asked.flows, stdin)
        judge, notes = _judge(asked, options, stdin)
    except ManifestError as error:
        print(f"kube-router-py explain: {error}", file=sys.stderr)
        return FAILED
    told = [_told(judge, each) for each in entries]
    for note in notes(told):
        print(f"kube-router-py explain: note: {harmless(note)}", file=sys.stderr)
    if asked.output == "json":
        document = [_json(each) for each in told]
        stdout.write(_plain(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")
    else:
        paint = Painter(stdout)
        for each in told:
            for line in story(each.answer, each.asked):
                stdout.write(f"{_painted(paint, harmless(_plain(line)))}\n")
    return _exit_code(told, asked)


def _plain(text: str) -> str:
    """Without halves of surrogate pairs, which no output has room for; escaped as JSON does."""
    return text.encode("utf-8", "backslashreplace").decode()


def _exit_code(told: Sequence[_Told], asked: Asked) -> int:
    if isinstance(asked.flows, Question) and told[0].answer.trace is None:
        return FAILED
    if asked.with_exit_code and not all(_gets_through(each.answer) for each in told):
        return DENIED
    return OK


def _gets_through(answer: Answer) -> bool:
    if answer.trace is None or answer.trace.outcome != "allowed":
        return False
    return answer.kernel is None or answer.kernel.agrees


def _painted(paint: Painter, line: str) -> str:
    if found := _VERDICT.match(line):
        colours = {"allowed": paint.green, "partly": paint.yellow}
        return colours.get(found[1], paint.red)(found[1]) + line[found.end() :]
    if _DIFFERS.match(line):
        line = line.replace("DIFFERS", paint.red("DIFFERS"), 1)
    if found := _LABEL.match(line):
        return f"  {paint.bold(found[1])}{line[found.end() :]}"
    return line


# --- who is asked --------------------------------------------------------------------------------

_Notes = Callable[[Iterable[_Told]], Iterable[str]]


def _judge(
    asked: Asked, options: Options, stdin: IO[str]
) -> tuple[Callable[[Question], Answer], _Notes]:
    """Who answers a question, and what is to be told besides. Raises ManifestError, ApiError,
    ConfigurationError."""
    if not asked.files and not asked.is_cluster:
        return (lambda question: _of_agent(options, question)), lambda told: ()
    family = _primary_family(options)
    files = asked.files
    manifests = load_manifests(files, stdin, family) if files else read_cluster(options)
    with_ranges, _, wrong = with_pools(manifests, options, asked.namespace)
    settings = flow_settings(with_ranges)
    tracer = Tracer(cluster_objects(manifests), settings)

    def answer(question: Question) -> Answer:
        try:
            return Answer(tracer.trace(question))
        except FlowError as error:
            return Answer(error=str(error))

    def notes(told: Iterable[_Told]) -> Iterator[str]:
        yield from map(str, wrong)
        yield from _notes(manifests, settings, told)

    return answer, notes


def _of_agent(options: Options, question: Question) -> Answer:
    found = ask(options.agent_socket, QUESTION, to_builtins(question))
    try:
        return convert(found, Answer)
    except ValidationError as error:
        where = options.agent_socket
        raise ApiError(f"the agent at {where} is of another version: {error}") from error


def _primary_family(options: Options) -> str:
    for network in options.service_cluster_ip_range:
        return f"IPv{network.version}"
    return "IPv4" if options.enable_ipv4 else "IPv6"


def _notes(manifests: Manifests, settings: FlowSettings, told: Iterable[_Told]) -> Iterator[str]:
    for problem in manifests.problems:
        yield str(problem)
    known = {each.metadata.name for each in manifests.list(Namespace)}
    used = {each.metadata.namespace for each in manifests.list(Pod)}
    if missing := sorted(used - known):
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        yield f"Namespaces are not among the objects ({names}): no namespaceSelector selects them"
    traces = (each.answer.trace for each in told if each.answer.trace)
    yield from flag_notes(settings, traces)


# --- flows ---------------------------------------------------------------------------------------


def flow_of_words(words: Sequence[str], family: str = "", node: str = "") -> Question:
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
    source, destination, node, protocol = map(_plain, (words[0], words[1], node, protocol))
    return Question(source, destination, int(port), protocol.upper() or "TCP", found, node)


def _entries(flows: FlowFile | Question, stdin: IO[str]) -> list[Any]:
    """Raises ManifestError where there is no JSON array."""
    if isinstance(flows, Question):
        return [flows]
    where = "standard input" if flows.name == _STDIN else flows.name
    try:
        text = (
            stdin.read()
            if flows.name == _STDIN
            else Path(flows.name).read_text(encoding="utf-8-sig")
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{where} cannot be read: {reason}") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, list):
        raise ManifestError(f"{where} is no JSON array of flows")
    return found


def _question(entry: Any) -> Question:
    """Raises FlowError for what is no flow."""
    if not isinstance(entry, dict):
        raise FlowError('a flow is an object like {"from": "x/a", "to": "y/b", "port": 80}')
    for field in ("from", "to", "port"):
        if entry.get(field) is None:
            raise FlowError(f"{field} is missing")
    port = entry["port"]
    if not isinstance(port, int) or isinstance(port, bool):
        raise FlowError(f"port {_shown(port)} is no whole number")
    if not 0 <= port <= 65535:
        raise FlowError(f"port {_shown(port)} is not in 1..65535")
    family = entry.get("family")
    return Question(
        _string(entry, "from"),
        _string(entry, "to"),
        port,
        "TCP" if entry.get("protocol") is None else _string(entry, "protocol").upper(),
        "" if family is None else _family(family),
        "" if entry.get("node") is None else _string(entry, "node"),
    )


def _string(entry: Mapping[str, Any], field: str) -> str:
    value = entry[field]
    if not isinstance(value, str):
        raise FlowError(f"{field} {_shown(value)} is no text")
    return _plain(value)


def _family(value: Any) -> str:
    found = _FAMILIES.get(str(value).lower())
    if found is None:
        raise FlowError(f"family {_shown(value)} is neither IPv4 nor IPv6")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 50 else f"{text[:47]}..."


def _told(judge: Callable[[Question], Answer], entry: Any) -> _Told:
    words = "" if isinstance(entry, Question) else _shown(entry)
    try:
        asked = entry if isinstance(entry, Question) else _question(entry)
    except FlowError as error:
        return _Told(words, Answer(error=str(error)))
    words = f"{asked.source} -> {asked.destination} {asked.protocol} {asked.port}"
    return _Told(words, judge(asked))


# --- answers -------------------------------------------------------------------------------------


def _json(told: _Told) -> dict[str, Any]:
    """Whether the policies let everything pass that may happen to the flow, and all about it."""
    answer, trace = told.answer, told.answer.trace
    if trace is None:
        nothing = _json_side(Side(allowed=False))
        return {
            "allowed": False,
            "egress": nothing,
            "ingress": nothing,
            "reason": f"cannot be judged: {answer.error}",
            "error": answer.error,
            "trace": None,
            "kernel": None,
            "notes": list(answer.notes),
        }
    decisive = next((each for each in trace.paths if not each.allowed), None)
    shown = decisive or next(iter(trace.paths), None)
    side = Side() if shown is not None else Side(allowed=False)
    return {
        "allowed": decisive is None and shown is not None,
        "egress": _json_side(shown.egress if shown is not None else side),
        "ingress": _json_side(shown.ingress if shown is not None else side),
        "reason": _reason(trace),
        "error": None,
        "trace": to_builtins(trace),
        "kernel": _json_kernel(answer),
        "notes": list(answer.notes),
    }


def _json_kernel(answer: Answer) -> dict[str, Any] | None:
    if answer.kernel is None:
        return {"missing": answer.missing} if answer.missing else None
    found: dict[str, Any] = to_builtins(answer.kernel)
    return {"agrees": answer.kernel.agrees, **found}


def _reason(trace: Trace) -> str:
    if trace.service is None and trace.path is not None:
        return "; ".join(trace.path.reasons)
    return trace.reason


def _json_side(side: Side) -> dict[str, Any]:
    decision = side.decided_by
    found = {
        "isolated": side.isolated,
        "allowed": side.allowed,
        "policies": list(side.policies),
        "decided_by": {"policy": decision.policy, "rule": decision.rule} if decision else None,
    }
    if side.audited:
        found |= {"audited": True, "would_refuse": side.would_refuse}
    return found
