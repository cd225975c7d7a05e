"""Findings for people and for programs."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import to_builtins

from kube_router_py.colours import Painter
from kube_router_py.doctor.findings import ERROR, SEVERITIES, WARNING, Finding, is_bad
from kube_router_py.observe.log import harmless

_WIDTH = 100


def lines(findings: Sequence[Finding], painter: Painter, node: str) -> Iterator[str]:
    """The worst first: severity, code and object on one line, below it what and what to do."""
    if not findings:
        yield painter.green(f"node {harmless(node)}: nothing is wrong")
        return
    paint = {ERROR: painter.red, WARNING: painter.yellow}
    for each in findings:
        severity = paint.get(each.severity, painter.bold)(f"{each.severity:7}")
        yield f"{severity}  {each.code}  {harmless(each.object)}"
        yield from _wrapped("", each.what)
        yield from _wrapped("remedy: ", each.remedy)
    counts = [(sum(it.severity == name for it in findings), name) for name in SEVERITIES]
    yield ""
    told = ", ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in counts if n)
    yield f"node {harmless(node)}: {told}"


def _wrapped(prefix: str, text: str) -> list[str]:
    return textwrap.wrap(
        prefix + harmless(text),
        _WIDTH,
        initial_indent=" " * 9,
        subsequent_indent=" " * (9 + len(prefix)),
        break_long_words=False,
        break_on_hyphens=False,
    )


def document(findings: Sequence[Finding], node: str, version: str) -> dict[str, Any]:
    """For --output json and for bundles."""
    return {
        "node": node,
        "version": version,
        "ok": not is_bad(findings),
        "findings": to_builtins(list(findings)),
    }
