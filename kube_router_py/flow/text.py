"""An answer as a story for people: the verdict, then step by step how it comes about. Pure.

Lines are plain text; whoever prints them keeps what strangers wrote from the terminal, and paints.
"""

from collections.abc import Iterable, Iterator, Sequence

from kube_router_py.firewall.evaluate import Side
from kube_router_py.flow.model import (
    Answer,
    Backend,
    Comparison,
    End,
    Path,
    Route,
    ServiceStep,
    Trace,
    Translation,
)
from kube_router_py.flow.policies import held
from kube_router_py.tables import table

# Ways that are told one by one; JSON has all of them.
MOST_WAYS = 8
_MOST_ROWS = 30
_WIDTH = 9


def story(answer: Answer, asked: str) -> Iterator[str]:
    """All lines of one answer; ``asked`` is the flow in words."""
    trace = answer.trace
    if trace is None:
        yield f"cannot be judged: {asked}"
        yield f"  {answer.error}"
        return
    ends = f" ({trace.source.address} -> {trace.destination.address})"
    yield f"{trace.outcome}: {asked}{ends if trace.source.address else ''}"
    plain = trace.path is not None and trace.service is None and trace.path.route.kind != "none"
    yield from () if plain else (f"  {trace.reason}",)
    if answer.kernel is not None and not answer.kernel.agrees:
        yield f"  but the kernel of node {answer.kernel.node} DIFFERS, see below"
    yield from _lines("from", [_end(trace.source)])
    yield from _lines("to", [_end(trace.destination)])
    if trace.service is not None:
        yield from _service(trace.service, trace)
    if trace.backends:
        yield from _lines("backends", _backends(trace.backends))
    if trace.path is not None:
        yield from _way(trace.path, trace.node)
    else:
        yield from _ways(trace.backends, trace.node)
    for note in (*trace.notes, *answer.notes):
        yield from _lines("note", [note])
    if answer.kernel is not None:
        yield from _kernel(answer.kernel)
    elif answer.missing:
        yield from _lines("kernel", [f"not compared: {answer.missing}"])


