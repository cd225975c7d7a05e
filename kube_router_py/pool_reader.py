"""One pool as the ConfigMap describes it, read field by field. Pure.

YAML is composed, not constructed: every value stays a text with its place, so that no number loses
its zeros, ``65000:100`` is not a number of base 60, and a key given twice shows. Aliases are not
read: a few of them stand for more than a machine can hold.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import yaml
from msgspec import Struct

from kube_router_py.address_pools import AddressRange, Announcing, Pool
from kube_router_py.address_ranges import parse_range
from kube_router_py.cluster.objects import LabelSelector, LabelSelectorRequirement
from kube_router_py.cluster.selectors import EVERYTHING, Selector, parse_selector
from kube_router_py.routing.communities import parse_communities
from kube_router_py.routing.texts import shown
from kube_router_py.routing.values import parse_number

T = TypeVar("T")
Tell = Callable[[str, str], None]
"""Is told of each mistake: the field, and what is wrong with it."""

_POOL = (
    "name",
    "addresses",
    "autoAssign",
    "avoidBuggyIPs",
    "priority",
    "namespaces",
    "namespaceSelector",
    "serviceSelector",
    "reallocate",
    "announce",
)
_ANNOUNCE = ("bgp", "layer2", "interfaces", "nodeSelector", "communities", "localPreference")
_SELECTOR = ("matchLabels", "matchExpressions")
_REQUIREMENT = ("key", "operator", "values")

# What is seldom written down otherwise than by mistake; and a Problem quotes it.
_LONGEST = 253
_WORD = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_LABEL_KEY = re.compile(rf"(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_WORD}", re.ASCII)
_LABEL_VALUE = re.compile(rf"(?:{_WORD})?", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@+*?-]{1,15}", re.ASCII)
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_MOST_PREFERRED = 2**32 - 1
_LAST_PRIORITY = 2**31 - 1


class Draft(Struct, frozen=True):
    """A pool as far as it could be read; ``is_right``: there is no mistake in it.

    ``places`` are the ranges of addresses that could be read, each with its field. ``name`` is
    ``""`` where there is none that can be used.
    """

    field: str
    name: str
    pool: Pool
    places: tuple[tuple[str, AddressRange], ...]
    is_right: bool


class _Loader(yaml.BaseLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=mark)
        return super().compose_node(parent, index)


def read_items(text: str) -> list[yaml.Node]:
    """The items of a list in YAML; none where the text is empty. Raises ValueError, whose text says
    what is wrong and what to do."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        said = error.problem or error.context or "it cannot be read"
        raise ValueError(f"it is no YAML{where}: {said}; correct it there") from None
    except RecursionError:
        raise ValueError("it is nested too deeply; write a list of pools") from None
    except (yaml.YAMLError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"it is no YAML: {said[:200]}; correct it") from None
    if node is None or _is_null(node):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("it is no list; begin each pool with '- name: NAME'")
    return list(node.value)


def read_pool(item: yaml.Node, field: str, tell: Tell) -> Draft:
    """Read one pool; all that is wrong with it is told, not the first thing only."""
    mistakes: list[str] = []

    def report(place: str, reason: str) -> None:
        mistakes.append(place)
        tell(place, reason)

    fields = _Fields(item, field, _POOL, report)
    name = fields.take("name", _dns_label, "")
    if fields.is_mapping and not fields.has("name"):
        report(field, "it has no name; write name: NAME")
    places = tuple(
        (place, found)
        for place, found in fields.each("addresses", parse_range)
        if found is not None
    )
    if fields.is_mapping and not fields.has("addresses"):
        report(f"{field}.addresses", "there are none; write a list of ranges")
    namespaces = fields.names("namespaces")
    pool = Pool(
        name,
        tuple(found for _, found in places),
        auto_assign=fields.take("autoAssign", _boolean, True),
        avoid_buggy_ips=fields.take("avoidBuggyIPs", _boolean, False),
        namespace_names=namespaces,
        namespaces=fields.selector("namespaceSelector"),
        services=fields.selector("serviceSelector"),
        priority=fields.take("priority", _priority, 0),
        reallocate=fields.take("reallocate", _boolean, False),
        announcing=_announcing(fields),
    )
    return Draft(field, name, pool, places, not mistakes)


