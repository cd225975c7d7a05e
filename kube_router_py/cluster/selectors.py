"""Label selectors (Kubernetes API reference, LabelSelector). Pure."""

from collections.abc import Mapping

from kube_router_py.cluster.objects import LabelSelector, LabelSelectorRequirement


def matches(selector: LabelSelector | None, labels: Mapping[str, str] | None) -> bool:
    """Whether a selector selects an object with these labels. An empty selector selects all, None
    nothing. Raises ValueError for an operator that is not known."""
    if selector is None:
        return False
    found = labels or {}
    return all(
        found.get(key) == value for key, value in (selector.match_labels or {}).items()
    ) and all(_holds(each, found) for each in selector.match_expressions or ())


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(requirement.key), requirement.values or ()
    match requirement.operator:
        case "In":
            return value is not None and value in values
        case "NotIn":  # what lacks the label is not in, either
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"{other!r} is not In, NotIn, Exists or DoesNotExist")
