"""Label selectors (Kubernetes API reference, LabelSelector): one canonical form of each. Pure."""

from bisect import bisect_left
from collections.abc import Mapping

from msgspec import Struct

from kube_router_py.cluster.objects import LabelSelector, LabelSelectorRequirement

_WITH_VALUES = ("In", "NotIn")
_OPERATORS = (*_WITH_VALUES, "Exists", "DoesNotExist")


class Requirement(Struct, frozen=True, order=True):
    """One condition on one label: ``operator`` as in the API; ``values`` sorted."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return self._is_listed(value)
            case "NotIn":  # what lacks the label is not in, either
                return not self._is_listed(value)
            case "Exists":
                return value is not None
            case _:
                return value is None

    def _is_listed(self, value: str | None) -> bool:
        # There may be as many as an object has room for.
        position = bisect_left(self.values, value) if value is not None else len(self.values)
        return self.values[position : position + 1] == (value,)


class Selector(Struct, frozen=True, order=True):
    """Conditions that all have to hold; none: everything is selected. Equal selectors are equal,
    however they were written."""

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        return all(each.holds(labels) for each in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(_text, self.requirements)) or "(all)"


EVERYTHING = Selector()


def parse_selector(selector: LabelSelector) -> Selector:
    """The canonical form. Raises ValueError, naming the field and what is wrong with it, for an
    operator that is not known, and for values where there may be none or must be some."""
    found = {
        Requirement(key, "In", (value,)) for key, value in (selector.match_labels or {}).items()
    }
    for index, each in enumerate(selector.match_expressions or ()):
        try:
            found.add(_requirement(each))
        except ValueError as error:
            raise ValueError(f"matchExpressions[{index}]: {error}") from None
    return Selector(tuple(sorted(found)))


def matches(selector: LabelSelector | None, labels: Mapping[str, str] | None) -> bool:
    """Whether a selector selects an object with these labels. An empty selector selects all, None
    nothing. Raises ValueError as ``parse_selector`` does."""
    return selector is not None and parse_selector(selector).selects(labels or {})


def _requirement(each: LabelSelectorRequirement) -> Requirement:
    if not each.key:
        raise ValueError("a key is missing")
    if each.operator not in _OPERATORS:
        raise ValueError(f"operator {each.operator!r} is none of {', '.join(_OPERATORS)}")
    values = tuple(sorted(set(each.values or ())))
    if each.operator in _WITH_VALUES and not values:
        raise ValueError(f"operator {each.operator} needs values")
    if each.operator not in _WITH_VALUES and values:
        raise ValueError(f"operator {each.operator} takes no values")
    return Requirement(each.key, each.operator, values)


def _text(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    match requirement.operator:
        case "In":
            return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})"
        case "NotIn":
            return f"{key} notin ({','.join(values)})"
        case "Exists":
            return key
        case _:
            return f"!{key}"