def _lines(label: str, texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        yield f"  {label if index == 0 else '':{_WIDTH}} {text}".rstrip()


def _end(end: End) -> str:
    words = [end.what]
    if end.address:
        words.append(end.address)
    if end.node and end.kind == "pod" and "in the network of node" not in end.what:
        words.append(f"on node {end.node}")
    return ", ".join(words)


def _service(step: ServiceStep, trace: Trace) -> Iterator[str]:
    name = f" ({step.port_name})" if step.port_name else ""
    target = f", target port {step.target_port}" if step.target_port else ""
    yield from _lines("service", [f"{step.key} port {step.port}/{step.protocol}{name}{target}"])
    if step.way is not None:
        yield from _lines("way", [f"to node {step.node}, which serves it: {_route(step.way)}"])
    if step.server is not None:
        yield from _lines("served", [_server(step)])
    elif step.why_not != trace.reason:
        yield from _lines("served", [f"no: {step.why_not}"])
    others = [
        f"{each.kind} {each.address} {each.port}" + (f": {each.why_not}" if each.why_not else "")
        for each in step.addresses
        if (each.address, each.port) != (step.address.address, step.address.port)
    ]
    yield from _lines("also at", others)


def _server(step: ServiceStep) -> str:
    server = step.server
    assert server is not None
    place = f"[{server.address}]" if ":" in server.address else server.address
    words = [f"by IPVS on node {step.node}: {server.protocol} {place}:{server.port}"]
    if server.fwmark:
        words.append(f"fwmark {server.fwmark:#x}")
    words += [server.scheduler, *server.flags]
    if server.persistence_s:
        words.append(f"persistent {server.persistence_s} s")
    return f"{' '.join(words)}, policy {step.policy}"


def _backends(backends: Sequence[Backend]) -> Iterator[str]:
    # Those that are in first: by them the flow goes.
    ordered = sorted(backends, key=lambda each: not each.is_in)
    yield from table([_row(each) for each in ordered[:_MOST_ROWS]])
    if len(ordered) > _MOST_ROWS:
        yield f"and {len(ordered) - _MOST_ROWS} more (--output=json)"


def _row(backend: Backend) -> dict[str, object]:
    return {
        "address": backend.address,
        "port": backend.port or None,
        "pod": backend.pod,
        "node": backend.node,
        "weight": backend.weight if backend.is_in else None,
        "": "in" if backend.is_in else "out",
        "why": backend.why,
    }


def _ways(backends: Iterable[Backend], node: str) -> Iterator[str]:
    paths = [each.path for each in backends if each.path is not None]
    # First what does not get through.
    paths.sort(key=lambda each: each.allowed and each.route.kind != "none")
    for path in paths[:MOST_WAYS]:
        if len(paths) > 1:
            place = f"[{path.address}]" if ":" in path.address else path.address
            name = f" ({path.pod})" if path.pod else ""
            yield f"  to {place}:{path.port}{name}"
        yield from _way(path, node)
    if len(paths) > MOST_WAYS:
        yield f"  and to {len(paths) - MOST_WAYS} more backends (--output=json)"


def _way(path: Path, node: str) -> Iterator[str]:
    egress = [each for each in path.reasons if each.startswith("egress of ")]
    ingress = [each for each in path.reasons if each.startswith("ingress of ")]
    rest = [each for each in path.reasons if each not in (*egress, *ingress)]
    where = f"; judged on the way to {path.egress_destination}" if path.egress_destination else ""
    yield from _lines("egress", [_side(egress, path.egress) + where])
    where = f"; judged on node {path.judged_at}" if path.judged_at not in ("", node) else ""
    yield from _lines("ingress", [_side(ingress, path.ingress) + where])
    yield from _lines("source", [_translation(path.translation)])
    yield from _lines("route", [_route(path.route)])
    yield from _lines("note", rest[:1])
    yield from _lines("", rest[1:])


def _side(reasons: Sequence[str], side: Side) -> str:
    """One direction; of the one that does not decide, reasons do not tell."""
    if reasons:
        return reasons[0].partition(" of ")[2]
    return f"{'allowed' if side.allowed else 'denied'}: {held(side)}"


def _translation(found: Translation) -> str:
    if found.reason == "unknown":
        return f"not known: {found.why}"
    if not found.is_translated:
        return f"{found.source} stays: {found.why}"
    return f"becomes {found.source or 'an address of the node'}: {found.why}"


def _route(route: Route) -> str:
    if route.kind in ("none", "unknown"):
        return f"{'there is none' if route.kind == 'none' else 'not known'}: {route.why}"
    words = [f"{route.encapsulation} tunnel {route.link}" if route.kind == "tunnel" else route.kind]
    if route.link and route.kind != "tunnel":
        words.append(f"by {route.link}")
    if route.next_hop:
        words.append(f"{'to' if route.kind == 'tunnel' else 'via'} {route.next_hop}")
    if route.destination:
        words.append(f"({route.destination})")
    return f"{' '.join(words)}: {route.why}"


def _kernel(found: Comparison) -> Iterator[str]:
    differ = [each for each in found.checks if each.agrees is False]
    unknown = [each for each in found.checks if each.agrees is None]
    agree = sum(each.agrees is True for each in found.checks)
    if differ:
        number = f"{len(differ)} of {agree + len(differ)} checks"
        yield from _lines("kernel", [f"DIFFERS on node {found.node}: {number}"])
    else:
        checks = f"{agree} check{'' if agree == 1 else 's'}"
        yield from _lines("kernel", [f"agrees on node {found.node}: {checks}"])
    for each in differ:
        yield from _lines(
            "", [each.what, f"  expected {each.expected}", f"  found    {each.found}"]
        )
        if each.remedy:
            yield from _lines("", [f"  remedy   {each.remedy}"])
    for each in unknown:
        yield from _lines("", [f"{each.what}: {each.found}"])