def _announcing(pool: "_Fields") -> Announcing:
    fields = pool.fields("announce", _ANNOUNCE)
    if fields is None:
        return Announcing()
    interfaces = tuple(
        found for _, found in fields.each("interfaces", _interface) if found is not None
    )
    if fields.has("interfaces") and not fields.has("layer2"):
        fields.report("interfaces", "they have no effect without layer2; write layer2: true, too")
    return Announcing(
        bgp=fields.take("bgp", _boolean, None),
        layer2=fields.take("layer2", _boolean, False),
        interfaces=interfaces,
        nodes=fields.selector("nodeSelector"),
        communities=_communities(fields),
        local_preference=fields.take("localPreference", _preference, None),
    )


def _communities(fields: "_Fields") -> str:
    """As in the annotation of a Service: with commas between."""
    if fields.is_list("communities"):
        items = [text for _, text in fields.each("communities", str.strip) if text is not None]
    else:
        whole = fields.take("communities", str.strip, "", _WHOLE_LIST)
        items = [item.strip() for item in whole.split(",")] if whole else []
    text = ",".join(items)
    if text:
        for mistake in parse_communities(text)[1]:
            fields.report("communities", mistake)
    return text


# As many communities as FRR takes in a line, and room for them.
_WHOLE_LIST = 4096


