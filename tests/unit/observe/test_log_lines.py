"""What every line of the log looks like: fixed words, and a documented key before each value.

The journal's fields are made of these keys, see ``observe.log_fields`` and docs/journal.md.
"""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kube_router_py
from kube_router_py.observe.journal import JournalHandler, JournalSocket
from kube_router_py.observe.log_fields import OBJECT_KINDS, placeholders

PACKAGE = Path(kube_router_py.__file__).parent
PAGE = (Path(__file__).parents[3] / "docs" / "journal.md").read_text()
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
LOGGERS = ("_log", "log", "_logger", "logger", "logging")


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger in the agent. The lab has a log of its own, which no journal gets."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if (PACKAGE / "lab") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.func.attr in LEVELS and name in LOGGERS:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def template(call: ast.Call) -> ast.expr:
    assert isinstance(call.func, ast.Attribute)
    return call.args[1 if call.func.attr == "log" else 0]


CALLS = list(calls())
TEXTS = {
    place: text.value
    for place, call in CALLS
    if isinstance(text := template(call), ast.Constant) and isinstance(text.value, str)
}
KEYS = {each.key for text in TEXTS.values() for each in placeholders(text)}


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def documented(title: str) -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", section(title), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_lines_are_of_fixed_words() -> None:
    assert len(CALLS) > 100
    assert [place for place, _ in CALLS if place not in TEXTS] == []


def test_every_value_has_a_key() -> None:
    assert [
        f"{place}: {text}"
        for place, text in TEXTS.items()
        if any(not each.key for each in placeholders(text))
        or re.sub(r"%%", "", text).count("%") != len(placeholders(text))
    ] == []


def test_texts_begin_with_words_that_say_what_happened() -> None:
    """And do not end like a sentence: values follow."""
    assert [text for text in TEXTS.values() if not re.match(r"[A-Za-z][^\s=%]*(\s|$)", text)] == []
    assert [text for text in TEXTS.values() if text.endswith((".", ":", " "))] == []


def test_exactly_the_keys_in_use_are_documented() -> None:
    assert documented("Fields of one value each") - {"meaning"} == KEYS


def test_keys_that_name_objects_are_in_use() -> None:
    """But those that are there for whoever needs them next."""
    assert set(OBJECT_KINDS) - KEYS <= {"configmap", "namespace", "secret"}


def test_exactly_the_fields_of_a_record_are_documented(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(JournalSocket, "send", lambda self, payload: sent.append(payload))
    handler = JournalHandler(JournalSocket(tmp_path / "none"), node="node1", tracebacks=False)
    try:
        raise ValueError
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    arguments = ("Service default/web", "it is so")
    text = "problem object=%r reason=%r"
    handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, text, arguments, None, "run"))
    handler.handle(logging.LogRecord("x", logging.INFO, "f", 1, text, arguments, info, "run"))
    handler.close()
    names = [
        {line.partition(b"=")[0].decode("latin-1") for line in each.split(b"\n")} for each in sent
    ]
    fields = {name for name in set.union(*names) if re.fullmatch("[A-Z_]+", name)}
    of_each = documented("Fields of every line")
    of_objects = documented("Fields of lines about objects")
    assert {name for name in fields if not name.startswith("KRP_")} == of_each | of_objects
