"""Fields of a log record, for systemd's journal. Pure.

They come from the format string, not from the finished line: in ``"removed service=%s reason=%r"``
the placeholders have keys, so whatever strangers wrote into an argument stays the value of its
field. Values that name an object of Kubernetes are given as ``KUBE_OBJECT`` too, whatever their
key, so that one question finds all lines about it.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

PREFIX = "KRP_"

# Keys whose value is the name, or namespace/name, of an object of this kind. The value of
# ``object`` begins with its kind, as that of a Problem does.
OBJECT_KINDS = {
    "configmap": "ConfigMap",
    "lease": "Lease",
    "namespace": "Namespace",
    "node": "Node",
    "pod": "Pod",
    "policy": "NetworkPolicy",
    "secret": "Secret",
    "service": "Service",
}
# Keys whose value lists several: namespace/name of that kind, or whatever a loop calls its keys.
_LISTS = {"services": "Service", "policies": "NetworkPolicy", "keys": "", "object": ""}
_REASONS = ("reason",)

_CONVERSION = re.compile(
    r"%(?P<name>\([^)]*\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?[hlL]?"
    r"(?P<type>[diouxXeEfFgGcrsa%])"
)
_KEY = re.compile(r"(?:^|[\s(,;])([a-z][a-z0-9_]*)=\Z")
_OBJECT = re.compile(r"([A-Z][A-Za-z]*) (\S+)\Z")
_NAMESPACED = re.compile(r"[^\s/]+/[^\s/]+\Z")
_SEPARATOR = re.compile(r",\s*")
_MORE = re.compile(r" and \d+ more\Z")
# What Problems are about that is no object of Kubernetes.
_NO_OBJECTS = frozenset(("File", "Flag"))


class Placeholder(NamedTuple):
    """A placeholder of a format string: its key ("" without one), and how it is written."""

    key: str
    conversion: str


@lru_cache(maxsize=2048)
def placeholders(template: str) -> tuple[Placeholder, ...]:
    """Those of a format string, in the order of the arguments; none where that is not plain."""
    found = []
    for match in _CONVERSION.finditer(template):
        if match["type"] == "%":
            continue
        if match["name"] or "*" in (match["width"], match["precision"]):
            return ()
        key = _KEY.search(template, 0, match.start())
        found.append(Placeholder(key[1] if key else "", match[0]))
    return tuple(found)


def values(template: object, arguments: object) -> list[tuple[str, str]]:
    """``(key, value)`` of each placeholder that has a key; texts as they are, without quotes.

    What does not fit together gives no fields: logging itself tells of such a call.
    """
    if not isinstance(template, str):
        return []
    # logging hands over the only argument itself where that is a mapping.
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    wanted = placeholders(template)
    if len(wanted) != len(given):
        return []
    return [
        (each.key, _written(each.conversion, value))
        for each, value in zip(wanted, given, strict=True)
        if each.key
    ]


def _written(conversion: str, value: object) -> str:
    return str(value) if conversion[-1] in "rsa" else conversion % (value,)


def fields(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The journal's fields of a record's keys: one ``KRP_`` field each, and what they name.

    A line about several objects has several ``KUBE_OBJECT`` fields: the journal finds it by each.
    """
    seen = set()
    for key, value in pairs:
        if not value:
            continue
        yield PREFIX + key.upper(), value
        for field in _named(key, value):
            if field not in seen:
                seen.add(field)
                yield field


def _named(key: str, value: str) -> Iterator[tuple[str, str]]:
    if key in _REASONS:
        yield "KUBE_REASON", value
    elif key in OBJECT_KINDS:
        for name in _SEPARATOR.split(value):
            if name != "-":
                yield from _object(OBJECT_KINDS[key], name)
    elif key in _LISTS:
        for text in _SEPARATOR.split(_MORE.sub("", value)):
            if match := _OBJECT.match(text):
                yield from _object(match[1], match[2])
            elif _NAMESPACED.match(text):
                yield from _object(_LISTS[key], text)


def _object(kind: str, name: str) -> Iterator[tuple[str, str]]:
    if kind in _NO_OBJECTS:
        return
    yield "KUBE_OBJECT", name
    if kind:
        yield "KUBE_KIND", kind
    if kind == "Namespace":
        yield "KUBE_NAMESPACE", name
    elif "/" in name:
        yield "KUBE_NAMESPACE", name.partition("/")[0]