class _Fields:
    """A mapping, and where it stands. ``report`` takes the name of a field in it."""

    def __init__(self, node: yaml.Node, field: str, known: tuple[str, ...], tell: Tell) -> None:
        self._field, self._tell = field, tell
        self._nodes: dict[str, yaml.Node] = {}
        self.is_mapping = isinstance(node, yaml.MappingNode)
        if not isinstance(node, yaml.MappingNode):
            hint = "name: NAME" if known is _POOL else f"{known[0]}: ..."
            tell(field, f"it is no mapping; write fields such as {hint}")
            return
        for name, value in self._pairs(node, field):
            if name not in known:
                self._unknown(name, known)
            elif not _is_null(value):
                self._nodes[name] = value

    def _pairs(self, node: yaml.MappingNode, field: str) -> Iterable[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self._tell(field, "it has a key that is a list or a mapping; write a name")
            elif name in seen:
                self._tell(field, f"{shown(name)} is given twice; leave out one of them")
            else:
                seen.add(name)
                yield name, value

    def _unknown(self, name: str, known: tuple[str, ...]) -> None:
        near = difflib.get_close_matches(name[:40], known, n=1)
        if known is _SELECTOR and not near:
            remedy = f"labels stand below matchLabels: {{{name[:40]}: ...}}"
        else:
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        self._tell(self._field, f"the field {shown(name)} is unknown; {remedy}")

    def has(self, name: str) -> bool:
        """Whether it is there, right or wrong."""
        return name in self._nodes

    def is_list(self, name: str) -> bool:
        return isinstance(self._nodes.get(name), yaml.SequenceNode)

    def report(self, name: str, reason: str) -> None:
        self._tell(f"{self._field}.{name}", reason)

    def take(self, name: str, parse: Callable[[str], T], default: T, longest: int = _LONGEST) -> T:
        """One value; the default where it is absent or wrong."""
        node = self._nodes.get(name)
        found = None if node is None else self._value(node, f"{self._field}.{name}", parse, longest)
        return default if found is None else found

    def each(self, name: str, parse: Callable[[str], T]) -> list[tuple[str, T | None]]:
        """The values of a list, each with its place; None for those that are wrong."""
        node = self._nodes.get(name)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.report(name, "it is no list; write it like [ONE, OTHER]")
            return []
        if not node.value:
            self.report(name, "it is empty; name something, or leave it out")
        places = (f"{self._field}.{name}[{index}]" for index in range(len(node.value)))
        return [
            (place, self._value(item, place, parse, _LONGEST))
            for place, item in zip(places, node.value, strict=True)
        ]

    def names(self, name: str) -> frozenset[str] | None:
        """A list of names of Namespaces; None where there is no such list."""
        if not self.has(name):
            return None
        return frozenset(found for _, found in self.each(name, _dns_label) if found is not None)

    def fields(self, name: str, known: tuple[str, ...]) -> "_Fields | None":
        node = self._nodes.get(name)
        return None if node is None else _Fields(node, f"{self._field}.{name}", known, self._tell)

    def selector(self, name: str) -> Selector:
        fields = self.fields(name, _SELECTOR)
        if fields is None:
            return EVERYTHING
        place = f"{self._field}.{name}"
        try:
            return parse_selector(LabelSelector(fields._labels(), fields._expressions()))
        except ValueError as error:
            self._tell(place, f"{error}; correct it as the API of Kubernetes has it")
            return EVERYTHING

    def _labels(self) -> dict[str, str]:
        node, field = self._nodes.get("matchLabels"), f"{self._field}.matchLabels"
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._tell(field, "it is no mapping; write it like {LABEL: VALUE}")
            return {}
        found: dict[str, str] = {}
        for name, value in self._pairs(node, field):
            if self._is_right(name, field, _label_key):
                place = f"{field}[{name}]"
                text = "" if _is_null(value) else self._value(value, place, _label_value)
                if text is not None:
                    found[name] = text
        return found

    def _expressions(self) -> tuple[LabelSelectorRequirement, ...]:
        node, field = self._nodes.get("matchExpressions"), f"{self._field}.matchExpressions"
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self._tell(field, "it is no list; write it like [{key: LABEL, operator: Exists}]")
            return ()
        found = []
        for index, item in enumerate(node.value):
            fields = _Fields(item, f"{field}[{index}]", _REQUIREMENT, self._tell)
            values = [text for _, text in fields.each("values", _label_value) if text is not None]
            key = fields.take("key", _label_key, "")
            # What is wrong with a part is told: it is not to be found missing besides.
            if fields.is_mapping and not (fields.has("key") and not key):
                operator = fields.take("operator", str.strip, "")
                found.append(LabelSelectorRequirement(key, operator, tuple(values)))
        return tuple(found)

    def _is_right(self, text: str, field: str, parse: Callable[[str], str]) -> bool:
        try:
            parse(text)
        except ValueError as error:
            self._tell(field, f"{shown(text)} {error}")
            return False
        return True

    def _value(
        self, node: yaml.Node, field: str, parse: Callable[[str], T], longest: int = _LONGEST
    ) -> T | None:
        if not isinstance(node, yaml.ScalarNode):
            self._tell(field, "it is a list or a mapping; write one value")
            return None
        text = node.value
        if len(text) > longest:
            self._tell(field, f"it is longer than {longest} characters; shorten it")
            return None
        try:
            return parse(text)
        except ValueError as error:
            self._tell(field, f"{shown(text)} {error}")
            return None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULL


# --- values -------------------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    if text not in ("true", "True", "TRUE", "false", "False", "FALSE"):
        raise ValueError("is neither true nor false; write one of them")
    return text.lower() == "true"


def _priority(text: str) -> int:
    return parse_number(text, 0, _LAST_PRIORITY, "a priority")


def _preference(text: str) -> int:
    return parse_number(text, 0, _MOST_PREFERRED, "a local preference")


def _dns_label(text: str) -> str:
    if not _DNS_LABEL.fullmatch(text):
        raise ValueError("is no name; write small letters, digits and dashes, at most 63")
    return text


def _label_key(text: str) -> str:
    if not _LABEL_KEY.fullmatch(text):
        raise ValueError("is nothing that a label is called; correct it")
    return text


def _label_value(text: str) -> str:
    if not _LABEL_VALUE.fullmatch(text):
        raise ValueError("is nothing that a label holds; correct it")
    return text


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise ValueError("is no name of a link; write it like eth0, or eth* for several")
    return text
