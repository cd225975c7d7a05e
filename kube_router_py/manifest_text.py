"""The text of manifests to plain values: YAML documents as Kubernetes reads them, or JSON.

Pure. Whatever the text is, the answer is values or a SyntaxProblem: neither a crash of the C parser
(it recurses for each level of nesting) nor a few lines of aliases that stand for gigabytes.
"""

import json
import re
from typing import Any

import yaml

# The API server refuses more than 10,000 levels of JSON; real manifests have about ten.
_MOST_LEVELS = 500
# Nodes that aliases may add to a text. The largest real use is a few hundred.
_MOST_ALIASED_NODES = 1_000_000


class SyntaxProblem(ValueError):
    """The text is neither YAML nor JSON; the message says where and why."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it.

    What looks like a date is text, and so are ``=`` and digits between colons, which YAML 1.1 takes
    for a number to the base 60: ``2001:10:0:5:1:2:3:4`` is an address.
    """


_OTHER_THAN_IN_KUBERNETES = tuple(
    f"tag:yaml.org,2002:{name}" for name in ("timestamp", "value", "int", "float")
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHER_THAN_IN_KUBERNETES]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def documents(text: str, *, is_json: bool = False) -> list[Any]:
    """The values of all documents in a text. Raises SyntaxProblem.

    ``is_json``: the name of the file says so, and then it is not taken for YAML.
    """
    if not text.strip():
        return []
    # JSON may be indented by tabs, which YAML does not take.
    if is_json or text.lstrip()[:1] in ("{", "["):
        try:
            return [json.loads(text)]
        except (ValueError, RecursionError) as error:
            if is_json:
                raise SyntaxProblem(f"not JSON: {error}") from error
    try:
        _check_size(text)
        return list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SyntaxProblem(f"neither YAML nor JSON: {error}") from error


def _check_size(text: str) -> None:
    """Raise ValueError for a text that is nested too deeply, or small only thanks to aliases."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes before it
    nodes = aliased = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise ValueError(f"the value of anchor {event.anchor!r} contains itself")
                continue  # an unknown one: the loader says where it stands
            nodes += sizes[event.anchor]
            aliased += sizes[event.anchor]
            if aliased > _MOST_ALIASED_NODES:
                raise ValueError(f"aliases stand for more than {_MOST_ALIASED_NODES} values")
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
            nodes += 1
            if event.anchor:
                sizes.pop(event.anchor, None)  # a new one of the name, complete at its end
            if len(open_nodes) > _MOST_LEVELS:
                raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.DocumentStartEvent):
            sizes.clear()
