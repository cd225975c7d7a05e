"""Label and field selectors of list and watch requests (apimachinery's grammar)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .resources import Resource
from .status import Object, bad_request

Match = Callable[[Object], bool]

_SET_TERM = re.compile(r"^(\S+)\s+(in|notin)\s*\(([^)]*)\)$")
_EQUALITY_TERM = re.compile(r"^([^=!\s]+)\s*(==|!=|=)\s*(\S*)$")


def _terms(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    return [term.strip() for term in re.split(r",(?![^(]*\))", text) if term.strip()]


def _label_term(term: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET_TERM.match(term):
        key, operator, inside = found.groups()
        values = {value.strip() for value in inside.split(",")}
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUALITY_TERM.match(term):
        key, operator, value = found.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if re.fullmatch(r"!\s*[\w./-]+", term):
        absent = term[1:].strip()
        return lambda labels: absent not in labels
    if re.fullmatch(r"[\w./-]+", term):
        return lambda labels: term in labels
    raise bad_request(f'unable to parse requirement: found "{term}"')


def label_selector(text: str) -> Match:
    """Compile ``a=b,c!=d,e in (x,y),!f``; raises 400 on a syntax error."""
    tests = [_label_term(term) for term in _terms(text)]

    def matches(obj: Object) -> bool:
        labels = obj["metadata"].get("labels")
        if not isinstance(labels, dict):  # none, or a malformed object a test fed
            labels = {}
        return all(test(labels) for test in tests)

    return matches


def _field_value(obj: Object, path: str) -> str:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if path == "source" and isinstance(value, dict):
        value = value.get("component")
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "false" if path in ("spec.unschedulable", "spec.hostNetwork") else ""
    return str(value)


def field_selector(text: str, resource: Resource) -> Match:
    """Compile ``metadata.name=x,status.phase!=y``; raises 400 for an unsupported field."""
    tests: list[tuple[str, bool, str]] = []
    for term in _terms(text):
        found = _EQUALITY_TERM.match(term)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        path, operator, value = found.groups()
        if path not in ("metadata.name", "metadata.namespace", *resource.fields):
            raise bad_request(
                f'Unable to find "{resource.api_version}, Resource={resource.plural}" that match '
                f'label selector "", field selector "{text}": field label not supported: {path}'
            )
        tests.append((path, operator != "!=", value))
    return lambda obj: all((_field_value(obj, path) == want) is eq for path, eq, want in tests)


def exact_name(text: str) -> str:
    """The only name that a field selector lets through, or ""."""
    for term in _terms(text):
        found = _EQUALITY_TERM.match(term)
        if found and found[1] == "metadata.name" and found[2] != "!=":
            return found[3]
    return ""


def selector(labels: str, fields: str, resource: Resource) -> Match | None:
    """Both selectors as one predicate; None selects everything."""
    if labels and fields:
        by_label, by_field = label_selector(labels), field_selector(fields, resource)
        return lambda obj: by_label(obj) and by_field(obj)
    if labels:
        return label_selector(labels)
    return field_selector(fields, resource) if fields else None
