"""NetworkPolicies that do not decode as a whole: keep what can be kept, and open nothing. Pure.

A policy that vanished would take the isolation of its pods with it. So its name, its target and its
types stay, and a part that cannot be decoded is replaced by one that matches nothing: a peer that
nobody is, a port of no protocol, a rule of such a peer. Each replacement is a Problem.

``null`` stands for a member that is not set, as the API server reads it. Not so as a label's value
(Go makes "" of it, and to leave the condition out would select more) and as an entry of a list (Go
makes an empty rule of it, which would admit everybody): such a part counts as broken.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import ValidationError, convert

from kube_router_py.cluster.decode_error import explain
from kube_router_py.cluster.objects import (
    LabelSelector,
    LabelSelectorRequirement,
    NetworkPolicy,
    NetworkPolicyEgressRule,
    NetworkPolicyIngressRule,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicySpec,
    ObjectMeta,
)
from kube_router_py.problem import Problem

T = TypeVar("T")

NOBODY = NetworkPolicyPeer()
NO_PORT = NetworkPolicyPort(protocol="undecodable")
# No API server knows this operator, so that the selector is an unusable one: it selects nothing.
NO_PODS = LabelSelector(
    match_expressions=(LabelSelectorRequirement(key="undecodable", operator="undecodable"),)
)
BOTH_TYPES = ("Ingress", "Egress")

_JSON_TYPES: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "array",
    dict: "object",
}
_IDENTITY = ("name", "namespace", "uid", "resourceVersion")
_RuleParts = tuple[tuple[NetworkPolicyPeer, ...] | None, tuple[NetworkPolicyPort, ...] | None]


def decode_policy(document: Any) -> tuple[NetworkPolicy, tuple[Problem, ...]]:
    """A policy from parsed JSON, and what of it had to be replaced (nothing: no Problem).

    Raises msgspec.ValidationError where not even the name and namespace can be read.
    """
    if not isinstance(document, dict):
        return convert(document, NetworkPolicy), ()
    try:
        return convert(_without_nulls(document), NetworkPolicy), ()
    except ValidationError:
        return _Salvage(document).policy()


class _Salvage:
    """One policy, part by part."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._subject = ""
        self._problems: list[Problem] = []

    def policy(self) -> tuple[NetworkPolicy, tuple[Problem, ...]]:
        metadata = _without_nulls(self._document.get("metadata") or {})
        try:
            meta, error = convert(metadata, ObjectMeta), None
        except ValidationError as raised:
            if not isinstance(metadata, dict):
                raise
            # Labels of a policy say nothing about what it does; without annotations it is enforced.
            identity = {key: metadata[key] for key in _IDENTITY if key in metadata}
            meta, error = convert(identity, ObjectMeta), raised
        self._subject = f"NetworkPolicy {meta.key or '?'}"
        if error is not None:
            self._tell(error, "metadata", "only the name is read")
        return NetworkPolicy(meta, self._spec(self._document.get("spec"))), tuple(self._problems)

    def _spec(self, spec: Any) -> NetworkPolicySpec:
        if spec is None:
            return NetworkPolicySpec()
        if not isinstance(spec, dict):
            self._refuse(spec, "spec", "the policy selects no pod")
            return NetworkPolicySpec(NO_PODS)
        selector = self._part(
            spec.get("podSelector"),
            "spec.podSelector",
            LabelSelector | None,
            NO_PODS,
            "the policy selects no pod",
        )
        types = self._part(
            spec.get("policyTypes"),
            "spec.policyTypes",
            tuple[str, ...] | None,
            BOTH_TYPES,
            "the policy closes both directions",
        )
        return NetworkPolicySpec(
            selector,
            types,
            self._list(spec.get("ingress"), "spec.ingress", self._ingress, _NO_INGRESS),
            self._list(spec.get("egress"), "spec.egress", self._egress, _NO_EGRESS),
        )

    def _ingress(self, rule: Any, field: str) -> NetworkPolicyIngressRule:
        return NetworkPolicyIngressRule(*self._rule(rule, field, "from"))

    def _egress(self, rule: Any, field: str) -> NetworkPolicyEgressRule:
        return NetworkPolicyEgressRule(*self._rule(rule, field, "to"))

    def _rule(self, rule: Any, field: str, side: str) -> _RuleParts:
        if not isinstance(rule, dict):
            self._refuse(rule, field, "this rule matches nothing")
            return (NOBODY,), None
        return (
            self._list(rule.get(side), f"{field}.{side}", self._peer, NOBODY),
            self._list(rule.get("ports"), f"{field}.ports", self._port, NO_PORT),
        )

    def _peer(self, peer: Any, field: str) -> NetworkPolicyPeer:
        found: NetworkPolicyPeer = self._part(
            peer, field, NetworkPolicyPeer, NOBODY, "this peer matches nobody"
        )
        return found

    def _port(self, port: Any, field: str) -> NetworkPolicyPort:
        found: NetworkPolicyPort = self._part(
            port, field, NetworkPolicyPort, NO_PORT, "this entry matches nothing"
        )
        return found

    def _list(
        self, values: Any, field: str, decode: Callable[[Any, str], T], nothing: T
    ) -> tuple[T, ...] | None:
        if values is None:
            return None
        if not isinstance(values, list):
            self._refuse(values, field, "it matches nothing")
            return (nothing,)
        return tuple(decode(value, f"{field}[{index}]") for index, value in enumerate(values))

    def _part(self, value: Any, field: str, kind: Any, instead: Any, consequence: str) -> Any:
        try:
            return convert(_without_nulls(value), kind)
        except ValidationError as error:
            self._tell(error, field, consequence)
            return instead

    def _refuse(self, value: Any, field: str, consequence: str) -> None:
        kind = _JSON_TYPES.get(type(value), "null")
        reason = f"cannot be decoded: got `{kind}`; {consequence}"
        self._problems.append(Problem(self._subject, field, reason))

    def _tell(self, error: ValidationError, field: str, consequence: str) -> None:
        reason, where = explain(error, field)
        self._problems.append(Problem(self._subject, where, f"{reason}; {consequence}"))


_NO_INGRESS = NetworkPolicyIngressRule(from_=(NOBODY,))
_NO_EGRESS = NetworkPolicyEgressRule(to=(NOBODY,))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: each if key == "matchLabels" else _without_nulls(each)
            for key, each in value.items()
            if each is not None
        }
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
