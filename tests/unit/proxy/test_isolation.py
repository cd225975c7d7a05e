"""Label selectors, and which pods NetworkPolicies isolate for ingress."""

from typing import Any

import pytest
from msgspec import structs

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import (
    LabelSelector,
    LabelSelectorRequirement,
    Namespace,
    NetworkPolicy,
    NetworkPolicySpec,
    ObjectMeta,
    Pod,
    PodSpec,
)
from kube_router_py.cluster.selectors import matches
from kube_router_py.proxy.isolating import isolates_for_ingress
from kube_router_py.proxy.isolation import Isolation


def where(key: str, operator: str, *values: str) -> LabelSelector:
    return LabelSelector(match_expressions=(LabelSelectorRequirement(key, operator, values),))


@pytest.mark.parametrize(
    ("selector", "labels", "is_selected"),
    [
        (LabelSelector(), None, True),
        (LabelSelector(), {"a": "1"}, True),
        (None, {"a": "1"}, False),
        (LabelSelector({"a": "1"}), {"a": "1", "b": "2"}, True),
        (LabelSelector({"a": "1"}), {"a": "2"}, False),
        (LabelSelector({"a": "1"}), None, False),
        (LabelSelector({"a": ""}), {"a": ""}, True),
        (LabelSelector({"a": ""}), {}, False),
        (where("a", "In", "1", "2"), {"a": "2"}, True),
        (where("a", "In", "1", "2"), {}, False),
        (where("a", "NotIn", "1"), {"a": "1"}, False),
        (where("a", "NotIn", "1"), {}, True),
        (where("a", "Exists"), {"a": ""}, True),
        (where("a", "Exists"), {}, False),
        (where("a", "DoesNotExist"), {}, True),
        (where("a", "DoesNotExist"), {"a": "1"}, False),
        (LabelSelector({"a": "1"}, where("b", "Exists").match_expressions), {"a": "1"}, False),
    ],
)
def test_selectors(
    selector: LabelSelector | None, labels: dict[str, str] | None, is_selected: bool
) -> None:
    assert matches(selector, labels) is is_selected


def test_an_operator_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="Near"):
        matches(where("a", "Near"), {"a": "1"})


def policy(selector: LabelSelector | None, *types: str, namespace: str = "default") -> Any:
    return NetworkPolicy(ObjectMeta("p", namespace), NetworkPolicySpec(selector, types or None))


def pod(**labels: str) -> Pod:
    return Pod(ObjectMeta("a", "default", "uid-a", labels=labels), PodSpec(node_name="node1"))


@pytest.mark.parametrize(
    ("found", "is_isolated"),
    [
        (policy(LabelSelector()), True),
        (policy(LabelSelector(), "Ingress"), True),
        (policy(LabelSelector(), "Egress"), False),
        (policy(LabelSelector(), "Egress", "Ingress"), True),
        (policy(LabelSelector({"app": "db"})), False),
        (policy(LabelSelector({"app": "web"})), True),
        (policy(LabelSelector(), namespace="other"), False),
        (policy(None), True),
        (policy(where("app", "Near")), True),
    ],
)
def test_policies(found: NetworkPolicy, is_isolated: bool) -> None:
    assert isolates_for_ingress(found, pod(app="web")) is is_isolated


def test_what_is_not_known_counts_as_isolated_and_changes_are_told() -> None:
    cache, policies = Cache((Pod,)), Cache((NetworkPolicy,))
    isolation, marked = Isolation(cache, policies, "node1"), []

    class Loop:
        def mark(self, keys: Any) -> None:
            marked.extend(keys)

    isolation.subscribe(Loop(), ("dsr",))
    cache.put(Pod, pod(app="web"))
    assert marked == ["dsr"]
    assert isolation.is_isolated("uid-a")  # no list of policies yet
    policies.replace(NetworkPolicy, (), "1")
    assert not isolation.is_isolated("uid-a")
    assert isolation.is_isolated("uid-of-nobody")
    marked.clear()
    policies.put(NetworkPolicy, policy(LabelSelector({"app": "db"})))
    assert marked == ["dsr"]
    assert not isolation.is_isolated("uid-a")
    cache.put(Pod, pod(app="db"))
    assert marked == ["dsr", "dsr"]
    assert isolation.is_isolated("uid-a")


def audited(each: Any, value: str | None) -> Any:
    annotations = None if value is None else {"kube-router.io/audit": value}
    return structs.replace(each, metadata=structs.replace(each.metadata, annotations=annotations))


def test_an_audited_policy_isolates_nobody() -> None:
    cache, marked = Cache((Pod, NetworkPolicy, Namespace)), []

    class Loop:
        def mark(self, keys: Any) -> None:
            marked.extend(keys)

    cache.put(Pod, pod(app="web"))
    cache.replace(NetworkPolicy, [policy(LabelSelector())], "1")
    isolation = Isolation(cache, cache, "node1", cache)
    isolation.subscribe(Loop(), ("dsr",))
    # Enforced by somebody else, who knows no audit.
    elsewhere = Isolation(cache, cache, "node1")
    for of_policy, of_space, is_isolated in (
        (None, None, True),
        ("true", None, False),
        ("true", "false", False),
        (None, "true", False),
        (None, "True", True),
        ("false", "true", True),
        ("yes", "true", True),
    ):
        cache.put(NetworkPolicy, audited(policy(LabelSelector()), of_policy))
        cache.put(Namespace, audited(Namespace(ObjectMeta("default")), of_space))
        assert isolation.is_isolated("uid-a") is is_isolated, (of_policy, of_space)
        assert elsewhere.is_isolated("uid-a")
    # Beside one that is enforced it is none the less isolated.
    cache.put(Namespace, audited(Namespace(ObjectMeta("default")), "true"))
    cache.put(NetworkPolicy, policy(LabelSelector()))
    marked.clear()
    strict = structs.replace(policy(LabelSelector()), metadata=ObjectMeta("q", "default"))
    cache.put(NetworkPolicy, audited(strict, "false"))
    assert isolation.is_isolated("uid-a")
    assert marked == ["dsr"]
    cache.delete(NetworkPolicy, "default/q")
    assert not isolation.is_isolated("uid-a")
    marked.clear()
    cache.put(Namespace, Namespace(ObjectMeta("default", labels={"a": "b"})))
    assert marked == ["dsr"]
    assert isolation.is_isolated("uid-a")
    # Of a Namespace only that matters.
    cache.put(Namespace, Namespace(ObjectMeta("default", labels={"a": "c"})))
    assert marked == ["dsr"]
